"""Stream files as they are read: where each attempt's records are. The records: :mod:`worker_agent.records`.

Of an attempt the index knows the part of the file in which its records are, among others: so memory grows with the
number of attempts, and not with what they print. Files are open while they are read and not in between.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from executor.errors import StreamError
from worker_agent.records import HEAD_SIZE, MAGIC, Head, Kind, unpack_head


@dataclass(frozen=True, slots=True)
class Run:
    """The life of one executor: ``id``, and ``started``, the time of the first of its files (seconds since 1970)."""

    id: str
    started: float


@dataclass(slots=True, eq=False)
class Part:
    """A part of a file, from its first byte to the one after its last."""

    file: StreamFile
    begin: int
    end: int
    #: when its first record was written
    since: float


@dataclass(slots=True, eq=False)
class StreamedAttempt:
    """One attempt of a task: how it stands, and where its output is.

    ``number`` as ``future.attempt``, ``host``, ``started`` and ``ended`` (seconds since the epoch; None: not yet, or
    its agent was lost before it could say so), ``end`` (how it ended: "value" or "error" of a function, "completed" of
    a program, "exited" of a process that gave no result, "time", "kill", "memory", "lost", "returned"; "" before) and
    ``returncode`` (negative for a signal; None where there is none).
    """

    number: int
    host: str
    started: float | None = None
    ended: float | None = None
    end: str = ""
    returncode: int | None = None
    #: where its records are, among others; one, unless somebody has removed a file meanwhile
    parts: list[Part] = field(default_factory=list, repr=False)

    def note(self, file: StreamFile, offset: int, following: int, time: float) -> None:
        """A record of it lies there."""
        for part in self.parts:
            if part.file is file:
                part.end = following
                return
        self.parts.append(Part(file, offset, following, time))
        self.parts.sort(key=lambda part: part.since)


@dataclass(slots=True, eq=False)
class StreamedTask:
    """One task: its ``job`` (0: none), its ``number`` there, its ``name`` ("": none), and its attempts by number."""

    job: int
    number: int
    name: str = ""
    attempts: dict[int, StreamedAttempt] = field(default_factory=dict)

    @property
    def latest(self) -> StreamedAttempt:
        """The attempt that supersedes the others."""
        return self.attempts[max(self.attempts)]

    @property
    def title(self) -> str:
        """How headings and errors call it."""
        of_job = f" of job {self.job}" if self.job else ""
        return f"task {self.number}{of_job}" + (f" ({self.name})" if self.name else "")


class StreamFile:
    """One file, and how far it has been read."""

    def __init__(self, path: str) -> None:
        """Raises StreamError if it is no stream file."""
        self.path = path
        self.host = ""
        #: None as long as not even its first record is there
        self.run: Run | None = None
        #: where the first record is that was not read
        self.position = 0
        self.identify()

    def identify(self) -> None:
        """Read its first record, if that is there."""
        with open(self.path, "rb") as file:
            begin = file.read(len(MAGIC))
            if not MAGIC.startswith(begin):
                raise StreamError(_what_it_is(self.path, begin))
            for offset, head in self._scan(file, len(MAGIC)):
                try:
                    about = json.loads(_read(file, offset, head))
                    self.run, self.host = Run(about["run"], head.time), about["host"]
                except (ValueError, KeyError, TypeError) as error:
                    raise StreamError(_damaged(self.path, offset)) from error
                self.position = offset + HEAD_SIZE + head.length
                return

    def index(self, tasks: dict[tuple[int, int], StreamedTask]) -> None:
        """Note the records that were added since the last time. Raises StreamError if it is damaged."""
        with open(self.path, "rb") as file:
            for offset, head in self._scan(file, self.position):
                following = offset + HEAD_SIZE + head.length
                if head.kind in (Kind.START, Kind.OUTPUT, Kind.END):
                    task, attempt = self._whose(tasks, head)
                    attempt.note(self, offset, following, head.time)
                if head.kind == Kind.START:
                    task.name, attempt.started = _read(file, offset, head).decode(errors="replace"), head.time
                if head.kind == Kind.END:
                    self._note_end(attempt, head.time, _read(file, offset, head), offset)
                self.position = following

    def _whose(
        self, tasks: dict[tuple[int, int], StreamedTask], head: Head
    ) -> tuple[StreamedTask, StreamedAttempt]:
        task = tasks.get((head.job, head.task))
        if task is None:
            task = tasks[head.job, head.task] = StreamedTask(head.job, head.task)
        attempt = task.attempts.get(head.attempt)
        if attempt is None:
            attempt = task.attempts[head.attempt] = StreamedAttempt(head.attempt, self.host)
        return task, attempt

    def _note_end(self, attempt: StreamedAttempt, time: float, data: bytes, offset: int) -> None:
        try:
            word, _, number = data.decode().partition(" ")
            attempt.returncode = int(number) if number else None
        except ValueError as error:
            raise StreamError(_damaged(self.path, offset)) from error
        attempt.ended, attempt.end = time, word

    def outputs(self, begin: int, end: int) -> Iterator[tuple[Head, bytes]]:
        """The records of output that begin there."""
        with open(self.path, "rb") as file:
            for offset, head in self._scan(file, begin, end):
                if head.kind == Kind.OUTPUT:
                    yield head, _read(file, offset, head)

    def outputs_of(self, part: Part, key: tuple[int, int, int], streams: frozenset[int]) -> Iterator[bytes]:
        """What an attempt (job, task, attempt) has written."""
        with open(self.path, "rb") as file:
            for offset, head in self._scan(file, part.begin, part.end):
                if head.kind == Kind.OUTPUT and head[3:6] == key and head.stream in streams:
                    yield _read(file, offset, head)

    def _scan(self, file: BinaryIO, offset: int, end: int | None = None) -> Iterator[tuple[int, Head]]:
        """The heads of the whole records from there on: what its writer is writing, or died of, is not there yet."""
        size = os.fstat(file.fileno()).st_size if end is None else end
        while offset + HEAD_SIZE <= size:
            file.seek(offset)
            raw = file.read(HEAD_SIZE)
            if len(raw) < HEAD_SIZE:
                return  # the writer has cut it off meanwhile
            head = unpack_head(raw)
            if head is None:
                raise StreamError(_damaged(self.path, offset))
            if offset + HEAD_SIZE + head.length > size:
                return
            yield offset, head
            offset += HEAD_SIZE + head.length


def _read(file: BinaryIO, offset: int, head: Head) -> bytes:
    """The data of a record."""
    file.seek(offset + HEAD_SIZE)
    return file.read(head.length)


def _what_it_is(path: str, begin: bytes) -> str:
    if begin[:-2] == MAGIC[:-2]:
        return f"{path!r} is of version {begin[-2]} of the format; this HPCExecutor reads {MAGIC[-2]}: use a newer one"
    return f"{path!r} is no stream file of HPCExecutor: it begins with {begin!r}; move it out of the directory"


def _damaged(path: str, offset: int) -> str:
    return (
        f"{path!r} is damaged: there is no record at byte {offset}; what is before can be read after "
        f"truncate -s {offset} {path!r}"
    )
