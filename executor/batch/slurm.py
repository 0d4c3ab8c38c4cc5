"""Slurm, by its commands: sbatch, squeue, scontrol, sacct, scancel. Manual pages: https://slurm.schedmd.com.

Seen with 22.05, 24.11 and 26.05, whose JSON differs and whose ``-o`` does not. ``squeue -O`` cuts what is longer than a
column. ``scancel`` of an unknown id ends with 0; ``squeue -j`` of one unknown id alone with 1.
"""

from __future__ import annotations

import getpass
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from executor.batch.request import JobRequest, one_line, safe_name
from executor.batch.states import JobRecord, JobStatus
from executor.batch.system import Answer, BatchSystem, Command, last_line
from executor.jobs.placeholders import fill

#: "JOB STATE CODES" of squeue(1), all of them.
_STATUS = {
    "PENDING": JobStatus.PENDING, "CONFIGURING": JobStatus.PENDING, "REQUEUED": JobStatus.PENDING,
    "REQUEUE_HOLD": JobStatus.PENDING, "REQUEUE_FED": JobStatus.PENDING, "RESV_DEL_HOLD": JobStatus.PENDING,
    "SPECIAL_EXIT": JobStatus.PENDING, "RUNNING": JobStatus.RUNNING, "RESIZING": JobStatus.RUNNING,
    "SIGNALING": JobStatus.RUNNING, "SUSPENDED": JobStatus.RUNNING, "STOPPED": JobStatus.RUNNING,
    "STAGE_OUT": JobStatus.ENDING, "COMPLETING": JobStatus.ENDING, "COMPLETED": JobStatus.COMPLETED,
    "FAILED": JobStatus.FAILED, "BOOT_FAIL": JobStatus.NODE_FAILED, "NODE_FAIL": JobStatus.NODE_FAILED,
    "CANCELLED": JobStatus.CANCELLED, "PREEMPTED": JobStatus.CANCELLED, "REVOKED": JobStatus.CANCELLED,
    "TIMEOUT": JobStatus.TIMEOUT, "DEADLINE": JobStatus.TIMEOUT, "OUT_OF_MEMORY": JobStatus.OUT_OF_MEMORY,
}  # fmt: skip
_NOTHING = frozenset({"", "None", "(null)", "Unknown", "None assigned"})
_ID = re.compile(r"\d+(?:;\S+)?")
#: An id as it is listed: with a number of an array, or of a part of a heterogeneous job.
_LISTED = re.compile(r"[0-9]+(?:[_+][0-9]+)?")
_FIELD = re.compile(r"(?:^|\s)([A-Z]\w*)=(\S*)")
_MIB = 2**20
#: What stands for a signal where a job could not be started.
_NOT_STARTED = 53


class SlurmSystem(BatchSystem):
    """Slurm."""

    name = "slurm"
    program = "sbatch"
    sentinel = "#SBATCH"
    job_variables = ("SLURM_", "SLURMD_", "SBATCH_", "PMI_", "PMI2_", "PMIX_", "SRUN_")
    site_variables = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SBATCH_CLUSTERS")

    array_variable = "SLURM_ARRAY_TASK_ID"
    placeholders = MappingProxyType({"JOB_ID": "%A", "TASK_ID": "%a"})
    ping = ("sinfo", "-h", "-o", "%P")

    # ---- text that goes to it

    def output_path(self, path: str) -> str:
        return fill(path.replace("%", "%%").replace("%%{", "%{"), self.placeholders)

    def options(self, request: JobRequest) -> list[str]:
        values = {
            "--job-name": safe_name(request.name),
            "--nodes": request.nodes,
            "--ntasks-per-node": request.ranks,
            "--cpus-per-task": request.cpus,
            "--mem": None if request.memory is None else f"{math.ceil(request.memory / _MIB)}M",
            "--gres": f"gpu:{request.gpus}" if request.gpus else None,
            "--time": None if request.time is None else max(1, math.ceil(request.time / 60)),  # whole minutes
            "--partition": request.queue,
            "--account": request.account,
            "--chdir": request.workdir,
            "--output": request.stdout,
            "--error": request.stderr,
            "--dependency": _dependency(request),
            "--array": _array(request),
        }
        options = [f"{name}={_quoted(name, str(value))}" for name, value in values.items() if value is not None]
        # a job that comes back by itself would be a second one with the same id
        options += ["--no-requeue", *(["--exclusive"] if request.exclusive else [])]
        return options + (["--kill-on-invalid-dep=yes"] if request.dependencies else [])

    def on_each_node(self, command: str, nodes: int) -> str:
        if nodes == 1:
            return f"exec {command}"
        cpus = "${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}"  # since 22.05 a step does not inherit it
        # the prologue's variables, too, where the site or the user submits with --export=NONE
        return f"exec srun --overlap --export=ALL --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 {cpus} {command}"

    def ask_nodes(self, env: Mapping[str, str]) -> Command | None:
        nodes = env.get("SLURM_JOB_NODELIST") if "SLURM_JOB_ID" in env else None
        return Command(["scontrol", "show", "hostnames", nodes]) if nodes else None

    def submit(self, request: JobRequest) -> Command:
        return Command(["sbatch", "--parsable"], self.script(request))

    def task_id(self, job: str, index: int) -> str:
        return f"{job}_{index}"

    def ask(self, ids: Sequence[str]) -> Command:
        return Command(["squeue", "-h", "-t", "all", "-r", "-j", ",".join(ids), "-o", "%i|%F|%T|%r|%N"])

    def ask_ended(self, job: str) -> list[Command]:
        columns = "JobID,State,ExitCode,NodeList,Reason"
        return [
            Command(["scontrol", "show", "job", "-o", job]),
            Command(["sacct", "-X", "-n", "-P", "-j", job, "-o", columns]),
        ]

    def cancel(self, ids: Sequence[str]) -> Command:
        return Command(["scancel", *ids])

    def cancel_named(self, name: str) -> Command:
        return Command(["scancel", f"--user={getpass.getuser()}", f"--name={name}"])

    # ---- text that comes from it

    def read_id(self, answer: Answer) -> str | None:
        line = last_line(_ID, answer)
        return line and line.partition(";")[0]  # behind it, the cluster

    def read_records(self, answer: Answer, ids: Sequence[str]) -> dict[str, JobRecord] | None:
        if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
            return None
        rows = [line.split("|") for line in answer.stdout.splitlines() if line.count("|") == 4]
        wanted = set(ids)
        return {
            job: JobRecord(_status(word), word, _said(reason), hosts=_said(hosts))
            for job, array, word, reason, hosts in rows
            if (job in wanted or array in wanted) and _LISTED.fullmatch(job)
        }

    def read_ended(self, answers: Sequence[Answer], job: str) -> JobRecord | None:
        shown, accounted = answers
        return _read_shown(shown.stdout) or _read_accounted(accounted.stdout, job)


def _dependency(request: JobRequest) -> str | None:
    """With colons: ``afterok:1,2`` would be taken, and 2 forgotten."""
    return ":".join([request.dependency_type, *request.dependencies]) if request.dependencies else None


def _quoted(name: str, value: str) -> str:
    """sbatch splits its lines as a shell does."""
    one_line(name, value)
    return value if re.fullmatch(r"[\w./:,%+@-]*", value) else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _array(request: JobRequest) -> str | None:
    if request.array is None:
        return None
    limit = f"%{request.array.max_concurrent}" if request.array.max_concurrent else ""
    return f"{request.array.start}-{request.array.end}{limit}"


def _status(word: str) -> JobStatus:
    return _STATUS.get(word.partition(" ")[0].rstrip("+"), JobStatus.UNKNOWN)  # "CANCELLED by 0" in sacct


def _said(text: str) -> str:
    return "" if text in _NOTHING else text


def _read_shown(text: str) -> JobRecord | None:
    """The first line of ``scontrol show job -o``. The first field of a name counts: a comment or a command, which come
    later, may hold anything; the name of our jobs does not.
    """
    fields = dict(reversed(_FIELD.findall(text.partition("\n")[0])))
    if "JobState" not in fields:
        return None
    word = fields["JobState"]
    return JobRecord(
        _status(word), word, _said(fields.get("Reason", "")), _returncode(fields.get("ExitCode", ""), _status(word)),
        _said(fields.get("NodeList", "")), _count(fields.get("Restarts", "")),
    )  # fmt: skip


def _count(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0


def _read_accounted(text: str, job: str) -> JobRecord | None:
    """Lines of ``sacct``, which are missing for some seconds after a job was submitted; the last one is the latest."""
    rows = [row for line in text.splitlines() if len(row := line.split("|")) == 5 and row[0] == job]
    if not rows:
        return None
    _, word, code, hosts, reason = rows[-1]
    return JobRecord(_status(word), word, _said(reason), _returncode(code, _status(word)), _said(hosts))


def _returncode(text: str, status: JobStatus) -> int | None:
    """``7:0`` is status 7, ``0:9`` the end by signal 9. Of a job that was ended from outside it tells nothing.

    ``0:53`` is no signal: Slurm could not start the job, because its output cannot be opened, say.
    """
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    if match is None or not status.is_final or (text == "0:0" and status is not JobStatus.COMPLETED):
        return None
    exit_status, number = map(int, match.groups())
    return None if number == _NOT_STARTED else -number or exit_status
