"""Tasks on several nodes: each has whole workers of one group, which are lent to the lane on the first of them."""

from __future__ import annotations

from executor.core.lanes import Lanes
from executor.core.model import Lane, Queue, Worker
from executor.core.needs import Needs
from executor.core.news import News
from executor.core.reservations import Reservations


class Nodes:
    """Lends workers, and takes them back."""

    def __init__(self, news: News, lanes: Lanes, reservations: Reservations) -> None:
        self._news = news
        self._lanes = lanes
        self._reservations = reservations

    def open(self, queue: Queue, variant: int, now: float) -> None:
        """Start what can be started now."""
        needs = queue.of.variants[variant]
        while queue.drop_ended() and (nodes := self.find(queue, needs, now)):
            self._lend(nodes, queue, variant)

    def find(self, queue: Queue, needs: Needs, now: float) -> list[Worker]:
        """Workers of one group, as many as are needed, on which nothing runs; none if there are not enough."""
        groups: dict[str, list[Worker]] = {}
        for worker in self._news.workers.values():
            if worker.idle and self._reservations.may_have(worker, queue, needs, now):
                group = groups.setdefault(worker.group, [])
                group.append(worker)
                if len(group) == needs.nodes:
                    return group
        return []

    def _lend(self, nodes: list[Worker], queue: Queue, variant: int) -> None:
        for worker in nodes:
            for lane in worker.runs:
                self._lanes.close(lane)
            if worker.reserved is queue:
                self._reservations.release(worker)
        first, *others = nodes
        lane = self._lanes.give(first, queue.of, variant, [first.free.claim_all()])
        lane.others = others
        for worker in nodes:
            worker.lent = lane
        self._lanes.fill(lane, 1, queue)

    def break_up(self, lane: Lane) -> None:
        """One of its nodes is gone: nothing starts there any more, and it is closed when its task has ended."""
        if lane.worker.present and lane.width:
            self._lanes.take(lane, lane.width)
