"""Where tasks run: a lane's places, and what of the agent's resources is in use at all.

A place is given by the hub, and taken by one task at a time. Hub and agent agree about the places of a lane; but a lane
that the hub has closed may have processes that are still leaving, and what they have is not free yet. So the agent
keeps a ledger over all its lanes: a task starts when its whole place is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from worker_agent.pools import UNIT, Place, Pool
from worker_agent.task_variables import place_variables


class Ledger:
    """How much of each part of each pool is in use, in units."""

    def __init__(self, pools: Iterable[Pool]) -> None:
        self._sizes = {pool.name: pool.size for pool in pools}
        self._used: dict[tuple[str, str], int] = {}

    def take(self, place: Place) -> bool:
        """Take all that the place has; False if somebody still has something of it."""
        wanted = list(self._parts(place))
        for part, amount in wanted:
            if self._used.get(part, 0) + amount > (self._sizes.get(part[0]) or UNIT):
                return False
        for part, amount in wanted:
            self._used[part] = self._used.get(part, 0) + amount
        return True

    def give_back(self, place: Place) -> None:
        """Nothing runs there any more."""
        for part, amount in self._parts(place):
            self._used[part] -= amount

    @staticmethod
    def _parts(place: Place) -> Iterator[tuple[tuple[str, str], int]]:
        for share in place.shares:
            if not share.indices:
                yield (share.name, ""), share.amount
                continue
            for index in share.indices[:-1]:
                yield (share.name, index), UNIT
            yield (share.name, share.indices[-1]), share.amount - UNIT * (len(share.indices) - 1)


class Places:
    """The places of one lane."""

    def __init__(self, ledger: Ledger, on_freed: Callable[[list[int]], None]) -> None:
        """``on_freed`` gets the numbers of places that are given back, after :meth:`ask_back`."""
        self._ledger = ledger
        self._on_freed = on_freed
        self._all: dict[int, Place] = {}
        #: those where nothing runs
        self._free: dict[int, Place] = {}
        self._asked_back = 0
        #: what a task sees of its place, by number
        self.variables: dict[int, dict[str, str]] = {}

    @property
    def width(self) -> int:
        """How many there are that are not asked back."""
        return len(self._all) - self._asked_back

    @property
    def busy(self) -> int:
        """At how many something runs."""
        return len(self._all) - len(self._free)

    def add(self, places: Iterable[Place]) -> None:
        """Further places."""
        for place in places:
            self._all[place.number] = self._free[place.number] = place
            self.variables[place.number] = place_variables(place.shares)

    def ask_back(self, count: int) -> None:
        """Give so many back, each as soon as nothing runs there."""
        self._asked_back += min(count, self.width)
        self._give_back()

    def _give_back(self) -> None:
        numbers = list(self._free)[-self._asked_back :] if self._asked_back else []
        for number in numbers:
            del self._free[number], self._all[number], self.variables[number]
        self._asked_back -= len(numbers)
        if numbers:
            self._on_freed(numbers)

    def take(self) -> Place | None:
        """A place where nothing runs, which is then in use; None: there is none now."""
        for place in self._free.values():
            if self._ledger.take(place):
                del self._free[place.number]
                return place
        return None

    def close(self) -> None:
        """They are needed no longer: at most idle interpreters are there, which are leaving."""
        for place in self._all.values():
            if place.number not in self._free:
                self._ledger.give_back(place)
        self._all.clear()
        self._free.clear()

    def release(self, place: Place) -> None:
        """Nothing runs there any more."""
        if self._all.get(place.number) is place:
            self._ledger.give_back(place)
            self._free[place.number] = place
            self._give_back()
