"""Tasks from asyncio: results, errors, cancels that reach the task, and a loop that goes on meanwhile."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import cloudpickle
import pytest
from waiting import PATIENCE, wait_gone

from executor import CAPTURE, HPCExecutor, Job, Program, ProgramFailed, TaskKilled, as_completed_async
from executor.asynchronous import wait_result
from executor.future import TaskFuture

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def pass_gate(arrivals: str, tokens: str) -> int:
    """Say by the pid that the task has started, wait for a token. See ``Gate`` in conftest.py."""
    with open(arrivals, "wb", buffering=0) as entry:
        entry.write(b"%d\n" % os.getpid())
    with open(tokens, "rb", buffering=0) as gate:
        gate.read(1)
    return os.getpid()


def run(main: Callable[[], Any]) -> Any:
    """Run a coroutine function, in bounded time."""

    async def bounded() -> Any:
        async with asyncio.timeout(PATIENCE / 2):
            return await main()

    return asyncio.run(bounded())


class Control:
    """What a future asks of the hub. It never answers: whoever asked for the task back would wait for ever."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def withdraw(self, task_id: int) -> None:
        self.asked.append("withdraw")

    def recall(self, task_id: int) -> bool:
        raise AssertionError("the loop would wait for the agent's answer")

    def kill(self, task_id: int, number: int, grace: float | None) -> None:
        self.asked.append(("kill", number, grace))

    def tell(self, task_id: int, news: Any) -> None:
        self.asked.append(news)


def new_future(*, sent: bool) -> TaskFuture:
    future = TaskFuture(1, "fit", 0.0)
    future._control = Control()
    assert not sent or future.claim(1, "node7")
    return future


# ---- results and errors


def test_a_result_is_awaited(executor: HPCExecutor) -> None:
    assert run(lambda: executor.submit_async(pow, 2, 5)) == 32
    assert run(lambda: executor.options(name="named").submit_async(int, "ff", base=16)) == 255
    assert run(lambda: executor.submit_async(Program(["true"]))).returncode == 0


def test_submitting_is_a_coroutine_that_takes_all_names(executor: HPCExecutor) -> None:
    assert inspect.iscoroutinefunction(executor.submit_async)
    assert run(lambda: executor.submit_async(dict, self=1, fn=2)) == {"self": 1, "fn": 2}


def test_errors_of_tasks_are_raised(executor: HPCExecutor) -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: executor.submit_async(divmod, 1, 0))
    with pytest.raises(ProgramFailed):
        run(lambda: executor.options(stderr=CAPTURE).submit_async(Program(["sh", "-c", "exit 3"], check=True)))
    with pytest.raises(Exception, match="lock"):
        run(lambda: executor.submit_async(id, threading.Lock()))


def test_after_the_shutdown_nothing_is_submitted() -> None:
    with HPCExecutor(1) as executor:
        pass
    with pytest.raises(RuntimeError, match="shutdown"):
        run(lambda: executor.submit_async(pow, 2, 5))


def test_tasks_are_gathered_beside_other_work_of_the_loop(executor: HPCExecutor, gate: Any) -> None:
    """While a task is held, the loop does other things; it is held until they are done."""

    async def other_work() -> list[int]:
        done = []
        for number in range(50):
            await asyncio.sleep(0)
            done.append(number)
        gate.open_wide()
        return done

    async def main() -> Any:
        return await asyncio.gather(executor.submit_async(pass_gate, *gate.paths), other_work())

    pid, done = run(main)
    assert pid > 0
    assert done == list(range(50))


def test_many_tasks_of_a_task_group_give_their_own_results(reused_executor: HPCExecutor) -> None:
    async def main() -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(reused_executor.submit_async(pow, number, 2)) for number in range(200)]
        return [task.result() for task in tasks]

    assert run(main) == [number**2 for number in range(200)]


# ---- cancels


@pytest.mark.parametrize("sent", [True, False])
def test_a_cancel_never_waits_for_an_agent(sent: bool) -> None:
    future = new_future(sent=sent)
    control = future._control

    async def main() -> None:
        task = asyncio.create_task(wait_result(future))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    assert future.cancelled()
    assert control.asked == ([("kill", signal.SIGTERM, None)] if sent else ["withdraw"])


def test_a_cancel_ends_the_task_that_runs(executor: HPCExecutor, gate: Any) -> None:
    async def main() -> int:
        task = asyncio.create_task(executor.submit_async(pass_gate, *gate.paths))
        [pid] = await asyncio.to_thread(gate.wait_arrivals, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pid

    wait_gone(run(main))
    assert executor.submit(pow, 2, 3).result(PATIENCE / 2) == 8


def test_a_timeout_ends_the_task_and_those_that_wait_never_run(make: Any, gate: Any, tmp_path: Any) -> None:
    executor = make(1)

    async def main() -> int:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as group:
                group.create_task(executor.submit_async(pass_gate, *gate.paths))
                for number in range(20):
                    group.create_task(executor.submit_async((tmp_path / f"ran-{number}").touch))
                [pid] = await asyncio.to_thread(gate.wait_arrivals, 1)
                limit.reschedule(asyncio.get_running_loop().time())
        return pid

    wait_gone(run(main))
    executor.shutdown()
    assert list(tmp_path.glob("ran-*")) == []
    assert executor.counts().cancelled == 21


def test_the_failure_of_one_task_ends_the_others_of_its_group(executor: HPCExecutor, gate: Any) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(executor.submit_async(pass_gate, *gate.paths))
            await asyncio.to_thread(gate.wait_arrivals, 1)
            group.create_task(executor.submit_async(divmod, 1, 0))

    with pytest.raises(ExceptionGroup) as raised:
        run(main)
    assert [type(error) for error in raised.value.exceptions] == [ZeroDivisionError]
    executor.shutdown()
    assert executor.counts().cancelled == 1


def test_a_task_that_somebody_cancels_is_cancelled_for_who_awaits_it() -> None:
    future = new_future(sent=False)

    async def main() -> None:
        task = asyncio.create_task(wait_result(future))
        await asyncio.sleep(0)
        future.cancel()
        with pytest.raises(asyncio.CancelledError, match="fit"):
            await task

    run(main)


def test_a_task_that_somebody_kills_raises_that(executor: HPCExecutor, gate: Any) -> None:
    async def main() -> None:
        future = executor.submit(pass_gate, *gate.paths)
        task = asyncio.create_task(wait_result(future))
        await asyncio.to_thread(gate.wait_arrivals, 1)
        assert future.kill()
        with pytest.raises(TaskKilled):
            await task

    run(main)


def test_a_future_that_completes_when_the_loop_is_closed_troubles_nobody(caplog: pytest.LogCaptureFixture) -> None:
    done: Future[int] = Future()
    done.set_result(1)
    later: Future[int] = Future()

    async def main() -> None:
        async for _ in as_completed_async([later, done]):
            break

    run(main)
    later.set_result(2)
    assert caplog.records == []


# ---- as they complete


@asynccontextmanager
async def ticking() -> AsyncIterator[list[float]]:
    """How long the loop did not come round, each time."""
    pauses: list[float] = []

    async def tick() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0)
            pauses.append(time.perf_counter() - before)

    ticker = asyncio.create_task(tick())
    yield pauses
    ticker.cancel()


def test_futures_come_as_they_complete(executor: HPCExecutor, gate: Any) -> None:
    """The one that is held comes last, though it was submitted first, and the loop goes on until it does."""

    async def main() -> None:
        held = executor.submit(pass_gate, *gate.paths)
        quick = [executor.submit(pow, 2, number) for number in range(5)]
        seen = []
        async with ticking() as pauses:
            async for future in as_completed_async([held, *quick]):
                seen.append(future)
                if len(seen) == 5:
                    assert not held.done()
                    gate.open_wide()
        assert set(seen[:5]) == set(quick)
        assert seen[5] is held
        assert len(pauses) > 5

    run(main)


def test_those_that_have_completed_come_first_and_each_comes_once() -> None:
    async def main() -> None:
        futures: list[Future[int]] = [Future() for _ in range(4)]
        futures[2].set_result(1)
        futures[1].cancel()
        futures[1].set_running_or_notify_cancel()
        completed = as_completed_async([*futures, futures[2]])
        assert [await anext(completed), await anext(completed)] == [futures[1], futures[2]]
        threading.Thread(target=futures[3].set_exception, args=(ValueError(),)).start()
        assert await anext(completed) is futures[3]
        futures[0].set_result(1)
        assert await anext(completed) is futures[0]
        assert [future async for future in completed] == []

    run(main)


def test_to_leave_the_loop_leaves_the_futures_as_they_are(executor: HPCExecutor, gate: Any) -> None:
    futures = [executor.submit(pass_gate, *gate.paths), executor.submit(pow, 2, 3)]

    async def main() -> None:
        async for future in as_completed_async(futures):
            assert future is futures[1]
            break
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                async for _ in as_completed_async(futures[:1]):
                    pass

    run(main)
    assert not futures[0].done()
    gate.open_wide()
    assert futures[0].result(PATIENCE / 2) == futures[0].pid


def test_nothing_at_all_has_completed_at_once() -> None:
    async def main() -> list[Any]:
        return [future async for future in as_completed_async([])]

    assert run(main) == []


# ---- jobs


def test_the_tasks_of_a_job_come_as_they_end(executor: HPCExecutor) -> None:
    job = Job()
    first = job.function(pow, args=(2, 3), name="first")
    job.function(pow, args=(2, 4), name="second", deps=[first])

    async def main() -> Any:
        submitted = executor.submit_job(job)
        assert await submitted.wait_async()
        assert submitted.done()
        assert [future.name async for future in submitted] == ["first", "second"]
        return [future.result() async for future in submitted]

    assert run(main) == [8, 16]


def test_to_wait_for_a_job_in_which_a_task_fails_gives_false(executor: HPCExecutor) -> None:
    job = Job()
    failing = job.function(divmod, args=(1, 0))
    job.function(pow, args=(2, 4), deps=[failing])

    async def main() -> Any:
        submitted = executor.submit_job(job)
        return await submitted.wait_async(), submitted.counts()

    well, counts = run(main)
    assert not well
    assert counts == {"failed": 1, "aborted": 1}


def test_to_stop_waiting_for_a_job_leaves_it_as_it_is(executor: HPCExecutor, gate: Any) -> None:
    job = Job()
    job.function(pass_gate, args=gate.paths)

    async def main() -> Any:
        submitted = executor.submit_job(job)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await submitted.wait_async()
        assert not submitted.done()
        gate.open_wide()
        return await submitted.wait_async()

    assert run(main)
