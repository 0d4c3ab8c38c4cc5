"""Where batch jobs are submitted: a batch system, and what the site wants of jobs in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from executor.batch.commands import command_failed, run
from executor.batch.request import JobRequest
from executor.batch.system import BatchSystem
from executor.batch.systems import find_system, get_system, system_names
from executor.checks import check_duration
from executor.cluster_settings import cluster_names, find_cluster
from executor.clusters import BatchCluster
from executor.refusals import did_you_mean

Handle = TypeVar("Handle", covariant=True)


class Submittable(Protocol[Handle]):
    """A batch job, or an array of it."""

    def submit(self, scheduler: Scheduler, /) -> Handle:
        """Submit it there."""


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A batch system to which jobs are submitted; :func:`get_scheduler` makes it.

    :param name: the name by which it was found: that of a cluster in the settings, or of a batch system.
    :param system: how that is spoken to.
    :param poll: seconds between two questions for jobs, in the long run.
    :param site: the cluster in the settings, whose queue, account, prologue, directives and ``omit`` its jobs have.
    """

    name: str
    system: BatchSystem
    poll: float
    site: BatchCluster = field(default_factory=BatchCluster)

    def submit(self, job: Submittable[Handle]) -> Handle:
        """Submit a :class:`BatchJob` or a :class:`BatchArray`; gives its handle.

        :raises BatchCommandFailed: the batch system refuses it, or does not answer.
        :raises TypeError, ValueError: what makes no sense.
        """
        return job.submit(self)

    def submit_request(self, request: JobRequest) -> str:
        """Submit what was asked for; gives the id. Raises BatchCommandFailed."""
        command = self.system.submit(request)
        answer = run(command, self.system)
        job = self.system.read_id(answer)
        if job is None:
            raise command_failed(command, answer)
        return job


def get_scheduler(name: str | Scheduler | None = None, *, poll: Any = None) -> Scheduler:
    """Where batch jobs can be submitted.

    :param name: str: a cluster of the settings, or "slurm", "sge", "pbs", "torque", "flux", "local" (processes of this
        machine), or what a site has brought along; None: the batch system whose commands are here.
    :param poll: a duration: so long from one question for jobs to the next; None: what the settings say, or 10 s.
    :raises ValueError: there is none of this name.
    :raises LookupError: nothing is said, and there is no batch system here, or several.
    """
    found = name if isinstance(name, Scheduler) else _find(name)
    return found if poll is None else replace(found, poll=check_duration("poll", poll, 0.1))


def _find(name: str | None) -> Scheduler:
    site = None if name is None else find_cluster(name)
    if name is not None and site is not None:
        return Scheduler(name, site.system(), site.seconds_between_polls, site)
    if name is not None and name not in system_names():
        raise ValueError(_unknown(name))
    system = find_system() if name is None else get_system(name)
    return Scheduler(system.name, system, system.poll)


def _unknown(name: str) -> str:
    known = [*cluster_names(), *system_names()]
    hint = did_you_mean(name, known) or "."
    return f"there is no cluster or batch system {name!r}{hint} There are: {', '.join(known)}"
