"""Tasks that are tried again: after a failure of their own (``retries``), and after the loss of their agent.

How the two are counted is in test_scheduler.py; what a retried call leaves on its future is in test_futures.py.
"""
# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from pools import CALL_AND_PROGRAM, capturing, check_works, end, error_of, failure, new_executor, outcome, sh
from waiting import announce, announced, parent_of, pass_gate, state_of, wait_announced, wait_gone, wait_until

from executor import (
    HPCExecutor,
    Program,
    ProgramFailed,
    ProgramNotStarted,
    TaskDied,
    TaskFuture,
    TaskLost,
    TaskTimeout,
)

if TYPE_CHECKING:
    from conftest import Gate

pytestmark = pytest.mark.shared

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])



@pytest.fixture(scope="module")
def executor() -> Iterator[HPCExecutor]:
    """Shared by the tests that do no harm to it: two workers, fresh interpreters."""
    shared = HPCExecutor(2, kill_grace=0.3)
    yield shared
    end(shared)


# ---- failures of its own


def fail_until(attempt: int, how: Callable[[], object]) -> str:
    """Fail in some way, up to the ``attempt``-th time."""
    if int(os.environ["HPC_ATTEMPT"]) < attempt:
        how()
    return os.environ["HPC_ATTEMPT"]


def raise_lookup_error() -> None:
    raise LookupError(f"attempt {os.environ['HPC_ATTEMPT']}")


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exit_at_once() -> None:
    os._exit(0)


@pytest.mark.parametrize("how", [raise_lookup_error, kill_itself, exit_at_once, sys.exit])
def test_a_call_that_fails_by_itself_is_tried_again_until_it_succeeds(executor: HPCExecutor, how: Any) -> None:
    future = executor.options(retries=2).submit(fail_until, 3, how)
    assert outcome(future) == "3"
    assert (future.attempt, future.state, future.returncode, future.signal) == (3, "finished", None, None)


@pytest.mark.parametrize("how", ["exit 3", "kill -9 $$", "exec /nowhere/at/all 2>/dev/null"])
def test_a_program_that_fails_by_itself_is_tried_again_until_it_succeeds(executor: HPCExecutor, how: Any) -> None:
    future = capturing(executor, retries=2).submit(sh(f"test $HPC_ATTEMPT = 3 || {how}; echo attempt $HPC_ATTEMPT"))
    completed = outcome(future)
    assert (completed.returncode, completed.stdout) == (0, "attempt 3\n")
    assert (future.attempt, future.returncode) == (3, 0)


def test_when_retries_are_used_up_the_error_is_that_of_the_last_attempt(executor: HPCExecutor) -> None:
    view = capturing(executor, retries=2)
    call, death = view.submit(fail_until, 9, raise_lookup_error), view.submit(fail_until, 9, kill_itself)
    program = view.submit(sh("echo attempt $HPC_ATTEMPT >&2; exit $HPC_ATTEMPT"))
    missing = view.submit(Program(["/nowhere/at/all"]))
    error = error_of(call)
    assert (type(error), error.args, call.attempt) == (LookupError, ("attempt 3",), 3)
    assert "attempt 3" in str(error.__cause__)
    error = error_of(program)
    assert (type(error), error.returncode, error.stderr, program.attempt) == (ProgramFailed, 3, "attempt 3\n", 3)
    error = error_of(death)
    assert (type(error), error.attempt, error.pid, death.attempt) == (TaskDied, 3, death.pid, 3)
    assert (type(error_of(missing)), missing.attempt) == (ProgramNotStarted, 3)


def test_a_status_that_is_not_checked_is_no_failure_to_try_again(executor: HPCExecutor) -> None:
    future = executor.options(retries=2).submit(sh("exit 3", check=False))
    assert outcome(future).returncode == 3
    assert future.attempt == 1


@pytest.mark.parametrize(
    "program", [Program(["sleep", "600"]), Program(["/nowhere/at/all"])], ids=["time limit", "not started"]
)
def test_whatever_else_ends_a_program_whose_status_is_not_checked_is_tried_again(
    executor: HPCExecutor, program: Program
) -> None:
    unchecked = Program(program.argv, check=False)
    future = executor.options(retries=2, time_limit=0.05).submit(unchecked)
    assert isinstance(error_of(future), TaskTimeout | ProgramNotStarted)
    assert future.attempt == 3


@CALL_AND_PROGRAM
def test_what_a_failed_attempt_has_printed_is_not_the_output_of_the_next(executor: HPCExecutor, of: str) -> None:
    """The next one prints nothing, and is often too short for its start to be told."""

    def call() -> None:
        if os.environ["HPC_ATTEMPT"] == "1":
            print("of the first attempt")
            raise LookupError

    program = sh("test $HPC_ATTEMPT = 2 || { echo of the first attempt; exit 1; }")
    check_works(executor)
    futures = [capturing(executor, retries=1).submit(call if of == "call" else program) for _ in range(20)]
    wait(futures, timeout=20)
    assert [(future.attempt, future.stdout) for future in futures] == [(2, "")] * 20


def live_on(pids: Path) -> None:
    """In a process of its own, with so much memory that its end takes some time."""
    if os.fork() == 0:
        memory = b"x" * 200_000_000
        announce(pids)
        signal.pause()
        del memory


# Not strict: how long a killed process takes to end is the kernel's affair; mostly two or three of the five are seen.
def test_an_attempt_begins_when_the_processes_of_the_one_before_are_gone(executor: HPCExecutor, tmp_path: Path) -> None:
    """Of five attempts each leaves one behind, which is killed."""

    def call() -> None:
        attempt, pids = int(os.environ["HPC_ATTEMPT"]), announced(tmp_path / "pids")
        for pid in pids:
            with contextlib.suppress(FileNotFoundError):
                if state_of(pid) not in "ZX":
                    announce(tmp_path / "alive", pid)
        if attempt < 6:
            live_on(tmp_path / "pids")
            wait_announced(tmp_path / "pids", attempt)
            os._exit(3)

    outcome(executor.options(retries=5).submit(call))
    assert len(announced(tmp_path / "pids")) == 5
    assert announced(tmp_path / "alive") == []


def test_a_task_that_waits_to_be_tried_again_does_not_run(
    new_executor: Callable[..., HPCExecutor], make_gate: Callable[[], Gate]
) -> None:
    """Another one has taken its place, for hours perhaps."""

    def fail_once(*paths: str) -> None:
        pass_gate(*paths)
        if os.environ["HPC_ATTEMPT"] == "1":
            raise LookupError

    first, second = make_gate(), make_gate()
    executor = new_executor(1)
    outcome(executor.submit(time.sleep, 0.05))  # of such as this one is sent in advance
    future = executor.options(retries=1).submit(fail_once, *first.paths)
    first.wait_arrivals(1)
    other = executor.submit(pass_gate, *second.paths)
    wait_until(lambda: other.state == "sent")
    first.open()
    second.wait_arrivals(1)
    wait_until(lambda: future.attempt == 2)
    seen = future.running(), future.state, future.pid
    second.open()
    first.open()
    wait([future, other], timeout=20)
    assert seen == (False, "sent", None)


# ---- the agent is lost


def test_a_crash_limit_of_zero_means_never_twice(new_executor: Callable[..., HPCExecutor], gate: Gate) -> None:
    """However often the task itself may fail."""
    executor = new_executor(1)
    future = executor.options(crash_limit=0, retries=5).submit(pass_gate, *gate.paths)
    [pid] = gate.wait_arrivals(1)
    wait_until(future.running)
    os.kill(parent_of(parent_of(pid)), signal.SIGKILL)
    error = error_of(future)
    assert type(error) is TaskLost
    assert (error.losses, error.crash_limit, error.task) == (1, 0, "pass_gate")
    assert future.attempt == 1
    gate.open()  # for nobody
    wait_gone(pid)
    check_works(executor)


def test_a_lost_agent_costs_no_retry(new_executor: Callable[..., HPCExecutor], gate: Gate) -> None:
    """Once lost, once failed by itself, and the third time well."""

    def fail_at_second(*paths: str) -> str:
        pass_gate(*paths)
        if os.environ["HPC_ATTEMPT"] == "2":
            raise LookupError
        return os.environ["HPC_ATTEMPT"]

    executor = new_executor(1)
    future = executor.options(crash_limit=1, retries=1).submit(fail_at_second, *gate.paths)
    [pid] = gate.wait_arrivals(1)
    os.kill(parent_of(parent_of(pid)), signal.SIGKILL)
    gate.wait_arrivals(1)
    gate.open(2)
    assert outcome(future) == "3"
    assert future.attempt == 3


def test_calls_and_programs_that_take_turns_lose_no_agent(new_executor: Callable[..., HPCExecutor]) -> None:
    """Each takes the other's only place; the lane that lost it is closed, perhaps while it hears of its last end."""
    executor = new_executor(1)
    futures: list[TaskFuture] = []
    for _ in range(15):
        futures += [executor.submit(pow, 2, 5), executor.submit(Program(["true"]))]
        wait(futures[-2:], timeout=20)
    assert {future.attempt for future in futures} == {1}
