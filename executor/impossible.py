"""Needs that none of some agents can ever meet, though nothing else ran there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from executor.core.free import Free
from executor.core.model import Variants
from executor.core.needs import Needs
from worker_agent.pools import UNIT, Pool


class Impossible(NamedTuple):
    """What is lacking: how much is needed of a resource, and the most that one agent has (of "nodes": how many)."""

    resource: str
    requested: float
    most: float

    def __str__(self) -> str:
        if self.resource == "nodes":
            agents = "is 1 agent" if self.most == 1 else f"are {self.most:g} agents"
            return f"{self.requested:g} nodes, and there {agents}"
        there = f"an agent has {self.most:g} at most" if self.most else "no agent has any"
        unit = " MiB" if self.resource == "memory" else ""
        return f"{self.resource}={self.requested:g}{unit}, and {there}"

    def attributes(self) -> dict[str, object]:
        """For the exception."""
        return self._asdict()


def find_impossible(variants: Variants, agents: Sequence[list[Pool]]) -> Impossible | None:
    """Why none of the agents can ever meet any of the variants (of the first of these); None if one can."""
    frees = [Free(pools) for pools in agents]
    for needs in variants:
        if (needs.nodes and needs.nodes <= len(frees)) or (
            not needs.nodes and any(free.possible(needs) for free in frees)
        ):
            return None
    return _lacking(variants[0], frees)


def _lacking(needs: Needs, frees: Sequence[Free]) -> Impossible:
    if needs.nodes:
        return Impossible("nodes", needs.nodes, len(frees))
    most = {need.name: max((free.total(need.name) for free in frees), default=0) for need in needs.needs}
    lacking = [need for need in needs.needs if need.least > most[need.name]]
    worst = (lacking or needs.needs)[0]  # else each alone could be had, but not from the same agent
    return Impossible(worst.name, (worst.amount or UNIT) / UNIT, most[worst.name] / UNIT)
