"""An agent's wire to its hub: the socket, how it is connected and connected anew, and when frames go out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import zmq

from worker_agent import codec, dialing
from worker_agent.connection import Connection
from worker_agent.loop import Loop
from worker_agent.session import AgentSession, Incoming

#: Reports of small tasks are gathered for so many seconds while others run, so that a frame holds many.
GATHER = 0.001


class Wire:
    """Carries the frames of a session."""

    def __init__(self, loop: Loop, session: AgentSession, connection: Connection) -> None:
        self._loop = loop
        self._session = session
        self._connection = connection
        self._context = zmq.Context()
        #: the one of the hub that we are connected to, if we were invited
        self.endpoint = ""
        #: whether something was reported since the last frame
        self.has_news = False
        self._flushed = 0.0
        self._flush_due = False

    # --- the socket ---------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect, and say hello. Raises SystemExit if the hub cannot be reached."""
        self._hub: zmq.Socket[bytes] = self._dial() if self._connection.server_key else self._connect_here()
        self._loop.watch(int(self._hub.getsockopt(zmq.FD)), lambda: None)
        self._send_frames(time.monotonic())

    def _connect_here(self) -> zmq.Socket[bytes]:
        hub: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        for option, value in ((zmq.LINGER, 500), (zmq.SNDHWM, 0), (zmq.RCVHWM, 0)):
            hub.setsockopt(option, value)
        hub.connect(self._connection.endpoints[0])
        return hub

    def _dial(self) -> zmq.Socket[bytes]:
        try:
            hub, self.endpoint = dialing.dial(self._context, self._connection.endpoints, *self._keys())
        except ConnectionError as error:
            raise SystemExit(str(error)) from error
        return hub

    def _keys(self) -> tuple[bytes, bytes, bytes]:
        connection = self._connection
        return connection.server_key.encode(), connection.public_key.encode(), connection.secret_key.encode()

    def dial_again(self) -> None:
        """By a new socket: the connection may be dead, and libzmq gives one up for good in which bytes were wrong."""
        self._loop.unwatch(int(self._hub.getsockopt(zmq.FD)))
        self._hub.close(linger=0)
        self._hub = dialing.agent_socket(self._context, *self._keys(), ipv6="[" in self.endpoint)
        self._hub.connect(self.endpoint)
        self._loop.watch(int(self._hub.getsockopt(zmq.FD)), lambda: None)

    def close(self) -> None:
        """What was sent may still go, for a moment."""
        self._hub.close()
        self._context.term()

    # --- frames -------------------------------------------------------------------------------------------------------

    def has_mail(self) -> bool:
        """Whether a frame waits."""
        return bool(int(self._hub.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def receive(self, take: Callable[[Incoming], None]) -> None:
        """Give ``take`` what each of the frames means that wait. Raises ProtocolError."""
        while self.has_mail():
            frame = codec.decode_orders(self._hub.recv())
            take(self._session.receive(frame, time.monotonic()))
            self.has_news = self.has_news or self._session.can_send  # there was no room until now

    def flush(self, *, gather: bool) -> None:
        """Send what there is to say; with ``gather``, for small tasks follow each other, once in ``GATHER`` seconds."""
        now = time.monotonic()
        if not self.has_news:
            if now >= self._session.due():
                self._send_frames(now)
            return
        wait = self._flushed + GATHER - now
        if wait > 0 and gather:
            if not self._flush_due:
                self._flush_due = True
                self._loop.call_in(wait, self.flush_now)
            return
        self.flush_now()

    def flush_now(self) -> None:
        """Send what there is to say."""
        self._flush_due = False
        self._send_frames(time.monotonic())

    def _send_frames(self, now: float) -> None:
        while (frame := self._session.take(now)) is not None:
            with contextlib.suppress(zmq.Again):  # there is no connection just now: it is sent again
                self._hub.send(frame, zmq.NOBLOCK)
        self.has_news = False
        self._flushed = now
