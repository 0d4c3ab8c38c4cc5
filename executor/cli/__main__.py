"""The command line: ``hpc-executor``, or ``python -m executor``."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from executor import __version__
from executor.cli.agent import agent
from executor.cli.batch_jobs import cancel, logs, status, wait
from executor.cli.check import check
from executor.cli.doctor import doctor
from executor.cli.graph import graph
from executor.cli.output import output
from executor.cli.run import RunCommand, run
from executor.cli.submit import submit

#: A command shows its examples as they are written, below its options.
_EPILOG = "Each command has examples: hpc-executor COMMAND --help"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hpc-executor {__version__}")
        raise typer.Exit


def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run and watch jobs: concurrent.futures for the cluster."""


def make_app() -> typer.Typer:
    """The application with all its commands; where nobody looks at it, its help is plain text."""
    mode: Literal["rich"] | None = "rich" if sys.stdout.isatty() and sys.stderr.isatty() else None
    app = typer.Typer(
        name="hpc-executor", no_args_is_help=True, rich_markup_mode=mode, pretty_exceptions_enable=False, epilog=_EPILOG
    )
    app.callback()(_main)
    app.command(cls=RunCommand)(run)
    app.command(cls=RunCommand)(submit)
    for command in (status, wait, cancel, logs, check, graph, output, agent, doctor):
        app.command()(command)
    return app


def main() -> None:
    """Obey the command line of this process, and exit."""
    make_app()(prog_name="hpc-executor")


if __name__ == "__main__":
    main()
