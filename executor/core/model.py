"""What the scheduler knows: tasks, lanes, workers.

    READY --> SENT --> RUNNING --> DONE          SENT: in a lane's queue on an agent, not started as far as we know
      ^        |          |         ^            RUNNING: the agent said that it started
      '--------'----------'         |
          agent lost, retry         '-- from every state: cancelled, failed
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NewType

from worker_agent import protocol

WorkerId = NewType("WorkerId", int)
LaneId = NewType("LaneId", int)


class TaskState(Enum):
    """Where a task stands."""

    READY = "ready"
    SENT = "sent"
    RUNNING = "running"
    DONE = "done"


_LEGAL = {
    TaskState.READY: {TaskState.SENT, TaskState.DONE},
    TaskState.SENT: {TaskState.READY, TaskState.RUNNING, TaskState.DONE},
    TaskState.RUNNING: {TaskState.READY, TaskState.DONE},
    TaskState.DONE: set(),
}


class IllegalMove(AssertionError):
    """The scheduler moved a task in a way that its life does not have: a bug of ours."""


@dataclass(slots=True, eq=False)
class Task:
    """A task as the scheduler sees it. ``body`` is the caller's own and never looked into."""

    id: int
    environment: int
    body: Any
    retries: int = 0
    crash_limit: int = 5
    #: whether an exit status other than 0 is a failure
    checked: bool = True
    #: the number of the current try, 0 before the first
    attempt: int = 0
    #: a kill is under way: it does not start again
    doomed: bool = False
    #: how often an agent was lost while this task ran on it
    losses: int = 0
    lane: Lane | None = None
    state: TaskState = TaskState.READY

    def move(self, state: TaskState) -> None:
        """The one place where a task's state changes."""
        if state not in _LEGAL[self.state]:
            raise IllegalMove(f"task {self.id}: {self.state.value} -> {state.value}")
        self.state = state


@dataclass(slots=True, eq=False)
class TaskClass:
    """The tasks that are alike to the scheduler: same needs, same environment. Decisions are made per class."""

    environment: int
    ready: deque[Task] = field(default_factory=deque)
    lanes: list[Lane] = field(default_factory=list)
    #: a running mean of how long its tasks take, in seconds; None before the first has ended
    duration: float | None = None

    def measured(self, seconds: float) -> None:
        """One of its tasks took so long. What no clock can have measured is ignored: clocks are set back."""
        if 0 <= seconds < protocol.LONGEST:
            self.duration = seconds if self.duration is None else 0.9 * self.duration + 0.1 * seconds


@dataclass(slots=True, eq=False)
class Lane:
    """A slice of one worker, ``width`` tasks wide, for one class. ``sent`` are the tasks that its agent holds."""

    id: LaneId
    worker: Worker
    of: TaskClass
    width: int
    sent: dict[int, Task] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Worker:
    """The hub's record of an agent. ``slots`` is how many tasks it may run at a time."""

    id: WorkerId
    slots: int
    lanes: dict[LaneId, Lane] = field(default_factory=dict)

    @property
    def free(self) -> int:
        """Slots that no lane has."""
        return self.slots - sum(lane.width for lane in self.lanes.values())


def prefetch(duration: float | None, width: int) -> int:
    """How many tasks a lane's agent may hold beyond those it runs, for tasks that take ``duration`` seconds.

    Enough to bridge ``BRIDGE`` seconds without asking, at least one for each place, so that a long task's successor is
    there when it ends. Tasks of unknown duration count as long.
    """
    if duration is None or duration >= BRIDGE:
        return width
    return width * int(BRIDGE / max(duration, BRIDGE / DEEPEST))


#: Seconds of work that an agent holds in advance.
BRIDGE = 0.02
#: Tasks that an agent holds in advance for one place of a lane, at most.
DEEPEST = 512
