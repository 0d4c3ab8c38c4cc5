"""Job definition files: TOML that describes a job. They are HyperQueue's, with some keys more.

    parse_job ─── toml_tables   the text, and where in it something is wrong
      │     └──── toml_lines
      └── jobfile_tasks         [[task]], [array]: programs and options
            └── jobfile_requests    [[task.request]]: resources

docs/job-files.md describes the keys. The way back is :mod:`executor.jobs.jobfile_writer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from typing import Any, Final, Protocol, TypeVar

from executor.errors import JobError
from executor.jobs.ids import LARGEST_ID, parse_ids
from executor.jobs.jobfile_requests import REQUEST_KEYS
from executor.jobs.jobfile_tasks import ARRAY_KEYS, TASK_KEYS, read_task
from executor.jobs.placeholders import IN_STREAM
from executor.jobs.toml_lines import line_of
from executor.jobs.toml_tables import Table, parse_toml, read_path, read_text, read_text_table, read_texts, read_whole
from executor.program import Program
from executor.refusals import shown


class Collects(Protocol):
    """What is told of the tasks, as a :class:`Job` is."""

    def program(self, argv: Program, **options: Any) -> object:
        """There is a task."""

    def array(self, what: Program, **options: Any) -> object:
        """There is an array of tasks."""

    def check(self) -> object:
        """That was all; raises JobError if it makes no sense."""


AnyJob = TypeVar("AnyJob", bound=Collects)

_SETTINGS: dict[str, Callable[[Any], Any]] = {
    "name": read_text, "max_fails": partial(read_whole, 0, LARGEST_ID), "cwd": read_path, "env": read_text_table,
    "stream": read_path,
}  # fmt: skip
JOB_KEYS: Final = (*_SETTINGS, "task", "array")
_ELSEWHERE = {
    **dict.fromkeys((*TASK_KEYS, *ARRAY_KEYS), "it belongs below a header, [[task]] or [array]"),
    **dict.fromkeys(REQUEST_KEYS, "it belongs below the header [[task.request]]"),
    "data_layer": "HyperQueue's data layer is not supported; inputs and outputs of a task move files",
}


def parse_job(data: str | bytes, name: str = "<text>", *, new: Callable[..., AnyJob]) -> AnyJob:
    """The job that a text, or the bytes of a file, describes.

    :param name: what errors call it.
    :param new: makes the empty job: the class :class:`Job`, which this module does not know.
    :raises JobFileError: what makes no sense in it.
    """
    top = parse_toml(data, name)
    top.check_keys(JOB_KEYS, {"jobname": "name", "tasks": "task"}, _ELSEWHERE)
    job = new(**_read_settings(top, new))
    if "array" in top.values:
        _add_array(job, top)
    else:
        _add_tasks(job, top)
    return job


def _read_settings(top: Table, new: Callable[..., object]) -> dict[str, Any]:
    keys = [key for key in _SETTINGS if key in top.values]
    settings = {key: top.read(key, partial(_read_setting, new, key), secret=key == "env") for key in keys}
    top.warn_of_placeholders("stream", settings.get("stream", ""), IN_STREAM)
    return settings


def _read_setting(new: Callable[..., object], key: str, value: Any) -> Any:
    if (key, value) == ("name", ""):
        return None  # HyperQueue's jobs without a name have an empty one
    final = _SETTINGS[key](value)
    new(**{key: final})  # refuses what makes no sense
    return final


# ---- tasks


def _add_tasks(job: Collects, top: Table) -> None:
    tables = top.tables("task")
    if not tables:
        raise top.refuse("there are no tasks; write some below headers [[task]], or an [array]")
    by_id = _number(tables)
    for number, table in by_id.items():
        program, options = read_task(table, streams="stream" in top.values)
        deps = table.read("deps", _read_deps) if "deps" in table.values else ()
        _add(table, "name", partial(job.program, program, deps=deps, id=number, **options))
    try:
        job.check()
    except JobError as error:
        raise by_id[error.tasks[0]].refuse(str(error), "deps") from None


def _number(tables: Iterable[Table]) -> dict[int, Table]:
    """The tables by their ids, in the order of the file. Those without one have ids after the largest that is given."""
    given = [table.read("id", partial(read_whole, 0, LARGEST_ID)) if "id" in table.values else None for table in tables]
    following = count(max((each for each in given if each is not None), default=-1) + 1)
    by_id: dict[int, Table] = {}
    for number, table in zip(given, tables, strict=True):
        if number in by_id:
            raise table.refuse(f"id={number}: another task of the file has this id; each is given once", "id")
        by_id[next(following) if number is None else number] = table
    return by_id


def _read_deps(value: Any) -> list[str | int]:
    expected = "expected a list of ids and names of tasks, such as [1, 3]"
    if not isinstance(value, list):
        raise TypeError(expected)
    for each in value:
        if isinstance(each, bool) or not isinstance(each, int | str):
            raise TypeError(f"{expected}; {shown(each)} is neither")
    return value


# ---- an array


def _add_array(job: Collects, top: Table) -> None:
    if "task" in top.values:
        second = max(("array", "task"), key=lambda key: line_of(top.text, (key,)))
        raise top.refuse("a file has either tasks, [[task]], or one array, [array]; make two files of it", second)
    if isinstance(top.values["array"], list):
        raise top.refuse("expected one table with the header [array], in one pair of brackets", "array")
    table = top.table("array")
    program, options = read_task(table, streams="stream" in top.values)
    if "ids" not in table.values and "entries" not in table.values:
        raise table.refuse('an array needs ids, such as ids = "1-100", or entries, or both')
    ids = table.read("ids", _read_ids) if "ids" in table.values else None
    entries = table.read("entries", read_texts) if "entries" in table.values else None
    if "max_concurrent" in table.values:
        options["max_concurrent"] = table.read("max_concurrent", partial(read_whole, 1, LARGEST_ID))
    _add(table, "entries", partial(job.array, program, ids=ids, entries=entries, **options))


def _read_ids(value: Any) -> list[int]:
    return parse_ids(read_text(value))


# ---- what only the job can tell


def _add(table: Table, key: str, add: Callable[[], object]) -> None:
    """Add a task. What the job has against it is about this key, and what it has against its options about all."""
    try:
        add()
    except JobError as error:
        raise table.refuse(str(error), key) from None
    except (TypeError, ValueError) as error:
        raise table.refuse(str(error).removeprefix("option ")) from None
