"""What the emulated batch systems stand on: the jobs of the lab's real Slurm, and its commands.

Nothing is kept beside what Slurm knows of a job, so they remember as long as it does. Standard library only: what uses
this runs as a program of its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from typing import NoReturn

_FIELD = re.compile(r"(?:^|\s)([A-Z][\w:/]*)=(\S*)")


class SlurmRefusal(Exception):
    """One of Slurm's commands has failed; what it said."""


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """A job, as ``scontrol show job`` tells of it."""

    number: int
    fields: dict[str, str]

    @property
    def state(self) -> str:
        """In Slurm's words."""
        return self.fields["JobState"]

    @property
    def is_active(self) -> bool:
        """It has not ended."""
        return self.state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")

    @property
    def hosts(self) -> list[str]:
        """Where it runs, or has run."""
        nodes = self.fields.get("NodeList", "")
        return [] if nodes in ("", "(null)") else slurm("scontrol", "show", "hostnames", nodes).split()

    @property
    def exit_status(self) -> tuple[int, int]:
        """The script's exit status, and the signal that has ended it."""
        status, _, number = self.fields["ExitCode"].partition(":")
        return int(status), int(number)


def slurm(*words: str, stdin: str = "") -> str:
    """What one of its commands prints."""
    done = subprocess.run(words, input=stdin, capture_output=True, text=True)
    if done.returncode:
        raise SlurmRefusal(done.stderr.strip())
    return done.stdout


def submit(script: str, options: dict[str, str | int | bool | None]) -> int:
    """Submit a job; gives its number. An option may be a flag; those that are None or False are left out."""
    words = [
        name if value is True else f"{name}={value}" for name, value in options.items() if value not in (None, False)
    ]
    return int(slurm("sbatch", "--parsable", "--no-requeue", *words, stdin=script))


def all_jobs() -> dict[int, SlurmJob]:
    """Those that Slurm knows, by their numbers."""
    found = [dict(reversed(_FIELD.findall(line))) for line in slurm("scontrol", "show", "job", "-o").splitlines()]
    return {int(fields["JobId"]): SlurmJob(int(fields["JobId"]), fields) for fields in found if "JobId" in fields}


def step(number: int, host: str) -> list[str]:
    """What starts the words behind it on a host of a job."""
    return ["srun", f"--jobid={number}", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={host}"]


def fail(text: str, status: int) -> NoReturn:
    """The end of a command."""
    print(text, file=sys.stderr)
    sys.exit(status)
