"""Which variables tell a task what it was given, and on which CPUs it is to stay.

Each of ours is there twice: as ``HPC_<name>``, and as ``HQ_<name>`` for programs that were written for HyperQueue.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from worker_agent.pools import UNIT, Share

#: By which variable each library of numerics learns how many threads it may use.
THREADS: Final = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS", "NUMBA_NUM_THREADS",
)  # fmt: skip


def lane_variables(
    request: Sequence[tuple[str, str]],
    variant: int | None,
    shares: Sequence[Share],
    env: Mapping[str, str],
    ranks: int = 0,
) -> dict[str, str]:
    """What is the same in all places of a lane: what was asked for, and how many threads that is.

    ``request`` has the resources' names and amounts as text, ``variant`` is which of several requests was met, ``env``
    are the variables that the task has anyway: threads that it sets stay as they are. So many ``ranks`` share the CPUs.
    """
    asked = {f"RESOURCE_REQUEST_{_plain(name)}": text for name, text in request}
    if variant is not None:
        asked["RESOURCE_VARIANT"] = str(variant)
    return _under_both_names(asked) | _threads(shares, env, max(1, ranks))


def _threads(shares: Iterable[Share], env: Mapping[str, str], ranks: int) -> dict[str, str]:
    cpus = _share_of("cpus", shares)
    if cpus is None or cpus.amount < UNIT or cpus.amount % UNIT:
        return {}
    return {name: str(max(1, cpus.amount // UNIT // ranks)) for name in THREADS if name not in env}


def node_variables(number: int, node_file: str, host_file: str) -> dict[str, str]:
    """On how many nodes the task may run, and the files that name them: without their domains, and as they are."""
    return _under_both_names({"NUM_NODES": str(number), "NODE_FILE": node_file, "HOST_FILE": host_file})


def rank_variables(number: int) -> dict[str, str]:
    """How many ranks the task has; which of them a process is, its MPI knows."""
    return {"HPC_NUM_RANKS": str(number)}


def place_variables(shares: Iterable[Share]) -> dict[str, str]:
    """Which parts the task has in its place; of these, one that it has only a part of is the last."""
    had = {share.name: ",".join(share.indices) for share in shares if share.indices}
    values = {f"RESOURCE_VALUES_{_plain(name)}": parts for name, parts in had.items()}
    if "cpus" in had:
        values["CPUS"] = had["cpus"]
    return _under_both_names(values) | _gpus(had)


def _gpus(had: Mapping[str, str]) -> dict[str, str]:
    variables = {}
    if "gpus/nvidia" in had:
        # without the order, CUDA counts the fastest first, and we have counted as the bus does
        variables = {"CUDA_VISIBLE_DEVICES": had["gpus/nvidia"], "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if "gpus/amd" in had:
        variables["ROCR_VISIBLE_DEVICES"] = had["gpus/amd"]
    return variables


def cpus_of(shares: Iterable[Share]) -> list[int]:
    """The CPUs of a place, for pinning; none if it has no CPUs of its own."""
    cpus = _share_of("cpus", shares)
    return [] if cpus is None else [int(index) for index in cpus.indices]


def _share_of(name: str, shares: Iterable[Share]) -> Share | None:
    return next((share for share in shares if share.name == name), None)


def _plain(name: str) -> str:
    """A resource's name as part of a variable's, which shells would not take with "/"."""
    return re.sub("[^A-Za-z0-9]", "_", name)


def _under_both_names(variables: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}_{name}": text for prefix in ("HPC", "HQ") for name, text in variables.items()}
