"""The numbers of jobs. They begin anew with each executor, and output of an earlier run is not to be overwritten."""

from __future__ import annotations

import os
from collections.abc import Iterator

from executor.files import OutputFile
from executor.jobs.job import Job

#: Where job files have the output of their tasks, if they say nothing else.
FOLDER = "job-%{JOB_ID}"


def take_number(numbers: Iterator[int], job: Job, directory: str) -> int:
    """The next number; for a job whose tasks write to ``FOLDER``, the next for which there is none, which is made.

    Two runs that begin at the same moment in one directory have different ones, too.
    """
    number = next(numbers)
    if _writes_there(job):
        while not _make(os.path.join(directory, job.cwd or "", f"job-{number}")):
            number = next(numbers)
    return number


def _writes_there(job: Job) -> bool:
    outputs = (task.options.get(stream) for task in job.tasks for stream in ("stdout", "stderr"))
    return any(FOLDER in os.fspath(each) for each in outputs if isinstance(each, str | os.PathLike | OutputFile))


def _make(folder: str) -> bool:
    """Whether it was not there. Where it cannot be made, the tasks will say so."""
    try:
        os.mkdir(folder)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True
