"""The stream files of an agent: one in each directory that its tasks name, however many tasks these are.

The file system is used from the agent's only thread, as it is for the files that programs write to: where it hangs,
tasks that need it would hang, too.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time

from worker_agent.records import MAGIC, SUFFIX, Kind, pack

#: So many files are open at a time; of the others the names are known.
MOST_OPEN = 32


class StreamFiles:
    """Adds records to them. A record is there as a whole or, after an error, not at all."""

    def __init__(self, run: str) -> None:
        """``run`` names the life of the executor that the tasks are of."""
        self._run = run
        self._host = socket.gethostname()
        self._open: dict[str, _File] = {}
        #: by directory, those that are closed, too
        self._paths: dict[str, str] = {}

    def append(self, directory: str, record: bytes) -> None:
        """Add a record to our file in the directory; both are made if they are missing. Raises OSError."""
        file = self._open.get(directory)
        if file is None or file.is_removed():
            file = self._open_file(directory)
        try:
            file.append(record)
        except OSError:
            self._cut(directory, file)
            raise

    def close(self) -> None:
        """Close them all."""
        while self._open:
            self._close_eldest()

    def _open_file(self, directory: str) -> _File:
        if directory in self._open:
            self._open.pop(directory).close()
        while len(self._open) >= MOST_OPEN:
            self._close_eldest()
        file = self._open[directory] = self._reopen(directory) or self._make(directory)
        return file

    def _close_eldest(self) -> None:
        self._open.pop(next(iter(self._open))).close()

    def _reopen(self, directory: str) -> _File | None:
        """The file that was closed; None: there is none, or somebody has removed it."""
        path = self._paths.get(directory)
        try:
            return None if path is None else _File(path, 0)
        except FileNotFoundError:
            return None

    def _make(self, directory: str) -> _File:
        os.makedirs(directory, exist_ok=True)
        path = os.path.join(directory, f"{self._host}-{secrets.token_hex(4)}{SUFFIX}")
        file = _File(path, os.O_CREAT | os.O_EXCL)
        about = json.dumps({"run": self._run, "host": self._host})
        try:
            file.append(MAGIC + pack(Kind.FILE, about.encode(), time.time()))
        except OSError:
            os.unlink(path)
            file.close()
            raise
        self._paths[directory] = path
        return file

    def _cut(self, directory: str, file: _File) -> None:
        """Half a record may be there, and the next one is not to follow it."""
        try:
            file.cut()
        except OSError:  # then nothing follows it: the next one goes to another file
            del self._open[directory], self._paths[directory]
            file.close()


class _File:
    """A file that only we write to."""

    __slots__ = ("_fd", "_size")

    def __init__(self, path: str, flags: int) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | flags, 0o666)
        self._size = os.fstat(self._fd).st_size

    def append(self, record: bytes) -> None:
        rest = memoryview(record)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        self._size += len(record)

    def cut(self) -> None:
        """Back to the end of the last whole record."""
        os.ftruncate(self._fd, self._size)

    def is_removed(self) -> bool:
        """Whether it has no name any more: the user has cleared the directory between two jobs."""
        return os.fstat(self._fd).st_nlink == 0

    def close(self) -> None:
        os.close(self._fd)
