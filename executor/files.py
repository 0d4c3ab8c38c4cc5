"""The files of a task: what its options say of them, and the part of its order that its agent reads.

    inputs={"data.csv": "/shared/data.csv"}      the task's name for it: where it is
    outputs={"out.csv": "results/out.csv"}       the task's name for it: where it is to be

The paths are those of who submits; to an agent that does not see them the files travel (``input_files``, ``placing``).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from executor.errors import OptionTypeError
from executor.refusals import shown
from worker_agent import protocol

#: Names in a task's directory and the absolute paths for them, in the order in which they were written.
Places: TypeAlias = tuple[tuple[str, str], ...]
#: In the paths of a task its agent puts the number of the attempt here, as HQ_INSTANCE_ID has it.
INSTANCE_ID: Final = "%{INSTANCE_ID}"


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file for the stdout or stderr of a task.

    :param path: the file (str or PathLike), as the options ``stdout`` and ``stderr`` have it.
    :param remove_if_finished: whether it is removed when the task has ended well: a program with status 0, a function
        with a result. Of a task that failed it stays. Default: it stays in any case.
    :raises TypeError: values of other types.

    After HyperQueue's ``StdioDef``; in its job definition files this is ``rm-if-finished``.
    """

    path: str | os.PathLike[str]
    remove_if_finished: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike):
            raise TypeError(f"path={shown(self.path)}: expected a file (str or os.PathLike)")
        if not isinstance(self.remove_if_finished, bool):
            raise TypeError(f"remove_if_finished={shown(self.remove_if_finished)}: expected True or False")

    def __fspath__(self) -> str:
        return os.fsdecode(self.path)

    def at(self, path: str) -> OutputFile:
        """The same, with another path."""
        return replace(self, path=path)


# ---- reading the options


def read_output_file(value: OutputFile, read_path: Callable[[object], str]) -> OutputFile | str:
    """With an absolute path; one that stays is its path and nothing else."""
    path = read_path(value.path)
    return value.at(path) if value.remove_if_finished else path


def read_places(value: object, read_path: Callable[[object], str]) -> Places:
    """A mapping of names to paths, which ``read_path`` makes absolute. Raises TypeError, ValueError."""
    if not isinstance(value, Mapping):
        raise TypeError("expected a mapping of names in the task's directory to paths: {'a.csv': '/data/a.csv'}")
    return tuple((_read_name(name), read_path(path)) for name, path in value.items())


def _read_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the name {shown(name)} is not text; expected a relative path in the task's directory")
    parts = name.split("/")
    if "\0" in name or not _is_text(name) or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"the name {shown(name)} is no plain path in the task's directory, such as 'a.csv' or 'in/a'")
    return name


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_names(inputs: Places, outputs: Places) -> None:
    """No name is there twice, or in a directory that has another name: what is a link would be written through.

    :raises ValueError: one is.
    """
    names = sorted(tuple(name.split("/")) for name, _ in (*inputs, *outputs))
    for first, second in itertools.pairwise(names):  # what is below a name follows it
        if second[: len(first)] == first:
            raise ValueError(
                f"inputs and outputs: the name {'/'.join(second)!r} is that of another one or in its directory; "
                f"choose a name apart from {'/'.join(first)!r}"
            )


def only_for_programs(what: str) -> OptionTypeError:
    """The error for a function ``what`` that has inputs or outputs."""
    return OptionTypeError(
        f"options inputs, outputs: {what} is a function, and these are for programs; give it the paths as arguments, "
        "and task_dir=True for a directory of its own"
    )


# ---- for the agent


def make_files(
    task_dir: bool, inputs: Places, outputs: Places, cwd: str | None, stdout: object, stderr: object
) -> protocol.Files | None:
    """What the agent has to do with files before and after the task; None: nothing. Arguments as in the options."""
    streams = {1: stdout, 2: stderr}
    removed = [stream for stream, each in streams.items() if isinstance(each, OutputFile) and each.remove_if_finished]
    paths = [cwd, *(each.path if isinstance(each, OutputFile) else each for each in streams.values())]
    numbered = any(isinstance(path, str) and INSTANCE_ID in path for path in paths)
    if not (task_dir or inputs or outputs or removed or numbered):
        return None
    return protocol.Files(
        task_dir=task_dir, inputs=dict(inputs), outputs=dict(outputs), removed=removed, numbered=numbered
    )
