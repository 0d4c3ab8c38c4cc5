"""Wires that fail: the way to the hub is a relay on loopback that drops, freezes, crumbles, changes or repeats bytes.

Whatever it does, each task has its one result from one attempt: who changes bytes can end a connection, and no more.
"""

# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from histories import History, note_and_give, stamp_until
from pools import PATIENCE, new_executor, outcome
from relays import Change, Relay, Sometimes, crumble, flip_a_bit, lose, repeat
from test_invited import Join, join
from waiting import announced, wait_until

from executor import HPCExecutor
from executor.invitations import Invitation

pytestmark = pytest.mark.heavy

TASKS = 30


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """A history; its task ends with the test at the latest."""
    history = History(tmp_path)
    yield history
    history.open()


def port_of(invitation: Invitation) -> int:
    """Where the hub listens."""
    [endpoint] = invitation.endpoints
    return int(endpoint.rpartition(":")[2])


def epochs(executor: HPCExecutor) -> list[int]:
    """Of the agents that belong to the hub now, by their numbers: what else is in an epoch cannot be guessed."""
    return [member.epoch >> 40 for member in executor._hub._agents._members]


def check_each_ran_once(executor: HPCExecutor, path: Path) -> None:
    """Many small tasks have their results, at the first attempt, and none has run twice."""
    futures = [executor.submit(note_and_give, str(path), number) for number in range(TASKS)]
    assert [outcome(future) for future in futures] == [(number, bytes(number) * 1000) for number in range(TASKS)]
    assert {future.attempt for future in futures} == {1}
    assert sorted(announced(path)) == list(range(TASKS))


def test_a_connection_that_is_dropped_is_made_anew_and_no_task_notices(
    join: Join, new_executor: Callable[..., HPCExecutor], tmp_path: Path, history: History
) -> None:
    """C10."""
    executor = new_executor(1, agents=0)
    invitation = executor.invite(host="127.0.0.1")
    with Relay(port_of(invitation)) as relay:
        join(relay.invitation(invitation, tmp_path))
        running = executor.submit(stamp_until, *history.paths)
        [pid] = history.wait_attempts(1)
        relay.drop()
        check_each_ran_once(executor, tmp_path / "ran")
        history.open()
        assert (outcome(running), running.attempt) == (pid, 1)
        assert relay.connections == 2
        executor.shutdown()
    assert epochs(executor) == []


@pytest.mark.parametrize(("lease", "kept"), [(2, True), (60, False)])
def test_a_firewall_that_drops_idle_connections(
    join: Join, new_executor: Callable[..., HPCExecutor], tmp_path: Path, history: History, lease: int, kept: bool
) -> None:
    """D12: signs of life keep the connection; where they are too rare for that firewall, it is made anew."""
    executor = new_executor(1, agents=0, lease=lease)
    invitation = executor.invite(host="127.0.0.1")
    with Relay(port_of(invitation), idle=2.0) as relay:
        join(relay.invitation(invitation, tmp_path))
        running = executor.submit(stamp_until, *history.paths)
        [pid] = history.wait_attempts(1)
        if kept:
            wait_until(lambda: history.stamps()[-1][1] - history.stamps()[0][1] > 3e9)
        else:
            wait_until(lambda: relay.connections == 2)
        history.open()
        assert (outcome(running), running.attempt) == (pid, 1)
        assert (relay.connections, relay.dropped) == ((1, 0) if kept else (2, 1))
        executor.shutdown()


def test_a_connection_that_is_dead_and_was_never_closed_is_given_up(
    join: Join, new_executor: Callable[..., HPCExecutor], tmp_path: Path, history: History
) -> None:
    """D12: a firewall that has forgotten a connection swallows what comes by it. A new one would work."""
    executor = new_executor(1, agents=0, lease=3)
    invitation = executor.invite(host="127.0.0.1")
    with Relay(port_of(invitation)) as relay:
        join(relay.invitation(invitation, tmp_path))
        running = executor.submit(stamp_until, *history.paths)
        [pid] = history.wait_attempts(1)
        relay.freeze()
        check_each_ran_once(executor, tmp_path / "ran")
        history.open()
        assert (outcome(running), running.attempt) == (pid, 1)
        assert epochs(executor) == [1]
        executor.shutdown()


CHANGES: dict[str, Callable[[], Change]] = {
    "crumbled": lambda: crumble,
    "flipped": lambda: Sometimes(flip_a_bit, every=20, most=3),
    "repeated": lambda: Sometimes(repeat, every=20, most=3),
    "lost": lambda: Sometimes(lose, every=20, most=3),
    "greeting": lambda: Sometimes(flip_a_bit, every=1, most=1, spared=0),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_a_wire_does_to_bytes_each_task_runs_once(
    join: Join, new_executor: Callable[..., HPCExecutor], tmp_path: Path, what: str
) -> None:
    """T11, D12. A piece that is repeated may look like the head of a frame that never ends: the wire is silent then."""
    executor, change = new_executor(1, agents=0, lease=5), CHANGES[what]()
    invitation = executor.invite(host="127.0.0.1")
    with Relay(port_of(invitation), change) as relay:
        join(relay.invitation(invitation, tmp_path))
        for number in range(3):
            check_each_ran_once(executor, tmp_path / f"ran-{number}")
        assert epochs(executor) == [1]
        if isinstance(change, Sometimes):
            assert change.done >= 1
        executor.shutdown()


def test_a_conversation_that_is_played_again_has_no_listener(
    join: Join, new_executor: Callable[..., HPCExecutor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """T11: all that an agent ever said, said once more by somebody who has heard it."""
    executor = new_executor(1, agents=0)
    invitation = executor.invite(2, host="127.0.0.1")
    with Relay(port_of(invitation)) as relay:
        join(relay.invitation(invitation, tmp_path))
        check_each_ran_once(executor, tmp_path / "ran")
        caplog.clear()
        with socket.create_connection(("127.0.0.1", port_of(invitation)), timeout=PATIENCE) as thief:
            thief.sendall(relay.said_first)
            while _receive(thief):
                pass  # the hub's greeting, and the end: what follows does not fit its new keys
        check_each_ran_once(executor, tmp_path / "ran again")
        assert len(executor.workers()) == 1
        executor.shutdown()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""
