"""What one batch job asks for, in words that all batch systems have."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

#: What no batch system takes amiss in a name: blanks make Grid Engine fail, bars and commas confuse listings.
_NAME = re.compile(r"[^A-Za-z0-9_.+-]+")
_NAME_LIMIT = 64


@dataclass(frozen=True, slots=True)
class ArrayRange:
    """The tasks of an array: ``start`` to ``end``, both included, at most ``max_concurrent`` at a time (0: any)."""

    start: int
    end: int
    max_concurrent: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"an array from {self.start} to {self.end}: expected 0 <= start <= end")
        if self.max_concurrent < 0:
            raise ValueError(f"max_concurrent={self.max_concurrent}: expected 0 for any number, or more")


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A batch job, as it is asked for.

    :param command: shell text, one command or several. :func:`command_text` makes it of a list of words.
    :param nodes: how many; on each of them:
    :param ranks: how many processes a launcher such as srun is to start on each node,
    :param cpus: how many CPUs each of these has; None: what the site gives,
    :param memory: bytes for each node; None: what the site gives,
    :param gpus: for each node.
    :param time: seconds; None: what the site gives.
    :param queue: the queue or partition.
    :param prologue: lines of shell that run first; if one fails, so does the job.
    :param workdir: None: where it is submitted.
    :param stderr: None: into the same file as stdout.
    :param dependencies: ids of jobs.
    :param dependency_type: "afterok", "afterany" or "afternotok".
    :param warning: it wants a signal some time before it is killed, where that has to be asked for.
    :param directives: options of the batch system as they stand, such as ``--constraint=avx512``, after all others.
    :param omit: options of ours that are left out, such as ``--mem`` where a site does not allow it.
    """

    command: str
    name: str = "hpc-executor"
    nodes: int = 1
    ranks: int = 1
    cpus: int | None = None
    memory: int | None = None
    gpus: int | None = None
    time: float | None = None
    queue: str | None = None
    account: str | None = None
    workdir: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    prologue: str = ""
    dependencies: tuple[str, ...] = ()
    dependency_type: str = "afterok"
    array: ArrayRange | None = None
    exclusive: bool = False
    warning: bool = False
    directives: tuple[str, ...] = ()
    omit: frozenset[str] = frozenset()


def command_text(command: str | list[str]) -> str:
    """A command as shell text: text as it is, words quoted so that they stay as they are."""
    return command if isinstance(command, str) else shlex.join(command)


def safe_name(name: str) -> str:
    """The name without what batch systems do not take in one."""
    return _NAME.sub("_", name).strip("_.+-")[:_NAME_LIMIT] or "job"


def body_lines(request: JobRequest) -> list[str]:
    """What stands in a job script below the directives.

    The prologue may define functions (``module``), so that it is no process of its own. The job's end is that of the
    command: nothing comes after it, or every failure would look like a success.
    """
    lines = [f"export {_variable(name)}={shlex.quote(value)}" for name, value in request.env.items()]
    if request.prologue:
        lines += ["set -e", request.prologue.rstrip(), "set +e"]
    return [*lines, request.command]


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"env has {name!r}: expected a name of letters, digits and _ that begins with no digit")
    return name


def one_line(name: str, value: str) -> str:
    """The value, for a directive. Raises ValueError if it would make another directive of its rest."""
    if "\n" in value or "\r" in value or "\0" in value:
        raise ValueError(f"{name}={value!r}: expected a single line")
    return value
