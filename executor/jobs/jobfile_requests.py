"""A ``[[task.request]]`` of a job definition file: one variant of what a task needs."""

from __future__ import annotations

import math
from typing import Any, Final

from executor.jobs.toml_tables import Table
from executor.quantities import read_count
from executor.resources import Resources, parse_amount
from worker_agent.amounts import MIB
from worker_agent.pools import UNIT

REQUEST_KEYS: Final = ("resources", "time_request", "n_nodes", "ranks", "weight")

_SYNONYMS = {
    "min_time": "time_request", "nodes": "n_nodes", "np": "ranks", "resource": "resources", "walltime": "time_request",
}  # fmt: skip
_IN_RESOURCES = dict.fromkeys(("cpus", "gpus", "mem", "memory"), "write it in resources = { ... }")
_TASK = (
    "id", "deps", "ids", "entries", "max_concurrent", "name", "command", "stdin", "check", "stdout", "stderr", "env",
    "cwd", "pin", "task_dir", "time_limit", "priority", "crash_limit", "retries",
    "launcher",
)  # fmt: skip
_WEIGHT_HELP = "expected a number more than 0, such as 2.5"


def read_request(table: Table) -> Resources:
    """What it asks for; where nothing is said about ``cpus``, it is 1, or one for each rank, as for all of ours."""
    above = dict.fromkeys(_TASK, f"it belongs to the task; write it above {table.title}")
    table.check_keys(REQUEST_KEYS, _SYNONYMS, {**above, **_IN_RESOURCES})
    amounts = _read_amounts(table.table("resources")) if "resources" in table.values else {}
    seconds = table.read("time_request", _read_time) if "time_request" in table.values else None
    nodes = table.read("n_nodes", _read_nodes) if "n_nodes" in table.values else 0
    ranks = table.read("ranks", _read_ranks) if "ranks" in table.values else 0
    if "weight" in table.values:
        table.read("weight", _check_weight)
    if nodes and amounts:
        raise table.refuse(f"n_nodes={nodes}: whole nodes come with all they have; leave resources out", "n_nodes")
    if nodes and ranks % nodes:
        raise table.refuse(f"ranks={ranks}: expected a multiple of n_nodes={nodes}: each has equally many", "ranks")
    return Resources(resources=amounts, time_request=seconds, nodes=nodes, ranks=ranks)


def _read_amounts(table: Table) -> dict[str, Any]:
    amounts = {}
    for name in table.values:
        ours = "memory" if name == "mem" else name
        if ours in amounts:
            raise table.refuse("mem (in MiB) and memory are two words for one thing; give one of them", name)
        amounts[ours] = table.read(name, _read_mem if name == "mem" else _Amount(name))
    return amounts


class _Amount:
    """Reads the amount of the resource with this name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, value: Any) -> Any:
        Resources(resources={self._name: value})
        return value


def _read_mem(value: Any) -> int | str:
    """HyperQueue counts memory in MiB; ours is a size. Memory has no groups, so that a policy changes nothing."""
    units, _ = parse_amount(value)
    return "all" if units is None else units * MIB // UNIT


def _read_time(value: Any) -> Any:
    Resources(time_request=value)
    return value


def _read_nodes(value: Any) -> int:
    return read_count(value, "expected a number of whole nodes, 0 or more, such as 2")


def _read_ranks(value: Any) -> int:
    return read_count(value, "expected a number of processes, 0 or more, such as 4")


def _check_weight(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(_WEIGHT_HELP)
    if not 0 < value < math.inf:
        raise ValueError(_WEIGHT_HELP)
