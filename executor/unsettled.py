"""Tasks that have no outcome yet, and the news for their futures.

    core.Scheduler --effects--> Unsettled --news--> Delivery --> futures

A task is here from the inbox to its outcome, whatever the core knows of it: so each future is told, even if the hub
fails.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

from executor.awaited import Awaited
from executor.calls import Request
from executor.core import effects
from executor.core.dependents import CANCELLED as CANCELLED_END
from executor.core.model import Task
from executor.delivery import CANCELLED, Delivery, settle_at_once
from executor.functions import Functions
from executor.orders import Orders
from executor.outcome import discard
from executor.payloads import Payloads
from executor.report.recorder import Recorder
from worker_agent import protocol

#: Functions that are kept although no task needs them.
FUNCTIONS_KEPT = 1000


class Unsettled:
    """The tasks, what they keep in use, and who waits for them. Used from the hub's thread only."""

    def __init__(
        self, orders: Orders, functions: Functions, payloads: Payloads, delivery: Delivery, awaited: Awaited,
        recorder: Recorder,
    ) -> None:  # fmt: skip
        self._ends = recorder.ends
        self._orders = orders
        self._awaited = awaited
        self._functions = functions
        self._payloads = payloads
        self._delivery = delivery
        self._tasks: dict[int, Task] = {}
        #: for those who asked whether a task will never run
        self._answers: dict[int, list[queue.SimpleQueue[bool]]] = {}
        #: for the delivery threads, with the end of this step
        self.news: list[tuple[Request, Any]] = []

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, task: Task) -> None:
        """A task from the inbox."""
        self._tasks[task.id] = task
        self._ends.submitted += 1
        if (function := task.body.function) is not None:
            function.users += 1

    def settle(self, task: Task, outcome: object) -> None:
        """This is the task's outcome."""
        if type(outcome) is not protocol.Finished or not settle_at_once(task.body, outcome):
            self.news.append((task.body, outcome))  # the delivery counts it, which knows what becomes of it
        else:
            self._ends.finished += 1
        self._release(task)

    def fail(self, error: BaseException) -> None:
        """No task has another outcome: every future gets an exception of its own."""
        for task in list(self._tasks.values()):
            own = type(error)(*error.args)
            own.__cause__ = error.__cause__
            self.settle(task, own)
        for answers in self._answers.values():
            for answer in answers:
                answer.put(False)
        self._answers.clear()

    def add_answer(self, task_id: int, answer: queue.SimpleQueue[bool]) -> None:
        """Somebody waits for whether the task will never run."""
        self._answers.setdefault(task_id, []).append(answer)

    def hand_over_news(self) -> None:
        """Give the news to the delivery threads."""
        if self.news:
            self._delivery.put(self.news)
            self.news = []

    # --- effects ------------------------------------------------------------------------------------------------------

    def performers(self) -> dict[type[Any], Callable[[Any], None]]:
        """What performs which effect."""
        return {
            effects.Tell: self._on_tell,
            effects.Resolve: self._on_resolve,
            effects.Requeue: self._on_requeue,
            effects.Discard: self._on_discard,
            effects.Answer: self._on_answer,
        }

    def _on_tell(self, effect: effects.Tell) -> None:
        effect.task.body.told = True
        self.news.append((effect.task.body, effect.news))

    def tell(self, task_id: int, news: Any) -> None:
        """The future of a task that has not ended is to know."""
        if (task := self._tasks.get(task_id)) is not None:
            self._on_tell(effects.Tell(task, news))

    def _on_resolve(self, effect: effects.Resolve) -> None:
        if self._awaited.takers:
            self._awaited.hand_on(effect.task.id, effect.outcome)
        if isinstance(effect.outcome, effects.Unmet) and effect.outcome.how == CANCELLED_END:
            self._cancel(effect.task)
        else:
            self.settle(effect.task, effect.outcome)

    def _cancel(self, task: Task) -> None:
        """What it waited for was cancelled."""
        if task.body.future.mark_cancelled():
            self.news.append((task.body, CANCELLED))
        self._ends.cancelled += 1
        self._release(task)

    def _on_requeue(self, effect: effects.Requeue) -> None:
        self._orders.end_attempt(effect.task)
        effect.task.body.future.unclaim(effect.cause)

    def _on_discard(self, effect: effects.Discard) -> None:
        discard(effect.report)

    def _on_answer(self, effect: effects.Answer) -> None:
        for answer in self._answers.pop(effect.task.id, []):
            answer.put(effect.cancelled)
        if effect.cancelled:
            self._ends.cancelled += 1
            self._release(effect.task)

    # --- what is in use -----------------------------------------------------------------------------------------------

    def _release(self, task: Task) -> None:
        """The task needs its arguments and its function no longer."""
        self._orders.end_attempt(task)
        self._tasks.pop(task.id, None)
        request: Request = task.body
        self._release_function(request)
        if request.buffers or request.results or type(request.args) is protocol.Stored:
            for stored in request.stored():
                self._payloads.release(stored)
        request.inputs, request.results = (), None
        task.body = None

    def _release_function(self, request: Request) -> None:
        function = request.function
        if function is not None:
            function.users -= 1
            if function.users == 0:
                self._orders.forget(self._functions.drop_idle(FUNCTIONS_KEPT))
