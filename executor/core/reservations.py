"""Rule 3 of ``placement``: room is made for who waits in vain, and kept until it is served.

Places are taken from those who come after: at once for the more important, or if one place is enough for a class that
has none; for who needs more, after ``PATIENCE``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, islice

from executor.core import moments
from executor.core.lanes import Lanes, goes_before
from executor.core.model import Lane, Queue, TaskState, Worker
from executor.core.needs import Needs
from executor.core.news import News

#: Seconds that a task which needs more than one place of others waits until places are kept for it.
PATIENCE = 1.0
#: So many workers are looked at to find where room is made soonest.
_LOOKED_AT = 50

#: Workers where room is to be made, and how many places of which lanes to take there.
Plan = list[tuple[Worker, list[tuple[Lane, int]]]]


class Reservations:
    """Which workers are kept for which queues."""

    def __init__(self, news: News, lanes: Lanes) -> None:
        self._news = news
        self._lanes = lanes
        self._start_at = 0
        #: when to look again for who waits
        self.due: float | None = None
        #: all that tasks have had
        self.priorities: set[int] = set()

    def may_have(self, worker: Worker, queue: Queue | None, needs: Needs, now: float) -> bool:
        """Whether a queue (None: what is held in advance) may have something of a worker, if there is room."""
        if not worker.present or not worker.lives(needs, now) or (worker.lent is not None and worker.lent.sent):
            return False
        holder = worker.reserved
        if holder is None or holder is queue or not holder.ready:
            return True
        if queue is not None and queue.order < holder.order:
            return True
        return not needs.names & holder.of.names and not needs.nodes and not holder.of.takes_nodes

    def make(self, queue: Queue, now: float) -> None:
        """Have places given back where that will be soonest."""
        for worker in list(queue.reserved):
            self._take_more(worker, queue, now)
        self._look(queue, now)
        if queue.look_again > now:
            self.due = min(self.due or queue.look_again, queue.look_again)

    def _look(self, queue: Queue, now: float) -> None:
        while self._may_take(queue) and now >= queue.look_again and len(queue.reserved) < len(queue.ready):
            plan = self._cheapest(queue, now)
            if plan is None:
                queue.look_again = _next_look(queue, now)
                return
            for worker, wanted in plan:
                self._reserve(worker, queue, wanted)

    def _may_take(self, queue: Queue) -> bool:
        """Whether there may be somebody to take from."""
        if len(self._news.classes) == 1:
            return False
        return not queue.of.lanes or queue.priority > min(self.priorities)

    def _reserve(self, worker: Worker, queue: Queue, wanted: list[tuple[Lane, int]]) -> None:
        worker.reserved = queue
        queue.reserved[worker] = None
        for lane, number in wanted:
            if lane.width:  # of a task on several nodes all may be wanted, and its place is taken once
                self._lanes.take(lane, number)

    def _take_more(self, worker: Worker, queue: Queue, now: float) -> None:
        """Enough was given back, and yet nothing fits: it is in pieces, or further nodes are needed."""
        lanes = worker.runs
        if any(len(lane.places) > lane.width for lane in lanes):
            return  # wait for it
        if worker.idle and any(needs.nodes and worker.lives(needs, now) for needs in queue.of.variants):
            return  # wait for the others
        helpful = (lane for lane in lanes if lane.width and (queue.of.takes_nodes or _helps(lane, queue)))
        lane = next((lane for lane in helpful if self._comes_after(lane, queue)), None)
        if lane is None:
            self.give_up(worker)
        else:
            self._lanes.take(lane, 1)

    def release(self, worker: Worker) -> None:
        """Keep it for nobody."""
        if worker.reserved is not None:
            worker.reserved.reserved.pop(worker, None)
            worker.reserved = None
            self._news.note(worker)

    def give_up(self, worker: Worker) -> None:
        """Keep nothing there any longer; nor on other nodes, if that was to be one of several."""
        queue = worker.reserved
        if queue is not None:
            self._news.stir(queue.of)
            for each in list(queue.reserved) if queue.of.takes_nodes else [worker]:
                self.release(each)

    # --- where --------------------------------------------------------------------------------------------------------

    def _cheapest(self, queue: Queue, now: float) -> Plan | None:
        """Where the fewest tasks have to end; and which places to take there. None: nowhere, or not yet."""
        has_nothing = not queue.of.lanes and not queue.reserved
        waits_long = has_nothing and queue.waited(now) >= PATIENCE
        best, least = None, math.inf
        for worker, needs in islice(self._possible(queue, now), _LOOKED_AT):
            important = waits_long or _is_more_important(queue, worker)
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
        everybody = list(self._news.workers.values())
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
            each = {name: lane.each_has(name) for name in short}
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
        for worker in self._news.workers.values():
            free_to_take = worker.reserved is None and worker.lives(needs, now)
            if free_to_take and all(self._comes_after(lane, queue) for lane in worker.runs):
                groups.setdefault(worker.group, []).append(worker)
        enough = [group for group in groups.values() if len(group) >= needs.nodes]
        if not enough:
            return None
        largest = max(enough, key=len)
        largest.sort(key=lambda worker: sum(len(lane.sent) for lane in worker.runs))
        return [(worker, [(lane, lane.width) for lane in worker.runs]) for worker in largest[: needs.nodes]]

    def _comes_after(self, lane: Lane, queue: Queue) -> bool:
        """Whether all that waits for the lane's places, or has not started there yet, comes after the queue."""
        if lane.of is queue.of or goes_before(lane.of, queue):
            return False
        # not the first of them alone: one that was given back and sent again is behind younger ones, and would be
        # asked back for the queue, and be given its place anew as the older one, without an end
        order = queue.order
        return all((-task.priority, task.id) > order for task in lane.sent.values() if task.state is TaskState.SENT)


def _is_more_important(queue: Queue, worker: Worker) -> bool:
    """Than something that runs on the worker, or would run at a place where nothing does."""
    return any(
        lane.unused or any(task.priority < queue.priority for task in lane.sent.values())
        for lane in worker.lanes.values()
    )


def _helps(lane: Lane, queue: Queue) -> bool:
    """Whether a place of the lane has something that the queue's tasks need."""
    return any(share.name.partition("/")[0] in queue.of.names for share in next(iter(lane.places.values())))


def _next_look(queue: Queue, now: float) -> float:
    return moments.soon(now) if queue.waited(now) < PATIENCE + moments.LOOK_AGAIN else moments.later(now)
