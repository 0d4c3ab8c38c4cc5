"""Large payloads as files in private directories of the node: written once, mapped by whoever reads them.

The directories are the session's own (0700, the first one in memory where the node has ``/dev/shm``), so that nothing
is left when they go. A payload that does not fit into one directory goes into the next.
Standard library only: interpreters that run user code load this.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
from collections.abc import Callable
from typing import Any

#: Bytes from which on a payload, or a buffer of one, is stored instead of travelling in a message.
INLINE_LIMIT = 32 * 1024
#: The variable that tells an executor inside a task where our directories are: its own lie in them, and go with them.
SESSION_STORES = "HPC_SESSION_STORES"

_numbers = itertools.count()
Buffer = Any  # bytes, memoryview or pickle.PickleBuffer: whatever has the buffer protocol


class Spill:
    """A file object to pickle into: it stays in memory up to ``INLINE_LIMIT`` bytes and is stored beyond.

    The pickler hands large ``bytes`` to :meth:`write` as they are, so they are copied once, into the file.
    """

    def __init__(self, directories: list[str]) -> None:
        self._directories = directories
        self._parts: list[Buffer] = []
        self._fd: int | None = None
        self.path: str | None = None
        self.size = 0

    def write(self, data: Buffer) -> None:
        """Append ``data``. Raises OSError when no directory has room."""
        size = memoryview(data).nbytes
        if self._fd is None and self.size + size <= INLINE_LIMIT:
            self._parts.append(bytes(data))
            self.size += size
        else:
            self.append(data)

    def append(self, data: Buffer) -> None:
        """As :meth:`write`, and into the file in any case."""
        if self._fd is None:
            self._open_next()
            for part in self._parts:
                self._write_out(part)
            self._parts.clear()
        self._write_out(data)
        self.size += memoryview(data).nbytes

    def _open_next(self) -> None:
        self.path = new_path(self._directories[0])
        self._fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def _write_out(self, data: Buffer) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            try:
                rest = rest[os.write(self._fd_open, rest) :]
            except OSError as error:
                if error.errno != errno.ENOSPC or len(self._directories) < 2:
                    raise self._no_room(error) from error
                self._move_to_next_directory()

    @property
    def _fd_open(self) -> int:
        assert self._fd is not None
        return self._fd

    def _no_room(self, error: OSError) -> OSError:
        self.discard()
        text = f"no room for a payload of more than {self.size} bytes in {self._directories[-1]}"
        return OSError(error.errno, f"{text}: {error.strerror}")

    def _move_to_next_directory(self) -> None:
        full_fd, full_path = self._fd_open, str(self.path)
        self._directories = self._directories[1:]
        try:
            self._open_next()
            os.lseek(full_fd, 0, os.SEEK_SET)
            while block := os.read(full_fd, 1 << 20):
                self._write_out(block)
        finally:
            os.close(full_fd)
            remove(full_path)

    def inline(self) -> bytes:
        """All that was written, if it stayed in memory (``path`` is None)."""
        return b"".join(self._parts)

    def close(self) -> None:
        """Close the file, which stays."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def discard(self) -> None:
        """Close and remove the file, if there is one."""
        self.close()
        if self.path is not None:
            remove(self.path)


def new_path(directory: str) -> str:
    """The path of a payload that is not there yet."""
    return os.path.join(directory, f"{os.getpid()}-{next(_numbers)}-{os.urandom(4).hex()}")


def store(data: Buffer, directories: list[str]) -> tuple[str, int]:
    """Store ``data`` whatever its size; gives the path and the size in bytes."""
    spill = Spill(directories)
    spill.append(data)
    spill.close()
    assert spill.path is not None
    return spill.path, memoryview(data).nbytes


def map_file(path: str, size: int) -> Buffer:
    """The stored bytes as a private, writable mapping: nothing is copied until somebody writes."""
    if size == 0:
        return bytearray()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mmap.mmap(fd, size, access=mmap.ACCESS_COPY)
    finally:
        os.close(fd)


def remove(path: str) -> None:
    """Remove a stored payload; one that is gone already is fine, since its session's directory may be gone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def keep_small_in_band(buffers: list[Buffer]) -> Callable[[Buffer], bool]:
    """A ``buffer_callback`` for the pickler: large buffers go to ``buffers``, small ones stay in the pickle."""

    def callback(buffer: Buffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < INLINE_LIMIT:
            return True
        buffers.append(raw)
        return False

    return callback
