"""Agents on this machine: started as a process of their own, told by a pipe how to find the hub."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from dataclasses import dataclass

from worker_agent import directories, interpreter, processes, protocol
from worker_agent.connection import Connection, write_connection
from worker_agent.pools import Pool

_SCRIPT = os.path.abspath(interpreter.__file__)
#: The longest path that a unix socket can have.
_SOCKET_PATH_LIMIT = 107
_LOG_TAIL = 4000
#: Seconds that processes whose supervisor was killed may take to end once they are killed too.
_ORPHANS_PATIENCE = 5.0


class SessionDirectories:
    """The private directories of a session: for the socket, the logs and invitations, and for payloads."""

    def __init__(self) -> None:
        self.stores = directories.make()
        self.main = self.stores[0]
        if len(self.endpoint_path) > _SOCKET_PATH_LIMIT:
            self.remove()
            raise OSError(f"the path {self.endpoint_path} is too long for a socket; set TMPDIR to a shorter directory")

    @property
    def endpoint_path(self) -> str:
        """Where the hub's socket is."""
        return os.path.join(self.main, "hub")

    def remove(self) -> None:
        """Remove them with all that is in them."""
        directories.remove(self.stores)


def write_private(path: str, data: bytes) -> str:
    """Write a new file that only we may read; gives its path."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        os.fchmod(fd, 0o600)
        file.write(data)
    return path


@dataclass(slots=True, eq=False)
class Launch:
    """An agent that was started: its process (the supervisor), a descriptor that tells its end, and its log."""

    id: str
    process: subprocess.Popen[bytes]
    pidfd: int
    log: str

    def log_tail(self) -> str:
        """The end of what the agent wrote to its log."""
        try:
            with open(self.log, "rb") as file:
                return file.read()[-_LOG_TAIL:].decode(errors="replace").strip()
        except FileNotFoundError:
            return ""

    def kill(self) -> None:
        """End the agent by force; its supervisor ends what it has started."""
        self.process.send_signal(processes.END_AT_ONCE)

    def wait(self, timeout: float) -> bool:
        """Whether the agent has ended, within ``timeout`` seconds, and nothing of it runs any more.

        Its supervisor sees to that; if that was killed itself, we do.
        """
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        if status < 0:
            processes.end_marked(processes.AGENT, self.id, _ORPHANS_PATIENCE)
        return True

    def close(self) -> None:
        """Give back what this process has of it."""
        os.close(self.pidfd)


def absolute_path() -> list[str]:
    """Where modules are found here, for agents that have them nowhere else."""
    return [folder for folder in sys.path if os.path.isabs(folder)]


def launch(session: str, own: SessionDirectories, pools: list[Pool]) -> Launch:
    """Start an agent on this machine that has these pools. Raises OSError if that cannot be done."""
    connection = Connection(
        protocol=protocol.PROTOCOL, endpoints=[f"ipc://{own.endpoint_path}"], session=session,
        launch=secrets.token_hex(8), client_pid=os.getpid(), client_start=processes.start_time(os.getpid()) or 0,
        directory=own.main, stores=own.stores, pools=pools, path=absolute_path(),
    )  # fmt: skip
    log = os.path.join(own.main, f"agent-{connection.launch}.log")
    with open(log, "wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-E", "-P", _SCRIPT, "agent", *processes.this_python()], stdin=subprocess.PIPE,
            stdout=stderr, stderr=stderr, cwd="/", start_new_session=True,
            env={**os.environ, processes.AGENT: connection.launch},
        )  # fmt: skip
    pidfd = os.pidfd_open(process.pid)
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            pipe.write(write_connection(connection))
    except BrokenPipeError:
        pass  # it died at once: its log says why, and its end is noticed as any other
    return Launch(connection.launch, process, pidfd, log)
