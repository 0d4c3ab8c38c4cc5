"""The executor contract, held to by ThreadPoolExecutor, by HPCExecutor with fresh and with reused interpreters.

Where the standard library itself breaks the contract (a falsey exception, a callback that raises SystemExit) or has no
such notion, the test is for HPCExecutor alone and is marked ``ours``. The beginning and the end of an executor are in
test_executor_lifecycle.py.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import pickle
import threading
import traceback
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, Future, as_completed, wait
from functools import partial

import contract_tasks as tasks
import pytest
from contract_tasks import add, pass_gate, pass_gate_and_note

ours = pytest.mark.parametrize("kind", ["fresh", pytest.param("reused", marks=pytest.mark.shared)], indirect=True)


def count_lines(path):
    return len(path.read_text().splitlines())


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


def test_a_future_says_that_its_task_is_running(pool, gate, wait_until):
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


def test_an_abandoned_map_cancels_what_has_not_started(make, gate, tmp_path):
    executor, note = make(1), tmp_path / "started"
    results = executor.map(partial(pass_gate_and_note, str(note), *gate.paths), range(40))
    gate.open()
    assert next(results) == 0
    del results
    gc.collect()
    gate.open_wide()
    executor.shutdown()
    assert count_lines(note) < 10


def test_a_closed_map_cancels_what_has_not_started(make, gate, tmp_path):
    executor, note = make(1), tmp_path / "started"
    results = executor.map(partial(pass_gate_and_note, str(note), *gate.paths), range(40))
    gate.open()
    assert next(results) == 0
    results.close()
    gate.open_wide()
    executor.shutdown()
    assert count_lines(note) < 10


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
def test_an_abandoned_buffer_cancels_what_has_not_started(make, gate, tmp_path):
    executor, note = make(1), tmp_path / "started"
    results = executor.map(partial(pass_gate_and_note, str(note), *gate.paths), itertools.count(), buffersize=20)
    gate.open()
    assert next(results) == 0
    del results
    gc.collect()
    gate.open_wide()
    executor.shutdown()
    assert count_lines(note) < 10


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
