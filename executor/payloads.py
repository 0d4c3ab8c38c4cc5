"""Large arguments as files of the session: what was seen before is stored once, whoever submits it again."""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from worker_agent import store
from worker_agent.protocol import Stored

#: Bytes of payloads that are kept although no task needs them, in case that one is submitted again.
KEPT = 256 * 2**20
_SAMPLE = 1024
_BLOCK = 2**20


@dataclass(slots=True)
class _Entry:
    stored: Stored
    fingerprint: tuple[int, int]
    users: int = 0


class Payloads:
    """The stored payloads of one executor, by content. Any thread."""

    def __init__(self, directories: list[str], kept: int = KEPT) -> None:
        self.directories = directories
        self._kept = kept
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._by_fingerprint: dict[tuple[int, int], list[_Entry]] = {}
        self._idle: OrderedDict[str, int] = OrderedDict()
        self._idle_size = 0

    def put(self, buffer: Any) -> Stored:
        """Store ``buffer`` (or find it) for one more user. Raises OSError when there is no room."""
        view = memoryview(buffer).cast("B")
        fingerprint = _fingerprint(view)
        with self._lock:
            entry = self._find(fingerprint, view) or self._add(fingerprint, view)
            entry.users += 1
            self._idle_size -= self._idle.pop(entry.stored.path, 0)
        return entry.stored

    def _find(self, fingerprint: tuple[int, int], view: memoryview) -> _Entry | None:
        for entry in self._by_fingerprint.get(fingerprint, []):
            if _equal(entry.stored, view):
                return entry
        return None

    def _add(self, fingerprint: tuple[int, int], view: memoryview) -> _Entry:
        entry = _Entry(Stored(*store.store(view, self.directories)), fingerprint)
        self._entries[entry.stored.path] = entry
        self._by_fingerprint.setdefault(fingerprint, []).append(entry)
        return entry

    def release(self, stored: Stored) -> None:
        """One user less. The file goes when nobody uses it and newer ones fill what may be kept."""
        with self._lock:
            entry = self._entries.get(stored.path)
            if entry is None:
                store.remove(stored.path)
                return
            entry.users -= 1
            if entry.users == 0:
                self._idle[stored.path] = stored.size
                self._idle_size += stored.size
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        while self._idle_size > self._kept:
            path, size = self._idle.popitem(last=False)
            self._idle_size -= size
            entry = self._entries.pop(path)
            self._by_fingerprint[entry.fingerprint].remove(entry)
            if not self._by_fingerprint[entry.fingerprint]:
                del self._by_fingerprint[entry.fingerprint]
            store.remove(path)


def _fingerprint(view: memoryview) -> tuple[int, int]:
    """Size and a checksum of samples: cheap, and followed by a full comparison."""
    middle = view.nbytes // 2
    checksum = 0
    for start in (0, middle, max(0, view.nbytes - _SAMPLE)):
        checksum = zlib.crc32(view[start : start + _SAMPLE], checksum)
    return view.nbytes, checksum


def _equal(stored: Stored, view: memoryview) -> bool:
    mapped = store.map_file(stored.path, stored.size)
    return all(
        mapped[start : start + _BLOCK] == bytes(view[start : start + _BLOCK])
        for start in range(0, stored.size, _BLOCK)
    )
