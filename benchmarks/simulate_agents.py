"""Agents of a simulation: they do what they are told, tell the truth, and keep books of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from executor.core.model import WorkerId
from worker_agent import protocol
from worker_agent.pools import UNIT, Place, Pool, Share


class Violation(AssertionError):
    """The scheduler did what it must not."""


#: What an agent does with an order, and the order.
Order = tuple[Callable[..., None], tuple[Any, ...]]


class Book:
    """What of an agent's pools is with which lane, known from the places that were given: nothing may be twice."""

    __slots__ = ("_free", "_indices", "_parts", "_total")

    def __init__(self, pools: Iterable[Pool]) -> None:
        pools = list(pools)
        self._total = {pool.name: pool.total for pool in pools}
        self._free = dict(self._total)
        #: indices that one place has as a whole
        self._indices: dict[str, set[str]] = {pool.name: set() for pool in pools}
        #: what is taken of the others
        self._parts: dict[tuple[str, str], int] = {}

    def take(self, place: Place) -> None:
        """A place was given."""
        for share in place.shares:
            self._free[share.name] -= share.amount
            if self._free[share.name] < 0:
                raise Violation(f"{share} was given, and {self._free[share.name] + share.amount} were left")
            whole, index, part = _split(share)
            taken = self._indices[share.name]
            partly = self._parts and any(self._parts.get((share.name, each)) for each in whole)
            if not taken.isdisjoint(whole) or index in taken or partly:
                raise Violation(f"{share} was given, and somebody has it")
            taken.update(whole)
            if index:
                self._take_part(share.name, index, part)

    def _take_part(self, name: str, index: str, part: int) -> None:
        used = self._parts[name, index] = self._parts.get((name, index), 0) + part
        if used > UNIT:
            raise Violation(f"{used} were given of {name} {index}")

    def give_back(self, place: Place) -> None:
        """A place is the lane's no more."""
        for share in place.shares:
            self._free[share.name] += share.amount
            whole, index, part = _split(share)
            self._indices[share.name].difference_update(whole)
            if index:
                self._parts[share.name, index] -= part

    @property
    def is_empty(self) -> bool:
        """Whether no place is with a lane."""
        taken = any(self._indices.values()) or any(self._parts.values())
        return not taken and self._free == self._total


def _split(share: Share) -> tuple[Sequence[str], str, int]:
    """The whole indices, the one of which it has a part, and which part."""
    part = share.amount % UNIT
    if not part or not share.indices:
        return share.indices, "", 0
    return share.indices[:-1], share.indices[-1], part


class _Lane:
    """Tasks that wait, in their order, by number the attempt; and places, all and free ones."""

    __slots__ = ("asked_back", "free", "places", "queue")

    def __init__(self) -> None:
        self.queue: dict[int, int] = {}
        self.places: dict[int, Place] = {}
        self.free: list[int] = []
        self.asked_back = 0


class Agent:
    """One agent. ``end_later`` is called with what has started: seconds from now, and what :meth:`end` is to get."""

    __slots__ = ("_end_later", "_lanes", "_seconds", "_touched", "alive", "book", "id", "pools", "reports", "running")

    def __init__(
        self,
        number: WorkerId,
        pools: list[Pool],
        seconds: Callable[[int], float],
        end_later: Callable[[Agent, float, tuple[int, int]], None],
    ) -> None:
        self.id, self.pools = number, pools
        self._seconds, self._end_later = seconds, end_later
        self.alive = True
        self.book = Book(pools)
        self._lanes: dict[int, _Lane] = {}
        #: lanes in which something may start
        self._touched: dict[int, None] = {}
        #: by task: its attempt, its lane, its place
        self.running: dict[int, tuple[int, int, int]] = {}
        #: not sent yet
        self.reports: list[protocol.Report] = []

    @property
    def places(self) -> dict[int, set[int]]:
        """The numbers of the places of each lane."""
        return {number: set(lane.places) for number, lane in self._lanes.items()}

    def obey(self, orders: Iterable[Order], now: float) -> None:
        """A message of the hub has come."""
        for do, values in orders:
            do(self, *values)
        self._start_ready(now)

    # ---- orders

    def open(self, number: int) -> None:
        """A new lane."""
        self._lanes[number] = _Lane()

    def give(self, number: int, places: list[Place]) -> None:
        """Further places."""
        lane = self._lanes[number]
        for place in places:
            self.book.take(place)
            lane.places[place.number] = place
            lane.free.append(place.number)
        self._touched[number] = None

    def take(self, number: int, count: int) -> None:
        """So many places are wanted back."""
        lane = self._lanes[number]
        lane.asked_back += min(count, len(lane.places) - lane.asked_back)
        self._give_back(number, lane)

    def close(self, number: int) -> None:
        """A lane is gone."""
        lane = self._lanes.pop(number)
        if lane.queue or len(lane.free) < len(lane.places):
            raise Violation(f"lane {number} is closed, and tasks are in it")
        for place in lane.places.values():
            self.book.give_back(place)

    def run(self, number: int, task: int, attempt: int) -> None:
        """A task, to be run when its turn comes."""
        self._lanes[number].queue[task] = attempt
        self._touched[number] = None

    def recall(self, task: int, attempt: int) -> None:
        """Give it back if it waits."""
        found = any(lane.queue.pop(task, None) for lane in self._lanes.values())
        self.reports.append(protocol.Recalled(task, attempt, found))

    def kill(self, task: int, attempt: int) -> None:
        """It ends at once."""
        if task in self.running:
            self._leave(task, protocol.Finished(task, attempt, protocol.KILLED))
        elif any(lane.queue.pop(task, None) for lane in self._lanes.values()):
            self.reports.append(protocol.Finished(task, attempt, protocol.KILLED))

    # ---- tasks

    def end(self, task: int, attempt: int, now: float) -> None:
        """Its time is over, if it runs still; the next one of its lane starts."""
        running = self.running.get(task)
        if running is not None and running[0] == attempt:
            began = now - self._seconds(task)
            self._leave(task, protocol.Finished(task, attempt, protocol.VALUE, started=began, ended=now))
            self._start_ready(now)

    def _leave(self, task: int, report: protocol.Finished) -> None:
        _, number, place = self.running.pop(task)
        lane = self._lanes[number]
        lane.free.append(place)
        self.reports.append(report)
        self._touched[number] = None
        if lane.asked_back:
            self._give_back(number, lane)

    def _give_back(self, number: int, lane: _Lane) -> None:
        freed = lane.free[-lane.asked_back :] if lane.asked_back else []
        if freed:
            del lane.free[-lane.asked_back :]
            lane.asked_back -= len(freed)
            for place in freed:
                self.book.give_back(lane.places.pop(place))
            self.reports.append(protocol.Freed(number, freed))

    def _start_ready(self, now: float) -> None:
        for number in self._touched:
            lane = self._lanes.get(number)
            while lane is not None and lane.free and lane.queue:
                task = next(iter(lane.queue))
                attempt = lane.queue.pop(task)
                self.running[task] = attempt, number, lane.free.pop(0)
                self.reports.append(protocol.Started(task, attempt, 1, now))
                self._end_later(self, self._seconds(task), (task, attempt))
        self._touched.clear()
