"""What nodes have and what tasks need: in half of the worlds one CPU for each task, in the others all kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.core.free import Free
from executor.core.model import ONE_CPU_EACH, Variants
from executor.core.needs import POLICIES, Need, Needs
from worker_agent.pools import UNIT, Pool

if TYPE_CHECKING:
    from world import World

#: Of an index that may be shared, tasks want so much, in units.
_PARTS = (UNIT // 4, UNIT // 2, UNIT, UNIT, UNIT * 3 // 2, 2 * UNIT)


class Demands:
    """What this world's nodes have, and which demands its tasks make."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._varied = world.chance(0.5)
        #: the priorities that tasks have
        self.priorities = world.pick(((0,), (0,), (0, 0, 1), (-1, 0, 0, 7)))

    def draw_pools(self) -> list[Pool]:
        """What a node has."""
        world = self._world
        cpus = [str(number) for number in range(world.rng.randint(1, 4))]
        if not self._varied:
            return [Pool("cpus", [cpus])]
        half = world.pick((0, 0, len(cpus) // 2))
        pools = [Pool("cpus", [cpus[:half], cpus[half:]] if half else [cpus])]
        if world.chance(0.7):
            pools.append(Pool("memory", size=UNIT * world.rng.randint(1, 8)))
        if world.chance(0.4):
            pools.append(Pool("gpus/nvidia", [["a", "b"][: world.rng.randint(1, 2)]]))
        return pools

    def draw_variants(self, nodes: list[list[Pool]]) -> list[Variants]:
        """Some demands, each of which one of the nodes can meet."""
        if not self._varied:
            return [ONE_CPU_EACH]
        return [self._draw(nodes) for _ in range(self._world.rng.randint(1, 4))]

    def _draw(self, nodes: list[list[Pool]]) -> Variants:
        world = self._world
        ways = dict.fromkeys(self._draw_needs(world.pick(nodes)) for _ in range(world.pick((1, 1, 2))))
        if world.chance(0.1):  # nobody has that
            ways = dict.fromkeys([Needs((Need("cpus", 9 * UNIT),)), *ways])
        return tuple(ways)

    def _draw_needs(self, pools: list[Pool]) -> Needs:
        """What a node with these pools can give."""
        while True:
            needs = [self._draw_need(pool) for pool in pools if self._world.chance(0.8 if pool.name == "cpus" else 0.5)]
            found = Needs(tuple(sorted((need for need in needs if need.amount != 0), key=lambda need: need.name)))
            if found.needs and Free(pools).possible(found):
                return found

    def _draw_need(self, pool: Pool) -> Need:
        world = self._world
        if world.chance(0.05):
            return Need(pool.name, None)
        if pool.size:
            return Need(pool.name, world.rng.randint(1, pool.size))
        policy = world.pick(POLICIES) if len(pool.groups) > 1 else "compact"
        if pool.name == "cpus" and not world.chance(0.1):
            return Need(pool.name, UNIT * world.rng.randint(1, pool.total // UNIT), policy)
        return Need(pool.name.partition("/")[0], world.pick(_PARTS), policy)
