"""What of an agent's pools nobody has claimed, and who gets which part of it. All amounts are in units.

    Free        the pools of one agent: finds for each need a pool that serves it
    _Stock      what is left of one pool: a _Sum, or _Indexed with its free indices, group by group
    _Layout     what never changes of an indexed pool: one for all agents that have the same indices

The rules are those of HyperQueue: fractions of an index are not added up, policies choose among groups.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

from executor.core.needs import Need, Needs
from worker_agent.pools import UNIT, Pool, Share


class NotClaimed(AssertionError):
    """Something was given back that was not claimed: a bug of ours."""


class Free:
    """What of one agent's pools nobody has claimed.

    A need is served by the pool of its name, or else by one of the pools whose names begin with its name and a slash:
    ``gpus`` by ``gpus/nvidia``. Two needs of one task are never served by the same pool.
    """

    __slots__ = ("_stocks",)

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._stocks: dict[str, _Stock] = {pool.name: _make_stock(pool) for pool in pools}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the pools, in their order."""
        return tuple(self._stocks)

    @property
    def idle(self) -> bool:
        """Whether nothing is claimed."""
        return all(stock.idle for stock in self._stocks.values())

    def amount(self, name: str) -> int:
        """So much is free for a need of this name, at most. It may be scattered: :meth:`fits` knows."""
        stock = self._stocks.get(name)
        if stock is not None:
            return stock.free
        return max((stock.free for stock in self._candidates(name)), default=0)

    def total(self, name: str) -> int:
        """So much there is for a need of this name, at most, when nothing is claimed."""
        return max((stock.total for stock in self._candidates(name)), default=0)

    def fits(self, needs: Needs) -> bool:
        """Whether :meth:`claim` would have an answer now."""
        return self._serve(needs.needs, _fits) is not None

    def possible(self, needs: Needs) -> bool:
        """Whether it would fit if nothing were claimed."""
        return self._serve(needs.needs, _possible) is not None

    def claim(self, needs: Needs) -> list[Share] | None:
        """Take what is needed: a share for each need, in their order. None, and nothing changes, if it does not fit."""
        stocks = self._serve(needs.needs, _fits)
        if stocks is None:
            return None
        return [stock.take(need) for stock, need in zip(stocks, needs.needs, strict=True)]

    def claim_many(self, needs: Needs, most: int) -> list[list[Share]]:
        """What as many calls of :meth:`claim` would give, up to the first that does not fit."""
        claims: list[list[Share]] = []
        if len(needs.needs) == 1:
            for stock in self._candidates(needs.needs[0].name):
                claims += [[share] for share in stock.take_many(needs.needs[0], most - len(claims))]
            return claims
        while len(claims) < most and (shares := self.claim(needs)) is not None:
            claims.append(shares)
        return claims

    def claim_all(self) -> list[Share]:
        """Take everything, for a task that has the whole node. Nothing may be claimed."""
        assert self.idle, "a node of which a part is claimed cannot be claimed as a whole"
        return [stock.take_all() for stock in self._stocks.values() if stock.total]

    def release(self, shares: Iterable[Share]) -> None:
        """Give back what was claimed."""
        for share in shares:
            stock = self._stocks.get(share.name)
            if stock is None:
                raise NotClaimed(f"{share} was given back to an agent that has no {share.name}")
            stock.give(share)

    def shortages(self, needs: Needs) -> list[tuple[str, int | None, int, int]]:
        """The needs that do not fit now, beside those that do: name, amount wanted (None: all), free, total."""
        served: tuple[Need, ...] = ()
        short: list[Need] = []
        for need in needs.needs:
            if self._serve((*served, need), _fits) is None:
                short.append(need)
            else:
                served += (need,)
        return [(need.name, need.amount, self.amount(need.name), self.total(need.name)) for need in short]

    def _serve(
        self, needs: tuple[Need, ...], test: Callable[[_Stock, Need], bool], used: tuple[_Stock, ...] = ()
    ) -> list[_Stock] | None:
        """For each need the first pool that passes the test and leaves the later needs theirs. None: there are none."""
        if not needs:
            return []
        for stock in self._candidates(needs[0].name):
            if stock not in used and test(stock, needs[0]):
                rest = self._serve(needs[1:], test, (*used, stock))
                if rest is not None:
                    return [stock, *rest]
        return None

    def _candidates(self, name: str) -> Sequence[_Stock]:
        stock = self._stocks.get(name)
        if stock is not None:
            return (stock,)
        return [stock for each, stock in self._stocks.items() if each.startswith(f"{name}/")]


class _Stock(ABC):
    """What is left of one pool: ``free`` of ``total``."""

    __slots__ = ("free", "name", "total")

    def __init__(self, pool: Pool) -> None:
        self.name = pool.name
        self.free = self.total = pool.total

    @property
    def idle(self) -> bool:
        return self.free == self.total

    def possible(self, need: Need) -> bool:
        """Whether the need would fit if nothing were claimed."""
        return need.least <= self.total

    def take_many(self, need: Need, most: int) -> list[Share]:
        """Take it as often as it fits, but not more often than ``most``."""
        shares: list[Share] = []
        while len(shares) < most and self.fits(need):
            shares.append(self.take(need))
        return shares

    @abstractmethod
    def fits(self, need: Need) -> bool:
        """Whether the need fits now."""

    @abstractmethod
    def take(self, need: Need) -> Share:
        """Take what fits."""

    @abstractmethod
    def take_all(self) -> Share:
        """Take everything, of which nothing is claimed."""

    @abstractmethod
    def give(self, share: Share) -> None:
        """Take back what was given."""


def _fits(stock: _Stock, need: Need) -> bool:
    return stock.fits(need)


def _possible(stock: _Stock, need: Need) -> bool:
    return stock.possible(need)


class _Sum(_Stock):
    """A pool without indices."""

    __slots__ = ()

    def fits(self, need: Need) -> bool:
        if need.amount is None:
            return self.idle and self.possible(need)
        return need.amount <= self.free

    def take(self, need: Need) -> Share:
        amount = self.total if need.amount is None else need.amount
        self.free -= amount
        return Share(self.name, amount)

    def take_all(self) -> Share:
        self.free = 0
        return Share(self.name, self.total)

    def give(self, share: Share) -> None:
        if share.indices or not 0 < share.amount <= self.total - self.free:
            raise NotClaimed(f"{share} was given back, and {self.total - self.free} were claimed")
        self.free += share.amount


@dataclass(frozen=True, slots=True)
class _Layout:
    """The indices of a pool, known by their positions: all in one row, group after group."""

    names: tuple[str, ...]
    positions: dict[str, int]
    groups: tuple[range, ...]
    #: by position
    group_of: tuple[int, ...]

    def fewest(self, count: int) -> int:
        """Over so few groups can so many indices be spread, if all are free."""
        return len(_choose_groups([len(group) for group in self.groups], count, []))


@lru_cache(maxsize=1000)
def _make_layout(groups: tuple[tuple[str, ...], ...]) -> _Layout:
    """Made once for thousands of agents whose CPUs have the same names."""
    names = tuple(name for group in groups for name in group)
    ends = [sum(map(len, groups[:number])) for number in range(len(groups) + 1)]
    return _Layout(
        names,
        {name: position for position, name in enumerate(names)},
        tuple(map(range, ends, ends[1:])),
        tuple(number for number, group in enumerate(groups) for _ in group),
    )


class _Plan(NamedTuple):
    """So many whole indices from each of these groups, in this order, and the index that gives the part.

    If ``partial`` is None, the last of the whole ones gives the part; they are one more then.
    """

    counts: list[tuple[int, int]]
    partial: int | None
    #: how many groups that makes
    spread: int


class _Indexed(_Stock):
    """A pool with indices: the positions of those that are free as a whole, and what is left of partly used ones.

    An index is in its group's list in ``groups``, in the order of the pool, or in ``rests`` as long as parts of it are
    claimed (with 0 when nothing is left), or in neither while one task has it as a whole.
    """

    __slots__ = ("groups", "layout", "rests")

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.layout = _make_layout(tuple(map(tuple, pool.groups)))
        self.groups = [list(group) for group in self.layout.groups]
        self.rests: dict[int, int] = {}

    # ---- does it fit?

    def fits(self, need: Need) -> bool:
        if need.amount is None:
            return self.idle and self.possible(need)
        units, part = divmod(need.amount, UNIT)
        return self._suffices(units, part) and (need.policy[-1] != "!" or self._is_compact(units, part, need.policy))

    def _suffices(self, units: int, part: int) -> bool:
        """Whether there are enough whole indices, and one for the part, wherever they are."""
        whole = self._whole()
        return whole > units or (whole == units and (not part or max(self.rests.values(), default=0) >= part))

    def _is_compact(self, units: int, part: int, policy: str) -> bool:
        """Whether it takes no more groups now than it would if nothing were claimed."""
        return len(self.groups) == 1 or self._plan(units, part, policy).spread == self.layout.fewest(units + (part > 0))

    def _whole(self) -> int:
        """How many indices are free as a whole."""
        return (self.free - sum(self.rests.values())) // UNIT

    # ---- take

    def take(self, need: Need) -> Share:
        if need.amount is None:
            return self.take_all()
        group = self._find_group(need)
        if group is None:
            return self._take_planned(need.amount, need.policy)
        return self._share(need.amount, _cut(group, need.amount // UNIT))

    def take_all(self) -> Share:
        for group in self.groups:
            group.clear()
        self.free = 0
        return Share(self.name, self.total, list(self.layout.names))

    def take_many(self, need: Need, most: int) -> list[Share]:
        shares: list[Share] = []
        while need.amount and len(shares) < most and (group := self._find_group(need)) is not None:
            shares += self._take_alike(group, need.amount, most - len(shares))
        return shares + super().take_many(need, most - len(shares))

    def _find_group(self, need: Need) -> list[int] | None:
        """The smallest group that serves the need alone, with whole indices: the common case, for all policies but one.

        Until that group has too few, it is the answer for all such needs.
        """
        if need.amount is None or need.amount % UNIT or (need.policy == "scatter" and len(self.groups) > 1):
            return None
        units, best = need.amount // UNIT, None
        for group in self.groups:
            if len(group) >= units and (best is None or len(group) < len(best)):
                best = group
        return best

    def _take_alike(self, group: list[int], amount: int, most: int) -> list[Share]:
        """Shares of whole indices from one group, so many as it has."""
        size = amount // UNIT
        count = min(most, len(group) // size)
        names = [self.layout.names[position] for position in _cut(group, count * size)]
        self.free -= count * amount
        return [Share(self.name, amount, names[start : start + size]) for start in range(0, count * size, size)]

    def _take_planned(self, amount: int, policy: str) -> Share:
        units, part = divmod(amount, UNIT)
        plan = self._plan(units, part, policy)
        taken = [position for number, count in plan.counts for position in _cut(self.groups[number], count)]
        partial = taken.pop() if part and plan.partial is None else plan.partial
        taken.sort()
        if partial is not None:
            self.rests[partial] = self.rests.get(partial, UNIT) - part
            taken.append(partial)
        return self._share(amount, taken)

    def _share(self, amount: int, positions: list[int]) -> Share:
        self.free -= amount
        names = self.layout.names
        return Share(self.name, amount, [names[position] for position in positions])

    # ---- choose

    def _plan(self, units: int, part: int, policy: str) -> _Plan:
        """The best way to have so much: by the number of groups; then the part from the index with the least left."""
        if not part:
            return self._spread(units, None, policy)
        return (max if policy == "scatter" else min)(self._plans(units, part, policy), key=attrgetter("spread"))

    def _plans(self, units: int, part: int, policy: str) -> Iterator[_Plan]:
        for partial in self._partials(part):
            yield self._spread(units, partial, policy)
        if self._whole() > units:
            yield self._spread(units + 1, None, policy)

    def _partials(self, part: int) -> Iterator[int]:
        """The partly used indices that can give the part, of each group only the one with the least left."""
        seen = set()
        for _, position in sorted((rest, position) for position, rest in self.rests.items() if rest >= part):
            if (group := self.layout.group_of[position]) not in seen:
                seen.add(group)
                yield position

    def _spread(self, count: int, partial: int | None, policy: str) -> _Plan:
        """How so many whole indices are taken from the groups, one of which gives the part besides."""
        sizes = [len(group) for group in self.groups]
        given = [] if partial is None else [self.layout.group_of[partial]]
        if policy == "scatter":
            counts = _share_evenly(sizes, count, [group for group in range(len(sizes)) if group not in given] + given)
            return _Plan(counts, partial, len({group for group, number in counts if number}.union(given)))
        groups = _choose_groups(sizes, count, given)
        if policy.startswith("tight") or len(groups) == 1:
            return _Plan(_fill(sizes, count, groups), partial, len(groups))
        return _Plan(_share_evenly(sizes, count, sorted(groups)), partial, len(groups))

    # ---- take back

    def give(self, share: Share) -> None:
        units, part = divmod(share.amount, UNIT)
        if len(share.indices) != units + (part > 0):
            raise NotClaimed(f"{share} has {len(share.indices)} indices")
        for index in share.indices[:units]:
            self._give_whole(index)
        if part:
            self._give_part(share.indices[units], part)
        self.free += share.amount

    def _give_whole(self, index: str) -> None:
        position = self._position(index)
        group = self.groups[self.layout.group_of[position]]
        place = bisect_left(group, position)
        if position in self.rests or group[place : place + 1] == [position]:
            raise NotClaimed(f"{self.name} {index} was given back, and nobody had claimed it as a whole")
        group.insert(place, position)

    def _give_part(self, index: str, part: int) -> None:
        position = self._position(index)
        rest = self.rests.get(position, UNIT) + part
        if rest > UNIT:
            raise NotClaimed(f"{part} of {self.name} {index} were given back, and less was claimed")
        self.rests[position] = rest
        if rest == UNIT:
            del self.rests[position]
            self._give_whole(index)

    def _position(self, index: str) -> int:
        try:
            return self.layout.positions[index]
        except KeyError:
            raise NotClaimed(f"{self.name} {index} was given back to an agent that has no such index") from None


def _make_stock(pool: Pool) -> _Stock:
    return _Sum(pool) if pool.size else _Indexed(pool)


def _cut(group: list[int], count: int) -> list[int]:
    """Take so many from the front of a list."""
    taken = group[:count]
    del group[:count]
    return taken


def _choose_groups(sizes: list[int], count: int, given: list[int]) -> list[int]:
    """The fewest groups, with those given, that have so many: the largest, and last the smallest that suffices."""
    chosen = list(given)
    others = [group for group in range(len(sizes)) if group not in given]
    missing = count - sum(sizes[group] for group in given)
    while missing > 0:
        enough = [group for group in others if sizes[group] >= missing]
        group = min(enough, key=sizes.__getitem__) if enough else max(others, key=sizes.__getitem__)
        others.remove(group)
        chosen.append(group)
        missing -= sizes[group]
    return chosen


def _fill(sizes: list[int], count: int, groups: list[int]) -> list[tuple[int, int]]:
    """Take so many from these groups: all of the first, all of the second."""
    counts = []
    for group in groups:
        counts.append((group, min(count, sizes[group])))
        count -= counts[-1][1]
    return counts


def _share_evenly(sizes: list[int], count: int, groups: list[int]) -> list[tuple[int, int]]:
    """Take so many from these groups: the same from each, as long as it has any, and the odd ones from the first."""
    counts = dict.fromkeys(groups, 0)
    while count > 0:
        more = [group for group in groups if counts[group] < sizes[group]][:count]
        each = count // len(more)
        for group in more:
            taken = min(each, sizes[group] - counts[group])
            counts[group] += taken
            count -= taken
    return list(counts.items())
