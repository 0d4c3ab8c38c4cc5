"""What becomes of jobs: all of one batch system are asked for at once.

What an answer leaves out is not taken for ended: after a while it is asked for by itself, and if nothing is heard of it
for very long it is lost, which is a status of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import NamedTuple

from executor.batch.commands import run
from executor.batch.states import NOTHING_KNOWN, JobRecord, JobStatus
from executor.batch.system import Answer, BatchSystem

log = logging.getLogger("executor")

#: Seconds for which a job may be missing from its batch system's answers until it is asked for by itself.
MISSING = 5.0
#: Seconds after which a job of which nothing is heard any more is taken for lost.
LOST_AFTER = 600.0
#: Ids that fit into one command.
CHUNK = 500


@dataclass(slots=True, eq=False)
class Followed:
    """A job, or one task of an array.

    :param id: its own; ``asked_as`` is the one that is asked for: of an array's task, the array's.
    :param tell: is called with each record that differs from the last one.
    :param witness: what somebody else has seen of its end, when the batch system has forgotten it.
    """

    id: str
    asked_as: str
    tell: Callable[[JobRecord], None]
    witness: Callable[[], JobRecord | None] = lambda: None
    record: JobRecord | None = None
    #: since when it is missing
    missing: float | None = None
    #: we have cancelled it
    cancelled: bool = False


class Watch:
    """The jobs of one batch system that have not ended. For one thread at a time."""

    def __init__(self, system: BatchSystem) -> None:
        self.system = system
        self._jobs: dict[str, Followed] = {}
        #: the last question had no answer
        self._unanswered = False

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Followed) -> None:
        """Follow it until it has ended."""
        self._jobs[job.id] = job

    def cancel(self, ids: Sequence[str]) -> str:
        """Cancel some of them, and tell of those of which nothing more will be heard. Gives what went wrong, or ""."""
        cancelled = cancel(self.system, ids)
        self.end_cancelled(cancelled.gone)
        return cancelled.complaints

    def note_cancelled(self, ids: Set[str]) -> None:
        """These, or arrays with all their tasks, were cancelled."""
        for job in self._jobs.values():
            job.cancelled |= job.id in ids or job.asked_as in ids

    def end_cancelled(self, ids: Iterable[str]) -> None:
        """These were cancelled, and their batch system will say nothing more of them."""
        for job in [self._jobs[each] for each in ids if each in self._jobs]:
            self._tell(job, JobRecord(JobStatus.CANCELLED))

    def ask(self) -> None:
        """Ask for all, and tell what is new."""
        for ids in _chunks(list(dict.fromkeys(job.asked_as for job in self._jobs.values()))):
            self._ask(ids)

    def _ask(self, ids: list[str]) -> None:
        answer = run(self.system.ask(ids), self.system)
        records = self.system.read_records(answer, ids)
        self._note_silence(None if records is not None else answer)
        if records is None:
            return
        asked = set(ids)
        for job in [job for job in self._jobs.values() if job.asked_as in asked]:
            record = records.get(job.id)
            if record is None:
                self._miss(job, time.monotonic())
            else:
                job.missing = None
                if record.stuck:  # it has failed, and would stay in the queue
                    cancel(self.system, [job.id])
                self._tell(job, _completed(self.system, record, job.id))

    def _note_silence(self, answer: Answer | None) -> None:
        """A controller that is away for a night is worth one line, and not one for each question."""
        if answer is not None and not self._unanswered:
            log.warning("%s does not tell of its jobs: %s", self.system.name, answer.text)
        self._unanswered = answer is not None

    def _miss(self, job: Followed, now: float) -> None:
        """It is not listed: that alone means nothing."""
        job.missing = now if job.missing is None else job.missing
        if now - job.missing < MISSING:
            return
        record = ask_ended(self.system, job.id) or job.witness()
        if record is None and now - job.missing > LOST_AFTER:
            record = JobRecord(JobStatus.LOST, reason=f"its batch system has not told of it for {LOST_AFTER:g} s")
        if record is not None:
            self._tell(job, record)

    def _tell(self, job: Followed, record: JobRecord) -> None:
        if job.cancelled and record.status is JobStatus.FAILED and (record.returncode or 0) < 0:
            record = replace(record, status=JobStatus.CANCELLED)  # Grid Engine tells of the signal, and not by whom
        if record == job.record:
            return
        job.record = record
        if record.status.is_final:
            del self._jobs[job.id]
        job.tell(record)


def ask_ended(system: BatchSystem, job: str) -> JobRecord | None:
    """How a job has ended; None if it has not, or if nobody knows."""
    record = system.read_ended([run(command, system) for command in system.ask_ended(job)], job)
    return record if record is not None and record.status.is_final else None


def look(system: BatchSystem, jobs: Sequence[Followed]) -> None:
    """Tell at once how each of these jobs is at this moment; what has ended by its witness is not asked for."""
    open_jobs = [job for job in jobs if not _ended_by_witness(job)]
    for ids in _chunks(list(dict.fromkeys(job.asked_as for job in open_jobs))):
        records = system.read_records(run(system.ask(ids), system), ids) or {}
        for job in [job for job in open_jobs if job.asked_as in set(ids)]:
            record = records.get(job.id)
            known = ask_ended(system, job.id) if record is None else _completed(system, record, job.id)
            job.tell(known or NOTHING_KNOWN)


def _ended_by_witness(job: Followed) -> bool:
    record = job.witness()
    if record is not None:
        job.tell(record)
    return record is not None


def _completed(system: BatchSystem, record: JobRecord, job: str) -> JobRecord:
    """The record with what listings do not tell: how it ended."""
    if not record.status.is_final or record.returncode is not None:
        return record
    if record.status is JobStatus.COMPLETED:
        return replace(record, returncode=0)  # an array of a thousand tasks is not worth a thousand questions
    return ask_ended(system, job) or record


class Cancelled(NamedTuple):
    """What came of cancelling jobs: those of which nothing will be heard any more, and what went wrong."""

    gone: set[str]
    complaints: str
    command: list[str]
    returncode: int | None


def cancel(system: BatchSystem, ids: Sequence[str]) -> Cancelled:
    """Cancel jobs; of several commands that went wrong, the last one is told."""
    gone: set[str] = set()
    wrong = Cancelled(gone, "", [], 0)
    for some in _chunks(list(ids)):
        command = system.cancel(some)
        answer = run(command, system)
        gone |= system.read_cancelled(answer)
        if complaints := system.complaints(answer):
            wrong = Cancelled(gone, complaints, command.argv, answer.returncode)
    return wrong


def _chunks(ids: list[str]) -> Iterator[list[str]]:
    return (ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK))
