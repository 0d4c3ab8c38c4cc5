"""The agent's event loop: file descriptors and timers, one thread, nothing else."""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable

#: Seconds; epoll itself knows no more than 24.8 days.
_LONGEST_WAIT = 3600.0


class Timer:
    """Something to do at a time; ``cancel`` makes it nothing."""

    __slots__ = ("action", "at")

    def __init__(self, action: Callable[[], None], at: float) -> None:
        self.action: Callable[[], None] | None = action
        #: when, by the monotonic clock
        self.at = at

    def cancel(self) -> None:
        """Forget the action."""
        self.action = None


class Loop:
    """Waits for descriptors to become readable (or writable) and for times to come, and calls what is registered."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def watch(self, fd: int, action: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Call ``action`` whenever ``fd`` is ready."""
        self._epoll.register(fd, events)
        self._readers[fd] = action

    def unwatch(self, fd: int) -> None:
        """No longer."""
        if self._readers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_in(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Call ``action`` once, ``seconds`` from now, by the monotonic clock."""
        timer = Timer(action, time.monotonic() + seconds)
        heapq.heappush(self._timers, (timer.at, next(self._order), timer))
        return timer

    def run_once(self, *, wait: bool = True, until: float | None = None) -> None:
        """Wait for the next descriptor or timer (or look whether there is one), and do what is due.

        Not longer than ``until``, by the monotonic clock.
        """
        for fd, _ in self._epoll.poll(self._patience(until) if wait else 0):
            action = self._readers.get(fd)
            if action is not None:
                action()
        self._run_timers()

    def _patience(self, until: float | None) -> float:
        while self._timers and self._timers[0][2].action is None:
            heapq.heappop(self._timers)
        if until is None or (self._timers and self._timers[0][0] < until):
            until = self._timers[0][0] if self._timers else None
        return _LONGEST_WAIT if until is None else min(_LONGEST_WAIT, max(0.0, until - time.monotonic()))

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            action = heapq.heappop(self._timers)[2].action
            if action is not None:
                action()

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()
