"""``hpc-executor output``: what tasks wrote into a directory of streams."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from executor.cli.saying import naming, refusing, write_json
from executor.jobs.ids import parse_ids
from executor.jobs.stream import StreamDirectory, render
from executor.jobs.stream_index import StreamedTask


def output(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What the job's `stream` names.")],
    task: Annotated[str | None, typer.Option(metavar="IDS", help="Of these tasks only: 1,2,50-100.")] = None,
    stderr: Annotated[bool, typer.Option("--stderr", help="What they wrote to stderr.")] = False,
    json: Annotated[bool, typer.Option("--json", help="An object for each task, on a line of its own.")] = False,
) -> None:
    """Print the output of tasks whose job has a `stream`; also while it runs.

    \b
    Examples:
      hpc-executor output streams
      hpc-executor output streams --task 3,7-9 --stderr
      hpc-executor output --json streams | jq -r 'select(.returncode != 0).stdout'
    """
    stream = "stderr" if stderr else "stdout"
    with refusing():
        with naming("--task"):
            tasks = None if task is None else parse_ids(task)
        streams = StreamDirectory(directory)
        if json:
            for each in streams.select(tasks):
                write_json(_task_object(streams, each, stream))
            return
        for text in render(streams, tasks, stream):
            typer.echo(text, nl=False)


def _task_object(streams: StreamDirectory, task: StreamedTask, stream: str) -> dict[str, Any]:
    latest = task.latest
    return {
        "job": task.job, "task": task.number, "name": task.name, "attempt": latest.number, "host": latest.host,
        "started": latest.started, "ended": latest.ended, "returncode": latest.returncode,
        stream: streams.text(task, stream),
    }  # fmt: skip
