"""Tasks that wait for agents of clusters: which agents are asked for, and what nobody will ever run does not wait."""

# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from pools import gate, new_executor
from waiting import Gate, pass_gate, wait_until

from executor import HPCExecutor, Local, Slurm, UnsatisfiableRequest
from executor.batch.local import LocalSystem
from executor.batch.system import BatchSystem
from executor.clusters import BatchCluster
from executor.errors import AgentFailed

pytestmark = pytest.mark.shared

cloudpickle.register_pickle_by_value(sys.modules[__name__])

New = Callable[..., HPCExecutor]


@dataclass(frozen=True, kw_only=True)
class Here(BatchCluster):
    """A cluster whose jobs are processes of this machine."""

    def system(self) -> BatchSystem:
        return LocalSystem()


@pytest.fixture
def on_here(new_executor: New, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> New:
    """Makes executors with agents by such jobs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def make(*others: Any, **options: Any) -> HPCExecutor:
        cluster = Here(**{"host": "127.0.0.1", "poll": 0.2, "time": "5m", **options})
        return new_executor(1, resources=None, cluster=[*others, cluster])

    return make


@pytest.fixture
def no_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Slurm that takes no jobs; gives what it says."""
    said = "sbatch: error: Invalid account or account/partition combination specified"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(f"#!/bin/sh\ncat > /dev/null\necho '{said}' >&2\nexit 1\n")
    for name in ("squeue", "scontrol", "sacct", "scancel"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 0\n")
    for each in (tmp_path / "bin").iterdir():
        each.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr("executor.core.allocations.PAUSE", 0.1)
    return said


@pytest.mark.parametrize(
    ("options", "lacking"),
    [
        ({"cpus": 2}, "cpus=2, and an agent has 1 at most"),
        ({"time_request": "6m"}, r"360 s \(time_request\), and an agent lives for 300 s at most"),
        ({"nodes": 2}, "2 nodes, and there is 1 agent in a group"),
    ],
)
def test_what_no_allocation_can_have_is_refused_at_once(on_here: New, options: dict[str, Any], lacking: str) -> None:
    executor = on_here(cpus=1)
    with pytest.raises(UnsatisfiableRequest, match=f"the task 'pow' needs {lacking}"):
        executor.options(**options).submit(pow, 2, 3)


def test_what_was_not_asked_for_may_be_there_and_one_agent_comes_to_tell(on_here: New) -> None:
    executor = on_here(cpus=1, nodes=4)
    gpus = [executor.options(resources={"cpus": 1, "hens": 1}).submit(pow, 2, 3) for _ in range(3)]
    for future in gpus:
        with pytest.raises(UnsatisfiableRequest, match="the task 'pow' needs hens=1, and no agent has any") as caught:
            future.result()
        assert (caught.value.resource, caught.value.requested, caught.value.most) == ("hens", 1.0, 0.0)
    assert len(executor.workers()) == 1
    assert executor.submit(pow, 2, 3).result() == 8


def test_what_was_not_asked_for_and_is_there_is_used(on_here: New) -> None:
    assert on_here(cpus=1).options(memory="1MiB").submit(pow, 2, 3).result() == 8


def test_a_resource_that_its_cluster_declares_is_there(on_here: New) -> None:
    executor = on_here(cpus=1, resources={"hens": "sum(3)"})
    assert executor.options(resources={"hens": 2}).submit(pow, 2, 3).result() == 8


def test_an_agent_with_less_than_was_asked_for_is_told_of_once(on_here: New, caplog: Any) -> None:
    there = len(os.sched_getaffinity(0))
    asked = there + 3
    executor = on_here(cpus=asked, nodes=2)
    with caplog.at_level(logging.WARNING, "executor"):
        assert executor.submit(pow, 2, 3).result() == 8
        with pytest.raises(UnsatisfiableRequest, match=f"needs cpus={asked}, and an agent has"):
            executor.options(cpus=asked).submit(pow, 2, 3).result()
    told = [each.message for each in caplog.records if "asked for" in each.message]
    assert told == [f"local: {asked} cpus were asked for, and an agent has {there}"]


def test_tasks_for_a_cluster_that_gives_nothing_fail_with_its_reason_while_others_run(
    new_executor: New, no_queue: str, tmp_path: Path
) -> None:
    cluster = Slurm(cpus=1, gpus=1, run_dir=str(tmp_path / "run"), host="127.0.0.1")
    executor = new_executor(1, resources=None, cluster=[Local(), cluster])
    trained = executor.options(gpus=1).submit(pow, 2, 3)
    error = trained.exception()
    assert isinstance(error, AgentFailed)
    assert "the task 'pow' needs gpus=1, and no agent has any now: " in str(error)
    assert no_queue in str(error)
    assert executor.submit(pow, 2, 3).result() == 8


def test_an_explanation_tells_of_agents_that_are_to_come(on_here: New) -> None:
    executor = on_here(cpus=1, prologue="sleep 1000")
    future = executor.submit(pow, 2, 3)
    wait_until(lambda: "no agent has joined (RUNNING)" in str(executor.explain(future)))
    explanation = executor.explain(future)
    assert explanation.summary == "no agent has joined"
    [(name, text)] = explanation.clusters.items()
    assert name.startswith("local job ")
    assert text.startswith("it runs for ")
    assert executor.counts().coming == "waits for 1 local job"
    assert future.cancel()


def test_an_explanation_tells_why_no_agent_is_asked_for(
    new_executor: New, no_queue: str, tmp_path: Path, gate: Gate
) -> None:
    cluster = Slurm(cpus=1, run_dir=str(tmp_path / "run"), host="127.0.0.1")
    executor = new_executor(1, resources=None, cluster=[Local(), cluster])
    runs, waits = (executor.submit(pass_gate, *gate.paths) for _ in range(2))
    said = wait_until(lambda: executor.explain(waits).clusters.get("slurm"))
    assert no_queue in said
    wait_until(lambda: executor.explain(waits).clusters.get("slurm", "").startswith("nothing more is asked for: "))
    assert not executor.explain(runs).clusters
