"""The future of a task: a ``concurrent.futures.Future`` that also tells the task's story."""

from __future__ import annotations

import logging
import signal as signals
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures._base import (
    CANCELLED,
    CANCELLED_AND_NOTIFIED,
    FINISHED,
    PENDING,
    RUNNING,
    InvalidStateError,
)
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from executor.events import Event, EventCallback, Retried, Watch, check_event
from executor.options import parse_duration
from worker_agent.output import join_head_tail
from worker_agent.protocol import NOT_STARTED, Finished, Started, Tail

log = logging.getLogger("concurrent.futures")

_OPEN = frozenset({PENDING, RUNNING})
_CANCELLED = frozenset({CANCELLED, CANCELLED_AND_NOTIFIED})
_ENDED = _CANCELLED | {FINISHED}

#: Held while a future gets its condition, and while one without is changed.
_making = threading.Lock()

_STATES = {
    PENDING: "pending",
    RUNNING: "running",
    CANCELLED: "cancelled",
    CANCELLED_AND_NOTIFIED: "cancelled",
    FINISHED: "finished",
}


@dataclass(frozen=True, slots=True)
class Usage:
    """What an attempt used: CPU time in seconds, peak resident set size in bytes.

    In a reused interpreter the peak is that of the interpreter so far. 0 where nothing was measured.
    """

    user: float = 0.0
    system: float = 0.0
    max_rss: int = 0

    @property
    def cpu_time(self) -> float:
        """User and system time together, in seconds."""
        return self.user + self.system


class Control(Protocol):
    """What a future may ask of the hub."""

    def withdraw(self, task_id: int) -> object:
        """The task was cancelled before it was sent."""

    def recall(self, task_id: int) -> bool:
        """Ask the agent for a sent task; whether it will never run. Waits for the answer."""

    def kill(self, task_id: int, number: int, grace: float | None, /) -> object:
        """End the task by the signal ``number``."""

    def tell(self, task_id: int, news: Event | Retried, /) -> object:
        """Have this delivered to the future. From the hub's thread only."""


class TaskFuture(Future[Any]):
    """What ``submit`` returns. Everything a ``Future`` has, and:

    ``task_id`` (int, unique in the executor), ``name``, ``state`` ("pending", "sent", "running", "finished", well or
    not, or "cancelled"), ``attempt`` (the number of the latest one, from 1; 0 before; one that an agent gave back
    before it began has a number, too), ``host`` and ``pid`` of the latest attempt, ``submitted``, ``started`` and
    ``ended`` (seconds since the epoch, None before), ``usage``, ``stdout``, ``stderr``, ``returncode`` and ``signal``;
    see docs/options.md. :meth:`kill` ends the task, :meth:`add_event_callback` tells what happens to it.
    """

    #: What differs from these is set on the instance. The condition and the lists that ``Future`` has are made when
    #: somebody asks for them (``__getattr__``): most futures are never waited for before they end, and a hundred
    #: thousand of them take half the memory and a third of the time.
    _state: str = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    task_id: int = 0
    name: str = ""
    attempt: int = 0
    host: str | None = None
    _control: Control | None = None
    _submitted: float | None = None
    _sent = False
    _story: Started | Finished | None = None
    _heads: dict[int, list[bytes]] | None = None
    #: from the first event callback on
    _watch: Watch | None = None
    #: see :meth:`when_ended`
    _on_end: Callable[[TaskFuture], object] | None = None

    def __init__(self, task_id: int, name: str, submitted: float) -> None:
        self.task_id = task_id  # not Future.__init__: see above
        self.name = name
        self._submitted = submitted

    def __getattr__(self, name: str) -> Any:
        if name == "_condition":
            with _making:  # whoever finds no condition under this lock knows that nobody waits
                return self.__dict__.setdefault(name, threading.Condition())
        if name in ("_waiters", "_done_callbacks"):
            return self.__dict__.setdefault(name, [])
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def __repr__(self) -> str:
        raised = f" raised {type(self._exception).__name__}" if self._exception is not None else ""
        return f"<TaskFuture {self.task_id} {self.name!r} {self.state}{raised}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a future cannot be pickled: it is bound to its process. Give its result, or it as an argument")

    def done(self) -> bool:
        """Whether it was cancelled or has finished."""
        return self._state in _ENDED

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._state in _CANCELLED

    def running(self) -> bool:
        """Whether the task runs."""
        return self._state == RUNNING

    def result(self, timeout: float | None = None) -> Any:
        """What the call returned, or its exception raised; as in the standard library."""
        if self._state != FINISHED:
            super().exception(timeout)  # waits, and raises if it was cancelled
        if self._exception is None:
            return self._result
        try:
            raise self._exception  # whatever its truth value is
        finally:
            self = None  # type: ignore[assignment]  # no cycle of the traceback and the future

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The exception that the call raised, or None; as in the standard library."""
        return self._exception if self._state == FINISHED else super().exception(timeout)

    # --- the story ----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """Where the task stands; "sent" means: an agent has it, and has not said that it started."""
        return "sent" if self._state == PENDING and self._sent else _STATES[self._state]

    @property
    def pid(self) -> int | None:
        """The process that runs or ran the latest attempt."""
        return (self._story.pid or None) if self._story is not None else None

    @property
    def submitted(self) -> float | None:
        """When ``submit`` was called."""
        return self._submitted

    @property
    def started(self) -> float | None:
        """When the latest attempt started, by the clock of its host."""
        if isinstance(self._story, Finished):
            return self._story.started or None
        return self._story.at if self._story is not None else None

    @property
    def ended(self) -> float | None:
        """When the latest attempt ended, by the clock of its host."""
        return self._story.ended if isinstance(self._story, Finished) else None

    @property
    def usage(self) -> Usage | None:
        """CPU time and peak memory of the latest attempt, once it has ended."""
        if not isinstance(self._story, Finished):
            return None
        used = self._story.usage
        return Usage(used.user, used.system, used.max_rss)

    @property
    def returncode(self) -> int | None:
        """The exit status of a program, or of an interpreter that died; negative for a signal; None otherwise."""
        story = self._story
        return story.returncode if isinstance(story, Finished) and story.end != NOT_STARTED else None

    @property
    def signal(self) -> int | None:
        """The number of the signal that ended the task, or None."""
        return -self.returncode if self.returncode is not None and self.returncode < 0 else None

    @property
    def stdout(self) -> str:
        """What the latest attempt has written to its standard output so far; of very much, beginning and end."""
        return self._text(1)

    @property
    def stderr(self) -> str:
        """What the latest attempt has written to its standard error so far; of very much, beginning and end."""
        return self._text(2)

    def _text(self, stream: int) -> str:
        story = self._story
        tail = (story.stdout if stream == 1 else story.stderr) if isinstance(story, Finished) else None
        head = b"".join((self._heads or {}).get(stream, []))
        tail = tail or Tail()
        return join_head_tail(head, tail.data, tail.omitted).decode(errors="replace")

    # --- the user's wishes --------------------------------------------------------------------------------------------

    def cancel(self, *, kill: bool = False) -> bool:
        """Cancel the task if it has not started, as in the standard library; True if it will never run.

        A task that lies on an agent and has not started is fetched back, which takes one message there and back.
        With ``kill`` it is not asked for: the task is ended wherever it is (as by :meth:`kill`), and the future is
        cancelled, without any wait.
        """
        control = self._control
        if self.mark_cancelled():
            if control is not None:
                control.withdraw(self.task_id)
            self.announce_cancel()
            return True
        if control is not None and kill and self._move_to_cancelled({PENDING, RUNNING}):
            control.kill(self.task_id, int(signals.SIGTERM), None)  # after it: else it might have ended by that
            self.announce_cancel()
            return True
        recalled = control is not None and self._state == PENDING and control.recall(self.task_id)
        if recalled and self._move_to_cancelled({PENDING, RUNNING}):  # the news of a lost attempt's start may be late
            self.announce_cancel()
        return self.cancelled()

    def kill(self, signal: int = signals.SIGTERM, *, grace: float | str | None = None) -> bool:
        """End the task: ``signal`` to its process group, ``grace`` seconds later SIGKILL to all that it started.

        The future then has :class:`~executor.errors.TaskKilled` as its exception. ``grace`` defaults to the executor's
        ``kill_grace``. Gives False if the task has ended already. A second call may be harder: another signal, less
        grace. Raises TypeError or ValueError for what is no signal or no duration.
        """
        if isinstance(signal, bool) or not isinstance(signal, int):
            raise TypeError(f"signal={signal!r}: expected a number of a signal, such as signal.SIGINT")
        if signal not in signals.valid_signals():
            raise ValueError(f"signal={signal!r}: expected a signal of this system, such as signal.SIGINT")
        if grace is not None:
            grace = parse_duration(grace)
        control = self._control
        if control is None or self.done():
            return False
        control.kill(self.task_id, int(signal), grace)
        return True

    # --- events -------------------------------------------------------------------------------------------------------

    def add_event_callback(self, event: str | None, fn: EventCallback) -> None:
        """Have ``fn(future, event)`` called for each event of that name, those included that are over, in their order.

        ``event`` is "submitted", "assigned", "started", "output", "retried" or "ended"; None or "*" for all. ``fn``
        gets this future and an :class:`~executor.events.Event`. What is over is told at once, in this thread, of
        attempts the latest one only; what comes is told where done callbacks are called. What ``fn`` raises is logged.
        Raises ValueError for another name, TypeError for what cannot be called.
        """
        name = check_event(event, fn)
        with self._condition:  # made now: so nothing changes this future any more without looking for the watch
            is_first = self._watch is None
            watch = self._watch = self._watch or self._begin_watch()
            watch.add(name, fn)
        if is_first:
            self.add_done_callback(_tell_end)
        watch.call(self)

    def _begin_watch(self) -> Watch:
        """One that knows what is over, but for the end."""
        watch = Watch(self.attempt + (not self._sent), over=self.done())
        watch.note(Event("submitted", self._submitted, 0))
        if self._sent:
            watch.note(Event("assigned", None, self.attempt, host=self.host))
        if self.started is not None:
            watch.start(self.attempt, self.started, self.pid)
        for stream, pieces in (self._heads or {}).items():
            watch.write(self.attempt, stream, b"".join(pieces), None)
        return watch

    def tell(self, news: Event | Retried) -> None:
        """News for the event callbacks (delivery threads)."""
        watch = self._watch
        assert watch is not None, "there is such news for futures with event callbacks only"
        if isinstance(news, Retried):
            watch.retry(news)
        else:
            watch.note(news)
        watch.call(self)

    # --- the hub's news (hub and delivery threads) --------------------------------------------------------------------

    def mark_cancelled(self) -> bool:
        """Cancel it if no agent has it; who marks it also calls :meth:`announce_cancel`, off the hub's thread."""
        with self._condition:  # reentrant: nothing can claim it in between
            return not self._sent and self._move_to_cancelled({PENDING})

    def _move_to_cancelled(self, states: set[str]) -> bool:
        with self._condition:
            if self._state not in states:
                return False
            self._state = CANCELLED
            self._condition.notify_all()
            return True

    def announce_cancel(self) -> None:
        """Wake those who wait (the standard library leaves some of them asleep) and run the callbacks."""
        self._control = None
        self.set_running_or_notify_cancel()
        self._invoke_callbacks()

    def when_ended(self, fn: Callable[[TaskFuture], object]) -> None:
        """Have ``fn(future)`` called once when it has ended, before the callbacks, on the hub's thread too: for our own
        code, one function at most. A callback costs a condition and a way through the delivery threads.
        """
        self._on_end = fn
        if self.done():  # perhaps just now: then one of the two threads finds it
            self._call_on_end()

    def _call_on_end(self) -> None:
        fn = self.__dict__.pop("_on_end", None)
        if fn is not None:
            fn(self)

    def _invoke_callbacks(self) -> None:
        """As in the standard library, but what one callback raises never keeps the others from being called."""
        self._call_on_end()
        stopped: BaseException | None = None
        for callback in self._done_callbacks:
            try:
                callback(self)
            except Exception:
                log.exception("exception calling callback for %r", self)
            except BaseException as error:
                if stopped is None:
                    stopped = error
        if stopped is not None:
            raise stopped  # Ctrl-C in the main thread; on the delivery's threads it is logged

    def claim(self, attempt: int, host: str) -> bool:
        """An agent is about to get the task; False if it was cancelled. From now on a cancel asks the agent."""
        with _making:
            if "_condition" not in self.__dict__:
                return self._claim(attempt, host)
        with self._condition:
            claimed = self._claim(attempt, host)
            if claimed and self._watch is not None and self._control is not None:
                self._control.tell(self.task_id, Event("assigned", time.time(), attempt, host=host))
            return claimed

    def _claim(self, attempt: int, host: str) -> bool:
        self._sent = self._state in _OPEN
        self.attempt, self.host = attempt, host
        if attempt > 1:
            self._story = self._heads = None
        return self._sent

    def unclaim(self, cause: Finished | str = "") -> None:
        """No agent has it any more: it waits for another attempt, and the story of the last one is over.

        ``cause`` is the report of the last one's end, or why in a sentence.
        """
        with self._condition:
            self._sent = False
            self._story = self._heads = None
            if self._state == RUNNING:
                self._state = PENDING
            if self._watch is not None and self._control is not None:
                self._control.tell(self.task_id, Retried(self.attempt, cause, time.time()))

    def begin(self, started: Started) -> None:
        """An attempt started."""
        with _making:
            if "_condition" not in self.__dict__:
                self._begin(started)
                return
        with self._condition:
            self._begin(started)
            if (watch := self._watch) is not None:
                watch.start(started.attempt, started.at, started.pid)
        if watch is not None:
            watch.call(self)

    def _begin(self, started: Started) -> None:
        if not self._sent or started.attempt != self.attempt:
            return  # the news of an earlier attempt is late
        self._story = started
        if self._state == PENDING:
            self._state = RUNNING

    def printed(self, attempt: int, stream: int, data: bytes) -> None:
        """The beginning of its output, as it comes."""
        with _making:
            if "_condition" not in self.__dict__:
                self._keep(attempt, stream, data)
                return
        with self._condition:
            self._keep(attempt, stream, data)
            if (watch := self._watch) is not None:
                watch.write(attempt, stream, data, time.time())
        if watch is not None:
            watch.call(self)

    def _keep(self, attempt: int, stream: int, data: bytes) -> None:
        if not self._sent or attempt != self.attempt:
            return
        if self._heads is None:
            self._heads = {}
        self._heads.setdefault(stream, []).append(data)

    def tell_end(self, finished: Finished) -> None:
        """How the attempt ended; the result or the exception follows."""
        self._story = finished

    def settle_plainly(self, value: Any, finished: Finished) -> bool:
        """Set a result where no code of the user's may run; False, and nothing is changed, if a callback waits."""
        with _making:
            alone = "_condition" not in self.__dict__
            settled = alone and self._settle_alone(value, finished)
        if settled:
            self._call_on_end()
        if alone:
            return settled
        with self._condition:
            if self._state not in _OPEN or self.__dict__.get("_done_callbacks"):
                return False
            self.tell_end(finished)
            self.settle(value, None)
        return True

    def _settle_alone(self, value: Any, finished: Finished) -> bool:
        if self._state not in _OPEN:
            return False
        self._control = None
        self.tell_end(finished)
        self._result = value
        self._state = FINISHED
        return True

    def settle(self, result: Any, error: BaseException | None) -> bool:
        """Set the result, or the exception if there is one; False if the future was cancelled meanwhile."""
        self._control = None
        with _making:
            alone = "_condition" not in self.__dict__ and self._state in _OPEN
            if alone:
                self._result, self._exception = result, error
                self._state = FINISHED
        if alone:
            self._call_on_end()
            return True
        try:
            if error is not None:
                self.set_exception(error)
            else:
                self.set_result(result)
        except InvalidStateError:
            return False
        return True


def cancel_all(futures: Sequence[TaskFuture]) -> None:
    """Cancel them as by ``cancel(kill=True)``, but all at once: none of them is sent to an agent meanwhile."""
    left = [future for future in futures if not future.done()]
    marked = [(future, future._control) for future in left if future.mark_cancelled()]
    for future, control in marked:
        if control is not None:
            control.withdraw(future.task_id)
        future.announce_cancel()
    for future in left:
        future.cancel(kill=True)


def _tell_end(future: Any) -> None:
    """The done callback of a future with event callbacks."""
    how = "cancelled" if future.cancelled() else "finished" if future.exception() is None else "failed"
    future._watch.end(future.attempt, future._story, how)
    future._watch.call(future)
