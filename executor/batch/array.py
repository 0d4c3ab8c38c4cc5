"""Many batch jobs that differ in their number: the batch system's own array."""

from __future__ import annotations

import time
from dataclasses import dataclass

from executor.batch.handle import Progress, cancel_jobs, followed, read_output
from executor.batch.job import BatchJob
from executor.batch.poller import poller_of
from executor.batch.request import ArrayRange
from executor.batch.schedulers import Scheduler, get_scheduler
from executor.batch.states import JobRecord, JobStatus
from executor.batch.submissions import Submission


@dataclass(frozen=True)
class BatchArray:
    """A batch job for each number; its command finds the number in HPC_ARRAY_INDEX.

    :param job: what each of them is. ``%{TASK_ID}`` in its ``stdout`` is the number; without one it is
        ``NAME-%{JOB_ID}-%{TASK_ID}.out``.
    :param start, end: the first and the last number, int, 0 or more.
    :param max_concurrent: so many run at a time, int; 0: any number.
    :raises ValueError: numbers that make no sense.
    """

    job: BatchJob
    start: int
    end: int
    max_concurrent: int = 0

    def __post_init__(self) -> None:
        _ = self._range

    @property
    def _range(self) -> ArrayRange:
        return ArrayRange(self.start, self.end, self.max_concurrent)

    def script(self, scheduler: str | Scheduler | None = None) -> str:
        """The text that would be submitted; nothing is. The parameter is that of :meth:`BatchJob.submit`."""
        where = get_scheduler(scheduler or self.job.cluster)
        return where.system.script(self.job.request(where, self.job.submission(where, self._range), self._range))

    def submit(self, scheduler: str | Scheduler | None = None) -> BatchArrayHandle:
        """Submit it; gives its handle. The parameter and what is raised are those of :meth:`BatchJob.submit`."""
        where = get_scheduler(scheduler or self.job.cluster)
        return BatchArrayHandle(self.job.submit_as(where, self._range), where)


class BatchArrayHandle:
    """An array in its batch system; its tasks go by their numbers. It does not end with this process."""

    def __init__(self, submission: Submission, scheduler: Scheduler) -> None:
        self.submission = submission
        self.scheduler = scheduler
        self._tasks = {index: Progress() for index in submission.tasks}
        jobs = [followed(submission, scheduler.system, one, index) for index, one in self._tasks.items()]
        poller_of(scheduler.system).follow(jobs, scheduler.poll)

    def __repr__(self) -> str:
        ended = sum(status.is_final for status in self.statuses.values())
        return f"<BatchArrayHandle {self.scheduler.name} {self.job_id}: {ended} of {len(self._tasks)} have ended>"

    @property
    def job_id(self) -> str:
        """The id that the batch system gave the array."""
        return self.submission.id

    @property
    def records(self) -> dict[int, JobRecord]:
        """What the batch system said of each of its tasks last."""
        return {index: progress.record for index, progress in self._tasks.items()}

    @property
    def statuses(self) -> dict[int, JobStatus]:
        """How each of its tasks is, as it was asked for last."""
        return {index: record.status for index, record in self.records.items()}

    @property
    def returncodes(self) -> dict[int, int | None]:
        """Those of its tasks, as :attr:`BatchHandle.returncode` has them."""
        return {index: record.returncode for index, record in self.records.items()}

    @property
    def is_complete(self) -> bool:
        """Whether all have ended, well or not."""
        return all(status.is_final for status in self.statuses.values())

    def wait(self, timeout: float | None = None) -> dict[int, JobStatus]:
        """Wait until all have ended; gives their final statuses.

        :param timeout: seconds for all of them; None: as long as it takes.
        :raises TimeoutError: they have not ended within that time.
        """
        end = None if timeout is None else time.monotonic() + timeout
        for progress in self._tasks.values():
            if not progress.ended.wait(None if end is None else max(0.0, end - time.monotonic())):
                raise TimeoutError(f"{self!r} after {timeout:g} s")
        return self.statuses

    def cancel(self, index: int | None = None) -> None:
        """Cancel one task, or all of them. Raises BatchCommandFailed; KeyError: there is no such task."""
        if index is not None and not self._tasks[index].record.status.is_final:
            cancel_jobs(self.scheduler, [self.scheduler.system.task_id(self.job_id, index)])
        if index is None and not self.is_complete:
            cancel_jobs(self.scheduler, [self.job_id])

    def read_stdout(self, index: int, tail: int | None = None) -> str:
        """As :meth:`BatchHandle.read_stdout`, of one task."""
        return read_output(self.submission.stdout, tail, index)

    def read_stderr(self, index: int, tail: int | None = None) -> str:
        """As :meth:`BatchHandle.read_stderr`, of one task."""
        return read_output(self.submission.stderr or self.submission.stdout, tail, index)
