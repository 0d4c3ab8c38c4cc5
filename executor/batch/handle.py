"""A batch job that was submitted: how it is, how it ended, what it wrote."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from functools import partial

from executor.batch.poller import poller_of
from executor.batch.schedulers import Scheduler, get_scheduler
from executor.batch.states import JobRecord, JobStatus
from executor.batch.submissions import Submission, fill_index, find
from executor.batch.system import BatchSystem
from executor.batch.watch import Followed, cancel
from executor.errors import BatchCommandFailed

#: Of what was accepted this much is known.
_SUBMITTED = JobRecord(JobStatus.PENDING)
_BLOCK = 65536


@dataclass(slots=True, eq=False)
class Progress:
    """What is known of one job, or one task of an array, as the poller tells it."""

    record: JobRecord = _SUBMITTED
    ended: threading.Event = field(default_factory=threading.Event)

    def tell(self, record: JobRecord) -> None:
        """It is so now."""
        self.record = record
        if record.status.is_final:
            self.ended.set()


def followed(submission: Submission, system: BatchSystem, progress: Progress, index: int | None = None) -> Followed:
    """A job, or one task of an array, as it is followed; what is told of it comes to the progress."""

    def tell(record: JobRecord) -> None:
        if record.status.is_final and record.status is not JobStatus.LOST:
            submission.keep_end(record, index)
        progress.tell(record)

    job = submission.id if index is None else system.task_id(submission.id, index)
    return Followed(job, submission.id, tell, partial(submission.witness, index))


class BatchHandle:
    """A batch job in its batch system. It does not end with this process.

    ``submission`` says where its output is; ``scheduler`` is where it was submitted.
    """

    def __init__(self, submission: Submission, scheduler: Scheduler, known: JobRecord = _SUBMITTED) -> None:
        self.submission = submission
        self.scheduler = scheduler
        self._progress = Progress()
        self._progress.tell(known)
        if not known.status.is_final:
            job = followed(submission, scheduler.system, self._progress)
            poller_of(scheduler.system).follow([job], scheduler.poll)

    def __repr__(self) -> str:
        return f"<BatchHandle {self.scheduler.name} {self.job_id} {self.submission.name!r} {self.status.value}>"

    @property
    def job_id(self) -> str:
        """The id that the batch system gave it."""
        return self.submission.id

    @property
    def record(self) -> JobRecord:
        """What the batch system said of it last: status, reason, hosts."""
        return self._progress.record

    @property
    def status(self) -> JobStatus:
        """How it is, as it was asked for last. It becomes final some time, in whatever way the job ends."""
        return self.record.status

    @property
    def is_complete(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status.is_final

    @property
    def returncode(self) -> int | None:
        """As in :mod:`subprocess`, negative for a signal; None before it has ended, and where nobody knows."""
        return self.record.returncode

    def wait(self, timeout: float | None = None) -> JobStatus:
        """Wait until it has ended; gives its final status.

        :param timeout: seconds; None: as long as it takes.
        :raises TimeoutError: it has not ended within that time.
        """
        if not self._progress.ended.wait(timeout):
            raise TimeoutError(f"{self.scheduler.name} job {self.job_id} is {self.status.value} after {timeout:g} s")
        return self.status

    def cancel(self) -> None:
        """Cancel it, unless it has ended; ``status`` says when that is done. Raises BatchCommandFailed."""
        if not self.is_complete:
            cancel_jobs(self.scheduler, [self.job_id])

    def read_stdout(self, tail: int | None = None) -> str:
        """What it has written until now; of that the last ``tail`` lines, if that is not None.

        :raises OSError: there is no such file (yet), or it cannot be read.
        """
        return read_output(self.submission.stdout, tail)

    def read_stderr(self, tail: int | None = None) -> str:
        """As :meth:`read_stdout`; where both go to one file, that."""
        return read_output(self.submission.stderr or self.submission.stdout, tail)


def cancel_jobs(scheduler: Scheduler, ids: list[str]) -> None:
    """Cancel jobs of one batch system. Raises BatchCommandFailed."""
    cancelled = cancel(scheduler.system, ids)
    poller_of(scheduler.system).note_cancelled(ids, cancelled.gone)
    if cancelled.complaints:
        raise BatchCommandFailed(
            f"{' '.join(cancelled.command)}: {cancelled.complaints}", command=cancelled.command,
            returncode=cancelled.returncode, output=cancelled.complaints,
        )  # fmt: skip


def read_output(path: str, tail: int | None, index: int | None = None) -> str:
    """The text of a file, or its last lines; other bytes than UTF-8 are replaced."""
    if tail is not None and tail < 0:
        raise ValueError(f"tail={tail}: expected a number of lines, or None for all")
    with open(fill_index(path, index), "rb") as file:
        data = file.read() if tail is None else b"".join(_last_lines(file.fileno(), tail))
    return data.decode(errors="replace")


def _last_lines(fd: int, count: int) -> list[bytes]:
    """Read from the end, as far as it takes: logs may be large."""
    end = os.fstat(fd).st_size
    data = b""
    while end > 0 and data.count(b"\n") <= count:
        start = max(0, end - _BLOCK)
        data = os.pread(fd, end - start, start) + data
        end = start
    return data.splitlines(keepends=True)[-count:] if count else []


def find_submission(job: str, scheduler: str | None = None) -> Submission:
    """What is kept of the job with this id. Raises LookupError if nothing is, or if several have it."""
    found = find(job, scheduler)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(each.scheduler for each in found)
        raise LookupError(f"several batch jobs have the id {job!r}, of {names}; say which scheduler is meant")
    of = "" if scheduler is None else f" of {scheduler!r}"
    raise LookupError(f"no batch job {job!r}{of} was submitted from here; the ids are those that submit printed")


def scheduler_of(submission: Submission) -> Scheduler:
    """Where it was submitted."""
    return get_scheduler(submission.scheduler)
