"""The files of one attempt: put into its scratch directory, taken from there, removed. It only looks at the disk.

    <scratch>/data.csv -> /shared/data.csv      an input: a link
    <scratch>/out.csv                           an output: moved to its place after a good end

On an agent that does not see the session's files an input that it does not see either is a hard link to the file that
was sent, and outputs are moved to the agent's store, to be sent from there (:func:`gather`).

What may take long (:func:`collect`, :func:`gather`) knows its paths as absolute ones, and may run on a thread of its
own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from msgspec.structs import replace

from worker_agent import protocol, store, trees

#: So much of what a program says of its failure is read, in bytes, as in HyperQueue.
SAID_LIMIT = 2048
#: So many names of what is in a directory are told.
NAMES_TOLD = 50
_SAID = ".hq-error"
_INSTANCE_ID = "%{INSTANCE_ID}"
_BLOCK = 4 * 2**20


class Abandoned(Exception):
    """Nobody wants the outputs any more."""


def fill_instance(settings: protocol.Settings, attempt: int) -> protocol.Settings:
    """The settings with the number of the attempt in their paths: that of HyperQueue, which begins with 0."""
    cwd, stdout, stderr = (
        path and path.replace(_INSTANCE_ID, str(attempt - 1))
        for path in (settings.cwd, settings.stdout, settings.stderr)
    )
    return replace(settings, cwd=cwd, stdout=stdout, stderr=stderr)


def variables(scratch: str) -> dict[str, str]:
    """What a task with this scratch directory sees of it."""
    said = os.path.join(scratch, _SAID)
    return {"HPC_TASK_DIR": scratch, "HQ_TASK_DIR": scratch, "HQ_ERROR_FILENAME": said}


def prepare(scratch: str, files: protocol.Files, sent: Callable[[protocol.SentFile], str]) -> None:
    """Make the directory, links to the inputs in it, and the directories that the names of outputs have.

    ``sent`` gives our file for one that was sent, or raises OSError.

    :raises OSError: that cannot be done; an input is not there, which a sentence says.
    """
    os.mkdir(scratch, 0o700)
    for name, source in files.inputs.items():
        if not os.path.exists(source):
            raise OSError(errno.ENOENT, why_no_input(name, source))
        os.symlink(source, parented(scratch, name))
    if files.sent is not None:
        lay_out(scratch, files.sent, partial(_link_sent, sent))
    for name in files.outputs:
        parented(scratch, name)


def lay_out(top: str, tree: protocol.Tree, put: Callable[[str, protocol.SentFile], None]) -> None:
    """Make the folders of the tree in a directory, and have ``put(top, file)`` bring each file there."""
    for folder in tree.folders:
        os.makedirs(os.path.join(top, folder), exist_ok=True)
    for file in tree.files:
        put(top, file)


def _link_sent(sent: Callable[[protocol.SentFile], str], scratch: str, file: protocol.SentFile) -> None:
    """A hard link: a program that asks where its file really lies finds it in its directory, beside the others."""
    try:
        os.link(sent(file), parented(scratch, file.name))
    except OSError as error:
        text = f"its input {file.name!r}, which was sent to {socket.gethostname()}, is not to be had: {error}"
        raise OSError(errno.ESTALE, text) from error


def why_no_input(name: str, source: str) -> str:
    """A sentence for an input that is not there."""
    host = socket.gethostname()
    return f"its input {name!r} is not to be had: {host} has no {source!r}; put it on a file system that {host} sees"


def parented(top: str, name: str) -> str:
    """The path of a name in a directory; the folders on the way to it are there then. Raises OSError."""
    path = os.path.join(top, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def read_said(scratch: str) -> bytes:
    """What a program that failed wrote to HQ_ERROR_FILENAME, in part if it is long; nothing if it did not."""
    try:
        fd = os.open(os.path.join(scratch, _SAID), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait
    except OSError:
        return b""
    try:
        return os.read(fd, SAID_LIMIT) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)


def remove_finished(settings: protocol.Settings) -> None:
    """Remove the files of the streams of which it is wanted. Raises OSError; a file that is gone already is fine."""
    assert settings.files is not None
    for stream in settings.files.removed:
        path = settings.stdout if stream == 1 else settings.stderr
        if path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


# --- outputs ----------------------------------------------------------------------------------------------------------


def collect(
    scratch: str, outputs: Mapping[str, str], abandoned: threading.Event
) -> protocol.Uncollected | None:
    """Move the outputs to their places, each at once and whole; gives why not, if not. It takes as long as it takes.

    Once ``abandoned`` is set it ends soon, and leaves nothing half done.
    """
    if (missing := _missing(scratch, outputs)) is not None:
        return missing
    try:
        for name, target in outputs.items():
            _move(scratch, name, target, abandoned)
    except Abandoned:
        return protocol.Uncollected(text="its outputs were given up")
    except OSError as error:
        return protocol.Uncollected(text=_sendable(f"the output {name!r} cannot be moved to {target!r}: {error}"))
    return None


def gather(
    scratch: str, names: Iterable[str], place: str, abandoned: threading.Event
) -> protocol.Uncollected | protocol.Tree:
    """Move the files of the outputs to the directory ``place``, from where they can be sent; gives why not, if not.

    As :func:`collect` otherwise. What a link leads to is copied, and is not ours to take away.
    """
    if (missing := _missing(scratch, names)) is not None:
        return missing
    tree = protocol.Tree([], [])
    try:
        found = trees.find_all({name: os.path.join(scratch, name) for name in names})
        tree.folders.extend(found.folders)
        # first what is copied: a link may lead to another output
        for own, file in sorted((_is_own(scratch, file.name), file) for file in found.files):
            tree.files.append(_taken(file, own, place, abandoned))
        return tree
    except Abandoned:
        failure = protocol.Uncollected(text="its outputs were given up")
    except OSError as error:
        failure = protocol.Uncollected(text=_sendable(f"its outputs cannot be sent: {error}"))
    discard(tree)
    return failure


def _taken(file: trees.File, own: bool, place: str, abandoned: threading.Event) -> protocol.SentFile:
    if abandoned.is_set():
        raise Abandoned
    new = store.new_path(place)
    try:
        if not own or not _rename(file.path, new):
            _copy_file(abandoned, file.path, new)
        return protocol.SentFile(file.name, new, os.stat(new).st_size, file.mode)
    except (OSError, Abandoned):
        store.remove(new)
        raise


def discard(tree: protocol.Tree) -> None:
    """Remove what was gathered and is not wanted."""
    for file in tree.files:
        store.remove(file.piece)


def _missing(scratch: str, names: Iterable[str]) -> protocol.Uncollected | None:
    """What to say if outputs are not there."""
    missing = [name for name in names if not os.path.exists(os.path.join(scratch, name))]
    return protocol.Uncollected(missing, list(map(_sendable, _names_in(scratch)))) if missing else None


def _sendable(text: str) -> str:
    """Programs may give files names that are no text."""
    return text.encode(errors="replace").decode()


def _names_in(scratch: str) -> list[str]:
    names: list[str] = []
    for folder, _, files in os.walk(scratch):
        names += [os.path.relpath(os.path.join(folder, each), scratch) for each in files if each != _SAID]
        if len(names) > NAMES_TOLD:
            return [*sorted(names)[:NAMES_TOLD], "..."]
    return sorted(names)


def _move(scratch: str, name: str, target: str, abandoned: threading.Event) -> None:
    """By a directory beside the target: whoever looks there sees the old file or the new one, and no part of it."""
    if abandoned.is_set():
        raise Abandoned
    source, folder = os.path.join(scratch, name), os.path.dirname(target)
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".hpc-", dir=folder, ignore_cleanup_errors=True) as beside:
        new = os.path.join(beside, "new")
        if not _is_own(scratch, name) or not _rename(source, new):
            _copy(source, new, abandoned)
        if abandoned.is_set():
            raise Abandoned
        if os.path.isdir(target) and not os.path.islink(target):
            os.rename(target, os.path.join(beside, "old"))
        os.replace(new, target)


def _is_own(scratch: str, name: str) -> bool:
    """Whether it lies there: what a link of the program's leads to is not ours to take away."""
    return os.path.realpath(os.path.join(scratch, name)) == os.path.join(os.path.realpath(scratch), name)


def _rename(source: str, new: str) -> bool:
    """Whether they are on one file system: then it is done."""
    try:
        os.rename(source, new)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def _copy(source: str, new: str, abandoned: threading.Event) -> None:
    copy = partial(_copy_file, abandoned)
    if os.path.isdir(source):
        shutil.copytree(source, new, symlinks=True, copy_function=copy)
    else:
        copy(source, new)


def _copy_file(abandoned: threading.Event, source: str, new: str) -> None:
    if not os.path.isfile(source):  # a pipe would wait for ever, and a device have no end
        raise OSError(errno.EINVAL, "it is no file and no directory", source)
    with open(source, "rb", buffering=0) as old, open(new, "xb", buffering=0) as file:
        while block := old.read(_BLOCK):
            if abandoned.is_set():
                raise Abandoned
            file.write(block)
    shutil.copymode(source, new)
