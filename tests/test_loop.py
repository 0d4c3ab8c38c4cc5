"""The agent's event loop, with pipes that are real and a clock that is not."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator

import pytest

from worker_agent import loop as module
from worker_agent.loop import Loop

Pipe = tuple[int, int]


class Clock:
    """Time goes on when the test says so, and when the loop waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def loop(clock: Clock) -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def make_pipe() -> Iterator[Callable[[], Pipe]]:
    made: list[int] = []

    def make() -> Pipe:
        made.extend(os.pipe())
        return made[-2], made[-1]

    yield make
    for fd in made:
        os.close(fd)


@pytest.fixture
def calls() -> list[str]:
    """What was called, in its order."""
    return []


# ---- descriptors


def test_an_action_is_called_when_its_descriptor_is_readable(
    loop: Loop, make_pipe: Callable[[], Pipe], calls: list[str]
) -> None:
    (quiet, _), (read, write) = make_pipe(), make_pipe()
    loop.watch(quiet, lambda: calls.append("quiet"))
    loop.watch(read, lambda: calls.append(os.read(read, 100).decode()))
    loop.run_once(wait=False)
    assert calls == []
    os.write(write, b"news")
    loop.run_once()
    assert calls == ["news"]
    loop.run_once(wait=False)
    assert calls == ["news"]


def test_an_action_is_called_again_as_long_as_something_is_to_be_read(
    loop: Loop, make_pipe: Callable[[], Pipe], calls: list[str]
) -> None:
    read, write = make_pipe()
    loop.watch(read, lambda: calls.append(os.read(read, 1).decode()))
    os.write(write, b"ab")
    loop.run_once()
    loop.run_once()
    assert calls == ["a", "b"]


def test_the_end_of_the_writers_is_an_event(loop: Loop, calls: list[str]) -> None:
    read, write = os.pipe()
    loop.watch(read, lambda: calls.append("ready"))
    os.close(write)
    loop.run_once()
    assert calls == ["ready"]
    loop.unwatch(read)
    os.close(read)


def test_a_descriptor_can_be_watched_for_room_to_write(
    loop: Loop, make_pipe: Callable[[], Pipe], calls: list[str]
) -> None:
    _, write = make_pipe()
    loop.watch(write, lambda: calls.append("room"), select.EPOLLOUT)
    loop.run_once()
    assert calls == ["room"]


def test_what_is_not_watched_any_more_is_not_called(
    loop: Loop, make_pipe: Callable[[], Pipe], calls: list[str]
) -> None:
    read, write = make_pipe()
    loop.watch(read, lambda: calls.append("read"))
    os.write(write, b"x")
    loop.unwatch(read)
    loop.unwatch(read)
    loop.run_once(wait=False)
    assert calls == []
    loop.watch(read, lambda: calls.append("again"))
    loop.run_once()
    assert calls == ["again"]


def test_an_action_can_stop_another_that_is_ready_in_the_same_round(
    loop: Loop, make_pipe: Callable[[], Pipe], calls: list[str]
) -> None:
    pipes = [make_pipe(), make_pipe()]

    def call(own: int) -> None:
        calls.append("one of them")
        for read, _ in pipes:
            loop.unwatch(read)

    for read, write in pipes:
        loop.watch(read, lambda own=read: call(own))
        os.write(write, b"x")
    loop.run_once()
    assert calls == ["one of them"]


def test_all_that_is_ready_is_called_in_one_round(loop: Loop, make_pipe: Callable[[], Pipe], calls: list[str]) -> None:
    for name in "abc":
        read, write = make_pipe()
        loop.watch(read, lambda name=name: calls.append(name))
        os.write(write, b"x")
    loop.run_once()
    assert sorted(calls) == ["a", "b", "c"]


# ---- timers


def test_a_timer_is_called_once_when_its_time_has_come(loop: Loop, clock: Clock, calls: list[str]) -> None:
    loop.call_in(5.0, lambda: calls.append("now"))
    clock.now += 4.999
    loop.run_once(wait=False)
    assert calls == []
    clock.now += 0.001
    loop.run_once(wait=False)
    loop.run_once(wait=False)
    assert calls == ["now"]


def test_timers_are_called_in_the_order_of_their_times_and_then_of_their_making(
    loop: Loop, clock: Clock, calls: list[str]
) -> None:
    for name, seconds in (("c", 3.0), ("a", 1.0), ("b1", 2.0), ("b2", 2.0), ("later", 99.0)):
        loop.call_in(seconds, lambda name=name: calls.append(name))
    clock.now += 10
    loop.run_once(wait=False)
    assert calls == ["a", "b1", "b2", "c"]


def test_a_timer_that_was_cancelled_is_not_called(loop: Loop, clock: Clock, calls: list[str]) -> None:
    timer = loop.call_in(1.0, lambda: calls.append("cancelled"))
    timer.cancel()
    timer.cancel()
    clock.now += 2
    loop.run_once(wait=False)
    assert calls == []


def test_a_timer_can_cancel_another_that_is_due(loop: Loop, clock: Clock, calls: list[str]) -> None:
    loop.call_in(1.0, lambda: second.cancel())
    second = loop.call_in(1.0, lambda: calls.append("second"))
    clock.now += 2
    loop.run_once(wait=False)
    assert calls == []


def test_a_timer_made_by_a_timer_is_called_when_it_is_due(loop: Loop, clock: Clock, calls: list[str]) -> None:
    loop.call_in(1.0, lambda: loop.call_in(1.0, lambda: calls.append("second")))
    clock.now += 1
    loop.run_once(wait=False)
    clock.now += 0.5
    loop.run_once(wait=False)
    assert calls == []
    clock.now += 0.5
    loop.run_once(wait=False)
    assert calls == ["second"]


def test_descriptors_go_before_timers(
    loop: Loop, clock: Clock, make_pipe: Callable[[], Pipe], calls: list[str]
) -> None:
    """What a task said before its time was over counts."""
    read, write = make_pipe()
    loop.watch(read, lambda: calls.append("report"))
    loop.call_in(1.0, lambda: calls.append("time limit"))
    clock.now += 1
    os.write(write, b"x")
    loop.run_once()
    assert calls == ["report", "time limit"]


# ---- how long it waits


class Epoll:
    """An epoll that never has anything, and notes how long it was to wait."""

    def __init__(self, clock: Clock) -> None:
        self.waits: list[float] = []
        self._clock = clock

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        self.waits.append(timeout)
        self._clock.now += timeout
        return []

    def close(self) -> None:
        pass


class Select:
    """In place of the module ``select``."""

    def __init__(self, epoll: Epoll) -> None:
        self.epoll = lambda: epoll


@pytest.fixture
def epoll(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Epoll:
    epoll = Epoll(clock)
    monkeypatch.setattr(module, "select", Select(epoll))
    return epoll


def test_it_waits_until_the_next_timer_and_calls_it(clock: Clock, epoll: Epoll, calls: list[str]) -> None:
    loop = Loop()
    loop.call_in(7.0, lambda: calls.append("late"))
    loop.call_in(2.0, lambda: calls.append("early"))
    loop.run_once()
    assert (calls, epoll.waits) == (["early"], [2.0])
    loop.run_once()
    assert (calls, epoll.waits) == (["early", "late"], [2.0, 5.0])


def test_it_does_not_wait_for_timers_that_were_cancelled(clock: Clock, epoll: Epoll, calls: list[str]) -> None:
    loop = Loop()
    for seconds in (1.0, 2.0):
        loop.call_in(seconds, lambda: calls.append("cancelled")).cancel()
    loop.call_in(3.0, lambda: calls.append("due"))
    loop.run_once()
    assert (calls, epoll.waits) == (["due"], [3.0])


def test_it_does_not_wait_for_what_is_overdue(clock: Clock, epoll: Epoll) -> None:
    loop = Loop()
    loop.call_in(1.0, lambda: None)
    clock.now += 5
    loop.run_once()
    assert epoll.waits == [0.0]


def test_it_does_not_wait_if_told_so(epoll: Epoll) -> None:
    loop = Loop()
    loop.call_in(5.0, lambda: None)
    loop.run_once(wait=False)
    assert epoll.waits == [0]


def test_without_timers_it_waits_very_long(epoll: Epoll) -> None:
    Loop().run_once()
    assert epoll.waits == [3600.0]


def test_it_is_closed_with_its_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    loop = Loop()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    loop.close()
    assert len(os.listdir("/proc/self/fd")) == before
