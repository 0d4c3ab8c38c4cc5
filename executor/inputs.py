"""Futures among the arguments of a call: found while these are pickled, and replaced by what stands for their results.

    submit(f, future, [other]) --pickle--> f's arguments with take(0), [take(1)]    inputs: [future, other]

A result that is there already travels as what it is.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

from worker_agent import inputs


class Inputs(threading.local):
    """The futures of the arguments that this thread pickles, or None where futures are no arguments."""

    found: dict[Future[Any], int] | None = None


_inputs = Inputs()


class collect:  # noqa: N801  used like a function: ``with collect() as futures``
    """Meanwhile futures may be pickled; they are the keys, in the order of their numbers."""

    def __enter__(self) -> dict[Future[Any], int]:
        _inputs.found = {}
        return _inputs.found

    def __exit__(self, *_: object) -> None:
        _inputs.found = None


def reduce_future(future: Future[Any]) -> tuple[Any, ...]:
    """How a future is pickled among the arguments of a task: by what becomes its result."""
    found = _inputs.found
    assert found is not None
    if future.done() and not future.cancelled() and future.exception() is None:
        return inputs.known, (future.result(),)
    return inputs.take, (found.setdefault(future, len(found)),)
