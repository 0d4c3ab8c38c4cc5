"""Batch systems that run while tests need them: real ones, and commands that emulate others in front of a real Slurm.

Where they are not installed, or we are not root, the tests are skipped; where HPC_REQUIRE_CLUSTERS is set, as in CI,
they fail instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import hosts
import pytest
from emulated_labs import EmulatedFlux, EmulatedPBS
from grid_engine_lab import GridEngineLab
from hosts import Hosts
from slurm_lab import AccountedSlurmLab, SlurmLab

REQUIRED = "HPC_REQUIRE_CLUSTERS"
#: Seconds after which a test is ended: an allocation may last a minute, and a lost host is noticed late.
LIMIT = 240.0
#: Seconds: what a lease is here.
LEASE = 2.0

Lab = SlurmLab | GridEngineLab
KINDS: dict[str, type[SlurmLab] | type[GridEngineLab]] = {
    "slurm": SlurmLab, "slurm with accounting": AccountedSlurmLab, "grid engine": GridEngineLab,
    "emulated PBS": EmulatedPBS, "emulated Flux": EmulatedFlux,
}  # fmt: skip


def leave_out(why: str) -> NoReturn:
    """Skip, or fail where these tests have to run."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"{why}; but {REQUIRED} says that the tests of clusters have to run", pytrace=False)
    pytest.skip(why)


@contextmanager
def running(kind: str, directories: pytest.TempPathFactory) -> Iterator[Lab]:
    """A batch system that runs, on hosts of its own."""
    if why := hosts.obstacle() or KINDS[kind].obstacle():
        leave_out(why)
    its_hosts, directory = Hosts(directories.mktemp("hosts")), directories.mktemp("lab")
    try:
        yield KINDS[kind](its_hosts, directory)
    finally:
        its_hosts.down()
        shutil.rmtree(directory)
