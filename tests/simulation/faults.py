"""What goes wrong: which faults a seed has, when they come, and that they are over in the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from judge import PATIENCE
from network import Wire
from node import Node

if TYPE_CHECKING:
    from world import World

#: What a seed may draw; each is on in about a third of the seeds.
FAULTS = (
    "loss", "duplication", "reordering", "slowness", "cut", "one-way cut", "swizzle", "reconnection", "crash", "stop",
    "suspension", "drift", "slow kill", "endless kill", "hub stop", "hub suspension", "small window",
    "bad environment", "large", "same process",
)  # fmt: skip
#: Without these an answer comes at once.
DISTURBING = {
    "loss", "slowness", "cut", "one-way cut", "swizzle", "reconnection", "crash", "stop", "hub stop", "hub suspension",
    "small window", "large", "slow kill",
}  # fmt: skip


class Faults:
    """They are drawn at the beginning, and happen when their time comes."""

    def __init__(self, world: World) -> None:
        self.world = world

    def plan(self) -> None:
        """All of this seed that happen at some time."""
        world = self.world
        for kind, action in self.planned.items():
            if world.fault(kind):
                for _ in range(world.rng.randint(1, 4)):
                    world.at(world.faults_end * world.random(), self._happen, kind, action, world.pick(world.nodes))
        world.at(world.faults_end, self.heal)

    def _happen(self, kind: str, action: Callable[[Faults, Node], None], node: Node) -> None:
        self.world.seen["happens: " + kind] += 1
        action(self, node)

    def _seconds(self) -> float:
        return self.world.pick((1.0, 10.0, 50.0, 100.0)) * self.world.random()

    # --- the network ---

    def _cut(self, node: Node) -> None:
        self._cut_wires(node, (node.up, node.down))

    def _cut_one_way(self, node: Node) -> None:
        self._cut_wires(node, (self.world.pick((node.up, node.down)),))

    def _cut_wires(self, node: Node, wires: tuple[Wire, ...]) -> None:
        seconds = self._seconds()
        names = ["up" if wire is node.up else "down" for wire in wires]
        self.world.tell(f"node {node.number}", f"is cut off ({', '.join(names)}) for {seconds:.1f} s")
        for wire in wires:
            wire.cuts += 1
            wire.holds = self.world.chance(0.5)
        self.world.later(seconds, self._mend, node, wires)

    def _mend(self, node: Node, wires: tuple[Wire, ...]) -> None:
        for wire in wires:
            self.world.network.mend(wire)
        if self.world.chance(0.3):
            self._reconnect(node)

    def _swizzle(self, node: Node) -> None:
        """All are cut off one after the other, and come back in another order."""
        for each in self.world.nodes:
            self.world.later(self.world.random() * 5, self._cut, each)

    def _reconnect(self, node: Node) -> None:
        if node.agent is not None and node.agent.alive:
            node.agent.connect()

    # --- processes ---

    def _crash(self, node: Node) -> None:
        if node.agent is not None:
            node.agent.fuse = self.world.rng.randint(1, 24)

    def _stop(self, node: Node) -> None:
        if node.agent is not None:
            node.agent.stop(self._seconds() + self.world.pick((0.0, 0.0, PATIENCE)))
            if node.local and self.world.chance(0.3):
                node.agent.hangs = True

    def _suspend(self, node: Node) -> None:
        if node.agent is not None and not node.local:  # the client's own machine has the hub on it
            node.agent.stop(self._seconds() + self.world.pick((0.0, 0.0, PATIENCE)), suspended=True)

    def _stop_hub(self, node: Node) -> None:
        self.world.hub.stop(self._seconds())

    def _suspend_hub(self, node: Node) -> None:
        """The client's machine, and all agents on it."""
        seconds = self._seconds()
        self.world.hub.stop(seconds, suspended=True)
        for each in self.world.nodes:
            if each.local and each.agent is not None:
                each.agent.stop(seconds, suspended=True)

    #: what happens at some time, at a node that is drawn
    planned: ClassVar[dict[str, Callable[[Faults, Node], Any]]] = {
        "cut": _cut,
        "one-way cut": _cut_one_way,
        "swizzle": _swizzle,
        "reconnection": _reconnect,
        "crash": _crash,
        "stop": _stop,
        "suspension": _suspend,
        "hub stop": _stop_hub,
        "hub suspension": _suspend_hub,
    }

    # --- the end ---

    def heal(self) -> None:
        """All faults are over; what is on its way still arrives."""
        world = self.world
        world.tell("world", "is healed")
        world.healed = True
        world.network.heal()
        for attempt in world.immortal:
            world.judge.ended(attempt)
        for node in world.nodes:
            if node.agent is not None:
                node.agent.fuse = 0
                node.agent.go_on()
            if not node.local:
                node.boot()
        world.hub.go_on()
        world.later(0.01, self.watch)

    def watch(self) -> None:
        """Until all is over: that it takes no longer than it may."""
        world = self.world
        if world.judge.quiet():
            world.finished = True
        elif world.now > world.limit():
            world.finished = True
        else:
            world.later(0.5, self.watch)
