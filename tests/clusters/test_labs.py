"""What the tests of clusters stand on: pretended hosts that fail as real ones do, and leave nothing; batch systems."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hosts import ADDRESSES, COMPUTE, ENVIRONMENT, Hosts, HostsError
from labs import KINDS, Lab
from waiting import wait_gone, wait_until

from executor import clusters
from executor.batch.states import JobStatus
from executor.batch.system import Answer, Command
from worker_agent import processes

pytestmark = pytest.mark.heavy

_HERE = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def hosts(make_hosts: Callable[[], Hosts]) -> Hosts:
    return make_hosts()


# ---- hosts


def test_each_host_has_a_name_an_address_processes_and_memory_files_of_its_own(hosts: Hosts) -> None:
    for name in COMPUTE:
        assert hosts.run(name, "hostname").strip() == name
        assert f"{ADDRESSES[name]}/24" in hosts.run(name, "ip", "-brief", "address")
        assert hosts.run(name, "sh", "-c", "echo $$").strip() != "1"
        assert int(hosts.run(name, "sh", "-c", "ls -d /proc/[0-9]* | wc -l")) < 9
        hosts.run(name, "touch", f"/dev/shm/of-{name}")
        assert hosts.run(name, "ls", "/dev/shm").split() == [f"of-{name}"]


def test_the_machine_itself_knows_nothing_of_them(hosts: Hosts) -> None:
    assert not {"switch", *COMPUTE} & {name for _, name in socket.if_nameindex()}
    assert ADDRESSES["n1"] not in Path("/etc/hosts").read_text()


def reaches(hosts: Hosts, name: str, other: str) -> bool:
    """Whether a packet finds its way and an answer its way back: nobody listens, which is an answer."""
    script = "import socket, sys\ns = socket.socket()\ns.settimeout(1)\nprint(s.connect_ex((sys.argv[1], 9)))"
    return hosts.run(name, "python3", "-c", script, other).strip() == str(errno.ECONNREFUSED)


def test_a_cable_is_cut_and_healed(hosts: Hosts) -> None:
    assert reaches(hosts, "n1", "n2")
    hosts.cut("n2")
    assert not reaches(hosts, "n1", "n2")
    assert hosts.run("n2", "hostname") == "n2\n"
    hosts.heal("n2")
    wait_until(lambda: reaches(hosts, "n1", "n2"))


def test_a_host_is_switched_off_and_on(hosts: Hosts) -> None:
    hosts.run("n2", "setsid", "--fork", "sh", "-c", "exec sleep 1000 >/dev/null 2>&1")
    [sleeper] = wait_until(lambda: hosts.pids("n2", "sleep"))
    hosts.off("n2")
    wait_gone(sleeper)
    assert not reaches(hosts, "n1", ADDRESSES["n2"])
    hosts.on("n2")
    wait_until(lambda: reaches(hosts, "n1", "n2"))
    assert not hosts.pids("n2", "sleep")


def test_a_command_that_fails_says_what_it_was(hosts: Hosts) -> None:
    with pytest.raises(HostsError, match=r"ls /nowhere on n1 ended with 2: ls: cannot access '/nowhere'"):
        hosts.run("n1", "ls", "/nowhere")


MAKER = """
import sys, time
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from hosts import Hosts
hosts = Hosts(Path(sys.argv[1]))
print("up", flush=True)
time.sleep(1000)
"""


def test_nothing_is_left_of_hosts_whose_maker_was_killed(
    start_script: Callable[..., subprocess.Popen[str]], tmp_path: Path, hosts: Hosts
) -> None:
    """Nor did the other set of hosts hear of it: it is there at the same time."""
    maker = start_script(MAKER, str(tmp_path), _HERE, os.path.dirname(_HERE))
    assert maker.stdout is not None
    assert maker.stdout.readline() == "up\n"
    below = processes.descendants(maker.pid)
    assert len(below) >= 2 * (1 + len(COMPUTE))
    maker.kill()
    maker.wait()
    wait_gone(*below)
    assert hosts.run("n1", "hostname") == "n1\n"


# ---- batch systems


@pytest.mark.parametrize("running_lab", list(KINDS), indirect=True)
def test_a_batch_system_runs_jobs_and_they_end(running_lab: Lab, tmp_path: Path) -> None:
    before = running_lab.jobs()
    script = f"#!/bin/sh\nhostname > {tmp_path}/where\n"
    job = running_lab.submit(script, *running_lab.on_host("n2"))
    wait_until(lambda: job not in running_lab.jobs(), "for the end of the job")
    assert (tmp_path / "where").read_text() == "n2\n"
    others = [running_lab.submit("#!/bin/sh\nexec sleep infinity\n", *running_lab.on_host("n1")) for _ in range(2)]
    wait_until(lambda: len(running_lab.hosts.pids("n1", "sleep")) == 2, "for both jobs")
    assert running_lab.jobs() == before | dict.fromkeys(others, "n1")
    for each in others:
        running_lab.cancel(each)
    wait_until(lambda: running_lab.jobs() == before, "for their end")


@pytest.mark.parametrize("running_lab", ["emulated PBS", "emulated Flux"], indirect=True)
def test_an_emulated_batch_system_tells_of_its_jobs_as_the_adapter_expects(running_lab: Lab) -> None:
    """Of each command the answer, and with it the exit status, is that of the dialect."""
    system = getattr(clusters, running_lab.cluster)().system()

    def answer(command: Command) -> Answer:
        words = running_lab.hosts.command("login", *command.argv)
        done = subprocess.run(words, env={**ENVIRONMENT, **running_lab.env}, capture_output=True, text=True)
        return Answer(done.returncode, done.stdout, done.stderr)

    before = running_lab.jobs()
    failed = running_lab.submit("#!/bin/sh\nexit 7\n", *running_lab.on_host("n2"))
    cancelled = running_lab.submit("#!/bin/sh\nexec sleep infinity\n", *running_lab.on_host("n1"))
    wait_until(lambda: running_lab.hosts.pids("n1", "sleep"), "for the job that sleeps")
    [running] = system.read_records(answer(system.ask([cancelled])), [cancelled]).values()
    assert running.status is JobStatus.RUNNING
    assert system.complaints(answer(system.cancel([cancelled]))) == ""
    wait_until(lambda: running_lab.jobs() == before, "for the end of both")

    told = [system.read_ended([answer(system.ask_ended(job)[0])], job) for job in (failed, cancelled)]
    assert [(each.status, each.hosts) for each in told] == [(JobStatus.FAILED, "n2"), (JobStatus.CANCELLED, "n1")]
    assert told[0].returncode == 7
    unknown = running_lab.id_of(4711)
    asked, again = answer(system.ask([failed, unknown])), answer(system.cancel([failed, unknown]))
    assert (asked.returncode, again.returncode) == ((153, 153) if system.name == "pbs" else (1, 1))
    assert unknown not in system.read_records(asked, [failed, unknown])
    assert system.complaints(again) == ""
