"""What is measured, on whom, and what ours must reach.

A goal is a bound on ours / peer within one run; absolute values vary from machine to machine and day to
day. Counts are such that a turn takes a few seconds for everyone, whether it does 10 or 40 000 tasks per
second.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.candidates import (
    BARE_FORK,
    FORK,
    FORKSERVER,
    FORKSERVER_1,
    HYPERQUEUE,
    LOKY,
    OURS,
    PRELOADED,
    REUSED,
    REUSED_MILLION,
    SPAWN,
    SPAWN_1,
    THREADS,
    THREADS_PYTHON,
    Construct,
)
from benchmarks.measure import (
    Values,
    backlog,
    latency,
    new_array,
    new_bytes,
    payload,
    startup,
    throughput,
    throughput_of_builtin,
    throughput_of_programs,
)


@dataclass(frozen=True, slots=True)
class Goal:
    """`ours` / `against` must be `sign` `bound`; without `against` the value itself must be."""

    sign: str
    bound: float
    against: str = ""
    ours: str = OURS
    unit: str = ""

    def is_reached(self, value: float) -> bool:
        return value >= self.bound if self.sign == "≥" else value <= self.bound


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    title: str
    measure: Callable[[Construct, int], Values]
    #: Who takes part, in order of their turns, and with how many tasks.
    counts: dict[str, int]
    units: tuple[str, ...]
    goals: tuple[Goal, ...] = ()
    #: Turns per round, for what is over in a moment.
    repeats: int = 1
    #: Seconds after which a turn is given up.
    limit: float = 40.0
    needs: str = ""


FRESH_GOALS = (Goal("≥", 40, HYPERQUEUE), Goal("≥", 7, FORKSERVER_1), Goal("≥", 0.6, BARE_FORK))

ALL_FIGURES = (
    Figure(
        "fresh",
        "fresh interpreters, no-op function",
        throughput,
        {OURS: 1000, SPAWN_1: 50, FORKSERVER_1: 150, THREADS_PYTHON: 120, HYPERQUEUE: 30, BARE_FORK: 1000},
        ("tasks/s",),
        FRESH_GOALS,
    ),
    Figure(
        "fresh-builtin",
        "fresh interpreters, `pow` (nothing to import)",
        throughput_of_builtin,
        {OURS: 1000, FORKSERVER_1: 150, BARE_FORK: 1000},
        ("tasks/s",),
        FRESH_GOALS[1:],
    ),
    Figure(
        "fresh-latency",
        "fresh interpreters, one at a time",
        latency,
        {OURS: 200, SPAWN_1: 20, FORKSERVER_1: 50, THREADS_PYTHON: 40, HYPERQUEUE: 2},
        ("ms",),
        (Goal("≤", 1), Goal("≤", 0.15, FORKSERVER_1)),
    ),
    Figure(
        "reused",
        "reused interpreters, no-op function",
        throughput,
        {REUSED: 10_000, FORK: 10_000, SPAWN: 10_000, FORKSERVER: 10_000, LOKY: 10_000},
        ("tasks/s",),
        (Goal("≥", 3.5, FORK, REUSED),),
    ),
    Figure(
        "reused-latency",
        "reused interpreters, one at a time",
        latency,
        {REUSED: 1000, FORK: 1000, SPAWN: 1000, FORKSERVER: 1000, LOKY: 1000},
        ("ms",),
        (Goal("≤", 1.3, FORK, REUSED),),
    ),
    Figure(
        "programs",
        "programs, /bin/true",
        throughput_of_programs,
        {OURS: 1000, THREADS: 1000, FORK: 1000, HYPERQUEUE: 1000},
        ("tasks/s",),
        (Goal("≥", 1, THREADS), Goal("≥", 1, FORK), Goal("≥", 3, HYPERQUEUE)),
    ),
    Figure(
        "startup",
        "construct to first result",
        startup,
        {OURS: 1, REUSED: 1, FORK: 1, SPAWN: 1, LOKY: 1, HYPERQUEUE: 1},
        ("ms",),
        (Goal("≤", 1, LOKY), Goal("≤", 1, LOKY, REUSED)),
        repeats=3,
    ),
    Figure(
        "bytes-1",
        "1 MiB bytes there and back",
        partial(payload, make=new_bytes, mib=1),
        {OURS: 40, REUSED: 40, FORK: 40, LOKY: 40, HYPERQUEUE: 2},
        ("MB/s",),
        (Goal("≥", 1, FORK, REUSED),),
    ),
    Figure(
        "bytes-100",
        "100 MiB bytes there and back",
        partial(payload, make=new_bytes, mib=100),
        {OURS: 3, REUSED: 3, FORK: 3, LOKY: 3, HYPERQUEUE: 1},
        ("MB/s",),
        (Goal("≥", 2.5, FORK), Goal("≥", 2.5, FORK, REUSED)),
    ),
    Figure(
        "array-1",
        "1 MiB NumPy array there and back",
        partial(payload, make=new_array, mib=1),
        {PRELOADED: 40, REUSED: 40, FORK: 40, LOKY: 40},
        ("MB/s",),
        needs="numpy",
    ),
    Figure(
        "array-100",
        "100 MiB NumPy array there and back",
        partial(payload, make=new_array, mib=100),
        {PRELOADED: 3, REUSED: 3, FORK: 3, LOKY: 3},
        ("MB/s",),
        (Goal("≥", 4, FORK, PRELOADED), Goal("≥", 4, FORK, REUSED)),
        needs="numpy",
    ),
    Figure(
        "backlog",
        "100 000 no-op tasks at once",
        backlog,
        {REUSED: 100_000, FORK: 100_000, LOKY: 100_000},
        ("submits/s", "tasks/s", "peak MiB"),
        (Goal("≥", 1, FORK, REUSED, "submits/s"), Goal("≤", 1, FORK, REUSED, "peak MiB")),
        limit=90,
    ),
)

#: Part of the run with --million only: it takes minutes. Its goal is the same time per task, but for noise.
MILLION = Figure(
    "backlog-million",
    "1 000 000 no-op tasks at once, against 100 000",
    backlog,
    {REUSED_MILLION: 1_000_000, REUSED: 100_000},
    ("submits/s", "tasks/s", "peak MiB"),
    (Goal("≥", 0.9, REUSED, REUSED_MILLION, "tasks/s"),),
    limit=300,
)

FIGURES = {figure.name: figure for figure in (*ALL_FIGURES, MILLION)}
