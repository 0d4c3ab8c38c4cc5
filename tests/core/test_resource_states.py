"""Anything may happen in any order, with all that tasks may need and workers may have.

As ``test_scheduler_states``, and: a place has what the task needs, in one of its variants; a task on several nodes has
them for itself; no task starts where it has not the time that it needs, or before those have ended that it waits for.
When agents that have room for all do what they are to do, every task ends.
"""

from __future__ import annotations

from itertools import count
from typing import Any

from dialogue import cpus, gpus, needs
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from machine import SETTINGS, WHICH, AgentLane, Machine, pick

from executor.core import effects
from executor.core.dependents import AFTER_ANY, AFTER_NOT_OK, AFTER_OK, Condition
from executor.core.model import ONE_CPU_EACH, Task, Variants
from executor.core.needs import Need, Needs
from executor.core.retries import NO_RETRIES, Retries
from worker_agent.pools import UNIT, Place, Pool

MEMORY = Pool("memory", size=8 * UNIT)
WORKERS: list[list[Pool]] = [
    cpus(1),
    cpus(2),
    cpus(4, groups=2),
    [*cpus(2), gpus(2)],
    [*cpus(4), gpus(1, "gpus/nvidia"), gpus(1, "gpus/amd")],
    [*cpus(2), MEMORY],
    [MEMORY],
    [],
]
#: Each of these runs if there are two agents with all of this.
ALL = [*cpus(4, groups=2), gpus(2, "gpus/nvidia"), MEMORY]
NEEDS: list[Variants] = [
    ONE_CPU_EACH,
    (needs(cpus=2),),
    (needs(cpus=4),),
    (needs(cpus=0.5),),
    (Needs((Need("cpus", 2 * UNIT, "compact!"),)),),
    (needs(cpus=None),),
    (needs(gpus=1),),
    (needs(gpus=0.5, cpus=1),),
    (needs(gpus_nvidia=1),),
    (needs(memory=4),),
    (needs(memory=3, cpus=1),),
    (needs(cpus=1, seconds=10.0),),
    (needs(cpus=2, seconds=10.0),),
    (needs(cpus=1, gpus=1), needs(cpus=3)),
    (needs(cpus=4), needs(gpus=1), needs(memory=2)),
    (needs(nodes=1),),
    (needs(nodes=2),),
    (needs(nodes=2, seconds=10.0),),
    (needs(nodes=2), needs(cpus=4)),
]
#: What tasks may wait for that is no task of the scheduler.
ELSEWHERE = -1


class Cluster(Machine):
    """Workers have anything."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[int, float | None] = {}
        self.numbers = count(1)

    @rule(
        number=st.integers(1, 5),
        environment=st.integers(0, 1),
        variants=st.sampled_from(NEEDS),
        priority=st.sampled_from([0, 0, 0, 1, 5]),
        crash_limit=st.sampled_from([0, 1, 5, 5, 5]),
        retries=st.sampled_from([NO_RETRIES, Retries(exit=1, timeout=1, start=1)]),
    )
    def submit(self, number: int, environment: int, variants: Variants, priority: int, **options: int) -> None:
        self.submit_all([self.new(environment, variants, priority, **options) for _ in range(number)])

    @rule(
        whichs=st.lists(WHICH, min_size=1, max_size=3),
        kind=st.sampled_from([AFTER_OK, AFTER_ANY, AFTER_NOT_OK]),
        environment=st.integers(0, 1),
        variants=st.sampled_from(NEEDS),
        priority=st.integers(0, 1),
    )
    def submit_after(self, whichs: list[int], kind: str, environment: int, variants: Variants, priority: int) -> None:
        open_ones = [task_id for task_id in self.tasks if not self.ended[task_id]]
        if ELSEWHERE not in self.how:
            open_ones.append(ELSEWHERE)
        if open_ones:
            task = self.new(environment, variants, priority)
            self.tasks[task.id] = task
            self.conditions[task.id] = tuple(Condition(pick(open_ones, which), kind) for which in whichs)
            self.perform(self.scheduler.submit_after(task, self.conditions[task.id], self.now))

    @precondition(lambda self: ELSEWHERE not in self.how)
    @rule(how=st.sampled_from(["ok", "failed", "cancelled"]))
    def settle(self, how: str) -> None:
        self.how[ELSEWHERE] = how
        self.perform(self.scheduler.settled(ELSEWHERE, how, "first", self.now))

    @precondition(lambda self: len(self.agents) < 4)
    @rule(
        pools=st.sampled_from(WORKERS),
        remaining=st.sampled_from([None, None, 5.0, 30.0]),
        group=st.sampled_from(["", "", "rack"]),
    )
    def join(self, pools: list[Pool], remaining: float | None, group: str) -> None:
        ends = None if remaining is None else self.now + remaining
        self.ends[len(self.agents) + len(self.lost) + 1] = ends
        self.join_with(pools, ends, group)

    def new(self, environment: int, variants: Variants, priority: int, **options: int) -> Task:
        number = next(self.numbers)
        return Task(number, environment, f"task {number}", variants=variants, priority=priority, **options)

    def check_place(self, lane: Any, place: Place) -> None:
        wanted = lane.of.variants[lane.variant]
        if not wanted.nodes:
            assert len(place.shares) == len(wanted.needs)
            for share, need in zip(place.shares, wanted.needs, strict=True):
                assert share.name.startswith(need.name)
                assert need.amount in (None, share.amount)

    def check_start(self, effect: effects.Start, lane: AgentLane) -> None:
        wanted = lane.lane.needs
        assert effect.task.variants == lane.lane.of.variants
        nodes = [effect.lane.worker, *effect.lane.others]
        assert len(nodes) == max(1, wanted.nodes)
        assert len({worker.group for worker in nodes}) == 1
        for worker in nodes:
            ends = self.ends.get(worker.id)
            assert ends is None or self.now + wanted.seconds <= ends, "there is not the time"
        for worker in nodes[1:]:
            assert worker.id in self.agents, "a node is gone"
            assert not self.agents[worker.id].leaves, "a node leaves"
            assert not self.agents[worker.id].held(), "somebody has the node"
        for agent in self.agents.values():
            for other in agent.lanes.values():
                if other.held and other.lane is not effect.lane:
                    taken = [other.lane.worker, *other.lane.others] if other.lane.needs.nodes else []
                    assert effect.lane.worker not in taken, "the node is another task's"

    def bring_room_for_all(self) -> None:
        if ELSEWHERE not in self.how:
            self.settle("ok")
        for _ in range(2):
            self.join_with(ALL, None, "all")

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.how.pop(ELSEWHERE, None)


def test_whatever_is_needed_each_task_ends_once() -> None:
    run_state_machine_as_test(Cluster, settings=SETTINGS)
