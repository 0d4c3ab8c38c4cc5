"""The options of a job's tasks as they run: paths with their placeholders filled in, variables, streams.

What all tasks of an array have in common is made once; each of them then costs little.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from executor.files import OutputFile
from executor.jobs.job import Array, Call, Job, Task, callable_name
from executor.jobs.placeholders import fill
from executor.options import Destination, Environment, TaskOptions, make_options
from worker_agent.protocol import StreamTo

#: Filled in for each task; what else is in a path is the same for all.
_NUMBER: Final = "%{TASK_ID}"


class JobOptions:
    """Those of the tasks of one submitted job, over the ones of the view that it was submitted to."""

    def __init__(self, view: TaskOptions, job: Job, job_id: int, submit_dir: str) -> None:
        """``submit_dir`` is the directory in which it was submitted."""
        self._view = view
        self._job = job
        self._id = job_id
        self._base = view.cwd or submit_dir
        self._values = {"JOB_ID": str(job_id), "SUBMIT_DIR": submit_dir}
        self._variables = _under_both_names(self._values)

    def common(self, task: Task) -> TaskOptions:
        """What all tasks of ``task`` have; paths may still have a number to be filled in."""
        written = task.options
        return make_options(self._view, **{
            **written, **self._paths(written), **self._stream(written), "name": title_of(task),
            "env": {**self._job.env, **self._variables, **(written.get("env") or {})},
        })  # fmt: skip

    def own(self, task: Task, common: TaskOptions, number: int, entry: Any = None) -> TaskOptions:
        """Those of the task with this number, whose text of an array's ``entry`` is a variable."""
        text = str(number)
        name = f"{common.name}[{text}]" if isinstance(task, Array) else common.name
        variables = {"HQ_TASK_ID": text, "HPC_JOB_TASK_ID": text}
        if isinstance(entry, str):
            variables |= _under_both_names({"ENTRY": entry})
        stream = common.stream and StreamTo(common.stream.directory, self._id, number, name or "")
        return replace(
            common, name=name, env=_over(variables, common.env, task.options.get("env") or {}), stream=stream,
            cwd=_numbered(common.cwd, text), stdout=_numbered(common.stdout, text),
            stderr=_numbered(common.stderr, text), inputs=_numbered_all(common.inputs, text),
            outputs=_numbered_all(common.outputs, text),
        )  # fmt: skip

    def _paths(self, written: Mapping[str, Any]) -> dict[str, Any]:
        """Its directory, the files of its output if it has any, and those that a program gets and gives."""
        parts = [self._base, self._job.cwd or "", os.fspath(written.get("cwd") or "")]
        cwd = os.path.join(*(fill(part, self._values) for part in parts)).rstrip("/") or "/"
        values = {**self._values, "CWD": cwd}
        paths: dict[str, Any] = {"cwd": cwd}
        for stream in ("stdout", "stderr"):
            destination = written.get(stream)
            if isinstance(destination, OutputFile):
                paths[stream] = destination.at(_below(destination.path, values))
            elif isinstance(destination, str | os.PathLike):
                paths[stream] = _below(destination, values)
        for places in ("inputs", "outputs"):
            if places in written:
                paths[places] = {name: _below(path, values) for name, path in written[places].items()}
        return paths

    def _stream(self, written: Mapping[str, Any]) -> dict[str, StreamTo | None]:
        """Where its output goes, if not to files of its own: what the task, the job or the view says of it."""
        inherited = self._view.stream
        directory = written.get("stream", self._job.stream or (inherited and inherited.directory))
        if directory is None:
            return {"stream": None} if inherited else {}
        return {"stream": StreamTo(os.path.join(self._base, fill(os.fspath(directory), self._values)))}


def title_of(task: Task) -> str:
    """What its tasks are called, but for the number of one in an array."""
    if task.name is not None:
        return task.name
    return callable_name(task.body.fn) if isinstance(task.body, Call) else os.path.basename(task.body.argv[0])


def _under_both_names(values: Mapping[str, str]) -> dict[str, str]:
    """Ours and HyperQueue's. HPC_TASK_ID is the executor's number of the task, and so not among them."""
    return {f"{prefix}_{key}": text for prefix in ("HPC", "HQ") for key, text in values.items()}


def _over(variables: Mapping[str, str], env: Environment, written: Mapping[str, Any]) -> Environment:
    """The environment with these variables, but for those that the task has ``written`` itself."""
    new = [pair for pair in variables.items() if pair[0] not in written]
    names = {name for name, _ in new}
    return tuple(sorted([*(pair for pair in env if pair[0] not in names), *new]))  # the pairs themselves are shared


def _below(path: str | os.PathLike[str], values: Mapping[str, str]) -> str:
    """A path of a task, relative to its directory, with its placeholders filled in."""
    return os.path.join(values["CWD"], fill(os.fspath(path), values))


def _numbered(path: Any, number: str) -> Any:
    if isinstance(path, OutputFile):
        return path.at(_numbered(os.fspath(path), number))
    return path.replace(_NUMBER, number) if isinstance(path, str) and _NUMBER in path else path


def _numbered_all(places: tuple[tuple[str, str], ...], number: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, _numbered(path, number)) for name, path in places) if places else places


def path_of(destination: Destination) -> str | None:
    """The file that it is; None if it is none."""
    return os.fspath(destination) if isinstance(destination, str | OutputFile) else None
