"""A batch job: one command for the site's batch system, with what it needs.

    job = BatchJob("python train.py", cpus=4, memory="16GiB", time="4h", modules=["cuda/12.0"])
    print(job.script())
    handle = job.submit()
    handle.wait()

For many small tasks an :class:`HPCExecutor` is quicker: it asks the batch system for nodes once, and runs them there.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Self

from executor.batch import submissions
from executor.batch.handle import BatchHandle
from executor.batch.request import ArrayRange, JobRequest, command_text, safe_name
from executor.batch.schedulers import Scheduler, get_scheduler
from executor.batch.settings import check_name, find_tables
from executor.batch.submissions import Submission, new_exit_file
from executor.checks import check_duration
from executor.dependencies import CONDITIONS
from executor.jobs.placeholders import unknown
from executor.jobs.toml_tables import Table
from executor.quantities import parse_size
from executor.refusals import did_you_mean, shown

#: Makes ``module`` known where it is not: a batch job's shell is no login shell.
_FIND_MODULE = """\
if ! command -v module > /dev/null; then
  for init in "${MODULESHOME:-}/init/bash" "${LMOD_PKG:-}/init/bash" /etc/profile.d/{modules,lmod,z00_lmod}.sh \\
      /usr/share/{lmod/lmod,modules}/init/bash; do
    [ -r "$init" ] && . "$init" && break
  done
fi"""
_COUNTS = {"cpus": 1, "gpus": 0, "nodes": 1, "ranks": 1}
_TEXTS = ("name", "queue", "account", "workdir", "stdout", "stderr", "cluster")
_LISTS = ("modules", "directives", "omit")
#: Words of other tools, in settings.
_SYNONYMS = {"cpu": "cpus", "mem": "memory", "partition": "queue", "walltime": "time", "scheduler": "cluster"}


@dataclass(kw_only=True)
class BatchJob:
    """A batch job that has not been submitted.

    :param command: str: shell text, one line or several; a list of str: a program and its arguments, each of which
        stays as it is.
    :param name: str; None: the program's.
    :param cpus: for each rank, int; None: what the site gives.
    :param memory: for each node, as "16GiB", or int (bytes); None: what the site gives.
    :param gpus: for each node, int; None: none.
    :param nodes: how many, int.
    :param ranks: processes that a launcher such as srun starts on each node, int.
    :param time: a duration, as "4h", or seconds; None: what the site gives.
    :param queue, account: str, as the site calls them; None: its defaults.
    :param modules: names (str) for ``module load``; if one cannot be loaded, the job fails and says which.
    :param prologue: shell text (str) that runs before the command; a line that fails ends the job.
    :param workdir: a directory, str or PathLike; None: the current one when it is submitted.
    :param stdout: a file, relative to ``workdir``, in which ``%{JOB_ID}`` (and of an array ``%{TASK_ID}``) are
        replaced; None: ``NAME-%{JOB_ID}.out``.
    :param stderr: the same; None: it goes where stdout goes.
    :param env: variables, a mapping of str to str.
    :param dependencies: handles, or ids (str), of jobs that have to end first.
    :param dependency_type: how they have to end: "afterok" (well), "afterany" or "afternotok".
    :param directives: options of the batch system as they stand (str), such as "--constraint=avx512".
    :param omit: options of ours that the site does not want (str), such as "--mem".
    :param cluster: where it is submitted if nothing else is said: a name for :func:`get_scheduler`.
    :raises TypeError, ValueError: what makes no sense.
    """

    command: str | Sequence[str] = field(kw_only=False)
    name: str | None = None
    cpus: int | None = None
    memory: int | str | None = None
    gpus: int | None = None
    nodes: int = 1
    ranks: int = 1
    time: float | str | None = None
    queue: str | None = None
    account: str | None = None
    modules: Sequence[str] = ()
    prologue: str = ""
    workdir: str | os.PathLike[str] | None = None
    stdout: str | os.PathLike[str] | None = None
    stderr: str | os.PathLike[str] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    dependencies: Sequence[Any] = ()
    dependency_type: str = "afterok"
    directives: Sequence[str] = ()
    omit: Sequence[str] = ()
    cluster: str | None = None

    def __post_init__(self) -> None:
        self.check()

    # --- from settings ------------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, kind: str | None = None, /, **options: Any) -> Self:
        """A job with the settings of ``[defaults]`` and ``[types.<kind>]``, over which the options count.

        :param kind: its name in the settings, see docs/batch-jobs.md; None: the defaults only.
        :param options: the fields of :class:`BatchJob`; ``command`` has to be there, or in the settings.
        :raises JobFileError: what makes no sense in a file, with file, line and key.
        :raises ValueError: there is no such kind.
        """
        tables = find_tables("defaults", "")
        if kind is not None:
            check_name("types", kind)
            tables += find_tables("types", kind)
        settings: dict[str, Any] = {}
        for table in tables:
            settings.update(_read_table(cls, table))
        if "command" not in {**settings, **options}:
            raise TypeError("from_config() needs a command: BatchJob.from_config('gpu', command=['./train'])")
        return cls(**{**settings, **options})

    # --- what is submitted --------------------------------------------------------------------------------------------

    def script(self, scheduler: str | Scheduler | None = None) -> str:
        """The text that would be submitted; nothing is. The parameter is that of :meth:`submit`."""
        where = get_scheduler(scheduler or self.cluster)
        return where.system.script(self.request(where, self.submission(where)))

    def submit(self, scheduler: str | Scheduler | None = None) -> BatchHandle:
        """Submit it; gives its handle. It goes on when this process ends.

        :param scheduler: a name for :func:`get_scheduler`, or what that gave; None: what ``cluster`` says, or else the
            batch system that is here.
        :raises BatchCommandFailed: the batch system refuses it, or does not answer.
        :raises LookupError: there is no batch system here.
        :raises TypeError, ValueError: what makes no sense.
        """
        where = get_scheduler(scheduler or self.cluster)
        return BatchHandle(self.submit_as(where), where)

    def submit_as(self, where: Scheduler, array: ArrayRange | None = None) -> Submission:
        """Submit it, as an array if that is given; gives what is kept of it."""
        submission = self.submission(where, array)
        for path in filter(None, (submission.stdout, submission.stderr)):
            os.makedirs(os.path.dirname(path), exist_ok=True)  # a batch system would fail the job without a word
        submission = submission.with_id(where.submit_request(self.request(where, submission, array)))
        submissions.keep(submission)
        return submission

    def submission(self, where: Scheduler, array: ArrayRange | None = None) -> Submission:
        """What is to be kept of it; it has no id yet."""
        indices = None if array is None else (array.start, array.end)
        exit_file = new_exit_file() + ("" if array is None else ".%{TASK_ID}")
        name = safe_name(self.name or _name_of(self.command))
        stdout = self._path("stdout", where, f"{name}-{_number(where, array)}.out", array)
        stderr = None if self.stderr is None else self._path("stderr", where, "", array)
        return Submission(where.name, "", name, stdout, stderr, exit_file, indices)

    def _path(self, stream: str, where: Scheduler, default: str, array: ArrayRange | None) -> str:
        said = getattr(self, stream)
        path = os.path.join(self._directory(), default if said is None else os.fspath(said))
        known = ["JOB_ID", *([] if array is None else ["TASK_ID"])]
        for name in unknown(path, tuple(where.system.placeholders)):
            raise ValueError(f"{stream}={path!r}: {where.system.name} does not fill in %{{{name}}}")
        for name in unknown(path, tuple(known)):
            raise ValueError(f"{stream}={path!r}: %{{{name}}} is the number of an array's task, and this is no array")
        if "%{" in os.path.dirname(path):
            raise ValueError(
                f"{stream}={path!r}: only the file's name may hold %{{...}}: its directory has to be there"
            )
        if array is not None and "%{TASK_ID}" not in path and path != os.devnull:
            raise ValueError(f"{stream}={path!r}: the tasks of an array would share it; put %{{TASK_ID}} into it")
        return path

    def _directory(self) -> str:
        return os.path.abspath(self.workdir or ".")

    def request(self, where: Scheduler, submission: Submission, array: ArrayRange | None = None) -> JobRequest:
        """What is asked of the batch system."""
        self.check()  # fields may have been changed
        system, site = where.system, where.site
        return JobRequest(
            command_text(list(self.command) if not isinstance(self.command, str) else self.command), submission.name,
            self.nodes, self.ranks, self.cpus, None if self.memory is None else math.ceil(parse_size(self.memory)),
            self.gpus, None if self.time is None else check_duration("time", self.time, 1.0),
            queue=self.queue or site.queue, account=self.account or site.account,
            workdir=self._directory(), stdout=system.output_path(submission.stdout),
            stderr=submission.stderr and system.output_path(submission.stderr), env=self.env,
            prologue=self._prologue(where, submission, array),
            dependencies=tuple(_id_of(each, system.name) for each in self.dependencies),
            dependency_type=self.dependency_type, array=array,
            directives=(*site.directives, *self.directives),
            omit=frozenset([*site.omit, *self.omit]),
        )  # fmt: skip

    def _prologue(self, where: Scheduler, submission: Submission, array: ArrayRange | None) -> str:
        lines = [f'export HPC_ARRAY_INDEX="${where.system.array_variable}"'] if array else []
        exit_file = shlex.quote(submission.exit_file).replace("%{TASK_ID}", "'\"$HPC_ARRAY_INDEX\"'")
        # the shell's status stays as it is: a trap does not change it
        lines += [f"hpc_note_end() {{ {{ echo $? > {exit_file}; }} 2> /dev/null || :; }}", "trap hpc_note_end EXIT"]
        said = [where.site.prologue, _load(self.modules), self.prologue]
        if any(said):
            lines += [r"""trap 'echo "hpc-executor: the prologue failed: $BASH_COMMAND" >&2' ERR"""]
            lines += [each.rstrip() for each in said if each]
            lines += ["trap - ERR"]
        return "\n".join(lines)

    # --- checks -------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises TypeError or ValueError for what makes no sense."""
        _check_command(self.command)
        for name, least in _COUNTS.items():
            _check_count(name, getattr(self, name), least, optional=name in ("cpus", "gpus"))
        for name in _TEXTS:
            _check_text(name, getattr(self, name))
        for name in _LISTS:
            _check_texts(name, getattr(self, name))
        _check_env(self.env)
        if not isinstance(self.prologue, str):
            raise TypeError(f"prologue={shown(self.prologue)}: expected shell text")
        if self.time is not None:
            check_duration("time", self.time, 1.0)
        if self.memory is not None:
            _check_memory(self.memory)
        _check_dependencies(self.dependencies, self.dependency_type)


def _name_of(command: str | Sequence[str]) -> str:
    words = command.split() if isinstance(command, str) else list(command)
    return Path(words[0]).name


def _number(where: Scheduler, array: ArrayRange | None) -> str:
    """What makes the output of a job differ from that of others, where nothing is said."""
    job = "%{JOB_ID}" if "JOB_ID" in where.system.placeholders else Path(new_exit_file()).stem
    return job if array is None else f"{job}-%{{TASK_ID}}"


def _load(modules: Sequence[str]) -> str:
    """Each by itself, and not under ``set -e``, which the functions of some sites do not bear."""
    if not modules:
        return ""
    loads = []
    for name in modules:
        sentence = shlex.quote(f"hpc-executor: module load {name} failed")
        loads.append(f"module load {shlex.quote(name)} || {{ echo {sentence} >&2; exit 1; }}")
    return "\n".join([_FIND_MODULE, *loads])


def _id_of(dependency: Any, system: str) -> str:
    if isinstance(dependency, str | int):
        return str(dependency)
    if dependency.scheduler.system.name != system:
        raise ValueError(
            f"dependencies: {dependency!r} is not a job of {system}; jobs wait for jobs of their own system"
        )
    return str(dependency.job_id)


# ---- reading what is written


def _read_table(cls: type[BatchJob], table: Table) -> dict[str, Any]:
    known = [each.name for each in fields(cls) if each.name != "dependencies"]
    table.check_keys(known, _SYNONYMS)
    return {key: table.read(key, partial(_read_value, cls, key), secret=key == "env") for key in table.values}


def _read_value(cls: type[BatchJob], key: str, value: Any) -> Any:
    try:
        cls(**{"command": "true", key: value})
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).removeprefix(f"{key}={shown(value)}: ")) from None
    return value


def _check_command(command: Any) -> None:
    words = [command] if isinstance(command, str) else command
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise TypeError(
            f"command={shown(command)}: expected shell text, or a list of a program and its arguments (str)"
        )
    if not words or not words[0].strip() or any("\0" in word for word in words):
        raise ValueError(f"command={shown(command)}: expected a command, without NUL characters")


def _check_count(name: str, value: Any, least: int, *, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={shown(value)}: expected a whole number{' or None' if optional else ''}")
    if value < least:
        raise ValueError(f"{name}={value}: expected {least} or more")


def _check_text(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}={shown(value)}: expected text or None")
    if value is not None and (not os.fspath(value) or "\0" in os.fspath(value)):
        raise ValueError(f"{name}={shown(value)}: expected text that is not empty, without NUL characters, or None")


def _check_texts(name: str, value: Any) -> None:
    if isinstance(value, str) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"{name}={shown(value)}: expected a list of text, such as ['one', 'two']")


def _check_env(env: Any) -> None:
    if not isinstance(env, Mapping) or not all(isinstance(each, str) for pair in env.items() for each in pair):
        raise TypeError("env: expected a mapping of names to text")  # the values may be secret
    for name in env:
        if not name.isidentifier() or not name.isascii():
            raise ValueError(f"env: {name!r} is no name that a shell can export: letters, digits and underscores")


def _check_memory(value: Any) -> None:
    try:
        parse_size(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"memory={shown(value)}: {error}") from None


def _check_dependencies(dependencies: Any, kind: Any) -> None:
    if isinstance(dependencies, str) or not isinstance(dependencies, Sequence):
        raise TypeError(f"dependencies={shown(dependencies)}: expected a list of handles or ids")
    for each in dependencies:
        if not isinstance(each, str | int) and not hasattr(each, "job_id"):
            raise TypeError(f"dependencies: {shown(each)} is neither the handle of a batch job nor an id")
    if kind not in CONDITIONS:
        hint = did_you_mean(str(kind), CONDITIONS) or "."
        raise ValueError(
            f"dependency_type={shown(kind)}: there is no such type{hint} There are: {', '.join(CONDITIONS)}"
        )
