"""Calls to bytes: what a task's agent is to be sent, pickled on the submitter's thread.

Everything goes by cloudpickle, so that lambdas, closures and classes of ``__main__`` travel. Arguments of plain types
need no more than the standard pickler, which gives the same bytes for less.
"""

from __future__ import annotations

import codecs
import io
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from executor import inputs
from executor.errors import SerializationError
from executor.functions import PLAIN, TEXT, Function, reason_of
from executor.future import TaskFuture
from executor.options import TaskOptions
from executor.payloads import Payloads
from executor.program import Program
from worker_agent import bodies, protocol, store

_SMALL_TEXT = 4096
#: No buffers: one value for all the tasks that have none.
NOTHING: tuple[protocol.Stored, ...] = ()


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
    #: futures among the arguments; and, when they have ended, their outcomes
    inputs: Sequence[Future[Any]] = ()
    results: list[bytes] | None = None
    #: whether news of the task is with the delivery threads, so that its outcome must follow that way
    told: bool = False
    #: while a thread delivers news of the task: what has come since, for that thread
    undelivered: list[Any] | None = None
    #: for what is shown of its streams: a letter may come in two pieces
    decoders: dict[tuple[int, int], codecs.IncrementalDecoder] | None = None

    def order_body(self) -> protocol.Call | protocol.Command:
        """What the agent is to run."""
        if self.function is not None:
            return protocol.Call(self.function.id, self.args, list(self.buffers), self.chunk, self.results or [])
        assert self.program is not None
        stdin = self.program.stdin
        path = str(stdin) if isinstance(stdin, Path) else None
        given = self.args if isinstance(self.args, protocol.Stored) else self.program.stdin_bytes()
        return protocol.Command(list(self.program.argv), given, path)

    @property
    def waits(self) -> bool:
        """Whether it is to run after others."""
        return bool(self.inputs or self.options.after)

    def payloads(self) -> Sequence[protocol.Stored]:
        """The files that hold its arguments, and its function if that is large."""
        stored = self.stored()
        if self.function is not None and isinstance(self.function.body, protocol.Stored):
            return [*stored, self.function.body]
        return stored

    def stored(self) -> Sequence[protocol.Stored]:
        """The files that hold its arguments, or the standard input of a program."""
        stored = [*self.buffers, self.args] if isinstance(self.args, protocol.Stored) else self.buffers
        if self.results:
            results = [protocol.Stored(*file) for body in self.results if body for file in bodies.files_of(body)]
            return [*stored, *results]
        return stored


class OutOfBand:
    """A large ``bytes`` argument, pickled as a buffer of its own: it is stored once however often it is submitted."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (pickle.PickleBuffer(self.data),)


def pack_arguments(
    args: Any, kwargs: dict[str, Any], payloads: Payloads, chunk: bool = False
) -> tuple[protocol.Payload, Sequence[protocol.Stored], Sequence[Future[Any]]]:
    """The pickle of ``(args, kwargs)``, its out-of-band buffers, and the futures in it. Raises SerializationError.

    With ``chunk``, ``args`` is a list of argument tuples, and that alone is pickled.
    """
    if not kwargs and not chunk and all(map(_is_plain, args)):
        data = pickle.dumps((args, kwargs), 5)
        if len(data) <= store.INLINE_LIMIT:
            return data, NOTHING, ()
    with inputs.collect() as futures:
        try:
            packed, buffers = pack(args if chunk else _large_out_of_band(args, kwargs), payloads)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | OSError):
                raise
            raise _blame_argument(args, kwargs, error) from error
    return packed, buffers, tuple(futures)


def _large_out_of_band(args: Any, kwargs: dict[str, Any]) -> Any:
    large = tuple(OutOfBand(each) if _is_large_bytes(each) else each for each in args)
    return large, {name: OutOfBand(each) if _is_large_bytes(each) else each for name, each in kwargs.items()}


def pack_initializer(initializer: Callable[..., object], args: Sequence[Any]) -> bytes:
    """The pickle of ``(initializer, args)``. Raises SerializationError."""
    try:
        pickled: bytes = cloudpickle.dumps((initializer, tuple(args)), protocol=5)
    except Exception as error:
        raise SerializationError(f"the initializer or its initargs cannot be pickled: {error}") from error
    return pickled


def _is_plain(value: Any) -> bool:
    kind = type(value)
    return kind in PLAIN or (kind in TEXT and len(value) < _SMALL_TEXT)


def _is_large_bytes(value: Any) -> bool:
    return type(value) is bytes and len(value) >= store.INLINE_LIMIT


class ArgumentPickler(cloudpickle.Pickler):  # type: ignore[misc]  # has no types
    """As cloudpickle's, but for futures."""

    def reducer_override(self, obj: Any) -> Any:
        """How what is neither plain nor a container is pickled."""
        return inputs.reduce_future(obj) if isinstance(obj, Future) else super().reducer_override(obj)


def pack(value: Any, payloads: Payloads) -> tuple[protocol.Payload, Sequence[protocol.Stored]]:
    """The pickle of ``value`` and its out-of-band buffers; what was stored is given back if pickling fails."""
    spill = store.Spill(payloads.directories)
    buffers: list[Any] = []
    kept: list[protocol.Stored] = []
    try:
        ArgumentPickler(spill, protocol=5, buffer_callback=store.keep_small_in_band(buffers)).dump(value)
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
            return SerializationError(f"{name}, of type {kind}, cannot be pickled: {reason_of(error)}")
    return SerializationError(f"the arguments cannot be pickled together: {reason_of(error)}")


def _pickles(value: Any) -> bool:
    try:
        ArgumentPickler(io.BytesIO(), protocol=5).dump(value)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return False
    return True
