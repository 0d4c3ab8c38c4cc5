"""The story that a future tells: its fields and its states, for calls and for programs, from submit to end."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import CancelledError, Future, wait

import cloudpickle
import psutil
import pytest

from executor import (
    CAPTURE,
    Program,
    ProgramFailed,
    ProgramNotStarted,
    TaskDied,
    TaskFuture,
    TaskKilled,
    TaskTimeout,
    Usage,
)

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.shared

HOST = socket.gethostname()


def pass_gate(arrivals, tokens, value=None):
    """Say by its pid that the task has started, wait for a token, return ``value``. See ``Gate`` in conftest.py."""
    with open(arrivals, "wb", buffering=0) as entry:
        entry.write(b"%d\n" % os.getpid())
    with open(tokens, "rb", buffering=0) as gate:
        gate.read(1)
    return value


def gate_program(gate, then="true"):
    """The same as a program."""
    return Program(["sh", "-c", 'echo $$ > "$0"; read token < "$1"; ' + then, *gate.paths])


def talk():
    print("to stdout")
    print("to stderr", file=sys.stderr)
    return os.getpid()


def capturing(executor, **options):
    return executor.options(stdout=CAPTURE, stderr=CAPTURE, **options)


def story(future):
    """What was measured or happened elsewhere."""
    names = ["attempt", "host", "pid", "started", "ended", "usage", "stdout", "stderr", "returncode", "signal"]
    return {name: getattr(future, name) for name in names}


NO_STORY = {
    "attempt": 0, "host": None, "pid": None, "started": None, "ended": None, "usage": None, "stdout": "", "stderr": "",
    "returncode": None, "signal": None,
}  # fmt: skip


@pytest.fixture(params=[1, None], ids=["fresh", "reused"])
def each_executor(request, make):
    return make(1, max_tasks_per_child=request.param)


# ---- states


def test_a_call_is_pending_or_sent_then_running_then_finished(make, gate, wait_until):
    executor = make(1)
    before = time.time()
    executor.submit(time.sleep, 0.05).result(timeout=20)  # of such as this one is sent in advance
    first = executor.submit(pass_gate, *gate.paths, "value")
    rest = [executor.submit(pass_gate, *gate.paths) for _ in range(50)]
    [pid] = gate.wait_arrivals(1)
    wait_until(lambda: first.state == "running")
    assert first.running()
    assert not first.done()
    assert (first.attempt, first.host, first.pid, first.ended, first.usage) == (1, HOST, pid, None, None)
    assert before <= first.submitted <= first.started + 0.01 <= time.time() + 0.01
    assert rest[0].state == "sent"
    assert rest[-1].state == "pending"
    assert story(rest[-1]) == NO_STORY
    assert [rest[0].running(), rest[0].pid, rest[0].started] == [False, None, None]
    gate.open_wide()
    assert first.result(timeout=20) == "value"
    assert first.state == "finished"
    assert first.pid == pid
    assert first.started <= first.ended <= time.time()
    wait(rest, timeout=20)


def test_a_program_is_running_then_finished(executor, gate, wait_until):
    future = executor.submit(gate_program(gate))
    [pid] = gate.wait_arrivals(1)
    wait_until(lambda: future.state == "running")
    assert (future.attempt, future.host, future.pid, future.returncode, future.ended) == (1, HOST, pid, None, None)
    gate.open()
    os.write(gate._tokens, b"\n")
    assert future.result(timeout=20).returncode == 0
    assert (future.state, future.pid, future.returncode, future.signal) == ("finished", pid, 0, None)
    assert future.submitted <= future.started <= future.ended <= time.time()


def test_a_cancelled_future_has_no_story(make, gate):
    executor = make(1)
    executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals(1)
    rest = [executor.submit(pow, 2, 3) for _ in range(50)]
    future = rest[-1]
    assert future.cancel()
    assert future.state == "cancelled"
    assert future.cancelled()
    assert future.done()
    assert story(future) == NO_STORY
    with pytest.raises(CancelledError):
        future.result()
    with pytest.raises(CancelledError):
        future.exception()
    gate.open()


def test_a_failed_call_is_finished_and_tells_where_it_ran(each_executor):
    future = capturing(each_executor).submit(divmod, 1, 0)
    assert isinstance(future.exception(timeout=20), ZeroDivisionError)
    assert (future.state, future.attempt, future.host, future.returncode) == ("finished", 1, HOST, None)
    assert future.pid is not None
    assert future.started <= future.ended


def test_an_argument_that_cannot_be_pickled_gives_a_future_without_a_story(executor):
    future = executor.submit(id, threading.Lock())
    assert future.state == "finished"
    assert story(future) == NO_STORY
    assert not future.cancel()
    assert not future.kill()


def test_states_only_go_forward(make):
    """Watched from outside, as fast as possible, over two hundred tasks."""
    executor = make(2, max_tasks_per_child=None)
    order = ["pending", "sent", "running", "finished"]
    futures = [executor.submit(pow, 2, number) for number in range(200)]
    seen = {future: [future.state] for future in futures}
    while not all(future.done() for future in futures):
        for future in futures:
            seen[future].append(future.state)
    for future in futures:
        steps = [order.index(state) for state in seen[future]]
        assert steps == sorted(steps)


def test_a_callback_sees_the_whole_story(each_executor):
    seen = []
    called = threading.Event()

    def look(future):
        seen.append((future.state, future.pid, future.usage is not None, future.ended is not None, future.stdout))
        called.set()

    future = capturing(each_executor).submit(talk)
    future.add_done_callback(look)
    assert called.wait(20)
    assert seen == [("finished", future.result(), True, True, "to stdout\n")]


# ---- fields


def test_a_future_is_a_future_of_the_standard_library_with_a_name_and_a_number(executor):
    futures = [executor.submit(pow, 2, 3), executor.submit(lambda: 1), executor.submit(Program(["/bin/true"]))]
    futures.append(executor.options(name="my own").submit(talk))
    assert all(isinstance(future, Future) and isinstance(future, TaskFuture) for future in futures)
    assert [future.task_id for future in futures] == [1, 2, 3, 4]
    assert [future.name for future in futures][::2] == ["pow", "true"]
    assert "<lambda>" in futures[1].name
    assert futures[3].name == "my own"
    wait(futures)
    assert repr(futures[0]) == "<TaskFuture 1 'pow' finished>"
    failed = executor.submit(int, "x")
    assert isinstance(failed.exception(), ValueError)
    assert repr(failed) == "<TaskFuture 5 'int' finished raised ValueError>"


@pytest.mark.parametrize(("kept", "number"), [(1, 5), (None, 1)])
def test_the_pid_is_that_of_the_process_that_ran_the_task(make, kept, number):
    executor = make(1, max_tasks_per_child=kept)
    futures = [executor.submit(os.getpid) for _ in range(5)]
    pids = [future.result(timeout=20) for future in futures]
    assert [future.pid for future in futures] == pids
    assert len(set(pids)) == number


@pytest.mark.parametrize("of", ["call", "program"])
def test_what_a_task_writes_is_kept_by_stream(each_executor, of):
    task = talk if of == "call" else Program(["sh", "-c", "echo to stdout; echo to stderr >&2"])
    futures = [capturing(each_executor).submit(task) for _ in range(50)]
    wait(futures, timeout=20)
    assert {(future.stdout, future.stderr) for future in futures} == {("to stdout\n", "to stderr\n")}


def test_output_can_be_read_while_the_task_runs(executor, gate, wait_until):
    future = capturing(executor).submit(gate_program(gate, then="echo second"))
    chatty = capturing(executor).submit(Program(["sh", "-c", "echo first; exec sleep 600"]))
    wait_until(lambda: chatty.stdout == "first\n")
    assert chatty.state == "running"
    assert chatty.kill()
    assert isinstance(chatty.exception(timeout=20), TaskKilled)
    assert chatty.stdout == "first\n"
    gate.wait_arrivals(1)
    os.write(gate._tokens, b"\n")
    assert future.result(timeout=20).stdout == future.stdout == "second\n"


def test_of_much_output_beginning_and_end_are_kept(each_executor):
    def flood():
        for number in range(20_000):
            print(number)

    future = capturing(each_executor, output_limit=1000).submit(flood)
    future.result(timeout=20)
    assert future.stdout.startswith("0\n1\n2\n")
    assert future.stdout.endswith("19998\n19999\n")
    assert "bytes" in future.stdout
    assert len(future.stdout) < 1200


def test_the_time_and_memory_that_a_call_used_are_its_own(each_executor):
    def burn(seconds):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    busy, idle = each_executor.submit(burn, 0.2), each_executor.submit(pow, 2, 3)
    busy.result(timeout=20)
    idle.result(timeout=20)
    assert isinstance(busy.usage, Usage)
    assert 0.15 < busy.usage.cpu_time < 2
    assert busy.usage.cpu_time == busy.usage.user + busy.usage.system
    assert idle.usage.cpu_time < 0.1
    assert 2**20 < idle.usage.max_rss < 2**30


def test_a_fresh_call_s_peak_of_memory_is_its_own(executor):
    large, small = (executor.submit(lambda size: len(b"x" * size), size) for size in (300_000_000, 1))
    wait([large, small], timeout=20)
    assert large.usage.max_rss > 280_000_000 > small.usage.max_rss


def test_the_usage_of_a_program_is_its_own(executor):
    future = executor.submit(Program([sys.executable, "-S", "-c", "sum(range(3_000_000)); b'x' * int(1e8)"]))
    future.result(timeout=20)
    assert future.usage.cpu_time > 0.01
    assert future.usage.max_rss > 90_000_000


# ---- how it ended


def test_a_program_that_fails_tells_its_status(executor):
    future = capturing(executor).submit(Program(["sh", "-c", "echo trouble >&2; exit 3"]))
    completed = future.result(timeout=20) if future.exception(timeout=20) is None else future.exception()
    assert completed.returncode == 3
    assert (future.returncode, future.signal, future.stderr, future.state) == (3, None, "trouble\n", "finished")
    checked = capturing(executor).submit(Program(["sh", "-c", "exit 4"], check=True))
    assert isinstance(checked.exception(timeout=20), ProgramFailed)
    assert checked.returncode == 4


def test_a_program_that_is_missing_has_no_process(executor):
    future = executor.submit(Program(["/nowhere/at/all"]))
    assert isinstance(future.exception(timeout=20), ProgramNotStarted)
    assert (future.state, future.pid, future.signal) == ("finished", None, None)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_call_that_a_signal_ends_tells_which(each_executor, gate, number):
    future = capturing(each_executor).submit(pass_gate, *gate.paths)
    [pid] = gate.wait_arrivals(1)
    os.kill(pid, number)
    error = future.exception(timeout=20)
    assert type(error) is TaskDied
    assert (future.returncode, future.signal, future.pid, future.attempt) == (-number, number, pid, 1)
    assert (error.returncode, error.signal, error.exit_code, error.pid) == (-number, number, None, pid)
    assert error.host == HOST


@pytest.mark.parametrize("status", [0, 3])
def test_a_call_that_exits_tells_its_status(each_executor, status):
    future = each_executor.submit(os._exit, status)
    error = future.exception(timeout=20)
    assert type(error) is TaskDied
    assert (future.returncode, future.signal, error.exit_code) == (status, None, status)


@pytest.mark.parametrize("of", ["call", "program"])
def test_a_killed_task_tells_the_signal(each_executor, gate, of):
    future = each_executor.submit(*((pass_gate, *gate.paths) if of == "call" else (gate_program(gate),)))
    gate.wait_arrivals(1)
    assert future.kill()
    error = future.exception(timeout=20)
    assert isinstance(error, TaskKilled)
    assert (future.state, future.signal, error.signal) == ("finished", signal.SIGTERM, signal.SIGTERM)
    assert not future.kill()


@pytest.mark.parametrize("of", ["call", "program"])
def test_a_killed_task_that_ignores_the_signal_is_killed_after_its_grace(each_executor, gate, of):
    def stubborn(*paths):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pass_gate(*paths)

    program = Program(["sh", "-c", 'trap "" TERM; echo $$ > "$0"; while :; do read token < "$1"; done', *gate.paths])
    future = each_executor.submit(*((stubborn, *gate.paths) if of == "call" else (program,)))
    gate.wait_arrivals(1)
    assert future.kill(grace=0.1)
    assert isinstance(future.exception(timeout=20), TaskKilled)
    assert future.signal == signal.SIGKILL


def test_kill_before_it_has_started_means_that_it_never_does(make, gate, tmp_path):
    executor = make(1)
    held = executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals(1)
    rest = [executor.submit((tmp_path / str(number)).touch) for number in range(50)]
    for future in (rest[0], rest[-1]):  # one that was sent, and one that was not
        assert future.kill()
        assert isinstance(future.exception(timeout=20), TaskKilled)
        assert (future.pid, future.started, future.returncode) == (None, None, None)
    gate.open()
    wait([held, *rest], timeout=20)
    assert len(list(tmp_path.glob("[0-9]*"))) == 48


@pytest.mark.parametrize("of", ["call", "program"])
def test_a_task_that_runs_too_long_tells_its_story_too(each_executor, gate, of):
    view = each_executor.options(time_limit=0.2)
    future = view.submit(*((pass_gate, *gate.paths) if of == "call" else (gate_program(gate),)))
    [pid] = gate.wait_arrivals(1)
    error = future.exception(timeout=20)
    assert isinstance(error, TaskTimeout)
    assert error.time_limit == 0.2
    assert (future.pid, future.signal) == (pid, signal.SIGTERM)
    assert 0.15 < future.ended - future.started < 5


# ---- several attempts


def test_a_retried_call_tells_of_its_last_attempt(each_executor, tmp_path):
    """Its output too is that of the last attempt alone."""

    def third_time(path):
        with open(path, "a") as file:
            file.write("x")
            attempt = file.tell()
        print("attempt", attempt)
        if attempt < 3:
            raise LookupError(f"not the third time: {attempt}")
        return os.getpid()

    future = capturing(each_executor, retries=5).submit(third_time, tmp_path / "count")
    assert future.result(timeout=20) == future.pid
    assert (future.attempt, future.stdout) == (3, "attempt 3\n")


def test_retries_that_are_used_up_leave_the_last_error(executor, tmp_path):
    def fail(path):
        with open(path, "a") as file:
            file.write("x")
        raise LookupError("again")

    future = executor.options(retries=2).submit(fail, tmp_path / "count")
    assert isinstance(future.exception(timeout=20), LookupError)
    assert future.attempt == 3
    assert (tmp_path / "count").read_text() == "xxx"


def test_a_program_that_succeeds_is_not_retried(executor, tmp_path):
    future = executor.options(retries=2).submit(Program(["sh", "-c", f"echo x >> {tmp_path}/count"]))
    assert future.result(timeout=20).returncode == 0
    assert (tmp_path / "count").read_text() == "x\n"


def test_a_task_can_tell_its_attempt_and_its_number(executor):
    future = capturing(executor).submit(Program(["sh", "-c", "echo $HPC_TASK_ID $HPC_ATTEMPT"]))
    assert future.result(timeout=20).stdout == f"{future.task_id} 1\n"


def test_a_task_that_is_run_again_begins_a_new_story(make, gate, wait_until):
    """What the first attempt printed, and when it started, is not the second one's."""

    def speak(*paths):
        print("I am", os.getpid(), flush=True)
        return pass_gate(*paths)

    executor = make(1)
    future = capturing(executor).submit(speak, *gate.paths)
    [first] = gate.wait_arrivals(1)
    wait_until(lambda: future.stdout == f"I am {first}\n")
    started = future.started
    os.kill(psutil.Process(first).parent().ppid(), signal.SIGKILL)  # its agent
    [second] = gate.wait_arrivals(1)
    gate.open()
    future.result(timeout=20)
    assert (future.attempt, future.pid, future.stdout) == (2, second, f"I am {second}\n")
    assert future.started > started


def test_a_running_task_that_is_cancelled_does_not_fail_by_its_being_killed() -> None:
    """It was killed before its future was cancelled; if the news of its end was quicker, it had failed instead."""
    future = TaskFuture(1, "task", 0.0)
    future.claim(1, "host")

    class Quick:
        def kill(self, task_id: int, number: int, grace: float | None, /) -> object:
            return future.settle(None, TaskKilled(f"task {task_id}"))

    future._control = Quick()  # type: ignore[assignment]  # of a control, all that is asked for here
    assert future.cancel(kill=True)
    assert future.cancelled()


def test_who_asked_is_told_of_the_end_once_before_the_callbacks() -> None:
    told: list[str] = []
    early, late = TaskFuture(1, "early", 0.0), TaskFuture(2, "late", 0.0)
    for future in (early, late):
        future.add_done_callback(lambda future: told.append(f"callback of {future.name}"))
    early.when_ended(lambda future: told.append(future.name))
    for future in (early, late):
        future.claim(1, "host")
        assert future.settle(3, None)
    late.when_ended(lambda future: told.append(future.name))
    assert told == ["early", "callback of early", "callback of late", "late"]
