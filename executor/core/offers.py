"""What agents offer, those that there are and those that clusters may grant; needs that none of them can ever meet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from executor.core.free import Free
from executor.core.model import Variants
from executor.core.needs import Need, Needs
from worker_agent.pools import UNIT, Pool


@dataclass(frozen=True, slots=True)
class Offer:
    """What each of some agents has: ``pools``; None: nobody knows.

    ``nodes`` of them form a group; each lives for ``seconds``. ``asked``: the pools are what a cluster was asked for:
    of resources with other names its agents may have anything.
    """

    pools: Sequence[Pool] | None = None
    nodes: int = 1
    seconds: float = math.inf
    asked: bool = False

    @property
    def free(self) -> Free:
        """The known pools, of which nothing is claimed."""
        return Free(self.pools or ())

    def knows(self, needs: Needs) -> bool:
        """Whether all that is needed is known."""
        return bool(needs.nodes) or (self.pools is not None and (not self.asked or needs.names <= self._names))

    def meets(self, needs: Needs) -> bool:
        """Whether an agent that nobody uses could run such a task, as far as is known."""
        if needs.seconds > self.seconds:
            return False
        if needs.nodes:
            return needs.nodes <= self.nodes
        return self.pools is None or self.free.possible(self._known_part(needs))

    def places(self, needs: Needs) -> float:
        """How many tasks that it meets have room on an agent; less than one of those that take several."""
        if needs.nodes:
            return self.nodes // needs.nodes / self.nodes
        free = self.free
        times = [
            1 if need.amount is None else free.total(need.name) // need.amount for need in self._known_part(needs).needs
        ]
        return min(times, default=1)

    @property
    def _names(self) -> set[str]:
        return {_family(pool.name) for pool in self.pools or ()}

    def _known_part(self, needs: Needs) -> Needs:
        """Without what nobody knows; who was asked for ``gpus`` may have ``gpus/nvidia``."""
        if not self.asked:
            return needs
        known = [replace(need, name=_family(need.name)) for need in needs.needs if _family(need.name) in self._names]
        return replace(needs, needs=tuple(known))


def _family(name: str) -> str:
    return name.partition("/")[0]


class Impossible(NamedTuple):
    """What is lacking: how much is needed of a resource, and the most that one agent has.

    Of "nodes": how many there are; of "time_request": for how many seconds one lives.
    """

    resource: str
    requested: float
    most: float

    def __str__(self) -> str:
        if self.resource == "nodes":
            agents = "is 1 agent" if self.most == 1 else f"are {self.most:g} agents"
            return f"{self.requested:g} nodes, and there {agents} in a group"
        if self.resource == "time_request":
            return f"{self.requested:g} s (time_request), and an agent lives for {self.most:g} s at most"
        there = f"an agent has {self.most:g} at most" if self.most else "no agent has any"
        unit = " MiB" if self.resource == "memory" else ""
        return f"{self.resource}={self.requested:g}{unit}, and {there}"

    def attributes(self) -> dict[str, object]:
        """For the exception."""
        return self._asdict()


def find_impossible(variants: Variants, offers: Sequence[Offer]) -> Impossible | None:
    """Why none of the offers can ever meet any of the variants (of the first of these); None if one can."""
    if any(offer.meets(needs) for needs in variants for offer in offers):
        return None
    return next(_lacking(variants[0], offers))


def _lacking(needs: Needs, offers: Sequence[Offer]) -> Iterator[Impossible]:
    """What is lacking everywhere, the plainest first; at last what each alone could be had, but not together."""
    lives = max((offer.seconds for offer in offers), default=math.inf)
    if needs.seconds > lives:
        yield Impossible("time_request", needs.seconds, lives)
    if needs.nodes:
        yield Impossible("nodes", needs.nodes, max((offer.nodes for offer in offers), default=0))
    most = {need.name: max((_most(need, offer) for offer in offers), default=0) for need in needs.needs}
    lacking = [need for need in needs.needs if need.least > most[need.name]]
    worst = (lacking or needs.needs)[0]
    yield Impossible(worst.name, (worst.amount or UNIT) / UNIT, most[worst.name] / UNIT)


def _most(need: Need, offer: Offer) -> float:
    return offer.free.total(need.name) if offer.knows(Needs((need,))) else math.inf


def less_than_asked(asked: Offer, pools: Sequence[Pool]) -> list[str]:
    """What an agent has less of than was asked for, in words; nothing once it is known what others have."""
    free = Free(pools)
    return [
        f"{pool.total / UNIT:g} {pool.name} were asked for, and an agent has {free.total(pool.name) / UNIT:g}"
        for pool in (asked.pools if asked.asked else None) or ()
        if free.total(pool.name) < pool.total
    ]


def best_of(known: Sequence[Pool], found: Sequence[Pool]) -> list[Pool]:
    """Of each resource the larger pool: what there may be where nodes differ."""
    best = {pool.name: pool for pool in known}
    for pool in found:
        best[pool.name] = max(pool, best.get(pool.name, pool), key=lambda each: each.total)
    return list(best.values())
