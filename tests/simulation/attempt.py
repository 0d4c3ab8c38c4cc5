"""What an agent holds: attempts of tasks, and the lanes in which they wait and run."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from worker_agent import protocol

if TYPE_CHECKING:
    from agent import Agent


class Attempt:
    """A task on an agent."""

    __slots__ = ("agent", "announced", "doomed", "end", "excused", "lane", "missing", "number", "running", "since",
                 "task")  # fmt: skip

    def __init__(self, order: protocol.Run, lane: Lane, agent: Agent) -> None:
        self.task, self.number, self.lane, self.agent = order.task, order.attempt, lane, agent
        self.running = self.announced = self.doomed = False
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
    """A lane on its agent."""

    __slots__ = ("environment", "queue", "running", "width")

    def __init__(self, environment: int, width: int) -> None:
        self.environment, self.width = environment, width
        self.queue: deque[Attempt] = deque()
        self.running = 0
