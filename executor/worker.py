"""Workers: the hub's records of its agents, what users are told of them, and what happens to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from executor import local
from executor.core.members import Member
from executor.core.model import WorkerId
from executor.transfers import Transfers
from worker_agent import protocol


@dataclass(slots=True, eq=False)
class Worker:
    """An agent: started here, and then joined; or invited (``launch`` is None). What it knows is not told again."""

    id: WorkerId
    launch: local.Launch | None
    slots: int
    started: float
    member: Member | None = None
    functions: set[int] = field(default_factory=set)
    environments: set[int] = field(default_factory=set)
    #: if it does not see our files
    transfers: Transfers | None = None

    @property
    def host(self) -> str:
        """Where it runs; "" before it has joined."""
        return self.member.hello.host if self.member is not None else ""

    def send(self, order: protocol.Order) -> None:
        """With the next frame, if it has joined."""
        if self.member is not None:
            self.member.link.send(order)


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """An agent that has joined: its host and process, how many tasks it runs at a time, whether it was started here."""

    host: str
    pid: int
    slots: int
    local: bool


class Joined(NamedTuple):
    """An agent has joined."""

    worker: Worker


class Reported(NamedTuple):
    """An agent says something."""

    worker: Worker
    reports: list[protocol.Report]


class Gone(NamedTuple):
    """An agent and all that it ran have ended; why, and the end of its log."""

    worker: Worker
    reason: str
    log: str


Event = Joined | Reported | Gone
