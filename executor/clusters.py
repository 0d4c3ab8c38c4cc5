"""Where agents come from: values for ``HPCExecutor(cluster=...)``."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from executor.batch.flux import FluxSystem
from executor.batch.grid_engine import GridEngineSystem
from executor.batch.pbs import PBSSystem, TorqueSystem
from executor.batch.request import JobRequest
from executor.batch.slurm import SlurmSystem
from executor.batch.system import BatchSystem
from executor.checks import check_duration
from executor.core.allocations import Policy
from executor.core.offers import Offer
from executor.quantities import parse_size
from worker_agent.declared import parse_pools
from worker_agent.pools import Pool


@dataclass(frozen=True, kw_only=True)
class BatchCluster:
    """Nodes that a batch system grants: agents run there in allocations that follow what waits. See docs/clusters.md.

    What makes no sense, HPCExecutor refuses by TypeError or ValueError, before anything is asked for.

    :param nodes: how many nodes there may be at a time, int; or (least, most).
    :param nodes_per_job: how many of them each allocation has, int.
    :param time: how long an allocation lasts: a duration ("2h", or seconds), a minute or more.
    :param idle_timeout: a duration after which an allocation without work is given back.
    :param cpus, gpus: what each node is asked for, int; without ``cpus`` it is asked for as a whole.
    :param memory: the same, a size: "64GiB", or int (bytes); None: what the site gives.
    :param queue, account: str, as the site calls them; None: its defaults.
    :param prologue: lines of shell that the job script begins with, for the agents: tasks have the variables of the
        process that submits them, and those that a :class:`~executor.python_env.PythonEnv` leaves.
    :param directives: further options of the batch system, as they stand (str), such as "--constraint=avx512".
    :param omit: options of ours that the site does not want (str), such as "--mem".
    :param python: the Python of the agents there (str); None: the one that runs here. It needs what we need, and
        reads what is ours by the path that it has here.
    :param run_dir: a directory (str) that the nodes see too, for connection data and logs. None: ``hpc-executor`` in
        $XDG_STATE_HOME, or in ``~/.local/state``.
    :param host: the address, name or network interface (str) of this machine at which agents reach it; None: all
        addresses that others may reach, and its name, which the agents try at the same time.
    :param port: int; None: any that is free.
    :param poll: a duration between two questions to the batch system, 0.1 s or more.
    :param resources: what each agent has beyond what it finds, or in its place: a mapping of names to what there is,
        as in docs/resources.md.

    An executor has one ``run_dir``, ``host`` and ``port``: of several clusters, the first that says something counts;
    of ``poll``, the shortest.
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
        raise NotImplementedError  # no abstract method: what a site wants of its batch jobs is a plain one

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return self.system().name

    def describe(self, request: JobRequest) -> str:
        """The command that asks for an allocation."""
        return shlex.join(self.system().submit(request).argv)

    @property
    def pools(self) -> list[Pool] | None:
        """What an agent there will have, as far as it is asked for; None: nobody knows."""
        if self.cpus is None:
            return None
        asked = {"cpus": self.cpus, "memory": self.memory, "gpus": self.gpus, **self.resources}
        return parse_pools({name: what for name, what in asked.items() if what is not None})

    @property
    def offer(self) -> Offer:
        """What each agent there will have, as far as anybody knows."""
        return Offer(self.pools, self.policy.each, self.seconds, asked=True)

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
        counts = self.nodes if isinstance(self.nodes, tuple) else (0, self.nodes)
        whole = len(counts) == 2 and all(isinstance(each, int) for each in counts)
        if not whole or not 0 <= counts[0] <= counts[1] or counts[1] < 1:
            raise ValueError(
                f"nodes={self.nodes!r}: expected how many at most, or (least, most) with 0 <= least <= most"
            )
        least, most = counts
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
            warning=True, directives=tuple(self.directives), omit=frozenset(self.omit),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Slurm(BatchCluster):
    """Nodes that Slurm grants. The parameters are those of :class:`BatchCluster`, and:

    :param partition: Slurm's word for ``queue``, which it replaces.
    """

    partition: str | None = None

    def __post_init__(self) -> None:
        if self.partition is not None:
            object.__setattr__(self, "queue", self.partition)

    def system(self) -> BatchSystem:
        return SlurmSystem()


@dataclass(frozen=True, kw_only=True)
class GridEngine(BatchCluster):
    """Slots that Grid Engine grants. ``cpus`` has to be said: it counts slots, and knows no whole nodes.

    ``account`` is its project. The parameters are those of :class:`BatchCluster`, and:

    :param pe: the parallel environment in which there is more than one slot, such as "smp"; ``qconf -spl`` lists those
        that there are. For ``nodes_per_job`` above 1 it has to allow ``qrsh -inherit`` (``control_slaves TRUE``).
    :param memory_resource: what memory is called there, such as "h_vmem" or "mem_free"; needed for ``memory``.
    :param memory_per_slot: whether that is counted for each slot, as it mostly is.
    :param gpu_resource: what GPUs are called there; ``gpus`` are asked for as they stand.
    :raises ValueError: there are no ``cpus``.

    On how many hosts an allocation with ``nodes_per_job`` above 1 is, the parallel environment's rule decides: one with
    as many slots for each host as ``cpus`` gives what was asked for. There is an agent on each host.
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

    The parameters are those of :class:`BatchCluster`, and:

    :param torque: whether it is Torque.
    """

    torque: bool = False

    def system(self) -> BatchSystem:
        return TorqueSystem() if self.torque else PBSSystem()


@dataclass(frozen=True, kw_only=True)
class Flux(BatchCluster):
    """Nodes that Flux grants. It does not grant memory: ``memory`` is refused. ``account`` is its bank.

    The parameters are those of :class:`BatchCluster`.
    """

    def system(self) -> BatchSystem:
        return FluxSystem()


def check_clusters(clusters: Sequence[object]) -> list[BatchCluster]:
    """The clusters, in their order. Raises TypeError for what is none, ValueError for settings that make no sense."""
    checked = []
    for each in clusters:
        if not isinstance(each, BatchCluster):
            raise TypeError(f"cluster={each!r}: expected a cluster such as Slurm(nodes=(0, 4)), or a list of such")
        _check_fields(each)
        log = os.path.join(each.run_dir or "", "log")
        each.system().script(each.request("check", each.policy.each, "true", log))
        _ = (each.pools, each.seconds_between_polls)
        checked.append(each)
    return checked


#: Whole numbers, and the least that makes sense.
_COUNTS = {"nodes_per_job": 1, "cpus": 1, "gpus": 0, "port": 1}
_TEXTS = ("queue", "account", "prologue", "python", "run_dir", "host")
_LISTS = ("directives", "omit")


def _check_fields(cluster: BatchCluster) -> None:
    """What the batch system, or its text, would not refuse by the name of the argument."""
    given = {field.name: getattr(cluster, field.name) for field in fields(cluster)}
    for name, least in _COUNTS.items():
        value = given[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name}={value!r}: expected a whole number, {least} or more")
    for name in _TEXTS:
        if not isinstance(given[name], str | os.PathLike | None):
            raise TypeError(f"{name}={given[name]!r}: expected text")
    for name in _LISTS:
        if isinstance(given[name], str) or not all(isinstance(each, str) for each in given[name]):
            raise TypeError(f"{name}={given[name]!r}: expected a list of options, such as ['--mem']")
    _check_amounts(cluster)


def _check_amounts(cluster: BatchCluster) -> None:
    parse_pools(dict(cluster.resources))
    try:
        _ = cluster.memory is None or parse_size(cluster.memory)
    except (TypeError, ValueError) as error:
        raise type(error)(f"memory={cluster.memory!r}: {error}") from None
