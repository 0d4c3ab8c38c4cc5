"""How many agents the waiting tasks could use."""

from __future__ import annotations

from dialogue import cpus

from executor.core.demand import Chance, wanted_agents
from executor.core.model import Queue, Task, TaskClass
from executor.core.needs import Need, Needs
from executor.core.offers import Offer
from worker_agent.pools import UNIT, Pool

ONE = Needs((Need("cpus", UNIT),))


def waiting(count: int, *variants: Needs) -> TaskClass:
    """A class of which so many tasks wait, each with one CPU unless told otherwise."""
    of = TaskClass(1, variants or (ONE,))
    of.queues[0] = Queue(of, 0)
    of.queues[0].ready.extend(Task(number, 1, None) for number in range(1, count + 1))
    return of


def chance(count: int | None, room: int = 10, seconds: float = 3600.0) -> Chance:
    """A cluster whose nodes have so many CPUs; None: nobody knows."""
    return Chance(Offer(None if count is None else cpus(count), seconds=seconds), room)


def test_nothing_waits_and_nothing_is_wanted() -> None:
    assert wanted_agents([], [chance(4), chance(None)]) == [0, 0]
    assert wanted_agents([waiting(0)], [chance(4), chance(None)]) == [0, 0]


def test_agents_are_filled_and_the_last_one_may_have_room_left() -> None:
    assert wanted_agents([waiting(8)], [chance(4)]) == [2]
    assert wanted_agents([waiting(9)], [chance(4)]) == [3]


def test_classes_share_an_agent() -> None:
    assert wanted_agents([waiting(2), waiting(2)], [chance(4)]) == [1]
    assert wanted_agents([waiting(3), waiting(2)], [chance(4)]) == [2]


def test_no_more_is_wanted_than_there_is_room_for() -> None:
    assert wanted_agents([waiting(100)], [chance(4, room=3)]) == [3]
    assert wanted_agents([waiting(100), waiting(100)], [chance(4, room=3)]) == [3]


def test_what_has_no_room_in_one_cluster_goes_to_the_next() -> None:
    assert wanted_agents([waiting(20)], [chance(4, room=3), chance(2)]) == [3, 4]


def test_of_a_cluster_of_which_nobody_knows_anything_one_agent_is_wanted() -> None:
    assert wanted_agents([waiting(100)], [chance(None)]) == [1]
    assert wanted_agents([waiting(100), waiting(100)], [chance(None)]) == [1]


def test_a_task_that_fits_nowhere_wants_nothing() -> None:
    assert wanted_agents([waiting(1, Needs((Need("cpus", 5 * UNIT),)))], [chance(4)]) == [0]
    assert wanted_agents([waiting(1, Needs((Need("gpus", UNIT),)))], [chance(4)]) == [0]


def test_a_task_that_takes_longer_than_an_allocation_wants_nothing() -> None:
    assert wanted_agents([waiting(1, Needs(ONE.needs, 601.0))], [chance(4, seconds=600.0), chance(4)]) == [0, 1]


def test_a_task_goes_where_its_needs_are_met() -> None:
    gpu = [*cpus(4), Pool("gpus", [["0", "1"]])]
    both = [Chance(Offer(cpus(4)), 10), Chance(Offer(gpu), 10)]
    assert wanted_agents([waiting(4, Needs((Need("cpus", UNIT), Need("gpus", UNIT))))], both) == [0, 2]


def test_of_the_variants_the_one_counts_of_which_most_have_room() -> None:
    two, four = (Needs((Need("cpus", count * UNIT),)) for count in (2, 4))
    assert wanted_agents([waiting(4, four, two)], [chance(4)]) == [2]


def test_a_need_of_all_of_a_resource_takes_an_agent_for_itself() -> None:
    assert wanted_agents([waiting(3, Needs((Need("cpus", None),)))], [chance(4)]) == [3]


def several(group: int, room: int = 10) -> Chance:
    """A cluster whose allocations have so many nodes."""
    return Chance(Offer(cpus(4), nodes=group), room)


def test_tasks_of_several_nodes_want_that_many_each() -> None:
    assert wanted_agents([waiting(2, Needs(nodes=3))], [several(3)]) == [6]
    assert wanted_agents([waiting(2, Needs(nodes=3))], [several(3, room=4)]) == [4]


def test_of_what_an_allocation_has_too_little_for_another_task_nothing_is_used() -> None:
    assert wanted_agents([waiting(2, Needs(nodes=3))], [several(5)]) == [10]


def test_tasks_of_several_nodes_want_nothing_where_allocations_have_fewer() -> None:
    assert wanted_agents([waiting(2, Needs(nodes=3))], [several(2), several(1)]) == [0, 0]


def test_of_a_resource_that_was_not_asked_for_nobody_knows_and_one_agent_is_wanted() -> None:
    asked = Chance(Offer(cpus(4), asked=True), 10)
    gpu = Needs((Need("cpus", UNIT), Need("gpus", UNIT)))
    assert wanted_agents([waiting(20, gpu)], [asked]) == [1]
    assert wanted_agents([waiting(20, Needs((Need("cpus", 5 * UNIT), Need("gpus", UNIT))))], [asked]) == [0]


def test_who_was_asked_for_gpus_may_have_those_of_a_kind() -> None:
    asked = Chance(Offer([*cpus(4), Pool("gpus", [["0", "1"]])], asked=True), 10)
    assert wanted_agents([waiting(6, Needs((Need("gpus/nvidia", UNIT),)))], [asked]) == [3]
