"""How batch jobs are: the words of all batch systems, in ours."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class JobStatus(enum.Enum):
    """How a batch job is.

    ``UNKNOWN``: the batch system says nothing of it, or something that we do not know. That is never a final status: a
    listing may lag, a controller may be away. ``LOST`` is one: nothing was heard of the job for very long.
    """

    UNKNOWN = "unknown"
    PENDING = "pending"
    RUNNING = "running"
    #: it has ended, or is to end, and the batch system still clears up behind it
    ENDING = "ending"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out of memory"
    NODE_FAILED = "node failed"
    LOST = "lost"

    @property
    def is_final(self) -> bool:
        """Whether it stays so."""
        return self in _FINAL


_FINAL = frozenset({
    JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.TIMEOUT, JobStatus.OUT_OF_MEMORY,
    JobStatus.NODE_FAILED, JobStatus.LOST,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What a batch system says of a job at one moment.

    :param word: its own word for the status, for people.
    :param reason: why it waits or failed, in its words; "" if it does not say.
    :param returncode: as in ``subprocess``, negative for a signal; None while it runs, and where nobody knows.
    :param restarts: how often the batch system has started it again.
    :param stuck: it has failed, and stays in the queue until somebody cancels it.
    """

    status: JobStatus
    word: str = ""
    reason: str = ""
    returncode: int | None = None
    hosts: str = ""
    restarts: int = 0
    stuck: bool = False


NOTHING_KNOWN = JobRecord(JobStatus.UNKNOWN)
