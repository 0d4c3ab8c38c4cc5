"""Users and agents who do what they may, in any order: the other side of the scheduler, for tests by hypothesis.

What each agent holds is known from the scheduler's effects alone, and so is what must be true of it. An agent starts
the tasks of a lane in their order, each at a place where nothing runs; gives back places that were asked back as soon
as nothing runs there; answers each recall. Between all of these anything else may happen.
"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from invariants import check

from executor.core import effects, model
from executor.core.dependents import CANCELLED, FAILED, OK, Condition
from executor.core.model import LaneId, Task, TaskState, WorkerId
from executor.core.scheduler import Scheduler
from worker_agent import protocol
from worker_agent.places import Ledger
from worker_agent.pools import Place, Pool

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
    #: where it runs
    place: int | None = None
    #: is to be ended
    killed: bool = False


@dataclass
class AgentLane:
    """A lane as its agent knows it."""

    environment: int
    lane: Any
    places: dict[int, Place] = field(default_factory=dict)
    asked: int = 0
    held: dict[int, Held] = field(default_factory=dict)

    def idle(self) -> list[int]:
        """The places where nothing runs."""
        busy = {held.place for held in self.held.values()}
        return [number for number in self.places if number not in busy]

    def next(self) -> Held | None:
        """The task that starts next, if there is a place for it."""
        return next((held for held in self.held.values() if held.place is None), None) if self.idle() else None


@dataclass
class Agent:
    """What an agent was told and has not finished."""

    pools: list[Pool]
    ledger: Ledger
    lanes: dict[LaneId, AgentLane] = field(default_factory=dict)
    recalls: list[tuple[int, int]] = field(default_factory=list)
    leaves: bool = False

    def held(self) -> list[Held]:
        return [held for lane in self.lanes.values() for held in lane.held.values()]

    def drop(self, task: int) -> None:
        for lane in self.lanes.values():
            lane.held.pop(task, None)

    def return_place(self, lane: AgentLane, number: int) -> None:
        self.ledger.give_back(lane.places.pop(number))


class Machine(RuleBasedStateMachine):
    """Users and agents. Who derives from it submits tasks, and lets agents join."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler()
        self.now = 0.0
        self.agents: dict[WorkerId, Agent] = {}
        self.lost: list[WorkerId] = []
        self.said: list[tuple[WorkerId, protocol.Report]] = []
        self.tasks: dict[int, Task] = {}
        self.conditions: dict[int, tuple[Condition, ...]] = {}
        self.ended: Counter[int] = Counter()
        self.how: dict[int, str] = {}
        self.attempts: Counter[int] = Counter()
        self.requeued: Counter[int] = Counter()
        #: tasks that had started on an agent that was lost
        self.crashed: set[int] = set()
        self.asking: set[int] = set()
        self.killed: set[int] = set()
        self.refused: set[int] = set()

    # --- what is done to the scheduler --------------------------------------------------------------------------------

    def join_with(self, pools: list[Pool], ends: float | None = None, group: str = "") -> None:
        worker = WorkerId(len(self.agents) + len(self.lost) + 1)
        self.agents[worker] = Agent(pools, Ledger(pools))
        self.perform(self.scheduler.joined(worker, pools, self.now, ends, group))

    def submit_all(self, new: list[Task]) -> None:
        self.tasks.update((task.id, task) for task in new)
        self.perform(self.scheduler.submit(new, self.now))

    @initialize(seconds=st.sampled_from([model.LONG / 2, math.inf]))
    def assume(self, seconds: float) -> None:
        """Agents hold tasks in advance from the start, or not before the first ones have ended."""
        model.ASSUMED = seconds

    @precondition(lambda self: self.agents)
    @rule(which=WHICH)
    def lose(self, which: int) -> None:
        worker = pick(self.agents, which)
        agent = self.agents.pop(worker)
        self.crashed.update(held.task for held in agent.held() if held.place is not None)
        self.lost.append(worker)
        self.perform(self.scheduler.lost(worker, "lost", self.now))
        assert self.scheduler.lost(worker, "again", self.now) == []

    @precondition(lambda self: self.tasks)
    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        task_id = pick(self.tasks, which)
        if self.ended[task_id]:
            assert self.scheduler.cancel(task_id, self.now) == []
        else:
            self.asking.add(task_id)
            self.perform(self.scheduler.cancel(task_id, self.now))

    @precondition(lambda self: self.tasks)
    @rule(which=WHICH)
    def kill(self, which: int) -> None:
        task_id = pick(self.tasks, which)
        if self.ended[task_id]:
            assert self.scheduler.kill(task_id, 15, 2.0, self.now) == []
        else:
            self.killed.add(task_id)
            self.perform(self.scheduler.kill(task_id, 15, 2.0, self.now))

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.1, 1.0, 5.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds
        self.perform(self.scheduler.tick(self.now))

    # --- what agents do -----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.startable())
    @rule(which=WHICH, heard=st.booleans())
    def start(self, which: int, heard: bool) -> None:
        worker, lane, held = pick(self.startable(), which)
        held.place = lane.idle()[0]
        if heard:
            self.say(worker, protocol.Started(held.task, held.attempt, 1, 1.0))

    @precondition(lambda self: self.running())
    @rule(
        which=WHICH,
        end=st.sampled_from(ENDS),
        seconds=st.sampled_from([1e-4, 0.004, 1.0]),
        body=st.sampled_from([b"", b"body"]),
        status=st.sampled_from([0, 1]),
    )
    def finish(self, which: int, end: str, seconds: float, body: bytes, status: int) -> None:
        worker, held = pick(self.running(), which)
        self.agents[worker].drop(held.task)
        report = protocol.Finished(held.task, held.attempt, end, body, status, started=1.0, ended=1.0 + seconds)
        wanted = self.say(worker, report)
        takers = [each for each in wanted if isinstance(each, effects.Resolve) and each.outcome is report]
        discards = [each for each in wanted if isinstance(each, effects.Discard) and each.report is report]
        assert len(takers) + len(discards) <= 1, "what is discarded has a taker"
        broken = end == protocol.KILLED and held.killed and held.task not in self.killed
        assert takers or discards or not body or broken, "nobody takes the body and nobody discards it"

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
        waits = any((held.task, held.attempt) == recall and held.place is None for held in self.agents[worker].held())
        if waits:
            self.agents[worker].drop(recall[0])
        self.say(worker, protocol.Recalled(*recall, waits))

    @precondition(lambda self: self.unstarted_and_killed())
    @rule(which=WHICH)
    def end_what_had_not_started(self, which: int) -> None:
        worker, held = pick(self.unstarted_and_killed(), which)
        self.agents[worker].drop(held.task)
        self.say(worker, protocol.Finished(held.task, held.attempt, protocol.KILLED, ended=1.0))

    @precondition(lambda self: self.asked_back())
    @rule(which=WHICH)
    def give_places_back(self, which: int) -> None:
        worker, lane = pick(self.asked_back(), which)
        numbers = lane.idle()[-lane.asked :]
        lane.asked -= len(numbers)
        for number in numbers:
            self.agents[worker].return_place(lane, number)
        self.say(worker, protocol.Freed(lane.lane.id, numbers))

    @precondition(lambda self: any(not agent.leaves for agent in self.agents.values()))
    @rule(which=WHICH)
    def begin_to_leave(self, which: int) -> None:
        worker = pick([worker for worker, agent in self.agents.items() if not agent.leaves], which)
        self.agents[worker].leaves = True
        self.say(worker, protocol.Leaving("it was told to"))

    @precondition(lambda self: self.on_leaving())
    @rule(which=WHICH)
    def give_task_back(self, which: int) -> None:
        worker, held = pick(self.on_leaving(), which)
        self.agents[worker].drop(held.task)
        if held.place is not None:
            self.crashed.add(held.task)
        began = 0.0 if held.place is None else 1.0
        self.say(worker, protocol.Finished(held.task, held.attempt, protocol.RETURNED, started=began))

    @precondition(lambda self: self.agents and len(self.refused) < ENVIRONMENTS - 1)
    @rule(which=WHICH, environment=st.integers(0, ENVIRONMENTS - 1))
    def fail_to_prepare(self, which: int, environment: int) -> None:
        self.refused.add(environment)
        worker = pick(self.agents, which)
        for lane in self.agents[worker].lanes.values():
            if lane.environment == environment:
                # what runs is ended by order, and so is what others have
                lane.held = {task: held for task, held in lane.held.items() if held.place is not None}
        self.say(worker, protocol.Unprepared(environment, "cannot be had"))

    # --- what the network does ----------------------------------------------------------------------------------------

    @precondition(lambda self: self.repeatable())
    @rule(which=WHICH)
    def repeat_a_report(self, which: int) -> None:
        """Doubled or late: from this attempt or an earlier one, of a worker that may be lost."""
        worker, report = pick(self.repeatable(), which)
        self.perform(self.scheduler.receive(worker, [report], self.now))

    @precondition(lambda self: self.repeatable() and self.agents)
    @rule(which=WHICH, liar=WHICH)
    def report_of_a_stranger(self, which: int, liar: int) -> None:
        worker, report = pick(self.repeatable(), which)
        other = pick(self.agents, liar)
        if other != worker and not isinstance(report, protocol.Unprepared):
            if not any(held.task == report.task for held in self.agents[other].held()):
                brings = isinstance(report, protocol.Finished) and report.body
                wanted = self.scheduler.receive(other, [report], self.now)
                assert [each for each in wanted if isinstance(each, effects.Discard)] == (
                    [effects.Discard(report)] if brings else []
                )
                self.perform([each for each in wanted if not isinstance(each, effects.Discard)])

    # --- what the scheduler wants -------------------------------------------------------------------------------------

    def say(self, worker: WorkerId, report: protocol.Report) -> list[effects.Effect]:
        self.said.append((worker, report))
        wanted = self.scheduler.receive(worker, [report], self.now)
        self.perform(wanted)
        return wanted

    def perform(self, wanted: list[effects.Effect]) -> None:
        for effect in wanted:
            getattr(self, f"on_{type(effect).__name__}")(effect)

    def on_OpenLane(self, effect: effects.OpenLane) -> None:
        agent = self.agents[effect.worker]
        assert not agent.leaves
        assert effect.lane.id not in agent.lanes
        agent.lanes[effect.lane.id] = AgentLane(effect.lane.of.environment, effect.lane)

    def on_GivePlaces(self, effect: effects.GivePlaces) -> None:
        agent = self.agents[effect.worker]
        lane = agent.lanes[effect.lane.id]
        assert effect.places, "nothing new"
        assert not agent.leaves
        for place in effect.places:
            assert place.number not in lane.places
            assert agent.ledger.take(place), f"an agent has given more than it has: {place}"
            lane.places[place.number] = place
            self.check_place(lane.lane, place)

    def check_place(self, lane: Any, place: Place) -> None:
        """A place has what its tasks need."""

    def on_TakePlaces(self, effect: effects.TakePlaces) -> None:
        lane = self.agents[effect.worker].lanes[effect.lane.id]
        assert effect.count > 0
        lane.asked += effect.count
        assert lane.asked <= len(lane.places)

    def on_CloseLane(self, effect: effects.CloseLane) -> None:
        agent = self.agents[effect.worker]
        lane = agent.lanes.pop(effect.lane.id)
        assert not lane.held, "a lane with tasks was closed"
        for number in list(lane.places):
            agent.return_place(lane, number)

    def on_Start(self, effect: effects.Start) -> None:
        task = effect.task
        assert not self.ended[task.id], f"task {task.id} has ended and starts"
        assert task.id not in self.killed, f"task {task.id} was to be killed and starts"
        assert all(held.task != task.id for _, held in self.held()), f"task {task.id} is on two workers"
        may = task.crash_limit > 0 or task.id not in self.crashed
        assert may, f"task {task.id} may start once only, and had started"
        for condition in self.conditions.get(task.id, ()):
            assert condition.allows(self.how[condition.task]), f"task {task.id} starts in spite of {condition}"
        self.attempts[task.id] += 1
        assert task.attempt == self.attempts[task.id]
        assert self.requeued[task.id] == task.attempt - 1, "a Requeue for each attempt but the first"
        agent = self.agents[effect.worker]
        lane = agent.lanes[effect.lane.id]
        assert not agent.leaves
        assert lane.environment == task.environment
        self.check_start(effect, lane)
        lane.held[task.id] = Held(task.id, task.attempt)

    def check_start(self, effect: effects.Start, lane: AgentLane) -> None:
        """It may start there."""

    def on_RecallTask(self, effect: effects.RecallTask) -> None:
        self.agents[effect.worker].recalls.append((effect.task.id, effect.task.attempt))

    def on_KillTask(self, effect: effects.KillTask) -> None:
        agent = self.agents[effect.worker]
        if effect.task.environment in self.refused:
            agent.drop(effect.task.id)  # nobody wants to hear of it, and it may be forgotten already
            return
        (held,) = (held for held in agent.held() if held.task == effect.task.id)
        held.killed = True

    def on_Tell(self, effect: effects.Tell) -> None:
        assert not self.ended[effect.task.id]

    def on_Resolve(self, effect: effects.Resolve) -> None:
        task, outcome = effect.task, effect.outcome
        if isinstance(outcome, effects.Unmet):
            conditions = self.conditions[task.id]
            assert not all(each.task in self.how and each.allows(self.how[each.task]) for each in conditions)
            self.end(task, CANCELLED if outcome.how == CANCELLED else FAILED)
        elif isinstance(outcome, protocol.Finished):
            completed = outcome.end == protocol.COMPLETED and (not outcome.returncode or not task.checked)
            self.end(task, OK if outcome.end == protocol.VALUE or completed else FAILED)
        else:
            self.end(task, FAILED)

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
            self.end(effect.task, CANCELLED)
        self.asking.discard(effect.task.id)

    def end(self, task: Task, how: str) -> None:
        assert not self.ended[task.id], f"task {task.id} ended twice"
        assert all(held.task != task.id for _, held in self.held()), f"task {task.id} has ended and is on an agent"
        self.ended[task.id] += 1
        self.how[task.id] = how

    # --- what must be true --------------------------------------------------------------------------------------------

    @invariant()
    def the_scheduler_agrees_with_itself(self) -> None:
        check(self.scheduler, self.now)

    @invariant()
    def the_scheduler_agrees_with_its_agents(self) -> None:
        sent = {task.id: task.attempt for task in self.tasks.values() if task.lane is not None}
        assert sent == {held.task: held.attempt for _, held in self.held()}
        assert self.scheduler.tasks.keys() == {task_id for task_id in self.tasks if not self.ended[task_id]}
        for worker, agent in self.agents.items():
            if agent.leaves:
                assert worker in self.scheduler.leaving
                continue
            lanes = self.scheduler.workers[worker].lanes
            assert lanes.keys() == agent.lanes.keys()
            for each, lane in agent.lanes.items():
                assert {number: place.shares for number, place in lane.places.items()} == lanes[each].places
                assert lane.asked == len(lanes[each].places) - lanes[each].width

    @invariant()
    def nobody_asks_about_a_task_that_has_ended(self) -> None:
        assert not [task_id for task_id in self.asking if self.ended[task_id]]

    def teardown(self) -> None:
        """All agents do what they are to do, and all tasks end by themselves."""
        if sys.exc_info()[0] is not None:
            return  # the story of what went wrong is told already
        self.bring_room_for_all()
        for _ in range(20 + 4 * len(self.tasks)):
            self.do_all_that_agents_have_to_do()
            if not self.scheduler.tasks and not self.held() and not self.recalls():
                break
            self.let_time_pass(0.5)
            self.the_scheduler_agrees_with_itself()
        self.the_scheduler_agrees_with_its_agents()
        assert [task_id for task_id in self.tasks if not self.ended[task_id]] == []
        assert self.asking == set()
        self.forget_all()

    def bring_room_for_all(self) -> None:
        """Agents join on which all tasks can run."""
        raise NotImplementedError

    def do_all_that_agents_have_to_do(self) -> None:
        for act, waiting in (
            (self.answer_recall, self.recalls),
            (self.end_what_had_not_started, self.unstarted_and_killed),
            (self.give_task_back, self.on_leaving),
            (self.give_places_back, self.asked_back),
            (lambda which: self.start(which, True), self.startable),
        ):
            for _ in range(10 * len(self.tasks) + 10):
                if not waiting():
                    break
                act(0)
            assert not waiting(), "they are asked again and again"
        for _ in range(len(self.running())):
            if running := self.running():
                end = protocol.KILLED if running[0][1].killed else protocol.VALUE
                self.finish(0, end, 1.0, b"value", 0)

    def forget_all(self) -> None:
        """When all agents are gone nothing is left."""
        for worker in list(self.agents):
            self.agents.pop(worker)
            self.perform(self.scheduler.lost(worker, "the end", self.now))
        placement = self.scheduler._placement
        assert not self.scheduler.tasks
        assert not placement.news.classes
        assert not placement.lanes.moving
        assert not placement.has_backlog
        assert not placement.lanes.deep
        assert not self.scheduler._broken
        assert not self.scheduler._dependents._missing

    # --- what there is ------------------------------------------------------------------------------------------------

    def held(self) -> list[tuple[WorkerId, Held]]:
        return [(worker, held) for worker, agent in self.agents.items() for held in agent.held()]

    def running(self) -> list[tuple[WorkerId, Held]]:
        return [(worker, held) for worker, held in self.held() if held.place is not None]

    def startable(self) -> list[tuple[WorkerId, AgentLane, Held]]:
        return [
            (worker, lane, held)
            for worker, agent in self.agents.items()
            for lane in agent.lanes.values()
            if (held := lane.next()) is not None and not agent.leaves
        ]

    def unstarted_and_killed(self) -> list[tuple[WorkerId, Held]]:
        return [(worker, held) for worker, held in self.held() if held.place is None and held.killed]

    def on_leaving(self) -> list[tuple[WorkerId, Held]]:
        return [(worker, held) for worker, held in self.held() if self.agents[worker].leaves]

    def asked_back(self) -> list[tuple[WorkerId, AgentLane]]:
        return [
            (worker, lane)
            for worker, agent in self.agents.items()
            for lane in agent.lanes.values()
            if lane.asked and lane.idle() and not agent.leaves
        ]

    def recalls(self) -> list[tuple[WorkerId, tuple[int, int]]]:
        return [(worker, recall) for worker, agent in self.agents.items() for recall in agent.recalls]

    def repeatable(self) -> list[tuple[WorkerId, protocol.Report]]:
        """Reports that the wire may double in these tests; what places are given back is said once there."""
        return [each for each in self.said if not isinstance(each[1], protocol.Freed | protocol.Leaving)]


def pick(things: Any, which: int) -> Any:
    things = list(things)
    return things[which % len(things)]
