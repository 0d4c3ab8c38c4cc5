"""What the scheduler knows: tasks, the classes that they form, lanes, workers.

    WAITING --> READY --> SENT --> RUNNING --> DONE     WAITING: for other tasks to end
                  ^        |          |         ^       SENT: in a lane's queue on an agent, not started that we know
                  '--------'----------'         |       RUNNING: the agent said that it started
                      agent lost, retry         '-- from every state: cancelled, failed
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NewType

from executor.core.free import Free
from executor.core.needs import ONE_CPU, Needs
from executor.core.retries import NO_RETRIES, Retries
from worker_agent import protocol
from worker_agent.pools import Pool, Share

WorkerId = NewType("WorkerId", int)
LaneId = NewType("LaneId", int)
#: What every worker has.
_COMMON = frozenset({"cpus", "memory"})
#: Ways to run a task, the preferred one first.
Variants = tuple[Needs, ...]
#: So many units at least of some resources.
Amounts = tuple[tuple[str, int], ...]


class TaskState(Enum):
    """Where a task stands."""

    WAITING = "waiting"
    READY = "ready"
    SENT = "sent"
    RUNNING = "running"
    DONE = "done"

    __hash__ = object.__hash__  # that of Enum is a Python function, and each task asks for it six times


_LEGAL = {
    TaskState.WAITING: {TaskState.READY, TaskState.DONE},
    TaskState.READY: {TaskState.SENT, TaskState.DONE},
    TaskState.SENT: {TaskState.READY, TaskState.RUNNING, TaskState.DONE},
    TaskState.RUNNING: {TaskState.READY, TaskState.DONE},
    TaskState.DONE: set(),
}


class IllegalMove(AssertionError):
    """The scheduler moved a task in a way that its life does not have: a bug of ours."""


#: What a task needs that says nothing.
ONE_CPU_EACH: Variants = (ONE_CPU,)


@dataclass(slots=True, eq=False)
class Task:
    """A task as the scheduler sees it. ``body`` is the caller's own and never looked into."""

    id: int
    environment: int
    body: Any
    retries: Retries = NO_RETRIES
    crash_limit: int = 5
    #: whether an exit status other than 0 is a failure
    checked: bool = True
    variants: Variants = ONE_CPU_EACH
    #: the larger, the earlier
    priority: int = 0
    #: the factor by which its memory grows when it is tried again for lack of it
    memory_on_oom: float | None = None
    #: the number of the current try, 0 before the first; it grows with each send, also if that never started
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


@dataclass(slots=True, eq=False, repr=False)
class Queue:
    """The ready tasks of one class and one priority, the oldest first."""

    of: TaskClass
    priority: int
    ready: deque[Task] = field(default_factory=deque)
    #: since when it waits for room, if it does
    blocked: float | None = None
    #: workers on which room is being made for it
    reserved: dict[Worker, None] = field(default_factory=dict)
    #: when to look again where room could be made
    look_again: float = 0.0

    @property
    def order(self) -> tuple[int, int]:
        """Which one is served first: the more important, then the older."""
        return -self.priority, self.ready[0].id

    def waited(self, now: float) -> float:
        """For how many seconds it waits for room."""
        return 0.0 if self.blocked is None else now - self.blocked

    def drop_ended(self) -> bool:
        """Whether tasks wait, after those were dropped that ended while they waited."""
        ready = self.ready
        while ready and ready[0].state is not TaskState.READY:
            ready.popleft()
        return bool(ready)


@dataclass(slots=True, eq=False, repr=False)
class TaskClass:
    """The tasks that are alike to the scheduler: same needs, same environment. Decisions are made per class."""

    environment: int
    variants: Variants
    #: by priority
    queues: dict[int, Queue] = field(default_factory=dict)
    #: by worker and variant
    lanes: dict[tuple[WorkerId, int], Lane] = field(default_factory=dict)
    #: lanes that may have an idle place; whose agent may hold more in advance; and whose agent does hold some
    idle: OrderedDict[Lane, None] = field(default_factory=OrderedDict)
    shallow: OrderedDict[Lane, None] = field(default_factory=OrderedDict)
    #: ... and the first task that it held when that was looked at
    deep: dict[Lane, int | None] = field(default_factory=dict)
    #: per variant: workers that may have room; first those that have nothing rare which it does not need
    candidates: list[tuple[OrderedDict[Worker, None], OrderedDict[Worker, None]]] = field(default_factory=list)
    #: how many of its tasks agents are to give back, to run elsewhere
    moving: int = 0
    #: of how many of the changes of workers it has heard
    heard: int = 0
    #: a running mean of how long its tasks take, in seconds; None before the first has ended
    duration: float | None = None

    #: per variant: the names of what it needs, and how much at least of each
    wanted: list[tuple[frozenset[str], Amounts]] = field(init=False)
    #: so many units of CPUs at least, in one variant or another
    least: int = field(init=False)

    def __post_init__(self) -> None:
        self.candidates = [(OrderedDict(), OrderedDict()) for _ in self.variants]
        self.wanted = [(needs.names, _amounts(needs)) for needs in self.variants]
        self.least = min(dict(amounts).get("cpus", 0) for _, amounts in self.wanted)

    @property
    def waits(self) -> bool:
        """Whether tasks of it wait for room."""
        return any(queue.ready for queue in self.queues.values())

    @property
    def names(self) -> frozenset[str]:
        """What its tasks need something of, in one variant or another."""
        return frozenset().union(*(needs.names for needs in self.variants))

    @property
    def takes_nodes(self) -> bool:
        """Whether its tasks may run on several nodes, which they need at once."""
        return any(needs.nodes for needs in self.variants)

    @property
    def is_quick(self) -> bool:
        """Whether what agents hold in advance is run in a moment."""
        return self.duration is not None and self.duration < BRIDGE

    def measured(self, seconds: float) -> None:
        """One of its tasks took so long. What no clock can have measured is ignored: clocks are set back."""
        if 0 <= seconds < protocol.LONGEST:
            self.duration = seconds if self.duration is None else 0.9 * self.duration + 0.1 * seconds


@dataclass(slots=True, eq=False, repr=False)
class Lane:
    """A slice of one worker for one class: ``width`` equal places. ``sent`` are the tasks that its agent holds."""

    id: LaneId
    worker: Worker
    of: TaskClass
    variant: int
    #: by number: what each place has, also those that were asked back and not given yet
    places: dict[int, list[Share]] = field(default_factory=dict)
    #: places that are not asked back
    width: int = 0
    sent: dict[int, Task] = field(default_factory=dict)
    #: the number of the next place
    following: int = 0
    #: further workers that its task has as a whole, if it runs on several nodes
    others: list[Worker] = field(default_factory=list)
    #: what :meth:`each_has` has found
    known: dict[str, int] = field(default_factory=dict)

    @property
    def needs(self) -> Needs:
        """What its tasks need."""
        return self.of.variants[self.variant]

    @property
    def is_open(self) -> bool:
        """Whether it is given tasks. One that has been closed, or whose worker leaves, is not."""
        return self.of.lanes.get((self.worker.id, self.variant)) is self

    @property
    def unused(self) -> int:
        """At how many of its places nothing runs, as far as we know."""
        return max(0, self.width - len(self.sent))

    def each_has(self, name: str) -> int:
        """So many units each of its places has of what could be needed under this name."""
        if name not in self.known:
            place = next(iter(self.places.values()))
            family = f"{name}/"
            self.known[name] = sum(each.amount for each in place if each.name == name or each.name.startswith(family))
        return self.known[name]


@dataclass(slots=True, eq=False, repr=False)
class Worker:
    """The hub's record of an agent."""

    id: WorkerId
    free: Free
    #: when it has to end, if that is known
    ends: float | None = None
    #: tasks on several nodes stay within one group
    group: str = ""
    #: what it has that not every worker has: workers without go first to who needs nothing of it
    rare: frozenset[str] = frozenset()
    lanes: dict[LaneId, Lane] = field(default_factory=dict)
    #: by the name of a resource: units that are free or unused, as counted since the last change
    counted: dict[str, int] = field(default_factory=dict)
    #: for whom room is being made here
    reserved: Queue | None = None
    #: the lane elsewhere that has all of it
    lent: Lane | None = None
    #: whether it gets tasks
    present: bool = True

    @classmethod
    def of_pools(cls, worker: WorkerId, pools: list[Pool], ends: float | None = None, group: str = "") -> Worker:
        """A worker with nothing on it."""
        rare = frozenset(pool.name.partition("/")[0] for pool in pools) - _COMMON
        return cls(worker, Free(pools), ends, group, rare)

    def may_have(self, amounts: Amounts) -> bool:
        """Whether so much may be free, or be had from lanes that do not use it: who needs more need not look here."""
        for name, units in amounts:  # noqa: SIM110 -- a generator takes twice as long, and each change leads here
            if self.counted.get(name, -1) < units and self.count(name) < units:
                return False
        return True

    def may_serve(self, variants: Variants) -> bool:
        """Whether tasks with these needs could run here, perhaps beside others, if nothing else did."""
        return any(needs.nodes or self.free.possible(needs) for needs in variants)

    def count(self, name: str) -> int:
        """Units of a resource that are free, or that lanes have and do not use."""
        units = self.counted.get(name)
        if units is None:
            units = self.free.amount(name)
            for lane in self.lanes.values():
                unused = lane.width - len(lane.sent)
                if unused > 0:
                    units += unused * lane.each_has(name)
            self.counted[name] = units
        return units if self.lent is None or self.lent.sent else self.free.total(name)

    @property
    def runs(self) -> list[Lane]:
        """The lanes whose tasks run there, if only on one of their nodes."""
        lent = [] if self.lent is None or self.lent.worker is self else [self.lent]
        return [*self.lanes.values(), *lent]

    @property
    def idle(self) -> bool:
        """Whether nothing runs on it."""
        return not any(lane.sent for lane in self.runs)

    def lives(self, needs: Needs, now: float) -> bool:
        """Whether it lives as long as a task needs."""
        return self.ends is None or now + needs.seconds <= self.ends


def _amounts(needs: Needs) -> Amounts:
    """Without which there is no room; whole nodes are looked for otherwise."""
    return () if needs.nodes else tuple((need.name, need.least) for need in needs.needs)


def prefetch(duration: float | None, width: int) -> int:
    """How many tasks a lane's agent may hold beyond those it runs, for tasks that take ``duration`` seconds.

    Enough to bridge ``BRIDGE`` seconds without asking, at least one for each place, so that the successor is there when
    a task ends. None of long ones, to which the moment until we hear of the end and send the next is nothing: they go
    where there is room first.
    """
    if duration is None:
        duration = ASSUMED
    if duration >= LONG:
        return 0
    return width * max(1, int(BRIDGE / max(duration, BRIDGE / DEEPEST)))


#: Seconds of work that an agent holds in advance.
BRIDGE = 0.02
#: Tasks that an agent holds in advance for one place of a lane, at most.
DEEPEST = 512
#: Seconds from which on a task is long.
LONG = 1.0
#: Seconds that tasks are taken to last as long as none of their class has ended: they may be long.
ASSUMED = math.inf
