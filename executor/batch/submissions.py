"""What is kept of a batch job that was submitted: a small file in the state directory.

The id is the batch system's, and so is the truth. The file tells another process where the output is, and beside it the
job's script leaves its exit status: batch systems forget jobs, some of them within minutes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from executor.batch.states import JobRecord, JobStatus

log = logging.getLogger("executor")

#: Seconds for which all this is kept.
KEPT = 30 * 86400.0


def state_directory() -> Path:
    """Where we keep what outlives a process: ``hpc-executor`` in $XDG_STATE_HOME, or in ``~/.local/state``."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser().absolute() / "hpc-executor"


@dataclass(frozen=True, slots=True)
class Submission:
    """A batch job as it was submitted. Paths are absolute; ``%{TASK_ID}`` in one is the number of an array's task.

    :param scheduler: the name by which it was submitted, for :func:`executor.batch.schedulers.get_scheduler`.
    :param stderr: None: in the same file as stdout.
    :param exit_file: where its script, or each task's, leaves the exit status, and we what the batch system says.
    :param indices: of an array: the first and the last number.
    """

    scheduler: str
    id: str
    name: str
    stdout: str
    stderr: str | None
    exit_file: str
    indices: tuple[int, int] | None = None

    def with_id(self, job: str) -> Submission:
        """The same, once the batch system has given it an id."""
        stderr = None if self.stderr is None else self.stderr.replace("%{JOB_ID}", job)
        return replace(self, id=job, stdout=self.stdout.replace("%{JOB_ID}", job), stderr=stderr)

    @property
    def tasks(self) -> list[int]:
        """The numbers of an array's tasks; none if it is no array."""
        return [] if self.indices is None else list(range(self.indices[0], self.indices[1] + 1))

    def witness(self, index: int | None = None) -> JobRecord | None:
        """How it has ended, as the script says, or whoever has seen it; None if nobody says anything (yet)."""
        with contextlib.suppress(FileNotFoundError):
            return _read_end(Path(fill_index(self.exit_file, index)).read_text(encoding="utf-8"))
        return None

    def keep_end(self, record: JobRecord, index: int | None = None) -> None:
        """Write down how it has ended: what a batch system knows of that may soon be forgotten there."""
        told = {**asdict(record), "status": record.status.value}
        try:
            Path(fill_index(self.exit_file, index)).write_text(json.dumps(told), encoding="utf-8")
        except OSError as error:
            log.warning("how the job %s has ended cannot be written down: %s", self.id, error)


def _read_end(text: str) -> JobRecord | None:
    """An exit status, as a script writes it, or a record, as we do; None: it is being written."""
    if text.strip().isdecimal():
        status = int(text)
        return JobRecord(JobStatus.FAILED if status else JobStatus.COMPLETED, returncode=status)
    with contextlib.suppress(json.JSONDecodeError):
        fields = json.loads(text)
        return JobRecord(**{**fields, "status": JobStatus(fields["status"])})
    return None


def fill_index(path: str, index: int | None) -> str:
    """The path of one task of an array."""
    return path if index is None else path.replace("%{TASK_ID}", str(index))


def new_exit_file() -> str:
    """A path for the exit status of a job that has no id yet."""
    return str(_directory() / f"{secrets.token_hex(8)}.exit")


def keep(submission: Submission) -> None:
    """Write it down, and forget what is old."""
    _forget_old()
    path = _path(submission.scheduler, submission.id)
    path.write_text(json.dumps(asdict(submission)), encoding="utf-8")


def find(job: str, scheduler: str | None = None) -> list[Submission]:
    """Those with this id: one, unless several batch systems have given it."""
    paths = _directory().glob("*.json") if scheduler is None else [_path(scheduler, job)]
    return [_read(path) for path in paths if path.name.endswith(f"-{job}.json") and path.exists()]


def find_all() -> list[Submission]:
    """All that are known, the latest last."""
    return [_read(path) for path in sorted(_directory().glob("*.json"), key=lambda path: path.stat().st_mtime)]


def _read(path: Path) -> Submission:
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["indices"] = None if fields["indices"] is None else tuple(fields["indices"])
    return Submission(**fields)


def _path(scheduler: str, job: str) -> Path:
    return _directory() / f"{scheduler}-{job}.json"


def _directory() -> Path:
    directory = state_directory() / "batch-jobs"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def _forget_old() -> None:
    for path in _directory().iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > KEPT:
                path.unlink()
