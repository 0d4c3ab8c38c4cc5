"""The job that ``run -- PROGRAM`` means, and the exit status that its task gives."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from executor.cli.saying import naming
from executor.errors import ProgramFailed, ProgramNotStarted
from executor.future import TaskFuture
from executor.jobs.ids import parse_ids
from executor.jobs.job import Job
from executor.options import DEVNULL

#: Where job files have the output of their tasks, if they say nothing else.
FILES: Final = {stream: f"%{{CWD}}/job-%{{JOB_ID}}/%{{TASK_ID}}.{stream}" for stream in ("stdout", "stderr")}
#: Of a program whose output is shown so much is kept on its way: the first half is shown as it comes.
_SHOWN: Final = 2**30


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line says about a program, besides the options of its tasks."""

    array: str | None = None
    each_line: Path | None = None
    stdin: bool = False
    max_fails: int | None = None
    max_concurrent: int | None = None
    #: stdout belongs to somebody else: a single program writes files as well
    files: bool = False

    @property
    def is_array(self) -> bool:
        """Whether it makes many tasks."""
        return self.array is not None or self.each_line is not None


def make_job(argv: Sequence[str], wishes: Wishes, options: Mapping[str, Any]) -> Job:
    """One program, or an array of it.

    :param options: those of :meth:`Job.program` that were said.
    :raises TypeError, ValueError: what these refuse; wishes of arrays without one.
    :raises OSError: a file, or stdin, that cannot be read.
    """
    options = {**options, "stdin": sys.stdin.buffer.read() if wishes.stdin else None}
    job = Job(options.get("name"), max_fails=wishes.max_fails)
    if not wishes.is_array:
        _refuse_without_array(wishes)
        job.program(argv, **_where_output_goes(options, FILES if wishes.files else {"output_limit": _SHOWN}))
        return job
    entries = None if wishes.each_line is None else read_lines(wishes.each_line)
    with naming("--array"):
        ids = None if wishes.array is None else parse_ids(wishes.array)
    job.array(
        argv, ids=ids, entries=entries, max_concurrent=wishes.max_concurrent,
        **_where_output_goes(options, FILES),
    )  # fmt: skip
    return job


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, without their ends. Raises ValueError if there are none, or it is no text."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise ValueError(f"--each-line: {file}, line {line}: the byte {byte:#04x} is not UTF-8; write it so") from None
    if not text:
        raise ValueError(f"--each-line: {file} is empty; there is a task for each of its lines")
    return text.removesuffix("\n").split("\n")  # not splitlines(): a form feed ends no line


def _refuse_without_array(wishes: Wishes) -> None:
    for name, value in (("--max-fails", wishes.max_fails), ("--max-concurrent", wishes.max_concurrent)):
        if value is not None:
            raise ValueError(f"{name} is about many tasks; say --array or --each-line as well, or leave it out")


def _where_output_goes(options: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """As in job files, "none" is nowhere."""
    return {**default, **{key: DEVNULL if _is_nowhere(key, value) else value for key, value in options.items()}}


def _is_nowhere(key: str, value: object) -> bool:
    return key in FILES and value == "none"


def read_pairs(option: str, pairs: Iterable[str], example: str) -> dict[str, str]:
    """NAME=VALUE, each as words on the command line. Raises ValueError for what is no such pair, or is there twice."""
    read: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise ValueError(f"{option}: expected NAME=VALUE, such as {example}, not {name + equals!r}")
        if name in read:
            raise ValueError(f"{option}: {name} is there twice; give it once")
        read[name] = value
    return read


def read_crash_limit(text: str) -> int | str:
    """A number, or one of the words that the option knows."""
    return int(text) if text.isdecimal() else text


def status_of(future: TaskFuture) -> int:
    """The exit status of a program's task as a shell would give it: its own, 128 and the signal; 127: not found."""
    error = future.exception()
    if isinstance(error, ProgramNotStarted):
        return 127 if error.missing else 126
    if isinstance(error, ProgramFailed):
        return error.returncode if error.returncode > 0 else 128 - error.returncode
    return 0 if error is None else 1
