"""The scheduler, as a dialogue: what it is told, and what it then wants done."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from dialogue import (
    L1,
    L2,
    L3,
    W1,
    W2,
    W3,
    Cluster,
    Given,
    cpus,
    finished,
    freed,
    opened,
    recalled,
    requeued,
    started,
    started_tasks,
)
from invariants import check

from executor.core.effects import (
    Answer,
    CloseLane,
    Discard,
    Effect,
    KillTask,
    Lost,
    RecallTask,
    Refused,
    Requeue,
    Resolve,
    Start,
    TakePlaces,
    Tell,
)
from executor.core.free import Free
from executor.core.model import (
    BRIDGE,
    DEEPEST,
    LONG,
    ONE_CPU_EACH,
    IllegalMove,
    Lane,
    LaneId,
    Task,
    TaskClass,
    TaskState,
    WorkerId,
    prefetch,
)
from executor.core.moments import LOOK_AGAIN
from executor.core.retries import Retries
from executor.core.scheduler import Scheduler
from worker_agent.protocol import (
    COMPLETED,
    ERROR,
    EXITED,
    KILLED,
    LOST,
    NOT_STARTED,
    RETURNED,
    TIMED_OUT,
    VALUE,
    Bye,
    Finished,
    Hello,
    Leaving,
    Output,
    Recalled,
    Started,
    Unprepared,
)

pytestmark = pytest.mark.shared


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


# ---- the order of tasks


def test_a_task_waits_for_a_worker_and_starts_when_one_joins(cluster: Cluster) -> None:
    (task,) = cluster.tasks(1)
    assert cluster.submit(task) == []
    assert cluster.join(W1, 1) == [*opened(W1, L1, 0, 1), Start(W1, L1, task)]
    assert (task.state, task.attempt) == (TaskState.SENT, 1)


def test_a_task_starts_at_once_where_there_is_room(cluster: Cluster) -> None:
    (task,) = cluster.tasks(1)
    assert cluster.join(W1, 1) == []
    assert cluster.submit(task) == [*opened(W1, L1, 0, 1), Start(W1, L1, task)]


def test_tasks_start_in_the_order_in_which_they_were_submitted(cluster: Cluster) -> None:
    tasks = cluster.start(8, slots=1)
    for current, following in zip(tasks, tasks[2:], strict=False):
        end = finished(current)
        assert cluster.report(W1, end) == [Resolve(current, end), Start(W1, L1, following)]
    assert [task.id for task in cluster.scheduler.tasks.values()] == [7, 8]


def test_a_lane_holds_one_task_in_advance_for_each_place(cluster: Cluster) -> None:
    tasks = cluster.start(7, slots=3)
    assert [task.state for task in tasks] == [TaskState.SENT] * 6 + [TaskState.READY]


def test_a_task_that_has_ended_is_resolved_and_forgotten(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    cluster.begin(W1, task)
    assert task.state is TaskState.RUNNING
    end = finished(task, body=b"outcome")
    assert cluster.report(W1, end) == [Resolve(task, end)]
    assert task.state is TaskState.DONE
    assert cluster.scheduler.tasks == {}


def test_a_task_may_end_without_having_said_that_it_started(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    end = finished(task)
    assert cluster.report(W1, end) == [Resolve(task, end)]


def test_reports_of_one_frame_take_effect_in_their_order(cluster: Cluster) -> None:
    first, second, third = cluster.start(3, slots=1)
    reports = [started(first), finished(first), started(second)]
    assert cluster.report(W1, *reports) == [
        Tell(first, reports[0]), Resolve(first, reports[1]), Tell(second, reports[2]), Start(W1, L1, third),
    ]  # fmt: skip


def test_output_is_told_to_the_future_whether_or_not_the_start_was(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    early, late = Output(task.id, 1, 1, b"early"), Output(task.id, 1, 2, b"late")
    assert cluster.report(W1, early) == [Tell(task, early)]
    cluster.begin(W1, task)
    assert cluster.report(W1, late) == [Tell(task, late)]


# ---- how many tasks an agent holds in advance


@pytest.mark.parametrize(
    ("duration", "width", "depth"),
    [
        (None, 3, 3),
        (0.0, 3, 3 * DEEPEST),
        (BRIDGE, 1, 1),
        (LONG / 2, 4, 4),
        (LONG, 4, 0),
        (3600.0, 4, 0),
        (BRIDGE / 2, 1, 2),
        (BRIDGE / 20, 1, 20),
        (BRIDGE / 20, 3, 60),
        (1e-7, 1, DEEPEST),
        (1e-7, 2, 2 * DEEPEST),
    ],
)
def test_the_depth_of_the_prefetch_follows_the_duration(duration: float | None, width: int, depth: int) -> None:
    assert prefetch(duration, width) == depth


@pytest.mark.parametrize(
    ("began", "ended"),
    [
        (math.nan, 1.0),
        (math.inf, math.inf),
        (math.inf, 1.0),
        (1.7e9, 0.0),
        (1.0, 1.0 - 1e-6),
        (1.0, math.inf),
        (1.0, 1.0),
    ],
)
def test_no_time_that_a_report_names_stops_the_prefetch(cluster: Cluster, began: float, ended: float) -> None:
    """A clock may be set back while a task runs, and a process that runs the user's code may say anything."""
    tasks = cluster.start(4, slots=1)
    for task, following in ((tasks[0], tasks[2]), (tasks[1], tasks[3])):
        end = Finished(task.id, 1, VALUE, started=began, ended=ended)
        assert [effect.task for effect in cluster.report(W1, end) if isinstance(effect, Resolve)] == [task]
        assert following.state is TaskState.SENT


def test_what_may_be_long_is_not_held_in_advance(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for a task that may be long, though soon there may be room elsewhere, or something more urgent."""
    monkeypatch.undo()  # what the other tests assume
    tasks = cluster.tasks(7)
    assert cluster.submit(*tasks) == []
    assert started_tasks(cluster.join(W1, 2)) == tasks[:2]
    assert started_tasks(cluster.report(W1, finished(tasks[0], seconds=BRIDGE))) == tasks[2:5]


def test_a_mean_of_very_many_tasks_that_took_no_time_can_be_used() -> None:
    """It becomes the smallest number there is, and a division by that is infinite."""
    of = TaskClass(0, ONE_CPU_EACH)
    of.measured(0.001)
    for _ in range(8000):
        of.measured(0.0)
    assert prefetch(of.duration, 2) >= 2


def test_short_tasks_are_sent_many_at_a_time(cluster: Cluster) -> None:
    tasks = cluster.start(30, slots=1)
    end = finished(tasks[0], seconds=2**-10)
    assert cluster.report(W1, end) == [
        Resolve(tasks[0], end), *(Start(W1, L1, task) for task in tasks[2:22]),
    ]  # fmt: skip


def test_the_duration_is_a_mean_that_forgets_slowly(cluster: Cluster) -> None:
    tasks = cluster.start(4, slots=2)
    ends = [finished(tasks[0], seconds=1.0), finished(tasks[1], seconds=2.0)]
    assert cluster.report(W1, *ends) == [Resolve(tasks[0], ends[0]), Resolve(tasks[1], ends[1])]
    assert cluster.classes[0].duration == pytest.approx(1.1)


def test_an_attempt_that_never_started_says_nothing_about_the_duration(cluster: Cluster) -> None:
    first, second = cluster.start(2, slots=1)
    end = finished(first, seconds=0.5)
    unstarted = Finished(second.id, 1, KILLED, ended=1.7e9)
    assert cluster.report(W1, end, unstarted) == [Resolve(first, end), Resolve(second, unstarted)]
    assert cluster.classes[0].duration == pytest.approx(0.5)


# ---- lanes


def test_a_lane_grows_with_its_tasks(cluster: Cluster) -> None:
    first, second = cluster.tasks(2)
    assert cluster.join(W1, 2) == []
    assert cluster.submit(first) == [*opened(W1, L1, 0, 1), Start(W1, L1, first)]
    assert cluster.submit(second) == [Given(W1, L1, 1), Start(W1, L1, second)]


def test_an_empty_place_is_used_again_without_a_word_about_the_lane(cluster: Cluster) -> None:
    (first,) = cluster.start(1, slots=1)
    end = finished(first)
    assert cluster.report(W1, end) == [Resolve(first, end)]
    (second,) = cluster.tasks(1)
    assert cluster.submit(second) == [Start(W1, L1, second)]


def test_each_environment_has_a_lane_of_its_own(cluster: Cluster) -> None:
    (blue,), (red,) = cluster.tasks(1, 0), cluster.tasks(1, 1)
    assert cluster.join(W1, 3) == []
    assert cluster.submit(blue, red) == [
        *opened(W1, L1, 0, 1), Start(W1, L1, blue), *opened(W1, L2, 1, 1), Start(W1, L2, red),
    ]  # fmt: skip


def test_a_place_that_one_environment_does_not_use_is_given_to_another(cluster: Cluster) -> None:
    first, second = cluster.start(2, slots=2)
    end = finished(first)
    assert cluster.report(W1, end) == [Resolve(first, end)]
    (other,) = cluster.tasks(1, 1)
    assert cluster.submit(other) == [TakePlaces(W1, L1, 1)]
    assert cluster.report(W1, freed(L1, 0)) == [*opened(W1, L2, 1, 1), Start(W1, L2, other)]
    assert second.lane is not None
    assert second.lane.id == L1


def test_a_lane_that_loses_its_last_place_is_closed_and_its_class_forgotten(cluster: Cluster) -> None:
    (first,) = cluster.start(1, slots=1)
    end = finished(first)
    assert cluster.report(W1, end) == [Resolve(first, end)]
    (other,) = cluster.tasks(1, 1)
    assert cluster.submit(other) == [CloseLane(W1, L1), *opened(W1, L2, 1, 1), Start(W1, L2, other)]
    assert [each.environment for each in cluster.classes] == [1]


def test_a_place_that_is_in_use_is_not_taken_away(cluster: Cluster) -> None:
    first, second = cluster.start(2, slots=2)
    (other,) = cluster.tasks(1, 1)
    assert cluster.submit(other) == [], "one that has not started yet would only come back, and be first again"
    cluster.begin(W1, first, second)
    assert cluster.tick(0.1) == [TakePlaces(W1, L1, 1)]
    end = finished(second)
    assert cluster.report(W1, end) == [Resolve(second, end)]
    assert cluster.report(W1, freed(L1, 1)) == [*opened(W1, L2, 1, 1), Start(W1, L2, other)]
    assert first.state is TaskState.RUNNING


def test_an_empty_place_of_its_own_is_used_before_one_is_taken_from_another(cluster: Cluster) -> None:
    (red,), (blue,) = cluster.tasks(1, 1), cluster.tasks(1, 0)
    assert cluster.join(W1, 2) == []
    assert started_tasks(cluster.submit(red, blue)) == [red, blue]
    ends = [finished(red), finished(blue)]
    assert cluster.report(W1, *ends) == [Resolve(red, ends[0]), Resolve(blue, ends[1])]
    (second,) = cluster.tasks(1, 0)
    assert cluster.submit(second) == [Start(W1, L2, second)]


def test_a_lane_takes_more_than_one_place_from_others(cluster: Cluster) -> None:
    tasks = cluster.start(3, slots=3)
    ends = [finished(task) for task in tasks]
    assert cluster.report(W1, *ends) == [Resolve(task, end) for task, end in zip(tasks, ends, strict=True)]
    others = cluster.tasks(2, 1)
    assert cluster.submit(*others) == [
        CloseLane(W1, L1), *opened(W1, L2, 1, 2), *(Start(W1, L2, other) for other in others),
    ]  # fmt: skip


def test_the_environment_that_waits_longest_is_served_before_younger_tasks_of_others(cluster: Cluster) -> None:
    """A flood of tasks of one environment does not starve another: its place is asked for when younger ones wait."""
    blue = cluster.tasks(3, 0)
    (red,) = cluster.tasks(1, 1)
    late = cluster.tasks(2, 0)
    assert cluster.submit(*blue, red, *late) == []
    assert cluster.join(W1, 1) == [*opened(W1, L1, 0, 1), Start(W1, L1, blue[0]), Start(W1, L1, blue[1])]
    assert cluster.end(blue[0]) == [Start(W1, L1, blue[2])]
    assert cluster.tick(0.1) == [], "all that its agent has is older"
    assert cluster.end(blue[1]) == [Start(W1, L1, late[0])]
    assert cluster.tick(0.2) == [], "what it runs next is older, and has not started"
    cluster.begin(W1, blue[2])
    assert cluster.tick(0.4) == [TakePlaces(W1, L1, 1), RecallTask(W1, late[0])]
    assert cluster.report(W1, recalled(late[0], True)) == [Requeue(late[0])]
    assert cluster.end(blue[2]) == []
    assert cluster.report(W1, freed(L1, 0)) == [CloseLane(W1, L1), *opened(W1, L2, 1, 1), Start(W1, L2, red)]
    cluster.begin(W1, red)
    assert cluster.tick(0.6) == [TakePlaces(W1, L2, 1)], "and so it is asked for by the others"
    assert cluster.end(red) == []
    assert cluster.report(W1, freed(L2, 0)) == [
        CloseLane(W1, L2), *opened(W1, L3, 0, 1), *(Start(W1, L3, task) for task in late),
    ]  # fmt: skip


def test_environments_take_turns_in_the_order_of_their_oldest_tasks(cluster: Cluster) -> None:
    tasks = [cluster.tasks(1, environment)[0] for environment in (3, 1, 2, 3, 1, 2)]
    assert cluster.submit(*tasks) == []
    began = started_tasks(cluster.join(W1, 1))
    for _ in tasks:
        task = next(task for task in began if task.state is not TaskState.DONE)
        began += started_tasks(cluster.report(W1, finished(task)))
    # the lane of environment 3 holds its second task in advance; it is not called back for the others
    assert [task.environment for task in began] == [3, 3, 1, 1, 2, 2]
    assert all(task.state is TaskState.DONE for task in tasks)


def test_as_many_environments_run_as_there_are_slots(cluster: Cluster) -> None:
    tasks = [cluster.tasks(1, environment)[0] for environment in range(5)]
    assert cluster.join(W1, 3) == []
    assert started_tasks(cluster.submit(*tasks)) == tasks[:3]


# ---- several workers


def test_workers_are_filled_in_turn(cluster: Cluster) -> None:
    tasks = cluster.tasks(4)
    assert cluster.join(W1, 1) == []
    assert cluster.join(W2, 3) == []
    assert cluster.submit(*tasks) == [
        *opened(W1, L1, 0, 1), Start(W1, L1, tasks[0]),
        *opened(W2, L2, 0, 3), *(Start(W2, L2, task) for task in tasks[1:]),
    ]  # fmt: skip


def test_all_places_are_filled_before_anything_is_sent_in_advance(cluster: Cluster) -> None:
    first, second, third = cluster.tasks(3)
    assert cluster.join(W1, 1) == []
    assert cluster.join(W2, 1) == []
    assert cluster.submit(first, second, third) == [
        *opened(W1, L1, 0, 1), Start(W1, L1, first), *opened(W2, L2, 0, 1), Start(W2, L2, second),
        Start(W1, L1, third),
    ]  # fmt: skip


def test_a_worker_that_joins_later_gets_what_waits(cluster: Cluster) -> None:
    tasks = cluster.start(5, slots=1)
    assert cluster.join(W2, 2) == [
        *opened(W2, L2, 0, 2), Start(W2, L2, tasks[2]), Start(W2, L2, tasks[3]), Start(W2, L2, tasks[4]),
    ]  # fmt: skip


def test_a_worker_without_slots_gets_nothing(cluster: Cluster) -> None:
    (task,) = cluster.tasks(1)
    assert cluster.join(W1, 0) == []
    assert cluster.submit(task) == []


def test_a_place_is_taken_from_another_environment_on_any_worker(cluster: Cluster) -> None:
    first, second = cluster.tasks(2)
    assert cluster.submit(first, second) == []
    assert cluster.join(W1, 1) == [*opened(W1, L1, 0, 1), Start(W1, L1, first), Start(W1, L1, second)]
    (third,), (other,) = cluster.tasks(1, 0), cluster.tasks(1, 1)
    assert cluster.join(W2, 1) == [*opened(W2, L2, 0, 1), RecallTask(W1, second)]
    assert cluster.submit(third) == [Start(W2, L2, third)]
    assert cluster.report(W1, recalled(second, False)) == []
    assert cluster.submit(other) == []
    assert cluster.end(third) == [CloseLane(W2, L2), *opened(W2, L3, 1, 1), Start(W2, L3, other)]


# ---- rule 4: what is held in advance does not wait while there is room


def test_what_one_worker_holds_in_advance_moves_to_another_that_is_idle(cluster: Cluster) -> None:
    tasks = cluster.start(4, slots=2)
    assert cluster.join(W2, 1) == [*opened(W2, L2, 0, 1), RecallTask(W1, tasks[3])]
    assert cluster.report(W1, Recalled(tasks[3].id, 1, given_back=True)) == [
        Requeue(tasks[3]), Start(W2, L2, tasks[3]),
    ]  # fmt: skip
    assert tasks[3].attempt == 2  # a number is never given twice, begun or not


def test_a_task_that_has_started_meanwhile_stays(cluster: Cluster) -> None:
    tasks = cluster.start(2, slots=1)
    assert cluster.join(W2, 1) == [*opened(W2, L2, 0, 1), RecallTask(W1, tasks[1])]
    assert cluster.report(W1, Recalled(tasks[1].id, 1, given_back=False)) == []
    end = finished(tasks[1])
    assert cluster.report(W1, end) == [Resolve(tasks[1], end)]


def test_a_task_that_moves_can_be_cancelled(cluster: Cluster) -> None:
    tasks = cluster.start(2, slots=1)
    assert cluster.join(W2, 1) == [*opened(W2, L2, 0, 1), RecallTask(W1, tasks[1])]
    assert cluster.cancel(tasks[1]) == [RecallTask(W1, tasks[1])]
    back = Recalled(tasks[1].id, 1, given_back=True)
    assert cluster.report(W1, back, back) == [Answer(tasks[1], True)]


def test_short_tasks_are_not_worth_moving(cluster: Cluster) -> None:
    tasks = cluster.start(3, slots=1)
    end = finished(tasks[0], seconds=0.001)
    assert cluster.report(W1, end) == [Resolve(tasks[0], end), Start(W1, L1, tasks[2])]
    assert cluster.join(W2, 1) == []


def test_short_tasks_are_moved_if_one_before_them_takes_longer_than_its_like(cluster: Cluster) -> None:
    tasks = cluster.start(4, slots=1)
    cluster.end(tasks[0])
    end = finished(tasks[1], seconds=1e-5)
    for _ in range(60):
        cluster.classes[0].measured(1e-5)
    assert cluster.report(W1, end) == [Resolve(tasks[1], end), Start(W1, L1, tasks[3])]
    cluster.begin(W1, tasks[2])
    assert cluster.join(W2, 1) == []
    assert cluster.tick(LOOK_AGAIN) == []  # who knows how long it has been running
    assert cluster.tick(LOOK_AGAIN * 2) == [*opened(W2, L2, 0, 1), RecallTask(W1, tasks[3])]
    assert cluster.report(W1, recalled(tasks[3], given_back=True)) == [Requeue(tasks[3]), Start(W2, L2, tasks[3])]


# ---- rule 2: a report counts only for the current attempt, from the worker that has the task


def test_a_doubled_report_is_ignored(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    end = finished(task)
    assert cluster.report(W1, end, end) == [Resolve(task, end)]
    assert cluster.report(W1, end) == []


def test_a_doubled_start_is_told_and_changes_nothing(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    cluster.begin(W1, task)
    cluster.begin(W1, task)
    assert task.state is TaskState.RUNNING


@pytest.mark.parametrize("attempt", [0, 2, -1])
def test_a_report_of_another_attempt_is_ignored(cluster: Cluster, attempt: int) -> None:
    (task,) = cluster.start(1, slots=1)
    reports = [
        started(task, attempt), Output(task.id, attempt, 1, b"x"), finished(task, attempt=attempt),
        Recalled(task.id, attempt, True),
    ]  # fmt: skip
    assert cluster.report(W1, *reports) == []
    assert task.state is TaskState.SENT


def test_a_late_report_of_an_earlier_attempt_is_ignored(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1, retries=Retries(exit=1, timeout=1, oom=1, start=1))
    assert cluster.report(W1, finished(task, ERROR)) == [Requeue(task), Start(W1, L1, task)]
    assert task.attempt == 2
    assert cluster.report(W1, started(task, 1), finished(task, attempt=1)) == []
    assert task.state is TaskState.SENT


def test_a_report_of_a_worker_that_does_not_have_the_task_is_ignored(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    assert cluster.join(W2, 1) == []
    assert cluster.report(W2, started(task), finished(task), recalled(task, True)) == []


def test_a_report_of_a_worker_that_had_the_task_before_is_ignored(cluster: Cluster) -> None:
    """Even if it names the right attempt, which it cannot know."""
    (task,) = cluster.start(1, slots=1)
    assert cluster.join(W2, 1) == []
    assert cluster.lose(W1) == [Requeue(task), *opened(W2, L2, 0, 1), Start(W2, L2, task)]
    assert cluster.join(W1, 1) == []
    assert cluster.report(W1, finished(task)) == []


def test_reports_of_workers_and_tasks_that_nobody_knows_are_ignored(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    assert cluster.report(W3, finished(task)) == []
    assert cluster.report(W1, Finished(99, 1, VALUE), Started(99, 1, 1, 0.0), Recalled(99, 1, True)) == []


def test_a_report_about_a_task_that_waits_is_ignored(cluster: Cluster) -> None:
    tasks = cluster.start(3, slots=1)
    assert cluster.report(W1, finished(tasks[2]), recalled(tasks[2], True), started(tasks[2])) == []
    assert tasks[2].state is TaskState.READY


def test_reports_about_the_agent_itself_are_not_the_scheduler_s_affair(cluster: Cluster) -> None:
    assert cluster.join(W1, 1) == []
    hello = Hello(launch="l", process="p", name="n", host="h", pid=1, python="3.11.0", pools=[])
    assert cluster.report(W1, hello, Bye("done")) == []


# ---- what reports bring that do not count


def test_what_a_late_end_brings_is_discarded(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1, retries=Retries(exit=1, timeout=1, oom=1, start=1))
    assert cluster.report(W1, finished(task, ERROR)) == [Requeue(task), Start(W1, L1, task)]
    late = finished(task, attempt=1, body=b"late")
    assert cluster.report(W1, late) == [Discard(late)]
    assert (task.state, task.attempt) == (TaskState.SENT, 2)


def test_what_a_doubled_end_brings_is_discarded(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    end, other = finished(task, body=b"first"), finished(task, body=b"second")
    assert cluster.report(W1, end, other) == [Resolve(task, end), Discard(other)]


def test_what_an_end_brings_of_a_task_that_nobody_knows_is_discarded(cluster: Cluster) -> None:
    assert cluster.join(W1, 1) == []
    end = Finished(99, 1, VALUE, b"whose?")
    assert cluster.report(W1, end) == [Discard(end)]


def test_what_an_end_brings_from_a_worker_that_does_not_have_the_task_is_discarded(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    assert cluster.join(W2, 1) == []
    end = finished(task, body=b"not mine")
    assert cluster.report(W2, end) == [Discard(end)]
    assert task.state is TaskState.SENT
    assert cluster.report(W1, end) == [Resolve(task, end)]


def test_what_an_end_brings_of_a_task_that_waits_is_discarded(cluster: Cluster) -> None:
    tasks = cluster.start(3, slots=1)
    end = finished(tasks[2], body=b"too early")
    assert cluster.report(W1, end) == [Discard(end)]
    assert tasks[2].state is TaskState.READY


def test_what_an_end_brings_of_a_refused_task_is_discarded(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    end = finished(task, body=b"a value all the same")
    assert cluster.report(W1, Unprepared(0, "no"), end) == [*refused("no", task), Discard(end)]


@pytest.mark.parametrize("end", [ERROR, EXITED, TIMED_OUT, NOT_STARTED])
def test_what_a_failure_brings_that_is_tried_again_is_discarded(cluster: Cluster, end: str) -> None:
    (task,) = cluster.start(1, slots=1, retries=Retries(exit=1, timeout=1, oom=1, start=1))
    failure = finished(task, end, body=b"boom")
    assert cluster.report(W1, failure) == [Discard(failure), Requeue(task), Start(W1, L1, task)]
    last = finished(task, end, body=b"boom again")
    assert cluster.report(W1, last) == [Resolve(task, last)]


def test_a_value_is_not_discarded(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1, retries=Retries(exit=1, timeout=1, oom=1, start=1))
    end = finished(task, body=b"value")
    assert cluster.report(W1, end) == [Resolve(task, end)]


def test_a_value_without_a_body_leaves_nothing_to_discard(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    assert cluster.join(W2, 1) == []
    end = finished(task)
    assert cluster.report(W2, end) == []
    assert cluster.report(W1, end, end) == [Resolve(task, end)]


def test_only_an_end_brings_something(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    assert cluster.join(W2, 1) == []
    assert cluster.report(W2, started(task), Output(task.id, 1, 1, b"x"), recalled(task, True)) == []


# ---- lost workers


def test_the_tasks_of_a_lost_worker_start_elsewhere_in_their_order(cluster: Cluster) -> None:
    tasks = cluster.start(5, slots=2)
    cluster.begin(W1, tasks[0])
    assert cluster.lose(W1) == requeued(*tasks[:4])
    assert [task.state for task in tasks] == [TaskState.READY] * 5
    assert cluster.join(W2, 5) == [*opened(W2, L2, 0, 5), *(Start(W2, L2, task) for task in tasks)]
    assert [task.attempt for task in tasks] == [2, 2, 2, 2, 1]


def test_the_tasks_of_a_lost_worker_start_at_once_where_there_is_room(cluster: Cluster) -> None:
    tasks = cluster.start(2, slots=1)
    assert cluster.join(W2, 1) == [*opened(W2, L2, 0, 1), RecallTask(W1, tasks[1])]
    assert cluster.lose(W1) == [
        *requeued(*tasks), Start(W2, L2, tasks[0]), Start(W2, L2, tasks[1]),
    ]  # fmt: skip


def test_the_tasks_of_a_lost_worker_go_before_those_that_wait(cluster: Cluster) -> None:
    tasks = cluster.start(6, slots=2)
    assert cluster.lose(W1) == requeued(*tasks[:4])
    assert started_tasks(cluster.join(W2, 1)) == tasks[:2]


@pytest.mark.parametrize("begun", [False, True])
def test_what_a_worker_has_said_before_it_was_lost_counts(cluster: Cluster, begun: bool) -> None:
    """Its end waited for its outputs; nothing new goes to the worker in the place of that task."""
    tasks = cluster.start(3, slots=1)
    if begun:
        cluster.begin(W1, *tasks[:1])
    report = finished(tasks[0])
    assert cluster.lose(W1, last=[report]) == [Resolve(tasks[0], report), Requeue(tasks[1])]
    assert [task.losses for task in tasks] == [0, 1, 0]
    assert started_tasks(cluster.join(W2, 1)) == tasks[1:]


def test_all_lanes_of_a_lost_worker_are_gone(cluster: Cluster) -> None:
    (blue,), (red,) = cluster.tasks(1, 0), cluster.tasks(1, 1)
    assert cluster.join(W1, 2) == []
    assert started_tasks(cluster.submit(blue, red)) == [blue, red]
    assert cluster.lose(W1) == [Requeue(blue), Requeue(red)]
    assert started_tasks(cluster.join(W2, 2)) == [blue, red]


def test_only_tasks_that_had_started_count_against_the_crash_limit(cluster: Cluster) -> None:
    running, sent, ready = cluster.tasks(3)
    running.crash_limit = 0
    assert cluster.submit(running, sent, ready) == []
    assert started_tasks(cluster.join(W1, 1)) == [running, sent]
    cluster.begin(W1, running)
    assert cluster.lose(W1, "power cut") == [Requeue(sent), Resolve(running, Lost("power cut"))]
    assert (running.state, sent.state, ready.state) == (TaskState.DONE, TaskState.READY, TaskState.READY)
    assert (running.losses, sent.losses, ready.losses) == (1, 0, 0)


def test_a_task_may_be_lost_as_often_as_its_crash_limit_says(cluster: Cluster) -> None:
    (task,) = cluster.tasks(1, crash_limit=2)
    assert cluster.submit(task) == []
    for number in (1, 2):
        lane = LaneId(number)
        assert cluster.join(WorkerId(number), 1) == [
            *opened(WorkerId(number), lane, 0, 1), Start(WorkerId(number), lane, task),
        ]  # fmt: skip
        cluster.begin(WorkerId(number), task)
        assert cluster.lose(WorkerId(number), f"loss {number}") == [Requeue(task)]
    assert cluster.join(W3, 1) == [*opened(W3, L3, 0, 1), Start(W3, L3, task)]
    cluster.begin(W3, task)
    assert cluster.lose(W3, "loss 3") == [Resolve(task, Lost("loss 3"))]


def test_a_task_that_waited_in_a_queue_may_be_lost_for_ever(cluster: Cluster) -> None:
    first, second = cluster.tasks(2, crash_limit=1)
    first.crash_limit = 100
    assert cluster.submit(first, second) == []
    for number in range(1, 10):
        assert started_tasks(cluster.join(WorkerId(number), 1)) == [first, second]
        assert cluster.lose(WorkerId(number)) == requeued(first, second)
    assert (first.losses, second.losses) == (9, 0)


def test_tasks_whose_turn_it_was_count_as_started(cluster: Cluster) -> None:
    """Their start is reported a moment after it, and may be on its way: a task may kill its agent at once."""
    tasks = cluster.start(4, slots=2)
    assert cluster.lose(W1) == requeued(*tasks)
    assert [task.losses for task in tasks] == [1, 1, 0, 0]


def test_a_task_that_must_not_start_twice_does_not_wait_in_an_agents_queue(cluster: Cluster) -> None:
    """It might start there unheard: the end of the one before it and its own start are lost with the agent.

    Found by the simulator: B waited behind A, A ended, B started, and the network was cut before the hub heard of it.
    When the agent was lost, B counted as not started and was run again.
    """
    first, second, third = tasks = cluster.tasks(3, crash_limit=0)
    third.crash_limit = 5
    assert cluster.join(W1, 1) == []
    assert cluster.submit(*tasks) == [*opened(W1, L1, 0, 1), Start(W1, L1, first)]
    end = finished(first)
    assert cluster.report(W1, end) == [Resolve(first, end), Start(W1, L1, second), Start(W1, L1, third)]
    assert cluster.lose(W1) == [*requeued(third), Resolve(second, Lost("the node is gone"))]


def test_the_loss_of_a_worker_that_nobody_knows_is_nothing(cluster: Cluster) -> None:
    tasks = cluster.start(1, slots=1)
    assert cluster.lose(W2) == []
    assert cluster.lose(W1) == requeued(*tasks)
    assert cluster.lose(W1) == []
    assert tasks[0].state is TaskState.READY


def test_an_attempt_that_its_agent_reports_as_lost_counts_like_a_lost_worker(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1, crash_limit=1)
    cluster.begin(W1, task)
    end = finished(task, LOST, body=b"its interpreter vanished")
    assert cluster.report(W1, end) == [Requeue(task), Start(W1, L1, task)]
    assert (task.attempt, task.losses) == (2, 1)
    cluster.begin(W1, task)
    assert cluster.report(W1, finished(task, LOST, body=b"again \xff")) == [Resolve(task, Lost("again \ufffd"))]


def test_an_attempt_that_was_lost_before_it_started_is_not_counted(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1, crash_limit=0)
    end = finished(task, LOST, body=b"no template")
    assert cluster.report(W1, end) == [Requeue(task), Start(W1, L1, task)]
    assert task.losses == 0


def test_a_task_is_requeued_once_for_each_time_that_it_waits_again(cluster: Cluster) -> None:
    (task,) = cluster.tasks(1, retries=Retries(exit=1, timeout=1, oom=1, start=1))
    wanted = [cluster.submit(task), cluster.join(W1, 1)]
    wanted.append(cluster.report(W1, started(task), finished(task, ERROR, body=b"boom")))
    wanted.append(cluster.report(W1, finished(task, LOST, body=b"vanished")))
    wanted.append(cluster.lose(W1))
    wanted.append(cluster.join(W2, 1))
    wanted.append(cluster.report(W2, started(task), finished(task)))
    assert [list(each).count(Requeue(task)) for each in wanted] == [0, 0, 1, 1, 1, 0, 0]
    assert task.attempt == 4


# ---- retries


@pytest.mark.parametrize("end", [ERROR, EXITED, TIMED_OUT, NOT_STARTED])
def test_a_task_that_failed_is_tried_again_as_often_as_the_user_said(cluster: Cluster, end: str) -> None:
    (task,) = cluster.start(1, slots=1, retries=Retries(exit=2, timeout=2, oom=2, start=2))
    for attempt in (1, 2):
        assert task.attempt == attempt
        cluster.begin(W1, task)
        assert cluster.report(W1, finished(task, end)) == [Requeue(task), Start(W1, L1, task)]
    last = finished(task, end)
    assert cluster.report(W1, last) == [Resolve(task, last)]
    assert task.attempt == 3


def test_a_program_that_ended_with_a_status_is_tried_again_unless_that_is_zero(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1, retries=Retries(exit=3, timeout=3, oom=3, start=3))
    for status in (1, -11):
        end = finished(task, COMPLETED, returncode=status)
        assert cluster.report(W1, end) == [Requeue(task), Start(W1, L1, task)]
    last = finished(task, COMPLETED, returncode=0)
    assert cluster.report(W1, last) == [Resolve(task, last)]


@pytest.mark.parametrize("status", [0, 1, -11])
def test_a_program_whose_status_is_not_checked_is_not_tried_again_for_it(cluster: Cluster, status: int) -> None:
    (task,) = cluster.start(1, slots=1, retries=Retries(exit=3, timeout=3, oom=3, start=3), checked=False)
    last = finished(task, COMPLETED, returncode=status)
    assert cluster.report(W1, last) == [Resolve(task, last)]
    assert task.retries.exit == 3


@pytest.mark.parametrize("end", [TIMED_OUT, NOT_STARTED, EXITED, ERROR])
def test_a_program_whose_status_is_not_checked_is_tried_again_for_all_else(cluster: Cluster, end: str) -> None:
    (task,) = cluster.start(1, slots=1, retries=Retries(exit=1, timeout=1, oom=1, start=1), checked=False)
    assert cluster.report(W1, finished(task, end, returncode=2)) == [Requeue(task), Start(W1, L1, task)]
    last = finished(task, end, returncode=2)
    assert cluster.report(W1, last) == [Resolve(task, last)]


@pytest.mark.parametrize("end", [VALUE, KILLED])
def test_a_task_that_succeeded_or_was_killed_is_not_tried_again(cluster: Cluster, end: str) -> None:
    (task,) = cluster.start(1, slots=1, retries=Retries(exit=5, timeout=5, oom=5, start=5))
    last = finished(task, end)
    assert cluster.report(W1, last) == [Resolve(task, last)]


def test_a_failure_without_retries_is_the_outcome(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    last = finished(task, ERROR, body=b"boom")
    assert cluster.report(W1, last) == [Resolve(task, last)]


def test_a_task_that_is_tried_again_goes_before_those_that_wait(cluster: Cluster) -> None:
    tasks = cluster.start(4, slots=1, retries=Retries(exit=1, timeout=1, oom=1, start=1))
    assert cluster.report(W1, finished(tasks[0], ERROR)) == [Requeue(tasks[0]), Start(W1, L1, tasks[0])]
    assert tasks[2].state is TaskState.READY


def test_retries_and_losses_are_counted_apart(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1, retries=Retries(exit=1, timeout=1, oom=1, start=1), crash_limit=1)
    cluster.begin(W1, task)
    assert cluster.report(W1, finished(task, ERROR)) == [Requeue(task), Start(W1, L1, task)]
    cluster.begin(W1, task)
    assert cluster.lose(W1) == [Requeue(task)]
    assert (task.retries.exit, task.losses, task.state) == (0, 1, TaskState.READY)


# ---- cancel


def test_a_task_that_waits_is_cancelled_at_once_and_never_starts(cluster: Cluster) -> None:
    tasks = cluster.start(5, slots=1)
    assert cluster.cancel(tasks[3]) == [Answer(tasks[3], True)]
    assert cluster.cancel(tasks[2]) == [Answer(tasks[2], True)]
    end = finished(tasks[0])
    assert cluster.report(W1, end) == [Resolve(tasks[0], end), Start(W1, L1, tasks[4])]


def test_a_task_that_nobody_knows_is_not_answered(cluster: Cluster) -> None:
    (task,) = cluster.tasks(1)
    assert cluster.cancel(task) == []
    assert cluster.submit(task) == []
    assert cluster.cancel(task) == [Answer(task, True)]
    assert cluster.cancel(task) == []


def test_a_task_that_was_sent_is_asked_for_and_cancelled_when_it_is_given_back(cluster: Cluster) -> None:
    tasks = cluster.start(3, slots=1)
    assert cluster.cancel(tasks[1]) == [RecallTask(W1, tasks[1])]
    assert tasks[1].state is TaskState.SENT
    assert cluster.report(W1, recalled(tasks[1], True)) == [Answer(tasks[1], True), Start(W1, L1, tasks[2])]
    assert tasks[1].state is TaskState.DONE


def test_a_task_that_its_agent_does_not_give_back_is_not_cancelled(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    assert cluster.cancel(task) == [RecallTask(W1, task)]
    cluster.begin(W1, task)
    assert cluster.report(W1, recalled(task, False)) == [Answer(task, False)]
    end = finished(task)
    assert cluster.report(W1, end) == [Resolve(task, end)]


def test_a_task_that_runs_is_not_cancelled(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    cluster.begin(W1, task)
    assert cluster.cancel(task) == [Answer(task, False)]
    assert task.state is TaskState.RUNNING


def test_a_task_that_ends_before_the_recall_arrives_is_resolved_and_not_cancelled(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    assert cluster.cancel(task) == [RecallTask(W1, task)]
    end = finished(task)
    assert cluster.report(W1, end) == [Resolve(task, end), Answer(task, False)]
    assert cluster.report(W1, recalled(task, False)) == []


def test_a_task_may_be_cancelled_twice_while_its_agent_is_asked(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    assert cluster.cancel(task) == [RecallTask(W1, task)]
    assert cluster.cancel(task) == [RecallTask(W1, task)]
    assert cluster.report(W1, recalled(task, True), recalled(task, True)) == [Answer(task, True)]


def test_a_task_that_was_not_given_back_can_be_asked_for_again(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    assert cluster.cancel(task) == [RecallTask(W1, task)]
    assert cluster.report(W1, recalled(task, False)) == [Answer(task, False)]
    assert cluster.cancel(task) == [RecallTask(W1, task)]
    assert cluster.report(W1, recalled(task, True)) == [Answer(task, True)]


def test_an_answer_to_a_recall_that_nobody_asked_for_is_ignored(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    assert cluster.report(W1, recalled(task, True), recalled(task, False)) == []
    assert task.state is TaskState.SENT


def test_a_task_that_is_asked_for_is_cancelled_if_its_agent_is_lost(cluster: Cluster) -> None:
    """It was answered twice; the first answer said that the task goes on, and its future waited for ever."""
    (task,) = cluster.start(1, slots=1)
    assert cluster.cancel(task) == [RecallTask(W1, task)]
    assert cluster.lose(W1) == [Answer(task, True)]
    assert cluster.join(W2, 1) == []


def test_a_task_that_its_agent_lost_while_it_was_asked_for_is_cancelled(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    assert cluster.cancel(task) == [RecallTask(W1, task)]
    assert cluster.report(W1, finished(task, LOST)) == [Answer(task, True)]


def test_a_task_that_started_before_its_agent_was_lost_is_not_cancelled(cluster: Cluster) -> None:
    """Its future runs already, and a future that runs cannot be cancelled: it is tried again."""
    (task,) = cluster.start(1, slots=1)
    assert cluster.cancel(task) == [RecallTask(W1, task)]
    cluster.begin(W1, task)
    assert cluster.lose(W1) == [Answer(task, False), Requeue(task)]
    assert cluster.join(W2, 1) == [*opened(W2, L2, 0, 1), Start(W2, L2, task)]


def test_a_cancel_is_answered_when_the_attempt_that_was_asked_for_has_failed(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1, retries=Retries(exit=1, timeout=1, oom=1, start=1))
    assert cluster.cancel(task) == [RecallTask(W1, task)]
    wanted = list(cluster.report(W1, finished(task, ERROR), Recalled(task.id, 1, False)))
    assert [effect for effect in wanted if isinstance(effect, Answer)] == [Answer(task, False)]


def test_nothing_is_kept_of_environments_whose_tasks_were_all_cancelled(cluster: Cluster) -> None:
    """A program that changes its directory between tasks has an environment for each of them."""
    for environment in range(5):
        (task,) = cluster.tasks(1, environment)
        assert cluster.submit(task) == []
        assert cluster.cancel(task) == [Answer(task, True)]
    (last,) = cluster.tasks(1, 99)
    assert cluster.submit(last) == []
    assert [each.environment for each in cluster.classes] == [99]


# ---- kill


def test_a_task_that_waits_is_killed_at_once(cluster: Cluster) -> None:
    tasks = cluster.start(4, slots=1)
    assert cluster.kill(tasks[2]) == [Resolve(tasks[2], Finished(tasks[2].id, 0, KILLED))]
    end = finished(tasks[0])
    assert cluster.report(W1, end) == [Resolve(tasks[0], end), Start(W1, L1, tasks[3])]


def test_a_task_that_was_sent_is_killed_by_its_agent(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    assert cluster.kill(task, 9, 0.5) == [KillTask(W1, task, 9, 0.5)]
    end = finished(task, KILLED)
    assert cluster.report(W1, end) == [Resolve(task, end)]


def test_a_task_that_runs_is_killed_by_its_agent(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    cluster.begin(W1, task)
    assert cluster.kill(task) == [KillTask(W1, task, 15, 2.0)]
    assert task.state is TaskState.RUNNING


def test_a_task_that_nobody_knows_is_not_killed(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    end = finished(task)
    assert cluster.report(W1, end) == [Resolve(task, end)]
    assert cluster.kill(task) == []


@pytest.mark.parametrize("end", [ERROR, EXITED, TIMED_OUT])
def test_a_task_that_was_to_be_killed_is_not_tried_again_however_it_ended(cluster: Cluster, end: str) -> None:
    (task,) = cluster.start(1, slots=1, retries=Retries(exit=3, timeout=3, oom=3, start=3))
    assert cluster.kill(task) == [KillTask(W1, task, 15, 2.0)]
    last = finished(task, end)
    assert cluster.report(W1, last) == [Resolve(task, last)]


@pytest.mark.parametrize("runs", [False, True])
def test_a_task_that_was_to_be_killed_does_not_start_again_when_its_agent_is_lost(cluster: Cluster, runs: bool) -> None:
    (task,) = cluster.start(1, slots=1)
    if runs:
        cluster.begin(W1, task)
    assert cluster.kill(task) == [KillTask(W1, task, 15, 2.0)]
    wanted = list(cluster.lose(W1))
    assert [type(effect) for effect in wanted] == [Resolve]
    assert cluster.join(W2, 1) == []


def test_a_task_that_is_asked_for_and_killed_is_resolved_once(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    assert cluster.cancel(task) == [RecallTask(W1, task)]
    assert cluster.kill(task) == [KillTask(W1, task, 15, 2.0)]
    assert cluster.report(W1, recalled(task, True)) == [Answer(task, True)]
    assert cluster.report(W1, finished(task, KILLED)) == []


# ---- environments that cannot be had


def refused(text: str, *tasks: Task) -> list[Effect]:
    """What is to be done about tasks that an agent has."""
    return [effect for task in tasks for effect in (KillTask(W1, task, 9, 0.0), Resolve(task, Refused(text, b"")))]


def test_all_tasks_of_an_environment_that_cannot_be_had_are_refused(cluster: Cluster) -> None:
    """The agent that says so is told to end them, too: one may run already, in an interpreter that could be had.

    It kept its place for as long as it ran, which nobody could end any more.
    """
    runs, held, *ready = cluster.start(4, slots=1)
    cluster.begin(W1, runs)
    assert cluster.report(W1, Unprepared(0, "no python")) == [
        *refused("no python", runs, held), *(Resolve(task, Refused("no python", b"")) for task in ready),
    ]  # fmt: skip
    assert cluster.scheduler.tasks == {}


def test_why_an_environment_cannot_be_had_is_handed_on(cluster: Cluster) -> None:
    assert cluster.join(W1, 1) == []
    assert cluster.report(W1, Unprepared(0, "the initializer raised", b"error", True)) == []
    (task,) = cluster.tasks(1)
    assert cluster.submit(task) == [Resolve(task, Refused("the initializer raised", b"error", True))]


def test_later_tasks_of_such_an_environment_are_refused_at_once(cluster: Cluster) -> None:
    assert cluster.join(W1, 1) == []
    assert cluster.report(W1, Unprepared(0, "no python")) == []
    (task,), (other,) = cluster.tasks(1, 0), cluster.tasks(1, 1)
    assert cluster.submit(task, other) == [
        Resolve(task, Refused("no python", b"")), *opened(W1, L1, 1, 1), Start(W1, L1, other),
    ]  # fmt: skip


def test_tasks_of_other_environments_get_the_room(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    (other,) = cluster.tasks(1, 1)
    assert cluster.submit(other) == []
    assert cluster.report(W1, Unprepared(0, "no")) == [
        *refused("no", task), CloseLane(W1, L1), *opened(W1, L2, 1, 1), Start(W1, L2, other),
    ]  # fmt: skip


def test_what_comes_later_about_a_refused_task_is_ignored(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    assert cluster.report(W1, Unprepared(0, "no"), finished(task), started(task)) == refused("no", task)


def test_a_cancel_that_waits_is_answered_when_its_task_is_refused(cluster: Cluster) -> None:
    (task,) = cluster.start(1, slots=1)
    assert cluster.cancel(task) == [RecallTask(W1, task)]
    assert cluster.report(W1, Unprepared(0, "no")) == [*refused("no", task), Answer(task, False)]
    assert cluster.report(W1, recalled(task, True)) == []


# ---- the check of itself


def test_a_move_that_a_task_does_not_have_is_a_bug_of_ours() -> None:
    task = Task(7, 0, None)
    task.move(TaskState.DONE)
    for state in TaskState:
        with pytest.raises(IllegalMove, match="task 7: done -> "):
            task.move(state)
    with pytest.raises(IllegalMove, match="ready -> running"):
        Task(7, 0, None).move(TaskState.RUNNING)


def break_done(scheduler: Scheduler, lane: Lane) -> None:
    lane.sent[1].state = TaskState.DONE


def break_state(scheduler: Scheduler, lane: Lane) -> None:
    lane.sent[1].state = TaskState.READY


def break_free(scheduler: Scheduler, lane: Lane) -> None:
    lane.worker.free.release(lane.places[0])


def break_places(scheduler: Scheduler, lane: Lane) -> None:
    lane.places[1] = lane.places[0]


def break_width(scheduler: Scheduler, lane: Lane) -> None:
    lane.width += 1


def break_lane(scheduler: Scheduler, lane: Lane) -> None:
    lane.of.lanes.clear()


def break_class(scheduler: Scheduler, lane: Lane) -> None:
    scheduler._placement.news.classes.clear()


def break_known(scheduler: Scheduler, lane: Lane) -> None:
    lane.sent[99] = replace(lane.sent[1])


def break_order(scheduler: Scheduler, lane: Lane) -> None:
    del lane.sent[1], lane.sent[2], scheduler.tasks[1], scheduler.tasks[2]


def break_moving(scheduler: Scheduler, lane: Lane) -> None:
    scheduler._placement.lanes.moving[3] = lane.of


def break_room(scheduler: Scheduler, lane: Lane) -> None:
    lane.worker.free = Free(cpus(2))


HARM = [each for name, each in globals().items() if name.startswith("break_")]


@pytest.mark.parametrize("harm", HARM)
def test_the_check_of_the_invariants_sees_what_is_wrong(harm: Any) -> None:
    scheduler = Scheduler()
    scheduler.joined(W1, cpus(1), 0.0)
    scheduler.submit([Task(number, 0, None) for number in (1, 2, 3)], 0.0)
    check(scheduler, 0.0)
    (lane,) = scheduler.workers[W1].lanes.values()
    harm(scheduler, lane)
    with pytest.raises((AssertionError, KeyError)):
        check(scheduler, 0.0)


# ---- agents that leave


def test_an_agent_that_leaves_gets_no_more_tasks(cluster: Cluster) -> None:
    one, two, three = cluster.start(3, 1)
    cluster.report(W1, Started(one.id, 1, 100, 0.0)).seen = True
    assert cluster.report(W1, Leaving("it was told to"), Finished(two.id, 1, RETURNED)) == [Requeue(two)]
    assert cluster.submit(*cluster.tasks(1)) == []
    finished = Finished(one.id, 1, VALUE)
    assert cluster.report(W1, finished) == [Resolve(one, finished)]
    assert cluster.lose(W1) == []
    assert cluster.join(W2, 1) == [*opened(W2, L2, 0, 1), Start(W2, L2, two), Start(W2, L2, three)]


def test_a_task_that_comes_back_from_an_agent_that_leaves_is_counted_nowhere(cluster: Cluster) -> None:
    [task] = cluster.start(1, 1, crash_limit=1)
    for number in range(1, 5):
        worker = WorkerId(number)
        cluster.report(worker, Started(task.id, number, 100, 0.0), Leaving("")).seen = True
        assert cluster.report(worker, Finished(task.id, number, RETURNED, started=1.0)) == [Requeue(task)]
        assert cluster.lose(worker) == []
        following = WorkerId(number + 1), LaneId(number + 1)
        assert cluster.join(following[0], 1) == [*opened(*following, 0, 1), Start(*following, task)]
    assert task.losses == 0


def test_an_agent_that_is_lost_while_it_leaves_counts_nowhere_either(cluster: Cluster) -> None:
    one, two = cluster.start(2, 1, crash_limit=1)
    cluster.report(W1, Started(one.id, 1, 100, 0.0), Leaving("")).seen = True
    assert cluster.lose(W1) == [Requeue(two), Requeue(one)]
    assert (one.losses, two.losses) == (0, 0)


def test_what_may_start_once_is_lost_if_it_had_started_on_an_agent_that_leaves(cluster: Cluster) -> None:
    one, two = cluster.tasks(2, crash_limit=0)
    cluster.submit(one, two).seen = True
    cluster.join(W1, 2).seen = True
    cluster.report(W1, Leaving("")).seen = True
    assert cluster.report(W1, Finished(one.id, 1, RETURNED)) == [Requeue(one)]
    ended = cluster.report(W1, Finished(two.id, 1, RETURNED, started=1.0))
    assert ended == [Resolve(two, Lost("its agent was told to leave"))]


def test_a_task_that_is_killed_or_cancelled_does_not_come_back_from_an_agent_that_leaves(cluster: Cluster) -> None:
    one, two = cluster.start(2, 1)
    cluster.report(W1, Started(one.id, 1, 100, 0.0), Leaving("")).seen = True
    assert cluster.kill(one) == [KillTask(W1, one, 15, 2.0)]
    assert cluster.cancel(two) == [RecallTask(W1, two)]
    returned = [Finished(one.id, 1, RETURNED, started=1.0), Finished(two.id, 1, RETURNED)]
    assert cluster.report(W1, *returned) == [Resolve(one, Finished(one.id, 1, KILLED)), Answer(two, True)]


def test_who_says_twice_that_it_leaves_has_said_it_once(cluster: Cluster) -> None:
    [task] = cluster.start(1, 1)
    assert cluster.report(W1, Leaving(""), Leaving("")) == []
    assert cluster.report(WorkerId(9), Leaving("")) == []
    assert cluster.lose(W1) == [Requeue(task)]
    assert cluster.report(W1, Leaving("")) == []


# ---- what is told to people


def causes(wanted: list[Any]) -> list[Any]:
    """Why tasks wait again."""
    return [effect.cause for effect in wanted if isinstance(effect, Requeue)]


def test_a_task_that_waits_again_is_told_why(cluster: Cluster) -> None:
    """The cause of a requeue is not compared: nothing is decided by it."""
    (task,) = cluster.start(1, slots=1, retries=Retries(exit=1))
    failed = finished(task, ERROR)
    assert causes(cluster.report(W1, failed)) == [failed]
    cluster.begin(W1, task)
    assert causes(cluster.lose(W1, "power cut")) == ["power cut"]
    cluster.join(W2, 1).seen = True
    returned = Finished(task.id, task.attempt, RETURNED)
    assert causes(cluster.report(W2, Leaving(""), returned)) == ["its agent was told to leave"]


def test_as_many_tasks_run_as_there_are_places_for_what_agents_hold(cluster: Cluster) -> None:
    tasks = cluster.tasks(5)
    assert cluster.scheduler.running == 0
    cluster.submit(*tasks).seen = True
    cluster.join(W1, 2).seen = True
    assert cluster.scheduler.running == 2
    cluster.report(W1, Leaving("")).seen = True
    assert cluster.scheduler.running == 2
    cluster.lose(W1).seen = True
    assert cluster.scheduler.running == 0
