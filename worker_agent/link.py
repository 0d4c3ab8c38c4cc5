"""One side of a conversation that forgets nothing, over a wire that may lose, double and reorder frames.

Messages are numbered from 1 on. What is sent is kept until the other side has acknowledged it; what comes is handed on
once and in order. Every frame says how far its sender has received, so that acknowledgements cost no frames of their
own while there is traffic. Large payloads come in pieces from a second queue, which waits while there is anything else.

Pure: no socket, no clock, no thread. Times are seconds of a clock that never goes back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

#: Bytes that may be on the way and not acknowledged; then the sender waits (credit). One message is always allowed.
WINDOW = 8 * 2**20
#: Of these, what pieces of large payloads may take: the rest of the way is for heartbeats and small tasks.
BULK_WINDOW = 2 * 2**20
#: Bytes of messages in a frame, unless a single one is larger.
FRAME_BYTES = 256 * 1024
#: Bytes of a message that goes as one.
LARGEST = 1024 * 1024
#: Messages in a frame.
FRAME_MESSAGES = 4096
#: Seconds after which something that was received is acknowledged, if no frame has done it by then.
ACK_DELAY = 0.05
#: Seconds without an acknowledgement after which the first message is sent once more; doubled each time.
RESEND_AFTER = 2.0
RESEND_AFTER_MOST = 16.0

Message = TypeVar("Message")


class Batch(NamedTuple):
    """What goes into a frame: the number of the first message, the messages, encoded, and how far we have received.

    ``misses`` says that something between ``ack`` and what came last is missing.
    """

    first: int
    messages: list[bytes]
    ack: int
    misses: bool


class Link:
    """The numbers and queues of one side."""

    __slots__ = (
        "_acked", "_bulk", "_bulk_bytes", "_cut", "_encode", "_misses", "_on_wire", "_owes_since", "_patience",
        "_probing", "_received", "_resend_at", "_sent_again", "_sizes", "_unacked", "_unacked_bytes", "_waiting",
    )  # fmt: skip

    def __init__(self, encode: Callable[[object], bytes], cut: Callable[[bytes], Sequence[bytes]]) -> None:
        """``encode`` gives the bytes of a message; ``cut`` makes several of those of one that is too large."""
        self._encode, self._cut = encode, cut
        self._waiting: deque[object] = deque()
        self._bulk: deque[Iterator[object]] = deque()
        #: the messages after ``_acked``, and for each whether it belongs to a large payload
        self._unacked: deque[bytes] = deque()
        self._sizes: deque[int] = deque()
        self._unacked_bytes = self._bulk_bytes = 0
        self._acked = 0
        #: how many of ``_unacked`` are on the wire
        self._on_wire = 0
        #: up to here all was on the wire when we last went back because of a miss
        self._sent_again = 0
        self._received = 0
        self._misses = False
        self._owes_since: float | None = None
        self._resend_at: float | None = None
        self._patience = RESEND_AFTER
        self._probing = False

    # --- sending ------------------------------------------------------------------------------------------------------

    def send(self, message: object) -> None:
        """Send a message, after those that wait."""
        self._waiting.append(message)

    def send_bulk(self, messages: Iterator[object]) -> None:
        """Send messages that are large: they are asked for one by one, when there is room and nothing else to send.

        ``messages`` may itself call :meth:`send`, when all of them have been taken, with what is to follow them.
        """
        self._bulk.append(messages)

    @property
    def has_bulk(self) -> bool:
        """Whether large payloads wait for their turn."""
        return bool(self._bulk)

    @property
    def can_send(self) -> bool:
        """Whether :meth:`take` has messages to give: new ones, or what was lost."""
        if self._on_wire < len(self._unacked):
            return not (self._probing and self._on_wire)
        room = not self._unacked or (self._unacked_bytes < WINDOW and not self._probing)
        return room and bool(self._waiting or (self._bulk and self._bulk_bytes < BULK_WINDOW))

    @property
    def idle(self) -> bool:
        """Whether all that was sent has been acknowledged."""
        return not (self._waiting or self._bulk or self._unacked)

    def take(self, now: float) -> Batch | None:
        """What to put into a frame now, perhaps no message but the acknowledgement; None: nothing."""
        first, messages = self._acked + self._on_wire + 1, self._again() or self._new()
        if not messages:
            if self._owes_since is None or now < self._owes_since + ACK_DELAY:
                return None
            first = 0
        self._on_wire += len(messages)
        self._owes_since = None
        if self._resend_at is None and self._unacked:
            self._resend_at = now + self._patience
        misses, self._misses = self._misses, False
        return Batch(first, messages, self._received, misses)

    def acknowledge_now(self, now: float) -> None:
        """Let the next :meth:`take` give a frame whatever there is to say."""
        self._owes_since = now - ACK_DELAY

    def _again(self) -> list[bytes]:
        """What was on the wire and is lost, perhaps."""
        if self._on_wire >= len(self._unacked) or (self._probing and self._on_wire):
            return []
        most = 1 if self._probing else FRAME_MESSAGES
        return _up_to(FRAME_BYTES, islice(self._unacked, self._on_wire, self._on_wire + most))

    def _new(self) -> list[bytes]:
        messages: list[bytes] = []
        if self._probing or not (self._waiting or self._bulk):
            return messages
        room, size = WINDOW - self._unacked_bytes, 0
        while len(messages) < FRAME_MESSAGES and size < FRAME_BYTES and (size < room or not self._unacked):
            message, bulk = self._next()
            if message is None:
                break
            data = self._encode(message)
            if len(data) > LARGEST:
                messages.append(self._keep_parts(data, bulk))
                break
            messages.append(data)
            size += len(data)
            self._keep(data, bulk)
        return messages

    def _keep_parts(self, data: bytes, bulk: bool) -> bytes:
        """Keep a message in parts; gives the first, the others go with the next frames."""
        parts = self._cut(data)
        for part in parts:
            self._keep(part, bulk)
        return parts[0]

    def _next(self) -> tuple[object | None, bool]:
        while not self._waiting and self._bulk and self._bulk_bytes < BULK_WINDOW:
            message = next(self._bulk[0], None)
            if message is not None:
                return message, True
            self._bulk.popleft()
        return (self._waiting.popleft() if self._waiting else None), False

    def _keep(self, data: bytes, bulk: bool) -> None:
        self._unacked.append(data)
        self._sizes.append(len(data) if bulk else 0)
        self._unacked_bytes += len(data)
        self._bulk_bytes += self._sizes[-1]

    # --- receiving ----------------------------------------------------------------------------------------------------

    def receive(self, first: int, messages: Sequence[Message], now: float) -> Sequence[Message]:
        """The messages that are new, in order; none if some before them are missing, which the sender will learn."""
        if not messages:
            return messages
        if self._owes_since is None:
            self._owes_since = now
        known = self._received + 1 - first
        if known < 0:
            self._misses = True
            self.acknowledge_now(now)
            return ()
        new = messages[known:] if known else messages
        self._received += len(new)
        return new

    def acknowledged(self, number: int, misses: bool, now: float) -> None:
        """The other side has received all up to this number, and perhaps misses what follows.

        Each frame that overtakes another makes a miss: what was sent again for one is not sent again for the next, or
        a wire that reorders would carry ever more. If it is lost once more, :meth:`tick` finds out.
        """
        self._forget_up_to(number, now)
        if misses and number == self._acked >= self._sent_again:
            self._sent_again = self._acked + self._on_wire
            self.go_back()

    def _forget_up_to(self, number: int, now: float) -> None:
        count = number - self._acked
        if not 0 < count <= len(self._unacked):
            return
        for _ in range(count):
            self._unacked_bytes -= len(self._unacked.popleft())
            self._bulk_bytes -= self._sizes.popleft()
        self._acked = number
        self._on_wire = max(0, self._on_wire - count)
        self._probing, self._patience = False, RESEND_AFTER
        self._resend_at = now + RESEND_AFTER if self._unacked else None

    def go_back(self) -> None:
        """The connection was made anew, or the other side misses something: send again what is not acknowledged."""
        self._on_wire, self._probing, self._resend_at = 0, False, None

    # --- time ---------------------------------------------------------------------------------------------------------

    def due(self) -> float | None:
        """When :meth:`tick` and :meth:`take` should be called again, if nothing else happens."""
        if self._owes_since is None:
            return self._resend_at
        ack = self._owes_since + ACK_DELAY
        return ack if self._resend_at is None else min(ack, self._resend_at)

    def tick(self, now: float) -> None:
        """Time has passed: perhaps the last frames were lost, and the other side cannot know."""
        if self._resend_at is not None and now >= self._resend_at:
            self._on_wire, self._probing = 0, True  # one message only: it may be slow, and not deaf
            self._sent_again = 0
            self._patience = min(2 * self._patience, RESEND_AFTER_MOST)
            self._resend_at = now + self._patience


def _up_to(most: int, messages: Iterator[bytes]) -> list[bytes]:
    """The first messages that have at most so many bytes together; always one, if there is one."""
    taken: list[bytes] = []
    size = 0
    for message in messages:
        if taken and size + len(message) > most:
            break
        taken.append(message)
        size += len(message)
    return taken
