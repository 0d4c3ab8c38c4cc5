"""Which worker each ready task goes to.

Rule 1: the more important first, then the older; who comes later takes only what those before cannot use.
Rule 2: a lane keeps its places while tasks of its class wait, and until somebody else wants them.
Rule 3: for who waits in vain, places are taken from those who come after (``reservations``). Nobody who comes after
        gets anything there that it needs, until it is served.
Rule 4: what an agent holds in advance does not wait behind long tasks while there is room (``balance``).

What it costs does not grow with the number of tasks that wait, nor with that of lanes and workers where nothing
happens: a class looks only where something has changed since it looked last (``news``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from executor.core.balance import Balance
from executor.core.effects import Effect
from executor.core.lanes import Lanes, most_held
from executor.core.model import Queue, Task, TaskClass, Worker
from executor.core.news import News
from executor.core.nodes import Nodes
from executor.core.reservations import Reservations


class Placement:
    """All workers, and the classes whose tasks wait or run there. ``do`` is called with each effect."""

    def __init__(self, do: Callable[[Effect], None]) -> None:
        self.news = News()
        self.lanes = Lanes(do, self.news)
        self.reservations = Reservations(self.news, self.lanes)
        self.nodes = Nodes(self.news, self.lanes, self.reservations)
        self._balance = Balance(self.lanes, self.reservations)
        self._waiting: dict[Queue, None] = {}

    @property
    def has_backlog(self) -> bool:
        """Whether tasks wait for room."""
        return bool(self._waiting)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def add(self, task: Task, *, first: bool = False) -> None:
        """A task is ready; ``first``: it was before, and goes before the others."""
        of = self.news.class_of(task)
        queue = of.queues.get(task.priority) or self._new_queue(of, task.priority)
        if first:
            queue.ready.appendleft(task)
        else:
            queue.ready.append(task)
        self.news.stir(of)

    def _new_queue(self, of: TaskClass, priority: int) -> Queue:
        queue = of.queues[priority] = Queue(of, priority)
        self._waiting[queue] = None
        self.news.listen(of)
        if priority not in self.reservations.priorities or len(self.news.classes) == 2:
            self.reservations.priorities.add(priority)
            self._stir_all()  # there may be somebody now from whom places can be taken
        return queue

    def drop(self, task: Task) -> None:
        """A task has ended that may have waited; what was kept for it is for others now."""
        of = self.news.classes.get((task.environment, task.variants))
        queue = of.queues.get(task.priority) if of is not None else None
        if queue is not None and (queue.reserved or not queue.drop_ended()):
            self.news.stir(queue.of)

    # --- workers ------------------------------------------------------------------------------------------------------

    def join(self, worker: Worker) -> None:
        """A new worker."""
        self.news.workers[worker.id] = worker
        self.news.note(worker)

    def leave(self, worker: Worker) -> None:
        """Nothing more is given to it. Its lanes are nobody's any more; tasks that are there know them still."""
        del self.news.workers[worker.id]
        worker.present = False
        self.reservations.give_up(worker)
        for lane in worker.lanes.values():
            self.lanes.detach(lane)
            if not lane.sent:
                self.lanes.return_nodes(lane)

    # --- who gets what ------------------------------------------------------------------------------------------------

    def assign(self, now: float) -> None:
        """Give ready tasks to lanes."""
        if self.lanes.left:
            self._refill(now)
        self._stir_due(now)
        while stirred := self.news.take():
            for queue in self._in_order(stirred):
                self._feed(queue, now)
            for of in stirred:
                if of.deep:
                    self._balance.spread(of, now)
        if self.lanes.deep:
            self._balance.look(now)

    def _refill(self, now: float) -> None:
        """Rule 2."""
        for of in {lane.of: None for lane in self.lanes.left}:
            for queue in sorted(of.queues.values(), key=_importance) if len(of.queues) > 1 else of.queues.values():
                if queue.ready and not self._yields(queue):
                    self._fill_idle(queue, now)
                    self._deepen(queue, now)
                if not queue.ready or self._yields(queue):
                    self.news.stir(of)
        for lane in self.lanes.left:
            if lane.unused or (lane.worker.lent is lane and not lane.sent):
                # nobody of its class wants it
                for worker in (lane.worker, *lane.others):
                    self.news.note(worker)
        self.lanes.left.clear()

    def _yields(self, queue: Queue, worker: Worker | None = None) -> bool:
        """Whether a more important one waits, which is asked first; on a worker: one that could run there."""
        if len(self.reservations.priorities) == 1:
            return False
        before = (each.of for each in self._waiting if each.priority > queue.priority and each.ready)
        return any(worker is None or worker.may_serve(of.variants) for of in before)

    def _in_order(self, classes: Iterable[TaskClass]) -> list[Queue]:
        live = []
        for queue in [queue for of in classes for queue in of.queues.values()]:
            if queue.drop_ended():
                live.append(queue)
            else:
                self._wait_no_more(queue)
        if len(live) > 1:
            live.sort(key=_order)
        return live

    def _feed(self, queue: Queue, now: float) -> None:
        if queue.of.idle:
            self._fill_idle(queue, now)
        if queue.ready:
            self._open_room(queue, now)
        if queue.ready:
            queue.blocked = now if queue.blocked is None else queue.blocked
            self.reservations.make(queue, now)
            self._deepen(queue, now)
        if not queue.drop_ended():
            self._wait_no_more(queue)

    def _wait_no_more(self, queue: Queue) -> None:
        del self._waiting[queue], queue.of.queues[queue.priority]
        for worker in list(queue.reserved):
            self.reservations.release(worker)
        of = queue.of
        for lane in of.idle:
            self.news.note(lane.worker)  # somebody else may have it
        if not of.queues and not of.deep:
            self.news.ignore(of)
        self.lanes.forget_if_idle(of)

    # --- when to look though nothing happens --------------------------------------------------------------------------

    def due(self) -> float | None:
        """When :meth:`assign` may find more to do though nothing happens; None: not for that."""
        dues = [self.reservations.due if self._waiting else None, self._balance.due if self.lanes.deep else None]
        return min((due for due in dues if due is not None), default=None)

    def _stir_due(self, now: float) -> None:
        due = self.reservations.due
        if due is not None and due <= now:
            self.reservations.due = None
            self._stir_all()

    def _stir_all(self) -> None:
        for queue in self._waiting:
            self.news.stir(queue.of)

    # --- lanes that there are -----------------------------------------------------------------------------------------

    def _fill_idle(self, queue: Queue, now: float) -> None:
        idle = queue.of.idle
        while queue.ready and idle:
            lane = next(iter(idle))
            if not lane.worker.lives(lane.needs, now):
                self.lanes.take_idle(lane)  # there is no time for another task
            else:
                self.lanes.fill(lane, lane.width, queue)
                if lane.unused:
                    return
            idle.pop(lane, None)

    def _deepen(self, queue: Queue, now: float) -> None:
        """Let agents hold tasks in advance, but for those for which room is being made.

        None where more important ones could run that wait: these would have to wait for those, and what may not be held
        in advance would wait for ever.
        """
        of, spared = queue.of, len(queue.reserved)
        while of.shallow and len(queue.ready) > spared:
            lane = next(iter(of.shallow))
            limit = most_held(lane) if lane.worker.lives(lane.needs, now) else 0
            if limit > lane.width and self._yields(queue, lane.worker):
                limit = lane.width
            self.lanes.fill_in_advance(lane, limit, queue)
            if len(lane.sent) < limit:
                return
            del of.shallow[lane]

    # --- room for more ------------------------------------------------------------------------------------------------

    def _open_room(self, queue: Queue, now: float) -> None:
        """Claim places where there are some."""
        for variant, needs in enumerate(queue.of.variants):
            for candidates in filter(None, queue.of.candidates[variant]):
                if needs.nodes:
                    if any(worker.idle for worker in candidates):
                        self.nodes.open(queue, variant, now)
                    candidates.clear()
                while queue.drop_ended() and candidates:
                    share = -(-len(queue.ready) // len(candidates))
                    worker, _ = candidates.popitem(last=False)
                    if self._widen(worker, queue, variant, share, now):
                        candidates[worker] = None  # it goes to the end: who has room takes turns

    def _widen(self, worker: Worker, queue: Queue, variant: int, most: int, now: float) -> bool:
        """Claim up to ``most`` places on a worker, and fill them; whether there may be more."""
        _, amounts = queue.of.wanted[variant]
        needs = queue.of.variants[variant]
        if not worker.may_have(amounts) or not self.reservations.may_have(worker, queue, needs, now):
            return False
        claims = self.lanes.claim(worker, queue, needs, most)
        if not claims:
            return False
        lane = self.lanes.give(worker, queue.of, variant, claims)
        # Tasks may run at places that were asked back; these are not what the new ones are for.
        taken = min(len(lane.sent), len(lane.places) - len(claims))
        self.lanes.fill(lane, max(lane.width, taken + len(claims)), queue)
        queue.blocked = None
        if worker.reserved is queue:
            self.reservations.release(worker)
        return len(claims) == most


def _order(queue: Queue) -> tuple[int, int]:
    return queue.order


def _importance(queue: Queue) -> int:
    return -queue.priority
