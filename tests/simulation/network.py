"""Wires that lose, double, delay and reorder frames, and can be cut in one direction or both."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent import Agent
    from world import World

#: Seconds by which the copy of a frame may be late.
LATEST = 120.0
#: The longest that a frame may be on its way.
SLOWEST = 300.0


class Wire:
    """One direction of a connection. A cut one loses what it is given, or keeps it until it is whole again."""

    __slots__ = ("cuts", "held", "holds", "last")

    def __init__(self) -> None:
        self.cuts, self.holds = 0, False
        self.held: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.last = 0.0


class Network:
    """All wires, and what this seed does to frames."""

    def __init__(self, world: World) -> None:
        pick = world.pick
        self.world = world
        self.loss = world.fault("loss") * pick((0.02, 0.1, 0.4))
        self.duplication = world.fault("duplication") * pick((0.02, 0.2))
        self.slowness = world.fault("slowness") * pick((0.02, 0.2))
        self._reorders = world.fault("reordering")
        self._routes: dict[int, Agent] = {}

    def connect(self, agent: Agent) -> int:
        """A new route; what is on its way by the old one will not arrive, and holds nothing up."""
        agent.node.up.last = agent.node.down.last = self.world.now
        route = len(self._routes) + 1
        self._routes[route] = agent
        return route

    def send_up(self, agent: Agent, data: bytes) -> None:
        """A frame to the hub."""
        hub = self.world.hub
        self._carry(agent.node.up, hub.do, (hub.on_frame, data, agent.route, agent, agent.name, self.world.now))

    def send_down(self, route: int, data: bytes) -> None:
        """A frame of the hub."""
        agent = self._routes[route]
        self._carry(agent.node.down, agent.do, (agent.on_frame, data, route))

    def mend(self, wire: Wire) -> None:
        """One cut less; what was held arrives once it is whole."""
        wire.cuts = max(0, wire.cuts - 1)
        if not wire.cuts:
            held, wire.held = wire.held, []
            for action, arguments in held:
                self._carry(wire, action, arguments)

    def heal(self) -> None:
        """From now on it is a good network; what is on its way still arrives, whenever that is."""
        self.loss = self.duplication = self.slowness = 0.0
        for node in self.world.nodes:
            for wire in (node.up, node.down):
                wire.cuts, wire.last = 0, self.world.now
                self.mend(wire)

    def _carry(self, wire: Wire, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if wire.cuts:
            self.world.seen["frame meets a cut"] += 1
            if wire.holds:
                wire.held.append((action, arguments))
            return
        random = self.world.random
        if self.loss and random() < self.loss:
            return
        self._deliver(wire, action, arguments)
        if self.duplication and random() < self.duplication:
            late = self.world.pick((0.001, 1.0, 40.0, LATEST)) * random()
            self.world.later(late, action, *arguments)

    def _deliver(self, wire: Wire, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        world = self.world
        delay = 0.0001 + 0.002 * world.random()
        if self.slowness and world.random() < self.slowness:
            delay = world.pick((0.1, 5.0, 50.0, SLOWEST)) * world.random()
        time = world.now + delay
        if not self._reorders:
            time = wire.last = max(time, wire.last)
        world.at(time, action, *arguments)
