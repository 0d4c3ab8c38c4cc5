"""Batch systems for the tests here: each is started once, on hosts of its own, and ended with the session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hosts
import pytest
import waiting
from histories import History
from hosts import ADDRESSES, LOGIN, Hosts
from labs import LIMIT, Lab, leave_out, running
from namespaces import inside
from pools import GRACE, end
from slurm_lab import CPUS
from waiting import Gate, wait_until

from executor import HPCExecutor, clusters
from executor.batch import watch
from worker_agent import processes


@pytest.fixture
def bounded() -> Iterator[None]:
    """In place of the alarm of other tests: these take longer."""
    with waiting.bounded(LIMIT):
        yield


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate; it opens at the end."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """A history; its task ends with the test at the latest."""
    history = History(tmp_path)
    yield history
    history.open()


# ---- labs


@pytest.fixture(scope="session")
def make_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Hosts]]:
    """Makes sets of hosts, which are taken down with the session at the latest."""
    made: list[Hosts] = []

    def make() -> Hosts:
        if why := hosts.obstacle():
            leave_out(why)
        made.append(Hosts(tmp_path_factory.mktemp("hosts")))
        return made[-1]

    yield make
    for each in made:
        each.down()


@pytest.fixture(scope="session")
def running_lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A batch system that runs."""
    with running(request.param, tmp_path_factory) as lab:
        yield lab


@pytest.fixture(scope="session")
def bystander(running_lab: Lab) -> str:
    """Somebody else's job: it runs on n3 all the time, and leaves no room for whole allocations of ours there."""
    job = running_lab.submit("#!/bin/sh\nexec sleep infinity\n", *running_lab.on_host("n3"))
    wait_until(lambda: running_lab.hosts.pids("n3", "sleep"), "for somebody else's job")
    return job


@pytest.fixture
def lab(running_lab: Lab, bystander: str, run_mark: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A batch system of which the test may do what it likes. In the end our jobs are gone, and no other is."""
    before, others = set(processes.marked(run_mark)), running_lab.hosts.pids("n3", "sleep")
    for name, value in running_lab.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(watch, "MISSING", 0.5)  # Grid Engine's and PBS's jobs are, each time that one has ended
    yield running_lab
    jobs = running_lab.jobs
    wait_until(lambda: set(jobs()) <= {bystander}, f"for the end of our jobs, there are: {jobs()}", LIMIT / 2)
    running_lab.wait_ready()
    wait_until(lambda: set(processes.marked(run_mark)) <= before, "for the end of our processes")
    assert set(jobs()) == {bystander}
    assert running_lab.hosts.pids("n3", "sleep") == others


# ---- executors


@pytest.fixture
def settings(lab: Lab, tmp_path: Path) -> dict[str, Any]:
    """Of a cluster: whole hosts, which are given back soon."""
    return {
        "nodes": 3, "cpus": CPUS, "time": "5m", "idle_timeout": "2s", "poll": "0.5s", "host": ADDRESSES[LOGIN],
        "run_dir": str(tmp_path / "run"), **lab.settings,
    }  # fmt: skip


@pytest.fixture
def on_cluster(lab: Lab, settings: dict[str, Any]) -> Iterator[Callable[..., HPCExecutor]]:
    """Makes executors with agents by the batch system. They are on the login host: what they open listens there."""
    made: list[HPCExecutor] = []

    def make(lease: float = 30.0, **options: Any) -> HPCExecutor:
        cluster = getattr(clusters, lab.cluster)(**{**settings, **options})
        made.append(HPCExecutor(1, cluster=cluster, lease=lease, kill_grace=GRACE))
        with inside(lab.hosts.network):
            made[-1]._open_hub()  # its threads start here
        return made[-1]

    yield make
    for executor in made:
        end(executor)
