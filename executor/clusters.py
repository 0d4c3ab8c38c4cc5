"""Where agents come from: values for ``HPCExecutor(cluster=...)``."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from executor.batch.flux import FluxSystem
from executor.batch.grid_engine import GridEngineSystem
from executor.batch.pbs import PBSSystem, TorqueSystem
from executor.batch.request import JobRequest
from executor.batch.slurm import SlurmSystem
from executor.batch.system import BatchSystem
from executor.checks import check_duration
from executor.core.allocations import Policy
from executor.quantities import parse_size
from worker_agent.declared import parse_pools
from worker_agent.pools import Pool


@dataclass(frozen=True, kw_only=True)
class BatchCluster:
    """Nodes that a batch system grants: agents run there in allocations that follow what waits.

    :param nodes: how many nodes there may be at a time, or (least, most).
    :param nodes_per_job: how many of them each allocation has.
    :param time: how long an allocation lasts: a duration.
    :param idle_timeout: a duration after which an allocation without work is given back.
    :param cpus, memory, gpus: what each node is asked for; without ``cpus`` it is asked for as a whole.
    :param queue, account: as the site calls them; None: its defaults.
    :param prologue: lines of shell that the job script begins with, such as ``module load cuda``.
    :param directives: further options of the batch system, as they stand.
    :param omit: options of ours that the site does not want, such as ``--mem``.
    :param python: the Python of the agents there; None: the one that runs here. It needs what we need.
    :param run_dir: a directory that the nodes see too, for connection data and logs.
        None: ``hpc-executor`` in $XDG_STATE_HOME, or in ``~/.local/state``.
    :param host: the address, name or network interface of this machine at which agents reach it; None: all addresses
        that others may reach, and its name, which the agents try at the same time.
    :param port: None: any that is free.
    :param poll: a duration between two questions to the batch system, 10 s at least by default.
    """

    nodes: int | tuple[int, int] = 1
    nodes_per_job: int = 1
    time: float | str = "1h"
    idle_timeout: float | str = "5m"
    cpus: int | None = None
    memory: int | str | None = None
    gpus: int | None = None
    queue: str | None = None
    account: str | None = None
    prologue: str = ""
    directives: Sequence[str] = ()
    omit: Sequence[str] = ()
    python: str | None = None
    run_dir: str | None = None
    host: str | None = None
    port: int | None = None
    poll: float | str = "10s"
    resources: Mapping[str, Any] = field(default_factory=dict)

    def system(self) -> BatchSystem:
        """The batch system."""
        raise NotImplementedError

    @property
    def pools(self) -> list[Pool] | None:
        """What an agent there will have, as far as it is asked for; None: nobody knows."""
        if self.cpus is None:
            return None
        asked = {"cpus": self.cpus, "memory": self.memory, "gpus": self.gpus, **self.resources}
        return parse_pools({name: what for name, what in asked.items() if what is not None})

    @property
    def seconds(self) -> float:
        """How long an allocation lasts."""
        return check_duration("time", self.time, 60.0)

    @property
    def seconds_between_polls(self) -> float:
        """How often the batch system is asked."""
        return check_duration("poll", self.poll, 0.1)

    @property
    def policy(self) -> Policy:
        """How many, and for how long."""
        least, most = self.nodes if isinstance(self.nodes, tuple) else (0, self.nodes)
        if not 0 <= least <= most or most < 1:
            raise ValueError(
                f"nodes={self.nodes!r}: expected how many at most, or (least, most) with 0 <= least <= most"
            )
        return Policy(least, most, min(self.nodes_per_job, most), check_duration("idle_timeout", self.idle_timeout))

    def on_each_node(self, command: str, path: str, nodes: int) -> str:
        """What the job does to have agents on its nodes: the command, with the file by which they join."""
        return self.system().on_each_node(f"{command} {shlex.quote(path)}", nodes)

    def request(self, name: str, nodes: int, command: str, log: str) -> JobRequest:
        """An allocation with so many nodes that runs the command on one of them."""
        return JobRequest(
            command, name, nodes, cpus=self.cpus, gpus=self.gpus, time=self.seconds, queue=self.queue,
            memory=None if self.memory is None else math.ceil(parse_size(self.memory)), account=self.account,
            stdout=log, workdir=os.path.dirname(log) or None, prologue=self.prologue, exclusive=self.cpus is None,
            directives=tuple(self.directives), omit=frozenset(self.omit),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Slurm(BatchCluster):
    """Nodes that Slurm grants. ``partition`` is Slurm's word for ``queue``."""

    partition: str | None = None

    def __post_init__(self) -> None:
        if self.partition is not None:
            object.__setattr__(self, "queue", self.partition)

    def system(self) -> BatchSystem:
        return SlurmSystem()


@dataclass(frozen=True, kw_only=True)
class GridEngine(BatchCluster):
    """Slots that Grid Engine grants. ``cpus`` has to be said: it counts slots, and knows no whole nodes.

    On how many hosts an allocation with ``nodes_per_job`` above 1 is, the parallel environment's rule decides: one with
    as many slots for each host as ``cpus`` gives what was asked for. There is an agent on each host.

    :param pe: the parallel environment in which there is more than one slot, such as "smp"; ``qconf -spl`` lists those
        that there are. For ``nodes_per_job`` above 1 it has to allow ``qrsh -inherit`` (``control_slaves TRUE``).
    :param memory_resource: what memory is called there, such as "h_vmem" or "mem_free"; needed for ``memory``.
    :param memory_per_slot: whether that is counted for each slot, as it mostly is.
    :param gpu_resource: what GPUs are called there; ``gpus`` are asked for as they stand.
    """

    pe: str | None = None
    memory_resource: str | None = None
    memory_per_slot: bool = True
    gpu_resource: str = "gpu"

    def __post_init__(self) -> None:
        if self.cpus is None:
            raise ValueError("cpus=None: Grid Engine gives slots and no whole nodes; expected how many on each node")

    def system(self) -> BatchSystem:
        return GridEngineSystem(
            pe=self.pe, memory_resource=self.memory_resource, memory_per_slot=self.memory_per_slot,
            gpu_resource=self.gpu_resource,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PBS(BatchCluster):
    """Nodes that OpenPBS or PBS Professional grants; or Torque, which asks in other words.

    :param torque: whether it is Torque.
    """

    torque: bool = False

    def system(self) -> BatchSystem:
        return TorqueSystem() if self.torque else PBSSystem()


@dataclass(frozen=True, kw_only=True)
class Flux(BatchCluster):
    """Nodes that Flux grants. It does not grant memory: ``memory`` is refused. ``account`` is its bank."""

    def system(self) -> BatchSystem:
        return FluxSystem()


def check_clusters(clusters: Sequence[object]) -> list[BatchCluster]:
    """The clusters, in their order. Raises TypeError for what is none, ValueError for settings that make no sense."""
    checked = []
    for each in clusters:
        if not isinstance(each, BatchCluster):
            raise TypeError(f"cluster={each!r}: expected a cluster such as Slurm(nodes=(0, 4)), or a list of such")
        log = os.path.join(each.run_dir or "", "log")
        each.system().script(each.request("check", each.policy.each, "true", log))
        _ = (each.pools, each.seconds_between_polls)
        checked.append(each)
    return checked
