"""The clock of a simulation: it brings orders to agents and reports to the scheduler, and measures the scheduler."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final

from benchmarks.simulate_agents import Agent, Order, Violation
from benchmarks.simulate_shapes import Job
from executor.core import effects
from executor.core.dependents import Condition
from executor.core.model import Task, WorkerId
from executor.core.scheduler import Scheduler
from worker_agent import protocol
from worker_agent.pools import Pool, Share

#: Seconds that a message travels.
DELAY: Final = 0.0005
#: Seconds after which the scheduler hears that an agent is gone; another one comes in its place then.
SILENCE: Final = 5.0
#: So many tasks are submitted at once.
BATCH: Final = 1000
#: No task is lost for good with agents that are lost.
CRASH_LIMIT: Final = 1000

#: What an agent is told, with the attempts that are current now.
ORDERS: Final[dict[type[Any], Callable[[Any], Order]]] = {
    effects.Start: lambda effect: (Agent.run, (effect.lane.id, effect.task.id, effect.task.attempt)),
    effects.OpenLane: lambda effect: (Agent.open, (effect.lane.id,)),
    effects.GivePlaces: lambda effect: (Agent.give, (effect.lane.id, effect.places)),
    effects.TakePlaces: lambda effect: (Agent.take, (effect.lane.id, effect.count)),
    effects.CloseLane: lambda effect: (Agent.close, (effect.lane.id,)),
    effects.RecallTask: lambda effect: (Agent.recall, (effect.task.id, effect.task.attempt)),
    effects.KillTask: lambda effect: (Agent.kill, (effect.task.id, effect.task.attempt)),
}


@dataclass(slots=True)
class Measured:
    """What the scheduler has done, and in which time of our process."""

    starts: int = 0
    calls: int = 0
    effects: int = 0
    lost: int = 0
    requeued: int = 0
    recalled: int = 0
    makespan: float = 0.0
    #: within calls of the scheduler, by the clock on the wall
    elapsed: float = 0.0
    #: of all the time that the simulation took, in which part it had a CPU
    had_cpu: float = 1.0

    @property
    def seconds(self) -> float:
        """CPU time of the scheduler, as near as can be told: to ask for it at each call costs more than the call."""
        return self.elapsed * self.had_cpu

    @property
    def decisions(self) -> float:
        """Starts per second of the scheduler's time."""
        return self.starts / max(self.seconds, 1e-9)


class World:
    """Agents, jobs, a scheduler, and the time."""

    def __init__(self, agents: Iterable[list[Pool]], jobs: Sequence[Job], *, check: int = 0) -> None:
        """``check``: after so many events all books are looked at; 0: at the end only."""
        self.now = 0.0
        self.measured = Measured()
        self.scheduler = Scheduler()
        self._jobs = jobs
        self._check = check
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count(1)
        self._workers = count(1)
        self._agents: dict[WorkerId, Agent] = {}
        #: those that have something to say at the end of this moment
        self._speaking: dict[Agent, None] = {}
        self._ended = Counter[int]()
        for pools in agents:
            self._join(pools)

    # ---- time

    def lose(self, agents: int, within: float, seed: int) -> None:
        """So many agents die at random times."""
        chance = random.Random(seed)
        for _ in range(agents):
            self._at(chance.uniform(0.0, within), self._die, chance.random())

    def run(self) -> Measured:
        """Submit all, until all has ended; then look at the books."""
        began = time.perf_counter(), time.process_time()
        self._submit()
        self._run_events()
        self.measured.had_cpu = (time.process_time() - began[1]) / (time.perf_counter() - began[0])
        self.check_end()
        return self.measured

    def _run_events(self) -> None:
        events, checked, seen = self._events, 0, 0
        while events:
            due = self.scheduler.due()
            if due is not None and due < events[0][0]:
                self.now = max(self.now, due)
                self._call(self.scheduler.tick)
                continue
            self.now = events[0][0]
            while events and events[0][0] == self.now:
                _, _, do, values = heappop(events)
                do(*values)
                seen += 1
            self._speak()
            if self._check and seen - checked >= self._check:
                checked = seen
                self.check_claims()

    def _at(self, when: float, do: Callable[..., None], *values: Any) -> None:
        heappush(self._events, (when, next(self._numbers), do, values))

    # ---- the scheduler

    def _call(self, method: Callable[..., list[effects.Effect]], *values: Any) -> None:
        began = time.perf_counter()
        wanted = method(*values, self.now)
        self.measured.elapsed += time.perf_counter() - began
        self.measured.calls += 1
        self._perform(wanted)

    def _submit(self) -> None:
        batch: list[Task] = []
        for job in self._jobs:
            kind = job.kind
            task = Task(job.number, kind.environment, None, crash_limit=CRASH_LIMIT, variants=kind.variants)
            if not job.after:
                batch.append(task)
            if batch and (job.after or len(batch) == BATCH):
                self._call(self.scheduler.submit, batch)
                batch = []
            if job.after:
                self._call(self.scheduler.submit_after, task, [Condition(number) for number in job.after])
        self._call(self.scheduler.submit, batch)

    def _perform(self, wanted: list[effects.Effect]) -> None:
        measured = self.measured
        measured.effects += len(wanted)
        orders: defaultdict[WorkerId, list[Order]] = defaultdict(list)
        for effect in wanted:
            make_order = ORDERS.get(type(effect))
            if make_order is not None:
                orders[effect.worker].append(make_order(effect))  # type: ignore[union-attr]
                measured.starts += type(effect) is effects.Start
                measured.recalled += type(effect) is effects.RecallTask
            elif isinstance(effect, effects.Resolve):
                self._resolve(effect)
            else:
                measured.requeued += isinstance(effect, effects.Requeue)
        for worker, said in orders.items():
            self._at(self.now + DELAY, self._obey, self._agents[worker], said)

    def _resolve(self, effect: effects.Resolve) -> None:
        self._ended[effect.task.id] += 1
        self.measured.makespan = self.now
        outcome = effect.outcome
        if not isinstance(outcome, protocol.Finished) or outcome.end != protocol.VALUE:
            raise Violation(f"task {effect.task.id} ended with {outcome}")

    # ---- agents

    def _join(self, pools: list[Pool]) -> None:
        number = WorkerId(next(self._workers))
        self._agents[number] = Agent(number, pools, self._seconds, self._end_later)
        self._call(self.scheduler.joined, number, pools)

    def _seconds(self, task: int) -> float:
        return self._jobs[task - 1].seconds

    def _end_later(self, agent: Agent, seconds: float, task: tuple[int, int]) -> None:
        self._at(self.now + seconds, self._end, agent, *task)

    def _end(self, agent: Agent, task: int, attempt: int) -> None:
        if agent.alive:
            agent.end(task, attempt, self.now)
            self._speaking[agent] = None

    def _obey(self, agent: Agent, orders: list[Order]) -> None:
        if agent.alive:
            agent.obey(orders, self.now)
            self._speaking[agent] = None

    def _speak(self) -> None:
        """What an agent says in one moment is one message."""
        for agent in self._speaking:
            if agent.reports:
                self._at(self.now + DELAY, self._receive, agent.id, agent.reports)
                agent.reports = []
        self._speaking.clear()

    def _receive(self, worker: WorkerId, reports: list[protocol.Report]) -> None:
        self._call(self.scheduler.receive, worker, reports)

    def _die(self, which: float) -> None:
        """One of the agents, if work is left."""
        living = [agent for agent in self._agents.values() if agent.alive]
        if living and self.scheduler.tasks:
            agent = living[int(which * len(living))]
            agent.alive = False
            self.measured.lost += 1
            self._at(self.now + SILENCE, self._replace, agent)

    def _replace(self, agent: Agent) -> None:
        self._call(self.scheduler.lost, agent.id, "it is silent")
        del self._agents[agent.id]
        self._join(agent.pools)

    # ---- what has to be true

    def check_claims(self) -> None:
        """What is free and what lanes have is all there is, of each pool of each worker."""
        for worker in self.scheduler.workers.values():
            claimed = Counter[str]()
            for lane in worker.lanes.values():
                for shares in lane.places.values():
                    claimed.update({share.name: share.amount for share in shares})
            for name in worker.free.names:
                if worker.free.amount(name) + claimed[name] != worker.free.total(name):
                    raise Violation(f"worker {worker.id}: {claimed[name]} of {name} claimed, not all the rest free")

    def check_end(self) -> None:
        """Every task has ended once, nothing is under way, and agents and scheduler agree about all places."""
        self.check_claims()
        wrong = [job.number for job in self._jobs if self._ended[job.number] != 1]
        if wrong or len(self._ended) != len(self._jobs) or self.scheduler.tasks or self.scheduler.has_backlog:
            raise Violation(f"{len(wrong)} tasks have not ended once: {wrong[:5]}, {self._why(wrong[:1])}")
        for worker in self.scheduler.workers.values():
            agent = self._agents[worker.id]
            if agent.running or worker.reserved is not None or worker.lent is not None:
                raise Violation(f"worker {worker.id} is not idle in the end")
            known = {lane.id: set(lane.places) for lane in worker.lanes.values()}
            if known != agent.places or any(lane.sent for lane in worker.lanes.values()):
                raise Violation(f"worker {worker.id} does not know which places it has")
        self._give_all_back()

    def _why(self, tasks: list[int]) -> str:
        return ", ".join(str(self.scheduler.tasks.get(task)) for task in tasks)

    def _give_all_back(self) -> None:
        """The idle lanes are closed: nothing is claimed then, in either book."""
        for worker in self.scheduler.workers.values():
            shares: list[Share] = []
            for lane in worker.lanes.values():
                self._agents[worker.id].close(lane.id)
                shares += [share for place in lane.places.values() for share in place]
            worker.free.release(shares)
            if not worker.free.idle or not self._agents[worker.id].book.is_empty:
                raise Violation(f"worker {worker.id} has claims of nobody")


