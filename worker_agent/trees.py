"""Files and folders of users: which they are, what of them is to travel, and whether names of such can be trusted."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Collection, Mapping
from typing import NamedTuple, NoReturn

from worker_agent.protocol import Tree


class File(NamedTuple):
    """A file: its name for a program, its path here, and what tells whether it is still the same."""

    name: str
    path: str
    size: int
    mtime_ns: int
    inode: int
    mode: int


class Found(NamedTuple):
    """Files, and the folders that they are in or that are empty."""

    files: list[File]
    folders: list[str]


def identity(path: str) -> str:
    """What tells this file or directory, as it is now, from all others: who finds the same elsewhere sees the same one.

    Of a directory all counts that is in it. Raises OSError, if part of it cannot be read or it is neither, too.
    """
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        _check_is_file(status, path)
        return _file_identity(path)
    digest = hashlib.sha256(_entry(status).encode())
    for folder, folders, files in os.walk(path, onerror=_fail):
        folders.sort()
        for name in (*folders, *sorted(files)):
            digest.update(os.fsencode(name) + b"\0" + _entry_identity(os.path.join(folder, name)).encode() + b"\0")
    return digest.hexdigest()


def _file_identity(path: str) -> str:
    """It is opened: a network file system asks its server then, and we know that it may be read."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    return f"{status.st_size} {_entry(status)}"


def _entry_identity(path: str) -> str:
    status = os.lstat(path)
    return _file_identity(path) if stat.S_ISREG(status.st_mode) else _entry(status)


def _entry(status: os.stat_result) -> str:
    return f"{stat.S_IFMT(status.st_mode):o} {status.st_mtime_ns} {status.st_ino}"


def find(name: str, path: str) -> Found:
    """The file or directory at ``path``, with all that is in it; programs call it ``name``.

    A link to a file is that file. Raises OSError, for a link to a directory in a directory too: it may lead anywhere.
    """
    if not os.path.isdir(path):
        return Found([_look(name, path)], [])
    found = Found([], [])
    for folder, folders, files in os.walk(path, onerror=_fail):
        here = os.path.normpath(os.path.join(name, os.path.relpath(folder, path)))
        found.folders.append(_text(here))
        for each in folders:
            if os.path.islink(link := os.path.join(folder, each)):
                raise OSError(errno.EINVAL, "it is a link to a directory, which is not sent; name that directory", link)
        found.files.extend(_look(f"{here}/{each}", os.path.join(folder, each)) for each in files)
    return found


def find_all(places: Mapping[str, str]) -> Found:
    """What :func:`find` gives for each of the names and their paths."""
    found = Found([], [])
    for name, path in places.items():
        each = find(name, path)
        found.files.extend(each.files)
        found.folders.extend(each.folders)
    return found


def _fail(error: OSError) -> NoReturn:
    raise error


def _look(name: str, path: str) -> File:
    status = os.stat(path)
    _check_is_file(status, path)
    mode = stat.S_IMODE(status.st_mode) & 0o777
    return File(_text(name), path, status.st_size, status.st_mtime_ns, status.st_ino, mode)


def _check_is_file(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever, and a device have no end
        raise OSError(errno.EINVAL, "it is no file and no directory", path)


def _text(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise OSError(errno.EILSEQ, "its name is not UTF-8, and cannot be sent; rename it", name) from error
    return name


def check_names(tree: Tree, allowed: Collection[str]) -> None:
    """All names are ``allowed``, or below such. Raises ValueError: who sent them may want us to write elsewhere."""
    for name in (*tree.folders, *(file.name for file in tree.files)):
        parts = name.split("/")
        if "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"its agent sent a file with the name {name[:200]!r}")
        if not any("/".join(parts[:count]) in allowed for count in range(1, len(parts) + 1)):
            raise ValueError(f"its agent sent {name[:200]!r}, which is none of its outputs")
