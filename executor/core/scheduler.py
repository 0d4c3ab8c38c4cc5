"""Decides which task runs where and what becomes of it. Pure: methods in, effects out, the time is an argument.

Rule 1: everything that changes a task, a lane or a worker is in this file.
Rule 2: a report counts only if it names the task's current attempt and comes from the worker that has it.
Rule 3: a class that has no lane and whose oldest task waits longest is served before younger classes get more.
Rule 4: what an agent holds in advance does not wait behind long tasks while there is room elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from typing import Any, ClassVar

from executor.core import effects
from executor.core.effects import Effect
from executor.core.model import BRIDGE, Lane, LaneId, Task, TaskClass, TaskState, Worker, WorkerId, prefetch
from worker_agent import protocol

#: Ends that say that the task itself failed; these use up its ``retries``.
_FAILED = frozenset({protocol.ERROR, protocol.EXITED, protocol.TIMED_OUT, protocol.NOT_STARTED})


class Scheduler:
    """The state of all tasks that have not ended. Each public method returns what is to be done."""

    def __init__(self) -> None:
        self.tasks: dict[int, Task] = {}
        self.workers: dict[WorkerId, Worker] = {}
        #: workers that get no more tasks: what they have ends there, or comes back
        self.leaving: dict[WorkerId, Worker] = {}
        self.classes: dict[int, TaskClass] = {}
        #: environments that cannot be had, and why
        self.refused: dict[int, effects.Refused] = {}
        self._lane_numbers = count(1)
        self._effects: list[Effect] = []
        #: tasks whose cancel waits for their agent's answer
        self._recalled: set[int] = set()
        #: tasks that were asked back because there is room elsewhere
        self._moving: set[int] = set()

    @property
    def has_backlog(self) -> bool:
        """Whether tasks wait for room."""
        return any(each.ready for each in self.classes.values())

    # --- the user's side ----------------------------------------------------------------------------------------------

    def submit(self, tasks: Iterable[Task]) -> list[Effect]:
        """New tasks, to be run as soon as there is room."""
        for task in tasks:
            self.tasks[task.id] = task
            if task.environment in self.refused:
                self._resolve(task, self.refused[task.environment])
            else:
                self._class(task.environment).ready.append(task)
        return self._assign()

    def cancel(self, task_id: int) -> list[Effect]:
        """The task is not to run. Answered at once if it is ours; its agent is asked if it was sent."""
        task = self.tasks.get(task_id)
        if task is None:
            return []
        if task.state is TaskState.SENT:
            self._recalled.add(task_id)
            self._do(effects.RecallTask(_lane(task).worker.id, task))
        else:
            if task.state is TaskState.READY:
                self._end(task)
            self._do(effects.Answer(task, task.state is TaskState.DONE))
        return self._assign()

    def kill(self, task_id: int, signal: int, grace: float) -> list[Effect]:
        """End the task wherever it is. Its agent reports the end."""
        task = self.tasks.get(task_id)
        if task is None:
            return []
        if task.state is TaskState.READY:
            self._resolve(task, protocol.Finished(task.id, task.attempt, protocol.KILLED))
        else:
            task.doomed = True
            self._do(effects.KillTask(_lane(task).worker.id, task, signal, grace))
        return self._assign()

    # --- the workers' side --------------------------------------------------------------------------------------------

    def joined(self, worker_id: WorkerId, slots: int) -> list[Effect]:
        """A new worker."""
        self.workers[worker_id] = Worker(worker_id, slots)
        return self._assign()

    def lost(self, worker_id: WorkerId, reason: str) -> list[Effect]:
        """A worker is gone, with all that ran on it: what may have started counts against ``crash_limit``."""
        if worker_id in self.leaving:
            return self._lost_as_planned(self.leaving.pop(worker_id), reason)
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return []
        for lane in worker.lanes.values():
            lane.of.lanes.remove(lane)
            # A start is reported a moment after it: the first ones may have started, and count as if they had.
            for position, task in reversed(list(enumerate(lane.sent.values()))):
                self._give_back(task, reason, started=position < lane.width or task.state is TaskState.RUNNING)
            lane.sent.clear()
        return self._assign()

    def _lost_as_planned(self, worker: Worker, reason: str) -> list[Effect]:
        """It went before it had given back everything; nobody is to blame for that either."""
        for lane in worker.lanes.values():
            for task in reversed(list(lane.sent.values())):
                self._give_back(task, reason, started=task.state is TaskState.RUNNING, planned=True)
            lane.sent.clear()
        return self._assign()

    def receive(self, worker_id: WorkerId, reports: Iterable[protocol.Report]) -> list[Effect]:
        """Reports of a worker, in their order."""
        worker = self.workers.get(worker_id) or self.leaving.get(worker_id)
        if worker is not None:
            for report in reports:
                self._on_report(worker, report)
        return self._assign()

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
        elif isinstance(report, protocol.Unprepared):
            self._on_unprepared(report)
        elif isinstance(report, protocol.Leaving):
            self._on_leaving(worker)

    def _on_leaving(self, worker: Worker) -> None:
        """Its lanes are nobody's any more, so that nothing is given to them; tasks that they have know them still."""
        if self.workers.pop(worker.id, None) is None:
            return  # it says so twice
        self.leaving[worker.id] = worker
        for lane in worker.lanes.values():
            lane.of.lanes.remove(lane)

    def _drop(self, report: protocol.Report) -> None:
        if isinstance(report, protocol.Finished) and report.body:
            self._do(effects.Discard(report))

    def _on_started(self, task: Task, report: protocol.Started) -> None:
        if task.state is TaskState.SENT:
            task.move(TaskState.RUNNING)
        self._do(effects.Tell(task, report))

    def _on_output(self, task: Task, report: protocol.Output) -> None:
        self._do(effects.Tell(task, report))

    def _on_finished(self, task: Task, report: protocol.Finished) -> None:
        if report.end == protocol.LOST:
            self._leave_lane(task)
            reason = report.body.decode(errors="replace")
            self._give_back(task, reason, started=task.state is TaskState.RUNNING)
            return
        if report.end == protocol.RETURNED:
            self._leave_lane(task)
            self._give_back(task, "its agent was told to leave", started=report.started > 0, planned=True)
            return
        if report.started:
            _lane(task).of.measured(report.ended - report.started)
        self._leave_lane(task)
        if _has_failed(task, report) and task.retries > 0 and not task.doomed:
            task.retries -= 1
            self._drop(report)
            self._answer(task, cancelled=False)  # the attempt had started
            self._requeue(task)
        else:
            self._resolve(task, report)

    def _on_recalled(self, task: Task, report: protocol.Recalled) -> None:
        moving = task.id in self._moving
        self._moving.discard(task.id)
        if moving and not report.given_back and task.state is TaskState.SENT:
            task.move(TaskState.RUNNING)  # which its agent will say in a moment
        if task.id not in self._recalled:
            if moving and report.given_back:
                self._leave_lane(task)
                self._requeue(task)
            return
        self._answer(task, report.given_back)
        if report.given_back:
            self._leave_lane(task)
            self._end(task)

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
            if task.lane is not None:
                self._leave_lane(task)
            self._resolve(task, refused)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def _give_back(self, task: Task, reason: str, started: bool, planned: bool = False) -> None:
        """Its agent is gone. One that had started may be lost at most ``crash_limit`` times.

        What was ``planned`` does not count; but one that may never start twice (``crash_limit`` 0) does not, then too.
        """
        task.losses += started and not planned
        task.lane = None
        self._moving.discard(task.id)
        if task.doomed:
            self._resolve(task, protocol.Finished(task.id, task.attempt, protocol.KILLED))
        elif started and (task.losses > task.crash_limit or task.crash_limit == 0):
            self._resolve(task, effects.Lost(reason))
        elif task.id in self._recalled and task.state is TaskState.SENT:
            self._answer(task, cancelled=True)
            self._end(task)
        else:
            self._answer(task, cancelled=False)
            self._requeue(task)

    def _requeue(self, task: Task) -> None:
        task.move(TaskState.READY)
        self._class(task.environment).ready.appendleft(task)
        self._do(effects.Requeue(task))

    def _resolve(self, task: Task, outcome: object) -> None:
        self._do(effects.Resolve(task, outcome))
        self._end(task)

    def _end(self, task: Task) -> None:
        task.move(TaskState.DONE)  # if it waits in a queue, it leaves that when its turn comes
        self.tasks.pop(task.id, None)
        self._moving.discard(task.id)
        self._answer(task, cancelled=False)

    def _answer(self, task: Task, cancelled: bool) -> None:
        """To whoever asked for a sent task back, if somebody did."""
        if task.id in self._recalled:
            self._recalled.discard(task.id)
            self._do(effects.Answer(task, cancelled))

    def _leave_lane(self, task: Task) -> None:
        lane = _lane(task)
        del lane.sent[task.id]
        task.lane = None

    # --- assignment ---------------------------------------------------------------------------------------------------

    def _class(self, environment: int) -> TaskClass:
        found = self.classes.get(environment)
        if found is None:
            found = self.classes[environment] = TaskClass(environment)
        return found

    def _assign(self) -> list[Effect]:
        """Give ready tasks to lanes, oldest class first; then return all effects since the last time."""
        for waiting in self._waiting_classes():
            self._feed(waiting)
            if waiting.ready and not waiting.lanes:
                break  # rule 3
        self._balance()
        done, self._effects = self._effects, []
        return done

    def _waiting_classes(self) -> list[TaskClass]:
        waiting = []
        for each in list(self.classes.values()):
            if _drop_ended(each):
                waiting.append(each)
            else:
                self._forget_class_if_idle(each)
        if len(waiting) > 1:
            waiting.sort(key=lambda each: each.ready[0].id)
        return waiting

    def _feed(self, waiting: TaskClass) -> None:
        for lane in waiting.lanes:
            self._fill(lane, lane.width)
        while waiting.ready and (worker := self._worker_with_room(waiting)) is not None:
            self._widen(worker, waiting)
        for lane in waiting.lanes:
            self._fill(lane, lane.width + prefetch(waiting.duration, lane.width))

    def _fill(self, lane: Lane, limit: int) -> None:
        ready = lane.of.ready
        while ready and len(lane.sent) < limit:
            if len(lane.sent) >= lane.width and ready[0].crash_limit == 0:
                break  # in a queue it might start unheard, and then once more elsewhere
            task = ready.popleft()
            if task.state is TaskState.READY:
                self._send(lane, task)

    def _send(self, lane: Lane, task: Task) -> None:
        task.move(TaskState.SENT)
        task.attempt += 1
        task.lane = lane
        lane.sent[task.id] = task
        self._do(effects.Start(lane.worker.id, lane.id, task))

    def _balance(self) -> None:
        """Rule 4: what an agent holds in advance does not wait behind long tasks while there is room."""
        room = sum(worker.free for worker in self.workers.values()) - len(self._moving)
        if room <= 0:
            return
        for each in self.classes.values():
            if each.ready or (each.duration is not None and each.duration < BRIDGE):
                continue
            for lane in each.lanes:
                if len(lane.sent) > lane.width:
                    room -= self._spread(lane, room)

    def _spread(self, lane: Lane, room: int) -> int:
        """Let tasks that wait on a lane run: there, if the worker has room, else somewhere else; says how many."""
        surplus = len(lane.sent) - lane.width
        more = min(surplus, lane.worker.free)
        if more > 0:
            lane.width += more
            self._do(effects.ResizeLane(lane.worker.id, lane.id, lane.width))
        asked = 0
        for task in reversed(list(lane.sent.values())[lane.width :]):
            if asked + more >= room:
                break
            if task.state is TaskState.SENT and task.id not in self._moving and task.id not in self._recalled:
                self._moving.add(task.id)
                self._do(effects.RecallTask(lane.worker.id, task))
                asked += 1
        return more + asked

    def _worker_with_room(self, waiting: TaskClass) -> Worker | None:
        """The worker with most free slots; if there is none, one where another class does not use what it has."""
        best = max(self.workers.values(), key=lambda worker: worker.free, default=None)
        if best is not None and best.free > 0:
            return best
        for worker in self.workers.values():
            for lane in worker.lanes.values():
                if lane.of is not waiting and len(lane.sent) < lane.width:
                    self._narrow(lane)
                    return worker
        return None

    def _narrow(self, lane: Lane) -> None:
        lane.width = len(lane.sent)
        if lane.width:
            self._do(effects.ResizeLane(lane.worker.id, lane.id, lane.width))
        else:
            del lane.worker.lanes[lane.id]
            lane.of.lanes.remove(lane)
            self._do(effects.CloseLane(lane.worker.id, lane.id))
            self._forget_class_if_idle(lane.of)

    def _forget_class_if_idle(self, idle: TaskClass) -> None:
        if not idle.lanes and not idle.ready:
            self.classes.pop(idle.environment, None)

    def _widen(self, worker: Worker, waiting: TaskClass) -> None:
        more = min(worker.free, len(waiting.ready))
        lane = next((lane for lane in waiting.lanes if lane.worker is worker), None)
        if lane is None:
            lane = self._open(worker, waiting, more)
        else:
            lane.width += more
            self._do(effects.ResizeLane(worker.id, lane.id, lane.width))
        self._fill(lane, lane.width)

    def _open(self, worker: Worker, waiting: TaskClass, width: int) -> Lane:
        lane = Lane(LaneId(next(self._lane_numbers)), worker, waiting, width)
        worker.lanes[lane.id] = lane
        waiting.lanes.append(lane)
        self._do(effects.OpenLane(worker.id, lane.id, waiting.environment, width))
        return lane

    def _do(self, effect: Effect) -> None:
        self._effects.append(effect)

    # --- self-check ---------------------------------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Raise AssertionError if anything that must always hold does not; for tests."""
        for task in self.tasks.values():
            assert task.state is not TaskState.DONE, f"task {task.id} is done and still known"
            sent = task.lane is not None and task.lane.sent.get(task.id) is task
            assert sent == (task.state in (TaskState.SENT, TaskState.RUNNING)), f"task {task.id} {task.state}"
        for worker in self.workers.values():
            assert worker.free >= 0, f"worker {worker.id} has given {-worker.free} slots too many"
            for lane in worker.lanes.values():
                assert lane in lane.of.lanes
                assert all(self.tasks.get(task.id) is task for task in lane.sent.values())
        for each in self.classes.values():
            waits = any(task.state is TaskState.READY for task in each.ready)
            idle = any(len(lane.sent) < lane.width for lane in each.lanes)
            assert not (waits and idle), f"environment {each.environment}: tasks wait beside idle places"


def _has_failed(task: Task, report: protocol.Finished) -> bool:
    bad_status = report.end == protocol.COMPLETED and report.returncode != 0 and task.checked
    return bad_status or report.end in _FAILED


def _lane(task: Task) -> Lane:
    assert task.lane is not None
    return task.lane


def _drop_ended(each: TaskClass) -> bool:
    """Whether tasks wait, after dropping those that ended while they waited."""
    while each.ready and each.ready[0].state is not TaskState.READY:
        each.ready.popleft()
    return bool(each.ready)
