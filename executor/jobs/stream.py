"""Streamed output as users read it: a directory of stream files, in which each agent has one file for all its tasks.

    output = StreamDirectory("out")
    output.text(3)                     # what task 3 has printed so far
    output.text("train", "stderr")
    for chunk in output.follow(): ...  # as it is written

What it shows of a task is its latest attempt, and of several runs of a job (each in an executor of its own) the latest.
It reads while others write; an end that is torn, since its agent was killed, is no more than an end.
"""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from executor.errors import StreamError
from executor.jobs.stream_index import Run, StreamedAttempt, StreamedTask, StreamFile
from executor.refusals import did_you_mean, shown
from worker_agent.records import MAGIC, SUFFIX

#: A task: its number, as int or text; the numbers of job and task; its name, of an array's task also without "[...]",
#: which means all of them.
Wanted: TypeAlias = int | str | tuple[int, int] | StreamedTask

_STREAMS = {"stdout": frozenset({1}), "stderr": frozenset({2}), "both": frozenset({1, 2})}


@dataclass(frozen=True, slots=True)
class Chunk:
    """Something that a task has printed: a piece of its ``stream`` ("stdout" or "stderr"), written at ``time``."""

    task: StreamedTask
    attempt: int
    stream: str
    data: bytes
    time: float


class StreamDirectory:
    """The streamed output of one run, as it was when this was made or last refreshed.

    ``path`` (str), ``runs`` (a tuple of :class:`~executor.jobs.stream_index.Run`, the latest last), and ``run``, the id
    of the one that is shown.
    """

    def __init__(self, path: str | os.PathLike[str], *, run: str | None = None) -> None:
        """The directory, and the id of the run; None: the latest.

        Raises StreamError if there is no stream file or no such run, or one of the files is none; OSError if the
        directory cannot be read.
        """
        self.path = os.fspath(path)
        self.runs: tuple[Run, ...] = ()
        self._files: dict[str, StreamFile] = {}
        self._tasks: dict[tuple[int, int], StreamedTask] = {}
        #: the tasks by what they may be called, names and numbers apart; None: to be made anew
        self._words: tuple[dict[str, list[StreamedTask]], dict[str, list[StreamedTask]]] | None = None
        self._find_files()
        self.run = self._choose(run)
        self._index()

    def _choose(self, run: str | None) -> str:
        known = [each.id for each in self.runs]
        if not known:
            raise StreamError(f"{self.path!r} has no output of tasks: expected files whose names end in {SUFFIX!r}")
        if run is None:
            return known[-1]
        if run not in known:
            raise StreamError(f"run={shown(run)}: {self.path!r} has the runs {', '.join(known)}")
        return run

    def refresh(self) -> None:
        """See what was written since. Raises StreamError and OSError as at first."""
        self._find_files()
        self._index()

    def _find_files(self) -> None:
        for name in sorted(os.listdir(self.path)):
            if name.endswith(SUFFIX) and name not in self._files:
                self._files[name] = StreamFile(os.path.join(self.path, name))
        began: dict[str, float] = {}
        for file in self._files.values():
            if file.run is None:
                file.identify()
            if file.run is not None:
                began[file.run.id] = min(file.run.started, began.get(file.run.id, file.run.started))
        self.runs = tuple(Run(each, began[each]) for each in sorted(began, key=began.__getitem__))

    def _index(self) -> None:
        self._words = None
        for file in self._shown_files():
            file.index(self._tasks)

    def _shown_files(self) -> list[StreamFile]:
        return [file for file in self._files.values() if file.run is not None and file.run.id == self.run]

    # --- tasks --------------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> list[StreamedTask]:
        """The tasks that have started, by their numbers."""
        return [self._tasks[key] for key in sorted(self._tasks)]

    def find(self, wanted: Wanted) -> list[StreamedTask]:
        """The tasks that are meant: several for the name of an array, or a number that is in several jobs."""
        if isinstance(wanted, StreamedTask):
            return [wanted]
        if isinstance(wanted, tuple):
            return [self._tasks[wanted]] if wanted in self._tasks else []
        if self._words is None:
            self._words = _words_for(self.tasks)
        names, numbers = self._words
        return names.get(str(wanted), numbers.get(str(wanted), []))

    def select(self, tasks: Iterable[Wanted] | None = None) -> list[StreamedTask]:
        """The tasks that are meant, each once; None: all. Raises StreamError for one that is not there."""
        if tasks is None:
            return self.tasks
        found = {}
        for wanted in tasks:
            found.update(dict.fromkeys(self.find(wanted) or self._refuse(wanted)))
        return list(found)

    def task(self, wanted: Wanted) -> StreamedTask:
        """The one task that is meant. Raises StreamError if there is none, or more than one."""
        found = self.find(wanted) or self._refuse(wanted)
        if len(found) > 1:
            choice = ", ".join(f"({each.job}, {each.number})" for each in found[:10])
            raise StreamError(f"{shown(wanted)} means {len(found)} tasks of {self.path!r}; take one of them: {choice}")
        return found[0]

    def _refuse(self, wanted: Wanted) -> NoReturn:
        hint = did_you_mean(str(wanted), [task.name for task in self.tasks if task.name])
        raise StreamError(f"{self.path!r} has no task {shown(wanted)}: none has started in run {self.run}{hint}")

    def attempts(self, wanted: Wanted) -> list[StreamedAttempt]:
        """The attempts of a task, the latest last: it supersedes the others."""
        attempts = self.task(wanted).attempts
        return [attempts[number] for number in sorted(attempts)]

    # --- output -------------------------------------------------------------------------------------------------------

    def chunks(self, wanted: Wanted, stream: str = "stdout", attempt: int | None = None) -> Iterator[bytes]:
        """What a task has written so far, in pieces of 64 KiB at most.

        :param wanted: a task, see ``Wanted``.
        :param stream: "stdout", "stderr", or "both": then in the order in which it was read.
        :param attempt: the number of an attempt; None: the latest.
        :raises StreamError: there is no such task, or no such attempt of it.
        """
        task, streams = self.task(wanted), _read_stream(stream)
        number = task.latest.number if attempt is None else attempt
        if number not in task.attempts:
            raise StreamError(f"{task.title} has no attempt {number}, but {', '.join(map(str, sorted(task.attempts)))}")
        key = (task.job, task.number, number)
        return (data for part in task.attempts[number].parts for data in part.file.outputs_of(part, key, streams))

    def text(self, wanted: Wanted, stream: str = "stdout", attempt: int | None = None) -> str:
        """What a task has written so far; bytes that are not UTF-8 are replaced by "�". As :meth:`chunks`."""
        return b"".join(self.chunks(wanted, stream, attempt)).decode(errors="replace")

    def follow(
        self, tasks: Iterable[Wanted] | None = None, stream: str = "stdout", *, interval: float = 0.2,
        until: Callable[[], bool] | None = None,
    ) -> Iterator[Chunk]:  # fmt: skip
        """What was written and what is being written, in the order of each file, without what is superseded by then.

        :param tasks: those that are meant, see ``Wanted``, also ones that have not started yet; None: all.
        :param interval: seconds between two looks.
        :param until: called before each look; when it gives True, that look is the last one. None: when the latest
            attempts of all these tasks have ended (a failed task may be tried again, and one may start: you may know).
        """
        chosen, streams = None if tasks is None else list(tasks), _read_stream(stream)
        positions: dict[str, int] = {}
        while True:
            last = self._have_ended(chosen) if until is None else until()
            self.refresh()
            keys = None if chosen is None else {(t.job, t.number) for each in chosen for t in self.find(each)}
            for file in self._shown_files():
                begin = positions.get(file.path, len(MAGIC))
                positions[file.path] = file.position
                yield from self._news(file, begin, keys, streams)
            if last:
                return
            time.sleep(interval)  # no event tells what is written on another node

    def _have_ended(self, chosen: list[Wanted] | None) -> bool:
        found = [self.tasks] if chosen is None else [self.find(each) for each in chosen]
        return all(tasks and all(task.latest.ended is not None for task in tasks) for tasks in found)

    def _news(
        self, file: StreamFile, begin: int, keys: set[tuple[int, int]] | None, streams: frozenset[int]
    ) -> Iterator[Chunk]:
        for head, data in file.outputs(begin, file.position):
            task = self._tasks[head.job, head.task]
            wanted = head.stream in streams and (keys is None or (head.job, head.task) in keys)
            if wanted and head.attempt == task.latest.number:
                yield Chunk(task, head.attempt, "stdout" if head.stream == 1 else "stderr", data, head.time)


def render(
    directory: str | os.PathLike[str] | StreamDirectory, tasks: Iterable[Wanted] | None = None, stream: str = "stdout",
    *, headings: bool | None = None, superseded: bool = False,
) -> Iterator[str]:  # fmt: skip
    """The output of tasks as text, piece by piece, one task after the other by their numbers.

    :param directory: a directory with stream files, or what has been read of it.
    :param tasks: those that are meant, in this order, see ``Wanted``; None: all.
    :param stream: "stdout", "stderr" or "both".
    :param headings: whether a line before each task names it; None: if there are several.
    :param superseded: whether earlier attempts are there, too.
    :raises StreamError: as :class:`StreamDirectory` and :meth:`StreamDirectory.chunks`.
    """
    output = directory if isinstance(directory, StreamDirectory) else StreamDirectory(directory)
    shown_tasks = output.select(tasks)
    _read_stream(stream)
    wanted = [(task, each) for task in shown_tasks for each in (output.attempts(task) if superseded else [task.latest])]
    with_headings = len(wanted) > 1 if headings is None else headings
    text = "\n"
    for task, attempt in wanted:
        if with_headings:
            yield _heading(task, attempt) if text.endswith("\n") else "\n" + _heading(task, attempt)
        for text in _decoded(output.chunks(task, stream, attempt.number)):
            yield text


def _words_for(tasks: Iterable[StreamedTask]) -> tuple[dict[str, list[StreamedTask]], dict[str, list[StreamedTask]]]:
    """The tasks by their names and those of their arrays, and by their numbers."""
    names: dict[str, list[StreamedTask]] = {}
    numbers: dict[str, list[StreamedTask]] = {}
    for task in tasks:
        numbers.setdefault(str(task.number), []).append(task)
        for name in {task.name, task.name.partition("[")[0]} - {""}:
            names.setdefault(name, []).append(task)
    return names, numbers


def _heading(task: StreamedTask, attempt: StreamedAttempt) -> str:
    again = f", attempt {attempt.number}" if attempt.number > 1 else ""
    return f"==> {task.title}{again} on {attempt.host} <==\n"


def _decoded(chunks: Iterable[bytes]) -> Iterator[str]:
    """A letter may be in two pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for data in chunks:
        if text := decoder.decode(data):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest


def _read_stream(stream: str) -> frozenset[int]:
    if stream not in _STREAMS:
        raise ValueError(f"stream={shown(stream)}: expected {', '.join(map(repr, _STREAMS))}")
    return _STREAMS[stream]
