"""Agents that are started at once: here beside others, and on hosts by ssh. That of these tests stays on this host."""

# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from pools import error_of, new_executor
from waiting import pass_gate, wait_until

from executor import HPCExecutor
from executor.errors import AgentFailed, BatchCommandFailed
from executor.launched import Inside, Local, Ssh, find_allocation

pytestmark = pytest.mark.shared

cloudpickle.register_pickle_by_value(sys.modules[__name__])

#: It notes whom it was to call, and has a shell run the command, as sshd does.
SSH = """\
#!/bin/bash
echo "$@" >> '{log}'
exec bash -c "${{@: -1}}"
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it is noted what ssh was told."""
    programs, log = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    (programs / "ssh").write_text(SSH.format(log=log))
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return log


def agent() -> int:
    """The process above the template: the agent."""
    with open(f"/proc/{os.getppid()}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def test_each_host_has_an_agent_and_no_key_is_in_a_command_line(
    new_executor: Callable[..., HPCExecutor], calls: Path, gate: Any
) -> None:
    executor = new_executor(1, cluster=Ssh(["one", "me@two"], options=["-p", "2222"]), resources=None)
    whole = executor.options(resources={"cpus": "all"})
    tasks = [whole.submit(pass_gate, *gate.paths) for _ in range(2)]
    gate.wait_arrivals(2)
    gate.open(2)
    assert len({task.result() for task in tasks}) == 2
    assert len(executor.workers()) == 2
    told = calls.read_text()
    assert told.count("-T -p 2222 -o BatchMode=yes ") == 2
    assert " one exec " in told
    assert " me@two exec " in told
    assert "key" not in told


def test_an_agent_that_ended_is_started_anew(new_executor: Callable[..., HPCExecutor], calls: Path) -> None:
    executor = new_executor(1, cluster=Ssh(["one"]))
    first = executor.submit(agent).result()
    os.kill(os.getppid() if first == os.getpid() else first, signal.SIGTERM)
    wait_until(lambda: len(calls.read_text().splitlines()) == 2, "for another call")
    assert executor.submit(agent).result() != first


def test_a_host_that_cannot_be_reached_is_told_with_what_ssh_says(
    new_executor: Callable[..., HPCExecutor], calls: Path
) -> None:
    ssh = Path(os.environ["PATH"].partition(":")[0]) / "ssh"
    ssh.write_text("#!/bin/sh\necho 'ssh: Could not resolve hostname one' >&2\nexit 255\n")
    error = error_of(new_executor(1, cluster=Ssh(["one"])).submit(agent))
    assert isinstance(error, AgentFailed)
    assert "Could not resolve hostname one" in str(error)


def test_this_machine_is_a_cluster_beside_others(new_executor: Callable[..., HPCExecutor], calls: Path) -> None:
    executor = new_executor(1, cluster=[Local(), Ssh(["one"])])
    assert executor.submit(pow, 2, 3).result() == 8
    wait_until(lambda: len(executor.workers()) == 2, "for both agents")
    assert sorted(worker.local for worker in executor.workers()) == [False, True]


def test_outside_of_an_allocation_auto_is_this_machine(
    new_executor: Callable[..., HPCExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "JOB_ID", "PBS_JOBID", "FLUX_URI"):
        monkeypatch.delenv(name, raising=False)
    executor = new_executor(1, cluster="auto")
    assert executor.submit(pow, 2, 3).result() == 8
    assert [worker.local for worker in executor.workers()] == [True]


def test_the_nodes_of_an_allocation_are_counted(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("n1\nn1\nn2\nn3\n")
    env = {"PBS_JOBID": "1.server", "PBS_NODEFILE": str(tmp_path / "nodes")}
    assert find_allocation(env) == Inside(batch_system="pbs", nodes=3, poll=0.5)
    assert find_allocation({"JOB_ID": "7", "SGE_TASK_ID": "undefined"}) == Inside(
        batch_system="sge", nodes=1, poll=0.5
    )
    assert find_allocation({}) is None


def test_an_allocation_that_does_not_tell_its_nodes_is_not_taken_for_one_of_them(tmp_path: Path) -> None:
    env = {"PBS_JOBID": "1.server", "PBS_NODEFILE": str(tmp_path / "nodes")}
    with pytest.raises(BatchCommandFailed, match="the nodes of the pbs allocation that we are in: cat .* No such file"):
        find_allocation(env)
    (tmp_path / "nodes").write_text("")
    with pytest.raises(BatchCommandFailed, match="status 0: and said nothing"):
        find_allocation(env)


@pytest.mark.parametrize("hosts", ["one", [], ["-oProxyCommand=x"], [3], [" "]])
def test_what_is_no_list_of_hosts_is_refused(hosts: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        Ssh(hosts)


def test_what_is_no_cluster_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a cluster such as Slurm"):
        HPCExecutor(cluster=3)
