"""An agent's process: the product's session, and lanes whose tasks take simulated time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from attempt import Attempt, Lane
from judge import Violation
from process import Process

from executor.core.members import LEASE
from worker_agent import codec, protocol
from worker_agent.places import Ledger
from worker_agent.session import NOTHING, AgentSession, Incoming

if TYPE_CHECKING:
    from node import Node

SESSION = "s"
#: An environment that no agent can prepare.
BAD_ENVIRONMENT = 9
#: After these ends a process leaves by itself.
_OUTCOMES = (protocol.VALUE, protocol.ERROR)


class Crashed(Exception):
    """The agent's process has ended in the middle of what it did."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent.name)
        self.agent = agent


class Agent(Process):
    """From its start to its end; another process is another object."""

    def __init__(self, node: Node, process: str, launch: str) -> None:
        super().__init__(node.world, node.clock)
        self.node, self.process, self.launch = node, process, launch
        #: when the hub heard this registration last: the time at which that was sent
        self.contact = self.world.now
        #: when the hub first heard it under an epoch that was over, and said so
        self.warned: float | None = None
        #: the moments, before and after actions, until it crashes; 0 for never
        self.fuse = 0
        #: while it is stopped, its tasks run on
        self.tasks_run_on = False
        self.stopping = False
        #: once stopped, it will never go on
        self.hangs = False
        #: its machine was suspended for longer than its lease: it cannot know
        self.dazed = False
        self.dying: set[Attempt] = set()
        self._clear()
        self.connect()
        self.session = AgentSession(SESSION, self._hello, self._new_name)

    def _clear(self) -> None:
        self.lanes: dict[int, Lane] = {}
        self.attempts: dict[int, Attempt] = {}
        self.running: set[Attempt] = set()
        #: tasks that have ended, and whose processes have not
        self.leaving: set[Attempt] = set()
        self.ledger = Ledger(self.node.pools)
        #: what the judge has seen in use, of which part of which pool
        self.used: Counter[tuple[str, str]] = Counter()
        #: the attempts whose payloads come, by the number of the payload; None for those that are not wanted
        self._payloads: dict[int, Attempt | None] = {}
        #: what was asked back or killed, and may not start any more
        self._barred: set[tuple[int, int]] = set()

    def connect(self) -> None:
        """By a new route."""
        self.route = self.world.network.connect(self)

    def _new_name(self) -> str:
        self.name = self.node.new_name()
        return self.name

    def _hello(self, name: str) -> protocol.Hello:
        return protocol.Hello(
            launch=self.launch, process=self.process, name=name, host=str(self.node.number), pid=1, python="3",
            pools=self.node.pools,
        )  # fmt: skip

    def _moment(self) -> None:
        """Before and after each action: here the process may end."""
        if self.fuse:
            self.fuse -= 1
            if not self.fuse:
                raise Crashed(self)

    # --- time ---

    def step(self) -> None:
        """Look at the lease, say what there is to say, sleep."""
        incoming = self.session.tick(self.time)
        if incoming is not NOTHING:
            self._obey(incoming)
        self._go_to_sleep()

    def _go_to_sleep(self) -> None:
        if self.dying or not self.alive:
            return
        self._speak(self.time)
        self.world.judge.check_lease(self)
        self.sleep_until(self.session.due())

    def _speak(self, now: float) -> None:
        said = False
        while (frame := self.session.take(now)) is not None:
            said = True
            self._moment()
            self.world.network.send_up(self, frame)
            self._moment()
        if said:
            self.world.judge.check_link(self.session._link, self.name)

    # --- orders ---

    def on_wake(self) -> None:
        """Perhaps what it slept for has been done meanwhile, with something else."""
        due = self.session.due()
        if due <= self.time:
            self.step()
        else:
            self.sleep_until(due)

    def on_frame(self, data: bytes, route: int) -> None:
        """A frame of the hub has arrived."""
        if route == self.route:
            frame = codec.decode_orders(data)
            self.world.judge.hear(self.session._link, frame)
            self._obey(self.session.receive(frame, self.time))
            self._go_to_sleep()

    def _obey(self, incoming: Incoming) -> None:
        if incoming is NOTHING or self.dying:
            return
        if incoming.refused:
            self.world.seen["refused"] += 1
            self.end()
            return
        if incoming.fenced:
            self._fence()
        for order in incoming.orders:
            self._moment()
            self._handlers[type(order)](self, order)
            self._moment()
        self._start_ready()

    def _on_welcome(self, order: protocol.Welcome) -> None:
        self.world.tell(self.name, f"is welcomed, epoch {order.epoch}")

    def _on_open(self, order: protocol.Open) -> None:
        self.lanes[order.lane] = Lane(order, self.ledger, self._on_freed)
        if order.environment == BAD_ENVIRONMENT:
            self.session.report(protocol.Unprepared(order.environment, "no such thing"))

    def _on_give(self, order: protocol.Give) -> None:
        lane = self.lanes[order.lane]
        self.world.judge.check_given(self, lane, order.places)
        lane.places.add(order.places)

    def _on_take(self, order: protocol.Take) -> None:
        lane = self.lanes[order.lane]
        self.world.seen["Take", "busy" if lane.at else "idle"] += 1
        lane.places.ask_back(order.count)

    def _on_freed(self, lane: Lane, numbers: list[int]) -> None:
        self.world.judge.check_freed(self, lane, numbers)
        self.session.report(protocol.Freed(lane.number, numbers))

    def _on_close(self, order: protocol.Close) -> None:
        lane = self.lanes[order.lane]
        if lane.environment != BAD_ENVIRONMENT and (lane.queue or any(each.running for each in lane.at.values())):
            raise Violation("S5", f"{self.name} is told to close lane {order.lane}, which has tasks")
        self.world.seen["Close", "leaving" if lane.at else "idle"] += 1
        lane.closing = True
        self.close_if_idle(lane)

    def close_if_idle(self, lane: Lane) -> None:
        """A lane that is not needed goes when the last process has left."""
        if lane.closing and not lane.at:
            lane.places.close()
            del self.lanes[lane.number]

    def _on_run(self, order: protocol.Run) -> None:
        known = self.attempts.get(order.task)
        if known is not None and known.number == order.attempt:
            raise Violation("S4", f"attempt {order.attempt} is sent to {self.name} again", order.task)
        assert isinstance(order.body, protocol.Call)
        lane = self.lanes[order.lane]
        attempt = self.attempts[order.task] = Attempt(order, lane, self)
        lane.queue.append(attempt)
        attempt.missing = sum(stored.size for stored in order.body.buffers)
        if attempt.missing:
            self._payloads[order.body.function] = attempt

    def _on_piece(self, order: protocol.Define) -> None:
        """A piece of a large payload; nobody may want it any more."""
        if order.function not in self._payloads:
            raise Violation("S4", f"a payload came to {self.name} before its task")
        attempt = self._payloads[order.function]
        if attempt is not None:
            attempt.missing -= 1

    def _on_recall(self, order: protocol.Recall) -> None:
        attempt = self._current(order)
        given_back = attempt is not None and not attempt.running
        if attempt is not None and given_back:
            self._forget(attempt)
        self.world.tell(self.name, f"gives it back: {given_back}", order.task)
        self.answer_recall(protocol.Recalled(order.task, order.attempt, given_back))

    def answer_recall(self, answer: protocol.Recalled) -> None:
        """Either way: whoever asked waits for it."""
        self.session.report(answer)

    def _on_kill(self, order: protocol.Kill) -> None:
        attempt = self._current(order)
        if attempt is not None:
            self._kill(attempt, order.grace)

    def _on_stop(self, order: protocol.Stop) -> None:
        self.world.seen["Stop", "busy" if self.attempts else "idle"] += 1
        self.stopping = True
        for attempt in list(self.attempts.values()):
            self._kill(attempt, order.grace)

    def _kill(self, attempt: Attempt, grace: float) -> None:
        if not attempt.running:
            self._forget(attempt)
            self.session.report(protocol.Finished(attempt.task, attempt.number, protocol.KILLED, self.name.encode()))
        elif not attempt.doomed:
            attempt.doomed, attempt.end = True, protocol.KILLED
            self.world.later(grace, self.do, self._ended, attempt)

    def _current(self, order: protocol.Recall | protocol.Kill) -> Attempt | None:
        attempt = self.attempts.get(order.task)
        if attempt is not None and attempt.number != order.attempt:
            attempt = None
        if attempt is None or not attempt.running:
            self._barred.add((order.task, order.attempt))
        self.world.seen[type(order).__name__, "gone" if attempt is None else attempt.state] += 1
        return attempt

    def _forget(self, attempt: Attempt) -> None:
        """It is not to start here; the rest of its payload is thrown away when it comes."""
        attempt.lane.queue.remove(attempt)
        del self.attempts[attempt.task]
        self._payloads.update(dict.fromkeys((key for key, of in self._payloads.items() if of is attempt), None))

    # --- tasks ---

    def _start_ready(self) -> None:
        for lane in self.lanes.values():
            if lane.queue and lane.environment != BAD_ENVIRONMENT:
                self._start_in(lane)
        idle = not self.attempts and not self.running and not self.leaving
        if self.stopping and idle and self.session.epoch:
            self._leave()

    def _start_in(self, lane: Lane) -> None:
        while True:
            ready = next((attempt for attempt in lane.queue if not attempt.missing), None)
            place = None if ready is None else lane.places.take()
            if ready is None or place is None:
                if ready is not None and lane.places._free:
                    self.world.seen["a place is kept by who leaves"] += 1
                return
            lane.queue.remove(ready)
            ready.place, lane.at[place.number] = place, ready
            self._start(ready)

    def _start(self, attempt: Attempt) -> None:
        self._moment()
        world = self.world
        if (attempt.task, attempt.number) in self._barred:
            raise Violation("S4", f"attempt {attempt.number} starts after it was asked back or killed", attempt.task)
        attempt.running, attempt.since = True, self.time
        self.running.add(attempt)
        world.judge.started(attempt)
        duration, attempt.end = world.users.draw_end()
        if duration > 0.005 and not world.chance(0.2):
            self._announce(attempt)
        world.later(duration, self.do, self._ended, attempt)
        self._moment()

    def _announce(self, attempt: Attempt) -> None:
        attempt.announced = True
        self.session.report(protocol.Started(attempt.task, attempt.number, 1, attempt.since))

    def _ended(self, attempt: Attempt) -> None:
        """A task ends by itself or is killed, unless it was ended before."""
        if attempt not in self.running:
            return
        self._moment()
        self.world.judge.ended(attempt)
        self.running.discard(attempt)
        attempt.running = False
        self.leaving.add(attempt)
        incoming = self.session.tick(self.time)  # before anything starts
        if incoming is NOTHING:
            self._finish(attempt)
            self._moment()
            self._let_leave(attempt)
        else:
            self._obey(incoming)
        self._go_to_sleep()

    def _let_leave(self, attempt: Attempt) -> None:
        """Its process has exit functions, and threads."""
        seconds = self.world.users.draw_leave() if attempt.end in _OUTCOMES and not attempt.doomed else 0.0
        if seconds:
            self.world.later(seconds, self.do, self._left, attempt)
        else:
            self._leave_place(attempt)

    def _left(self, attempt: Attempt) -> None:
        """A process has left, unless it was ended before."""
        if attempt in self.leaving:
            self._leave_place(attempt)
            self._go_to_sleep()

    def _leave_place(self, attempt: Attempt) -> None:
        lane, place = attempt.lane, attempt.place
        assert place is not None
        self.leaving.discard(attempt)
        self.world.judge.left(attempt)
        del lane.at[place.number]
        lane.places.release(place)
        self.close_if_idle(lane)
        if self.session.may_start(self.time):
            self._start_ready()

    def _finish(self, attempt: Attempt) -> None:
        if self.attempts.get(attempt.task) is attempt:
            del self.attempts[attempt.task]
        if attempt.end == protocol.LOST and not attempt.announced:
            self._announce(attempt)
        body = self.name.encode() + b" " * self.world.pick((1, 1, 1, 200))
        report = protocol.Finished(
            attempt.task, attempt.number, attempt.end, body, started=attempt.since, ended=self.time
        )
        self.world.tell(self.name, f"attempt {attempt.number} ends: {attempt.end}", attempt.task)
        if self.world.fault("large") and self.world.chance(0.3):
            self.session.report_bulk(_in_pieces(report, self.world.rng.randint(1, 4)))
        else:
            self.session.report(report)

    # --- ends ---

    def _leave(self) -> None:
        """The hub said stop, and all is done."""
        self.session.report(protocol.Bye("the hub said stop"))
        self._speak(self.time)
        self.world.tell(self.name, "leaves")
        self.end(leaves=True)

    def end(self, *, leaves: bool = False) -> None:
        """Its process ends, with all that it has started; a new one comes, unless it was to leave."""
        if self.alive:
            super().end()
            for attempt in self.running | self.dying:
                self.world.judge.ended(attempt)
            self.dying = set()
            self._clear()
            self.node.on_end(self, leaves)

    def crash(self) -> None:
        """It ends in the middle of something."""
        if self.alive:
            self.world.seen["crash"] += 1
            self.world.tell(self.name, "crashes")
            self.end()

    def _fence(self) -> None:
        """All that runs is killed, which may take a while; then it says hello under the name that it has now."""
        self._moment()
        self.world.seen["fenced"] += 1
        self.world.tell(self.name, "is the new name after a fence")
        for attempt in self.running:  # a suspended machine may have begun them after its lease
            attempt.excused = attempt.excused or self.dazed
        self.dying, self.warned, self.dazed = self.running | self.leaving, None, False
        for lane in self.lanes.values():
            lane.places.close()
        self.world.judge.check_ledger(self)
        self._clear()
        if self.world.fault("endless kill") and not self.world.healed and self.dying and self.world.chance(0.3):
            self._give_up_on(self.dying)
        if self.node.kill_time and self.dying:
            self.world.later(self.node.kill_time, self.do, self._buried)
        else:
            self._bury()
        self._moment()

    def _give_up_on(self, dying: set[Attempt]) -> None:
        """They cannot be killed before all is healed, and it does not wait for them."""
        self.world.seen["endless kill"] += 1
        for attempt in dying:
            attempt.excused = True
        self.world.immortal.update(dying)
        self.dying = set()

    def _bury(self) -> None:
        for attempt in self.dying:
            self.world.judge.ended(attempt)
        self.dying = set()
        self.contact = self.world.now

    def _buried(self) -> None:
        self._bury()
        self._go_to_sleep()

    def stop(self, seconds: float, *, suspended: bool = False) -> None:
        """Its tasks may run on, unless the whole machine is suspended."""
        super().stop(seconds, suspended=suspended)
        self.tasks_run_on = not suspended and self.world.chance(0.5)

    def go_on(self) -> None:
        """Unless it hangs."""
        if not self.hangs:
            super().go_on()

    def on_continue(self, suspended: float) -> None:
        """What it finds running may be too late, and is still there."""
        late = self.contact + LEASE / 1.02 < self.world.now
        for attempt in self.running | self.dying:
            attempt.excused = attempt.excused or late
        self.dazed = self.dazed or (suspended > 0 and late)
        self.contact += suspended

    def do(self, action: Callable[..., None], *arguments: Any) -> None:
        """A task that ends while its agent is stopped has ended, although nobody reports it."""
        if self.stopped and self.tasks_run_on and action == self._ended:
            self.world.judge.ended(arguments[0])
        super().do(action, *arguments)

    _handlers: ClassVar[dict[type[Any], Callable[[Agent, Any], None]]] = {
        protocol.Welcome: _on_welcome,
        protocol.Open: _on_open,
        protocol.Give: _on_give,
        protocol.Take: _on_take,
        protocol.Close: _on_close,
        protocol.Run: _on_run,
        protocol.Define: _on_piece,
        protocol.Recall: _on_recall,
        protocol.Kill: _on_kill,
        protocol.Stop: _on_stop,
    }


def _in_pieces(report: protocol.Finished, count: int) -> Iterator[protocol.Report]:
    """A large outcome: its pieces, which are asked for one by one, and what follows them."""
    for _ in range(count):
        yield protocol.Output(report.task, report.attempt, 1, report.body)
    yield report
