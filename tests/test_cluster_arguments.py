"""What a cluster is told: nonsense is refused where the executor is made, by the name of the argument."""

from __future__ import annotations

from typing import Any

import pytest

from executor import GridEngine, HPCExecutor, Slurm, Ssh

NONSENSE: list[dict[str, Any]] = [
    {"nodes": "4"}, {"nodes": 2.5}, {"nodes": 0}, {"nodes": (2, 1)}, {"nodes": (1, 2, 3)}, {"nodes_per_job": 0},
    {"time": "10"}, {"time": 10}, {"idle_timeout": "x"}, {"poll": 0}, {"cpus": "four"}, {"cpus": 0}, {"gpus": -1},
    {"memory": "x"}, {"queue": 3}, {"account": 3}, {"prologue": 3}, {"python": 3}, {"run_dir": 3}, {"host": 1},
    {"port": "x"}, {"port": 0}, {"directives": "--x"}, {"omit": [1]},
]  # fmt: skip


@pytest.mark.parametrize("settings", NONSENSE, ids=str)
def test_nonsense_is_refused_by_the_name_of_the_argument(settings: dict[str, Any]) -> None:
    [(name, value)] = settings.items()
    with pytest.raises((TypeError, ValueError)) as caught:
        HPCExecutor(cluster=Slurm(**settings))
    assert f"{name}={value!r}: " in str(caught.value)


def test_a_resource_without_a_proper_name_is_refused() -> None:
    with pytest.raises(ValueError, match="a b=1"):
        HPCExecutor(cluster=Slurm(resources={"a b": 1}))


def test_what_one_batch_system_does_not_know_is_refused_by_its_cluster() -> None:
    with pytest.raises(ValueError, match="cpus=None"):
        GridEngine()
    with pytest.raises(ValueError, match="memory_resource="):
        HPCExecutor(cluster=GridEngine(cpus=1, memory="1GiB"))


@pytest.mark.parametrize("hosts", ["node1", [], ["-oProxyCommand=x"], [3]])
def test_hosts_that_are_none_are_refused(hosts: Any) -> None:
    with pytest.raises(ValueError, match="hosts"):
        Ssh(hosts)
