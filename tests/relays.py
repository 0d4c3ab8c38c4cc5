"""A way between an agent and its hub that does what bad networks do: drops, freezes, crumbles, changes, repeats."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from executor.invitations import Invitation

#: Makes of some bytes those that are carried on in their stead; bytes of the agent have ``up`` true.
Change = Callable[[bytes, bool], Iterable[bytes]]
_NO_TIME = 0.05


class _Way:
    """One end of a connection: what comes here goes to ``other``."""

    def __init__(self, source: socket.socket, other: socket.socket, up: bool) -> None:
        self.source, self.other, self.up = source, other, up
        self.frozen = False


class Relay:
    """Carries the bytes of connections to a port of this machine, in a thread of its own.

    ``idle`` seconds without a byte drop a connection, as some firewalls do.
    """

    def __init__(self, port: int, change: Change = lambda data, up: [data], idle: float | None = None) -> None:
        self._port, self._change, self._idle = port, change, idle
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self._orders: list[Callable[[], None]] = []
        self._ear, self._mouth = socket.socketpair()
        self._ways: dict[socket.socket, _Way] = {}
        self._selector = selectors.DefaultSelector()
        self._last = time.monotonic()
        self._ending = False
        #: how many connections there have been, how many were dropped for idleness, what went up on the first
        self.connections = self.dropped = 0
        self.said_first = b""
        self._thread = threading.Thread(target=self._run, name="relay")

    def __enter__(self) -> Relay:
        for each in (self._server, self._ear):
            self._selector.register(each, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ask(self._end)
        self._thread.join()
        self._drop_all()
        self._selector.close()
        for each in (self._server, self._ear, self._mouth):
            each.close()

    # --- what tests ask for -------------------------------------------------------------------------------------------

    def invitation(self, invitation: Invitation, directory: Path) -> Path:
        """The same invitation, but by way of this relay."""
        fields = json.loads(Path(invitation.path).read_bytes())
        path = directory / f"relayed-{self.endpoint.rpartition(':')[2]}.json"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            json.dump({**fields, "endpoints": [self.endpoint]}, file)
        return path

    def drop(self) -> None:
        """Both ends learn that their connection is over."""
        self._ask(self._drop_all)

    def freeze(self) -> None:
        """Nothing is carried on these connections any more, and nobody is told; new ones work."""
        self._ask(self._freeze_all)

    def _ask(self, order: Callable[[], None]) -> None:
        self._orders.append(order)
        self._mouth.send(b".")

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ending:
            ready = self._selector.select(None if self._idle is None else _NO_TIME)
            for key, _ in ready:
                self._on_ready(key.fileobj)
            if self._idle is not None and self._ways and time.monotonic() > self._last + self._idle:
                self.dropped += 1
                self._drop_all()

    def _on_ready(self, source: socket.socket) -> None:
        if source is self._server:
            self._accept()
        elif source is self._ear:
            self._ear.recv(1)
            self._orders.pop(0)()
        elif source in self._ways:  # or it was dropped with its other end
            self._carry(self._ways[source])

    def _accept(self) -> None:
        one = self._server.accept()[0]
        try:
            other = socket.create_connection(("127.0.0.1", self._port))
        except OSError:
            one.close()
            return
        self.connections += 1
        self._last = time.monotonic()
        for source, sink, up in ((one, other, True), (other, one, False)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ways[source] = _Way(source, sink, up)
            self._selector.register(source, selectors.EVENT_READ)

    def _carry(self, way: _Way) -> None:
        try:
            data = way.source.recv(65536)
            if not data:
                self._drop(way.source)
            elif not way.frozen:
                self._last = time.monotonic()
                if way.up and self.connections == 1:
                    self.said_first += data
                for piece in self._change(data, way.up):
                    way.other.sendall(piece)
        except OSError:
            self._drop(way.source)

    def _drop(self, source: socket.socket) -> None:
        for each in (source, self._ways[source].other):
            with contextlib.suppress(KeyError):
                self._selector.unregister(each)
            self._ways.pop(each, None)
            each.close()

    def _drop_all(self) -> None:
        while self._ways:
            self._drop(next(iter(self._ways)))

    def _freeze_all(self) -> None:
        for way in self._ways.values():
            way.frozen = True

    def _end(self) -> None:
        self._ending = True


# ---- what may happen to bytes on their way


def crumble(data: bytes, up: bool) -> Iterable[bytes]:
    """One byte at a time."""
    return (data[index : index + 1] for index in range(len(data)))


class Sometimes:
    """Does something to every ``every``-th piece, ``most`` times in all, after the first ``spared``."""

    def __init__(self, do: Callable[[bytes], Iterable[bytes]], every: int, most: int, spared: int = 8) -> None:
        self._do, self._every, self.most, self._spared = do, every, most, spared
        self._count = itertools.count(1)
        self.done = 0

    def __call__(self, data: bytes, up: bool) -> Iterable[bytes]:
        number = next(self._count) - self._spared
        if number <= 0 or number % self._every or self.done == self.most:
            return [data]
        self.done += 1
        return self._do(data)


def flip_a_bit(data: bytes) -> list[bytes]:
    """One bit in the middle is another one."""
    middle = len(data) // 2
    return [data[:middle], bytes([data[middle] ^ 0x10]), data[middle + 1 :]]


def repeat(data: bytes) -> list[bytes]:
    """The same bytes twice."""
    return [data, data]


def lose(data: bytes) -> list[bytes]:
    """Nothing, as no TCP does, but what says it is one may do."""
    return []
