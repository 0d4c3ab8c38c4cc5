"""From turns to a table: the ratio ours / peer is taken within each round; the table shows its median."""

import json
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.candidates import ALL_OURS, REUSED_MILLION
from benchmarks.figures import FIGURES, Figure, Goal
from benchmarks.rounds import Turn

HEADER = (
    "| figure | ours | median | peer | median | ours / peer (range) | goal | reached |",
    "|---|---|---:|---|---:|---:|---:|:-:|",
)


@dataclass(frozen=True, slots=True)
class Machine:
    date: str
    cores: int
    python: str
    #: 1-minute load average: at the start of others, at the end mostly of this run.
    load: float

    def __str__(self) -> str:
        return f"{self.date}, {self.cores} cores, Python {self.python}, 1-minute load average {self.load:.2f}"


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: an ours, and a peer ("" where the goal is absolute); ratios where both have a value."""

    figure: str
    unit: str
    ours: str
    peer: str
    ours_values: tuple[float, ...]
    peer_values: tuple[float, ...]
    ratios: tuple[float, ...]
    goal: Goal | None

    @property
    def reached(self) -> bool | None:
        """None where there is no goal, or nothing to compare."""
        if self.goal is None or not self.ratios:
            return None
        return self.goal.is_reached(statistics.median(self.ratios))


def look_at_machine() -> Machine:
    date = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return Machine(date, len(os.sched_getaffinity(0)), platform.python_version(), os.getloadavg()[0])


def compare(turns: Sequence[Turn]) -> list[Row]:
    names = dict.fromkeys(turn.figure for turn in turns)
    return [row for name in names for row in compare_figure(FIGURES[name], turns)]


def compare_figure(figure: Figure, turns: Sequence[Turn]) -> Iterator[Row]:
    for unit in figure.units:
        for ours, peer in pairs(figure):
            goal = find_goal(figure, unit, ours, peer)
            if peer or goal:
                yield compare_pair(turns, figure.name, unit, ours, peer, goal)


def pairs(figure: Figure) -> Iterator[tuple[str, str]]:
    """Each ours alone (""), then against each peer; the million is compared with the hundred thousand."""
    takes_part = list(figure.counts)
    variants = [name for name in takes_part if name in ALL_OURS]
    if REUSED_MILLION in variants:
        variants = [REUSED_MILLION]
    peers = ["", *(name for name in takes_part if name not in variants)]
    return ((ours, peer) for ours in variants for peer in peers)


def find_goal(figure: Figure, unit: str, ours: str, peer: str) -> Goal | None:
    for goal in figure.goals:
        if (goal.ours, goal.against, goal.unit or figure.units[0]) == (ours, peer, unit):
            return goal
    return None


def compare_pair(
    turns: Sequence[Turn], figure: str, unit: str, ours: str, peer: str, goal: Goal | None
) -> Row:
    mine = values_by_round(turns, figure, unit, ours)
    theirs = values_by_round(turns, figure, unit, peer) if peer else dict.fromkeys(mine, 1.0)
    ratios = tuple(mine[number] / theirs[number] for number in mine if number in theirs)
    shown = tuple(theirs.values()) if peer else ()
    return Row(figure, unit, ours, peer, tuple(mine.values()), shown, ratios, goal)


def values_by_round(turns: Sequence[Turn], figure: str, unit: str, candidate: str) -> dict[int, float]:
    fits = (turn for turn in turns if (turn.figure, turn.candidate) == (figure, candidate))
    return {turn.round: turn.values[unit] for turn in fits if unit in turn.values}


def render(rows: Sequence[Row], turns: Sequence[Turn], before: Machine, after: Machine, note: str) -> str:
    lines = [f"{before} ({after.load:.2f} at the end, {after.date}); {note}", "", *HEADER]
    lines += [render_row(row, turns) for row in rows]
    lines += ["", render_count(rows), *render_troubles(turns)]
    return "\n".join(lines)


def render_row(row: Row, turns: Sequence[Turn]) -> str:
    cells = (
        f"{FIGURES[row.figure].title}, {row.unit}",
        row.ours,
        render_values(row.ours_values, turns, row.figure, row.ours),
        row.peer,
        render_values(row.peer_values, turns, row.figure, row.peer),
        render_ratios(row) if row.peer else "",
        f"{row.goal.sign} {row.goal.bound:g}" if row.goal else "",
        {True: "✓", False: "✗", None: "?" if row.goal else ""}[row.reached],
    )
    return "| " + " | ".join(cells) + " |"


def render_values(values: Sequence[float], turns: Sequence[Turn], figure: str, candidate: str) -> str:
    if values:
        return render_number(statistics.median(values))
    fits = [turn for turn in turns if (turn.figure, turn.candidate) == (figure, candidate)]
    if not fits:
        return ""
    return "not installed" if fits[-1].not_installed else "failed"


def render_ratios(row: Row) -> str:
    if not row.ratios:
        return ""
    median, low, high = statistics.median(row.ratios), min(row.ratios), max(row.ratios)
    return f"{render_number(median)} ({render_number(low)} to {render_number(high)})"


def render_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def render_count(rows: Sequence[Row]) -> str:
    goals = [row for row in rows if row.goal]
    reached = sum(row.reached is True for row in goals)
    return f"{reached} of {len(goals)} goals reached."


def render_troubles(turns: Sequence[Turn]) -> Iterator[str]:
    """What the medians do not show: turns without a value, and processes that had to be ended afterwards."""
    troubles = Counter((turn.figure, turn.candidate, describe_trouble(turn)) for turn in turns)
    for (figure, candidate, trouble), times in troubles.items():
        if trouble:
            yield f"- {figure}, {candidate} ({times}x): {trouble}"


def describe_trouble(turn: Turn) -> str:
    if turn.trouble or not turn.left_behind:
        return turn.trouble
    return f"left {turn.left_behind} processes behind"


def write_json(path: Path, rows: Sequence[Row], turns: Sequence[Turn], machines: Sequence[Machine]) -> None:
    content = {
        "machine": [asdict(machine) for machine in machines],
        "rows": [{**asdict(row), "reached": row.reached} for row in rows],
        "turns": [asdict(turn) for turn in turns],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
