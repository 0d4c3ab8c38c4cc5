"""What runs of a task leave behind, so that attempts that were lost, doubled or overlapped are found.

Standard library only: tasks import this, too.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

from waiting import announce, wait_until


def stamp_until(history: str, opened: str, identify: Callable[[], int] = os.getpid) -> int:
    """Write who runs and when, again and again, until there is a file ``opened``; gives who we are.

    A line is written as a whole and to the end of the file, so that its order is the order of what happened. The clock
    is the kernel's own, the same in all namespaces of the network.
    """
    fd = os.open(history, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    while True:
        done = os.path.exists(opened)
        os.write(fd, f"{identify()} {time.monotonic_ns()}\n".encode())
        if done:
            return identify()
        time.sleep(0.01)


class History:
    """What :func:`stamp_until` wrote, and the file that ends it."""

    def __init__(self, directory: Path, name: str = "history") -> None:
        self._file = directory / name
        self._opened = directory / f"{name}.opened"
        self.paths = str(self._file), str(self._opened)

    def stamps(self) -> list[tuple[int, int]]:
        """Process and time, in order."""
        if not self._file.exists():
            return []
        lines = self._file.read_text().rpartition("\n")[0].splitlines()  # the last one may be half there
        return [(int(pid), int(at)) for pid, at in (line.split() for line in lines)]

    def attempts(self) -> list[int]:
        """The processes that have run the task, in order; one that comes twice has overlapped with another."""
        return [pid for pid, _ in itertools.groupby(pid for pid, _ in self.stamps())]

    def wait_attempts(self, count: int) -> list[int]:
        """The processes, when there have been so many."""
        wait_until(lambda: len(self.attempts()) >= count, f"for attempt {count}, there is {self.attempts()}")
        return self.attempts()

    def open(self) -> None:
        """Let the task end."""
        self._opened.touch()

    def check_no_overlap(self, attempts: int) -> None:
        """So many attempts have run, each after the end of the one before."""
        processes, times = self.attempts(), [at for _, at in self.stamps()]
        assert len(processes) == len(set(processes)) == attempts, f"attempts of one task overlapped: {processes}"
        assert times == sorted(times)


def note_and_give(path: str, number: int) -> tuple[int, bytes]:
    """Note that we have run."""
    announce(path, number)
    return number, bytes(number) * 1000
