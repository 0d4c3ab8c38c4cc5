"""Pictures of a run as SVG: what each lane ran when, and the CPUs over time. Values in, text out.

All are ``WIDE`` units wide, stretched to the page, and have the run's time from left to right; so they share one axis.
Up to ``MOST_DRAWN`` attempts are drawn one by one, of more the number that ran at a time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import groupby

from executor.report.advice import render_size
from executor.report.values import Attempt, Figures, Lane
from executor.report.words import escape, render_seconds

WIDE = 1000
MOST_DRAWN = 3000
#: Rows of one lane, one for each task at a time; a lane with more is drawn by the number.
_MOST_ROWS = 64
#: Units of an attempt that has room for a frame.
_THIN = 3.0
#: Colours for names of tasks; what is rarer has one together.
COLOURS = 7
_NUMBERS = re.compile(r"\d+(?:\.\d+)*")


def draws_attempts(report: Figures) -> bool:
    """Whether each attempt is drawn."""
    return not report.attempts_left_out and len(report.attempts) <= MOST_DRAWN


def family(name: str) -> str:
    """The name without its numbers: ``simulate 17`` and ``simulate 18`` have one colour."""
    return _NUMBERS.sub("…", name)


def pick_colours(attempts: Iterable[Attempt]) -> dict[str, int]:
    """The number of a colour for the most frequent families of names."""
    frequent = Counter(family(attempt.name) for attempt in attempts).most_common(COLOURS)
    return {name: number for number, (name, _) in enumerate(frequent, 1)}


def pack(attempts: Iterable[Attempt]) -> list[tuple[int, Attempt]]:
    """Each attempt with a row in which it meets no other one; the rows are as few as can be, numbered from 0."""
    packed: list[tuple[int, Attempt]] = []
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    for attempt in sorted(attempts, key=lambda each: (each.started, each.task_id)):
        while busy and busy[0][0] <= attempt.started:
            heappush(free, heappop(busy)[1])
        row = heappop(free) if free else len(busy)
        heappush(busy, (max(attempt.started, attempt.ended), row))
        packed.append((row, attempt))
    return packed


def draw_lane(report: Figures, lane: Lane, attempts: Sequence[Attempt], colours: dict[str, int]) -> str:
    """The picture of one lane; ``attempts`` are its own, if they are drawn."""
    packed = pack(attempts)
    rows = max((row for row, _ in packed), default=-1) + 1
    title = f"What ran in the lane {lane.needs} of {lane.agent}"
    if not 0 < rows <= _MOST_ROWS:
        return _svg(_draw_numbers(report, lane), 40, title)
    high = 16 if rows <= 8 else 8 if rows <= 24 else 5
    bars = "".join(_draw_attempt(report, each, row * high, high, colours) for row, each in packed)
    return _svg(bars, rows * high, title)


def _svg(content: str, high: int, title: str) -> str:
    return (
        f'<svg class="t" viewBox="0 0 {WIDE} {high}" preserveAspectRatio="none"'
        f' style="height:{high}px" role="img" aria-label="{escape(title)}">{content}</svg>'
    )


def _draw_attempt(report: Figures, attempt: Attempt, top: int, high: int, colours: dict[str, int]) -> str:
    start, wide = _x(report, attempt.started), attempt.seconds / (report.wall_time or 1.0) * WIDE
    good = attempt.how == "finished"
    kind = f"c{colours.get(family(attempt.name), 0)}" if good else "bad"
    if wide < _THIN:
        kind += " thin"  # its frame would cover it
    return (
        f'<rect class="{kind}" x="{start:.2f}" y="{top + 1}" width="{max(wide, 0.4):.2f}" height="{high - 2}">'
        f"<title>{escape(_describe(report, attempt))}</title></rect>"
    )


def _describe(report: Figures, attempt: Attempt) -> str:
    again = f", attempt {attempt.attempt}" if attempt.attempt > 1 else ""
    since = render_seconds(max(0.0, attempt.started - (report.began or 0.0)))
    used = f"CPU time {render_seconds(attempt.cpu_time)}, peak {render_size(attempt.max_rss)}"
    end = f"{attempt.how} after {render_seconds(attempt.seconds)}"
    return f"{attempt.name} (task {attempt.task_id}{again})\nfrom {since} on: {end}\n{used}"


def _x(report: Figures, at: float) -> float:
    return max(0.0, at - (report.began or 0.0)) / (report.wall_time or 1.0) * WIDE


def _draw_numbers(report: Figures, lane: Lane) -> str:
    most = max(lane.running, default=0.0) or 1.0
    paths = [("c1", lane.running)] + ([("bad", lane.bad)] if lane.failed else [])
    return "".join(f'<path class="{kind}" d="{_area(report, values, most, 40)}"/>' for kind, values in paths)


def draw_cpus(report: Figures, most: float, high: int = 150) -> str:
    """CPUs over time: those that are there, those that tasks were given, and what they made of them."""
    times = report.timeline
    paths = [("given", times.given, True), ("used", times.used, True), ("there", times.there, False)]
    drawn = "".join(
        f'<path class="{kind}" d="{_area(report, values, most, high, closed)}"/>' for kind, values, closed in paths
    )
    return _svg(drawn, high, "CPUs over time: there, given to tasks, used")


def _area(report: Figures, values: Sequence[float], most: float, high: int, closed: bool = True) -> str:
    """Steps of the values, with the area below if it is ``closed``. Equal neighbours are one step."""
    wide = report.timeline.bin_seconds / (report.wall_time or 1.0) * WIDE
    levels = [round(high - max(2.0, min(1.0, value / most) * (high - 1)), 1) if value else high for value in values]
    begin = f"M0 {high}V" if closed else "M0 "
    parts, place = [], 0
    for level, equal in groupby(levels):
        place += len(list(equal))
        parts.append(f"{level:g}H{min(place * wide, WIDE):.2f}")
    return begin + "V".join(parts) + (f"V{high}Z" if closed else "")
