"""Agents on this machine: started as a process of their own, told by a pipe how to find the hub."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from worker_agent import interpreter, processes, protocol
from worker_agent.runner import SESSION_STORES

_SCRIPT = os.path.abspath(interpreter.__file__)
#: The longest path that a unix socket can have.
_SOCKET_PATH_LIMIT = 107
_LOG_TAIL = 4000
_PREFIX = "hpc-executor-"
#: The file that tells whose session a directory is of.
_OWNER = "owner"
_MEMORY = "/dev/shm"  # noqa: S108  nothing is made there but by mkdtemp


class SessionDirectories:
    """The private directories of a session: for the socket and the log, and for payloads.

    They lie in memory (``/dev/shm``) where the node has that, and payloads that do not fit there go to the directory
    for temporary files. ``mkdtemp`` makes them 0700 and unguessable, whatever the umask.
    """

    def __init__(self) -> None:
        places = _outer_stores()
        if not places:
            places = [_MEMORY] if os.access(_MEMORY, os.W_OK | os.X_OK) else []
            places.append(tempfile.gettempdir())
        for place in places:
            _remove_stale(place)
        self.stores = [tempfile.mkdtemp(prefix=_PREFIX, dir=place) for place in places]
        self.main = self.stores[0]
        for store in self.stores:
            with open(os.path.join(store, _OWNER), "x") as file:
                file.write(" ".join(map(str, _who(os.getpid()))))
        if len(self.endpoint_path) > _SOCKET_PATH_LIMIT:
            self.remove()
            raise OSError(f"the path {self.endpoint_path} is too long for a socket; set TMPDIR to a shorter directory")

    @property
    def endpoint_path(self) -> str:
        """Where the hub's socket is."""
        return os.path.join(self.main, "hub")

    def write_private(self, name: str, data: bytes) -> str:
        """Write a new file that only we may read; gives its path."""
        path = os.path.join(self.main, name)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o600)
            file.write(data)
        return path

    def remove(self) -> None:
        """Remove them with all that is in them."""
        for directory in self.stores:
            shutil.rmtree(directory, ignore_errors=True)


def _remove_stale(place: str) -> None:
    """Remove what sessions have left whose client was killed, with all that might have removed it."""
    for name in os.listdir(place):
        path = os.path.join(place, name)
        if name.startswith(_PREFIX) and _is_stale(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_stale(directory: str) -> bool:
    """Whether it is ours and its owner has ended; one that we could not see (another node, a container) may live."""
    try:
        if os.lstat(directory).st_uid != os.getuid() or os.path.islink(directory):
            return False
        with open(os.path.join(directory, _OWNER)) as file:
            pid, start, *where = file.read().split()
    except (OSError, ValueError):
        return False
    now = _who(int(pid))
    return where == list(now[2:]) and start != str(now[1])


def _who(pid: int) -> tuple[int, int | None, str, str]:
    """A process, when it began, and where its number means it: since which boot, and in which namespace."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return pid, processes.start_time(pid), boot, os.readlink("/proc/self/ns/pid")


def _outer_stores() -> list[str]:
    """The directories of the session whose task this process is, if it is one; with them, ours go at the latest."""
    places = [place for place in os.environ.get(SESSION_STORES, "").split(os.pathsep) if place]
    return [place for place in places if os.path.isdir(place) and os.stat(place).st_uid == os.getuid()]


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
        self.process.terminate()

    def wait(self, timeout: float) -> bool:
        """Whether the agent has ended, within ``timeout`` seconds."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """Give back what this process has of it."""
        os.close(self.pidfd)


def launch(session: str, directories: SessionDirectories, slots: int) -> Launch:
    """Start an agent with ``slots`` places on this machine. Raises OSError if that cannot be done."""
    connection = protocol.Connection(
        protocol=protocol.PROTOCOL, endpoints=[f"ipc://{directories.endpoint_path}"], session=session,
        launch=secrets.token_hex(8), client_pid=os.getpid(), client_start=processes.start_time(os.getpid()) or 0,
        directory=directories.main, stores=directories.stores, slots=slots,
        path=[folder for folder in sys.path if os.path.isabs(folder)],
    )  # fmt: skip
    log = os.path.join(directories.main, f"agent-{connection.launch}.log")
    with open(log, "wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-E", "-P", _SCRIPT, "agent", *processes.this_python()], stdin=subprocess.PIPE,
            stdout=stderr, stderr=stderr, cwd="/", start_new_session=True,
        )  # fmt: skip
    pidfd = os.pidfd_open(process.pid)
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            pipe.write(protocol.write_connection(connection))
    except BrokenPipeError:
        pass  # it died at once: its log says why, and its end is noticed as any other
    return Launch(connection.launch, process, pidfd, log)
