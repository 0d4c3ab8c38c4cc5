"""How a task's life can be ended: by its time limit, ``kill``, ``cancel(kill=True)``. See also test_tasks_retries.py.

Here is what happens to real processes. What each end leaves on the future is in test_futures.py, faults that come by
themselves are in test_faults_task.py, and ``cancel`` of tasks that have not started is in test_user_process.py (E18).
"""
# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from pools import CALL_AND_PROGRAM, capturing, check_works, end, error_of, new_executor, outcome, sh
from waiting import announce, announced, pass_gate, wait_announced, wait_gone, wait_until

from executor import (
    HPCExecutor,
    Program,
    TaskKilled,
    TaskTimeout,
)

pytestmark = pytest.mark.shared

if TYPE_CHECKING:
    from conftest import Gate

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

GRACE = 0.3
SLEEP = Program(["sleep", "600"])

#: Three generations, which write their pids to $1; the youngest is in a session of its own and ignores SIGTERM.
TREE = """#!/bin/sh
case $2 in
    0) trap "" TERM; echo $$ >> "$1"; exec sleep 600;;
    1) echo $$ >> "$1"; setsid "$0" "$1" 0;;
    2) echo $$ >> "$1"; "$0" "$1" 1;;
esac
exit
"""


@pytest.fixture(scope="module")
def executor() -> Iterator[HPCExecutor]:
    """Shared by the tests that do no harm to it: three workers, fresh interpreters."""
    shared = HPCExecutor(3, kill_grace=GRACE)
    yield shared
    end(shared)


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[Path], Program]:
    """A program that does not end, of three generations; its only argument is the file for their pids."""
    script = tmp_path / "tree"
    script.write_text(TREE)
    script.chmod(0o755)
    return lambda pids: Program([script, pids, "2"])


def run_it(program: Program) -> None:
    """The same as a call: with its interpreter, four generations."""
    announce(program.argv[1])
    subprocess.run(program.argv)


def note_signal(log: Path, ready: Path, number: int) -> str:
    """Wait for a signal, in this process and in a child; each notes what it got, and ends well."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    child = os.fork()
    announce(ready)
    announce(log, signal.sigwait([number]))
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return "its own end"


# ---- the time limit


def test_a_time_limit_is_given_in_seconds_as_a_timedelta_or_as_text(executor: HPCExecutor) -> None:
    limits = [0.25, timedelta(milliseconds=250), "250ms", "00:00:00.25"]
    futures = [executor.options(time_limit=limit).submit(SLEEP) for limit in limits]
    errors = [error_of(future) for future in futures]
    assert [type(error) for error in errors] == [TaskTimeout] * 4
    assert all(isinstance(error, TimeoutError) for error in errors)
    assert [error.time_limit for error in errors] == [0.25] * 4
    wait_gone(*(future.pid or 0 for future in futures))


@pytest.mark.parametrize("limit", [70, 70.5, timedelta(minutes=1), "1m 10s", "1 minute", "00:01:10", "1-00:00:00"])
def test_a_task_that_ends_in_time_is_untouched(executor: HPCExecutor, limit: Any) -> None:
    view = executor.options(time_limit=limit)
    call, program = view.submit(pow, 2, 5), capturing(view).submit(sh("echo in time"))
    assert (outcome(call), outcome(program).stdout) == (32, "in time\n")
    assert (call.attempt, program.attempt, program.returncode, program.signal) == (1, 1, 0, None)


def test_a_time_limit_ends_with_its_task_and_not_in_the_next_one(
    new_executor: Callable[..., HPCExecutor], gate: Gate
) -> None:
    """Both run in the same process."""
    executor = new_executor(1, max_tasks_per_child=None)
    pid = outcome(executor.options(time_limit=0.2).submit(os.getpid))
    following = executor.submit(pass_gate, *gate.paths)
    assert gate.wait_arrivals(1) == [pid]
    with pytest.raises(TimeoutError):
        following.result(timeout=0.4)
    gate.open()
    assert outcome(following) == pid


def test_a_program_that_leaves_well_at_sigterm_has_still_taken_too_long(executor: HPCExecutor, gate: Gate) -> None:
    """It may save what it has, within the grace; its last words are on the future and in the error."""
    script = 'trap "echo saved >&2; exit 0" TERM; echo half way >&2; read token < "$0"'
    future = capturing(executor, time_limit=0.5).submit(sh(script, gate.paths[1]))
    error = error_of(future)
    assert type(error) is TaskTimeout
    assert (future.returncode, future.signal, future.stderr) == (0, None, "half way\nsaved\n")
    assert error.stderr == future.stderr
    assert str(error).endswith("The end of its stderr:\n  half way\n  saved")


def test_a_call_that_returns_at_sigterm_has_still_taken_too_long(executor: HPCExecutor, tmp_path: Path) -> None:
    view = executor.options(time_limit=0.5)
    future = view.submit(note_signal, tmp_path / "log", tmp_path / "ready", signal.SIGTERM)
    assert type(error_of(future)) is TaskTimeout
    assert announced(tmp_path / "log") == [signal.SIGTERM] * 2
    assert (future.state, future.returncode, future.signal) == ("finished", None, None)


@CALL_AND_PROGRAM
def test_each_attempt_has_the_whole_time_limit(executor: HPCExecutor, of: str) -> None:
    """The first one uses it up, the second one half of it."""

    def call() -> None:
        time.sleep(600 if os.environ["HPC_ATTEMPT"] == "1" else 0.3)

    program = sh("test $HPC_ATTEMPT = 2 || exec sleep 600; sleep 0.3")
    future = executor.options(time_limit=0.6, retries=1).submit(call if of == "call" else program)
    outcome(future)
    assert (future.attempt, future.signal) == (2, None)


# ---- kill


@pytest.mark.parametrize(
    ("way", "of"), [("time limit", "program"), ("kill", "call"), ("kill", "program"), ("cancel", "call"),
                    ("cancel", "program")],
)  # fmt: skip
def test_all_that_a_task_has_started_ends_with_it(
    executor: HPCExecutor, tmp_path: Path, tree: Callable[[Path], Program], way: str, of: str
) -> None:
    """For a call that exceeds its time limit, see A22 in test_faults_task.py."""
    pids, program = tmp_path / "pids", tree(tmp_path / "pids")
    view = executor.options(time_limit=0.7 if way == "time limit" else None)
    future = view.submit(run_it, program) if of == "call" else view.submit(program)
    started = wait_announced(pids, 4 if of == "call" else 3)
    if way == "cancel":
        assert future.cancel(kill=True)
    elif way == "kill":
        assert future.kill()
    if way == "cancel":
        with pytest.raises(CancelledError):
            future.result(timeout=20)
        assert (future.state, future.done(), future.running()) == ("cancelled", True, False)
    else:
        assert type(error_of(future)) is (TaskKilled if way == "kill" else TaskTimeout)
        assert future.pid == started[0]
    wait_gone(*started)
    check_works(executor)


def test_the_signal_of_a_kill_goes_to_the_process_group_and_its_end_is_a_killed_task(
    executor: HPCExecutor, tmp_path: Path
) -> None:
    """The call takes the signal, and so does its child; it may return, but its value is not the future's any more."""
    future = executor.submit(note_signal, tmp_path / "log", tmp_path / "ready", signal.SIGUSR1)
    wait_announced(tmp_path / "ready", 2)
    assert future.kill(signal=signal.SIGUSR1, grace=30)
    error = error_of(future)
    assert type(error) is TaskKilled
    assert (error.pid, error.attempt, error.returncode, error.signal) == (future.pid, 1, None, None)
    assert announced(tmp_path / "log") == [signal.SIGUSR1] * 2
    assert (future.state, future.returncode, future.signal) == ("finished", None, None)


def test_a_call_that_is_killed_by_sigint_can_clean_up(executor: HPCExecutor, gate: Gate, tmp_path: Path) -> None:
    def careful() -> None:
        try:
            pass_gate(*gate_paths)
        except KeyboardInterrupt:
            announce(tmp_path / "cleaned up")
            raise

    gate_paths = gate.paths
    future = executor.submit(careful)
    [pid] = gate.wait_arrivals(1)
    assert future.kill(signal=signal.SIGINT)
    assert type(error_of(future)) is TaskKilled
    assert announced(tmp_path / "cleaned up") == [pid]


def test_a_signal_that_a_program_does_not_survive_is_told(executor: HPCExecutor, gate: Gate) -> None:
    future = executor.submit(sh('echo $$ > "$0"; exec sleep 600', gate.paths[0]))
    [pid] = gate.wait_arrivals(1)
    assert future.kill(signal=signal.SIGQUIT)
    error = error_of(future)
    assert type(error) is TaskKilled
    assert (future.signal, error.signal, error.returncode) == (signal.SIGQUIT, signal.SIGQUIT, -signal.SIGQUIT)
    assert "SIGQUIT" in str(error)
    assert error.task == future.name == "sh"


@CALL_AND_PROGRAM
def test_a_task_that_was_killed_is_not_tried_again(executor: HPCExecutor, gate: Gate, of: str) -> None:
    view = executor.options(retries=3, crash_limit=3)
    program = sh('echo $$ > "$0"; exec sleep 600', gate.paths[0])
    future = view.submit(pass_gate, *gate.paths) if of == "call" else view.submit(program)
    [pid] = gate.wait_arrivals(1)
    assert future.kill()
    assert type(error_of(future)) is TaskKilled
    assert (future.attempt, future.pid) == (1, pid)


def test_what_has_ended_can_be_neither_killed_nor_cancelled(executor: HPCExecutor) -> None:
    finished, failed = executor.submit(pow, 2, 3), executor.submit(sh("exit 3"))
    wait([finished, failed], timeout=20)
    for future in (finished, failed):
        assert not future.kill()
        assert not future.cancel(kill=True)
        assert future.state == "finished"
    assert finished.result() == 8
    assert error_of(failed).returncode == 3


def test_cancel_with_kill_before_a_task_has_started_means_that_it_never_does(
    new_executor: Callable[..., HPCExecutor], gate: Gate, tmp_path: Path
) -> None:
    executor = new_executor(1)
    outcome(executor.submit(time.sleep, 0.05))  # of such as this one is sent in advance
    held = executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals(1)
    rest = [executor.submit(announce, tmp_path / "started") for _ in range(20)]
    wait_until(lambda: rest[0].state == "sent")
    assert rest[-1].state == "pending"
    assert [future.cancel(kill=True) for future in rest] == [True] * 20
    assert [future.cancelled() for future in rest] == [True] * 20
    gate.open()
    outcome(held)
    check_works(executor)
    assert announced(tmp_path / "started") == []


@pytest.mark.parametrize("harder", [{"signal": signal.SIGKILL}, {"grace": 0}], ids=str)
def test_a_second_kill_may_be_harder_than_the_first(executor: HPCExecutor, gate: Gate, harder: dict[str, Any]) -> None:
    """Who has asked politely, with much patience, may lose it."""
    future = executor.submit(sh('trap "" TERM; echo $$ > "$0"; exec sleep 600', gate.paths[0]))
    [pid] = gate.wait_arrivals(1)
    assert future.kill(grace=600)
    try:
        assert future.kill(**harder)
        assert isinstance(future.exception(timeout=0.5), TaskKilled)
    finally:
        if not future.done():
            os.killpg(pid, signal.SIGKILL)
        wait([future], timeout=20)


@pytest.mark.parametrize("wrong", [{"signal": 999}, {"grace": "1s or so"}, {"grace": float("inf")}], ids=str)
def test_a_kill_that_makes_no_sense_is_refused_and_harms_nobody(
    new_executor: Callable[..., HPCExecutor], gate: Gate, wrong: dict[str, Any]
) -> None:
    executor = new_executor(2)
    victim, neighbour = (executor.submit(pass_gate, *gate.paths) for _ in range(2))
    gate.wait_arrivals(2)
    try:
        with pytest.raises((TypeError, ValueError)):
            victim.kill(**wrong)
    finally:
        gate.open_wide()
        wait([victim, neighbour], timeout=20)
    assert [victim.attempt, neighbour.attempt] == [1, 1]


def test_a_limit_of_many_days_is_a_limit_like_any_other(new_executor: Callable[..., HPCExecutor], gate: Gate) -> None:
    """Clusters have queues of thirty days and more."""
    executor = new_executor(1)
    future = executor.options(time_limit="30-00:00:00", crash_limit=0).submit(Program(["head", "-c1", gate.paths[1]]))
    wait_until(lambda: future.done() or future.running())
    gate.open()
    assert outcome(future).stdout == "."


def test_an_executor_whose_grace_is_many_days_shuts_down_without_a_word(
    new_executor: Callable[..., HPCExecutor], caplog: pytest.LogCaptureFixture
) -> None:
    executor = new_executor(1, kill_grace="30-00:00:00")
    check_works(executor)
    executor.shutdown()
    assert [record.getMessage() for record in caplog.records] == []
