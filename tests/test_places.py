"""Where tasks run on an agent: no part of it is ever taken twice, by whatever lanes and in whatever order."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from executor.core.free import Free
from executor.core.needs import Need, Needs
from worker_agent.places import Ledger, Places
from worker_agent.pools import UNIT, Place, Pool, Share

pytestmark = pytest.mark.shared

HALF = UNIT // 2
POOLS = [
    Pool("cpus", [["0", "1"], ["2", "3"]]),
    Pool("memory", size=4 * UNIT),
    Pool("gpus/nvidia", [["a", "b"]]),
]


def cpus(number: int, *indices: str) -> Place:
    return Place(number, [Share("cpus", len(indices) * UNIT, list(indices))])


def gpu(amount: int, *indices: str) -> Place:
    return Place(0, [Share("gpus/nvidia", amount, list(indices))])


def memory(amount: int) -> Place:
    return Place(0, [Share("memory", amount)])


# ---- the ledger


@pytest.mark.parametrize(
    ("first", "second", "fits"),
    [
        (cpus(0, "0"), cpus(0, "1"), True),
        (cpus(0, "0", "1"), cpus(0, "1", "2"), False),
        (gpu(HALF, "a"), gpu(HALF, "a"), True),
        (gpu(HALF, "a"), gpu(HALF + 1, "a"), False),
        (gpu(UNIT, "a"), gpu(1, "a"), False),
        (gpu(UNIT + HALF, "a", "b"), gpu(HALF, "b"), True),
        (gpu(UNIT + HALF, "a", "b"), gpu(HALF, "a"), False),
        (gpu(UNIT, "a"), cpus(0, "0"), True),
        (memory(3 * UNIT), memory(UNIT), True),
        (memory(3 * UNIT), memory(UNIT + 1), False),
    ],
)
def test_two_places_are_in_use_at_a_time_if_they_have_nothing_in_common(
    first: Place, second: Place, fits: bool
) -> None:
    for one, other in ((first, second), (second, first)):
        ledger = Ledger(POOLS)
        assert ledger.take(one)
        assert ledger.take(other) == fits


def test_of_a_place_that_is_not_free_as_a_whole_nothing_is_taken() -> None:
    ledger = Ledger(POOLS)
    assert ledger.take(cpus(0, "1"))
    assert not ledger.take(Place(0, [Share("memory", 4 * UNIT), Share("cpus", 2 * UNIT, ["0", "1"])]))
    assert ledger.take(memory(4 * UNIT))
    assert ledger.take(cpus(0, "0"))


def test_what_is_given_back_can_be_taken_again() -> None:
    ledger = Ledger(POOLS)
    for _ in range(3):
        assert ledger.take(cpus(0, "0", "1"))
        assert not ledger.take(cpus(0, "1"))
        ledger.give_back(cpus(0, "0", "1"))


# ---- the places of one lane


class Lane:
    """A lane's places, and what it has given back."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        self.freed: list[list[int]] = []
        self.places = Places(ledger or Ledger(POOLS), self.freed.append)

    def take(self) -> int | None:
        place = self.places.take()
        return None if place is None else place.number


def test_a_place_has_one_task_at_a_time() -> None:
    lane = Lane()
    assert lane.places.take() is None
    one, other = cpus(0, "0"), cpus(1, "1")
    lane.places.add([one, other])
    assert (lane.places.width, lane.places.busy) == (2, 0)
    assert (lane.take(), lane.take(), lane.take()) == (0, 1, None)
    assert (lane.places.width, lane.places.busy) == (2, 2)
    lane.places.release(other)
    assert (lane.places.busy, lane.take(), lane.take()) == (1, 1, None)


def test_places_where_nothing_runs_are_given_back_at_once() -> None:
    lane = Lane()
    lane.places.add([cpus(number, str(number)) for number in range(4)])
    assert lane.take() == 0
    lane.places.ask_back(2)
    assert [sorted(numbers) for numbers in lane.freed] == [[2, 3]]
    assert (lane.places.width, lane.places.busy) == (2, 1)
    assert (lane.take(), lane.take()) == (1, None)


def test_places_where_something_runs_are_given_back_when_it_has_ended() -> None:
    lane = Lane()
    lane.places.add([one := cpus(0, "0"), other := cpus(1, "1")])
    assert (lane.take(), lane.take()) == (0, 1)
    lane.places.ask_back(1)
    assert (lane.freed, lane.places.width, lane.places.busy) == ([], 1, 2)
    lane.places.release(one)
    assert (lane.freed, lane.places.width, lane.places.busy, lane.take()) == ([[0]], 1, 1, None)
    lane.places.release(other)
    assert (lane.freed, lane.take()) == ([[0]], 1)


def test_no_more_places_are_given_back_than_there_are() -> None:
    lane = Lane()
    lane.places.add([place := cpus(0, "0")])
    assert lane.take() == 0
    lane.places.ask_back(3)
    lane.places.ask_back(1)
    assert lane.places.width == 0
    lane.places.release(place)
    lane.places.add([cpus(1, "1")])
    assert (lane.freed, lane.places.width, lane.take()) == ([[0]], 1, 1)


def test_a_place_of_which_somebody_has_a_part_is_passed_over() -> None:
    ledger = Ledger(POOLS)
    leaving, lane = Lane(ledger), Lane(ledger)
    leaving.places.add([place := cpus(0, "0")])
    assert leaving.take() == 0
    lane.places.add([cpus(0, "0", "1"), cpus(1, "2")])
    assert (lane.take(), lane.take()) == (1, None)
    leaving.places.release(place)
    assert lane.take() == 0


def test_a_lane_that_is_closed_gives_up_what_it_has_once() -> None:
    ledger = Ledger(POOLS)
    closed, lane = Lane(ledger), Lane(ledger)
    closed.places.add([place := cpus(0, "0"), cpus(1, "1")])
    assert closed.take() == 0
    closed.places.close()
    lane.places.add([cpus(0, "0", "1")])
    assert lane.take() == 0
    closed.places.release(place)  # its process has left, late
    assert (closed.freed, lane.take(), ledger.take(cpus(0, "0"))) == ([], None, False)


def test_what_a_task_sees_of_its_place_is_known_by_its_number() -> None:
    lane = Lane()
    lane.places.add([cpus(7, "1", "3")])
    assert lane.places.variables[7]["HPC_CPUS"] == "1,3"
    lane.places.ask_back(1)
    assert lane.places.variables == {}


# ---- whatever happens


def parts(place: Place) -> Iterator[tuple[tuple[str, str], int]]:
    for share in place.shares:
        whole, rest = divmod(share.amount, UNIT)
        if not share.indices:
            yield (share.name, ""), share.amount
        for index in share.indices[:whole]:
            yield (share.name, index), UNIT
        if share.indices and rest:
            yield (share.name, share.indices[-1]), rest


WHICH = st.integers(0, 100)
NEEDS = st.sampled_from([
    Needs((Need("cpus", UNIT),)), Needs((Need("cpus", 3 * UNIT),)), Needs((Need("cpus", UNIT), Need("memory", UNIT))),
    Needs((Need("gpus", HALF),)), Needs((Need("cpus", UNIT), Need("gpus", UNIT + HALF))),
    Needs((Need("memory", None),)),
])  # fmt: skip


class Anything(RuleBasedStateMachine):
    """A hub that gives and takes, and an agent with some lanes, whose tasks start, end, and take a while to leave."""

    def __init__(self) -> None:
        super().__init__()
        #: what the hub has not given to any lane
        self.free = Free(POOLS)
        self.ledger = Ledger(POOLS)
        #: what each lane has, as the hub knows it, and the number of its next place
        self.lanes: dict[Places, dict[int, Place]] = {}
        self.numbers = iter(range(10**9))
        self.closing: set[Places] = set()
        self.running: list[tuple[Places, Place]] = []

    def lane(self, which: int) -> Places:
        return list(self.lanes)[which % len(self.lanes)]

    @precondition(lambda self: len(self.lanes) < 5)
    @rule()
    def open(self) -> None:
        def on_freed(numbers: list[int]) -> None:
            for number in numbers:
                place = given.pop(number)
                assert (lane, place) not in self.running, "a place is given back, and something is there"
                self.free.release(place.shares)

        given: dict[int, Place] = {}
        lane = Places(self.ledger, on_freed)
        self.lanes[lane] = given

    @precondition(lambda self: self.lanes)
    @rule(which=WHICH, needs=NEEDS, most=st.integers(1, 4))
    def give(self, which: int, needs: Needs, most: int) -> None:
        lane = self.lane(which)
        places = [Place(next(self.numbers), shares) for shares in self.free.claim_many(needs, most)]
        self.lanes[lane].update({place.number: place for place in places})
        lane.add(places)

    @precondition(lambda self: self.lanes)
    @rule(which=WHICH, count=st.integers(1, 3))
    def ask_back(self, which: int, count: int) -> None:
        self.lane(which).ask_back(count)

    @precondition(lambda self: self.lanes)
    @rule(which=WHICH)
    def start(self, which: int) -> None:
        lane = self.lane(which)
        place = lane.take()
        if place is not None:
            assert self.lanes[lane].get(place.number) is place
            self.running.append((lane, place))
        elif not self.closing:
            assert lane.busy == len(self.lanes[lane]), "a place is free, and nobody may have it"

    @precondition(lambda self: self.running)
    @rule(which=WHICH)
    def leave(self, which: int) -> None:
        """A process is gone; perhaps it was the last one of a lane that is not needed."""
        lane, place = self.running.pop(which % len(self.running))
        lane.release(place)
        self.close_if_idle(lane)

    @precondition(lambda self: self.lanes)
    @rule(which=WHICH)
    def close(self, which: int) -> None:
        """The hub closes lanes whose tasks have ended; their processes may be there still."""
        lane = self.lane(which)
        for place in self.lanes.pop(lane).values():
            self.free.release(place.shares)
        self.closing.add(lane)
        self.close_if_idle(lane)

    def close_if_idle(self, lane: Places) -> None:
        if lane in self.closing and not any(each is lane for each, _ in self.running):
            self.closing.discard(lane)
            lane.close()

    @invariant()
    def nothing_is_used_twice(self) -> None:
        used: Counter[tuple[str, str]] = Counter()
        for _, place in self.running:
            for part, amount in parts(place):
                used[part] += amount
        sizes = {pool.name: pool.size or UNIT for pool in POOLS}
        assert not [part for part, amount in used.items() if amount > sizes[part[0]]]

    @invariant()
    def lanes_count_right(self) -> None:
        for lane, given in self.lanes.items():
            busy = sum(each is lane for each, _ in self.running)
            assert lane.busy == busy
            assert 0 <= lane.width <= len(given)

    def teardown(self) -> None:
        """When all have left, all is free."""
        if sys.exc_info()[0] is not None:
            return  # the story of what went wrong is told already
        while self.running:
            self.leave(0)
        while self.lanes:
            self.close(0)
        assert self.free.idle
        assert self.ledger.take(Place(0, self.free.claim_all()))


def test_whatever_happens_no_part_is_taken_twice() -> None:
    machine: Any = Anything
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100, stateful_step_count=40, derandomize=True, database=None, deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
