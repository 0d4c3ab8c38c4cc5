"""Payloads to and from an agent that does not see the files of the session: in pieces, beside all other traffic.

    Start --> Transfers.send --pieces that the agent lacks, then Run--> Link.send_bulk
    Piece --> Transfers.take_reports --> a file here;  Finished --> its body names the files here

Input files of programs go the same way, when they were looked at, unless the agent sees them, too (``sight``); a
Finished with outputs waits until they are in their places (``placing``).

Until its last piece is on the way, a task can be withdrawn without asking the agent, which has not heard of it.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec

from executor import input_files
from executor.errands import Errands
from executor.sight import Sight
from worker_agent import bodies, protocol, trees
from worker_agent.link import Link
from worker_agent.pieces import PIECE, Received, read_piece

log = logging.getLogger("executor")

#: Bytes of payloads that stay with an agent although no task there needs them, in case that one comes again.
KEPT = 256 * 2**20
#: The same of input files of programs, which lie on a disk there.
KEPT_FILES = 4 * 2**30
#: The name of a payload in its directory, as :mod:`worker_agent.store` makes them.
_PAYLOAD = re.compile(r"\d+-\d+-[0-9a-f]{8}")
#: Ends whose body is a sentence, and no outcome of a call.
_EXPLAINED = frozenset({protocol.NOT_STARTED, protocol.LOST, protocol.COMPLETED, protocol.NO_OUTPUT})


_NO_FILES = protocol.Files()


@dataclass(slots=True, eq=False)
class _Copy:
    """A payload of ours, and how much of it was sent."""

    stored: protocol.Stored
    #: if it is a user's
    file: trees.File | None = None
    sent: int = 0
    users: int = 0

    @property
    def is_sent(self) -> bool:
        """Whether all of it is on the way."""
        return self.sent == self.stored.size


@dataclass(slots=True, eq=False)
class _Sending:
    """A task whose payloads are needed on the agent, and the order that waits for them, until that was sent."""

    run: protocol.Run
    copies: list[_Copy]
    waits: bool = True
    #: of its input files, those that may be missing on the agent; None: they were not looked at
    inputs: deque[_Copy] | None = None
    #: by the paths of its inputs, as which versions of them the agent was asked for them
    versions: dict[str, str] = field(default_factory=dict)


class _Idle:
    """Copies on the agent that no task needs, the longest idle first, and how many bytes of them stay."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._size = 0

    def add(self, stored: protocol.Stored, first: bool) -> None:
        self._sizes[stored.path] = stored.size
        self._size += stored.size
        if first:
            self._sizes.move_to_end(stored.path, last=False)

    def use(self, path: str) -> None:
        self._size -= self._sizes.pop(path, 0)

    def drop(self) -> list[str]:
        """Those that are too many."""
        dropped = []
        while self._size > self._kept:
            path, size = self._sizes.popitem(last=False)
            self._size -= size
            dropped.append(path)
        return dropped


#: Told the end of a task, where its outputs are wanted, and which files of ours they are.
Place = Callable[[protocol.Finished, Mapping[str, str], protocol.Tree], None]


class Transfers:
    """What was and is sent to one agent and comes from it. Used from the hub's thread only."""

    def __init__(
        self, link: Link, stores: list[str], on_failure: Callable[[protocol.Finished], None], errands: Errands,
        place: Place, kept: int = KEPT, kept_files: int = KEPT_FILES,
    ) -> None:  # fmt: skip
        """``on_failure`` is told how a task ended whose payloads cannot be read any more.

        ``place`` puts outputs in their places.
        """
        self._link = link
        self._on_failure = on_failure
        self._errands = errands
        self._place = place
        self._copies: dict[str, _Copy] = {}
        self._idle, self._idle_files = _Idle(kept), _Idle(kept_files)
        self._sendings: dict[int, _Sending] = {}
        #: tasks with input files that are not yet on the way, one after the other
        self._with_inputs: deque[_Sending] = deque()
        self._received = Received(stores)
        self._sight = Sight(link.send)

    # --- to the agent -------------------------------------------------------------------------------------------------

    def send(self, run: protocol.Run, payloads: Sequence[protocol.Stored]) -> None:
        """Send the order when the agent has all of the ``payloads``. Followed by :meth:`done`."""
        sending = self._sendings[run.task] = _Sending(run, [self._copy(stored) for stored in payloads])
        if _files(run).inputs:
            self._with_inputs.append(sending)
            if len(self._with_inputs) == 1:
                self._send_inputs()
        else:
            self._send_payloads(sending)

    def _send_payloads(self, sending: _Sending) -> None:
        if all(copy.is_sent or copy.file is not None for copy in sending.copies):
            self._send_run(sending)
        else:
            self._link.send_bulk(self._pieces(sending))

    def _copy(self, stored: protocol.Stored, file: trees.File | None = None) -> _Copy:
        copy = self._copies.get(stored.path)
        if copy is None:
            copy = self._copies[stored.path] = _Copy(stored, file)
        copy.users += 1
        self._idle_of(copy).use(stored.path)
        return copy

    def _idle_of(self, copy: _Copy) -> _Idle:
        return self._idle if copy.file is None else self._idle_files

    def _pieces(self, sending: _Sending) -> Iterator[protocol.Piece]:
        """What is still missing when its turn comes: another task may have sent it, or a part of it."""
        for copy in sending.copies:
            while sending.waits and copy.file is None and not copy.is_sent:
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

    # --- input files: looked at and read on errands, one task after the other -----------------------------------------

    def _send_inputs(self) -> None:
        """Go on with the first task that has input files, as far as that can be done without waiting."""
        while self._with_inputs:
            sending = self._with_inputs[0]
            if sending.waits and self._start_errand(sending):
                return
            self._with_inputs.popleft()
            if sending.waits:
                self._send_payloads(sending)

    def _start_errand(self, sending: _Sending) -> bool:
        """Whether there is something of its inputs that we do not know yet."""
        if sending.inputs is None:
            stat = partial(input_files.versions, _files(sending.run).inputs)
            self._errands.start(stat, partial(self._on_versions, sending))
            return True
        while sending.inputs and sending.inputs[0].is_sent:
            sending.inputs.popleft()
        if sending.inputs:
            copy = sending.inputs[0]
            assert copy.file is not None
            read = partial(input_files.read_block, copy.file, copy.sent)
            self._errands.start(read, partial(self._on_read, sending, copy))
        return bool(sending.inputs)

    def _on_versions(self, sending: _Sending, versions: dict[str, str] | Exception) -> None:
        if isinstance(versions, Exception):
            self._fail_inputs(sending, versions)
            return
        sending.versions = versions
        if unknown := self._sight.unknown(versions):
            self._errands.start(partial(input_files.identify, unknown), partial(self._on_identified, sending, unknown))
        else:
            self._on_answered(sending)

    def _on_identified(
        self, sending: _Sending, unknown: dict[str, str], identities: dict[str, str] | Exception
    ) -> None:
        if isinstance(identities, Exception):
            self._fail_inputs(sending, identities)
        else:
            self._sight.ask(unknown, identities, partial(self._on_answered, sending))

    def _on_answered(self, sending: _Sending) -> None:
        """What the agent sees is linked there."""
        inputs, paths = _files(sending.run).inputs, self._sight.seen(sending.versions)
        seen = {name: path for name, path in inputs.items() if path in paths}
        unseen = {name: path for name, path in inputs.items() if path not in paths}
        if unseen:
            self._errands.start(partial(input_files.look, unseen), partial(self._on_looked, sending, seen))
        else:
            self._on_looked(sending, seen, trees.Found([], []))

    def _on_looked(self, sending: _Sending, seen: dict[str, str], found: trees.Found | Exception) -> None:
        if isinstance(found, Exception):
            self._fail(sending, found)
        elif sending.waits:
            sending.run = input_files.with_sent(sending.run, seen, found)
            copies = [self._copy(protocol.Stored(input_files.version(file), file.size), file) for file in found.files]
            sending.copies += copies
            sending.inputs = deque(copies)
        self._send_inputs()

    def _on_read(self, sending: _Sending, copy: _Copy, block: bytes | Exception) -> None:
        if isinstance(block, Exception):
            self._fail_inputs(sending, block)
        else:
            self._link.send_bulk(self._input_pieces(sending, copy, block))

    def _input_pieces(self, sending: _Sending, copy: _Copy, block: bytes) -> Iterator[protocol.Piece]:
        for start in range(0, len(block), PIECE):
            if not sending.waits:
                break
            data, offset = block[start : start + PIECE], copy.sent
            copy.sent += len(data)
            yield protocol.Piece(copy.stored.path, offset, data, on_disk=True)
        self._send_inputs()

    def _fail_inputs(self, sending: _Sending, error: Exception) -> None:
        self._fail(sending, error)
        self._send_inputs()

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _fail(self, sending: _Sending, error: Exception) -> None:
        if not sending.waits:
            return
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
                self._idle_of(copy).add(copy.stored, _is_of_one_task(copy.stored, sending.run))
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        dropped = self._idle.drop() + self._idle_files.drop()
        for path in dropped:
            del self._copies[path]
        if dropped:
            self._link.send(protocol.Drop(dropped))

    # --- from the agent -----------------------------------------------------------------------------------------------

    def take_reports(self, reports: list[protocol.Report]) -> list[protocol.Report]:
        """The reports without the pieces in them, which become files of ours, as do those of outcomes.

        The end of a task that has outputs is not among them: it is told when these are in their places.
        """
        kept: list[protocol.Report] = []
        for report in reports:
            if isinstance(report, protocol.Piece):
                self._received.receive(report)
            elif isinstance(report, protocol.Seen):
                self._sight.on_seen(report)
            elif isinstance(report, protocol.Finished) and report.end in (protocol.VALUE, protocol.ERROR):
                kept.append(self._localized(report))
            elif isinstance(report, protocol.Finished) and self._takes_outputs(report):
                continue
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

    def _takes_outputs(self, report: protocol.Finished) -> bool:
        """Whether its outputs are moved to their places now, and the report waits for that."""
        tree, report.outputs = report.outputs or protocol.Tree(), None
        self._send_anew_if_lost(report)
        wanted = self._wanted(report)
        try:
            if wanted:
                self._place(report, wanted, self._arrived(tree, wanted))
                return True
        except (OSError, ValueError) as error:
            log.warning("the outputs of task %d have not arrived: %s", report.task, error)
            report.end = protocol.NO_OUTPUT
            report.body = msgspec.json.encode(protocol.Uncollected(text=f"its outputs have not arrived: {error}"))
        for file in tree.files:
            self._received.remove(file.piece)
        return False

    def _wanted(self, report: protocol.Finished) -> Mapping[str, str]:
        """The outputs that the attempt has to give, and where to: only what we have told the agent counts."""
        sending = self._sendings.get(report.task)
        if sending is None or sending.waits or sending.run.attempt != report.attempt:
            return {}
        well = report.end == protocol.COMPLETED and report.returncode == 0
        return _files(sending.run).outputs if well else {}

    def _arrived(self, tree: protocol.Tree, wanted: Mapping[str, str]) -> protocol.Tree:
        """The same with our files as the pieces. Raises OSError, ValueError."""
        trees.check_names(tree, wanted)
        if len({file.piece for file in tree.files}) < len(tree.files):
            raise ValueError("its agent sent one file under several names")
        files = [msgspec.structs.replace(file, piece=self._received.sent_path(file)) for file in tree.files]
        for file in tree.files:
            self._received.hand_over(file.piece)
        return protocol.Tree(files, tree.folders)

    def _send_anew_if_lost(self, report: protocol.Finished) -> None:
        """The agent has lost a file that it was sent, or a task has written to it: the next one needs it again.

        Nor may it see any more what it has seen.
        """
        sending = self._sendings.get(report.task)
        if sending is None or report.end != protocol.NOT_STARTED:
            return
        self._sight.forget(sending.versions)
        if report.returncode == errno.ESTALE:
            for copy in sending.copies:
                if copy.file is not None:
                    copy.sent = 0

    def close(self) -> None:
        """The agent is gone: nothing is sent any more, and what came in part is removed."""
        for sending in self._sendings.values():
            sending.waits = False
        self._received.clear()


def has_files(run: protocol.Run) -> bool:
    """Whether it is a task with inputs or outputs."""
    return _files(run).in_scratch


def _files(run: protocol.Run) -> protocol.Files:
    return (run.settings and run.settings.files) or _NO_FILES


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
    """A program without an input has not started."""
    if isinstance(error, input_files.InputError):
        text = str(error.strerror).encode(errors="replace")
        return protocol.Finished(task, attempt, protocol.NOT_STARTED, text, error.errno)
    return protocol.Finished(task, attempt, protocol.ERROR, bodies.dump_error(error, []))
