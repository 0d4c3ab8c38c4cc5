"""One attempt of a task on an agent: its order, where it runs, what it printed, and how it ended."""

from __future__ import annotations

import signal
import time
from enum import Enum
from typing import Protocol

from worker_agent import protocol, task_files
from worker_agent.loop import Timer
from worker_agent.output import HeadTail
from worker_agent.pools import Place
from worker_agent.recorder import LAST_WORDS, Recorder


class Reporter(Protocol):
    """Where an attempt's story goes."""

    def report(self, report: protocol.Report) -> None:
        """To the hub."""

    def announce_soon(self, attempt: Attempt) -> None:
        """Call :meth:`Attempt.announce` in a moment, unless the attempt ends before."""

    def forget(self, attempt: Attempt) -> None:
        """The attempt has ended."""

    def release_memory(self, attempt: Attempt, killed: bool) -> protocol.Memory | None:
        """Its memory is not guarded any more; what was seen, if it had too much. ``killed``: by who knows whom."""


class State(Enum):
    """Where an attempt stands on its agent."""

    QUEUED = "queued"  # in its lane's queue
    OFFERED = "offered"  # in the socket that the lane's interpreters share
    RUNNING = "running"
    ENDED = "ended"


class Attempt:
    """An order to run, and its story."""

    __slots__ = (
        "_announced", "_reporter", "call_file", "deadline", "end", "ended", "grace", "order", "outputs", "pending_kill",
        "pid", "place", "recorder", "scratch", "settings", "started", "state",
    )  # fmt: skip

    def __init__(self, order: protocol.Run, reporter: Reporter) -> None:
        self.order = order
        self._reporter = reporter
        self._announced = False
        self.settings = order.settings or protocol.DEFAULT_SETTINGS
        if self.settings.files is not None and self.settings.files.numbered:
            self.settings = task_files.fill_instance(self.settings, order.attempt)
        #: its private directory; "": it has none
        self.scratch = ""
        #: of a call on several ranks, the file that they read; "": it is none
        self.call_file = ""
        self.state = State.QUEUED
        #: where it runs, unless that is its interpreter's place
        self.place: Place | None = None
        self.pid = 0
        self.started = 0.0
        self.ended = 0.0
        #: why we end it, if we do: protocol.TIMED_OUT, KILLED or RETURNED
        self.end: str | None = None
        self.deadline: Timer | None = None
        self.grace: Timer | None = None
        self.outputs: dict[int, HeadTail] = {}
        #: if its output goes to the agent's stream file
        self.recorder: Recorder | None = None
        #: reason, signal and grace of a kill that came while an interpreter was taking the task
        self.pending_kill: tuple[str, int, float] | None = None

    @property
    def task(self) -> int:
        """The task's id."""
        return self.order.task

    def begin(self, pid: int, at: float) -> None:
        """It runs as process ``pid`` since ``at``."""
        self.state = State.RUNNING
        self.pid = pid
        self.started = at
        if self.recorder is not None:
            self.recorder.start(at)
        self._reporter.announce_soon(self)

    def announce(self) -> None:
        """Tell the hub that it runs, if it still does and the hub does not know."""
        if not self._announced and self.state is State.RUNNING:
            self._announced = True
            self._reporter.report(protocol.Started(self.order.task, self.order.attempt, self.pid, self.started))

    def printed(self, stream: int, data: bytes) -> None:
        """It wrote ``data``: its first part goes to the hub as it comes, of the rest only the end is kept."""
        if self.recorder is not None and self.recorder.takes(stream):
            self.recorder.output(stream, data, time.time())
            self._keep_last_words(stream, data)
            return
        keeper = self.outputs.get(stream)
        if keeper is None:
            keeper = self.outputs[stream] = HeadTail(self.settings.output_limit)
        head = keeper.add(data)
        if head:
            self.announce()
            self._reporter.report(protocol.Output(self.order.task, self.order.attempt, stream, head))

    def _keep_last_words(self, stream: int, data: bytes) -> None:
        """Of what the stream file has: errors quote the end of stderr."""
        if stream == 2:
            if stream not in self.outputs:
                self.outputs[stream] = HeadTail(min(self.settings.output_limit, LAST_WORDS), head=False)
            self.outputs[stream].add(data)

    def finish(
        self, end: str, *, body: bytes = b"", returncode: int | None = None, usage: protocol.Usage | None = None,
        outputs: protocol.Tree | None = None,
    ) -> None:  # fmt: skip
        """Report the end, once. An end that we caused keeps its cause whatever the process then did.

        ``outputs`` are sent, or removed if the end is no good one.
        """
        if self.state is State.ENDED:
            if outputs is not None:
                task_files.discard(outputs)
            return
        if end == protocol.LOST or protocol.RETURNED in (end, self.end):
            self.announce()  # that it had started counts
        self.state = State.ENDED
        self.ended = self.ended or time.time()
        self.stop_timers()
        memory = self._reporter.release_memory(self, returncode == -signal.SIGKILL and self.end is None)
        if memory is not None and self.end is None and end not in (protocol.VALUE, protocol.ERROR):
            end, body = protocol.OUT_OF_MEMORY, b""
        end = self.end or end
        if self.settings.files is not None and self.settings.files.removed:
            self._remove_finished(end, returncode)
        if self.recorder is not None and self.started:
            self.recorder.end(end, returncode, self.ended)
            end, body = self.recorder.outcome(end, body)
        if end != protocol.COMPLETED and outputs is not None:
            task_files.discard(outputs)
            outputs = None
        finished = protocol.Finished(
            self.order.task, self.order.attempt, end, body, returncode, self.pid, self.started,
            self.ended, usage or protocol.Usage(), self._tail(1), self._tail(2), memory, outputs,
        )  # fmt: skip
        self._reporter.report(finished)
        self._reporter.forget(self)

    def _remove_finished(self, end: str, returncode: int | None) -> None:
        """Files of its streams are not needed if it has ended well."""
        if self.end is None and (end == protocol.VALUE or (end == protocol.COMPLETED and returncode == 0)):
            try:
                task_files.remove_finished(self.settings)
            except OSError as error:
                text = f"task {self.order.task} has ended well, and a file of its output cannot be removed: {error}"
                self._reporter.report(protocol.Warn(text))

    def stop_timers(self) -> None:
        """Nothing more is due for it."""
        for timer in (self.deadline, self.grace):
            if timer is not None:
                timer.cancel()

    def _tail(self, stream: int) -> protocol.Tail | None:
        keeper = self.outputs.get(stream)
        return protocol.Tail(keeper.tail(), keeper.omitted) if keeper is not None else None
