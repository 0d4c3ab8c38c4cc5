"""The executor contract from construction to shutdown, the end of the interpreter, and other processes.

As test_executor_contract.py; no executor is shared here, so that each test is seen to leave nothing behind.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
import traceback
import warnings
import weakref
from concurrent.futures import BrokenExecutor, CancelledError, Executor, as_completed, wait
from functools import partial

import cloudpickle
import contract_tasks as tasks
import pytest
from contract_tasks import add, pass_gate, pass_gate_and_note

ours = pytest.mark.parametrize("kind", ["fresh", pytest.param("reused", marks=pytest.mark.shared)], indirect=True)

CREATE = {
    "threads": "from concurrent.futures import ThreadPoolExecutor as create",
    "fresh": "from executor import HPCExecutor as create",
    "reused": "from functools import partial; from executor import HPCExecutor; "
    "create = partial(HPCExecutor, max_tasks_per_child=None)",
}


# ---- construction


def test_it_is_an_executor(make):
    assert isinstance(make(1), Executor)


@pytest.mark.parametrize("number", [0, -1])
def test_fewer_than_one_worker_is_refused(create, number):
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        create(number)


def test_an_initializer_that_cannot_be_called_is_refused(create):
    with pytest.raises(TypeError, match="initializer must be a callable"):
        create(1, initializer="not callable")


@ours
@pytest.mark.parametrize(("number", "error"), [(0, ValueError), (-3, ValueError), ("1", TypeError), (1.5, TypeError)])
def test_a_senseless_max_tasks_per_child_is_refused(create, number, error):
    with pytest.raises(error, match="max_tasks_per_child"):
        create(1, max_tasks_per_child=number)


@ours
def test_the_arguments_have_the_order_of_the_standard_library(make):
    executor = make(1, None, tasks.greet, ("hello",))
    assert executor.submit(tasks.greeted).result() == "hello"


def test_as_many_tasks_as_workers_run_at_once(make, gate, tmp_path):
    executor, note = make(3), tmp_path / "started"
    futures = [executor.submit(pass_gate_and_note, str(note), *gate.paths, number) for number in range(4)]
    gate.wait_arrivals(3)
    assert len(note.read_text().split()) == 3
    gate.open()
    gate.wait_arrivals(1)
    gate.open(3)
    assert [future.result() for future in futures] == [0, 1, 2, 3]


def test_one_worker_runs_tasks_in_the_order_of_submission(make, tmp_path):
    executor = make(1)
    for number in range(20):
        executor.submit(tasks.append_line, str(tmp_path / "order"), number)
    executor.shutdown()
    assert (tmp_path / "order").read_text().split() == [str(number) for number in range(20)]


def test_the_initializer_runs_before_the_first_task(make):
    executor = make(2, initializer=tasks.greet, initargs=("hello",))
    assert list(executor.map(lambda _: tasks.greeted(), range(4))) == ["hello"] * 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_initializer_that_fails_breaks_the_executor(make):
    executor = make(1, initializer=tasks.refuse)
    with pytest.raises(BrokenExecutor):
        executor.submit(add, 1, 2).result()
    with pytest.raises(BrokenExecutor):
        executor.submit(add, 1, 2)


# ---- cancel


def test_a_pending_task_can_be_cancelled_and_never_runs(make, gate, tmp_path):
    executor = make(1)
    running = executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals(1)
    futures = [executor.submit(tasks.append_line, str(tmp_path / "ran"), number) for number in range(20)]
    assert futures[-1].cancel()
    assert futures[-1].cancel()
    assert futures[-1].cancelled()
    assert futures[-1].done()
    with pytest.raises(CancelledError):
        futures[-1].result()
    with pytest.raises(CancelledError):
        futures[-1].exception()
    gate.open()
    executor.shutdown()
    assert running.result() is None
    assert (tmp_path / "ran").read_text().split() == [str(number) for number in range(19)]


def test_a_running_task_cannot_be_cancelled(make, gate, wait_until):
    future = make(1).submit(pass_gate, *gate.paths, "undisturbed")
    gate.wait_arrivals(1)
    wait_until(future.running)
    assert not future.cancel()
    gate.open()
    assert future.result() == "undisturbed"


def test_a_finished_task_cannot_be_cancelled(make):
    future = make(1).submit(add, 1, 2)
    assert future.result() == 3
    assert not future.cancel()
    assert future.result() == 3


def test_a_cancelled_future_is_done_for_wait_and_as_completed(make, gate):
    executor = make(1)
    running = executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals(1)
    futures = [executor.submit(add, number, 0) for number in range(20)]
    assert futures[-1].cancel()
    gate.open()
    done, not_done = wait([running, *futures])
    assert (len(done), len(not_done)) == (21, 0)
    assert set(as_completed(futures)) == set(futures)


def test_a_future_cancelled_at_any_moment_is_either_cancelled_or_has_its_result(make):
    executor = make(2)
    futures = [executor.submit(add, number, 0) for number in range(100)]
    accepted = [future.cancel() for future in futures]
    wait(futures)
    for number, future in enumerate(futures):
        assert future.cancelled() == accepted[number]
        assert future.cancelled() or future.result() == number


# ---- shutdown


def test_the_with_block_waits_for_all_tasks(make, gate):
    with make(2) as executor:
        futures = [executor.submit(pass_gate, *gate.paths, number) for number in range(6)]
        gate.open(6)
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == [0, 1, 2, 3, 4, 5]


def test_the_with_block_lets_an_exception_out_after_its_tasks_have_finished(make):
    with pytest.raises(LookupError, match="of the block"), make(1) as executor:
        future = executor.submit(add, 1, 2)
        raise LookupError("of the block")
    assert future.done()
    with pytest.raises(RuntimeError):
        executor.submit(add, 1, 2)


def test_submit_after_shutdown_is_refused(make):
    executor = make(1)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(add, 1, 2)


def test_an_unused_executor_can_be_shut_down(make):
    make(1).shutdown()


def test_shutdown_may_be_repeated(make):
    executor = make(1)
    future = executor.submit(add, 1, 2)
    executor.shutdown(wait=False)
    executor.shutdown(True)
    executor.shutdown(wait=True, cancel_futures=True)
    assert future.result() == 3


def test_cancel_futures_is_given_by_name_only(make):
    executor = make(1)
    with pytest.raises(TypeError):
        executor.shutdown(True, True)
    assert executor.submit(add, 1, 2).result() == 3


def test_eight_threads_may_shut_down_at_once(make, gate):
    executor = make(2)
    futures = [executor.submit(pass_gate, *gate.paths, number) for number in range(4)]
    start, unfinished = threading.Barrier(9), []

    def end():
        start.wait()
        executor.shutdown(wait=True)
        unfinished.extend(future for future in futures if not future.done())

    threads = [threading.Thread(target=end, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    start.wait()
    gate.open(4)
    for thread in threads:
        thread.join()
    assert unfinished == []
    assert [future.result() for future in futures] == [0, 1, 2, 3]


def test_shutdown_without_waiting_still_runs_what_was_submitted(make, gate):
    executor = make(1)
    futures = [executor.submit(pass_gate, *gate.paths, number) for number in range(4)]
    gate.wait_arrivals(1)
    executor.shutdown(wait=False)
    gate.open(4)
    assert [future.result() for future in futures] == [0, 1, 2, 3]


def test_shutdown_can_cancel_what_has_not_started(make, gate):
    executor = make(1)
    futures = [executor.submit(pass_gate, *gate.paths, number) for number in range(40)]
    gate.wait_arrivals(1)
    futures[-1].add_done_callback(lambda _: gate.open_wide())  # when it has been cancelled
    executor.shutdown(wait=True, cancel_futures=True)
    assert all(future.done() for future in futures)
    assert futures[0].result() == 0
    assert futures[-1].cancelled()


@ours
@pytest.mark.parametrize("wait_first", [True, False])
def test_futures_cancelled_by_shutdown_are_done_for_wait_and_as_completed(make, gate, wait_first):
    """The standard library never notifies them, and ``wait`` hangs (python/cpython#109934, #136655)."""
    executor = make(1)
    futures = [executor.submit(pass_gate, *gate.paths, number) for number in range(10)]
    gate.wait_arrivals(1)
    futures[-1].add_done_callback(lambda _: gate.open_wide())
    executor.shutdown(wait=wait_first, cancel_futures=True)
    assert wait(futures) == (set(futures), set())
    assert set(as_completed(futures)) == set(futures)
    assert futures[-1].cancelled()


def test_a_submit_that_races_with_shutdown_is_refused_or_ends(make, wait_until):
    executor = make(2)
    futures, refused, start = [], [], threading.Barrier(9)

    def submit_until_refused():
        start.wait()
        try:
            for number in range(1000):
                futures.append(executor.submit(add, number, 0))
        except RuntimeError as error:
            refused.append(error)

    threads = [threading.Thread(target=submit_until_refused, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    start.wait()
    executor.shutdown(wait=True, cancel_futures=True)
    for thread in threads:
        thread.join()
    assert len(refused) == 8
    wait_until(lambda: all(future.done() for future in futures), seconds=60)


def test_a_dropped_executor_finishes_its_work_and_ends(create, gate, wait_until):
    executor = create(1)
    dropped = weakref.ref(executor)
    futures = [executor.submit(pass_gate, *gate.paths, number) for number in range(4)]
    del executor
    gc.collect()
    gate.open(4)
    assert [future.result() for future in futures] == [0, 1, 2, 3]
    wait_until(lambda: gc.collect() >= 0 and dropped() is None, what=lambda: "something still refers to the executor")


def test_a_dropped_executor_finishes_its_map(create, gate):
    results = create(1).map(partial(pass_gate, *gate.paths), range(4))
    gc.collect()
    gate.open(4)
    assert list(results) == [0, 1, 2, 3]


def test_an_executor_dropped_unused_leaves_nothing(create):
    create(1)


def test_an_executor_dropped_after_its_shutdown_touches_no_file_of_others(create, tmp_path):
    """It wrote to the number of a descriptor that it had closed, and that was a file of the user's by then."""
    executor = create(1)
    assert executor.submit(add, 1, 2).result() == 3
    executor.shutdown()
    files = [open(tmp_path / str(number), "wb") for number in range(40)]  # noqa: SIM115  # they take all free numbers
    del executor
    gc.collect()
    for file in files:
        file.close()
    assert {(tmp_path / str(number)).read_bytes() for number in range(40)} == {b""}


# ---- the end of the interpreter

EXIT = """
import sys
from pathlib import Path
{create}

def write(path, text):
    Path(path).write_text(text)

if __name__ == "__main__":
    executor = create(1)
    {body}
"""


@pytest.mark.parametrize(
    "body",
    [
        "executor.submit(write, sys.argv[1], 'written')",
        "executor.submit(write, sys.argv[1], 'written'); executor.shutdown(wait=False)",
        "executor.submit(write, sys.argv[1], 'written'); del executor",
        "executor.submit(write, sys.argv[1], 'no'); executor.submit(write, sys.argv[1], 'written'); sys.exit(0)",
    ],
)
def test_an_interpreter_that_ends_without_shutdown_finishes_its_tasks(run_script, tmp_path, kind, body):
    run = run_script(EXIT.format(create=CREATE[kind], body=body), str(tmp_path / "result"))
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert (tmp_path / "result").read_text() == "written"


def test_an_interpreter_that_ends_at_once_ends_quietly(run_script, kind):
    run = run_script(EXIT.format(create=CREATE[kind], body="pass"))
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_the_exit_status_is_that_of_the_script(run_script, tmp_path, kind):
    body = "executor.submit(write, sys.argv[1], 'written'); sys.exit(3)"
    run = run_script(EXIT.format(create=CREATE[kind], body=body), str(tmp_path / "result"))
    assert (run.returncode, run.stdout, run.stderr) == (3, "", "")
    assert (tmp_path / "result").read_text() == "written"


@pytest.mark.parametrize("before", ["executor.submit(int).result()", "pass"])
def test_submit_at_exit_is_refused(run_script, kind, before):
    body = f"import atexit; {before}; atexit.register(executor.submit, int)"
    run = run_script(EXIT.format(create=CREATE[kind], body=body))
    assert "RuntimeError: cannot schedule new futures after" in run.stderr


PRINT = """
import os
{create}

if __name__ == "__main__":
    executor = create(2)
    for number in range(100):
        executor.submit(os.write, 1, b"line %d\\n" % number)
"""


@ours
def test_all_that_tasks_print_is_printed(run_script, kind):
    run = run_script(PRINT.format(create=CREATE[kind]))
    assert (run.returncode, run.stderr) == (0, "")
    assert sorted(run.stdout.splitlines()) == sorted(f"line {number}" for number in range(100))


# ---- other processes


@ours
@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_an_executor_refuses_to_be_pickled(make, dumps):
    with pytest.raises(TypeError, match="HPCExecutor"):
        dumps(make(1))


@ours
def test_a_task_that_captures_its_executor_is_told_so(make):
    executor = make(1)
    error = executor.submit(lambda: executor.submit(add, 1, 2)).exception()
    assert "HPCExecutor" in "".join(traceback.format_exception(error))
    assert executor.submit(add, 1, 2).result() == 3


def ask_a_forked_child(question):
    """The text of what ``question()`` raises in a forked child, or that it raised nothing."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads, which is what is tested here
        pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)
        try:
            os.write(write, f"returned {question()!r}".encode())
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as answer:
        text = answer.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return text


@ours
def test_a_forked_child_is_refused_and_its_parent_goes_on(make, gate):
    executor = make(1)
    future = executor.submit(pass_gate, *gate.paths, "undisturbed")
    gate.wait_arrivals(1)
    assert ask_a_forked_child(lambda: executor.submit(add, 1, 2)).startswith("RuntimeError: ")
    assert ask_a_forked_child(lambda: list(executor.map(tasks.echo, [1]))).startswith("RuntimeError: ")
    gate.open()
    assert future.result() == "undisturbed"
    assert executor.submit(add, 1, 2).result() == 3


@ours
def test_a_forked_child_is_refused_though_the_executor_was_never_used(make):
    executor = make(1)
    assert ask_a_forked_child(lambda: executor.submit(add, 1, 2)).startswith("RuntimeError: ")
    assert executor.submit(add, 1, 2).result() == 3


@ours
def test_shutdown_in_a_forked_child_does_not_hang_and_leaves_the_parent_alone(make):
    executor = make(1)
    assert executor.submit(add, 1, 2).result() == 3
    answer = ask_a_forked_child(executor.shutdown)
    assert answer == "returned None" or answer.startswith("RuntimeError: ")
    assert executor.submit(add, 1, 2).result() == 3


FORK = """
import os, signal, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
{create}

if __name__ == "__main__":
    with create(1) as executor:
        assert executor.submit(pow, 2, 3).result() == 8
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            sys.exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        print(executor.submit(pow, 2, 5).result())
"""


@ours
def test_a_forked_child_that_ends_as_usual_leaves_the_parent_alone(run_script, kind):
    run = run_script(FORK.format(create=CREATE[kind]))
    assert (run.returncode, run.stdout, run.stderr) == (0, "0\n32\n", "")
