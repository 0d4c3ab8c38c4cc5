"""The thread that follows the batch jobs of this process, one for each batch system, while there are any.

It asks for all of them by one command, a second after the last one was submitted, then ever less often, until it is as
often as was said. Those who wait for a job wait for an event, and not for a question of their own.
"""

from __future__ import annotations

import logging
import threading
import time

from executor.batch.system import BatchSystem
from executor.batch.watch import Followed, Watch

log = logging.getLogger("executor")

#: Seconds until the first question; each further pause is longer by this factor.
FIRST = 1.0
_GROWTH = 1.5

_pollers: dict[str, Poller] = {}
_pollers_lock = threading.Lock()


class Poller:
    """Follows jobs of one batch system; its methods may be called from any thread."""

    def __init__(self, system: BatchSystem, poll: float) -> None:
        """``poll``: seconds between two questions in the long run."""
        self._watch = Watch(system)
        self._poll = poll
        self._pause = FIRST
        self._asked = time.monotonic()
        self._new: list[Followed] = []
        #: those that were cancelled; of them, those that will not be listed again
        self._cancelled: set[str] = set()
        self._gone: set[str] = set()
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None

    def follow(self, jobs: list[Followed], poll: float) -> None:
        """Follow jobs until they have ended; if one of several wants to know more often, all do."""
        with self._news:
            self._poll = min(self._poll, poll)
            self._new += jobs
            self._hurry()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hpc-executor-poller", daemon=True)
                self._thread.start()

    def note_cancelled(self, ids: list[str], gone: set[str]) -> None:
        """Jobs were cancelled: ask soon. Of those that are ``gone``, their batch system will say nothing more."""
        with self._news:
            self._cancelled.update(ids)
            self._gone |= gone
            self._hurry()

    def _hurry(self) -> None:
        self._pause = min(FIRST, self._poll)
        self._news.notify()

    def _run(self) -> None:
        while self._wait_turn():
            try:
                self._watch.ask()
            except Exception:  # a bug, or an adapter's: those who wait for other jobs are not to wait for ever
                log.exception("asking %s for its jobs failed; it is asked again", self._watch.system.name)

    def _wait_turn(self) -> bool:
        """Wait until it is time to ask; False if there is nothing to ask for any more."""
        with self._news:
            if not self._watch and not self._new:
                self._thread = None
                return False
            while (patience := self._asked + self._pause - time.monotonic()) > 0:
                self._news.wait(patience)
            self._asked = time.monotonic()
            self._pause = min(self._poll, self._pause * _GROWTH)
            for job in self._new:
                self._watch.add(job)
            self._new.clear()
            self._watch.note_cancelled(self._cancelled)
            self._watch.end_cancelled(self._gone)
            self._cancelled.clear()
            self._gone.clear()
            return True


def poller_of(system: BatchSystem) -> Poller:
    """The one of this process for this batch system."""
    with _pollers_lock:
        return _pollers.setdefault(system.whose, Poller(system, system.poll))
