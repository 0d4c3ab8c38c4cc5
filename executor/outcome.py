"""Outcomes of attempts to results and exceptions: unpickled, or told in a sentence what happened instead."""

from __future__ import annotations

import io
import logging
import pickle
import subprocess
from collections.abc import Callable
from typing import Any

import msgspec
from cloudpickle.cloudpickle import (
    _DYNAMIC_CLASS_TRACKER_BY_ID,  # classes that were sent or received by value, by a number that travels with them
)

from executor.calls import Request
from executor.core import effects
from executor.core.dependents import FAILED, OK
from executor.core.model import Task
from executor.core.offers import Impossible
from executor.errors import (
    AgentFailed,
    DependencyFailed,
    EnvironmentFailed,
    InitializerFailed,
    OutputMissing,
    ProgramFailed,
    ProgramNotStarted,
    RemoteError,
    RemoteTraceback,
    SerializationError,
    TaskDied,
    TaskKilled,
    TaskLost,
    TaskOutOfMemory,
    TaskTimeout,
    UnsatisfiableRequest,
    describe_end,
    with_stderr,
)
from executor.functions import reason_of
from executor.future import TaskFuture
from executor.program import Program, check_completed, explain_not_started
from worker_agent import bodies, protocol, store

log = logging.getLogger("executor")

_plain = msgspec.json.Decoder(int | float | bool | None)
#: Ends whose body is a sentence, and not a value or an error.
_EXPLAINED = frozenset({protocol.NOT_STARTED, protocol.LOST, protocol.COMPLETED, protocol.NO_OUTPUT})


def unpack(request: Request, outcome: object) -> tuple[Any, BaseException | None]:
    """The result of a task, or its exception. Runs the user's code (unpickling); never on the hub's thread."""
    if isinstance(outcome, effects.Lost):
        return None, _lost(request, outcome)
    if isinstance(outcome, effects.Refused):
        return None, _refused(request, outcome)
    if isinstance(outcome, effects.Unmet):
        return None, _unmet(request, outcome)
    if isinstance(outcome, BaseException):
        return None, outcome
    assert isinstance(outcome, protocol.Finished)
    if outcome.end == protocol.VALUE:
        return _load_value(request.future, outcome.body)
    if outcome.end == protocol.ERROR:
        return None, _load_error(request.future, outcome.body)
    if request.program is not None and outcome.end == protocol.COMPLETED and outcome.returncode is not None:
        return _completed(request.future, request.program, outcome.returncode, outcome.body)
    return None, _unsuccessful(request, outcome)


def plain_value(finished: protocol.Finished) -> tuple[bool, Any]:
    """Whether the outcome is a value that can be read without running anybody's code; and that value."""
    if finished.end != protocol.VALUE or finished.body[:1] != bodies.PLAIN:
        return False, None
    try:
        return True, _plain.decode(memoryview(finished.body)[1:])
    except msgspec.DecodeError:  # garbled: the delivery will say so
        return False, None


def discard(outcome: object) -> None:
    """Remove the files of an outcome that nobody wants any more."""
    if isinstance(outcome, protocol.Finished) and outcome.end not in _EXPLAINED and outcome.body:
        try:
            for path, _ in bodies.files_of(bodies.whole(outcome.body)):
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
    if body[:1] == bodies.PLAIN:
        return _plain.decode(memoryview(body)[1:])
    if body[:1] in bodies.INLINE:
        if b"_class_setstate" in body:
            return ClassKeepingUnpickler(io.BytesIO(body[1:])).load()
        return pickle.loads(memoryview(body)[1:])
    body = bodies.whole(body)
    files = bodies.files_of(body)
    try:
        if body[:1] == b"\2":
            return bodies.load(files[0], files[1:])
        return bodies.load(bodies.pickle_of(body), files)
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


def _load_error(future: TaskFuture, body: bytes) -> BaseException:
    try:
        kind, *rest = _load_body(body)
    except BaseException as error:
        return _not_rebuilt(future, type(error).__name__, bodies.safe_str(error), "")
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
        log.debug("an exception of %s cannot be rebuilt here: %s", describe(future), reason_of(trouble))
        error = None
    return error if isinstance(error, BaseException) else _not_rebuilt(future, type_name, message, text)


def _not_rebuilt(future: TaskFuture, type_name: str, message: str, text: str) -> RemoteError:
    what = f"{describe(future)} raised {type_name}: {message}\n(the exception itself does not survive pickling)"
    return RemoteError(f"{what}\n{text}".rstrip(), type_name=type_name, text=message, traceback=text)


def _completed(
    future: TaskFuture, program: Program, returncode: int, said: bytes
) -> tuple[Any, BaseException | None]:
    completed = subprocess.CompletedProcess(list(program.argv), returncode, future.stdout, future.stderr)
    try:
        return check_completed(program, completed), None
    except ProgramFailed as error:
        if said:
            error.said = said.decode(errors="replace").strip()
        return None, error


def _unsuccessful(request: Request, outcome: protocol.Finished) -> BaseException:
    future = request.future
    if outcome.end == protocol.NOT_STARTED:  # of a call on several ranks, too: each of them is a Python
        return _not_started(request, (request.program or Program(request.environment.python)).argv[0], outcome)
    if outcome.end == protocol.NO_OUTPUT:
        return _no_output(future, outcome.body)
    discard(outcome)  # of a task that returned when it was told to end
    if outcome.end == protocol.OUT_OF_MEMORY:
        return _out_of_memory(future, outcome)
    if outcome.end == protocol.TIMED_OUT:
        limit = request.options.time_limit or 0.0
        text = with_stderr(f"{describe(future)} ran longer than its time_limit of {limit:g} s", future.stderr)
        return TaskTimeout(text, task=future.name, time_limit=limit, stderr=future.stderr)
    return _died(future, outcome)


def _out_of_memory(future: TaskFuture, outcome: protocol.Finished) -> TaskOutOfMemory:
    seen = outcome.memory or protocol.Memory(0, 0, "kernel")
    had = f"it had {_mib(seen.peak)}" if seen.peak else "it is not known how much it had"
    might = f", and might have {_mib(seen.limit)}" if seen.limit else ""
    who = "by its agent" if seen.by == "agent" else "by the kernel"
    text = f"{describe(future)} ran out of memory and was ended {who}: {had}{might}"
    return TaskOutOfMemory(
        with_stderr(f"{text}. Ask for more by memory=...", future.stderr), task=future.name, host=future.host or "",
        pid=future.pid, attempt=future.attempt, returncode=outcome.returncode, stderr=future.stderr,
        peak=seen.peak or None, limit=seen.limit or None, by=seen.by,
    )  # fmt: skip


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


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


def _not_started(request: Request, argv0: str, outcome: protocol.Finished) -> ProgramNotStarted:
    number = outcome.returncode or 0
    if outcome.body:
        text = f"{describe(request.future)}: cannot start {argv0!r}: {outcome.body.decode(errors='replace')}"
        return ProgramNotStarted(number, text, argv0)
    changes = dict(request.options.env)
    env = {name: text for name, text in request.environment.env.items() if name not in changes}
    env.update({name: text for name, text in changes.items() if text is not None})
    cwd = request.options.cwd or request.environment.cwd
    sentence = explain_not_started(argv0, number, cwd, env.get("PATH"))
    return ProgramNotStarted(number, f"{describe(request.future)}: {sentence}", argv0)


def _no_output(future: TaskFuture, body: bytes) -> OutputMissing:
    """Where an agent does not say what is missing, the text is all that there is."""
    try:
        failure = msgspec.json.decode(body, type=protocol.Uncollected)
    except msgspec.DecodeError:
        failure = protocol.Uncollected(text="its agent does not say why")
    text = f"{describe(future)} ended with status 0, but {failure.text or _missing(failure)}"
    return OutputMissing(
        with_stderr(text, future.stderr), task=future.name, missing=tuple(failure.missing),
        found=tuple(failure.found), stderr=future.stderr,
    )  # fmt: skip


def _missing(failure: protocol.Uncollected) -> str:
    several = len(failure.missing) > 1
    names = ", ".join(map(repr, failure.missing))
    found = ", ".join(map(repr, failure.found)) or "nothing else"
    return f"its output{'s' * several} {names} {'are' if several else 'is'} not in its directory, which holds {found}"


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


def refusal(lacking: Impossible, why_not: str, task: Task) -> BaseException:
    """The exception for a task that no agent can run. ``why_not``: why none will come that could; "" if none could."""
    name = task.body.future.name
    if why_not:
        return AgentFailed(f"the task {name!r} needs {lacking} now: {why_not}")
    return UnsatisfiableRequest(f"the task {name!r} needs {lacking}", task=name, **lacking.attributes())


def _unmet(request: Request, outcome: effects.Unmet) -> DependencyFailed:
    """What it waited for did not end as it had to."""
    first = outcome.first.future if isinstance(outcome.first, Request) else outcome.first
    if first.done() and not first.cancelled() and isinstance(known := first.exception(), DependencyFailed):
        first = known.future or first  # it was not the first itself
    name = describe(first) if isinstance(first, TaskFuture) else repr(first)
    ended = {OK: "has succeeded, and was to fail", FAILED: "has failed"}[outcome.how]
    error = DependencyFailed(
        f"{describe(request.future)} was not run: {name} {ended}", task=request.future.name,
        failed=getattr(first, "name", ""), failed_id=getattr(first, "task_id", None), future=first,
    )  # fmt: skip
    if first.done() and not first.cancelled():
        error.__cause__ = first.exception()
    return error


def describe(future: TaskFuture) -> str:
    """The task in a sentence: its number and name, and where it ran."""
    where = f" on {future.host}" if future.host else ""
    process = f", process {future.pid}" if future.pid else ""
    attempt = f", attempt {future.attempt}" if future.attempt > 1 else ""
    return f"task {future.task_id} ({future.name}{attempt}){where}{process}"
