"""One interpreter as its agent sees it: which task it runs, and whose output is in its pipes."""

from __future__ import annotations

import os

from worker_agent import channel
from worker_agent.attempt import Attempt
from worker_agent.loop import Timer
from worker_agent.pipes import Pipe
from worker_agent.pools import Place

#: Seconds that an interpreter may take to leave after its last outcome (exit functions, threads of the user's code).
EXIT_GRACE = 2.0
#: Blocks of output kept from before an interpreter's first task.
_EARLY_BLOCKS = 16


class Child:
    """One interpreter."""

    __slots__ = ("current", "doomed", "early", "go", "last", "leaving", "pid", "pipes", "place", "taken", "unheard")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        #: where it is kept, if it is
        self.place: Place | None = None
        self.current: Attempt | None = None
        self.last: Attempt | None = None
        self.pipes: list[Pipe] = []
        self.go: int | None = None
        self.leaving: Timer | None = None
        #: a task of it was to be ended: it runs no more than what it has taken
        self.doomed = False
        #: an end whose output could not be read yet
        self.unheard: channel.Ended | None = None
        #: tasks that it took after ``current``, whose end is still to be read
        self.taken: list[channel.Started] = []
        #: what it printed before its first task: streams and blocks
        self.early: list[tuple[int, bytes]] = []

    def printed(self, stream: int, data: bytes) -> None:
        """Its output belongs to the task that it runs, ran last, or will run first."""
        attempt = self.current or self.last
        if attempt is not None:
            attempt.printed(stream, data)
        elif len(self.early) < _EARLY_BLOCKS:
            self.early.append((stream, data))

    def take(self, attempt: Attempt) -> None:
        """It runs ``attempt`` now, whose output begins with what was printed before any task."""
        self.current = attempt
        for stream, data in self.early:
            attempt.printed(stream, data)
        self.early.clear()

    def drain(self) -> None:
        """Read what it has printed so far."""
        for pipe in self.pipes:
            pipe.drain()

    def close(self) -> None:
        """It is gone."""
        for pipe in self.pipes:
            pipe.finish()
        if self.go is not None:
            os.close(self.go)
        if self.leaving is not None:
            self.leaving.cancel()
