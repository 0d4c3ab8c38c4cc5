"""Several agents of one executor, and what becomes of tasks when one of them is lost, stopped, or hard to reach."""

# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pools import PATIENCE, new_executor, outcome
from waiting import parent_of, pass_gate, state_of, wait_until

from executor import HPCExecutor, agents, local
from executor.agents import Agents
from executor.core import members
from worker_agent import link

pytestmark = pytest.mark.shared


def agent_of(pid: int) -> int:
    """The agent (the supervisor's child) under which an interpreter runs."""
    while not {b"agent", b"worker_agent"} & set(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")):
        pid = parent_of(pid)
    return pid


@pytest.mark.parametrize(("workers", "agents"), [(2, 2), (5, 2), (3, 3)])
def test_the_agents_of_an_executor_share_its_workers(
    new_executor: Callable[..., HPCExecutor], gate: Any, workers: int, agents: int
) -> None:
    executor = new_executor(workers, agents=agents)
    futures = [executor.submit(pass_gate, *gate.paths) for _ in range(workers + 1)]
    pids = gate.wait_arrivals(workers)
    places: dict[int, int] = {}
    for pid in pids:
        places[agent_of(pid)] = places.get(agent_of(pid), 0) + 1
    assert sorted(places.values()) == sorted(workers // agents + (n < workers % agents) for n in range(agents))
    gate.open_wide()
    assert {outcome(future) for future in futures} >= set(pids)


@pytest.mark.parametrize("wrong", [-1, 3, True, "2", 1.0])
def test_a_number_of_agents_that_makes_no_sense_is_refused(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"agents={wrong!r}"):
        HPCExecutor(2, agents=wrong)


def test_the_loss_of_one_agent_costs_the_tasks_of_the_other_nothing(
    new_executor: Callable[..., HPCExecutor], gate: Any
) -> None:
    executor = new_executor(2, agents=2)
    futures = [executor.submit(pass_gate, *gate.paths) for _ in range(2)]
    first, second = gate.wait_arrivals(2)
    os.kill(agent_of(first), signal.SIGKILL)
    gate.wait_arrivals(1)
    gate.open_wide()
    [again] = [pid for pid in (outcome(future) for future in futures) if pid != second]
    assert again != first


def test_an_agent_that_is_stopped_for_a_while_goes_on(new_executor: Callable[..., HPCExecutor], gate: Any) -> None:
    """C3."""
    executor = new_executor(1)
    future = executor.submit(pass_gate, *gate.paths)
    [pid] = gate.wait_arrivals(1)
    agent = agent_of(pid)
    os.kill(agent, signal.SIGSTOP)
    wait_until(lambda: state_of(agent) == "T")
    gate.open_wide()
    later = executor.submit(pow, 2, 3)
    os.kill(agent, signal.SIGCONT)
    assert (outcome(future), outcome(later)) == (pid, 8)
    assert (future.attempt, later.attempt) == (1, 1)


def test_an_agent_that_stays_silent_is_ended_and_its_tasks_run_elsewhere(
    new_executor: Callable[..., HPCExecutor], gate: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """C4: stopped for good, and nobody knows. Nothing of it runs when the next attempt starts."""
    monkeypatch.setattr(members, "LOCAL_PATIENCE", 1.0)
    executor = new_executor(1, lease=1)
    future = executor.submit(pass_gate, *gate.paths)
    [pid] = gate.wait_arrivals(1)
    os.kill(agent_of(pid), signal.SIGSTOP)
    [other] = gate.wait_arrivals(1)
    assert not os.path.exists(f"/proc/{pid}") or state_of(pid) == "Z"
    gate.open_wide()
    assert outcome(future) == other
    assert future.attempt == 2
    assert "says nothing" in caplog.text


@pytest.mark.parametrize("direction", ["to the agent", "to the hub"])
def test_frames_that_are_lost_are_sent_again(
    new_executor: Callable[..., HPCExecutor], monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    """D1: ZeroMQ loses them without a word when a connection breaks."""
    lost = iter([number in (1, 4) for number in range(100_000)])
    if direction == "to the agent":
        monkeypatch.setattr(link, "RESEND_AFTER", 0.1)
        send = Agents._send
        monkeypatch.setattr(Agents, "_send", lambda *args: None if next(lost) else send(*args))
    else:
        receive = Agents._on_frame
        monkeypatch.setattr(Agents, "_on_frame", lambda *args: iter(()) if next(lost) else receive(*args))
    executor = new_executor(2, max_tasks_per_child=None)
    futures = [executor.submit(pow, number, 2) for number in range(500)]
    assert [outcome(future) for future in futures] == [number**2 for number in range(500)]
    assert {future.attempt for future in futures} == {1}


def test_frames_that_come_twice_count_once(
    new_executor: Callable[..., HPCExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """C12, D1."""
    send = Agents._send

    def send_twice(*args: Any) -> None:
        send(*args)
        send(*args)

    monkeypatch.setattr(Agents, "_send", send_twice)
    executor = new_executor(2)
    futures = [executor.submit(pow, number, 2) for number in range(30)]
    assert [outcome(future) for future in futures] == [number**2 for number in range(30)]
    assert {future.attempt for future in futures} == {1}


def test_an_agent_that_cannot_be_replaced_just_now_is_replaced_later(
    new_executor: Callable[..., HPCExecutor], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """F1, F2: the hub has no descriptor left, and that passes. It was the end of the hub, and of all tasks."""
    monkeypatch.setattr(agents, "LAUNCH_AGAIN", 0.05)
    executor = new_executor(1)
    lost = agent_of(outcome(executor.submit(os.getpid)) and outcome(executor.submit(os.getppid)))
    launch, left = local.launch, [1, 2]

    def fail_twice(*args: Any) -> Any:
        if left:
            raise OSError(left.pop(), "too many open files")
        return launch(*args)

    monkeypatch.setattr(local, "launch", fail_twice)
    os.kill(lost, signal.SIGKILL)
    assert outcome(executor.submit(pow, 2, 3)) == 8
    assert not left
    assert "no agent can be started just now" in caplog.text
