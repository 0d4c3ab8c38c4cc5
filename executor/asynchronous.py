"""Tasks from asyncio: what is awaited never blocks the loop, and ends the task if the awaiting is cancelled.

Futures are completed in other threads; those tell the loop by ``call_soon_threadsafe``, and do no more. Who comes here
has a loop, and with it ``asyncio``: it is imported then only, as it would be a sixth of ``import executor``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from executor.future import TaskFuture

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Queue

AnyFuture = TypeVar("AnyFuture", bound=Future[Any])


async def wait_result(future: TaskFuture) -> Any:
    """The result of a task, or its exception raised.

    If nobody awaits it any more (the asyncio task was cancelled, a timeout is over), the task is cancelled, and killed
    if it runs. If the task itself was cancelled by somebody, ``asyncio.CancelledError`` is raised.
    """
    import asyncio

    ended = asyncio.Event()
    future.add_done_callback(partial(_call_in, asyncio.get_running_loop(), lambda _: ended.set()))
    try:
        await ended.wait()
    finally:
        if not future.done():
            future.cancel(kill=True)
    if future.cancelled():
        raise asyncio.CancelledError(f"{future!r} was cancelled")
    return future.result()


async def as_completed_async(futures: Iterable[AnyFuture]) -> AsyncIterator[AnyFuture]:
    """The futures themselves as they complete: ``async for future in as_completed_async(futures)``.

    They may be of any executors, tasks and others. Those that have completed already come first, in their order.
    Leaving the loop, or being cancelled in it, leaves the futures as they are: they are yours.
    """
    import asyncio

    completed: Queue[AnyFuture] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    waited_for = list(dict.fromkeys(futures))
    for future in waited_for:
        future.add_done_callback(partial(_call_in, loop, completed.put_nowait))
    for _ in waited_for:
        yield await completed.get()


def _call_in(loop: AbstractEventLoop, function: Callable[[Any], object], future: Future[Any]) -> None:
    """A done callback: have the loop call the function with the future."""
    try:
        loop.call_soon_threadsafe(function, future)
    except RuntimeError:
        if not loop.is_closed():  # if it is, nobody waits there any more
            raise
