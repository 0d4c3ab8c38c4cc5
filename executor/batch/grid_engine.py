"""Grid Engine, by its commands: qsub, qstat, qacct, qdel. Manual pages: https://gridengine.eu/mangridengine/manuals.html.

Seen with 8.1.9 (Son of Grid Engine). A finished job leaves ``qstat`` at once and comes to ``qacct`` some seconds later;
one that was cancelled while it waited is in neither. ``qstat`` shows a job on a lost host as running for ever.
"""

from __future__ import annotations

import getpass
import itertools
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from xml.etree import ElementTree

from executor.batch.request import ArrayRange, JobRequest, body_lines, one_line, safe_name
from executor.batch.states import JobRecord, JobStatus
from executor.batch.system import Answer, BatchSystem, Command, last_line

_ID = re.compile(r"\d+(?:\.\d+-\d+:\d+)?")
_TASKS = re.compile(r"(\d{1,9})(?:-(\d{1,9}):(\d{1,9}))?")
#: Array tasks that a line of ``qstat`` may stand for; the limit of Grid Engine is 75000, unless a site has changed it.
_MOST_TASKS = 100_000
#: The letters of a state in qstat(1), all of them; they are told together, such as "hqw", "Eqw", "dRr".
_LETTERS = frozenset("EdtrRsSTNPhwqz")
_DELETED = re.compile(r"has deleted job(?:-array task)? (\d+(?:\.\d+)?)")
#: An array with such tasks is not gone, though it is said to be deleted, too.
_REGISTERED = re.compile(r"has registered the job-array task (\d+)\.")
_MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"
_MIB = 2**20
#: Grid Engine lets a job wait for the end of others, however they end. So the job looks at their accounts, which come
#: some seconds after that.
_DEPENDENCIES = """\
for job in {jobs}; do
    for second in {{1..60}}; do
        accounts=$(qacct -j "$job") && break
        sleep 1
    done 2> /dev/null
    [ -n "$accounts" ] || {{ echo "not run: qacct does not tell how job $job has ended" >&2; exit 1; }}
    failed=$(awk '/^(failed|exit_status)/ && $2 != 0 {{print "yes"; exit}}' <<< "$accounts")
    [ "$failed" = "{expected}" ] && continue
    echo "not run: {kind}, and job $job has ${{failed:+not }}ended well" >&2
    exit 1
done"""
#: What is to be seen in the accounts of all of them.
_FAILED = {"afterok": "", "afternotok": "yes"}
#: "failed" of accounting(5): a limit, and what the job itself did
_LIMIT, _AFTER_JOB = 37, 100
#: Runs a command on each host of the job that we are in, with as many slots as the job has there, and ends as the
#: first of them that does not end well. ``qrsh`` has a shell of the user's choice read its command.
_ON_EACH_HOST = """\
commands=()
while read -r host slots; do
    if [ "${{host%%.*}}" = "${{HOSTNAME%%.*}}" ]; then
        env NSLOTS="$slots" NHOSTS=1 /bin/bash -c {command} &
    else
        qrsh -inherit -nostdin -V "$host" "exec env NSLOTS=$slots NHOSTS=1 /bin/bash -c "{quoted} &
    fi
    commands+=($!)
done < <(awk '{{slots[$1] += $2}} END {{for (host in slots) print host, slots[host]}}' "$PE_HOSTFILE")
for each in "${{commands[@]}}"; do
    wait "$each" || status=${{status:-$?}}
done
exit "${{status:-0}}\""""


@dataclass(frozen=True, kw_only=True)
class GridEngineSystem(BatchSystem):
    """Grid Engine, as a site has set it up.

    :param pe: the parallel environment in which there is more than one slot; ``qconf -spl`` lists those that there are.
    :param memory_resource: what memory is called, such as ``h_vmem`` or ``mem_free``; None: it cannot be asked for.
    :param memory_per_slot: whether that is counted for each slot.
    :param gpu_resource: what GPUs are called.
    """

    pe: str | None = None
    memory_resource: str | None = None
    memory_per_slot: bool = True
    gpu_resource: str = "gpu"

    name = "sge"
    program = "qconf"
    sentinel = "#$"
    stray = re.compile(r"^#\$.*", re.MULTILINE)
    array_variable = "SGE_TASK_ID"
    placeholders = MappingProxyType({"JOB_ID": "$JOB_ID", "TASK_ID": "$TASK_ID"})
    ping = ("qstat",)
    job_variables = ("SGE_", "PE_HOSTFILE")
    site_variables = (
        "SGE_ROOT", "SGE_CELL", "SGE_CLUSTER_NAME", "SGE_QMASTER_PORT", "SGE_EXECD_PORT", "SGE_ARCH",
    )  # fmt: skip
    harmless = re.compile(r"does not exist|has deleted job|for deletion|is already in deletion")

    # ---- text that goes to it

    def options(self, request: JobRequest) -> list[str]:
        slots = request.nodes * request.ranks * (request.cpus or 1)
        values = {
            "-N": _name(request.name),
            "-S": "/bin/bash",  # a queue may have another shell
            "-r": "n",  # a job that comes back by itself would be a second one with the same id
            "-pe": f"{self._pe(slots)} {slots}" if slots > 1 else None,
            "-l h_rt": None if request.time is None else max(1, math.ceil(request.time)),
            f"-l {self.memory_resource}": self._memory(request, slots),
            f"-l {self.gpu_resource}": request.gpus or None,
            "-l exclusive": "true" if request.exclusive else None,
            "-q": _quoted("queue", request.queue),
            "-P": _quoted("account", request.account),
            "-wd": _quoted("workdir", request.workdir),
            "-o": _path("stdout", request.stdout),
            "-e": _path("stderr", request.stderr),
            "-hold_jid": _dependencies(request),
            "-t": request.array and _tasks(request.array),
            "-tc": request.array and (request.array.max_concurrent or None),
        }
        options = [_join(name, str(value)) for name, value in values.items() if value is not None]
        options += [] if request.stderr is not None else ["-j y"]
        # SIGUSR2 some time before SIGKILL, as the queue has it; to the script only, so not with several hosts
        options += ["-notify"] if request.warning and request.nodes == 1 else []
        return options + ([] if request.workdir is not None else ["-cwd"])

    def _pe(self, slots: int) -> str:
        if self.pe is None:
            raise ValueError(
                f"pe=None: Grid Engine gives {slots} slots in a parallel environment only; expected its name (those "
                "that there are: qconf -spl)"
            )
        return one_line("pe", self.pe)

    def _memory(self, request: JobRequest, slots: int) -> str | None:
        if request.memory is None:
            return None
        if self.memory_resource is None:
            raise ValueError(
                f"memory={request.memory}: what memory is called is up to each Grid Engine; expected memory_resource=, "
                'such as "h_vmem" or "mem_free"'
            )
        share = request.memory * request.nodes / slots if self.memory_per_slot else request.memory
        return f"{math.ceil(share / _MIB)}M"

    def body(self, request: JobRequest) -> list[str]:
        kind = request.dependency_type
        if not request.dependencies or kind == "afterany":
            return body_lines(request)
        jobs = shlex.join(request.dependencies)
        return [_DEPENDENCIES.format(jobs=jobs, expected=_FAILED[kind], kind=kind), *body_lines(request)]

    def on_each_node(self, command: str, nodes: int) -> str:
        if nodes == 1:
            return f"exec {command}"
        word = shlex.quote(f"exec {command}")
        return _ON_EACH_HOST.format(command=word, quoted=shlex.quote(word))

    def ask_nodes(self, env: Mapping[str, str]) -> Command | None:
        if "JOB_ID" not in env or "SGE_TASK_ID" not in env:
            return None
        return Command(["awk", "{print $1}", env["PE_HOSTFILE"]] if "PE_HOSTFILE" in env else ["hostname"])

    def submit(self, request: JobRequest) -> Command:
        return Command(["qsub", "-terse"], self.script(request))

    def task_id(self, job: str, index: int) -> str:
        return f"{job}.{index}"

    def ask(self, ids: Sequence[str]) -> Command:  # noqa: ARG002  it lists all that are ours
        return Command(["qstat", "-xml", "-u", getpass.getuser()])

    def ask_ended(self, job: str) -> list[Command]:
        number, _, index = job.partition(".")
        task = ["-t", index] if index else []
        return [Command(["qstat", "-j", number]), Command(["qacct", "-j", number, *task])]

    def cancel(self, ids: Sequence[str]) -> Command:
        return Command(["qdel", *ids])

    def cancel_named(self, name: str) -> Command:
        return Command(["qdel", _name(name)])

    # ---- text that comes from it

    def read_id(self, answer: Answer) -> str | None:
        line = last_line(_ID, answer)
        return line and line.partition(".")[0]  # of an array, 4.1-5:1

    def read_records(self, answer: Answer, ids: Sequence[str]) -> dict[str, JobRecord] | None:
        try:
            listed = ElementTree.fromstring(answer.stdout)  # noqa: S314  of our own batch system
        except (ElementTree.ParseError, ValueError):
            return None
        if answer.returncode != 0 or listed.tag != "job_info":
            return None
        wanted = set(ids)
        return {
            job: record
            for entry in listed.iter("job_list")
            for job, number, record in _read_entry(entry)
            if job in wanted or number in wanted
        }

    def read_ended(self, answers: Sequence[Answer], job: str) -> JobRecord | None:
        known, accounted = answers
        _, _, index = job.partition(".")
        if known.returncode == 0 and (error := _read_error(known.stdout, index or "1")):
            return error
        if known.returncode == 0 and not index:
            return None  # it has not ended: what is accounted may be a part of it
        return _read_accounted(accounted.stdout) if accounted.returncode == 0 else None

    def read_cancelled(self, answer: Answer) -> set[str]:
        # a job that has not started comes to no accounts
        return set(_DELETED.findall(answer.stdout)) - set(_REGISTERED.findall(answer.stdout))


# ---- text that goes to it


def _name(name: str) -> str:
    """It may not begin with a digit."""
    safe = safe_name(name)
    return f"j{safe}" if safe[0].isdigit() else safe


def _join(name: str, value: str) -> str:
    return f"{name}={value}" if name.startswith("-l ") else f"{name} {value}"


def _quoted(name: str, value: str | None) -> str | None:
    """In an option, quotes vanish and # begins a comment, wherever they stand: there is no way to write them."""
    if value is None:
        return None
    one_line(name, value)
    if re.search("[\"'#]", value) or value.endswith("\\"):
        raise ValueError(
            f"{name}={value!r}: Grid Engine cannot have quotes, # or a last \\ here; expected none of them"
        )
    return value if re.fullmatch(r"[\w./:,@*=%+-]+", value) else f'"{value}"'


def _path(name: str, value: str | None) -> str | None:
    """``host:path,host:path``: the first colon is that of no host."""
    if value is not None and "," in value:
        raise ValueError(f"{name}={value!r}: Grid Engine takes a comma for the end of a path; expected none")
    return _quoted(name, value if value is None or ":" not in value else f":{value}")


def _tasks(array: ArrayRange) -> str:
    if array.start < 1:
        raise ValueError(f"an array from {array.start} to {array.end}: Grid Engine has no task 0; expected start >= 1")
    return f"{array.start}-{array.end}"


def _dependencies(request: JobRequest) -> str | None:
    if not request.dependencies:
        return None
    if request.dependency_type not in ("afterany", *_FAILED):
        raise ValueError(f"dependency_type={request.dependency_type!r}: expected one of afterany, afterok, afternotok")
    return _quoted("dependencies", ",".join(request.dependencies))


# ---- text that comes from it


def _read_entry(entry: ElementTree.Element) -> Iterator[tuple[str, str, JobRecord]]:
    """Of each task of a line, its id, its array's number, and how it is."""
    number, word, queue, tasks = (
        entry.findtext(tag) or "" for tag in ("JB_job_number", "state", "queue_name", "tasks")
    )
    record = JobRecord(_status(word), word, hosts=queue.partition("@")[2], stuck="E" in word)
    if not tasks:
        yield number, number, record
    for index in itertools.islice(_indices(tasks), _MOST_TASKS):
        yield f"{number}.{index}", number, record


def _indices(tasks: str) -> Iterator[int]:
    """``1,3-5:1`` are 1, 3, 4 and 5."""
    for part in tasks.split(","):
        if match := _TASKS.fullmatch(part):
            first, last, step = match.groups()
            yield from range(int(first), int(last or first) + 1, max(1, int(step or 1)))


def _status(word: str) -> JobStatus:
    letters = set(word)
    if not letters or letters - _LETTERS:
        return JobStatus.UNKNOWN
    if "E" in letters:
        return JobStatus.FAILED
    if "d" in letters:
        return JobStatus.ENDING
    if letters & set("rsSTNP"):
        return JobStatus.RUNNING
    return JobStatus.PENDING  # "t", being started, is one of these


def _read_error(text: str, index: str) -> JobRecord | None:
    """Of ``qstat -j``: why a task is in the state E, which has the index 1 without an array; None if it is not."""
    reason = re.search(rf"^error reason\s+{re.escape(index)}:\s*(.*)$", text, re.MULTILINE)
    return JobRecord(JobStatus.FAILED, "E", reason.group(1).strip()) if reason else None


def _read_accounted(text: str) -> JobRecord | None:
    """Of ``qacct``: a parallel job has one for each of its ``qrsh``, and its own, which begins first and ends last."""
    records = [dict(_fields(part)) for part in re.split(r"^=+$", text, flags=re.MULTILINE)]
    records = [record for record in records if "failed" in record and "exit_status" in record]
    if not records:
        return None
    last = max(_moment(record.get("end_time", "")) for record in records)
    own = min(
        (record for record in records if _moment(record.get("end_time", "")) == last),
        key=lambda record: _moment(record.get("qsub_time", "")),
    )
    return _record(own)


def _fields(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        yield name, value.strip()


def _moment(text: str) -> tuple[str, int, int, str]:
    """For comparison: ``Sun Nov 22 03:32:44 2026``. What is no time, as of a job that never began, is before all."""
    words = text.split()
    if len(words) != 5 or not words[2].isdecimal() or words[1] not in _MONTHS:
        return "", 0, 0, ""
    return words[4], _MONTHS.index(words[1]), int(words[2]), words[3]


def _record(fields: dict[str, str]) -> JobRecord:
    """``failed`` is ``0``, or a number and its meaning; ``exit_status`` is ``137 (Killed)`` after signal 9."""
    failed, status = _number(fields["failed"]), _number(fields["exit_status"])
    if failed is None or status is None:
        return JobRecord(JobStatus.UNKNOWN, fields["failed"])
    reason = fields["failed"].partition(":")[2].strip()
    host = fields.get("hostname", "")
    if failed == 0:
        return JobRecord(JobStatus.FAILED if status else JobStatus.COMPLETED, "finished", reason, status, host)
    signaled = failed in (_LIMIT, _AFTER_JOB) and status > 128
    how = JobStatus.TIMEOUT if failed == _LIMIT else JobStatus.FAILED
    return JobRecord(how, f"failed {failed}", reason, 128 - status if signaled else None, host)


def _number(text: str) -> int | None:
    first = text.partition(" ")[0]
    return int(first) if re.fullmatch(r"[0-9]{1,9}", first) else None
