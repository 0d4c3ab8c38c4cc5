"""Anything may happen in any order: the scheduler against agents that do, and say, what agents may.

The other side of the scheduler is played here: what each agent holds is known from its effects alone, and so is what
must be true of it. After each step:

- the scheduler's own invariants hold, and no worker has given more places than it has;
- a task is on one worker at a time, in an attempt that is one more than the last;
- it is resolved or cancelled once, and nothing of it starts after that;
- between two attempts it goes back to its queue once;
- what the end of an attempt brings goes to one taker: it is the outcome, or discarded;
- no task waits while there is a place for it.

In the end, when all agents answer, every task has ended and every cancel was answered.
``CORE_EXAMPLES=1000 python -m pytest tests/core`` looks longer, each time elsewhere.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from executor.core import effects
from executor.core.model import LaneId, Task, TaskState, WorkerId
from executor.core.scheduler import Scheduler
from worker_agent import protocol

EXAMPLES = int(os.environ.get("CORE_EXAMPLES", "0"))
SETTINGS = settings(
    max_examples=EXAMPLES or 20,
    stateful_step_count=100 if EXAMPLES else 30,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

ENVIRONMENTS = 3
ENDS = [
    protocol.VALUE,
    protocol.COMPLETED,
    protocol.ERROR,
    protocol.EXITED,
    protocol.TIMED_OUT,
    protocol.KILLED,
    protocol.NOT_STARTED,
]
#: Which of the things that are there: an index, taken modulo their number.
WHICH = st.integers(0, 1000)


@dataclass
class Held:
    """A task on an agent."""

    task: int
    attempt: int
    runs: bool = False


@dataclass
class AgentLane:
    """A lane as its agent knows it."""

    environment: int
    width: int
    held: dict[int, Held] = field(default_factory=dict)


@dataclass
class Agent:
    """What an agent was told and has not finished."""

    slots: int
    lanes: dict[LaneId, AgentLane] = field(default_factory=dict)
    recalls: list[tuple[int, int]] = field(default_factory=list)

    def held(self) -> list[Held]:
        return [held for lane in self.lanes.values() for held in lane.held.values()]

    def drop(self, task: int) -> None:
        for lane in self.lanes.values():
            lane.held.pop(task, None)

    def free(self) -> int:
        return self.slots - sum(lane.width for lane in self.lanes.values())


class Cluster(RuleBasedStateMachine):
    """Users and agents."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler()
        self.agents: dict[WorkerId, Agent] = {}
        self.lost: list[WorkerId] = []
        self.said: list[tuple[WorkerId, protocol.Report]] = []
        self.tasks: dict[int, Task] = {}
        self.ended: Counter[int] = Counter()
        self.attempts: Counter[int] = Counter()
        self.requeued: Counter[int] = Counter()
        self.asking: set[int] = set()
        self.killed: set[int] = set()
        self.refused: set[int] = set()

    # --- what is done to the scheduler --------------------------------------------------------------------------------

    @rule(
        environments=st.lists(st.integers(0, ENVIRONMENTS - 1), min_size=1, max_size=6),
        retries=st.integers(0, 1),
        crash_limit=st.integers(0, 2),
        checked=st.booleans(),
    )
    def submit(self, environments: list[int], retries: int, crash_limit: int, checked: bool) -> None:
        first = len(self.tasks) + 1
        new = [Task(first + n, each, None, retries, crash_limit, checked) for n, each in enumerate(environments)]
        self.tasks.update((task.id, task) for task in new)
        self.perform(self.scheduler.submit(new))

    @precondition(lambda self: len(self.agents) < 3)
    @rule(slots=st.integers(0, 3))
    def join(self, slots: int) -> None:
        worker = WorkerId(len(self.agents) + len(self.lost) + 1)
        self.agents[worker] = Agent(slots)
        self.perform(self.scheduler.joined(worker, slots))

    @precondition(lambda self: self.agents)
    @rule(which=WHICH)
    def lose(self, which: int) -> None:
        worker = pick(self.agents, which)
        del self.agents[worker]
        self.lost.append(worker)
        self.perform(self.scheduler.lost(worker, "lost"))
        assert self.scheduler.lost(worker, "again") == []

    @precondition(lambda self: self.tasks)
    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        task_id = pick(self.tasks, which)
        wanted = self.scheduler.cancel(task_id)
        if self.ended[task_id]:
            assert wanted == []
        else:
            self.asking.add(task_id)
            self.perform(wanted)

    @precondition(lambda self: self.tasks)
    @rule(which=WHICH)
    def kill(self, which: int) -> None:
        task_id = pick(self.tasks, which)
        wanted = self.scheduler.kill(task_id, 15, 2.0)
        if self.ended[task_id]:
            assert wanted == []
        else:
            self.killed.add(task_id)
            self.perform(wanted)

    # --- what agents do -----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.held())
    @rule(which=WHICH)
    def start(self, which: int) -> None:
        worker, held = pick(self.held(), which)
        held.runs = True
        self.say(worker, protocol.Started(held.task, held.attempt, 1, 1.0))

    @precondition(lambda self: self.held())
    @rule(
        which=WHICH,
        end=st.sampled_from(ENDS),
        seconds=st.sampled_from([1e-4, 0.004, 1.0]),
        body=st.sampled_from([b"", b"body"]),
        status=st.sampled_from([0, 1]),
    )
    def finish(self, which: int, end: str, seconds: float, body: bytes, status: int) -> None:
        worker, held = pick(self.held(), which)
        self.agents[worker].drop(held.task)
        report = protocol.Finished(held.task, held.attempt, end, body, status, started=1.0, ended=1.0 + seconds)
        wanted = self.say(worker, report)
        takers = [each for each in wanted if isinstance(each, effects.Resolve) and each.outcome is report]
        discards = [each for each in wanted if isinstance(each, effects.Discard) and each.report is report]
        assert len(takers) + len(discards) <= 1, "what is discarded has a taker"
        assert takers or discards or not body, "nobody takes the body and nobody discards it"

    @precondition(lambda self: self.held())
    @rule(which=WHICH)
    def lose_attempt(self, which: int) -> None:
        worker, held = pick(self.held(), which)
        self.agents[worker].drop(held.task)
        self.say(worker, protocol.Finished(held.task, held.attempt, protocol.LOST, b"its interpreter vanished"))

    @precondition(lambda self: self.recalls())
    @rule(which=WHICH)
    def answer_recall(self, which: int) -> None:
        worker, recall = pick(self.recalls(), which)
        self.agents[worker].recalls.remove(recall)
        waits = any((held.task, held.attempt) == recall and not held.runs for held in self.agents[worker].held())
        if waits:
            self.agents[worker].drop(recall[0])
        self.say(worker, protocol.Recalled(*recall, waits))

    @precondition(lambda self: self.agents and len(self.refused) < ENVIRONMENTS - 1)
    @rule(which=WHICH, environment=st.integers(0, ENVIRONMENTS - 1))
    def fail_to_prepare(self, which: int, environment: int) -> None:
        self.refused.add(environment)
        for agent in self.agents.values():  # the tasks that one has it resolves, those of others too
            for lane in agent.lanes.values():
                if lane.environment == environment:
                    lane.held.clear()
        self.say(pick(self.agents, which), protocol.Unprepared(environment, "cannot be had"))

    # --- what the network does ----------------------------------------------------------------------------------------

    @precondition(lambda self: self.said)
    @rule(which=WHICH)
    def repeat_a_report(self, which: int) -> None:
        """Doubled or late: from this attempt or an earlier one, of a worker that may be lost."""
        worker, report = pick(self.said, which)
        self.perform(self.scheduler.receive(worker, [report]))

    @precondition(lambda self: self.said and self.agents)
    @rule(which=WHICH, liar=WHICH)
    def report_of_a_stranger(self, which: int, liar: int) -> None:
        worker, report = pick(self.said, which)
        other = pick(self.agents, liar)
        if other != worker and not isinstance(report, protocol.Unprepared):
            if not any(held.task == report.task for held in self.agents[other].held()):
                brings = isinstance(report, protocol.Finished) and report.body
                assert self.scheduler.receive(other, [report]) == ([effects.Discard(report)] if brings else [])

    # --- what the scheduler wants -------------------------------------------------------------------------------------

    def say(self, worker: WorkerId, report: protocol.Report) -> list[effects.Effect]:
        self.said.append((worker, report))
        wanted = self.scheduler.receive(worker, [report])
        self.perform(wanted)
        return wanted

    def perform(self, wanted: list[effects.Effect]) -> None:
        for effect in wanted:
            getattr(self, f"on_{type(effect).__name__}")(effect)
            for agent in self.agents.values():
                assert agent.free() >= 0, f"after {effect} an agent has given more places than it has"

    def on_OpenLane(self, effect: effects.OpenLane) -> None:
        lanes = self.agents[effect.worker].lanes
        assert effect.width > 0
        assert effect.lane not in lanes
        assert all(lane.environment != effect.environment for lane in lanes.values())
        lanes[effect.lane] = AgentLane(effect.environment, effect.width)

    def on_ResizeLane(self, effect: effects.ResizeLane) -> None:
        assert effect.width > 0
        lane = self.agents[effect.worker].lanes[effect.lane]
        assert lane.width != effect.width, "nothing new"
        lane.width = effect.width

    def on_CloseLane(self, effect: effects.CloseLane) -> None:
        lane = self.agents[effect.worker].lanes.pop(effect.lane)
        assert not lane.held, "a lane with tasks was closed"

    def on_Start(self, effect: effects.Start) -> None:
        task = effect.task
        assert not self.ended[task.id], f"task {task.id} has ended and starts"
        assert task.id not in self.killed, f"task {task.id} was to be killed and starts"
        assert all(held.task != task.id for _, held in self.held()), f"task {task.id} is on two workers"
        self.attempts[task.id] += 1
        assert task.attempt == self.attempts[task.id]
        assert self.requeued[task.id] == task.attempt - 1, "a Requeue for each attempt but the first"
        lane = self.agents[effect.worker].lanes[effect.lane]
        assert lane.environment == task.environment
        lane.held[task.id] = Held(task.id, task.attempt)

    def on_RecallTask(self, effect: effects.RecallTask) -> None:
        self.agents[effect.worker].recalls.append((effect.task.id, effect.task.attempt))

    def on_KillTask(self, effect: effects.KillTask) -> None:
        assert any(held.task == effect.task.id for held in self.agents[effect.worker].held())

    def on_Tell(self, effect: effects.Tell) -> None:
        assert not self.ended[effect.task.id]

    def on_Resolve(self, effect: effects.Resolve) -> None:
        self.end(effect.task)

    def on_Requeue(self, effect: effects.Requeue) -> None:
        task = effect.task
        assert task.state in (TaskState.READY, TaskState.SENT), f"task {task.id} waits again and is {task.state}"
        assert not self.ended[task.id], f"task {task.id} has ended and waits again"
        assert task.id not in self.killed, f"task {task.id} was to be killed and waits again"
        assert all(held.task != task.id for _, held in self.held()), f"task {task.id} waits and is on an agent"
        self.requeued[task.id] += 1
        assert self.requeued[task.id] == self.attempts[task.id], "one Requeue for each attempt that came to nothing"

    def on_Discard(self, effect: effects.Discard) -> None:
        report = effect.report
        assert isinstance(report, protocol.Finished)
        assert report.body
        attempt = (report.task, report.attempt)
        assert all((held.task, held.attempt) != attempt for _, held in self.held()), "the attempt goes on"

    def on_Answer(self, effect: effects.Answer) -> None:
        if effect.cancelled:
            assert effect.task.id in self.asking, "nobody asked, or was told already that it goes on"
            self.end(effect.task)
        self.asking.discard(effect.task.id)

    def end(self, task: Task) -> None:
        assert not self.ended[task.id], f"task {task.id} ended twice"
        assert all(held.task != task.id for _, held in self.held()), f"task {task.id} has ended and is on an agent"
        self.ended[task.id] += 1

    # --- what must be true --------------------------------------------------------------------------------------------

    @invariant()
    def the_scheduler_agrees_with_itself(self) -> None:
        self.scheduler.check_invariants()

    @invariant()
    def the_scheduler_agrees_with_its_agents(self) -> None:
        sent = {task.id: task.attempt for task in self.tasks.values() if task.lane is not None}
        assert sent == {held.task: held.attempt for _, held in self.held()}
        assert self.scheduler.tasks.keys() == {task_id for task_id in self.tasks if not self.ended[task_id]}

    @invariant()
    def no_task_waits_beside_an_empty_place(self) -> None:
        if any(task.state is TaskState.READY for task in self.tasks.values()):
            for worker, agent in self.agents.items():
                assert agent.free() == 0, f"worker {worker} has places without a lane"
                assert all(len(lane.held) >= lane.width for lane in agent.lanes.values()), f"worker {worker} idles"

    @invariant()
    def nobody_asks_about_a_task_that_has_ended(self) -> None:
        assert not [task_id for task_id in self.asking if self.ended[task_id]]

    def teardown(self) -> None:
        """All agents answer and all tasks end by themselves."""
        if sys.exc_info()[0] is not None:
            return  # the story of what went wrong is told already
        if not any(agent.slots for agent in self.agents.values()):
            self.agents[WorkerId(0)] = Agent(2)
            self.perform(self.scheduler.joined(WorkerId(0), 2))
        while self.held() or self.recalls():
            while self.recalls():
                self.answer_recall(0)
            while self.held():
                self.finish(0, protocol.VALUE, 1.0, b"value", 0)
        self.the_scheduler_agrees_with_itself()
        assert [task_id for task_id in self.tasks if not self.ended[task_id]] == []
        assert self.asking == set()

    # --- what there is ------------------------------------------------------------------------------------------------

    def held(self) -> list[tuple[WorkerId, Held]]:
        return [(worker, held) for worker, agent in self.agents.items() for held in agent.held()]

    def recalls(self) -> list[tuple[WorkerId, tuple[int, int]]]:
        return [(worker, recall) for worker, agent in self.agents.items() for recall in agent.recalls]


def pick(things: Any, which: int) -> Any:
    things = list(things)
    return things[which % len(things)]


def test_whatever_happens_each_task_ends_once() -> None:
    run_state_machine_as_test(Cluster, settings=SETTINGS)
