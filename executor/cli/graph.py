"""``hpc-executor graph``: a picture of the tasks of a job file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from executor.cli.check import File, read_job
from executor.cli.saying import refusing


def graph(
    file: File,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="Ends in .dot, .svg, .png or .pdf; default: stdout."),
    ] = None,
) -> None:
    """Draw the tasks of a job file and their dependencies.

    If no picture is named, the graph is written to stdout, as text for Graphviz.

    Pictures are made by Graphviz, which has to be installed.

    \b
    Examples:
      hpc-executor graph study.toml -o study.svg
      hpc-executor graph study.toml | dot -Tx11
    """
    job, _ = read_job(file)
    if output is None:
        typer.echo(job.to_dot(), nl=False)
        return
    with refusing():
        job.plot(output)
