"""What is free of an agent's pools: who gets what, and what does not fit.

First the rules, by values. Then anything in any order, against books that are kept by index: how much of each is given,
and in how few groups, or how many, a need could be served, by trying all that there are.
``CORE_EXAMPLES=1000 python -m pytest tests/core`` looks longer, each time elsewhere.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from executor.core.free import Free, NotClaimed
from executor.core.needs import ONE_CPU, POLICIES, Need, Needs
from worker_agent.pools import UNIT, Pool, Share

pytestmark = pytest.mark.shared

MEMORY = Pool("mem", size=64 * UNIT)


def indexed(name: str, *sizes: int) -> Pool:
    """Groups of these sizes; names are counted through."""
    numbers = iter(range(sum(sizes)))
    return Pool(name, [[str(next(numbers)) for _ in range(size)] for size in sizes])


def needs(*each: Need) -> Needs:
    return Needs(each)


def need(amount: float | None, policy: str = "compact", name: str = "cpus") -> Needs:
    return needs(Need(name, None if amount is None else round(amount * UNIT), policy))


def take(free: Free, amount: float | None, policy: str = "compact", name: str = "cpus") -> list[str]:
    """Claim one thing, which fits; the indices."""
    wanted = need(amount, policy, name)
    assert free.fits(wanted)
    shares = free.claim(wanted)
    assert shares is not None
    assert [share.name for share in shares] == [name]
    return shares[0].indices


def refuses(free: Free, wanted: Needs) -> bool:
    """It does not fit, which is answered by all who are asked and changes nothing."""
    before = state(free)
    answers = (free.fits(wanted), free.claim(wanted) is not None, free.claim_many(wanted, 1) != [])
    assert len(set(answers)) == 1
    assert state(free) == before
    return not answers[0]


def state(free: Free) -> list[Any]:
    """All that a Free remembers."""
    return [
        (name, stock.free, getattr(stock, "groups", None), getattr(stock, "rests", None))
        for name, stock in free._stocks.items()
    ]


def spread(free: Free, amount: float, policy: str, size: int = 4) -> list[int]:
    """How many indices come from each of the groups of this size, without the groups that give none."""
    counts = Counter(int(index) // size for index in take(free, amount, policy))
    return [counts[group] for group in sorted(counts)]


# ---- amounts and names


def test_a_claim_has_a_share_for_each_need_in_their_order() -> None:
    free = Free([MEMORY, indexed("cpus", 8), indexed("gpus", 2)])
    wanted = needs(Need("cpus", 2 * UNIT), Need("gpus", UNIT), Need("mem", 8 * UNIT))
    assert free.claim(wanted) == [
        Share("cpus", 2 * UNIT, ["0", "1"]),
        Share("gpus", UNIT, ["0"]),
        Share("mem", 8 * UNIT, []),
    ]
    assert (free.names, free.idle) == (("mem", "cpus", "gpus"), False)
    assert [free.amount(name) // UNIT for name in free.names] == [56, 6, 1]
    assert [free.total(name) // UNIT for name in free.names] == [64, 8, 2]


def test_what_does_not_fit_as_a_whole_changes_nothing() -> None:
    free = Free([indexed("cpus", 8), indexed("gpus", 1)])
    take(free, 1, name="gpus")
    assert refuses(free, needs(Need("cpus", UNIT), Need("gpus", UNIT)))
    assert take(free, 8) == list("01234567")


def test_who_needs_nothing_gets_nothing() -> None:
    free = Free([])
    assert free.fits(Needs())
    assert free.possible(Needs())
    assert free.claim(Needs()) == []
    assert free.claim_many(Needs(), 2) == [[], []]
    assert free.idle


def test_lifetime_and_nodes_are_others_concern() -> None:
    free = Free([indexed("cpus", 1)])
    assert free.claim(Needs(ONE_CPU.needs, seconds=1e9, nodes=7)) == [Share("cpus", UNIT, ["0"])]


def test_a_resource_that_the_agent_has_not_does_not_fit() -> None:
    free = Free([indexed("cpus", 4), Pool("none")])
    for name in ("gpus", "cpu", "cpus/big", "none"):
        for amount in (1, 0.5, None):
            assert refuses(free, need(amount, name=name))
            assert not free.possible(need(amount, name=name))
        assert (free.amount(name), free.total(name)) == (0, 0)


@pytest.mark.parametrize("pool", [indexed("cpus", 4), indexed("cpus", 2, 2), Pool("cpus", size=4 * UNIT)])
@pytest.mark.parametrize("policy", POLICIES)
def test_possible_is_what_fits_when_nothing_is_claimed(pool: Pool, policy: str) -> None:
    free = Free([pool])
    take(free, 4)
    for amount in (0.5, 1, 3.5, 4, None):
        assert free.possible(need(amount, policy))
        assert refuses(free, need(amount, policy))
    for amount in (4.0001, 5):
        assert not free.possible(need(amount, policy))


def test_lowest_indices_come_first_whatever_was_given_back_in_which_order() -> None:
    free = Free([Pool("cpus", [["a", "d", "c", "b"]])])
    claims = [take(free, 1) for _ in range(4)]
    assert claims == [["a"], ["d"], ["c"], ["b"]]
    for index in ("b", "a", "c"):
        free.release([Share("cpus", UNIT, [index])])
    assert take(free, 2) == ["a", "c"]


def test_sixteen_cpus_and_four_gpus_as_in_the_manual() -> None:
    """HyperQueue's example of variants: 1 cpu and 1 gpu, or 4 cpus."""
    free = Free([indexed("cpus", 16), indexed("gpus", 4)])
    with_gpu = needs(Need("cpus", UNIT), Need("gpus", UNIT))
    assert len(free.claim_many(with_gpu, 100)) == 4
    assert refuses(free, with_gpu)
    assert len(free.claim_many(need(4), 100)) == 3
    assert refuses(free, need(4))
    assert not free.possible(needs(Need("cpus", 17 * UNIT), Need("gpus", UNIT)))


# ---- all of a pool


def test_all_takes_every_index_and_waits_for_the_last() -> None:
    free = Free([indexed("cpus", 2, 2), MEMORY])
    part = Share("cpus", UNIT // 2, take(free, 0.5))
    assert refuses(free, need(None))
    free.release([part])
    assert free.claim(need(None)) == [Share("cpus", 4 * UNIT, ["0", "1", "2", "3"])]
    assert refuses(free, need(0.0001))
    assert free.claim(need(None, name="mem")) == [Share("mem", 64 * UNIT)]
    assert refuses(free, need(None, name="mem"))


def test_all_of_less_than_one_does_not_fit() -> None:
    free = Free([Pool("mem", size=UNIT - 1), Pool("disk", size=UNIT)])
    assert refuses(free, need(None, name="mem"))
    assert not free.possible(need(None, name="mem"))
    assert free.claim_many(need(None, name="disk"), 5) == [[Share("disk", UNIT)]]


def test_a_whole_node_is_everything_once() -> None:
    free = Free([indexed("cpus", 2, 1), Pool("none"), MEMORY])
    shares = free.claim_all()
    assert shares == [Share("cpus", 3 * UNIT, ["0", "1", "2"]), Share("mem", 64 * UNIT)]
    assert refuses(free, ONE_CPU)
    with pytest.raises(AssertionError, match="a part is claimed"):
        free.claim_all()
    free.release(shares)
    assert free.idle
    assert free.claim_all() == shares


# ---- fractions


def test_a_sum_is_plain_arithmetic() -> None:
    free = Free([Pool("mem", size=2 * UNIT)])
    assert take(free, 0.75, name="mem") == []
    assert take(free, 0.75, name="mem") == []
    assert take(free, 0.5, name="mem") == []
    assert refuses(free, need(0.0001, name="mem"))


def test_two_indices_used_to_three_quarters_do_not_serve_a_half() -> None:
    free = Free([indexed("gpus", 2)])
    assert [take(free, 0.75, name="gpus") for _ in range(2)] == [["0"], ["1"]]
    assert free.amount("gpus") == UNIT // 2
    assert refuses(free, need(0.5, name="gpus"))
    assert take(free, 0.25, name="gpus") == ["0"]


def test_two_and_a_half_are_two_whole_ones_and_half_of_the_last() -> None:
    free = Free([indexed("gpus", 4)])
    assert take(free, 2.5, name="gpus") == ["0", "1", "2"]
    assert take(free, 1.5, name="gpus") == ["3", "2"]
    assert free.amount("gpus") == 0


def test_parts_of_indices_do_not_make_a_whole_one() -> None:
    free = Free([indexed("gpus", 2)])
    assert take(free, 0.5, name="gpus") == ["0"]
    assert refuses(free, need(1.5001, name="gpus"))
    assert take(free, 1.5, name="gpus") == ["1", "0"]


def test_a_part_comes_from_the_index_with_the_least_left() -> None:
    free = Free([indexed("gpus", 4)])
    claimed = [take(free, amount, name="gpus") for amount in (0.3, 0.8, 0.1)]
    assert claimed == [["0"], ["1"], ["1"]]  # 0.7 and 0.1 are left
    assert take(free, 0.2, name="gpus") == ["0"]
    assert take(free, 0.6, name="gpus") == ["2"]
    assert take(free, 0.1, name="gpus") == ["1"]
    assert take(free, 1, name="gpus") == ["3"]


def test_an_index_is_whole_again_when_its_last_part_is_back() -> None:
    free = Free([indexed("gpus", 1)])
    for _ in range(2):
        take(free, 0.5, name="gpus")
    half = Share("gpus", UNIT // 2, ["0"])
    free.release([half])
    assert refuses(free, need(1, name="gpus"))
    free.release([half])
    assert free.idle
    assert take(free, 1, name="gpus") == ["0"]


# ---- policies


@pytest.mark.parametrize(
    ("policy", "counts"),
    [("compact", [3, 3]), ("compact!", [3, 3]), ("tight", [4, 2]), ("tight!", [4, 2]), ("scatter", [2, 2, 2])],
)
def test_six_over_three_groups_of_four_as_in_the_manual(policy: str, counts: list[int]) -> None:
    assert spread(Free([indexed("cpus", 4, 4, 4)]), 6, policy) == counts


@pytest.mark.parametrize(
    ("amount", "policy", "counts"),
    [
        (5, "compact", [3, 2]), (5, "tight", [4, 1]), (5, "scatter", [2, 2, 1]), (9, "compact", [3, 3, 3]),
        (9, "tight", [4, 4, 1]), (11, "compact", [4, 4, 3]), (2, "scatter", [1, 1]), (12, "scatter", [4, 4, 4]),
        (4, "compact", [4]), (4, "scatter", [2, 1, 1]), (4.5, "compact", [3, 2]), (4.5, "tight", [4, 1]),
        (4.5, "scatter", [2, 2, 1]), (0.5, "scatter", [1]), (3.5, "compact!", [4]), (4.5, "compact!", [3, 2]),
    ],
)  # fmt: skip
def test_how_policies_spread_over_three_groups_of_four(amount: float, policy: str, counts: list[int]) -> None:
    assert spread(Free([indexed("cpus", 4, 4, 4)]), amount, policy) == counts


def test_scatter_over_four_sockets_as_in_the_manual() -> None:
    assert spread(Free([indexed("cpus", 8, 8, 8, 8)]), 8, "scatter", size=8) == [2, 2, 2, 2]


def test_the_smallest_group_that_suffices_is_used_so_that_others_stay_whole() -> None:
    free = Free([indexed("cpus", 4, 2, 3)])
    assert take(free, 2) == ["4", "5"]
    assert take(free, 1) == ["6"]
    assert take(free, 4) == ["0", "1", "2", "3"]


def test_of_several_groups_the_last_is_the_smallest_that_suffices() -> None:
    pool = indexed("cpus", 2, 4, 3, 4)
    assert take(Free([pool]), 6, "tight") == ["0", "1", "2", "3", "4", "5"]
    assert take(Free([pool]), 7, "tight") == ["2", "3", "4", "5", "6", "7", "8"]
    assert take(Free([pool]), 6, "compact") == ["0", "1", "2", "3", "4", "5"]
    assert take(Free([pool]), 7, "compact") == ["2", "3", "4", "5", "6", "7", "8"]


def test_groups_that_have_too_few_give_what_they_have() -> None:
    assert take(Free([indexed("cpus", 1, 4, 4)]), 6, "scatter") == ["0", "1", "2", "3", "5", "6"]
    assert take(Free([indexed("cpus", 1, 4)]), 4, "compact") == ["1", "2", "3", "4"]
    assert take(Free([indexed("cpus", 1, 4)]), 5, "compact") == ["0", "1", "2", "3", "4"]
    assert take(Free([indexed("cpus", 0, 3, 0, 1)]), 2, "scatter") == ["0", "3"]


def test_the_odd_ones_are_of_the_first_group() -> None:
    assert take(Free([indexed("cpus", 3, 4)]), 5, "compact") == ["0", "1", "2", "3", "4"]
    assert take(Free([indexed("cpus", 3, 4)]), 5, "scatter") == ["0", "1", "2", "3", "4"]


def test_compact_takes_what_there_is_and_strict_waits() -> None:
    free = Free([indexed("cpus", 4, 4)])
    claims = [take(free, 3, "compact!") for _ in range(2)]
    assert claims == [["0", "1", "2"], ["4", "5", "6"]]
    assert refuses(free, need(2, "compact!"))
    assert refuses(free, need(2, "tight!"))
    assert refuses(free, need(1.5, "compact!"))
    assert free.possible(need(2, "compact!"))
    assert take(free, 2) == ["3", "7"]


def test_strict_knows_the_fewest_groups_of_this_agent() -> None:
    free = Free([indexed("cpus", 2, 2, 6)])
    assert take(free, 1, "compact!") == ["0"]
    assert take(free, 7, "tight!") == ["1", "4", "5", "6", "7", "8", "9"]
    free = Free([indexed("cpus", 2, 2, 6)])
    take(free, 6)
    assert refuses(free, need(3, "tight!"))
    assert take(free, 3, "tight") == ["0", "1", "2"]


def test_strict_has_no_meaning_for_one_group_or_none() -> None:
    for pool in (indexed("cpus", 4), Pool("cpus", size=4 * UNIT)):
        free = Free([pool])
        take(free, 1.5, "compact!")
        take(free, 1.5, "tight!")
        take(free, 1, "scatter")
        assert free.amount("cpus") == 0


def test_a_part_costs_no_group_that_it_need_not() -> None:
    """The partly used index is in the first group, and there is no other whole one there."""
    free = Free([indexed("cpus", 1, 3)])
    assert take(free, 0.5) == ["0"]
    assert take(free, 2.5) == ["1", "2", "3"]
    assert take(free, 0.5) == ["0"]
    assert take(free, 0.5) == ["3"]


def test_a_part_comes_from_a_partly_used_index_where_that_costs_no_group() -> None:
    free = Free([indexed("cpus", 3, 3)])
    take(free, 0.5)
    assert take(free, 2.5) == ["1", "2", "0"]
    assert take(free, 3) == ["3", "4", "5"]


def test_the_group_of_the_part_gives_whole_ones_too() -> None:
    for policy in POLICIES:
        free = Free([indexed("cpus", 4, 4)])
        take(free, 0.5)
        assert take(free, 6.5, policy) == ["1", "2", "3", "4", "5", "6", "0"]


def test_scatter_counts_the_group_of_the_part() -> None:
    free = Free([indexed("cpus", 2, 2)])
    take(free, 0.5)
    assert take(free, 1.5, "scatter") == ["2", "0"]


def test_scatter_prefers_another_group_to_the_index_with_the_least_left() -> None:
    free = Free([indexed("cpus", 2, 1)])
    assert take(free, 0.5) == ["2"]
    assert take(free, 0.6) == ["0"]  # 0.5 of the last one is left, and 0.4 of the first
    assert take(free, 1.3, "scatter") == ["1", "2"]


# ---- families


GPUS = [indexed("gpus/amd", 1), indexed("gpus/nvidia", 4), indexed("gpusx/a", 9), indexed("cpus", 4)]


def test_gpus_are_those_of_any_vendor_but_of_one() -> None:
    free = Free(GPUS)
    assert free.claim(need(1, name="gpus")) == [Share("gpus/amd", UNIT, ["0"])]
    assert free.claim(need(1, name="gpus")) == [Share("gpus/nvidia", UNIT, ["0"])]
    assert refuses(free, need(4, name="gpus"))
    assert free.claim(need(3, name="gpus")) == [Share("gpus/nvidia", 3 * UNIT, ["1", "2", "3"])]
    assert free.possible(need(4, name="gpus"))
    assert not free.possible(need(5, name="gpus"))


def test_of_a_family_the_amounts_are_the_best_that_one_pool_has() -> None:
    free = Free(GPUS)
    assert (free.amount("gpus"), free.total("gpus")) == (4 * UNIT, 4 * UNIT)
    take(free, 3.5, name="gpus/nvidia")
    assert (free.amount("gpus"), free.total("gpus")) == (UNIT, 4 * UNIT)


def test_a_pool_of_that_very_name_is_the_only_one_asked() -> None:
    free = Free([indexed("gpus/amd", 4), indexed("gpus", 1)])
    assert free.claim(need(1, name="gpus")) == [Share("gpus", UNIT, ["0"])]
    assert refuses(free, need(1, name="gpus"))
    assert not free.possible(need(2, name="gpus"))


def test_all_gpus_are_all_of_the_first_vendor_that_is_idle() -> None:
    free = Free(GPUS)
    take(free, 1, name="gpus/amd")
    assert free.claim_many(need(None, name="gpus"), 5) == [[Share("gpus/nvidia", 4 * UNIT, ["0", "1", "2", "3"])]]


def test_a_family_leaves_a_pool_to_the_need_that_names_it() -> None:
    free = Free(GPUS)
    any_and_amd = needs(Need("gpus", UNIT), Need("gpus/amd", UNIT))
    assert free.claim(any_and_amd) == [Share("gpus/nvidia", UNIT, ["0"]), Share("gpus/amd", UNIT, ["0"])]
    only_amd = Free([indexed("gpus/amd", 4)])
    assert refuses(only_amd, any_and_amd)
    assert not only_amd.possible(any_and_amd)
    assert only_amd.shortages(any_and_amd) == [("gpus/amd", UNIT, 4 * UNIT, 4 * UNIT)]


# ---- many at once


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sizes", [(7,), (4, 4), (2, 5, 1, 5), ()])
def test_many_claims_are_the_same_as_one_after_another(policy: str, sizes: tuple[int, ...]) -> None:
    for before, amount, most in product((0.5, 1, 3.25), (0.5, 1, 1.5, 2, 3, 5, None), (0, 1, 2, 100)):
        many, single = Free([indexed("cpus", *sizes)]), Free([indexed("cpus", *sizes)])
        assert many.claim(need(before, "scatter")) == single.claim(need(before, "scatter"))
        wanted = need(amount, policy)
        expected = [shares for _ in range(most) if (shares := single.claim(wanted)) is not None]
        assert many.claim_many(wanted, most) == expected
        assert state(many) == state(single)


def test_many_claims_end_with_what_is_there() -> None:
    free = Free([indexed("cpus", 64, 64), MEMORY])
    assert free.claim_many(ONE_CPU, 0) == []
    assert free.claim_many(ONE_CPU, -1) == []
    assert len(free.claim_many(ONE_CPU, 100)) == 100
    assert len(free.claim_many(needs(Need("cpus", UNIT), Need("mem", 4 * UNIT)), 100)) == 16
    assert len(free.claim_many(ONE_CPU, 100)) == 12


def test_many_claims_of_a_family_go_from_pool_to_pool() -> None:
    free = Free(GPUS)
    claims = free.claim_many(need(1, name="gpus"), 4)
    assert [shares[0].name for shares in claims] == ["gpus/amd", "gpus/nvidia", "gpus/nvidia", "gpus/nvidia"]


# ---- explanations


def test_a_shortage_says_what_is_wanted_and_what_there_is() -> None:
    free = Free([indexed("cpus", 4), *GPUS[:2], MEMORY])
    take(free, 3)
    take(free, 1, name="gpus/nvidia")
    wanted = (Need("cpus", 2 * UNIT), Need("disk", UNIT), Need("gpus", None), Need("mem", 65 * UNIT))
    assert free.shortages(needs(*wanted)) == [
        ("cpus", 2 * UNIT, UNIT, 4 * UNIT),
        ("disk", UNIT, 0, 0),
        ("mem", 65 * UNIT, 64 * UNIT, 64 * UNIT),
    ]
    assert free.shortages(needs(Need("gpus/nvidia", None))) == [("gpus/nvidia", None, 3 * UNIT, 4 * UNIT)]
    assert free.shortages(ONE_CPU) == []


# ---- giving back


HALF = UNIT // 2


@pytest.mark.parametrize(
    "share",
    [
        Share("cpus", UNIT, ["1"]),  # free
        Share("cpus", UNIT, ["3"]),  # partly used
        Share("cpus", HALF, ["1"]),  # free
        Share("cpus", HALF, ["0"]),  # claimed, but as a whole
        Share("cpus", HALF + 1, ["3"]),  # more than was claimed
        Share("cpus", UNIT, ["9"]),  # no such index
        Share("cpus", 2 * UNIT, ["0"]),  # too few indices
        Share("cpus", UNIT, ["0", "0"]),  # too many
        Share("cpus", 2 * UNIT, ["0", "0"]),  # twice the same
        Share("mem", 2 * UNIT),  # more than was claimed
        Share("mem", UNIT, ["0"]),  # a sum has no indices
        Share("gpus", UNIT, ["0"]),  # no such pool
    ],
    ids=str,
)
def test_what_was_not_claimed_cannot_be_given_back(share: Share) -> None:
    free = Free([Pool("cpus", [["3", "0", "1", "2"]]), MEMORY])
    assert take(free, 0.5) == ["3"]
    assert take(free, 1) == ["0"]
    take(free, 1, name="mem")
    with pytest.raises(NotClaimed):
        free.release([share])


def test_agents_that_are_alike_share_only_what_never_changes() -> None:
    first, second = (Free([indexed("cpus", 2, 2)]) for _ in range(2))
    first.claim_all()
    assert second.idle
    assert take(second, 4) == ["0", "1", "2", "3"]
    assert refuses(first, ONE_CPU)


# ---- anything in any order


EXAMPLES = int(os.environ.get("CORE_EXAMPLES", "0"))
SETTINGS = settings(
    max_examples=EXAMPLES or 60,
    stateful_step_count=60 if EXAMPLES else 30,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
NAMES = ("cpus", "gpus", "gpus/amd", "gpus/nvidia")
#: Whole ones and fractions, few of these, so that they meet; now and then all.
WHOLE = [UNIT * units for units in (1, 2, 3, 4, 5, 6, 7)]
PARTS = [round(amount * UNIT) for amount in (0.1, 0.3, 0.5, 0.6, 0.9, 1.1, 1.5, 2.4, 3.5, 4.3, 5.8, 6.5)]
AMOUNTS = st.sampled_from([*WHOLE, *PARTS, None])
#: Which of the things that are there: an index, taken modulo their number.
WHICH = st.integers(0, 1000)


def grouped(names: tuple[str, ...]) -> st.SearchStrategy[list[Pool]]:
    """Pools of these names, of up to four groups."""
    sizes = st.lists(st.integers(0, 5), min_size=1, max_size=4)
    return st.tuples(*(sizes.map(lambda each, name=name: indexed(name, *each)) for name in names)).map(list)


POOLS = st.one_of(st.just(("cpus",)), st.lists(st.sampled_from(NAMES), unique=True, max_size=3).map(tuple)).flatmap(
    grouped
)
MEM = st.integers(1, 8 * UNIT).map(lambda size: Pool("mem", size=size))
NEED = st.builds(Need, st.sampled_from(("cpus", *NAMES, "mem")), AMOUNTS, st.sampled_from(POLICIES))
#: Mostly one: more of them seldom fit, and then little does.
NEEDS = st.one_of(
    st.builds(Need, st.just("cpus"), AMOUNTS, st.sampled_from(POLICIES)).map(needs),
    st.lists(NEED, unique_by=lambda each: each.name, min_size=1, max_size=3).map(
        lambda each: needs(*sorted(each, key=lambda need: need.name))
    ),
)


class Book:
    """One pool, kept by index: what is used of each. A sum is one index."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.groups = pool.groups or [["all"]]
        self.used = Counter({index: 0 for group in self.groups for index in group})

    def whole(self) -> list[int]:
        """So many indices of each group nobody uses."""
        return [sum(not self.used[index] for index in group) for group in self.groups]

    def serves(self, each: Need) -> bool:
        if each.amount is None:
            return self.pool.total >= UNIT and not any(self.used.values())
        if self.pool.size:
            return self.used["all"] + each.amount <= self.pool.size
        fewest = self.fewest(each.amount)
        strict = each.policy.endswith("!")
        return fewest is not None and (not strict or fewest == Book(self.pool).fewest(each.amount))

    def fewest(self, amount: int) -> int | None:
        """In so few groups there is so much, by trying all sets of groups, the small ones first."""
        numbers = range(len(self.groups))
        sets = (chosen for size in range(1, len(numbers) + 1) for chosen in combinations(numbers, size))
        return next((len(chosen) for chosen in sets if self.has(amount, chosen)), None)

    def has(self, amount: int, chosen: tuple[int, ...]) -> bool:
        units, part = divmod(amount, UNIT)
        whole = sum(self.whole()[group] for group in chosen)
        parts = [UNIT - self.used[index] for group in chosen for index in self.groups[group] if self.used[index]]
        return whole > units or (whole == units and (not part or any(rest >= part for rest in parts)))

    def most(self, amount: int) -> int:
        """Over so many groups such an amount can be spread: for each index that may give the part."""
        units, part = divmod(amount, UNIT)
        if not part:
            return min(units, sum(count > 0 for count in self.whole()))
        return max(self.spread_with(units, group) for group, _ in self.givers(units, part))

    def spread_with(self, units: int, giver: int) -> int:
        return 1 + min(units, sum(count > 0 for group, count in enumerate(self.whole()) if group != giver))

    def givers(self, units: int, part: int) -> list[tuple[int, str]]:
        """The indices that may give the part, with their groups, so that enough whole ones are left."""
        spare = sum(self.whole()) > units
        return [
            (number, index)
            for number, group in enumerate(self.groups)
            for index in group
            if self.used[index] + part <= UNIT and (self.used[index] or spare)
        ]

    def take(self, share: Share, each: Need) -> None:
        if self.pool.size:
            assert share.indices == []
            self.used["all"] += share.amount
            return
        assert share.amount == (self.pool.total if each.amount is None else each.amount)
        if each.amount is not None:
            self.check_groups(share, each)
        self.add(share, 1)

    def check_groups(self, share: Share, each: Need) -> None:
        """As few groups as can be, or as many; of each the first indices; a part from the least that suffices."""
        units, part = divmod(share.amount, UNIT)
        assert len(set(share.indices)) == len(share.indices) == units + (part > 0)
        groups = [self.group_of(index) for index in share.indices]
        assert len(set(groups)) == (self.most if each.policy == "scatter" else self.fewest)(share.amount)
        counts = []
        for number in set(groups):
            firsts = [index for index in self.groups[number] if not self.used[index]]
            taken = [index for index in share.indices if self.group_of(index) == number and not self.used[index]]
            assert sorted(taken, key=firsts.index) == firsts[: len(taken)]
            counts.append((len(taken), len(firsts)))
        self.check_counts(counts, each.policy)
        if part:
            last = share.indices[-1]
            same = [self.used[index] for index in self.groups[groups[-1]] if 0 < self.used[index] <= UNIT - part]
            assert self.used[last] == max(same, default=0)
            assert units or self.used[last] == max(self.used[index] for _, index in self.givers(units, part))

    def check_counts(self, counts: list[tuple[int, int]], policy: str) -> None:
        """Of each group used so many indices of those that were free: all of them but in one, or about the same."""
        if policy.startswith("tight"):
            assert sum(count < free for count, free in counts) <= 1
        else:
            full = max(count for count, _ in counts)
            assert all(count >= full - 1 or count == free for count, free in counts)

    def group_of(self, index: str) -> int:
        return next(number for number, group in enumerate(self.groups) if index in group)

    def add(self, share: Share, sign: int) -> None:
        units, part = divmod(share.amount, UNIT)
        amounts = [UNIT] * units + [part] * (part > 0)
        for index, amount in zip(share.indices or ["all"], amounts if share.indices else [share.amount], strict=True):
            assert sign < 0 or amount < UNIT or self.used[index] == 0, f"{index} is given twice"
            self.used[index] += sign * amount


class Bookkeeping(RuleBasedStateMachine):
    """A Free, and books that know all that was claimed."""

    def __init__(self) -> None:
        super().__init__()
        self.claims: list[list[Share]] = []

    @initialize(pools=POOLS, mem=MEM)
    def start(self, pools: list[Pool], mem: Pool) -> None:
        self.pools = [*pools, mem]
        self.free = Free(self.pools)
        self.books = {pool.name: Book(pool) for pool in self.pools}

    @rule(wanted=NEEDS)
    def claim(self, wanted: Needs) -> None:
        expected = self.choose(wanted)
        assert self.free.fits(wanted) == (expected is not None)
        assert (self.free.shortages(wanted) == []) == self.free.fits(wanted)
        assert self.free.possible(wanted) == Free(self.pools).fits(wanted)
        assert self.free.possible(wanted) or not self.free.fits(wanted)
        before = state(self.free)
        shares = self.free.claim(wanted)
        if shares is None:
            assert expected is None
            assert state(self.free) == before
        else:
            assert [share.name for share in shares] == expected
            self.note(wanted, shares)

    @rule(wanted=NEEDS, most=st.integers(0, 5))
    def claim_many(self, wanted: Needs, most: int) -> None:
        claims = self.free.claim_many(wanted, most)
        for shares in claims:
            assert [share.name for share in shares] == self.choose(wanted)
            self.note(wanted, shares)
        assert len(claims) == most or (len(claims) < most and refuses(self.free, wanted))

    @precondition(lambda self: self.claims)
    @rule(which=WHICH)
    def release(self, which: int) -> None:
        self.give_back(which % len(self.claims))

    @precondition(lambda self: len(self.claims) > 6)
    @rule(which=WHICH)
    def release_all(self, which: int) -> None:
        while self.claims:
            self.give_back(which % len(self.claims))
        assert self.free.idle
        assert state(self.free) == state(Free(self.pools))

    @precondition(lambda self: not self.claims)
    @rule()
    def claim_the_node(self) -> None:
        shares = self.free.claim_all()
        assert shares == [
            Share(pool.name, pool.total, [index for group in pool.groups for index in group])
            for pool in self.pools
            if pool.total
        ]
        self.free.release(shares)

    @invariant()
    def the_books_agree(self) -> None:
        for name, book in self.books.items():
            assert all(0 <= used <= (book.pool.size or UNIT) for used in book.used.values()), "more than there is"
            assert self.free.amount(name) == book.pool.total - sum(book.used.values())
        assert self.free.idle == (not any(sum(book.used.values()) for book in self.books.values()))

    def teardown(self) -> None:
        if self.claims and sys.exc_info()[0] is None:
            self.release_all(0)

    def choose(self, wanted: Needs) -> list[str] | None:
        """The pools that serve these needs: each another, the first ones. By trying all."""
        return self.choose_beside(wanted.needs, [])

    def choose_beside(self, left: tuple[Need, ...], used: list[str]) -> list[str] | None:
        if not left:
            return used
        family = [name for name in self.books if name.startswith(left[0].name + "/")]
        for name in [left[0].name] if left[0].name in self.books else family:
            if name not in used and self.books[name].serves(left[0]):
                if (found := self.choose_beside(left[1:], [*used, name])) is not None:
                    return found
        return None

    def note(self, wanted: Needs, shares: list[Share]) -> None:
        self.claims.append(shares)
        for each, share in zip(wanted.needs, shares, strict=True):
            self.books[share.name].take(share, each)

    def give_back(self, which: int) -> None:
        shares = self.claims.pop(which)
        self.free.release(shares)
        for share in shares:
            self.books[share.name].add(share, -1)


def test_whatever_is_claimed_and_given_back_the_books_agree() -> None:
    run_state_machine_as_test(Bookkeeping, settings=SETTINGS)
