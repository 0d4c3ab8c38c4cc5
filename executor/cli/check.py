"""``hpc-executor check``: what a job file says, without running it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from executor.cli.saying import refusing, write_json, write_table
from executor.jobs.ids import render_ids
from executor.jobs.job import Array, Call, Job, Task, callable_name, render_body

File = Annotated[Path, typer.Argument(metavar="FILE.toml", help="A job file.")]
Json = Annotated[bool, typer.Option("--json", help="One object on stdout.")]


def read_job(file: Path) -> tuple[Job, list[Task]]:
    """The job of a file, and its tasks, each after all that it depends on; what is wrong ends the command."""
    with refusing():
        job = Job.from_file(file)
        return job, job.check()


def check(file: File, json: Json = False) -> None:
    """Check a job file, and print its tasks.

    Each is printed after all that it depends on. Nothing runs. The exit status is 0 if the file can be run, 2 if not.

    \b
    Examples:
      hpc-executor check study.toml
      hpc-executor check --json study.toml | jq '.tasks[].command'
    """
    job, ordered = read_job(file)
    if json:
        write_json(_job_object(job, ordered))
        return
    write_table(("task", "name", "after", "runs"), (_row(job, task) for task in ordered))
    typer.echo(f"\n{job.name or 'job'}: {_render_size(job, ordered)}")


def _row(job: Job, task: Task) -> Sequence[str]:
    after = ", ".join(each.name or str(each.id) for each in job.needs(task))
    return _numbers(task), task.name or "", after, render_body(task.body, 60)


def _numbers(task: Task) -> str:
    return render_ids(task.ids) if isinstance(task, Array) else str(task.id)


def _render_size(job: Job, ordered: Sequence[Task]) -> str:
    """Such as ``12 tasks, 3 one after the other at most``."""
    depth: dict[Task, int] = {}
    for task in ordered:
        depth[task] = 1 + max((depth[each] for each in job.needs(task)), default=0)
    tasks = "1 task" if len(job) == 1 else f"{len(job):,} tasks"
    longest = max(depth.values())
    return tasks if longest == 1 else f"{tasks}; the longest chain of them has {longest}"


def _job_object(job: Job, ordered: Sequence[Task]) -> dict[str, Any]:
    tasks = [dict(_task_items(job, task)) for task in ordered]
    return {"name": job.name, "max_fails": job.max_fails, "tasks": tasks}


def _task_items(job: Job, task: Task) -> Iterator[tuple[str, Any]]:
    yield "id", task.id
    yield "name", task.name
    if isinstance(task, Array):
        yield "ids", render_ids(task.ids)
        yield "entries", task.entries
    yield "command", callable_name(task.body.fn) if isinstance(task.body, Call) else task.body.argv
    yield "deps", [each.id for each in job.needs(task)]
    yield "options", task.options
