"""Payloads to and from an agent that does not see the files of the session: in pieces, beside all other traffic.

    Start --> Transfers.send --pieces that the agent lacks, then Run--> Link.send_bulk
    Piece --> Transfers.take_reports --> a file here;  Finished --> its body names the files here

Until its last piece is on the way, a task can be withdrawn without asking the agent, which has not heard of it.
"""

from __future__ import annotations

import logging
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from worker_agent import bodies, protocol
from worker_agent.link import Link
from worker_agent.pieces import Received, read_piece

log = logging.getLogger("executor")

#: Bytes of payloads that stay with an agent although no task there needs them, in case that one comes again.
KEPT = 256 * 2**20
#: The name of a payload in its directory, as :mod:`worker_agent.store` makes them.
_PAYLOAD = re.compile(r"\d+-\d+-[0-9a-f]{8}")
#: Ends whose body is a sentence, and no outcome of a call.
_EXPLAINED = frozenset({protocol.NOT_STARTED, protocol.LOST, protocol.COMPLETED, protocol.NO_OUTPUT})


@dataclass(slots=True, eq=False)
class _Copy:
    """A payload of ours, and how much of it was sent."""

    stored: protocol.Stored
    sent: int = 0
    users: int = 0


@dataclass(slots=True, eq=False)
class _Sending:
    """A task whose payloads are needed on the agent, and the order that waits for them, until that was sent."""

    run: protocol.Run
    copies: list[_Copy]
    waits: bool = True


class Transfers:
    """What was and is sent to one agent and comes from it. Used from the hub's thread only."""

    def __init__(
        self, link: Link, stores: list[str], on_failure: Callable[[protocol.Finished], None], kept: int = KEPT
    ) -> None:
        """``on_failure`` is told how a task ended whose payloads cannot be read any more."""
        self._link = link
        self._on_failure = on_failure
        self._kept = kept
        self._copies: dict[str, _Copy] = {}
        #: those that no task needs, the longest idle first
        self._idle: OrderedDict[str, int] = OrderedDict()
        self._idle_size = 0
        self._sendings: dict[int, _Sending] = {}
        self._received = Received(stores)

    # --- to the agent -------------------------------------------------------------------------------------------------

    def send(self, run: protocol.Run, payloads: Sequence[protocol.Stored]) -> None:
        """Send the order when the agent has all of the ``payloads``. Followed by :meth:`done`."""
        sending = self._sendings[run.task] = _Sending(run, [self._copy(stored) for stored in payloads])
        if all(copy.sent == copy.stored.size for copy in sending.copies):
            self._send_run(sending)
        else:
            self._link.send_bulk(self._pieces(sending))

    def _copy(self, stored: protocol.Stored) -> _Copy:
        copy = self._copies.get(stored.path)
        if copy is None:
            copy = self._copies[stored.path] = _Copy(stored)
        copy.users += 1
        self._idle_size -= self._idle.pop(stored.path, 0)
        return copy

    def _pieces(self, sending: _Sending) -> Iterator[protocol.Piece]:
        """What is still missing when its turn comes: another task may have sent it, or a part of it."""
        for copy in sending.copies:
            while sending.waits and copy.sent < copy.stored.size:
                try:
                    piece = read_piece(copy.stored.path, copy.stored.size, copy.sent)
                except OSError as error:
                    self._fail(sending, error)
                    return
                copy.sent += len(piece.data)
                yield piece
        if sending.waits:
            self._send_run(sending)

    def _send_run(self, sending: _Sending) -> None:
        sending.waits = False
        self._link.send(sending.run)

    def _fail(self, sending: _Sending, error: OSError) -> None:
        sending.waits = False
        log.warning("the payloads of task %d cannot be sent: %s", sending.run.task, error)
        self._on_failure(_failed(sending.run.task, sending.run.attempt, error))

    def withdraw(self, task: int) -> bool:
        """Whether the agent has not been told of the task; then it will never be."""
        sending = self._sendings.get(task)
        if sending is None or not sending.waits:
            return False
        sending.waits = False
        return True

    def done(self, task: int) -> None:
        """The agent needs the task's payloads no more."""
        sending = self._sendings.pop(task, None)
        if sending is None:
            return
        sending.waits = False
        for copy in sending.copies:
            copy.users -= 1
            if copy.users == 0:
                self._idle[copy.stored.path] = copy.stored.size
                self._idle_size += copy.stored.size
                if _is_of_one_task(copy.stored, sending.run):
                    self._idle.move_to_end(copy.stored.path, last=False)
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        dropped = []
        while self._idle_size > self._kept:
            path, size = self._idle.popitem(last=False)
            self._idle_size -= size
            del self._copies[path]
            dropped.append(path)
        if dropped:
            self._link.send(protocol.Drop(dropped))

    # --- from the agent -----------------------------------------------------------------------------------------------

    def take_reports(self, reports: list[protocol.Report]) -> list[protocol.Report]:
        """The reports without the pieces in them, which become files of ours, as do those of outcomes."""
        kept: list[protocol.Report] = []
        for report in reports:
            if isinstance(report, protocol.Piece):
                self._received.receive(report)
            elif isinstance(report, protocol.Finished) and report.end in (protocol.VALUE, protocol.ERROR):
                kept.append(self._localized(report))
            else:
                kept.append(report)
        return kept

    def _localized(self, report: protocol.Finished) -> protocol.Finished:
        files: list[tuple[str, int]] = []
        try:
            files = bodies.files_of(report.body)
            if files:
                here = [(self._received.path(name, size), size) for name, size in files]
                report.body = bodies.with_files(report.body, here)
        except (OSError, ValueError) as error:
            log.warning("the outcome of task %d has not arrived: %s", report.task, error)
            for name, _ in files:
                self._received.remove(name)
            return _failed(report.task, report.attempt, error)
        for name, _ in files:
            self._received.hand_over(name)
        return report

    def close(self) -> None:
        """The agent is gone: nothing is sent any more, and what came in part is removed."""
        for sending in self._sendings.values():
            sending.waits = False
        self._received.clear()


def check_outcome(report: protocol.Finished, stores: list[str]) -> None:
    """An outcome may name payloads of its session and nothing else: what it names is read, and removed after that.

    One that names others becomes an error.
    """
    if report.end in _EXPLAINED:
        return
    try:
        report.body = _checked(report.body, stores)
    except (OSError, ValueError) as error:
        log.warning("the outcome of task %d is not to be had: %.300s", report.task, error)
        report.end, report.body = protocol.ERROR, bodies.dump_error(error, [])


def check_error(report: protocol.Unprepared, stores: list[str]) -> bool:
    """Whether its error names payloads of its session and nothing else, if it names any."""
    try:
        report.error = _checked(report.error, stores)
    except (OSError, ValueError):
        return False
    return True


def _checked(body: bytes, stores: list[str]) -> bytes:
    if body[:1] == bodies.ELSEWHERE:
        _check_is_payload(body[1:].decode(), stores)
        body = bodies.whole(body)
    if body[:1] in bodies.WITH_FILES:
        for path, _ in bodies.files_of(body):
            _check_is_payload(path, stores)
    return body


def _check_is_payload(path: str, stores: list[str]) -> None:
    if os.path.dirname(path) not in stores or not _PAYLOAD.fullmatch(os.path.basename(path)):
        raise ValueError(f"{path[:200]!r} is no payload of this session")


def _is_of_one_task(stored: protocol.Stored, run: protocol.Run) -> bool:
    """Whether it is the pickle of the task's arguments itself: no other task has that, so it goes first."""
    return isinstance(run.body, protocol.Call) and stored is run.body.args


def _failed(task: int, attempt: int, error: Exception) -> protocol.Finished:
    return protocol.Finished(task, attempt, protocol.ERROR, bodies.dump_error(error, []))
