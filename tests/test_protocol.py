"""Messages: what is sent arrives as it was, and what is no message is refused in one way."""

from __future__ import annotations

import json
import types
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker_agent import codec, protocol
from worker_agent.codec import ProtocolError, decode_orders, decode_reports, encode
from worker_agent.connection import Connection, read_connection, write_connection
from worker_agent.pools import Pool
from worker_agent.protocol import PROTOCOL, Finished, Orders, Reports, Run

pytestmark = pytest.mark.shared

SETTINGS = settings(
    max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
ORDERS = typing.get_args(protocol.Order)
REPORTS = typing.get_args(protocol.Report)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    str: st.text(),
    bytes: st.binary(),
    bool: st.booleans(),
    type(None): st.none(),
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that a field of a message has."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind in PLAIN:
        return PLAIN[kind]
    if origin is list:
        return st.lists(values(parts[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(values(parts[0]), values(parts[1]), max_size=3)
    if origin is tuple:
        return st.tuples(*map(values, parts))
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values(part) for part in parts])
    return messages(kind)


#: first, ack, misses, and echo or clock
NUMBERS = (1, 0, False, 0.0)


def messages(kind: Any) -> st.SearchStrategy[Any]:
    """Any message of a kind."""
    return st.builds(kind, **{field.name: values(field.type) for field in msgspec.structs.fields(kind)})


# ---- there and back


@pytest.mark.parametrize("kind", ORDERS, ids=lambda kind: kind.__name__)
@SETTINGS
@given(st.data())
def test_an_order_arrives_as_it_was_sent(kind: Any, data: st.DataObject) -> None:
    session, epoch = data.draw(st.text()), data.draw(st.integers(0, 2**63))
    frame = Orders(PROTOCOL, session, epoch, *NUMBERS, [data.draw(messages(kind))])
    assert decode_orders(encode(frame)) == frame


@pytest.mark.parametrize("kind", REPORTS, ids=lambda kind: kind.__name__)
@SETTINGS
@given(st.data())
def test_a_report_arrives_as_it_was_sent(kind: Any, data: st.DataObject) -> None:
    session, epoch = data.draw(st.text()), data.draw(st.integers(0, 2**63))
    frame = Reports(PROTOCOL, session, epoch, *NUMBERS, [data.draw(messages(kind))])
    assert decode_reports(encode(frame)) == frame


@SETTINGS
@given(st.lists(st.one_of([messages(kind) for kind in REPORTS]), max_size=5))
def test_messages_of_one_frame_keep_their_order(reports: list[Any]) -> None:
    assert decode_reports(encode(Reports(PROTOCOL, "s", 1, *NUMBERS, reports))).messages == reports


def test_the_kinds_of_messages_are_told_apart_by_their_tags() -> None:
    tags = [kind.__struct_config__.tag for kind in (*ORDERS, *REPORTS)]
    assert len(set(tags)) == len(tags) - 2 == 30  # pieces and fragments travel in both directions


def test_what_has_a_default_may_be_missing() -> None:
    """A frame of an older agent that does not know the last fields yet."""
    data = msgspec.msgpack.encode([PROTOCOL, "s", 1, *NUMBERS, [["finished", 7, 1, "value"]]])
    assert decode_reports(data).messages == [Finished(7, 1, "value")]


# ---- garbage


def refused(data: Any) -> None:
    """Either decoder gives a frame, or raises ProtocolError."""
    for decode in (decode_orders, decode_reports):
        try:
            frame = decode(data)
        except ProtocolError as error:
            assert str(error)
        else:
            assert isinstance(frame, Orders | Reports)


@SETTINGS
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    refused(data)


@SETTINGS
@given(st.data())
def test_a_frame_with_bytes_changed_is_read_or_refused(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from((*ORDERS, *REPORTS)))
    frame = Orders if kind in ORDERS else Reports
    raw = bytearray(encode(frame(PROTOCOL, "session", 1, *NUMBERS, [data.draw(messages(kind))])))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    refused(bytes(raw))


FRAME = encode(Orders(PROTOCOL, "session", 1, *NUMBERS, [Run(1, 2, 3, protocol.Command(["ls", "-l"], b"text"))]))


@pytest.mark.parametrize("length", range(len(FRAME)))
def test_a_frame_that_was_cut_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError, match=f"a frame of {length} bytes cannot be read"):
        decode_orders(FRAME[:length])


def test_a_frame_with_trailing_bytes_is_refused() -> None:
    with pytest.raises(ProtocolError):
        decode_orders(FRAME + b"\0")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x94\x01\xa1\xff\x00\x90", id="a text that is no UTF-8"),
        pytest.param(b"\x95\x01\xa1s\x00\x90" + b"\x91" * 100_000, id="lists in lists"),
        pytest.param(b"\x94\x01\xa0\x00\xdd\xff\xff\xff\xff", id="a list of four billion messages"),
        pytest.param(b"\x94\x01\xdb\xff\xff\xff\xff", id="a text of four gigabytes"),
        pytest.param(msgspec.msgpack.encode([PROTOCOL, "s", 1, *NUMBERS, [["nonsense", 1]]]), id="an unknown message"),
        pytest.param(msgspec.msgpack.encode([PROTOCOL, "s", 1, *NUMBERS, [["started", "x", 1, 1, 1.0]]]), id="type"),
        pytest.param(msgspec.msgpack.encode([PROTOCOL, "s", 1, *NUMBERS, [["started", 1]]]), id="fields missing"),
        pytest.param(msgspec.msgpack.encode([PROTOCOL, "s", 2**70 % 2**64, *NUMBERS, {"a": 1}]), id="a dictionary"),
        pytest.param(msgspec.msgpack.encode({"protocol": PROTOCOL}), id="not a list"),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    for decode in (decode_orders, decode_reports):
        with pytest.raises(ProtocolError):
            decode(data)


def test_reports_are_no_orders() -> None:
    report = encode(Reports(PROTOCOL, "s", 1, *NUMBERS, [protocol.Bye("done")]))
    with pytest.raises(ProtocolError):
        decode_orders(report)
    with pytest.raises(ProtocolError):
        decode_reports(FRAME)


@pytest.mark.parametrize("version", [0, PROTOCOL + 1, -1])
def test_another_version_of_the_protocol_is_refused_and_named(version: int) -> None:
    with pytest.raises(ProtocolError, match=f"speaks protocol {version}, this is protocol {PROTOCOL}"):
        decode_orders(encode(Orders(version, "s", 1, *NUMBERS, [])))
    with pytest.raises(ProtocolError, match=f"speaks protocol {version}"):
        decode_reports(encode(Reports(version, "s", 1, *NUMBERS, [])))


def test_a_version_with_other_fields_is_named_too() -> None:
    data = msgspec.msgpack.encode([PROTOCOL + 1, {"what": "nobody knows yet"}])
    for decode in (decode_orders, decode_reports):
        with pytest.raises(codec.OtherProtocol, match=f"speaks protocol {PROTOCOL + 1}"):
            decode(data)


# ---- connection data


@SETTINGS
@given(messages(Connection).map(lambda connection: msgspec.structs.replace(connection, protocol=PROTOCOL)))
def test_a_connection_arrives_as_it_was_written(connection: Connection) -> None:
    line = write_connection(connection)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert read_connection(line) == connection


GOOD = Connection(
    protocol=PROTOCOL, endpoints=["ipc:///x"], session="s", launch="l", client_pid=1, client_start=2, directory="/d",
    stores=["/a"], pools=[Pool("cpus", [["0", "1"]]), Pool("memory", size=5)],
)  # fmt: skip


def test_a_path_need_not_be_written() -> None:
    fields = json.loads(write_connection(GOOD))
    del fields["path"]
    assert read_connection(json.dumps(fields).encode()) == GOOD


@pytest.mark.parametrize("name", [field.name for field in msgspec.structs.fields(Connection) if field.required])
def test_a_connection_without_one_of_its_fields_is_refused(name: str) -> None:
    fields = json.loads(write_connection(GOOD))
    del fields[name]
    with pytest.raises(ProtocolError, match=rf"not the connection data of an agent: .*{name}"):
        read_connection(json.dumps(fields).encode())


def test_a_connection_of_another_version_is_refused_and_named() -> None:
    other = msgspec.structs.replace(GOOD, protocol=PROTOCOL + 1)
    with pytest.raises(ProtocolError, match=f"the hub speaks protocol {PROTOCOL + 1}, this agent protocol {PROTOCOL}"):
        read_connection(write_connection(other))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{}", id="no fields"),
        pytest.param(b"[1, 2]", id="a list"),
        pytest.param(b"\x00\xff", id="no text"),
        pytest.param(b'{"endpoint": "\xff"}', id="no UTF-8"),
        pytest.param(b'{"x": ' + b"[" * 100_000, id="lists in lists"),
    ],
)  # fmt: skip
def test_what_is_no_connection_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="not the connection data of an agent"):
        read_connection(data)


@SETTINGS
@given(st.binary(max_size=200))
def test_random_bytes_are_no_connection(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_connection(data)
