"""What the scheduler wants done. The hub does it, in order, and decides nothing.

Not frozen, although nobody changes them: a frozen dataclass costs three times as much to make, and each task has two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from executor.core.model import Lane, Task, WorkerId
from worker_agent.pools import Place


@dataclass(slots=True)
class OpenLane:
    """Tell the agent of a new lane, which has no places yet."""

    worker: WorkerId
    lane: Lane


@dataclass(slots=True)
class GivePlaces:
    """Tell the agent of further places of a lane."""

    worker: WorkerId
    lane: Lane
    places: list[Place]


@dataclass(slots=True)
class TakePlaces:
    """Ask for so many places of a lane, each as soon as nothing runs there; the agent says which."""

    worker: WorkerId
    lane: Lane
    count: int


@dataclass(slots=True)
class CloseLane:
    """Tell the agent that a lane is gone, with its places."""

    worker: WorkerId
    lane: Lane


@dataclass(slots=True)
class Start:
    """Send the task, in its current attempt, to the agent of the lane."""

    worker: WorkerId
    lane: Lane
    task: Task


@dataclass(slots=True)
class RecallTask:
    """Ask the agent to give the task back."""

    worker: WorkerId
    task: Task


@dataclass(slots=True)
class KillTask:
    """Tell the agent to end the task."""

    worker: WorkerId
    task: Task
    signal: int
    grace: float


@dataclass(slots=True)
class Tell:
    """The task's future is to know: ``news`` is a report (started, output)."""

    task: Task
    news: Any


@dataclass(slots=True)
class Resolve:
    """The task has ended: ``outcome`` is the agent's report, or one of the outcomes of this file."""

    task: Task
    outcome: Any


@dataclass(slots=True)
class Answer:
    """The answer to a cancel of a task that was sent: whether it will never run."""

    task: Task
    cancelled: bool


@dataclass(slots=True)
class Requeue:
    """The task waits again, for another attempt. ``cause`` is the report of the last one's end, or why in a sentence.

    The cause is for people, and nothing is decided by it.
    """

    task: Task
    cause: Any = field(default="", compare=False)


@dataclass(slots=True)
class Discard:
    """Nobody wants what a report of an ended attempt brings."""

    report: Any


@dataclass(slots=True)
class Lost:
    """An outcome: agents were lost under the task more often than it may be."""

    reason: str


@dataclass(slots=True)
class Refused:
    """An outcome: the task's environment cannot be had. ``error`` is a pickled exception or empty."""

    text: str
    error: bytes
    initializer: bool = False


@dataclass(slots=True)
class Unmet:
    """An outcome: another task was to end otherwise. ``first`` is the one that began it, ``how`` its end."""

    first: Any
    how: str


Effect = (
    OpenLane | GivePlaces | TakePlaces | CloseLane | Start | RecallTask | KillTask | Tell | Resolve | Answer | Requeue
    | Discard
)  # fmt: skip
