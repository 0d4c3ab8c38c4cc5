"""Real batch systems for the tests here: each is started once, on hosts of its own, and ended with the session.

Where they are not installed, or we are not root, these tests are skipped; where HPC_REQUIRE_CLUSTERS is set, as in CI,
they fail instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import hosts
import pytest
import waiting
from grid_engine_lab import GridEngineLab
from hosts import ADDRESSES, LOGIN, Hosts
from namespaces import inside
from pools import GRACE, end
from slurm_lab import CPUS, SlurmLab
from waiting import wait_until

from executor import HPCExecutor, clusters
from worker_agent import processes

#: Seconds after which a test is ended: an allocation lasts a minute at least, and a lost host is noticed late.
LIMIT = 240.0
#: Seconds: what a lease is here.
LEASE = 2.0
REQUIRED = "HPC_REQUIRE_CLUSTERS"

Lab = SlurmLab | GridEngineLab
#: Those that have an adapter.
LABS = ["slurm", *(["grid engine"] if hasattr(clusters, "GridEngine") else [])]


def leave_out(why: str) -> NoReturn:
    """Skip, or fail where these tests have to run."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"{why}; but {REQUIRED} says that the tests of clusters have to run", pytrace=False)
    pytest.skip(why)


@pytest.fixture
def bounded() -> Iterator[None]:
    """In place of the alarm of other tests: these take longer."""
    with waiting.bounded(LIMIT):
        yield


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


def _start(kind: str, make_hosts: Callable[[], Hosts], directory: Path) -> Lab:
    if kind == "grid engine":
        if why := GridEngineLab.obstacle():
            leave_out(why)
        return GridEngineLab(make_hosts(), directory)
    accounting = kind == "slurm with accounting"
    if why := SlurmLab.obstacle(accounting):
        leave_out(why)
    return SlurmLab(make_hosts(), directory, accounting)


@pytest.fixture(scope="session")
def running_lab(
    request: pytest.FixtureRequest, make_hosts: Callable[[], Hosts], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """A batch system that runs."""
    directory = tmp_path_factory.mktemp("lab")
    lab = _start(request.param, make_hosts, directory)
    yield lab
    lab.hosts.down()
    shutil.rmtree(directory)


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
