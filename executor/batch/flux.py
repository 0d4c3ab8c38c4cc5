"""Flux, by its commands: flux batch, flux jobs, flux cancel. Manual pages: https://flux-framework.readthedocs.io.

Not seen: made from the manual pages, and RFC 36 for the options in a script. A job script runs on the first node of its
allocation, in an instance of Flux of its own, which has all its nodes.
"""

from __future__ import annotations

import getpass
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from executor.batch.request import JobRequest, one_line, safe_name
from executor.batch.states import JobRecord, JobStatus
from executor.batch.system import Answer, BatchSystem, Command, last_line

#: The states of RFC 21, but for INACTIVE, and the results.
_STATUS = {
    "NEW": JobStatus.PENDING, "DEPEND": JobStatus.PENDING, "PRIORITY": JobStatus.PENDING, "SCHED": JobStatus.PENDING,
    "RUN": JobStatus.RUNNING, "CLEANUP": JobStatus.ENDING,
}  # fmt: skip
_RESULT = {
    "COMPLETED": JobStatus.COMPLETED, "FAILED": JobStatus.FAILED, "CANCELED": JobStatus.CANCELLED,
    "TIMEOUT": JobStatus.TIMEOUT,
}  # fmt: skip
#: The note may hold anything: it comes last.
_FORMAT = "{id.f58}|{state}|{result}|{returncode}|{nodelist}|{exception.note}"
_COLUMNS = 6
#: RFC 19: base 58 behind a prefix, which is an f where the locale has no other.
_ID = re.compile(r"[ƒf][1-9A-HJ-NP-Za-km-z]+")
#: "If the job was canceled before it started"
_NEVER_RAN = -128


class FluxSystem(BatchSystem):
    """Flux."""

    name = "flux"
    program = "flux"
    sentinel = "# flux:"
    placeholders = MappingProxyType({"JOB_ID": "{{id}}"})
    ping = ("flux", "uptime")
    stray = re.compile(r"^[^\w\n]*(?:flux|FLUX):.*", re.MULTILINE)  # it would refuse the script
    job_variables = ("FLUX_", "PMI_", "PMIX_")
    site_variables = ("FLUX_URI", "FLUX_EXEC_PATH", "FLUX_CONNECTOR_PATH", "FLUX_MODULE_PATH", "FLUX_CONF_DIR")
    harmless = re.compile(r"unknown job id|job is inactive|already inactive", re.IGNORECASE)

    # ---- text that goes to it

    def options(self, request: JobRequest) -> list[str]:
        _check(request)
        slots = request.nodes * request.ranks
        values = {
            "--job-name": safe_name(request.name),
            "--nodes": request.nodes,
            "--nslots": slots,
            "--cores-per-slot": request.cpus,
            "--gpus-per-slot": request.gpus and request.gpus // request.ranks,
            "--time-limit": None if request.time is None else f"{max(1, math.ceil(request.time))}s",
            "--queue": request.queue,
            "--bank": request.account,
            "--cwd": request.workdir,
            "--output": request.stdout,
            "--error": request.stderr,
        }
        options = [f"{name}={_quoted(name, str(value))}" for name, value in values.items() if value is not None]
        needed = [f"{request.dependency_type}:{job}" for job in request.dependencies]
        options += [f"--dependency={_quoted('dependencies', each)}" for each in needed]
        return options + (["--exclusive"] if request.exclusive else [])

    def on_each_node(self, command: str, nodes: int) -> str:
        """Each has its whole node, and is not bound to the cores of one task."""
        if nodes == 1:
            return f"exec {command}"
        return f"exec flux run --nodes={nodes} --ntasks={nodes} --exclusive -o cpu-affinity=off {command}"

    def ask_nodes(self, env: Mapping[str, str]) -> Command | None:
        return Command(["flux", "exec", "-r", "all", "hostname"]) if "FLUX_URI" in env else None

    def submit(self, request: JobRequest) -> Command:
        return Command(["flux", "batch"], self.script(request))

    def task_id(self, job: str, index: int) -> str:
        raise ValueError(f"task {index} of {job}: Flux has no arrays")

    def ask(self, ids: Sequence[str]) -> Command:
        return Command(["flux", "jobs", "-a", "-n", "-o", _FORMAT, *ids])

    def ask_ended(self, job: str) -> list[Command]:
        return [self.ask([job])]

    def cancel(self, ids: Sequence[str]) -> Command:
        return Command(["flux", "cancel", *ids])

    def cancel_named(self, name: str) -> Command:
        line = 'flux jobs -n -c 0 -u "$1" -o "{id}" --name="$2" | xargs -r flux cancel'
        return Command(["/bin/sh", "-c", line, "sh", getpass.getuser(), safe_name(name)])

    # ---- text that comes from it

    def read_id(self, answer: Answer) -> str | None:
        return last_line(_ID, answer)

    def read_records(self, answer: Answer, ids: Sequence[str]) -> dict[str, JobRecord] | None:
        """One that is unknown makes it fail, and tell of the others."""
        rows = [row for line in answer.stdout.splitlines() if len(row := line.split("|", _COLUMNS - 1)) == _COLUMNS]
        if answer.returncode != 0 and not rows and "unknown" not in answer.stderr.lower():
            return None
        wanted = {job[1:]: job for job in ids}
        return {wanted[row[0].strip()[1:]]: _record(*row[1:]) for row in rows if row[0].strip()[1:] in wanted}

    def read_ended(self, answers: Sequence[Answer], job: str) -> JobRecord | None:
        return (self.read_records(answers[0], [job]) or {}).get(job)


def _check(request: JobRequest) -> None:
    if request.memory is not None:
        raise ValueError(f"memory={request.memory}: Flux does not grant memory; expected cpus, gpus or nodes alone")
    if request.array is not None:
        raise ValueError(f"array={request.array}: Flux has no arrays; expected a job for each task")
    if request.gpus and request.gpus % request.ranks:
        raise ValueError(f"gpus={request.gpus} for ranks={request.ranks}: expected as many for each rank")


def _quoted(name: str, value: str) -> str:
    """As in a shell, but that three quotes in a row have a meaning of their own."""
    quoted = shlex.quote(one_line(name, value))
    if '"""' in quoted or "'''" in quoted:
        raise ValueError(f"{name}={value!r}: Flux takes three quotes in a row for something else; expected none")
    return quoted


def _record(state: str, result: str, returncode: str, hosts: str, note: str) -> JobRecord:
    if state != "INACTIVE":
        return JobRecord(_STATUS.get(state, JobStatus.UNKNOWN), state, hosts=hosts)
    code = int(returncode) if re.fullmatch(r"-?[0-9]{1,9}", returncode) else None
    status = _RESULT.get(result, JobStatus.UNKNOWN)
    return JobRecord(status, result, note.strip(), None if code == _NEVER_RAN else code, hosts)
