"""Which tasks wait for which others to end, and how those have to end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from executor.core.model import Task

#: The other task has to succeed; only to end; not to succeed.
AFTER_OK, AFTER_ANY, AFTER_NOT_OK = "afterok", "afterany", "afternotok"
#: How a task has ended.
OK, FAILED, CANCELLED = "ok", "failed", "cancelled"


class Condition(NamedTuple):
    """Another task, by its id, and how it has to end."""

    task: int
    kind: str = AFTER_OK

    def allows(self, how: str) -> bool:
        """Whether an end is such a one."""
        return self.kind == AFTER_ANY or (how == OK) == (self.kind == AFTER_OK)


class Dependents:
    """Tasks that wait for others."""

    def __init__(self) -> None:
        #: by the task that is waited for
        self._waiting: defaultdict[int, dict[Task, Condition]] = defaultdict(dict)
        #: for how many ends a task waits
        self._missing: dict[Task, int] = {}

    def add(self, task: Task, after: Iterable[Condition]) -> None:
        """The task waits for these, none of which has ended."""
        wanted = {condition.task: condition for condition in after}
        for condition in wanted.values():
            self._waiting[condition.task][task] = condition
        self._missing[task] = len(wanted)

    def ended(self, task: int, how: str) -> Iterator[tuple[Task, bool]]:
        """The tasks about which this end decides, and whether they may start now; the others never will."""
        for waiting, condition in self._waiting.pop(task, {}).items():
            if waiting not in self._missing:
                continue  # it has ended itself
            self._missing[waiting] -= 1
            allowed = condition.allows(how)
            if not allowed or not self._missing[waiting]:
                del self._missing[waiting]
                yield waiting, allowed

    def forget(self, task: Task) -> None:
        """It waits no more."""
        self._missing.pop(task, None)

    def conditions_of(self, task: Task) -> list[Condition]:
        """What the task still waits for."""
        return [conditions[task] for conditions in self._waiting.values() if task in conditions]

    def needed(self, task: int) -> bool:
        """Whether somebody waits for it."""
        return task in self._waiting
