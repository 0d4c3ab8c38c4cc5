"""Calls to bytes, and outcomes to results and exceptions."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import msgspec
import pytest

from executor import outcome
from executor.calls import Request, pack_arguments
from executor.core.effects import Lost, Refused
from executor.errors import (
    EnvironmentFailed,
    InitializerFailed,
    ProgramFailed,
    ProgramNotStarted,
    RemoteError,
    RemoteTraceback,
    SerializationError,
    TaskDied,
    TaskKilled,
    TaskLost,
    TaskTimeout,
)
from executor.functions import Function, Functions
from executor.future import TaskFuture
from executor.options import TaskOptions, make_options
from executor.outcome import unpack
from executor.payloads import Payloads
from executor.program import Program
from worker_agent import bodies, protocol, store
from worker_agent.protocol import (
    COMPLETED,
    ERROR,
    EXITED,
    KILLED,
    LOST,
    NOT_STARTED,
    TIMED_OUT,
    VALUE,
    Finished,
    Started,
    Stored,
    Tail,
)

LARGE = store.INLINE_LIMIT


@pytest.fixture
def directory(tmp_path: Path) -> str:
    name = tmp_path / "store"
    name.mkdir()
    return str(name)


@pytest.fixture
def payloads(directory: str) -> Payloads:
    return Payloads([directory], kept=0)


@pytest.fixture
def functions(payloads: Payloads) -> Functions:
    return Functions(payloads)


def files(directory: str) -> int:
    return len(os.listdir(directory))


def pack(args: Any, kwargs: dict[str, Any], payloads: Payloads, chunk: bool = False) -> Any:
    """The payload and its buffers, of arguments without futures."""
    payload, buffers, futures = pack_arguments(args, kwargs, payloads, chunk)
    assert futures == ()
    return payload, buffers


def load(packed: tuple[Any, Any]) -> Any:
    """What a task's interpreter gets of packed arguments."""
    payload, buffers = packed
    plain = payload if isinstance(payload, bytes) else (payload.path, payload.size)
    return bodies.load(plain, [(stored.path, stored.size) for stored in buffers])


# ---- arguments


class Opaque:
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("it is bound to this process")


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1, 2.5, True, None, 3j, "text", b"bytes"), {}),
        ((), {"number": 1, "text": "x"}),
        (([1, {2: (3,)}],), {"deep": {"er": [1]}}),
        ((10**40_000,), {}),
        (("x" * (2 * LARGE),), {}),
        ((b"x" * (2 * LARGE), b"small", b"y" * LARGE), {}),
        ((), {"large": b"x" * (2 * LARGE)}),
        ((bytearray(LARGE), [b"x" * LARGE]), {}),
    ],
)
def test_arguments_arrive_as_they_were(payloads: Payloads, args: Any, kwargs: Any) -> None:
    arrived_args, arrived_kwargs = load(pack(args, kwargs, payloads))
    assert (tuple(arrived_args), arrived_kwargs) == (args, kwargs)
    assert [type(each) for each in arrived_args] == [type(each) for each in args]


def test_small_arguments_travel_in_the_message(payloads: Payloads, directory: str) -> None:
    for args in ((1, "text", b"bytes"), ([1, 2, 3],)):
        payload, buffers = pack(args, {}, payloads)
        assert isinstance(payload, bytes)
        assert list(buffers) == []
    assert files(directory) == 0


def test_large_bytes_are_stored_once_however_often_they_are_submitted(payloads: Payloads, directory: str) -> None:
    data = b"x" * LARGE
    packed = [pack((data, number), {}, payloads) for number in range(3)]
    assert len({buffers[0].path for _, buffers in packed}) == files(directory) == 1
    for _, buffers in packed:
        payloads.release(buffers[0])
    assert files(directory) == 0


def test_a_large_pickle_is_stored_and_released(payloads: Payloads, directory: str) -> None:
    payload, buffers = pack(("x" * (2 * LARGE),), {}, payloads)
    assert isinstance(payload, Stored)
    assert payload.size == os.path.getsize(payload.path)
    assert list(buffers) == []
    payloads.release(payload)
    assert files(directory) == 0


def test_arrays_travel_as_buffers_and_arrive_writable(payloads: Payloads) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(LARGE, dtype=float)
    payload, buffers = packed = pack((array, 1), {"again": array}, payloads)
    assert len(payload) < 2000
    assert len(buffers) == 1
    (arrived, _), kwargs = load(packed)
    arrived[0] = 7.0
    assert kwargs["again"] is arrived
    assert (arrived[1:] == array[1:]).all()


def test_an_array_that_changes_between_two_submits_is_sent_anew(payloads: Payloads) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(LARGE)
    first = pack((array,), {}, payloads)
    array[LARGE // 3] = 1.0
    second = pack((array,), {}, payloads)
    assert [load(packed)[0][0].sum() for packed in (first, second)] == [0.0, 1.0]


def test_a_chunk_is_the_list_of_its_argument_tuples(payloads: Payloads) -> None:
    calls = [(1, "a"), (2, "b")]
    assert load(pack(calls, {}, payloads, chunk=True)) == calls


def test_lambdas_and_local_classes_travel(payloads: Payloads) -> None:
    offset = 40
    (function,), _ = load(pack((lambda x: x + offset,), {}, payloads))
    assert function(2) == 42


@pytest.mark.parametrize(
    ("args", "kwargs", "name"),
    [
        ((1, Opaque()), {}, "argument 1, of type .*Opaque, cannot be pickled"),
        ((1,), {"lock": Opaque()}, "argument 'lock', of type .*Opaque, cannot be pickled"),
        (([1, [Opaque()]],), {}, "argument 0, of type builtins.list, cannot be pickled"),
    ],
)
def test_the_error_names_the_argument_and_its_type(payloads: Payloads, args: Any, kwargs: Any, name: str) -> None:
    with pytest.raises(SerializationError, match=name + ": TypeError: it is bound to this process") as caught:
        pack(args, kwargs, payloads)
    assert isinstance(caught.value.__cause__, TypeError)


def test_the_error_of_a_chunk_names_the_call(payloads: Payloads) -> None:
    with pytest.raises(SerializationError, match="argument 1, of type builtins.tuple"):
        pack([(1,), (Opaque(),)], {}, payloads, chunk=True)


class OnlyTogether:
    """Each of them can be pickled, but not two in one pickle."""

    seen: list[Any] = []

    def __reduce__(self) -> Any:
        self.seen.append(self)
        if len(self.seen) == 2:
            raise ValueError("too many")
        return int, ()


def test_arguments_that_cannot_be_pickled_together(payloads: Payloads) -> None:
    with pytest.raises(SerializationError, match="the arguments cannot be pickled together: ValueError: too many"):
        pack((OnlyTogether(), OnlyTogether()), {}, payloads)


def test_what_was_stored_before_an_argument_failed_is_given_back(payloads: Payloads, directory: str) -> None:
    with pytest.raises(SerializationError):
        pack((b"x" * LARGE, "y" * LARGE, bytearray(2 * LARGE), Opaque()), {}, payloads)
    assert files(directory) == 0


class Interrupted:
    """Ctrl-C comes while this is pickled."""

    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def test_ctrl_c_while_arguments_are_pickled_is_no_error_of_theirs(payloads: Payloads) -> None:
    with pytest.raises(KeyboardInterrupt):
        pack((Interrupted(),), {}, payloads)
    with pytest.raises(KeyboardInterrupt):
        pack([(Interrupted(),)], {}, payloads, chunk=True)


def test_a_full_disk_is_no_error_of_the_arguments(payloads: Payloads, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(fd: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="no room for a payload") as caught:
        pack((b"x" * LARGE,), {}, payloads)
    assert caught.value.errno == errno.ENOSPC


def test_a_request_knows_its_files() -> None:
    prepare = protocol.Prepare(environment=1, python=["python"], start="fork", max_tasks=1, cwd="/", path=[], env={})
    args, buffer = Stored("/a", 1), Stored("/b", 2)
    for inline, buffers, stored in ((b"", [], []), (args, [], [args]), (args, [buffer], [buffer, args])):
        request = Request(TaskFuture(1, "fit", 0.0), TaskOptions(), None, prepare, args=inline, buffers=buffers)
        assert list(request.stored()) == stored


# ---- functions


def in_main(source: str, **names: Any) -> dict[str, Any]:
    """The namespace of a script that consists of ``source``."""
    namespace = {"__name__": "__main__", **names}
    exec(source, namespace)
    return namespace


def called(packed: Function, *args: Any) -> Any:
    """What a task gets when it calls the function."""
    assert isinstance(packed.body, bytes)
    return pickle.loads(packed.body)(*args)


def test_a_function_that_has_not_changed_is_pickled_once(functions: Functions, monkeypatch: pytest.MonkeyPatch) -> None:
    main = in_main("factor = 3\ndef scale(x): return factor * x")
    packed = functions.pack(main["scale"])
    monkeypatch.delattr(cloudpickle, "dumps")
    assert functions.pack(main["scale"]) is packed
    assert called(packed, 2) == 6


def test_a_function_whose_global_has_changed_is_pickled_anew(functions: Functions) -> None:
    main = in_main("factor = 3\ndef scale(x): return factor * x")
    first = functions.pack(main["scale"])
    main["factor"] = 5
    second = functions.pack(main["scale"])
    assert (called(first, 2), called(second, 2)) == (6, 10)
    main["factor"] = 3
    assert functions.pack(main["scale"]).id == first.id


def test_a_function_that_is_redefined_is_pickled_anew(functions: Functions) -> None:
    main = in_main("def value(): return 1")
    assert called(functions.pack(main["value"])) == 1
    exec("def value(): return 2", main)
    assert called(functions.pack(main["value"])) == 2


def test_a_change_deep_below_is_seen(functions: Functions) -> None:
    main = in_main("n = 1\ndef inner(): return n\ndef middle(): return inner()\ndef outer(): return middle()")
    first = functions.pack(main["outer"])
    assert functions.pack(main["outer"]) is first
    main["n"] = 2
    assert called(functions.pack(main["outer"])) == 2
    exec("def inner(): return 7", main)
    assert called(functions.pack(main["outer"])) == 7


def test_functions_that_call_each_other_are_packed(functions: Functions) -> None:
    main = in_main("def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)")
    first = functions.pack(main["even"])
    assert functions.pack(main["even"]) is first
    assert called(first, 10) is True


def test_a_global_used_by_a_function_within_is_seen(functions: Functions) -> None:
    main = in_main("n = 1\ndef outer():\n    def inner(): return n\n    return inner()")
    assert called(functions.pack(main["outer"])) == 1
    main["n"] = 2
    assert called(functions.pack(main["outer"])) == 2


def test_a_global_that_can_change_within_is_pickled_each_time(functions: Functions) -> None:
    main = in_main("table = {}\ndef look(key): return table.get(key)")
    assert called(functions.pack(main["look"]), "a") is None
    main["table"]["a"] = 1
    assert called(functions.pack(main["look"]), "a") == 1


def test_a_closure_is_pickled_each_time(functions: Functions) -> None:
    main = in_main("def make():\n    cell = []\n    return cell, lambda: len(cell)")
    cell, count = main["make"]()
    assert called(functions.pack(count)) == 0
    cell.append(1)
    assert called(functions.pack(count)) == 1


def test_defaults_that_can_change_within_are_pickled_each_time(functions: Functions) -> None:
    main = in_main("def count(seen=[], *, more=[]): return len(seen) + len(more)")
    assert called(functions.pack(main["count"])) == 0
    main["count"].__defaults__[0].append(1)
    main["count"].__kwdefaults__["more"].append(1)
    assert called(functions.pack(main["count"])) == 2


def test_an_object_that_is_called_is_pickled_each_time(functions: Functions) -> None:
    main = in_main("class Add:\n    def __init__(self, n): self.n = n\n    def __call__(self, x): return x + self.n")
    add = main["Add"](1)
    assert called(functions.pack(add), 1) == 2
    add.n = 5
    assert called(functions.pack(add), 1) == 6
    assert called(functions.pack(add.__call__), 1) == 6


def test_a_global_that_is_defined_later_is_seen(functions: Functions) -> None:
    """In a notebook: a task fails with a NameError, the user defines the name and submits again."""
    main = in_main("def outer(): return inner()")
    functions.pack(main["outer"])
    exec("def inner(): return 1", main)
    assert called(functions.pack(main["outer"])) == 1


def test_a_global_that_comes_to_hide_a_builtin_is_seen(functions: Functions) -> None:
    main = in_main("def size(x): return len(x)")
    assert called(functions.pack(main["size"]), "abc") == 3
    main["len"] = None
    with pytest.raises(TypeError):
        called(functions.pack(main["size"]), "abc")


@pytest.mark.parametrize(
    ("source", "change"),
    [
        ("def value(n): return n", "value.__defaults__ = (2,)"),
        ("def value(): return 1", "value.__code__ = (lambda: 2).__code__"),
        ("def value(): return getattr(value, 'n', 1)", "value.n = 2"),
        ("def inner(n): return n\ndef value(): return inner()", "inner.__defaults__ = (2,)"),
    ],
)
def test_a_function_that_was_changed_in_place_is_pickled_anew(functions: Functions, source: str, change: str) -> None:
    main = in_main(source)
    functions.pack(main["value"])
    exec(change, main)
    assert called(functions.pack(main["value"])) == 2


def test_a_function_of_a_module_travels_by_its_name(functions: Functions) -> None:
    packed = functions.pack(os.path.join)
    assert isinstance(packed.body, bytes)
    assert len(packed.body) < 100
    assert functions.pack(os.path.join) is packed
    assert called(packed, "a", "b") == "a/b"


def test_a_builtin_travels_by_its_name(functions: Functions) -> None:
    packed = functions.pack(max)
    assert functions.pack(max) is packed
    assert called(packed, 1, 2) == 2


def test_a_module_that_is_to_travel_by_value_does_so_from_then_on(
    functions: Functions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "travels_by_value.py").write_text("n = 1\ndef value(): return n\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import travels_by_value as module

    by_name = functions.pack(module.value)
    cloudpickle.register_pickle_by_value(module)
    try:
        by_value = functions.pack(module.value)
        module.n = 2
        assert (called(by_name), called(by_value), called(functions.pack(module.value))) == (2, 1, 2)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert functions.pack(module.value).id == by_name.id


def test_equal_functions_are_one(functions: Functions) -> None:
    one, other = in_main("def f(): return 1")["f"], in_main("def f(): return 1")["f"]
    assert functions.pack(one) is functions.pack(other)


def test_another_function_at_the_same_address_is_another(functions: Functions) -> None:
    for number in range(50):
        assert called(functions.pack(in_main(f"def f(): return {number}")["f"])) == number


def test_more_functions_than_are_remembered_are_packed(functions: Functions) -> None:
    main = in_main("\n".join(f"def f{number}(): return {number}" for number in range(300)))
    assert [called(functions.pack(main[f"f{number}"])) for number in range(300)] == list(range(300))


def test_a_function_with_very_many_globals_is_pickled_each_time(functions: Functions) -> None:
    names = [f"n{number}" for number in range(100)]
    main = in_main(f"def total(): return {'+'.join(names)}", **dict.fromkeys(names, 1))
    assert called(functions.pack(main["total"])) == 100
    main["n99"] = 2
    assert called(functions.pack(main["total"])) == 101


def test_a_large_function_is_stored(functions: Functions, directory: str) -> None:
    main = in_main(f"data = {b'x' * (2 * LARGE)!r}\ndef size(): return len(data)")
    packed = functions.pack(main["size"])
    assert isinstance(packed.body, Stored)
    assert pickle.loads(Path(packed.body.path).read_bytes())() == 2 * LARGE
    assert functions.pack(main["size"]) is packed
    assert files(directory) == 1


def test_a_function_that_cannot_be_pickled_is_named(functions: Functions) -> None:
    main = in_main("def use(): return opaque", opaque=Opaque())
    with pytest.raises(SerializationError, match=r"the function <function use .* cannot be pickled: TypeError: it is"):
        functions.pack(main["use"])
    with pytest.raises(KeyboardInterrupt):
        functions.pack(in_main("def use(): return now", now=Interrupted())["use"])


def test_functions_that_no_task_uses_are_forgotten_when_there_are_many(functions: Functions, directory: str) -> None:
    main = in_main(
        f"data = {b'x' * (2 * LARGE)!r}\ndef large(): return len(data)\ndef a(): return 1\ndef b(): return 2"
    )
    large, a, b = (functions.pack(main[name]) for name in ("large", "a", "b"))
    a.users = 1
    assert functions.drop_idle(3) == []
    assert functions.drop_idle(2) == [large.id, b.id]
    assert files(directory) == 0
    assert functions.pack(main["a"]) is a
    assert functions.pack(main["b"]).id not in (a.id, b.id, large.id)


# ---- outcomes


def new_request(program: Program | None = None, **options: Any) -> Request:
    prepare = protocol.Prepare(
        environment=1, python=["python"], start="fork", max_tasks=1, cwd="/data", path=[], env={"PATH": "/nowhere"}
    )
    future = TaskFuture(7, "fit", 0.0)
    future.claim(1, "node7")
    future.begin(Started(7, 1, 4711, 1.0))
    return Request(future, make_options(TaskOptions(), **options), None, prepare, program=program)


def ended(end: str, body: bytes = b"", **rest: Any) -> Finished:
    return Finished(7, 1, end, body, pid=4711, started=1.0, ended=2.0, **rest)


def told(request: Request, finished: Finished) -> tuple[Any, BaseException | None]:
    """The result and the exception of a task, in the way that the delivery goes."""
    request.future.tell_end(finished)
    return unpack(request, finished)


def value_of(value: Any, directory: str) -> Any:
    ok, body = bodies.dump_value(value, [directory])
    assert ok
    result, error = told(new_request(), ended(VALUE, body))
    assert error is None
    return result


def error_of(call: Callable[[], Any], directory: str) -> BaseException:
    """What the submitter gets when ``call`` raises in a task."""
    try:
        call()
    except BaseException as raised:
        body = bodies.dump_error(raised, [directory])
    result, error = told(new_request(), ended(ERROR, body))
    assert result is None
    assert error is not None
    assert files(directory) == 0
    return error


@pytest.mark.parametrize(
    "value", [None, 0, 2.5, "text", [1, {2: 3}], b"x" * (3 * LARGE), "x" * (3 * LARGE), bytearray(LARGE), object]
)
def test_a_value_arrives_as_it_was_and_leaves_no_file(directory: str, value: Any) -> None:
    assert value_of(value, directory) == value
    assert files(directory) == 0


def test_an_array_arrives_and_can_be_written(directory: str) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(float(LARGE))
    result = value_of({"one": array, "two": [array]}, directory)
    assert result["one"] is result["two"][0]
    result["one"][0] = 5.0
    assert (result["one"][1:] == array[1:]).all()
    assert files(directory) == 0


def test_an_exception_that_is_returned_is_a_result(directory: str) -> None:
    assert isinstance(value_of(ValueError("no error"), directory), ValueError)


def explode() -> Any:
    raise RuntimeError("loading failed")


class LoadsBadly:
    def __reduce__(self) -> Any:
        return explode, ()


def test_a_result_that_cannot_be_unpickled_is_the_error_of_its_future(directory: str) -> None:
    ok, body = bodies.dump_value([LoadsBadly(), b"x" * (3 * LARGE)], [directory])
    assert ok
    result, error = told(new_request(), ended(VALUE, body))
    assert (result, type(error), str(error)) == (None, RuntimeError, "loading failed")
    assert error is not None
    assert "while the result of task 7 (fit) on node7, process 4711 was unpickled" in error.__notes__[0]
    assert files(directory) == 0


def test_a_result_that_cannot_be_pickled_is_named_by_its_type(directory: str) -> None:
    ok, body = bodies.dump_value(Opaque(), [directory])
    assert not ok
    _, error = told(new_request(), ended(ERROR, body))
    assert isinstance(error, SerializationError)
    assert "the result of task 7 (fit) on node7, process 4711, of type" in str(error)
    assert "Opaque, cannot be pickled: TypeError: it is bound to this process" in str(error)
    assert isinstance(error.__cause__, RemoteTraceback)


def raiser(error: BaseException | type[BaseException]) -> Callable[[], Any]:
    def call() -> Any:
        raise error

    return call


@pytest.mark.parametrize(
    "raised",
    [
        ValueError("a message", 42),
        KeyError("missing"),
        OSError(errno.ENOENT, "no file", "/x"),
        SystemExit(3),
        KeyboardInterrupt(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        ExceptionGroup("two", [ValueError(1), TypeError(2)]),
        StopIteration(5),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_arrives_as_itself_with_the_remote_traceback_as_cause(
    directory: str, raised: BaseException
) -> None:
    error = error_of(raiser(raised), directory)
    assert type(error) is type(raised)
    assert str(error) == str(raised)
    if not isinstance(raised, ExceptionGroup):
        assert error.args == raised.args
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "task 7 (fit) on node7, process 4711:" in str(error.__cause__)
    assert "raise error" in str(error.__cause__)


def test_notes_and_attributes_of_an_exception_arrive(directory: str) -> None:
    raised = ValueError("a message")
    raised.add_note("seen before")
    raised.ticket = 42
    error = error_of(raiser(raised), directory)
    assert (error.__notes__, vars(error)["ticket"]) == (["seen before"], 42)


class Falsey(Exception):
    """An exception that looks like nothing."""

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0


def test_an_exception_that_is_false_is_still_an_exception(directory: str) -> None:
    error = error_of(raiser(Falsey("there")), directory)
    assert isinstance(error, Falsey)
    request = new_request()
    request.future.settle(None, error)
    assert request.future.exception(0) is error


class TwoArguments(Exception):
    """Cannot be rebuilt from its args, as many exceptions of libraries."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} at {where}")


class UnpicklableError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = Opaque()


class Speechless(UnpicklableError):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("raised", "name", "text"),
    [
        (TwoArguments("fire", "node7"), "TwoArguments", "fire at node7"),
        (UnpicklableError("locked"), "UnpicklableError", "locked"),
        (Speechless("x"), "Speechless", "(its text cannot be had: RuntimeError)"),
    ],
)
def test_an_exception_that_does_not_survive_pickling_is_told(
    directory: str, raised: BaseException, name: str, text: str
) -> None:
    error = error_of(raiser(raised), directory)
    assert isinstance(error, RemoteError)
    assert (error.type_name, error.text) == (name, text)
    assert str(error).startswith(f"task 7 (fit) on node7, process 4711 raised {name}: {text}\n(the exception itself")
    if name != "Speechless":
        assert "raise error" in error.traceback
        assert error.traceback.rstrip() in str(error)


def test_a_large_exception_goes_through_a_file(directory: str) -> None:
    error = error_of(raiser(ValueError("x" * (3 * LARGE))), directory)
    assert len(str(error)) == 3 * LARGE


OF_CLIENT = pickle.dumps(LoadsBadly())


@pytest.mark.parametrize(
    ("described", "name", "text"),
    [
        (("error", OF_CLIENT, "Odd", "a text", "Traceback ..."), "Odd", "a text"),
        (("error", pickle.dumps(42), "Odd", "a text", "Traceback ..."), "Odd", "a text"),
        (("error", b"garbage", "Odd", "a text", "Traceback ..."), "Odd", "a text"),
        (("remote", "Odd", "a text", "Traceback ..."), "Odd", "a text"),
    ],
)
def test_an_exception_that_cannot_be_rebuilt_here_is_told(described: Any, name: str, text: str) -> None:
    _, error = told(new_request(), ended(ERROR, b"\0" + pickle.dumps(described)))
    assert isinstance(error, RemoteError)
    assert (error.type_name, error.text, error.traceback) == (name, text, "Traceback ...")


class Licence(Exception):
    """Can be rebuilt where the task runs, and nowhere else."""

    where = "node7"

    def __reduce__(self) -> Any:
        return rebuild_licence, self.args


def rebuild_licence(text: str) -> Licence:
    if Licence.where != "node7":
        raise ImportError("libLicence.so: cannot open shared object file")
    return Licence(text)


def test_an_exception_that_can_be_rebuilt_only_there_is_told_as_it_was(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.suppress(Licence):
        try:
            raise Licence("none is left")
        except Licence as raised:
            body = bodies.dump_error(raised, [directory])
            raise
    assert isinstance(told(new_request(), ended(ERROR, body))[1], Licence)
    monkeypatch.setattr(Licence, "where", "here")
    _, error = told(new_request(), ended(ERROR, body))
    assert isinstance(error, RemoteError)
    assert (error.type_name, error.text) == ("Licence", "none is left")
    assert str(error).startswith("task 7 (fit) on node7, process 4711 raised Licence: none is left\n")
    assert 'raise Licence("none is left")' in error.traceback
    assert isinstance(error.__cause__, RemoteTraceback)


def test_a_description_that_is_garbage_is_told() -> None:
    _, error = told(new_request(), ended(ERROR, b"\0garbage"))
    assert isinstance(error, RemoteError)
    assert error.type_name == "UnpicklingError"


def test_the_files_of_an_outcome_that_nobody_wants_are_removed(directory: str) -> None:
    for value in (b"x" * (3 * LARGE), bytearray(LARGE), 5):
        outcome.discard(ended(VALUE, bodies.dump_value(value, [directory])[1]))
    outcome.discard(ended(KILLED))
    outcome.discard(Lost("gone"))
    assert files(directory) == 0


def test_a_sentence_is_not_taken_for_the_names_of_files() -> None:
    for end in (NOT_STARTED, LOST):
        report = ended(end, b"/data/out.txt: Is a directory")
        outcome.discard(report)
        assert report.body == b"/data/out.txt: Is a directory"


@pytest.mark.parametrize(
    ("end", "kind"), [(KILLED, TaskKilled), (TIMED_OUT, TaskTimeout), (EXITED, TaskDied)], ids=lambda each: str(each)
)
def test_what_a_task_returned_that_was_ended_leaves_no_file(
    directory: str, end: str, kind: type[BaseException]
) -> None:
    """It returned when it was told to end: its value is there, and nobody gets it."""
    _, body = bodies.dump_value(bytearray(LARGE), [directory])
    assert files(directory) == 1
    assert type(told(new_request(time_limit=1), ended(end, body))[1]) is kind
    assert files(directory) == 0


# ---- ends without an outcome


def test_a_process_that_died_is_told_with_all_that_is_known() -> None:
    request = new_request()
    request.future.printed(1, 2, b"Segmentation ")
    error = told(request, ended(EXITED, returncode=-11, stderr=Tail(b"fault\n")))[1]
    assert type(error) is TaskDied
    assert str(error) == (
        "task 7 (fit) on node7, process 4711 ended before it gave a result: "
        "its process was ended by signal 11 (SIGSEGV)\nThe end of its stderr:\n  Segmentation fault"
    )
    assert (error.task, error.host, error.pid, error.attempt) == ("fit", "node7", 4711, 1)
    assert (error.returncode, error.signal, error.stderr) == (-11, 11, "Segmentation fault\n")


def test_a_task_that_was_killed_is_told() -> None:
    error = told(new_request(), ended(KILLED, returncode=-15))[1]
    assert type(error) is TaskKilled
    assert "was killed on request: its process was ended by signal 15 (SIGTERM)" in str(error)


def test_a_task_that_was_killed_before_it_started_has_no_process() -> None:
    request = Request(TaskFuture(7, "fit", 0.0), TaskOptions(), None, new_request().environment)
    error = told(request, Finished(7, 0, KILLED))[1]
    assert type(error) is TaskKilled
    assert str(error) == "task 7 (fit) was killed on request"
    assert error.pid is None


def test_a_later_attempt_is_named() -> None:
    request = new_request()
    request.future.claim(3, "node8")
    assert "task 7 (fit, attempt 3) on node8" in str(told(request, ended(KILLED, returncode=-9))[1])


def test_a_task_that_took_too_long_is_told() -> None:
    request = new_request(time_limit=1.5)
    request.future.printed(1, 2, b"iteration 7\n")
    error = told(request, ended(TIMED_OUT, returncode=-15))[1]
    assert type(error) is TaskTimeout
    assert str(error) == (
        "task 7 (fit) on node7, process 4711 ran longer than its time_limit of 1.5 s\n"
        "The end of its stderr:\n  iteration 7"
    )
    assert (error.task, error.time_limit, error.stderr) == ("fit", 1.5, "iteration 7\n")


def test_a_task_that_was_lost_too_often_is_told() -> None:
    error = unpack(new_request(crash_limit=2), Lost("the agent on node7 ended with -9"))[1]
    assert type(error) is TaskLost
    assert (error.task, error.losses, error.crash_limit) == ("fit", 3, 2)
    assert "was running when its agent was lost, 3 times (crash_limit=2); the last time: the agent on" in str(error)


def test_an_exception_of_the_hub_is_the_outcome() -> None:
    error = RuntimeError("the hub failed")
    assert unpack(new_request(), error) == (None, error)


# ---- programs


def test_a_program_that_ended_well_is_a_completed_process() -> None:
    request = new_request(Program(["mesher", "-n", "4"]))
    request.future.printed(1, 1, b"out")
    result, error = told(request, ended(COMPLETED, returncode=0, stdout=Tail(b"put"), stderr=Tail(b"note")))
    assert error is None
    assert isinstance(result, subprocess.CompletedProcess)
    assert vars(result) == {"args": ["mesher", "-n", "4"], "returncode": 0, "stdout": "output", "stderr": "note"}


def test_a_program_that_failed_is_an_error() -> None:
    result, error = told(new_request(Program(["mesher"])), ended(COMPLETED, returncode=3, stderr=Tail(b"no case\n")))
    assert result is None
    assert type(error) is ProgramFailed
    assert (error.returncode, error.cmd, error.stderr) == (3, ["mesher"], "no case\n")


def test_a_program_whose_status_is_not_checked_is_a_result() -> None:
    result, error = told(new_request(Program(["mesher"], check=False)), ended(COMPLETED, returncode=-9))
    assert error is None
    assert result.returncode == -9


@pytest.mark.parametrize(
    ("end", "kind"), [(TIMED_OUT, TaskTimeout), (KILLED, TaskKilled)], ids=["its time is over", "killed"]
)
def test_a_program_that_was_ended_is_told_like_a_call(end: str, kind: type[BaseException]) -> None:
    _, error = told(new_request(Program(["mesher"], check=False), time_limit=1), ended(end, returncode=-15))
    assert type(error) is kind


def test_a_program_that_was_not_started_says_where_it_was_looked_for() -> None:
    request = new_request(Program(["mesher"]), env={"PATH": "/opt/bin:/opt/sbin"}, cwd="/data")
    _, error = told(request, ended(NOT_STARTED, returncode=errno.ENOENT))
    assert type(error) is ProgramNotStarted
    assert (error.errno, error.filename, error.missing) == (errno.ENOENT, "mesher", True)
    assert str(error).startswith("task 7 (fit) on node7, process 4711: ")
    assert "/opt/bin" in str(error)


def test_a_program_is_not_looked_for_where_its_path_was_unset() -> None:
    request = new_request(Program(["mesher"]), env={"PATH": None})
    _, error = told(request, ended(NOT_STARTED, returncode=errno.ENOENT))
    assert type(error) is ProgramNotStarted
    assert "/nowhere" not in str(error)


def test_a_program_is_looked_for_where_its_environment_says() -> None:
    _, error = told(new_request(Program(["mesher"])), ended(NOT_STARTED, returncode=errno.ENOENT))
    assert "/nowhere" in str(error)


def test_what_stood_in_the_way_of_a_program_is_told_if_it_was_not_the_program() -> None:
    request = new_request(Program(["mesher"]))
    _, error = told(request, ended(NOT_STARTED, b"/data/out.txt: Is a directory", returncode=errno.EISDIR))
    assert type(error) is ProgramNotStarted
    assert str(error).endswith("cannot start 'mesher': /data/out.txt: Is a directory")
    assert error.errno == errno.EISDIR


def test_a_program_whose_end_is_not_its_own_is_told_like_a_call() -> None:
    assert type(told(new_request(Program(["mesher"])), ended(EXITED, returncode=-9))[1]) is TaskDied


# ---- environments that cannot be had


def refused(outcome: Refused) -> BaseException | None:
    """What a task is told whose environment has an initializer."""
    request = new_request()
    request.environment = msgspec.structs.replace(request.environment, initializer=b"packed")
    return unpack(request, outcome)[1]


def test_an_environment_without_an_interpreter_is_told() -> None:
    error = unpack(new_request(), Refused("the interpreter python9 cannot be started", b""))[1]
    assert type(error) is EnvironmentFailed
    assert (str(error), error.__cause__) == ("the interpreter python9 cannot be started", None)


def test_an_initializer_that_raised_is_told_with_its_error(directory: str) -> None:
    body = b""
    with contextlib.suppress(ValueError):
        try:
            raise ValueError("no licence")
        except ValueError as raised:
            body = bodies.dump_error(raised, [directory])
            raise
    error = refused(Refused("the initializer raised ValueError: no licence", body, True))
    assert type(error) is InitializerFailed
    assert str(error) == "the initializer raised ValueError: no licence; the executor takes no more tasks"
    assert isinstance(error.__cause__, ValueError)


def test_an_initializer_whose_error_does_not_travel_is_told(directory: str) -> None:
    body = bodies.dump_error(TwoArguments("fire", "node7"), [directory])
    error = refused(Refused("the initializer raised TwoArguments: fire at node7", body, True))
    assert type(error) is InitializerFailed
    assert "fire at node7" in str(error)


def test_an_initializer_whose_error_cannot_be_rebuilt_here_is_told() -> None:
    """Its class exists on the node alone, say."""
    body = b"\0" + pickle.dumps(("error", OF_CLIENT, "Odd", "x", "Traceback ..."))
    error = refused(Refused("the initializer raised Odd: x", body, True))
    assert type(error) is InitializerFailed
    assert isinstance(error.__cause__, RemoteError)
    assert (error.__cause__.type_name, error.__cause__.text) == ("Odd", "x")


def test_a_module_whose_name_has_the_word_initializer_in_it_is_none() -> None:
    text = "the template interpreter could not be prepared: ImportError: No module named 'initializers'"
    assert type(refused(Refused(text, b""))) is EnvironmentFailed


def test_what_a_task_printed_does_not_belong_to_the_next_attempt() -> None:
    request = new_request()
    request.future.printed(1, 2, b"first")
    request.future.claim(2, "node8")
    request.future.printed(1, 2, b"late")
    request.future.begin(Started(7, 2, 4712, 3.0))
    request.future.printed(2, 2, b"second")
    error = told(request, ended(EXITED, returncode=1))[1]
    assert isinstance(error, TaskDied)
    assert error.stderr == "second"
