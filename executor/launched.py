"""Clusters whose agents are started at once: on this machine, in the allocation that we are in, by ssh."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from executor.batch.commands import command_failed, run
from executor.batch.local import LocalSystem
from executor.batch.request import JobRequest
from executor.batch.system import BatchSystem
from executor.batch.systems import get_system, system_names
from executor.clusters import BatchCluster
from executor.core.allocations import Policy


@dataclass(frozen=True, kw_only=True)
class Local:
    """This machine, alone or beside other clusters.

    :param agents: how many are started here, int; they share what the machine has evenly.
    """

    agents: int = 1


@dataclass(frozen=True, kw_only=True)
class Launched(BatchCluster):
    """Agents that a process of this machine starts elsewhere; when it ends, they are started anew."""

    @property
    def seconds(self) -> float:
        return math.inf

    @property
    def pools(self) -> None:
        return None

    @property
    def policy(self) -> Policy:
        assert isinstance(self.nodes, int)
        return Policy(self.nodes, self.nodes, self.nodes, math.inf)

    def system(self) -> BatchSystem:
        return LocalSystem()

    def describe(self, request: JobRequest) -> str:
        return request.command

    def request(self, name: str, nodes: int, command: str, log: str) -> JobRequest:  # noqa: ARG002  all at once
        return JobRequest(command, name, stdout=log, prologue=self.prologue)


@dataclass(frozen=True, kw_only=True)
class Inside(Launched):
    """The nodes of the allocation that we are in: an agent on each, started by the batch system's own launcher.

    :param batch_system: its name.
    """

    batch_system: str

    @property
    def title(self) -> str:
        return self.batch_system

    def on_each_node(self, command: str, path: str, nodes: int) -> str:
        return get_system(self.batch_system).on_each_node(f"{command} {shlex.quote(path)}", nodes)


#: Nobody is there to be asked, and a host may go without a word. Of an option that is said twice, ssh takes the first.
_SSH_OPTIONS = [
    word
    for option in ("BatchMode=yes", "ConnectTimeout=30", "ServerAliveInterval=15", "ServerAliveCountMax=3")
    for word in ("-o", option)
]


@dataclass(frozen=True, kw_only=True)
class SshHost(Launched):
    """An agent on one host."""

    name: str
    options: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"ssh {self.name}"

    def on_each_node(self, command: str, path: str, nodes: int) -> str:  # noqa: ARG002  it is one
        words = ["ssh", "-T", *self.options, *_SSH_OPTIONS, self.name, f"exec {command} -"]
        return f"exec {shlex.join(words)} < {shlex.quote(path)}"


@dataclass(frozen=True)
class Ssh:
    """Hosts that ssh reaches without asking for anything: an agent on each, started anew when it ends.

    :param hosts: a list of names or ``user@host`` (str), as ssh takes them.
    :param python: the Python of the agents there (str); None: the one that runs here. It needs what we need, and
        reads what is ours by the path that it has here.
    :param options: further words for ssh (str), such as ``["-p", "2222"]``.
    :param host, port, run_dir, resources: as in :class:`~executor.clusters.BatchCluster`; but the hosts need not see
        ``run_dir``: what an agent needs to join goes to it by ssh.
    :raises ValueError: ``hosts`` is no list of such, or empty.
    """

    hosts: Sequence[str]
    python: str | None = None
    options: Sequence[str] = ()
    host: str | None = None
    port: int | None = None
    run_dir: str | None = None
    resources: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.hosts, str) or not self.hosts:
            raise ValueError(f"hosts={self.hosts!r}: expected a list of hosts, such as ['node1', 'node2']")
        for each in self.hosts:
            if not isinstance(each, str) or each.startswith("-") or not each.strip():
                raise ValueError(f"hosts: {each!r}: expected the name of a host, or user@host")

    def each(self) -> list[SshHost]:
        """A cluster of one node for each of them."""
        return [
            SshHost(
                name=each, options=tuple(self.options), python=self.python, host=self.host, port=self.port,
                run_dir=self.run_dir, resources=dict(self.resources), poll=0.5,
            )
            for each in self.hosts
        ]  # fmt: skip


def find_allocation(env: Mapping[str, str] = os.environ) -> Inside | None:
    """The allocation that this process is in; None if it is in none. Raises BatchCommandFailed: it tells no nodes."""
    for name in system_names():
        system = get_system(name)
        command = system.ask_nodes(env)
        if command is not None:
            answer = run(command, system)
            nodes = len(set(answer.stdout.split()))
            if answer.returncode != 0 or nodes == 0:
                raise command_failed(command, answer, f"the nodes of the {name} allocation that we are in: ")
            return Inside(batch_system=name, nodes=nodes, poll=0.5)
    return None
