"""Input files of programs, for agents that do not see them: what there is of them, and what they hold.

All of this reads the disks of users, which may hang: it is done on errands.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

import msgspec

from worker_agent import protocol, task_files, trees
from worker_agent.pieces import PIECE

#: Bytes that are read at once.
BLOCK = 8 * PIECE


class InputError(OSError):
    """An input is not to be had; why, in a sentence."""


def look(inputs: Mapping[str, str]) -> trees.Found:
    """The files of inputs, as they are now; directories with all that is in them. Raises InputError."""
    for name, path in inputs.items():
        if not os.path.exists(path):
            raise InputError(errno.ENOENT, task_files.why_no_input(name, path))
    try:
        return trees.find_all(inputs)
    except OSError as error:
        raise InputError(error.errno, f"its inputs cannot be sent: {error}") from error


def version(file: trees.File) -> str:
    """A name for what the file holds: when it is written to or replaced, it is another one."""
    return f"{file.path} {file.size} {file.mtime_ns} {file.inode} {file.mode:o}"


def with_sent(run: protocol.Run, found: trees.Found) -> protocol.Run:
    """The order for an agent that gets these files in pieces, by the names of their versions."""
    assert run.settings is not None
    assert run.settings.files is not None
    sent = [protocol.SentFile(file.name, version(file), file.size, file.mode) for file in found.files]
    files = msgspec.structs.replace(run.settings.files, inputs={}, sent=protocol.Tree(sent, found.folders))
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
