"""One seed, one schedule: hub, agents, network and users in simulated time. The product's pure modules, faked all else.

    users --submit, cancel, kill--> Hub (Scheduler, Members) <==frames, Network==> Agent (AgentSession, lanes)

Properties that are checked at every event are called S1 to S9, those at the end, when all faults are over, L1 to L3; a
seed that fails raises :class:`Violation`. Nothing here reads a clock: ``World(seed).run()`` does the same each time.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from typing import Any

from executor.core import effects
from executor.core.members import LEASE, PATIENCE_PER_LEASE, Member, Members
from executor.core.model import Task, WorkerId
from executor.core.scheduler import Scheduler
from worker_agent import link, protocol
from worker_agent.session import AgentSession

SESSION = "s"
#: What a seed may draw; each is on in about a third of the seeds.
FAULTS = (
    "loss", "duplication", "reordering", "slowness", "cut", "swizzle", "reconnection", "crash", "stop", "drift",
    "slow kill", "hub stop", "small window", "bad environment", "bulk",
)  # fmt: skip
#: Seconds that a clock of 1 % error makes of a lease, and the longest kill that ends before the hub's patience does.
PATIENCE = PATIENCE_PER_LEASE * LEASE
WORST_LEASE = LEASE * 1.011
LONGEST_KILL = PATIENCE - WORST_LEASE - 0.5
#: Simulated seconds, beyond the work that there is, after which all must have ended once the faults are over.
BOUND = 4 * PATIENCE
#: Seconds by which the copy of a frame may be late.
LATEST = 120.0
#: Events after which what goes on is a storm; the largest worlds that are none have a third of it.
MOST_EVENTS = 20_000
BAD_ENVIRONMENT = 9
_TINY = 1e-6
_ENDS = (protocol.VALUE,) * 12 + (protocol.ERROR, protocol.ERROR, protocol.EXITED, protocol.LOST, protocol.TIMED_OUT)


class Violation(AssertionError):
    """A property does not hold. ``task`` is the one concerned, if it is about one."""

    def __init__(self, rule: str, text: str, task: int | None = None) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule, self.task = rule, task


class Crashed(Exception):
    """The agent's process has ended in the middle of what it did."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent.name)
        self.agent = agent


class Future:
    """What a user has: one end, once. The hub claims it when the task is sent."""

    __slots__ = ("asked", "attempt", "claimed", "end", "most_starts", "starts", "task", "worker")

    def __init__(self, task: Task) -> None:
        self.task = task
        self.end = ""  # "done", "failed", "cancelled"
        self.claimed = False
        self.asked = 0  # cancels that wait for their answer
        self.attempt = 0
        self.worker: WorkerId | None = None
        self.starts = 0
        #: of a task that is to run at most once and again only after it failed
        self.most_starts = 1 + task.retries if task.crash_limit == 0 else 10**9


class Attempt:
    """A task on an agent."""

    __slots__ = ("agent", "announced", "body", "doomed", "duration", "end", "excused", "lane", "number", "running",
                 "since", "task")  # fmt: skip

    def __init__(self, order: protocol.Run, lane: Lane, agent: Agent) -> None:
        self.task, self.number, self.lane, self.agent = order.task, order.attempt, lane, agent
        self.running = self.announced = self.doomed = self.excused = False
        self.end, self.duration, self.since = "", 0.0, 0.0
        self.body = b""


class Lane:
    """A lane on its agent."""

    __slots__ = ("environment", "queue", "running", "width")

    def __init__(self, environment: int, width: int) -> None:
        self.environment, self.width = environment, width
        self.queue: deque[Attempt] = deque()
        self.running = 0


class Wire:
    """One direction of a connection. A cut one loses what it is given, or keeps it until it is whole again."""

    __slots__ = ("cut", "held", "holds", "last")

    def __init__(self) -> None:
        self.cut, self.holds = 0, False
        self.held: list[tuple[Any, tuple[Any, ...]]] = []
        self.last = 0.0


# ---- the agent


class Agent:
    """A process on a node: a session and lanes, a clock of its own. ``epoch`` of its life ends with a crash."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.slots = world.rng.randint(1, 4)
        self.up, self.down = Wire(), Wire()
        self.offset, self.rate = 0.0, 1.0
        if "drift" in world.faults:
            self.offset, self.rate = world.rng.uniform(0.0, 1e5), world.rng.uniform(0.99, 1.01)
        self.kill_time = world.rng.uniform(0.0, LONGEST_KILL) if "slow kill" in world.faults else 0.0
        self.lives = 0
        self.boot()

    def boot(self) -> None:
        """A new process."""
        self.lives += 1
        self.alive, self.stopped, self.runs_on = True, False, False
        self.process = f"p{self.number}.{self.lives}"
        self.names = 0
        self.name = ""
        #: when the hub heard this registration: the time at which that was sent
        self.contact = self.world.now
        #: the actions after which it crashes, 0 for never
        self.fuse = 0
        self.inbox: list[tuple[Any, tuple[Any, ...]]] = []
        self.dying: set[Attempt] = set()
        self.wake_at = -1.0
        self.clear()
        self.connect()
        self.session = AgentSession(SESSION, self.hello, self.new_name)
        self.step()

    def clear(self) -> None:
        """No lanes, no tasks."""
        self.lanes: dict[int, Lane] = {}
        self.attempts: dict[int, Attempt] = {}
        self.running: set[Attempt] = set()

    def connect(self) -> None:
        """By a new route; what is on its way by the old one will not arrive here, and holds nothing up."""
        self.up.last = self.down.last = self.world.now
        self.route = self.world.new_route(self)

    def new_name(self) -> str:
        self.names += 1
        self.name = f"{self.process}.{self.names}"
        return self.name

    def hello(self, name: str) -> protocol.Hello:
        return protocol.Hello(
            launch="l", process=self.process, name=name, host=str(self.number), pid=1, python="3", slots=self.slots
        )

    @property
    def clock(self) -> float:
        return self.offset + self.world.now * self.rate

    def act(self) -> None:
        """Something is done now, or the process ends before it."""
        if self.fuse:
            self.fuse -= 1
            if not self.fuse:
                raise Crashed(self)

    # --- time ---

    def step(self) -> None:
        """Say what there is to say, look at the lease, and sleep."""
        now = self.clock
        if self.session.tick(now).fenced:
            self.fence()
        while not self.dying:
            frame = self.session.take(now)
            if frame is None:
                break
            self.act()
            self.world.send_up(self, frame)
        self.world.check_link(self.session._link, self.name)
        if self.running or self.dying:
            self.check_lease()
        self.sleep()

    def sleep(self) -> None:
        if self.dying:
            return
        due = max((self.session.due() - self.offset) / self.rate, self.world.now) + _TINY
        if self.wake_at < self.world.now or due < self.wake_at:
            self.wake_at = due
            self.world.at(due, self.wake, due, self.lives)

    def wake(self, due: float, lives: int) -> None:
        if due == self.wake_at and lives == self.lives and self.alive:
            self.wake_at = -1.0
            if not self.stopped:
                self.step()

    def check_lease(self) -> None:
        """S8: it runs nothing after its lease and the time that a kill takes."""
        over = self.world.now - self.contact - WORST_LEASE - self.kill_time - 0.01
        for attempt in self.running | self.dying if over > 0 else ():
            if not attempt.excused:
                raise Violation("S8", f"{self.name} runs a task {over:.3f} s after its lease", attempt.task)

    # --- orders ---

    def on_frame(self, data: bytes, route: int) -> None:
        """A frame of the hub has arrived."""
        if route != self.route or not self.alive:
            return
        if self.stopped:
            self.inbox.append((self.on_frame, (data, route)))
            return
        incoming = self.session.receive(protocol.decode_orders(data), self.clock)
        if incoming.fenced:
            self.fence()
        for order in incoming.orders:
            self.act()
            _AGENT_HANDLERS[type(order)](self, order)
        self.start_ready()
        self.check_slots()
        self.step()

    def check_slots(self) -> None:
        """S5: no more tasks than places, in what runs and in what was promised to lanes."""
        widths = sum(lane.width for lane in self.lanes.values())
        if widths > self.slots or len(self.running) > self.slots:
            raise Violation("S5", f"{self.name} has {self.slots} slots, runs {len(self.running)}, lanes have {widths}")

    def on_welcome(self, order: protocol.Welcome) -> None:
        self.world.tell(self.name, f"is welcomed, epoch {order.epoch}")

    def on_open(self, order: protocol.Open) -> None:
        self.lanes[order.lane] = Lane(order.environment, order.width)
        if order.environment == BAD_ENVIRONMENT:
            self.session.report(protocol.Unprepared(order.environment, "no such thing"))

    def on_resize(self, order: protocol.Resize) -> None:
        self.lanes[order.lane].width = order.width

    def on_close(self, order: protocol.Close) -> None:
        lane = self.lanes.pop(order.lane)
        if lane.running and lane.environment != BAD_ENVIRONMENT:
            raise Violation("S5", f"{self.name} is told to close lane {order.lane}, in which tasks run")

    def on_run(self, order: protocol.Run) -> None:
        known = self.attempts.get(order.task)
        if known is not None and known.number == order.attempt:
            raise Violation("S4", f"attempt {order.attempt} is sent to {self.name} again", order.task)
        lane = self.lanes[order.lane]
        attempt = self.attempts[order.task] = Attempt(order, lane, self)
        lane.queue.append(attempt)

    def on_recall(self, order: protocol.Recall) -> None:
        attempt = self.current(order)
        given_back = attempt is not None and not attempt.running
        if attempt is not None and given_back:
            attempt.lane.queue.remove(attempt)
            del self.attempts[attempt.task]
        self.world.tell(self.name, f"gives it back: {given_back}", order.task)
        self.session.report(protocol.Recalled(order.task, order.attempt, given_back))

    def on_kill(self, order: protocol.Kill) -> None:
        attempt = self.current(order)
        if attempt is None:
            return
        if not attempt.running:
            attempt.lane.queue.remove(attempt)
            del self.attempts[attempt.task]
            self.session.report(protocol.Finished(attempt.task, attempt.number, protocol.KILLED, self.name.encode()))
        elif not attempt.doomed:
            attempt.doomed, attempt.end = True, protocol.KILLED
            self.world.later(order.grace, self.ended, attempt, self.lives)

    def current(self, order: protocol.Recall | protocol.Kill) -> Attempt | None:
        attempt = self.attempts.get(order.task)
        if attempt is not None and attempt.number != order.attempt:
            attempt = None
        where = "gone" if attempt is None else "running" if attempt.running else "queued"
        self.world.seen[type(order).__name__, where] += 1
        return attempt

    # --- tasks ---

    def start_ready(self) -> None:
        for lane in self.lanes.values():
            if lane.environment != BAD_ENVIRONMENT:
                while lane.queue and lane.running < lane.width and len(self.running) < self.slots:
                    self.start(lane, lane.queue.popleft())

    def start(self, lane: Lane, attempt: Attempt) -> None:
        self.act()
        world = self.world
        lane.running += 1
        attempt.running, attempt.since = True, self.clock
        self.running.add(attempt)
        world.started(attempt)
        attempt.duration, attempt.end = world.draw_task()
        if attempt.duration > 0.005 and not world.chance(0.2):
            self.announce(attempt)
        world.later(attempt.duration, self.ended, attempt, self.lives)

    def announce(self, attempt: Attempt) -> None:
        attempt.announced = True
        self.session.report(protocol.Started(attempt.task, attempt.number, 1, attempt.since))

    def ended(self, attempt: Attempt, lives: int) -> None:
        """A task ends by itself or is killed, unless it or its agent did before."""
        if lives != self.lives or not self.alive or attempt not in self.running:
            return
        if self.stopped:
            if self.runs_on:
                self.world.no_longer_runs(attempt)
            self.inbox.append((self.ended, (attempt, lives)))
            return
        self.act()
        self.world.no_longer_runs(attempt)
        self.running.discard(attempt)
        attempt.lane.running -= 1
        if self.session.tick(self.clock).fenced:  # before anything starts
            self.fence()
        else:
            self.finish(attempt)
            self.start_ready()
        self.step()

    def finish(self, attempt: Attempt) -> None:
        if self.attempts.get(attempt.task) is attempt:
            del self.attempts[attempt.task]
        if attempt.end == protocol.LOST and not attempt.announced:
            self.announce(attempt)
        body = self.name.encode() + self.world.draw_body()
        report = protocol.Finished(
            attempt.task, attempt.number, attempt.end, body, started=attempt.since, ended=self.clock
        )
        self.world.tell(self.name, f"attempt {attempt.number} ends: {attempt.end}", attempt.task)
        if "bulk" in self.world.faults and self.world.chance(0.3):
            self.session.report_bulk(iter((protocol.Output(attempt.task, attempt.number, 1, body), report)))
        else:
            self.session.report(report)

    # --- faults ---

    def fence(self) -> None:
        """All that runs is killed, which may take a while; then it says hello under the name that it has now."""
        self.world.seen["fenced"] += 1
        self.world.tell(self.name, "is the new name after a fence")
        dying = self.running
        self.clear()
        if self.kill_time and dying:
            self.dying = dying
            self.world.later(self.kill_time, self.buried, self.lives)
        else:
            self.world.no_longer_run(dying)
        self.contact = self.world.now if not self.dying else self.contact

    def buried(self, lives: int) -> None:
        if lives != self.lives or not self.alive:
            return
        if self.stopped:
            self.inbox.append((self.buried, (lives,)))
            return
        self.world.no_longer_run(self.dying)
        self.dying = set()
        self.contact = self.world.now
        self.step()

    def crash(self) -> None:
        """The process ends, with all that it started; another one comes."""
        if not self.alive:
            return
        world = self.world
        world.seen["crash"] += 1
        world.tell(self.name, "crashes")
        world.no_longer_run(self.running | self.dying)
        self.alive = False
        self.clear()
        world.later(world.rng.choice((0.1, 5.0, 60.0)) * world.rng.random(), self.restart)

    def restart(self) -> None:
        if not self.alive:
            self.boot()
            self.world.tell(self.name, "is a new process")

    def stop(self, seconds: float) -> None:
        """SIGSTOP."""
        if self.alive and not self.stopped:
            self.world.seen["stop"] += 1
            self.world.tell(self.name, f"is stopped for {seconds:.1f} s")
            self.stopped, self.runs_on = True, self.world.chance(0.5)
            self.world.later(seconds, self.go_on, self.lives)

    def go_on(self, lives: int) -> None:
        """SIGCONT: what has arrived and what ended is looked at in any order."""
        if lives != self.lives or not self.stopped:
            return
        self.world.tell(self.name, "continues")
        self.stopped = False
        if self.contact + LEASE / 1.02 < self.world.now:  # what it finds running is too late, and still there
            for attempt in self.running | self.dying:
                attempt.excused = True
        inbox, self.inbox = self.inbox, []
        for action, arguments in inbox:
            if self.alive:
                action(*arguments)
        if self.alive:
            self.step()


_AGENT_HANDLERS: dict[type[Any], Any] = {
    protocol.Welcome: Agent.on_welcome,
    protocol.Open: Agent.on_open,
    protocol.Resize: Agent.on_resize,
    protocol.Close: Agent.on_close,
    protocol.Run: Agent.on_run,
    protocol.Recall: Agent.on_recall,
    protocol.Kill: Agent.on_kill,
}


# ---- the hub


class Hub:
    """The glue around Members and Scheduler that the real hub has too."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.members = Members(SESSION, LEASE)
        self.members._lease = world.lease
        self.core = Scheduler()
        self.by_worker: dict[WorkerId, Member] = {}
        self.workers = 0
        self.stopped = False
        self.inbox: list[tuple[Any, tuple[Any, ...]]] = []
        self.wake_at = -1.0
        self.made_up: list[tuple[WorkerId, protocol.Finished]] = []

    def do(self, action: Any, *arguments: Any) -> None:
        """All that happens to the hub goes through here."""
        if self.stopped:
            self.inbox.append((action, arguments))
            return
        action(*arguments)
        self.step()

    def step(self) -> None:
        """Who is lost, what is to be sent, when to wake."""
        now = self.world.now
        for member in self.members.silent(now):
            self.lose(member, "was silent")
        for member in self.members:
            while (data := self.members.take(member, now)) is not None:
                self.world.send_down(member.route, data)
            self.world.check_link(member.link, "hub")
        due = self.members.due()
        if due is not None and (self.wake_at < now or due < self.wake_at):
            self.wake_at = max(due, now) + _TINY
            self.world.at(self.wake_at, self.wake, self.wake_at)

    def wake(self, due: float) -> None:
        if due == self.wake_at and not self.stopped:
            self.wake_at = -1.0
            self.step()

    def stop(self, seconds: float) -> None:
        if not self.stopped:
            self.world.seen["hub stop"] += 1
            self.world.tell("hub", f"is stopped for {seconds:.1f} s")
            self.stopped = True
            self.world.later(seconds, self.go_on)

    def go_on(self) -> None:
        """First what has arrived, then who was silent."""
        if not self.stopped:
            return
        self.world.tell("hub", "continues")
        self.stopped, self.wake_at = False, -1.0
        inbox, self.inbox = self.inbox, []
        for action, arguments in inbox:
            action(*arguments)
        self.step()

    # --- from agents ---

    def on_frame(self, data: bytes, route: int, agent: Agent, name: str, sent: float) -> None:
        frame = protocol.decode_reports(data)
        if frame.epoch == 0:
            for hello in frame.messages:
                self.on_hello(hello, frame.clock, route, agent, sent)
            return
        member, reports = self.members.receive(frame, route, self.world.now)
        if member is None:
            self.world.seen["frame of an old epoch"] += 1
            self.world.send_down(route, self.members.fence(frame.epoch))
            return
        if agent.name == name:
            agent.contact = max(agent.contact, sent)
        if reports:
            self.world.see_reports(self.core, reports)
            self.perform(self.core.receive(member.worker, reports))

    def on_hello(self, hello: Any, clock: float, route: int, agent: Agent, sent: float) -> None:
        member = self.members.named(hello.name)
        if self.members.is_late(hello, clock):
            self.world.seen["late hello"] += 1
        elif member is None:
            self.join(hello, clock, route)
        else:
            self.world.seen["hello again"] += 1
            self.world.send_down(route, self.members.welcome(member, leased=True))
        if agent.name == hello.name:
            agent.contact = max(agent.contact, sent)

    def join(self, hello: protocol.Hello, clock: float, route: int) -> None:
        old = self.members.of_process(hello.process)
        if old is not None:
            self.lose(old, "registers anew")
        self.workers += 1
        worker = WorkerId(self.workers)
        member, welcome = self.members.join(hello, worker, route, clock, self.world.now, leased=True)
        self.by_worker[worker] = member
        self.world.tell("hub", f"registers {hello.name}, epoch {member.epoch}")
        self.world.send_down(route, welcome)
        self.perform(self.core.joined(worker, hello.slots))

    def lose(self, member: Member, why: str) -> None:
        self.world.seen["lost: " + why] += 1
        self.world.tell("hub", f"loses {member.hello.name}: it {why}")
        self.members.remove(member)
        del self.by_worker[member.worker]
        self.perform(self.core.lost(member.worker, why))

    # --- from users ---

    def submit(self, tasks: list[Task]) -> None:
        self.perform(self.core.submit(tasks))

    def cancel(self, task: int, asked: bool) -> None:
        if asked and task not in self.core.tasks:
            self.world.futures[task].asked = 0
        self.perform(self.core.cancel(task))

    def kill(self, task: int, grace: float) -> None:
        self.perform(self.core.kill(task, 15, grace))

    # --- effects ---

    def perform(self, wanted: list[effects.Effect]) -> None:
        while wanted:
            for effect in wanted:
                _PERFORMERS[type(effect)](self, effect)
            made_up, self.made_up = self.made_up, []
            wanted = []
            for worker, report in made_up:
                wanted += self.core.receive(worker, [report])
        if self.world.checks:
            self.core.check_invariants()

    def on_start(self, effect: effects.Start) -> None:
        task = effect.task
        future = self.world.futures[task.id]
        future.attempt, future.worker = task.attempt, effect.worker
        if future.end == "cancelled":  # while it was on its way to us
            self.world.seen["cancelled before it was sent"] += 1
            self.made_up.append((effect.worker, protocol.Finished(task.id, task.attempt, protocol.KILLED)))
            return
        future.claimed = True
        member = self.by_worker[effect.worker]
        self.world.tell("hub", f"sends attempt {task.attempt} to {member.hello.name}", task.id)
        member.link.send(protocol.Run(effect.lane, task.id, task.attempt, task.body))

    def on_open(self, effect: effects.OpenLane) -> None:
        self.by_worker[effect.worker].link.send(protocol.Open(effect.lane, effect.environment, effect.width))

    def on_resize(self, effect: effects.ResizeLane) -> None:
        self.by_worker[effect.worker].link.send(protocol.Resize(effect.lane, effect.width))

    def on_close(self, effect: effects.CloseLane) -> None:
        self.by_worker[effect.worker].link.send(protocol.Close(effect.lane))

    def on_recall(self, effect: effects.RecallTask) -> None:
        self.world.tell("hub", "asks for it back", effect.task.id)
        self.by_worker[effect.worker].link.send(protocol.Recall(effect.task.id, effect.task.attempt))

    def on_kill(self, effect: effects.KillTask) -> None:
        order = protocol.Kill(effect.task.id, effect.task.attempt, effect.signal, effect.grace)
        self.world.tell("hub", "has it killed", effect.task.id)
        self.by_worker[effect.worker].link.send(order)

    def on_tell(self, effect: effects.Tell) -> None:
        pass

    def on_resolve(self, effect: effects.Resolve) -> None:
        self.world.resolve(self.world.futures[effect.task.id], effect.outcome, self.by_worker)

    def on_requeue(self, effect: effects.Requeue) -> None:
        self.world.tell("hub", "lets it wait again", effect.task.id)
        self.world.futures[effect.task.id].claimed = False
        if self.world.spiteful:
            self.world.later(0.005 * self.world.rng.random(), self.world.cancel, effect.task.id)

    def on_discard(self, effect: effects.Discard) -> None:
        self.world.seen["discarded"] += 1

    def on_answer(self, effect: effects.Answer) -> None:
        self.world.answer(self.world.futures[effect.task.id], effect.cancelled)


_PERFORMERS: dict[type[Any], Any] = {
    effects.Start: Hub.on_start,
    effects.OpenLane: Hub.on_open,
    effects.ResizeLane: Hub.on_resize,
    effects.CloseLane: Hub.on_close,
    effects.RecallTask: Hub.on_recall,
    effects.KillTask: Hub.on_kill,
    effects.Tell: Hub.on_tell,
    effects.Resolve: Hub.on_resolve,
    effects.Requeue: Hub.on_requeue,
    effects.Discard: Hub.on_discard,
    effects.Answer: Hub.on_answer,
}


# ---- the world


class World:
    """Time, the network, the users, and what must hold."""

    #: the lease that the hub gives; a mutant has another
    lease = LEASE

    def __init__(self, seed: int, trace: bool = False) -> None:
        self.rng = rng = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self.counter = 0
        self.trace: list[tuple[float, str, str, int | None]] | None = [] if trace else None
        self.seen: Counter[Any] = Counter()
        self.futures: dict[int, Future] = {}
        self.open = 0
        self.running: dict[int, list[Attempt]] = {}
        self.attempts_started: set[tuple[int, int]] = set()
        self.routes: dict[int, Agent] = {}
        self.checks = rng.random() < 0.05
        share = rng.choice((0.1, 0.3, 0.6))
        self.faults = {fault for fault in FAULTS if rng.random() < share}
        self.seen.update("fault: " + fault for fault in self.faults)
        self.faults_end = rng.choice((3.0, 30.0, 100.0, 200.0)) * rng.random()
        self.loss = self.fault("loss") * rng.choice((0.02, 0.1, 0.4))
        self.duplication = self.fault("duplication") * rng.choice((0.02, 0.2))
        self.slowness = self.fault("slowness") * rng.choice((0.02, 0.2))
        self.reordering = self.fault("reordering")
        self.longest = rng.choice((0.01, 1.0, 10.0, 60.0))
        #: users cancel again as soon as a task waits again
        self.spiteful = rng.random() < 0.1
        self.hub = Hub(self)
        self.agents: list[Agent] = []
        self.plan()

    def fault(self, kind: str) -> bool:
        return kind in self.faults

    # --- time ---

    def at(self, time: float, action: Any, *arguments: Any) -> None:
        self.counter += 1
        heapq.heappush(self.events, (time, self.counter, action, arguments))

    def later(self, seconds: float, action: Any, *arguments: Any) -> None:
        self.at(self.now + seconds, action, *arguments)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def run(self) -> None:
        """Until all is over."""
        saved = link.WINDOW, link.BULK_WINDOW, link.FRAME_BYTES, link.FRAME_MESSAGES
        if self.fault("small window"):
            link.WINDOW, link.FRAME_MESSAGES = self.rng.choice(((300, 2), (2000, 3), (20000, 1)))
            link.BULK_WINDOW, link.FRAME_BYTES = link.WINDOW // 4, link.WINDOW // 2
        try:
            self.run_until_quiet()
        finally:
            link.WINDOW, link.BULK_WINDOW, link.FRAME_BYTES, link.FRAME_MESSAGES = saved
        self.check_end()

    def run_until_quiet(self) -> None:
        events, limit = self.events, 10**9
        while events:
            self.now, _, action, arguments = heapq.heappop(events)
            try:
                action(*arguments)
            except Crashed as crash:
                crash.agent.crash()
            if self.now > self.faults_end and self.healed:
                if not self.open and self.quiet():
                    return
                limit = min(limit, self.now + self.bound())
            if self.now > limit:
                return
            if self.counter > MOST_EVENTS:
                raise Violation("S6", f"{self.counter} events: frames make ever more frames")

    def bound(self) -> float:
        """Seconds after which all must have ended: what recovery takes, frames on their way, all tasks one by one."""
        in_flight = 10 * LEASE if "slowness" in self.faults else LATEST
        return BOUND + in_flight + self.longest * self.open * 3

    def quiet(self) -> bool:
        asked = any(future.asked for future in self.futures.values())
        idle = not asked and not any(self.running.values())
        return idle and all(self.registered(agent) for agent in self.agents)

    def registered(self, agent: Agent) -> bool:
        member = self.hub.members.named(agent.name)
        return member is not None and member.epoch == agent.session.epoch and agent.alive

    # --- what happens ---

    def plan(self) -> None:
        rng = self.rng
        self.healed = False
        size = rng.choice((1, 2, 2, 3, 3, 8))
        self.agents = []
        for number in range(rng.randint(1, size)):
            agent = Agent.__new__(Agent)
            self.agents.append(agent)
            self.at(rng.choice((0.0, 1.0, 30.0)) * rng.random(), self.first_boot, agent, number)
        self.plan_users()
        self.plan_faults()
        self.at(self.faults_end, self.heal)

    def first_boot(self, agent: Agent, number: int) -> None:
        agent.__init__(self, number)  # type: ignore[misc]

    def plan_users(self) -> None:
        rng = self.rng
        total = rng.choice((1, 3, 6, 6, 12, 12, 30, 200 if rng.random() < 0.1 else 20))
        environments = [1, 2, 3][: rng.randint(1, 3)]
        if self.fault("bad environment"):
            environments.append(BAD_ENVIRONMENT)
        number = 0
        while number < total:
            count = min(rng.choice((1, 3, 10, 200)), total - number)
            tasks = [self.make_task(number + each + 1, rng.choice(environments)) for each in range(count)]
            number += count
            self.at(self.faults_end * rng.random() * 0.8, self.submit, tasks)
        for _ in range(total if self.spiteful else rng.choice((0, 0, 1, 3, total))):
            time, task = self.faults_end * rng.random(), rng.randint(1, total)
            for _ in range(rng.choice((1, 1, 2, 5))):  # some insist
                self.at(time, self.cancel, task)
                time += rng.choice((0.002, 0.02, 1.0)) * rng.random()
        for _ in range(rng.choice((0, 0, 0, 1, total // 3))):
            self.at(self.faults_end * rng.random(), self.kill, rng.randint(1, total), rng.choice((0.0, 2.0)))
        if rng.random() < 0.15:
            self.at(self.faults_end * rng.uniform(0.8, 1.0), self.shut_down, rng.random() < 0.5)

    def make_task(self, number: int, environment: int) -> Task:
        rng = self.rng
        body = protocol.Call(1, b"x" * rng.choice((0, 0, 100)))
        return Task(number, environment, body, rng.choice((0, 0, 2)), rng.choice((0, 1, 5, 5)))

    def draw_task(self) -> tuple[float, str]:
        return self.rng.random() ** 2 * self.longest, self.rng.choice(_ENDS)

    def draw_body(self) -> bytes:
        return b" " * self.rng.choice((1, 1, 1, 200))

    def plan_faults(self) -> None:
        rng, agents = self.rng, self.agents
        for kind, action in _PLANNED.items():
            if self.fault(kind):
                for _ in range(rng.randint(1, 4)):
                    self.at(self.faults_end * rng.random(), action, self, rng.choice(agents))

    def draw_seconds(self) -> float:
        return self.rng.choice((1.0, 10.0, 50.0, 100.0)) * self.rng.random()

    def do_cut(self, agent: Agent) -> None:
        both = (agent.up, agent.down)
        self.cut(agent, self.rng.choice(((agent.up,), (agent.down,), both)), self.draw_seconds())

    def cut(self, agent: Agent, wires: tuple[Wire, ...], seconds: float) -> None:
        names = ["up" if wire is agent.up else "down" for wire in wires]
        self.tell(agent.name, f"is cut off ({', '.join(names)}) for {seconds:.1f} s")
        for wire in wires:
            wire.cut += 1
            wire.holds = self.chance(0.5)
        self.later(seconds, self.mend, agent, wires)

    def mend(self, agent: Agent, wires: tuple[Wire, ...]) -> None:
        for wire in wires:
            wire.cut = max(0, wire.cut - 1)
            held, wire.held = wire.held, []
            for action, arguments in held:
                self.carry(wire, action, *arguments)
        if agent.alive and self.chance(0.3):
            agent.connect()

    def do_swizzle(self, agent: Agent) -> None:
        """All are cut off one after the other, and come back in another order."""
        for each in self.agents:
            if hasattr(each, "up"):
                self.later(self.rng.random() * 5, self.cut, each, (each.up, each.down), self.draw_seconds())

    def do_reconnect(self, agent: Agent) -> None:
        if agent.alive:
            agent.connect()

    def do_crash(self, agent: Agent) -> None:
        agent.fuse = self.rng.randint(1, 12)

    def do_stop(self, agent: Agent) -> None:
        agent.stop(self.draw_seconds() + self.rng.choice((0.0, 0.0, PATIENCE)))

    def do_stop_hub(self, agent: Agent) -> None:
        self.hub.stop(self.draw_seconds())

    def if_booted(self, action: Any, agent: Agent) -> None:
        if hasattr(agent, "session"):
            action(self, agent)

    def heal(self) -> None:
        """All faults are over; what is on its way still arrives."""
        self.tell("world", "is healed")
        self.loss = self.duplication = self.slowness = 0.0
        for agent in self.agents:
            if hasattr(agent, "session"):
                agent.fuse = 0
                agent.up.cut = agent.down.cut = 1
                self.mend(agent, (agent.up, agent.down))
                agent.up.last = agent.down.last = self.now
                agent.go_on(agent.lives)
                agent.restart()
        self.hub.go_on()
        self.healed = all(hasattr(agent, "session") for agent in self.agents)
        if not self.healed:
            self.later(5.0, self.heal)

    # --- users ---

    def submit(self, tasks: list[Task]) -> None:
        for task in tasks:
            self.futures[task.id] = Future(task)
        self.open += len(tasks)
        self.hub.do(self.hub.submit, tasks)

    def cancel(self, task: int) -> None:
        """As a future does: at once if it is not claimed, or else the hub is asked."""
        future = self.futures.get(task)
        if future is None or future.end:
            return
        self.tell("user", "cancels", task)
        if future.claimed:
            future.asked += 1
        else:
            self.finish(future, "cancelled")
        self.later(0.001, self.hub.do, self.hub.cancel, task, future.claimed)

    def kill(self, task: int, grace: float) -> None:
        if task in self.futures:
            self.tell("user", "kills", task)
            self.hub.do(self.hub.kill, task, grace)

    def shut_down(self, kill: bool) -> None:
        self.seen["shutdown"] += 1
        for task in list(self.futures):
            if kill:
                self.kill(task, 0.0)
            else:
                self.cancel(task)

    # --- network ---

    def new_route(self, agent: Agent) -> int:
        route = len(self.routes) + 1
        self.routes[route] = agent
        return route

    def send_up(self, agent: Agent, data: bytes) -> None:
        hub = self.hub
        self.carry(agent.up, hub.do, hub.on_frame, data, agent.route, agent, agent.name, self.now)

    def send_down(self, route: int, data: bytes) -> None:
        agent = self.routes[route]
        self.carry(agent.down, agent.on_frame, data, route)

    def carry(self, wire: Wire, action: Any, *arguments: Any) -> None:
        if wire.cut:
            if wire.holds:
                wire.held.append((action, arguments))
            return
        if self.loss and self.rng.random() < self.loss:
            return
        self.deliver(wire, action, arguments)
        if self.duplication and self.rng.random() < self.duplication:
            late = self.rng.choice((0.001, 1.0, 40.0, LATEST)) * self.rng.random()
            self.later(late, action, *arguments)

    def deliver(self, wire: Wire, action: Any, arguments: tuple[Any, ...]) -> None:
        rng = self.rng
        delay = 0.0001 + 0.002 * rng.random()
        if self.slowness and rng.random() < self.slowness:
            delay = rng.choice((0.1, 5.0, 50.0, 10 * LEASE)) * rng.random()
        time = self.now + delay
        if not self.reordering:
            time = wire.last = max(time, wire.last)
        self.at(time, action, *arguments)

    # --- what must hold ---

    def tell(self, who: str, what: str, task: int | None = None) -> None:
        if self.trace is not None:
            self.trace.append((self.now, who, what, task))

    def started(self, attempt: Attempt) -> None:
        task = attempt.task
        self.tell(attempt.agent.name, f"starts attempt {attempt.number}", task)
        if (task, attempt.number) in self.attempts_started:
            raise Violation("S4", f"attempt {attempt.number} starts twice", task)
        self.attempts_started.add((task, attempt.number))
        others = self.running.setdefault(task, [])
        for other in others:
            if other.agent.stopped or other.excused:
                self.seen["overlap with a stopped agent"] += 1
            else:
                text = f"attempt {attempt.number} starts while {other.number} runs on {other.agent.name}"
                raise Violation("S3", text, task)
        others.append(attempt)
        future = self.futures[task]
        future.starts += 1
        if future.starts > future.most_starts:
            raise Violation("S9", f"crash_limit=0, retries={future.task.retries}: starts once more", task)

    def no_longer_runs(self, attempt: Attempt) -> None:
        running = self.running[attempt.task]
        if attempt in running:
            running.remove(attempt)

    def no_longer_run(self, attempts: set[Attempt]) -> None:
        for attempt in attempts:
            self.no_longer_runs(attempt)

    def resolve(self, future: Future, outcome: Any, by_worker: dict[WorkerId, Member]) -> None:
        task = future.task.id
        self.tell("hub", f"resolves: {outcome!r:.60}", task)
        finished = type(outcome) is protocol.Finished
        if finished and outcome.attempt != future.attempt:
            text = f"attempt {outcome.attempt} completes a future whose current one is {future.attempt}"
            raise Violation("S2", text, task)
        if future.end == "cancelled" and not (finished and outcome.body):
            return  # a task that was cancelled before it was sent, or whose kill made it up
        if future.end:
            raise Violation("S7" if future.end == "cancelled" else "S1", f"was {future.end}, and ends again", task)
        if finished and outcome.body:
            self.check_owner(future, outcome, by_worker)
        good = finished and outcome.end in (protocol.VALUE, protocol.COMPLETED)
        self.finish(future, "done" if good else "failed")

    def check_owner(self, future: Future, outcome: Any, by_worker: dict[WorkerId, Member]) -> None:
        member = by_worker.get(future.worker) if future.worker is not None else None
        if member is None or member.hello.name != outcome.body.decode().rstrip():
            raise Violation("S2", f"completed by {outcome.body!r}, which has no such attempt", future.task.id)

    def answer(self, future: Future, cancelled: bool) -> None:
        self.tell("hub", f"answers a cancel: {cancelled}", future.task.id)
        future.asked = 0
        if cancelled and future.end != "cancelled":
            if future.end:
                raise Violation("S1", f"was {future.end}, and is cancelled", future.task.id)
            self.finish(future, "cancelled")

    def finish(self, future: Future, end: str) -> None:
        future.end = end
        self.open -= 1

    def check_link(self, side: link.Link, whose: str) -> None:
        """S6: credit, and bounds of the queues."""
        unacked = side._unacked
        if len(unacked) > 1 and side._unacked_bytes - len(unacked[-1]) >= link.WINDOW:
            raise Violation("S6", f"{whose}: {side._unacked_bytes} bytes on the way, the window has {link.WINDOW}")
        if len(unacked) + len(side._waiting) > 50 + 10 * len(self.futures):
            raise Violation("S6", f"{whose}: {len(unacked) + len(side._waiting)} messages wait")

    def see_reports(self, core: Scheduler, reports: list[Any]) -> None:
        for report in reports:
            number = getattr(report, "task", None)
            if number is not None:
                task = core.tasks.get(number)
                state = "gone" if task is None else task.state.value if task.attempt == report.attempt else "later"
                self.seen[type(report).__name__, state] += 1

    def check_end(self) -> None:
        for future in self.futures.values():
            if not future.end or future.asked:
                what = "its future is pending" if not future.end else "a cancel was never answered"
                raise Violation("L1", f"{what}; it is {future.task.state.value}", future.task.id)
        for agent in self.agents:
            if not self.registered(agent):
                raise Violation("L2", f"{agent.name} is not registered")
        for task, running in self.running.items():
            if running:
                raise Violation("L3", f"attempt {running[0].number} still runs on {running[0].agent.name}", task)
        if self.hub.core.tasks:
            raise Violation("L1", f"{len(self.hub.core.tasks)} tasks are left", next(iter(self.hub.core.tasks)))
        ends = Counter(future.end for future in self.futures.values())
        if sum(ends.values()) != len(self.futures) or self.open:
            raise Violation("L1", f"{len(self.futures)} tasks, but {dict(ends)}")
        self.seen.update({"task " + end: count for end, count in ends.items()})


_PLANNED: dict[str, Any] = {
    kind: (lambda action: lambda world, agent: world.if_booted(action, agent))(action)
    for kind, action in {
        "cut": World.do_cut,
        "swizzle": World.do_swizzle,
        "reconnection": World.do_reconnect,
        "crash": World.do_crash,
        "stop": World.do_stop,
        "hub stop": World.do_stop_hub,
    }.items()
}


def story(seed: int) -> str:
    """What a seed that fails tells: of the task concerned, who did what and when; and how to see it again."""
    world = World(seed, trace=True)
    try:
        world.run()
    except Violation as violation:
        assert world.trace is not None
        lines = [f"seed {seed}, {world.now:.3f} s: {violation}", f"faults: {', '.join(sorted(world.faults))}"]
        for time, who, what, task in world.trace:
            if task is None or task == violation.task:
                lines.append(f"{time:10.4f}  {who:8}  {what}" + (f" (task {task})" if task else ""))
        lines.append(f"again: PYTHONPATH=. python tests/simulation/simulate.py --first {seed} --seeds 1")
        return "\n".join(lines)
    return f"seed {seed} fails no more"
