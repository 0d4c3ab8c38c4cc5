"""``hpc-executor output``: what tasks wrote into a directory of streams."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from executor.cli.saying import refusing
from executor.jobs.ids import parse_ids


def output(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What the job's `stream` names.")],
    task: Annotated[str | None, typer.Option(metavar="IDS", help="Of these tasks only: 1,2,50-100.")] = None,
    stderr: Annotated[bool, typer.Option("--stderr", help="What they wrote to stderr.")] = False,
) -> None:
    """Print the output of tasks whose job has a `stream`; also while it runs.

    \b
    Examples:
      hpc-executor output streams
      hpc-executor output streams --task 3,7-9 --stderr
    """
    stream: Any = import_module("executor.jobs.stream")
    with refusing():
        tasks = None if task is None else parse_ids(task)
        for chunk in stream.render(directory, tasks, "stderr" if stderr else "stdout"):
            typer.echo(chunk, nl=False)
