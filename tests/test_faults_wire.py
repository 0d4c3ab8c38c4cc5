"""Faults between hub and agents: a full way, orders and reports that are too long for it, ports, addresses.

Part D of the catalogue. What the wire does by itself is in test_link.py, test_session.py and the simulator; who may use
it, and what strangers may do to it, in test_network.py.
"""

# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import wait
from typing import Any

import cloudpickle
import pytest
from pools import PATIENCE, error_of, gate, new_executor, outcome, sh
from test_agents import agent_of
from test_invited import Join, join
from waiting import Gate, pass_gate, state_of, wait_until

from executor import CAPTURE, HPCExecutor, Program, ProgramNotStarted
from executor.core.model import DEEPEST
from worker_agent import link, output, protocol

pytestmark = pytest.mark.shared

NewExecutor = Callable[..., HPCExecutor]

cloudpickle.register_pickle_by_value(sys.modules[__name__])


# ---- D2: one agent takes nothing


def test_an_agent_that_takes_nothing_gets_no_more_than_its_credit_and_others_go_on(
    new_executor: NewExecutor, gate: Gate
) -> None:
    """D2: one of two is stopped, and ten thousand tasks come."""
    executor = new_executor(2, agents=2, max_tasks_per_child=None)
    held = [executor.submit(pass_gate, *gate.paths) for _ in range(2)]
    stopped, other = map(agent_of, gate.wait_arrivals(2))
    gate.open()
    wait(held, timeout=PATIENCE)
    os.kill(stopped, signal.SIGSTOP)
    wait_until(lambda: state_of(stopped) == "T")
    futures = [executor.submit(len, bytes(4096)) for _ in range(10_000)]
    most = 2 * DEEPEST
    wait_until(lambda: sum(not future.done() for future in futures) <= most)
    links = [worker.member.link for worker in executor._hub._agents]
    assert all(each._unacked_bytes <= link.WINDOW for each in links)
    assert outcome(executor.submit(pow, 2, 3)) == 8
    os.kill(stopped, signal.SIGCONT)
    assert {outcome(future) for future in futures} == {4096}
    assert {future.attempt for future in futures} <= {1, 2}


def test_a_stopped_agent_takes_no_more_of_large_orders_than_its_window(
    new_executor: NewExecutor, gate: Gate
) -> None:
    """D2, P8: thirty programs with 1 MB of arguments each; what is beyond the window waits in the client."""
    executor = new_executor(30, agents=1)
    held = executor.submit(pass_gate, *gate.paths)
    [pid] = gate.wait_arrivals()
    os.kill(agent_of(pid), signal.SIGSTOP)
    long = ["sh", "-c", "echo $#", *["x" * 10**5] * 10]
    futures = [executor.submit(Program(long)) for _ in range(29)]
    [worker] = executor._hub._agents
    wait_until(lambda: worker.member.link._unacked_bytes > link.WINDOW // 2)
    assert worker.member.link._unacked_bytes <= link.WINDOW + 2 * 10**6
    os.kill(agent_of(pid), signal.SIGCONT)
    gate.open()
    assert {outcome(future).stdout for future in futures} == {"9\n"}
    assert outcome(held) == pid


# ---- D4: longer than a message may be


def test_a_program_that_is_longer_than_any_frame_is_an_error_of_its_own(
    new_executor: NewExecutor, join: Join, gate: Gate
) -> None:
    """D4: the hub failed with all of its tasks when it was to send this. It arrives, and is too long for the kernel."""
    executor = new_executor(2, agents=0)
    join(executor.invite(1, host="127.0.0.1"))
    held = executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals()
    error = error_of(executor.options(retries=3).submit(Program(["echo", "x" * (20 * 2**20)])))
    assert isinstance(error, ProgramNotStarted)
    assert error.errno == errno.E2BIG
    gate.open()
    outcome(held)
    assert held.attempt == 1


def test_variables_that_are_longer_than_any_frame_reach_a_call(new_executor: NewExecutor, join: Join) -> None:
    """D4: no program could be started with them, but an interpreter is there already."""
    executor = new_executor(1, agents=0)
    join(executor.invite(1, host="127.0.0.1"))
    future = executor.options(env={"LONG": "x" * 5_000_000}).submit(lambda: len(os.environ["LONG"]))
    assert outcome(future) == 5_000_000


def test_output_of_any_length_comes_over_the_network(new_executor: NewExecutor, join: Join) -> None:
    """D4: its end travels with the outcome. One of 40 MB ended the connection each time, until the agent was lost."""

    def flood() -> None:
        for stream in (1, 2):
            for _ in range(22):
                rest = memoryview(b"x" * 2**20)
                while rest:
                    rest = rest[os.write(stream, rest) :]

    executor = new_executor(1, agents=0)
    join(executor.invite(1, host="127.0.0.1"))
    future = executor.options(stdout=CAPTURE, stderr=CAPTURE, output_limit="20MiB").submit(flood)
    outcome(future)
    for text in (future.stdout, future.stderr):
        assert f"{2 * 2**20} bytes left out" in text
        assert 20 * 2**20 < len(text) < 20 * 2**20 + 100
    assert future.attempt == 1


# ---- D11, D13: addresses and ports


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "lo", "*", pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6"))],
)
def test_agents_join_by_any_address_of_this_machine(new_executor: NewExecutor, join: Join, host: str) -> None:
    """D11: an address of either kind, an interface, all of them."""
    executor = new_executor(1, agents=0)
    join(executor.invite(1, host=host))
    assert outcome(executor.submit(pow, 2, 3)) == 8


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid", "no-such-interface"])
def test_an_address_that_is_not_ours_is_an_error_of_invite_alone(new_executor: NewExecutor, host: str) -> None:
    """D11: tasks here go on, and the next invitation may be a better one."""
    executor = new_executor(1)
    with pytest.raises(OSError, match=host):
        executor.invite(host=host)
    assert outcome(executor.submit(pow, 2, 3)) == 8
    assert executor.invite(host="127.0.0.1").endpoints[0].startswith("tcp://127.0.0.1:")


def test_a_port_that_is_taken_is_an_error_of_invite_alone(new_executor: NewExecutor) -> None:
    """D13: of the only port that it may be. (Of a range: see test_network.py.)"""
    executor = new_executor(1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"{port}.*in use"):
            executor.invite(host="127.0.0.1", port=port)
    assert outcome(executor.submit(pow, 2, 3)) == 8
    assert executor.invite(host="127.0.0.1", port=port).endpoints == (f"tcp://127.0.0.1:{port}",)
