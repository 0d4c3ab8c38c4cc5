"""The report of a run as values, for programs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counts:
    """How many tasks were submitted, and how they ended; ``aborted``: not run, because something else had failed.

    ``unfinished`` have not ended. ``attempts`` are those that ran and ended, ``retried`` those of them that failed and
    were followed by another one.
    """

    submitted: int
    finished: int
    failed: int
    aborted: int
    cancelled: int
    unfinished: int
    attempts: int
    retried: int


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent: host and process, its CPUs, and from when to when it was there (seconds since the epoch; None: it is).

    The list of a report begins with those that came first.
    """

    name: str
    cpus: float
    joined: float
    left: float | None


@dataclass(frozen=True, slots=True)
class Timeline:
    """CPUs over time: the means of bins of ``bin_seconds`` from ``began`` on (seconds since the epoch).

    ``there``: those of the agents. ``given``: those that running tasks had. ``used``: what these made of them; the CPU
    time of an attempt is spread evenly over it.
    """

    began: float
    bin_seconds: float
    there: list[float]
    given: list[float]
    used: list[float]


@dataclass(frozen=True, slots=True)
class Lane:
    """What ran in the lanes of one agent for tasks of equal needs: how many at a time, and how many of these did not
    end well, in the bins of the :class:`Timeline`. ``needs`` in words; "others" are many that are not told apart."""

    agent: str
    needs: str
    attempts: int
    failed: int
    running: list[float]
    bad: list[float]


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt of a task that ran: where, with which needs, when (seconds since the epoch), what it used (CPU time in
    seconds, peak of memory in bytes), and ``how`` it ended: "finished", "failed", "timed out", "killed",
    "out of memory" or "lost" (with its agent)."""

    task_id: int
    name: str
    attempt: int
    agent: str
    needs: str
    submitted: float
    started: float
    ended: float
    cpu_time: float
    max_rss: int
    how: str

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return max(0.0, self.ended - self.started)


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that failed: the type and text of its exception, the end of the task's traceback and of its stderr, or
    the file to which that went; where and when its last attempt ran (None: it did not)."""

    task_id: int
    name: str
    attempt: int
    host: str | None
    started: float | None
    ended: float | None
    returncode: int | None
    error: str
    text: str
    traceback: str
    stderr: str
    stderr_file: str | None


@dataclass(frozen=True, slots=True)
class UsageByNeeds:
    """Requested against used, for tasks of equal needs: seconds, CPUs, and bytes of memory (0: none was asked for).

    ``names`` are the names of its tasks, with how many attempts each had; ``other_names`` counts the attempts beyond.
    ``cpus_used`` is CPU time per second of all attempts, ``cpus_peak`` that of the attempt that used the most.
    ``advice`` are sentences.
    """

    needs: str
    names: dict[str, int]
    other_names: int
    attempts: int
    mean_seconds: float
    longest_seconds: float
    cpu_time: float
    cpus_asked: float
    cpus_used: float
    cpus_peak: float
    memory_asked: int
    memory_peak: int
    out_of_memory: int
    advice: list[str]


@dataclass(frozen=True, slots=True)
class Figures:
    """A run in numbers.

    ``began`` is the first submission, ``ended`` the last end of an attempt, in seconds since the epoch (None: nothing
    has run yet). ``wall_time`` and ``cpu_time`` in seconds; ``utilisation`` is the share of the agents' CPU time that
    running tasks were given, from 0 to 1. ``attempts`` has the first ones, ``attempts_left_out`` says how many more
    there were; these are in all sums. ``failures`` has the first ones, ``failures_by_error`` counts all.
    """

    began: float | None
    ended: float | None
    wall_time: float
    cpu_time: float
    utilisation: float
    counts: Counts
    agents: list[Agent]
    timeline: Timeline
    lanes: list[Lane]
    usage: list[UsageByNeeds]
    slowest: list[Attempt]
    failures: list[Failure]
    failures_by_error: dict[str, int]
    attempts: list[Attempt]
    attempts_left_out: int
