"""How many allocations are asked for, when they are given back, and when a cluster is given up."""

from __future__ import annotations

import pytest

from executor.core.allocations import (
    FAILURES,
    JOIN_PATIENCE,
    PAUSE,
    AllocationId,
    Allocations,
    Ask,
    GiveBack,
    GiveUp,
    Phase,
    Policy,
)
from executor.core.model import WorkerId

A1, A2, A3, A4 = map(AllocationId, range(1, 5))
W1, W2 = map(WorkerId, (1, 2))
IDLE = 10.0


def make(least: int = 0, most: int = 3, each: int = 1) -> Allocations:
    return Allocations([Policy(least, most, each, IDLE)])


def join(allocations: Allocations, allocation: AllocationId, worker: WorkerId, now: float = 0.0) -> None:
    """An allocation comes, and its agent."""
    allocations.submitted(allocation, now)
    allocations.runs(allocation, now)
    allocations.joined(allocation, worker, now)


def phase(allocations: Allocations, allocation: AllocationId) -> Phase:
    found = allocations.find(allocation)
    assert found is not None
    return found.phase


# ---- asking


def test_nothing_is_asked_for_while_nothing_waits() -> None:
    assert make().plan(0.0, [0], set()) == []


def test_as_much_is_asked_for_as_is_wanted_and_no_more_than_most() -> None:
    assert make().plan(0.0, [2], set()) == [Ask(A1, 0, 1), Ask(A2, 0, 1)]
    assert make().plan(0.0, [9], set()) == [Ask(A1, 0, 1), Ask(A2, 0, 1), Ask(A3, 0, 1)]


def test_what_was_asked_for_is_not_asked_for_again() -> None:
    allocations = make()
    allocations.plan(0.0, [2], set())
    assert allocations.plan(1.0, [2], set()) == []
    allocations.submitted(A1, 1.0)
    assert allocations.plan(2.0, [3], set()) == [Ask(A3, 0, 1)]


def test_who_has_joined_has_its_tasks_and_what_waits_is_for_others() -> None:
    allocations = make()
    allocations.plan(0.0, [1], set())
    join(allocations, A1, W1)
    assert allocations.plan(1.0, [1], set()) == [Ask(A2, 0, 1)]


def test_an_allocation_has_several_nodes_but_all_together_no_more_than_most() -> None:
    assert make(most=5, each=2).plan(0.0, [9], set()) == [Ask(A1, 0, 2), Ask(A2, 0, 2), Ask(A3, 0, 1)]


def test_the_least_is_asked_for_though_nothing_waits() -> None:
    assert make(least=2).plan(0.0, [0], set()) == [Ask(A1, 0, 1), Ask(A2, 0, 1)]


def test_what_ends_is_replaced() -> None:
    allocations = make()
    allocations.plan(0.0, [1], set())
    join(allocations, A1, W1)
    assert allocations.ended(A1, "its time was over", 5.0) == []
    assert allocations.plan(5.0, [1], set()) == [Ask(A2, 0, 1)]


def test_each_cluster_is_asked_for_its_own() -> None:
    allocations = Allocations([Policy(most=1), Policy(most=5)])
    assert allocations.plan(0.0, [1, 2], set()) == [Ask(A1, 0, 1), Ask(A2, 1, 1), Ask(A3, 1, 1)]


# ---- phases


def test_what_the_batch_system_says_moves_an_allocation_and_may_take_it_back() -> None:
    allocations = make()
    allocations.plan(0.0, [1], set())
    assert phase(allocations, A1) is Phase.ASKED
    allocations.submitted(A1, 1.0)
    assert phase(allocations, A1) is Phase.QUEUED
    allocations.runs(A1, 2.0)
    assert phase(allocations, A1) is Phase.RUNNING
    allocations.waits(A1, 3.0)
    assert phase(allocations, A1) is Phase.QUEUED


def test_an_agent_that_joins_is_more_than_the_batch_system_knows() -> None:
    allocations = make()
    allocations.plan(0.0, [1], set())
    allocations.submitted(A1, 0.0)
    allocations.joined(A1, W1, 1.0)
    assert phase(allocations, A1) is Phase.RUNNING
    allocations.check_invariants()


def test_a_late_word_of_waiting_does_not_take_an_agent_away() -> None:
    """The answer to a question from before the agent joined: the allocation stood in the queue then."""
    allocations = make()
    allocations.plan(0.0, [1], set())
    join(allocations, A1, W1)
    allocations.waits(A1, 1.0)
    assert phase(allocations, A1) is Phase.RUNNING
    allocations.check_invariants()


def test_news_of_allocations_that_are_over_change_nothing() -> None:
    allocations = make()
    allocations.plan(0.0, [1], set())
    join(allocations, A1, W1)
    allocations.ended(A1, "", 1.0)
    allocations.runs(A1, 2.0)
    allocations.joined(A1, W2, 2.0)
    assert allocations.ended(A1, "again", 2.0) == []
    assert list(allocations) == []


# ---- giving back


def test_an_allocation_without_tasks_is_given_back_after_a_while_and_once() -> None:
    allocations = make()
    allocations.plan(0.0, [1], set())
    join(allocations, A1, W1)
    assert allocations.plan(1.0, [0], {W1}) == []
    assert allocations.plan(1.0 + IDLE, [0], {W1}) == [GiveBack(A1, 0)]
    assert allocations.plan(2.0 + IDLE, [0], {W1}) == []
    assert allocations.ended(A1, "", 3.0 + IDLE) == []


def test_what_is_being_given_back_is_not_given_back_again_beside_one_that_stays() -> None:
    allocations = make()
    allocations.plan(0.0, [2], set())
    join(allocations, A1, W1)
    join(allocations, A2, W2)
    allocations.plan(1.0, [0], {W1})
    assert allocations.plan(1.0 + IDLE, [0], {W1}) == [GiveBack(A1, 0)]
    assert allocations.plan(2.0 + 2 * IDLE, [0], {W1}) == []


def test_a_task_begins_the_while_anew() -> None:
    allocations = make()
    allocations.plan(0.0, [1], set())
    join(allocations, A1, W1)
    allocations.plan(1.0, [0], {W1})
    allocations.plan(IDLE, [0], set())
    assert allocations.plan(1.0 + IDLE, [0], {W1}) == []


def test_an_allocation_is_used_while_one_of_its_agents_is() -> None:
    allocations = make(each=2)
    allocations.plan(0.0, [2], set())
    join(allocations, A1, W1)
    allocations.joined(A1, W2, 0.0)
    allocations.plan(1.0, [0], {W1})
    assert allocations.plan(2.0 + IDLE, [0], {W1}) == []
    allocations.left(W2)
    allocations.plan(3.0 + IDLE, [0], {W1})
    assert allocations.plan(3.0 + 2 * IDLE, [0], {W1}) == [GiveBack(A1, 0)]


def test_what_waits_in_a_queue_and_is_not_wanted_is_given_back() -> None:
    allocations = make()
    allocations.plan(0.0, [1], set())
    allocations.submitted(A1, 0.0)
    assert allocations.plan(1.0, [0], set()) == []
    assert allocations.plan(1.0 + IDLE, [0], set()) == [GiveBack(A1, 0)]


def test_the_least_is_not_given_back() -> None:
    allocations = make(least=1)
    allocations.plan(0.0, [2], set())
    join(allocations, A1, W1)
    join(allocations, A2, W2)
    allocations.plan(1.0, [0], {W1, W2})
    assert allocations.plan(1.0 + IDLE, [0], {W1, W2}) == [GiveBack(A1, 0)]
    allocations.ended(A1, "", 2.0 + IDLE)
    assert allocations.plan(99.0, [0], {W2}) == []


def test_those_that_become_unwanted_together_are_not_all_given_back_below_the_least() -> None:
    """Each was looked at as if the one before it, which had just been given back, were still to stay."""
    allocations = make(least=1, most=2)
    allocations.plan(0.0, [2], set())
    join(allocations, A1, W1)
    join(allocations, A2, W2)
    allocations.plan(1.0, [0], {W1, W2})
    effects = [*allocations.plan(1.0 + IDLE, [0], {W1, W2}), *allocations.plan(2.0 + IDLE, [0], {W1, W2})]
    assert effects == [GiveBack(A1, 0)]


# ---- failures


def test_an_allocation_that_runs_and_whose_agents_never_join_is_given_back_with_a_reason() -> None:
    allocations = make()
    allocations.plan(0.0, [1], set())
    allocations.submitted(A1, 0.0)
    allocations.runs(A1, 1.0)
    assert allocations.plan(1.0 + JOIN_PATIENCE, [1], set()) == []
    [effect] = allocations.plan(1.1 + JOIN_PATIENCE, [1], set())
    assert isinstance(effect, GiveBack)
    assert "no agent of it has joined" in effect.why


def test_after_a_failure_there_is_a_pause_and_then_one_is_asked_for_to_try() -> None:
    allocations = make()
    allocations.plan(0.0, [1], set())
    assert allocations.ended(A1, "refused", 1.0) == []
    assert allocations.plan(0.9 + PAUSE, [3], set()) == []
    assert allocations.plan(1.0 + PAUSE, [3], set()) == [Ask(A2, 0, 1)]


def test_after_some_failures_in_a_row_a_cluster_is_given_up() -> None:
    allocations, now = make(most=1), 0.0
    for number in range(1, FAILURES + 1):
        now += 1000.0
        assert allocations.plan(now, [1], set()) == [Ask(AllocationId(number), 0, 1)]
        assert allocations.hopeless == [""]
        given_up = allocations.ended(AllocationId(number), f"failure {number}", now)
        assert given_up == ([GiveUp(0, f"failure {number}")] if number == FAILURES else [])
    assert allocations.hopeless == [f"failure {FAILURES}"]
    assert allocations.plan(now + 1000.0, [1], set()) == []


def test_an_agent_that_joins_ends_a_row_of_failures() -> None:
    allocations = make(most=1)
    for number in range(1, 2 * FAILURES, 2):
        allocations.plan(1000.0 * number, [1], set())
        assert allocations.ended(AllocationId(number), "failure", 1000.0 * number) == []
        allocations.plan(1000.0 * number + 999.0, [1], set())
        join(allocations, AllocationId(number + 1), W1)
        assert allocations.ended(AllocationId(number + 1), "its time was over", 1000.0 * number + 999.0) == []
    assert allocations.hopeless == [""]


def test_an_agent_that_was_asked_for_before_the_cluster_was_given_up_gives_hope_again() -> None:
    allocations = make(most=FAILURES + 1)
    allocations.plan(0.0, [FAILURES + 1], set())
    for number in range(1, FAILURES + 1):
        allocations.ended(AllocationId(number), "failure", 0.0)
    last = AllocationId(FAILURES + 1)
    assert allocations.plan(99.0, [FAILURES + 2], set()) == []
    join(allocations, last, W1)
    assert allocations.plan(99.0, [1], set()) == [Ask(AllocationId(FAILURES + 2), 0, 1)]


def test_what_keeps_us_from_asking_is_told() -> None:
    allocations = make(most=1)
    assert allocations.describe_pauses(0.0) == [""]
    for number in range(1, FAILURES + 1):
        now = 1000.0 * number
        allocations.plan(now, [1], set())
        allocations.ended(AllocationId(number), f"failure {number}", now)
        if number == 2:
            text = "2 in a row failed, the next is asked for in 3 s: failure 2"
            assert allocations.describe_pauses(now + 2 * PAUSE - 3.0) == [text]
            assert allocations.describe_pauses(now + 2 * PAUSE) == [""]
    assert allocations.describe_pauses(1e9) == [f"nothing more is asked for: failure {FAILURES}"]


def test_what_we_give_back_ourselves_is_no_failure() -> None:
    allocations = make(most=1)
    for number in range(1, 2 * FAILURES):
        now = 1000.0 * number
        assert allocations.plan(now, [1], set()) == [Ask(AllocationId(number), 0, 1)]
        allocations.submitted(AllocationId(number), now)
        allocations.plan(now + 1.0, [0], set())
        assert allocations.plan(now + 1.0 + IDLE, [0], set()) == [GiveBack(AllocationId(number), 0)]
        assert allocations.ended(AllocationId(number), "", now + 2.0 + IDLE) == []


@pytest.mark.parametrize("other", [1, 0])
def test_there_is_hope_in_each_cluster_while_an_allocation_is_left(other: int) -> None:
    allocations = Allocations([Policy(most=FAILURES + 1), *[Policy()] * other])
    allocations.plan(0.0, [FAILURES + 1, *[0] * other], set())
    for number in range(1, FAILURES + 1):
        allocations.ended(AllocationId(number), "failure", 0.0)
    assert allocations.hopeless == ["", *[""] * other]
    allocations.ended(AllocationId(FAILURES + 1), "failure", 0.0)
    assert allocations.hopeless == ["failure", *[""] * other]
