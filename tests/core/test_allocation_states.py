"""Anything may happen in any order: allocations against batch systems that do, and say, what batch systems may.

After each step the invariants of the allocations hold. After each look:

- no cluster has more nodes than ``most``, those that are being given back included;
- what waits has as many nodes to come as it could use, unless there is no room, a pause, or no hope;
- nothing is asked of a cluster in its pause, one allocation at most after a failure, and nothing once it is given up;
- an allocation is given back once, none that was of use a short while ago, and ``least`` nodes stay.

In the end, when nothing waits any more, all above the least is given back and none of it is left.
``CORE_EXAMPLES=1000 python -m pytest tests/core`` looks longer, each time elsewhere.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from machine import EXAMPLES, SETTINGS, WHICH

from executor.core.allocations import FAILURES, AllocationId, Allocations, Ask, GiveBack, GiveUp, Policy
from executor.core.model import WorkerId

pytestmark = pytest.mark.shared

IDLE = 10.0
POLICIES = st.builds(
    lambda least, more, each: Policy(least, max(1, least + more), each, IDLE),
    st.integers(0, 2), st.integers(0, 4), st.integers(1, 3),
)  # fmt: skip


@dataclass
class Job:
    """An allocation as its batch system knows it."""

    cluster: int
    nodes: int
    workers: set[WorkerId] = field(default_factory=set)
    joined: bool = False
    given_back: bool = False
    #: since which look it has nothing to do
    unused: float | None = None


class Batch(RuleBasedStateMachine):
    """Batch systems, agents, and tasks that wait."""

    @initialize(policies=st.lists(POLICIES, min_size=1, max_size=2))
    def start(self, policies: list[Policy]) -> None:
        self.policies = policies
        self.allocations = Allocations(policies)
        self.now = 0.0
        self.jobs: dict[AllocationId, Job] = {}
        self.wanted = [0] * len(policies)
        self.idle: set[WorkerId] = set()
        self.workers = 0
        self.failures: Counter[int] = Counter()
        #: since when nothing may be asked of a cluster, and of which not until an agent joins
        self.failed_at: dict[int, float] = {}
        self.given_up: set[int] = set()

    # --- what batch systems do ----------------------------------------------------------------------------------------

    def choose(self, which: int) -> AllocationId:
        return list(self.jobs)[which % len(self.jobs)]

    @precondition(lambda self: self.jobs)
    @rule(which=WHICH, said=st.sampled_from(["submitted", "runs", "waits"]))
    def say(self, which: int, said: str) -> None:
        """In any order: answers come late, and jobs are requeued."""
        getattr(self.allocations, said)(self.choose(which), self.now)

    @precondition(lambda self: self.jobs)
    @rule(which=WHICH)
    def join(self, which: int) -> None:
        number = self.choose(which)
        job = self.jobs[number]
        if len(job.workers) < job.nodes:
            self.workers += 1
            worker = WorkerId(self.workers)
            job.workers.add(worker)
            job.joined, job.unused = True, None
            self.allocations.joined(number, worker, self.now)
            self.failures[job.cluster] = 0
            self.given_up.discard(job.cluster)

    @precondition(lambda self: any(job.workers for job in self.jobs.values()))
    @rule(which=WHICH)
    def leave(self, which: int) -> None:
        workers = [worker for job in self.jobs.values() for worker in sorted(job.workers)]
        worker = workers[which % len(workers)]
        for job in self.jobs.values():
            job.workers.discard(worker)
        self.idle.discard(worker)
        self.allocations.left(worker)

    @precondition(lambda self: self.jobs)
    @rule(which=WHICH, said=st.booleans())
    def end(self, which: int, said: bool) -> None:
        """It is over, or was refused. Of what we have cancelled there may be nothing to say."""
        number = self.choose(which)
        job = self.jobs.pop(number)
        for worker in job.workers:
            self.allocations.left(worker)
        self.idle -= job.workers
        reason = "" if job.given_back and not said else f"the end of {number}"
        effects = self.allocations.ended(number, reason, self.now)
        if job.joined or not reason:
            assert effects == []
            return
        self.failures[job.cluster] += 1
        self.failed_at[job.cluster] = self.now
        if self.failures[job.cluster] >= FAILURES and job.cluster not in self.given_up:
            self.given_up.add(job.cluster)
            assert effects == [GiveUp(job.cluster, reason)]
        else:
            assert effects == []

    # --- what tasks do ------------------------------------------------------------------------------------------------

    @rule(wanted=st.lists(st.integers(0, 6), min_size=2, max_size=2))
    def want(self, wanted: list[int]) -> None:
        self.wanted = wanted[: len(self.policies)]

    @rule(idle=st.sets(st.integers(1, 12)))
    def work(self, idle: set[int]) -> None:
        """Some agents have nothing to do."""
        self.idle = {worker for job in self.jobs.values() for worker in job.workers if worker in idle}

    # --- looks --------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 1.0, 3.0, IDLE, 200.0]))
    def look(self, seconds: float) -> None:
        self.now += seconds
        self.note_unused()
        asked: Counter[int] = Counter()
        missing = [self.missing(number) for number in range(len(self.policies))]
        for effect in self.allocations.plan(self.now, self.wanted, self.idle):
            if isinstance(effect, Ask):
                self.jobs[effect.allocation] = Job(effect.cluster, effect.nodes)
                assert missing[effect.cluster] > 0
                missing[effect.cluster] -= effect.nodes
                asked[effect.cluster] += 1
            else:
                assert isinstance(effect, GiveBack)
                self.check_given_back(effect)
        for number, count in asked.items():
            assert number not in self.given_up
            assert self.failed_at.get(number, -1e9) < self.now
            assert count == 1 or not self.failures[number]
        self.check_wants()

    def note_unused(self) -> None:
        for job in self.jobs.values():
            used = not job.workers <= self.idle if job.joined else self.wanted[job.cluster] > 0
            job.unused = None if used else self.now if job.unused is None else job.unused

    def missing(self, number: int) -> int:
        """So many nodes may be asked for."""
        least = self.policies[number].least - self.nodes(number)
        return max(least, self.wanted[number] - self.nodes(number, joined=False))

    def check_given_back(self, effect: GiveBack) -> None:
        job = self.jobs[effect.allocation]
        assert not job.given_back
        job.given_back = True
        if not effect.why:
            assert job.unused is not None
            assert self.now - job.unused >= IDLE
        assert effect.why or self.nodes(job.cluster, staying=True) >= self.policies[job.cluster].least

    def check_wants(self) -> None:
        for number, policy in enumerate(self.policies):
            there, to_come = self.nodes(number), self.nodes(number, joined=False)
            assert there <= policy.most
            if (
                not self.failures[number]
                and number not in self.given_up
                and self.now - self.failed_at.get(number, -1e9) > 100
            ):
                assert there == policy.most or to_come >= self.wanted[number]
                assert there >= policy.least

    def nodes(self, cluster: int, joined: bool | None = None, staying: bool = False) -> int:
        return sum(
            job.nodes
            for job in self.jobs.values()
            if job.cluster == cluster and joined in (None, job.joined) and not (staying and job.given_back)
        )

    @invariant()
    def both_know_the_same(self) -> None:
        if hasattr(self, "allocations"):
            self.allocations.check_invariants()
            assert {each.id for each in self.allocations} == set(self.jobs)

    def teardown(self) -> None:
        """Nothing waits any more, and batch systems do as they are told."""
        if not hasattr(self, "allocations"):
            return
        self.wanted = [0] * len(self.policies)
        for _ in range(2):
            self.idle = {worker for job in self.jobs.values() for worker in job.workers}
            self.look(IDLE)
            for which, job in reversed(list(enumerate(self.jobs.values()))):
                if job.given_back:
                    self.end(which, said=False)
        for number, policy in enumerate(self.policies):
            smallest = min((job.nodes for job in self.jobs.values() if job.cluster == number), default=1)
            assert self.nodes(number) < policy.least + smallest


def test_whatever_happens_allocations_follow_what_waits() -> None:
    run_state_machine_as_test(Batch, settings=settings(SETTINGS, max_examples=EXAMPLES or 60, stateful_step_count=60))
