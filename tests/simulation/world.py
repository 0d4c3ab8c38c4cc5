"""One seed, one schedule: hub, agents, network and users in simulated time. The product's pure modules, faked all else.

    Users --submit, cancel, kill--> Hub (Scheduler, Members) <--frames, Network--> Agent (AgentSession, lanes)
                                            Faults disturb them, the Judge watches

A seed that fails raises :class:`judge.Violation`. Nothing here reads a clock: ``World(seed).run()`` does the same each
time.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from agent import Crashed
from attempt import Attempt
from demands import Demands
from faults import DISTURBING, FAULTS, Faults
from hub import Hub
from judge import PATIENCE, Judge, Violation
from network import LATEST, SLOWEST, Network
from node import Node
from users import Users

from executor.core import members, model, moments
from worker_agent import link

#: Simulated seconds, beyond the work that there is, after which all must have ended once the faults are over.
BOUND = 4 * PATIENCE
#: Events after which what goes on is a storm; the largest worlds that are none have a third of it.
MOST_EVENTS = 20_000

Thing = TypeVar("Thing")


class World:
    """Time, chance, and all that there is."""

    def __init__(self, seed: int, trace: bool = False) -> None:
        self.rng = random.Random(seed)
        self.random = self.rng.random
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.counter = 0
        self.trace: list[tuple[float, str, str, int | None]] | None = [] if trace else None
        #: how often each thing happened
        self.seen: Counter[Any] = Counter()
        #: the scheduler checks itself, which takes time
        self.checks = self.chance(0.05)
        share = self.pick((0.1, 0.3, 0.6))
        self.faults = {fault for fault in FAULTS if self.chance(share)}
        self.seen.update("fault: " + fault for fault in self.faults)
        #: answers come at once
        self.calm = not self.faults & DISTURBING
        self.faults_end = self.pick((1.0, 3.0, 10.0, 30.0, 100.0, 200.0)) * self.random()
        self.healed = self.finished = self.client_has_died = False
        self._limit = float("inf")
        self.immortal: set[Attempt] = set()
        self._make()

    def _make(self) -> None:
        self.judge = Judge(self)
        self.network = Network(self)
        self.demands = Demands(self)
        self.users = Users(self)
        self.hub = Hub(self)
        locals_ = self.pick((0, 0, 0, 0, 1, 2, 8))
        count = self.rng.randint(1, self.pick((1, 2, 2, 3, 3, 8)))
        self.nodes = [Node(self, number, number < locals_) for number in range(count)]
        for node in self.nodes:
            if node.local:
                self.hub.launch(node)
            else:
                self.at(self.pick((0.0, 1.0, 30.0)) * self.random(), node.boot)
        self.users.plan()
        Faults(self).plan()

    # --- chance ---

    def fault(self, kind: str) -> bool:
        """Whether this seed has it."""
        return kind in self.faults

    def chance(self, probability: float) -> bool:
        """True now and then."""
        return self.random() < probability

    def pick(self, things: Sequence[Thing]) -> Thing:
        """One of them."""
        return things[int(self.random() * len(things))]

    # --- time ---

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        """Let something happen at a time."""
        self.counter += 1
        heapq.heappush(self._events, (time, self.counter, action, arguments))

    def later(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        """Let something happen in so many seconds."""
        self.at(self.now + seconds, action, *arguments)

    def run(self) -> None:
        """Until all is over."""
        saved = link.WINDOW, link.BULK_WINDOW, link.FRAME_BYTES, link.FRAME_MESSAGES, members.BEATS_PER_LEASE
        look_again, assumed = moments.LOOK_AGAIN, model.ASSUMED
        members.BEATS_PER_LEASE = self.pick((2, 2, 3, 6))  # the fewer they are, the more a lost one matters
        moments.LOOK_AGAIN = self.pick((0.3, 3.0, 30.0))  # the more often, the fewer seeds in a second
        model.ASSUMED = self.pick((model.LONG / 2, model.ASSUMED))  # the less, the more is held in advance
        if self.fault("small window"):
            link.WINDOW, link.FRAME_MESSAGES = self.pick(((300, 2), (2000, 3), (20000, 1)))
            link.BULK_WINDOW, link.FRAME_BYTES = link.WINDOW // 4, link.WINDOW // 2
        try:
            self._run()
        finally:
            link.WINDOW, link.BULK_WINDOW, link.FRAME_BYTES, link.FRAME_MESSAGES, members.BEATS_PER_LEASE = saved
            moments.LOOK_AGAIN, model.ASSUMED = look_again, assumed
        self.judge.check_end()

    def _run(self) -> None:
        events, pop = self._events, heapq.heappop
        while events and not self.finished:
            self.now, _, action, arguments = pop(events)
            try:
                action(*arguments)
            except Crashed as crash:
                crash.agent.crash()
            if self.counter > MOST_EVENTS:
                raise Violation("S6", f"{self.counter} events: frames make ever more frames")

    def limit(self) -> float:
        """When all must have ended: what recovery takes, frames on their way, all tasks one by one."""
        in_flight = SLOWEST if self.fault("slowness") else LATEST
        self._limit = min(self._limit, self.now + BOUND + in_flight + self.users.work_left)
        return self._limit

    # --- ends ---

    def kill(self, node: Node) -> None:
        """SIGKILL to all processes of this machine's agent, stopped or not; it takes what time it takes."""
        agent = node.agent
        if agent is not None and agent.alive:
            self.tell(agent.name, "is killed")
            self.later(node.kill_time, agent.end)

    def end_client(self) -> None:
        """The user's process is gone; agents on its machine notice, or are ended by their supervisors."""
        self.client_has_died = True
        self.hub.die()
        for node in self.nodes:
            if node.local and node.agent is not None:
                self.later(2.0 * self.random(), node.agent.end)

    # --- the story ---

    def tell(self, who: str, what: str, task: int | None = None) -> None:
        """For the story of a seed that fails."""
        if self.trace is not None:
            self.trace.append((self.now, who, what, task))
