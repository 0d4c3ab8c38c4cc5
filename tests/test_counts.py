"""How many tasks there are, by state: one count, of which the report has the same."""
# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from pools import PATIENCE, new_executor
from waiting import pass_gate

from executor import HPCExecutor
from executor.counts import Counts

pytestmark = pytest.mark.shared

New = Callable[..., HPCExecutor]


class Unreadable:
    """Its pickle can be made, and not be read."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def make_unreadable() -> Unreadable:
    return Unreadable()


def test_what_has_ended_and_what_has_not() -> None:
    counts = Counts(10, finished=3, failed=2, cancelled=1, running=2)
    assert (counts.ended, counts.pending) == (6, 2)


def test_a_result_that_cannot_be_read_here_is_a_failure(new_executor: New) -> None:
    """The hub had counted it among those that have finished, and the report among those that have failed."""
    executor = new_executor(1)
    assert executor.submit(make_unreadable).exception(PATIENCE / 2) is not None
    assert executor.counts() == Counts(1, failed=1, running=0)
    assert executor.report().counts.failed == 1


def test_who_sees_that_a_task_has_ended_finds_it_counted(new_executor: New) -> None:
    executor = new_executor(2, max_tasks_per_child=None)
    seen: list[int] = []
    for _ in range(5):
        futures = [executor.submit(divmod, 1, number % 2) for number in range(20)]
        futures.append(executor.submit(id, threading.Lock()))
        assert [future.exception(PATIENCE / 2) is None for future in futures].count(True) == 10
        seen.append(executor.counts().ended)
    assert seen == [21, 42, 63, 84, 105]


def test_when_no_task_is_left_all_are_counted(new_executor: New) -> None:
    """The delivery threads may lag behind: the bar's last line said that one was missing."""
    executor = new_executor(2, max_tasks_per_child=None)
    for times in range(1, 6):
        for number in range(50):
            executor.submit(divmod, 1, number % 2)
        executor.submit(id, threading.Lock())
        executor._wait_idle()
        assert executor.counts() == Counts(51 * times, 25 * times, 26 * times, running=0)


def leave(_: object) -> None:
    raise SystemExit


def test_a_task_whose_callback_wants_to_exit_is_counted_once(new_executor: New, gate: Any) -> None:
    """What got out of the callback was taken for a failed delivery, and the task counted again, as failed."""
    executor = new_executor(1)
    future = executor.submit(pass_gate, *gate.paths)
    future.add_done_callback(leave)
    gate.open()
    assert isinstance(future.result(PATIENCE / 2), int)
    assert executor.submit(divmod, 1, 0).exception(PATIENCE / 2) is not None  # delivered after it
    assert executor.counts() == Counts(2, finished=1, failed=1, running=0)


def test_a_task_whose_outcome_we_fail_to_deliver_is_counted_all_the_same(
    new_executor: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("a bug")

    monkeypatch.setattr("executor.delivery._settle", fail)
    executor = new_executor(1)
    assert "cannot be delivered" in str(executor.submit(divmod, 1, 0).exception(PATIENCE / 2))
    executor._wait_idle()
    assert executor.counts() == Counts(1, failed=1, running=0)
