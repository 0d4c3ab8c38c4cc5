"""Orders: what the core wants of agents, as messages to them.

    core.Scheduler --effects--> Orders --orders--> Worker --> agent

A task whose payloads are still on the way to its agent is taken back here: the agent has not heard of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from executor.agents import Agents
from executor.calls import Request
from executor.core import effects
from executor.core.model import Task, WorkerId
from executor.placing import Placing
from executor.resources import request_texts
from executor.transfers import Transfers, has_files
from executor.worker import Worker
from worker_agent import processes, protocol


class Orders:
    """Tells the agents what they are to do. Used from the hub's thread only."""

    def __init__(self, agents: Agents, environments: Mapping[int, protocol.Prepare], placing: Placing) -> None:
        """``environments`` by their numbers; more come."""
        self._placing = placing
        self._agents = agents
        self._environments = environments
        #: tasks whose payloads are sent in pieces, and where to
        self._transfers: dict[int, Transfers] = {}
        #: of tasks with ranks on several nodes: what marks these, and the other agents there
        self._spread: dict[int, tuple[list[str], list[WorkerId]]] = {}
        #: tasks that were cancelled before they could be sent
        self.withdrawn: list[int] = []
        #: what agents would say of tasks that they were never told of
        self.unsaid: list[tuple[WorkerId, protocol.Report]] = []

    def performers(self) -> dict[type[Any], Callable[[Any], None]]:
        """What performs which effect."""
        return {
            effects.Start: self._on_start,
            effects.OpenLane: self._on_open,
            effects.GivePlaces: self._on_give,
            effects.TakePlaces: self._on_take,
            effects.CloseLane: self._on_close,
            effects.RecallTask: self._on_recall,
            effects.KillTask: self._on_kill,
        }

    def _on_start(self, effect: effects.Start) -> None:
        worker, task = self._agents[effect.worker], effect.task
        request: Request = task.body
        if not request.future.claim(task.attempt, worker.host):
            self.withdrawn.append(task.id)
            return
        function = request.function
        if function is not None and function.id not in worker.functions:
            worker.functions.add(function.id)
            worker.send(protocol.Define(function.id, function.body))
        if effect.lane.needs.ranks and effect.lane.others:
            self._spread[task.id] = (_marks(task, worker), [each.id for each in effect.lane.others])
        run = protocol.Run(effect.lane.id, task.id, task.attempt, request.order_body(), request.settings)
        if worker.transfers is not None and (request.payloads() or has_files(run)):
            self._transfers[task.id] = worker.transfers
            worker.transfers.send(run, request.payloads())
        else:
            worker.send(run)

    def _on_open(self, effect: effects.OpenLane) -> None:
        worker, lane = self._agents[effect.worker], effect.lane
        environment = lane.of.environment
        if environment not in worker.environments:
            worker.environments.add(environment)
            worker.send(self._environments[environment])
        variant = lane.variant if len(lane.of.variants) > 1 else None
        nodes = [lane.worker, *lane.others] if lane.needs.nodes else []
        hosts = [self._agents[each.id].host for each in nodes]
        worker.send(protocol.Open(lane.id, environment, request_texts(lane.needs), variant, hosts, lane.needs.ranks))

    def _on_give(self, effect: effects.GivePlaces) -> None:
        self._agents[effect.worker].send(protocol.Give(effect.lane.id, effect.places))

    def _on_take(self, effect: effects.TakePlaces) -> None:
        self._agents[effect.worker].send(protocol.Take(effect.lane.id, effect.count))

    def _on_close(self, effect: effects.CloseLane) -> None:
        self._agents[effect.worker].send(protocol.Close(effect.lane.id))

    def _on_recall(self, effect: effects.RecallTask) -> None:
        task = effect.task
        if self._withdraw(effect.worker, task, protocol.Recalled(task.id, task.attempt, given_back=True)):
            return
        self._agents[effect.worker].send(protocol.Recall(task.id, task.attempt))

    def _on_kill(self, effect: effects.KillTask) -> None:
        task = effect.task
        if self._withdraw(effect.worker, task, protocol.Finished(task.id, task.attempt, protocol.KILLED)):
            return
        self._placing.kill(task.id)
        self._agents[effect.worker].send(protocol.Kill(task.id, task.attempt, effect.signal, effect.grace))

    def _withdraw(self, worker: WorkerId, task: Task, report: protocol.Report) -> bool:
        """Whether the task's order waits for its payloads; it does no more, and ``report`` is the agent's answer."""
        transfers = self._transfers.get(task.id)
        if transfers is None or not transfers.withdraw(task.id):
            return False
        self.unsaid.append((worker, report))
        return True

    def end_attempt(self, task: Task) -> None:
        """The agent needs the task's payloads no longer, and nothing of it is to run on its other nodes."""
        if self._spread and (spread := self._spread.pop(task.id, None)) is not None:
            marks, others = spread
            for worker in self._agents:
                if worker.id in others:
                    worker.send(protocol.Sweep(marks))
        if self._transfers and (transfers := self._transfers.pop(task.id, None)) is not None:
            transfers.done(task.id)

    def forget(self, functions: list[int]) -> None:
        """No task needs these functions."""
        for worker in self._agents:
            known = [number for number in functions if number in worker.functions]
            if known:
                worker.functions.difference_update(known)
                worker.send(protocol.Forget(known))


def _marks(task: Task, worker: Worker) -> list[str]:
    """By which variables its processes are known on every host."""
    launch = worker.member.hello.launch if worker.member is not None else ""
    return [f"HPC_TASK_ID={task.id}", f"HPC_ATTEMPT={task.attempt}", f"{processes.AGENT}={launch}"]
