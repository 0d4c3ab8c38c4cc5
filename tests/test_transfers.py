"""Payloads for agents that do not see the session's files: pieces, in their turn, and what passes them."""

# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import errno
import hashlib
import json
import os
import queue
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pools import failure, new_executor, outcome
from test_invited import Join, join
from waiting import pass_gate, wait_until

from executor import CAPTURE, HPCExecutor, Program
from executor.errands import Errands
from executor.transfers import Transfers
from worker_agent import bodies, codec, link, pieces, protocol, store
from worker_agent.link import Link
from worker_agent.pieces import Received, read_pieces
from worker_agent.protocol import Call, Drop, Finished, Piece, Run, Stored

pytestmark = pytest.mark.shared

MIB = 2**20


class Sender:
    """The hub's side for one agent, and what its link would put on the wire."""

    def __init__(self, tmp_path: Path, kept: int = 10 * MIB) -> None:
        self.directory = tmp_path / "hub"
        self.directory.mkdir()
        self.link = Link(codec.encode_message, codec.cut_message)
        self.failed: list[Finished] = []
        #: what waits for the hub's thread
        self.posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.errands = Errands(self.posted.put)
        #: ends that wait for their outputs, where these are wanted, and the files
        self.placed: list[tuple[Finished, Any, protocol.Tree]] = []
        self.transfers = Transfers(
            self.link, [str(self.directory)], self.failed.append, self.errands,
            lambda *placed: self.placed.append(placed), kept,
        )  # fmt: skip

    def store(self, size: int, letter: bytes = b"x") -> Stored:
        """A new payload."""
        return Stored(*store.store(letter * size, [str(self.directory)]))

    def send(self, task: int, *payloads: Stored, args: bytes | Stored = b"") -> None:
        """Start a task."""
        run = Run(1, task, 1, Call(1, args, [each for each in payloads if each is not args]))
        self.transfers.send(run, payloads)

    def take(self) -> list[Any]:
        """The messages of the next frame."""
        batch = self.link.take(0.0)
        return [] if batch is None else [codec._order.decode(data) for data in batch.messages]

    def acknowledge(self) -> None:
        """The agent has received all that was sent."""
        self.link.acknowledged(self.link._acked + self.link._on_wire, False, 0.0)

    def take_all(self) -> list[Any]:
        """All messages that there are."""
        messages: list[Any] = []
        while more := self.take():
            messages += more
            self.acknowledge()
        return messages


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[Sender]:
    sender = Sender(tmp_path)
    yield sender
    sender.transfers.close()


def names(messages: list[Any]) -> list[Any]:
    """The tasks that run, and the files of which there are pieces, once for each row of them."""
    made: list[Any] = []
    for each in messages:
        name = each.task if isinstance(each, Run) else each.path if isinstance(each, Piece) else each
        if not made or made[-1] != name:
            made.append(name)
    return made


# ---- to the agent


def test_a_task_follows_the_pieces_of_its_payloads(sender: Sender, tmp_path: Path) -> None:
    first, second = sender.store(MIB + 1, b"a"), sender.store(10, b"b")
    sender.send(7, first, second)
    messages = sender.take_all()
    assert names(messages) == [first.path, second.path, 7]
    received = Received([str(tmp_path)])
    for each in messages[:-1]:
        received.receive(each)
    assert Path(received.path(first.path, first.size)).read_bytes() == b"a" * (MIB + 1)
    assert Path(received.path(second.path, second.size)).read_bytes() == b"b" * 10


def test_what_the_agent_has_is_not_sent_again(sender: Sender) -> None:
    common, own = sender.store(100), sender.store(100)
    sender.send(1, common)
    sender.send(2, common, own)
    sender.send(3, own)
    assert names(sender.take_all()) == [common.path, 1, own.path, 2, 3]
    sender.send(4, common)
    assert names(sender.take_all()) == [4]


def test_other_messages_pass_a_large_payload(sender: Sender) -> None:
    large = sender.store(10 * MIB)
    sender.send(1, large)
    while sender.take():
        pass  # as much as may be on the way
    sender.link.send(protocol.Recall(5, 1))
    assert sender.take() == [protocol.Recall(5, 1)]
    sender.acknowledge()
    assert names(sender.take_all()) == [large.path, 1]


def test_no_more_of_large_payloads_is_on_the_way_than_the_window_for_them(sender: Sender) -> None:
    sender.send(1, sender.store(10 * MIB))
    under_way = 0
    while messages := sender.take():
        under_way += sum(len(each.data) for each in messages)
    assert link.BULK_WINDOW <= under_way <= link.BULK_WINDOW + pieces.PIECE


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_task_that_is_withdrawn_is_never_sent_and_the_next_one_goes_on_where_it_stopped(
    sender: Sender, taken: int
) -> None:
    common = sender.store(3 * MIB)
    sender.send(1, common)
    sender.send(2, common)
    messages = [each for _ in range(taken) for each in sender.take()]
    assert sender.transfers.withdraw(1)
    sender.transfers.done(1)
    sender.acknowledge()
    messages += sender.take_all()
    assert names(messages) == [common.path, 2]
    assert sum(len(each.data) for each in messages[:-1]) == common.size


def test_a_task_that_was_sent_cannot_be_withdrawn(sender: Sender) -> None:
    sender.send(1, sender.store(100))
    sender.take_all()
    assert not sender.transfers.withdraw(1)
    assert not sender.transfers.withdraw(2)


def test_payloads_that_nobody_needs_go_when_there_are_too_many_the_oldest_first(tmp_path: Path) -> None:
    sender = Sender(tmp_path, kept=250)
    first, second, third = (sender.store(100) for _ in range(3))
    for task, payload in enumerate((first, second, third), 1):
        sender.send(task, payload)
    sender.take_all()
    for task in (1, 2):
        sender.transfers.done(task)
    assert sender.take() == []
    sender.transfers.done(3)
    assert sender.take() == [Drop([first.path])]
    sender.acknowledge()
    sender.send(4, first, second)
    assert names(sender.take_all()) == [first.path, 4]


def test_the_arguments_of_a_task_go_before_what_others_may_need(tmp_path: Path) -> None:
    sender = Sender(tmp_path, kept=150)
    common, args = sender.store(100), sender.store(100)
    sender.send(1, common, args, args=args)
    sender.take_all()
    sender.transfers.done(1)
    assert sender.take() == [Drop([args.path])]


def test_a_payload_in_use_stays_whatever_its_size(tmp_path: Path) -> None:
    sender = Sender(tmp_path, kept=10)
    common = sender.store(100)
    sender.send(1, common)
    sender.send(2, common)
    sender.take_all()
    sender.transfers.done(1)
    assert sender.take() == []
    sender.transfers.done(2)
    assert sender.take() == [Drop([common.path])]


def test_a_task_whose_payload_has_vanished_fails_and_the_others_go_on(sender: Sender) -> None:
    gone, there = sender.store(2 * MIB), sender.store(100)
    sender.send(1, gone)
    sender.send(2, there)
    os.unlink(gone.path)
    assert names(sender.take_all()) == [there.path, 2]
    [failed] = sender.failed
    assert (failed.task, failed.end) == (1, protocol.ERROR)
    assert b"FileNotFoundError" in failed.body


def test_a_payload_that_is_shorter_than_it_was_is_an_error(sender: Sender) -> None:
    stored = sender.store(2 * MIB)
    sender.send(1, stored)
    os.truncate(stored.path, MIB)
    sender.take_all()
    assert b"it ends after 1048576 of 2097152 bytes" in sender.failed[0].body


# ---- from the agent


def ended(files: list[tuple[str, int]], rest: bytes = b"rest") -> Finished:
    return Finished(1, 1, protocol.VALUE, bodies.with_files(b"\1\2\0\0\0[]" + rest, files))


def test_the_files_of_an_outcome_become_files_here(sender: Sender, tmp_path: Path) -> None:
    path, size = store.store(b"y" * MIB, [str(tmp_path)])
    reports: list[Any] = [*read_pieces(path, size), protocol.Warn("between"), ended([(path, size)])]
    warning, finished = sender.transfers.take_reports(reports)
    assert warning == protocol.Warn("between")
    [(here, length)] = bodies.files_of(finished.body)
    assert (Path(here).parent, length) == (sender.directory, size)
    assert Path(here).read_bytes() == b"y" * MIB
    assert bodies.pickle_of(finished.body) == b"rest"


@pytest.mark.parametrize("name", ["/etc/passwd", "../key", "unknown"])
def test_an_outcome_cannot_name_files_that_were_not_sent(sender: Sender, name: str) -> None:
    [finished] = sender.transfers.take_reports([ended([(name, 5)])])
    assert finished.end == protocol.ERROR
    assert b"has not arrived" in finished.body


def test_a_file_that_did_not_arrive_whole_is_not_taken(sender: Sender) -> None:
    piece = Piece("a", 0, b"123")
    [finished] = sender.transfers.take_reports([piece, ended([("a", 5)])])
    assert finished.end == protocol.ERROR


def test_pieces_out_of_order_are_an_error_of_their_payload_alone(tmp_path: Path) -> None:
    received = Received([str(tmp_path)])
    for piece in (Piece("a", 0, b"12"), Piece("a", 3, b"4"), Piece("b", 0, b"12"), Piece("a", 2, b"34")):
        received.receive(piece)
    with pytest.raises(OSError, match="a piece at 3 came after 2 bytes"):
        received.path("a", 4)
    assert Path(received.path("b", 2)).read_bytes() == b"12"


def test_what_came_from_an_agent_that_is_gone_is_removed(sender: Sender) -> None:
    sender.transfers.take_reports([Piece("a", 0, b"123")])
    assert len(list(sender.directory.iterdir())) == 1
    sender.transfers.close()
    assert not list(sender.directory.iterdir())


def test_a_full_disk_is_the_error_of_the_outcome(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(fd: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    [finished] = sender.transfers.take_reports([Piece("a", 0, b"123"), Piece("a", 3, b"4"), ended([("a", 4)])])
    assert finished.end == protocol.ERROR
    assert b"No space left on device" in finished.body


# ---- messages in fragments


@pytest.mark.parametrize("size", [0, 1, MIB - 100, MIB, 3 * MIB, 5 * MIB + 17])
def test_a_message_of_any_size_arrives_whole(size: int) -> None:
    run = Run(1, 2, 3, protocol.Command(["cat"], os.urandom(size)))
    sender, receiver = (Link(codec.encode_message, codec.cut_message) for _ in range(2))
    joiner = codec.Joiner(protocol.Order)
    for message in (protocol.Recall(1, 1), run, protocol.Recall(2, 1)):
        sender.send(message)
    arrived: list[Any] = []
    while (batch := sender.take(0.0)) is not None and batch.messages:
        assert sum(map(len, batch.messages)) < 2 * MIB
        messages = [codec._order.decode(data) for data in batch.messages]
        arrived += joiner.join(receiver.receive(batch.first, messages, 0.0))
        sender.acknowledged(batch.first + len(messages) - 1, False, 0.0)
    assert arrived == [protocol.Recall(1, 1), run, protocol.Recall(2, 1)]


def test_fragments_that_make_no_message_are_an_error_and_what_follows_is_read() -> None:
    joiner = codec.Joiner(protocol.Report)
    with pytest.raises(codec.ProtocolError, match="5 bytes cannot be read"):
        joiner.join([protocol.Fragment(b"rub", last=False), protocol.Fragment(b"ed", last=True)])
    assert joiner.join([protocol.Warn("next")]) == [protocol.Warn("next")]


def test_no_more_is_gathered_than_the_longest_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "LONGEST_MESSAGE", 10)
    joiner = codec.Joiner(protocol.Report)
    with pytest.raises(codec.ProtocolError, match="longer than 10 bytes"):
        joiner.join([protocol.Fragment(b"123456", last=False)] * 2)


# ---- with an agent that does not see our files


def digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def twice(value: Any) -> Any:
    return value * 2


def place_of_payloads() -> str:
    return os.environ["HPC_SESSION_STORES"]


def complain(data: bytes) -> None:
    raise ValueError(data)


@pytest.fixture
def elsewhere(new_executor: Callable[..., HPCExecutor], join: Join, tmp_path: Path) -> Iterator[HPCExecutor]:
    """An executor whose one agent does not see the files of the session."""
    executor = new_executor(2, agents=0)
    join(moved(executor.invite(host="127.0.0.1").path, tmp_path))
    yield executor
    executor.shutdown()


def moved(invitation: str, tmp_path: Path) -> Path:
    """The invitation as another machine would find it: the directories are not there."""
    connection = json.loads(Path(invitation).read_bytes())
    connection["stores"] = connection["directory"] = None
    connection.update(stores=[str(tmp_path / "not-here")], directory=str(tmp_path / "not-here"))
    copy = tmp_path / f"{connection['launch']}.json"
    copy.write_text(json.dumps(connection))
    copy.chmod(0o600)
    return copy


def test_large_arguments_and_results_travel_to_another_machine(elsewhere: HPCExecutor) -> None:
    data = os.urandom(5 * MIB)
    assert outcome(elsewhere.submit(digest, data)) == digest(data)
    assert outcome(elsewhere.submit(twice, data)) == data * 2
    array = np.arange(300_000.0)
    assert (outcome(elsewhere.submit(twice, array)) == array * 2).all()
    assert (outcome(elsewhere.submit(twice, [array, data]))[3]) == data
    assert isinstance(failure(elsewhere.submit(complain, data)), ValueError)
    [worker] = elsewhere.workers()
    assert not worker.local


def test_its_files_lie_in_directories_of_its_own_and_go_with_it(
    elsewhere: HPCExecutor, join: Join, tmp_path: Path
) -> None:
    outcome(elsewhere.submit(digest, os.urandom(MIB)))
    places = outcome(elsewhere.submit(place_of_payloads)).split(os.pathsep)
    assert elsewhere._hub is not None
    assert not set(places) & set(elsewhere._hub.directories.stores)
    for place in places:
        assert os.stat(place).st_mode & 0o777 == 0o700
    elsewhere.shutdown()
    wait_until(lambda: not any(map(os.path.exists, places)))


def test_a_large_function_travels_once(elsewhere: HPCExecutor) -> None:
    table = bytes(range(256)) * 1000

    def look_up(index: int) -> int:
        return table[index]

    assert [outcome(elsewhere.submit(look_up, index)) for index in (0, 1, 255)] == [0, 1, 255]


def test_a_standard_input_and_an_output_larger_than_any_frame(elsewhere: HPCExecutor) -> None:
    text = b"0123456789abcde\n" * (20 * MIB // 16)
    done = outcome(elsewhere.options(stdout=CAPTURE, output_limit=40 * MIB).submit(Program(["cat"], stdin=text)))
    assert done.stdout == text.decode()


def test_small_tasks_pass_a_large_one(elsewhere: HPCExecutor) -> None:
    large = elsewhere.submit(digest, os.urandom(40 * MIB))
    small = [outcome(elsewhere.submit(pow, number, 2)) for number in range(5)]
    assert small == [0, 1, 4, 9, 16]
    assert not large.done()
    outcome(large)


def test_a_task_whose_argument_is_on_its_way_can_be_cancelled_and_killed(elsewhere: HPCExecutor) -> None:
    data = [os.urandom(20 * MIB) for _ in range(3)]
    first, second, third = (elsewhere.submit(digest, each) for each in data)
    third.kill()
    assert second.cancel() or outcome(second) == digest(data[1])
    assert "killed" in str(failure(third))
    assert outcome(first) == digest(data[0])


def test_an_agent_elsewhere_that_dies_while_it_is_sent_an_argument_costs_nothing_but_time(
    new_executor: Callable[..., HPCExecutor], join: Join, tmp_path: Path
) -> None:
    executor = new_executor(1, agents=0, lease=1)
    first = join(moved(executor.invite(host="127.0.0.1").path, tmp_path))
    outcome(executor.submit(pow, 2, 3))
    data = os.urandom(30 * MIB)
    future = executor.submit(digest, data)
    wait_until(lambda: future.attempt == 1)
    first.kill()
    join(moved(executor.invite(host="127.0.0.1").path, tmp_path))
    assert outcome(future) == digest(data)


def test_outcomes_that_come_twice_as_large_as_the_window_do_not_hold_up_the_end(
    new_executor: Callable[..., HPCExecutor], join: Join, tmp_path: Path
) -> None:
    executor = new_executor(2, agents=0)
    agent = join(moved(executor.invite(host="127.0.0.1").path, tmp_path))
    futures = [executor.submit(bytes, 5 * MIB) for _ in range(4)]
    executor.shutdown()
    assert [len(outcome(future)) for future in futures] == [5 * MIB] * 4
    assert agent.wait(10) == 0
