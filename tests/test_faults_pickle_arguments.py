"""Faults of functions and arguments: what does not pickle, or not unpickle, or is large, or changes on its way.

Each hits its own future. Every test that takes ``pool`` has a neighbour in the same executor, which must give its
result as if nothing had been, and tasks that are submitted afterwards have to work as well.
"""
# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

import importlib
import os
import pickle
import socket
import sys
import threading

import cloudpickle
import pytest
from pools import ALL_KINDS, FRESH, WORKERS, failure, gate, outcome, pool, pools, session_directories
from traps import DEATHS, RAISED, Trap, Unpicklable, identity
from waiting import pass_gate

from executor import SerializationError, TaskDied

# By value, or each fresh interpreter would import pytest to find its function.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

LARGE = 2 * 2**20


def hold_all_workers(pool, gate):
    """What is submitted next does not start before the gate is open."""
    for _ in range(WORKERS - 1):  # the neighbour has the other one
        pool.submit(pass_gate, *gate.paths)
    gate.wait_arrivals(WORKERS - 1)


def files_of(pool, size):
    """The files of the executor that hold so many bytes, pickled or not: a test has a size of its own."""
    paths = [path for folder in session_directories(pool) for path in folder.iterdir()]
    return [path for path in paths if size <= path.stat().st_size < size + 4096]


# ---- B1-B3: arguments and functions


@pytest.mark.parametrize("make_value", [lambda: Unpicklable(TypeError("bound")), threading.Lock], ids=["own", "lock"])
def test_an_argument_that_cannot_be_pickled_is_named_in_its_future(pool, make_value):
    """B1. The task goes nowhere."""
    value = make_value()
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    for which, future in {"1": pool.submit(identity, 0, value), "'key'": pool.submit(identity, key=value)}.items():
        assert future.done()
        assert (future.attempt, future.pid) == (0, None)
        error = failure(future)
        assert isinstance(error, SerializationError)
        assert isinstance(error.__cause__, TypeError)
        assert str(error) == f"argument {which}, of type {name}, cannot be pickled: TypeError: {error.__cause__}"


def test_in_a_map_only_the_call_fails_whose_argument_cannot_be_pickled(pool):
    """B1."""
    results = pool.map(identity, [1, threading.Lock(), 3])
    assert next(results) == 1
    with pytest.raises(SerializationError, match=r"argument 0, of type _thread\.lock, cannot be pickled"):
        next(results)


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Nameless:
    def __call__(self):
        return 1

    def __reduce__(self):
        raise TypeError("bound")

    def __repr__(self):
        raise RuntimeError("no words")


@FRESH
@pytest.mark.parametrize("what", ["argument", "function"])
def test_what_cannot_be_pickled_is_refused_as_such_even_if_nothing_can_be_said_about_it(pool, what):
    """B1. As it is for results."""
    call = (identity, Unpicklable(Speechless())) if what == "argument" else (Nameless(),)
    assert isinstance(failure(pool.submit(*call)), SerializationError)


@pytest.mark.parametrize("what", ["argument", "function"])
def test_what_exits_while_it_is_pickled_ends_nothing(pool, what):
    """B2."""
    leaver = Unpicklable(SystemExit("leaving"))
    future = pool.submit(identity, leaver) if what == "argument" else pool.submit(leaver)
    error = failure(future)
    assert isinstance(error, SerializationError)
    assert str(error).endswith("cannot be pickled: SystemExit: leaving")
    assert isinstance(error.__cause__, SystemExit)


@pytest.mark.parametrize("how", list(RAISED))
@pytest.mark.parametrize("what", ["argument", "function"])
def test_what_raises_while_a_task_unpickles_it_is_the_error_of_that_task(pool, what, how):
    """B3."""
    error = failure(pool.submit(identity, Trap(how)) if what == "argument" else pool.submit(Trap(how)))
    assert (type(error), error.args) == (RAISED[how], ("a trap",))
    assert "in explode" in str(error.__cause__)


@ALL_KINDS
@pytest.mark.parametrize("how", list(DEATHS))
def test_an_argument_that_ends_the_process_where_it_is_unpickled_ends_its_own_task(pool, how):
    """B3."""
    error = failure(pool.submit(identity, Trap(how)))
    assert (type(error), error.returncode) == (TaskDied, DEATHS[how])


@pytest.mark.parametrize("how", list(DEATHS))
def test_a_function_that_ends_the_process_where_it_is_unpickled_ends_its_own_task(pool, how):
    """B3."""
    error = failure(pool.submit(Trap(how)))
    assert (type(error), error.returncode) == (TaskDied, DEATHS[how])


# ---- B9-B11: functions


def test_lambdas_closures_and_local_classes_travel(pool):
    """B9. Scripts, ``-c``, standard input and notebooks are in test_integrations.py."""
    factor = 3

    def times(number):
        return factor * number

    class Scaled:
        def __init__(self, number):
            self.number = times(number)

    assert outcome(pool.submit(lambda number: times(number) + 1, 2)) == 7
    result = outcome(pool.submit(Scaled, 2))
    assert type(result) is Scaled
    assert result.number == 6
    assert outcome(pool.submit(times, 2)) == 6
    factor = 4
    assert outcome(pool.submit(times, 2)) == 8


@pytest.mark.parametrize("what", ["function", "argument"])
def test_a_module_that_is_here_only_is_missed_with_host_path_and_a_hint(pool, tmp_path, monkeypatch, what):
    """B10."""
    (tmp_path / "module_here_only.py").write_text("def work(): return 1\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        module = importlib.import_module("module_here_only")
    try:
        future = pool.submit(module.work) if what == "function" else pool.submit(identity, module.work)
    finally:
        del sys.modules["module_here_only"]
    error = failure(future)
    assert (type(error), error.name) == (ModuleNotFoundError, "module_here_only")
    (note,) = error.__notes__
    assert note.startswith(f"'module_here_only' was looked for on host {os.uname().nodename} in [")
    assert repr(os.path.dirname(os.__file__)) in note
    assert "cloudpickle.register_pickle_by_value(module)" in note


BOUND = "an HPCExecutor cannot be pickled: it is bound to this process"


@pytest.mark.parametrize(
    ("what", "words"), [("executor", BOUND), ("view", BOUND), ("lock", "lock"), ("socket", "socket")]
)
def test_a_function_that_captures_what_belongs_to_this_process_is_refused(pool, what, words):
    """B11."""
    with socket.socket() as connection:
        belongings = {"executor": pool, "view": pool.options(), "lock": threading.Lock(), "socket": connection}
        captured = belongings[what]
        error = failure(pool.submit(lambda: captured))
        with pytest.raises(TypeError, match=words):
            pickle.dumps(captured)
    assert isinstance(error, SerializationError)
    assert isinstance(error.__cause__, TypeError)
    assert str(error).startswith("the function <function ")
    assert "cannot be pickled: TypeError: " in str(error)
    assert words in str(error)


# ---- B12-B13: large and changing arguments


def bytes_in(numbers, in_band, out_of_band):
    return numbers, set(in_band), set(out_of_band[:])


def test_an_argument_that_changes_after_submit_arrives_as_it_was(pool, gate):
    """B12. Of plain types, pickled into a file, and as a buffer."""
    hold_all_workers(pool, gate)
    numbers, in_band, buffer = [1, 2, 3], bytearray(b"a" * LARGE), bytearray(b"a" * LARGE)
    future = pool.submit(bytes_in, numbers, in_band, pickle.PickleBuffer(buffer))
    numbers.clear()
    in_band[:] = buffer[:] = b"b" * LARGE
    gate.open()
    assert outcome(future) == ([1, 2, 3], {ord("a")}, {ord("a")})


def test_the_same_bytes_are_stored_once_however_often_they_are_submitted(pool, gate):
    """B13."""
    hold_all_workers(pool, gate)
    data = bytes(range(256)) * (LARGE // 256 + 64)
    copy = bytes(bytearray(data))
    futures = [pool.submit(len, each) for _ in range(25) for each in (data, copy)]
    futures += [pool.submit(identity, key=each) for each in (data, copy)]
    assert len(files_of(pool, len(data))) == 1
    gate.open()
    assert {outcome(future) for future in futures[:-2]} == {len(data)}
    assert all(outcome(future) == {"key": data} for future in futures[-2:])
    assert len(files_of(pool, len(data))) == 1  # kept, in case that it comes again; gone with the executor


def add_to_first(array):
    array[0] += 5.0
    return array


def test_a_large_array_can_be_written_in_the_task_and_here_and_leaves_no_file(pool):
    """B13. The file of a result goes when it is read."""
    numpy = pytest.importorskip("numpy")
    sent = numpy.arange(LARGE // 8 + 4096, dtype=float)
    results = [outcome(pool.submit(add_to_first, sent)) for _ in range(2)]
    assert len(files_of(pool, sent.nbytes)) == 1  # the argument's
    results[0][1] = 7.0
    assert sent[:3].tolist() == [0, 1, 2]
    assert [result[:3].tolist() for result in results] == [[5, 7, 2], [5, 1, 2]]
    assert (results[1][3:] == sent[3:]).all()
