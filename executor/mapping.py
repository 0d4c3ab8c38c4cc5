"""What ``map`` gives: an iterator over the results of calls that were submitted in their order."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures._base import _result_or_cancel  # type: ignore[attr-defined]  # not public, and what map uses
from typing import Any

from executor.future import TaskFuture


def results_of(
    submit: Callable[[Any], TaskFuture | None], arguments: Iterator[Any], timeout: float | None, buffersize: int | None
) -> Iterator[Any]:
    """Submit the calls, and give their results in order; those that nobody asks for any more are cancelled.

    ``submit`` gives None when its executor is gone.
    """
    end = None if timeout is None else time.monotonic() + timeout
    futures = deque(submit(args) for args in itertools.islice(arguments, buffersize))

    def results() -> Iterator[Any]:
        try:
            while futures:
                if buffersize is not None:
                    _submit_next(submit, arguments, futures)
                # popped here, so that no reference to a result is left behind
                yield _result_or_cancel(futures.popleft(), None if end is None else end - time.monotonic())
        finally:
            for future in futures:
                if future is not None:
                    future.cancel()

    return results()


def _submit_next(
    submit: Callable[[Any], TaskFuture | None], arguments: Iterator[Any], futures: deque[TaskFuture | None]
) -> None:
    for args in itertools.islice(arguments, 1):
        future = submit(args)
        if future is not None:
            futures.append(future)


def chain(chunks: Iterator[list[Any]]) -> Iterator[Any]:
    """The results of all chunks, none of which is kept when it has been given."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()
