"""How the processes of a lane come to be: the queues that they share, the script, descriptors at fixed numbers.

    agent ==tasks==> any interpreter         one message is one task; whoever is idle takes it
    agent <==starts== interpreters           which task each has taken; read when it matters, wakes nobody
    agent <==reports== interpreters          outcomes; wakes the agent
    agent <==control==> template             what to fork; what was forked and what has ended

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

_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "interpreter.py")


class Queues:
    """The agent's ends and the interpreters' ends of a lane's queues."""

    def __init__(self) -> None:
        self.tasks, self.tasks_end = _pair()
        self.starts, self.starts_end = _pair()
        self.reports, self.reports_end = _pair()
        self.tasks.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, descriptors.MESSAGE_LIMIT)

    def at_fixed_numbers(self) -> dict[int, int | str]:
        """The interpreters' ends, by the numbers that interpreters know."""
        return {
            descriptors.TASKS: self.tasks_end.fileno(), descriptors.STARTS: self.starts_end.fileno(),
            descriptors.REPORTS: self.reports_end.fileno(),
        }  # fmt: skip

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
        self.queues = Queues()
        self.control, theirs = _pair()
        #: what it writes to its stderr, a file in memory
        self._log = os.memfd_create("log", os.MFD_CLOEXEC)
        self._setup = os.memfd_create("setup", os.MFD_CLOEXEC)
        fds: dict[int, int | str] = {0: os.devnull, 2: self._log, descriptors.CONTROL: theirs.fileno()}
        try:
            with theirs:
                self.pid = execute("template", self.python, self.env, self.queues, self._setup, fds)
        except OSError:
            self.discard()
            raise

    def prepare(self, setup: bytes) -> None:
        """Let it go on with what ``runner.pack_setup`` made."""
        os.pwrite(self._setup, setup, 0)
        self._send(b"s")

    def fork(self, number: int) -> None:
        """Have it fork so many interpreters."""
        self._send(b"f" * number)

    def fork_in_place(self, place: bytes) -> None:
        """Have it fork an interpreter that is kept in a place, as ``channel.pack_place`` describes it."""
        self._send(place)

    def _send(self, message: bytes) -> None:
        try:  # noqa: SIM105  contextlib is not imported here: see above
            self.control.send(message)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died, which is seen when it is reaped

    def receive(self) -> tuple[bytes, list[int]]:
        """What it says, with descriptors, close-on-exec; b"" if it is gone. Raises BlockingIOError: nothing, yet."""
        fds = array.array("i")
        space = socket.CMSG_SPACE(3 * fds.itemsize)
        try:
            data, ancillary, _, _ = self.control.recvmsg(256, space, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return b"", []  # it died with orders unread
        for _, _, block in ancillary:
            fds.frombytes(block[: len(block) - len(block) % fds.itemsize])
        return data, list(fds)

    def log_tail(self) -> str:
        """The end of what it wrote to its stderr."""
        size = os.fstat(self._log).st_size
        return os.pread(self._log, 4000, max(0, size - 4000)).decode(errors="replace").strip()

    def discard(self) -> None:
        """Close it and its queues: it is not needed."""
        self.close()
        self.queues.close()

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
        return execute("spawned", python, env, queues, file, fds)
    finally:
        os.close(file)


#: Signals that the client or the agent may ignore or handle; an interpreter begins as if nobody did.
_DEFAULT = [signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD]


def execute(
    role: str, python: Sequence[str], env: Mapping[str, str], queues: Queues, setup: int, fds: Mapping[int, int | str]
) -> int:
    """Start ``interpreter.py`` in a role, in a session of its own, with ``fds`` and what all roles have."""
    wanted = {**fds, **queues.at_fixed_numbers(), descriptors.SETUP: setup}
    high = {target: source if isinstance(source, str) else _high(source) for target, source in wanted.items()}
    try:
        return os.posix_spawn(
            python[0], [*python, "-P", _SCRIPT, role], env,
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
