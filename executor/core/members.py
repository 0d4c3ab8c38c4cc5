"""Who belongs to the hub: hellos, epochs, who was heard when, and the conversation with each. Pure.

Rule 1: an agent has one epoch at a time, a number that was never given before; a frame counts if its epoch is current.
Rule 2: an agent that was not heard for its ``patience`` is lost; its epoch is over, and never comes back.
Rule 3: ``patience`` is longer than the lease, after which the agent has ended its tasks: no two attempts overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from executor.core.model import WorkerId
from worker_agent import codec, protocol
from worker_agent.link import Link

#: Seconds without contact after which an agent elsewhere ends its tasks.
LEASE = 30.0
#: The hub gives the tasks of an agent to others when nothing was heard of it for so many times its lease.
PATIENCE_PER_LEASE = 1.5
#: An agent on this machine has no lease: it is ended if nothing was heard of it for so many seconds.
LOCAL_PATIENCE = 45.0
#: How often in the time of a lease an agent says something.
BEATS_PER_LEASE = 6


@dataclass(slots=True, eq=False)
class Member:
    """An agent that has joined, in one epoch.

    ``route`` is the caller's way to it; after ``patience`` seconds of silence it is lost.
    """

    epoch: int
    worker: WorkerId
    hello: protocol.Hello
    route: Any
    heard: float
    patience: float
    link: Link = field(default_factory=lambda: Link(codec.encode_message, codec.cut_message))
    joiner: codec.Joiner = field(default_factory=lambda: codec.Joiner(protocol.Report))
    echo: float = 0.0


class Members:
    """All agents that have joined and are not lost."""

    def __init__(
        self, session: str, lease: float = LEASE, make_epoch: Callable[[int], int] = lambda number: number
    ) -> None:
        """``make_epoch`` makes an epoch of a number that was never given before, in such a way that nobody guesses it:
        the agents of one invitation have one key, and their epochs are what tells them apart.
        """
        self._session = session
        self._make_epoch = make_epoch
        self._lease = lease
        self._patience = PATIENCE_PER_LEASE * lease
        self._epochs = 0
        #: when :meth:`silent` was asked last
        self._asked = 0.0
        self._by_epoch: dict[int, Member] = {}
        self._by_name: dict[str, Member] = {}
        self._by_process: dict[str, Member] = {}

    def __iter__(self) -> Any:
        return iter(list(self._by_epoch.values()))

    def join(
        self, hello: protocol.Hello, worker: WorkerId, route: Any, clock: float, now: float, *, leased: bool
    ) -> tuple[Member, bytes]:
        """A new member, and its welcome."""
        self._epochs += 1
        patience = self._patience if leased else LOCAL_PATIENCE
        member = Member(self._make_epoch(self._epochs), worker, hello, route, now, patience, echo=clock)
        self._by_epoch[member.epoch] = self._by_name[hello.name] = self._by_process[hello.process] = member
        return member, self.welcome(member, leased=leased)

    def welcome_again(self, member: Member, clock: float, now: float, *, leased: bool) -> bytes:
        """The answer to a hello that is repeated: the first one did not arrive, or was too old when it did."""
        member.heard, member.echo = now, max(member.echo, clock)
        return self.welcome(member, leased=leased)

    def welcome(self, member: Member, *, leased: bool) -> bytes:
        """The answer to its hello."""
        lease = self._lease if leased else None
        message = protocol.Welcome(member.epoch, member.hello.name, self._lease / BEATS_PER_LEASE, lease)
        return codec.unnumbered_frame(self._session, member.epoch, message, member.echo)

    def named(self, name: str) -> Member | None:
        """The member that said hello under this name, if it is one."""
        return self._by_name.get(name)

    def of_process(self, process: str) -> Member | None:
        """The member that is this process, if it is one."""
        return self._by_process.get(process)

    def is_late(self, hello: protocol.Hello, clock: float) -> bool:
        """Whether the hello is of an earlier registration of a member, and was overtaken on its way: no news."""
        member = self._by_process.get(hello.process)
        return member is not None and member.hello.name != hello.name and clock <= member.echo

    def of_epoch(self, epoch: int) -> Member | None:
        """The member that has this epoch now."""
        return self._by_epoch.get(epoch)

    def fence(self, epoch: int) -> bytes:
        """The answer to a frame of an epoch that is over."""
        return codec.unnumbered_frame(self._session, 0, protocol.Fence(epoch), 0.0)

    def refuse(self, name: str, text: str) -> bytes:
        """The answer to the hello of an agent that may not join."""
        return codec.unnumbered_frame(self._session, 0, protocol.Refuse(name, text), 0.0)

    def receive(self, frame: protocol.Reports, route: Any, now: float) -> tuple[Member | None, list[protocol.Report]]:
        """Whose frame it is, None for nobody's, and the reports in it that are new.

        Raises ProtocolError if fragments in it make no report.
        """
        member = self._by_epoch.get(frame.epoch)
        if member is None or frame.session != self._session:
            return None, []
        member.heard = now
        member.echo = max(member.echo, frame.clock)
        if route != member.route:  # it has connected anew
            member.route = route
            member.link.go_back()
        if not frame.messages:
            member.link.acknowledge_now(now)  # a sign of life: it wants one
        member.link.acknowledged(frame.ack, frame.misses, now)
        return member, member.joiner.join(member.link.receive(frame.first, frame.messages, now))

    def take(self, member: Member, now: float) -> bytes | None:
        """A frame to be sent to it now, if there is one."""
        member.link.tick(now)
        batch = member.link.take(now)
        if batch is None:
            return None
        return codec.make_frame(self._session, member.epoch, batch, member.echo)

    def silent(self, now: float) -> list[Member]:
        """Those that were not heard for too long. The caller removes them.

        Asked in time (see :meth:`due`), this is about them. If not, it was we who stood still (Ctrl-Z, a suspended
        machine), and what they have said may still be on its way: they get their time anew.
        """
        stood_still, self._asked = now > self._asked + self._patience / 3, now
        if stood_still:
            for member in self._by_epoch.values():
                member.heard = now
        return [member for member in self._by_epoch.values() if now >= member.heard + member.patience]

    def remove(self, member: Member) -> None:
        """Its epoch is over."""
        self._by_epoch.pop(member.epoch, None)
        self._by_name.pop(member.hello.name, None)
        self._by_process.pop(member.hello.process, None)

    def due(self) -> float | None:
        """When :meth:`silent` and :meth:`take` should be asked again."""
        times = [member.heard + member.patience for member in self._by_epoch.values()]
        if times:
            times.append(self._asked + self._patience / 6)
        times += [time for member in self._by_epoch.values() if (time := member.link.due()) is not None]
        return min(times, default=None)
