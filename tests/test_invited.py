"""Agents that were invited: over TCP, with a key of their invitation, and a lease instead of a client to watch."""

# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from pools import PATIENCE, new_executor, outcome
from test_agents import agent_of
from waiting import wait_until

from executor import HPCExecutor, Program

pytestmark = pytest.mark.shared

Join = Callable[..., "subprocess.Popen[str]"]
#: What agents are started with; and those that see none of their client's files.
MODULE = ("-m", "worker_agent")
BLIND = ("-P", os.path.join(os.path.dirname(__file__), "blind_agent.py"))


@pytest.fixture
def join(tmp_path: Path) -> Iterator[Join]:
    """Starts agents, and ends them with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(
        path: Any, *, wrapper: Sequence[str] = (), program: Sequence[str] = MODULE, **options: Any
    ) -> subprocess.Popen[str]:
        command = [*wrapper, sys.executable, *program, os.fspath(path)]
        started.append(subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, **options))
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.communicate(timeout=PATIENCE)


def copied(invitation: Any, tmp_path: Path) -> Path:
    """The invitation as somebody has it who keeps a copy."""
    copy = tmp_path / "copy"
    copy.touch(0o600)
    copy.write_bytes(Path(invitation).read_bytes())
    return copy


def gone(pid: int) -> bool:
    """Whether there is no such process any more."""
    return not os.path.exists(f"/proc/{pid}")


def test_agents_join_over_the_network_and_leave_with_the_executor(
    join: Join, new_executor: Callable[..., HPCExecutor]
) -> None:
    executor = new_executor(1, agents=0)
    invitation = executor.invite(2, host="127.0.0.1")
    processes = [join(invitation) for _ in range(2)]
    results = [outcome(executor.submit(pow, number, 2)) for number in range(20)]
    assert results == [number**2 for number in range(20)]
    assert outcome(executor.submit(Program(["echo", "here"]))).stdout == "here\n"
    assert outcome(executor.submit(len, bytes(3_000_000))) == 3_000_000
    wait_until(lambda: len(executor.workers()) == 2)
    assert [worker.local for worker in executor.workers()] == [False, False]
    executor.shutdown()
    assert [process.wait(PATIENCE) for process in processes] == [0, 0]


def test_an_invited_agent_works_beside_the_local_one(
    join: Join, new_executor: Callable[..., HPCExecutor], gate: Any
) -> None:
    executor = new_executor(1)
    executor.submit(pow, 2, 3).result(PATIENCE)
    join(executor.invite(host="127.0.0.1"))
    wait_until(lambda: len(executor.workers()) == 2)
    futures = [executor.submit(pass_gate_of, gate.paths) for _ in range(2)]
    pids = gate.wait_arrivals(2)
    assert len({agent_of(pid) for pid in pids}) == 2
    gate.open_wide()
    wait(futures, timeout=PATIENCE)


def pass_gate_of(paths: tuple[str, str]) -> int:
    from waiting import pass_gate

    return pass_gate(*paths)


def test_the_file_of_an_invitation_is_private_whatever_the_umask(new_executor: Callable[..., HPCExecutor]) -> None:
    """F8, S3."""
    previous = os.umask(0)
    try:
        invitation = new_executor(1, agents=0).invite(host="127.0.0.1")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(os.stat(invitation).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(Path(invitation.path).parent).st_mode) == 0o700


def test_an_agent_too_many_is_refused_in_one_sentence_on_both_sides(
    join: Join, new_executor: Callable[..., HPCExecutor], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    executor = new_executor(1, agents=0)
    invitation = executor.invite(1, host="127.0.0.1")
    copy = copied(invitation, tmp_path)
    join(invitation)
    assert outcome(executor.submit(pow, 2, 3)) == 8
    second = join(copy)
    _, told = second.communicate(timeout=PATIENCE)
    assert second.returncode == 1
    assert told.splitlines()[-1].startswith("this agent leaves: all agents of launch")
    assert "was refused: all agents of launch" in caplog.text
    assert outcome(executor.submit(pow, 2, 3)) == 8


def test_an_invitation_that_has_expired_lets_nobody_in(
    join: Join, new_executor: Callable[..., HPCExecutor], tmp_path: Path
) -> None:
    executor = new_executor(1)
    invitation = executor.invite(1, host="127.0.0.1")
    copy = copied(invitation, tmp_path)
    executor.revoke(invitation)
    wait_until(lambda: not os.path.exists(invitation))
    process = join(copy)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "the hub cannot be reached" in told
    assert outcome(executor.submit(pow, 2, 3)) == 8


def test_an_agent_that_was_stopped_for_too_long_is_fenced_and_joins_anew(
    join: Join, new_executor: Callable[..., HPCExecutor], gate: Any
) -> None:
    """C4: its task runs elsewhere, what it still ran ends when it wakes, and it is of use again."""
    executor = new_executor(1, agents=0, lease=1)
    join(executor.invite(1, host="127.0.0.1"))
    future = executor.submit(pass_gate_of, gate.paths)
    [first] = gate.wait_arrivals(1)
    agent = agent_of(first)
    os.kill(agent, signal.SIGSTOP)
    wait_until(lambda: not executor.workers())
    join(executor.invite(1, host="127.0.0.1"))
    [second] = gate.wait_arrivals(1)
    os.kill(agent, signal.SIGCONT)
    wait_until(lambda: gone(first))
    wait_until(lambda: len(executor.workers()) == 2)
    gate.open_wide()
    assert (outcome(future), future.attempt) == (second, 2)


def test_nothing_is_left_of_a_client_that_was_killed(
    start_script: Any, join: Join, new_executor: Callable[..., HPCExecutor], tmp_path: Path
) -> None:
    """E1: within the lease its tasks have ended, and then the agent leaves."""
    client = start_script(textwrap.dedent(f"""
        from executor import HPCExecutor, Program
        executor = HPCExecutor(1, agents=0, lease=1)
        print(executor.invite(host="127.0.0.1").path, flush=True)
        executor.submit(Program(["sh", "-c", "echo $$ > {tmp_path}/pid; exec sleep 600"])).result()
    """))
    path = client.stdout.readline().strip()
    agent = join(path)
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
    pid = int((tmp_path / "pid").read_text())
    client.kill()
    client.wait()
    wait_until(lambda: gone(pid))
    _, told = agent.communicate(timeout=PATIENCE)
    assert "has not answered" in told
    new_executor(1).submit(pow, 2, 3).result(PATIENCE)  # S12: the next one removes what is left of dead ones
    assert not os.path.exists(path)


@pytest.mark.parametrize("wrong", [0, 0.9, "500ms", -1, "soon", None])
def test_a_lease_that_makes_no_sense_is_refused(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(f"lease={wrong!r}")):
        HPCExecutor(1, lease=wrong)


def test_an_invitation_goes_when_all_have_joined(join: Join, new_executor: Callable[..., HPCExecutor]) -> None:
    executor = new_executor(1, agents=0)
    invitation = executor.invite(2, host="127.0.0.1")
    join(invitation)
    wait_until(lambda: len(executor.workers()) == 1)
    assert os.path.exists(invitation)
    join(invitation)
    wait_until(lambda: len(executor.workers()) == 2)
    wait_until(lambda: not os.path.exists(invitation))


def test_an_invitation_goes_when_its_time_is_over(new_executor: Callable[..., HPCExecutor]) -> None:
    invitation = new_executor(1, agents=0).invite(host="127.0.0.1", expires="100ms")
    wait_until(lambda: not os.path.exists(invitation))


def test_an_invitation_that_was_revoked_lets_nobody_in_and_nobody_go(
    join: Join, new_executor: Callable[..., HPCExecutor], tmp_path: Path
) -> None:
    executor = new_executor(1, agents=0)
    invitation = executor.invite(2, host="127.0.0.1")
    copy = copied(invitation, tmp_path)
    join(invitation)
    wait_until(lambda: len(executor.workers()) == 1)
    executor.revoke(invitation)
    wait_until(lambda: not os.path.exists(invitation))
    late = join(copy)
    _, told = late.communicate(timeout=PATIENCE)
    assert late.returncode == 1
    assert "has expired" in told
    assert outcome(executor.submit(pow, 2, 3)) == 8


def test_a_file_that_is_gone_is_a_sentence(join: Join, tmp_path: Path) -> None:
    process = join(tmp_path / "gone.json")
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    why = "all its agents have joined, its time is over, or it is on another machine"
    assert told == f"{tmp_path / 'gone.json'} is not there: {why}\n"


@pytest.mark.parametrize("by", ["preload", "require"])
def test_an_agent_without_a_module_that_tasks_need_is_refused_in_one_sentence_on_both_sides(
    join: Join, new_executor: Callable[..., HPCExecutor], tmp_path: Path, caplog: pytest.LogCaptureFixture, by: str
) -> None:
    executor = new_executor(1, agents=0, **{by: ["json", "no_such_module.inner"]})
    agent = join(executor.invite(host="127.0.0.1"))
    _, told = agent.communicate(timeout=PATIENCE)
    assert agent.returncode == 1
    why = "it has no module no_such_module.inner, which preload or require names: install it there"
    assert told.splitlines()[-1] == f"this agent leaves: {why}"
    assert why in caplog.text


def test_whether_an_agent_sees_the_directory_where_the_client_works_is_told(
    join: Join, new_executor: Callable[..., HPCExecutor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    executor = new_executor(1, agents=0)
    invitation = executor.invite(2, host="127.0.0.1")
    join(invitation)
    wait_until(lambda: len(executor.workers()) == 1)
    assert executor.workers()[0].sees_cwd
    assert "does not see" not in caplog.text
    work.rename(tmp_path / "elsewhere")  # as if it were another host
    work.mkdir()
    join(invitation)
    wait_until(lambda: len(executor.workers()) == 2)
    assert [worker.sees_cwd for worker in executor.workers()] == [True, False]
    assert "does not see the directory in which you are" in caplog.text


def test_an_invitation_for_more_agents_than_descriptors_is_refused_with_the_number(
    new_executor: Callable[..., HPCExecutor],
) -> None:
    """F1, S8."""
    executor = new_executor(1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(OSError, match=r"\d+ agents need \d+ open files, and this process may have \d+: ulimit -n"):
        executor.invite(limits[0], host="127.0.0.1")
    assert outcome(executor.submit(pow, 2, 3)) == 8


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_calls_end_with_their_agent_though_its_supervisor_is_killed_with_it(
    join: Join, new_executor: Callable[..., HPCExecutor], gate: Any, start: str
) -> None:
    """Nobody is left who could end them but the kernel, so each asks it to: two attempts would overlap otherwise."""
    executor = new_executor(2, agents=0, lease=1, mp_context=multiprocessing.get_context(start))
    supervisor = join(executor.invite(host="127.0.0.1"))
    futures = [executor.submit(pass_gate_of, gate.paths) for _ in range(2)]
    running = gate.wait_arrivals(2)
    agent = agent_of(running[0])
    for pid, number in ((agent, signal.SIGSTOP), (supervisor.pid, signal.SIGKILL), (agent, signal.SIGKILL)):
        os.kill(pid, number)  # stopped, so that it does not see its supervisor's end
    wait_until(lambda: all(map(gone, running)))
    wait_until(lambda: not executor.workers())
    assert not any(future.done() for future in futures)
    executor.kill_workers()
