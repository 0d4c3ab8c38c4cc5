"""Input files of programs, for agents elsewhere: which they are, what there is of them, and what they hold.

All of this reads the disks of users, which may hang: it is done on errands.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterable, Mapping

import msgspec

from worker_agent import protocol, task_files, trees
from worker_agent.pieces import PIECE

#: Bytes that are read at once.
BLOCK = 8 * PIECE
#: Seconds in which an agent is asked for a directory once: to walk through a large one takes as long as many tasks.
DIRECTORY_HOLDS = 60.0


class InputError(OSError):
    """An input is not to be had; why, in a sentence."""


def versions(inputs: Mapping[str, str]) -> dict[str, str]:
    """By their paths, what tells whether inputs have changed since an agent was asked for them. Raises InputError.

    A directory is not walked through for that: it is another one after a while. Where it is the same one there, what is
    in it by now is the same, too; unless both machines were made from one image, and nobody had yet written to it.
    """
    _check_are_there(inputs)
    return {path: _version_of(name, path) for name, path in inputs.items()}


def _version_of(name: str, path: str) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(error.errno, task_files.why_no_input(name, path)) from error
    period = int(time.monotonic() // DIRECTORY_HOLDS) if stat.S_ISDIR(status.st_mode) else ""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino} {period}"


def identify(paths: Iterable[str]) -> dict[str, str]:
    """The identities of what is there, by which an agent knows it. What has none is left out: :func:`look` says why."""
    identities = {}
    for path in paths:
        with contextlib.suppress(OSError):
            identities[path] = trees.identity(path)
    return identities


def _check_are_there(inputs: Mapping[str, str]) -> None:
    for name, path in inputs.items():
        if not os.path.exists(path):
            raise InputError(errno.ENOENT, task_files.why_no_input(name, path))


def look(inputs: Mapping[str, str]) -> trees.Found:
    """The files of inputs, as they are now; directories with all that is in them. Raises InputError."""
    _check_are_there(inputs)
    try:
        return trees.find_all(inputs)
    except OSError as error:
        raise InputError(error.errno, f"its inputs cannot be sent: {error}") from error


def version(file: trees.File) -> str:
    """A name for what the file holds: when it is written to or replaced, it is another one."""
    return f"{file.path} {file.size} {file.mtime_ns} {file.inode} {file.mode:o}"


def with_sent(run: protocol.Run, seen: dict[str, str], found: trees.Found) -> protocol.Run:
    """The order for an agent that sees some inputs, and gets these files in pieces, by the names of their versions."""
    assert run.settings is not None
    assert run.settings.files is not None
    sent = [protocol.SentFile(file.name, version(file), file.size, file.mode) for file in found.files]
    files = msgspec.structs.replace(run.settings.files, inputs=seen, sent=protocol.Tree(sent, found.folders))
    return msgspec.structs.replace(run, settings=msgspec.structs.replace(run.settings, files=files))


def read_block(file: trees.File, offset: int) -> bytes:
    """What the file holds from ``offset`` on, as far as :data:`BLOCK`. Raises InputError, if it was changed too."""
    try:
        with open(file.path, "rb", buffering=0) as source:
            _check_same(source.fileno(), file)
            source.seek(offset)
            data = source.read(BLOCK)
            _check_same(source.fileno(), file)
    except InputError:
        raise
    except OSError as error:
        raise InputError(error.errno, f"its input {file.name!r} cannot be sent: {error}") from error
    return data


def _check_same(fd: int, file: trees.File) -> None:
    now = os.fstat(fd)
    if (now.st_size, now.st_mtime_ns, now.st_ino) != (file.size, file.mtime_ns, file.inode):
        text = f"its input {file.name!r} was changed while it was sent: {file.path!r}; submit it when that is whole"
        raise InputError(errno.EBUSY, text)
