"""Errands of the hub's thread that may take long, as a disk may hang: each on a thread, the answer to the hub's.

hub's thread --start(work, done)--> a thread: work()
hub's thread <--done(answer)-- Inbox <--'
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

#: Seconds that all errands may still take when the executor ends.
END_PATIENCE = 5.0


class Errand:
    """Something that is done on a thread, and who is told what it gave, or which exception it raised."""

    def __init__(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self._work = work
        self._done = done
        self._answer: Any = None
        self.thread: threading.Thread | None = None

    def work(self) -> None:
        """On the thread."""
        try:
            self._answer = self._work()
        except Exception as error:  # whatever it is: who waits for the answer must not wait for ever
            self._answer = error

    def tell(self) -> None:
        """On the hub's thread."""
        if self.thread is not None:
            self.thread.join()  # it has posted the answer, and does nothing more
        self._done(self._answer)


class Errands:
    """The errands of one hub. Used from its thread only."""

    def __init__(self, post: Callable[[Callable[[], None]], None]) -> None:
        """``post`` has the hub's thread call a function, from any thread."""
        self._post = post
        self._running: set[Errand] = set()

    def start(self, work: Callable[[], Any], done: Callable[[Any], None]) -> Errand:
        """Have ``work`` done; then ``done`` is called with what it gave, or with the exception that it raised."""
        errand = Errand(work, done)
        self._running.add(errand)
        errand.thread = threading.Thread(target=self._run, args=[errand], name="hpc-executor-errand", daemon=True)
        try:
            errand.thread.start()
        except RuntimeError:  # the system has no more threads for us: then the hub has to wait
            errand.thread = None
            self._run(errand)
        return errand

    def _run(self, errand: Errand) -> None:
        errand.work()
        self._post(lambda: self._tell(errand))

    def _tell(self, errand: Errand) -> None:
        if errand in self._running:
            self._running.discard(errand)
            errand.tell()

    def wait(self, errand: Errand, patience: float) -> None:
        """Wait at most so many seconds for its answer; what comes later is forgotten."""
        if errand.thread is not None:
            errand.thread.join(patience)
        if errand.thread is None or not errand.thread.is_alive():
            self._tell(errand)
        self._running.discard(errand)

    def close(self) -> None:
        """Nobody wants the answers. Waits for the threads, but not for ever."""
        until = time.monotonic() + END_PATIENCE
        running, self._running = self._running, set()
        for errand in running:
            if errand.thread is not None:
                errand.thread.join(max(0.0, until - time.monotonic()))
