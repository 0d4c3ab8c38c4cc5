"""Stored payloads in pieces, for a node that does not see the files of another: read on one side, written on the other.

A payload keeps the path that it has where it came from, as its name; each side knows its own files for it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

from worker_agent import store
from worker_agent.protocol import Piece, SentFile

#: Bytes of a piece: what is to pass a large payload waits for no more than a few of them.
PIECE = 512 * 1024


def read_piece(path: str, size: int, offset: int, on_disk: bool = False) -> Piece:
    """The piece of a payload of ``size`` bytes that begins at ``offset``. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        data = file.read(min(PIECE, size - offset))
    if not data and offset < size:
        raise OSError(errno.EIO, f"it ends after {offset} of {size} bytes", path)
    return Piece(path, offset, data, on_disk)


def read_pieces(path: str, size: int, on_disk: bool = False) -> Iterator[Piece]:
    """All pieces of a payload, one after the other. Raises OSError."""
    offset = 0
    while offset < size:
        piece = read_piece(path, size, offset, on_disk)
        offset += len(piece.data)
        yield piece


class _File:
    """A payload that arrives; why it cannot be had, if so."""

    def __init__(self, stores: list[str]) -> None:
        self.spill = store.Spill(stores)
        self.error: OSError | None = None
        #: of one that programs see: its size and when it was last written, as it came
        self.seal: tuple[int, int] | None = None

    def add(self, piece: Piece) -> None:
        if piece.offset != self.spill.size:
            what = f"a piece at {piece.offset} came after {self.spill.size} bytes"
            self.fail(OSError(errno.EPROTO, what, piece.path))
            return
        try:
            self.spill.append(piece.data)
        except OSError as error:
            self.fail(error)

    def fail(self, error: OSError) -> None:
        if self.error is None:
            self.error = error
            self.spill.discard()


class Received:
    """Payloads of another node, as files in our directories."""

    def __init__(self, stores: list[str]) -> None:
        self._stores = stores
        self._files: dict[str, _File] = {}

    def receive(self, piece: Piece) -> None:
        """The next piece of a payload. If there is no room for it, :meth:`path` will say so."""
        if piece.offset == 0:
            self.remove(piece.path)
        if piece.path not in self._files:
            self._files[piece.path] = _File(self._stores[-1:] if piece.on_disk else self._stores)
        file = self._files[piece.path]
        if file.error is None:
            file.add(piece)

    def path(self, name: str, size: int) -> str:
        """Our file for that payload. Raises OSError if it is not here, or not whole."""
        file = self._files.get(name)
        if file is None or (file.error is None and file.spill.size != size):
            raise OSError(errno.EPROTO, f"a payload of {size} bytes was announced and has not arrived", name)
        if file.error is not None:
            raise file.error
        file.spill.close()
        return str(file.spill.path)

    def sent_path(self, file: SentFile) -> str:
        """Our file for one that has a name for programs. Raises OSError as :meth:`path`. An empty one has no pieces."""
        if file.size == 0 and file.piece not in self._files:
            self.receive(Piece(file.piece, 0, b"", on_disk=True))
        return self.path(file.piece, file.size)

    def input_path(self, file: SentFile) -> str:
        """Our file for an input, which nobody may write to: several tasks have it.

        Raises OSError as :meth:`path`, and if somebody has written to it all the same (root may): it is gone then.
        """
        path, mine = self.sent_path(file), self._files[file.piece]
        if mine.seal is None:
            os.chmod(path, file.mode & 0o555 | 0o400)
            mine.seal = _seal(path)
        elif mine.seal != _seal(path):
            self.remove(file.piece)
            raise OSError(errno.ESTALE, "a task before has written to it; let tasks copy what they change")
        return path

    def hand_over(self, name: str) -> None:
        """The file is the caller's to remove from now on."""
        del self._files[name]

    def remove(self, name: str) -> None:
        """The payload is not needed any more."""
        file: Any = self._files.pop(name, None)
        if file is not None:
            file.spill.discard()

    def clear(self) -> None:
        """None of them is needed any more."""
        for name in list(self._files):
            self.remove(name)


def _seal(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
