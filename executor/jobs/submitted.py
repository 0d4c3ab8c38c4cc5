"""A job that runs: one future for each task, and what becomes of the whole.

The futures of a job's tasks exist from the start. What waits for a whole array, or for its turn in one, waits for a
plain future of ours (a *gate*) that is opened here when it is time: so an array of 100 000 tasks after another one
costs 200 000 steps and not 10 billion.
"""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from executor.asynchronous import as_completed_async
from executor.core.needs import Needs
from executor.dependencies import CONDITIONS
from executor.errors import DependencyFailed, ExecutorTerminated
from executor.future import TaskFuture, cancel_all
from executor.jobs.dot import Node, draw, render_dot
from executor.jobs.job import Array, Call, Job, Task
from executor.jobs.numbers import take_number
from executor.jobs.placeholders import fill
from executor.jobs.task_options import JobOptions, path_of
from executor.options import Stream, TaskOptions, parse_duration
from executor.program import Program

#: Where a task of a job stands: HyperQueue's words. "aborted": not to run, because something else had failed.
STATES = ("waiting", "running", "finished", "failed", "cancelled", "aborted")
#: The state of a job is the first of these that one of its tasks has.
_OF_JOB = ("running", "waiting", "failed", "aborted", "cancelled", "finished")

#: The states of tasks that have no exception, or have not failed by themselves.
_ENDS = ((type(None), "finished"), (DependencyFailed, "aborted"), (ExecutorTerminated, "cancelled"))


class Owner(Protocol):
    """The executor itself."""

    def _check_possible(self, variants: tuple[Needs, ...], name: str) -> None:
        """Refuse what no agent can ever run."""


class Tasks(Protocol):
    """What submits tasks: an executor or a view of it."""

    @property
    def _options(self) -> TaskOptions:
        """Those of its tasks."""

    def _owner(self) -> Owner:
        """The executor."""

    def _bound(self, options: TaskOptions) -> Tasks:
        """A view with these options, and no others."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Run it."""


@dataclass(frozen=True, slots=True)
class TaskPaths:
    """Where a task runs, and where its output is: the files of ``stdout`` and ``stderr`` (None: it has none), or the
    ``stream``, a directory, and the ``command`` that shows what it has there (None: nothing goes to a stream).
    """

    cwd: str
    stdout: str | None
    stderr: str | None
    stream: str | None
    command: str | None


@dataclass(frozen=True, slots=True)
class FailedTask(TaskPaths):
    """A task that failed: why, and where its output is."""

    error: BaseException


class SubmittedJob:
    """What :meth:`HPCExecutor.submit_job` returns; iterating over it gives its futures as they end.

    ``job``, ``id`` (int, unique in the executor), ``submit_dir`` (the directory of that moment), and ``futures``.
    """

    def __init__(self, view: Tasks, job: Job, numbers: Iterator[int]) -> None:
        """``numbers`` are those of jobs that were not given yet."""
        ordered = job.check()
        self.job = job
        self.submit_dir = os.getcwd()
        self.id = take_number(numbers, job, view._options.cwd or self.submit_dir)
        self._options = JobOptions(view._options, job, self.id, self.submit_dir)
        #: what all tasks of each of the job's tasks and arrays have, but for what they wait for
        self._common = {task: self._options.common(task) for task in ordered}
        for common in self._common.values():
            view._owner()._check_possible(common.variants, common.name or "")
        self._by_id: dict[int, TaskFuture] = {}
        #: the numbers of those that have ended, in that order
        self._ended: list[int] = []
        self._news = threading.Condition()
        self._failures = 0
        self._aborted: set[int] = set()
        #: whether no more of it is to run, since too much has failed
        self._aborts = False
        #: by array: opened when all of it has ended well
        self._gates: dict[Task, Future[None]] = {}
        self._left: dict[Array, int] = {}
        #: by array: which of its tasks may run next
        self._turns: dict[Array, Iterator[Future[None]]] = {}
        try:
            for task in ordered:
                self._submit(view, task)
        except BaseException:  # the executor was shut down, or Ctrl-C: nobody would have what runs in hand
            self.cancel()
            raise
        self.futures = Futures(self)

    def __repr__(self) -> str:
        return f"<SubmittedJob {self.id} {self.job.name or 'job'!r} {self.state}>"

    def __len__(self) -> int:
        return len(self._by_id)

    # --- submitting ---------------------------------------------------------------------------------------------------

    def _submit(self, view: Tasks, task: Task) -> None:
        common = self._common[task]
        waits = tuple((CONDITIONS[0], self._future_of(each)) for each in self.job.needs(task))
        if waits:
            common = replace(common, after=(*common.after, *waits))
        if isinstance(task, Array):
            self._submit_array(view, task, common)
        else:
            args, kwargs = self._arguments(task.body)
            self._start(view, task, task.id, self._options.own(task, common, task.id), args, kwargs)

    def _submit_array(self, view: Tasks, array: Array, common: TaskOptions) -> None:
        self._left[array] = len(array.ids)
        self._gates[array] = Future()
        first = len(array.ids) if array.max_concurrent is None else array.max_concurrent
        turns: list[Future[None]] = [Future() for _ in array.ids[first:]]
        self._turns[array] = iter(turns)
        for position, number in enumerate(array.ids):
            entry = number if array.entries is None else array.entries[position]
            options = self._options.own(array, common, number, entry)
            if position >= first:
                options = replace(options, after=(*options.after, (CONDITIONS[0], turns[position - first])))
            self._start(view, array, number, options, (entry,) if isinstance(array.body, Call) else (), {})

    def _future_of(self, task: Task) -> Future[Any]:
        """What ends when the task, or the whole array, has ended."""
        return self._gates[task] if isinstance(task, Array) else self._by_id[task.id]

    def _start(
        self, view: Tasks, task: Task, number: int, options: TaskOptions, args: Any, kwargs: Mapping[str, Any]
    ) -> None:
        fn = task.body.fn if isinstance(task.body, Call) else task.body
        future = _never_run(options) if self._aborts else view._bound(options).submit(fn, *args, **kwargs)
        self._by_id[number] = future
        future.when_ended(partial(self._on_end, task, number))
        if self._aborts:
            future.cancel(kill=True)  # too much has failed while it was being submitted

    def _arguments(self, body: Program | Call) -> tuple[Any, Any]:
        if isinstance(body, Call):
            return self._with_futures(body.args), self._with_futures(dict(body.kwargs))
        return (), {}

    def _with_futures(self, value: Any) -> Any:
        """An argument with a future in the place of each task, whose result it will be; of an array a list of them."""
        if isinstance(value, Array):
            return [self._by_id[each] for each in value.ids]
        if isinstance(value, Task):
            return self._by_id[value.id]
        if type(value) in (list, tuple):
            return type(value)(map(self._with_futures, value))
        return {key: self._with_futures(each) for key, each in value.items()} if type(value) is dict else value

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _on_end(self, task: Task, number: int, future: TaskFuture) -> None:
        """On the hub's thread only for one that has ended well, so that it never calls the user's callbacks."""
        with self._news:
            self._ended.append(number)
            failed = _has_failed(future)
            self._failures += failed
            if self._aborts and future.cancelled():
                self._aborted.add(number)
            limit = self.job.max_fails
            aborts = limit is not None and self._failures > limit and not self._aborts
            self._aborts = self._aborts or aborts
            self._news.notify_all()
        if aborts:
            self.cancel()  # before it is the turn of another one
        if isinstance(task, Array):
            self._on_element_end(task, future)

    def _on_element_end(self, array: Array, future: TaskFuture) -> None:
        turn = None if self._aborts else next(self._turns[array], None)
        if turn is not None:
            turn.set_result(None)
        gate = self._gates[array]
        with self._news:
            self._left[array] -= 1
            error = None if future.cancelled() else future.exception()
            decided = gate.running() or gate.done()
            decides = not decided and (future.cancelled() or error is not None or not self._left[array])
            if decides and not future.cancelled():
                gate.set_running_or_notify_cancel()  # others see that it is decided
        if decides and future.cancelled():
            gate.cancel()
        elif decides and error is not None:
            gate.set_exception(_of_element(error, future))
        elif decides:
            gate.set_result(None)

    # --- for who watches ----------------------------------------------------------------------------------------------

    def counts(self) -> Counter[str]:
        """How many tasks are in each of the ``STATES``."""
        return Counter(self.state_of(number) for number in self._by_id)

    def state_of(self, task: int) -> str:
        """Where the task with this number stands, one of ``STATES``."""
        future = self._by_id[task]
        if not future.done():
            return "running" if future.running() else "waiting"
        if future.cancelled():
            return "aborted" if task in self._aborted else "cancelled"
        error = future.exception()
        return next((state for kind, state in _ENDS if isinstance(error, kind)), "failed")

    @property
    def state(self) -> str:
        """Where the job stands, one of ``STATES``: running as long as a task runs, failed if one has failed."""
        return _first_state(self.counts())

    def done(self) -> bool:
        """Whether all its tasks have ended."""
        return len(self._ended) == len(self._by_id)

    def wait(self, timeout: float | str | None = None) -> bool:
        """Wait until all its tasks have ended, at most ``timeout`` (seconds or text); whether all ended well.

        Raises TimeoutError.
        """
        seconds = None if timeout is None else parse_duration(timeout)
        with self._news:
            if not self._news.wait_for(self.done, seconds):
                left = len(self) - len(self._ended)
                raise TimeoutError(f"job {self.id}: {left} of {len(self)} tasks have not ended after {timeout}")
        return all(not future.cancelled() and future.exception() is None for future in self._by_id.values())

    def __iter__(self) -> Iterator[TaskFuture]:
        """Its futures as they end; each ``for`` begins with the first one that ended."""
        for position in range(len(self)):
            with self._news:
                self._news.wait_for(lambda position=position: len(self._ended) > position)  # type: ignore[misc]
            yield self._by_id[self._ended[position]]

    async def __aiter__(self) -> AsyncIterator[TaskFuture]:
        """Its futures as they end, for ``async for``; those that have ended come first."""
        ended_first = dict.fromkeys([*self._ended, *self._by_id])
        async for future in as_completed_async([self._by_id[number] for number in ended_first]):
            yield future

    async def wait_async(self) -> bool:
        """As :meth:`wait`, from asyncio: the loop goes on meanwhile. Being cancelled here leaves the job as it is."""
        async for _ in self:
            pass
        return self.wait(0)

    def ended(self, since: int = 0) -> list[int]:
        """The numbers of the tasks that have ended, in that order, without the first ``since``: for who looks again."""
        with self._news:
            return self._ended[since:]

    def paths(self, task: int) -> TaskPaths:
        """Where the latest attempt of the task with this number runs, and where its output is. Raises KeyError."""
        written = self.job.task(task)
        options = self._options.own(written, self._common[written], task)
        instance = {"INSTANCE_ID": str(max(0, self._by_id[task].attempt - 1))}
        cwd, stdout, stderr = (
            path and fill(path, instance) for path in (options.cwd, path_of(options.stdout), path_of(options.stderr))
        )
        assert cwd is not None  # a job's tasks have one
        return TaskPaths(cwd, stdout, stderr, *_how_to_see(options, task))

    def to_dot(self) -> str:
        """Its graph as text for Graphviz, with the states of this moment in colour."""
        return render_dot(self.job.name or "job", map(self._node, self.job.tasks))

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a picture of its graph and the states of this moment, as :meth:`Job.plot`."""
        draw(self.to_dot(), path)

    def _node(self, task: Task) -> Node:
        counts = Counter(self.state_of(number) for number in task.ids)
        node = self.job.node(task)
        told = (f"{counts[state]:,} {state}" for state in STATES if counts[state] and isinstance(task, Array))
        return replace(node, lines=(*node.lines, *told), state=_first_state(counts))

    def cancel(self) -> None:
        """End it: what waits will not run, what runs is ended as by ``future.kill()``."""
        cancel_all(list(self._by_id.values()))

    def failed(self) -> dict[int, FailedTask]:
        """The tasks that have failed until now, by their numbers; not those that were aborted or cancelled."""
        return {number: self._tell(number) for number in list(self._ended) if _has_failed(self._by_id[number])}

    def _tell(self, number: int) -> FailedTask:
        error = self._by_id[number].exception()
        assert error is not None
        paths = self.paths(number)
        return FailedTask(paths.cwd, paths.stdout, paths.stderr, paths.stream, paths.command, error)


class Futures(Mapping[int | str, Any]):
    """The futures of a job by the numbers of its tasks, and by their names (of an array: a list of its futures)."""

    def __init__(self, submitted: SubmittedJob) -> None:
        self._by_id = submitted._by_id
        self._named = {task.name: task for task in submitted.job.tasks if task.name is not None}

    def __getitem__(self, key: int | str) -> Any:
        if not isinstance(key, str):
            return self._by_id[key]
        task = self._named[key]
        futures = [self._by_id[number] for number in task.ids]
        return futures if isinstance(task, Array) else futures[0]

    def __iter__(self) -> Iterator[int | str]:
        """The numbers; names are another way to find the same."""
        return iter(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)


def _how_to_see(options: TaskOptions, task: int) -> tuple[str | None, str | None]:
    """The directory of its stream files, and the command that shows what it has there."""
    streamed = [name for name in ("stdout", "stderr") if getattr(options, name) is Stream.STREAM]
    if options.stream is None or not streamed:
        return None, None
    directory = options.stream.directory
    words = ["hpc-executor", "output", directory, "--task", str(task), *["--stderr"] * ("stderr" in streamed)]
    return directory, shlex.join(words)


def _first_state(counts: Counter[str]) -> str:
    return next(state for state in _OF_JOB if counts[state])


def _never_run(options: TaskOptions) -> TaskFuture:
    """Of a task that comes too late: the executor never hears of it, and it has no number there."""
    future = TaskFuture(0, options.name or "", time.time())
    future.mark_cancelled()
    future.announce_cancel()
    return future


def _has_failed(future: TaskFuture) -> bool:
    """Whether it ended by a failure of its own."""
    return not future.cancelled() and not isinstance(future.exception(), DependencyFailed | ExecutorTerminated | None)


def _of_element(error: BaseException, future: TaskFuture) -> DependencyFailed:
    """Why the array of an element that failed is no use to others: whoever tells of it names the element."""
    if isinstance(error, DependencyFailed):
        return error
    return DependencyFailed(f"task {future.task_id} ({future.name}) has failed", future=future)
