"""Invitations: files by which agents join over the network, and the port that the first of them opens.

    invite --file, by a private way--> python -P -m worker_agent FILE --hello--> Agents --may_join--> Network

A file goes as soon as nobody may join by it any more. Used from the hub's thread only.
"""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import select
import time
from dataclasses import dataclass
from typing import Any

import zmq

from executor import local
from executor.errors import ListenError
from executor.network import Network
from worker_agent import protocol
from worker_agent.connection import Connection, write_connection

#: Descriptors that this process needs beside one for each agent that connects.
DESCRIPTORS = 64


@dataclass(frozen=True, slots=True)
class Invitation:
    """A file by which agents may join: ``python -P -m worker_agent FILE``, here or where the file was brought to.

    Whoever has the file may run code as you: it is private (0600), and to be kept so.
    """

    path: str
    launch: str
    endpoints: tuple[str, ...]

    def __fspath__(self) -> str:
        return self.path


class Invitations:
    """All invitations of a hub, and the network that it listens on since the first one."""

    def __init__(
        self, context: zmq.Context[Any], session: str, directories: local.SessionDirectories, epoll: select.epoll
    ) -> None:
        self._context = context
        self._session = session
        self._directories = directories
        self._epoll = epoll
        #: None until somebody is invited
        self.network: Network | None = None
        #: those whose files are there, because somebody may still join by them
        self._usable: dict[str, Invitation] = {}

    def invite(
        self, count: int, seconds: float, host: str | None, port: int | None, imports: list[str],
        directory: str | None = None,
    ) -> Invitation:  # fmt: skip
        """Let ``count`` agents join over the network that have the ``imports``, within ``seconds``.

        The file lies in ``directory``, a private one; None: in that of the session. Raises ListenError, NetworkUnsafe.
        """
        _check_descriptors(count)
        network = self.network or self._listen(host, port)
        launch = secrets.token_hex(8)
        public, secret = network.grant(launch, count, time.monotonic() + seconds)
        connection = Connection(
            protocol=protocol.PROTOCOL, endpoints=network.endpoints, session=self._session, launch=launch, client_pid=0,
            client_start=0, directory=self._directories.main, stores=self._directories.stores,
            path=local.absolute_path(), imports=imports, **_where_we_are(), server_key=network.server_key.decode(),
            public_key=public.decode(), secret_key=secret.decode(),
        )  # fmt: skip
        name = os.path.join(directory or self._directories.main, f"invitation-{launch}.json")
        path = local.write_private(name, write_connection(connection))
        invitation = self._usable[launch] = Invitation(path, launch, tuple(network.endpoints))
        return invitation

    def _listen(self, host: str | None, port: int | None) -> Network:
        network = Network(self._context)
        try:
            network.listen(host, port)
            network.self_test()
        except BaseException:
            network.close()
            raise
        self.network = network
        for fd in network.fds():
            self._epoll.register(fd, select.EPOLLIN)
        return network

    def revoke(self, launch: str) -> None:
        """Nobody joins by this invitation any more."""
        if self.network is not None:
            self.network.revoke(launch)

    def remove_used(self, now: float) -> None:
        """A file by which nobody may join any more would only be lying about."""
        for launch, invitation in list(self._usable.items()):
            if self._open_until(launch) < now:
                del self._usable[launch]
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(invitation.path)

    def due(self) -> float | None:
        """When :meth:`remove_used` has something to do."""
        return min(map(self._open_until, self._usable), default=None)

    def _open_until(self, launch: str) -> float:
        assert self.network is not None
        return self.network.open_until(launch)

    def close(self) -> None:
        """Listen no more."""
        if self.network is not None:
            self.network.close()


def _where_we_are() -> dict[str, Any]:
    """The directory in which functions will start."""
    try:
        return {"cwd": os.getcwd(), "cwd_inode": os.stat(".").st_ino}
    except OSError:  # it was removed
        return {}


def _check_descriptors(count: int) -> None:
    """Raises ListenError if so many agents could not all be connected."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + DESCRIPTORS
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        raise ListenError(f"{count} agents need {needed} open files, and this process may have {allowed}: ulimit -n")
