"""Why a task does not run, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from executor.core.explain import Reasons
from executor.core.model import WorkerId
from executor.future import TaskFuture


@dataclass(frozen=True, slots=True)
class Explanation:
    """What ``HPCExecutor.explain`` gives; ``str()`` of it is for people.

    ``summary`` says where the task stands. For one that waits for room, ``workers`` says what keeps it from each agent,
    by the agent's host and process, and ``clusters`` what becomes of the agents that are to come, by the name of the
    batch system and the job.
    """

    future: TaskFuture
    summary: str
    workers: Mapping[str, str]
    clusters: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join([f"task {self.future.task_id} ({self.future.name}): {self.summary}", *self._lines()])

    def _lines(self) -> list[str]:
        return [f"  {name}: {text}" for name, text in (*self.workers.items(), *self.clusters.items())]


def make_explanation(
    future: TaskFuture, reasons: Reasons, names: Mapping[WorkerId, str], clusters: Mapping[str, str]
) -> Explanation:
    """``names`` are those of the workers; ``clusters`` as in :class:`Explanation`."""
    workers = {names[worker]: text for worker, text in reasons.workers if worker in names}
    return Explanation(future, _summary(future, reasons, names), workers, clusters)


def _summary(future: TaskFuture, reasons: Reasons, names: Mapping[WorkerId, str]) -> str:
    where = names.get(reasons.worker, "an agent") if reasons.worker is not None else ""
    if reasons.state == "ended":
        return f"it has ended ({future.state})" if future.done() else "its outcome is on the way"
    if reasons.state == "waiting":
        others = [f"task {each.task} ({each.kind})" for each in reasons.waits_for if each.task > 0]
        others += ["a future of somebody else"] * any(each.task < 0 for each in reasons.waits_for)
        return f"it waits for {', '.join(others)}"
    if reasons.state == "running":
        return f"it runs on {where}"
    if reasons.state == "sent":
        return (
            f"it is on {where} and starts when {reasons.before} more have ended there"
            if reasons.before
            else (f"it is on {where} and is about to start")
        )
    if not names:
        return "no agent has joined"
    return f"it waits for room, behind {reasons.before} of its kind" if reasons.before else "it waits for room"
