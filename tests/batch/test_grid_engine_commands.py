"""What happens between Grid Engine and us, with commands in PATH that answer as those of Grid Engine 8.1.9 did."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from listener import Listener

from executor.batch.allocator import Allocator, Guard
from executor.batch.grid_engine import GridEngineSystem
from executor.batch.request import JobRequest
from executor.batch.states import JobRecord, JobStatus

SGE = GridEngineSystem(pe="mpi")
LISTING = """\
<?xml version='1.0'?>
<job_info><queue_info></queue_info><job_info>
<job_list state="pending"><JB_job_number>6</JB_job_number><state>{state}</state><queue_name></queue_name></job_list>
</job_info></job_info>
"""
WHY = "11/22/2026 03:32:44 [0:625]: error: can't chdir to /nosuch/dir: No such file or directory"


@pytest.fixture
def grid_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory: ``qsub`` and ``qdel`` write down how they were called; ``state`` is that of job 6."""
    say(tmp_path, "qsub", "cat > /dev/null; echo 6")
    say(
        tmp_path,
        "qstat",
        f"""case $1 in
        -xml) sed "s/{{state}}/$(cat {tmp_path}/state)/" {tmp_path}/listing ;;
        -j) echo "error reason          1:      {WHY}" ;; esac""",
    )
    say(tmp_path, "qacct", "echo 'error: job id 6 not found' >&2; exit 1")
    say(tmp_path, "qdel", f'echo "$@" >> {tmp_path}/deleted; echo "root has deleted job 6"')
    (tmp_path / "listing").write_text(LISTING)
    (tmp_path / "state").write_text("qw")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def say(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o700)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def allocator(grid_engine: Path, listener: Listener) -> Iterator[Allocator]:
    allocator = Allocator([SGE], 0.05, listener, Guard([], []))
    allocator.start()
    allocator.submit(1, SGE, JobRequest("true"))
    yield allocator
    allocator.close()


def test_a_job_in_an_error_has_failed_and_does_not_stay_in_the_queue(
    allocator: Allocator, listener: Listener, grid_engine: Path
) -> None:
    """``Eqw`` is for ever: Grid Engine waits for somebody to look at it, and says why as long as the job is there."""
    assert listener.next() == (1, "6")
    assert listener.next() == (1, JobRecord(JobStatus.PENDING, "qw"))
    (grid_engine / "new").write_text("Eqw")
    (grid_engine / "new").rename(grid_engine / "state")
    assert listener.next() == (1, JobRecord(JobStatus.FAILED, "E", WHY))
    assert (grid_engine / "deleted").read_text() == "6\n"


def test_a_job_that_was_cancelled_before_it_ran_is_known_to_have_ended(
    allocator: Allocator, listener: Listener
) -> None:
    """Grid Engine keeps no account of it: nothing would be heard of it, and it would be taken for lost much later."""
    assert listener.next() == (1, "6")
    allocator.cancel(1)
    heard = [listener.next()]
    while heard[-1] != (1, JobRecord(JobStatus.CANCELLED)):
        heard.append(listener.next())
    assert heard[:-1] in ([], [(1, JobRecord(JobStatus.PENDING, "qw"))])


# ---- several hosts


def run_on_each(tmp_path: Path, command: str, hosts: str) -> subprocess.CompletedProcess[str]:
    """Run it as the script of a job on these hosts; a ``qrsh`` that is a shell on ours stands for the others."""
    say(tmp_path, "qrsh", f'echo "$1 $2 $3 $4" >> {tmp_path}/hosts; HOSTNAME=$4 exec /bin/sh -c "$5"')
    (tmp_path / "pe_hostfile").write_text(hosts)
    env = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "PE_HOSTFILE": str(tmp_path / "pe_hostfile")}
    env |= {"NSLOTS": "9", "NHOSTS": "3"}
    script = SGE.on_each_node(command, 3)
    return subprocess.run(["/bin/bash", "-c", script], env=env, capture_output=True, text=True, check=False)


def test_a_command_runs_once_on_each_host_with_the_slots_that_the_job_has_there(tmp_path: Path) -> None:
    """A host may be in several queues of the job. On our own it needs no qrsh, for which there may be no slot left."""
    ours = socket.gethostname().partition(".")[0]
    hosts = f"{ours}.example 1 all.q@x UNDEFINED\nn2 2 all.q@n2 UNDEFINED\nn2 3 b.q@n2 UNDEFINED\nn3 1 all.q@n3 0,1\n"
    ended = run_on_each(tmp_path, """sh -c 'echo "$NSLOTS of $NHOSTS: it'"'"'s $0"' "a  b" """, hosts)
    assert sorted(ended.stdout.splitlines()) == ["1 of 1: it's a  b", "1 of 1: it's a  b", "5 of 1: it's a  b"]
    called = sorted((tmp_path / "hosts").read_text().splitlines())
    assert called == ["-inherit -nostdin -V n2", "-inherit -nostdin -V n3"]
    assert ended.returncode == 0


def test_the_job_ends_as_the_first_of_its_hosts_that_fails(tmp_path: Path) -> None:
    assert run_on_each(tmp_path, 'sh -c "exit $NSLOTS"', "n2 0 q UNDEFINED\nn3 7 q UNDEFINED\n").returncode == 7


# ---- dependencies


def run_dependent(tmp_path: Path, kind: str, accounts: dict[str, str]) -> subprocess.CompletedProcess[str]:
    for job, text in accounts.items():
        (tmp_path / job).write_text(text)
    say(tmp_path, "qacct", f'cat {tmp_path}/"$2"')
    request = JobRequest("echo runs", dependencies=tuple(accounts), dependency_type=kind)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    return subprocess.run(
        ["/bin/bash"], input=SGE.script(request), env=env, capture_output=True, text=True, check=False
    )


GOOD = "failed       0    \nexit_status  0                   \n"
BAD = "failed       0    \nexit_status  3                   \n"
KILLED = "failed       100 : assumedly after job\nexit_status  0\n"


@pytest.mark.parametrize(
    ("kind", "accounts", "runs"),
    [
        ("afterok", {"1": GOOD, "2": GOOD}, True),
        ("afterok", {"1": GOOD, "2": BAD}, False),
        ("afterok", {"1": GOOD + KILLED}, False),  # an array
        ("afternotok", {"1": BAD}, True),
        ("afternotok", {"1": BAD, "2": GOOD}, False),
        ("afterany", {"1": BAD}, True),
    ],
)
def test_a_job_looks_how_those_have_ended_that_it_waited_for(
    tmp_path: Path, kind: str, accounts: dict[str, str], runs: bool
) -> None:
    """Grid Engine has a job wait for the end of others, however they end."""
    ended = run_dependent(tmp_path, kind, accounts)
    assert (ended.stdout == "runs\n") is runs
    assert (ended.returncode == 0) is runs
    assert runs or ended.stderr.startswith(f"not run: {kind}, and job {'2' if '2' in accounts else '1'} has ")
