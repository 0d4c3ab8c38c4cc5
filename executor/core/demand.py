"""How many more agents the waiting tasks could use, of each cluster that could grant some. Changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from executor.core.model import TaskClass
from executor.core.offers import Offer


@dataclass(frozen=True, slots=True)
class Chance:
    """What a cluster may grant: up to ``room`` such agents."""

    offer: Offer
    room: int


def wanted_agents(classes: Iterable[TaskClass], chances: Sequence[Chance]) -> list[int]:
    """For each chance so many agents would have something to do at once. Tasks go to the first that suits them.

    Where nobody knows whether an agent has what they need, one is wanted, to find out.
    """
    wanted = [0.0] * len(chances)
    for of in classes:
        waiting = float(sum(len(queue.ready) for queue in of.queues.values()))
        for number, chance in enumerate(chances):
            if waiting <= 0.0:
                break
            suitable = [needs for needs in of.variants if chance.offer.meets(needs)]
            known = [needs for needs in suitable if chance.offer.knows(needs)]
            if known:
                places = max(map(chance.offer.places, known))
                agents = min(waiting / places, chance.room - wanted[number])
                wanted[number] += agents
                waiting -= agents * places
            elif suitable:
                wanted[number] = max(wanted[number], 1.0)
    return [min(math.ceil(agents), chance.room) for agents, chance in zip(wanted, chances, strict=True)]
