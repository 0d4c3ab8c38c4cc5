"""The executor contract, held to by ThreadPoolExecutor, by HPCExecutor with fresh and with reused interpreters.

Where the standard library itself breaks the contract (a falsey exception, a callback that raises SystemExit, ``wait``
after ``cancel_futures``) or has no such notion, the test is for HPCExecutor alone and is marked ``ours``.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import pickle
import signal
import threading
import traceback
import warnings
import weakref
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    as_completed,
    wait,
)
from functools import partial

import cloudpickle
import contract_tasks as tasks
import pytest
from conftest import KINDS, wait_until
from contract_tasks import add, pass_gate

ours = pytest.mark.parametrize("kind", ["fresh", "reused"], indirect=True)

CREATE = {
    "threads": "from concurrent.futures import ThreadPoolExecutor as create",
    "fresh": "from executor import HPCExecutor as create",
    "reused": "from functools import partial; from executor import HPCExecutor; "
    "create = partial(HPCExecutor, max_tasks_per_child=None)",
}


# ---- construction


def test_it_is_an_executor(pool):
    assert isinstance(pool, Executor)


@pytest.mark.parametrize("number", [0, -1])
def test_fewer_than_one_worker_is_refused(kind, number):
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        KINDS[kind](number)


def test_an_initializer_that_cannot_be_called_is_refused(kind):
    with pytest.raises(TypeError, match="initializer must be a callable"):
        KINDS[kind](1, initializer="not callable")


@ours
@pytest.mark.parametrize(("number", "error"), [(0, ValueError), (-3, ValueError), ("1", TypeError), (1.5, TypeError)])
def test_a_senseless_max_tasks_per_child_is_refused(kind, number, error):
    with pytest.raises(error, match="max_tasks_per_child"):
        KINDS[kind](1, max_tasks_per_child=number)


@ours
def test_the_arguments_have_the_order_of_the_standard_library(make):
    executor = make(1, None, tasks.greet, ("hello",))
    assert executor.submit(tasks.greeted).result() == "hello"


def test_as_many_tasks_as_workers_run_at_once(make, gate):
    executor = make(3)
    futures = [executor.submit(pass_gate, *gate.paths, number) for number in range(4)]
    gate.wait_arrivals(3)
    assert gate.count_arrivals() == 0
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


# ---- submit


def test_submit_gives_a_future_that_gets_the_value(pool):
    future = pool.submit(add, 2, y=3)
    assert isinstance(future, Future)
    assert future.result() == 5
    assert future.exception() is None
    assert (future.done(), future.running(), future.cancelled()) == (True, False, False)


def test_no_keyword_is_taken_from_the_function(pool):
    words = {"self": 2, "fn": 3, "timeout": 4, "priority": 5, "cpus": 6, "name": 7, "after": 8, "options": 9}
    assert pool.submit(tasks.capture, 1, **words).result() == ((1,), words)


def test_the_function_is_given_by_position_only(pool):
    with pytest.raises(TypeError):
        pool.submit(fn=tasks.capture, arg=1)
    with pytest.raises(TypeError):
        pool.submit(arg=1)


@pytest.mark.parametrize("value", [None, 0, False, "", (), b"x" * (1 << 20), {"a": [1, 2.5, "three"]}])
def test_arguments_and_results_are_what_they_were(pool, value):
    assert pool.submit(tasks.echo, value).result() == value


def test_closures_and_lambdas_can_be_submitted(pool):
    offset = 40
    assert pool.submit(lambda x: x + offset, 2).result() == 42


@ours
def test_a_task_gets_the_arguments_as_they_were_at_submit(pool):
    argument = list(range(1000))
    future = pool.submit(tasks.length, argument)
    argument.clear()
    assert future.result() == 1000


def test_a_task_may_start_threads(pool):
    assert pool.submit(tasks.in_thread).result() == "from a thread"


def test_a_result_is_waited_for_no_longer_than_its_timeout(pool, gate):
    future = pool.submit(pass_gate, *gate.paths, "late")
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0.01)
    gate.open()
    assert future.result() == "late"


def test_a_future_says_that_its_task_is_running(pool, gate):
    future = pool.submit(pass_gate, *gate.paths)
    gate.wait_arrivals(1)
    wait_until(future.running)
    assert not future.done()
    gate.open()
    future.result()
    assert not future.running()


def test_fifty_threads_submit_at_once(pool):
    results = [[] for _ in range(50)]
    start = threading.Barrier(50)

    def submit_four(mine, number):
        start.wait()
        futures = [pool.submit(add, number, digit) for digit in range(4)]
        mine.extend(future.result() for future in futures)

    threads = [threading.Thread(target=submit_four, args=(mine, n), daemon=True) for n, mine in enumerate(results)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[number, number + 1, number + 2, number + 3] for number in range(50)]


# ---- what a task raises


def test_an_exception_comes_back_as_itself(pool):
    future = pool.submit(tasks.raise_, ValueError("what", 7))
    with pytest.raises(ValueError) as caught:
        future.result()
    assert caught.value.args == ("what", 7)
    assert future.exception() is caught.value


@ours
def test_an_exception_carries_the_traceback_of_its_task(pool):
    error = pool.submit(divmod, 1, 0).exception()
    assert isinstance(error, ZeroDivisionError)
    error = pool.submit(tasks.raise_group).exception()
    assert 'raise ExceptionGroup("two at once"' in "".join(traceback.format_exception(error))
    assert 'raise ExceptionGroup("two at once"' in str(error.__cause__)


@ours
def test_a_falsey_exception_is_still_raised(pool):
    """The standard library asks ``if self._exception`` and returns None instead (python/cpython#132063)."""
    future = pool.submit(tasks.raise_falsey)
    with pytest.raises(tasks.FalseyError, match="still an error"):
        future.result()
    assert isinstance(future.exception(), tasks.FalseyError)


@ours
def test_a_falsey_exception_is_still_raised_by_map(pool):
    with pytest.raises(tasks.FalseyError):
        list(pool.map(tasks.raise_, [tasks.FalseyError("still an error")]))


def test_an_exception_group_comes_back_whole(pool):
    with pytest.raises(ExceptionGroup, match="two at once") as caught:
        pool.submit(tasks.raise_group).result()
    assert [type(error) for error in caught.value.exceptions] == [ValueError, TypeError]


def test_the_notes_of_an_exception_come_back(pool):
    error = pool.submit(tasks.raise_with_notes).exception()
    assert error.__notes__ == ["measured on a Tuesday"]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt("now"), GeneratorExit("here"), StopIteration(4)])
def test_an_exception_that_means_something_elsewhere_is_just_raised(pool, error):
    future = pool.submit(tasks.raise_, error)
    with pytest.raises(type(error)) as caught:
        future.result()
    assert caught.value.args == error.args
    assert pool.submit(add, 1, 2).result() == 3


@ours
def test_an_exception_that_cannot_be_rebuilt_hits_only_its_own_future(make, gate):
    executor = make(2)
    neighbour = executor.submit(pass_gate, *gate.paths, "unharmed")
    error = executor.submit(tasks.raise_two_arguments).exception()
    assert "TwoArgumentsError" in "".join(traceback.format_exception(error))
    assert "7: of nine" in "".join(traceback.format_exception(error))
    gate.open()
    assert neighbour.result() == "unharmed"
    assert executor.submit(add, 1, 2).result() == 3


@ours
@pytest.mark.parametrize("argument", [threading.Lock(), tasks.FailsToPickle(), tasks.ExitsAtPickle()])
def test_an_argument_that_cannot_be_pickled_hits_only_its_own_future(make, argument):
    executor = make(1)
    future = executor.submit(tasks.echo, argument)
    assert isinstance(future.exception(), TypeError | ValueError | SystemExit | pickle.PicklingError)
    assert executor.submit(add, 1, 2).result() == 3


# ---- map


def test_map_gives_the_results_in_order(pool):
    assert list(pool.map(pow, range(10), range(10))) == list(map(pow, range(10), range(10)))


def test_map_gives_the_results_in_order_though_the_first_is_the_last_to_finish(pool, gate):
    paths = gate.paths
    results = pool.map(lambda number: number or pass_gate(*paths, 0), range(6))
    gate.wait_arrivals(1)
    assert pool.submit(add, 1, 2).result() == 3
    gate.open()
    assert list(results) == [0, 1, 2, 3, 4, 5]


def test_map_stops_at_the_shortest_iterable(pool):
    assert list(pool.map(add, [1, 2, 3], [10, 20])) == [11, 22]
    assert list(pool.map(add, [], [10, 20])) == []
    assert list(pool.map(add)) == []


def test_map_gives_an_iterator(pool):
    results = pool.map(add, [1], [2])
    assert iter(results) is results
    assert next(results) == 3
    assert next(results, "over") == "over"


def test_map_takes_all_inputs_at_once(pool):
    inputs = iter(range(5))
    results = pool.map(tasks.echo, inputs)
    assert next(inputs, "nothing left") == "nothing left"
    assert list(results) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("chunksize", [1, 6, 40, 50])
def test_chunks_do_not_change_what_map_gives(pool, chunksize):
    results = pool.map(pow, range(20), range(20), chunksize=chunksize)
    assert list(results) == list(map(pow, range(20), range(20)))


@ours
@pytest.mark.parametrize("chunksize", [0, -1])
def test_a_chunk_has_at_least_one_element(pool, chunksize):
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        pool.map(tasks.echo, range(4), chunksize=chunksize)


@ours
def test_a_chunk_runs_in_one_task(make):
    executor = make(1)
    pids = {pid for pid, _ in executor.map(_count, range(6), chunksize=3)}
    assert len(pids) <= 2


def _count(_):
    return tasks.count_calls()


def test_map_raises_the_exception_at_its_place_and_then_ends(pool):
    results = pool.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert next(results) == (0, 1)
    assert next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert next(results, "over") == "over"


@ours
def test_map_raises_the_exception_of_a_chunk(pool):
    with pytest.raises(ZeroDivisionError):
        list(pool.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5], chunksize=2))


def test_map_raises_what_its_input_raises(pool):
    def inputs():
        yield 1
        raise LookupError("no second element")

    with pytest.raises(LookupError, match="no second element"):
        list(pool.map(tasks.echo, inputs()))
    assert pool.submit(add, 1, 2).result() == 3


def test_the_timeout_of_map_counts_from_the_call(pool, gate):
    results = pool.map(partial(pass_gate, *gate.paths), range(3), timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    assert next(results, "over") == "over"
    gate.open(3)
    assert list(pool.map(tasks.echo, range(3), timeout=60)) == [0, 1, 2]


def test_an_abandoned_map_cancels_what_has_not_started(make, gate):
    executor = make(1)
    results = executor.map(partial(pass_gate, *gate.paths), range(40))
    gate.open()
    assert next(results) == 0
    del results
    gc.collect()
    gate.open_wide()
    executor.shutdown()
    assert gate.count_arrivals() < 10


def test_a_closed_map_cancels_what_has_not_started(make, gate):
    executor = make(1)
    results = executor.map(partial(pass_gate, *gate.paths), range(40))
    gate.open()
    assert next(results) == 0
    results.close()
    gate.open_wide()
    executor.shutdown()
    assert gate.count_arrivals() < 10


def test_map_after_shutdown_is_refused(make):
    executor = make(1)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(tasks.echo, range(3))


# ---- map with a bounded buffer, as of Python 3.14


@ours
@pytest.mark.parametrize("size", ["foo", 2.0])
def test_the_size_of_the_buffer_is_an_integer(pool, size):
    with pytest.raises(TypeError, match="buffersize must be an integer or None"):
        pool.map(tasks.echo, range(4), buffersize=size)


@ours
@pytest.mark.parametrize("size", [0, -1])
def test_the_size_of_the_buffer_is_positive(pool, size):
    with pytest.raises(ValueError, match="buffersize must be None or > 0"):
        pool.map(tasks.echo, range(4), buffersize=size)


@ours
@pytest.mark.parametrize("size", [None, 1, 2, 4, 8])
def test_a_buffer_does_not_change_what_map_gives(pool, size):
    assert list(pool.map(add, range(4), itertools.count(10), buffersize=size)) == [10, 12, 14, 16]
    assert list(pool.map(tasks.echo, [], buffersize=size)) == []
    assert list(pool.map(tasks.echo, buffersize=size)) == []


@ours
def test_a_buffer_reads_an_endless_input_only_as_results_are_taken(pool):
    inputs = itertools.count()
    results = pool.map(tasks.echo, inputs, buffersize=2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    results.close()
    assert next(inputs) <= 5 + 2


@ours
def test_a_full_buffer_takes_no_more_input(make):
    executor = make(2)
    inputs = iter(range(4))
    results = executor.map(tasks.echo, inputs, buffersize=2)
    executor.shutdown(wait=True)
    assert next(inputs) == 2
    del results


@ours
def test_a_buffer_counts_chunks(make):
    executor = make(2)
    inputs = iter(range(40))
    results = executor.map(tasks.echo, inputs, chunksize=3, buffersize=2)
    executor.shutdown(wait=True)
    assert next(inputs) == 6
    del results


@ours
def test_an_abandoned_buffer_cancels_what_has_not_started(make, gate):
    executor = make(1)
    results = executor.map(partial(pass_gate, *gate.paths), itertools.count(), buffersize=20)
    gate.open()
    assert next(results) == 0
    del results
    gc.collect()
    gate.open_wide()
    executor.shutdown()
    assert gate.count_arrivals() < 10


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


def test_a_running_task_cannot_be_cancelled(pool, gate):
    future = pool.submit(pass_gate, *gate.paths, "undisturbed")
    gate.wait_arrivals(1)
    wait_until(future.running)
    assert not future.cancel()
    gate.open()
    assert future.result() == "undisturbed"


def test_a_finished_task_cannot_be_cancelled(pool):
    future = pool.submit(add, 1, 2)
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


# ---- callbacks


def test_a_callback_is_called_once_with_the_finished_future(pool, gate):
    calls, called = [], threading.Event()

    def note(future):
        calls.append((future, future.done(), future.result()))
        called.set()

    future = pool.submit(pass_gate, *gate.paths, "value")
    future.add_done_callback(note)
    gate.open()
    assert called.wait(60)
    assert calls == [(future, True, "value")]


def test_callbacks_are_called_in_the_order_in_which_they_were_added(pool, gate):
    calls, called = [], threading.Event()
    future = pool.submit(pass_gate, *gate.paths)
    for number in range(5):
        future.add_done_callback(lambda _, number=number: calls.append(number))
    future.add_done_callback(lambda _: called.set())
    gate.open()
    assert called.wait(60)
    assert calls == [0, 1, 2, 3, 4]


def test_a_callback_added_late_is_called_at_once(pool):
    future = pool.submit(add, 1, 2)
    future.result()
    calls = []
    future.add_done_callback(calls.append)
    assert calls == [future]


def test_a_cancelled_future_calls_back(make, gate):
    executor = make(1)
    executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals(1)
    futures = [executor.submit(add, 1, 2) for _ in range(20)]
    calls = []
    futures[-1].add_done_callback(calls.append)
    assert futures[-1].cancel()
    assert calls == [futures[-1]]
    gate.open()
    executor.shutdown()
    assert calls == [futures[-1]]


def test_a_callback_that_raises_does_not_stop_the_others(pool, gate, caplog):
    called = threading.Event()
    future = pool.submit(pass_gate, *gate.paths, "value")
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(lambda _: called.set())
    gate.open()
    assert called.wait(60)
    assert future.result() == "value"
    assert "ZeroDivisionError" in caplog.text


@ours
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_callback_that_raises_to_end_a_thread_does_not_end_ours(make, gate, error):
    """In the standard library every later future then hangs: the exception ends the thread that sets results."""
    executor = make(1)
    future = executor.submit(pass_gate, *gate.paths, "value")
    future.add_done_callback(lambda _: tasks.raise_(error("in a callback")))
    gate.open()
    assert future.result() == "value"
    assert executor.submit(add, 1, 2).result() == 3


def test_a_callback_may_submit(pool):
    results, finished = [], threading.Event()

    def go_on(future):
        results.append(future.result())
        if len(results) < 20:
            pool.submit(add, results[-1], 1).add_done_callback(go_on)
        else:
            finished.set()

    pool.submit(add, 0, 0).add_done_callback(go_on)
    assert finished.wait(60)
    assert results == list(range(20))


def test_a_callback_may_wait_for_nothing_and_shut_down(make, gate):
    executor = make(1)
    returned = threading.Event()

    def end(_):
        executor.shutdown(wait=False)
        returned.set()

    first, second = executor.submit(pass_gate, *gate.paths), executor.submit(add, 1, 2)
    first.add_done_callback(end)
    gate.open()
    assert returned.wait(60)
    assert second.result() == 3
    with pytest.raises(RuntimeError):
        executor.submit(add, 1, 2)


@ours
def test_a_callback_that_shuts_down_and_waits_does_not_wait_for_itself(make, gate):
    executor = make(1)
    returned = threading.Event()

    def end(_):
        executor.shutdown(wait=True)
        returned.set()

    first, second = executor.submit(pass_gate, *gate.paths), executor.submit(pass_gate, *gate.paths, "finished")
    first.add_done_callback(end)
    gate.open(2)
    assert returned.wait(60)
    assert second.result() == "finished"
    executor.shutdown(wait=True)


def test_submit_in_a_callback_after_shutdown_is_refused(make, gate):
    executor = make(1)
    refused = []

    def try_to_submit(_):
        with pytest.raises(RuntimeError) as caught:
            executor.submit(add, 1, 2)
        refused.append(str(caught.value))

    future = executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals(1)
    future.add_done_callback(try_to_submit)
    executor.shutdown(wait=False)
    gate.open()
    executor.shutdown(wait=True)
    assert len(refused) == 1
    assert "cannot schedule new futures after shutdown" in refused[0]


# ---- wait and as_completed


def test_as_completed_gives_what_finishes_first(pool, gate):
    slow, quick = pool.submit(pass_gate, *gate.paths), pool.submit(add, 1, 2)
    finished = as_completed([slow, quick, slow])
    assert next(finished) is quick
    gate.open()
    assert list(finished) == [slow]


def test_as_completed_has_a_timeout(pool, gate):
    future = pool.submit(pass_gate, *gate.paths)
    with pytest.raises(TimeoutError, match="1 .of 1. futures unfinished"):
        list(as_completed([future], timeout=0.01))
    gate.open()
    assert list(as_completed([future], timeout=60)) == [future]


def test_wait_returns_at_the_first_result(pool, gate):
    slow, quick = pool.submit(pass_gate, *gate.paths), pool.submit(add, 1, 2)
    assert wait([slow, quick], return_when=FIRST_COMPLETED) == ({quick}, {slow})
    gate.open()
    assert wait([slow, quick], return_when=ALL_COMPLETED) == ({slow, quick}, set())


def test_wait_returns_at_the_first_exception(pool, gate):
    slow, wrong = pool.submit(pass_gate, *gate.paths), pool.submit(divmod, 1, 0)
    assert wait([slow, wrong], return_when=FIRST_EXCEPTION) == ({wrong}, {slow})
    gate.open()
    slow.result()


def test_wait_has_a_timeout(pool, gate):
    future = pool.submit(pass_gate, *gate.paths)
    assert wait([future], timeout=0.01) == (set(), {future})
    gate.open()
    assert wait([future], timeout=60) == ({future}, set())


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
    gate.open(40)
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
    if wait_first:
        gate.open(10)
    executor.shutdown(wait=wait_first, cancel_futures=True)
    gate.open(10)
    assert wait(futures) == (set(futures), set())
    assert set(as_completed(futures)) == set(futures)
    assert futures[-1].cancelled()


def test_a_submit_that_races_with_shutdown_is_refused_or_ends(make):
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


def test_a_dropped_executor_finishes_its_work_and_ends(create, gate):
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


# ---- asyncio


def test_asyncio_can_wait_for_a_task(pool):
    async def main():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(pool, add, number, 1) for number in range(5)))

    assert asyncio.run(main()) == [1, 2, 3, 4, 5]


def test_asyncio_gets_the_exception_of_a_task(pool):
    async def main():
        await asyncio.get_running_loop().run_in_executor(pool, divmod, 1, 0)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())


def test_asyncio_can_cancel_a_pending_task(make, gate):
    executor = make(1)
    executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals(1)
    futures = [executor.submit(add, 1, 2) for _ in range(20)]

    async def main():
        task = asyncio.wrap_future(futures[-1])
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(main())
    assert futures[-1].cancelled()
    gate.open()


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


def test_submit_at_exit_is_refused(run_script, kind):
    body = "import atexit; executor.submit(int).result(); atexit.register(executor.submit, int)"
    run = run_script(EXIT.format(create=CREATE[kind], body=body))
    assert "RuntimeError: cannot schedule new futures after" in run.stderr


# ---- other processes


@ours
@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_an_executor_refuses_to_be_pickled(pool, dumps):
    with pytest.raises(TypeError, match="HPCExecutor"):
        dumps(pool)


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
