"""``hpc-executor doctor``: what this machine offers, and whether it works here."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from executor.cli.saying import FAILED, tell, write_json

if TYPE_CHECKING:
    from executor.cli.findings import Finding


def doctor(json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False) -> None:
    """Say what this machine offers, and whether tasks run here.

    Looks at CPUs, memory, GPUs, limits, batch systems, and whether an agent starts and runs tasks.

    The exit status is 0 if tasks can run here, 1 if not.

    \b
    Examples:
      hpc-executor doctor
      hpc-executor doctor --json | jq '.findings[] | select(.remedy)'
    """
    from executor.cli.findings import find_all  # brings ZeroMQ, which takes a while: not for --help

    findings = []
    for finding in find_all():
        findings.append(finding)
        if not json:
            _tell(finding)
    works = not any(finding.fatal for finding in findings)
    if json:
        write_json({"works": works, "findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        tell("tasks can run here" if works else "tasks cannot run here", "green" if works else "red")
    raise typer.Exit(0 if works else FAILED)


def _tell(finding: Finding) -> None:
    mark, style = ("ok", "green") if finding.remedy is None else ("!!", "red" if finding.fatal else "yellow")
    tell(f"{mark}  {finding.about}: {finding.found}", style if finding.remedy else "")
    if finding.remedy is not None:
        tell(f"    {finding.remedy}", style)
