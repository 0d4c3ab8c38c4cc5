"""The hub: the product's Scheduler and Members, and what of ``executor.hub`` and ``executor.agents`` is around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

from agent import SESSION, Agent
from books import check_books, check_places
from process import Clock, Process

from executor.core import effects
from executor.core.dependents import CANCELLED, FAILED, OK, Condition
from executor.core.members import LEASE, Member, Members
from executor.core.model import Task, TaskState, WorkerId
from executor.core.scheduler import Scheduler
from worker_agent import codec, protocol

if TYPE_CHECKING:
    from node import Node
    from world import World

#: As in ``executor.agents``, ``executor.hub``.
LAUNCH_PATIENCE, STOP_PATIENCE, LAUNCHES_ALLOWED = 60.0, 5.0, 3
GRACE = 2.0


@dataclass(eq=False)
class Launch:
    """An agent that the hub has started here. ``member`` as soon as it has joined."""

    node: Node
    worker: WorkerId
    member: Member | None = None


class Hub(Process):
    """One thread: all that comes to it is done one after the other."""

    name = "hub"

    def __init__(self, world: World) -> None:
        drift = world.rng.uniform(0.99, 1.01) if world.fault("drift") else 1.0
        super().__init__(world, Clock(0.0, drift))
        self.members = Members(SESSION, LEASE)
        self.core = Scheduler()
        #: who has joined and is not lost
        self.workers: dict[WorkerId, Member] = {}
        self.launches: dict[str, Launch] = {}
        self.broken = self.closing = False
        self._stopping_until: float | None = None
        #: agents that have been told to stop and are still there
        self._waited_for: list[Member] = []
        self._failed_launches = 0
        self._numbers = count(1)
        self._payloads = count(1)
        self._made_up: list[tuple[WorkerId, protocol.Finished]] = []
        #: how tasks have ended
        self._ends: dict[int, str] = {}
        #: members that may have something to be sent
        self._touched: set[Member] = set()

    @property
    def over(self) -> bool:
        """It has ended, or its process has."""
        return not self.alive

    def do(self, action: Callable[..., None], *arguments: Any) -> None:
        """All that happens to the hub goes through here."""
        if self.stopped or not self.alive:
            super().do(action, *arguments)
            return
        action(*arguments)
        self._flush(self._touched)
        if self.closing:
            self._close()

    def step(self) -> None:
        """Time has passed: who is lost, what is to be sent (again), when to wake."""
        for member in self.members.silent(self.time):
            self._on_silent(member)
        self._tick()
        self._flush(set(self.members))
        due = self.members.due()
        if due is not None:
            self.sleep_until(due)
        if self.closing:
            self._close()

    def _tick(self) -> None:
        due = self.core.due()
        if due is not None and due <= self.time:
            self.perform(self.core.tick(self.time))

    def on_wake(self) -> None:
        """Perhaps what it slept for has been done meanwhile, with something else."""
        due = self.members.due()
        if due is None or due <= self.time:
            self.step()
        else:
            self.sleep_until(due)
            self._tick()
            self._flush(self._touched)
            self._sleep_for_core()

    def _sleep_for_core(self) -> None:
        due = self.core.due()
        if due is not None:
            self.sleep_until(due)

    def _flush(self, members: set[Member]) -> None:
        """Send what there is for those who were touched; the others have nothing new, and :meth:`step` when it is due.

        In the order of their epochs: the order of a set is another one in each process.
        """
        now = self.time
        for member in sorted(members, key=lambda member: member.epoch) if len(members) > 1 else members:
            if self.workers.get(member.worker) is member:
                self._send_to(member, now)
        self._touched.clear()

    def _send_to(self, member: Member, now: float) -> None:
        said = False
        while (data := self.members.take(member, now)) is not None:
            said = True
            self.world.network.send_down(member.route, data)
        if said:
            self.world.judge.check_link(member.link, "hub")
        due = member.link.due()
        self.sleep_until(member.heard + member.patience if due is None else due)

    # --- agents -------------------------------------------------------------------------------------------------------

    def launch(self, node: Node) -> None:
        """Start an agent on this machine."""
        number = next(self._numbers)
        self.launches[f"launch {number}"] = Launch(node, WorkerId(number))
        self.world.later(0.1 * self.world.random(), node.boot, f"launch {number}")
        self.world.later(LAUNCH_PATIENCE, self.do, self._check_launch, f"launch {number}")

    def _check_launch(self, launch: str) -> None:
        if launch in self.launches and self.launches[launch].member is None:
            self.world.seen["launch took too long"] += 1
            self.world.kill(self.launches[launch].node)

    def on_end(self, launch: str) -> None:
        """The process of a launch has ended, and all that it had started."""
        if launch not in self.launches:
            return
        self.world.seen["lost: its process has ended"] += 1
        ended = self.launches.pop(launch)
        if ended.member is None:
            self._failed_launches += 1
        else:
            self._remove(ended.member)
        if self._failed_launches >= LAUNCHES_ALLOWED:
            self.fail()
            return
        if not self.closing or self.core.tasks:
            self.launch(ended.node)
        self.perform(self.core.lost(ended.worker, "ended", self.time))

    def on_frame(self, data: bytes, route: int, agent: Agent, name: str, sent: float) -> None:
        """A frame of an agent has arrived, which was sent under this name at this time."""
        frame = codec.decode_reports(data)
        if frame.epoch == 0:
            for hello in frame.messages:
                assert isinstance(hello, protocol.Hello)
                self._on_hello(hello, frame.clock, route)
        elif not self._on_reports(frame, route):
            self.world.seen["frame of an old epoch"] += 1
            if agent.name == name:
                self.world.judge.expect_fence(agent)
            self.warn(route, frame.epoch)
            return
        if agent.name == name:
            agent.contact = max(agent.contact, sent)

    def warn(self, route: int, epoch: int) -> None:
        """The epoch is over."""
        self.world.network.send_down(route, self.members.fence(epoch))

    def _on_reports(self, frame: protocol.Reports, route: int) -> bool:
        """False if its epoch is over."""
        member, reports = self.members.receive(frame, route, self.time)
        if member is None:
            return False
        self._touched.add(member)
        self.world.judge.hear(member.link, frame)
        if reports:
            self.world.judge.see_reports(reports)
            self.perform(self.core.receive(member.worker, reports, self.time))
            if member.hello.launch not in self.launches and any(type(each) is protocol.Bye for each in reports):
                self._lose(member, "has left")
        return True

    def _on_hello(self, hello: protocol.Hello, clock: float, route: int) -> None:
        seen, members = self.world.seen, self.members
        member, earlier = members.named(hello.name), members.of_process(hello.process)
        if member is not None:
            seen["hello again"] += 1
            leased = hello.launch not in self.launches
            self.world.network.send_down(route, members.welcome_again(member, clock, self.time, leased=leased))
        elif earlier is not None and members.is_late(hello, clock):
            seen["late hello"] += 1
        else:
            if earlier is not None and earlier.hello.launch not in self.launches:
                self._lose(earlier, "registers anew")
            self._join(hello, clock, route)

    def _join(self, hello: protocol.Hello, clock: float, route: int) -> None:
        launch = self.launches.get(hello.launch)
        if launch is None and hello.launch != "invited":
            self._refuse(hello, route, "its launch is unknown")
        elif launch is not None and launch.member is not None:
            self._refuse(hello, route, "another agent has joined with this launch")
        else:
            worker = WorkerId(next(self._numbers)) if launch is None else launch.worker
            member, welcome = self.members.join(hello, worker, route, clock, self.time, leased=launch is None)
            self.workers[worker] = member
            if launch is not None:
                launch.member, self._failed_launches = member, 0
            self._touched.add(member)
            self.world.seen["joins: leased" if launch is None else "joins: local"] += 1
            self.world.tell("hub", f"registers {hello.name}, epoch {member.epoch}")
            self.world.network.send_down(route, welcome)
            self.perform(self.core.joined(worker, hello.pools, self.time))

    def _refuse(self, hello: protocol.Hello, route: int, why: str) -> None:
        self.world.seen["refuses: " + why] += 1
        self.world.network.send_down(route, self.members.refuse(hello.name, why))

    def _on_silent(self, member: Member) -> None:
        launch = self.launches.get(member.hello.launch)
        if launch is None:
            self._lose(member, "was silent")
        else:
            self.world.seen["local agent was silent"] += 1
            self.world.tell("hub", f"ends {member.hello.name}: it was silent")
            member.heard = self.time
            self.world.kill(launch.node)

    def _lose(self, member: Member, why: str) -> None:
        self.world.seen["lost: " + why] += 1
        self.world.tell("hub", f"loses {member.hello.name}: it {why}")
        self._remove(member)
        self.perform(self.core.lost(member.worker, why, self.time))

    def _remove(self, member: Member) -> None:
        self.members.remove(member)
        self.workers.pop(member.worker, None)

    # --- users --------------------------------------------------------------------------------------------------------

    def submit(self, tasks: list[Task]) -> None:
        """New tasks."""
        if self.broken:
            for task in tasks:
                self.world.judge.resolve(task.id, "broken")
            return
        self.perform(
            self.core.submit([task for task in tasks if not self.world.judge.futures[task.id].after], self.time)
        )
        for task in tasks:
            if after := self.world.judge.futures[task.id].after:
                self._submit_after(task, after)

    def _submit_after(self, task: Task, after: Iterable[Condition]) -> None:
        """What has ended already decides at once."""
        ended = [each for each in after if each.task in self._ends]
        self.world.seen["waits for an ended one"] += len(ended)
        unmet = next((each for each in ended if not each.allows(self._ends[each.task])), None)
        if unmet is not None:
            how = self._ends[task.id] = CANCELLED if self._ends[unmet.task] == CANCELLED else FAILED
            self.world.judge.resolve(task.id, effects.Unmet(None, how))
        elif waiting := [each for each in after if each.task not in self._ends]:
            self.perform(self.core.submit_after(task, waiting, self.time))
        else:
            self.perform(self.core.submit([task], self.time))

    def cancel(self, task: int, asked: bool) -> None:
        """A future was cancelled, or (``asked``) waits for the answer to its wish."""
        if asked and task not in self.core.tasks:
            self.world.judge.answered(task)
        self.perform(self.core.cancel(task, self.time))

    def kill(self, task: int, grace: float) -> None:
        """End a task."""
        self.perform(self.core.kill(task, 15, grace, self.time))

    # --- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End when all tasks have ended."""
        self.closing = True

    def terminate(self, grace: float) -> None:
        """End all tasks and the agents."""
        self.broken = self.closing = True
        self._send_all(protocol.Stop(15, grace))
        self._give_up_all("terminated")

    def fail(self) -> None:
        """No agent can be started."""
        self.world.seen["broken"] += 1
        self.broken = True
        self._give_up_all("broken")
        self.world.judge.answer_all()

    def die(self) -> None:
        """The client's process ends, and with it the hub."""
        self.end()

    def _give_up_all(self, why: str) -> None:
        for task in list(self.core.tasks):
            self.world.judge.resolve(task, why)
        self.core = Scheduler()

    def _send_all(self, order: protocol.Order) -> None:
        for member in self.workers.values():
            member.link.send(order)
            self._touched.add(member)
        self._flush(self._touched)

    def _close(self) -> None:
        """Once nothing is to be done any more, agents are told to stop, and waited for, a while."""
        if self.core.tasks:
            return
        if self._stopping_until is None:
            self._stopping_until = self.time + GRACE + STOP_PATIENCE
            self._waited_for = list(self.workers.values())
            self._send_all(protocol.Stop(15, GRACE))
            self.world.later(2 * (GRACE + STOP_PATIENCE), self.do, self._close)
        self._waited_for = [each for each in self._waited_for if self.workers.get(each.worker) is each]
        if not self._waited_for or self.time >= self._stopping_until:
            self.world.seen["closed: waited in vain" if self._waited_for else "closed: all have left"] += 1
            self.world.tell("hub", "ends")
            self.end()
            self.world.judge.answer_all()
            for launch in self.launches.values():
                self.world.kill(launch.node)

    # --- effects ------------------------------------------------------------------------------------------------------

    def perform(self, wanted: list[effects.Effect]) -> None:
        """What the core wants done."""
        while wanted:
            for effect in wanted:
                self._performers[type(effect)](self, effect)
            made_up, self._made_up = self._made_up, []
            wanted = []
            for worker, report in made_up:
                wanted += self.core.receive(worker, [report], self.time)
        self._sleep_for_core()
        if self.world.checks:
            check_books(self.core)
        self.world.judge.note_first()

    def send(self, worker: WorkerId, order: protocol.Order) -> None:
        """With the next frame."""
        member = self.workers[worker]
        member.link.send(order)
        self._touched.add(member)

    def _on_start(self, effect: effects.Start) -> None:
        task = effect.task
        future = self.world.judge.futures[task.id]
        future.attempt, future.worker = task.attempt, effect.worker
        if future.end == "cancelled":  # while it was on its way to us
            self.world.seen["cancelled before it was sent"] += 1
            self._made_up.append((effect.worker, protocol.Finished(task.id, task.attempt, protocol.KILLED)))
            return
        future.claimed = True
        self.world.tell("hub", f"sends attempt {task.attempt} to {self.workers[effect.worker].hello.name}", task.id)
        self.world.judge.check_priority(effect.lane, task)
        self.send_run(effect.worker, effect.lane.id, task, next(self._payloads))

    def send_run(self, worker: WorkerId, lane: int, task: Task, payload: int) -> None:
        """The order, and then the pieces of a large payload: so a recall finds the order before it."""
        body = protocol.Call(payload, task.body.args, buffers=task.body.buffers)
        self.send(worker, protocol.Run(lane, task.id, task.attempt, body))
        if body.buffers:
            self.workers[worker].link.send_bulk(pieces(task, body))

    def _on_open(self, effect: effects.OpenLane) -> None:
        self.send(effect.worker, protocol.Open(effect.lane.id, effect.lane.of.environment))

    def _on_give(self, effect: effects.GivePlaces) -> None:
        check_places(effect.lane.worker)
        self.send(effect.worker, protocol.Give(effect.lane.id, effect.places))

    def _on_take(self, effect: effects.TakePlaces) -> None:
        self.send(effect.worker, protocol.Take(effect.lane.id, effect.count))

    def _on_close(self, effect: effects.CloseLane) -> None:
        self.send(effect.worker, protocol.Close(effect.lane.id))

    def _on_recall(self, effect: effects.RecallTask) -> None:
        self.world.tell("hub", "asks for it back", effect.task.id)
        self.send(effect.worker, protocol.Recall(effect.task.id, effect.task.attempt))

    def _on_kill(self, effect: effects.KillTask) -> None:
        self.world.tell("hub", "has it killed", effect.task.id)
        self.send(effect.worker, protocol.Kill(effect.task.id, effect.task.attempt, effect.signal, effect.grace))

    def _on_tell(self, effect: effects.Tell) -> None:
        pass

    def _on_resolve(self, effect: effects.Resolve) -> None:
        self._ends[effect.task.id] = _how(effect.outcome)
        self.world.judge.resolve(effect.task.id, effect.outcome)

    def _on_requeue(self, effect: effects.Requeue) -> None:
        self.world.tell("hub", "lets it wait again", effect.task.id)
        self.world.judge.futures[effect.task.id].claimed = False
        self.world.users.on_requeue(effect.task.id)

    def _on_discard(self, effect: effects.Discard) -> None:
        self.world.seen["discarded"] += 1

    def _on_answer(self, effect: effects.Answer) -> None:
        if effect.cancelled:
            self._ends[effect.task.id] = CANCELLED
        self.world.judge.answer(effect.task.id, effect.cancelled)

    _performers: ClassVar[dict[type[Any], Callable[[Hub, Any], None]]] = {
        effects.Start: _on_start,
        effects.OpenLane: _on_open,
        effects.GivePlaces: _on_give,
        effects.TakePlaces: _on_take,
        effects.CloseLane: _on_close,
        effects.RecallTask: _on_recall,
        effects.KillTask: _on_kill,
        effects.Tell: _on_tell,
        effects.Resolve: _on_resolve,
        effects.Requeue: _on_requeue,
        effects.Discard: _on_discard,
        effects.Answer: _on_answer,
    }


def _how(outcome: object) -> str:
    if isinstance(outcome, effects.Unmet):
        return CANCELLED if outcome.how == CANCELLED else FAILED
    return OK if isinstance(outcome, protocol.Finished) and outcome.end == protocol.VALUE else FAILED


def pieces(task: Task, body: protocol.Call) -> Iterator[protocol.Define]:
    """What is asked for one by one when there is room; no more once nobody needs it."""
    attempt = task.attempt
    for _ in range(body.buffers[0].size):
        if task.attempt != attempt or task.state is TaskState.DONE:
            return
        yield protocol.Define(body.function, body.args)
