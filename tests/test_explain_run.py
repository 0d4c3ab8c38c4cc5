"""``explain``: what is said about tasks that run, wait, or have ended, with real agents."""
# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from pools import failure, gate, new_executor, outcome
from test_invited import Join, join
from waiting import pass_gate, wait_until

from executor import HPCExecutor, Resources

pytestmark = pytest.mark.shared

if TYPE_CHECKING:
    from waiting import Gate

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

New = Callable[..., HPCExecutor]


def test_a_task_that_runs_and_one_that_has_ended(new_executor: New, gate: Gate) -> None:
    executor = new_executor(1)
    future = executor.options(name="mesh").submit(pass_gate, *gate.paths)
    gate.wait_arrivals()
    wait_until(lambda: future.state == "running")
    [worker] = executor.workers()
    where = f"{worker.host} (process {worker.pid})"
    said = executor.explain(future)
    assert (said.future, said.summary, said.workers) == (future, f"it runs on {where}", {})
    assert str(said) == f"task {future.task_id} (mesh): it runs on {where}"
    gate.open()
    outcome(future)
    assert executor.explain(future).summary == "it has ended (finished)"
    bad = executor.submit(divmod, 1, 0)
    failure(bad)
    assert executor.explain(bad).summary == "it has ended (finished)"


def test_a_task_that_waits_for_room_is_told_what_is_lacking_on_each_agent(new_executor: New, gate: Gate) -> None:
    executor = new_executor(None, resources={"cpus": 4, "gpus/nvidia": 2, "memory": "2GiB"}, agents=2)
    held = [executor.options(cpus=2, memory="1GiB").submit(pass_gate, *gate.paths) for _ in range(2)]
    gate.wait_arrivals(2)
    wait_until(lambda: all(future.state == "running" for future in held))
    waits = executor.options(cpus=1, gpus=1, memory="512MiB", name="train").submit(pow, 2, 3)
    said = executor.explain(waits)
    assert said.summary == "it waits for room"
    assert set(said.workers) == {f"{worker.host} (process {worker.pid})" for worker in executor.workers()}
    for future in held:
        name = executor.explain(future).summary.removeprefix("it runs on ")
        lacking = "cpus: 1 wanted, 0 of 2 free; memory: 512 wanted, 0 of 1024 free"
        assert said.workers[name] == f"{lacking} (task {future.task_id} has them)"
    assert str(said).splitlines()[0] == f"task {waits.task_id} (train): it waits for room"
    assert len(str(said).splitlines()) == 3
    gate.open()
    assert outcome(waits) == 8


def test_a_task_behind_others_of_its_kind(new_executor: New, gate: Gate) -> None:
    executor = new_executor(1)
    executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals()
    futures = [executor.submit(pow, 2, 3) for _ in range(6)]
    said = [executor.explain(future).summary for future in futures]
    assert said[0] == "it waits for room"
    assert said[1:] == [f"it waits for room, behind {number} of its kind" for number in range(1, 6)]
    gate.open()
    assert [outcome(future) for future in futures] == [8] * 6


def test_a_short_task_lies_ready_on_its_agent(new_executor: New, gate: Gate) -> None:
    executor = new_executor(1)
    outcome(executor.submit(pow, 2, 3))  # how long such tasks take is known now
    held = executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals()
    future = executor.submit(pow, 2, 3)
    wait_until(lambda: executor.explain(held).summary.startswith("it runs on "))  # the agent says so a bit later
    name = executor.explain(held).summary.removeprefix("it runs on ")
    assert executor.explain(future).summary == f"it is on {name} and starts when 1 more have ended there"
    gate.open()
    assert outcome(future) == 8


def test_a_task_that_waits_for_others(new_executor: New, gate: Gate) -> None:
    executor = new_executor(1)
    theirs: Future[Any] = Future()
    held = executor.submit(pass_gate, *gate.paths)
    first = executor.options(after={"afterany": held}).submit(pow, 2, 3)
    second = executor.submit(pow, first, theirs)
    third = executor.options(after={"afternotok": theirs}).submit(pow, 2, 3)
    assert executor.explain(first).summary == f"it waits for task {held.task_id} (afterany)"
    text = f"it waits for task {first.task_id} (afterok), a future of somebody else"
    assert executor.explain(second).summary == text
    assert executor.explain(third).summary == "it waits for a future of somebody else"
    gate.open()
    outcome(first)
    wait_until(lambda: executor.explain(second).summary == "it waits for a future of somebody else")
    theirs.set_result(2)
    assert outcome(second) == 64
    failure(third)
    assert executor.explain(third).summary == "it has ended (finished)"


def test_a_task_for_which_an_agent_is_kept_and_one_that_it_is_not(new_executor: New, gate: Gate) -> None:
    executor = new_executor(2)
    held = [executor.submit(pass_gate, *gate.paths) for _ in range(2)]
    gate.wait_arrivals(2)
    important = executor.options(cpus=2, priority=5).submit(pow, 2, 3)
    other = executor.options(cpus=0.5).submit(pow, 2, 4)
    [text] = executor.explain(other).workers.values()
    assert text == f"it is kept for task {important.task_id}, which is more important"
    [text] = executor.explain(important).workers.values()
    assert text.startswith("cpus: 2 wanted, 0 of 2 free")
    gate.open()
    assert [outcome(important), outcome(other)] == [8, 16]
    for future in held:
        outcome(future)


def test_of_variants_all_that_are_possible_are_told(new_executor: New, gate: Gate) -> None:
    executor = new_executor(None, resources={"cpus": 2, "gpus/nvidia": 1})
    held = executor.options(cpus=2, gpus=1).submit(pass_gate, *gate.paths)
    gate.wait_arrivals()
    variants = [Resources(cpus=0, gpus=1), Resources(cpus=2), Resources(cpus=64)]
    future = executor.options(resources=variants).submit(pow, 2, 3)
    [text] = executor.explain(future).workers.values()
    assert "gpus: 1 wanted, 0 of 1 free" in text
    assert "or cpus: 2 wanted, 0 of 2 free" in text
    assert "64" not in text
    gate.open()
    assert outcome(future) == 8
    outcome(held)


def test_without_agents_and_with_one_that_has_too_little(new_executor: New, join: Join) -> None:
    executor = new_executor(1, agents=0)
    invitation = executor.invite(2, host="127.0.0.1")
    future = executor.options(resources={"fpga": 1}).submit(pow, 2, 3)
    assert executor.explain(future).summary == "no agent has joined"
    join(invitation)
    wait_until(executor.workers)
    [text] = executor.explain(future).workers.values()
    assert text == "it can never run there: fpga: 1 wanted, 0 there"
    assert future.cancel()
    assert executor.explain(future).summary == "it has ended (cancelled)"


def test_what_is_no_task_of_the_executor_is_refused(new_executor: New, gate: Gate) -> None:
    executor, other = new_executor(1), new_executor(1)
    outcome(executor.submit(pow, 2, 3))
    theirs = other.submit(pass_gate, *gate.paths)
    with pytest.raises(TypeError, match="expected a TaskFuture"):
        executor.explain(Future())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no task of this executor"):
        executor.explain(theirs)
    gate.open()
    outcome(theirs)


def test_it_may_be_asked_from_any_thread_at_any_time(new_executor: New) -> None:
    """While tasks end, agents leave and the executor is shut down."""
    executor = new_executor(2, max_tasks_per_child=None)
    futures = [executor.options(cpus=1 + number % 2).submit(pow, 2, 3) for number in range(200)]
    said: list[str] = []

    def ask() -> None:
        for future in futures:
            said.append(str(executor.explain(future)))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    executor.shutdown()
    for thread in threads:
        thread.join()
    assert len(said) == 600
    assert executor.explain(futures[0]).summary == "it has ended (finished)"


def test_before_anything_was_submitted(new_executor: New) -> None:
    executor, other = new_executor(1), new_executor(1)
    future = other.submit(pow, 2, 3)
    outcome(future)
    assert executor.explain(future).summary == "it has ended (finished)"
