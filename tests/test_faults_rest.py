"""Faults for which the machine has to be prepared, and the great numbers: the rest of the catalogue's parts A and E."""

# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from pools import PATIENCE, check_works, error_of, gate, new_executor, outcome, sh
from test_agents import agent_of
from test_faults_agent import broken_agent
from waiting import Gate, parent_of, pass_gate, wait_gone, wait_until

from executor import HPCExecutor, TaskDied, TaskTimeout

pytestmark = pytest.mark.shared

NewExecutor = Callable[..., HPCExecutor]

for name in (__name__, "test_agents"):
    cloudpickle.register_pickle_by_value(sys.modules[name])

MEBI = 2**20


# ---- control groups


def own_group(controller: str) -> Path:
    """Our group's directory, of version 1 or 2, in which we may make groups; the test is skipped without one."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            place, known = Path(f"/sys/fs/cgroup/{controller}{path}"), True
        else:
            place = Path(f"/sys/fs/cgroup{path}")
            children = place / "cgroup.subtree_control"
            known = not names and children.exists() and controller in children.read_text().split()
        if known and place.is_dir() and os.access(place, os.W_OK):
            return place
    pytest.skip(f"there is no control group for {controller} in which we may make others")


class Group:
    """A control group for a test."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self.path = parent / f"hpc-test-{os.getpid()}-{time.monotonic_ns()}"
        self.path.mkdir()

    @property
    def members(self) -> str:
        """The file that takes numbers of processes."""
        return str(self.path / "cgroup.procs")

    def set(self, **values: Any) -> None:
        """Write to the files that this version of the kernel's has."""
        for name, value in values.items():
            file = self.path / name.replace("__", ".")
            if file.exists():
                file.write_text(str(value))

    def remove(self) -> None:
        """Give back what is in it."""
        for pid in Path(self.members).read_text().split():
            with contextlib.suppress(OSError):
                (self._parent / "cgroup.procs").write_text(pid)
        wait_until(self._removed)

    def _removed(self) -> bool:
        with contextlib.suppress(OSError):
            self.path.rmdir()
        return not self.path.exists()


@pytest.fixture
def small_memory() -> Iterator[Group]:
    """A group that has 48 MiB."""
    group = Group(own_group("memory"))
    limit = 48 * MEBI
    group.set(memory__limit_in_bytes=limit, memory__memsw__limit_in_bytes=limit, memory__max=limit, memory__swap__max=0)
    yield group
    group.remove()


def grow(*members: str) -> int:
    """Join the groups and take more memory than they have; as the second attempt, do not."""
    if os.environ["HPC_ATTEMPT"] == "1":
        for path in members:
            Path(path).write_text(str(os.getpid()))
        kept = [bytearray(os.urandom(MEBI)) for _ in range(200)]
        return len(kept)
    return 0


def test_a_task_that_the_kernel_kills_for_its_memory_fails_alone(
    new_executor: NewExecutor, small_memory: Group, gate: Gate
) -> None:
    """A13: by SIGKILL, and what it used is there to be compared."""
    executor = new_executor(2)
    neighbour = executor.submit(pass_gate, *gate.paths)
    [pid] = gate.wait_arrivals()
    future = executor.submit(grow, small_memory.members)
    error = error_of(future)
    assert isinstance(error, TaskDied)
    assert (error.signal, error.attempt) == (signal.SIGKILL, 1)
    assert future.usage.max_rss > 32 * MEBI
    gate.open()
    assert (outcome(neighbour), neighbour.attempt) == (pid, 1)
    check_works(executor)


def test_an_agent_that_the_kernel_kills_for_the_memory_of_its_task_is_replaced(
    new_executor: NewExecutor, small_memory: Group, gate: Gate, caplog: Any
) -> None:
    """A14: both are in the group, and the kernel takes the wrong one. The log says that an agent was killed."""
    executor = new_executor(1)
    future = executor.submit(grow_with_agent, small_memory.members)
    assert outcome(future) == 0
    assert future.attempt == 2
    assert "another one is started" in caplog.text


def grow_with_agent(members: str) -> int:
    if os.environ["HPC_ATTEMPT"] == "1":
        agent = agent_of(os.getpid())
        Path(members).write_text(str(agent))
        Path(f"/proc/{agent}/oom_score_adj").write_text("1000")
    return grow(members)


# ---- A16: a kill that never completes


@pytest.fixture
def freezer() -> Iterator[Group]:
    """A group of which no process ends, by no signal, as long as it is frozen; only version 1 is like that."""
    group = Group(own_group("freezer"))
    if not (group.path / "freezer.state").exists():
        group.remove()
        pytest.skip("a frozen process of this kernel's control groups can be killed")
    yield group
    group.set(freezer__state="THAWED")
    group.remove()


@pytest.mark.parametrize("kind", ["call", "program"])
def test_a_process_that_no_signal_ends_costs_its_place_and_holds_up_nobody(
    new_executor: NewExecutor, broken_agent: Any, freezer: Group, gate: Gate, caplog: Any, monkeypatch: Any, kind: str
) -> None:
    """A16: as in uninterruptible sleep. The future has its end, others run, and the executor can be shut down."""
    monkeypatch.setattr("executor.hub.STOP_PATIENCE", 1.0)
    executor = new_executor(2, agents=0, kill_grace=0.1)
    fault = """
        from worker_agent import agent, cgroups, lane
        lane.UNKILLABLE = 0.3
        agent.FENCE_PATIENCE = 0.3
        cgroups.usable_cpus = lambda: 2
    """
    broken_agent(executor.invite(1, host="127.0.0.1"), fault)
    bound = executor.options(time_limit=1)
    if kind == "call":
        future = bound.submit(pass_gate, *gate.paths)
    else:
        future = bound.submit(sh('echo $$ >> "$0"; exec sleep 600', gate.arrivals))
    [pid] = gate.wait_arrivals()
    freezer.set(cgroup__procs=pid, freezer__state="FROZEN")
    assert isinstance(error_of(future), TaskTimeout)
    assert os.path.exists(f"/proc/{pid}")
    wait_until(lambda: "does not end; its place is not free" in caplog.text)
    check_works(executor)
    executor.shutdown()
    freezer.set(freezer__state="THAWED")
    wait_gone(pid)


# ---- E23 to E25: great numbers


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_hundred_thousand_tasks_wait_in_little_memory(new_executor: NewExecutor, gate: Gate) -> None:
    """E23: (the million is a benchmark). The first results come while others wait, and those can be cancelled."""
    executor = new_executor(1, max_tasks_per_child=None)
    held = executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals()
    before = resident()
    futures = [executor.submit(pow, number, 2) for number in range(100_000)]
    gate.open()
    outcome(held)
    assert outcome(futures[0]) == 0
    assert not futures[-1].done()
    assert resident() - before < 300 * MEBI
    assert [outcome(future) for future in futures[:5000:100]] == [number**2 for number in range(0, 5000, 100)]
    executor.shutdown(cancel_futures=True)
    assert all(future.done() for future in futures)
    assert futures[-1].cancelled()


LARGE = 2**31 + 4096 if "HPC_TEST_LARGE" in os.environ else 256 * MEBI


def test_a_large_argument_and_a_large_result_take_little_more_memory_than_they_have(
    run_script: Any,
) -> None:
    """E24: 256 MiB; with HPC_TEST_LARGE in the environment 2 GiB. The agent answers all the while."""
    room = os.statvfs("/dev/shm")
    if room.f_bavail * room.f_frsize < 3 * LARGE:
        pytest.skip(f"/dev/shm has no room for {3 * LARGE} bytes")
    ended = run_script("""if True:
        import os, resource, sys
        from executor import HPCExecutor

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        size = int(sys.argv[1])
        with HPCExecutor(2) as executor:
            executor.submit(pow, 2, 3).result()
            before = peak()
            large = executor.submit(len, bytes(size))
            small = [executor.submit(pow, number, 2) for number in range(20)]
            assert [each.result() for each in small] == [number**2 for number in range(20)]
            print(large.result() == size)
            result = executor.submit(bytes, size)
            small = [executor.submit(pow, number, 2) for number in range(20)]
            assert [each.result() for each in small] == [number**2 for number in range(20)]
            print(len(result.result()) == size, {each.attempt for each in [large, result, *small]})
            print((peak() - before) / size)
    """, str(LARGE))
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[:2] == ["True", "True {1}"]
    assert float(lines[2]) < 2.5


def test_results_that_nobody_reads_stall_no_agent_and_go_with_their_futures(new_executor: NewExecutor) -> None:
    """E25: 200 of 1 MB; the client has each of them once."""
    executor = new_executor(2, max_tasks_per_child=None)
    check_works(executor)
    before = resident()
    futures = [executor.submit(bytes, 10**6) for _ in range(200)]
    wait(futures, timeout=PATIENCE / 2)
    assert resident() - before < 1.5 * 200 * 10**6
    assert outcome(executor.submit(pow, 2, 3)) == 8
    assert {len(future.result()) for future in futures} == {10**6}
    futures.clear()
    wait_until(lambda: resident() - before < 100 * 10**6)
    stores = executor._hub.directories.stores
    wait_until(lambda: not any(entry.stat().st_size > 10**5 for store in stores for entry in os.scandir(store)))


def test_a_slow_reader_of_map_holds_no_more_than_its_buffer(new_executor: NewExecutor, tmp_path: Path) -> None:
    """E25: with ``buffersize``, tasks wait for the reader and not in its memory."""

    def make(number: int) -> bytes:
        (tmp_path / str(number)).touch()
        return bytes(10**6)

    executor = new_executor(2)
    results = executor.map(make, range(100), buffersize=4)
    for read in range(1, 21):
        assert len(next(results)) == 10**6
        assert len(list(tmp_path.iterdir())) <= read + 4
    results.close()


def test_a_callback_that_does_not_return_stalls_no_agent(new_executor: NewExecutor) -> None:
    """E25: who reads results in callbacks and is slow holds up their delivery for a moment, and tasks not at all."""
    executor = new_executor(2, max_tasks_per_child=None)
    check_works(executor)
    goes_on, stuck = threading.Event(), threading.Event()

    def stick(_: Any) -> None:
        stuck.set()
        goes_on.wait(PATIENCE)

    executor.submit(pow, 2, 3).add_done_callback(stick)
    assert stuck.wait(PATIENCE)
    try:
        futures = [executor.submit(bytes, 10**5) for _ in range(200)]
        assert {len(outcome(future)) for future in futures} == {10**5}
    finally:
        goes_on.set()


class Ends:
    """An argument that ends its executor while it is pickled, with all that this has on disk."""

    def __init__(self, executor: HPCExecutor, end: Callable[[HPCExecutor], object]) -> None:
        self._executor, self._end = executor, end

    def __reduce__(self) -> tuple[Any, ...]:
        hub = self._executor._hub
        assert hub is not None
        self._end(self._executor)
        hub.join()
        return bytes, ()


def fail(executor: HPCExecutor) -> None:
    """A bug ends the hub's thread."""
    assert executor._hub is not None
    executor._hub.inbox.post(lambda: 1 // 0)


@pytest.mark.parametrize(
    ("end", "error", "text"),
    [
        (fail, BrokenProcessPool, "the executor's hub failed: ZeroDivisionError"),
        (HPCExecutor.shutdown, RuntimeError, "cannot schedule new futures after shutdown"),
    ],
)
def test_an_executor_that_ends_while_a_task_is_submitted_says_that_and_not_what_it_lacks(
    new_executor: NewExecutor, end: Callable[[HPCExecutor], object], error: type[Exception], text: str
) -> None:
    """Its directories go with it, and the large argument has none to lie in."""
    executor = new_executor(1)
    assert executor.submit(len, b"").result() == 0
    with pytest.raises(error, match=text):
        executor.submit(print, Ends(executor, end), bytes(2 * MEBI))
