"""Allocations: what batch systems grant us, and for how many we ask. They follow what waits.

    ASKED --submitted--> QUEUED --it runs, or an agent joins--> RUNNING --ended--> (forgotten)
      '--refused------------'-------------- cancelled -------------'

Rule 1: no more is asked for than waiting tasks could use, but ``least`` nodes are kept in any case.
Rule 2: what ends is replaced, because what there is is compared with what is wanted each time that we look.
Rule 3: an allocation that is not used any more is given back: one that runs after ``idle`` seconds without a task, one
        that waits in a queue after as many seconds in which nobody wanted it.
Rule 4: an allocation whose agents never joined is a failure. After each one we wait longer, and after ``FAILURES`` in a
        row nothing more is asked of that cluster, unless an agent joins that was asked for before.

What a batch system says is a hint: that an agent lives, only the agent can say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NewType

from executor.core.model import WorkerId

AllocationId = NewType("AllocationId", int)

#: So many allocations of a cluster may fail, one after the other.
FAILURES = 3
#: Seconds until something is asked of a cluster again after the first failure; each further one doubles them.
PAUSE = 2.0
#: Seconds between the start of an allocation, as its batch system tells it, and the hello of an agent in it.
JOIN_PATIENCE = 120.0


class Phase(Enum):
    """Where an allocation stands."""

    ASKED = "asked"
    QUEUED = "queued"
    RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Policy:
    """What is wanted of a cluster: ``least`` to ``most`` nodes at a time, ``each`` of them in one allocation."""

    least: int = 0
    most: int = 1
    each: int = 1
    idle: float = 300.0


@dataclass(slots=True, eq=False)
class Allocation:
    """One that we have asked for."""

    id: AllocationId
    cluster: int
    nodes: int
    phase: Phase = Phase.ASKED
    #: since when its phase is what it is
    since: float = 0.0
    #: since when nobody wants it
    unwanted: float | None = None
    workers: set[WorkerId] = field(default_factory=set)
    joined: bool = False
    #: it is being given back
    cancelled: bool = False


@dataclass(slots=True)
class Ask:
    """Ask the batch system for an allocation."""

    allocation: AllocationId
    cluster: int
    nodes: int


@dataclass(slots=True)
class GiveBack:
    """Cancel an allocation. ``why`` is for people; "" if all is well."""

    allocation: AllocationId
    cluster: int
    why: str = ""


@dataclass(slots=True)
class GiveUp:
    """Nothing more is asked of a cluster, because of its last failures."""

    cluster: int
    reason: str


Effect = Ask | GiveBack | GiveUp


@dataclass(slots=True)
class _Cluster:
    policy: Policy
    allocations: dict[AllocationId, Allocation] = field(default_factory=dict)
    failures: int = 0
    #: until when nothing is asked of it
    paused: float = 0.0
    #: what became of the last one that failed
    reason: str = ""

    @property
    def given_up(self) -> bool:
        """Nothing is asked of it any more."""
        return self.failures >= FAILURES


class Allocations:
    """The allocations of all clusters of an executor. Times are seconds of one clock."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._clusters = [_Cluster(policy) for policy in policies]
        self._numbers = iter(range(1, 2**62)).__next__

    def __iter__(self) -> Iterator[Allocation]:
        return iter([each for cluster in self._clusters for each in cluster.allocations.values()])

    def find(self, allocation: AllocationId) -> Allocation | None:
        """The allocation, unless it has ended."""
        return next((each for each in self if each.id == allocation), None)

    @property
    def hopeless(self) -> list[str]:
        """For each cluster why no agent will come from it; "" if one may."""
        return [each.reason if each.given_up and not each.allocations else "" for each in self._clusters]

    def describe_pauses(self, now: float) -> list[str]:
        """For each cluster why nothing is asked of it now; "" if something may be."""
        return [_describe_pause(cluster, now) for cluster in self._clusters]

    # --- what is wanted -----------------------------------------------------------------------------------------------

    def plan(self, now: float, wanted: Sequence[int], idle: set[WorkerId]) -> list[Effect]:
        """What is to be done. ``wanted``: for each cluster, how many more of its nodes waiting tasks could use.

        ``idle``: the workers that have nothing to do.
        """
        effects: list[Effect] = []
        for number, cluster in enumerate(self._clusters):
            for allocation in list(cluster.allocations.values()):
                effects += self._look(cluster, allocation, now, wanted[number], idle)
            effects += self._ask(number, cluster, now, wanted[number])
        return effects

    def _ask(self, number: int, cluster: _Cluster, now: float, wanted: int) -> list[Effect]:
        if cluster.given_up or now < cluster.paused:
            return []
        policy = cluster.policy
        there = _nodes(cluster.allocations.values())
        to_come = _nodes(each for each in cluster.allocations.values() if not each.joined)
        missing = min(max(policy.least - there, wanted - to_come), policy.most - there)
        asked: list[Effect] = []
        while missing > 0 and not (asked and cluster.failures):  # after a failure, one to try
            nodes = min(policy.each, policy.most - there)
            allocation = Allocation(AllocationId(self._numbers()), number, nodes, since=now)
            cluster.allocations[allocation.id] = allocation
            asked.append(Ask(allocation.id, number, nodes))
            missing, there = missing - nodes, there + nodes
        return asked

    def _look(
        self, cluster: _Cluster, allocation: Allocation, now: float, wanted: int, idle: set[WorkerId]
    ) -> list[Effect]:
        """Rule 3, and those whose agents do not come."""
        if allocation.cancelled:
            return []
        if allocation.phase is Phase.RUNNING and not allocation.joined and now - allocation.since > JOIN_PATIENCE:
            why = f"it runs, and no agent of it has joined within {JOIN_PATIENCE:g} s"
            allocation.cancelled = True
            return [GiveBack(allocation.id, allocation.cluster, why)]
        used = not allocation.workers <= idle if allocation.joined else wanted > 0
        staying = _nodes(each for each in cluster.allocations.values() if not each.cancelled)
        if used or staying - allocation.nodes < cluster.policy.least:
            allocation.unwanted = None
            return []
        if allocation.unwanted is None:
            allocation.unwanted = now
        if now - allocation.unwanted < cluster.policy.idle:
            return []
        allocation.cancelled = True
        return [GiveBack(allocation.id, allocation.cluster)]

    # --- what happens -------------------------------------------------------------------------------------------------

    def submitted(self, allocation: AllocationId, now: float) -> None:
        """The batch system has taken it."""
        self._move(allocation, Phase.ASKED, Phase.QUEUED, now)

    def runs(self, allocation: AllocationId, now: float) -> None:
        """The batch system says that it runs."""
        self._move(allocation, Phase.QUEUED, Phase.RUNNING, now)

    def waits(self, allocation: AllocationId, now: float) -> None:
        """The batch system says that it waits, perhaps again; while an agent of it is there, that is old news."""
        found = self.find(allocation)
        if found is not None and not found.workers:
            self._move(allocation, Phase.RUNNING, Phase.QUEUED, now)

    def _move(self, number: AllocationId, before: Phase, after: Phase, now: float) -> None:
        allocation = self.find(number)
        if allocation is not None and allocation.phase is before:
            allocation.phase, allocation.since = after, now

    def joined(self, number: AllocationId, worker: WorkerId, now: float) -> None:
        """An agent of it is there: that is more than the batch system may know."""
        allocation = self.find(number)
        if allocation is None:
            return
        allocation.phase, allocation.since = Phase.RUNNING, now
        allocation.workers.add(worker)
        allocation.joined, allocation.unwanted = True, None
        self._clusters[allocation.cluster].failures = 0

    def left(self, worker: WorkerId) -> None:
        """An agent is gone."""
        for allocation in self:
            allocation.workers.discard(worker)

    def ended(self, number: AllocationId, reason: str, now: float) -> list[Effect]:
        """It was refused, or it is over. ``reason`` is for people; it is a failure if no agent of it ever joined."""
        allocation = self.find(number)
        if allocation is None:
            return []
        cluster = self._clusters[allocation.cluster]
        del cluster.allocations[number]
        if allocation.joined or (allocation.cancelled and not reason):
            return []
        cluster.failures += 1
        cluster.paused = now + PAUSE * 2 ** (min(cluster.failures, FAILURES) - 1)
        cluster.reason = reason
        return [GiveUp(allocation.cluster, reason)] if cluster.failures == FAILURES else []

    # --- invariants ---------------------------------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """What always holds. For tests."""
        for number, cluster in enumerate(self._clusters):
            assert _nodes(cluster.allocations.values()) <= cluster.policy.most
            for allocation in cluster.allocations.values():
                assert allocation.cluster == number
                assert allocation.joined or not allocation.workers
                assert not allocation.workers or allocation.phase is Phase.RUNNING


def _describe_pause(cluster: _Cluster, now: float) -> str:
    if cluster.given_up:
        return f"nothing more is asked for: {cluster.reason}"
    if cluster.failures and now < cluster.paused:
        pause = cluster.paused - now
        return f"{cluster.failures} in a row failed, the next is asked for in {pause:.0f} s: {cluster.reason}"
    return ""


def _nodes(allocations: Iterable[Allocation]) -> int:
    return sum(each.nodes for each in allocations)
