"""The supply of agents by clusters: allocations are asked for, and what becomes of them is told.

    hub --what waits--> core/demand.py --> core/allocations.py --effects--> Supply --> batch/allocator.py
    agents' hellos, records of jobs --> Supply --> core/allocations.py

Used from the hub's thread, but for what the allocator tells, which is passed on to it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from executor.addresses import ROUTABLE
from executor.batch.allocator import Allocator, Guard
from executor.batch.states import JobRecord, JobStatus
from executor.batch.submissions import state_directory
from executor.clusters import BatchCluster
from executor.core import allocations
from executor.core.allocations import Allocation, AllocationId, Allocations, Ask, GiveBack, GiveUp, Phase
from executor.core.demand import Chance, wanted_agents
from executor.core.model import TaskClass, Variants, Worker, WorkerId
from executor.core.offers import Offer, best_of, less_than_asked
from executor.errors import ListenError, NetworkUnsafe
from executor.invitations import Invitation, Invitations
from worker_agent import interpreter
from worker_agent.pools import Pool

log = logging.getLogger("executor")

#: Seconds between two looks at what waits.
INTERVAL = 1.0
#: Seconds for which an allocation may wait in a queue: until then its agents may join.
QUEUE_PATIENCE = 30 * 86400.0
#: Bytes of the end of an allocation's output that an error quotes.
_LOG_TAIL = 4000


#: Letters of a reason for which a bar has room.
_SHORT = 40
_PHASES = {
    Phase.ASKED: "it is being submitted for {} s", Phase.QUEUED: "it waits in the queue for {} s",
    Phase.RUNNING: "it runs for {} s, and no agent has joined",
}  # fmt: skip


@dataclass(slots=True, eq=False)
class _Granted:
    """What we know of an allocation beside what the core knows."""

    invitation: Invitation
    log: str
    command: str
    job: str = ""
    record: JobRecord | None = None


class Supply:
    """The clusters of an executor."""

    def __init__(
        self, clusters: Sequence[BatchCluster], invitations: Invitations, imports: list[str],
        post: Callable[[Callable[[], None]], None], drain: Callable[[WorkerId], None], session: Sequence[str],
    ) -> None:  # fmt: skip
        """``post`` has a function called on the hub's thread; ``drain`` lets an agent get nothing more.

        ``session``: its directories, removed if we are killed: there may be no agent here whose supervisor does it.
        """
        self._drain = drain
        self._clusters = clusters
        self._invitations = invitations
        self._imports = imports
        self._post = post
        self._core = Allocations([cluster.policy for cluster in clusters])
        self._systems = [cluster.system() for cluster in clusters]
        self._offers = [cluster.offer for cluster in clusters]
        self._granted: dict[AllocationId, _Granted] = {}
        self._by_launch: dict[str, AllocationId] = {}
        self._host = next((each.host for each in clusters if each.host is not None), ROUTABLE)
        self._port = next((each.port for each in clusters if each.port is not None), None)
        self._name = f"hpc-{secrets.token_hex(4)}"
        self._directory = _make_directory(clusters)
        #: when to look again
        self.due = 0.0
        guard = Guard([system.cancel_named(self._name) for system in self._systems], [self._directory, *session])
        poll = min(cluster.seconds_between_polls for cluster in clusters)
        self._allocator = Allocator(self._systems, poll, self, guard)
        self._allocator.start()

    @property
    def hopeless(self) -> list[str]:
        """For each cluster why no agent will ever come; "" as long as one may."""
        return self._core.hopeless

    @property
    def offers(self) -> list[Offer]:
        """What the agents have that may come."""
        return [offer for offer, why in zip(self._offers, self.hopeless, strict=True) if not why]

    def why_not(self, variants: Variants) -> str:
        """Why no agent will come that could have run such a task; "" if there never was one."""
        lost = zip(self._offers, self.hopeless, strict=True)
        return "; ".join(why for offer, why in lost if why and any(map(offer.meets, variants)))

    @property
    def coming(self) -> str:
        """How many allocations have no agent yet, with the reason that the first of them has: for a bar."""
        jobs = {name: [each for each in self._core if not each.joined and self._name_of(each) == name]
                for name in dict.fromkeys(cluster.title for cluster in self._clusters)}  # fmt: skip
        return ", ".join(f"waits for {self._count(name, waiting)}" for name, waiting in jobs.items() if waiting)

    def _count(self, name: str, waiting: list[Allocation]) -> str:
        records = [granted.record for each in waiting if (granted := self._granted.get(each.id)) is not None]
        reason = next((record.reason for record in records if record is not None and record.reason), "")
        jobs = f"{len(waiting)} {name} job{'s' if len(waiting) > 1 else ''}"
        return jobs + (f" ({reason[:_SHORT]})" if reason else "")

    def _name_of(self, allocation: Allocation) -> str:
        return self._clusters[allocation.cluster].title

    def describe(self, now: float) -> dict[str, str]:
        """Allocations that have no agent yet, and why none is asked for, in words; by batch system and job."""
        paused = zip(self._clusters, self._core.describe_pauses(now), strict=True)
        coming = [each for each in self._core if not each.joined and each.id in self._granted]
        return {
            **{cluster.title: why for cluster, why in paused if why},
            **dict(self._describe(each, self._granted[each.id], now) for each in coming),
        }

    def _describe(self, allocation: Allocation, granted: _Granted, now: float) -> tuple[str, str]:
        record = granted.record
        said = ", ".join(filter(None, (record.word, record.reason))) if record is not None else ""
        text = _PHASES[allocation.phase].format(f"{now - allocation.since:.0f}") + (f" ({said})" if said else "")
        return f"{self._name_of(allocation)} job {granted.job or 'that is submitted'}", text

    # --- what is wanted -----------------------------------------------------------------------------------------------

    def look(self, now: float, classes: Sequence[TaskClass], workers: Sequence[Worker]) -> None:
        """Ask for what is wanted, and give back what is not."""
        self.due = now + INTERVAL
        idle = {worker.id for worker in workers if worker.idle}
        self._perform(self._core.plan(now, wanted_agents(classes, self._chances()), idle))

    def _chances(self) -> list[Chance]:
        return [Chance(offer, cluster.policy.most) for cluster, offer in zip(self._clusters, self._offers, strict=True)]

    def _perform(self, effects: Sequence[allocations.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Ask):
                self._ask(effect)
            elif isinstance(effect, GiveBack):
                self._give_back(effect)
            else:
                self._give_up(effect)

    def _ask(self, ask: Ask) -> None:
        cluster, system = self._clusters[ask.cluster], self._systems[ask.cluster]
        try:
            invitation = self._invitations.invite(
                ask.nodes, QUEUE_PATIENCE, self._host, self._port, self._imports, self._directory
            )
        except (ListenError, NetworkUnsafe) as error:
            self._perform(self._core.ended(ask.allocation, str(error), time.monotonic()))
            return
        output = os.path.join(self._directory, f"allocation-{ask.allocation}.log")
        command = cluster.on_each_node(_agent_command(cluster), invitation.path, ask.nodes)
        request = cluster.request(self._name, ask.nodes, command, output)
        self._granted[ask.allocation] = _Granted(invitation, output, cluster.describe(request))
        self._by_launch[invitation.launch] = ask.allocation
        self._allocator.submit(ask.allocation, system, request)

    def _give_back(self, effect: GiveBack) -> None:
        allocation = self._core.find(effect.allocation)
        for worker in list(allocation.workers) if allocation is not None else ():
            self._drain(worker)
        if effect.why:
            self._end(effect.allocation, effect.why)
        self._allocator.cancel(effect.allocation)

    def _give_up(self, effect: GiveUp) -> None:
        log.warning("%s is asked for nothing more: %d allocations in a row failed. The last one: %s",
                    self._clusters[effect.cluster].title, allocations.FAILURES, effect.reason)  # fmt: skip

    # --- agents -------------------------------------------------------------------------------------------------------

    def joined(self, launch: str, worker: WorkerId, pools: list[Pool], now: float) -> None:
        """An agent has joined by this launch."""
        number = self._by_launch.get(launch)
        allocation = None if number is None else self._core.find(number)
        if allocation is not None:
            self._learn(allocation.cluster, pools)
            self._core.joined(allocation.id, worker, now)

    def _learn(self, cluster: int, pools: list[Pool]) -> None:
        """What an agent has tells what others will have."""
        known = self._offers[cluster]
        for line in less_than_asked(known, pools):
            log.warning("%s: %s", self._clusters[cluster].title, line)
        best = pools if known.asked else best_of(known.pools or (), pools)
        self._offers[cluster] = replace(known, pools=best, asked=False)

    def left(self, worker: WorkerId) -> None:
        """An agent is gone."""
        self._core.left(worker)

    # --- what the allocator tells (its thread) ------------------------------------------------------------------------

    def on_submitted(self, key: int, job: str) -> None:
        """The batch system has given it an id."""
        self._post(lambda: self._submitted(AllocationId(key), job))

    def on_refused(self, key: int, why: str) -> None:
        """It could not be submitted."""
        self._post(lambda: self._end(AllocationId(key), why))

    def on_record(self, key: int, record: JobRecord) -> None:
        """It is so now."""
        self._post(lambda: self._take_record(AllocationId(key), record))

    def _submitted(self, number: AllocationId, job: str) -> None:
        self._granted[number].job = job
        self._core.submitted(number, time.monotonic())

    def _take_record(self, number: AllocationId, record: JobRecord) -> None:
        granted = self._granted.get(number)
        if granted is None:
            return
        granted.record = record
        if record.status.is_final:
            self._end(number, f"it {_ended(record)}")
        elif record.status is JobStatus.RUNNING:
            self._core.runs(number, time.monotonic())
        elif record.status is JobStatus.PENDING:
            self._core.waits(number, time.monotonic())

    def _end(self, number: AllocationId, why: str) -> None:
        """It is over. What it has written is read on the allocator's thread: file systems hang, too."""
        granted = self._granted.pop(number, None)
        if granted is None:
            return
        self._invitations.revoke(granted.invitation.launch)
        self._allocator.do(lambda: self._tell_end(number, granted, why, _read_end(granted.log)))

    def _tell_end(self, number: AllocationId, granted: _Granted, why: str, output: str) -> None:
        self._post(lambda: self._ended(number, granted, why, output))

    def _ended(self, number: AllocationId, granted: _Granted, why: str, output: str) -> None:
        del self._by_launch[granted.invitation.launch]
        allocation = self._core.find(number)
        text = "" if allocation is None else self._story(allocation, granted, why, output)
        self._perform(self._core.ended(number, text, time.monotonic()))

    def _story(self, allocation: Allocation, granted: _Granted, why: str, output: str) -> str:
        """What happened to an allocation, "" for one that we have cancelled ourselves."""
        if allocation.cancelled and granted.record is not None and granted.record.status.is_final:
            return ""  # not every batch system tells such an end from others
        if not granted.job:
            return why  # it was refused: that tells the command
        what = f"{self._name_of(allocation)} job {granted.job} ({granted.command}): {why}."
        return what + (f" The end of its output:\n{output}" if output else "")

    def close(self) -> None:
        """Cancel all that we have asked for, and clear up."""
        self._allocator.close()
        shutil.rmtree(self._directory, ignore_errors=True)


def _ended(record: JobRecord) -> str:
    parts = [record.word or record.status.value, record.reason]
    if record.returncode is not None:
        parts.append(f"signal {-record.returncode}" if record.returncode < 0 else f"exit status {record.returncode}")
    return f"ended: {', '.join(filter(None, parts))}" + (f", on {record.hosts}" if record.hosts else "")


def _make_directory(clusters: Sequence[BatchCluster]) -> str:
    """A private one that the nodes see."""
    said = next((cluster.run_dir for cluster in clusters if cluster.run_dir is not None), None)
    parent = state_directory() if said is None else Path(said).expanduser().absolute()
    parent.mkdir(parents=True, exist_ok=True)
    return tempfile.mkdtemp(prefix=f"{time.strftime('%Y%m%d-%H%M%S')}-", dir=parent)


def _agent_command(cluster: BatchCluster) -> str:
    """What each node runs. No Python has anything of ours by its name alone: the script finds its package beside it."""
    words = [cluster.python or sys.executable, "-E", "-P", os.path.abspath(interpreter.__file__), "invited"]
    words += [] if math.isinf(cluster.seconds) else [f"--time-limit={cluster.seconds:g}"]
    for name, what in cluster.resources.items():
        words.append(f"--resource={name}={what}")
    return shlex.join(words)


def _read_end(path: str) -> str:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _LOG_TAIL))
        return file.read().decode(errors="replace").strip()
    return ""
