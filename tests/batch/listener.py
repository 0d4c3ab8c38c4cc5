"""Hears what an allocator tells."""

from __future__ import annotations

import queue

from waiting import PATIENCE

from executor.batch.states import JobRecord

Heard = tuple[int, str | JobRecord]


class Listener:
    """Hears what becomes of jobs, in turn."""

    def __init__(self) -> None:
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()

    def on_submitted(self, key: int, job: str) -> None:
        self._heard.put((key, job))

    def on_refused(self, key: int, why: str) -> None:
        self._heard.put((key, why))

    def on_record(self, key: int, record: JobRecord) -> None:
        self._heard.put((key, record))

    def next(self) -> Heard:
        return self._heard.get(timeout=PATIENCE)
