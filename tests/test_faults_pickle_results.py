"""Faults of results and exceptions that do not pickle or not unpickle, and of callbacks.

Each hits its own future. Every test that takes ``pool`` has a neighbour in the same executor, which must give its
result as if nothing had been, and tasks that are submitted afterwards have to work as well.
"""
# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

import os
import sys
import threading

import cloudpickle
import pytest
from pools import FRESH, failure, gate, new_executor, outcome, pool, pools
from traps import DEATHS, RAISED, Trap, TrapError, Unpicklable, explode, fail_by, identity
from waiting import PATIENCE, pass_gate, wait_until

from executor import RemoteError, SerializationError, TaskDied, delivery
from executor.errors import RemoteTraceback

# By value, or each fresh interpreter would import pytest to find its function.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

LARGE = 2 * 2**20


# ---- B4-B6: results


@pytest.mark.parametrize(
    ("make_result", "what"),
    [
        (threading.Lock, "_thread.lock, cannot be pickled: TypeError: "),
        (lambda: Unpicklable(TypeError("bound")), "Unpicklable, cannot be pickled: TypeError: bound"),
        (lambda: Unpicklable(SystemExit("leaving")), "Unpicklable, cannot be pickled: SystemExit: leaving"),
        (lambda: Unpicklable(KeyboardInterrupt()), "Unpicklable, cannot be pickled: KeyboardInterrupt: "),
    ],
    ids=["lock", "error", "exit", "interrupt"],
)
def test_a_result_that_cannot_be_pickled_is_named_with_the_remote_traceback(pool, make_result, what):
    """B4."""
    error = failure(pool.submit(make_result))
    assert isinstance(error, SerializationError)
    assert str(error).startswith("the result of task ")
    assert what in str(error)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "Traceback (most recent call last)" in str(error.__cause__)
    assert "Unpicklable" not in what or "in __reduce__" in str(error.__cause__)


@pytest.mark.parametrize("how", list(RAISED))
def test_a_result_that_raises_while_it_is_unpickled_here_is_the_error_of_its_future(pool, how):
    """B5."""
    error = failure(pool.submit(Trap, how))
    assert (type(error), error.args) == (RAISED[how], ("a trap",))
    assert "raised here while the result of task" in error.__notes__[0]


class WaitsWhereUnpickled:
    def __init__(self, *paths):
        self.paths = paths

    def __reduce__(self):
        return pass_gate, self.paths


def test_a_result_that_waits_while_it_is_unpickled_holds_up_no_other(pool, gate, monkeypatch):
    """B6. Neither a value nor an error, nor a callback; the gate is passed here."""
    monkeypatch.setattr(delivery, "PATIENCE", 0.05)
    waiting = pool.submit(WaitsWhereUnpickled, *gate.paths)
    assert gate.wait_arrivals() == [os.getpid()]
    told = threading.Event()
    other = pool.submit(identity, 1)
    other.add_done_callback(lambda _: told.set())
    assert outcome(other) == 1
    assert told.wait(PATIENCE / 2)
    assert failure(pool.submit(explode, "error")).args == ("a trap",)
    assert not waiting.done()
    gate.open()
    assert outcome(waiting) == os.getpid()


# ---- B7-B8: exceptions


class TwoArguments(Exception):
    def __init__(self, what, where):
        super().__init__(f"{what} at {where}")


def test_an_exception_that_cannot_be_rebuilt_is_told_by_its_type_text_and_traceback(pool):
    """B7."""
    error = failure(pool.submit(fail_by, lambda: TwoArguments("fire", "the mill")))
    assert type(error) is RemoteError
    assert (error.type_name, error.text) == ("TwoArguments", "fire at the mill")
    assert "in fail_by" in error.traceback
    assert "TwoArguments: fire at the mill" in str(error)


class ThereOnly(Exception):
    """Cannot be rebuilt in one process, as an exception of a module that this process does not have."""

    def __init__(self, text, pid):
        super().__init__(text, pid)

    def __reduce__(self):
        return make_elsewhere, self.args

    def __str__(self):
        return self.args[0]


def make_elsewhere(text, pid):
    if os.getpid() == pid:
        raise ModuleNotFoundError("there only")
    return ThereOnly(text, pid)


def test_an_exception_that_can_be_rebuilt_there_and_not_here_is_told_with_its_traceback(pool):
    """B7."""
    here = os.getpid()
    error = failure(pool.submit(fail_by, lambda: ThereOnly("fire", here)))
    assert type(error) is RemoteError
    assert "in fail_by" in error.traceback
    assert "ThereOnly: fire" in error.traceback


@FRESH
def test_an_exception_that_can_be_rebuilt_there_and_not_here_is_told_by_its_own_type(pool):
    """B7."""
    here = os.getpid()
    error = failure(pool.submit(fail_by, lambda: ThereOnly("fire", here)))
    assert (error.type_name, error.text) == ("ThereOnly", "fire")


@pytest.mark.parametrize("how", list(RAISED))
def test_an_exception_that_raises_another_while_it_is_unpickled_is_told(pool, how):
    """B7."""
    error = failure(pool.submit(fail_by, lambda: TrapError(how)))
    assert (type(error), error.type_name) == (RemoteError, "TrapError")


@pytest.mark.parametrize("how", list(DEATHS))
def test_an_exception_that_ends_the_process_where_it_is_unpickled_does_so_in_the_task(pool, how):
    """B7. It is tried out there, so that it does not end this process."""
    error = failure(pool.submit(fail_by, lambda: TrapError(how)))
    assert (type(error), error.returncode) == (TaskDied, DEATHS[how])


class Holder(Exception):
    """Has something that does not pickle."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class Falsey(Exception):
    def __bool__(self):
        return False

    def __len__(self):
        return 0


class Outside(BaseException):
    """No Exception."""


def in_itself():
    error = ValueError("round")
    error.itself = error
    return error


def in_its_arguments():
    error = ValueError()
    error.args = (error,)
    return error


def with_causes_in_a_circle():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


@pytest.mark.parametrize(
    ("make_error", "name"),
    [
        (lambda: Holder("x"), "Holder"),
        (lambda: ExceptionGroup("two", [ValueError(1), Holder("x")]), "ExceptionGroup"),
        (in_its_arguments, "ValueError"),
    ],
    ids=["lock", "in a group", "in its arguments"],
)
def test_an_exception_that_does_not_pickle_is_told_by_its_type(pool, make_error, name):
    """B8."""
    error = failure(pool.submit(fail_by, make_error))
    assert (type(error), error.type_name) == (RemoteError, name)
    assert "in fail_by" in error.traceback


@pytest.mark.parametrize(
    ("make_error", "raised", "args"),
    [
        (lambda: ValueError("x" * LARGE), ValueError, ("x" * LARGE,)),
        (in_itself, ValueError, ("round",)),
        (with_causes_in_a_circle, ValueError, ("first",)),
        (lambda: Falsey("there"), Falsey, ("there",)),
        (lambda: Outside("there"), Outside, ("there",)),
        (lambda: KeyboardInterrupt("there"), KeyboardInterrupt, ("there",)),
        (lambda: GeneratorExit("there"), GeneratorExit, ("there",)),
    ],
    ids=["huge", "in itself", "causes in a circle", "falsey", "BaseException", "KeyboardInterrupt", "GeneratorExit"],
)
def test_an_exception_of_any_kind_arrives_as_itself(pool, make_error, raised, args):
    """B8. Also from ``result()``, however little there seems to be of it."""
    future = pool.submit(fail_by, make_error)
    error = failure(future)
    assert type(error) is raised
    assert error.args == args
    assert "in fail_by" in str(error.__cause__)
    with pytest.raises(raised) as caught:
        future.result(0)
    assert caught.value is error


def test_an_exception_group_arrives_with_its_members(pool):
    """B8."""
    error = failure(pool.submit(fail_by, lambda: ExceptionGroup("two", [ValueError(1), OSError(2, "none")])))
    assert type(error) is ExceptionGroup
    first, second = error.exceptions
    assert (type(first), first.args) == (ValueError, (1,))
    assert (type(second), second.args) == (FileNotFoundError, (2, "none"))


# ---- B14: callbacks


@pytest.mark.parametrize("raised", list(RAISED.values()))
def test_a_callback_that_raises_is_logged_and_holds_up_no_later_future(pool, gate, caplog, raised):
    """B14."""

    def fail(_):
        raise raised("from a callback")

    future = pool.submit(pass_gate, *gate.paths)
    gate.wait_arrivals()
    future.add_done_callback(fail)
    told = threading.Event()
    later = pool.submit(identity, "later")
    later.add_done_callback(lambda _: told.set())
    gate.open()
    assert outcome(future) == future.pid
    assert outcome(later) == "later"
    assert told.wait(PATIENCE / 2)
    # there may be more than one delivery thread by now, so that this may come later
    wait_until(lambda: "from a callback" in caplog.text, "for the log", patience=10)


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_callback_that_raises_keeps_no_other_from_being_called(new_executor, gate, raised):
    """B14. ``asyncio.wrap_future`` waits by a callback: it would wait for ever."""

    def fail(_):
        raise raised("from a callback")

    executor, called, over = new_executor(1), [], threading.Event()
    future = executor.submit(pass_gate, *gate.paths)
    future.add_done_callback(fail)
    future.add_done_callback(called.append)
    executor.submit(identity).add_done_callback(lambda _: over.set())  # told after it, by the same thread
    gate.open()
    assert over.wait(PATIENCE / 2)
    assert called == [future]
