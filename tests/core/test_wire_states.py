"""Anything may happen in any order on the wire: two sides of a conversation, and a hub with its agents.

Hypothesis draws what happens, one frame at a time, and shrinks what fails to the few steps that matter. Frames lie in a
bag: each may be delivered, delivered again later, or lost. ``CORE_EXAMPLES=1000 python -m pytest tests/core`` looks
longer, each time elsewhere. At the end are the failures that were found so far, as steps of the same machines.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from executor.core.members import Member, Members
from executor.core.model import WorkerId
from worker_agent import codec, link, protocol
from worker_agent.link import Batch, Link
from worker_agent.session import AgentSession, Incoming

pytestmark = pytest.mark.shared

EXAMPLES = int(os.environ.get("CORE_EXAMPLES", "0"))
SETTINGS = settings(
    max_examples=EXAMPLES or 30,
    stateful_step_count=100 if EXAMPLES else 50,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
#: Which of the things that are there: an index, taken modulo their number.
WHICH = st.integers(0, 1000)
SIDE = st.integers(0, 1)
SECONDS = st.sampled_from([0.001, 0.05, 1.0, 2.0, 5.0, 16.0, 31.0, 50.0])


def pick(things: Any, which: int) -> Any:
    things = list(things)
    return things[which % len(things)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants that a few messages reach."""
    for name, value in (("WINDOW", 60), ("BULK_WINDOW", 20), ("FRAME_BYTES", 30), ("FRAME_MESSAGES", 2)):
        monkeypatch.setattr(link, name, value)


# ---- two sides of a conversation


def as_it_is(message: object) -> bytes:
    assert isinstance(message, bytes)
    return message


class Conversation(RuleBasedStateMachine):
    """All that is said arrives once and in order, and no more is on the way than the window has."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.sides = Link(as_it_is, codec.cut_message), Link(as_it_is, codec.cut_message)
        self.said: tuple[list[bytes], list[bytes]] = ([], [])
        self.heard: tuple[list[bytes], list[bytes]] = ([], [])
        self.flying: list[tuple[int, Batch]] = []

    @rule(side=SIDE, size=st.sampled_from([1, 8, 100]))
    def send(self, side: int, size: int) -> None:
        message = b"%d " % len(self.said[side]) + b"." * size
        self.said[side].append(message)
        self.sides[side].send(message)

    @rule(side=SIDE, count=st.integers(0, 4))
    def send_bulk(self, side: int, count: int) -> None:
        pieces = [b"L%d.%d " % (len(self.said[side]), number) for number in range(count)]
        self.said[side].extend(pieces)
        self.sides[side].send_bulk(iter(pieces))

    @rule(side=SIDE)
    def speak(self, side: int) -> None:
        batch = self.sides[side].take(self.now)
        if batch is not None:
            self.flying.append((1 - side, batch))

    @precondition(lambda self: self.flying)
    @rule(which=WHICH, again=st.booleans())
    def hear(self, which: int, again: bool = False) -> None:
        """A frame arrives; perhaps it will do so again."""
        side, batch = flight = pick(self.flying, which)
        if not again:
            self.flying.remove(flight)
        self.sides[side].acknowledged(batch.ack, batch.misses, self.now)
        self.heard[side].extend(self.sides[side].receive(batch.first, batch.messages, self.now))

    @precondition(lambda self: self.flying)
    @rule(which=WHICH)
    def lose(self, which: int) -> None:
        self.flying.remove(pick(self.flying, which))

    @rule(side=SIDE)
    def connect_anew(self, side: int) -> None:
        self.sides[side].go_back()

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for side in self.sides:
            side.tick(self.now)

    @invariant()
    def what_is_heard_was_said_and_in_this_order(self) -> None:
        for said, heard in ((self.said[0], self.heard[1]), (self.said[1], self.heard[0])):
            for kind in (is_large, is_small):
                assert [*filter(kind, heard)] == [*filter(kind, said)][: len([*filter(kind, heard)])]

    @invariant()
    def no_more_is_on_the_way_than_the_window_has(self) -> None:
        for side in self.sides:
            sizes = [len(message) for message in side._unacked]
            assert sum(sizes) == side._unacked_bytes
            assert len(sizes) <= 1 or sum(sizes[:-1]) < link.WINDOW
            assert sum(side._sizes) == side._bulk_bytes

    @invariant()
    def who_waits_for_an_answer_knows_until_when(self) -> None:
        for side in self.sides:
            if side._unacked and side._on_wire:
                assert side.due() is not None

    def teardown(self) -> None:
        """On a good wire all of it arrives, soon and with few frames."""
        if sys.exc_info()[0] is not None:
            return  # the story of what went wrong is told already
        self.flying.clear()
        for _ in range(40 + 20 * sum(map(len, self.said))):
            self.wait(16.0)
            self.speak_out()
            if self.sides[0].idle and self.sides[1].idle:
                break
        assert (len(self.heard[1]), len(self.heard[0])) == (len(self.said[0]), len(self.said[1]))

    def speak_out(self) -> None:
        """Both say what they have to say, and hear it, until there is nothing."""
        while True:
            self.speak(0)
            self.speak(1)
            if not self.flying:
                return
            while self.flying:
                self.hear(0)


def is_large(message: bytes) -> bool:
    return message.startswith(b"L")


def is_small(message: bytes) -> bool:
    return not is_large(message)


@pytest.mark.usefixtures("small")
def test_whatever_happens_to_frames_all_is_heard_once_and_in_order() -> None:
    run_state_machine_as_test(Conversation, settings=SETTINGS)


# ---- a hub and its agents


class Agent:
    """A session and what it has been told in each epoch."""

    def __init__(self, number: int, numbers: Iterator[int]) -> None:
        self.process = f"p{next(numbers)}"
        self.number = number
        self.session = AgentSession("session", self.hello, lambda: f"name {next(numbers)}")
        self.obeyed: dict[int, list[int]] = {}
        self.route = next(numbers)

    def hello(self, name: str) -> protocol.Hello:
        return protocol.Hello(
            launch="l", process=self.process, name=name, host="h", pid=1, python="3", pools=[]
        )

    def may_work(self, epoch: int, now: float) -> bool:
        """Whether it may run tasks of this epoch."""
        return self.session.epoch == epoch and self.session.may_start(now)


class Registration(RuleBasedStateMachine):
    """Orders and reports count in their epoch, once and in order; who was lost does not work any more."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1.0
        self.numbers = iter(range(1, 10**9))
        self.members = Members("session", 30.0)
        self.agents = [Agent(number, self.numbers) for number in range(2)]
        #: frames to an agent by its route, or to the hub
        self.down: list[tuple[int, bytes]] = []
        self.up: list[tuple[int, bytes]] = []
        #: all that was ever sent, and may come at any time: whether to the hub, and the frame
        self.old: list[tuple[bool, tuple[int, bytes]]] = []
        self.ordered: dict[int, list[int]] = {}
        self.reported: dict[int, list[int]] = {}
        self.received: dict[int, list[int]] = {}
        self.ever: set[int] = set()

    @initialize(registered=st.booleans())
    def begin(self, registered: bool) -> None:
        if registered:
            self.exchange()

    @rule()
    def talk(self) -> None:
        """For a moment the network is good."""
        self.exchange()

    @rule(which=WHICH)
    def be_cut_off(self, which: int) -> None:
        """For longer than the lease; then an agent says so, which makes it another registration."""
        self.wait(31.0)
        self.agent_speaks(which)
        self.exchange()

    # --- who says what ---

    @rule(which=WHICH)
    def agent_speaks(self, which: int) -> None:
        agent = self.agents[which % 2]
        self.obey(agent, agent.session.tick(self.now))
        data = agent.session.take(self.now)
        if data is not None:
            self.fly(True, agent.route, data)

    @rule()
    def hub_speaks(self) -> None:
        for member in self.members:
            while (data := self.members.take(member, self.now)) is not None:
                self.fly(False, member.route, data)

    @precondition(lambda self: any(self.members))
    @rule(which=WHICH)
    def order(self, which: int) -> None:
        member = pick(self.members, which)
        number = next(self.numbers)
        self.ordered[member.epoch].append(number)
        member.link.send(protocol.Recall(number, 1))

    @rule(which=WHICH)
    def report(self, which: int) -> None:
        session = self.agents[which % 2].session
        if session.epoch:
            number = next(self.numbers)
            self.reported.setdefault(session.epoch, []).append(number)
            session.report(protocol.Recalled(number, 1, True))

    # --- what the network does ---

    @precondition(lambda self: self.up)
    @rule(which=WHICH)
    def hub_hears(self, which: int) -> None:
        self.to_hub(*self.up.pop(which % len(self.up)))

    def to_hub(self, route: int, data: bytes) -> None:
        frame = codec.decode_reports(data)
        if frame.epoch == 0:
            for hello in frame.messages:
                assert isinstance(hello, protocol.Hello)
                self.on_hello(hello, frame.clock, route)
            return
        member, reports = self.members.receive(frame, route, self.now)
        if member is None:
            self.fly(False, route, self.members.fence(frame.epoch))
            return
        for report in reports:
            assert isinstance(report, protocol.Recalled)
            self.received[member.epoch].append(report.task)

    @precondition(lambda self: self.down)
    @rule(which=WHICH)
    def agent_hears(self, which: int) -> None:
        self.to_agent(*self.down.pop(which % len(self.down)))

    def to_agent(self, route: int, data: bytes) -> None:
        agent = next((agent for agent in self.agents if agent.route == route), None)
        if agent is not None:
            self.obey(agent, agent.session.receive(codec.decode_orders(data), self.now))

    def fly(self, up: bool, route: int, data: bytes) -> None:
        (self.up if up else self.down).append((route, data))
        self.old.append((up, (route, data)))

    @precondition(lambda self: self.old)
    @rule(which=WHICH)
    def an_old_frame_comes(self, which: int) -> None:
        """It was lost, or has arrived before."""
        up, flight = pick(self.old, which)
        (self.to_hub if up else self.to_agent)(*flight)

    @precondition(lambda self: self.up or self.down)
    @rule(which=WHICH)
    def lose_a_frame(self, which: int) -> None:
        for frames in (self.up, self.down):
            if frames:
                frames.remove(pick(frames, which))

    @rule(which=WHICH)
    def connect_anew(self, which: int) -> None:
        self.agents[which % 2].route = next(self.numbers)

    # --- what else happens ---

    @rule(which=WHICH)
    def restart(self, which: int) -> None:
        """Another process, which knows nothing."""
        self.agents[which % 2] = Agent(which % 2, self.numbers)

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        """The hub looks as often as it wants to; agents may be late."""
        until = self.now + seconds
        while (due := self.members.due()) is not None and due < until:
            self.now = max(due, self.now)
            self.look()
            self.hub_speaks()
            if self.members.due() == due:
                break
        self.now = until
        self.look()

    def look(self) -> None:
        for member in self.members.silent(self.now):
            self.lose(member)

    # --- the hub, as executor.agents has it ---

    def on_hello(self, hello: protocol.Hello, clock: float, route: int) -> None:
        known, earlier = self.members.named(hello.name), self.members.of_process(hello.process)
        if known is not None:
            self.fly(False, route, self.members.welcome(known, leased=True))
            return
        if earlier is not None and self.members.is_late(hello, clock):
            return
        if earlier is not None:
            self.lose(earlier)
        worker = WorkerId(next(self.numbers))
        member, welcome = self.members.join(hello, worker, route, clock, self.now, leased=True)
        assert member.epoch not in self.ever, "an epoch was given twice"
        self.ever.add(member.epoch)
        self.ordered[member.epoch], self.received[member.epoch] = [], []
        self.fly(False, route, welcome)

    def lose(self, member: Member) -> None:
        self.members.remove(member)
        busy = [agent.process for agent in self.agents if agent.may_work(member.epoch, self.now)]
        assert not busy, f"{busy[0]} was lost, and works"

    def obey(self, agent: Agent, incoming: Incoming) -> None:
        if incoming.refused:
            self.restart(agent.number)
            return
        for order in incoming.orders:
            if isinstance(order, protocol.Recall):
                assert agent.may_work(agent.session.epoch, self.now), "it obeys after its lease"
                agent.obeyed.setdefault(agent.session.epoch, []).append(order.task)

    # --- what must be true ---

    @invariant()
    def orders_are_obeyed_once_in_order_and_in_their_epoch(self) -> None:
        for agent in self.agents:
            for epoch, obeyed in agent.obeyed.items():
                assert obeyed == self.ordered[epoch][: len(obeyed)]

    @invariant()
    def reports_count_once_in_order_and_in_their_epoch(self) -> None:
        for epoch, received in self.received.items():
            assert received == self.reported.get(epoch, [])[: len(received)]

    @invariant()
    def an_epoch_has_one_agent(self) -> None:
        epochs = [agent.session.epoch for agent in self.agents if agent.session.epoch]
        assert len(epochs) == len(set(epochs))

    def teardown(self) -> None:
        """On a good network both are registered, and all that was ordered in this epoch is obeyed."""
        if sys.exc_info()[0] is not None:
            return  # the story of what went wrong is told already
        self.up.clear()
        self.down.clear()
        for _ in range(200):
            self.wait(1.0)
            self.exchange()
        for agent in self.agents:
            member = self.members.of_epoch(agent.session.epoch)
            assert member is not None, f"{agent.process} is not registered"
            assert member.hello.process == agent.process
            assert agent.obeyed.get(member.epoch, []) == self.ordered[member.epoch]
            assert self.received[member.epoch] == self.reported.get(member.epoch, [])

    def exchange(self) -> None:
        """All that there is to say is said and heard."""
        for _ in range(100):
            self.agent_speaks(0)
            self.agent_speaks(1)
            self.hub_speaks()
            if not self.up and not self.down:
                return
            while self.up:
                self.hub_hears(0)
            while self.down:
                self.agent_hears(0)


def test_whatever_happens_who_is_lost_does_not_work_and_orders_count_once() -> None:
    run_state_machine_as_test(Registration, settings=SETTINGS)


# ---- what was found so far, step by step


@pytest.fixture
def registration() -> Iterator[Registration]:
    machine = Registration()
    machine.exchange()
    yield machine
    for check in ("orders_are_obeyed_once_in_order_and_in_their_epoch", "an_epoch_has_one_agent", "teardown"):
        getattr(machine, check)()


def test_a_hello_that_was_overtaken_does_not_end_the_registration_that_holds(registration: Registration) -> None:
    """Found by the simulator: an agent was fenced and welcomed under a new name; then its first hello came again."""
    registration.restart(0)
    registration.agent_speaks(0)
    late = registration.up[-1]  # it is doubled on its way
    registration.exchange()
    registration.wait(31.0)
    registration.agent_speaks(0)  # its lease is over: it says hello under a new name
    registration.exchange()
    registration.to_hub(*late)


def test_what_waited_while_the_lease_ran_out_is_not_obeyed(registration: Registration) -> None:
    """Found by the simulator: an agent was stopped, and the first thing that it looked at was an order."""
    registration.order(0)
    registration.hub_speaks()
    registration.wait(31.0)
    while registration.down:
        registration.agent_hears(0)


def test_a_hub_that_stood_still_itself_loses_nobody(registration: Registration) -> None:
    """Found by the simulator: a hub was stopped, and took all agents for lost whose frames waited for it."""
    registration.now += 1000.0
    registration.look()
    assert len(list(registration.members)) == 2


@pytest.mark.usefixtures("small")
def test_a_frame_that_overtakes_makes_no_more_than_one_resending() -> None:
    """Found by the simulator: each frame that overtook another was answered with all that was not acknowledged."""
    machine = Conversation()
    for _ in range(8):
        machine.send(0, 1)
    say_all(machine)
    for _ in range(3):  # each but the first of the four frames makes a miss
        machine.hear(1)
        machine.speak(1)
    said = 0
    for _ in range(3):
        machine.hear(next(number for number, (side, _) in enumerate(machine.flying) if side == 0))
        before = len(machine.flying)
        say_all(machine)
        said += len(machine.flying) - before
    assert said <= 4, "the eight messages once more, in pairs"
    machine.teardown()


def say_all(machine: Conversation) -> None:
    count = -1
    while len(machine.flying) != count:
        count = len(machine.flying)
        machine.speak(0)
