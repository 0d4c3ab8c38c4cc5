"""Futures as arguments, and tasks that run after others, with real agents. How ``after`` is read is in test_options.py,
who may start when in test_dependencies.py.
"""
# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import operator
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import pytest
from pools import PATIENCE, agent_of, failure, gate, new_executor, outcome, session_directories, sh
from test_invited import Join, join
from test_transfers import elsewhere, moved
from waiting import announce, announced, parent_of, pass_gate, wait_until

from executor import CAPTURE, DependencyFailed, HPCExecutor, Program, SerializationError, TaskDied

pytestmark = pytest.mark.shared

if TYPE_CHECKING:
    from waiting import Gate

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

MIB = 2**20
KEPT = pytest.mark.parametrize("kept", [1, None], ids=["fresh", "kept"])


def after_gate(paths: tuple[str, str], value: Any = None) -> Any:
    """Give the value when the gate is open."""
    pass_gate(*paths)
    return value


def give(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    return args, kwargs


def add(*numbers: int) -> int:
    return sum(numbers)


def fail(paths: tuple[str, str] | None = None) -> None:
    if paths is not None:
        pass_gate(*paths)
    raise ValueError("the mesh is broken")


def results_of(executor: HPCExecutor) -> set[str]:
    """The files of the session that hold results; arguments are kept for a while."""
    assert executor._hub is not None
    files = [file for folder in session_directories(executor) for file in folder.iterdir()]
    return {str(file) for file in files if file.name[0].isdecimal()} - set(executor._hub.payloads._entries)


# ---- results as arguments


@KEPT
def test_futures_stand_for_their_results_wherever_they_are_among_the_arguments(
    new_executor: Callable[..., HPCExecutor], gate: Gate, kept: int | None
) -> None:
    executor = new_executor(2, max_tasks_per_child=kept)
    held = executor.submit(after_gate, gate.paths, [1])
    word = executor.submit(str.upper, "two")
    done = executor.submit(pow, 3, 1)
    outcome(done)
    future = executor.submit(give, held, [word, (done,)], key={"a": held, 5: [word]}, plain=7)
    gate.wait_arrivals()
    assert future.state == "pending"
    gate.open()
    assert outcome(future) == (([1], ["TWO", (3,)]), {"key": {"a": [1], 5: ["TWO"]}, "plain": 7})


def test_the_same_future_twice_is_the_same_object(new_executor: Callable[..., HPCExecutor], gate: Gate) -> None:
    def same(first: Any, second: Any, third: Any) -> bool:
        return first is second is third["x"]

    executor = new_executor(1)
    held = executor.submit(after_gate, gate.paths, [1, 2])
    future = executor.submit(same, held, held, {"x": held})
    gate.open()
    assert outcome(future)
    assert outcome(executor.submit(same, held, held, {"x": held}))


@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_takes_futures(new_executor: Callable[..., HPCExecutor], gate: Gate, chunksize: int) -> None:
    executor = new_executor(2)
    futures = [executor.submit(after_gate, gate.paths, number) for number in range(4)]
    results = executor.map(add, futures, [10] * 3 + futures[:1], chunksize=chunksize)
    gate.open()
    assert list(results) == [10, 11, 12, 3]


def test_the_result_of_a_program_is_its_completed_process(new_executor: Callable[..., HPCExecutor], gate: Gate) -> None:
    executor = new_executor(2)
    quiet = executor.options(stdout=CAPTURE, stderr=CAPTURE)
    program = quiet.submit(sh('head -c1 < "$0" > /dev/null; echo 42', gate.opened))
    future = executor.submit(lambda done: (done.returncode, int(done.stdout)), program)
    last = quiet.options(after=program).submit(sh("echo last"))
    wait_until(lambda: program.state == "running")
    assert (future.state, last.state) == ("pending", "pending")
    gate.open()
    assert outcome(future) == (0, 42)
    assert outcome(last).stdout == "last\n"
    bad = quiet.submit(sh("exit 3"))
    assert type(failure(executor.submit(give, bad))) is DependencyFailed


def test_a_future_of_another_executor_is_as_good(new_executor: Callable[..., HPCExecutor], gate: Gate) -> None:
    ours, theirs = new_executor(1), new_executor(1)
    future = theirs.submit(after_gate, gate.paths, b"x" * MIB)
    length = ours.submit(len, future)
    gate.open()
    assert outcome(length) == MIB
    with ThreadPoolExecutor(1) as threads:
        assert outcome(ours.submit(add, threads.submit(pow, 2, 3), 1)) == 9


def test_a_plain_future_that_a_thread_completes_later(new_executor: Callable[..., HPCExecutor]) -> None:
    executor = new_executor(1)
    small, large, late = Future[Any](), Future[Any](), Future[Any]()
    array = np.arange(300_000.0)
    sums = executor.submit(give, small, [large])
    after = executor.options(after={"afterany": late}).submit(pow, 2, 2)
    for future, value in ((small, "x"), (large, array)):
        assert sums.state == "pending"
        thread = threading.Thread(target=future.set_result, args=(value,))
        thread.start()
        thread.join()
    (first, [second]), _ = outcome(sums)
    assert first == "x"
    assert (second == array).all()
    assert after.state == "pending"
    late.set_exception(KeyError("x"))
    assert outcome(after) == 4


class TheirFuture(Future[Any]):
    """As other libraries have them."""


def test_a_future_of_a_class_of_its_own_is_one_too(new_executor: Callable[..., HPCExecutor]) -> None:
    executor = new_executor(1)
    future = TheirFuture()
    sums = executor.submit(add, future, 1)
    future.set_result(2)
    assert outcome(sums) == 3
    assert outcome(executor.submit(add, future, 1)) == 3


def test_a_result_that_nobody_can_pickle_is_the_taker_s_error(new_executor: Callable[..., HPCExecutor]) -> None:
    executor = new_executor(1)
    future = Future[Any]()
    taker = executor.submit(give, future)
    chained = executor.submit(give, taker)
    future.set_result(threading.Lock())
    error = failure(taker)
    assert type(error) is DependencyFailed
    assert type(error.__cause__) is SerializationError
    assert "lock" in str(error.__cause__)
    assert type(failure(chained)) is DependencyFailed
    assert type(failure(executor.submit(give, future))) is SerializationError
    assert outcome(executor.submit(pow, 2, 3)) == 8


def test_a_future_where_it_is_no_argument_is_refused_with_advice(new_executor: Callable[..., HPCExecutor]) -> None:
    executor = new_executor(1)
    future = executor.submit(pow, 2, 3)
    error = failure(executor.submit(lambda: future.result()))
    assert "Give its result, or it as an argument" in str(error)
    with pytest.raises(TypeError, match="bound to its process"):
        pickle.dumps(future)


# ---- how results travel


class Noted:
    """Says by whom it was pickled and unpickled."""

    def __init__(self, pickled: str, unpickled: str) -> None:
        self.paths = pickled, unpickled

    def __reduce__(self) -> tuple[Any, ...]:
        announce(self.paths[0])
        return _unpickle, self.paths


def _unpickle(pickled: str, unpickled: str) -> Noted:
    announce(unpickled)
    return Noted(pickled, unpickled)


def pid_with(*_: Any) -> int:
    return os.getpid()


def test_a_result_goes_from_task_to_task_as_it_was_pickled_there(
    new_executor: Callable[..., HPCExecutor], gate: Gate, tmp_path: Path
) -> None:
    """Here it is unpickled for its own future, and never pickled."""
    executor = new_executor(2, max_tasks_per_child=None)
    pickled, unpickled = str(tmp_path / "pickled"), str(tmp_path / "unpickled")

    def make(paths: tuple[str, str]) -> Any:
        pass_gate(*paths)
        return [Noted(pickled, unpickled), os.getpid()]

    maker = executor.submit(make, gate.paths)
    takers = [executor.submit(pid_with, maker) for _ in range(3)]
    gate.open()
    pids = [outcome(taker) for taker in takers]
    assert announced(pickled) == [outcome(maker)[1]]
    assert sorted(announced(unpickled)) == sorted([os.getpid(), *pids])


def test_a_result_that_cannot_be_read_here_reaches_the_tasks_that_take_it(
    new_executor: Callable[..., HPCExecutor], gate: Gate
) -> None:
    def only_there(client: int) -> str:
        if os.getpid() == client:
            raise ImportError("no module of this name on a login node")
        return "there"

    class Foreign:
        def __reduce__(self) -> tuple[Any, ...]:
            return only_there, (here,)

    def make(paths: tuple[str, str]) -> Any:
        pass_gate(*paths)
        return Foreign()

    here = os.getpid()
    executor = new_executor(1)
    maker = executor.submit(make, gate.paths)
    taker = executor.submit(give, maker)
    gate.open()
    assert outcome(taker) == (("there",), {})
    assert type(failure(maker)) is ImportError


LARGE = {"bytes": lambda: os.urandom(5 * MIB), "array": lambda: np.arange(700_000.0), "both": lambda: [
    np.ones((1000, 100)), bytes(MIB), {"small": np.arange(3)}]}  # fmt: skip


def same(first: Any, second: Any) -> bool:
    return pickle.dumps(first) == pickle.dumps(second)


@KEPT
@pytest.mark.parametrize("kind", LARGE)
def test_large_results_travel_and_their_files_go(
    new_executor: Callable[..., HPCExecutor], gate: Gate, kind: str, kept: int | None
) -> None:
    executor = new_executor(2, max_tasks_per_child=kept)
    value = LARGE[kind]()
    held = executor.submit(after_gate, gate.paths, value)
    before = results_of(executor)
    one, two = executor.submit(give, held, x=1), executor.submit(give, [held])
    last = executor.submit(lambda first, second: same(first[0][0], second[0][0][0]), one, two)
    gate.open()
    assert outcome(last)
    assert same(outcome(one), ((value,), {"x": 1}))
    assert same(outcome(two), (([value],), {}))
    outcome(held)
    wait_until(lambda: results_of(executor) <= before, "for the results' files to go")


def test_very_many_results_at_once(new_executor: Callable[..., HPCExecutor], gate: Gate) -> None:
    """More than a message holds, each of them small enough for one."""
    executor = new_executor(2, max_tasks_per_child=None)
    first = executor.submit(after_gate, gate.paths, b"")
    futures = [executor.submit(lambda _, n: bytes([n]) * 20_000, first, number) for number in range(100)]
    joined = executor.submit(lambda parts: b"".join(parts), futures)
    gate.open()
    assert outcome(joined) == b"".join(bytes([number]) * 20_000 for number in range(100))


def test_ten_thousand_results_as_one_argument(new_executor: Callable[..., HPCExecutor], gate: Gate) -> None:
    executor = new_executor(2, max_tasks_per_child=None)
    first = executor.submit(after_gate, gate.paths, 1)
    futures = [executor.submit(add, first, number) for number in range(10_000)]
    total = executor.submit(sum, futures)
    gate.open()
    assert outcome(total) == 10_000 + sum(range(10_000))


def test_results_travel_to_and_from_an_agent_that_does_not_share_files(
    elsewhere: HPCExecutor, gate: Gate, tmp_path: Path
) -> None:
    value = np.arange(700_000.0)
    held = elsewhere.submit(after_gate, gate.paths, value)
    double = elsewhere.submit(np.multiply, held, 2)
    small = elsewhere.submit(len, double)
    both = elsewhere.submit(give, double, [held, double], small)
    gate.open()
    (first, [second, third], length), _ = outcome(both)
    assert length == 700_000
    assert (first == value * 2).all()
    assert (second == value).all()
    assert (third == first).all()


def test_results_travel_between_agents_here_and_elsewhere(
    new_executor: Callable[..., HPCExecutor], join: Join, gate: Gate, tmp_path: Path
) -> None:
    executor = new_executor(1, resources={"here": 1})
    join(moved(executor.invite(host="127.0.0.1").path, tmp_path))
    wait_until(lambda: len(executor.workers()) == 2)
    here = executor.options(cpus=0, resources={"here": 0.1})
    hold = executor.options(resources={"here": 0.9})  # takes the one CPU here
    blocker = hold.submit(after_gate, gate.paths)
    gate.wait_arrivals()
    data = os.urandom(5 * MIB)

    def with_parent(value: bytes) -> tuple[bytes, int]:
        return value[::-1], os.getppid()

    there = executor.submit(with_parent, data)
    back = here.submit(with_parent, executor.submit(operator.itemgetter(0), there))
    assert outcome(back)[0] == data
    assert outcome(back)[1] != outcome(there)[1]
    gate.open()
    outcome(blocker)


# ---- what has ended badly


def test_a_failure_goes_along_the_chain_at_once_and_names_the_first(
    new_executor: Callable[..., HPCExecutor], gate: Gate
) -> None:
    executor = new_executor(1)
    first = executor.options(name="mesh").submit(fail, gate.paths)
    chain = [executor.submit(give, first)]
    for _ in range(5):
        chain.append(executor.submit(give, chain[-1]))
    gate.wait_arrivals()
    gate.open()
    for future in chain:
        error = failure(future)
        assert type(error) is DependencyFailed
        assert (error.failed, error.failed_id, error.future) == ("mesh", first.task_id, first)
        assert error.__cause__ is failure(first)
        assert "mesh" in str(error)
        assert "has failed" in str(error)
        assert future.attempt == 0
    copy = pickle.loads(pickle.dumps(failure(chain[-1])))
    assert (copy.failed, copy.failed_id, copy.future) == ("mesh", first.task_id, None)


def test_what_has_failed_before_fails_the_task_as_well(new_executor: Callable[..., HPCExecutor]) -> None:
    executor = new_executor(1)
    first = executor.submit(fail)
    failure(first)
    second = executor.submit(give, first)
    third = executor.options(retries=3).submit(give, [second])
    for error in (failure(third), failure(second)):
        assert type(error) is DependencyFailed
        assert error.failed_id == first.task_id
        assert error.__cause__ is failure(first)
    plain: Future[Any] = Future()
    plain.set_exception(KeyError("theirs"))
    error = failure(executor.submit(give, plain))
    assert (type(error), error.failed_id, error.future) == (DependencyFailed, None, plain)
    assert type(error.__cause__) is KeyError
    assert repr(plain) in str(error)


def test_a_task_that_waits_for_a_cancelled_one_is_cancelled(
    new_executor: Callable[..., HPCExecutor], gate: Gate
) -> None:
    executor = new_executor(1)
    blocker = executor.submit(after_gate, gate.paths)
    cancelled = executor.submit(pow, 2, 3)
    waits = [executor.submit(give, cancelled)]
    waits += [executor.submit(give, waits[0]), executor.options(after=waits[0]).submit(pow, 2, 2)]
    still = executor.options(after={"afterany": cancelled}).submit(pow, 2, 4)
    assert cancelled.cancel()
    done, _ = wait(waits, timeout=PATIENCE)
    assert len(done) == 3
    assert all(future.cancelled() for future in waits)
    late = executor.submit(give, cancelled)
    with pytest.raises(CancelledError):
        late.result(PATIENCE)
    gate.open()
    assert outcome(still) == 16
    outcome(blocker)


def test_a_waiting_task_can_be_cancelled_and_killed(
    new_executor: Callable[..., HPCExecutor], gate: Gate
) -> None:
    executor = new_executor(1)
    held = executor.submit(after_gate, gate.paths, b"x" * MIB)
    before = results_of(executor)
    cancelled, killed, goes_on = (executor.submit(len, held) for _ in range(3))
    behind = executor.submit(give, cancelled)
    assert cancelled.cancel()
    killed.kill()
    assert "killed on request" in str(failure(killed))
    wait_until(behind.cancelled)
    gate.open()
    assert outcome(goes_on) == MIB
    outcome(held)
    wait_until(lambda: results_of(executor) <= before, "for the result's files to go")


@KEPT
def test_shutdown_with_cancel_ends_those_that_wait(
    new_executor: Callable[..., HPCExecutor], gate: Gate, kept: int | None
) -> None:
    executor = new_executor(1, max_tasks_per_child=kept)
    never: Future[Any] = Future()
    held = executor.submit(after_gate, gate.paths, 1)
    chain = [held]
    for _ in range(5):
        chain.append(executor.submit(give, chain[-1]))
    foreign = executor.submit(give, never, chain[2])
    gate.wait_arrivals()
    executor.shutdown(wait=False, cancel_futures=True)
    wait([*chain[1:], foreign], timeout=PATIENCE)
    assert all(future.cancelled() for future in [*chain[1:], foreign])
    gate.open()
    assert outcome(held) == 1
    executor.shutdown()
    never.set_result(3)  # nobody is there to hear it


def test_shutdown_waits_for_tasks_that_wait_for_others(new_executor: Callable[..., HPCExecutor], gate: Gate) -> None:
    executor = new_executor(1)
    theirs: Future[Any] = Future()
    held = executor.submit(after_gate, gate.paths, 1)
    last = executor.submit(add, executor.submit(add, held, 1), theirs)
    executor.shutdown(wait=False)
    gate.open()
    theirs.set_result(40)
    executor.shutdown()
    assert last.result(0) == 42


def test_kill_workers_ends_those_that_wait(new_executor: Callable[..., HPCExecutor], gate: Gate) -> None:
    executor = new_executor(1)
    held = executor.submit(after_gate, gate.paths, 1)
    waiting = executor.submit(add, held, 1)
    gate.wait_arrivals()
    executor.kill_workers()
    assert [type(failure(future)).__name__ for future in (held, waiting)] == ["ExecutorTerminated"] * 2


# ---- after


@pytest.mark.parametrize(
    ("condition", "ends"),
    [
        ("afterok", {"ok": 1, "failed": "failed", "cancelled": "cancelled"}),
        ("afterany", {"ok": 1, "failed": 1, "cancelled": 1}),
        ("afternotok", {"ok": "failed", "failed": 1, "cancelled": 1}),
    ],
)
@pytest.mark.parametrize("when", ["before", "later"])
def test_each_condition_with_each_end(
    new_executor: Callable[..., HPCExecutor], gate: Gate, condition: str, ends: dict[str, Any], when: str
) -> None:
    executor = new_executor(1)
    blocker = executor.submit(after_gate, gate.paths)
    gate.wait_arrivals()
    tasks = {"ok": (pow, 2, 3), "failed": (fail,), "cancelled": (pow, 2, 3)}
    others = {end: executor.submit(*task) for end, task in tasks.items()}
    tasks = {}
    if when == "later":
        tasks = {end: executor.options(after={condition: other}).submit(pow, 1, 1) for end, other in others.items()}
    assert others["cancelled"].cancel()
    gate.open()
    wait([blocker, *others.values()], timeout=PATIENCE)
    if when == "before":
        tasks = {end: executor.options(after={condition: [other]}).submit(pow, 1, 1) for end, other in others.items()}
    wait(tasks.values(), timeout=PATIENCE)
    seen: dict[str, Any] = {}
    for end, task in tasks.items():
        if task.cancelled():
            seen[end] = "cancelled"
        elif (error := task.exception()) is not None:
            assert type(error) is DependencyFailed
            seen[end] = "failed"
        else:
            seen[end] = task.result()
    assert seen == ends


def test_a_task_that_was_to_fail_and_did_not_is_named(new_executor: Callable[..., HPCExecutor]) -> None:
    executor = new_executor(1)
    good = executor.options(name="good").submit(pow, 2, 3)
    error = failure(executor.options(after={"afternotok": good}).submit(pow, 2, 3))
    assert "(good)" in str(error)
    assert "has succeeded, and was to fail" in str(error)
    assert error.__cause__ is None


def test_of_two_conditions_on_one_future_both_hold(new_executor: Callable[..., HPCExecutor], gate: Gate) -> None:
    """The stricter one got lost where the other one came after it."""
    executor = new_executor(1)
    bad = executor.submit(fail, gate.paths)
    both = [
        executor.options(after={"afterok": bad, "afterany": bad}).submit(pow, 2, 3),
        executor.options(after={"afterany": bad, "afterok": bad}).submit(pow, 2, 3),
        executor.options(after={"afterany": bad}).submit(give, bad),
        executor.options(after={"afternotok": bad}).submit(give, bad),
    ]
    gate.open()
    assert [type(failure(future)) for future in both] == [DependencyFailed] * 4


# ---- retries, and agents that are lost


def test_a_task_that_is_tried_again_has_its_inputs_again(new_executor: Callable[..., HPCExecutor], gate: Gate) -> None:
    def flaky(data: np.ndarray, more: str) -> tuple[int, str]:
        if os.environ["HPC_ATTEMPT"] != "3":
            data[:] = 0
            raise OSError("the file server is busy")
        return int(data.sum()), more

    executor = new_executor(1)
    data = executor.submit(after_gate, gate.paths, np.ones(100_000))
    future = executor.options(retries=2).submit(flaky, data, executor.submit(str, 5))
    gate.open()
    assert outcome(future) == (100_000, "5")
    assert future.attempt == 3


def test_those_who_wait_for_a_task_that_is_tried_again_wait_for_its_last_attempt(
    new_executor: Callable[..., HPCExecutor], gate: Gate
) -> None:
    def flaky(paths: tuple[str, str]) -> Any:
        pass_gate(*paths)
        if os.environ["HPC_ATTEMPT"] == "1":
            raise OSError("busy")
        return np.full(100_000, 2)

    executor = new_executor(1)
    first = executor.options(retries=1).submit(flaky, gate.paths)
    total = executor.submit(np.sum, first)
    unlucky = executor.options(after={"afternotok": first}).submit(pow, 1, 1)
    gate.open()
    assert outcome(total) == 200_000
    assert type(failure(unlucky)) is DependencyFailed


@KEPT
def test_an_agent_that_is_lost_takes_no_inputs_along(
    new_executor: Callable[..., HPCExecutor], gate: Gate, tmp_path: Path, kept: int | None
) -> None:
    def use(data: Any, small: int, paths: tuple[str, str]) -> int:
        pass_gate(*paths)
        return int(data.sum()) + small

    executor = new_executor(2, max_tasks_per_child=kept)
    small = executor.submit(pow, 2, 1)
    assert outcome(small) == 2
    before = results_of(executor)
    data = executor.submit(np.ones, 200_000)
    futures = [executor.submit(use, data, small, gate.paths) for _ in range(4)]
    template = parent_of(gate.wait_arrivals(2)[0])
    os.kill(parent_of(template), signal.SIGKILL)
    gate.wait_arrivals(4)
    gate.open()
    assert [outcome(future) for future in futures] == [200_002] * 4
    outcome(data)
    wait_until(lambda: results_of(executor) <= before, "for the result's files to go")


def test_a_result_whose_file_is_gone_is_the_taker_s_error_and_no_other_s(
    new_executor: Callable[..., HPCExecutor], gate: Gate
) -> None:
    """What an agent says of files may not end the hub."""

    def sabotage(paths: tuple[str, str]) -> Any:
        from worker_agent import store

        pass_gate(*paths)
        original = store.store

        def lose(data: Any, directories: list[str]) -> Any:
            path, size = original(data, directories)
            os.unlink(path)
            return path, size

        store.store = lose
        return np.ones(100_000)

    executor = new_executor(1)
    first = executor.submit(sabotage, gate.paths)
    taker = executor.submit(np.sum, first)
    gate.open()
    assert isinstance(failure(taker), OSError)
    assert isinstance(failure(first), OSError)
    assert outcome(executor.submit(pow, 2, 3)) == 8


# ---- many


def test_a_chain_of_ten_thousand(new_executor: Callable[..., HPCExecutor], gate: Gate) -> None:
    executor = new_executor(2, max_tasks_per_child=None)
    last = executor.submit(after_gate, gate.paths, 0)
    for _ in range(10_000):
        last = executor.submit(add, last, 1)
    gate.open()
    assert last.result(PATIENCE) == 10_000


def test_a_chain_of_ten_thousand_fails_at_once(new_executor: Callable[..., HPCExecutor], gate: Gate) -> None:
    executor = new_executor(2)
    chain = [executor.submit(fail, gate.paths)]
    for _ in range(10_000):
        chain.append(executor.submit(add, chain[-1], 1))
    gate.open()
    assert failure(chain[-1]).failed_id == chain[0].task_id  # type: ignore[attr-defined]
    assert all(future.done() for future in chain)


def test_a_tree_of_sums(new_executor: Callable[..., HPCExecutor]) -> None:
    executor = new_executor(2, max_tasks_per_child=None)
    row: list[Any] = list(range(1024))
    while len(row) > 1:
        row = [executor.submit(add, *pair) for pair in zip(row[::2], row[1::2], strict=True)]
    assert outcome(row[0]) == sum(range(1024))
