"""The messages between an agent and its interpreters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker_agent import channel, descriptors, spawning
from worker_agent.channel import Broken, Ended, Exited, Forked, GarbledReport, Report, Started, Task, unpack_report
from worker_agent.loop import Loop
from worker_agent.mailbox import Mailbox

pytestmark = pytest.mark.shared

SETTINGS = settings(
    max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
PIDS = st.integers(-(2**31), 2**31 - 1)
TASKS = st.integers(0, 2**63 - 1)
ATTEMPTS = st.integers(0, 2**32 - 1)
SECONDS = st.floats(allow_nan=False)
SIZES = st.integers(-(2**63), 2**63 - 1)
STORED = st.tuples(st.text(), st.integers(0, 2**50))
PAYLOADS = st.one_of(st.binary(), STORED)
PATHS = st.one_of(st.none(), st.text())

FORKED = st.builds(Forked, PIDS, TASKS)
EXITED = st.builds(Exited, PIDS, st.integers(-(2**31), 2**31 - 1), SECONDS, SECONDS, SIZES)
BROKEN = st.builds(Broken, PIDS, st.text(st.characters(exclude_categories=["Cs"])), st.binary())
ENDED = st.builds(
    Ended, TASKS, ATTEMPTS, PIDS, st.booleans(), SECONDS, SECONDS, SECONDS, SECONDS, SIZES, TASKS, ATTEMPTS,
    st.booleans(), st.booleans(), st.binary(),
)  # fmt: skip


def read(message: bytes) -> Report:
    return unpack_report(memoryview(message))


def pack(report: Report) -> bytes:
    """The message for a report, made in the way of its kind."""
    if isinstance(report, Ended):
        return channel.pack_ended(*report[:-1], body=report.body)
    if isinstance(report, Exited):
        return channel.pack_exited(report)
    if isinstance(report, Broken):
        return channel.pack_broken(report)
    return channel.pack_started(*report) if isinstance(report, Started) else channel.pack_forked(*report)


# ---- tasks


@SETTINGS
@given(
    st.builds(
        Task,
        TASKS,
        ATTEMPTS,
        TASKS,
        PAYLOADS,
        PAYLOADS,
        st.lists(STORED),
        st.booleans(),
        PATHS,
        st.dictionaries(st.text(), st.one_of(st.none(), st.text())),
        PATHS,
        PATHS,
    )  # fmt: skip
)
def test_a_task_arrives_as_it_was_sent(task: Task) -> None:
    message = channel.pack_task(task, [])
    assert Task(*channel.unpack_task(message)) == task
    assert channel.unpack_task_id(message) == task.task


def test_names_that_are_no_utf8_arrive_as_they_were() -> None:
    """Directories, variables and files of a node may have names in any bytes."""
    name = b"caf\xe9".decode(errors="surrogateescape")
    task = Task(1, 1, 1, b"", b"", [(name, 1)], False, name, {name: name}, name, name, {}, [], "", [])
    assert Task(*channel.unpack_task(channel.pack_task(task, []))) == task


def test_a_task_that_is_too_large_for_a_message_lies_in_a_file(tmp_path: Path) -> None:
    task = Task(1, 2, 3, b"", b"x" * descriptors.MESSAGE_LIMIT, [], False, None, {}, None, None, {}, [], "", [])
    message = channel.pack_task(task, [str(tmp_path)])
    assert len(message) < 1000
    assert Task(*channel.unpack_task(message)) == task


def test_no_task_looks_like_the_order_to_retire() -> None:
    task = Task(0, 0, 0, b"", b"", [], False, None, {}, None, None, {}, [], "", [])
    assert channel.pack_task(task, []) != channel.RETIRE


# ---- reports


@SETTINGS
@given(st.one_of(FORKED, st.builds(Started, TASKS, ATTEMPTS, PIDS, SECONDS), ENDED, EXITED, BROKEN))
def test_a_report_arrives_as_it_was_sent(report: Report) -> None:
    arrived = read(pack(report))
    assert arrived == report
    assert type(arrived) is type(report)


def test_a_report_holds_bytes_of_its_own() -> None:
    """The agent reads the next message into the same memory."""
    memory = bytearray(pack(Ended(1, 1, 7, True, 0.0, 1.0, 0.0, 0.0, 0, 0, 0, False, False, b"outcome")))
    report = unpack_report(memoryview(memory))
    memory[:] = bytes(len(memory))
    assert report[-1] == b"outcome"


def test_what_is_too_long_about_a_broken_interpreter_is_cut_so_that_it_arrives() -> None:
    message = channel.pack_broken(Broken(7, "x" * descriptors.MESSAGE_LIMIT, b"e" * descriptors.MESSAGE_LIMIT))
    assert len(message) <= descriptors.MESSAGE_LIMIT
    report = read(message)
    assert isinstance(report, Broken)
    assert (len(report.text), report.error) == (descriptors.MESSAGE_LIMIT // 4, b"")


def test_the_longest_error_that_is_kept_fits_beside_the_longest_text() -> None:
    error = b"e" * (descriptors.MESSAGE_LIMIT // 2)
    message = channel.pack_broken(Broken(7, "\u20ac" * descriptors.MESSAGE_LIMIT, error))
    assert len(message) <= descriptors.MESSAGE_LIMIT
    report = read(message)
    assert isinstance(report, Broken)
    assert report.error == error


def test_a_text_that_cannot_be_encoded_is_still_told() -> None:
    report = read(channel.pack_broken(Broken(7, "caf\udce9", b"")))
    assert report == Broken(7, "caf?", b"")


# ---- garbage


def refused(message: bytes) -> None:
    """A report, or GarbledReport, and no other exception."""
    try:
        report: Any = read(message)
    except GarbledReport as error:
        assert f"{len(message)} bytes" in str(error)
    else:
        assert isinstance(report, Forked | Started | Ended | Exited | Broken)


@SETTINGS
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(message: bytes) -> None:
    refused(message)


@SETTINGS
@given(st.integers(channel.FORKED, channel.BROKEN), st.binary(max_size=200))
def test_random_bytes_after_a_known_kind_are_refused_or_read(kind: int, rest: bytes) -> None:
    refused(bytes([kind]) + rest)


REPORTS = [
    Forked(7, 8),
    Started(1, 2, 7, 0.5),
    Ended(1, 2, 7, True, 0.0, 1.0, 0.0, 0.0, 0, 0, 0, False, False, b""),
    Exited(7, 0, 0.0, 0.0, 0),
    Broken(7, "", b""),
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_a_report_that_was_cut_is_refused(report: Report) -> None:
    message = pack(report)
    for length in range(len(message)):
        with pytest.raises(GarbledReport):
            read(message[:length])


@pytest.mark.parametrize("report", [REPORTS[0], REPORTS[1], REPORTS[3]], ids=lambda report: type(report).__name__)
def test_trailing_bytes_are_refused_where_a_report_has_one_length(report: Report) -> None:
    with pytest.raises(GarbledReport):
        read(pack(report) + b"\0")


@pytest.mark.parametrize("kind", [0, channel.BROKEN + 1, 255, ord("r")])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    with pytest.raises(GarbledReport):
        read(bytes([kind]) * 100)


def test_an_interpreter_cannot_be_told_to_leave_while_the_socket_is_full_and_then_it_can() -> None:
    """That the socket was full of tasks ended the agent once."""
    queues = spawning.Queues()
    loop = Loop()
    mailbox = Mailbox(loop, queues, [], print, print, print)
    told = 0
    while mailbox.retire_one():
        told += 1
    assert told > 1
    while told:
        assert queues.tasks_end.recv(descriptors.MESSAGE_LIMIT) == channel.RETIRE
        told -= 1
    assert mailbox.retire_one()
    mailbox.close()
    loop.close()
