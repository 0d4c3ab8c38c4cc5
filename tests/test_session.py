"""The agent's registration: hello until it is welcomed, signs of life, and the end of all when contact is lost."""

from __future__ import annotations

from typing import Any

import pytest

from worker_agent import codec, protocol
from worker_agent.protocol import Fence, Finished, Hello, Recall, Refuse, Welcome
from worker_agent.session import HELLO_AGAIN, NOTHING, REDIAL_PER_LEASE, AgentSession, Incoming

pytestmark = pytest.mark.shared

LEASE = 30.0
BEAT = LEASE / 6
DONE = Finished(7, 1, protocol.VALUE)
FENCED = Incoming([], fenced=True)


@pytest.fixture
def session() -> AgentSession:
    names = iter("abcdef")
    return AgentSession("session", make_hello, lambda: next(names))


def make_hello(name: str) -> Hello:
    return Hello(launch="l", process="p", name=name, host="node1", pid=1, python="3.12", pools=[])


def frame(*orders: Any, epoch: int = 1, first: int = 0, ack: int = 0, echo: float = 0.0) -> protocol.Orders:
    return protocol.Orders(protocol.PROTOCOL, "session", epoch, first, ack, False, echo, list(orders))


def said(session: AgentSession, now: float) -> list[protocol.Reports]:
    """All that it has to say now."""
    frames = []
    while (data := session.take(now)) is not None:
        frames.append(codec.decode_reports(data))
    return frames


def welcome(session: AgentSession, now: float = 0.0, *, name: str = "a", epoch: int = 1) -> Incoming:
    """It says hello and is welcomed, and has said that it is there."""
    said(session, now)
    incoming = session.receive(frame(Welcome(epoch, name, BEAT, LEASE), epoch=epoch, echo=now), now)
    said(session, now)
    return incoming


# ---- hello


def test_an_agent_says_hello_until_it_is_welcomed(session: AgentSession) -> None:
    (first,) = said(session, 10.0)
    assert (first.epoch, first.first, first.clock, first.messages) == (0, 0, 10.0, [make_hello("a")])
    assert said(session, 10.0 + HELLO_AGAIN - 0.1) == []
    assert session.due() == 10.0 + HELLO_AGAIN
    assert [each.messages for each in said(session, 10.0 + HELLO_AGAIN)] == [[make_hello("a")]]


def test_a_welcome_gives_it_its_epoch_and_it_speaks_at_once(session: AgentSession) -> None:
    said(session, 0.0)
    welcome = Welcome(4, "a", BEAT, LEASE)
    assert session.receive(frame(welcome, epoch=4), 1.0) == Incoming([welcome])
    assert session.epoch == 4
    assert [(each.epoch, each.messages) for each in said(session, 1.0)] == [(4, [])]


def test_a_welcome_for_another_name_or_a_second_one_is_nothing(session: AgentSession) -> None:
    assert session.receive(frame(Welcome(1, "z", BEAT, LEASE)), 0.0) == NOTHING
    welcome(session)
    assert session.receive(frame(Welcome(2, "a", BEAT, LEASE), epoch=2), 1.0) == NOTHING
    assert session.epoch == 1


def test_a_welcome_that_is_older_than_its_lease_is_nothing_and_the_next_one_counts(session: AgentSession) -> None:
    """The hub's machine slept: what it was told before is over, and the agent would be fenced with its first tasks."""
    said(session, 0.0)
    stale = frame(Welcome(1, "a", BEAT, LEASE), epoch=1, echo=0.0)
    assert session.receive(stale, LEASE) == NOTHING
    assert session.epoch == 0
    said(session, LEASE)
    assert session.receive(frame(Welcome(1, "a", BEAT, LEASE), epoch=1, echo=LEASE), LEASE + 1).orders
    assert session.epoch == 1


def test_a_refusal_is_handed_on_with_its_reason(session: AgentSession) -> None:
    assert session.receive(frame(Refuse("z", "no")), 0.0) == NOTHING
    assert session.receive(frame(Refuse("a", "no"), epoch=0), 0.0) == Incoming([], refused="no")
    welcome(session)
    assert session.receive(frame(Refuse("a", "no"), epoch=0), 0.0) == NOTHING


# ---- frames


def test_orders_of_its_epoch_count_once(session: AgentSession) -> None:
    welcome(session)
    orders = frame(Recall(1, 1), Recall(2, 1), first=1)
    assert session.receive(orders, 1.0) == Incoming([Recall(1, 1), Recall(2, 1)])
    assert session.receive(orders, 1.0) == NOTHING


def test_frames_of_another_epoch_or_session_are_nothing(session: AgentSession) -> None:
    assert session.receive(frame(Recall(1, 1), epoch=0, first=1), 0.0) == NOTHING
    welcome(session)
    assert session.receive(frame(Recall(1, 1), epoch=2, first=1), 1.0) == NOTHING
    other = protocol.Orders(protocol.PROTOCOL, "another", 1, 1, 0, False, 0.0, [Recall(1, 1)])
    assert session.receive(other, 1.0) == NOTHING


def test_reports_are_kept_until_the_hub_has_them(session: AgentSession) -> None:
    session.report(DONE)
    welcome(session)
    assert not session.said_all
    session.receive(frame(ack=1), 1.0)
    assert session.said_all


def test_who_has_nothing_to_say_says_so_several_times_in_a_lease(session: AgentSession) -> None:
    welcome(session)
    assert session.due() == BEAT
    assert said(session, BEAT - 0.1) == []
    assert [each.messages for each in said(session, BEAT)] == [[]]


# ---- the lease


def test_the_lease_counts_from_what_the_hub_has_heard_not_from_when_it_says_so(session: AgentSession) -> None:
    welcome(session, 0.0)
    assert session.receive(frame(echo=5.0), 25.0) == NOTHING
    assert session.tick(5.0 + LEASE - 0.1) == NOTHING
    assert session.tick(5.0 + LEASE) == FENCED


def test_an_older_echo_does_not_shorten_the_lease(session: AgentSession) -> None:
    welcome(session, 0.0)
    session.receive(frame(echo=20.0), 21.0)
    session.receive(frame(echo=10.0), 22.0)
    assert session.tick(20.0 + LEASE - 0.1) == NOTHING


def test_after_its_lease_it_is_fenced_once_and_says_hello_under_a_new_name(session: AgentSession) -> None:
    session.report(DONE)
    welcome(session, 0.0)
    assert session.tick(LEASE) == FENCED
    assert session.tick(LEASE) == NOTHING
    assert session.epoch == 0
    assert session.said_all
    assert [each.messages for each in said(session, LEASE)] == [[make_hello("b")]]


def test_what_waited_while_the_lease_ran_out_is_not_obeyed(session: AgentSession) -> None:
    """Found by the simulator: an agent was stopped, and went on after its tasks had been given to others.

    The first thing that it looked at was an order to run a task, which had waited for it: two attempts ran.
    """
    welcome(session, 0.0)
    assert session.receive(frame(Recall(1, 1), first=1, echo=29.0), LEASE + 1.0) == FENCED
    assert [each.messages for each in said(session, LEASE + 1.0)] == [[make_hello("b")]]


def test_a_fence_of_its_epoch_ends_it_and_no_other_does(session: AgentSession) -> None:
    assert session.receive(frame(Fence(0), epoch=0), 0.0) == NOTHING
    welcome(session)
    assert session.receive(frame(Fence(2), epoch=0), 1.0) == NOTHING
    assert session.receive(frame(Fence(1), epoch=0), 1.0) == FENCED
    assert session.receive(frame(Fence(1), epoch=0), 1.0) == NOTHING


def test_without_a_lease_it_goes_on_and_shows_that_it_lives(session: AgentSession) -> None:
    said(session, 0.0)
    session.receive(frame(Welcome(1, "a", BEAT, None)), 0.0)
    said(session, 0.0)
    assert session.due() == BEAT
    assert session.tick(1e9) == NOTHING


# ---- a connection that has died


def test_who_hears_nothing_dials_again_before_the_lease_ends_and_again(session: AgentSession) -> None:
    welcome(session)
    half = LEASE * REDIAL_PER_LEASE
    assert [session.should_dial(now) for now in (half - 0.1, half, half + 0.1)] == [False, True, False]
    assert session.tick(LEASE).fenced
    assert [session.should_dial(now) for now in (2 * half, 2 * half + 0.1, 3 * half)] == [True, False, True]


def test_who_hears_something_does_not_dial(session: AgentSession) -> None:
    welcome(session)
    session.receive(frame(ack=0), 10.0)
    assert not session.should_dial(10.0 + LEASE * REDIAL_PER_LEASE - 0.1)


def test_who_was_never_welcomed_or_has_no_lease_does_not_dial(session: AgentSession) -> None:
    said(session, 0.0)
    assert not session.should_dial(100.0)
    session.receive(frame(Welcome(1, "a", BEAT, None), echo=0.0), 100.0)
    assert not session.should_dial(1000.0)


def test_what_was_said_while_nothing_was_heard_is_said_again_at_once(session: AgentSession) -> None:
    """Otherwise a result would wait until its time to be sent again, which doubles each time, has come."""
    welcome(session)
    session.report(DONE)
    assert [each.messages for each in said(session, 1.0)] == [[DONE]]
    assert session.should_dial(LEASE * REDIAL_PER_LEASE)
    session.receive(frame(echo=16.0), 16.0)
    assert [each.messages for each in said(session, 16.0)] == [[DONE]]
