"""Defects, planted one by one in the parts that decide: the simulator must find each, or it proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from agent import Agent
from hub import Hub, pieces
from world import World

from executor.core import effects, members
from executor.core.dependents import FAILED, Condition, Dependents
from executor.core.lanes import Lanes, most_held
from executor.core.members import Members
from executor.core.model import Lane, TaskState
from executor.core.news import News
from executor.core.placement import Placement
from executor.core.reservations import Reservations
from executor.core.scheduler import Scheduler
from worker_agent import link, protocol
from worker_agent.link import Link
from worker_agent.places import Ledger, Places
from worker_agent.session import NOTHING, AgentSession, Incoming

#: Seeds within which a defect must be found.
LIMIT = 10_000

#: Where the search begins for those that are rare, so that it is soon over: any seeds are as good as any others.
FIRST = {
    "no_attempt_check": 10_400, "what_must_not_start_twice_waits_in_queues": 3040,
    "a_reservation_stays_when_its_task_is_cancelled": 390, "who_listens_again_does_not_hear_what_it_has_missed": 2690,
    "an_older_task_is_asked_back_for_a_younger_one": 7400, "priorities_are_ignored": 740,
    "a_lane_goes_on_though_somebody_more_important_waits": 7060,
    "no_room_is_made_for_who_needs_any_of_a_family": 8240, "the_unimportant_is_held_in_advance": 1360,
    "no_epoch_check_in_the_hub": 8150, "no_epoch_check_in_the_agent": 650, "lease_longer_than_patience": 630,
    "lease_from_the_arrival": 1750, "no_look_at_the_lease_when_a_frame_comes": 590, "late_hellos_count": 17960,
    "no_fence": 1030, "any_welcome_will_do": 20780, "a_recall_is_refused_without_an_answer": 990,
}  # fmt: skip

Plant = Callable[[pytest.MonkeyPatch], None]
MUTANTS: list[Plant] = []


def mutant(plant: Plant) -> Plant:
    """A defect that is looked for below."""
    MUTANTS.append(plant)
    return plant


def seeds_to_find_it(first: int = 0) -> tuple[int, str] | None:
    """How many seeds it takes until one fails, and how: by a property, or an error of the product's own."""
    for seed in range(first, first + LIMIT):
        try:
            World(seed).run()
        except Exception as error:
            assert not isinstance(error, (AttributeError, NameError, TypeError)), f"the mutant is broken: {error!r}"
            return seed + 1 - first, f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("plant", MUTANTS, ids=lambda plant: plant.__name__)
def test_the_simulator_finds_a_planted_defect(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    found = seeds_to_find_it(FIRST.get(plant.__name__, 0))
    print(f"{plant.__name__}: {found}")
    assert found is not None, f"{plant.__doc__}: not found in {LIMIT} seeds"


# ---- the scheduler


@mutant
def no_attempt_check(patch: pytest.MonkeyPatch) -> None:
    """A report of an earlier attempt counts."""

    def on_report(self: Scheduler, worker: Any, report: Any) -> None:
        task = self.tasks.get(getattr(report, "task", 0))
        if type(report) is protocol.Unprepared:
            self._on_unprepared(report)
        elif type(report) is protocol.Freed:
            self._placement.lanes.freed(worker, report.lane, report.places)
        elif task is not None and task.lane is not None and type(report) in self._handlers:
            self._handlers[type(report)](self, task, report)

    patch.setattr(Scheduler, "_on_report", on_report)


@mutant
def double_resolve(patch: pytest.MonkeyPatch) -> None:
    """A task that is refused or lost is resolved twice."""

    def resolve(self: Scheduler, task: Any, outcome: object) -> None:
        self._do(effects.Resolve(task, outcome))
        if task.state is not TaskState.READY:
            self._do(effects.Resolve(task, outcome))
        self._end(task, FAILED)

    patch.setattr(Scheduler, "_resolve", resolve)


@mutant
def forgotten_recall_answer(patch: pytest.MonkeyPatch) -> None:
    """That a task was given back is not heard."""
    handlers = {kind: handler for kind, handler in Scheduler._handlers.items() if kind is not protocol.Recalled}
    patch.setattr(Scheduler, "_handlers", handlers)


@mutant
def a_lost_agent_s_tasks_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """An agent is lost and its tasks with it."""

    def lost(self: Scheduler, worker_id: Any, reason: str, now: float) -> list[Any]:
        if worker_id in self.workers:
            self._placement.leave(self.workers[worker_id])
        return self._assign(now)

    patch.setattr(Scheduler, "lost", lost)


@mutant
def what_must_not_start_twice_waits_in_queues(patch: pytest.MonkeyPatch) -> None:
    """A task with crash_limit=0 is sent in advance."""

    def fill_in_advance(self: Lanes, lane: Any, limit: int, queue: Any) -> None:
        self.fill(lane, limit, queue)
        if len(lane.sent) > lane.width:
            self.mark_deep(lane)

    patch.setattr(Lanes, "fill_in_advance", fill_in_advance)


# ---- places


@mutant
def a_place_is_given_back_while_something_runs_there(patch: pytest.MonkeyPatch) -> None:
    """The agent gives a place back at once, whatever is there."""

    def give_back(self: Places) -> None:
        numbers = list(self._all)[-self._asked_back :] if self._asked_back else []
        for number in numbers:
            self._free.pop(number, None)
            del self._all[number]
        self._asked_back -= len(numbers)
        if numbers:
            self._on_freed(numbers)

    patch.setattr(Places, "_give_back", give_back)


@mutant
def what_is_asked_back_is_kept(patch: pytest.MonkeyPatch) -> None:
    """The agent gives places back that are free at that moment, and no others."""
    original = Places.ask_back

    def ask_back(self: Places, count: int) -> None:
        original(self, count)
        self._asked_back = 0

    patch.setattr(Places, "ask_back", ask_back)


@mutant
def nobody_looks_into_the_ledger(patch: pytest.MonkeyPatch) -> None:
    """A task starts in a place of which a process that is leaving has still a part."""

    def take(self: Ledger, place: Any) -> bool:
        for part, amount in self._parts(place):
            self._used[part] = self._used.get(part, 0) + amount
        return True

    patch.setattr(Ledger, "take", take)


@mutant
def a_closed_lane_is_gone_at_once(patch: pytest.MonkeyPatch) -> None:
    """The agent takes the places of a lane for free though processes are still leaving."""

    def close(self: Agent, lane: Any) -> None:
        if lane.closing:
            lane.places.close()
            self.lanes.pop(lane.number, None)

    patch.setattr(Agent, "close_if_idle", close)


@mutant
def the_hub_does_not_wait_for_places_to_be_free(patch: pytest.MonkeyPatch) -> None:
    """What it asks back is somebody else's at once."""
    original = Lanes.take

    def take(self: Lanes, lane: Any, number: int) -> None:
        original(self, lane, number)
        self.freed(lane.worker, lane.id, list(lane.places)[-number:])

    patch.setattr(Lanes, "take", take)


@mutant
def freed_places_count_twice(patch: pytest.MonkeyPatch) -> None:
    """What was given back is free, and free once more."""
    original = Lanes.freed

    def freed(self: Lanes, worker: Any, lane_id: Any, numbers: Any) -> None:
        lane = worker.lanes.get(lane_id)
        shares = [lane.places[number] for number in numbers if number in lane.places] if lane else []
        original(self, worker, lane_id, numbers)
        for each in shares:
            worker.free.release(each)

    patch.setattr(Lanes, "freed", freed)


@mutant
def each_freed_place_frees_another(patch: pytest.MonkeyPatch) -> None:
    """The hub counts how many places it got back, and takes more of those that it waits for."""
    original = Lanes.freed

    def freed(self: Lanes, worker: Any, lane_id: Any, numbers: Any) -> None:
        lane = worker.lanes.get(lane_id)
        others = [number for number in lane.places if number not in numbers] if lane else []
        original(self, worker, lane_id, [*numbers, *others[: len(numbers)]])

    patch.setattr(Lanes, "freed", freed)


@mutant
def a_lane_with_tasks_is_closed(patch: pytest.MonkeyPatch) -> None:
    """What it has is claimed for others while its tasks run."""

    def reclaim(self: Lanes, worker: Any, queue: Any, needs: Any) -> bool:  # noqa: ARG001
        for lane in list(worker.lanes.values()):
            if not lane.of.waits and len(lane.sent) < len(lane.places):
                self.close(lane)
        return bool(worker.free.fits(needs))

    patch.setattr(Lanes, "_reclaim", reclaim)


@mutant
def a_reservation_stays(patch: pytest.MonkeyPatch) -> None:
    """A worker is kept for a class that has been served."""
    patch.setattr(Reservations, "release", lambda self, worker: None)


@mutant
def a_reservation_stays_when_its_task_is_cancelled(patch: pytest.MonkeyPatch) -> None:
    """A worker is kept for a task that does not wait any more, until something happens."""
    patch.setattr(Placement, "drop", lambda self, task: None)


@mutant
def a_worker_that_has_changed_again_is_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    """It is known to have changed; that classes have heard of it since is forgotten."""

    def note(self: News, worker: Any) -> None:
        worker.counted.clear()
        if not self._told or self._told[-1] is not worker:
            self._changed[worker] = None

    patch.setattr(News, "note", note)


@mutant
def who_listens_again_does_not_hear_what_it_has_missed(patch: pytest.MonkeyPatch) -> None:
    """A class of which no task has waited for a while knows nothing of the changes meanwhile."""
    patch.setattr(News, "_catch_up", lambda self, of: None)


@mutant
def what_is_unused_is_not_counted_anew(patch: pytest.MonkeyPatch) -> None:
    """A worker where places are unused now is taken for full."""

    def note(self: News, worker: Any) -> None:
        self._changed[worker] = None

    patch.setattr(News, "note", note)


@mutant
def an_older_task_is_asked_back_for_a_younger_one(patch: pytest.MonkeyPatch) -> None:
    """It was sent after others that are younger still; when it is back, it goes there again."""

    def comes_after(self: Reservations, lane: Any, queue: Any) -> bool:
        if lane.of is queue.of or lane.worker.lent is not None:
            return False
        first = next((task for task in lane.sent.values() if task.state is TaskState.SENT), None)
        return first is None or (-first.priority, first.id) > queue.order

    patch.setattr(Reservations, "_comes_after", comes_after)


# ---- priorities, and what waits for others


@mutant
def priorities_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """The older first, however important."""
    original = Placement.add

    def add(self: Placement, task: Any, *, first: bool = False) -> None:
        priority, task.priority = task.priority, 0
        original(self, task, first=first)
        task.priority = priority

    patch.setattr(Placement, "add", add)


@mutant
def a_lane_goes_on_though_somebody_more_important_waits(patch: pytest.MonkeyPatch) -> None:
    """When its important tasks have ended, the others of its class take their places."""
    patch.setattr(Placement, "_yields", lambda self, queue, worker=None: False)


@mutant
def no_room_is_made_for_who_needs_any_of_a_family(patch: pytest.MonkeyPatch) -> None:
    """Who needs ``gpus`` is not known to wait for ``gpus/nvidia``."""

    def each_has(self: Lane, name: str) -> int:
        place = next(iter(self.places.values()))
        return sum(share.amount for share in place if share.name == name)

    patch.setattr(Lane, "each_has", each_has)


@mutant
def the_unimportant_is_held_in_advance(patch: pytest.MonkeyPatch) -> None:
    """And goes before what is more important, but may not be held in advance."""

    def deepen(self: Placement, queue: Any, now: float) -> None:  # noqa: ARG001
        for lane in list(queue.of.shallow):
            self.lanes.fill(lane, most_held(lane), queue)
            if len(lane.sent) > lane.width:
                self.lanes.mark_deep(lane)

    patch.setattr(Placement, "_deepen", deepen)


@mutant
def dependents_are_decided_twice(patch: pytest.MonkeyPatch) -> None:
    """A task that waits for others is given two decisions."""
    original = Dependents.ended

    def ended(self: Dependents, task: int, how: str) -> Any:
        for decided in original(self, task, how):
            yield decided
            yield decided

    patch.setattr(Dependents, "ended", ended)


@mutant
def the_last_dependent_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """One of the tasks that wait for another never hears of its end."""
    original = Dependents.ended
    patch.setattr(Dependents, "ended", lambda self, task, how: iter(list(original(self, task, how))[:-1]))


@mutant
def a_task_starts_after_the_first_of_those_that_it_waits_for(patch: pytest.MonkeyPatch) -> None:
    """The others may still run."""
    original = Dependents.add
    patch.setattr(Dependents, "add", lambda self, task, after: original(self, task, list(after)[:1]))


@mutant
def how_a_task_has_ended_does_not_matter(patch: pytest.MonkeyPatch) -> None:
    """What waits for another to succeed starts after it has failed."""
    patch.setattr(Condition, "allows", lambda self, how: True)


@mutant
def who_is_given_up_gives_up_nobody(patch: pytest.MonkeyPatch) -> None:
    """In a chain of tasks only the first that waits for one that failed hears of it."""

    def decide(self: Scheduler, ended: int, how: str, first: Any) -> None:
        for task, may_start in list(self._dependents.ended(ended, how)):
            if may_start:
                task.move(TaskState.READY)
                self._ready(task)
            else:
                task.move(TaskState.DONE)
                del self.tasks[task.id]
                self._do(effects.Resolve(task, effects.Unmet(first, how)))

    patch.setattr(Scheduler, "_decide", decide)


# ---- registration


@mutant
def no_epoch_check_in_the_hub(patch: pytest.MonkeyPatch) -> None:
    """A frame counts for whoever is at its route, whatever its epoch."""
    original = Members.receive

    def receive(self: Members, frame: protocol.Reports, route: Any, now: float) -> Any:
        found = next((member.epoch for member in self if member.route == route), frame.epoch)
        return original(self, msgspec.structs.replace(frame, epoch=found), route, now)

    patch.setattr(Members, "receive", receive)


@mutant
def no_epoch_check_in_the_agent(patch: pytest.MonkeyPatch) -> None:
    """An agent obeys orders of an epoch that is over."""
    original = AgentSession.receive

    def receive(self: AgentSession, frame: protocol.Orders, now: float) -> Incoming:
        return original(self, msgspec.structs.replace(frame, epoch=self.epoch), now)

    patch.setattr(AgentSession, "receive", receive)


@mutant
def lease_longer_than_patience(patch: pytest.MonkeyPatch) -> None:
    """The hub gives tasks to others before the agent has ended them."""
    patch.setattr(members, "PATIENCE_PER_LEASE", 0.9)


@mutant
def lease_from_the_arrival(patch: pytest.MonkeyPatch) -> None:
    """The agent's lease counts from when it hears the hub, not from when the hub has heard it."""
    original = AgentSession.receive

    def receive(self: AgentSession, frame: protocol.Orders, now: float) -> Incoming:
        return original(self, msgspec.structs.replace(frame, echo=now), now)

    patch.setattr(AgentSession, "receive", receive)


@mutant
def no_lease(patch: pytest.MonkeyPatch) -> None:
    """An agent without contact goes on."""
    patch.setattr(AgentSession, "_renew", lambda self, echo: None)


@mutant
def no_look_at_the_lease_when_a_frame_comes(patch: pytest.MonkeyPatch) -> None:
    """An agent that was stopped obeys what waited for it, before it looks at the time."""
    receive = AgentSession.receive

    def receive_at_once(self: AgentSession, frame: protocol.Orders, now: float) -> Incoming:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(AgentSession, "tick", lambda self, now: NOTHING)
            return receive(self, frame, now)

    patch.setattr(AgentSession, "receive", receive_at_once)


@mutant
def late_hellos_count(patch: pytest.MonkeyPatch) -> None:
    """A hello of an earlier registration, late, ends the one that holds."""
    patch.setattr(Members, "is_late", lambda self, hello, clock: False)


@mutant
def no_fence(patch: pytest.MonkeyPatch) -> None:
    """The hub does not tell an agent that its epoch is over."""
    patch.setattr(Hub, "warn", lambda self, route, epoch: None)


@mutant
def fences_are_not_heard(patch: pytest.MonkeyPatch) -> None:
    """An agent goes on although it was told that its epoch is over."""
    patch.setattr(AgentSession, "_fence", lambda self: NOTHING)


@mutant
def any_welcome_will_do(patch: pytest.MonkeyPatch) -> None:
    """An agent takes the welcome of an earlier registration for its own."""
    original = AgentSession._receive_unnumbered

    def receive(self: AgentSession, frame: protocol.Orders, now: float) -> Incoming:
        message = frame.messages[0]
        if isinstance(message, protocol.Welcome):
            message = msgspec.structs.replace(message, name=self._name)
        return original(self, msgspec.structs.replace(frame, messages=[message]), now)

    patch.setattr(AgentSession, "_receive_unnumbered", receive)


@mutant
def an_agent_waits_for_ever(patch: pytest.MonkeyPatch) -> None:
    """An agent whose hub is gone says hello until the end of time."""
    patch.setattr("worker_agent.session.HELLO_PATIENCE", 1e9)
    original = AgentSession.tick
    patch.setattr(AgentSession, "tick", lambda self, now: _unless_refused(original(self, now)))


def _unless_refused(incoming: Incoming) -> Incoming:
    return NOTHING if incoming.refused else incoming


@mutant
def a_local_agent_may_be_silent(patch: pytest.MonkeyPatch) -> None:
    """An agent on this machine that hangs keeps its tasks."""
    patch.setattr(members, "LOCAL_PATIENCE", 1e9)


@mutant
def silence_is_forgiven(patch: pytest.MonkeyPatch) -> None:
    """The hub never takes an agent for lost."""
    patch.setattr(Members, "silent", lambda self, now: [])


# ---- the conversation


@mutant
def no_acknowledgements(patch: pytest.MonkeyPatch) -> None:
    """Nobody learns what has arrived."""
    original = Link.take

    def take(self: Link, now: float) -> link.Batch | None:
        batch = original(self, now)
        return batch and batch._replace(ack=0)

    patch.setattr(Link, "take", take)


@mutant
def no_resending(patch: pytest.MonkeyPatch) -> None:
    """What is lost stays lost."""
    patch.setattr(Link, "tick", lambda self, now: None)
    patch.setattr(Link, "go_back", lambda self: None)


@mutant
def no_resending_in_time(patch: pytest.MonkeyPatch) -> None:
    """What is lost is sent again only if something later arrives."""
    patch.setattr(Link, "tick", lambda self, now: None)


@mutant
def gaps_are_not_noticed(patch: pytest.MonkeyPatch) -> None:
    """What follows a lost message is taken for the next."""
    original = Link.receive

    def receive(self: Link, first: int, messages: Any, now: float) -> Any:
        if messages and first > self._received + 1:
            self._received = first - 1
        return original(self, first, messages, now)

    patch.setattr(Link, "receive", receive)


@mutant
def acknowledged_before_it_took_effect(patch: pytest.MonkeyPatch) -> None:
    """The agent forgets something that it has acknowledged, now and then."""
    original = AgentSession.receive

    def receive(self: AgentSession, frame: protocol.Orders, now: float) -> Incoming:
        incoming = original(self, frame, now)
        if frame.first % 7 == 6 and frame.messages:
            return Incoming(incoming.orders[:-1], incoming.fenced)
        return incoming

    patch.setattr(AgentSession, "receive", receive)


@mutant
def credit_is_ignored(patch: pytest.MonkeyPatch) -> None:
    """However much is on the way, more is sent."""
    original = Link._new

    def new(self: Link) -> list[bytes]:
        bytes_on_way, self._unacked_bytes = self._unacked_bytes, 0
        messages = original(self)
        self._unacked_bytes += bytes_on_way
        return messages

    patch.setattr(Link, "_new", new)


@mutant
def duplicates_are_taken_for_new(patch: pytest.MonkeyPatch) -> None:
    """A frame that comes twice is obeyed twice."""
    original = Link.receive

    def receive(self: Link, first: int, messages: Any, now: float) -> Any:
        known = self._received + 1 - first
        new = original(self, first, messages, now)
        return messages if messages and known > 0 else new

    patch.setattr(Link, "receive", receive)


@mutant
def a_frame_storm(patch: pytest.MonkeyPatch) -> None:
    """Whenever a frame overtakes another, all that is not acknowledged is sent once more."""

    def acknowledged(self: Link, number: int, misses: bool, now: float) -> None:
        self._forget_up_to(number, now)
        if misses:
            self.go_back()

    patch.setattr(Link, "acknowledged", acknowledged)


# ---- what the product's rule is, or will be, and its shells have to obey


@mutant
def a_recall_is_refused_without_an_answer(patch: pytest.MonkeyPatch) -> None:
    """Who asks for a task that runs hears nothing until it has ended."""
    original = Agent.answer_recall

    def answer(self: Agent, answer: protocol.Recalled) -> None:
        if answer.given_back:
            original(self, answer)

    patch.setattr(Agent, "answer_recall", answer)


@mutant
def a_recall_overtakes_a_large_task(patch: pytest.MonkeyPatch) -> None:
    """The order to run follows its payload, and what is said about the task comes before it."""

    def send_run(self: Hub, worker: Any, lane: int, task: Any, payload: int) -> None:
        body = protocol.Call(payload, task.body.args, buffers=task.body.buffers)
        order = protocol.Run(lane, task.id, task.attempt, protocol.Call(payload, b""))
        if body.buffers:
            self.workers[worker].link.send_bulk(iter([order]))
        else:
            self.send(worker, order)

    patch.setattr(Hub, "send_run", send_run)


@mutant
def a_recalled_task_starts_when_its_payload_is_there(patch: pytest.MonkeyPatch) -> None:
    """It was given back while its payload was on the way, and starts nevertheless."""
    original = Agent._forget

    def forget(self: Agent, attempt: Any) -> None:
        missing = attempt.missing
        original(self, attempt)
        if missing:
            attempt.lane.queue.append(attempt)
            self._payloads.update({key: attempt for key, of in self._payloads.items() if of is None})

    patch.setattr(Agent, "_forget", forget)


@mutant
def the_rest_of_a_recalled_payload_is_not_sent_but_waited_for(patch: pytest.MonkeyPatch) -> None:
    """A payload ends in the middle although its task is still wanted."""
    patch.setattr("hub.pieces", lambda task, body: iter(list(pieces(task, body))[:-1]))


@mutant
def nobody_looks_after_a_launch(patch: pytest.MonkeyPatch) -> None:
    """The end of a local agent is not noticed."""
    patch.setattr(Hub, "on_end", lambda self, launch: None)
