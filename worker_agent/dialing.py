"""How an agent on another machine connects to its hub: encrypted, and only to a hub that has the key it was told.

An endpoint may be one of several addresses of the hub's machine, not all of which can be reached from here. They are
tried at the same time, each by a socket of its own: one that is connected to several spreads its messages over them.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence
from typing import Any

import zmq

from worker_agent import processes

#: The largest frame: the largest fragment of a message, and room for others. A larger one ends the connection.
FRAME_LIMIT = 4 * 2**20
#: The largest message: what libzmq measures is the encrypted frame, with a name, a nonce, flags and a seal.
MESSAGE_LIMIT = FRAME_LIMIT - 33
#: What both ends of a connection set alike; times are milliseconds. Nothing is
#: dropped because a peer is slow: how much may be on the way is a matter of credit.
COMMON_OPTIONS = {
    zmq.MAXMSGSIZE: FRAME_LIMIT,
    zmq.HANDSHAKE_IVL: 10_000,
    zmq.SNDHWM: 0,
    zmq.RCVHWM: 0,
    zmq.HEARTBEAT_IVL: 5_000,
    zmq.HEARTBEAT_TIMEOUT: 15_000,
}
#: Seconds that an endpoint has to answer.
PATIENCE = 5.0

#: An event of a socket's monitor: its number and a value (zmq_socket_monitor(3)). pyzmq's own reader of it imports
#: asyncio, a fifth of all that an agent would import.
_EVENT = struct.Struct("=Hi")

#: What ends an attempt, in words that follow the endpoint.
_ENDS = {
    zmq.Event.HANDSHAKE_SUCCEEDED: "is connected",
    zmq.Event.HANDSHAKE_FAILED_AUTH: "refused our key",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "is no hub of ours: it speaks another protocol, or has another key",
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: "broke the handshake off: it may be another hub, or be ending",
    zmq.Event.DISCONNECTED: "closed the connection before the handshake",
    zmq.Event.CLOSED: "refused the connection, or there is no way to it",
}


def agent_socket(
    context: zmq.Context[Any], server_key: bytes, public_key: bytes, secret_key: bytes, *, ipv6: bool = False
) -> zmq.Socket[Any]:
    """A socket for talking to the hub with that key, not connected yet."""
    socket: zmq.Socket[Any] = context.socket(zmq.DEALER)
    for option, value in COMMON_OPTIONS.items():
        socket.setsockopt(option, value)
    socket.setsockopt(zmq.LINGER, 500)
    socket.setsockopt(zmq.IMMEDIATE, 1)  # or messages wait for a connection that never comes, and nobody is told
    socket.setsockopt(zmq.RECONNECT_IVL, 100)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 5_000)
    socket.setsockopt(zmq.IPV6, ipv6)
    socket.setsockopt(zmq.CURVE_SERVERKEY, server_key)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, public_key)
    socket.setsockopt(zmq.CURVE_SECRETKEY, secret_key)
    return socket


class Attempt:
    """A connection that is being made, and what becomes of it."""

    def __init__(self, socket: zmq.Socket[Any], endpoint: str) -> None:
        """Begin; raises zmq.ZMQError if the endpoint makes no sense."""
        self.socket, self.endpoint = socket, endpoint
        # pyzmq's get_monitor_socket makes the name from a descriptor, which may be that of an attempt just closed
        address = f"inproc://attempt-{os.urandom(8).hex()}"
        socket.monitor(address, sum(_ENDS))
        self.monitor = socket.context.socket(zmq.PAIR)
        self.monitor.connect(address)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError:
            self.stop()
            raise

    def outcome(self) -> zmq.Event | None:
        """What decided it, if that has happened yet."""
        while self.monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            number, _ = _EVENT.unpack(self.monitor.recv_multipart()[0])
            event = zmq.Event(number)
            if event in _ENDS:
                return event
        return None

    def stop(self) -> None:
        """Watch it no longer; the socket stays as it is."""
        self.socket.disable_monitor()  # first: with nobody to take its events, the socket's thread stands still
        self.monitor.close(linger=0)


def dial(
    context: zmq.Context[Any],
    endpoints: Sequence[str],
    server_key: bytes,
    public_key: bytes,
    secret_key: bytes,
    patience: float = PATIENCE,
) -> tuple[zmq.Socket[Any], str]:
    """A connected socket, and which of the endpoints it is connected to: the first that answers.

    Raises ConnectionError, which says what became of each, if none does within ``patience`` seconds.
    """
    round_ = _Round()
    try:
        for endpoint in endpoints:
            round_.begin(agent_socket(context, server_key, public_key, secret_key, ipv6="[" in endpoint), endpoint)
        connected = round_.wait(patience)
    finally:
        round_.close()
    if connected is None:
        raise ConnectionError(f"the hub cannot be reached: {'; '.join(round_.failures) or 'it has told no endpoint'}")
    return connected.socket, connected.endpoint


class _Round:
    """Attempts that are made at the same time."""

    def __init__(self) -> None:
        self._attempts: dict[zmq.Socket[Any], Attempt] = {}
        #: what became of the others, in sentences
        self.failures: list[str] = []

    def begin(self, socket: zmq.Socket[Any], endpoint: str) -> None:
        """One more."""
        try:
            attempt = Attempt(socket, endpoint)
        except zmq.ZMQError as error:
            socket.close(linger=0)
            self._fail(f"{endpoint} cannot be dialled: {error.strerror}")
        else:
            self._attempts[attempt.monitor] = attempt

    def wait(self, patience: float) -> Attempt | None:
        """The first that is connected; None: none is, after so many seconds."""
        end = time.monotonic() + patience
        while self._attempts and (left := end - time.monotonic()) > 0:
            zmq.select(list(self._attempts), [], [], left)
            for attempt in list(self._attempts.values()):
                outcome = attempt.outcome()
                if outcome is zmq.Event.HANDSHAKE_SUCCEEDED:
                    processes.say(f"{attempt.endpoint} {_ENDS[outcome]}")
                    return self._take(attempt)
                if outcome is not None:
                    self._give_up(attempt, _ENDS[outcome])
        for attempt in list(self._attempts.values()):
            self._give_up(attempt, f"gave no answer in {patience:g} s")
        return None

    def _take(self, attempt: Attempt) -> Attempt:
        del self._attempts[attempt.monitor]
        attempt.stop()
        return attempt

    def _give_up(self, attempt: Attempt, why: str) -> None:
        self._take(attempt).socket.close(linger=0)
        self._fail(f"{attempt.endpoint} {why}")

    def _fail(self, text: str) -> None:
        processes.say(text)
        self.failures.append(text)

    def close(self) -> None:
        """Drop those that are not decided."""
        for attempt in list(self._attempts.values()):
            self._give_up(attempt, "has not answered yet")
