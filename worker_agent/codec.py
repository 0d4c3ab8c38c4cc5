"""Messages and frames as bytes, and back: whatever comes from outside is checked here, and refused in one way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec

from worker_agent.link import LARGEST, Batch
from worker_agent.protocol import PROTOCOL, Fragment, Order, Orders, Report, Reports


class ProtocolError(ValueError):
    """A frame that is not what its type says: garbled, or of another protocol version."""


class OtherProtocol(ProtocolError):
    """The peer speaks another version of this protocol."""


#: No message is longer, in bytes: who sends more is no peer of ours.
LONGEST_MESSAGE: Final = 2**31

_encoder = msgspec.msgpack.Encoder()
_order: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_report: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)
_orders = msgspec.msgpack.Decoder(Orders)
_reports = msgspec.msgpack.Decoder(Reports)
_anything = msgspec.msgpack.Decoder()
Frame = TypeVar("Frame", Orders, Reports)


def encode(frame: Orders | Reports) -> bytes:
    """The bytes of a frame."""
    return _encoder.encode(frame)


def encode_message(message: object) -> bytes:
    """The bytes of a message, for a frame that is made later."""
    return _encoder.encode(message)


def cut_message(data: bytes) -> list[bytes]:
    """The bytes of the fragments of a message that is too large for a frame."""
    starts = range(0, len(data), LARGEST)
    return [_encoder.encode(Fragment(data[at : at + LARGEST], at + LARGEST >= len(data))) for at in starts]


class Joiner:
    """Makes whole messages of fragments, for one direction of a conversation."""

    __slots__ = ("_decoder", "_parts", "_size")

    def __init__(self, kind: Any) -> None:
        """``kind`` is :data:`Order` or :data:`Report`."""
        self._decoder: Any = _order if kind is Order else _report
        self._parts: list[bytes] = []
        self._size = 0

    def join(self, messages: Sequence[Any]) -> list[Any]:
        """The messages that are whole. Raises ProtocolError if fragments make none."""
        if Fragment not in map(type, messages):
            return list(messages)
        whole = []
        for message in messages:
            made = self._add(message) if type(message) is Fragment else message
            if made is not None:
                whole.append(made)
        return whole

    def _add(self, fragment: Fragment) -> Any:
        self._parts.append(fragment.data)
        self._size += len(fragment.data)
        if self._size > LONGEST_MESSAGE:
            self._parts, self._size = [], 0
            raise ProtocolError(f"a message is longer than {LONGEST_MESSAGE} bytes")
        if not fragment.last:
            return None
        data, self._parts, self._size = b"".join(self._parts), [], 0
        return _decode_with(self._decoder, data, "a message")


def make_frame(session: str, epoch: int, batch: Batch, time: float) -> bytes:
    """A frame of messages that are encoded already; ``time`` is the echo, or the clock."""
    messages = [msgspec.Raw(each) for each in batch.messages]
    return _encoder.encode((PROTOCOL, session, epoch, batch.first, batch.ack, batch.misses, time, messages))


def unnumbered_frame(session: str, epoch: int, message: Order | Report, time: float) -> bytes:
    """A frame of a message that belongs to no conversation: it begins or ends one."""
    return _encoder.encode((PROTOCOL, session, epoch, 0, 0, False, time, [message]))


def decode_orders(data: Any) -> Orders:
    """The orders in a frame. Raises ProtocolError and nothing else."""
    return _decode(_orders, data)


def decode_reports(data: Any) -> Reports:
    """The reports in a frame. Raises ProtocolError and nothing else."""
    return _decode(_reports, data)


def _decode(decoder: msgspec.msgpack.Decoder[Frame], data: Any) -> Frame:
    try:
        frame: Frame = _decode_with(decoder, data, "a frame")
    except ProtocolError:
        _check_version(_version_of(data))
        raise
    _check_version(frame.protocol)
    return frame


def _decode_with(decoder: msgspec.msgpack.Decoder[Any], data: Any, what: str) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise ProtocolError(f"{what} of {len(data)} bytes cannot be read: {error}") from error


def _check_version(version: int) -> None:
    if version != PROTOCOL:
        raise OtherProtocol(f"the peer speaks protocol {version}, this is protocol {PROTOCOL}")


def _version_of(data: Any) -> int:
    """What a frame says that cannot be read: another version may have other fields."""
    try:
        fields = _anything.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
        return PROTOCOL
    version = fields[0] if isinstance(fields, list) and fields else PROTOCOL
    return version if type(version) is int else PROTOCOL
