"""Lanes: what they have of their workers, which tasks they hold, and what agents are told of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice

from executor.core import effects
from executor.core.effects import Effect
from executor.core.model import Lane, LaneId, Queue, Task, TaskClass, TaskState, Worker, prefetch
from executor.core.needs import Needs
from executor.core.news import News
from worker_agent.pools import Place, Share


class Lanes:
    """Opens, widens, narrows, closes and feeds them. ``do`` is called with each effect."""

    def __init__(self, do: Callable[[Effect], None], news: News) -> None:
        #: tasks that were asked back because there is room elsewhere, or none where they are
        self.moving: dict[int, TaskClass] = {}
        #: classes of which agents hold tasks in advance
        self.deep: dict[TaskClass, None] = {}
        #: lanes that tasks have left
        self.left: dict[Lane, None] = {}
        self._do = do
        self._news = news
        self._numbers = count(1)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def fill(self, lane: Lane, limit: int, queue: Queue) -> None:
        """Send the first tasks of a queue until the lane holds so many."""
        ready = queue.ready
        while ready and len(lane.sent) < limit:
            task = ready.popleft()
            if task.state is TaskState.READY:
                self._send(lane, task)

    def fill_in_advance(self, lane: Lane, limit: int, queue: Queue) -> None:
        """The same, also beyond the lane's width, where a task that must not start twice may not be: it might start
        unheard, and then once more elsewhere.
        """
        while queue.drop_ended() and len(lane.sent) < limit:
            if queue.ready[0].crash_limit == 0 and len(lane.sent) >= lane.width:
                break
            self._send(lane, queue.ready.popleft())
        if len(lane.sent) > lane.width:
            self.mark_deep(lane)

    def _send(self, lane: Lane, task: Task) -> None:
        task.move(TaskState.SENT)
        task.attempt += 1
        task.lane = lane
        lane.sent[task.id] = task
        self._do(effects.Start(lane.worker.id, lane, task))

    def mark_deep(self, lane: Lane) -> None:
        """Its agent holds tasks in advance."""
        lane.of.deep.setdefault(lane, None)
        self.deep[lane.of] = None
        self._news.listen(lane.of)

    def forget_deep(self, of: TaskClass) -> None:
        """Nothing of the class is held in advance any more."""
        self.deep.pop(of, None)
        if not of.queues:
            self._news.ignore(of)

    def leave(self, task: Task) -> None:
        """The task is not with its agent any more."""
        lane = task.lane
        assert lane is not None
        del lane.sent[task.id]
        task.lane = None
        self.stays(task)
        if not lane.places and not lane.sent:
            self.close(lane)
        elif lane.is_open:
            lane.of.shallow[lane] = None
            if lane.unused:
                lane.of.idle[lane] = None
            self.left[lane] = None
        elif not lane.sent:
            self.return_nodes(lane)  # its worker leaves

    def held(self, lane: Lane) -> Iterator[Task]:
        """The tasks that its agent holds in advance, as far as can be told, and that nobody has asked back."""
        beyond = islice(lane.sent.values(), len(lane.places), None)
        return (task for task in beyond if task.state is TaskState.SENT and task.id not in self.moving)

    def recall(self, lane: Lane, number: int) -> int:
        """Ask for up to so many tasks that have not started, the last ones first; says for how many."""
        unstarted = (task for task in reversed(lane.sent.values()) if task.state is TaskState.SENT)
        return self._recall_each(islice((task for task in unstarted if task.id not in self.moving), max(0, number)))

    def _recall_each(self, tasks: Iterable[Task]) -> int:
        asked = 0
        for task in tasks:
            assert task.lane is not None
            self.moving[task.id] = task.lane.of
            task.lane.of.moving += 1
            self._do(effects.RecallTask(task.lane.worker.id, task))
            asked += 1
        return asked

    def stays(self, task: Task) -> bool:
        """The task is asked back no longer; whether it was."""
        of = self.moving.pop(task.id, None)
        if of is not None:
            of.moving -= 1
        return of is not None

    # --- places -------------------------------------------------------------------------------------------------------

    def claim(self, worker: Worker, queue: Queue | None, needs: Needs, most: int) -> list[list[Share]]:
        """Up to ``most`` places on a worker, if need be of what others have there and do not use.

        ``queue`` is for whom; None: for what is held in advance.
        """
        if worker.lent is not None:
            self.close(worker.lent)
        claims = worker.free.claim_many(needs, most)
        while len(claims) < most and self._reclaim(worker, queue, needs):
            claims += worker.free.claim_many(needs, most - len(claims))
        worker.counted.clear()
        return claims

    def _reclaim(self, worker: Worker, queue: Queue | None, needs: Needs) -> bool:
        """Take what nobody uses there; whether the needs fit now. Some places are given back a moment later only."""
        for lane in list(worker.lanes.values()):
            if lane.unused and not goes_before(lane.of, queue):
                self.take_idle(lane)
                if worker.free.fits(needs):
                    return True
        return False

    def give(self, worker: Worker, of: TaskClass, variant: int, claims: list[list[Share]]) -> Lane:
        """Give places to the lane of a class on a worker, which is opened if there is none."""
        lane = of.lanes.get((worker.id, variant)) or self._open(worker, of, variant)
        places = [Place(lane.following + number, shares) for number, shares in enumerate(claims)]
        lane.places.update((place.number, place.shares) for place in places)
        lane.following += len(places)
        lane.width += len(places)
        of.idle[lane] = of.shallow[lane] = None
        self._do(effects.GivePlaces(worker.id, lane, places))
        return lane

    def _open(self, worker: Worker, of: TaskClass, variant: int) -> Lane:
        lane = Lane(LaneId(next(self._numbers)), worker, of, variant)
        worker.lanes[lane.id] = of.lanes[worker.id, variant] = lane
        self._do(effects.OpenLane(worker.id, lane))
        return lane

    def take_idle(self, lane: Lane) -> None:
        """Take the places that nobody uses."""
        if lane.unused == len(lane.places):
            self.close(lane)
        elif lane.unused:
            self.take(lane, lane.unused)

    def take(self, lane: Lane, number: int) -> None:
        """Ask for places, and for tasks that would wait for them."""
        lane.width -= number
        if not lane.unused:
            lane.of.idle.pop(lane, None)
        self._do(effects.TakePlaces(lane.worker.id, lane, number))
        self.recall(lane, len(lane.sent) - max(most_held(lane), len(lane.places)) if lane.width else len(lane.sent))

    def freed(self, worker: Worker, lane_id: LaneId, numbers: Iterable[int]) -> None:
        """Places that were asked back are free."""
        lane = worker.lanes.get(lane_id)
        if lane is None or not worker.present:
            return  # it was closed meanwhile, with all its places
        for number in numbers:
            if len(lane.places) > lane.width and number in lane.places:
                worker.free.release(lane.places.pop(number))
        self._news.note(worker)
        if not lane.places and not lane.sent:
            self.close(lane)
        elif len(lane.sent) > len(lane.places):
            self.mark_deep(lane)  # the agent had not started them there yet
            self._recall_each(task for task in self.held(lane) if task.crash_limit == 0)

    def close(self, lane: Lane) -> None:
        """Its places are free at once: nothing runs there."""
        worker = lane.worker
        if worker.lanes.pop(lane.id, None) is None:
            return
        for shares in lane.places.values():
            worker.free.release(shares)
        lane.places.clear()
        lane.width = 0
        self.detach(lane)
        self.return_nodes(lane)
        if worker.present:
            self._do(effects.CloseLane(worker.id, lane))
            self._news.note(worker)

    def detach(self, lane: Lane) -> None:
        """The class of the lane gives it no more tasks."""
        of = lane.of
        if lane.is_open:
            del of.lanes[lane.worker.id, lane.variant]
        for lanes in (of.idle, of.shallow, of.deep):
            lanes.pop(lane, None)
        if not of.lanes:
            self.forget_if_idle(of)

    def forget_if_idle(self, of: TaskClass) -> None:
        """A class of which nothing is left is forgotten; one that has no lane may take places from others."""
        if of.queues:
            self._news.stir(of)
        elif not of.lanes and self._news.classes.get((of.environment, of.variants)) is of:
            self._news.forget(of)
            self.deep.pop(of, None)

    def return_nodes(self, lane: Lane) -> None:
        """The task that had several nodes has ended: each of them is its own again."""
        for worker in [*lane.others, lane.worker]:
            if worker.lent is lane:
                worker.lent = None
                if worker.present:
                    self._news.note(worker)
        lane.others = []


def goes_before(of: TaskClass, queue: Queue | None) -> bool:
    """Whether tasks of the class wait that come before the queue; if that is None: any, be it on agents."""
    if queue is None:
        return of.waits or bool(of.deep)
    return any(each.ready and each.order < queue.order for each in of.queues.values())


def most_held(lane: Lane) -> int:
    """How many tasks its agent may hold; in advance none for which it may not live long enough when they start."""
    if lane.needs.seconds and lane.worker.ends is not None:
        return lane.width
    return lane.width + prefetch(lane.of.duration, lane.width)
