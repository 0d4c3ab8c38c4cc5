"""How many more agents the waiting tasks could use, of each cluster that could grant some. Changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from executor.core.free import Free
from executor.core.model import TaskClass
from executor.core.needs import Need, Needs
from worker_agent.pools import Pool


@dataclass(frozen=True, slots=True)
class Chance:
    """What a cluster may grant: up to ``room`` agents that have ``pools`` and live for ``seconds``.

    ``pools`` are None as long as nobody knows what its agents have: then one is wanted, to find out.
    """

    pools: Sequence[Pool] | None
    seconds: float
    room: int


def wanted_agents(classes: Iterable[TaskClass], chances: Sequence[Chance]) -> list[int]:
    """For each chance so many agents would have something to do at once. Tasks go to the first that suits them."""
    frees = [None if chance.pools is None else Free(chance.pools) for chance in chances]
    wanted = [0.0] * len(chances)
    for of in classes:
        waiting = float(sum(len(queue.ready) for queue in of.queues.values()))
        for number, (chance, free) in enumerate(zip(chances, frees, strict=True)):
            if waiting <= 0.0:
                break
            if free is None:
                wanted[number] = max(wanted[number], 1.0)
            elif places := _places(of, free, chance.seconds):
                agents = min(waiting / places, chance.room - wanted[number])
                wanted[number] += agents
                waiting -= agents * places
    return [min(math.ceil(agents), chance.room) for agents, chance in zip(wanted, chances, strict=True)]


def _places(of: TaskClass, free: Free, seconds: float) -> float:
    """How many of its tasks have room on such an agent; less than one for those that take several."""
    return max((_room(needs, free) for needs in of.variants if needs.seconds <= seconds), default=0.0)


def _room(needs: Needs, free: Free) -> float:
    if needs.nodes:
        return 1 / needs.nodes
    if not free.possible(needs):
        return 0.0
    return min((_times(need, free) for need in needs.needs), default=1)


def _times(need: Need, free: Free) -> int:
    return 1 if need.amount is None else free.total(need.name) // need.amount
