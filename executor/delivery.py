"""Completes futures: the threads on which the user's code runs (unpickling, callbacks) and output is shown.

The hub hands over pairs of a request and its news and never waits. One thread is enough as long as the user's code
returns; if it does not (a callback that waits, a result that takes a minute to unpickle), another one goes on with the
rest.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from executor import outcome
from executor.calls import Request
from executor.errors import RemoteError
from executor.events import Event, Retried
from executor.options import FORWARD
from worker_agent.protocol import Finished, Output, Started

log = logging.getLogger("executor")

#: News with which a task goes on.
_NO_ENDS = (Started, Output, Event, Retried)

#: The news that the hub has marked the future as cancelled.
CANCELLED = object()

#: Seconds after which a delivery that has not returned is left to its thread, and another thread goes on.
PATIENCE = 1.0
#: More threads than this are not started: so many deliveries that do not return are the user's affair.
MOST_THREADS = 64


def _ignore(_request: Request, _news: Any, _error: BaseException | None) -> None:
    """Nobody wants to know how tasks end."""


class Delivery:
    """A queue and its threads. ``put`` and ``look_after`` belong to the hub's thread.

    ``on_end`` is told of each end of a task, with its news and its exception, before the future is.
    """

    def __init__(self, name: str, on_end: Callable[[Request, Any, BaseException | None], None] = _ignore) -> None:
        self._name = name
        self._on_end = on_end
        self._waiting: deque[tuple[Request, Any]] = deque()
        #: of what waits, here and with the requests
        self._lock = threading.Lock()
        #: one entry for each batch, to wake a thread; None at the end
        self._wakes: queue.SimpleQueue[bool | None] = queue.SimpleQueue()
        self._emptied = threading.Event()
        self._threads: list[threading.Thread] = []
        self._progress = 0
        self._seen = (-1, 0.0)

    def put(self, batch: list[tuple[Request, Any]]) -> None:
        """Requests, and the news for their futures."""
        self._waiting.extend(batch)
        self._wakes.put(True)

    def look_after(self) -> float | None:
        """Start a thread if none goes on; gives the seconds until this should be asked again, None for not at all."""
        if not self._waiting:
            return None
        now = time.monotonic()
        if self._progress == self._seen[0] and now - self._seen[1] >= PATIENCE:
            self._start_another()
            self._seen = (-1, now)
        if self._progress != self._seen[0]:
            self._seen = (self._progress, now)
        return PATIENCE

    def start(self) -> None:
        """Start a thread. Raises RuntimeError if there can be no more: at the end of the interpreter, say."""
        thread = threading.Thread(target=self._run, name=f"{self._name}-delivery", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _start_another(self) -> None:
        if len(self._threads) < MOST_THREADS:
            with contextlib.suppress(RuntimeError):  # then the others have to do
                self.start()

    def _run(self) -> None:
        more: bool | None = True
        while more:
            self._work_off()
            more = self._wakes.get()
        self._work_off()
        self._wakes.put(None)  # for the next thread

    def _work_off(self) -> None:
        while (item := self._take()) is not None:
            while item is not None:
                self._progress += 1
                deliver(*item, self._on_end)
                item = self._take_more(item[0])  # a result must not live on because nothing else happens
        self._emptied.set()

    def _take(self) -> tuple[Request, Any] | None:
        """The next news of a task that no thread is at; those of others are left to their threads, in their order."""
        with self._lock:
            while self._waiting:
                request, news = self._waiting.popleft()
                if request.undelivered is None:
                    request.undelivered = []
                    return request, news
                request.undelivered.append(news)
        return None

    def _take_more(self, request: Request) -> tuple[Request, Any] | None:
        """What has come of the same task meanwhile."""
        with self._lock:
            if request.undelivered:
                return request, request.undelivered.pop(0)
            request.undelivered = None
        return None

    def close(self) -> None:
        """No more news: wait until the queue is empty, however long the user's code takes, and end the threads.

        A callback that waits for another future is not to wait for ever, so that this looks after the threads.
        """
        while self._waiting and self._threads:
            self._emptied.clear()
            self.look_after()
            if self._waiting:
                self._emptied.wait(PATIENCE)
        self._wakes.put(None)

    def join(self) -> None:
        """Wait for the threads, except for the one that calls."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def is_own_thread(self) -> bool:
        """Whether the caller runs on one of the threads: in a callback, say."""
        return threading.current_thread() in self._threads


def deliver(
    request: Request, news: Any, on_end: Callable[[Request, Any, BaseException | None], None] = _ignore
) -> None:
    """One piece of news to its future; nothing that the user's code raises gets out."""
    kind = type(news)
    try:
        if kind is Started:
            request.future.begin(news)
        elif kind is Output:
            _print(request, news)
        elif news is CANCELLED:
            request.future.announce_cancel()
        elif kind is Event or kind is Retried:
            request.future.tell(news)
        else:
            _settle(request, news, on_end)
    except BaseException as error:
        log.exception("delivering to %r", request.future)
        if kind not in _NO_ENDS and not request.future.done():
            _settle_without(request, news, _lost(request, "delivered", error), on_end)


def settle_at_once(request: Request, finished: Finished) -> bool:
    """Complete a future from the hub's thread, if that runs none of the user's code: a plain value, no callbacks."""
    if request.told or finished.stdout is not None or finished.stderr is not None:
        return False
    plain, value = outcome.plain_value(finished)
    if not plain or not request.future.settle_plainly(value, finished):
        return False
    finished.body = b""
    return True


def _settle(request: Request, news: Any, on_end: Callable[[Request, Any, BaseException | None], None]) -> None:
    future = request.future
    if future.cancelled():
        on_end(request, news, None)
        outcome.discard(news)
        return
    if type(news) is Finished:
        if news.stdout is not None or news.stderr is not None or request.decoders:
            _show_tails(request, news)
        future.tell_end(news)
    result, error = _unpack(request, news)
    if type(news) is Finished:
        news.body = b""  # the result has been made of it
    on_end(request, news, error)
    future.settle(result, error)


def _settle_without(
    request: Request, news: Any, lost: RemoteError, on_end: Callable[[Request, Any, BaseException | None], None]
) -> None:
    """It was not counted either, and whoever waits until all are is not to wait for ever."""
    try:
        on_end(request, news, lost)
    finally:
        request.future.settle(None, lost)


def _lost(request: Request, what: str, error: BaseException) -> RemoteError:
    """The last resort: whoever waits for the outcome learns that it cannot be had."""
    text = f"{outcome.describe(request.future)}: its outcome cannot be {what} ({type(error).__name__})"
    return RemoteError(text, type_name=type(error).__name__)


def _unpack(request: Request, news: Any) -> tuple[Any, BaseException | None]:
    try:
        return outcome.unpack(request, news)
    except BaseException as error:
        log.debug("unpacking the outcome of %r", request.future, exc_info=True)
        return None, _lost(request, "rebuilt here", error)


def _print(request: Request, output: Output) -> None:
    request.future.printed(output.attempt, output.stream, output.data)
    show(request, output.stream, output.data)


def _show_tails(request: Request, finished: Finished) -> None:
    for stream, tail in ((1, finished.stdout), (2, finished.stderr)):
        if tail is not None and (tail.data or tail.omitted):
            if tail.omitted:
                show(request, stream, f"\n[... {tail.omitted} bytes left out ...]\n".encode())
            show(request, stream, tail.data)
    for _, stream in list(request.decoders or ()):
        show(request, stream, b"", final=True)


def show(request: Request, stream: int, data: bytes, *, final: bool = False) -> None:
    """Write a task's output to the submitter's stream of this moment, unless it was told to go elsewhere.

    Half a letter at the end waits for the other half, unless this is the ``final`` piece.
    """
    destination = request.options.stdout if stream == 1 else request.options.stderr
    if destination is not FORWARD:
        return
    target = sys.stdout if stream == 1 else sys.stderr
    if target is None:
        return
    try:
        target.write(_decoder(request, stream).decode(data, final))
        target.flush()
    except Exception as error:  # the user's stream: whatever it raises, the task's outcome still arrives
        log.debug("the output of %r could not be shown: %s", request.future, error)


def _decoder(request: Request, stream: int) -> codecs.IncrementalDecoder:
    if request.decoders is None:
        request.decoders = {}
    which = request.future.attempt, stream
    decoder = request.decoders.get(which)
    if decoder is None:
        decoder = request.decoders[which] = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return decoder
