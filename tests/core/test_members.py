"""The hub's register of agents: who belongs to it, in which epoch, and since when it has been silent."""

from __future__ import annotations

from typing import Any

import pytest

from executor.core.members import LEASE, PATIENCE_PER_LEASE, Member, Members
from executor.core.model import WorkerId
from worker_agent import codec, protocol
from worker_agent.link import RESEND_AFTER
from worker_agent.protocol import Fence, Finished, Hello, Recall, Refuse, Welcome

pytestmark = pytest.mark.shared

PATIENCE = PATIENCE_PER_LEASE * LEASE
W1, W2 = WorkerId(1), WorkerId(2)
DONE = Finished(7, 1, protocol.VALUE)


@pytest.fixture
def members() -> Members:
    return Members("session")


def make_hello(name: str = "a", process: str = "p") -> Hello:
    return Hello(launch="l", process=process, name=name, host="node1", pid=1, python="3.12", pools=[])


def join(members: Members, name: str = "a", *, process: str = "p", clock: float = 100.0, now: float = 0.0) -> Member:
    return members.join(make_hello(name, process), W1, "route", clock, now, leased=True)[0]


def frame(epoch: int, *reports: Any, first: int = 1, clock: float = 100.0, ack: int = 0) -> protocol.Reports:
    number = first if reports else 0
    return protocol.Reports(protocol.PROTOCOL, "session", epoch, number, ack, False, clock, list(reports))


def taken(members: Members, member: Member, now: float) -> protocol.Orders:
    data = members.take(member, now)
    assert data is not None
    return codec.decode_orders(data)


# ---- joining


def test_who_joins_is_welcomed_with_an_epoch_and_a_lease(members: Members) -> None:
    member, welcome = members.join(make_hello(), W1, "route", 100.0, 0.0, leased=True)
    orders = codec.decode_orders(welcome)
    assert (orders.session, orders.epoch, orders.first, orders.echo) == ("session", 1, 0, 100.0)
    assert orders.messages == [Welcome(1, "a", LEASE / 6, LEASE)]
    assert members.named("a") is member
    assert members.of_process("p") is member
    assert list(members) == [member]


def test_who_needs_no_lease_gets_none(members: Members) -> None:
    _, welcome = members.join(make_hello(), W1, "route", 100.0, 0.0, leased=False)
    assert codec.decode_orders(welcome).messages == [Welcome(1, "a", LEASE / 6, None)]


def test_a_hello_that_is_repeated_is_a_sign_of_life_and_its_time_is_echoed(members: Members) -> None:
    member = join(members, clock=100.0, now=0.0)
    frame = codec.decode_orders(members.welcome_again(member, 140.0, 40.0, leased=True))
    assert (frame.epoch, frame.echo, member.heard) == (member.epoch, 140.0, 40.0)
    members.welcome_again(member, 120.0, 41.0, leased=True)  # a copy that was late
    assert member.echo == 140.0


def test_epochs_are_never_given_twice(members: Members) -> None:
    first = join(members)
    members.remove(first)
    assert join(members).epoch == 2


def test_refusals_and_fences_say_whom_they_mean(members: Members) -> None:
    assert codec.decode_orders(members.refuse("a", "no")).messages == [Refuse("a", "no")]
    assert codec.decode_orders(members.fence(3)).messages == [Fence(3)]


def test_the_hub_waits_longer_than_the_lease_that_it_gives() -> None:
    members = Members("session", lease=4.0)
    member = join(members)
    [welcome] = codec.decode_orders(members.welcome(member, leased=True)).messages
    assert isinstance(welcome, protocol.Welcome)
    assert (welcome.lease, member.patience) == (4.0, 6.0)


def test_an_agent_of_this_machine_has_no_lease_and_a_patience_that_no_lease_shortens() -> None:
    members = Members("session", lease=1.0)
    member, _ = members.join(make_hello(), W1, "route", 100.0, 0.0, leased=False)
    [welcome] = codec.decode_orders(members.welcome(member, leased=False)).messages
    assert isinstance(welcome, protocol.Welcome)
    assert (welcome.lease, member.patience) == (None, 45.0)


# ---- late hellos


def test_a_hello_that_was_overtaken_by_its_process_s_next_is_late(members: Members) -> None:
    """Found by the simulator: an agent said hello as "a", was fenced, said hello as "b" and was welcomed; then a hello
    of "a" arrived that the network had kept. "b" was taken for lost while it ran tasks, which were started elsewhere.
    """
    members.remove(join(members, "a", clock=100.0))
    join(members, "b", clock=140.0)
    assert members.is_late(make_hello("a"), 102.0)
    assert members.is_late(make_hello("a"), 140.0)


def test_a_hello_that_its_process_said_last_is_not_late(members: Members) -> None:
    assert not members.is_late(make_hello("a"), 100.0)
    join(members, "a", clock=100.0)
    assert not members.is_late(make_hello("b"), 140.0)
    assert not members.is_late(make_hello("c", process="q"), 1.0)


def test_a_hello_that_is_said_again_is_not_late(members: Members) -> None:
    join(members, "a", clock=100.0)
    assert not members.is_late(make_hello("a"), 90.0)


# ---- frames


def test_reports_of_the_current_epoch_count_once(members: Members) -> None:
    member = join(members)
    assert members.receive(frame(1, DONE), "route", 1.0) == (member, [DONE])
    assert members.receive(frame(1, DONE), "route", 2.0) == (member, [])
    assert member.heard == 2.0


def test_frames_of_an_epoch_that_is_over_are_nobody_s(members: Members) -> None:
    member = join(members)
    members.remove(member)
    join(members, "b")
    assert members.receive(frame(1, DONE), "route", 1.0) == (None, [])


def test_frames_of_another_session_are_nobody_s() -> None:
    other = Members("other session")
    member = join(other)
    assert other.receive(frame(member.epoch, DONE), "route", 1.0) == (None, [])
    assert member.heard == 0.0


def test_a_sign_of_life_is_answered_at_once_with_its_time(members: Members) -> None:
    member = join(members)
    members.receive(frame(1, clock=105.0), "route", 5.0)
    answer = taken(members, member, 5.0)
    assert (answer.epoch, answer.first, answer.echo, answer.messages) == (1, 0, 105.0, [])
    assert members.take(member, 5.0) is None


def test_the_echo_is_the_newest_time_that_arrived(members: Members) -> None:
    member = join(members)
    members.receive(frame(1, clock=110.0), "route", 5.0)
    members.receive(frame(1, clock=105.0), "route", 6.0)
    assert taken(members, member, 6.0).echo == 110.0


def test_to_who_connects_anew_all_is_sent_again_that_it_has_not_acknowledged(members: Members) -> None:
    member = join(members)
    member.link.send(Recall(1, 1))
    member.link.send(Recall(2, 1))
    assert taken(members, member, 0.0).messages == [Recall(1, 1), Recall(2, 1)]
    members.receive(frame(1, ack=1), "another route", 1.0)
    assert member.route == "another route"
    assert (again := taken(members, member, 1.0)).first == 2
    assert again.messages == [Recall(2, 1)]


# ---- silence


def test_who_is_silent_is_known_after_the_patience(members: Members) -> None:
    first, second = join(members, "a"), join(members, "b", process="q", now=10.0)
    ask(members, PATIENCE - 0.1)
    assert members.silent(PATIENCE) == [first]
    members.receive(frame(first.epoch), "route", 20.0)
    assert members.silent(PATIENCE + 10.0) == [second]


def test_a_hub_that_stood_still_itself_takes_nobody_for_lost(members: Members) -> None:
    """Ctrl-Z, a machine that was suspended: what they have said is still on its way."""
    member = join(members)
    ask(members, 20.0)
    assert members.silent(1000.0) == []
    ask(members, 1000.0 + PATIENCE - 0.1, since=1000.0)
    assert members.silent(1000.0 + PATIENCE) == [member]


def ask(members: Members, until: float, since: float = 0.0) -> None:
    """Nobody is silent, as often as the hub looks."""
    now = since
    while now < until:
        assert members.silent(now) == []
        now = min(members.due() or until, until)
    assert members.silent(until) == []


def test_who_is_removed_is_forgotten(members: Members) -> None:
    member = join(members)
    members.remove(member)
    members.remove(member)
    assert (list(members), members.named("a"), members.of_process("p")) == ([], None, None)
    assert members.due() is None


def test_the_next_look_is_due_when_somebody_may_be_lost_or_something_is_to_be_sent_again(members: Members) -> None:
    member = join(members)
    ask(members, PATIENCE - 1.0)
    assert members.due() == PATIENCE
    member.link.send(Recall(1, 1))
    taken(members, member, PATIENCE - 3.0)
    assert members.due() == PATIENCE - 3.0 + RESEND_AFTER
