"""Takes down how attempts and tasks end, while a run goes on; costs a few microseconds for each, and bounded memory.

    hub's thread      --attempt, joined, left, ...--.
    delivery threads  --settled---------------------+--> Recorder --snapshot--> executor.report.values

The first records are kept as they are, and cost next to nothing; after these, each thousand goes into a ``Tally``.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from executor.calls import Request
from executor.core.model import Lane, Task, WorkerId
from executor.core.needs import Needs
from executor.counts import Counts
from executor.errors import STDERR_FOLLOWS, DependencyFailed, RemoteTraceback
from executor.future import TaskFuture
from executor.report import tally
from executor.report.tally import KINDS, LANES, WHOLE, Kind, Record, Row, Tally
from worker_agent import bodies, protocol
from worker_agent.pools import UNIT, Pool

#: Records that wait until they are added to the sums together.
BATCH = 1000
#: Failed tasks of which is kept why; of the others, only how many there were of each type of exception.
FAILURES = 100
#: Types of exceptions that are counted apart.
TYPES = 50
#: Lines and characters that are kept of an error, of its traceback, and of the end of a task's stderr.
LINES, CHARACTERS = 25, 4000
#: Lanes whose rows are remembered: more have been opened since.
_LANES_KNOWN = 10_000

_HOW: Final = {
    protocol.VALUE: tally.FINISHED, protocol.COMPLETED: tally.FINISHED, protocol.ERROR: tally.FAILED,
    protocol.EXITED: tally.FAILED, protocol.TIMED_OUT: tally.TIMED_OUT, protocol.KILLED: tally.KILLED,
    protocol.NOT_STARTED: tally.NOT_STARTED, protocol.LOST: tally.LOST, protocol.RETURNED: tally.LOST,
    protocol.OUT_OF_MEMORY: tally.OUT_OF_MEMORY, protocol.NO_OUTPUT: tally.FAILED,
}  # fmt: skip
#: The task itself failed: it is tried again, or this is its outcome.
_BY_ITSELF: Final = frozenset({tally.FAILED, tally.TIMED_OUT, tally.OUT_OF_MEMORY, tally.NOT_STARTED})


@dataclass(slots=True)
class AgentSeen:
    """An agent that has joined: what it is called, its CPUs, and when it came and went (None: it is there)."""

    name: str
    cpus: float
    joined: float
    left: float | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A task that failed: what its exception says, and the end of its stderr, or the file where that is."""

    task_id: int
    name: str
    attempt: int
    host: str | None
    started: float | None
    ended: float | None
    returncode: int | None
    error: str
    text: str
    traceback: str
    stderr: str
    stderr_file: str | None


@dataclass(slots=True)
class Ends:
    """How many tasks ended how. ``retried``: attempts that failed and had a successor."""

    submitted: int = 0
    finished: int = 0
    failed: int = 0
    aborted: int = 0
    cancelled: int = 0
    retried: int = 0

    @property
    def ended(self) -> int:
        """How many have ended."""
        return self.finished + self.failed + self.aborted + self.cancelled


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is known at a moment."""

    ends: Ends
    agents: dict[WorkerId, AgentSeen]
    #: the first ones, and all by the type of the exception
    failures: list[Failed]
    errors: dict[str, int]
    #: the first ones
    records: list[Record]
    #: the latest, which are in no sum yet
    batch: list[Record]
    sums: Tally | None

    def sum_up(self) -> Tally:
        """The sums of all attempts; to be called once."""
        return _summed(self.sums, self.records, self.batch)


def _summed(sums: Tally | None, first: list[Record], batch: list[Record]) -> Tally:
    if sums is None:
        sums = Tally(min((record.submitted for record in first), default=0.0))
        sums.add(first)
    sums.add(batch)
    return sums


@dataclass(slots=True)
class _Settled:
    """What the delivery threads have seen; under a lock."""

    ends: Ends = field(default_factory=Ends)
    #: failed tasks whose attempt failed by itself
    by_itself: int = 0
    failures: list[Failed] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


class Recorder:
    """The record of one executor. Used from the hub's thread only, but for :meth:`settled` and :meth:`refused`."""

    def __init__(self) -> None:
        #: what the hub has seen: tasks that came, and ends of which the delivery threads do not hear
        self.ends = Ends()
        self._agents: dict[WorkerId, AgentSeen] = {}
        self._whole: list[Record] = []
        self._batch: list[Record] = []
        self._tally: Tally | None = None
        self._failed_attempts = 0
        self._rows: dict[tuple[WorkerId | None, Kind], Row] = {}
        self._kinds: dict[tuple[Needs | None, float], Kind] = {}
        self._row_of_lane: dict[int, Row] = {}
        #: of what is settled; told when all tasks are
        self._lock = threading.Condition()
        self._settled = _Settled()

    # --- the hub's thread ---------------------------------------------------------------------------------------------

    @property
    def to_settle(self) -> int:
        """When the hub has no task left: how many of those that came have their ends from the delivery threads."""
        return self.ends.submitted - self.ends.ended

    def joined(self, worker: WorkerId, name: str, pools: Sequence[Pool], now: float) -> None:
        """An agent has joined, at ``now`` (seconds since the epoch)."""
        self._agents[worker] = AgentSeen(name, _cpus_of(pools), now)

    def left(self, worker: WorkerId, now: float) -> None:
        """An agent is gone."""
        if worker in self._agents:
            self._agents[worker].left = now

    def attempt(self, worker: WorkerId, task: Task | None, report: protocol.Finished) -> None:
        """An attempt has ended, if it is the task's current one; to be told before the scheduler is."""
        if task is None or task.attempt != report.attempt or task.lane is None or task.lane.worker.id != worker:
            return
        how = _how(report, task.checked)
        if how in _BY_ITSELF:
            self._failed_attempts += 1
        if report.started:
            row = self._row_of_lane.get(task.lane.id) or self._find_row_of(task.lane)
            self._keep(_make_record(row, task.body.future, report, how))

    def _keep(self, record: Record) -> None:
        if len(self._whole) < WHOLE:
            self._whole.append(record)
            return
        self._batch.append(record)
        if len(self._batch) >= BATCH:
            self._tally = _summed(self._tally, self._whole, self._batch)
            self._batch.clear()

    def _find_row_of(self, lane: Lane) -> Row:
        if len(self._row_of_lane) >= _LANES_KNOWN:
            self._row_of_lane.clear()
        row = self._row_of_lane[lane.id] = self._find_row(lane.worker.id, self._kind(lane))
        return row

    def _find_row(self, worker: WorkerId | None, kind: Kind) -> Row:
        if (worker, kind) not in self._rows and len(self._rows) >= LANES:
            worker, kind = None, self._find_kind(None, 1.0)
        return self._rows.setdefault((worker, kind), Row(worker, kind))

    def _kind(self, lane: Lane) -> Kind:
        if lane.needs.nodes:
            cpus = sum(worker.free.total("cpus") for worker in (lane.worker, *lane.others)) / UNIT
        else:
            cpus = lane.each_has("cpus") / UNIT if lane.places else 0.0
        return self._find_kind(lane.needs, cpus)

    def _find_kind(self, needs: Needs | None, cpus: float) -> Kind:
        if (needs, cpus) not in self._kinds and len(self._kinds) >= KINDS:
            needs, cpus = None, 1.0
        return self._kinds.setdefault((needs, cpus), Kind(needs, cpus, _memory_of(needs)))

    def snapshot(self) -> Snapshot:
        """What is known now. From another thread only when the hub's has ended."""
        with self._lock:
            failures, errors = list(self._settled.failures), dict(self._settled.errors)
            ends, by_itself = self._ends_until_now(), self._settled.by_itself
        ends.retried = max(0, self._failed_attempts - by_itself)
        agents = {worker: copy.copy(agent) for worker, agent in self._agents.items()}
        sums = copy.deepcopy(self._tally)
        return Snapshot(ends, agents, failures, errors, self._whole.copy(), self._batch.copy(), sums)

    # --- any thread ---------------------------------------------------------------------------------------------------

    def _ends_until_now(self) -> Ends:
        return _sum_of(self.ends, self._settled.ends)

    def counts(self, running: int) -> Counts:
        """How many tasks there have been; a task has ended when those who wait for it can see that."""
        with self._lock:
            ends = self._ends_until_now()
        return Counts(ends.submitted, ends.finished, ends.failed + ends.aborted, ends.cancelled, running)

    def wait_settled(self, count: int) -> None:
        """Wait until the delivery threads have seen the ends of so many tasks, see :attr:`to_settle`."""
        with self._lock:
            self._lock.wait_for(lambda: self._settled.ends.ended - self._settled.ends.submitted >= count)

    def settled(self, request: Request, news: object, error: BaseException | None) -> None:
        """A task has its outcome; to be told before its future is."""
        failed = None if error is None else _make_failed(request.future, request.options.stderr, error)
        with self._lock:
            if request.future.cancelled():
                self._settled.ends.cancelled += 1
            elif failed is None:
                self._settled.ends.finished += 1
            else:
                self._note_failure(failed, error)
            if isinstance(news, protocol.Finished):
                checked = request.program is None or request.program.check
                self._settled.by_itself += _how(news, checked) in _BY_ITSELF
            self._lock.notify_all()

    def refused(self, future: TaskFuture, error: BaseException) -> None:
        """A task could not be sent at all: its arguments cannot be pickled, say."""
        failed = _make_failed(future, None, error)
        with self._lock:
            self._settled.ends.submitted += 1
            self._note_failure(failed, error)

    def _note_failure(self, failed: Failed, error: BaseException | None) -> None:
        seen = self._settled
        if isinstance(error, DependencyFailed):
            seen.ends.aborted += 1
            return
        seen.ends.failed += 1
        seen.errors[failed.error if failed.error in seen.errors or len(seen.errors) < TYPES else "other types"] += 1
        if len(seen.failures) < FAILURES:
            seen.failures.append(failed)


def _how(report: protocol.Finished, checked: bool) -> str:
    if report.end == protocol.COMPLETED and report.returncode != 0 and checked:
        return tally.FAILED
    return _HOW.get(report.end, tally.FAILED)


def _make_record(row: Row, future: TaskFuture, report: protocol.Finished, how: str) -> Record:
    used, memory = report.usage, report.memory
    peak = used.max_rss if memory is None else max(used.max_rss, memory.peak)
    submitted = future._submitted or report.started
    # not Record(...), which takes twice as long
    return tuple.__new__(Record, (
        row, report.task, future.name, report.attempt, submitted, report.started, report.ended,
        used.user + used.system, peak, how,
    ))  # fmt: skip


def _make_failed(future: TaskFuture, stderr: object, error: BaseException) -> Failed:
    cause = error.__cause__
    return Failed(
        future.task_id, future.name, future.attempt, future.host, future.started, future.ended, future.returncode,
        type(error).__name__, _end_of(bodies.safe_str(error).partition(STDERR_FOLLOWS)[0]),
        _end_of(cause.tb.strip().strip('"')) if isinstance(cause, RemoteTraceback) else "", _end_of(future.stderr),
        stderr if isinstance(stderr, str) else None,
    )  # fmt: skip


def _end_of(text: str) -> str:
    """The last lines; a line may be long, so that its characters are counted, too."""
    return "\n".join(text.strip("\n")[-CHARACTERS:].splitlines()[-LINES:])


def _cpus_of(pools: Sequence[Pool]) -> float:
    return sum(pool.total for pool in pools if pool.name.partition("/")[0] == "cpus") / UNIT


def _memory_of(needs: Needs | None) -> int:
    found = (need.amount for need in (needs.needs if needs else ()) if need.name == "memory")
    return int((next(found, 0) or 0) * 2**20 / UNIT)


def _sum_of(one: Ends, other: Ends) -> Ends:
    return Ends(**{name: getattr(one, name) + getattr(other, name) for name in Ends.__slots__})
