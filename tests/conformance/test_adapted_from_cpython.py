"""What CPython's tests say of ProcessPoolExecutor by looking into it, said of HPCExecutor by looking at what it does.

The suite in ``tests/cpython`` names, for each test that it leaves out, the one here that takes its place. Some are
turned round: there one bad task breaks the pool, here it fails alone and everything else goes on.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import traceback
import warnings
from concurrent.futures import BrokenExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import contract_tasks as tasks
import psutil
import pytest
from contract_tasks import add, pass_gate, pass_gate_and_note

pytestmark = pytest.mark.parametrize("kind", ["fresh", pytest.param("reused", marks=pytest.mark.shared)], indirect=True)

METHODS = ["fork", "forkserver", "spawn"]


def get_context(method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return multiprocessing.get_context(method)


@pytest.fixture
def own_processes():
    """Ask for all processes that the test has started, and their children."""
    before = set(psutil.Process().children(recursive=True))
    return lambda: set(psutil.Process().children(recursive=True)) - before


def assert_gone(processes, *, timeout=0):
    _, alive = psutil.wait_procs(processes, timeout=timeout)
    assert alive == []


def assert_alive_and_well(executor, neighbour, gate):
    """The neighbour that waited at the gate is unharmed, and the executor takes tasks."""
    gate.open()
    assert neighbour.result() == "unharmed"
    assert executor.submit(add, 1, 2).result() == 3


# ---- test_process_pool


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_killed_child(make, gate, number):
    """A killed interpreter is the end of its own task only; in CPython the whole pool breaks."""
    executor = make(2)
    neighbour = executor.submit(pass_gate, *gate.paths, "unharmed")
    gate.wait_arrivals(1)
    killed = executor.submit(pass_gate, *gate.paths)
    os.kill(gate.wait_arrivals(1)[0], number)
    with pytest.raises(BrokenProcessPool) as caught:
        killed.result()
    assert caught.value.signal == number
    assert_alive_and_well(executor, neighbour, gate)


@pytest.mark.parametrize("status", [0, 1, 3])
def test_child_that_exits_without_a_result(make, gate, status):
    executor = make(2)
    neighbour = executor.submit(pass_gate, *gate.paths, "unharmed")
    with pytest.raises(BrokenProcessPool) as caught:
        executor.submit(tasks.exit_at_once, status).result()
    assert caught.value.exit_code == status
    assert_alive_and_well(executor, neighbour, gate)


def test_saturation(make, gate, tmp_path):
    """Fifteen times as many tasks as workers wait at the gate; never are more of them at work than workers."""
    executor, note = make(4), tmp_path / "started"
    futures = [executor.submit(pass_gate_and_note, str(note), *gate.paths, number) for number in range(60)]
    gate.wait_arrivals(4)
    for passed in range(1, 57):
        gate.open()
        gate.wait_arrivals(1)
        assert len(note.read_text().split()) == 4 + passed
    gate.open(4)
    assert [future.result() for future in futures] == list(range(60))


def test_idle_process_reuse_one(kind, make):
    """Tasks one after the other run in one interpreter if it is to be reused, and each in its own if not."""
    executor = make(4)
    calls = [executor.submit(tasks.count_calls).result() for _ in range(3)]
    pids = {pid for pid, _ in calls}
    assert [number for _, number in calls] == ([1, 2, 3] if kind == "reused" else [1, 1, 1])
    assert len(pids) == (1 if kind == "reused" else 3)


def test_idle_process_reuse_multiple(kind, make):
    executor = make(3)
    pids = {future.result()[0] for future in [executor.submit(tasks.count_calls) for _ in range(30)]}
    assert len(pids) <= 3 if kind == "reused" else len(pids) == 30


@pytest.mark.parametrize("method", METHODS)
def test_max_tasks_per_child(make, method):
    executor = make(1, get_context(method), max_tasks_per_child=3)
    calls = [executor.submit(tasks.count_calls).result() for _ in range(7)]
    assert [number for _, number in calls] == [1, 2, 3, 1, 2, 3, 1]
    assert len({pid for pid, _ in calls}) == 3


@pytest.mark.parametrize("method", METHODS)
def test_each_start_method_runs_tasks(make, method):
    """There the method decides about everything; here "spawn" executes interpreters, and the others fork a template."""
    with make(2, get_context(method), tasks.greet, ("hello",)) as executor:
        assert list(executor.map(abs, range(-5, 5))) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]
        assert executor.submit(tasks.greeted).result() == "hello"


def test_traceback(make):
    error = make(1).submit(tasks.raise_group).exception()
    line = 'raise ExceptionGroup("two at once", [ValueError(1), TypeError(2)])'
    assert line in error.__cause__.tb
    assert line in "".join(traceback.format_exception(error))


def test_resources_are_collected_in_workers(make, tmp_path, wait_until):
    """An argument is dropped with its task, and not with the next one."""
    executor = make(1)
    executor.submit(id, tasks.Marked(str(tmp_path / "mark"))).result()
    wait_until((tmp_path / "mark").exists)


# ---- test_init


def test_failing_initializer(make):
    executor = make(2, initializer=tasks.refuse)
    futures = [executor.submit(add, 1, 2) for _ in range(4)]
    for future in futures:
        with pytest.raises(BrokenExecutor) as caught:
            future.result()
        assert "error in initializer" in "".join(traceback.format_exception(caught.value))
    assert len({id(future.exception()) for future in futures}) == 4
    with pytest.raises(BrokenExecutor):
        executor.submit(add, 1, 2)


def test_initargs_that_cannot_be_pickled(create):
    """A queue of multiprocessing can be inherited only; that is said at once."""
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    with pytest.raises(pickle.PicklingError, match="initargs"):
        create(1, initializer=print, initargs=(queue,))
    queue.close()


# ---- test_shutdown


def test_processes_terminate(make, gate, own_processes):
    executor = make(3)
    futures = [executor.submit(pass_gate, *gate.paths) for _ in range(3)]
    pids = gate.wait_arrivals(3)
    processes = own_processes()
    assert {process.pid for process in processes} >= set(pids)
    gate.open(3)
    executor.shutdown()
    assert all(future.done() for future in futures)
    assert_gone(processes)


def test_context_manager_shutdown(make, own_processes):
    with make(5) as executor:
        assert list(executor.map(abs, range(-5, 5))) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]
        processes = own_processes()
    assert_gone(processes)


def test_del_shutdown(create, own_processes):
    executor = create(5)
    assert executor.submit(add, 1, 2).result() == 3
    processes = own_processes()
    results = executor.map(abs, range(-5, 5))
    del executor
    gc.collect()
    assert_gone(processes, timeout=15)
    assert list(results) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]


def test_shutdown_no_wait(make, own_processes):
    executor = make(5)
    assert executor.submit(add, 1, 2).result() == 3
    processes = own_processes()
    results = executor.map(abs, range(-5, 5))
    executor.shutdown(wait=False)
    assert_gone(processes, timeout=15)
    assert list(results) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]


def test_cancel_futures(make, gate, wait_until):
    """Of those that have started none is cancelled, of the others all are, or nearly."""
    executor = make(5)
    futures = [executor.submit(pass_gate, *gate.paths) for _ in range(50)]
    gate.wait_arrivals(5)
    wait_until(lambda: sum(future.running() for future in futures) == 5)
    futures[-1].add_done_callback(lambda _: gate.open_wide())
    executor.shutdown(cancel_futures=True)
    assert all(future.done() for future in futures)
    assert sum(future.cancelled() for future in futures) > 20
    others = [future for future in futures if not future.cancelled()]
    assert len(others) >= 5
    assert [future.exception() for future in others] == [None] * len(others)


# ---- test_deadlock: what goes wrong with one task is its own affair


@pytest.mark.parametrize(
    ("bad", "errors"),
    [
        (tasks.FailsToUnpickle, ValueError),
        (tasks.ExitsAtUnpickle, (SystemExit, BrokenProcessPool)),
        (tasks.DiesAtUnpickle, BrokenProcessPool),
    ],
)
def test_bad_argument_at_unpickle(make, gate, bad, errors):
    executor = make(2)
    neighbour = executor.submit(pass_gate, *gate.paths, "unharmed")
    with pytest.raises(errors):
        executor.submit(id, bad()).result()
    assert_alive_and_well(executor, neighbour, gate)


@pytest.mark.parametrize(
    ("bad", "errors"),
    [
        (tasks.FailsToPickle, pickle.PicklingError),
        (tasks.ExitsAtPickle, (SystemExit, pickle.PicklingError)),
        (tasks.DiesAtPickle, BrokenProcessPool),
    ],
)
def test_bad_result_at_pickle(make, gate, bad, errors):
    executor = make(2)
    neighbour = executor.submit(pass_gate, *gate.paths, "unharmed")
    with pytest.raises(errors):
        executor.submit(tasks.make, bad).result()
    assert_alive_and_well(executor, neighbour, gate)


@pytest.mark.parametrize(("bad", "error"), [(tasks.FailsToUnpickle, ValueError), (tasks.ExitsAtUnpickle, SystemExit)])
def test_bad_result_at_unpickle(make, gate, bad, error):
    executor = make(2)
    neighbour = executor.submit(pass_gate, *gate.paths, "unharmed")
    with pytest.raises(error):
        executor.submit(tasks.make, bad).result()
    assert_alive_and_well(executor, neighbour, gate)


def test_shutdown_deadlock_pickle(make, own_processes):
    """A task that fails to pickle does not keep an executor from ending that nobody waits for."""
    executor = make(2)
    assert executor.submit(id, 42).result()
    processes = own_processes()
    future = executor.submit(id, tasks.FailsToPickle())
    executor.shutdown(wait=False)
    with pytest.raises(pickle.PicklingError, match="error in pickle"):
        future.result()
    assert_gone(processes, timeout=15)


def test_many_bad_tasks_among_good_ones(make):
    executor = make(2)
    futures = {executor.submit(tasks.kill_myself) if n % 4 == 0 else executor.submit(add, n, 1): n for n in range(24)}
    for future in as_completed(futures):
        number = futures[future]
        if number % 4 == 0:
            assert isinstance(future.exception(), BrokenProcessPool)
        else:
            assert future.result() == number + 1
