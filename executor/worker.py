"""Workers: the hub's records of its agents, what users are told of them, and what happens to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from executor import local
from executor.core.members import Member
from executor.core.model import WorkerId
from executor.transfers import Transfers
from worker_agent import protocol
from worker_agent.pools import Pool


@dataclass(slots=True, eq=False)
class Worker:
    """An agent: started here, and then joined; or invited (``launch`` is None). What it knows is not told again."""

    id: WorkerId
    launch: local.Launch | None
    pools: list[Pool]
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

    @property
    def title(self) -> str:
        """Host and process, for people."""
        return f"{self.host} (process {self.member.hello.pid})" if self.member is not None else "an agent that starts"

    @property
    def group(self) -> str:
        """The agents of one group run tasks on several nodes; before they have joined, those that are started here."""
        return self.member.hello.group if self.member is not None else ""

    def send(self, order: protocol.Order) -> None:
        """With the next frame, if it has joined."""
        if self.member is not None:
            self.member.link.send(order)


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """An agent that has joined.

    Its host and process, whether it was started by this executor here, its Python, its group (see the option
    ``nodes``), when it has to leave (seconds since the epoch; None: nobody knows), how much it has of each resource,
    how much of that no lane has, and whether it sees the working directory that you had when it was invited.
    """

    host: str
    pid: int
    local: bool
    python: str
    group: str
    ends: float | None
    resources: dict[str, float]
    free: dict[str, float]
    sees_cwd: bool = True

    @property
    def used(self) -> dict[str, float]:
        """How much of each resource lanes have."""
        return {name: round(amount - self.free[name], 4) for name, amount in self.resources.items()}

    @property
    def slots(self) -> int:
        """How many tasks with one CPU it runs at a time."""
        return int(self.resources.get("cpus", 0))


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
