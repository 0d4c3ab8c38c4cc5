"""Executors for the tests of faults: shared by a module's tests, and looked at before and after each of them.

A fault hits its own future. So a neighbour is held at a gate while a test does its worst to the same executor; then it
has to give its result, at its first attempt, and so have tasks that come later.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE, Gate, Overdue, bounded, parent_of, pass_gate

from executor import CAPTURE, HPCExecutor, Program, TaskFuture

#: So many tasks run at a time: the neighbour and two of the test.
WORKERS = 3
#: Seconds between a signal and SIGKILL.
GRACE = 0.3
SPARES = 4
KINDS: dict[str, dict[str, Any]] = {
    "fresh": {},
    "reused": {"max_tasks_per_child": None},
    "spawned": {"mp_context": multiprocessing.get_context("spawn")},
}
ALL_KINDS = pytest.mark.parametrize("pool", list(KINDS), indirect=True)
ONE_TASK_EACH = pytest.mark.parametrize("pool", ["fresh", "spawned"], indirect=True)
FRESH = pytest.mark.parametrize("pool", ["fresh"], indirect=True)


def outcome(future: Future[Any]) -> Any:
    """The result, in bounded time."""
    return future.result(PATIENCE / 2)


def failure(future: Future[Any]) -> BaseException:
    """The exception, in bounded time."""
    error = future.exception(PATIENCE / 2)
    assert error is not None, f"{future} has the result {future.result()!r}"
    return error


def end(executor: HPCExecutor) -> None:
    """Shut it down, by force if it does not go; that is an error then."""
    try:
        with bounded():
            executor.shutdown()
    except Overdue:
        with bounded():
            executor.kill_workers()
        raise


def session_directories(executor: HPCExecutor) -> list[Path]:
    """Where the executor keeps its files."""
    assert executor._hub is not None
    return [Path(folder) for folder in executor._hub.directories.stores]


def agent_of(executor: HPCExecutor) -> int:
    """The process of the executor's agent."""
    parent: int = outcome(executor.submit(os.getppid))
    return parent if executor._start_method == "spawn" else parent_of(parent)


def check_works(executor: HPCExecutor, patience: float = PATIENCE / 2) -> None:
    """Tasks that are submitted now give their results."""
    later = [executor.submit(pow, 2, number) for number in range(4)]
    assert [future.result(patience) for future in later] == [1, 2, 4, 8]


class Pools:
    """Executors of each kind; the next one takes the place of one that a failed test has left unusable.

    All are made at once, before any test of the module: nothing of them is what a test leaves behind.
    """

    def __init__(self) -> None:
        self._made = {kind: [self._make(kind) for _ in range(SPARES)] for kind in KINDS}

    def _make(self, kind: str) -> HPCExecutor:
        return HPCExecutor(WORKERS, kill_grace=GRACE, **KINDS[kind])

    def get(self, kind: str) -> HPCExecutor:
        """The module's executor of this kind, of which all workers are free."""
        return self._made[kind][0]

    def give_up(self, kind: str) -> None:
        """A test has left it unusable."""
        with contextlib.suppress(Overdue), bounded(10):
            self._made[kind].pop(0).kill_workers()

    def close(self) -> None:
        """End them all; nothing of them may be left."""
        for executor in [each for made in self._made.values() for each in made if each._hub is not None]:
            directories = session_directories(executor)
            end(executor)
            assert not any(folder.exists() for folder in directories)


@pytest.fixture(scope="module")
def pools() -> Iterator[Pools]:
    """The executors of a module."""
    pools = Pools()
    yield pools
    pools.close()


@pytest.fixture(params=["fresh", "reused"])
def pool(request: pytest.FixtureRequest, pools: Pools, tmp_path: Path) -> Iterator[HPCExecutor]:
    """An executor of three workers, one of which is taken by a neighbour that must not notice anything."""
    with bounded():
        executor = pools.get(request.param)
        gate = Gate(tmp_path / "neighbour")
        neighbour = executor.submit(pass_gate, *gate.paths)
        (pid,) = gate.wait_arrivals()
        try:
            yield executor
        finally:
            gate.close()
        try:
            assert outcome(neighbour) == pid
            assert neighbour.attempt == 1
            check_works(executor)
        except BaseException:
            pools.give_up(request.param)
            raise


@pytest.fixture
def new_executor() -> Iterator[Callable[..., HPCExecutor]]:
    """Makes executors that are ended with the test, whatever became of it."""
    made: list[HPCExecutor] = []

    def make(max_workers: int = 1, **options: Any) -> HPCExecutor:
        made.append(HPCExecutor(max_workers, **{"kill_grace": GRACE, **options}))
        return made[-1]

    with bounded():
        yield make
        for executor in made:
            end(executor)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate; it opens at the end."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()


#: Of a function and of a program; who uses it makes the task.
CALL_AND_PROGRAM = pytest.mark.parametrize("of", ["call", "program"])


def sh(script: str, *args: Any, **options: Any) -> Program:
    """A program that is a line of the shell; ``args`` are its ``$0`` and on."""
    return Program(["sh", "-c", script, *args], **options)


def error_of(future: TaskFuture) -> Any:
    """The exception, of whatever type."""
    return failure(future)


def capturing(executor: Any, **options: Any) -> Any:
    """A view whose tasks show nothing here."""
    return executor.options(stdout=CAPTURE, stderr=CAPTURE, **options)
