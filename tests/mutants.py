"""Frames that are almost right, from a seed: what a peer that is broken or hostile sends."""

from __future__ import annotations

import json
import math
import pickle
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from worker_agent import codec, protocol
from worker_agent.connection import Connection, write_connection
from worker_agent.pools import UNIT, Place, Pool, Share
from worker_agent.protocol import PROTOCOL, Call, Command, Orders, Reports, Settings, Stored, Tail, Usage

_NUMBERS = (1, 0, False, 0.5)
_HELLO = protocol.Hello(
    launch="l", process="p", name="n", host="node7", pid=17, python="3.12.1", cloudpickle="3.0",
    pools=[Pool("cpus", [["0", "1"], ["2", "3"]]), Pool("memory", size=7 * UNIT)], group="g", remaining=60.0,
)  # fmt: skip
_FINISHED = protocol.Finished(
    7, 1, "value", b"\3\x80\5K\1.", 0, 17, 1.0, 2.0, Usage(0.1, 0.2, 10**7), Tail(b"out", 3), Tail(),
    outputs=protocol.Tree([protocol.SentFile("c", "/c", 1, 0o600)], ["d"]),
)  # fmt: skip
_REPORTS: list[protocol.Report] = [
    _HELLO, protocol.Unprepared(1, "no python9", b"error"), protocol.Started(7, 1, 17, 1.5e9),
    protocol.Output(7, 1, 1, b"text"), _FINISHED, protocol.Recalled(7, 1, True),
    protocol.Freed(1, [0, 1]), protocol.Leaving("told to"), protocol.Warn("careful"),
    protocol.Bye("done"), protocol.Seen(1, ["/a"]),
]  # fmt: skip
_PREPARE = protocol.Prepare(
    environment=1, python=["python3"], start="fork", max_tasks=1, cwd="/", path=["/a"], env={"A": "b"},
    raw=[(b"\xff", b"\xfe")], preload=["json"], initializer=Stored("/s", 9), authkey=b"k", argv=["x"], version="3.12.1",
)  # fmt: skip
_TREE = protocol.Tree([protocol.SentFile("c", "/c", 1, 0o600)], ["d"])
_FILES = protocol.Files(task_dir=True, inputs={"a": "/a"}, outputs={"b": "/b"}, removed=[1], numbered=True, sent=_TREE)
_SETTINGS = Settings(env={"A": None, "B": "c"}, cwd="/", stdout="", stderr="/e", time_limit=3.0, files=_FILES,
                     stream=protocol.StreamTo("/d", 1, 2, "n"))  # fmt: skip
_ORDERS: list[protocol.Order] = [
    protocol.Welcome(3, "n", 5.0, 30.0), protocol.Fence(3), protocol.Refuse("n", "no"), _PREPARE,
    protocol.Define(1, b"function"), protocol.Forget([1, 2]),
    protocol.Open(1, 1, [("cpus", "1.5")], 0), protocol.Take(1, 1), protocol.Close(1),
    protocol.Give(1, [Place(0, [Share("cpus", UNIT * 3 // 2, ["0", "1"]), Share("memory", UNIT)])]),
    protocol.Run(1, 7, 1, Call(1, b"args", [Stored("/s", 9)]), _SETTINGS),
    protocol.Run(1, 7, 1, Command(["ls", "-l"], b"text")), protocol.Recall(7, 1), protocol.Kill(7, 1, 15, 2.0),
    protocol.Stop(15, 2.0), protocol.Look(1, {"/a": "1"}),
]  # fmt: skip
_CONNECTION = Connection(
    protocol=PROTOCOL, endpoints=["tcp://10.0.0.1:4000"], session="s", launch="l", client_pid=0, client_start=0,
    directory="/d", stores=["/a", "/b"], pools=[Pool("cpus", [["0"]])],
    server_key="k" * 40, public_key="p" * 40, secret_key="s" * 40,
)  # fmt: skip

#: What no frame of ours has: bombs, lengths beyond all that follows, numbers at the ends of their ranges.
_TRAPS: list[bytes] = [
    b"", b"\x91" * 3000, b"\x81\xa1k" * 1000, b"\x81" * 500, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\1", b"\xdc\xff\xff", b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + b"\0" * 7, b"\xcb" + struct.pack(">d", math.nan), b"\xcb" + struct.pack(">d", -math.inf),
    b"\xca\x7f\x80\0\0", b"\xc1", b"\xd6\xff" + b"\xff" * 4, b"\xc7\x0c\xff" + b"\xff" * 12, b"\x81\x80\1",
    b"\x81\x91\x80\1", b"\x81\x81\1\1\1", b"\xa4\xed\xa0\x80x", b"\xc0", b"\xc3", b"\x90", b"\xa0", b"\xc4\0",
    b"\xa7started", b"\xa8finished", b"\xa5hello", b"[" * 2000, b'{"a":' * 1000, b"1e999", b"9" * 500, b"\\ud800",
]  # fmt: skip
_VALUES: list[Any] = [
    None, True, -1, 0, 2**63, 2**64 - 1, -(2**63), 0.5, math.nan, math.inf, "", "x" * 40, b"", b"y" * 40, [], [[]], {},
    {"a": []}, [None] * 20, ["hello"], ["finished", 1, 1, "value"],
]  # fmt: skip


def good_frames(session: str = "session", epoch: int = 3) -> list[bytes]:
    """Frames that are right: one for each kind of message, some with many, some with none."""
    head = (PROTOCOL, session, epoch, *_NUMBERS)
    frames: list[Orders | Reports] = [Reports(*head, [each]) for each in _REPORTS]
    frames += [Orders(*head, [each]) for each in _ORDERS]
    frames += [Reports(*head, _REPORTS), Orders(*head, _ORDERS), Reports(*head, []), Orders(*head, [])]
    return [codec.encode(frame) for frame in frames]


def good_connections() -> list[bytes]:
    """Connection data that are right."""
    return [write_connection(_CONNECTION)]


def mutants(seed: int, good: list[bytes]) -> Iterator[bytes]:
    """Without end: changed copies of ``good``. The same seed gives the same."""
    dice = random.Random(seed)
    while True:
        yield dice.choice(_MUTATIONS)(dice, dice.choice(good), good)


def wild_reports(seed: int, tasks: int) -> Iterator[protocol.Report]:
    """Without end: reports of the right types, about any of so many tasks or none, with any values."""
    dice = random.Random(seed)
    values: dict[Any, list[Any]] = {
        int: [*range(tasks + 1), -1, 2**31, 2**63, 2**64 - 1, -(2**63)], str: ["", "value", "error", "lost", "x" * 300],
        float: [0.0, -1.0, 1e308, math.nan, math.inf, -math.inf], bool: [True, False], bytes: [b"", *_BODIES],
        list[str]: [[], ["numpy"]], list[int]: [[], [0], [0, 0, 1, -1], [2**63]], float | None: [None, -1.0, math.nan],
        list[Pool]: [[], [Pool("cpus", [["0"]])], [Pool("cpus", size=2**63)]],
        protocol.Memory | None: [None, protocol.Memory(-1, 2**63, "")],
        protocol.Tree | None: [None, protocol.Tree([protocol.SentFile("../x", "1-2-00", -1, 0o7777)], ["/", ".."])],
        Usage: [Usage(math.nan, -1.0, 2**63)], int | None: [None, -9, 0, 2**63], Tail | None: [None, Tail(b"x", 2**63)],
    }  # fmt: skip
    kinds = (protocol.Hello, protocol.Started, protocol.Output, protocol.Finished, protocol.Recalled, protocol.Piece,
             protocol.Freed, protocol.Seen)  # fmt: skip
    choices = [(kind, {each.name: values[each.type] for each in msgspec.structs.fields(kind)}) for kind in kinds]
    while True:
        kind, fields = dice.choice(choices)
        yield kind(**{name: dice.choice(any_of) for name, any_of in fields.items()})


_BODIES = [
    b"\0", b"\0" + pickle.dumps([1]), b"\3" + pickle.dumps(5), b"\3" + pickle.dumps(len), b"\0035", b"\3[",
    b"\1\2\0\0\0[]K\1.", b"\1\xff", b"\2\1", b"\4/dev/null", b"\4/dev/zero", b"\4\0", b"\7",
    b"\0" + b"(" * 1000, b"\x80" * 50,
]  # fmt: skip


def _flip(dice: random.Random, data: bytes, good: list[bytes]) -> bytes:
    raw = bytearray(data)
    for _ in range(dice.randrange(1, 4)):
        raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
    return bytes(raw)


def _overwrite(dice: random.Random, data: bytes, good: list[bytes]) -> bytes:
    where = dice.randrange(len(data))
    return data[:where] + dice.randbytes(dice.randrange(1, 9)) + data[where + dice.randrange(9) :]


def _cut(dice: random.Random, data: bytes, good: list[bytes]) -> bytes:
    return data[: dice.randrange(len(data))]


def _splice(dice: random.Random, data: bytes, good: list[bytes]) -> bytes:
    other = dice.choice(good)
    return data[: dice.randrange(len(data))] + other[dice.randrange(len(other)) :]


def _trap(dice: random.Random, data: bytes, good: list[bytes]) -> bytes:
    where = dice.randrange(len(data))
    return data[:where] + dice.choice(_TRAPS) + data[where + dice.randrange(3) :]


def _noise(dice: random.Random, data: bytes, good: list[bytes]) -> bytes:
    return dice.randbytes(dice.randrange(64))


def _other_value(dice: random.Random, data: bytes, good: list[bytes]) -> bytes:
    """A field of a message, or of the frame, has a value of another type."""
    decode, encode = _codec(data)
    fields = decode(data)
    inner = fields
    while dice.randrange(3) and isinstance(inner, list) and (lists := [x for x in inner if isinstance(x, list) and x]):
        inner = dice.choice(lists)
    places = list(inner) if isinstance(inner, dict) else range(len(inner))
    inner[dice.choice(places)] = dice.choice(_VALUES)
    return encode(fields)


def _codec(data: bytes) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
    if data[:1] != b"{":
        return msgspec.msgpack.decode, msgspec.msgpack.encode
    return json.loads, lambda fields: json.dumps(fields, default=repr).encode()


_MUTATIONS = [_flip, _flip, _overwrite, _cut, _splice, _trap, _noise, _other_value]
