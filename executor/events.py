"""Events: what happens to a task, for those who want to be called back.

    hub, delivery --news--> TaskFuture --> Watch --> callbacks

A future has a ``Watch`` from its first event callback on, and no trace of one before. What is over by then is told from
what the future knows anyway; what comes is kept, so that later callbacks are told the same.
"""

from __future__ import annotations

import codecs
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from executor.refusals import did_you_mean, shown
from worker_agent.protocol import (
    COMPLETED,
    ERROR,
    EXITED,
    NOT_STARTED,
    OUT_OF_MEMORY,
    TIMED_OUT,
    Finished,
    Started,
    Tail,
)

log = logging.getLogger("concurrent.futures")

#: The names of all events, in the order in which they come.
EVENTS = ("submitted", "assigned", "started", "output", "retried", "ended")
_STREAMS = {1: "stdout", 2: "stderr"}
_WHY = {
    ERROR: "it raised an exception", TIMED_OUT: "it ran longer than its time limit",
    OUT_OF_MEMORY: "it ran out of memory", NOT_STARTED: "it could not be started",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a task.

    ``name`` is "submitted", "assigned" (an agent gets it), "started", "output", "retried" (an attempt came to nothing,
    and it waits for another one) or "ended". ``time`` is in seconds since the epoch, that of "started" and "ended" by
    the clock of the host; None: nobody has noted it. ``attempt`` is the number of the attempt, 0 before the first.
    """

    name: str
    time: float | None
    attempt: int
    #: of "output" what was written, of "retried" why, of "ended" how: "finished", "failed" or "cancelled"
    text: str = ""
    #: of "output": "stdout" or "stderr"
    stream: str | None = None
    #: of "assigned": where the agent is
    host: str | None = None
    #: of "started": the process
    pid: int | None = None


#: Called with the future and an event of it.
EventCallback = Callable[[Any, Event], object]


@dataclass(frozen=True, slots=True)
class Retried:
    """News for a future: an attempt came to nothing. ``cause`` is the report of its end, or why in a sentence."""

    attempt: int
    cause: Finished | str
    time: float


def check_event(event: str | None, fn: EventCallback) -> str | None:
    """The name of the event, None for all. Raises TypeError or ValueError."""
    if event is not None and not isinstance(event, str):
        raise TypeError(f"event={shown(event)}: expected the name of an event, or None for all of them")
    if event not in (None, "*", *EVENTS):
        names = ", ".join(map(repr, EVENTS))
        raise ValueError(f"event={shown(event)}: expected one of {names}, or '*'{did_you_mean(event or '', EVENTS)}")
    if not callable(fn):
        raise TypeError(f"fn={shown(fn)}: expected a function of a future and an event")
    return None if event == "*" else event


class Watch:
    """The event callbacks of one future, and the events that they were or are to be told.

    Callbacks are called one at a time and in order, whatever thread finds that there is something to tell. What is
    noted here is noted under the future's condition, or by its delivery; :meth:`call` is for threads of the user's
    and of the delivery, without any lock.
    """

    def __init__(self, first: int, *, over: bool) -> None:
        """``first``: news of earlier attempts are late. ``over``: the task has ended, nobody has noted when."""
        self._first = first
        self._over = over
        self._history: list[Event] = []
        self._callbacks: list[tuple[str | None, EventCallback]] = []
        #: of what waits to be told
        self._lock = threading.Lock()
        self._waiting: deque[tuple[EventCallback, Event]] = deque()
        #: whether a thread is telling it
        self._calling = False
        #: the latest attempt of which it is known that it started
        self._started = 0
        self._ended = False
        #: a letter may come in two pieces
        self._decoders: dict[tuple[int, str], codecs.IncrementalDecoder] = {}

    # --- what happens -------------------------------------------------------------------------------------------------

    def add(self, name: str | None, fn: EventCallback) -> None:
        """Another callback, for events of this name, or for all. It is told what is over, too."""
        with self._lock:
            self._callbacks.append((name, fn))
            self._waiting.extend((fn, event) for event in self._history if name in (None, event.name))

    def note(self, event: Event) -> None:
        """Something that happened; nothing does after the end."""
        with self._lock:
            if self._ended or 0 < event.attempt < self._first:
                return
            self._ended = event.name == "ended"
            self._history.append(event)
            self._waiting.extend((fn, event) for name, fn in self._callbacks if name in (None, event.name))

    def start(self, attempt: int, at: float | None, pid: int | None) -> None:
        """An attempt started. Of one that ended at once the agent says so with the end only."""
        if self._started < attempt:
            self._started = attempt
            self.note(Event("started", at, attempt, pid=pid or None))

    def write(self, attempt: int, number: int, data: bytes, at: float | None, *, final: bool = False) -> None:
        """It has written to a stream."""
        stream = _STREAMS[number]
        decoder = self._decoders.get((attempt, stream))
        if decoder is None:
            decoder = self._decoders[attempt, stream] = codecs.getincrementaldecoder("utf-8")(errors="replace")
        text = decoder.decode(data, final)
        if text:
            self.note(Event("output", at, attempt, text, stream=stream))

    def retry(self, news: Retried) -> None:
        """An attempt came to nothing."""
        if isinstance(news.cause, Finished):
            self._finish(news.attempt, news.cause, news.time)
        self.note(Event("retried", news.time, news.attempt, _why(news.cause)))

    def end(self, attempt: int, story: Started | Finished | None, how: str) -> None:
        """The task has ended."""
        now = None if self._over else time.time()
        if isinstance(story, Finished):
            self._finish(attempt, story, now)
            now = story.ended or now
        self.note(Event("ended", now, attempt, how))

    def _finish(self, attempt: int, story: Finished, now: float | None) -> None:
        """What the report of an attempt's end says of its life."""
        if story.started:
            self.start(attempt, story.started, story.pid)
        for number, tail in ((1, story.stdout or Tail()), (2, story.stderr or Tail())):
            if tail.omitted:
                self.write(attempt, number, f"\n[... {tail.omitted} bytes left out ...]\n".encode(), now)
            self.write(attempt, number, tail.data, now, final=True)

    # --- telling ------------------------------------------------------------------------------------------------------

    def call(self, future: Any) -> None:
        """Call back what waits, unless a thread is at it: that one goes on with it.

        As of done callbacks: an Exception is logged; what is worse is raised when all have been called.
        """
        with self._lock:
            if self._calling:
                return
            self._calling = True
        stopped: BaseException | None = None
        while (waiting := self._take()) is not None:
            callback, event = waiting
            try:
                callback(future, event)
            except Exception:
                log.exception("exception calling event callback for %r", future)
            except BaseException as error:
                stopped = stopped or error
        if stopped is not None:
            raise stopped

    def _take(self) -> tuple[EventCallback, Event] | None:
        with self._lock:
            self._calling = bool(self._waiting)
            return self._waiting.popleft() if self._calling else None


def _why(cause: Finished | str) -> str:
    if isinstance(cause, str):
        return cause
    if cause.end in (COMPLETED, EXITED) and cause.returncode is not None:
        return f"signal {-cause.returncode}" if cause.returncode < 0 else f"exit status {cause.returncode}"
    return _WHY.get(cause.end, cause.end)
