"""Decides what becomes of each task. Pure: methods in, effects out, the time is an argument.

Rule 1: everything that changes a task, a lane or a worker is in this file and in ``placement``.
Rule 2: a report counts only if it names the task's current attempt and comes from the worker that has it.
Rule 3: what a task waits for decides about it as soon as it ends, and about all that wait for it in turn.

Where tasks run is said in ``placement``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from executor.core import effects
from executor.core.dependents import CANCELLED, FAILED, OK, Condition, Dependents
from executor.core.effects import Effect
from executor.core.model import Lane, LaneId, Queue, Task, TaskClass, TaskState, Worker, WorkerId
from executor.core.needs import Needs
from executor.core.placement import Placement
from executor.core.retries import failure, has_succeeded
from worker_agent import protocol
from worker_agent.pools import Pool


class Scheduler:
    """The state of all tasks that have not ended. Each public method returns what is to be done."""

    def __init__(self) -> None:
        self.tasks: dict[int, Task] = {}
        #: workers that get no more tasks: what they have ends there, or comes back
        self.leaving: dict[WorkerId, Worker] = {}
        #: environments that cannot be had, and why
        self.refused: dict[int, effects.Refused] = {}
        self._effects: list[Effect] = []
        self._placement = Placement(self._effects.append)
        self._dependents = Dependents()
        #: tasks whose cancel waits for their agent's answer
        self._recalled: set[int] = set()
        #: ends that decide about other tasks: which task, how, and who began it
        self._ends: deque[tuple[int, str, Any]] = deque()
        #: tasks on several nodes of which one was lost, and why
        self._broken: dict[int, str] = {}

    @property
    def workers(self) -> dict[WorkerId, Worker]:
        """Those that get tasks."""
        return self._placement.news.workers

    @property
    def has_backlog(self) -> bool:
        """Whether tasks wait for room."""
        return self._placement.has_backlog

    @property
    def waiting(self) -> list[TaskClass]:
        """The classes whose tasks wait for room."""
        return [of for of in self._placement.news.classes.values() if of.waits]

    def lifetime(self, worker_id: WorkerId, now: float) -> float:
        """For how many seconds this one will get tasks."""
        worker = self.workers.get(worker_id)
        return math.inf if worker is None or worker.ends is None else worker.ends - now

    @property
    def running(self) -> int:
        """How many tasks run: of those that a lane's agent holds, as many as the lane has places."""
        workers = (*self.workers.values(), *self.leaving.values())
        return sum(min(len(lane.sent), len(lane.places)) for worker in workers for lane in worker.lanes.values())

    def due(self) -> float | None:
        """When :meth:`tick` has something to do."""
        return self._placement.due()

    def tick(self, now: float) -> list[Effect]:
        """Time has gone by."""
        return self._assign(now)

    # --- the user's side ----------------------------------------------------------------------------------------------

    def submit(self, tasks: Iterable[Task], now: float) -> list[Effect]:
        """New tasks, to be run as soon as there is room."""
        for task in tasks:
            self.tasks[task.id] = task
            self._ready(task)
        return self._assign(now)

    def submit_after(self, task: Task, after: Iterable[Condition], now: float) -> list[Effect]:
        """A new task, to be run when these tasks, which have not ended, have ended as they should."""
        self.tasks[task.id] = task
        task.state = TaskState.WAITING
        self._dependents.add(task, after)
        return self._assign(now)

    def is_awaited(self, task_id: int) -> bool:
        """Whether other tasks wait for it."""
        return self._dependents.needed(task_id)

    def awaited_by(self, task: Task) -> list[Condition]:
        """What the task waits for."""
        return self._dependents.conditions_of(task)

    def queue_of(self, task: Task) -> Queue | None:
        """Where the task waits for room, if it does."""
        return self._placement.news.class_of(task).queues.get(task.priority)

    def settled(self, number: int, how: str, first: Any, now: float) -> list[Effect]:
        """What tasks wait for and is no task here has ended; ``first`` is for who needed it to end otherwise."""
        self._decide(number, how, first)
        return self._assign(now)

    def _ready(self, task: Task) -> None:
        if task.environment in self.refused:
            self._resolve(task, self.refused[task.environment])
        else:
            self._placement.add(task)

    def cancel(self, task_id: int, now: float) -> list[Effect]:
        """The task is not to run. Answered at once if it is ours; its agent is asked if it was sent."""
        task = self.tasks.get(task_id)
        if task is None:
            return []
        if task.state is TaskState.SENT:
            self._recalled.add(task_id)
            self._do(effects.RecallTask(_lane(task).worker.id, task))
        else:
            if task.lane is None:
                self._end(task, CANCELLED)
            self._do(effects.Answer(task, task.state is TaskState.DONE))
        return self._assign(now)

    def withdrawn(self, task_id: int, now: float) -> list[Effect]:
        """The task was cancelled before it was sent, though it was to be: its agent has never heard of it."""
        task = self.tasks[task_id]
        self._placement.lanes.leave(task)
        self._do(effects.Answer(task, cancelled=True))
        self._end(task, CANCELLED)
        return self._assign(now)

    def refuse(self, of: TaskClass, explain: Callable[[Task], object], now: float) -> list[Effect]:
        """No worker will ever have room for such tasks: those that wait end with the outcome that ``explain`` gives."""
        for task in [task for queue in of.queues.values() for task in queue.ready if task.state is TaskState.READY]:
            self._resolve(task, explain(task))
        return self._assign(now)

    def kill(self, task_id: int, signal: int, grace: float, now: float) -> list[Effect]:
        """End the task wherever it is. Its agent reports the end."""
        task = self.tasks.get(task_id)
        if task is None:
            return []
        if task.lane is None:
            self._resolve_killed(task)
        else:
            task.doomed = True
            self._do(effects.KillTask(_lane(task).worker.id, task, signal, grace))
        return self._assign(now)

    # --- the workers' side --------------------------------------------------------------------------------------------

    def joined(
        self, worker_id: WorkerId, pools: list[Pool], now: float, ends: float | None = None, group: str = ""
    ) -> list[Effect]:
        """A new worker, which has to leave at ``ends``."""
        self._placement.join(Worker.of_pools(worker_id, pools, ends, group))
        return self._assign(now)

    def lost(
        self, worker_id: WorkerId, reason: str, now: float, last: Iterable[protocol.Report] = ()
    ) -> list[Effect]:
        """A worker is gone, with all that ran on it: what may have started counts against ``crash_limit``.

        ``last`` are reports of it that have come before, and count all the same.
        """
        leaving = self.leaving.pop(worker_id, None)
        worker = leaving or self.workers.get(worker_id)
        if worker is None:
            return []
        if leaving is None:
            self._end_on_other_nodes(worker, reason)
            self._placement.leave(worker)
        for report in last:
            self._on_report(worker, report)
        for lane in worker.lanes.values():
            # A start is reported a moment after it: the first ones may have started, and count as if they had.
            for position, task in reversed(list(enumerate(lane.sent.values()))):
                started = task.state is TaskState.RUNNING or position < len(lane.places)
                self._give_back(task, reason, started=started, planned=leaving is not None)
            lane.sent.clear()
            self._placement.lanes.return_nodes(lane)
        return self._assign(now)

    def _end_on_other_nodes(self, worker: Worker, reason: str) -> None:
        """A task that runs on several nodes and has lost one ends on its first."""
        lane = worker.lent
        if lane is not None and lane.worker is not worker:
            self._placement.nodes.break_up(lane)
            for task in lane.sent.values():
                self._broken[task.id] = reason
                self._do(effects.KillTask(lane.worker.id, task, 9, 0.0))

    def receive(self, worker_id: WorkerId, reports: Iterable[protocol.Report], now: float) -> list[Effect]:
        """Reports of a worker, in their order."""
        worker = self.workers.get(worker_id) or self.leaving.get(worker_id)
        if worker is not None:
            for report in reports:
                self._on_report(worker, report)
        return self._assign(now)

    def _on_report(self, worker: Worker, report: protocol.Report) -> None:
        handler = self._handlers.get(type(report))
        if handler is not None:
            task = self.tasks.get(report.task)  # type: ignore[union-attr]  # all that have handlers
            if task is None or task.attempt != report.attempt:  # type: ignore[union-attr]
                self._drop(report)  # rule 2: late, or doubled
            elif task.lane is not None and task.lane.worker is worker:
                handler(self, task, report)
            else:
                self._drop(report)
        elif isinstance(report, protocol.Freed):
            self._placement.lanes.freed(worker, LaneId(report.lane), report.places)
        elif isinstance(report, protocol.Unprepared):
            self._on_unprepared(report)
        elif isinstance(report, protocol.Leaving):
            self._on_leaving(worker)

    def _on_leaving(self, worker: Worker) -> None:
        if worker.id not in self.leaving:
            self._end_on_other_nodes(worker, "a node was told to leave")
            self.leaving[worker.id] = worker
            self._placement.leave(worker)

    def _drop(self, report: protocol.Report) -> None:
        if isinstance(report, protocol.Finished) and report.body:
            self._do(effects.Discard(report))

    def _on_started(self, task: Task, report: protocol.Started) -> None:
        if task.state is TaskState.SENT:
            task.move(TaskState.RUNNING)
            self._placement.lanes.stays(task)  # it is not given back any more
        self._do(effects.Tell(task, report))

    def _on_output(self, task: Task, report: protocol.Output) -> None:
        self._do(effects.Tell(task, report))

    def _on_finished(self, task: Task, report: protocol.Finished) -> None:
        started = task.state is TaskState.RUNNING
        of = _lane(task).of
        self._placement.lanes.leave(task)
        broken = self._broken.pop(task.id, None)
        if report.end == protocol.LOST or (broken is not None and report.end == protocol.KILLED):
            self._give_back(task, broken or report.body.decode(errors="replace"), started=started)
        elif report.end == protocol.RETURNED:
            self._give_back(task, "its agent was told to leave", started=report.started > 0, planned=True)
        else:
            if report.started:
                of.measured(report.ended - report.started)
            self._on_end(task, report)

    def _on_end(self, task: Task, report: protocol.Finished) -> None:
        """An attempt has ended by itself, or by the user's wish."""
        kind = failure(report, task.checked)
        left = task.retries.after(kind) if kind and not task.doomed else None
        if left is None:
            self._resolve(task, report)
            return
        task.retries = left
        if kind == "oom" and task.memory_on_oom is not None:
            most = self._most_memory
            task.variants = tuple(needs.with_memory(task.memory_on_oom, most(needs)) for needs in task.variants)
        self._drop(report)
        self._answer(task, cancelled=False)  # the attempt had started
        self._requeue(task, report)

    def _most_memory(self, needs: Needs) -> int:
        """The most that a worker has which can meet the needs as they are."""
        workers = (worker for worker in self.workers.values() if needs.nodes or worker.free.possible(needs))
        return max((worker.free.total("memory") for worker in workers), default=0)

    def _on_recalled(self, task: Task, report: protocol.Recalled) -> None:
        moving = self._placement.lanes.stays(task)
        if moving and not report.given_back and task.state is TaskState.SENT:
            task.move(TaskState.RUNNING)  # which its agent will say in a moment
        if task.id not in self._recalled:
            if moving and report.given_back:
                self._placement.lanes.leave(task)
                if task.doomed:
                    self._resolve_killed(task)  # nothing is left there that could be killed
                else:
                    self._requeue(task, "its agent gave it back, before it had started, to run elsewhere")
            return
        self._answer(task, report.given_back)
        if report.given_back:
            self._placement.lanes.leave(task)
            self._end(task, CANCELLED)

    _handlers: ClassVar[dict[type[Any], Callable[[Scheduler, Task, Any], None]]] = {
        protocol.Started: _on_started,
        protocol.Output: _on_output,
        protocol.Finished: _on_finished,
        protocol.Recalled: _on_recalled,
    }

    def _on_unprepared(self, report: protocol.Unprepared) -> None:
        refused = effects.Refused(report.text, report.error, report.initializer)
        self.refused[report.environment] = refused
        for task in [task for task in self.tasks.values() if task.environment == report.environment]:
            if task.state in (TaskState.WAITING, TaskState.DONE):
                continue  # it hears of it when its turn comes
            if task.lane is not None:
                # The agent that says so has forgotten what had not begun in that lane. What runs, or is about to, does
                # so in interpreters that could be had, and would keep its place.
                self._do(effects.KillTask(task.lane.worker.id, task, 9, 0.0))
                self._placement.lanes.leave(task)
            self._resolve(task, refused)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def _give_back(self, task: Task, reason: str, started: bool, planned: bool = False) -> None:
        """Its agent is gone. One that had started may be lost at most ``crash_limit`` times.

        What was ``planned`` does not count; but one that may never start twice (``crash_limit`` 0) does not, then too.
        """
        task.losses += started and not planned
        task.lane = None
        self._placement.lanes.stays(task)
        if task.doomed:
            self._resolve_killed(task)
        elif started and (task.losses > task.crash_limit or task.crash_limit == 0):
            self._resolve(task, effects.Lost(reason))
        elif task.id in self._recalled and task.state is TaskState.SENT:
            self._answer(task, cancelled=True)
            self._end(task, CANCELLED)
        else:
            self._answer(task, cancelled=False)
            self._requeue(task, reason)

    def _requeue(self, task: Task, cause: protocol.Finished | str) -> None:
        task.move(TaskState.READY)
        self._broken.pop(task.id, None)
        self._placement.add(task, first=True)
        self._do(effects.Requeue(task, cause))

    def _resolve(self, task: Task, outcome: object) -> None:
        self._do(effects.Resolve(task, outcome))
        self._end(task, OK if has_succeeded(outcome, task.checked) else FAILED)

    def _resolve_killed(self, task: Task) -> None:
        """It is nowhere where an agent would report its end."""
        self._resolve(task, protocol.Finished(task.id, task.attempt, protocol.KILLED))

    def _end(self, task: Task, how: str) -> None:
        waited = task.state is TaskState.READY
        task.move(TaskState.DONE)  # if it waits in a queue, it leaves that when its turn comes
        if waited:
            self._placement.drop(task)
        self.tasks.pop(task.id, None)
        self._broken.pop(task.id, None)
        self._placement.lanes.stays(task)
        self._dependents.forget(task)
        self._answer(task, cancelled=False)
        if self._dependents.needed(task.id):
            self._decide(task.id, how, task.body)

    def _decide(self, ended: int, how: str, first: Any) -> None:
        """Rule 3. No recursion: chains may be long."""
        self._ends.append((ended, how, first))
        if len(self._ends) > 1:
            return  # its turn comes in the loop that we are called from
        while self._ends:
            ended, how, first = self._ends[0]
            for task, may_start in list(self._dependents.ended(ended, how)):
                if may_start:
                    task.move(TaskState.READY)
                    self._ready(task)
                else:
                    task.move(TaskState.DONE)
                    del self.tasks[task.id]
                    self._do(effects.Resolve(task, effects.Unmet(first, how)))
                    self._ends.append((task.id, CANCELLED if how == CANCELLED else FAILED, first))
            self._ends.popleft()

    def _answer(self, task: Task, cancelled: bool) -> None:
        """To whoever asked for a sent task back, if somebody did."""
        if task.id in self._recalled:
            self._recalled.discard(task.id)
            self._do(effects.Answer(task, cancelled))

    def _assign(self, now: float) -> list[Effect]:
        """Give ready tasks to lanes; then return all effects since the last time."""
        self._placement.assign(now)
        done = self._effects.copy()
        self._effects.clear()
        return done

    def _do(self, effect: Effect) -> None:
        self._effects.append(effect)


def _lane(task: Task) -> Lane:
    assert task.lane is not None
    return task.lane
