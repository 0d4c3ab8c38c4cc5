"""Event callbacks of futures: what they are told, in which order, on which threads; and what they cost who has none."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import PATIENCE, parent_of

from executor import CAPTURE, Event, HPCExecutor, Program, TaskKilled
from executor.calls import Request
from executor.delivery import CANCELLED, deliver, settle_at_once
from executor.events import EVENTS
from executor.future import TaskFuture
from executor.options import TaskOptions
from worker_agent import bodies, protocol
from worker_agent.protocol import COMPLETED, ERROR, EXITED, KILLED, TIMED_OUT, VALUE, Finished, Output, Started, Tail

pytestmark = pytest.mark.shared

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Hub:
    """What a future asks of the hub; news wait until they are delivered, as those of the hub do."""

    def __init__(self) -> None:
        prepare = protocol.Prepare(environment=1, python=["p"], start="fork", max_tasks=1, cwd="/", path=[], env={})
        self.future = TaskFuture(1, "fit", 10.0)
        self.future._control = self
        self.request = Request(self.future, TaskOptions(stdout=CAPTURE, stderr=CAPTURE), None, prepare)
        self.news: list[Any] = []

    def tell(self, task_id: int, news: Any) -> None:
        assert task_id == 1
        self.news.append(news)

    def deliver(self, *news: Any) -> None:
        """What waits, and this after it."""
        for each in [*self.news, *news]:
            deliver(self.request, each)
        self.news.clear()

    def withdraw(self, task_id: int) -> None:
        pass

    def kill(self, task_id: int, number: int, grace: float | None) -> None:
        pass


class Seen:
    """A callback that notes what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.threads: set[str] = set()

    def __call__(self, future: TaskFuture, event: Event) -> None:
        self.events.append(event)
        self.threads.add(threading.current_thread().name)

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]

    def times_apart(self) -> list[Event]:
        """Without the times."""
        return [Event(e.name, None, e.attempt, e.text, e.stream, e.host, e.pid) for e in self.events]


def value(attempt: int = 1, **rest: Any) -> Finished:
    return Finished(1, attempt, VALUE, b"\0\x80\x05K\x01.", pid=7, started=11.0, ended=12.0, **rest)


def watched(name: str | None = None) -> tuple[Hub, Seen]:
    hub, seen = Hub(), Seen()
    hub.future.add_event_callback(name, seen)
    return hub, seen


# ---- what is told, by values


def test_events_are_told_as_they_come() -> None:
    hub, seen = watched()
    assert hub.future.claim(1, "node7")
    hub.deliver(Started(1, 1, 7, 11.0), Output(1, 1, 1, b"hello\n"), Output(1, 1, 2, b"oh\n"), value())
    assert seen.times_apart() == [
        Event("submitted", None, 0), Event("assigned", None, 1, host="node7"), Event("started", None, 1, pid=7),
        Event("output", None, 1, "hello\n", "stdout"), Event("output", None, 1, "oh\n", "stderr"),
        Event("ended", None, 1, "finished"),
    ]  # fmt: skip
    times = {event.name: event.time for event in seen.events}
    assert (times["submitted"], times["started"], times["ended"]) == (10.0, 11.0, 12.0)
    assert times["assigned"] is not None
    assert times["output"] is not None


def test_what_is_over_is_told_to_a_late_callback_from_what_the_future_knows() -> None:
    hub, seen = Hub(), Seen()
    assert hub.future.claim(1, "node7")
    hub.deliver(Started(1, 1, 7, 11.0), Output(1, 1, 1, b"hel"), Output(1, 1, 1, b"lo\n"))
    hub.deliver(value(stdout=Tail(b"the end\n", omitted=5)))
    hub.future.add_event_callback("*", seen)
    assert seen.events == [
        Event("submitted", 10.0, 0), Event("assigned", None, 1, host="node7"), Event("started", 11.0, 1, pid=7),
        Event("output", None, 1, "hello\n", "stdout"),
        Event("output", None, 1, "\n[... 5 bytes left out ...]\n", "stdout"),
        Event("output", None, 1, "the end\n", "stdout"), Event("ended", 12.0, 1, "finished"),
    ]  # fmt: skip
    assert seen.threads == {threading.current_thread().name}


def test_a_start_that_comes_with_the_end_only_is_told_before_it() -> None:
    hub, seen = watched()
    hub.future.claim(1, "node7")
    hub.deliver(value())
    assert seen.names == ["submitted", "assigned", "started", "ended"]


@pytest.mark.parametrize("name", EVENTS)
def test_a_callback_hears_of_the_event_that_it_was_added_for_only(name: str) -> None:
    hub, seen = watched(name)
    hub.future.claim(1, "node7")
    hub.deliver(Started(1, 1, 7, 11.0), Output(1, 1, 1, b"x"))
    hub.future.unclaim("its agent was lost")
    hub.future.claim(2, "node8")
    hub.deliver(value(2))
    assert set(seen.names) == {name}
    late = Seen()
    hub.future.add_event_callback(name, late)
    assert late.events == seen.events


@pytest.mark.parametrize(
    ("cause", "why"),
    [
        ("agent 3 was lost", "agent 3 was lost"),
        (Finished(1, 1, ERROR), "it raised an exception"),
        (Finished(1, 1, TIMED_OUT, returncode=-15), "it ran longer than its time limit"),
        (Finished(1, 1, protocol.OUT_OF_MEMORY, returncode=-9), "it ran out of memory"),
        (Finished(1, 1, protocol.NOT_STARTED, returncode=2), "it could not be started"),
        (Finished(1, 1, EXITED, returncode=-11), "signal 11"),
        (Finished(1, 1, COMPLETED, returncode=3), "exit status 3"),
    ],
)
def test_a_retry_is_told_with_its_reason(cause: Any, why: str) -> None:
    hub, seen = watched("retried")
    hub.future.claim(1, "node7")
    hub.future.unclaim(cause)
    hub.deliver()
    assert [(event.attempt, event.text) for event in seen.events] == [(1, why)]


def test_an_attempt_that_is_tried_again_at_once_is_told_whole() -> None:
    """The future itself is at the second attempt when the news of the first one are delivered, and drops them."""
    hub, seen = watched()
    hub.future.claim(1, "node7")
    hub.news += [Started(1, 1, 7, 11.0), Output(1, 1, 1, b"first\n")]
    hub.future.unclaim(Finished(1, 1, ERROR, started=11.0, ended=12.0, stdout=Tail(b"last words\n")))
    hub.future.claim(2, "node8")
    hub.deliver(value(2))
    assert [(event.name, event.attempt, event.text) for event in seen.events] == [
        ("submitted", 0, ""), ("assigned", 1, ""), ("started", 1, ""), ("output", 1, "first\n"),
        ("output", 1, "last words\n"), ("retried", 1, "it raised an exception"), ("assigned", 2, ""),
        ("started", 2, ""), ("ended", 2, "finished"),
    ]  # fmt: skip
    assert hub.future.stdout == ""


def test_a_first_callback_is_not_told_of_earlier_attempts() -> None:
    """Nobody has noted them. News of them that are still on their way do not come in between either."""
    hub, seen = Hub(), Seen()
    hub.future.claim(1, "node7")
    hub.future.unclaim("its agent was lost")
    hub.future.add_event_callback(None, seen)
    assert seen.names == ["submitted"]
    hub.deliver(Started(1, 1, 7, 11.0), Output(1, 1, 1, b"late"))
    hub.future.claim(2, "node8")
    hub.deliver()
    assert [(event.name, event.attempt) for event in seen.events] == [("submitted", 0), ("assigned", 2)]


@pytest.mark.parametrize(
    ("news", "how"),
    [(Finished(1, 1, KILLED, returncode=-15), "failed"), (ValueError("broken"), "failed"), (value(), "finished")],
)
def test_the_end_tells_how(news: Any, how: str) -> None:
    hub, seen = watched("ended")
    hub.future.claim(1, "node7")
    hub.deliver(news)
    assert [event.text for event in seen.events] == [how]
    assert seen.events[0].time is not None


def test_a_cancel_is_an_end_and_nothing_comes_after_it() -> None:
    hub, seen = watched()
    hub.future.claim(1, "node7")
    assert hub.future.cancel(kill=True)
    hub.deliver(Started(1, 1, 7, 11.0), Output(1, 1, 1, b"late"), Finished(1, 1, KILLED))
    assert [(event.name, event.text) for event in seen.events] == [("submitted", ""), ("ended", "cancelled")]


def test_a_task_that_the_hub_cancels_has_ended() -> None:
    hub, seen = watched("ended")
    assert hub.future.mark_cancelled()
    assert seen.events == []
    hub.deliver(CANCELLED)
    assert [event.text for event in seen.events] == ["cancelled"]


def test_a_letter_that_comes_in_two_pieces_is_one_and_half_a_letter_at_the_end_is_told() -> None:
    hub, seen = watched("output")
    hub.future.claim(1, "node7")
    data = "é".encode()
    hub.deliver(Output(1, 1, 1, b"a" + data[:1]), Output(1, 1, 1, data[1:]), Output(1, 1, 1, data[:1]), value())
    assert [event.text for event in seen.events] == ["a", "é", "�"]


# ---- names and functions


def test_an_unknown_name_is_refused_with_the_right_one() -> None:
    with pytest.raises(ValueError, match=r"event='start': expected one of 'submitted', .*; did you mean 'started'\?"):
        TaskFuture(1, "fit", 0.0).add_event_callback("start", print)


@pytest.mark.parametrize(("event", "fn"), [(1, print), (b"started", print), ("started", None), (None, "print")])
def test_what_is_no_name_and_what_cannot_be_called_is_refused(event: Any, fn: Any) -> None:
    future = TaskFuture(1, "fit", 0.0)
    with pytest.raises(TypeError, match="expected"):
        future.add_event_callback(event, fn)
    assert future._watch is None


# ---- what callbacks may do


def test_what_a_callback_raises_is_logged_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    hub, seen = Hub(), Seen()
    with caplog.at_level(logging.ERROR, "concurrent.futures"):
        hub.future.add_event_callback(None, lambda future, event: 1 / 0)
        hub.future.add_event_callback(None, seen)
        hub.future.claim(1, "node7")
        hub.deliver(value())
    assert seen.names == ["submitted", "assigned", "started", "ended"]
    assert len(caplog.records) == 4
    assert hub.future.result(0) == 1


def test_a_callback_that_exits_keeps_nobody_from_the_result() -> None:
    hub, seen = Hub(), Seen()

    def leave(future: TaskFuture, event: Event) -> None:
        if event.name != "submitted":
            raise SystemExit(3)

    hub.future.add_event_callback(None, leave)
    hub.future.add_event_callback(None, seen)
    hub.future.claim(1, "node7")
    hub.deliver(Started(1, 1, 7, 11.0), value())
    assert seen.names == ["submitted", "assigned", "started", "ended"]
    assert hub.future.result(0) == 1


def test_a_callback_that_is_added_in_a_callback_is_told_all_after_it() -> None:
    hub, seen = Hub(), Seen()
    told_meanwhile: list[int] = []

    def add(future: TaskFuture, event: Event) -> None:
        future.add_event_callback("*", seen)
        told_meanwhile.append(len(seen.events))

    hub.future.add_event_callback("submitted", add)
    assert told_meanwhile == [0]
    assert seen.names == ["submitted"]


def test_callbacks_are_called_one_at_a_time_though_threads_are_many() -> None:
    """What comes while one is being called is told by its thread, when it returns; the other thread does not wait."""
    hub, seen, called, may_return = Hub(), Seen(), threading.Event(), threading.Event()

    def hold(future: TaskFuture, event: Event) -> None:
        called.set()
        assert may_return.wait(PATIENCE)

    hub.future.add_event_callback("assigned", hold)
    hub.future.add_event_callback("*", seen)
    hub.future.claim(1, "node7")
    holding = threading.Thread(target=hub.deliver, name="holding")
    holding.start()
    assert called.wait(PATIENCE)
    deliver(hub.request, value())
    assert hub.future.result(0) == 1
    assert seen.names == ["submitted"]
    may_return.set()
    holding.join(PATIENCE)
    assert seen.names == ["submitted", "assigned", "started", "ended"]
    assert seen.threads == {threading.current_thread().name, "holding"}


@settings(derandomize=True, database=None, deadline=None)
@given(st.data())
def test_all_callbacks_are_told_the_same_whenever_they_come(data: st.DataObject) -> None:
    """Once there is one, whatever happens: each event once, the submit first, the end last, attempts in order."""
    hub, callbacks = watched()[0], [Seen()]
    hub.future.add_event_callback(None, callbacks[0])
    for attempt in range(1, data.draw(st.integers(1, 4)) + 1):
        hub.future.claim(attempt, f"node{attempt}")
        steps: list[Any] = [Started(1, attempt, attempt, 1.0)] * data.draw(st.integers(0, 1))
        steps += [Output(1, attempt, 1 + number % 2, b"%d" % number) for number in range(data.draw(st.integers(0, 3)))]
        for news in steps:
            hub.news.append(news)
            if data.draw(st.booleans()):
                hub.deliver()
            if data.draw(st.booleans()):
                callbacks.append(Seen())
                hub.future.add_event_callback("*", callbacks[-1])
        last = Finished(1, attempt, ERROR, started=1.0, ended=2.0, pid=attempt)
        hub.future.unclaim(data.draw(st.sampled_from([last, "lost"])))
    ends = [CANCELLED] if data.draw(st.booleans()) and hub.future.mark_cancelled() else [ValueError("the end")]
    hub.deliver(*ends)
    told = callbacks[0].events
    assert all(each.events == told for each in callbacks)
    assert [told[0].name, told[-1].name] == ["submitted", "ended"]
    assert len({(event.name, event.attempt) for event in told if event.name == "started"}) == len(
        [event for event in told if event.name == "started"]
    )
    assert all(one.attempt <= other.attempt for one, other in itertools.pairwise(told))


# ---- what it costs


def test_a_future_without_event_callbacks_has_nothing_of_them() -> None:
    """Nor is anything told to the hub for it, though it is waited for."""
    hub = Hub()
    hub.future.add_done_callback(lambda _: None)
    hub.future.claim(1, "node7")
    hub.deliver(Started(1, 1, 7, 11.0), Output(1, 1, 1, b"x"))
    hub.future.unclaim("lost")
    hub.future.claim(2, "node7")
    assert hub.news == []
    hub.deliver(value(2))
    assert not [name for name in vars(hub.future) if "watch" in name or "event" in name]


def test_a_future_with_event_callbacks_is_left_to_the_delivery_threads() -> None:
    hub, seen = watched("ended")
    hub.future.claim(1, "node7")
    plain = Finished(1, 1, VALUE, bodies.dump_value(1, [])[1], pid=7, started=11.0, ended=12.0)
    assert not settle_at_once(hub.request, plain)
    assert seen.events == []
    assert settle_at_once(Hub().request, plain)


# ---- in a real executor


def pass_gate(arrivals: str, tokens: str) -> int:
    """Say by the pid that the task has started, wait for a token. See ``Gate`` in conftest.py."""
    with open(arrivals, "wb", buffering=0) as entry:
        entry.write(b"%d\n" % os.getpid())
    with open(tokens, "rb", buffering=0) as gate:
        gate.read(1)
    return os.getpid()


class Ended(Seen):
    """As Seen; it can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()

    def __call__(self, future: TaskFuture, event: Event) -> None:
        super().__call__(future, event)
        if event.name == "ended":
            self.over.set()

    def wait(self) -> list[Event]:
        assert self.over.wait(PATIENCE / 2)
        return self.events


def fail_twice(path: str) -> int:
    with open(path, "a") as file:
        file.write("x")
        attempt = file.tell()
    print("attempt", attempt, flush=True)
    if attempt < 3:
        raise LookupError(attempt)
    return attempt


@pytest.mark.parametrize("kept", [1, None])
def test_the_events_of_a_task_that_is_tried_three_times(make: Callable[..., HPCExecutor], tmp_path: Path, kept: Any):
    executor = make(1, max_tasks_per_child=kept)
    future = executor.options(retries=2, stdout=CAPTURE).submit(fail_twice, str(tmp_path / "count"))
    seen = Ended()
    future.add_event_callback(None, seen)
    told = seen.wait()
    assert list(dict.fromkeys((event.name, event.attempt) for event in told)) == [
        ("submitted", 0),
        *((name, attempt) for attempt in (1, 2) for name in ("assigned", "started", "output", "retried")),
        ("assigned", 3), ("started", 3), ("output", 3), ("ended", 3),
    ]  # fmt: skip
    assert "".join(event.text for event in told if event.name == "output") == "attempt 1\nattempt 2\nattempt 3\n"
    assert {event.text for event in told if event.name == "retried"} == {"it raised an exception"}
    assert told[-1].time == future.ended
    assert seen.threads <= {threading.current_thread().name, "hpc-executor-delivery"}


def test_callbacks_run_on_the_delivery_threads_and_may_wait_for_other_tasks(make: Any, gate: Any) -> None:
    executor = make(2)
    future = executor.submit(pass_gate, *gate.paths)
    results: list[Any] = []
    seen = Ended()
    future.add_event_callback("started", lambda _, event: results.append(executor.submit(pow, 2, event.attempt)))
    future.add_event_callback("started", lambda *_: results.append(results[0].result(PATIENCE / 2)))
    future.add_event_callback("ended", seen)
    gate.wait_arrivals(1)
    gate.open_wide()
    seen.wait()
    assert results[1] == 2
    assert seen.threads == {"hpc-executor-delivery"}


def test_the_loss_of_an_agent_is_a_retry_with_that_reason(make: Any, gate: Any) -> None:
    executor = make(1)
    future = executor.submit(pass_gate, *gate.paths)
    seen = Ended()
    future.add_event_callback("*", seen)
    [pid] = gate.wait_arrivals(1)
    os.kill(parent_of(parent_of(pid)), signal.SIGKILL)
    gate.wait_arrivals(1)
    gate.open_wide()
    told = seen.wait()
    [retried] = [event for event in told if event.name == "retried"]
    assert retried.attempt == 1
    assert "agent" in retried.text
    assert seen.names[-3:] == ["assigned", "started", "ended"]


def test_a_program_tells_what_it_writes_while_it_runs(executor: HPCExecutor, gate: Any) -> None:
    program = Program(["sh", "-c", 'echo first; read token < "$1"; echo second >&2', *gate.paths])
    future = executor.options(stdout=CAPTURE, stderr=CAPTURE).submit(program)
    written = threading.Event()
    future.add_event_callback("output", lambda _, event: written.set())
    assert written.wait(PATIENCE / 2)
    assert not future.done()
    os.write(gate._tokens, b"\n")
    future.result(PATIENCE / 2)
    late = Seen()
    future.add_event_callback("output", late)
    assert [(event.text, event.stream) for event in late.events] == [("first\n", "stdout"), ("second\n", "stderr")]


def test_a_kill_and_a_cancel_are_ends(make: Any, gate: Any) -> None:
    executor = make(1)
    killed = executor.submit(pass_gate, *gate.paths)
    waiting = [executor.submit(pow, 2, 3) for _ in range(50)]
    gate.wait_arrivals(1)
    ends = {future: Ended() for future in (killed, waiting[-1])}
    for future, seen in ends.items():
        future.add_event_callback(None, seen)
    assert waiting[-1].cancel()
    assert ends[waiting[-1]].wait()[-1].text == "cancelled"
    assert ends[waiting[-1]].names == ["submitted", "ended"]
    assert killed.kill()
    assert isinstance(killed.exception(PATIENCE / 2), TaskKilled)
    assert ends[killed].wait()[-1].text == "failed"


def test_callbacks_that_come_from_many_threads_are_told_the_same(executor: HPCExecutor, gate: Any) -> None:
    """They come while the task starts, writes and ends."""
    program = Program(["sh", "-c", "for n in 1 2 3 4 5 6 7 8 9; do echo $n; done"])
    future = executor.options(stdout=CAPTURE).submit(program)
    first, seen = Ended(), [Ended() for _ in range(40)]
    future.add_event_callback(None, first)

    def add(mine: list[Ended]) -> None:
        for each in mine:
            future.add_event_callback(None, each)

    threads = [threading.Thread(target=add, args=(seen[number::4],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = first.wait()
    assert all(each.wait() == told for each in seen)
    assert told[-1].name == "ended"


def test_a_task_that_could_not_be_pickled_has_ended(executor: HPCExecutor) -> None:
    seen = Seen()
    executor.submit(id, threading.Lock()).add_event_callback(None, seen)
    assert [(event.name, event.text) for event in seen.events] == [("submitted", ""), ("ended", "failed")]
    assert seen.events[1].time is None
