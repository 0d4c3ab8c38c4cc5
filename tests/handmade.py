"""An agent made by hand: it joins with an invitation, obeys nobody, and says whatever a test wants it to say."""

from __future__ import annotations

import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import zmq

from worker_agent import codec, dialing, protocol
from worker_agent.connection import read_connection
from worker_agent.pools import Pool
from worker_agent.session import AgentSession

_PATIENCE = 30.0
Order = TypeVar("Order")


class HandmadeAgent:
    """Its wire is that of a real one: ``worker_agent.session`` over a socket that ``worker_agent.dialing`` made."""

    def __init__(self, invitation: Any, **hello: Any) -> None:
        """``hello`` are fields of the hello that are to be different."""
        self.connection = read_connection(Path(invitation).read_bytes())
        self.process, self.name = secrets.token_hex(8), ""
        self._hello = hello
        self._context = zmq.Context()
        keys = (self.connection.server_key, self.connection.public_key, self.connection.secret_key)
        self.socket, _ = dialing.dial(self._context, self.connection.endpoints, *(key.encode() for key in keys))
        self.session = AgentSession(self.connection.session, self.hello, self._new_name)
        #: what the hub has ordered, and all frames in which it came
        self.orders: list[Any] = []
        self.frames: list[protocol.Orders] = []
        self.refused = ""

    def hello(self, name: str) -> protocol.Hello:
        """What it says of itself."""
        fields = {
            "launch": self.connection.launch, "process": self.process, "name": name, "host": "handmade",
            "pid": os.getpid(), "python": platform.python_version(),
            "pools": [Pool("cpus", [["0"]])], **self._hello,
        }  # fmt: skip
        return protocol.Hello(**fields)

    def _new_name(self) -> str:
        self.name = secrets.token_hex(8)
        return self.name

    @property
    def epoch(self) -> int:
        """Its registration; 0: none."""
        return self.session.epoch

    # --- the wire -----------------------------------------------------------------------------------------------------

    def step(self, wait: float = 0.02) -> None:
        """Send what the session has to say, and take what has come."""
        while (frame := self.session.take(time.monotonic())) is not None:
            self.send(frame)
        if not self.socket.poll(int(wait * 1000)):
            return
        while self.socket.poll(0):
            self._take(codec.decode_orders(self.socket.recv()))

    def _take(self, frame: protocol.Orders) -> None:
        self.frames.append(frame)
        incoming = self.session.receive(frame, time.monotonic())
        self.orders += incoming.orders
        self.refused = incoming.refused or self.refused

    def until(self, true: Callable[[], Any], patience: float = _PATIENCE) -> Any:
        """Go on until something is so; gives that."""
        end = time.monotonic() + patience
        while not (found := true()):
            assert time.monotonic() < end, f"waited {patience} s; the hub has said {self.frames}"
            self.step()
        return found

    def join(self) -> HandmadeAgent:
        """Say hello until it is welcome."""
        self.until(lambda: self.epoch)
        return self

    def next(self, kind: type[Order]) -> Order:
        """The next order of this kind; those before it are forgotten."""
        found: Order = self.until(lambda: [each for each in self.orders if isinstance(each, kind)])[0]
        del self.orders[: self.orders.index(found) + 1]
        return found

    def report(self, *reports: protocol.Report) -> None:
        """Say it as a real agent would, and wait until the hub has it."""
        for report in reports:
            self.session.report(report)
        self.until(lambda: self.session.said_all)

    def send(self, data: bytes) -> None:
        """These bytes, as one frame."""
        self.socket.send(data)

    def send_frame(self, *reports: protocol.Report, **changes: Any) -> None:
        """A frame of its own making; it has this agent's session and epoch, if not told otherwise."""
        fields = {"session": self.connection.session, "epoch": self.epoch, "first": 1, "ack": 0, **changes}
        version = fields.pop("protocol", protocol.PROTOCOL)
        numbers = (fields["session"], fields["epoch"], fields["first"], fields["ack"])
        self.send(codec.encode(protocol.Reports(version, *numbers, False, time.monotonic(), list(reports))))

    def settle(self) -> None:
        """Wait until the hub has read all that was sent until now: it has answered what was sent after that."""
        seen = len(self.frames)
        self.send_frame(first=0)
        self.until(lambda: len(self.frames) > seen)

    def leave(self) -> None:
        """Say goodbye, so that the hub gives our tasks to others at once."""
        if self.epoch:
            self.session.report(protocol.Bye("it was made by hand"))
            self.step(0)
        self.close()

    def close(self) -> None:
        """Be gone without a word."""
        self.socket.close(linger=500)
        self._context.term()


@pytest.fixture
def handmade() -> Iterator[Callable[..., HandmadeAgent]]:
    """Makes agents by hand; they leave with the test."""
    made: list[HandmadeAgent] = []

    def make(invitation: Any, **hello: Any) -> HandmadeAgent:
        made.append(HandmadeAgent(invitation, **hello))
        return made[-1]

    yield make
    for agent in made:
        if not agent.socket.closed:
            agent.leave()
