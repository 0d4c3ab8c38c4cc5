"""The scheduler among agents that are not there: small runs of the simulator, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.simulate import bytes_per_waiting_task, lower_bound, simulate
from benchmarks.simulate_agents import Book, Violation
from benchmarks.simulate_bounds import critical_path, work_bounds
from benchmarks.simulate_shapes import SHAPES, Job, Kind, Size, make_jobs, make_pools
from executor.core.model import ONE_CPU_EACH
from executor.core.needs import Need, Needs
from worker_agent.pools import UNIT, Place, Pool, Share

pytestmark = pytest.mark.shared

SMALL = Size(agents=4, cpus=32, tasks=300, classes=20)
#: So large that one stage lasts much longer than its last task.
WIDE = Size(agents=2, cpus=128, tasks=2500, classes=20)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_task_ends_once_and_all_claims_are_given_back(shape: str) -> None:
    jobs = make_jobs(shape, SMALL)
    measured = simulate(SMALL, jobs, check=50)
    assert measured.starts >= len(jobs)
    assert measured.makespan >= lower_bound(SMALL, jobs)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_task_is_lost_with_its_agent(shape: str) -> None:
    measured = simulate(SMALL, make_jobs(shape, SMALL), lost=1.0, check=50)
    assert measured.lost > 0
    assert measured.requeued > 0


@pytest.mark.parametrize("shape", ["fork-join", "layered"])
def test_the_makespan_is_near_what_no_scheduler_can_beat(shape: str) -> None:
    jobs = make_jobs(shape, WIDE)
    assert simulate(WIDE, jobs).makespan <= 1.1 * lower_bound(WIDE, jobs)


def test_the_same_seed_is_the_same_run() -> None:
    one, other = (simulate(SMALL, make_jobs("layered", SMALL), lost=0.5) for _ in range(2))
    assert (one.makespan, one.starts, one.calls) == (other.makespan, other.starts, other.calls)


def test_a_waiting_task_costs_less_than_a_kilobyte() -> None:
    assert all(bytes_per_waiting_task(2000, awaited) < 1000 for awaited in (0, 1, 3))


def test_the_bound_of_a_chain_is_its_length_and_that_of_work_its_share() -> None:
    kind = Kind(0, ONE_CPU_EACH, 1.0)
    jobs = [Job(1, kind, 2.0), Job(2, kind, 3.0, (1,)), Job(3, kind, 4.0)]
    assert critical_path(jobs) == 5.0
    assert work_bounds(jobs, [[Pool("cpus", [["0", "1"]])]]) == {"cpus": 4.5}


def test_who_may_have_a_gpu_or_cpus_is_bounded_by_both_together() -> None:
    either = Needs((Need("gpus", UNIT),)), Needs((Need("cpus", 4 * UNIT),))
    jobs = [Job(number, Kind(0, either, 1.0), 1.0) for number in range(1, 13)]
    pools = [Pool("cpus", [[str(number) for number in range(8)]]), Pool("gpus", [["0"]])]
    assert work_bounds(jobs, [pools]) == {"cpus": 0.0, "gpus": 0.0, "cpus and gpus": 4.0}  # three at a time


@pytest.mark.parametrize(
    "shares",
    [
        [Share("cpus", UNIT, ["0"]), Share("cpus", UNIT, ["0"])],
        [Share("cpus", UNIT // 2, ["0"]), Share("cpus", UNIT, ["0"])],
        [Share("cpus", UNIT, ["0"]), Share("cpus", UNIT // 2, ["0"])],
        [Share("cpus", 6000, ["0"]), Share("cpus", 6000, ["0"])],
        [Share("memory", 3 * UNIT), Share("memory", 3 * UNIT)],
    ],
)
def test_an_agent_sees_that_something_is_given_twice(shares: list[Any]) -> None:
    book = Book([Pool("cpus", [["0", "1"]]), Pool("memory", size=5 * UNIT)])
    first, second = (Place(number, [share]) for number, share in enumerate(shares))
    book.take(first)
    with pytest.raises(Violation):
        book.take(second)


def test_what_is_given_back_can_be_given_again() -> None:
    book = Book(make_pools(SMALL)[0])
    place = Place(0, [Share("cpus", UNIT + 5000, ["0", "1"]), Share("memory", UNIT)])
    for _ in range(2):
        book.take(place)
        assert not book.is_empty
        book.give_back(place)
        assert book.is_empty
