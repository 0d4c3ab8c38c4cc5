"""Why a task does not run: what each worker lacks, what it waits for, what runs before it. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile

from executor.core.dependents import Condition
from executor.core.model import Queue, Task, TaskState, Worker, WorkerId
from executor.core.needs import Needs
from executor.core.scheduler import Scheduler
from worker_agent.pools import UNIT


@dataclass(slots=True)
class Reasons:
    """Where a task stands; for one that waits for room, what keeps each worker from it."""

    state: str
    #: how many ready tasks of the same needs go before it
    before: int = 0
    waits_for: list[Condition] = field(default_factory=list)
    worker: WorkerId | None = None
    workers: list[tuple[WorkerId, str]] = field(default_factory=list)


def explain(scheduler: Scheduler, task_id: int, now: float) -> Reasons:
    """The reasons of a task that was submitted."""
    task = scheduler.tasks.get(task_id)
    if task is None:
        return Reasons("ended")
    if task.state is TaskState.WAITING:
        return Reasons("waiting", waits_for=scheduler.awaited_by(task))
    if task.lane is not None:
        before = sum(1 for _ in takewhile(lambda each: each is not task, task.lane.sent.values()))
        return Reasons(task.state.value, max(0, before - task.lane.width + 1), worker=task.lane.worker.id)
    queue = scheduler.queue_of(task)
    before = sum(1 for _ in takewhile(lambda each: each is not task, queue.ready)) if queue is not None else 0
    workers = [(worker.id, _obstacle(worker, task, queue, now)) for worker in scheduler.workers.values()]
    return Reasons("ready", before, workers=workers)


def _obstacle(worker: Worker, task: Task, queue: Queue | None, now: float) -> str:
    """What keeps a task from a worker: of the variant that is nearest, as far as can be told."""
    never = [_never(worker, needs, now) for needs in task.variants]
    if all(never):
        return never[0]
    if worker.lent is not None:
        return "a task on several nodes has it as a whole"
    if worker.reserved is not None and worker.reserved is not queue and worker.reserved.ready:
        other = worker.reserved.ready[0]
        why = "is more important" if other.priority > task.priority else "has waited longer"
        return f"it is kept for task {other.id}, which {why}"
    possible = [needs for needs, why in zip(task.variants, never, strict=True) if not why]
    return " or ".join(dict.fromkeys(_lacking(worker, needs) for needs in possible))


def _never(worker: Worker, needs: Needs, now: float) -> str:
    """Why the worker can never meet the needs; "" if it can."""
    if not worker.lives(needs, now):
        return f"it ends in {(worker.ends or now) - now:.0f} s, and {needs.seconds:g} s are asked for"
    if needs.nodes or worker.free.possible(needs):
        return ""
    return "it can never run there: " + "; ".join(_too_much(worker, needs))


def _too_much(worker: Worker, needs: Needs) -> Iterator[str]:
    for need in needs.needs:
        total, wanted = worker.free.total(need.name), need.least
        if wanted > total:
            yield f"{need.name}: {wanted / UNIT:g} wanted, {total / UNIT:g} there"


def _lacking(worker: Worker, needs: Needs) -> str:
    if needs.nodes:
        return f"{needs.nodes} idle agents of one group are wanted"
    missing = [
        f"{name}: {'all' if wanted is None else f'{wanted / UNIT:g}'} wanted, {free / UNIT:g} of {total / UNIT:g} free"
        for name, wanted, free, total in worker.free.shortages(needs)
    ]
    if not missing:
        return "there is room: it is about to start, or others go before it"
    return "; ".join(missing) + _runs(worker)


def _runs(worker: Worker) -> str:
    running = [task.id for lane in worker.lanes.values() for task in list(lane.sent.values())[: len(lane.places)]]
    shown = ", ".join(map(str, running[:5])) + (", ..." if len(running) > 5 else "")
    return f" (task {shown} has them)" if running else " (idle lanes have them)"
