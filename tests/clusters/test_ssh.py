"""Agents by ssh, on pretended hosts with a real sshd."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster_tasks import PER_HOST, say_where_and_wait, stamp_until, where
from histories import History
from hosts import ADDRESSES, Hosts
from labs import LEASE, LIMIT, leave_out
from namespaces import inside
from pools import GRACE, end
from waiting import Gate, wait_until

from executor import AgentFailed, HPCExecutor, Ssh
from executor.future import TaskFuture

pytestmark = pytest.mark.heavy

#: The daemon has nothing of the machine's own settings and keys.
SSHD = """\
HostKey {0}/host_key
AuthorizedKeysFile {0}/key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
"""
NAMES = ("n1", "n2")
#: A host that is switched off is noticed after two seconds.
OPTIONS = ("StrictHostKeyChecking=no", "LogLevel=ERROR", "ServerAliveInterval=1", "ServerAliveCountMax=2")
Start = Callable[..., HPCExecutor]


@pytest.fixture(scope="module")
def hosts(make_hosts: Callable[[], Hosts]) -> Hosts:
    return make_hosts()


@pytest.fixture(scope="module")
def keys(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the ``key`` with which one may log in on the hosts, and one that nobody knows."""
    if not shutil.which("sshd", path="/usr/sbin") or not shutil.which("ssh"):
        leave_out("there is no ssh, or no sshd: Debian has them in openssh-client and openssh-server")
    directory = tmp_path_factory.mktemp("ssh")
    for name in ("key", "another_key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
    (directory / "sshd_config").write_text(SSHD.format(directory))
    for name in NAMES:
        start_sshd(hosts, name, directory)
    return directory


def start_sshd(hosts: Hosts, name: str, directory: Path) -> None:
    own = "mountpoint -q /run/sshd || { mkdir -p /run/sshd && mount -t tmpfs -o mode=755 sshd /run/sshd; }"
    hosts.run(name, "sh", "-c", f"{own}; exec /usr/sbin/sshd -f {directory}/sshd_config -E {directory}/log")


@pytest.fixture
def by_ssh(hosts: Hosts, keys: Path, tmp_path: Path) -> Iterator[Start]:
    """Makes executors with an agent on each of the hosts."""
    made: list[HPCExecutor] = []

    def make(*names: str, lease: float = 30.0, key: str = "key") -> HPCExecutor:
        words = ["-i", str(keys / key), "-F", "none"]
        for option in (*OPTIONS, f"UserKnownHostsFile={tmp_path}/known"):
            words += ["-o", option]
        run_dir = str(tmp_path / "run")
        addresses = [ADDRESSES[name] for name in names]
        ssh = Ssh(addresses, options=words, host=ADDRESSES["login"], run_dir=run_dir)
        made.append(HPCExecutor(1, cluster=ssh, lease=lease, kill_grace=GRACE))
        with inside(hosts.network):
            made[-1]._open_hub()
        return made[-1]

    yield make
    for executor in made:
        end(executor)
    wait_until(lambda: not any(hosts.pids(name, "python3") for name in NAMES), "for the end of the agents")


def outcome(future: TaskFuture) -> object:
    return future.result(LIMIT / 2)


def test_there_is_an_agent_on_each_host(by_ssh: Start, gate: Gate) -> None:
    executor = by_ssh(*NAMES)
    wait_until(lambda: len(executor.workers()) == 2, "for both agents", LIMIT / 2)
    whole = executor.options(resources={"cpus": "all"})
    tasks = [whole.submit(say_where_and_wait, *gate.paths) for _ in range(2)]
    gate.wait_arrivals(2)
    gate.open()
    assert {outcome(task) for task in tasks} == set(NAMES)


def test_what_sshd_says_is_told(by_ssh: Start) -> None:
    error = by_ssh("n1", key="another_key").submit(where).exception(LIMIT / 2)
    assert isinstance(error, AgentFailed)
    assert f"ssh {ADDRESSES['n1']} job " in str(error)
    assert "(exec ssh -T " in str(error)
    assert "Permission denied (publickey" in str(error)


def test_a_host_is_switched_off_and_on(by_ssh: Start, hosts: Hosts, keys: Path, history: History) -> None:
    """Its task runs on the other one; when it is back, so is an agent."""
    executor = by_ssh(*NAMES, lease=LEASE)
    wait_until(lambda: len(executor.workers()) == 2, "for both agents", LIMIT / 2)
    future = executor.submit(stamp_until, *history.paths)
    wait_until(lambda: len(history.attempts()) == 1, "for the first attempt", LIMIT / 2)
    host = f"n{history.attempts()[0] // PER_HOST}"
    hosts.off(host)
    try:
        wait_until(lambda: len(history.attempts()) == 2, "for the second attempt", LIMIT / 2)
    finally:
        hosts.on(host)
        start_sshd(hosts, host, keys)
    history.open()
    assert (outcome(future), future.attempt) == (history.attempts()[1], 2)
    wait_until(lambda: {each.host for each in executor.workers()} == set(NAMES), "for another agent", LIMIT / 2)
