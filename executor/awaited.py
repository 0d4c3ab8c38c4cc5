"""What tasks wait for: other tasks, and futures of anybody; and the results that become arguments of theirs.

A result goes from the agent of its task to those of the tasks that take it as it is, pickled: it is not read here. Of
programs, of other executors, and of what has ended already, there is only the future: its result is pickled where its
callbacks are called.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Any

from executor.calls import Request
from executor.core.dependents import AFTER_OK, CANCELLED, FAILED, OK, Condition
from executor.core.model import Task
from executor.errors import SerializationError
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
        positions = {future: index for index, future in enumerate(request.inputs)}
        asked = [(future, kind) for kind, future in request.options.after]
        kinds: dict[int, str] = {}
        for future, kind in dict.fromkeys([*asked, *((future, AFTER_OK) for future in positions)]):
            index = positions.get(future) if kind == AFTER_OK else None
            kinds[self._number(future, index, request, tasks, kinds)] = kind
        return [Condition(number, kind) for number, kind in kinds.items()]

    def _number(
        self, future: Future[Any], index: int | None, request: Request, tasks: dict[int, Task], taken: dict[int, str]
    ) -> int:
        """Of a task, its id, unless that is ``taken``: one number stands for one condition."""
        task = tasks.get(future.task_id) if isinstance(future, TaskFuture) else None
        ours = task is not None and task.body.future is future and task.id not in taken
        if task is not None and ours and (index is None or task.body.program is None):
            if index is not None:
                self.takers.setdefault(task.id, []).append((request, index))
            return task.id
        number = next(self._numbers)
        future.add_done_callback(partial(self._on_done, number, request, index))
        return number

    def _on_done(self, number: int, request: Request, index: int | None, future: Future[Any]) -> None:
        """Called by whoever completes the future."""
        how = CANCELLED if future.cancelled() else OK if future.exception() is None else FAILED
        first, body = future, b""
        if how == OK and index is not None and request.inputs:
            good, body = bodies.dump_value(future.result(), self._payloads.directories)
            body = bodies.whole(body)
            if not good:
                how, first = FAILED, _unpicklable(future, body)

        def tell() -> None:
            if index is not None and how == OK:
                self._give(request, index, body)
            self._tell(number, how, first)

        self._inbox.post(tell)

    def hand_on(self, task: int, outcome: object) -> None:
        """The task has ended: who takes its result gets it. The files of the outcome stay its own."""
        for request, index in self.takers.pop(task, ()):
            if request.inputs and isinstance(outcome, protocol.Finished) and outcome.end == protocol.VALUE:
                files = bodies.files_of(outcome.body)
                body = bodies.with_files(outcome.body, list(map(self._linked, files))) if files else outcome.body
                self._give(request, index, body)

    def _linked(self, file: tuple[str, int]) -> tuple[str, int]:
        path, size = file
        linked = store.new_path(os.path.dirname(path))
        with contextlib.suppress(FileNotFoundError):  # whoever reads it will say so
            os.link(path, linked)
        return linked, size

    def _give(self, request: Request, index: int, body: bytes) -> None:
        if not request.inputs:  # the task has ended: it was cancelled, say
            for path, _ in bodies.files_of(body) if body else ():
                store.remove(path)
            return
        if request.results is None:
            request.results = [b""] * len(request.inputs)
        request.results[index] = body


def _unpicklable(future: Future[Any], body: bytes) -> Future[Any]:
    """What stands for a future whose result cannot be sent, as the ``body`` says: one that has failed."""
    _, type_name, reason, _ = bodies.load_body(body)
    text = f"the result of {future!r}, of type {type_name}, cannot be pickled: {reason}"
    failed: Future[Any] = Future()
    failed.set_exception(SerializationError(text))
    return failed
