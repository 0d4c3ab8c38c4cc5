"""A batch system without a scheduler, for laptops and tests: each job is a process that starts at once.

What its commands do stands in :mod:`executor.batch.local_jobs`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from types import MappingProxyType

from executor.batch import local_jobs
from executor.batch.request import JobRequest, safe_name
from executor.batch.states import JobRecord, JobStatus
from executor.batch.submissions import state_directory
from executor.batch.system import Answer, BatchSystem, Command

#: What of a request means something here. CPUs and memory are not counted, and there are no queues.
_FIELDS = ("stdout", "stderr", "workdir", "time", "dependencies", "dependency_type")


class LocalSystem(BatchSystem):
    """Processes of this machine."""

    name = "local"
    program = "bash"
    sentinel = "#"  # which is nobody's here: the name of the job, for people
    job_variables = ("LOCAL_JOB_ID", "LOCAL_TASK_ID")
    array_variable = "LOCAL_TASK_ID"
    placeholders = MappingProxyType({"JOB_ID": "%{JOB_ID}", "TASK_ID": "%{TASK_ID}"})
    poll = 0.5

    def __init__(self) -> None:
        #: where its jobs are, whatever the environment says later
        self._top = str(state_directory() / "local")

    @property
    def whose(self) -> str:
        return self._top

    def options(self, request: JobRequest) -> list[str]:
        return [safe_name(request.name)]

    def task_id(self, job: str, index: int) -> str:
        return f"{job}_{index}"

    def on_each_node(self, command: str, nodes: int) -> str:
        if nodes != 1:
            raise ValueError(f"nodes={nodes}: this machine is one node; choose another batch system")
        return f"exec {command}"

    def submit(self, request: JobRequest) -> Command:
        told = {name: getattr(request, name) for name in _FIELDS}
        told["workdir"] = request.workdir or os.getcwd()
        told["name"] = safe_name(request.name)
        told["array"] = None if request.array is None else dataclasses.asdict(request.array)
        return self._command(["submit", json.dumps(told)], self.script(request))

    def ask(self, ids: Sequence[str]) -> Command:
        return self._command(["ask", *ids])

    def ask_ended(self, job: str) -> list[Command]:
        return [self._command(["ask", job.partition("_")[0]])]

    def cancel(self, ids: Sequence[str]) -> Command:
        return self._command(["cancel", *ids])

    def cancel_named(self, name: str) -> Command:
        return self._command(["cancel-named", safe_name(name)])

    def _command(self, words: list[str], stdin: str = "") -> Command:
        script = os.path.abspath(local_jobs.__file__)
        return Command([sys.executable, "-E", "-P", "-S", script, self._top, *words], stdin)

    def read_id(self, answer: Answer) -> str | None:
        job = answer.stdout.strip()
        return job if answer.returncode == 0 and job.isdecimal() else None

    def read_records(self, answer: Answer, ids: Sequence[str]) -> dict[str, JobRecord] | None:
        if answer.returncode != 0:
            return None
        rows = [line.split("|") for line in answer.stdout.splitlines()]
        return {
            self.task_id(job, int(task)) if task else job: _record(*rest)
            for job, task, *rest in rows
            if job in ids
        }  # fmt: skip

    def read_ended(self, answers: Sequence[Answer], job: str) -> JobRecord | None:
        return (self.read_records(answers[0], [job.partition("_")[0]]) or {}).get(job)


def _record(word: str, returncode: str, reason: str) -> JobRecord:
    return JobRecord(JobStatus[word], word, reason, int(returncode) if returncode else None, os.uname().nodename)
