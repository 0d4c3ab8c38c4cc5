"""What agents offer, and what none of them can ever meet."""

from __future__ import annotations

import math

import pytest
from dialogue import cpus

from executor.core.needs import Need, Needs
from executor.core.offers import Impossible, Offer, best_of, find_impossible, less_than_asked
from worker_agent.pools import UNIT, Pool

MIB = UNIT


def need(**amounts: float) -> Needs:
    return Needs(tuple(Need(name, int(amount * UNIT)) for name, amount in sorted(amounts.items())))


def memory(mib: int) -> Pool:
    return Pool("memory", size=mib * MIB)


@pytest.mark.parametrize(
    ("needs", "lacking"),
    [
        (need(cpus=4), None),
        (need(cpus=5), Impossible("cpus", 5.0, 4.0)),
        (need(cpus=1, gpus=1), Impossible("gpus", 1.0, 0.0)),
        (Needs(nodes=2), None),
        (Needs(nodes=3), Impossible("nodes", 3.0, 2.0)),
        (Needs(seconds=601.0), Impossible("time_request", 601.0, 600.0)),
        (Needs(seconds=600.0), None),
    ],
)
def test_what_is_lacking(needs: Needs, lacking: Impossible | None) -> None:
    assert find_impossible((needs,), [Offer(cpus(2)), Offer(cpus(4), nodes=2, seconds=600.0)]) == (
        lacking if not needs.seconds else None
    )
    assert find_impossible((needs,), [Offer(cpus(4), nodes=2, seconds=600.0)]) == lacking


def test_one_variant_that_one_agent_meets_is_enough() -> None:
    assert find_impossible((need(gpus=1), need(cpus=3)), [Offer(cpus(2)), Offer(cpus(3))]) is None
    assert find_impossible((need(gpus=1), need(cpus=4)), [Offer(cpus(2)), Offer(cpus(3))]) == Impossible("gpus", 1.0, 0)


def test_each_alone_could_be_had_but_not_from_the_same_agent() -> None:
    offers = [Offer([*cpus(1), memory(64)]), Offer([*cpus(4), memory(16)])]
    assert find_impossible((need(cpus=4, memory=64),), offers) == Impossible("cpus", 4.0, 4.0)


def test_where_nobody_knows_what_there_is_all_is_possible() -> None:
    assert find_impossible((need(cpus=99),), [Offer(None)]) is None
    assert find_impossible((need(gpus=1),), [Offer(cpus(4), asked=True)]) is None
    assert find_impossible((need(cpus=5, gpus=1),), [Offer(cpus(4), asked=True)]) == Impossible("cpus", 5.0, 4.0)
    assert find_impossible((Needs(nodes=2),), [Offer(None)]) == Impossible("nodes", 2.0, 1.0)


def test_without_any_agent_nothing_is_possible() -> None:
    assert find_impossible((need(cpus=1),), []) == Impossible("cpus", 1.0, 0.0)


@pytest.mark.parametrize(
    ("lacking", "text"),
    [
        (Impossible("cpus", 5.0, 4.0), "cpus=5, and an agent has 4 at most"),
        (Impossible("memory", 2048.0, 1024.0), "memory=2048 MiB, and an agent has 1024 at most"),
        (Impossible("gpus", 1.0, 0.0), "gpus=1, and no agent has any"),
        (Impossible("nodes", 2.0, 1.0), "2 nodes, and there is 1 agent in a group"),
        (Impossible("nodes", 3.0, 2.0), "3 nodes, and there are 2 agents in a group"),
        (Impossible("time_request", 7200.0, 3600.0), "7200 s (time_request), and an agent lives for 3600 s at most"),
    ],
)
def test_it_is_said_in_words(lacking: Impossible, text: str) -> None:
    assert str(lacking) == text


def test_an_agent_has_less_than_was_asked_for() -> None:
    asked = Offer([*cpus(4), memory(64)], asked=True)
    assert less_than_asked(asked, [*cpus(4), memory(64)]) == []
    assert less_than_asked(asked, [*cpus(2), memory(128)]) == ["4 cpus were asked for, and an agent has 2"]
    assert less_than_asked(asked, cpus(4)) == ["64 memory were asked for, and an agent has 0"]


def test_it_is_said_once_and_of_those_of_which_nobody_knew_anything_never() -> None:
    assert less_than_asked(Offer(cpus(4)), cpus(2)) == []
    assert less_than_asked(Offer(None, asked=True), cpus(2)) == []


def test_where_nodes_differ_the_larger_counts() -> None:
    few, many = [*cpus(2), memory(64)], [*cpus(4), memory(32), Pool("gpus", [["0"]])]
    assert best_of(few, many) == [*cpus(4), memory(64), Pool("gpus", [["0"]])]
    assert best_of(many, few) == [*cpus(4), memory(64), Pool("gpus", [["0"]])]


def test_a_lifetime_that_nobody_knows_is_endless() -> None:
    assert Offer().seconds == math.inf
