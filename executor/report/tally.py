"""What becomes of the attempts' records: sums by lane and by needs over time, the slowest, and the first as they are.

Bounded: so many records are kept whole, and so many lanes, kinds of needs and names apart; what comes after that is
in the sums of "others".
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from executor.core.model import WorkerId
from executor.core.needs import Needs
from executor.report.series import Scale, Series, Span

#: Attempts whose records are kept as they are, the first ones.
WHOLE = 20_000
#: The slowest attempts that are known one by one, in runs of any length.
SLOWEST = 20
#: Lanes, kinds of needs and names of tasks of each kind that are told apart.
LANES, KINDS, NAMES = 256, 64, 16
#: Seconds that an attempt takes at least for its use of CPUs to be measured well.
MEASURABLE = 0.25


@dataclass(slots=True, eq=False)
class Kind:
    """Tasks with equal needs; None: with many different ones. What each is given: CPUs, and bytes of memory (0: none
    was asked for)."""

    needs: Needs | None
    cpus: float
    memory: int

    def __deepcopy__(self, _: object) -> Kind:
        return self  # records and sums name the same one


@dataclass(slots=True, eq=False)
class Row:
    """The lanes of one agent for one kind of needs; None: those of many."""

    agent: WorkerId | None
    kind: Kind

    def __deepcopy__(self, _: object) -> Row:
        return self


class Record(NamedTuple):
    """An attempt that ran. Times are seconds since the epoch, ``cpu`` is CPU seconds, ``peak`` bytes of memory."""

    row: Row
    task_id: int
    name: str
    number: int
    submitted: float
    started: float
    ended: float
    cpu: float
    peak: int
    how: str


#: How an attempt ended.
FINISHED, FAILED, TIMED_OUT, KILLED = "finished", "failed", "timed out", "killed"
OUT_OF_MEMORY, LOST, NOT_STARTED = "out of memory", "lost", "not started"


@dataclass(slots=True)
class KindSums:
    """What the attempts of tasks with equal needs used, in sums and peaks."""

    attempts: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    longest: float = 0.0
    #: the most CPUs that one attempt used on its average
    most_cpus: float = 0.0
    peak: int = 0
    out_of_memory: int = 0
    names: dict[str, int] = field(default_factory=dict)
    other_names: int = 0

    def add(self, name: str, seconds: float, cpu: float, peak: int, how: str) -> None:
        """One more attempt, which took so long."""
        self.attempts += 1
        self.seconds += seconds
        self.cpu += cpu
        if seconds > self.longest:
            self.longest = seconds
        if seconds >= MEASURABLE and cpu > self.most_cpus * seconds:
            self.most_cpus = cpu / seconds
        if peak > self.peak:
            self.peak = peak
        if how == OUT_OF_MEMORY:
            self.out_of_memory += 1
        if name in self.names:
            self.names[name] += 1
        else:
            self._new_name(name)

    def _new_name(self, name: str) -> None:
        if len(self.names) < NAMES:
            self.names[name] = 1
        else:
            self.other_names += 1


@dataclass(slots=True)
class LaneSums:
    """How many ran at a time in a lane, how many of these ended badly, and how much of the CPUs they used."""

    kind: KindSums
    running: Series
    bad: Series
    cpus: Series
    attempts: int = 0
    failed: int = 0

    def add(self, span: Span, seconds: float, cpu: float, how: str) -> None:
        """One more attempt, which took so long."""
        self.attempts += 1
        self.running.add(span, 1.0)
        if seconds > 0:
            self.cpus.add(span, cpu / seconds)
        if how != FINISHED:
            self.failed += 1
            self.bad.add(span, 1.0)


class Tally:
    """The sums. ``origin`` is when the run began."""

    def __init__(self, origin: float) -> None:
        self.scale = Scale(origin)
        self.lanes: dict[Row, LaneSums] = {}
        self.kinds: dict[Kind, KindSums] = {}
        self.last_end = origin
        self._slowest: list[tuple[float, int, Record]] = []
        #: how many were noted, and how slow the fastest of them is, once there are enough
        self._count, self._slow = 0, -1.0

    @property
    def slowest(self) -> list[Record]:
        """The slowest attempts, the slowest first."""
        return [record for _, _, record in sorted(self._slowest, reverse=True, key=lambda each: each[:2])]

    def add(self, records: Iterable[Record]) -> None:
        """These attempts have ended."""
        lanes, reach, span = self.lanes, self.scale.reach, self.scale.span
        for record in records:
            row, _, name, _, _, start, end, cpu, peak, how = record
            if end < start:
                end = start  # the clock was set back
            if end > self.last_end:
                self.last_end = end
                reach(end)
            seconds = end - start
            lane = lanes.get(row) or self._new_lane(row)
            lane.add(span(start, end), seconds, cpu, how)
            lane.kind.add(name, seconds, cpu, peak, how)
            if seconds > self._slow:
                self._note_slow(record, seconds)

    def _new_lane(self, row: Row) -> LaneSums:
        kind = self.kinds.setdefault(row.kind, KindSums())
        self.lanes[row] = LaneSums(kind, self.scale.new(), self.scale.new(), self.scale.new())
        return self.lanes[row]

    def _note_slow(self, record: Record, seconds: float) -> None:
        self._count += 1
        heapq.heappush(self._slowest, (seconds, -self._count, record))
        if len(self._slowest) > SLOWEST:
            heapq.heappop(self._slowest)
            self._slow = self._slowest[0][0]
