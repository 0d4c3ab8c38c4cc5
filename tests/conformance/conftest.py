"""What the conformance tests stand on: each kind of executor, a gate that holds tasks, and a bound on every wait."""

from __future__ import annotations

import faulthandler
import gc
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest

import executor
from executor import HPCExecutor

LIMIT = 60.0

KINDS: dict[str, Callable[..., Executor]] = {
    "threads": ThreadPoolExecutor,
    "fresh": HPCExecutor,
    "reused": partial(HPCExecutor, max_tasks_per_child=None),
}


class Overdue(AssertionError):
    """A test that waited longer than LIMIT."""


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """End a test that hangs: the alarm interrupts any wait of the main thread, and again if the clean-up hangs too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback(sys.__stderr__)
        raise Overdue(f"still waiting after {LIMIT} s")

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, LIMIT, 10)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope="session", autouse=True)
def scratch() -> Iterator[Path]:
    """Temporary files of all executors go to one directory, so that a test can see that it is empty again."""
    with tempfile.TemporaryDirectory(prefix="conf-") as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", directory)
        patch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pool(kind: str) -> Iterator[Executor]:
    """An executor of two workers, shared by the tests that neither break it nor shut it down."""
    with KINDS[kind](2) as shared:
        yield shared


@pytest.fixture
def create(kind: str, gate: Gate, scratch: Path) -> Iterator[Callable[..., Executor]]:
    """Make executors that the test itself must end or drop; nothing of them may be left when the test is over."""
    gc.collect()
    before = belongings(scratch)
    yield KINDS[kind]
    gate.open_wide()
    gc.collect()
    wait_until(lambda: belongings(scratch) <= before, what=lambda: f"left behind: {belongings(scratch) - before}")


@pytest.fixture
def make(create: Callable[..., Executor], gate: Gate) -> Iterator[Callable[..., Executor]]:
    """Make executors that are shut down when the test is over."""
    made: list[Executor] = []

    def make_one(*args: Any, **options: Any) -> Executor:
        made.append(create(*args, **options))
        return made[-1]

    yield make_one
    gate.open_wide()  # or a task that a failed test has left there would hold up the shutdown
    while made:
        made.pop().shutdown(wait=True, cancel_futures=True)


def belongings(scratch: Path) -> set[tuple[str, str]]:
    """All that this process holds by now: its threads of any language, child processes, open files and scratch files."""
    held = {("thread", name) for name in os.listdir("/proc/self/task")}
    held |= {("process", f"{child.pid} {child.name()}") for child in psutil.Process().children()}
    held |= {("file", str(path)) for path in scratch.iterdir()}
    for name in os.listdir("/proc/self/fd"):
        try:
            held.add(("open file", f"{name} {os.readlink(f'/proc/self/fd/{name}')}"))
        except FileNotFoundError:  # the descriptor that listed the directory
            continue
    return held


def wait_until(true: Callable[[], bool], *, what: Callable[[], str] = lambda: "", seconds: float = 15) -> None:
    """Wait for what announces itself by no event: a process that disappears, a report that arrives."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what()
        time.sleep(0.005)


class Gate:
    """Holds tasks that call ``pass_gate(*gate.paths)``: tells the pids of those that arrived, and lets them go on.

    Two named pipes, because they are events that work between threads and between processes alike. Both ends stay
    open here, so that neither side waits in ``open``.
    """

    def __init__(self, directory: Path) -> None:
        self.paths = str(directory / "arrivals"), str(directory / "tokens")
        for path in self.paths:
            os.mkfifo(path)
        self._arrivals, self._tokens = (os.open(path, os.O_RDWR | os.O_NONBLOCK) for path in self.paths)
        self._unread = b""

    def wait_arrivals(self, number: int) -> list[int]:
        """The pids of the next ``number`` tasks that arrive."""
        while self._unread.count(b"\n") < number:
            ready, _, _ = select.select([self._arrivals], [], [], LIMIT)
            assert ready, f"waited for {number} tasks, seen: {self._unread!r}"
            self._unread += os.read(self._arrivals, 65536)
        *lines, self._unread = self._unread.split(b"\n", number)
        return [int(line) for line in lines]

    def count_arrivals(self) -> int:
        """How many tasks have arrived of whom nobody has asked yet."""
        while select.select([self._arrivals], [], [], 0)[0]:
            self._unread += os.read(self._arrivals, 65536)
        return self._unread.count(b"\n")

    def open(self, number: int = 1) -> None:
        """Let ``number`` tasks pass, those that are here or the next that come."""
        os.write(self._tokens, b"." * number)

    def open_wide(self) -> None:
        self.open(4096)

    def close(self) -> None:
        self.open_wide()
        for path in self.paths:
            os.unlink(path)
        os.close(self._arrivals)
        os.close(self._tokens)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.close()


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a text as a script of its own interpreter and give back what it printed."""

    def run(text: str, *args: str) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "script.py"
        script.write_text(text)
        places = [Path(executor.__file__).parents[1], Path(__file__).parent]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
        return subprocess.run(
            [sys.executable, "-W", "error", str(script), *args], env=env, capture_output=True, text=True, timeout=LIMIT
        )

    return run
