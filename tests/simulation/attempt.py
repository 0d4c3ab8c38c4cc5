"""What an agent holds: attempts of tasks, and the lanes in which they wait and run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from worker_agent import protocol
from worker_agent.places import Ledger, Places
from worker_agent.pools import Place

if TYPE_CHECKING:
    from agent import Agent


class Attempt:
    """A task on an agent."""

    __slots__ = ("agent", "announced", "doomed", "end", "excused", "lane", "missing", "number", "place", "running",
                 "since", "task")  # fmt: skip

    def __init__(self, order: protocol.Run, lane: Lane, agent: Agent) -> None:
        self.task, self.number, self.lane, self.agent = order.task, order.attempt, lane, agent
        self.running = self.announced = self.doomed = False
        #: where it runs, and where its process leaves after it has ended
        self.place: Place | None = None
        #: it may run too long: its agent was stopped, or it cannot be killed
        self.excused = False
        #: pieces of its payload that have not come
        self.missing = 0
        self.end, self.since = "", 0.0

    @property
    def state(self) -> str:
        """For counting what has met what."""
        return "running" if self.running else "incomplete" if self.missing else "queued"


class Lane:
    """A lane on its agent, with the product's places."""

    __slots__ = ("at", "closing", "environment", "number", "places", "queue")

    def __init__(self, order: protocol.Open, ledger: Ledger, on_freed: Callable[[Lane, list[int]], None]) -> None:
        self.number, self.environment = order.lane, order.environment
        self.queue: deque[Attempt] = deque()
        self.places = Places(ledger, lambda numbers: on_freed(self, numbers))
        #: what runs at each place, or is leaving it
        self.at: dict[int, Attempt] = {}
        #: it goes when the last process has left
        self.closing = False
