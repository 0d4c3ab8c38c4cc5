"""What jobs are made of: tasks and arrays of them, each a program or a call with what was said about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from executor.attempts import read_lost
from executor.files import OutputFile
from executor.options import Stream, TaskOptions, make_options
from executor.program import Program
from executor.resources import RESOURCE_OPTIONS

#: What a task may depend on: another one, or its name or number.
Dependency: TypeAlias = "Task | str | int"


@dataclass(frozen=True, slots=True)
class Call:
    """A Python function and its arguments. Tasks among these stand for their results, also in lists, tuples, dicts."""

    fn: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One task of a job, or all tasks of an array."""

    #: the first of its ids
    id: int
    name: str | None
    body: Program | Call
    #: what has to end well before it starts
    deps: tuple[Dependency, ...]
    #: as they were written, see :meth:`HPCExecutor.options`
    options: Mapping[str, Any]

    @property
    def ids(self) -> Sequence[int]:
        """The numbers of its tasks: one, unless it is an array."""
        return (self.id,)

    @property
    def title(self) -> str:
        """How errors and pictures call it."""
        return self.name or f"task {self.id}"

    def content(self) -> tuple[Any, ...]:
        """What it is: two tasks with the same content are the same in different jobs."""
        deps = tuple(dict.fromkeys(each.id if isinstance(each, Task) else each for each in self.deps))
        return self.id, self.name, self.body, deps, meaning(self.options)


@dataclass(frozen=True, slots=True, eq=False)
class Array(Task):
    """Tasks that differ in their number and their entry only."""

    numbers: Sequence[int] = ()
    #: what each has in HPC_ENTRY, or as its argument; None: there are none
    entries: Sequence[Any] | None = None
    #: so many run at a time, at most; None: as many as there is room for
    max_concurrent: int | None = None

    @property
    def ids(self) -> Sequence[int]:
        """The numbers of its tasks."""
        return self.numbers

    @property
    def title(self) -> str:
        """How errors and pictures call it."""
        return self.name or f"array {self.id}"

    def content(self) -> tuple[Any, ...]:
        """What it is."""
        return (*Task.content(self), list(self.numbers), self.entries, self.max_concurrent)


def tasks_in(value: Any) -> list[Task]:
    """The tasks in an argument, and in the lists, tuples and dicts that it is made of."""
    if isinstance(value, Task):
        return [value]
    if type(value) in (list, tuple):
        return [found for each in value for found in tasks_in(each)]
    return tasks_in(list(value.values())) if type(value) is dict else []


#: Options whose relative paths are relative to what the job and the task say.
_PATHS = ("cwd", "stdout", "stderr", "inputs", "outputs")


def meaning(options: Mapping[str, Any]) -> dict[str, Any]:
    """What options say, in one form: ``cpus=2`` is the same as ``resources=Resources(cpus=2)``.

    It has the fields of :class:`TaskOptions` about which something is said; paths are as they were written.
    """
    final = make_options(TaskOptions(), **options)
    said: dict[str, Any] = {}
    for name, value in options.items():
        if name in RESOURCE_OPTIONS:
            said["variants"] = final.variants
        elif name in _PATHS:
            said[name] = getattr(final, name) if isinstance(value, Stream | int) else _path(value)
        else:
            said[name] = getattr(final, name)
    if "retries" in options:
        said.update({} if read_lost(options["retries"]) is None else {"crash_limit": final.crash_limit})
    return {name: value for name, value in said.items() if value or name not in _EMPTY_IS_NOTHING}


#: With these, None and nothing in them is the same as not to give them.
_EMPTY_IS_NOTHING = ("cwd", "env")


def _path(value: Any) -> Any:
    if isinstance(value, OutputFile):
        return OutputFile(os.fspath(value.path), True) if value.remove_if_finished else os.fspath(value.path)
    if isinstance(value, Mapping):
        return {name: _path(each) for name, each in value.items()}
    return os.fspath(value) if isinstance(value, os.PathLike) else value
