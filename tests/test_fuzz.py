"""Whatever comes: the decoders read it or say ProtocolError, and a live hub goes on with its work.

Seeds are fixed: a failure comes again.
"""

# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import itertools
import logging
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from handmade import HandmadeAgent, handmade
from mutants import good_connections, good_frames, mutants, wild_reports
from pools import new_executor, outcome
from waiting import wait_until

from executor import HPCExecutor
from executor.sparing_log import LINES_A_MINUTE
from worker_agent import codec
from worker_agent.codec import ProtocolError
from worker_agent.connection import Connection, read_connection
from worker_agent.pools import Pool
from worker_agent.protocol import Orders, Reports

pytestmark = pytest.mark.shared

#: Inputs of the decoders together.
DECODED = 1_000_000
#: Frames into the live port: as bytes of strangers, before a hello, after it, and of the right types.
STRANGE, BEFORE, AFTER, TYPED = (20_000, 25_000, 30_000, 25_000)
MEGABYTE = 2**20


def memory(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM the most since :func:`forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def forget_peak() -> None:
    """Let the kernel count VmHWM anew."""
    Path("/proc/self/clear_refs").write_text("5")


# ---- the decoders


@pytest.mark.parametrize(
    ("decode", "kind", "good", "share"),
    [
        (codec.decode_reports, Reports, good_frames(), 6),
        (codec.decode_orders, Orders, good_frames(), 3),
        (read_connection, Connection, good_connections(), 1),
    ],
    ids=["reports", "orders", "connection"],
)
def test_a_decoder_gives_what_it_should_or_one_error(
    decode: Callable[[Any], object], kind: type, good: list[bytes], share: int
) -> None:
    """D5: bombs, lengths, numbers; and nothing is kept of any of it."""
    count = DECODED * share // 10
    inputs = mutants(share, good)
    for data in itertools.islice(inputs, 1000):  # what is allocated once is allocated now
        accepted(decode, kind, data)
    forget_peak()
    before = memory("VmRSS")
    read = sum(accepted(decode, kind, data) for data in itertools.islice(inputs, count))
    assert memory("VmHWM") - before < 32 * MEGABYTE
    assert memory("VmRSS") - before < 8 * MEGABYTE
    assert 0 < read < count / 2  # the mutants are neither all right nor all far from it


def accepted(decode: Callable[[Any], object], kind: type, data: bytes) -> bool:
    """Whether it was read; any other error than the documented one shows the input."""
    try:
        frame = decode(data)
    except ProtocolError:
        return False
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__} for {data!r}") from error
    assert type(frame) is kind
    return True


# ---- a live hub


@pytest.fixture
def pool(new_executor: Callable[..., HPCExecutor], caplog: pytest.LogCaptureFixture) -> Iterator[HPCExecutor]:
    """An executor that listens; when the test is over it works as before, has not grown, and its log is short."""
    pool = new_executor(3, lease=2)  # with room, so that tasks of ours do not go to who has joined
    pool.invite(1, host="127.0.0.1")
    works(pool)
    before = memory("VmRSS")
    yield pool
    works(pool)
    assert memory("VmRSS") - before < 32 * MEGABYTE
    assert len([each for each in caplog.records if each.levelno >= logging.WARNING]) <= 2 * LINES_A_MINUTE
    assert max((len(each.getMessage()) for each in caplog.records), default=0) < 1000


def works(pool: HPCExecutor) -> None:
    assert outcome(pool.submit(pow, 2, 3)) == 8


def paced(pool: HPCExecutor, inputs: Iterator[bytes], count: int) -> Iterator[bytes]:
    """So many of the inputs; now and then the hub shows that it still works, and has read those before."""
    for number, data in enumerate(itertools.islice(inputs, count)):
        yield data
        if number % 2500 == 0:
            works(pool)


def test_bytes_of_strangers_harm_nobody(pool: HPCExecutor) -> None:
    """Of each connection the greeting is right, or half right; what follows is not."""
    assert pool._hub is not None
    port = int(pool._hub._agents.invitations.network.endpoints[0].rpartition(":")[2])
    inputs, dice = paced(pool, mutants(11, good_frames()), STRANGE), random.Random(12)
    while say_until_hung_up(port, inputs, dice):
        continue


def say_until_hung_up(port: int, inputs: Iterator[bytes], dice: random.Random) -> bool:
    """Whether there were inputs left."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
        try:
            peer.sendall(greeting(dice))
            for data in itertools.islice(inputs, 100):
                peer.sendall(command(data, dice))
        except OSError:
            return True
    return next(inputs, None) is not None


def greeting(dice: random.Random) -> bytes:
    mechanism = dice.choice([b"CURVE", b"NULL", b"PLAIN", b"\0", dice.randbytes(20)])
    whole = b"\xff" + bytes(8) + b"\x7f" + dice.choice([b"\3\0", b"\3\1", b"\1\0", b"\xff\xff"])
    whole += mechanism.ljust(20, b"\0") + bytes(32)
    return dice.choice([whole, whole, whole, whole[: dice.randrange(64)], dice.randbytes(64), b""])


def command(data: bytes, dice: random.Random) -> bytes:
    """A command of the handshake, or a message, with something else in it; or only that."""
    names = [b"HELLO", b"INITIATE", b"READY", b"ERROR", b"WELCOME", b"MESSAGE", b"PING", b""]
    name = dice.choice(names)
    body = bytes([len(name)]) + name + data[: dice.choice([10, 192, 194, 240])].ljust(194, b"\0")
    if len(body) > 255 or dice.random() < 0.2:
        return data
    return bytes([dice.choice([4, 4, 4, 0, 1, 2, 6, 0xFF]), len(body)]) + body


def test_frames_before_a_hello_harm_nobody(pool: HPCExecutor, handmade: Callable[..., HandmadeAgent]) -> None:
    agent = handmade(pool.invite(1, host="127.0.0.1"))
    session = agent.connection.session
    frames = good_frames(session, 0) + good_frames(session, 3) + good_frames()
    for data in paced(pool, mutants(13, frames), BEFORE):
        agent.socket.send(data)
    assert len(pool.workers()) == 1  # our key's launch has another name than those of the mutants


def test_frames_after_a_hello_harm_their_sender_only(
    pool: HPCExecutor, handmade: Callable[..., HandmadeAgent]
) -> None:
    agent = handmade(pool.invite(1, host="127.0.0.1")).join()
    frames = good_frames(agent.connection.session, agent.epoch) * 3 + good_frames(agent.connection.session, 0)
    frames = [frame for frame in frames if b"\xa3bye" not in frame]  # or it has left at once
    for data in paced(pool, mutants(14, frames), AFTER):
        agent.socket.send(data)
    agent.close()
    wait_until(lambda: len(pool.workers()) == 1)


def test_reports_with_any_values_harm_their_tasks_only(
    pool: HPCExecutor, handmade: Callable[..., HandmadeAgent]
) -> None:
    """They come in order and in the right epoch, and some are about tasks that their sender has."""
    agent = handmade(pool.invite(1, host="127.0.0.1"), pools=[Pool("cpus", [["0", "1"]])]).join()
    futures = [pool.options(crash_limit=0).submit(len, "ab") for _ in range(40)]
    for number, report in enumerate(itertools.islice(wild_reports(15, 45), TYPED)):
        agent.session.report(report)
        if number % 3 == 0:
            agent.step(0)
        if number % 5000 == 0:
            agent.until(lambda: agent.session.said_all)
    agent.until(lambda: agent.session.said_all)
    agent.leave()
    for future in futures:
        future.exception(20)
