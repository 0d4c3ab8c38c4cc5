"""What a task needs: amounts of resources, a lifetime, whole nodes. Values, compared and hashed, never changed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from worker_agent.pools import UNIT

#: How the parts of an indexed resource are chosen when it has groups; "!" waits for the fewest groups possible.
POLICIES: Final = ("compact", "compact!", "tight", "tight!", "scatter")


@dataclass(frozen=True, slots=True)
class Need:
    """So many units of one resource; None: all of it, whatever that is."""

    name: str
    amount: int | None
    policy: str = "compact"

    @property
    def least(self) -> int:
        """The units without which it cannot be met. All of a pool is one of something at least."""
        return UNIT if self.amount is None else self.amount


@dataclass(frozen=True, slots=True)
class Needs:
    """One way to run a task: what it needs at once, sorted by name, without zeros.

    ``seconds`` is the time that its agent has to live at least. ``nodes`` above 0: so many whole agents of one group.
    ``ranks`` above 0: it is so many processes, evenly on its nodes.
    """

    needs: tuple[Need, ...] = ()
    seconds: float = 0.0
    nodes: int = 0
    ranks: int = 0

    @property
    def names(self) -> frozenset[str]:
        """What it needs something of; ``gpus/nvidia`` is also ``gpus``."""
        return frozenset(need.name.partition("/")[0] for need in self.needs)

    def with_memory(self, factor: float, most: int) -> Needs:
        """The same with more memory, if it asks for some, but not with more than ``most``."""
        needs = (
            replace(need, amount=max(need.amount, min(math.ceil(need.amount * factor), most)))
            if need.name == "memory" and need.amount
            else need
            for need in self.needs
        )
        return replace(self, needs=tuple(needs))


#: What a task needs that says nothing.
ONE_CPU: Final = Needs((Need("cpus", UNIT),))
