"""How a job stands: counts by state, the tasks that run, and when all will have ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from executor.future import TaskFuture
from executor.jobs.submitted import STATES, SubmittedJob


class Tally:
    """Counts of a job's tasks, brought up to date when somebody looks, in steps as large as what has happened.

    A look reads the futures that have ended since the last one, and whether the others run: a hundred thousand of
    them take some milliseconds.

    :param clock: seconds, for the estimate.
    """

    def __init__(self, submitted: SubmittedJob, clock: Callable[[], float] = time.monotonic) -> None:
        self.submitted = submitted
        self.counts: Counter[str] = Counter()
        #: the tasks that run, in the order of their numbers in the job
        self.running: list[TaskFuture] = []
        self._clock = clock
        self._began = clock()
        self._seen = 0
        self._open: dict[int | str, TaskFuture] = dict(submitted.futures.items())

    def update(self) -> list[int]:
        """Look; gives the numbers of the tasks that have ended since the last look."""
        ended = self.submitted.ended(self._seen)
        self._seen += len(ended)
        for number in ended:
            self.counts[self.submitted.state_of(number)] += 1
            del self._open[number]
        self.running = [future for future in self._open.values() if future.running()]
        self.counts["running"] = len(self.running)
        self.counts["waiting"] = len(self._open) - len(self.running)
        return ended

    @property
    def total(self) -> int:
        """All tasks of the job."""
        return len(self.submitted)

    @property
    def ended(self) -> int:
        """The tasks that have ended, in whatever way."""
        return self._seen

    def seconds(self) -> float:
        """Since the job was submitted."""
        return self._clock() - self._began

    def seconds_left(self) -> float | None:
        """Until all have ended, if it goes on as until now; None if none has ended yet, or all have."""
        return self.seconds() * (self.total - self.ended) / self.ended if 0 < self.ended < self.total else None


def render_counts(counts: Counter[str]) -> str:
    """Such as ``2 running, 37 waiting, 1 failed``."""
    return ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state])


def render_seconds(seconds: float) -> str:
    """Such as ``4.2 s``, ``0:01:12``, ``2 d 03:00:00``."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days} d {hour:02}:{minute:02}:{second:02}" if days else f"{hours}:{minute:02}:{second:02}"
