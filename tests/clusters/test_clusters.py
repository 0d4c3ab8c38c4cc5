"""Agents by real batch systems, on hosts that fail: each task's outcome arrives once, and our jobs leave the queue.

Each host has room for one of our allocations, and one host is somebody else's: so at most two agents run at a time.
The fixture ``lab`` looks after each test that none of our jobs is left in the queue, and that the other one still runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cluster_tasks import PER_HOST, note, say_where_and_wait, stamp_until, where
from histories import History
from labs import LEASE, LIMIT, Lab, leave_out
from namespaces import inside
from slurm_lab import CPUS
from waiting import Gate, announce, announced, wait_announced, wait_until

from executor import CAPTURE, AgentFailed, HPCExecutor, Program, clusters
from executor.core.allocations import FAILURES
from executor.future import TaskFuture

pytestmark = pytest.mark.heavy
_REAL = ["slurm", "grid engine"]
with_accounting = pytest.mark.parametrize("running_lab", [*_REAL, "slurm with accounting"], indirect=True)
real = pytest.mark.parametrize("running_lab", _REAL, indirect=True)
#: On those, too, that are not what they say: a part of the tests, which has each of their commands given.
real_and_emulated = pytest.mark.parametrize("running_lab", [*_REAL, "emulated PBS", "emulated Flux"], indirect=True)

ROOT = Path(__file__).parent.parent.parent
#: Seconds, far more than anything takes here: a lost host is noticed after 20.
LONG = LIMIT / 2
Make = Callable[..., HPCExecutor]
Start = Callable[[str], subprocess.Popen[str]]


def outcome(future: TaskFuture) -> Any:
    return future.result(LONG)


def our_jobs(lab: Lab, bystander: str) -> dict[str, str]:
    return {job: host for job, host in lab.jobs().items() if job != bystander}


def start_stamping(executor: HPCExecutor, history: History) -> TaskFuture:
    """Start a task that tells who runs it until the history is opened."""
    future = executor.submit(stamp_until, *history.paths)
    wait_attempts(history, 1)
    return future


def wait_attempts(history: History, count: int) -> None:
    """Until the task has had so many attempts; that may take as long as an allocation lasts."""
    wait_until(lambda: len(history.attempts()) >= count, f"for attempt {count}", LONG)


class Load:
    """Many small tasks, of which each notes that it has run."""

    def __init__(self, executor: HPCExecutor, directory: Path, count: int = 200) -> None:
        self._path = directory / "load"
        self.futures = [executor.submit(note, str(self._path), number) for number in range(count)]

    def wait_some(self) -> None:
        """Until some of them have run, and by far not all."""
        wait_announced(self._path, 20)

    def check(self) -> None:
        """Each has given its result, once; what ran twice ran in another attempt."""
        arrived: list[int] = []
        for future in self.futures:
            future.add_done_callback(lambda done: arrived.append(done.result()[0]))
        results = [outcome(future) for future in self.futures]
        count = len(self.futures)
        assert [number for number, _ in results] == list(range(count))
        wait_until(lambda: len(arrived) == count)
        assert sorted(arrived) == list(range(count))
        assert len(announced(self._path)) <= sum(future.attempt for future in self.futures)


# ---- up and down


@real_and_emulated
def test_agents_come_with_tasks_and_go_when_there_are_none(lab: Lab, bystander: str, on_cluster: Make) -> None:
    executor = on_cluster()
    assert our_jobs(lab, bystander) == {}
    assert outcome(executor.submit(where)) in ("n1", "n2")
    first = our_jobs(lab, bystander)
    assert len(first) == 1
    wait_until(lambda: not our_jobs(lab, bystander), "for the end of the idle allocation")
    assert outcome(executor.submit(where)) in ("n1", "n2")
    assert not our_jobs(lab, bystander).keys() & first.keys()


@real
def test_a_task_graph_runs_over_two_nodes(lab: Lab, on_cluster: Make, gate: Gate) -> None:
    """Its middle needs both hosts at a time."""
    executor = on_cluster(nodes=2)
    first = executor.submit(pow, 2, 3)
    whole = executor.options(cpus=CPUS, after=first)
    middle = [whole.submit(say_where_and_wait, *gate.paths) for _ in range(2)]
    gate.wait_arrivals(2)
    last = executor.options(after=middle).submit(pow, 3, 3)
    gate.open()
    assert {outcome(each) for each in middle} == {"n1", "n2"}
    assert outcome(last) == 27


@real_and_emulated
def test_an_allocation_of_two_nodes_has_an_agent_on_each(
    lab: Lab, bystander: str, on_cluster: Make, gate: Gate
) -> None:
    executor = on_cluster(nodes=2, nodes_per_job=2, **lab.settings_of_several)
    tasks = [executor.options(cpus=CPUS).submit(say_where_and_wait, *gate.paths) for _ in range(2)]
    gate.wait_arrivals(2)
    assert len(our_jobs(lab, bystander)) == 1
    gate.open()
    assert {outcome(each) for each in tasks} == {"n1", "n2"}


def ranks_and_hosts() -> tuple[int, str]:
    """What a rank sees, once it has heard from all others."""
    from mpi4py import MPI

    MPI.COMM_WORLD.barrier()
    return MPI.COMM_WORLD.rank, where()


@real
def test_ranks_run_on_all_nodes_of_an_allocation(
    lab: Lab, on_cluster: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program by the launcher of the site, and a function by that of the MPI for which mpi4py was built."""
    if shutil.which("mpirun") is None or find_spec("mpi4py") is None:
        leave_out("there is no mpirun, or no mpi4py")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    executor = on_cluster(nodes=2, nodes_per_job=2, **lab.settings_of_several)
    ranks = executor.options(nodes=2, ranks=4)
    said = outcome(ranks.options(stdout=CAPTURE).submit(Program(["hostname"]))).stdout
    assert sorted(said.split()) == ["n1", "n1", "n2", "n2"]
    called = outcome(ranks.options(launcher="mpirun").submit(ranks_and_hosts))
    assert [rank for rank, _ in called] == [0, 1, 2, 3]
    assert sorted(host for _, host in called) == ["n1", "n1", "n2", "n2"]


INSIDE = """
import sys
from cluster_tasks import say_where_and_wait
from executor import HPCExecutor
if __name__ == "__main__":
    with HPCExecutor(1, cluster="auto") as executor:
        whole = executor.options(cpus={cpus})
        tasks = [whole.submit(say_where_and_wait, *{gate!r}) for _ in range(2)]
        with open({out!r}, "w") as file:
            file.write(" ".join(sorted(task.result() for task in tasks)))
"""


@real_and_emulated
def test_inside_an_allocation_there_is_an_agent_on_each_of_its_nodes(lab: Lab, gate: Gate, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "inside.py").write_text(INSIDE.format(cpus=CPUS, gate=gate.paths, out=str(out)))
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "clusters")])
    variables = f"XDG_STATE_HOME={tmp_path} PYTHONPATH={path}"
    lab.submit(f"#!/bin/bash\nexec env {variables} {sys.executable} {tmp_path}/inside.py\n", *lab.on_two_hosts())
    gate.wait_arrivals(2)
    gate.open()
    wait_until(lambda: out.exists() and out.read_text(), "for the script", LONG)
    assert out.read_text() == "n1 n2"


@real
def test_more_is_asked_for_than_there_is(lab: Lab, bystander: str, on_cluster: Make, gate: Gate) -> None:
    """A full queue: what has room runs, and what is not wanted any more is given back without ever having run."""
    executor = on_cluster(nodes=(0, 5))
    whole = executor.options(cpus=CPUS)
    tasks = [whole.submit(say_where_and_wait, *gate.paths) for _ in range(7)]
    gate.wait_arrivals(2)
    wait_until(lambda: len(our_jobs(lab, bystander)) == 5, "for five allocations")
    wait_until(lambda: str(executor.explain(tasks[-1])).count("it waits in the queue") == 3)
    gate.open()
    assert {outcome(each) for each in tasks} <= {"n1", "n2"}


@real
def test_allocations_that_are_to_stay_stay(lab: Lab, bystander: str, on_cluster: Make) -> None:
    """``nodes=(1, 2)``: one is there without any task, and still when it has been idle for long."""
    executor = on_cluster(nodes=(1, 2), idle_timeout="0.1s")
    wait_until(executor.workers, "for an agent")
    [job] = our_jobs(lab, bystander)
    assert outcome(executor.submit(where)) in ("n1", "n2")
    pause = [executor.submit(time.sleep, 0.2) for _ in range(4)]
    assert [outcome(each) for each in pause] == [None] * 4
    assert job in our_jobs(lab, bystander)


# ---- ends of allocations


@real_and_emulated
def test_at_the_end_of_its_time_an_allocation_hands_back_what_it_has(
    lab: Lab, bystander: str, on_cluster: Make, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs is run again by the next one, which is no failure; what would not have fitted waits for that one.

    Users may not ask for less than a minute, for Slurm counts in these.
    """
    monkeypatch.setattr(clusters.BatchCluster, "seconds", property(lambda _: 25.0))
    executor = on_cluster(nodes=1)
    running = start_stamping(executor, history)
    [first] = our_jobs(lab, bystander)
    [agent] = executor.workers()
    wait_until(lambda: agent.ends is not None and agent.ends - time.time() < 15)
    fits, too_long = executor.submit(where), executor.options(time_request="15s").submit(where)
    assert outcome(fits) in ("n1", "n2")
    wait_attempts(history, 2)
    assert outcome(too_long) in ("n1", "n2")
    assert first not in our_jobs(lab, bystander)
    history.open()
    assert (outcome(running), running.attempt) == (history.attempts()[1], 2)
    history.check_no_overlap(2)


@with_accounting
def test_somebody_cancels_an_allocation_under_load(lab: Lab, bystander: str, on_cluster: Make, tmp_path: Path) -> None:
    """Its agent hears of it in time, and hands back what it has: nothing waits for the lease."""
    executor = on_cluster(2 * LIMIT, nodes=2)
    load = Load(executor, tmp_path)
    load.wait_some()
    lab.cancel(next(job for job, host in our_jobs(lab, bystander).items() if host in ("n1", "n2")))
    load.check()


@real
def test_a_node_daemon_is_killed(lab: Lab, on_cluster: Make, history: History) -> None:
    """Our agent lives on, whatever its batch system says of the job: liveness is what the agent tells."""
    executor = on_cluster(nodes=1)
    future = start_stamping(executor, history)
    [agent] = executor.workers()
    lab.kill_daemon(agent.host)
    try:
        wait_until(lambda: agent.host not in lab.ready(), "until the host counts as lost")
        assert [outcome(executor.submit(pow, 2, number)) for number in range(4)] == [1, 2, 4, 8]
        history.open()
        assert outcome(future) == history.attempts()[-1]
        history.check_no_overlap(future.attempt)
    finally:
        lab.start_daemon(agent.host)


# ---- hosts and cables


@real
def test_a_host_is_switched_off_and_on_under_load(lab: Lab, on_cluster: Make, tmp_path: Path) -> None:
    executor = on_cluster(LEASE, nodes=2, prologue="export TMPDIR=/dev/shm")  # what is left there goes with the host
    load = Load(executor, tmp_path)
    load.wait_some()
    host = executor.workers()[0].host
    lab.hosts.off(host)
    wait_until(lambda: host not in {each.host for each in executor.workers()}, "until the agent counts as lost")
    lab.hosts.on(host)
    lab.start_daemon(host)
    load.check()


@real
def test_a_cable_is_out_for_less_than_the_lease(lab: Lab, on_cluster: Make, history: History, tmp_path: Path) -> None:
    """No task hears of it."""
    executor = on_cluster(10 * LEASE, nodes=1)
    future = start_stamping(executor, history)
    load = Load(executor, tmp_path, 100)
    [agent] = executor.workers()
    lab.hosts.cut(agent.host)
    time.sleep(LEASE)  # this is the cut: there is nothing to wait for
    lab.hosts.heal(agent.host)
    load.check()
    history.open()
    assert (outcome(future), future.attempt) == (history.attempts()[0], 1)
    history.check_no_overlap(1)


@real
def test_a_cable_is_out_for_more_than_the_lease(lab: Lab, on_cluster: Make, history: History, tmp_path: Path) -> None:
    """What ran there runs elsewhere, after its end there; what comes back does no harm."""
    executor = on_cluster(LEASE, nodes=2)
    future = start_stamping(executor, history)
    load = Load(executor, tmp_path)
    load.wait_some()
    host = f"n{history.attempts()[0] // PER_HOST}"
    lab.hosts.cut(host)
    try:
        wait_attempts(history, 2)
    finally:
        lab.hosts.heal(host)
    load.check()
    history.open()
    assert (outcome(future), future.attempt) == (history.attempts()[1], 2)
    history.check_no_overlap(2)


# ---- what never works


@real_and_emulated
def test_a_submission_that_is_refused_fails_what_waits_for_it(lab: Lab, on_cluster: Make) -> None:
    """With the command, and what the batch system said.

    More are refused at once than it takes to give a cluster up: with some left at that moment, hope was never lost.
    """
    whole = on_cluster(queue="nowhere", nodes=FAILURES + 2).options(cpus=CPUS)
    for future in [whole.submit(where) for _ in range(FAILURES + 2)]:
        error = failure_of(future)
        assert lab.submit_command in str(error)
        assert lab.refusal in str(error)


@real_and_emulated
def test_an_agent_without_a_python_never_joins(lab: Lab, on_cluster: Make) -> None:
    error = failure_of(on_cluster(python="/nowhere/python3").submit(where))
    assert lab.submit_command in str(error)
    assert "/nowhere/python3" in str(error).partition("The end of its output:")[2]


@real
def test_an_agent_that_cannot_reach_us_never_joins(lab: Lab, on_cluster: Make) -> None:
    """``host`` is the login host's address for itself."""
    error = failure_of(on_cluster(LEASE, host="127.0.0.1").submit(where))
    told = str(error).partition("The end of its output:")[2]
    assert "the hub cannot be reached" in told
    assert "tcp://127.0.0.1:" in told


def failure_of(future: TaskFuture) -> AgentFailed:
    error = future.exception(LONG)
    assert isinstance(error, AgentFailed), error
    return error


# ---- ends of the client

CLIENT = """
import sys, time
from executor import HPCExecutor, clusters
if __name__ == "__main__":
    with HPCExecutor(1, cluster=getattr(clusters, {kind!r})(**{settings!r})) as executor:
        print(executor.submit(pow, 2, 3).result(), flush=True)
        waits = [executor.options(cpus={cpus}).submit(time.sleep, 1000) for _ in range(4)]
        {then}
"""


@pytest.fixture
def start_client(lab: Lab, settings: dict[str, Any], start_script: Callable[..., subprocess.Popen[str]]) -> Start:
    """Starts a client that has run a task; others run, and wait for allocations that wait in the queue."""

    def start(then: str) -> subprocess.Popen[str]:
        settings["nodes"] = 4
        with inside(lab.hosts.network):
            client = start_script(CLIENT.format(kind=lab.cluster, settings=settings, cpus=CPUS, then=then), env=lab.env)
        assert client.stdout is not None
        assert client.stdout.readline() == "8\n"
        return client

    return start


@real_and_emulated
def test_no_job_of_a_client_that_was_killed_stays_in_the_queue(lab: Lab, bystander: str, start_client: Start) -> None:
    """Those that wait there do not either."""
    check_nothing_stays_after(signal.SIGKILL, lab, bystander, start_client)


@real
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
def test_no_job_of_a_client_that_was_ended_stays_in_the_queue(
    lab: Lab, bystander: str, start_client: Start, number: signal.Signals
) -> None:
    """By Ctrl-C, or kill."""
    check_nothing_stays_after(number, lab, bystander, start_client)


def check_nothing_stays_after(number: signal.Signals, lab: Lab, bystander: str, start_client: Start) -> None:
    client = start_client("time.sleep(1000)")
    wait_until(lambda: len(our_jobs(lab, bystander)) == 4, "for four allocations")
    client.send_signal(number)
    client.communicate(timeout=LONG)
    assert client.returncode != 0
    wait_until(lambda: not our_jobs(lab, bystander), "for the end of all jobs")


@real
def test_no_job_stays_in_the_queue_after_shutdown(
    lab: Lab, bystander: str, start_client: Start, settings: dict[str, Any]
) -> None:
    """Nor any file in the directory that the hosts see."""
    client = start_client("executor.kill_workers()")
    _, said = client.communicate(timeout=LONG)
    assert (client.returncode, said) == (0, "")
    wait_until(lambda: not our_jobs(lab, bystander), "for the end of all jobs")
    assert os.listdir(settings["run_dir"]) == []


@real
def test_tasks_that_nobody_waits_for_end_before_a_client_leaves(lab: Lab, on_cluster: Make, tmp_path: Path) -> None:
    """``shutdown`` waits for them, as in the standard library, though no allocation runs yet."""
    executor = on_cluster()
    future = executor.submit(announce, tmp_path / "ran", 7)
    executor.shutdown()
    assert future.done()
    assert announced(tmp_path / "ran") == [7]
