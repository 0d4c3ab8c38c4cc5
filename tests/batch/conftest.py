"""Where the batch jobs of these tests run: as processes of this machine, and in real batch systems of three hosts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from labs import Lab, running
from namespaces import inside
from waiting import SOON, wait_until

from executor import get_scheduler
from executor.batch import poller, watch
from executor.batch.schedulers import Scheduler

#: The names of their batch systems for users.
_SCHEDULERS = {"slurm": "slurm", "slurm with accounting": "slurm", "grid engine": "sge"}


@pytest.fixture(scope="session", params=["local"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of the batch system. For the whole session, so that the tests of one kind follow each other."""
    return request.param


@pytest.fixture(scope="session")
def running_lab(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab | None]:
    """The batch system; None for processes of this machine."""
    with nullcontext() if kind == "local" else running(kind, tmp_path_factory) as lab:
        yield lab


@pytest.fixture
def lab(running_lab: Lab | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab | None]:
    """... of which this test is a client. No job is left in it."""
    if running_lab is None:
        yield None
        return
    for name, value in running_lab.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(poller, "_pollers", {})  # one that has never been asked, and has not learned to hurry
    monkeypatch.setattr(watch, "MISSING", 0.5)  # Grid Engine's are, each time that one has ended
    with inside(running_lab.hosts.network):
        yield running_lab
    try:
        wait_until(lambda: not running_lab.jobs(), f"for the end of all jobs, there are: {running_lab.jobs()}", SOON)
    finally:
        for job in running_lab.jobs():
            running_lab.cancel(job)


@pytest.fixture
def where(kind: str, lab: Lab | None) -> Scheduler:
    """Where to submit."""
    return get_scheduler(_SCHEDULERS.get(kind, kind), poll="100ms")
