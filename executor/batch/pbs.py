"""PBS, by its commands: qsub, qstat, qselect, qdel. OpenPBS and PBS Professional; and Torque, where it differs.

Not seen: made from the manuals and from answers that others have recorded. ``qstat`` fails with 35 if one of its jobs
has finished and with 153 if it does not know one, and tells of the others. Its JSON is broken by what is in the jobs'
variables, and leaves out all jobs but the first in some versions; its ids are cut to the width of their column.
"""

from __future__ import annotations

import getpass
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from executor.batch.request import JobRequest, body_lines, one_line, safe_name
from executor.batch.states import JobRecord, JobStatus
from executor.batch.system import Answer, BatchSystem, Command, last_line

#: The states of qstat(1B). How a job has ended that is F, X or C (Torque) is not in the listing.
_STATUS = {
    "Q": JobStatus.PENDING, "H": JobStatus.PENDING, "W": JobStatus.PENDING, "T": JobStatus.PENDING,
    "R": JobStatus.RUNNING, "B": JobStatus.RUNNING, "S": JobStatus.RUNNING, "U": JobStatus.RUNNING,
    "E": JobStatus.ENDING,
}  # fmt: skip
_ENDED = frozenset("FXC")
#: An id without its server, which a column may have cut.
_NUMBER = re.compile(r"\d+(?:\[\d*\])?")
_ID = re.compile(r"\d+(?:\[\d*\])?(?:\.[\w.-]+)?")
_FINISHED, _UNKNOWN_JOB = 35, 153
#: Why PBS itself has ended a job: JOB_EXEC_KILL_... of its job.h
_KILLED = {
    -26: JobStatus.OUT_OF_MEMORY, -27: JobStatus.OUT_OF_MEMORY, -28: JobStatus.TIMEOUT, -29: JobStatus.TIMEOUT,
}  # fmt: skip
#: Substates of jobs that have ended: JOB_SUBSTATE_... of its job.h
_TERMINATED = "91"
#: Older versions take no more.
_NAME_LIMIT = 15
_MIB = 2**20


class PBSSystem(BatchSystem):
    """OpenPBS and PBS Professional."""

    name = "pbs"
    program = "pbs_rstat"
    sentinel = "#PBS"
    array_variable = "PBS_ARRAY_INDEX"
    placeholders: Mapping[str, str] = MappingProxyType({"TASK_ID": "^array_index^"})
    ping = ("qstat", "-B")
    job_variables = ("PBS_", "PMI_", "PMIX_")
    site_variables = ("PBS_CONF_FILE", "PBS_SERVER", "PBS_DEFAULT", "PBS_EXEC", "PBS_HOME")
    #: starts a command once for each chunk, each of which is on a node of its own (``place=scatter``)
    launcher = "pbsdsh"
    harmless = re.compile(r"Job has finished|Unknown Job Id|Request invalid for state of job|Job .*already.* exiting")

    # ---- text that goes to it

    def options(self, request: JobRequest) -> list[str]:
        options = ["-N " + _name(request.name), "-S /bin/bash", "-r n", *self.resources(request)]
        options += [] if request.time is None else [f"-l walltime={max(1, math.ceil(request.time))}"]
        options += self.array(request)
        values = {
            "-q": request.queue, "-A": request.account, "-o": request.stdout, "-e": request.stderr,
            "-W": _depend(request),
        }  # fmt: skip
        options += [f"{name} {_quoted(name, value)}" for name, value in values.items() if value is not None]
        return options + (["-j oe"] if request.stderr is None else [])

    def resources(self, request: JobRequest) -> list[str]:
        """What nodes are asked for."""
        chunk = [f"select={request.nodes}", f"ncpus={(request.cpus or 1) * request.ranks}", f"mpiprocs={request.ranks}"]
        chunk += [] if request.memory is None else [f"mem={math.ceil(request.memory / _MIB)}mb"]
        chunk += [f"ngpus={request.gpus}"] if request.gpus else []
        place = ["scatter"] * (request.nodes > 1) + ["excl"] * request.exclusive
        return ["-l " + ":".join(chunk), *(["-l place=" + ":".join(place)] if place else [])]

    def array(self, request: JobRequest) -> list[str]:
        """The tasks of an array."""
        return [] if request.array is None else [f"-J {_range(request)}"]

    def body(self, request: JobRequest) -> list[str]:
        """A job begins in the home directory."""
        where = '"${PBS_O_WORKDIR:-.}"' if request.workdir is None else shlex.quote(request.workdir)
        return [f"cd {where} || exit", *body_lines(request)]

    def on_each_node(self, command: str, nodes: int) -> str:
        """``pbsdsh`` gives a command none of the script's variables: these are told to a shell."""
        if nodes == 1:
            return f"exec {command}"
        return f"exec {self.launcher} -- /bin/bash -c \"$(export -p)\"$'\\n'{shlex.quote(f'exec {command}')}"

    def ask_nodes(self, env: Mapping[str, str]) -> Command | None:
        return Command(["cat", env["PBS_NODEFILE"]]) if "PBS_JOBID" in env and "PBS_NODEFILE" in env else None

    def submit(self, request: JobRequest) -> Command:
        return Command(["qsub"], self.script(request))

    def task_id(self, job: str, index: int) -> str:
        return job.replace("[]", f"[{index}]", 1)

    def ask(self, ids: Sequence[str]) -> Command:
        # Not with -x, for finished jobs: a server that keeps none refuses to tell of any.
        return Command(["qstat", *(["-t"] if any("[" in job for job in ids) else []), *ids])

    def ask_ended(self, job: str) -> list[Command]:
        return [Command(["qstat", "-x", "-f", job])]

    def cancel(self, ids: Sequence[str]) -> Command:
        return Command(["qdel", *ids])

    def cancel_named(self, name: str) -> Command:
        line = 'qselect -u "$1" -N "$2" | xargs -r qdel'
        return Command(["/bin/sh", "-c", line, "sh", getpass.getuser(), _name(name)])

    # ---- text that comes from it

    def read_id(self, answer: Answer) -> str | None:
        return last_line(_ID, answer)

    def read_records(self, answer: Answer, ids: Sequence[str]) -> dict[str, JobRecord] | None:
        """Jobs that have ended are left out: how they have is not told here."""
        if answer.returncode not in (0, _FINISHED, _UNKNOWN_JOB):
            return None
        wanted = {number.group(): job for job in ids if (number := _NUMBER.match(job))}
        rows = [row for line in answer.stdout.splitlines() if len(row := line.split()) >= 6]
        records = {}
        for row in rows:
            job = _find(row[0], wanted)
            if job is not None and row[-2] not in _ENDED:
                records[job] = JobRecord(_STATUS.get(row[-2], JobStatus.UNKNOWN), row[-2])
        return records

    def read_ended(self, answers: Sequence[Answer], job: str) -> JobRecord | None:
        fields = _read_fields(answers[0].stdout, job)
        if "job_state" not in fields:
            return None
        word = fields["job_state"]
        hosts = ",".join(dict.fromkeys(re.findall(r"(?:^|\+)\(?([^/+()]+)/", fields.get("exec_host", ""))))
        status, returncode = _how(word, _whole(fields.get("exit_status", "")), fields.get("substate", ""))
        return JobRecord(status, word, fields.get("comment", ""), returncode, hosts)


class TorqueSystem(PBSSystem):
    """Torque, which asks for nodes and arrays in other words."""

    name = "torque"
    program = "pbs_track"
    array_variable = "PBS_ARRAYID"
    placeholders: Mapping[str, str] = MappingProxyType({})
    launcher = "pbsdsh -u"

    def resources(self, request: JobRequest) -> list[str]:
        node = [f"nodes={request.nodes}", f"ppn={(request.cpus or 1) * request.ranks}"]
        node += [f"gpus={request.gpus}"] if request.gpus else []
        total = None if request.memory is None else request.memory * request.nodes
        memory = [] if total is None else [f"-l mem={math.ceil(total / _MIB)}mb"]
        return ["-l " + ":".join(node), *memory, *(["-n"] if request.exclusive else [])]

    def array(self, request: JobRequest) -> list[str]:
        return [] if request.array is None else [f"-t {_range(request)}"]

    def ask_ended(self, job: str) -> list[Command]:
        return [Command(["qstat", "-f", job])]  # -x would be for XML


# ---- text that goes to it


def _name(name: str) -> str:
    """It has to begin with a letter."""
    safe = safe_name(name)
    return (safe if safe[0].isalpha() else f"j{safe}")[:_NAME_LIMIT]


def _quoted(name: str, value: str) -> str:
    """qsub splits its lines at blanks, and knows both quotes and no way to write one within the other."""
    one_line(name, value)
    if re.fullmatch(r"[\w./:,@*=%+-]+", value):
        return value
    if "\\" in value or ("'" in value and '"' in value):
        raise ValueError(f"{name} {value!r}: PBS cannot have both quotes, or a \\, here; expected none of them")
    return f'"{value}"' if "'" in value else f"'{value}'"


def _depend(request: JobRequest) -> str | None:
    kind = request.dependency_type
    return f"depend={':'.join([kind, *request.dependencies])}" if request.dependencies else None


def _range(request: JobRequest) -> str:
    assert request.array is not None
    limit = f"%{request.array.max_concurrent}" if request.array.max_concurrent else ""
    return f"{request.array.start}-{request.array.end}{limit}"


# ---- text that comes from it


def _find(listed: str, wanted: dict[str, str]) -> str | None:
    """Which of our jobs it is. Tasks of an array that is ours are told by an id of their own."""
    match = re.match(r"(\d+)(\[\d*\])?", listed)
    if match is None or match.group() in wanted:
        return match and wanted[match.group()]
    number, index = match.groups()
    array = wanted.get(f"{number}[]")
    return array and array.replace("[]", index or "", 1)


def _read_fields(text: str, job: str) -> dict[str, str]:
    """The job's of ``qstat -f``: ``name = value``, long values go on in indented lines.

    Names are made lower-case: Torque writes ``exit_status``, PBS ``Exit_status``. The first field of a name counts.
    """
    fields: dict[str, str] = {}
    name = ""
    _, _, text = text.partition(f"Job Id: {job}")
    for line in text.partition("\nJob Id: ")[0].splitlines():
        if match := re.match(r" {4}([\w.]+) = (.*)", line):
            name = match.group(1).lower()
            fields.setdefault(name, match.group(2))
        elif name and (more := re.match(r"\t| {8}", line)):  # blanks where the output went through a pager
            fields[name] += line[more.end() :]
    return fields


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else None


def _how(word: str, code: int | None, substate: str) -> tuple[JobStatus, int | None]:
    """256 and more is the end by a signal; less than 0 is PBS's own doing."""
    if word not in _ENDED:
        return _STATUS.get(word, JobStatus.UNKNOWN), None
    returncode = None if code is None or code < 0 else 256 - code if code > 256 else code
    if substate == _TERMINATED:
        return JobStatus.CANCELLED, returncode
    if code is None:
        return JobStatus.UNKNOWN, None  # without history it is not told how a job has ended
    if code < 0:
        return _KILLED.get(code, JobStatus.FAILED), None
    return JobStatus.FAILED if code else JobStatus.COMPLETED, returncode
