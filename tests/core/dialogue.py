"""A dialogue with the scheduler: what it is told, and what it then wants done. For the tests of the core."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from invariants import check

from executor.core import effects
from executor.core.dependents import Condition
from executor.core.effects import CloseLane, Requeue, Start, TakePlaces, Tell
from executor.core.model import Lane, LaneId, Task, WorkerId
from executor.core.needs import Need, Needs
from executor.core.scheduler import Scheduler
from worker_agent import codec, protocol
from worker_agent.pools import UNIT, Pool
from worker_agent.protocol import VALUE, Finished, Freed, Recalled, Report, Started

W1, W2, W3, W4 = map(WorkerId, range(1, 5))
L1, L2, L3, L4 = map(LaneId, range(1, 5))


@dataclass
class Opened:
    """The effect OpenLane: which lane, for which environment."""

    worker: WorkerId
    lane: LaneId
    environment: int


@dataclass
class Given:
    """The effect GivePlaces: to which lane, and how many."""

    worker: WorkerId
    lane: LaneId
    count: int


def opened(worker: WorkerId, lane: LaneId, environment: int, width: int) -> list[Any]:
    """A new lane, with so many places."""
    return [Opened(worker, lane, environment), Given(worker, lane, width)]


def by_value(effect: Any) -> Any:
    """The effect, with the lane's number in place of the lane."""
    match effect:
        case effects.OpenLane(worker, lane):
            return Opened(worker, lane.id, lane.of.environment)
        case effects.GivePlaces(worker, lane, places):
            return Given(worker, lane.id, len(places))
        case effects.TakePlaces(worker, lane, count):
            return TakePlaces(worker, lane.id, count)
        case effects.CloseLane(worker, lane):
            return CloseLane(worker, lane.id)
        case effects.Start(worker, lane, task):
            return Start(worker, lane.id, task)
    return effect


class Wanted(list[Any]):
    """Effects, which know whether the test has looked at them."""

    seen = False

    def __eq__(self, other: object) -> bool:
        self.seen = True
        return list.__eq__(self, other)

    def __iter__(self) -> Iterator[Any]:
        self.seen = True
        return list.__iter__(self)


class Cluster:
    """A scheduler, and those who talk to it. Reports are encoded and decoded on their way."""

    def __init__(self) -> None:
        self.scheduler = Scheduler()
        self.now = 0.0
        self._said: list[Wanted] = []
        self._tasks = 0

    def _note(self, effects: list[Any]) -> Wanted:
        check(self.scheduler, self.now)
        self._said.append(Wanted(map(by_value, effects)))
        return self._said[-1]

    @property
    def classes(self) -> list[Any]:
        """What the scheduler knows of classes of tasks."""
        return list(self.scheduler._placement.news.classes.values())

    def lane(self, worker: WorkerId, number: LaneId) -> Lane:
        return self.scheduler.workers[worker].lanes[number]

    def tasks(self, number: int, environment: int = 0, **options: Any) -> list[Task]:
        """New tasks, not submitted yet. Their ids go on from one call to the next."""
        first, self._tasks = self._tasks + 1, self._tasks + number
        return [Task(task_id, environment, f"body {task_id}", **options) for task_id in range(first, self._tasks + 1)]

    def submit(self, *tasks: Task) -> Wanted:
        return self._note(self.scheduler.submit(tasks, self.now))

    def submit_after(self, task: Task, *after: Condition) -> Wanted:
        return self._note(self.scheduler.submit_after(task, after, self.now))

    def join(self, worker: WorkerId, slots: int, *pools: Pool, ends: float | None = None, group: str = "") -> Wanted:
        """A worker with so many CPUs, and other pools."""
        return self._note(self.scheduler.joined(worker, [*cpus(slots), *pools], self.now, ends, group))

    def lose(self, worker: WorkerId, reason: str = "the node is gone", last: Iterable[Report] = ()) -> Wanted:
        return self._note(self.scheduler.lost(worker, reason, self.now, last))

    def report(self, worker: WorkerId, *reports: Report) -> Wanted:
        frame = codec.encode(protocol.Reports(protocol.PROTOCOL, "session", 1, 1, 0, False, 0.0, list(reports)))
        return self._note(self.scheduler.receive(worker, codec.decode_reports(frame).messages, self.now))

    def cancel(self, task: Task) -> Wanted:
        return self._note(self.scheduler.cancel(task.id, self.now))

    def kill(self, task: Task, signal: int = 15, grace: float = 2.0) -> Wanted:
        return self._note(self.scheduler.kill(task.id, signal, grace, self.now))

    def tick(self, now: float) -> Wanted:
        self.now = now
        return self._note(self.scheduler.tick(now))

    def start(self, number: int, slots: int, **options: Any) -> list[Task]:
        """Tasks of environment 0 of which worker 1 with its first lane of ``slots`` places has as many as it takes."""
        tasks = self.tasks(number, **options)
        assert self.submit(*tasks) == []
        sent = [Start(W1, L1, task) for task in tasks[: 2 * slots]]
        assert self.join(W1, slots) == [*opened(W1, L1, 0, min(slots, number)), *sent]
        return tasks

    def begin(self, worker: WorkerId, *tasks: Task) -> None:
        """These tasks have started."""
        reports = [started(task) for task in tasks]
        assert self.report(worker, *reports) == [
            Tell(task, report) for task, report in zip(tasks, reports, strict=True)
        ]

    def end(self, *tasks: Task) -> list[Any]:
        """These tasks end well; what then happens besides that they are resolved."""
        wanted: list[Any] = []
        for task in tasks:
            assert task.lane is not None
            end = finished(task)
            wanted += self.report(task.lane.worker.id, end)
            wanted.remove(effects.Resolve(task, end))
        return wanted

    def close(self) -> None:
        unseen = [list(effects) for effects in self._said if len(effects) and not effects.seen]
        assert not unseen, f"effects that the test did not look at: {unseen}"


def cpus(number: int, *, groups: int = 1) -> list[Pool]:
    """A pool of so many CPUs; none if there are none."""
    names = [str(each) for each in range(number)]
    size = -(-number // groups)
    return [Pool("cpus", [names[first : first + size] for first in range(0, number, size)])] if number else []


def gpus(number: int, name: str = "gpus") -> Pool:
    return Pool(name, [[str(each) for each in range(number)]])


def needs(*, seconds: float = 0.0, nodes: int = 0, **amounts: float | str | None) -> Needs:
    """``needs(cpus=2, gpus=0.5)``; None is all; ``_`` in names stands for a slash."""
    each = [
        Need(name.replace("_", "/"), None if amount is None else round(float(amount) * UNIT))
        for name, amount in sorted(amounts.items())
    ]
    return Needs(tuple(each), seconds, nodes)


def started(task: Task, attempt: int | None = None) -> Started:
    return Started(task.id, task.attempt if attempt is None else attempt, 4242, 1000.0)


def finished(task: Task, end: str = VALUE, seconds: float = 0.5, attempt: int | None = None, **rest: Any) -> Finished:
    number = task.attempt if attempt is None else attempt
    return Finished(task.id, number, end, started=1000.0, ended=1000.0 + seconds, **rest)


def recalled(task: Task, given_back: bool) -> Recalled:
    return Recalled(task.id, task.attempt, given_back)


def freed(lane: LaneId, *places: int) -> Freed:
    return Freed(lane, list(places))


def requeued(*tasks: Task) -> list[Requeue]:
    """They go back to the head of their queue, so that the first one is the last to go."""
    return [Requeue(task) for task in reversed(tasks)]


def started_tasks(effects: Iterable[Any]) -> list[Task]:
    return [effect.task for effect in effects if isinstance(effect, Start)]
