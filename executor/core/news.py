"""Who may find room that was not there before. Where nothing has changed for a class, it costs nothing."""

from __future__ import annotations

from collections.abc import Iterable

from executor.core.model import Task, TaskClass, Variants, Worker, WorkerId

#: Changes are kept for classes that do not listen until there are so many.
_MANY_CHANGES = 10_000


class News:
    """All workers and all classes, and which of these have to look for room again.

    A class that listens, because its tasks wait or are held in advance, hears of each change of a worker at once;
    another one hears of all that it has missed when it listens again.
    """

    def __init__(self) -> None:
        self.workers: dict[WorkerId, Worker] = {}
        self.classes: dict[tuple[int, Variants], TaskClass] = {}
        self._stirred: dict[TaskClass, None] = {}
        self._listening: dict[TaskClass, None] = {}
        #: workers that may have room which they had not before, of which nobody has heard yet
        self._changed: dict[Worker, None] = {}
        #: those of which it was told, in the order of the changes, but for the first ones
        self._told: list[Worker] = []
        self._forgotten = 0
        self._last: TaskClass | None = None

    def class_of(self, task: Task) -> TaskClass:
        """The class of tasks that it belongs to."""
        of = self._last
        if of is None or of.variants is not task.variants or of.environment != task.environment:
            of = self._last = self.classes.get((task.environment, task.variants)) or self._new_class(task)
        return of

    def _new_class(self, task: Task) -> TaskClass:
        of = self.classes[task.environment, task.variants] = TaskClass(task.environment, task.variants)
        _offer(of, self.workers.values())
        of.heard = self._end
        return of

    def forget(self, of: TaskClass) -> None:
        """Nobody is left of the class."""
        del self.classes[of.environment, of.variants]
        self._listening.pop(of, None)
        self._stirred.pop(of, None)
        self._last = None

    # --- what happens -------------------------------------------------------------------------------------------------

    def note(self, worker: Worker) -> None:
        """It may have room that it had not before."""
        worker.counted.clear()
        self._changed[worker] = None

    def stir(self, of: TaskClass) -> None:
        """The class has something to do, whether or not there is room."""
        self._stirred[of] = None

    def take(self) -> list[TaskClass]:
        """The classes that have to look now; they are not told twice."""
        if self._changed:
            self._tell()
        stirred = list(self._stirred)
        self._stirred.clear()
        return stirred

    def _tell(self) -> None:
        changed = [worker for worker in self._changed if worker.present]
        self._changed.clear()
        self._told += changed
        self._stirred.update((worker.reserved.of, None) for worker in changed if worker.reserved is not None)
        for worker in changed:
            cpus = worker.count("cpus")
            for of in self._listening:
                if of.least <= cpus and _offer(of, (worker,)):
                    self._stirred[of] = None
        if len(self._told) > _MANY_CHANGES:
            self._tell_all()

    def _tell_all(self) -> None:
        for of in self.classes.values():
            self._catch_up(of)
            of.heard = self._end
        self._forgotten = self._end
        self._told.clear()

    # --- who listens --------------------------------------------------------------------------------------------------

    def listen(self, of: TaskClass) -> None:
        """The class is to hear of all changes."""
        if of not in self._listening:
            self._catch_up(of)
            self._listening[of] = None

    def ignore(self, of: TaskClass) -> None:
        """It does not need to hear of them any more."""
        if of in self._listening:
            del self._listening[of]
            of.heard = self._end

    def _catch_up(self, of: TaskClass) -> None:
        if of not in self._listening and of.heard < self._end:
            _offer(of, dict.fromkeys(self._told[of.heard - self._forgotten :]))

    @property
    def _end(self) -> int:
        return self._forgotten + len(self._told)


def _offer(of: TaskClass, workers: Iterable[Worker]) -> bool:
    """Those that may have room become candidates of the class; whether there were any."""
    found = False
    for (names, amounts), tiers in zip(of.wanted, of.candidates, strict=True):
        for worker in workers:
            if worker.may_have(amounts) and worker.present:
                tiers[not worker.rare <= names][worker] = None
                found = True
    return found
