"""How many at a time: intervals with weights, added one by one, told as the mean of each bin of time.

An interval costs the same whatever its length: its start and its end are noted in their bins, and what is between
follows from the sum of both. When time goes beyond the last bin, the bins become twice as wide; so a second and a
month of work take the same memory.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from itertools import accumulate

#: So many bins there are; half of them at least are in use, once the first seconds are over.
BINS = 512
#: Seconds of the narrowest bin.
FINEST = 1 / 128


#: An interval: its first bin and how many seconds of that come before it, its last one and how many of that it has.
Span = tuple[int, float, int, float]


def _zeros() -> array[float]:
    return array("d", bytes(8 * BINS))


@dataclass(slots=True)
class Series:
    """The sum of the weights of all intervals over time, in bins of a :class:`Scale`."""

    #: by bin: by how much it changes there, and what is to be added to that bin alone, in seconds
    steps: array[float] = field(default_factory=_zeros)
    rests: array[float] = field(default_factory=_zeros)

    def means(self, width: float) -> list[float]:
        """The mean of each bin, for bins of ``width`` seconds."""
        levels = accumulate(self.steps)
        return [max(0.0, level + rest / width) for level, rest in zip(levels, self.rests, strict=True)]

    def add(self, span: Span, weight: float) -> None:
        """Something of this weight went on."""
        first, late, last, early = span
        if first == last:  # as of most short tasks: the same in one step
            self.rests[first] += weight * (early - late)
            return
        self.steps[first] += weight
        self.rests[first] -= weight * late
        self.steps[last] -= weight
        self.rests[last] += weight * early

    def merge(self, width: float) -> None:
        """Make one bin of two, which were ``width`` wide."""
        steps, rests = self.steps, self.rests
        self.steps, self.rests = _zeros(), _zeros()
        for half in range(BINS // 2):
            late = steps[2 * half + 1]
            self.steps[half] = steps[2 * half] + late
            self.rests[half] = rests[2 * half] + rests[2 * half + 1] - late * width


@dataclass(slots=True)
class Scale:
    """Bins of one width from ``origin`` on, and the series that have them; times are seconds since the epoch."""

    origin: float
    width: float = FINEST
    series: list[Series] = field(default_factory=list)

    def new(self) -> Series:
        """A series with these bins."""
        self.series.append(Series())
        return self.series[-1]

    def reach(self, end: float) -> None:
        """Widen the bins until the last one holds ``end``."""
        while end - self.origin >= BINS * self.width:
            for each in self.series:
                each.merge(self.width)
            self.width *= 2

    def span(self, start: float, end: float) -> Span:
        """From ``start`` to ``end``, in bins; what was before the origin is left out. The end has been reached."""
        width = self.width
        since, until = start - self.origin, end - self.origin
        if since < 0:
            since, until = 0.0, max(0.0, until)
        first, last = int(since / width), int(until / width)
        return first, since - first * width, last, until - last * width
