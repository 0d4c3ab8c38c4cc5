"""The agent's side of its registration: hello, epoch, lease, fence. Pure: frames and times in, frames and orders out.

    out  --Hello, again and again-->  in (epoch)  --no contact for the lease, or the hub says so-->  fenced, out again

An agent that is fenced ends all that it runs before it says hello under a new name: what it did before counts no more,
for the hub has given its tasks to others, or is about to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from worker_agent import codec, protocol
from worker_agent.link import Link

#: Seconds between two hellos.
HELLO_AGAIN = 2.0
#: Seconds of hellos without an answer after which there is no hub; with a lease, twice that is enough.
HELLO_PATIENCE = 60.0
#: If nothing was heard for so much of the lease, the connection may be one that has died and was never closed. TCP
#: finds that out after minutes, and is silent for long after the network is whole again.
REDIAL_PER_LEASE = 1 / 2


class Incoming(NamedTuple):
    """What a frame of the hub means: orders; the end of all that runs here; that this agent may not join, and why."""

    orders: list[protocol.Order]
    fenced: bool = False
    refused: str = ""


NOTHING = Incoming([])
FENCED = Incoming([], fenced=True)


class AgentSession:
    """What an agent knows of its hub."""

    def __init__(self, session: str, hello: Callable[[str], protocol.Hello], new_name: Callable[[], str]) -> None:
        """``hello`` makes the message for a name; ``new_name`` gives names that nobody else has."""
        self._session = session
        self._hello = hello
        self._new_name = new_name
        self.epoch = 0
        self._lease: float | None = None
        self._beat = HELLO_AGAIN
        #: when something came last, or when we have dialled since
        self._heard: float | None = None
        self._deaf = False
        self._start()

    def _start(self) -> None:
        self.epoch = 0
        self._name = self._new_name()
        self._link = Link(codec.encode_message, codec.cut_message)
        self._joiner = codec.Joiner(protocol.Order)
        self._lease_ends: float | None = None
        self._speak_at = 0.0
        self._out_since: float | None = None

    # --- outgoing -----------------------------------------------------------------------------------------------------

    def report(self, report: protocol.Report) -> None:
        """Something that the hub is to know. What is said while nobody listens is forgotten with the fence."""
        self._link.send(report)

    def report_bulk(self, pieces: Iterator[protocol.Piece]) -> None:
        """Large payloads, piece by piece; when the last one was taken, ``pieces`` may report what follows them."""
        self._link.send_bulk(pieces)

    @property
    def can_send(self) -> bool:
        """Whether there are reports that may go now."""
        return self.epoch != 0 and self._link.can_send

    @property
    def has_bulk(self) -> bool:
        """Whether large payloads wait for their turn."""
        return self._link.has_bulk

    def acknowledge_now(self, now: float) -> None:
        """Tell the hub with the next frame what has arrived: it waits for that with the next pieces."""
        self._link.acknowledge_now(now)

    def take(self, now: float) -> bytes | None:
        """A frame to be sent now, if there is one; call again until there is none."""
        if self.epoch == 0:
            return self._take_hello(now)
        self._link.tick(now)
        if now >= self._speak_at:
            self._link.acknowledge_now(now)
        batch = self._link.take(now)
        if batch is None:
            return None
        self._speak_at = now + self._beat
        return codec.make_frame(self._session, self.epoch, batch, now)

    def _take_hello(self, now: float) -> bytes | None:
        if now < self._speak_at:
            return None
        if self._out_since is None:
            self._out_since = now
        self._speak_at = now + min(HELLO_AGAIN, self._beat)
        return codec.unnumbered_frame(self._session, 0, self._hello(self._name), now)

    def may_start(self, now: float) -> bool:
        """Whether tasks may start: not before we have joined, and not when the lease has run out unnoticed."""
        return self.epoch != 0 and (self._lease_ends is None or now < self._lease_ends)

    def should_dial(self, now: float) -> bool:
        """Whether it is time to connect anew, for nothing is heard by the connection that we have. Asked at each turn.

        The first hellos are said by a connection that was just made, to a hub that may be slow: that is no reason.
        """
        if self._lease is None or self._heard is None:
            return False
        if now < self._heard + REDIAL_PER_LEASE * self._lease:
            return False
        self._heard, self._deaf = now, True
        return True

    @property
    def said_all(self) -> bool:
        """Whether the hub has acknowledged everything."""
        return self._link.idle

    def due(self) -> float:
        """When :meth:`tick` and :meth:`take` should be called again at the latest."""
        due = self._speak_at
        for time in (self._lease_ends, self._link.due() if self.epoch else None):
            if time is not None and time < due:
                due = time
        return due

    # --- incoming -----------------------------------------------------------------------------------------------------

    def receive(self, frame: protocol.Orders, now: float) -> Incoming:
        """A frame of the hub. If the lease ran out while it waited, it came too late."""
        if self.tick(now).fenced:
            return FENCED
        if frame.session != self._session:
            return NOTHING
        self._heard = now
        if frame.first == 0 and frame.messages:
            return self._receive_unnumbered(frame, now)
        if frame.epoch != self.epoch or self.epoch == 0:
            return NOTHING
        self._renew(frame.echo)
        if self._deaf:  # what we said meanwhile is lost, probably
            self._deaf = False
            self._link.go_back()
        self._link.acknowledged(frame.ack, frame.misses, now)
        return Incoming(self._joiner.join(self._link.receive(frame.first, frame.messages, now)))

    def _receive_unnumbered(self, frame: protocol.Orders, now: float) -> Incoming:
        message = frame.messages[0]
        if isinstance(message, protocol.Welcome) and message.name == self._name and self.epoch == 0:
            if message.lease is not None and now >= frame.echo + message.lease:
                return NOTHING  # the hub has stood still: our next hello is answered in time
            self.epoch, self._lease, self._beat, self._speak_at = message.epoch, message.lease, message.beat, now
            self._renew(frame.echo)
            return Incoming([message])
        if isinstance(message, protocol.Fence) and message.epoch == self.epoch and self.epoch:
            return self._fence()
        if isinstance(message, protocol.Refuse) and message.name in (self._name, "") and self.epoch == 0:
            return Incoming([], refused=message.text)
        return NOTHING

    def _renew(self, echo: float) -> None:
        """The hub has heard what we said at ``echo`` by our clock, and counts from then or later."""
        if self._lease is not None:
            self._lease_ends = max(self._lease_ends or 0.0, echo + self._lease)

    def tick(self, now: float) -> Incoming:
        """Time has passed: perhaps the lease has run out."""
        if self._lease_ends is not None and now >= self._lease_ends:
            return self._fence()
        patience = min(HELLO_PATIENCE, 2 * self._lease) if self._lease else HELLO_PATIENCE
        if self.epoch == 0 and self._out_since is not None and now >= self._out_since + patience:
            return Incoming([], refused=f"the hub has not answered for {patience:g} s")
        return NOTHING

    def _fence(self) -> Incoming:
        self._start()
        return FENCED
