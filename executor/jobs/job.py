"""A job: programs and functions with dependencies, collected before any of them runs.

    job = Job("study")
    mesh = job.program(["mesher", "case.geo"], name="mesh")
    runs = job.array(solve, entries=[0.1, 0.2, 0.4], deps=[mesh], cpus=4)
    job.function(compare, args=[runs])                                      # gets the three results
    for future in ex.submit_job(job): ...

What is written wrongly is refused where it is written; what only the whole job shows (a dependency on a name that
nobody has, a cycle) by :meth:`Job.check`, before anything starts.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Self, TypeVar

from executor.errors import JobError
from executor.files import only_for_programs
from executor.jobs.dot import Node, draw, render_dot
from executor.jobs.ids import LARGEST_ID, parse_ids
from executor.jobs.jobfile import parse_job
from executor.jobs.jobfile_writer import render_job
from executor.jobs.task import Array, Call, Dependency, Task, tasks_in
from executor.options import TaskOptions, make_options
from executor.program import Program
from executor.refusals import did_you_mean, shown

__all__ = ["Array", "Call", "Dependency", "Job", "Task", "tasks_in"]

AnyTask = TypeVar("AnyTask", bound=Task)


class Job:
    """Tasks with dependencies; see the module. Two jobs with the same content are equal.

    :param name: str, for displays; None: "job".
    :param max_fails: when more tasks than this have failed, the rest is aborted; None: nothing is.
    :param cwd: a directory (str or PathLike): those of its tasks are relative to it; None: that of who submits.
    :param env: variables (a mapping of str to str, or to None, which unsets) of all tasks, under their own.
    :param stream: a directory: the output of tasks that have no file of their own goes to a few files there.
    :raises TypeError, ValueError: what makes no sense.

    After HyperQueue's ``Job`` (its ``max_fails`` is 1 where nothing is said), with results, arrays and names.
    """

    def __init__(
        self, name: str | None = None, *, max_fails: int | None = None, cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str | None] | None = None, stream: str | os.PathLike[str] | None = None,
    ) -> None:  # fmt: skip
        make_options(TaskOptions(), name=name, cwd=cwd, env=env, stream=stream)
        self.name = name
        self.max_fails = _read_count("max_fails", max_fails, 0)
        self.cwd = None if cwd is None else os.fspath(cwd)
        self.env = dict(env or {})
        self.stream = None if stream is None else os.fspath(stream)
        self._tasks: list[Task] = []
        self._by_id: dict[int, Task] = {}
        self._by_name: dict[str, Task] = {}
        #: the number of the next task that has none of its own
        self._following = 0

    def __repr__(self) -> str:
        return f"<Job {self.name or 'job'!r}: {len(self)} tasks>"

    def __len__(self) -> int:
        """The number of its tasks, those of arrays too."""
        return len(self._by_id)

    def __eq__(self, other: object) -> bool:
        return self._content() == other._content() if isinstance(other, Job) else NotImplemented

    __hash__ = object.__hash__

    def _content(self) -> tuple[Any, ...]:
        about = (self.name, self.max_fails, self.cwd, self.env, self.stream)
        return (*about, [each.content() for each in self._tasks])

    @property
    def tasks(self) -> Sequence[Task]:
        """Its tasks and arrays, in the order in which they were written."""
        return tuple(self._tasks)

    def task(self, id: int) -> Task:
        """The task, or the array, that has this number. Raises KeyError."""
        return self._by_id[id]

    # --- files --------------------------------------------------------------------------------------------------------

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """The job that a job definition file describes: TOML, as HyperQueue has it.

        Relative paths in it are relative to the directory of who submits, wherever the file is.

        :raises JobFileError: what makes no sense in it, with file, line and key.
        :raises OSError: it cannot be read.
        """
        return parse_job(Path(path).read_bytes(), os.fsdecode(path), new=cls)

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Write a job definition file, from which :meth:`from_file` makes an equal job.

        :raises JobError: what no such file can say: functions, tasks beside an array, futures in ``after``.
        :raises OSError: it cannot be written.
        """
        Path(path).write_text(render_job(self), encoding="utf-8")

    # --- writing ------------------------------------------------------------------------------------------------------

    def program(
        self, argv: Sequence[str | os.PathLike[str]] | Program, *, name: str | None = None,
        deps: Iterable[Dependency] = (), stdin: str | bytes | os.PathLike[str] | None = None, id: int | None = None,
        **options: Any,
    ) -> Task:  # fmt: skip
        """An external program; ``argv`` and ``stdin`` as :class:`Program` has them.

        :param name: str; no other task of the job may have it.
        :param deps: tasks, names or numbers of tasks that have to end well before this one starts.
        :param id: its number; None: the one after the largest until now, from 0.
        :param options: those of :meth:`HPCExecutor.options`. A relative ``cwd`` is relative to that of the job, other
            relative paths to the task's; ``%{JOB_ID}``, ``%{TASK_ID}``, ``%{INSTANCE_ID}``, ``%{SUBMIT_DIR}`` and, but
            for ``cwd``, ``%{CWD}`` are replaced in them.
        :raises TypeError, ValueError: what :class:`Program` and the options refuse; a name or number that is taken.
        """
        body = _read_program(argv, stdin)
        return self._add(Task(self._new_id(id), name, body, _read_deps(deps), _read(name, options)))

    def function(
        self, fn: Callable[..., Any], *, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None,
        name: str | None = None, deps: Iterable[Dependency] = (), id: int | None = None, **options: Any,
    ) -> Task:  # fmt: skip
        """A Python function; where ``args`` or ``kwargs`` hold tasks of this job, it gets their results.

        The other parameters are those of :meth:`program`.
        """
        call = Call(_read_function(fn), tuple(_read_list("args", args)), dict(kwargs or {}))
        _refuse_places(fn, options)
        found = dict.fromkeys([*_read_deps(deps), *tasks_in([call.args, call.kwargs])])
        return self._add(Task(self._new_id(id), name, call, tuple(found), _read(name, options)))

    def array(
        self, what: Sequence[str | os.PathLike[str]] | Program | Callable[..., Any], *,
        ids: str | Iterable[int] | None = None, entries: Iterable[Any] | None = None, max_concurrent: int | None = None,
        name: str | None = None, deps: Iterable[Dependency] = (),
        stdin: str | bytes | os.PathLike[str] | None = None, **options: Any,
    ) -> Array:  # fmt: skip
        """Many tasks that differ in their number, and in their entry if there are ``entries``.

        A program finds the entry (text) in HPC_ENTRY and HQ_ENTRY; a function gets it, or else its number, as its
        argument.

        :param ids: numbers, as text such as "1,2,50-100" or as ints; None: one for each entry, in a row.
        :param entries: one for each number.
        :param max_concurrent: so many run at a time, at most.

        The other parameters are those of :meth:`program`.
        """
        body = Call(what) if callable(what) and not isinstance(what, Program) else _read_program(what, stdin)
        listed = None if entries is None else _read_entries(entries, isinstance(body, Program))
        if isinstance(body, Call):
            _refuse_places(body.fn, options)
        numbers = self._read_ids(ids, listed)
        return self._add(
            Array(numbers[0], name, body, _read_deps(deps), _read(name, options), numbers, listed,
                  _read_count("max_concurrent", max_concurrent, 1))
        )  # fmt: skip

    def _new_id(self, id: int | None) -> int:
        if id is None:
            return self._following
        if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id <= LARGEST_ID:
            raise JobError(f"id={shown(id)}: expected a whole number from 0 to {LARGEST_ID}")
        return id

    def _read_ids(self, ids: str | Iterable[int] | None, entries: Sequence[Any] | None) -> Sequence[int]:
        if ids is None and entries is None:
            raise JobError("an array needs ids, such as '1-100', or entries, or both")
        if ids is None:
            assert entries is not None
            numbers: Sequence[int] = range(self._following, self._following + len(entries))
        else:
            numbers = parse_ids(ids) if isinstance(ids, str) else list(map(self._new_id, _read_list("ids", ids)))
        if entries is not None and len(entries) != len(numbers):
            raise JobError(f"an array of {len(numbers)} ids has {len(entries)} entries: there has to be one for each")
        if not numbers:
            raise JobError("an array without tasks: give it ids or entries")
        return numbers

    def _add(self, task: AnyTask) -> AnyTask:
        """Keep it, if its name and numbers are new."""
        if task.name in self._by_name:
            raise JobError(f"there is a task {task.name!r} in this job already; names are given once")
        seen: set[int] = set()
        for number in task.ids:
            if number in self._by_id or number in seen:
                raise JobError(f"the id {number} is there twice in this job; each is given once")
            seen.add(number)
        self._tasks.append(task)
        self._by_id.update(dict.fromkeys(task.ids, task))
        self._following = max(self._following, max(task.ids) + 1)
        if task.name is not None:
            self._by_name[task.name] = task
        return task

    # --- the whole ----------------------------------------------------------------------------------------------------

    def check(self) -> list[Task]:
        """Its tasks and arrays, each after all that it depends on.

        :raises JobError: there is no task; a dependency on a task that is not there; tasks that need each other.
        """
        if not self._tasks:
            raise JobError(f"the job {self.name or 'job'!r} has no tasks")
        try:
            return list(TopologicalSorter({task: self.needs(task) for task in self._tasks}).static_order())
        except CycleError as error:
            raise _cyclic(error.args[1][::-1]) from None

    def needs(self, task: Task) -> list[Task]:
        """The tasks and arrays on which it depends, each once. Raises JobError if one is not there."""
        return list(dict.fromkeys(self._find(each, task) for each in task.deps))

    # --- pictures -----------------------------------------------------------------------------------------------------

    def to_dot(self) -> str:
        """Its graph as text for Graphviz. Raises JobError if a dependency is not there."""
        return render_dot(self.name or "job", map(self.node, self._tasks))

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a picture of its graph; see :func:`executor.jobs.dot.draw` for the formats and what is raised."""
        draw(self.to_dot(), path)

    def node(self, task: Task) -> Node:
        """What stands for a task, or an array, in pictures."""
        lines = [task.title, render_body(task.body)]
        if isinstance(task, Array):
            lines.append(f"{len(task.ids):,} tasks")
        return Node(task.id, tuple(lines), isinstance(task, Array), None, tuple(each.id for each in self.needs(task)))

    def _find(self, wanted: Dependency, of: Task) -> Task:
        if isinstance(wanted, Task):
            found = self._by_id.get(wanted.id)
            if found is not wanted:
                raise JobError(f"{of.title} depends on {wanted.title}, which is of another job")
            return wanted
        known: Mapping[Any, Task] = self._by_id if isinstance(wanted, int) else self._by_name
        if wanted not in known:
            hint = did_you_mean(wanted, self._by_name) if isinstance(wanted, str) else ""
            raise JobError(f"{of.title} depends on {wanted!r}, and the job has no such task{hint}", tasks=(of.id,))
        return known[wanted]


def render_body(body: Program | Call, width: int = 40) -> str:
    """What a task runs, as a person would write it, cut to ``width`` letters."""
    text = shlex.join(body.argv) if isinstance(body, Program) else f"{callable_name(body.fn)}()"
    return text if len(text) <= width else text[: width - 1] + "…"


def callable_name(fn: Callable[..., Any]) -> str:
    """How displays call a function."""
    return getattr(fn, "__qualname__", None) or type(fn).__qualname__


# ---- reading what is written


def _cyclic(cycle: Sequence[Task]) -> JobError:
    titles = " -> ".join(each.title for each in cycle)
    numbers = tuple(each.id for each in cycle)
    return JobError(f"tasks depend on each other: {titles}; remove one of these dependencies", tasks=numbers)


def _read(name: object, options: Mapping[str, Any]) -> Mapping[str, Any]:
    make_options(TaskOptions(), name=name, **options)  # refuses what makes no sense
    return {name: copy(value) if isinstance(value, dict | list) else value for name, value in options.items()}


def _read_program(argv: Any, stdin: Any) -> Program:
    if not isinstance(argv, Program):
        return Program(argv, stdin=stdin)
    if stdin is not None:
        raise TypeError(f"stdin={shown(stdin)}: say it in the Program")
    return argv


def _read_function(fn: object) -> Callable[..., Any]:
    if not callable(fn) or isinstance(fn, Program):
        raise TypeError(f"fn={shown(fn)}: expected a function; programs are written by program()")
    return fn


def _refuse_places(fn: Callable[..., Any], options: Mapping[str, Any]) -> None:
    if options.get("inputs") or options.get("outputs"):
        raise only_for_programs(shown(fn))


def _read_deps(deps: Iterable[Dependency]) -> tuple[Dependency, ...]:
    listed = (deps,) if isinstance(deps, Task | str | int) else tuple(_read_list("deps", deps))
    for each in listed:
        if isinstance(each, bool) or not isinstance(each, Task | str | int):
            raise TypeError(f"deps: {shown(each)} ({type(each).__name__}): expected tasks, names or numbers of tasks")
    return tuple(dict.fromkeys(listed))


def _read_entries(entries: Iterable[Any], of_program: bool) -> list[Any]:
    listed = list(_read_list("entries", entries))
    if tasks_in(listed):
        raise TypeError(f"entries: {shown(tasks_in(listed)[0])} is a task; only arguments of function() may be tasks")
    for each in listed if of_program else ():
        if not isinstance(each, str):
            raise TypeError(f"entries: {shown(each)} ({type(each).__name__}): a program can only have text; use str()")
    return listed


def _read_list(name: str, value: Any) -> Iterable[Any]:
    """Not text: each letter of it would be one of them."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name}={shown(value)}: expected a list, or another iterable")
    return value


def _read_count(name: str, value: Any, least: int) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"{name}={shown(value)}: expected a whole number or None")
    if value is not None and value < least:
        raise ValueError(f"{name}={value}: expected {least} or more, or None")
    return value
