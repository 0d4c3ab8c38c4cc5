"""Rule 4 of ``placement``: what an agent holds in advance does not wait behind long tasks while there is room."""

from __future__ import annotations

from collections.abc import Iterable

from executor.core import moments
from executor.core.lanes import Lanes
from executor.core.model import Lane, TaskClass
from executor.core.reservations import Reservations


class Balance:
    """Claims places for tasks that agents hold in advance, and has these given back to run there.

    What is short is run in a moment where it is, and not worth moving, but for where nothing has moved between two
    looks: a task there takes longer than its like.
    """

    def __init__(self, lanes: Lanes, reservations: Reservations) -> None:
        self._lanes = lanes
        self._reservations = reservations
        #: when to look where nothing moves
        self.due: float | None = None

    def spread(self, of: TaskClass, now: float) -> None:
        """Let what agents hold of the class run elsewhere, as far as there is room."""
        if not of.is_quick and not of.waits:
            self._spread(of, list(of.deep), now)

    def look(self, now: float) -> None:
        """Whether it is time to see to those that do not move; and when it will be."""
        if self.due is not None and self.due <= now:
            self.due = None
            for of in list(self._lanes.deep):
                stuck = _find_stuck(of)
                if stuck and of.is_quick and not of.waits:
                    self._spread(of, stuck, now)
                if not of.deep:
                    self._lanes.forget_deep(of)
        if self.due is None:
            self.due = moments.soon(now)

    def _spread(self, of: TaskClass, lanes: Iterable[Lane], now: float) -> None:
        idle = sum(lane.unused for lane in of.idle if lane.worker.lives(lane.needs, now)) - of.moving
        for lane in lanes:
            held = sum(1 for _ in self._lanes.held(lane))
            asked = self._lanes.recall(lane, min(held, idle))
            idle, held = idle - asked, held - asked
            while held > 0 and (found := self._find_room(of, lane, held, now)) is not None:
                new, number = found
                held -= number if new is lane else self._lanes.recall(lane, number)
            if len(lane.sent) <= lane.width:
                of.deep.pop(lane, None)
            if held > 0:
                return  # there is no room at all

    def _find_room(self, of: TaskClass, lane: Lane, most: int, now: float) -> tuple[Lane, int] | None:
        """Claim places for tasks of a lane: there, if its worker has room, else somewhere else."""
        for variant, needs in enumerate(of.variants):
            for candidates in of.candidates[variant]:
                while candidates and not needs.nodes:
                    worker = lane.worker if lane.worker in candidates else next(iter(candidates))
                    del candidates[worker]
                    if not self._reservations.may_have(worker, None, needs, now):
                        continue
                    claims = self._lanes.claim(worker, None, needs, most)
                    if claims:
                        candidates[worker] = None
                        return self._lanes.give(worker, of, variant, claims), len(claims)
        return None


def _find_stuck(of: TaskClass) -> list[Lane]:
    """Lanes whose first task is the same as when they were looked at last."""
    stuck = []
    for lane, seen in list(of.deep.items()):
        first = next(iter(lane.sent), None)
        if len(lane.sent) <= lane.width:
            del of.deep[lane]
        elif first == seen:
            stuck.append(lane)
        else:
            of.deep[lane] = first
    return stuck
