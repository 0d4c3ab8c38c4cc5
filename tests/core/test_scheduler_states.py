"""Anything may happen in any order: the scheduler against agents that do, and say, what agents may.

All tasks need one CPU here; ``test_resource_states`` has all the others. After each step:

- the scheduler's own invariants hold, and no worker has given more than it has, or a thing twice;
- scheduler and agents agree about what is where, tasks and places;
- a task is on one worker at a time, in an attempt that is one more than the last;
- it is resolved or cancelled once, and nothing of it starts after that;
- between two attempts it goes back to its queue once;
- what the end of an attempt brings goes to one taker: it is the outcome, or discarded;
- no task waits while there is a place for it.

In the end, when all agents answer, every task has ended and every cancel was answered.
``CORE_EXAMPLES=1000 python -m pytest tests/core`` looks longer, each time elsewhere.
"""

from __future__ import annotations

from dialogue import cpus
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test
from machine import ENVIRONMENTS, SETTINGS, Machine

from executor.core.model import Task, TaskState
from executor.core.retries import NO_RETRIES, Retries


class Cluster(Machine):
    """Workers are some CPUs."""

    @rule(
        environments=st.lists(st.integers(0, ENVIRONMENTS - 1), min_size=1, max_size=6),
        retries=st.sampled_from([NO_RETRIES, Retries(exit=1, timeout=1, start=1)]),
        crash_limit=st.integers(0, 2),
        checked=st.booleans(),
    )
    def submit(self, environments: list[int], retries: Retries, crash_limit: int, checked: bool) -> None:
        first = len(self.tasks) + 1
        self.submit_all([Task(first + n, each, None, retries, crash_limit, checked) for n, each in
                         enumerate(environments)])  # fmt: skip

    @precondition(lambda self: len(self.agents) < 3)
    @rule(slots=st.integers(0, 3))
    def join(self, slots: int) -> None:
        self.join_with(cpus(slots))

    def bring_room_for_all(self) -> None:
        self.join_with(cpus(2))

    @invariant()
    def no_task_waits_beside_an_empty_place(self) -> None:
        """Unless that is just being given from one to another."""
        if any(task.state is TaskState.READY for task in self.tasks.values()):
            for worker, agent in self.agents.items():
                given = sum(len(lane.places) for lane in agent.lanes.values())
                assert agent.leaves or given == sum(pool.total for pool in agent.pools) // 10_000, f"worker {worker}"
                for lane in agent.lanes.values():
                    assert agent.leaves or len(lane.held) >= len(lane.places) - lane.asked, f"worker {worker} idles"


def test_whatever_happens_each_task_ends_once() -> None:
    run_state_machine_as_test(Cluster, settings=SETTINGS)
