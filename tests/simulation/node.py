"""A host: its clock, its wires, and the agents that run there one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent import Agent
from books import sizes
from network import Wire
from process import Clock

if TYPE_CHECKING:
    from world import World

#: Seconds that an agent waits for processes that it has killed, as in ``worker_agent.agent``.
FENCE_PATIENCE = 5.0


class Node:
    """Somebody starts an agent there whenever there is none: the hub on a ``local`` one, else a batch system."""

    def __init__(self, world: World, number: int, local: bool) -> None:
        self.world, self.number, self.local = world, number, local
        self.pools = world.demands.draw_pools()
        self.sizes = sizes(self.pools)
        self.up, self.down = Wire(), Wire()
        drifts = world.fault("drift")
        self.clock = Clock(world.rng.uniform(0.0, 1e5), world.rng.uniform(0.99, 1.01)) if drifts else Clock()
        self.kill_time = world.fault("slow kill") * world.rng.uniform(0.0, FENCE_PATIENCE)
        self.agent: Agent | None = None
        self._boots = self._names = 0

    def boot(self, launch: str = "invited") -> None:
        """A new process."""
        if self.world.hub.over or (self.agent is not None and self.agent.alive):
            return
        world = self.world
        self._boots += 1
        same = world.fault("same process")
        if self._boots > 1 and not same and not self.local and world.chance(0.3):
            world.seen["reboot"] += 1
            self.clock.offset = -world.now * self.clock.rate
        self.agent = Agent(self, f"p{self.number}" if same else f"p{self.number}.{self._boots}", launch)
        if not world.healed and world.fault("crash") and world.chance(0.1):
            self.agent.fuse = world.rng.randint(1, 3)
        self.agent.step()

    def new_name(self) -> str:
        """For a registration."""
        self._names += 1
        return f"{self.number}.{self._names}"

    def on_end(self, agent: Agent, leaves: bool) -> None:
        """Its agent is gone; the hub sees that if it runs on the same machine."""
        world = self.world
        if self.local:
            world.later(0.001 * world.random(), world.hub.do, world.hub.on_end, agent.launch)
        elif not leaves:
            world.later(0.01 + world.pick((0.1, 5.0, 60.0)) * world.random(), self.boot)
