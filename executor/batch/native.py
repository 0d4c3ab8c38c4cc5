"""A :class:`Job` as batch jobs: one for each task and array, with the batch system's own dependencies.

Nothing of ours runs while they do: the batch system starts what may start, also when this process has ended. So tasks
are programs, and options that only an executor can obey are refused.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from executor.batch.array import BatchArray, BatchArrayHandle
from executor.batch.handle import BatchHandle
from executor.batch.job import BatchJob
from executor.batch.request import command_text
from executor.batch.schedulers import Scheduler, get_scheduler
from executor.errors import BatchCommandFailed, JobError
from executor.jobs.job import Array, Job, Task
from executor.jobs.numbers import take_number
from executor.jobs.placeholders import fill
from executor.options import DEVNULL
from executor.program import Program

#: Options of tasks that are the same in a batch job, or have another name there.
_NAMES = {"cpus": "cpus", "gpus": "gpus", "memory": "memory", "nodes": "nodes", "time_limit": "time"}
_KNOWN = (*_NAMES, "cwd", "env", "stdout", "stderr")

Handle = BatchHandle | BatchArrayHandle


def submit_natively(
    job: Job, scheduler: str | Scheduler | None = None, *, kind: str | None = None
) -> dict[int, Handle]:
    """Submit each task of a job as a batch job, and each array as an array, with native dependencies.

    Gives the handles by the numbers of the tasks, of an array by its first one. If one is refused, or Ctrl-C comes
    between, those that were submitted before are cancelled.

    :param scheduler: as :meth:`BatchJob.submit` has it.
    :param kind: the settings ``[types.<kind>]`` that all of them have; None: the defaults only.
    :raises JobError: functions, and what batch systems do not have: ``retries``, ``max_fails``, and others.
    :raises BatchCommandFailed: the batch system refuses one, or does not answer.
    """
    ordered = job.check()
    if job.max_fails is not None or job.stream is not None:
        raise JobError("max_fails and stream are obeyed by an executor, not by a batch system: leave them out")
    where = get_scheduler(scheduler)
    number = take_number(count(1), job, os.getcwd())
    prepared = [(task, _make(job, task, number, kind)) for task in ordered]  # all are refused before any is submitted
    handles: dict[int, Handle] = {}
    try:
        for task, batch_job in prepared:
            batch_job.dependencies = [handles[each.id] for each in job.needs(task)]
            handles[task.id] = _submit(task, batch_job, where)
    except BaseException as error:  # Ctrl-C, too: half of a graph is of no use
        _cancel(handles.values(), error)
        raise
    return handles


def _cancel(handles: Iterable[Handle], because: BaseException) -> None:
    for handle in handles:
        try:
            handle.cancel()
        except BatchCommandFailed as error:
            because.add_note(f"batch job {handle.job_id} was not cancelled: {error}")


def _submit(task: Task, batch_job: BatchJob, where: Scheduler) -> Handle:
    if not isinstance(task, Array):
        return batch_job.submit(where)
    return BatchArray(batch_job, min(task.ids), max(task.ids), task.max_concurrent or 0).submit(where)


def _make(job: Job, task: Task, number: int, kind: str | None) -> BatchJob:
    program = _program(task)
    _refuse_options(task)
    cwd = os.path.abspath(os.path.join(job.cwd or "", os.fspath(task.options.get("cwd") or "")))
    env: dict[str, str | None] = {**job.env, **(task.options.get("env") or {})}
    options: dict[str, Any] = {_NAMES[name]: value for name, value in task.options.items() if name in _NAMES}
    for stream in ("stdout", "stderr"):
        if task.options.get(stream) is not None:
            options[stream] = _path(task, cwd, number, task.options[stream])
    try:
        return BatchJob.from_config(
            kind, command=_command(program), name=task.name or Path(program.argv[0]).name, workdir=cwd,
            env={name: value for name, value in env.items() if value is not None},
            prologue="\n".join(_prologue(task, env)), **options,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise JobError(f"{task.title} cannot be a batch job: {error}", tasks=(task.id,)) from None


def _program(task: Task) -> Program:
    if not isinstance(task.body, Program):
        raise _refusal(task, "it is a function, and a batch system runs programs only; give the job to an HPCExecutor")
    if not task.body.check:
        raise _refusal(task, "check=False: to a batch system a job that ends with another status than 0 has failed")
    return task.body


def _refuse_options(task: Task) -> None:
    others = [name for name, value in task.options.items() if name not in _KNOWN and value not in (None, 0, ())]
    if others:
        raise _refusal(task, f"{', '.join(others)}: no batch system has that; these are obeyed: {', '.join(_KNOWN)}")
    if isinstance(task, Array) and sorted(task.ids) != list(range(min(task.ids), max(task.ids) + 1)):
        raise _refusal(task, "the numbers of an array have to be in a row; make several arrays of it")


def _refusal(task: Task, why: str) -> JobError:
    return JobError(f"{task.title} cannot be a batch job: {why}", tasks=(task.id,))


def _command(program: Program) -> str:
    """Shell text that runs it with its stdin."""
    text = command_text(list(program.argv))
    if isinstance(program.stdin, Path):
        return f"{text} < {shlex.quote(str(program.stdin))}"
    said = program.stdin.decode() if isinstance(program.stdin, bytes) else program.stdin
    return text if said is None else f"printf %s {shlex.quote(said)} | {text}"


def _path(task: Task, cwd: str, number: int, said: Any) -> str:
    if said is DEVNULL:
        return os.devnull
    if not isinstance(said, str | os.PathLike):
        raise _refusal(task, f"output to {said!r}: a batch system writes files only")
    values = {"CWD": cwd, "SUBMIT_DIR": os.getcwd(), "JOB_ID": str(number)}
    return fill(os.fspath(said), values if isinstance(task, Array) else {**values, "TASK_ID": str(task.id)})


def _prologue(task: Task, env: Mapping[str, str | None]) -> list[str]:
    """What a task finds in its environment when an executor runs it."""
    number = '"$HPC_ARRAY_INDEX"' if isinstance(task, Array) else str(task.id)
    lines = [f"unset {name}" for name, value in env.items() if value is None]
    lines.append(f"export HPC_JOB_TASK_ID={number} HQ_TASK_ID={number}")
    entries: Sequence[str] = task.entries or () if isinstance(task, Array) else ()
    if entries:
        cases = [f"  {index}) HPC_ENTRY={shlex.quote(entry)};;" for index, entry in zip(task.ids, entries, strict=True)]
        lines += ['case "$HPC_ARRAY_INDEX" in', *cases, "esac", 'export HPC_ENTRY HQ_ENTRY="$HPC_ENTRY"']
    return lines
