"""Which worker gets which task, and what is taken from whom: the rules of ``placement``, by values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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
    cpus,
    finished,
    freed,
    gpus,
    needs,
    opened,
    recalled,
    started,
    started_tasks,
)

from executor.core.effects import (
    Answer,
    CloseLane,
    KillTask,
    Lost,
    RecallTask,
    Requeue,
    Resolve,
    Start,
    TakePlaces,
)
from executor.core.model import Lane, LaneId, Task, TaskState
from executor.core.moments import LOOK_AGAIN
from executor.core.needs import Need, Needs
from executor.core.reservations import PATIENCE
from executor.core.retries import Retries
from worker_agent.pools import UNIT, Pool
from worker_agent.protocol import ERROR, KILLED, RETURNED, VALUE, Finished, Leaving

pytestmark = pytest.mark.shared

MEMORY = Pool("memory", size=16 * UNIT)
BIG = {"variants": (needs(cpus=4),)}
PAIR = {"variants": (needs(nodes=2),)}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


def running(tasks: list[Task]) -> list[Task]:
    """Those that have a place; the others are with an agent in advance, or nowhere."""
    return [task for task in tasks if task.lane is not None and has_place(task)]


def has_place(task: Task) -> bool:
    assert task.lane is not None
    return list(task.lane.sent).index(task.id) < len(task.lane.places)


def workers_of(tasks: list[Task]) -> list[int]:
    """On which workers tasks run, by how many."""
    counted = Counter(task.lane.worker.id for task in running(tasks) if task.lane is not None)
    return [counted[worker] for worker in (W1, W2, W3)]


def lane_of(task: Task) -> Lane:
    assert task.lane is not None
    return task.lane


def occupy(cluster: Cluster, number: int, slots: int, *pools: Pool, environment: int = 0) -> list[Task]:
    """Worker 1 with so many CPUs, on which so many tasks of one CPU have started."""
    tasks = cluster.tasks(number, environment)
    assert cluster.join(W1, slots, *pools) == []
    assert started_tasks(cluster.submit(*tasks)) == tasks
    cluster.begin(W1, *tasks)
    return tasks


def shares(task: Task, place: int = 0) -> dict[str, list[str]]:
    """The indices that a place of the task's lane has, by pool."""
    return {share.name: share.indices for share in lane_of(task).places[place]}


def test_two_tasks_at_once_get_what_is_free_and_what_nobody_uses(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is free is not enough for both; a place that another class has left is."""
    monkeypatch.undo()  # nothing is held in advance
    (other,) = occupy(cluster, 1, slots=2)
    assert cluster.end(other) == []
    tasks = cluster.tasks(2, environment=1)
    assert started_tasks(cluster.submit(*tasks)) == tasks


# ---- rule 1: who is first


def test_the_more_important_task_is_first_whatever_its_environment(cluster: Cluster) -> None:
    (low,), (high,), (middle,) = cluster.tasks(1, 0), cluster.tasks(1, 1, priority=5), cluster.tasks(1, 2, priority=1)
    assert cluster.submit(low, high, middle) == []
    assert started_tasks(cluster.join(W1, 2)) == [high, middle]


def test_the_more_important_task_of_a_class_is_first(cluster: Cluster) -> None:
    low, high = cluster.tasks(2), cluster.tasks(2, priority=1)
    assert cluster.submit(*low, *high) == []
    assert started_tasks(cluster.join(W1, 1)) == high
    assert cluster.end(high[0]) == [Start(W1, L1, low[0])]


def test_of_equal_importance_the_older_task_is_first(cluster: Cluster) -> None:
    (first,), (second,) = cluster.tasks(1, 1), cluster.tasks(1, 0)
    assert cluster.submit(second, first) == []
    assert started_tasks(cluster.join(W1, 1)) == [first]


def test_who_comes_later_gets_what_those_before_cannot_use(cluster: Cluster) -> None:
    (large,), (small,) = cluster.tasks(1, **BIG), cluster.tasks(1)
    assert cluster.submit(large, small) == []
    assert started_tasks(cluster.join(W1, 3)) == [small]


def test_an_idle_place_is_given_to_the_more_important_of_two_that_come_at_once(cluster: Cluster) -> None:
    """It stayed with its lane because a task of that waited, though that came after the other."""
    (before,) = occupy(cluster, 1, 1)
    assert cluster.end(before) == []
    (low,), (high,) = cluster.tasks(1, 0), cluster.tasks(1, 1, priority=1)
    assert cluster.submit(low, high) == [CloseLane(W1, L1), *opened(W1, L2, 1, 1), Start(W1, L2, high)]


# ---- rule 3: room is made


def test_a_class_that_has_no_place_is_given_one_at_once(cluster: Cluster) -> None:
    (running, *_) = occupy(cluster, 2, 2)
    (other,) = cluster.tasks(1, 1)
    assert cluster.submit(other) == [TakePlaces(W1, L1, 1)]
    assert cluster.end(running) == []
    assert cluster.report(W1, freed(L1, 0)) == [*opened(W1, L2, 1, 1), Start(W1, L2, other)]


def test_a_class_that_has_a_place_waits_for_its_turn(cluster: Cluster) -> None:
    first = occupy(cluster, 1, 2)
    (other, another) = cluster.tasks(2, 1)
    assert cluster.submit(other, another) == [*opened(W1, L2, 1, 1), Start(W1, L2, other), Start(W1, L2, another)]
    cluster.begin(W1, other)
    assert cluster.tick(2 * PATIENCE) == []
    assert cluster.end(*first) == [CloseLane(W1, L1), *opened(W1, L2, 1, 1)[1:]]


def test_one_that_has_not_started_is_not_asked_back_for_a_younger_one(cluster: Cluster) -> None:
    """It came back, was first again, and was sent to the same place; and so on, as long as its environment took."""
    (first,) = cluster.start(1, slots=1)
    (other,) = cluster.tasks(1, 1)
    assert cluster.submit(other) == []
    for number in range(1, 5):
        assert cluster.tick(number * PATIENCE) == []
    cluster.begin(W1, first)
    assert cluster.tick(5 * PATIENCE) == [TakePlaces(W1, L1, 1)]


def test_one_that_has_not_started_is_asked_back_for_a_more_important_one(cluster: Cluster) -> None:
    (first,) = cluster.start(1, slots=1)
    (other,) = cluster.tasks(1, 1, priority=1)
    assert cluster.submit(other) == [TakePlaces(W1, L1, 1), RecallTask(W1, first)]
    assert cluster.report(W1, freed(L1, 0)) == [*opened(W1, L2, 1, 1), Start(W1, L2, other)]
    assert cluster.report(W1, recalled(first, True)) == [CloseLane(W1, L1), Requeue(first)]
    assert cluster.end(other) == [CloseLane(W1, L2), *opened(W1, L3, 0, 1), Start(W1, L3, first)]


def test_for_the_more_important_many_places_are_taken_at_once(cluster: Cluster) -> None:
    small = occupy(cluster, 4, 4)
    (large,) = cluster.tasks(1, 1, priority=1, **BIG)
    assert cluster.submit(large) == [TakePlaces(W1, L1, 4)]
    later = cluster.tasks(4)
    assert cluster.submit(*later) == []
    for number, task in enumerate(small[:3]):
        assert cluster.end(task) == []
        assert cluster.report(W1, freed(L1, number)) == []
    assert cluster.end(small[3]) == []
    assert cluster.report(W1, freed(L1, 3)) == [CloseLane(W1, L1), *opened(W1, L2, 1, 1), Start(W1, L2, large)]


def test_a_large_task_has_patience_before_many_places_are_kept_for_it(cluster: Cluster) -> None:
    small = occupy(cluster, 4, 4)
    (large,) = cluster.tasks(1, 1, **BIG)
    assert cluster.submit(large) == []
    assert cluster.scheduler.due() == LOOK_AGAIN
    assert cluster.tick(PATIENCE / 2) == []
    assert cluster.tick(PATIENCE) == [TakePlaces(W1, L1, 4)]
    assert [task.state for task in small] == [TaskState.RUNNING] * 4


def test_a_large_task_is_not_starved_by_a_stream_of_small_ones(cluster: Cluster) -> None:
    small = occupy(cluster, 4, 4)
    (large,) = cluster.tasks(1, 1, **BIG)
    cluster.submit(large).seen = True
    for step in range(100):
        small += cluster.tasks(1)
        cluster.submit(small[-1]).seen = True
        cluster.tick(step * 0.1).seen = True
        done = running(small)[0]
        cluster.report(W1, started(done), finished(done)).seen = True
        for task in [task for task in small if task.id in cluster.scheduler._placement.lanes.moving]:
            cluster.report(W1, recalled(task, True)).seen = True
        for lane in list(cluster.scheduler.workers[W1].lanes.values()):
            idle = len(lane.places) - max(lane.width, len(lane.sent))
            cluster.report(W1, freed(lane.id, *list(lane.places)[:idle])).seen = True
        if large.lane is not None:
            break
    assert 10 <= step <= 15, "after its patience, and four ends"


def test_holes_beside_a_large_task_are_filled(cluster: Cluster) -> None:
    (large,), small = cluster.tasks(1, 1, variants=(needs(cpus=3),)), cluster.tasks(4)
    assert cluster.join(W1, 4) == []
    assert started_tasks(cluster.submit(large, *small)) == [large, *small[:2]]
    assert running(small) == small[:1]


def test_what_a_large_task_does_not_need_is_not_kept_for_it(cluster: Cluster) -> None:
    occupy(cluster, 2, 4, gpus(2))
    (large,) = cluster.tasks(1, 1, priority=1, **BIG)
    assert cluster.submit(large) == [TakePlaces(W1, L1, 2)]
    (small,), (elsewhere,) = cluster.tasks(1, 2), cluster.tasks(1, 2, variants=(needs(gpus=1),))
    assert started_tasks(cluster.submit(small, elsewhere)) == [elsewhere], "there are two CPUs, but they are kept"


def test_when_who_waits_for_room_is_cancelled_others_have_it_at_once(cluster: Cluster) -> None:
    """They waited until something else happened."""
    occupy(cluster, 2, 4)
    (large,), (small,) = cluster.tasks(1, 1, priority=1, **BIG), cluster.tasks(1, 2)
    assert cluster.submit(large) == [TakePlaces(W1, L1, 2)]
    assert cluster.submit(small) == []
    assert cluster.cancel(large) == [Answer(large, True), *opened(W1, L2, 2, 1), Start(W1, L2, small)]


def test_who_is_cancelled_is_no_backlog(cluster: Cluster) -> None:
    tasks = cluster.tasks(2)
    assert cluster.submit(*tasks) == []
    for task in tasks:
        assert cluster.scheduler.has_backlog
        assert cluster.cancel(task) == [Answer(task, True)]
    assert not cluster.scheduler.has_backlog
    assert cluster.classes == []


def test_room_is_made_where_the_fewest_have_to_end(cluster: Cluster) -> None:
    occupy(cluster, 4, 4)
    assert cluster.join(W2, 4) == []
    (other,) = cluster.tasks(1, 0)
    assert started_tasks(cluster.submit(other)) == [other]
    cluster.begin(W2, other)
    (large,) = cluster.tasks(1, 1, priority=1, **BIG)
    assert cluster.submit(large) == [TakePlaces(W2, L2, 1)]


def test_room_is_made_for_what_is_in_pieces(cluster: Cluster) -> None:
    """Two CPUs are free, but not in one group: nobody was asked for the one between them."""
    small = occupy(cluster, 4, 0, *cpus(4, groups=2))
    for task, place in ((small[0], 0), (small[2], 2)):
        assert shares(small[0], place) == {"cpus": [str(place)]}
    together = Needs((Need("cpus", 2 * UNIT, "compact!"),))
    (large,) = cluster.tasks(1, 1, variants=(together,), priority=1)
    assert cluster.submit(large) == [TakePlaces(W1, L1, 2)]
    assert cluster.end(small[0], small[2]) == []
    assert cluster.report(W1, freed(L1, 0, 2)) == [TakePlaces(W1, L1, 1)]
    assert cluster.end(small[1]) == []
    assert cluster.report(W1, freed(L1, 1)) == [*opened(W1, L2, 1, 1), Start(W1, L2, large)]
    assert shares(large) == {"cpus": ["0", "1"]}


def test_what_does_not_help_is_not_asked_back(cluster: Cluster) -> None:
    """A GPU was asked back for who needs CPUs, given to a task that waited for it, and asked back, without an end."""
    small = occupy(cluster, 2, 4, gpus(1))
    others = cluster.tasks(2, 2, variants=(needs(gpus=1),))
    assert started_tasks(cluster.submit(*others)) == others
    cluster.begin(W1, others[0])
    (large,) = cluster.tasks(1, 1, priority=1, **BIG)
    assert cluster.submit(large) == [TakePlaces(W1, L1, 2)]
    assert cluster.end(*small[:1]) == []
    (higher,) = cluster.tasks(1, 3, priority=2)
    assert started_tasks(cluster.submit(higher)) == [higher]
    assert cluster.report(W1, freed(L1, 0)) == []
    assert cluster.end(small[1]) == []
    cluster.begin(W1, higher)
    assert cluster.report(W1, freed(L1, 1)) == [CloseLane(W1, L1), TakePlaces(W1, L3, 1)]
    assert cluster.tick(PATIENCE) == []


def test_what_goes_by_a_longer_name_is_taken_too(cluster: Cluster) -> None:
    """Who needs a GPU got none of those that are called gpus/nvidia, as long as somebody else used them all."""
    assert cluster.join(W1, 2, gpus(1, "gpus/nvidia")) == []
    (first,) = cluster.tasks(1, variants=(needs(gpus=1),))
    (second,) = cluster.tasks(1, 1, variants=(needs(gpus=1),))
    assert started_tasks(cluster.submit(first)) == [first]
    cluster.begin(W1, first)
    assert cluster.submit(second) == [TakePlaces(W1, L1, 1)]


def test_what_goes_by_a_longer_name_is_kept_too(cluster: Cluster) -> None:
    assert cluster.join(W1, 0, gpus(3, "gpus/nvidia")) == []
    (first,) = cluster.tasks(1, variants=(needs(gpus=2),))
    (large,) = cluster.tasks(1, 1, variants=(needs(gpus=2),), priority=1)
    (small,) = cluster.tasks(1, 2, variants=(needs(gpus_nvidia=1),))
    assert started_tasks(cluster.submit(first)) == [first]
    cluster.begin(W1, first)
    assert cluster.submit(large) == [TakePlaces(W1, L1, 1)]
    assert cluster.submit(small) == []


# ---- where tasks go


def test_workers_with_what_is_rare_are_left_to_those_who_need_it(cluster: Cluster) -> None:
    assert cluster.join(W1, 4, gpus(1)) == []
    assert cluster.join(W2, 2, MEMORY) == []
    small = cluster.tasks(3)
    assert started_tasks(cluster.submit(*small)) == small
    assert workers_of(small) == [1, 2, 0]
    (with_gpu,) = cluster.tasks(1, variants=(needs(cpus=1, gpus=1),))
    assert started_tasks(cluster.submit(with_gpu)) == [with_gpu]
    assert lane_of(with_gpu).worker.id == W1


def test_tasks_are_shared_out_among_workers(cluster: Cluster) -> None:
    for worker in (W1, W2, W3):
        assert cluster.join(worker, 8) == []
    tasks = cluster.tasks(9)
    assert started_tasks(cluster.submit(*tasks)) == tasks
    assert sorted(workers_of(tasks)) == [2, 3, 4], "nobody is filled before the others have any"


def test_a_task_may_run_in_several_ways_the_preferred_first(cluster: Cluster) -> None:
    ways = (needs(cpus=1, gpus=1), needs(cpus=4))
    tasks = cluster.tasks(20, variants=ways)
    assert cluster.submit(*tasks) == []
    assert len(started_tasks(cluster.join(W1, 16, gpus(4)))) == 14
    lanes = {lane.variant: lane for lane in cluster.scheduler.workers[W1].lanes.values()}
    assert {variant: lane.width for variant, lane in lanes.items()} == {0: 4, 1: 3}
    assert workers_of(tasks) == [7, 0, 0]


def test_a_task_that_needs_all_of_something_waits_until_nobody_has_any(cluster: Cluster) -> None:
    first, second = occupy(cluster, 2, 3)
    (large,) = cluster.tasks(1, 1, variants=(needs(cpus=None),), priority=1)
    assert cluster.submit(large) == [TakePlaces(W1, L1, 2)]
    assert cluster.end(first, second) == []
    assert cluster.report(W1, freed(L1, 0, 1)) == [CloseLane(W1, L1), *opened(W1, L2, 1, 1), Start(W1, L2, large)]
    assert shares(large) == {"cpus": ["0", "1", "2"]}


def test_a_task_that_fits_nowhere_waits_and_nothing_is_kept_for_it(cluster: Cluster) -> None:
    occupy(cluster, 1, 2)
    (large,) = cluster.tasks(1, 1, priority=9, **BIG)
    (small,) = cluster.tasks(1, 2)
    assert cluster.submit(large) == []
    assert cluster.tick(2 * PATIENCE) == []
    assert started_tasks(cluster.submit(small)) == [small]


# ---- places are taken and given back


def test_a_place_is_asked_for_and_another_may_be_given(cluster: Cluster) -> None:
    first, second = occupy(cluster, 2, 2)
    (other,) = cluster.tasks(1, 1)
    assert cluster.submit(other) == [TakePlaces(W1, L1, 1)]
    assert (lane_of(first).width, len(lane_of(first).places)) == (1, 2)
    assert cluster.end(second) == []
    assert cluster.report(W1, freed(L1, 1)) == [*opened(W1, L2, 1, 1), Start(W1, L2, other)]
    assert shares(other) == {"cpus": ["1"]}
    assert list(lane_of(first).places) == [0]


def test_places_that_nobody_asked_for_or_has_are_not_freed(cluster: Cluster) -> None:
    (first,) = cluster.start(1, slots=1)
    assert cluster.report(W1, freed(L1, 0), freed(LaneId(9), 0)) == []
    assert cluster.report(W2, freed(L1, 0)) == []
    assert list(lane_of(first).places) == [0]


def test_a_place_may_be_given_back_when_its_lane_is_closed(cluster: Cluster) -> None:
    """Hub and agent speak at the same time: what the hub has closed is not given back once more."""
    (first,) = occupy(cluster, 1, 1)
    (other,) = cluster.tasks(1, 1)
    assert cluster.submit(other) == [TakePlaces(W1, L1, 1)]
    assert cluster.cancel(other) == [Answer(other, True)]
    assert cluster.end(first) == []
    whole = cluster.tasks(1, 2, variants=(needs(nodes=1),))
    assert cluster.submit(*whole) == [CloseLane(W1, L1), *opened(W1, L2, 2, 1), Start(W1, L2, *whole)]
    assert cluster.report(W1, freed(L1, 0)) == []


def test_a_lane_that_gives_its_places_back_may_have_new_ones(cluster: Cluster) -> None:
    first = occupy(cluster, 2, 3)
    (large,) = cluster.tasks(1, 1, priority=1, variants=(needs(cpus=3),))
    assert cluster.submit(large) == [TakePlaces(W1, L1, 2)]
    assert cluster.kill(large) == [Resolve(large, Finished(large.id, 0, KILLED))]
    (third,) = cluster.tasks(1)
    wanted = cluster.submit(third)
    assert wanted == [*opened(W1, L1, 0, 1)[1:], Start(W1, L1, third)]
    assert cluster.end(*first) == []
    assert cluster.report(W1, freed(L1, 1, 0)) == []
    assert list(lane_of(third).places) == [2]


def test_a_task_that_may_not_start_unheard_comes_back_when_its_place_is_given_away(cluster: Cluster) -> None:
    """It was held in advance then, though that is what must not be."""
    first, second = cluster.tasks(2, crash_limit=0)
    assert cluster.join(W1, 2) == []
    assert started_tasks(cluster.submit(first, second)) == [first, second]
    (other,) = cluster.tasks(1, 1, priority=1)
    assert cluster.submit(other) == [TakePlaces(W1, L1, 1)]
    assert cluster.report(W1, freed(L1, 1)) == [RecallTask(W1, second), *opened(W1, L2, 1, 1), Start(W1, L2, other)]


def test_what_must_not_start_twice_is_not_held_in_advance_but_what_comes_after_is_not_either(cluster: Cluster) -> None:
    first, second, third = cluster.tasks(3)
    second.crash_limit = 0
    assert cluster.submit(first, second, third) == []
    assert started_tasks(cluster.join(W1, 1)) == [first]
    assert cluster.end(first) == [Start(W1, L1, second), Start(W1, L1, third)]


# ---- rule 4: what is held in advance


def test_what_is_held_in_advance_goes_to_an_agent_that_joins(cluster: Cluster) -> None:
    tasks = cluster.start(4, slots=2)
    cluster.begin(W1, *tasks[:2])
    assert cluster.join(W2, 8) == [*opened(W2, L2, 0, 2), RecallTask(W1, tasks[3]), RecallTask(W1, tasks[2])]
    assert cluster.report(W1, recalled(tasks[3], True), recalled(tasks[2], True)) == [
        Requeue(tasks[3]), Requeue(tasks[2]), Start(W2, L2, tasks[2]), Start(W2, L2, tasks[3]),
    ]  # fmt: skip


def test_what_is_held_in_advance_goes_to_an_idle_place_of_its_own_class(cluster: Cluster) -> None:
    """It waited behind a long task, because the idle place belonged to its class already."""
    assert cluster.join(W1, 1) == []
    assert cluster.join(W2, 1) == []
    tasks = cluster.tasks(4)
    assert started_tasks(cluster.submit(*tasks)) == tasks
    assert cluster.end(tasks[1]) == []
    assert cluster.end(tasks[3]) == [RecallTask(W1, tasks[2])]
    assert cluster.report(W1, recalled(tasks[2], True)) == [Requeue(tasks[2]), Start(W2, L2, tasks[2])]


def test_what_is_held_in_advance_goes_to_an_idle_place_of_another_class(cluster: Cluster) -> None:
    """It waited behind a long task, because the idle place was another's who did not use it."""
    assert cluster.join(W1, 1) == []
    (other,), tasks = cluster.tasks(1, 1), cluster.tasks(2)
    assert started_tasks(cluster.submit(other)) == [other]
    assert cluster.join(W2, 1) == []
    assert started_tasks(cluster.submit(*tasks)) == tasks
    assert cluster.end(other) == [CloseLane(W1, L1), *opened(W1, L3, 0, 1), RecallTask(W2, tasks[1])]


def test_a_task_that_is_killed_while_it_moves_does_not_start_again(cluster: Cluster) -> None:
    """Its agent gave it back, and had nothing to kill then."""
    tasks = cluster.start(2, slots=1)
    assert cluster.join(W2, 1) == [*opened(W2, L2, 0, 1), RecallTask(W1, tasks[1])]
    assert cluster.kill(tasks[1]) == [KillTask(W1, tasks[1], 15, 2.0)]
    assert cluster.report(W1, recalled(tasks[1], True)) == [Resolve(tasks[1], Finished(tasks[1].id, 1, KILLED))]


# ---- lost and leaving workers


def test_what_was_kept_on_a_lost_worker_is_kept_elsewhere(cluster: Cluster) -> None:
    occupy(cluster, 4, 4)
    (large,) = cluster.tasks(1, 1, priority=1, **BIG)
    assert cluster.submit(large) == [TakePlaces(W1, L1, 4)]
    wanted = list(cluster.lose(W1))
    assert len([effect for effect in wanted if isinstance(effect, Requeue)]) == 4
    assert started_tasks(cluster.join(W2, 5)) == [large, *cluster.scheduler.tasks.values()][:3]


def test_a_class_is_the_same_after_its_only_worker_was_lost(cluster: Cluster) -> None:
    """It was forgotten twice, the second time with all that waited, and was there twice from then on."""
    tasks = cluster.start(2, slots=1)
    assert cluster.end(tasks[0]) == []
    assert cluster.lose(W1) == [Requeue(tasks[1])]
    assert len(cluster.classes) == 1
    more = cluster.tasks(1)
    assert cluster.submit(*more) == []
    assert len(cluster.classes) == 1
    assert cluster.join(W2, 2) == [*opened(W2, L2, 0, 2), Start(W2, L2, tasks[1]), Start(W2, L2, *more)]


def test_a_worker_that_leaves_keeps_its_places_to_itself(cluster: Cluster) -> None:
    first, second = occupy(cluster, 2, 2)
    (other,) = cluster.tasks(1, 1)
    assert cluster.submit(other) == [TakePlaces(W1, L1, 1)]
    assert cluster.report(W1, Leaving("")) == []
    assert cluster.end(first) == []
    assert cluster.report(W1, freed(L1, 0)) == []
    assert started_tasks(cluster.join(W2, 1)) == [other]
    cluster.begin(W2, other)
    assert cluster.report(W1, Finished(second.id, 1, RETURNED, started=1.0)) == [
        Requeue(second), TakePlaces(W2, L2, 1),
    ]  # fmt: skip
    assert cluster.lose(W1) == []


def test_what_may_start_once_and_may_have_started_on_a_lost_worker_that_left_is_lost(cluster: Cluster) -> None:
    """That nobody is to blame for the loss does not say that it had not started."""
    (task,) = cluster.tasks(1, crash_limit=0)
    assert cluster.join(W1, 1) == []
    assert started_tasks(cluster.submit(task)) == [task]
    assert cluster.report(W1, Leaving("")) == []
    assert cluster.lose(W1, "gone") == [Resolve(task, Lost("gone"))]


# ---- several nodes


def pair(cluster: Cluster) -> Task:
    """A task that has started on workers 1 and 2, which have two CPUs each."""
    assert cluster.join(W1, 2) == []
    assert cluster.join(W2, 2) == []
    (task,) = cluster.tasks(1, **PAIR)
    assert cluster.submit(task) == [*opened(W1, L1, 0, 1), Start(W1, L1, task)]
    cluster.begin(W1, task)
    return task


def test_a_task_on_several_nodes_has_them_for_itself(cluster: Cluster) -> None:
    task = pair(cluster)
    assert [worker.id for worker in lane_of(task).others] == [W2]
    assert shares(task) == {"cpus": ["0", "1"]}
    (small,) = cluster.tasks(1, 1)
    assert cluster.submit(small) == [TakePlaces(W1, L1, 1)]
    assert cluster.tick(PATIENCE) == []
    assert cluster.end(task) == [CloseLane(W1, L1), *opened(W1, L2, 1, 1), Start(W1, L2, small)]
    assert cluster.report(W1, freed(L1, 0)) == []


def test_idle_nodes_are_used_again_by_the_next_task_at_once(cluster: Cluster) -> None:
    task = pair(cluster)
    assert cluster.end(task) == []
    (second,) = cluster.tasks(1, **PAIR)
    assert cluster.submit(second) == [Start(W1, L1, second)]


def test_idle_nodes_are_given_to_others(cluster: Cluster) -> None:
    task = pair(cluster)
    assert cluster.end(task) == []
    small = cluster.tasks(4, 1)
    wanted = list(cluster.submit(*small))
    assert wanted[0] == CloseLane(W1, L1)
    assert started_tasks(wanted) == small
    assert workers_of(small) == [2, 2, 0]


def test_nodes_are_of_one_group(cluster: Cluster) -> None:
    (task,) = cluster.tasks(1, **PAIR)
    assert cluster.submit(task) == []
    assert cluster.join(W1, 1, group="a") == []
    assert cluster.join(W2, 1, group="b") == []
    assert cluster.join(W3, 1, group="b") == [*opened(W2, L1, 0, 1), Start(W2, L1, task)]
    assert [worker.id for worker in lane_of(task).others] == [W3]


def test_nodes_are_kept_until_there_are_enough(cluster: Cluster) -> None:
    """The first one that was idle went to others again, and so did the second one later."""
    small = cluster.tasks(2)
    assert cluster.join(W1, 1) == []
    assert cluster.join(W2, 1) == []
    assert started_tasks(cluster.submit(*small)) == small
    cluster.begin(W1, small[0])
    cluster.begin(W2, small[1])
    (task,) = cluster.tasks(1, 1, **PAIR)
    assert cluster.submit(task) == []
    assert cluster.tick(PATIENCE) == [TakePlaces(W1, L1, 1), TakePlaces(W2, L2, 1)]
    later = cluster.tasks(2, 2)
    assert cluster.submit(*later) == []
    assert cluster.end(small[0]) == []
    assert cluster.report(W1, freed(L1, 0)) == [CloseLane(W1, L1)]
    assert cluster.tick(2 * PATIENCE) == []
    assert cluster.end(small[1]) == []
    assert started_tasks(cluster.report(W2, freed(L2, 0))) == [task]


def test_nodes_are_not_kept_for_a_task_that_lost_one_of_them(cluster: Cluster) -> None:
    small = cluster.tasks(2)
    assert cluster.join(W1, 1) == []
    assert cluster.join(W2, 1) == []
    assert started_tasks(cluster.submit(*small)) == small
    cluster.begin(W1, small[0])
    cluster.begin(W2, small[1])
    (task,) = cluster.tasks(1, 1, priority=1, **PAIR)
    assert cluster.submit(task) == [TakePlaces(W1, L1, 1), TakePlaces(W2, L2, 1)]
    assert cluster.lose(W2) == [Requeue(small[1])]
    assert cluster.end(small[0]) == []
    assert started_tasks(cluster.report(W1, freed(L1, 0))) == [small[1]]


def test_what_is_kept_for_a_large_task_is_not_lent(cluster: Cluster) -> None:
    """A task that names no resource took the whole node."""
    (small,) = occupy(cluster, 1, 4)
    (large,), (whole,) = cluster.tasks(1, 1, priority=1, **BIG), cluster.tasks(1, 2, variants=(needs(nodes=1),))
    assert cluster.submit(large) == [TakePlaces(W1, L1, 1)]
    assert cluster.submit(whole) == []
    assert cluster.end(small) == []
    assert started_tasks(cluster.report(W1, freed(L1, 0))) == [large]


def test_nodes_are_taken_from_tasks_that_follow_one_another(cluster: Cluster) -> None:
    """A backlog of tasks on several nodes kept everybody else out, also the more important."""
    first = pair(cluster)
    later = cluster.tasks(3, **PAIR)
    assert started_tasks(cluster.submit(*later)) == later[:1]
    (high,) = cluster.tasks(1, 1, priority=1)
    assert cluster.submit(high) == [TakePlaces(W1, L1, 1), RecallTask(W1, later[0])]
    assert cluster.report(W1, recalled(later[0], True)) == [Requeue(later[0])]
    assert started_tasks(cluster.end(first))[:1] == [high]


def test_the_loss_of_a_node_ends_its_task_on_the_first(cluster: Cluster) -> None:
    """It went back to the same lane, of which a node was gone."""
    task = pair(cluster)
    assert cluster.lose(W2, "a cable") == [TakePlaces(W1, L1, 1), KillTask(W1, task, 9, 0.0)]
    assert cluster.report(W1, finished(task, KILLED)) == [Requeue(task)]
    assert (task.losses, task.state) == (1, TaskState.READY)
    assert cluster.join(W3, 2) == [CloseLane(W1, L1), *opened(W1, L2, 0, 1), Start(W1, L2, task)]
    assert [worker.id for worker in lane_of(task).others] == [W3]
    assert cluster.report(W1, freed(L1, 0)) == []


def test_a_node_that_leaves_ends_the_task_that_it_is_part_of(cluster: Cluster) -> None:
    task = pair(cluster)
    task.crash_limit = 1
    assert cluster.report(W2, Leaving("")) == [TakePlaces(W1, L1, 1), KillTask(W1, task, 9, 0.0)]
    assert cluster.report(W1, finished(task, KILLED)) == [Requeue(task)]
    assert cluster.report(W1, freed(L1, 0)) == [CloseLane(W1, L1)]


def test_the_outcome_counts_if_the_task_ended_before_it_could_be_killed(cluster: Cluster) -> None:
    task = pair(cluster)
    assert cluster.lose(W2) == [TakePlaces(W1, L1, 1), KillTask(W1, task, 9, 0.0)]
    end = finished(task, VALUE)
    assert cluster.report(W1, end) == [Resolve(task, end)]


def test_a_kill_of_the_user_s_is_one_though_a_node_was_lost_before(cluster: Cluster) -> None:
    task = pair(cluster)
    task.retries = Retries(exit=1)
    assert cluster.lose(W2) == [TakePlaces(W1, L1, 1), KillTask(W1, task, 9, 0.0)]
    assert cluster.report(W1, finished(task, ERROR)) == [Requeue(task)]
    assert started_tasks(cluster.join(W3, 2)) == [task]
    end = finished(task, KILLED)
    assert cluster.report(W1, end) == [Resolve(task, end)], "the loss was the attempt's before"


def test_the_loss_of_the_first_node_gives_back_the_others(cluster: Cluster) -> None:
    task = pair(cluster)
    assert cluster.lose(W1) == [Requeue(task)]
    (small,) = cluster.tasks(1, 1)
    assert cluster.submit(small) == [*opened(W2, L2, 1, 1), Start(W2, L2, small)]


def test_nodes_are_not_lent_while_their_task_still_runs_on_a_first_one_that_leaves(cluster: Cluster) -> None:
    """Others got them at once, and the task had not ended yet."""
    task = pair(cluster)
    assert cluster.report(W1, Leaving("")) == []
    (small,) = cluster.tasks(1, 1)
    assert cluster.submit(small) == []
    end = finished(task)
    assert cluster.report(W1, end) == [Resolve(task, end), *opened(W2, L2, 1, 1), Start(W2, L2, small)]
    assert cluster.lose(W1) == []


def test_what_is_held_in_advance_elsewhere_closes_idle_nodes_first(cluster: Cluster) -> None:
    """It was sent to a node that still belonged to an idle lane, which then got a task too."""
    assert cluster.join(W1, 2) == []
    assert cluster.join(W2, 2, gpus(1)) == []
    (task,) = cluster.tasks(1, **PAIR)
    assert started_tasks(cluster.submit(task)) == [task]
    small = cluster.tasks(2, 1, variants=(needs(gpus=1),))
    assert cluster.join(W3, 0, gpus(1)) == []
    assert started_tasks(cluster.submit(*small)) == small
    cluster.begin(W3, small[0])
    assert cluster.end(task) == [CloseLane(W1, L1), *opened(W2, L3, 1, 1), RecallTask(W3, small[1])]


def test_nodes_are_taken_for_a_more_important_task_on_several(cluster: Cluster) -> None:
    first = pair(cluster)
    (high,) = cluster.tasks(1, 1, priority=1, **PAIR)
    assert cluster.submit(high) == [TakePlaces(W1, L1, 1)]
    assert cluster.tick(PATIENCE) == []
    assert cluster.end(first) == [CloseLane(W1, L1), *opened(W1, L2, 1, 1), Start(W1, L2, high)]


# ---- time


def test_a_task_starts_only_where_it_has_the_time(cluster: Cluster) -> None:
    (task,) = cluster.tasks(1, variants=(needs(cpus=1, seconds=60.0),))
    assert cluster.join(W1, 1, ends=59.0) == []
    assert cluster.submit(task) == []
    assert cluster.join(W2, 1, ends=60.0) == [*opened(W2, L1, 0, 1), Start(W2, L1, task)]


def test_a_lane_gets_no_further_task_when_the_time_is_too_short(cluster: Cluster) -> None:
    """It did, because the time was looked at when its places were given only."""
    tasks = cluster.tasks(3, variants=(needs(cpus=1, seconds=60.0),))
    assert cluster.submit(*tasks) == []
    assert started_tasks(cluster.join(W1, 1, ends=130.0)) == tasks[:1], "nothing is sent in advance"
    cluster.now = 65.0
    assert cluster.end(tasks[0]) == [Start(W1, L1, tasks[1])]
    cluster.now = 71.0
    assert cluster.end(tasks[1]) == [CloseLane(W1, L1)]
    (short,) = cluster.tasks(1)
    assert started_tasks(cluster.submit(short)) == [short]
    assert started_tasks(cluster.join(W2, 1)) == [tasks[2]]


def test_tasks_that_need_no_time_run_where_others_have_too_little(cluster: Cluster) -> None:
    (long,), (short,) = cluster.tasks(1, variants=(needs(cpus=1, seconds=60.0),)), cluster.tasks(1)
    assert cluster.submit(long, short) == []
    assert started_tasks(cluster.join(W1, 1, ends=10.0)) == [short]


def test_nothing_starts_on_a_worker_whose_time_is_over(cluster: Cluster) -> None:
    assert cluster.join(W1, 1, ends=10.0) == []
    (task,) = cluster.tasks(1)
    cluster.now = 11.0
    assert cluster.submit(task) == []


# ---- what it costs


def test_a_worker_that_changes_twice_is_looked_at_twice(cluster: Cluster) -> None:
    """A class that had taken note of the first change never heard of the second: with one worker it waited for ever."""
    (first,) = occupy(cluster, 1, 1)
    (second,), (third,) = cluster.tasks(1, 1), cluster.tasks(1, 2)
    assert cluster.submit(second) == [TakePlaces(W1, L1, 1)]
    assert cluster.submit(third) == []
    assert cluster.end(first) == []
    assert started_tasks(cluster.report(W1, freed(L1, 0))) == [second]
    cluster.begin(W1, second)
    assert cluster.tick(1.0) == [TakePlaces(W1, L2, 1)]
    assert cluster.end(second) == []
    assert started_tasks(cluster.report(W1, freed(L2, 0))) == [third]


def test_all_that_is_forgotten_of_many_changes_was_seen(cluster: Cluster, monkeypatch: Any) -> None:
    monkeypatch.setattr("executor.core.news._MANY_CHANGES", 3)
    (waiting,) = cluster.tasks(1, 1, **BIG)
    assert cluster.submit(waiting) == []
    for worker in range(10, 20):
        assert cluster.join(worker, 2) == []
    assert started_tasks(cluster.join(W1, 4)) == [waiting]
    for worker in range(20, 30):
        assert cluster.join(worker, 2) == []
    small = cluster.tasks(40)
    assert started_tasks(cluster.submit(*small)) == small
