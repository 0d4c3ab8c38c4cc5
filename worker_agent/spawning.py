"""How interpreters come to be: the queues that those of a lane share, the script, descriptors at fixed numbers.

    agent ==tasks==> any interpreter         one message is one task; whoever is idle takes it
    agent <==starts== interpreters           which task each has taken; read when it matters, wakes nobody
    agent <==reports== interpreters          outcomes; wakes the agent
    agent <==control==> template             what to fork, for which lane; what was forked and what has ended

An agent starts its first template before it imports anything else, so this file imports little.
"""

from __future__ import annotations

import array
import fcntl
import os
import signal
import socket

from worker_agent import descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: What everything of ours starts with.
SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "interpreter.py")


class Queues:
    """The agent's ends and the interpreters' ends of a lane's queues."""

    def __init__(self) -> None:
        self.tasks, self.tasks_end = _pair()
        self.starts, self.starts_end = _pair()
        self.reports, self.reports_end = _pair()
        self.tasks.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, descriptors.MESSAGE_LIMIT)

    @property
    def ends(self) -> list[int]:
        """The interpreters' ends, in the order of ``descriptors.QUEUES``."""
        return [self.tasks_end.fileno(), self.starts_end.fileno(), self.reports_end.fileno()]

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self.tasks.fileno() < 0

    def close(self) -> None:
        """Interpreters that wait for a task find the end, and leave."""
        for end in (self.tasks, self.tasks_end, self.starts, self.starts_end, self.reports, self.reports_end):
            end.close()


class TemplateProcess:
    """A template as its agent sees it: started at once, it imports what it can and waits for :meth:`prepare`."""

    def __init__(self, python: Sequence[str], env: Mapping[str, str]) -> None:
        """``python`` is the interpreter with its flags. Raises OSError if it cannot be started."""
        self.python, self.env = list(python), dict(env)
        self.control, theirs = _pair()
        #: to receive into a new buffer of that size takes ten times as long
        self._buffer = bytearray(descriptors.MESSAGE_LIMIT)
        self._view = memoryview(self._buffer)
        #: what it writes to its stderr, a file in memory
        self._log = os.memfd_create("log", os.MFD_CLOEXEC)
        self._setup = os.memfd_create("setup", os.MFD_CLOEXEC)
        control = dict.fromkeys((descriptors.CONTROL, *descriptors.QUEUES), theirs.fileno())
        try:
            with theirs:
                self.pid = execute(
                    "template", self.python, self.env, self._setup, {0: os.devnull, 2: self._log, **control}
                )
        except OSError:
            self.close()
            raise

    def prepare(self, setup: bytes) -> None:
        """Let it go on with what ``runner.pack_setup`` made."""
        os.pwrite(self._setup, setup, 0)
        self._send(b"s", [])

    def turn_to(self, lane: bytes, queues: Queues) -> None:
        """What it forks from now on is for a lane, as ``channel.pack_lane`` describes it. Raises like :meth:`fork`."""
        self._send(lane, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", queues.ends))])

    def fork(self, order: bytes) -> None:
        """Have it fork what ``channel.FORK`` or ``channel.pack_place`` say. Raises BlockingIOError: not now."""
        self._send(order, [])

    def _send(self, message: bytes, ancillary: list[tuple[int, int, array.array[int]]]) -> None:
        try:  # noqa: SIM105  contextlib is not imported here: see above
            self.control.sendmsg([message], ancillary)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died, which is seen when it is reaped

    def receive(self) -> tuple[memoryview, list[int]]:
        """What it says, until the next call, with descriptors, close-on-exec; nothing if it is gone.

        Raises BlockingIOError: it says nothing now.
        """
        fds = array.array("i")
        space = socket.CMSG_SPACE(3 * fds.itemsize)
        try:
            size, ancillary, _, _ = self.control.recvmsg_into([self._buffer], space, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return self._view[:0], []  # it died with orders unread
        for _, _, block in ancillary:
            fds.frombytes(block[: len(block) - len(block) % fds.itemsize])
        return self._view[:size], list(fds)

    def log_tail(self) -> str:
        """The end of what it wrote to its stderr."""
        size = os.fstat(self._log).st_size
        return os.pread(self._log, 4000, max(0, size - 4000)).decode(errors="replace").strip()

    def close(self) -> None:
        """It leaves when it finds its control socket at its end."""
        self.control.close()
        for fd in (self._log, self._setup):
            os.close(fd)


def spawn(
    python: Sequence[str], env: Mapping[str, str], queues: Queues, setup: bytes, fds: Mapping[int, int | str]
) -> int:
    """Start an interpreter that runs tasks at once; gives its pid. Raises OSError."""
    file = os.memfd_create("setup", os.MFD_CLOEXEC)
    try:
        os.pwrite(file, setup, 0)
        return execute("spawned", python, env, file, {**fds, **dict(zip(descriptors.QUEUES, queues.ends, strict=True))})
    finally:
        os.close(file)


#: Signals that the client or the agent may ignore or handle; an interpreter begins as if nobody did.
_DEFAULT = [signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD]


def execute(
    role: str, python: Sequence[str], env: Mapping[str, str], setup: int, fds: Mapping[int, int | str]
) -> int:
    """Start ``interpreter.py`` in a role, in a session of its own, with ``fds`` and what all roles have."""
    wanted = {**fds, descriptors.SETUP: setup}
    high = {target: source if isinstance(source, str) else _high(source) for target, source in wanted.items()}
    try:
        return os.posix_spawn(
            python[0], [*python, "-P", SCRIPT, role], env,
            file_actions=_file_actions(high), setsid=True, setsigmask=[], setsigdef=_DEFAULT,
        )  # fmt: skip
    finally:
        for fd in high.values():
            if isinstance(fd, int):
                os.close(fd)


def _pair() -> tuple[socket.socket, socket.socket]:
    """A socket pair that keeps messages apart; our end does not block."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def _high(fd: int) -> int:
    """A duplicate of ``fd`` with a number above all that interpreters have fixed."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, descriptors.LAST + 1)


def _file_actions(fds: Mapping[int, int | str]) -> list[tuple[int, int, str, int, int] | tuple[int, int, int]]:
    """Open or duplicate descriptors onto fixed numbers; every source lies above every target (see ``_high``)."""
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = []
    for target, source in fds.items():
        if isinstance(source, str):
            actions.append((os.POSIX_SPAWN_OPEN, target, source, os.O_RDONLY, 0))
        else:
            actions.append((os.POSIX_SPAWN_DUP2, source, target))
    return actions
