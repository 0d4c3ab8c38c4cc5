"""What all tests stand on: nothing is left behind by any of them, no wait is without end, a gate that holds tasks."""

from __future__ import annotations

import faulthandler
import functools
import gc
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import executor as product
from executor import HPCExecutor
from worker_agent import processes

#: Seconds after which a test is ended.
LIMIT = 120.0
#: Seconds in which what ends by itself has to be gone after a test.
PATIENCE = 20.0
#: All processes that a test starts inherit this variable, those that have lost their parents too.
MARK = "HPC_TEST_RUN"
PREFIX = "hpc-executor"
_REPOSITORY = str(Path(product.__file__).parents[1])


# ---- several runs share the tests


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", metavar="I-J/N", help="of the tests marked shared or heavy, run parts I to J of N")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test is in the same part each time, by its name: what failed in CI is found again."""
    share = config.getoption("--share")
    if share is None:
        return
    first, last, parts = map(int, re.fullmatch(r"(\d+)-(\d+)/(\d+)", share).groups())
    divided = [each for each in items if each.get_closest_marker("shared") or each.get_closest_marker("heavy")]
    left_out = {each for each in divided if not first <= part_of(each, parts) <= last}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [each for each in items if each not in left_out]


def part_of(item: pytest.Item, parts: int) -> int:
    """From 1 to ``parts``."""
    return zlib.crc32(item.nodeid.encode()) % parts + 1


# ---- nothing is left behind


@pytest.fixture(scope="session", autouse=True)
def run_mark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """Mark the processes of this run, and give it a directory for temporary files of its own."""
    mark, directory = secrets.token_hex(8), str(tmp_path_factory.mktemp("t"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, mark)
        patch.setenv("TMPDIR", directory)
        patch.setattr(tempfile, "tempdir", directory)
        yield f"{MARK}={mark}".encode()


@pytest.fixture(scope="session", autouse=True)
def one_environment() -> Iterator[None]:
    """pytest names each test and its phase in a variable, and each change of that means a new template."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_CURRENT_TEST")
        patch.setattr("_pytest.runner._update_current_test_var", lambda *_: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def made_executors() -> Iterator[weakref.WeakSet[HPCExecutor]]:
    """All executors of this process, as they are made."""
    made: weakref.WeakSet[HPCExecutor] = weakref.WeakSet()
    original = HPCExecutor.__init__

    @functools.wraps(original)
    def noting(self: HPCExecutor, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        made.add(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HPCExecutor, "__init__", noting)
        yield made


_made_directories: list[str] = []


def _note_directory(event: str, args: tuple[Any, ...]) -> None:
    if event == "tempfile.mkdtemp" and os.path.basename(args[0]).startswith(PREFIX):
        _made_directories.append(args[0])


sys.addaudithook(_note_directory)


class Belongings:
    """What this process holds, and what others hold that a test has started."""

    def __init__(self, run_mark: bytes, executors: weakref.WeakSet[HPCExecutor]) -> None:
        self._mark = run_mark
        self._executors = weakref.WeakSet(each for each in executors if not each._shut_down)
        self._threads = set(threading.enumerate())
        self._native = _numbers("/proc/self/task")
        self._processes = _numbers("/proc")
        self._children = set(processes.children(os.getpid()))
        self._files = _open_files()
        self._directories = _directories()

    def left_since(self) -> list[str]:
        """What there is now and was not there before, unless an executor that lives longer has it."""
        older = [each._hub for each in self._executors if not each._shut_down and each._hub is not None]
        spared = {pid for hub in older for root in hub.worker_pids() for pid in [root, *processes.descendants(root)]}
        found = [f"process {text}" for pid, text in self._new_processes().items() if pid not in spared]
        if older:  # whose threads and files come and go
            return found
        found += [f"thread {each.name}" for each in set(threading.enumerate()) - self._threads if _is_ours(each.name)]
        found += [f"thread {name}" for name in self._new_native_threads()]
        found += [f"directory {path}" for path in _directories() - self._directories]
        return found + self._new_files()

    def _new_processes(self) -> dict[int, str]:
        found = {pid: _describe(pid) for pid in set(processes.children(os.getpid())) - self._children}
        for pid in _numbers("/proc") - self._processes:
            if self._mark in _read(f"/proc/{pid}/environ").split(b"\0"):
                found[pid] = _describe(pid)
        return {pid: text for pid, text in found.items() if "multiprocessing" not in text}

    def _new_native_threads(self) -> list[str]:
        names = [_read(f"/proc/self/task/{number}/comm") for number in _numbers("/proc/self/task") - self._native]
        return [name.decode().strip() for name in names if name.startswith(b"ZMQ")]

    def _new_files(self) -> list[str]:
        files = _open_files()
        if len(files) <= len(self._files):
            return []
        return [f"file {number} -> {target}" for number, target in files.items() if self._files.get(number) != target]

    def end_processes(self) -> None:
        """End what was left, so that a failed test does not trouble others."""
        for pid in self._new_processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _is_ours(name: str) -> bool:
    return name.startswith(PREFIX)


def _numbers(directory: str) -> set[int]:
    return {int(name) for name in os.listdir(directory) if name.isdecimal()}


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:  # it has ended, or is somebody else's
        return b""


def _describe(pid: int) -> str:
    command = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    status = processes._stat_fields(pid, "/proc")
    return f"{pid} ({command or 'ended, not waited for'}), state {status[:1]}, parent {status[1:2]}"


def _open_files() -> dict[int, str]:
    files = {}
    for number in _numbers("/proc/self/fd"):
        try:
            files[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the descriptor that listed the directory
            continue
    files.pop(getattr(resource_tracker._resource_tracker, "_fd", None), None)  # the standard library's, kept for good
    return files


def _directories() -> set[str]:
    """Of this process, wherever they are; of its children, those in its directory for temporary files."""
    places = [entry.path for entry in os.scandir(tempfile.gettempdir()) if entry.name.startswith(PREFIX)]
    _made_directories[:] = filter(os.path.exists, _made_directories)
    return {*places, *_made_directories}


@pytest.fixture(autouse=True)
def nothing_is_left(run_mark: bytes, made_executors: weakref.WeakSet[HPCExecutor]) -> Iterator[None]:
    """After each test: no thread, process, open file or directory more than before."""
    before = Belongings(run_mark, made_executors)
    yield
    end = time.monotonic() + PATIENCE
    while left := before.left_since():
        if time.monotonic() > end:
            before.end_processes()
            pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)
        gc.collect()
        time.sleep(0.01)


# ---- no wait is without end


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


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Wait for what announces itself by no event: a process that disappears, a file that appears."""

    def wait(true: Callable[[], object], *, seconds: float = PATIENCE, what: Callable[[], object] = lambda: "") -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"waited for {seconds} s: {what()}"
            time.sleep(0.005)

    return wait


# ---- tasks that wait, and executors


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
            ready, _, _ = select.select([self._arrivals], [], [], PATIENCE)
            assert ready, f"waited for {number} tasks, seen: {self._unread!r}"
            self._unread += os.read(self._arrivals, 65536)
        *lines, self._unread = self._unread.split(b"\n", number)
        return [int(line) for line in lines]

    def open(self, number: int = 1) -> None:
        """Let ``number`` tasks pass, those that are here or the next that come."""
        os.write(self._tokens, b"." * number)

    def open_wide(self) -> None:
        """Let all tasks pass."""
        try:
            self.open(4096)
        except BlockingIOError:
            pass  # it is wide open already

    def close(self) -> None:
        """Let all tasks pass, and take the gate away."""
        self.open_wide()
        for path in self.paths:
            os.unlink(path)
        os.close(self._arrivals)
        os.close(self._tokens)


@pytest.fixture
def make_gate(tmp_path: Path) -> Iterator[Callable[[], Gate]]:
    """Make gates: one for each kind of task that a test holds."""
    made: list[Gate] = []

    def make() -> Gate:
        directory = tmp_path / f"gate-{len(made)}"
        directory.mkdir()
        made.append(Gate(directory))
        return made[-1]

    yield make
    for gate in made:
        gate.close()


@pytest.fixture
def gate(make_gate: Callable[[], Gate]) -> Gate:
    """A gate."""
    return make_gate()


@pytest.fixture
def make(make_gate: Callable[[], Gate], gate: Gate) -> Iterator[Callable[..., HPCExecutor]]:
    """Make executors that are shut down when the test is over, whatever became of it."""
    made: list[HPCExecutor] = []

    def make_one(*args: Any, **options: Any) -> HPCExecutor:
        made.append(HPCExecutor(*args, **options))
        return made[-1]

    yield make_one
    gate.open_wide()  # or a task that a failed test has left there would hold up the shutdown
    for each in made:
        each.shutdown(wait=True, cancel_futures=True)


@pytest.fixture
def executor(make: Callable[..., HPCExecutor]) -> HPCExecutor:
    """An executor of two workers, with a fresh interpreter for each task."""
    return make(2)


@pytest.fixture
def reused_executor(make: Callable[..., HPCExecutor]) -> HPCExecutor:
    """An executor of two workers that keeps its interpreters."""
    return make(2, max_tasks_per_child=None)


# ---- scripts


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a text as a script of its own interpreter; it is killed if it still runs at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(text: str, *args: str, flags: tuple[str, ...] = ("-W", "error"), **options: Any) -> subprocess.Popen[str]:
        script = tmp_path / f"script-{len(started)}.py"
        script.write_text(text)
        env = {**os.environ, "PYTHONPATH": _REPOSITORY, **options.pop("env", {})}
        command = [sys.executable, *flags, str(script), *args]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        started.append(subprocess.Popen(command, env=env, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def run_script(
    start_script: Callable[..., subprocess.Popen[str]],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a text as a script of its own interpreter, and give back what it printed."""

    def run(text: str, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        process = start_script(text, *args, **options)
        out, err = process.communicate(timeout=LIMIT / 2)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
