"""``hpc-executor agent``: an agent that is started by hand."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from executor.cli.saying import refusing
from executor.options import parse_duration
from worker_agent import interpreter


def agent(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An invitation, which HPCExecutor.invite() has written.")
    ],
    resource: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=AMOUNT", help="What there is, beyond or in place of what is found."),
    ] = None,
    time_limit: Annotated[str | None, typer.Option(metavar="TIME", help="How long it may stay: 90s, 10m, 2h.")] = None,
) -> None:
    """Start an agent that runs tasks of the executor that has invited it.

    It runs until that executor ends. The file is private: it holds a key.

    \b
    Examples:
      hpc-executor agent ~/.local/state/hpc-executor/invitation.json
      ssh node2 hpc-executor agent --time-limit 2h --resource fpga=2 /shared/me/invitation.json
    """
    options = [f"--resource={each}" for each in resource or ()]
    with refusing():
        if time_limit is not None:
            options.append(f"--time-limit={parse_duration(time_limit):g}")
        if not file.is_file():
            raise ValueError(f"{file} is not there; HPCExecutor.invite() gives the path of such a file")
    command = [sys.executable, "-E", "-P", os.path.abspath(interpreter.__file__), "invited", str(file), *options]
    os.execv(sys.executable, command)  # noqa: S606  in our place, so that signals reach it
