"""A pipeline: a job of programs written in the order in which people think of them, by the names of its steps."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from executor.errors import JobError
from executor.future import TaskFuture
from executor.jobs.job import Job, Task
from executor.jobs.submitted import SubmittedJob
from executor.program import Program
from executor.refusals import shown


class Runs(Protocol):
    """What runs jobs: an executor, or a view of it."""

    def submit_job(self, job: Job, /) -> SubmittedJob:
        """Run its tasks."""


class Pipeline:
    """Steps with names; after hpc-runner's ``Pipeline``.

        with Pipeline("ml", executor=ex) as p:
            p.add("python prepare.py", name="prepare")
            p.add("python train.py", name="train", depends_on=["prepare"], cpus=8, memory="32G")
        p.wait()

    The ``with`` block submits at its end, unless it was left by an exception; it does not wait.

    :param name: str, for displays.
    :param executor: an executor or a view of it, which runs the steps.
    :param options: those of :class:`Job`.
    """

    def __init__(self, name: str = "pipeline", *, executor: Runs, **options: Any) -> None:
        self.job = Job(name, **options)
        self._executor = executor
        self._submitted: SubmittedJob | None = None

    def add(
        self, command: str | Sequence[str] | Program, name: str | None = None,
        depends_on: Iterable[str | Task] | str | Task | None = None, *, shell: bool = False, **options: Any,
    ) -> Task:  # fmt: skip
        """A step.

        :param command: text, which is split into words as a shell would (quotes, backslashes), without a shell; or a
            list, or a :class:`Program`.
        :param name: str; None: "step_1" and so on.
        :param depends_on: names of steps, or steps, that have to end well before it starts.
        :param shell: the text is a line for ``/bin/sh``, with pipes, variables and all.
        :param options: those of :meth:`HPCExecutor.options`, and ``stdin``.
        :raises JobError: it was submitted already; a name that is taken.
        """
        if self._submitted is not None:
            raise JobError(f"the pipeline {self.job.name!r} was submitted already; make another one")
        steps = (depends_on,) if isinstance(depends_on, str | Task) else depends_on or ()
        name = name or f"step_{len(self.job) + 1}"
        return self.job.program(_read_command(command, shell), name=name, deps=steps, **options)

    def submit(self) -> SubmittedJob:
        """Start it. Raises JobError for steps that need each other, or one that is not there."""
        if self._submitted is None:
            self._submitted = self._executor.submit_job(self.job)
        return self._submitted

    def wait(self, timeout: float | str | None = None) -> bool:
        """Wait until all steps have ended; whether all ended well. Raises TimeoutError."""
        return self.submit().wait(timeout)

    @property
    def results(self) -> Mapping[str, TaskFuture]:
        """The futures of the steps by their names, in the order of the steps; empty before it was submitted."""
        if self._submitted is None:
            return {}
        return {str(task.name): self._submitted.futures[task.id] for task in self.job.tasks}

    def __iter__(self) -> Iterator[Task]:
        """The steps."""
        return iter(self.job.tasks)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None:
            self.submit()


def _read_command(command: str | Sequence[str] | Program, shell: bool) -> Sequence[str] | Program:
    if not isinstance(command, str):
        if shell:
            raise TypeError(f"shell=True with {shown(command)}: expected a line of text for the shell")
        return command
    if shell:
        return ["/bin/sh", "-c", command]
    try:
        return shlex.split(command)
    except ValueError as error:
        raise JobError(f"the command {shown(command)} cannot be split into words: {error}") from None
