"""Calls to bytes, and outcomes of attempts to results and exceptions. The only place on this side that pickles.

Everything goes by cloudpickle, so that lambdas, closures and classes of ``__main__`` travel. Two short cuts give the
same bytes for less: arguments of plain types need no more than the standard pickler, and a function whose pickle cannot
have changed since the last time is not pickled again.
"""

from __future__ import annotations

import codecs
import io
import logging
import pickle
import struct
import subprocess
import sys
import types
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import msgspec
from cloudpickle.cloudpickle import (
    _DYNAMIC_CLASS_TRACKER_BY_ID,  # classes that were sent or received by value, by a number that travels with them
    _PICKLE_BY_VALUE_MODULES,  # the set behind list_registry_pickle_by_value()
)

from executor.core import effects
from executor.errors import (
    EnvironmentFailed,
    InitializerFailed,
    ProgramNotStarted,
    RemoteError,
    RemoteTraceback,
    SerializationError,
    TaskDied,
    TaskKilled,
    TaskLost,
    TaskTimeout,
    describe_end,
    with_stderr,
)
from executor.future import TaskFuture
from executor.options import TaskOptions
from executor.payloads import Payloads
from executor.program import Program, check_completed, explain_not_started
from worker_agent import protocol, runner, store

_PLAIN = frozenset({int, float, bool, complex, type(None)})
_TEXT = frozenset({str, bytes})
_SMALL_TEXT = 4096
_INLINE = frozenset({b"\0", runner.PLAIN})
#: No buffers: one value for all the tasks that have none.
NOTHING: tuple[protocol.Stored, ...] = ()

# --- calls to bytes ---------------------------------------------------------------------------------------------------


log = logging.getLogger("executor")

#: Ends whose body is a sentence, and not a value or an error.
_EXPLAINED = frozenset({protocol.NOT_STARTED, protocol.LOST})


class OutOfBand:
    """A large ``bytes`` argument, pickled as a buffer of its own: it is stored once however often it is submitted."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (pickle.PickleBuffer(self.data),)


def pack_arguments(
    args: Any, kwargs: dict[str, Any], payloads: Payloads, chunk: bool = False
) -> tuple[protocol.Payload, Sequence[protocol.Stored]]:
    """The pickle of ``(args, kwargs)`` and its out-of-band buffers. Raises SerializationError.

    With ``chunk``, ``args`` is a list of argument tuples, and that alone is pickled.
    """
    if chunk:
        return _pack_chunk(args, payloads)
    if not kwargs and all(map(_is_plain, args)):
        data = pickle.dumps((args, kwargs), 5)
        if len(data) <= store.INLINE_LIMIT:
            return data, NOTHING
    large = tuple(OutOfBand(each) if _is_large_bytes(each) else each for each in args)
    named = {name: OutOfBand(each) if _is_large_bytes(each) else each for name, each in kwargs.items()}
    try:
        return pack((large, named), payloads)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | OSError):
            raise
        raise _blame_argument(args, kwargs, error) from error


def pack_initializer(initializer: Callable[..., object], args: Sequence[Any]) -> bytes:
    """The pickle of ``(initializer, args)``. Raises SerializationError."""
    try:
        return cloudpickle.dumps((initializer, tuple(args)), protocol=5)  # type: ignore[no-any-return]  # has no types
    except Exception as error:
        raise SerializationError(f"the initializer or its initargs cannot be pickled: {error}") from error


def _pack_chunk(
    calls: list[tuple[Any, ...]], payloads: Payloads
) -> tuple[protocol.Payload, Sequence[protocol.Stored]]:
    try:
        return pack(calls, payloads)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | OSError):
            raise
        raise _blame_argument(calls, {}, error) from error


def _is_plain(value: Any) -> bool:
    kind = type(value)
    return kind in _PLAIN or (kind in _TEXT and len(value) < _SMALL_TEXT)


def _is_large_bytes(value: Any) -> bool:
    return type(value) is bytes and len(value) >= store.INLINE_LIMIT


def pack(value: Any, payloads: Payloads) -> tuple[protocol.Payload, Sequence[protocol.Stored]]:
    """The pickle of ``value`` and its out-of-band buffers; what was stored is given back if pickling fails."""
    spill = store.Spill(payloads.directories)
    buffers: list[Any] = []
    kept: list[protocol.Stored] = []
    try:
        cloudpickle.Pickler(spill, protocol=5, buffer_callback=store.keep_small_in_band(buffers)).dump(value)
        for buffer in buffers:
            kept.append(payloads.put(buffer))
    except BaseException:
        spill.discard()
        for stored in kept:
            payloads.release(stored)
        raise
    spill.close()
    return (spill.inline() if spill.path is None else protocol.Stored(spill.path, spill.size)), kept


def _blame_argument(args: Any, kwargs: dict[str, Any], error: BaseException) -> SerializationError:
    named = [(f"argument {position}", value) for position, value in enumerate(args)]
    named += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    for name, value in named:
        if not _pickles(value):
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            return SerializationError(f"{name}, of type {kind}, cannot be pickled: {_reason(error)}")
    return SerializationError(f"the arguments cannot be pickled together: {_reason(error)}")


def _safe_repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as trouble:
        return f"(of type {type(value).__qualname__}, whose repr raises {type(trouble).__name__})"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {runner.safe_str(error)}"


def _pickles(value: Any) -> bool:
    try:
        cloudpickle.dumps(value, protocol=5)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return False
    return True


@dataclass(slots=True, eq=False)
class Request:
    """A task on this side: its future, and what its agent is to be sent. The ``body`` of the scheduler's task."""

    future: TaskFuture
    options: TaskOptions
    settings: protocol.Settings | None
    environment: protocol.Prepare
    function: Function | None = None
    program: Program | None = None
    args: protocol.Payload = b""
    buffers: Sequence[protocol.Stored] = NOTHING
    chunk: bool = False
    #: whether news of the task is with the delivery threads, so that its outcome must follow that way
    told: bool = False
    #: for what is shown of its streams: a letter may come in two pieces
    decoders: dict[tuple[int, int], codecs.IncrementalDecoder] | None = None

    def order_body(self) -> protocol.Call | protocol.Command:
        """What the agent is to run."""
        if self.function is not None:
            return protocol.Call(self.function.id, self.args, list(self.buffers), self.chunk)
        assert self.program is not None
        stdin = self.program.stdin
        path = str(stdin) if isinstance(stdin, Path) else None
        return protocol.Command(list(self.program.argv), self.program.stdin_bytes(), path)

    def stored(self) -> Sequence[protocol.Stored]:
        """The files that hold its arguments."""
        return [*self.buffers, self.args] if isinstance(self.args, protocol.Stored) else self.buffers


@dataclass(slots=True, eq=False)
class Function:
    """A pickled function, sent to an agent once. ``users`` are the tasks that have not ended (hub thread only)."""

    id: int
    body: protocol.Payload
    users: int = 0


class Functions:
    """The functions of one executor, by content. Any thread."""

    def __init__(self, payloads: Payloads) -> None:
        self._payloads = payloads
        self._by_body: dict[bytes, Function] = {}
        self._large = 0
        self._numbers = iter(range(1, 2**62)).__next__
        self._remembered: dict[int, _Remembered] = {}

    def pack(self, function: Callable[..., Any]) -> Function:
        """The function's pickle, by a number. Raises SerializationError."""
        known = self._remembered.get(id(function))
        if known is not None and known.still_holds(function):
            return known.packed
        packed = self._intern(self._pickle(function))
        self._remember(function, packed)
        return packed

    def _pickle(self, function: Callable[..., Any]) -> bytes:
        try:
            return cloudpickle.dumps(function, protocol=5)  # type: ignore[no-any-return]
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            text = f"the function {_safe_repr(function)} cannot be pickled: {_reason(error)}"
            raise SerializationError(text) from error

    def _intern(self, body: bytes) -> Function:
        found = self._by_body.get(body)
        if found is None:
            payload: protocol.Payload = body
            if len(body) > store.INLINE_LIMIT:
                payload = protocol.Stored(*store.store(body, self._payloads.directories))
            found = self._by_body.setdefault(body, Function(self._numbers(), payload))
        return found

    def _remember(self, function: Callable[..., Any], packed: Function) -> None:
        state = _by_reference(function, packed.body) or _state_of(function)
        if state is not None:
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[id(function)] = _Remembered(_reference(function), state, packed, _by_value_modules())

    def drop_idle(self, most: int) -> list[int]:
        """Forget the functions that no task uses, if there are more than ``most``; gives their numbers."""
        if len(self._by_body) <= most:
            return []
        idle = [(body, function) for body, function in list(self._by_body.items()) if function.users == 0]
        for body, function in idle:
            del self._by_body[body]
            if isinstance(function.body, protocol.Stored):
                store.remove(function.body.path)
        self._remembered.clear()
        return [function.id for _, function in idle]


#: A namespace, a name, and what it must still be there.
Dependency = tuple[dict[str, Any], str, Any]


def _by_value_modules() -> int:
    return len(_PICKLE_BY_VALUE_MODULES)


def _by_reference(function: Any, body: protocol.Payload) -> list[Dependency] | None:
    """What a pickle depends on that holds no more than the names of a module and of a function in it."""
    if type(function) is not types.FunctionType or function.__module__ in (None, "__main__"):
        return None
    module, name = sys.modules.get(function.__module__), function.__qualname__
    if module is None or vars(module).get(name) is not function or pickle.dumps(function, 5) != body:
        return None
    return [(sys.modules, function.__module__, module), (vars(module), name, function)]


def _reference(function: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(function)
    except TypeError:
        return lambda: function


@dataclass(slots=True)
class _Remembered:
    """A function that was pickled, and all that its pickle was made from."""

    function: Callable[[], Any]
    state: list[Dependency]
    packed: Function
    by_value: int

    def still_holds(self, function: Any) -> bool:
        """Whether pickling it again would give the same bytes."""
        if self.function() is not function or self.by_value != _by_value_modules():
            return False
        return all(names.get(name, _MISSING) is value for names, name, value in self.state)


_MISSING = object()
_MOST_REMEMBERED = 256
#: A function with more dependencies than this is pickled each time.
_MOST_DEPENDENCIES = 64


def _state_of(function: Any) -> list[Dependency] | None:
    """What the pickle of ``function`` depends on: entries of namespaces that must stay as they are.

    None if that cannot be told: closures, attributes, globals of types that can change within.
    """
    if isinstance(function, types.BuiltinFunctionType) and isinstance(function.__self__, types.ModuleType):
        return []
    state: list[Dependency] = []
    return state if _collect(function, state, {id(function)}) else None


def _collect(function: Any, state: list[Dependency], seen: set[int]) -> bool:
    if not _is_simple_function(function):
        return False
    names = function.__globals__
    for name in _global_names(function.__code__):
        value = names.get(name, _MISSING)  # what is not there may come: a builtin, or not yet defined
        if len(state) >= _MOST_DEPENDENCIES or not (value is _MISSING or _is_constant(value, state, seen)):
            return False
        state.append((names, name, value))
    state.append((_CodeOf(function), "", function.__code__))
    return True


class _CodeOf(dict[str, Any]):
    """A namespace that tells the code of a function as long as it is still a simple one."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def get(self, _: str, default: Any = None) -> Any:
        """The code, whatever the name."""
        return self._function.__code__ if _is_simple_function(self._function) else default


def _is_simple_function(function: Any) -> bool:
    return (
        type(function) is types.FunctionType
        and function.__closure__ is None
        and function.__defaults__ is None
        and function.__kwdefaults__ is None
        and not function.__dict__
    )


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _is_constant(value: Any, state: list[Dependency], seen: set[int]) -> bool:
    if type(value) in _PLAIN or type(value) in _TEXT:
        return True
    if isinstance(value, types.ModuleType):
        return sys.modules.get(value.__name__) is value  # others are pickled with all that is in them
    if isinstance(value, types.BuiltinFunctionType):
        return isinstance(value.__self__, types.ModuleType)
    if type(value) is not types.FunctionType:
        return False
    if id(value) in seen:
        return True
    seen.add(id(value))
    return _collect(value, state, seen)


# --- outcomes of attempts ---------------------------------------------------------------------------------------------


def unpack(request: Request, outcome: object) -> tuple[Any, BaseException | None]:
    """The result of a task, or its exception. Runs the user's code (unpickling); never on the hub's thread."""
    if isinstance(outcome, effects.Lost):
        return None, _lost(request, outcome)
    if isinstance(outcome, effects.Refused):
        return None, _refused(request, outcome)
    if isinstance(outcome, BaseException):
        return None, outcome
    assert isinstance(outcome, protocol.Finished)
    if outcome.end == protocol.VALUE:
        return _load_value(request.future, outcome.body)
    if outcome.end == protocol.ERROR:
        return None, _load_error(request.future, outcome.body)
    if request.program is not None and outcome.end == protocol.COMPLETED and outcome.returncode is not None:
        return _completed(request.future, request.program, outcome.returncode)
    return None, _unsuccessful(request, outcome)


def plain_value(finished: protocol.Finished) -> tuple[bool, Any]:
    """Whether the outcome is a value whose unpickling runs none of the user's code; and that value."""
    if finished.end != protocol.VALUE or finished.body[:1] != runner.PLAIN:
        return False, None
    try:
        return True, pickle.loads(memoryview(finished.body)[1:])
    except Exception:  # garbled: the delivery will say so
        return False, None


def discard(outcome: object) -> None:
    """Remove the files of an outcome that nobody wants any more."""
    if isinstance(outcome, protocol.Finished) and outcome.end not in _EXPLAINED and outcome.body:
        try:
            for path, _ in _files(outcome.body):
                store.remove(path)
        except Exception:  # garbled: there is nothing to be found in it
            log.debug("an outcome that nobody wants cannot be read", exc_info=True)
        outcome.body = b""


def _load_value(future: TaskFuture, body: bytes) -> tuple[Any, BaseException | None]:
    try:
        return _load_body(body), None
    except BaseException as error:
        error.add_note(f"(raised here while the result of {describe(future)} was unpickled)")
        return None, error


def _load_body(body: bytes) -> Any:
    if body[:1] in _INLINE:
        if b"_class_setstate" in body:
            return ClassKeepingUnpickler(io.BytesIO(body[1:])).load()
        return pickle.loads(memoryview(body)[1:])
    body = _whole(body)
    files = _files(body)
    try:
        if body[:1] == b"\2":
            return runner.load(files[0], files[1:])
        return runner.load(body[_names_end(body) :], files)
    finally:
        for path, _ in files:
            store.remove(path)


class ClassKeepingUnpickler(pickle.Unpickler):
    """Unpickles instances of classes that cloudpickle sent by value, and leaves the classes that are here as they are.

    cloudpickle recognises a class of ours that comes back, but gives it the methods of the copy, whose globals are
    those of the task.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._ours: set[int] = set()

    def find_class(self, module: str, name: str) -> Any:
        """As usual, but for the two makers of classes."""
        found = super().find_class(module, name)
        if name == "_make_skeleton_class":
            return lambda *args: self._make_class(found, *args)
        if name == "_class_setstate":
            return lambda made, state: made if id(made) in self._ours else found(made, state)
        return found

    def _make_class(self, make: Callable[..., Any], *args: Any) -> Any:
        known = args[4] in _DYNAMIC_CLASS_TRACKER_BY_ID
        made = make(*args)
        if known:
            self._ours.add(id(made))
        return made


def _files(body: bytes) -> list[tuple[str, int]]:
    if body[:1] in _INLINE:
        return []
    body = _whole(body)
    return msgspec.json.decode(body[5 : _names_end(body)], type=list[tuple[str, int]])


def _whole(body: bytes) -> bytes:
    """The body itself, if it was too large for a message and lies in a file; that is removed."""
    if body[:1] != runner.ELSEWHERE:
        return body
    path = body[1:].decode()
    with open(path, "rb") as file:
        whole = file.read()
    store.remove(path)
    return whole


def _names_end(body: bytes) -> int:
    return 5 + int(struct.unpack_from("<I", body, 1)[0])


def _load_error(future: TaskFuture, body: bytes) -> BaseException:
    try:
        kind, *rest = _load_body(body)
    except BaseException as error:
        return _not_rebuilt(future, type(error).__name__, runner.safe_str(error), "")
    if kind == "remote":
        return _not_rebuilt(future, *rest)
    failure = _unpicklable(future, *rest) if kind == "unpicklable" else _rebuild(future, *rest)
    _set_cause(failure, RemoteTraceback(f'\n"""\n{describe(future)}:\n{rest[-1]}"""'))
    return failure


def _set_cause(error: BaseException, cause: BaseException) -> None:
    """Even if the class of ``error`` forbids to set attributes."""
    vars(BaseException)["__cause__"].__set__(error, cause)


def _unpicklable(future: TaskFuture, type_name: str, reason: str, _: str) -> SerializationError:
    text = f"the result of {describe(future)}, of type {type_name}, cannot be pickled: {reason}"
    return SerializationError(text)


def _rebuild(future: TaskFuture, pickled: bytes, type_name: str, message: str, text: str) -> BaseException:
    try:
        error = pickle.loads(pickled)
    except BaseException as trouble:
        log.debug("an exception of %s cannot be rebuilt here: %s", describe(future), _reason(trouble))
        error = None
    return error if isinstance(error, BaseException) else _not_rebuilt(future, type_name, message, text)


def _not_rebuilt(future: TaskFuture, type_name: str, message: str, text: str) -> RemoteError:
    what = f"{describe(future)} raised {type_name}: {message}\n(the exception itself does not survive pickling)"
    return RemoteError(f"{what}\n{text}".rstrip(), type_name=type_name, text=message, traceback=text)


def _completed(future: TaskFuture, program: Program, returncode: int) -> tuple[Any, BaseException | None]:
    completed = subprocess.CompletedProcess(list(program.argv), returncode, future.stdout, future.stderr)
    try:
        return check_completed(program, completed), None
    except subprocess.CalledProcessError as error:
        return None, error


def _unsuccessful(request: Request, outcome: protocol.Finished) -> BaseException:
    future = request.future
    if outcome.end == protocol.NOT_STARTED and request.program is not None:
        return _not_started(request, request.program, outcome)
    discard(outcome)  # of a task that returned when it was told to end
    if outcome.end == protocol.TIMED_OUT:
        limit = request.options.time_limit or 0.0
        text = with_stderr(f"{describe(future)} ran longer than its time_limit of {limit:g} s", future.stderr)
        return TaskTimeout(text, task=future.name, time_limit=limit, stderr=future.stderr)
    return _died(future, outcome)


def _died(future: TaskFuture, outcome: protocol.Finished) -> TaskDied:
    kind = TaskKilled if outcome.end == protocol.KILLED else TaskDied
    why = "was killed on request" if kind is TaskKilled else "ended before it gave a result"
    text = f"{describe(future)} {why}"
    if future.pid is not None and outcome.returncode is not None:
        text += f": its process {describe_end(outcome.returncode)}"
    return kind(
        with_stderr(text, future.stderr), task=future.name, host=future.host or "", pid=future.pid,
        attempt=future.attempt, returncode=outcome.returncode, stderr=future.stderr,
    )  # fmt: skip


def _not_started(request: Request, program: Program, outcome: protocol.Finished) -> ProgramNotStarted:
    number = outcome.returncode or 0
    if outcome.body:
        text = f"{describe(request.future)}: cannot start {program.argv[0]!r}: {outcome.body.decode(errors='replace')}"
        return ProgramNotStarted(number, text, program.argv[0])
    changes = dict(request.options.env)
    env = {name: text for name, text in request.environment.env.items() if name not in changes}
    env.update({name: text for name, text in changes.items() if text is not None})
    cwd = request.options.cwd or request.environment.cwd
    sentence = explain_not_started(program.argv[0], number, cwd, env.get("PATH"))
    return ProgramNotStarted(number, f"{describe(request.future)}: {sentence}", program.argv[0])


def _lost(request: Request, outcome: effects.Lost) -> TaskLost:
    limit = request.options.crash_limit
    text = f"{describe(request.future)} was running when its agent was lost, {limit + 1} times (crash_limit={limit})"
    return TaskLost(
        f"{text}; the last time: {outcome.reason}", task=request.future.name, losses=limit + 1, crash_limit=limit
    )


def _refused(request: Request, outcome: effects.Refused) -> BaseException:
    """The exception for a task whose interpreters cannot be had."""
    failure: BaseException = EnvironmentFailed(outcome.text)
    if outcome.initializer:
        failure = InitializerFailed(f"{outcome.text}; the executor takes no more tasks")
    if outcome.error:
        failure.__cause__ = _load_error(request.future, outcome.error)
    return failure


def describe(future: TaskFuture) -> str:
    """The task in a sentence: its number and name, and where it ran."""
    where = f" on {future.host}" if future.host else ""
    process = f", process {future.pid}" if future.pid else ""
    attempt = f", attempt {future.attempt}" if future.attempt > 1 else ""
    return f"task {future.task_id} ({future.name}{attempt}){where}{process}"
