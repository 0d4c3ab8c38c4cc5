"""Which worker each ready task goes to: opens lanes, widens and narrows them, feeds them.

Rule 1: the more important first, then the older; who comes later takes only what those before cannot use.
Rule 2: a lane keeps its places while tasks of its class wait, and until somebody else wants them.
Rule 3: for who waits in vain, places are taken from those who come after: at once for the more important, or if one
        place is enough for a class that has none; for who needs more, after ``PATIENCE``. Nobody who comes after gets
        anything there that it needs, until it is served.
Rule 4: what an agent holds in advance does not wait behind long tasks while there is room.

What it costs does not grow with the number of tasks that wait, nor with that of lanes and workers where nothing
happens: each class looks only at workers that have changed since it looked last.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice

from executor.core import effects
from executor.core.effects import Effect
from executor.core.model import (
    Lane,
    LaneId,
    Queue,
    Task,
    TaskClass,
    TaskState,
    Variants,
    Worker,
    WorkerId,
    prefetch,
)
from executor.core.needs import Needs
from worker_agent.pools import Place, Share

#: Seconds that a task which needs more than one place of others waits until places are kept for it.
PATIENCE = 1.0
#: Seconds until it is looked again where room could be made, if there was nowhere: at first, and for who waits long.
#: All look at the same moments: each of these costs a look at everybody who waits.
LOOK_AGAIN, LOOK_LATER = 0.1, 1.0
#: So many workers are looked at to find where room is made soonest.
_LOOKED_AT = 200
#: Workers may change so often until all classes take note.
_MANY_CHANGES = 10_000

#: Workers where room is to be made, and how many places of which lanes to take there.
Plan = list[tuple[Worker, list[tuple[Lane, int]]]]


class Placement:
    """All workers, and the classes whose tasks wait or run there. ``do`` is called with each effect."""

    def __init__(self, do: Callable[[Effect], None]) -> None:
        self.workers: dict[WorkerId, Worker] = {}
        self.classes: dict[tuple[int, Variants], TaskClass] = {}
        #: tasks that were asked back because there is room elsewhere, or none where they are
        self.moving: dict[int, TaskClass] = {}
        self._do = do
        self._waiting: dict[Queue, None] = {}
        #: lanes that tasks have left
        self._left: dict[Lane, None] = {}
        #: whether somebody who waits may find room
        self._look = False
        #: when to look again, though nothing happens
        self._due: float | None = None
        self._deep: dict[TaskClass, None] = {}
        #: workers that may have room which they had not before, in the order of the changes
        self._changes: list[Worker] = []
        self._forgotten = 0
        #: so many changes at least have been seen by a class: the last one is news only if it is not among them
        self._seen = 0
        self._lane_numbers = count(1)
        self._start_at = 0
        self._last: TaskClass | None = None
        #: all that tasks have had
        self._priorities: set[int] = set()

    @property
    def has_backlog(self) -> bool:
        """Whether tasks wait for room."""
        return bool(self._waiting)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def add(self, task: Task, *, first: bool = False) -> None:
        """A task is ready; ``first``: it was before, and goes before the others."""
        of = self._last
        if of is None or of.variants is not task.variants or of.environment != task.environment:
            of = self._last = self.class_of(task)
        queue = of.queues.get(task.priority)
        if queue is None:
            self._priorities.add(task.priority)
            queue = of.queues[task.priority] = Queue(of, task.priority)
        if first:
            queue.ready.appendleft(task)
        else:
            queue.ready.append(task)
        self._waiting[queue] = None
        self._look = True

    def stays(self, task: Task) -> bool:
        """The task is asked back no longer; whether it was."""
        of = self.moving.pop(task.id, None)
        if of is not None:
            of.moving -= 1
        return of is not None

    def drop(self, task: Task) -> None:
        """A task has ended that may have waited; what was kept for it is for others now."""
        of = self.classes.get((task.environment, task.variants))
        queue = of.queues.get(task.priority) if of is not None else None
        if queue is not None and (queue.reserved or not queue.drop_ended()):
            self._look = True

    def class_of(self, task: Task) -> TaskClass:
        """The class of tasks that it belongs to."""
        key = task.environment, task.variants
        found = self.classes.get(key)
        if found is None:
            found = self.classes[key] = TaskClass(task.environment, task.variants)
            found.candidates = [(OrderedDict(), OrderedDict()) for _ in task.variants]
            found.wanted = [(_names(needs), needs.cpus) for needs in task.variants]
            self._offer(found, self.workers.values())
            found.seen = self._seen = self._forgotten + len(self._changes)
        return found

    def leave_lane(self, task: Task) -> None:
        """The task is not with its agent any more."""
        lane = task.lane
        assert lane is not None
        del lane.sent[task.id]
        task.lane = None
        self.stays(task)
        if not lane.places and not lane.sent:
            self._close(lane)
            return
        of = lane.of
        if lane.id not in lane.worker.lanes or of.lanes.get((lane.worker.id, lane.variant)) is not lane:
            if not lane.sent:
                self.return_nodes(lane)
            return  # its worker leaves
        of.shallow[lane] = None
        if len(lane.sent) < lane.width:
            of.idle[lane] = None
        self._left[lane] = None

    # --- workers ------------------------------------------------------------------------------------------------------

    def join(self, worker: Worker) -> None:
        """A new worker."""
        self.workers[worker.id] = worker
        self._note(worker)

    def leave(self, worker: Worker) -> None:
        """Nothing more is given to it. Its lanes are nobody's any more; tasks that are there know them still."""
        del self.workers[worker.id]
        self._give_up(worker)
        for lane in worker.lanes.values():
            self._detach(lane)
            if not lane.sent:
                self.return_nodes(lane)

    def _detach(self, lane: Lane) -> None:
        of = lane.of
        if of.lanes.get((lane.worker.id, lane.variant)) is lane:
            del of.lanes[lane.worker.id, lane.variant]
        of.idle.pop(lane, None)
        of.shallow.pop(lane, None)
        of.deep.pop(lane, None)
        self._forget_if_idle(of)

    def freed(self, worker: Worker, lane_id: LaneId, numbers: Iterable[int]) -> None:
        """Places that were asked back are free."""
        lane = worker.lanes.get(lane_id)
        if lane is None or self.workers.get(worker.id) is not worker:
            return  # it was closed meanwhile, with all its places
        for number in numbers:
            if len(lane.places) > lane.width and number in lane.places:
                worker.free.release(lane.places.pop(number))
        self._note(worker)
        if not lane.places and not lane.sent:
            self._close(lane)
        elif len(lane.sent) > len(lane.places):
            self._mark_deep(lane)  # the agent had not started them there yet
            self._recall_each(task for task in self._held(lane) if task.crash_limit == 0)

    def _note(self, worker: Worker) -> None:
        """It may have room that it had not before."""
        worker.counted = None
        self._look = True
        end = self._forgotten + len(self._changes)
        if self._seen >= end or self._changes[-1] is not worker:
            self._changes.append(worker)
            if len(self._changes) > _MANY_CHANGES:
                for each in self.classes.values():
                    self._take_note(each)
                self._seen = self._forgotten = self._forgotten + len(self._changes)
                self._changes.clear()

    def _take_note(self, of: TaskClass) -> None:
        end = self._forgotten + len(self._changes)
        if of.seen < end:
            self._offer(of, dict.fromkeys(self._changes[of.seen - self._forgotten :]))
            of.seen = self._seen = end

    def _offer(self, of: TaskClass, workers: Iterable[Worker]) -> None:
        for (names, cpus), tiers in zip(of.wanted, of.candidates, strict=True):
            for worker in workers:
                if worker.spare >= cpus:
                    tiers[not worker.rare <= names][worker] = None

    # --- assignment ---------------------------------------------------------------------------------------------------

    def assign(self, now: float) -> None:
        """Give ready tasks to lanes."""
        if self._left:
            self._refill(now)
        if self._look or self._is_due(now):
            self._look, self._due = False, None
            for queue in self._in_order():
                self._feed(queue, now)
            if self._deep:
                self._balance(now)

    def _refill(self, now: float) -> None:
        """Rule 2."""
        for of in {lane.of: None for lane in self._left}:
            queues = of.queues.values()
            for queue in sorted(queues, key=_importance) if len(queues) > 1 else queues:
                if queue.ready and not self._yields(queue):
                    self._fill_idle(queue, now)
                    self._deepen(queue, now)
                    self._look = self._look or not queue.drop_ended()
        for lane in self._left:
            if len(lane.sent) < lane.width or (lane.worker.lent is lane and not lane.sent):
                # nobody of its class wants it
                for worker in (lane.worker, *lane.others):
                    self._note(worker)
        self._left.clear()

    def _yields(self, queue: Queue) -> bool:
        """Whether a more important one waits, which is asked first."""
        if len(self._priorities) == 1:
            return False
        return any(each.priority > queue.priority and each.ready for each in self._waiting)

    def _in_order(self) -> list[Queue]:
        live = []
        for queue in list(self._waiting):
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
            self._make_room(queue, now)
            self._deepen(queue, now)
        if not queue.drop_ended():
            self._wait_no_more(queue)

    def _wait_no_more(self, queue: Queue) -> None:
        del self._waiting[queue]
        queue.blocked, queue.look_again = None, 0.0
        for worker in list(queue.reserved):
            self._unreserve(worker)
        of = queue.of
        if len(of.queues) > 1:
            del of.queues[queue.priority]
        for lane in of.idle:
            self._note(lane.worker)  # somebody else may have it
        self._forget_if_idle(of)

    def _forget_if_idle(self, of: TaskClass) -> None:
        if not of.lanes and not of.has_ready and self.classes.get((of.environment, of.variants)) is of:
            del self.classes[of.environment, of.variants]
            self._deep.pop(of, None)
            self._last = None

    def _fill_idle(self, queue: Queue, now: float) -> None:
        idle = queue.of.idle
        while queue.ready and idle:
            lane = next(iter(idle))
            if not lane.worker.lives(lane.needs, now):
                self._take_idle(lane)  # there is no time for another task
            else:
                self._fill(lane, lane.width, queue)
                if len(lane.sent) < lane.width:
                    return
            idle.pop(lane, None)

    def _deepen(self, queue: Queue, now: float) -> None:
        """Let agents hold tasks in advance, but for those for which room is being made.

        None while more important ones wait: these would have to wait for those, and what may not be held in advance
        would wait for ever.
        """
        of, spared = queue.of, len(queue.reserved)
        if any(each.ready and each.priority > queue.priority for each in of.queues.values()):
            return
        while of.shallow and len(queue.ready) > spared:
            lane = next(iter(of.shallow))
            limit = _most_held(lane) if lane.worker.lives(lane.needs, now) else 0
            self._fill(lane, limit, queue, in_advance=True)
            if len(lane.sent) > lane.width:
                self._mark_deep(lane)
            if len(lane.sent) < limit:
                return
            del of.shallow[lane]

    def _mark_deep(self, lane: Lane) -> None:
        """Its agent holds tasks in advance."""
        lane.of.deep[lane] = None
        self._deep[lane.of] = None

    def _fill(self, lane: Lane, limit: int, queue: Queue, in_advance: bool = False) -> None:
        ready = queue.ready
        while ready and len(lane.sent) < limit:
            if in_advance and len(lane.sent) >= lane.width and ready[0].crash_limit == 0:
                return  # in a queue it might start unheard, and then once more elsewhere
            task = ready.popleft()
            if task.state is TaskState.READY:
                self._send(lane, task)

    def _send(self, lane: Lane, task: Task) -> None:
        task.move(TaskState.SENT)
        task.attempt += 1
        task.lane = lane
        lane.sent[task.id] = task
        self._do(effects.Start(lane.worker.id, lane, task))

    # --- room ---------------------------------------------------------------------------------------------------------

    def _open_room(self, queue: Queue, now: float) -> None:
        """Claim places where there are some."""
        of = queue.of
        self._take_note(of)
        for variant, needs in enumerate(of.variants):
            for candidates in filter(None, of.candidates[variant]):
                if needs.nodes:
                    if any(map(_is_idle, candidates)):
                        self._open_on_nodes(queue, variant, now)
                    candidates.clear()
                _, cpus = of.wanted[variant]
                while queue.drop_ended() and candidates:
                    share = -(-len(queue.ready) // len(candidates))
                    worker, _ = candidates.popitem(last=False)
                    if worker.spare < cpus:
                        continue
                    if self._widen(worker, queue, variant, share, now):
                        candidates[worker] = None  # it goes to the end: who has room takes turns

    def _widen(self, worker: Worker, queue: Queue, variant: int, most: int, now: float) -> bool:
        """Claim up to ``most`` places on a worker, and fill them; whether there may be more."""
        needs = queue.of.variants[variant]
        claims = self._claim(worker, queue, needs, most) if self._may_have(worker, queue, needs, now) else []
        worker.counted = None
        if not claims:
            return False
        lane = self._give_places(worker, queue.of, variant, claims)
        # Tasks may run at places that were asked back; these are not what the new ones are for.
        taken = min(len(lane.sent), len(lane.places) - len(claims))
        self._fill(lane, max(lane.width, taken + len(claims)), queue)
        queue.blocked = None
        if worker.reserved is queue:
            self._unreserve(worker)
        return len(claims) == most

    def _may_have(self, worker: Worker, queue: Queue | None, needs: Needs, now: float) -> bool:
        """Whether a queue (None: what is held in advance) may have something of a worker, if there is room."""
        if self.workers.get(worker.id) is not worker or not worker.lives(needs, now):
            return False
        if worker.lent is not None and worker.lent.sent:
            return False
        holder = worker.reserved
        if holder is None or holder is queue or not holder.ready:
            return True
        if queue is not None and queue.order < holder.order:
            return True
        return not _names(needs) & _all_names(holder.of) and not needs.nodes and not holder.of.takes_nodes

    def _claim(self, worker: Worker, queue: Queue | None, needs: Needs, most: int) -> list[list[Share]]:
        """Up to ``most`` places on a worker, if need be of what others have there and do not use."""
        if worker.lent is not None:
            self._close(worker.lent)
        claims = worker.free.claim_many(needs, most)
        if not claims and self._reclaim(worker, queue, needs):
            claims = worker.free.claim_many(needs, most)
        return claims

    def _give_places(self, worker: Worker, of: TaskClass, variant: int, claims: list[list[Share]]) -> Lane:
        lane = of.lanes.get((worker.id, variant))
        if lane is None:
            lane = Lane(LaneId(next(self._lane_numbers)), worker, of, variant)
            worker.lanes[lane.id] = of.lanes[worker.id, variant] = lane
            self._do(effects.OpenLane(worker.id, lane))
        places = [Place(lane.following + number, shares) for number, shares in enumerate(claims)]
        lane.places.update((place.number, place.shares) for place in places)
        lane.following += len(places)
        lane.width += len(places)
        of.idle[lane] = of.shallow[lane] = None
        self._do(effects.GivePlaces(worker.id, lane, places))
        return lane

    def _reclaim(self, worker: Worker, queue: Queue | None, needs: Needs) -> bool:
        """Take what nobody uses there; whether the needs fit now. Some places are given back a moment later only."""
        for lane in list(worker.lanes.values()):
            if len(lane.sent) < lane.width and not _serves_before(lane.of, queue):
                self._take_idle(lane)
                if worker.free.fits(needs):
                    return True
        return False

    def _take_idle(self, lane: Lane) -> None:
        """Take the places that nobody uses."""
        idle = lane.width - len(lane.sent)
        if idle == len(lane.places):
            self._close(lane)
        elif idle > 0:
            self._take_places(lane, idle)

    def _take_places(self, lane: Lane, number: int) -> None:
        """Ask for places, and for tasks that would wait for them."""
        lane.width -= number
        if len(lane.sent) >= lane.width:
            lane.of.idle.pop(lane, None)
        self._do(effects.TakePlaces(lane.worker.id, lane, number))
        self._recall(lane, len(lane.sent) - max(_most_held(lane), len(lane.places)) if lane.width else len(lane.sent))

    def _recall(self, lane: Lane, number: int) -> int:
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

    def _close(self, lane: Lane) -> None:
        worker = lane.worker
        if worker.lanes.pop(lane.id, None) is None:
            return
        for shares in lane.places.values():
            worker.free.release(shares)
        lane.places.clear()
        lane.width = 0
        self._detach(lane)
        self.return_nodes(lane)
        if self.workers.get(worker.id) is worker:
            self._do(effects.CloseLane(worker.id, lane))
            self._note(worker)

    # --- several nodes ------------------------------------------------------------------------------------------------

    def _open_on_nodes(self, queue: Queue, variant: int, now: float) -> None:
        needs = queue.of.variants[variant]
        while queue.drop_ended():
            nodes = self._idle_nodes(queue, needs, now)
            if not nodes:
                return
            self._lend(nodes, queue, variant)

    def _idle_nodes(self, queue: Queue, needs: Needs, now: float) -> list[Worker]:
        """Workers of one group, as many as are needed, on which nothing runs; none if there are not enough."""
        groups: dict[str, list[Worker]] = {}
        for worker in self.workers.values():
            if _is_idle(worker) and self._may_have(worker, queue, needs, now):
                group = groups.setdefault(worker.group, [])
                group.append(worker)
                if len(group) == needs.nodes:
                    return group
        return []

    def _lend(self, nodes: list[Worker], queue: Queue, variant: int) -> None:
        for worker in nodes:
            for lane in [*worker.lanes.values(), *([worker.lent] if worker.lent is not None else [])]:
                self._close(lane)
            if worker.reserved is queue:
                self._unreserve(worker)
        first, *others = nodes
        lane = self._give_places(first, queue.of, variant, [first.free.claim_all()])
        lane.others = others
        for worker in others:
            worker.lent = lane
        first.lent = lane
        self._fill(lane, 1, queue)

    def break_up(self, lane: Lane) -> None:
        """One of its nodes is gone: nothing starts there any more, and it is closed when its task has ended."""
        if self.workers.get(lane.worker.id) is lane.worker and lane.width:
            self._take_places(lane, lane.width)

    def return_nodes(self, lane: Lane) -> None:
        """Its task has ended: each of its nodes is its own again."""
        for worker in [*lane.others, lane.worker]:
            if worker.lent is lane:
                worker.lent = None
                if self.workers.get(worker.id) is worker:
                    self._note(worker)
        lane.others = []

    # --- rule 3 -------------------------------------------------------------------------------------------------------

    def _make_room(self, queue: Queue, now: float) -> None:
        """Have places given back where that will be soonest."""
        for worker in list(queue.reserved):
            self._take_more(worker, queue, now)
        if len(self.classes) == 1 or (queue.of.lanes and len(self._priorities) == 1):
            return  # there is nobody to take from
        while now >= queue.look_again and len(queue.reserved) < len(queue.ready):
            found = self._cheapest(queue, now)
            if found is None:
                queue.look_again = _next_look(queue, now)
                break
            for worker, wanted in found:
                worker.reserved = queue
                queue.reserved[worker] = None
                for lane, number in wanted:
                    if lane.width:  # of a task on several nodes all may be wanted, and its place is taken once
                        self._take_places(lane, number)
        if queue.look_again > now:
            self._due = min(self._due or queue.look_again, queue.look_again)

    def _take_more(self, worker: Worker, queue: Queue, now: float) -> None:
        """Enough was given back, and yet nothing fits: it is in pieces, or further nodes are needed."""
        lanes = _lanes_on(worker)
        if any(len(lane.places) > lane.width for lane in lanes):
            return  # wait for it
        if _is_idle(worker) and any(needs.nodes and worker.lives(needs, now) for needs in queue.of.variants):
            return  # wait for the others
        helpful = (lane for lane in lanes if lane.width and (queue.of.takes_nodes or _helps(lane, queue.of)))
        lane = next((lane for lane in helpful if self._comes_after(lane, queue)), None)
        if lane is None:
            self._give_up(worker)
        else:
            self._take_places(lane, 1)

    def _cheapest(self, queue: Queue, now: float) -> Plan | None:
        """Where the fewest tasks have to end; and which places to take there. None: nowhere, or not yet."""
        has_nothing = not queue.of.lanes and not queue.reserved
        waits_long = has_nothing and now - (now if queue.blocked is None else queue.blocked) >= PATIENCE
        best, least = None, math.inf
        for worker, needs in islice(self._possible(queue, now), _LOOKED_AT):
            important = waits_long or self._is_more_important(queue, worker)
            if needs.nodes:
                if important:
                    return self._plan_nodes(queue, needs, now)
                continue
            wanted = self._plan(worker, queue, needs)
            cost = math.inf if wanted is None else sum(number for _, number in wanted)
            if wanted is not None and cost < least and (important or (has_nothing and cost == 1)):
                best, least = [(worker, wanted)], cost
                if cost == 1:
                    break
        return best

    def _possible(self, queue: Queue, now: float) -> Iterator[tuple[Worker, Needs]]:
        """Workers that would have room if they were empty, beginning with another one each time."""
        everybody = list(self.workers.values())
        self._start_at = (self._start_at + _LOOKED_AT) % max(1, len(everybody))
        for worker in chain(everybody[self._start_at :], everybody[: self._start_at]):
            if worker.reserved is None and (worker.lent is None or worker.lent.worker is worker):
                for needs in queue.of.variants:
                    if worker.lives(needs, now) and (needs.nodes or worker.free.possible(needs)):
                        yield worker, needs
                        break

    def _plan(self, worker: Worker, queue: Queue, needs: Needs) -> list[tuple[Lane, int]] | None:
        """Which places have to be given back so that the needs fit; None if that is not enough, or not ours to say."""
        # What is short of nothing is in pieces: one place more may help, or the one after it.
        short = {name: max(1, (total if wanted is None else wanted) - free) for name, wanted, free, total in
                 worker.free.shortages(needs)}  # fmt: skip
        wanted = []
        for lane in worker.lanes.values():
            if not self._comes_after(lane, queue) or not lane.places:
                continue
            place = next(iter(lane.places.values()))
            each = {name: sum(share.amount for share in place if _serves(share, name)) for name in short}
            coming = len(lane.places) - lane.width
            asked = max((-(-short[name] // amount) for name, amount in each.items() if amount), default=0)
            taken = min(lane.width, max(0, asked - coming))
            for name, amount in each.items():
                short[name] -= amount * (taken + min(coming, max(0, asked)))
            if taken:
                wanted.append((lane, taken))
        return wanted if wanted and all(amount <= 0 for amount in short.values()) else None

    def _plan_nodes(self, queue: Queue, needs: Needs, now: float) -> Plan | None:
        groups: dict[str, list[Worker]] = {}
        for worker in self.workers.values():
            free_to_take = worker.reserved is None and worker.lives(needs, now)
            if free_to_take and all(self._comes_after(lane, queue) for lane in _lanes_on(worker)):
                groups.setdefault(worker.group, []).append(worker)
        enough = [group for group in groups.values() if len(group) >= needs.nodes]
        if not enough:
            return None
        largest = max(enough, key=lambda group: len(group))
        largest.sort(key=lambda worker: sum(len(lane.sent) for lane in _lanes_on(worker)))
        return [(worker, [(lane, lane.width) for lane in _lanes_on(worker)]) for worker in largest[: needs.nodes]]

    def _comes_after(self, lane: Lane, queue: Queue) -> bool:
        """Whether all that waits for the lane's places, or has not started there yet, comes after the queue."""
        if lane.of is queue.of:
            return False
        if _serves_before(lane.of, queue):
            return False
        # not the first of them alone: one that was given back and sent again is behind younger ones, and would be
        # asked back for the queue, and be given its place anew as the older one, without an end
        order = queue.order
        return all((-task.priority, task.id) > order for task in lane.sent.values() if task.state is TaskState.SENT)

    def _is_more_important(self, queue: Queue, worker: Worker) -> bool:
        """Than something that runs on the worker, or would run at a place where nothing does."""
        return any(
            len(lane.sent) < lane.width or any(task.priority < queue.priority for task in lane.sent.values())
            for lane in worker.lanes.values()
        )

    def _unreserve(self, worker: Worker) -> None:
        if worker.reserved is not None:
            worker.reserved.reserved.pop(worker, None)
            worker.reserved = None
            self._note(worker)

    def _give_up(self, worker: Worker) -> None:
        """Keep nothing there any longer; nor on other nodes, if that was to be one of several."""
        queue = worker.reserved
        if queue is not None:
            for each in list(queue.reserved) if queue.of.takes_nodes else [worker]:
                self._unreserve(each)

    def due(self) -> float | None:
        """When :meth:`assign` may find more to do though nothing happens; None: not for that."""
        return self._due if self._waiting else None

    def _is_due(self, now: float) -> bool:
        return self._due is not None and self._due <= now and bool(self._waiting)

    # --- rule 4 -------------------------------------------------------------------------------------------------------

    def _balance(self, now: float) -> None:
        for of in list(self._deep):
            if not of.deep:
                self._deep.pop(of, None)  # it may have been forgotten while another one was seen to
            elif not of.is_quick and not of.has_ready:
                self._take_note(of)
                if of.idle or any(map(any, of.candidates)):
                    self._spread(of, now)

    def _spread(self, of: TaskClass, now: float) -> None:
        """Let tasks that agents hold in advance run: places are claimed for them, and they are asked back."""
        idle = _count_idle(of, now) - of.moving
        for lane in list(of.deep):
            held = sum(1 for _ in self._held(lane))
            asked = self._recall(lane, min(held, idle))
            idle, held = idle - asked, held - asked
            while held > 0 and (found := self._find_room(of, lane, held, now)) is not None:
                new, number = found
                held -= number if new is lane else self._recall(lane, number)
            if len(lane.sent) <= lane.width:
                of.deep.pop(lane, None)
            if held > 0:
                return  # there is no room at all

    def _held(self, lane: Lane) -> Iterator[Task]:
        """The tasks that its agent holds in advance, and that nobody has asked back."""
        return (task for task in _beyond(lane) if task.state is TaskState.SENT and task.id not in self.moving)

    def _find_room(self, of: TaskClass, lane: Lane, most: int, now: float) -> tuple[Lane, int] | None:
        """Claim places for tasks of a lane: there, if its worker has room, else somewhere else."""
        for variant, needs in enumerate(of.variants):
            for candidates in of.candidates[variant]:
                while candidates and not needs.nodes:
                    worker = lane.worker if lane.worker in candidates else next(iter(candidates))
                    del candidates[worker]
                    claims = self._claim(worker, None, needs, most) if self._may_have(worker, None, needs, now) else []
                    if claims:
                        candidates[worker] = None
                        return self._give_places(worker, of, variant, claims), len(claims)
        return None


def _lanes_on(worker: Worker) -> list[Lane]:
    """The lanes whose tasks run there, if only on one of their nodes."""
    lent = [] if worker.lent is None or worker.lent.worker is worker else [worker.lent]
    return [*worker.lanes.values(), *lent]


def _is_idle(worker: Worker) -> bool:
    """Whether nothing runs on it."""
    lent = worker.lent is not None and bool(worker.lent.sent)
    return not lent and not any(lane.sent for lane in worker.lanes.values())


def _serves(share: Share, name: str) -> bool:
    """Whether it could be a share of what is needed under this name."""
    return share.name == name or share.name.startswith(f"{name}/")


def _names(needs: Needs) -> frozenset[str]:
    """What it needs something of; ``gpus/nvidia`` is also ``gpus``."""
    return frozenset(need.name.partition("/")[0] for need in needs.needs)


def _all_names(of: TaskClass) -> set[str]:
    """What its tasks need something of, in one variant or another."""
    return {name for names, _ in of.wanted for name in names}


def _helps(lane: Lane, of: TaskClass) -> bool:
    """Whether a place of the lane has something that the class needs."""
    names = _all_names(of)
    return any(share.name.partition("/")[0] in names for share in next(iter(lane.places.values())))


def _order(queue: Queue) -> tuple[int, int]:
    return queue.order


def _serves_before(of: TaskClass, queue: Queue | None) -> bool:
    """Whether tasks of the class wait that come before the queue; if that is None: any, be it on agents."""
    if queue is None:
        return of.has_ready or bool(of.deep)
    return any(each.ready and each.order < queue.order for each in of.queues.values())


def _next_look(queue: Queue, now: float) -> float:
    """The multiple of a step that is half a step away at least: a nearer one may be now, by rounding."""
    waits = now - (now if queue.blocked is None else queue.blocked)
    step = LOOK_AGAIN if waits < PATIENCE + LOOK_AGAIN else LOOK_LATER
    return math.floor(now / step + 1.5) * step


def _importance(queue: Queue) -> int:
    return -queue.priority


def _count_idle(of: TaskClass, now: float) -> int:
    """At how many places of a class nothing runs, and could."""
    return sum(max(0, lane.width - len(lane.sent)) for lane in of.idle if lane.worker.lives(lane.needs, now))


def _most_held(lane: Lane) -> int:
    """How many tasks its agent may hold; in advance none for which it may not live long enough when they start."""
    if lane.needs.seconds and lane.worker.ends is not None:
        return lane.width
    return lane.width + prefetch(lane.of.duration, lane.width)


def _beyond(lane: Lane) -> Iterator[Task]:
    """The tasks of a lane for which it has no place, as far as can be told."""
    return islice(lane.sent.values(), len(lane.places), None)
