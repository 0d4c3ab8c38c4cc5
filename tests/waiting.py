"""Waits of the tests: each has a bound, and where the system has an event for what is awaited, it is used.

Standard library only: tasks import this as well, to announce themselves and to wait at a gate.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: Seconds after which whoever waits gives up; when all is well, nothing takes as long.
PATIENCE = 60.0
#: Seconds in which processes are gone that have been killed, or have nothing more to do.
SOON = 20.0
_INTERVAL = 0.005


class Overdue(AssertionError):
    """A wait that was longer than it may be."""


def wait_until(condition: Callable[[], Any], what: str = "", patience: float = PATIENCE) -> Any:
    """Wait for what announces itself by no event, such as a file; gives what ``condition`` gave."""
    end = time.monotonic() + patience
    while not (found := condition()):
        if time.monotonic() > end:
            raise Overdue(f"waited {patience} s: {what}")
        time.sleep(_INTERVAL)
    return found


def wait_gone(*pids: int, patience: float = SOON) -> None:
    """Wait until these processes have ended."""
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise
            continue
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(patience * 1000):
                raise Overdue(f"after {patience} s process {pid} still lives: {command_line(pid)}")
        finally:
            os.close(pidfd)


def command_line(pid: int) -> str:
    """What the process was started with."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return "(gone)"


def state_of(pid: int) -> str:
    """The letter that the kernel gives for the state of the process: T for stopped, Z for a zombie."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def parent_of(pid: int) -> int:
    """The process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def announce(path: str | Path, *numbers: int) -> None:
    """Append a line of numbers to a file, by default our pid; short lines are written as a whole."""
    line = " ".join(str(number) for number in numbers or (os.getpid(),)) + "\n"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, line.encode())
    os.close(fd)


def announced(path: str | Path) -> list[int]:
    """The numbers that were announced so far."""
    try:
        return [int(word) for line in Path(path).read_text().splitlines(keepends=True) for word in line.split()]
    except FileNotFoundError:
        return []


def wait_announced(path: str | Path, count: int = 1) -> list[int]:
    """The numbers in ``path``, once there are ``count`` of them."""
    wait_until(lambda: len(announced(path)) >= count, f"for {count} numbers in {path}")
    return announced(path)


class Gate:
    """Holds tasks until it is opened. What travels to a task is two paths; a pipe tells who has arrived."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.arrivals = str(directory / "arrivals")
        self.opened = str(directory / "opened")
        os.mkfifo(self.opened)
        # Kept open here: a task that opens the pipe does not wait, and one that reads it waits for bytes.
        self._fd = os.open(self.opened, os.O_RDWR | os.O_NONBLOCK)

    @property
    def paths(self) -> tuple[str, str]:
        """For :func:`pass_gate`."""
        return self.arrivals, self.opened

    def wait_arrivals(self, count: int = 1) -> list[int]:
        """The pids of those who have arrived, once they are ``count``."""
        return wait_announced(self.arrivals, count)

    def open(self) -> None:
        """Let all pass, those who come later too."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._fd, b"." * 4096)

    def close(self) -> None:
        """Open it and give back its descriptor."""
        self.open()
        os.close(self._fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.opened)


def pass_gate(arrivals: str, opened: str) -> int:
    """Say who we are, and wait until the gate is open; gives our pid."""
    with open(opened, "rb", buffering=0) as file:  # first: who has announced itself may find the gate gone
        announce(arrivals)
        file.read(1)
    return os.getpid()


@contextlib.contextmanager
def bounded(seconds: float = PATIENCE) -> Iterator[None]:
    """Interrupt the main thread if what is inside takes longer."""

    def interrupt(*_: object) -> None:
        raise Overdue(f"still waiting after {seconds} s")

    previous = signal.signal(signal.SIGALRM, interrupt)
    previous_times = signal.setitimer(signal.ITIMER_REAL, seconds, 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *previous_times)
        signal.signal(signal.SIGALRM, previous)
