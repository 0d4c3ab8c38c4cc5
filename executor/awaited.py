"""What tasks wait for: other tasks, and futures of anybody; and the results that become arguments of theirs.

A result goes from the agent of its task to those of the tasks that take it as it is, pickled: it is not read here. Of
programs, of other executors, and of what has ended already, there is only the future: its result is pickled where its
callbacks are called.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Any

from executor.calls import Request
from executor.core.dependents import AFTER_ANY, AFTER_OK, CANCELLED, FAILED, OK, Condition
from executor.core.model import Task
from executor.future import TaskFuture
from executor.inbox import Inbox
from executor.payloads import Payloads
from worker_agent import bodies, protocol, store

#: Tells the hub that something has ended: its number, how, and the future.
Tell = Callable[[int, str, Any], None]


class Awaited:
    """Who takes which results. Used from the hub's thread, but for what a future's callback does."""

    def __init__(self, payloads: Payloads, inbox: Inbox, tell: Tell) -> None:
        self._payloads = payloads
        self._inbox = inbox
        self._tell = tell
        self._numbers = count(-1, -1)
        #: by the task that gives the result
        self.takers: dict[int, list[tuple[Request, int]]] = {}

    def conditions(self, request: Request, tasks: dict[int, Task]) -> list[Condition]:
        """What a task waits for. ``tasks`` are those that have not ended."""
        kinds = {future: kind for kind, future in sorted(request.options.after, key=_strictness)}
        kinds |= dict.fromkeys(request.inputs, AFTER_OK)
        return [Condition(self._number(future, request, tasks), kind) for future, kind in kinds.items()]

    def _number(self, future: Future[Any], request: Request, tasks: dict[int, Task]) -> int:
        index = request.inputs.index(future) if future in request.inputs else None
        task = tasks.get(future.task_id) if isinstance(future, TaskFuture) else None
        if task is not None and task.body.future is future and (index is None or task.body.program is None):
            if index is not None:
                self.takers.setdefault(task.id, []).append((request, index))
            return task.id
        number = next(self._numbers)
        future.add_done_callback(partial(self._on_done, number, request, index))
        return number

    def _on_done(self, number: int, request: Request, index: int | None, future: Future[Any]) -> None:
        """Called by whoever completes the future."""
        how = CANCELLED if future.cancelled() else OK if future.exception() is None else FAILED
        body = b""
        if how == OK and index is not None:
            good, body = bodies.dump_value(future.result(), self._payloads.directories)
            body = bodies.whole(body)
            how = OK if good else FAILED

        def tell() -> None:
            if index is not None:
                self._give(request, index, body)
            self._tell(number, how, future)

        self._inbox.post(tell)

    def hand_on(self, task: int, outcome: object) -> None:
        """The task has ended: who takes its result gets it. The files of the outcome stay its own."""
        for request, index in self.takers.pop(task, ()):
            if isinstance(outcome, protocol.Finished) and outcome.end == protocol.VALUE:
                files = bodies.files_of(outcome.body)
                body = bodies.with_files(outcome.body, list(map(self._linked, files))) if files else outcome.body
                self._give(request, index, body)

    def _linked(self, file: tuple[str, int]) -> tuple[str, int]:
        path, size = file
        linked = store.new_path(os.path.dirname(path))
        os.link(path, linked)
        return linked, size

    def _give(self, request: Request, index: int, body: bytes) -> None:
        if request.results is None:
            request.results = [b""] * len(request.inputs)
        request.results[index] = body


def _strictness(after: tuple[str, Future[Any]]) -> bool:
    """Of two conditions for one future the stricter counts: it comes last."""
    return after[0] != AFTER_ANY
