"""A job that runs: one future for each task, and what becomes of the whole.

The futures of a job's tasks exist from the start. What waits for a whole array, or for its turn in one, waits for a
plain future of ours (a *gate*) that is opened here when it is time: so an array of 100 000 tasks after another one
costs 200 000 steps and not 10 billion.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from executor.asynchronous import as_completed_async
from executor.errors import DependencyFailed, ExecutorTerminated, JobError
from executor.files import OutputFile
from executor.future import TaskFuture
from executor.jobs.dot import Node, draw, render_dot
from executor.jobs.job import Array, Call, Job, Task, callable_name
from executor.jobs.placeholders import fill
from executor.options import TaskOptions, parse_duration
from worker_agent.protocol import StreamTo

#: Where a task of a job stands: HyperQueue's words. "aborted": not to run, because something else had failed.
STATES = ("waiting", "running", "finished", "failed", "cancelled", "aborted")
#: The state of a job is the first of these that one of its tasks has.
_OF_JOB = ("running", "waiting", "failed", "aborted", "cancelled", "finished")

#: The states of tasks that have no exception, or have not failed by themselves.
_ENDS = ((type(None), "finished"), (DependencyFailed, "aborted"), (ExecutorTerminated, "cancelled"))


class Tasks(Protocol):
    """What submits tasks: an executor or a view of it."""

    @property
    def _options(self) -> TaskOptions:
        """Those of its tasks."""

    def options(self, **options: Any) -> Tasks:
        """A view with these options."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Run it."""


@dataclass(frozen=True, slots=True)
class FailedTask:
    """A task that failed: why, where it ran, and the files of its output (None: it has none)."""

    error: BaseException
    cwd: str
    stdout: str | None
    stderr: str | None


class SubmittedJob:
    """What :meth:`HPCExecutor.submit_job` returns; iterating over it gives its futures as they end.

    ``job``, ``id`` (int, unique in the executor), ``submit_dir`` (the directory of that moment), and ``futures``.
    """

    def __init__(self, view: Tasks, job: Job, job_id: int) -> None:
        ordered = job.check()
        self.job = job
        self.id = job_id
        self.submit_dir = os.getcwd()
        self._base = view._options.cwd or self.submit_dir
        self._by_id: dict[int, TaskFuture] = {}
        self._ids: dict[TaskFuture, int] = {}
        self._ended: list[TaskFuture] = []
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
        for task in ordered:
            self._submit(view, task)
        self.futures = Futures(self)

    def __repr__(self) -> str:
        return f"<SubmittedJob {self.id} {self.job.name or 'job'!r} {self.state}>"

    def __len__(self) -> int:
        return len(self._by_id)

    # --- submitting ---------------------------------------------------------------------------------------------------

    def _submit(self, view: Tasks, task: Task) -> None:
        after = [self._future_of(each) for each in self.job.needs(task)]
        if isinstance(task, Array):
            self._submit_array(view, task, after)
        else:
            self._start(view, task, task.id, after, {})

    def _submit_array(self, view: Tasks, array: Array, after: list[Future[Any]]) -> None:
        self._left[array] = len(array.ids)
        self._gates[array] = Future()
        turns: list[Future[None]] = []
        for position, number in enumerate(array.ids):
            turn: list[Future[Any]] = []
            if array.max_concurrent is not None and position >= array.max_concurrent:
                turns.append(Future())
                turn = [turns[-1]]
            self._turns.setdefault(array, iter(turns))
            entry = {} if array.entries is None else {"ENTRY": array.entries[position]}
            self._start(view, array, number, after + turn, entry)

    def _future_of(self, task: Task) -> Future[Any]:
        """What ends when the task, or the whole array, has ended."""
        return self._gates[task] if isinstance(task, Array) else self._by_id[task.id]

    def _start(
        self, view: Tasks, task: Task, number: int, after: list[Future[Any]], entry: Mapping[str, Any]
    ) -> None:
        options = self._options_of(view, task, number, after, entry)
        submit = view.options(**options).submit
        if isinstance(task.body, Call):
            args, kwargs = self._arguments(task, number, entry)
            future = submit(task.body.fn, *args, **kwargs)
        else:
            future = submit(task.body)
        self._by_id[number] = future
        self._ids[future] = number
        future.add_done_callback(partial(self._on_end, task))
        if self._aborts:
            future.cancel(kill=True)  # too much has failed while the rest was being submitted

    def _arguments(self, task: Task, number: int, entry: Mapping[str, Any]) -> tuple[Any, Any]:
        assert isinstance(task.body, Call)
        if isinstance(task, Array):
            return (entry.get("ENTRY", number),), {}
        return self._with_futures(task.body.args), self._with_futures(dict(task.body.kwargs))

    def _with_futures(self, value: Any) -> Any:
        """An argument with a future in the place of each task, whose result it will be; of an array a list of them."""
        if isinstance(value, Array):
            return [self._by_id[each] for each in value.ids]
        if isinstance(value, Task):
            return self._by_id[value.id]
        if type(value) in (list, tuple):
            return type(value)(map(self._with_futures, value))
        return {key: self._with_futures(each) for key, each in value.items()} if type(value) is dict else value

    # --- what a task sees ---------------------------------------------------------------------------------------------

    def _options_of(
        self, view: Tasks, task: Task, number: int, after: list[Future[Any]], entry: Mapping[str, Any]
    ) -> dict[str, Any]:
        written = task.options
        return {
            **written, **self._paths(task, number), **self._stream(view, task, number), "name": _name(task, number),
            "after": _with_after(written.get("after"), after),
            "env": {**self.job.env, **self._variables(number, entry), **(written.get("env") or {})},
        }  # fmt: skip

    def _paths(self, task: Task, number: int) -> dict[str, Any]:
        """Its directory, the files of its output if it has any, and those that a program gets and gives."""
        values = {"JOB_ID": str(self.id), "TASK_ID": str(number), "SUBMIT_DIR": self.submit_dir}
        parts = [self._base, self.job.cwd or "", os.fspath(task.options.get("cwd") or "")]
        paths: dict[str, Any] = {"cwd": os.path.join(*(fill(part, values) for part in parts)).rstrip("/") or "/"}
        values["CWD"] = paths["cwd"]
        for stream in ("stdout", "stderr"):
            destination = task.options.get(stream)
            if isinstance(destination, OutputFile):
                paths[stream] = destination.at(self._below(destination.path, values))
            elif isinstance(destination, str | os.PathLike):
                paths[stream] = self._below(destination, values)
        for places in ("inputs", "outputs"):
            if places in task.options:
                listed = task.options[places].items()
                paths[places] = {name: self._below(path, values) for name, path in listed}
        return paths

    def _stream(self, view: Tasks, task: Task, number: int) -> dict[str, StreamTo | None]:
        """Where its output goes, if not to files of its own: what the task, the job or the view says of it."""
        inherited = view._options.stream
        directory = task.options.get("stream", self.job.stream or (inherited and inherited.directory))
        if directory is None:
            return {"stream": None} if inherited else {}
        values = {"JOB_ID": str(self.id), "SUBMIT_DIR": self.submit_dir}
        path = os.path.join(self._base, fill(os.fspath(directory), values))
        return {"stream": StreamTo(path, self.id, number, _name(task, number))}

    def _below(self, path: str | os.PathLike[str], values: Mapping[str, str]) -> str:
        """A path of a task, relative to its directory, with its placeholders filled in."""
        return os.path.join(values["CWD"], fill(os.fspath(path), values))

    def _variables(self, number: int, entry: Mapping[str, Any]) -> dict[str, str]:
        """HyperQueue's names, and ours. HPC_TASK_ID is the executor's number of the task, and not the job's."""
        shown = {key: text for key, text in entry.items() if isinstance(text, str)}
        both = {"JOB_ID": str(self.id), "SUBMIT_DIR": self.submit_dir, **shown}
        named = {f"{prefix}_{key}": text for prefix in ("HPC", "HQ") for key, text in both.items()}
        return {**named, "HQ_TASK_ID": str(number), "HPC_JOB_TASK_ID": str(number)}

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _on_end(self, task: Task, future: Any) -> None:
        with self._news:
            self._ended.append(future)
            failed = _has_failed(future)
            self._failures += failed
            if self._aborts and future.cancelled():
                self._aborted.add(self._ids[future])
            limit = self.job.max_fails
            aborts = limit is not None and self._failures > limit and not self._aborts
            self._aborts = self._aborts or aborts
            self._news.notify_all()
        if isinstance(task, Array):
            self._on_element_end(task, future)
        if aborts:
            self._cancel_all()

    def _on_element_end(self, array: Array, future: TaskFuture) -> None:
        turn = next(self._turns[array], None)
        if turn is not None:
            turn.set_result(None)
        gate = self._gates[array]
        with self._news:
            self._left[array] -= 1
            error = _why_not(future)
            decided = gate.running() or gate.done()
            decides = not decided and (error is not None or not self._left[array])
            if decides:
                gate.set_running_or_notify_cancel()  # others see that it is decided
        if decides and error is not None:
            gate.set_exception(error)
        elif decides:
            gate.set_result(None)

    def _cancel_all(self) -> None:
        for future in list(self._by_id.values()):
            future.cancel(kill=True)

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
        return all(_why_not(each) is None for each in self._ended)

    def __iter__(self) -> Iterator[TaskFuture]:
        """Its futures as they end; each ``for`` begins with the first one that ended."""
        for position in range(len(self)):
            with self._news:
                self._news.wait_for(lambda position=position: len(self._ended) > position)  # type: ignore[misc]
            yield self._ended[position]

    async def __aiter__(self) -> AsyncIterator[TaskFuture]:
        """Its futures as they end, for ``async for``; those that have ended come first."""
        async for future in as_completed_async([*self._ended, *self._by_id.values()]):
            yield future

    async def wait_async(self) -> bool:
        """As :meth:`wait`, from asyncio: the loop goes on meanwhile. Being cancelled here leaves the job as it is."""
        async for _ in self:
            pass
        return self.wait(0)

    def ended(self, since: int = 0) -> list[int]:
        """The numbers of the tasks that have ended, in that order, without the first ``since``: for who looks again."""
        with self._news:
            return [self._ids[each] for each in self._ended[since:]]

    def paths(self, task: int) -> Mapping[str, str]:
        """The directory ("cwd") of the task with this number, and the files of "stdout" and "stderr" if it has any."""
        return self._paths(self.job.task(task), task)

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
        self._cancel_all()

    def failed(self) -> dict[int, FailedTask]:
        """The tasks that have failed until now, by their numbers; not those that were aborted or cancelled."""
        failed = [self._ids[each] for each in list(self._ended) if _has_failed(each)]
        return {number: self._tell(number) for number in failed}

    def _tell(self, number: int) -> FailedTask:
        future = self._by_id[number]
        error = future.exception()
        assert error is not None
        paths = self._paths(self.job.task(number), number)
        instance = {"INSTANCE_ID": str(future.attempt - 1)}
        streams = (paths.get("stdout"), paths.get("stderr"))
        stdout, stderr = (None if each is None else fill(os.fspath(each), instance) for each in streams)
        return FailedTask(error, fill(paths["cwd"], instance), stdout, stderr)


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


def _first_state(counts: Counter[str]) -> str:
    return next(state for state in _OF_JOB if counts[state])


def _has_failed(future: TaskFuture) -> bool:
    """Whether it ended by a failure of its own."""
    return not future.cancelled() and not isinstance(future.exception(), DependencyFailed | ExecutorTerminated | None)


def _why_not(future: TaskFuture) -> BaseException | None:
    """Why it has no result; None: it has."""
    if future.cancelled():
        return JobError(f"the task {future.name!r} was cancelled")
    return future.exception()


def _name(task: Task, number: int) -> str:
    label = task.name or (callable_name(task.body.fn) if isinstance(task.body, Call) else task.body.argv[0])
    return f"{os.path.basename(label)}[{number}]" if isinstance(task, Array) else os.path.basename(label)


def _with_after(written: Any, after: list[Future[Any]]) -> Any:
    if isinstance(written, Mapping):
        ok = written.get("afterok", ())
        return {**written, "afterok": [*([ok] if isinstance(ok, Future) else ok), *after]}
    return [*([written] if isinstance(written, Future) else written or ()), *after]
