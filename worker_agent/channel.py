"""What an agent and its interpreters say to each other, over the queues that ``spawning`` makes.

    tasks     one message is one task; whichever interpreter is idle takes it, so that the kernel is the queue
    starts    Started
    reports   Ended, Broken
    control   from the template: Forked, Exited, and Broken if it is the template that cannot be prepared

Tasks are tuples in ``marshal`` form: fast, in the standard library, and both ends are ours. Reports are a fixed binary
header and opaque bytes: what comes from a process that runs user code is never unpickled or unmarshalled here.
"""

from __future__ import annotations

import marshal
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from worker_agent import store
from worker_agent.descriptors import MESSAGE_LIMIT

#: marshal's format 4 is the same in every Python from 3.4 on.
_MARSHAL_VERSION = 4

#: In place of a task: whichever interpreter takes this leaves.
RETIRE = b"retire"
#: To a template: fork an interpreter for each of these bytes.
FORK = b"f"
#: To a template: fork an interpreter that is kept in a place, which follows in marshal form.
IN_PLACE = b"p"
#: To a template: what follows is for a lane, whose number and variables this has in marshal form, with its queues.
LANE = b"l"
#: What a message begins with that lies in a file of the session; no marshalled tuple begins so.
ELSEWHERE = b"@"

FORKED, STARTED, ENDED, EXITED, BROKEN = range(1, 6)
_FORKED = struct.Struct("<BqQ")
_STARTED = struct.Struct("<BQIqd")
_ENDED = struct.Struct("<BQIq?ddddqQI??")
_EXITED = struct.Struct("<Bqiddq")
_BROKEN = struct.Struct("<Bq?I")


class Task(NamedTuple):
    """A call for an interpreter. Payloads are bytes, or ``(path, size)`` of a stored one."""

    task: int
    attempt: int
    function_id: int
    function: Any
    args: Any
    buffers: list[tuple[str, int]]
    chunk: bool
    cwd: str | None
    env: dict[str, str | None]
    stdout: str | None
    stderr: str | None
    #: what the task sees of its place, and the CPUs there; an interpreter that is kept has its own
    variables: dict[str, str]
    cpus: list[int]
    pin: str
    inputs: list[bytes]


class Forked(NamedTuple):
    """The template forked an interpreter for a lane; the read ends of its stdout and stderr come with this message.

    The number of the lane is that of the template's order, and not the hub's.
    """

    pid: int
    lane: int


class Started(NamedTuple):
    """Interpreter ``pid`` took a task, at ``at`` seconds since the epoch."""

    task: int
    attempt: int
    pid: int
    at: float


class Ended(NamedTuple):
    """A call ended with a value or an error, which ``body`` holds.

    If the interpreter has taken its next task already, ``next_task`` and ``next_attempt`` name it. ``leaving`` says
    that this was its last task. With ``printed`` there is output in its pipes; unless it leaves, it waits for its
    eventfd before it goes on, so that the output is this task's.
    """

    task: int
    attempt: int
    pid: int
    ok: bool
    started: float
    ended: float
    user: float
    system: float
    max_rss: int
    next_task: int
    next_attempt: int
    leaving: bool
    printed: bool
    body: bytes


class Exited(NamedTuple):
    """The template reaped an interpreter: its wait status and what it used."""

    pid: int
    status: int
    user: float
    system: float
    max_rss: int


class Broken(NamedTuple):
    """The initializer failed in process ``pid``, or (``preparing``) what comes before it: a sentence and an error."""

    pid: int
    text: str
    error: bytes
    preparing: bool = False


Report = Forked | Started | Ended | Exited | Broken


class GarbledReport(ValueError):
    """Bytes on the report socket that are no report."""


def pack_lane(number: int, variables: dict[str, str]) -> bytes:
    """To a template: what follows is for this lane, whose tasks see these variables; with the queues' descriptors."""
    return LANE + marshal.dumps((number, variables), _MARSHAL_VERSION)


def unpack_lane(message: bytes | memoryview) -> tuple[int, dict[str, str]]:
    """What :func:`pack_lane` made."""
    number, variables = marshal.loads(message[1:])  # noqa: S302  its agent is the only one that a template hears
    return number, variables


def pack_place(variables: dict[str, str], cpus: list[int]) -> bytes:
    """To a template: what the tasks of an interpreter see of the place where it is kept, and the CPUs there."""
    return IN_PLACE + marshal.dumps((variables, cpus), _MARSHAL_VERSION)


def unpack_place(message: bytes | memoryview) -> tuple[dict[str, str], list[int]]:
    """What :func:`pack_place` made."""
    variables, cpus = marshal.loads(message[1:])  # noqa: S302  as above
    return variables, cpus


def pack_task(task: Task, stores: list[str]) -> bytes:
    """The message for a task; if that is too large, the name of a file in ``stores`` that holds it."""
    message = marshal.dumps(tuple(task), _MARSHAL_VERSION)
    if len(message) <= MESSAGE_LIMIT // 2:
        return message
    return ELSEWHERE + store.store(message, stores)[0].encode()


def unpack_task(message: bytes) -> tuple[Any, ...]:
    """The fields of a :class:`Task` in a message."""
    if message[:1] == ELSEWHERE:
        with open(message[1:], "rb") as file:
            message = file.read()
    return marshal.loads(message)  # type: ignore[no-any-return]  # noqa: S302  written by pack_task


def take_task(message: bytes) -> tuple[Any, ...]:
    """As :func:`unpack_task`, by who will run it: what lies in a file is removed."""
    task = unpack_task(message)
    drop_task(message)
    return task


def drop_task(message: bytes) -> None:
    """Nobody needs this message any more."""
    if message[:1] == ELSEWHERE:
        store.remove(message[1:].decode())


def pack_forked(pid: int, lane: int) -> bytes:
    """The message for :class:`Forked`."""
    return _FORKED.pack(FORKED, pid, lane)


def unpack_task_id(message: bytes) -> int:
    """Which task a message is about."""
    return int(unpack_task(message)[0])


def pack_started(task: int, attempt: int, pid: int, at: float) -> bytes:
    """The message for :class:`Started`."""
    return _STARTED.pack(STARTED, task, attempt, pid, at)


def pack_ended(*ended: float, body: bytes) -> bytes:
    """The message for :class:`Ended`: its fields in their order. No object is made; a fork pays for each page."""
    return _ENDED.pack(ENDED, *ended) + body


def pack_exited(exited: Exited) -> bytes:
    """The message for :class:`Exited`."""
    return _EXITED.pack(EXITED, *exited)


def pack_broken(broken: Broken) -> bytes:
    """The message for :class:`Broken`; text and error are cut to what a message can hold."""
    text = broken.text.encode(errors="replace")[: MESSAGE_LIMIT // 4]
    error = broken.error if len(broken.error) <= MESSAGE_LIMIT // 2 else b""
    return _BROKEN.pack(BROKEN, broken.pid, broken.preparing, len(text)) + text + error


def unpack_report(message: memoryview) -> Report:
    """The report in a message. Raises GarbledReport and nothing else."""
    try:
        read = _READERS[message[0]]
        return read(message)
    except (struct.error, KeyError, IndexError) as error:
        raise GarbledReport(f"{len(message)} bytes that are no report of an interpreter") from error


def _read_ended(message: memoryview) -> Ended:
    return Ended._make((*_ENDED.unpack_from(message)[1:], bytes(message[_ENDED.size :])))


def _read_broken(message: memoryview) -> Broken:
    _, pid, preparing, length = _BROKEN.unpack_from(message)
    rest = bytes(message[_BROKEN.size :])
    return Broken(pid, rest[:length].decode(errors="replace"), rest[length:], preparing)


_READERS: dict[int, Callable[[memoryview], Report]] = {
    FORKED: lambda message: Forked(*_FORKED.unpack(message)[1:]),
    STARTED: lambda message: Started(*_STARTED.unpack(message)[1:]),
    ENDED: _read_ended,
    EXITED: lambda message: Exited(*_EXITED.unpack(message)[1:]),
    BROKEN: _read_broken,
}
