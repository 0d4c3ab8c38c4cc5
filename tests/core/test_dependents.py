"""Tasks that wait for other tasks: when they start, and what becomes of them when the others end otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dialogue import L1, W1, Cluster, finished, opened, recalled, started_tasks

from executor.core.dependents import AFTER_ANY, AFTER_NOT_OK, AFTER_OK, CANCELLED, FAILED, OK, Condition
from executor.core.effects import Answer, RecallTask, Refused, Requeue, Resolve, Start, Unmet
from executor.core.model import TaskState
from executor.core.retries import Retries
from worker_agent.protocol import COMPLETED, ERROR, KILLED, VALUE, Finished, Unprepared

pytestmark = pytest.mark.shared

LONG = 10_000


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


# ---- who starts


def test_a_task_starts_when_its_last_dependency_has_finished(cluster: Cluster) -> None:
    first, second, last = cluster.tasks(3)
    assert cluster.join(W1, 2) == []
    assert started_tasks(cluster.submit(first, second)) == [first, second]
    assert cluster.submit_after(last, Condition(first.id), Condition(second.id)) == []
    assert last.state is TaskState.WAITING
    assert cluster.end(second) == []
    assert cluster.end(first) == [Start(W1, L1, last)]


def test_one_end_may_let_many_tasks_start(cluster: Cluster) -> None:
    (first,) = cluster.start(1, slots=1)
    others = cluster.tasks(3)
    for task in others:
        assert cluster.submit_after(task, Condition(first.id)) == []
    assert cluster.scheduler.is_awaited(first.id)
    assert started_tasks(cluster.end(first)) == others[:2]
    assert not cluster.scheduler.is_awaited(first.id)


def test_a_task_that_is_named_twice_is_waited_for_once(cluster: Cluster) -> None:
    (first,) = cluster.start(1, slots=1)
    (other,) = cluster.tasks(1)
    assert cluster.submit_after(other, Condition(first.id), Condition(first.id)) == []
    assert cluster.end(first) == [Start(W1, L1, other)]


@pytest.mark.parametrize(
    ("kind", "end", "starts"),
    [
        (AFTER_OK, VALUE, True),
        (AFTER_OK, COMPLETED, True),
        (AFTER_OK, ERROR, False),
        (AFTER_OK, KILLED, False),
        (AFTER_ANY, VALUE, True),
        (AFTER_ANY, ERROR, True),
        (AFTER_ANY, KILLED, True),
        (AFTER_NOT_OK, VALUE, False),
        (AFTER_NOT_OK, COMPLETED, False),
        (AFTER_NOT_OK, ERROR, True),
        (AFTER_NOT_OK, KILLED, True),
    ],
)
def test_how_a_task_ends_decides_who_starts(cluster: Cluster, kind: str, end: str, starts: bool) -> None:
    (first,) = cluster.start(1, slots=1)
    (other,) = cluster.tasks(1)
    assert cluster.submit_after(other, Condition(first.id, kind)) == []
    report = finished(first, end, returncode=0)
    how = OK if end in (VALUE, COMPLETED) else FAILED
    then = Start(W1, L1, other) if starts else Resolve(other, Unmet("body 1", how))
    assert cluster.report(W1, report) == [Resolve(first, report), then]


def test_a_status_other_than_zero_is_a_failure_if_it_is_checked(cluster: Cluster) -> None:
    checked, unchecked = cluster.start(2, slots=2)
    unchecked.checked = False
    after = cluster.tasks(2)
    for task, first in zip(after, (checked, unchecked), strict=True):
        assert cluster.submit_after(task, Condition(first.id)) == []
    ends = [finished(task, COMPLETED, returncode=3) for task in (checked, unchecked)]
    assert cluster.report(W1, *ends) == [
        Resolve(checked, ends[0]), Resolve(after[0], Unmet("body 1", FAILED)), Resolve(unchecked, ends[1]),
        Start(W1, L1, after[1]),
    ]  # fmt: skip


def test_a_failure_that_is_tried_again_is_no_end(cluster: Cluster) -> None:
    (first,) = cluster.start(1, slots=1, retries=Retries(exit=1))
    (other,) = cluster.tasks(1)
    assert cluster.submit_after(other, Condition(first.id)) == []
    assert cluster.report(W1, finished(first, ERROR)) == [Requeue(first), Start(W1, L1, first)]
    assert other.state is TaskState.WAITING
    assert cluster.end(first) == [Start(W1, L1, other)]


# ---- who never will


def test_the_first_failure_is_named_all_along_a_chain(cluster: Cluster) -> None:
    (first,) = cluster.start(1, slots=1)
    chain = cluster.tasks(3)
    for before, task in zip([first, *chain], chain, strict=False):
        assert cluster.submit_after(task, Condition(before.id)) == []
    end = finished(first, ERROR)
    assert cluster.report(W1, end) == [
        Resolve(first, end), *(Resolve(task, Unmet("body 1", FAILED)) for task in chain),
    ]  # fmt: skip
    assert cluster.scheduler.tasks == {}


def test_of_several_failures_the_first_one_is_named(cluster: Cluster) -> None:
    first, second = cluster.start(2, slots=2)
    (other,) = cluster.tasks(1)
    assert cluster.submit_after(other, Condition(first.id), Condition(second.id)) == []
    ends = [finished(second, ERROR), finished(first, ERROR)]
    assert cluster.report(W1, *ends) == [
        Resolve(second, ends[0]), Resolve(other, Unmet("body 2", FAILED)), Resolve(first, ends[1]),
    ]  # fmt: skip


def test_a_cancel_is_passed_on(cluster: Cluster) -> None:
    (running,) = cluster.start(1, slots=1)
    (first, second, anyway) = cluster.tasks(3)
    assert cluster.submit_after(first, Condition(running.id)) == []
    assert cluster.submit_after(second, Condition(first.id)) == []
    assert cluster.submit_after(anyway, Condition(second.id, AFTER_ANY)) == []
    assert cluster.cancel(first) == [
        Resolve(second, Unmet(first.body, CANCELLED)), Answer(first, True), Start(W1, L1, anyway),
    ]  # fmt: skip


def test_a_cancel_that_waits_for_an_agent_s_answer_is_passed_on_then(cluster: Cluster) -> None:
    (first,) = cluster.start(1, slots=1)
    (other,) = cluster.tasks(1)
    assert cluster.submit_after(other, Condition(first.id)) == []
    assert cluster.cancel(first) == [RecallTask(W1, first)]
    assert cluster.report(W1, recalled(first, True)) == [
        Answer(first, True), Resolve(other, Unmet(first.body, CANCELLED)),
    ]  # fmt: skip


def test_a_task_that_waits_can_be_killed(cluster: Cluster) -> None:
    (first,) = cluster.start(1, slots=1)
    (other,) = cluster.tasks(1)
    assert cluster.submit_after(other, Condition(first.id)) == []
    assert cluster.kill(other) == [Resolve(other, Finished(other.id, 0, KILLED))]
    assert cluster.end(first) == []


def test_who_has_ended_meanwhile_is_not_decided_about_again(cluster: Cluster) -> None:
    first, second = cluster.start(2, slots=2)
    (other,) = cluster.tasks(1)
    assert cluster.submit_after(other, Condition(first.id), Condition(second.id)) == []
    end = finished(first, ERROR)
    assert cluster.report(W1, end) == [Resolve(first, end), Resolve(other, Unmet(first.body, FAILED))]
    assert cluster.end(second) == []


def test_who_waits_for_the_failure_of_one_that_never_started_starts(cluster: Cluster) -> None:
    (first,) = cluster.start(1, slots=1)
    second, third = cluster.tasks(2)
    assert cluster.submit_after(second, Condition(first.id, AFTER_NOT_OK)) == []
    assert cluster.submit_after(third, Condition(second.id, AFTER_NOT_OK)) == []
    end = finished(first)
    assert cluster.report(W1, end) == [
        Resolve(first, end), Resolve(second, Unmet(first.body, OK)), Start(W1, L1, third),
    ]  # fmt: skip


# ---- what ends elsewhere


@pytest.mark.parametrize(("how", "starts"), [(OK, True), (FAILED, False), (CANCELLED, False)])
def test_what_is_no_task_here_decides_too(cluster: Cluster, how: str, starts: bool) -> None:
    assert cluster.join(W1, 1) == []
    (task,) = cluster.tasks(1)
    assert cluster.submit_after(task, Condition(-1)) == []
    assert cluster.scheduler.is_awaited(-1)
    wanted = [*opened(W1, L1, 0, 1), Start(W1, L1, task)] if starts else [Resolve(task, Unmet("them", how))]
    assert cluster._note(cluster.scheduler.settled(-1, how, "them", cluster.now)) == wanted
    assert cluster._note(cluster.scheduler.settled(-1, how, "them", cluster.now)) == []


# ---- long chains


@pytest.mark.parametrize("how", [OK, FAILED, CANCELLED])
def test_a_long_chain_needs_no_deep_stack(cluster: Cluster, how: str) -> None:
    """Each task needs the one before; all are decided about at once, or one after the other."""
    scheduler, chain = cluster.scheduler, cluster.tasks(LONG)
    for before, task in zip([None, *chain], chain, strict=False):
        scheduler.submit_after(task, [Condition(before.id if before else -1)], 0.0)
    if how == OK:
        scheduler.joined(W1, [], 0.0)
        assert scheduler.settled(-1, OK, None, 0.0) == []
        assert chain[0].state is TaskState.READY
        assert scheduler.kill(chain[0].id, 9, 0.0, 0.0)[0].task is chain[0]
    else:
        wanted = scheduler.settled(-1, how, "first", 0.0)
        assert wanted == [Resolve(task, Unmet("first", how)) for task in chain]
    assert scheduler.tasks == {}


def test_a_long_chain_in_a_refused_environment_needs_no_deep_stack(cluster: Cluster) -> None:
    """Each starts whatever became of the one before, and is refused at once, so that the next one starts."""
    scheduler, chain = cluster.scheduler, cluster.tasks(LONG)
    assert cluster.join(W1, 1) == []
    assert cluster.report(W1, Unprepared(0, "no python")) == []
    for before, task in zip([None, *chain], chain, strict=False):
        scheduler.submit_after(task, [Condition(before.id if before else -1, AFTER_ANY)], 0.0)
    wanted = scheduler.settled(-1, OK, None, 0.0)
    assert wanted == [Resolve(task, Refused("no python", b"")) for task in chain]
    assert scheduler.tasks == {}


# ---- environments that cannot be had


def test_who_waits_hears_that_its_environment_cannot_be_had_when_its_turn_comes(cluster: Cluster) -> None:
    (first,) = cluster.tasks(1, 1)
    assert cluster.join(W1, 1) == []
    assert started_tasks(cluster.submit(first)) == [first]
    good, bad = cluster.tasks(2, 0)
    assert cluster.submit_after(good, Condition(first.id)) == []
    assert cluster.submit_after(bad, Condition(first.id, AFTER_NOT_OK)) == []
    assert cluster.report(W1, Unprepared(0, "no python")) == []
    end = finished(first)
    assert cluster.report(W1, end) == [
        Resolve(first, end), Resolve(good, Refused("no python", b"")), Resolve(bad, Unmet(first.body, OK)),
    ]  # fmt: skip


def test_a_refusal_is_a_failure_for_those_that_wait(cluster: Cluster) -> None:
    first, second = cluster.start(2, slots=1)
    other, anyway = cluster.tasks(1) + cluster.tasks(1, 1)
    assert cluster.submit_after(other, Condition(second.id)) == []
    assert cluster.submit_after(anyway, Condition(first.id, AFTER_ANY)) == []
    wanted = cluster.report(W1, Unprepared(0, "no python"))
    refused = Refused("no python", b"")
    assert [effect for effect in wanted if isinstance(effect, Resolve)] == [
        Resolve(first, refused), Resolve(second, refused), Resolve(other, Unmet(second.body, FAILED)),
    ]  # fmt: skip
    assert started_tasks(wanted) == [anyway]


def test_a_task_that_goes_back_to_its_queue_is_still_awaited(cluster: Cluster) -> None:
    (first,) = cluster.start(1, slots=1)
    (other,) = cluster.tasks(1)
    assert cluster.submit_after(other, Condition(first.id)) == []
    assert cluster.lose(W1) == [Requeue(first)]
    assert other.state is TaskState.WAITING
    assert started_tasks(cluster.join(W1, 1)) == [first]
    assert cluster.end(first) != []
    assert other.state is TaskState.SENT
