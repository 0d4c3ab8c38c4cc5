"""News to futures, on threads that the user's code may hold up. All waits are for events, with a bound."""

from __future__ import annotations

import functools
import io
import logging
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

from executor import delivery as module
from executor.calls import Request
from executor.core.effects import Lost, Refused
from executor.delivery import CANCELLED, Delivery, deliver, settle_at_once, show
from executor.errors import EnvironmentFailed, RemoteError, TaskLost
from executor.future import TaskFuture
from executor.options import CAPTURE, TaskOptions, make_options
from worker_agent import bodies, protocol, store
from worker_agent.protocol import ERROR, EXITED, NOT_STARTED, VALUE, Finished, Output, Started, Tail

#: Seconds after which a test that waits has failed; none waits as long when all is well.
PATIENCE = 30.0


def new_request(task: int = 1, **options: Any) -> Request:
    prepare = protocol.Prepare(environment=1, python=["python"], start="fork", max_tasks=1, cwd="/", path=[], env={})
    return Request(TaskFuture(task, "fit", 0.0), make_options(TaskOptions(), **options), None, prepare)


def sent_request(**options: Any) -> Request:
    """One whose task an agent has."""
    request = new_request(**options)
    assert request.future.claim(1, "node7")
    return request


def value(result: Any, **rest: Any) -> Finished:
    return Finished(1, 1, VALUE, b"\0" + pickle.dumps(result), pid=7, started=1.0, ended=2.0, **rest)


@pytest.fixture
def delivery() -> Iterator[Delivery]:
    delivery = Delivery("hpc-executor-test")
    delivery.start()
    yield delivery
    delivery.close()
    delivery.join()
    assert not any(thread.is_alive() for thread in delivery._threads)


# ---- one piece of news


def test_a_start_makes_the_future_run() -> None:
    request = sent_request()
    deliver(request, Started(1, 1, 7, 5.0))
    future = request.future
    assert (future.running(), future.pid, future.started) == (True, 7, 5.0)


def test_news_of_another_attempt_are_not_those_of_the_future(capsys: pytest.CaptureFixture[str]) -> None:
    request = sent_request()
    assert request.future.claim(2, "node8")
    deliver(request, Started(1, 1, 7, 5.0))
    deliver(request, Output(1, 1, 1, b"late\n"))
    assert (request.future.state, request.future.pid, request.future.stdout) == ("sent", None, "")
    assert capsys.readouterr().out == "late\n"  # it was printed, after all
    deliver(request, Started(1, 2, 8, 6.0))
    deliver(request, Output(1, 2, 1, b"in time\n"))
    assert (request.future.state, request.future.pid, request.future.stdout) == ("running", 8, "in time\n")


def test_a_value_is_the_result() -> None:
    request = new_request()
    deliver(request, value([1, 2]))
    assert request.future.result(0) == [1, 2]
    assert (request.future.pid, request.future.ended) == (7, 2.0)


def test_an_outcome_of_the_core_is_an_exception() -> None:
    for outcome, kind in ((Lost("gone"), TaskLost), (Refused("no python", b""), EnvironmentFailed)):
        request = new_request()
        deliver(request, outcome)
        assert isinstance(request.future.exception(0), kind)


def test_an_exception_of_the_hub_is_that_of_the_future() -> None:
    request, error = new_request(), RuntimeError("the hub failed")
    deliver(request, error)
    assert request.future.exception(0) is error


def test_a_future_that_the_hub_marked_is_announced_as_cancelled() -> None:
    request = new_request()
    called: list[Any] = []
    request.future.add_done_callback(called.append)
    assert request.future.mark_cancelled()
    assert called == []
    deliver(request, CANCELLED)
    assert called == [request.future]
    with pytest.raises(CancelledError):
        request.future.result(0)


def test_the_outcome_of_a_cancelled_task_is_thrown_away_with_its_files(tmp_path: Any) -> None:
    path, size = store.store(b"x" * 100, [str(tmp_path)])
    names = f'[["{path}", {size}]]'.encode()
    body = b"\2" + len(names).to_bytes(4, "little") + names
    request = new_request()
    request.future.cancel()
    deliver(request, Finished(1, 1, VALUE, body))
    assert list(tmp_path.iterdir()) == []
    assert request.future.cancelled()


def test_a_result_is_held_by_nothing_but_its_future() -> None:
    request = new_request()
    deliver(request, value("x"))
    story = request.future._story
    assert isinstance(story, Finished)
    assert story.body == b""


# ---- a plain value, on the hub's own thread


def plain(result: Any, **rest: Any) -> Finished:
    return Finished(1, 1, VALUE, bodies.dump_value(result, [])[1], pid=7, started=1.0, ended=2.0, **rest)


def test_a_plain_value_completes_its_future_at_once() -> None:
    request, finished = new_request(), plain(42)
    assert settle_at_once(request, finished)
    assert request.future.result(0) == 42
    assert (request.future.pid, request.future.ended, finished.body) == (7, 2.0, b"")


def test_a_plain_value_completes_a_future_that_somebody_waits_for() -> None:
    request = new_request()
    results: list[Any] = []
    waiter = threading.Thread(target=lambda: results.append(request.future.result(PATIENCE)))
    waiter.start()
    assert settle_at_once(request, plain(42))
    waiter.join()
    assert results == [42]


@pytest.mark.parametrize(
    "finished",
    [
        pytest.param(value([1]), id="a pickle that may run code"),
        pytest.param(plain(1, stdout=Tail()), id="output that is to be shown"),
        pytest.param(plain(1, stderr=Tail()), id="errors that are to be shown"),
        pytest.param(Finished(1, 1, ERROR, bodies.PLAIN + b"1"), id="no value"),
        pytest.param(Finished(1, 1, VALUE, b""), id="nothing"),
    ],
)
def test_whatever_else_came_is_left_to_the_threads(finished: Finished) -> None:
    request, body = new_request(), finished.body
    assert not settle_at_once(request, finished)
    assert (request.future.done(), finished.body) == (False, body)


def test_a_future_with_callbacks_is_left_to_the_threads() -> None:
    request, finished = new_request(), plain(1)
    request.future.add_done_callback(lambda _: None)
    assert not settle_at_once(request, finished)
    assert not request.future.done()


def test_a_future_of_which_there_is_news_on_the_way_is_left_to_the_threads() -> None:
    request = new_request()
    request.told = True
    assert not settle_at_once(request, plain(1))


def test_a_cancelled_future_is_left_to_the_threads() -> None:
    request = new_request()
    request.future.cancel()
    assert not settle_at_once(request, plain(1))
    assert request.future.cancelled()


def test_what_a_callback_raises_is_logged_and_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    request = new_request()
    called: list[Any] = []

    def fail(future: Any) -> None:
        raise ValueError("a bad callback")

    request.future.add_done_callback(fail)
    request.future.add_done_callback(called.append)
    with caplog.at_level(logging.CRITICAL, "concurrent.futures"):
        deliver(request, value(1))
    assert called == [request.future]
    assert request.future.result(0) == 1


def test_what_cannot_be_unpickled_is_the_exception() -> None:
    request = new_request()
    deliver(request, Finished(1, 1, VALUE, b"\0nonsense"))
    assert isinstance(request.future.exception(0), pickle.UnpicklingError)


# ---- output


def test_output_is_kept_and_shown_on_the_stream_of_this_moment(capsys: pytest.CaptureFixture[str]) -> None:
    request = sent_request()
    deliver(request, Output(1, 1, 1, b"hello\n"))
    deliver(request, Output(1, 1, 2, b"caf\xe9\n"))
    assert tuple(capsys.readouterr()) == ("hello\n", "caf\ufffd\n")
    assert (request.future.stdout, request.future.stderr) == ("hello\n", "caf\ufffd\n")


def test_output_that_goes_elsewhere_is_kept_and_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    request = sent_request(stdout=CAPTURE)
    deliver(request, Output(1, 1, 1, b"hello\n"))
    assert (capsys.readouterr().out, request.future.stdout) == ("", "hello\n")
    assert request.decoders is None


def test_a_letter_that_comes_in_two_pieces_is_shown_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    request = sent_request()
    for stream, piece in ((1, b"caf\xc3"), (2, b"\xe2\x82"), (1, b"\xa9\n"), (2, b"\xac")):
        deliver(request, Output(1, 1, stream, piece))
    assert tuple(capsys.readouterr()) == ("caf\xe9\n", "\u20ac")
    assert (request.future.stdout, request.future.stderr) == ("caf\xe9\n", "\u20ac")


def test_half_a_letter_is_shown_when_the_task_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    request = sent_request()
    deliver(request, Output(1, 1, 1, b"caf\xc3"))
    assert capsys.readouterr().out == "caf"
    deliver(request, value(1))
    assert tuple(capsys.readouterr()) == ("\ufffd", "")
    assert request.future.result(0) == 1


def test_a_letter_may_be_cut_where_the_end_of_the_output_begins(capsys: pytest.CaptureFixture[str]) -> None:
    request = sent_request()
    deliver(request, Output(1, 1, 1, b"caf\xc3"))
    deliver(request, value(1, stdout=Tail(b"\xa9 au lait\n", 0)))
    assert capsys.readouterr().out == request.future.stdout == "caf\xe9 au lait\n"


def test_halves_of_letters_with_something_left_out_between_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    request = sent_request()
    deliver(request, Output(1, 1, 1, b"caf\xc3"))
    deliver(request, value(1, stdout=Tail(b"\xa9 the end\xc3", 1000)))
    assert capsys.readouterr().out == "caf\ufffd\n[... 1000 bytes left out ...]\n\ufffd the end\ufffd"


def test_the_final_piece_of_a_stream_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    request = sent_request()
    show(request, 1, b"\xc3")
    assert capsys.readouterr().out == ""
    show(request, 1, b"\xa9\xc3", final=True)
    show(request, 1, b"\xa9", final=True)
    assert capsys.readouterr().out == "\xe9\ufffd\ufffd"


def test_the_end_of_a_long_output_is_shown_with_what_was_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    request = new_request()
    deliver(request, value(1, stdout=Tail(b"the end\n", 1000), stderr=Tail(b"", 0)))
    assert tuple(capsys.readouterr()) == ("\n[... 1000 bytes left out ...]\nthe end\n", "")
    assert request.future.result(0) == 1


def test_without_a_stdout_output_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    request = sent_request()
    deliver(request, Output(1, 1, 1, b"hello"))
    assert request.future.stdout == "hello"


class Broken(io.StringIO):
    """A stream that cannot be written to any more."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(), ValueError("closed"), RuntimeError("the window is gone")],
    ids=lambda error: type(error).__name__,
)
def test_a_stream_that_cannot_be_written_to_does_not_keep_a_result_back(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(error))
    request = sent_request()
    deliver(request, Output(1, 1, 1, b"hello"))
    deliver(request, value(1, stdout=Tail(b"the end", 0)))
    assert request.future.done()


class Unspeakable(Exception):
    """An error that cannot even be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def refuse() -> None:
    raise Unspeakable


class Refuses:
    def __reduce__(self) -> Any:
        return refuse, ()


def test_nothing_that_goes_wrong_in_a_delivery_leaves_its_future_unresolved() -> None:
    for description, kind in (
        (("error", pickle.dumps(Refuses()), "Fire", "on node7", "Traceback"), "Fire"),
        (("error", pickle.dumps(Refuses()), "too few"), "TypeError"),
    ):
        request = new_request()
        deliver(request, Finished(1, 1, ERROR, b"\0" + pickle.dumps(description)))
        error = request.future.exception(0)
        assert isinstance(error, RemoteError)
        assert error.type_name == kind


# ---- the future


class Control:
    """The hub, as a future knows it."""

    def __init__(self) -> None:
        self.kills: list[Any] = []

    def withdraw(self, task_id: int) -> None:
        pass

    def recall(self, task_id: int) -> bool:
        return False

    def kill(self, task_id: int, number: int, grace: float | None, /) -> None:
        self.kills.append((task_id, number, grace))


@pytest.fixture(params=[False, True], ids=["nobody waits", "somebody waits"])
def future(request: pytest.FixtureRequest) -> TaskFuture:
    """It has a condition only if somebody has asked for that; everything holds with and without."""
    future = TaskFuture(1, "fit", 0.0)
    if request.param:
        assert future._condition is not None
    return future


def run(future: TaskFuture, attempt: int) -> None:
    assert future.claim(attempt, f"node{attempt}")
    future.begin(Started(1, attempt, 100 + attempt, float(attempt)))
    future.printed(attempt, 1, b"out %d\n" % attempt)
    future.printed(attempt, 2, b"err %d\n" % attempt)


def story(future: TaskFuture) -> Any:
    return future.state, future.attempt, future.host, future.pid, future.started, future.stdout, future.stderr


def test_the_story_of_a_future_is_that_of_its_attempt(future: TaskFuture) -> None:
    assert story(future) == ("pending", 0, None, None, None, "", "")
    run(future, 1)
    assert story(future) == ("running", 1, "node1", 101, 1.0, "out 1\n", "err 1\n")


@pytest.mark.parametrize("attempt", [1, 3])
def test_a_future_ignores_what_another_attempt_prints(future: TaskFuture, attempt: int) -> None:
    future.printed(attempt, 1, b"nobody has it yet")
    assert future.claim(2, "node2")
    future.printed(attempt, 1, b"not mine")
    assert future.stdout == ""
    future.printed(2, 1, b"mine")
    future.printed(attempt, 1, b"not mine")
    assert future.stdout == "mine"


@pytest.mark.parametrize("attempt", [1, 3])
def test_a_future_ignores_the_start_of_another_attempt(future: TaskFuture, attempt: int) -> None:
    future.begin(Started(1, attempt, 7, 5.0))
    assert story(future) == ("pending", 0, None, None, None, "", "")
    assert future.claim(2, "node2")
    future.begin(Started(1, attempt, 7, 5.0))
    assert story(future) == ("sent", 2, "node2", None, None, "", "")


def test_an_agent_that_gets_a_task_knows_nothing_of_the_last_attempt(future: TaskFuture) -> None:
    run(future, 1)
    assert future.claim(2, "node2")
    assert story(future)[1:] == (2, "node2", None, None, "", "")
    run(future, 2)
    assert story(future) == ("running", 2, "node2", 102, 2.0, "out 2\n", "err 2\n")


def test_an_end_is_not_the_story_of_the_next_attempt(future: TaskFuture) -> None:
    run(future, 1)
    future.tell_end(Finished(1, 1, EXITED, b"", 3, pid=101, started=1.0, ended=2.0, stdout=Tail(b"the end")))
    assert (future.returncode, future.ended, future.stdout) == (3, 2.0, "out 1\nthe end")
    assert future.claim(2, "node2")
    assert (future.returncode, future.ended, future.usage, future.stdout) == (None, None, None, "")


def test_a_task_that_waits_again_is_pending_and_has_no_story(future: TaskFuture) -> None:
    run(future, 1)
    future.unclaim()
    assert (future.state, future.running(), future.done()) == ("pending", False, False)
    assert story(future)[3:] == (None, None, "", "")
    run(future, 2)
    assert story(future) == ("running", 2, "node2", 102, 2.0, "out 2\n", "err 2\n")


def test_a_task_that_was_sent_and_waits_again_is_pending(future: TaskFuture) -> None:
    assert future.claim(1, "node1")
    assert future.state == "sent"
    future.unclaim()
    assert future.state == "pending"


def test_a_task_that_waits_again_is_cancelled_at_once(future: TaskFuture) -> None:
    run(future, 1)
    assert not future.cancel()
    future.unclaim()
    assert future.cancel()
    assert future.state == "cancelled"
    assert not future.claim(2, "node2")


def test_a_cancelled_task_that_waits_again_stays_cancelled(future: TaskFuture) -> None:
    assert future.cancel()
    future.unclaim()
    assert future.state == "cancelled"


def test_a_program_that_was_not_started_has_no_status(future: TaskFuture) -> None:
    future.tell_end(Finished(1, 1, NOT_STARTED, returncode=2))
    assert (future.returncode, future.signal) == (None, None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, (1, signal.SIGTERM, None)),
        ({"signal": signal.SIGINT}, (1, 2, None)),
        ({"signal": 9, "grace": 0}, (1, 9, 0.0)),
        ({"grace": 1.5}, (1, signal.SIGTERM, 1.5)),
        ({"grace": "1m 10s"}, (1, signal.SIGTERM, 70.0)),
    ],
)
def test_a_kill_is_told_to_the_hub(future: TaskFuture, options: Any, told: Any) -> None:
    future._control = control = Control()
    assert future.kill(**options)
    assert control.kills == [told]
    assert type(control.kills[0][1]) is int


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"signal": 0}, ValueError),
        ({"signal": -15}, ValueError),
        ({"signal": 999}, ValueError),
        ({"signal": "SIGTERM"}, TypeError),
        ({"signal": None}, TypeError),
        ({"signal": [15]}, TypeError),
        ({"grace": -1.0}, ValueError),
        ({"grace": float("nan")}, ValueError),
        ({"grace": float("inf")}, ValueError),
        ({"grace": "soon"}, ValueError),
        ({"grace": True}, TypeError),
        ({"grace": [1]}, TypeError),
    ],
)
@pytest.mark.parametrize("ended", [False, True])
def test_a_kill_with_no_signal_or_no_duration_is_refused(
    future: TaskFuture, options: Any, error: type[Exception], ended: bool
) -> None:
    control = Control()
    if ended:
        assert future.settle(1, None)
    future._control = control
    with pytest.raises(error):
        future.kill(**options)
    assert control.kills == []


def test_a_task_that_has_ended_is_not_killed(future: TaskFuture) -> None:
    assert future.settle(1, None)
    future._control = control = Control()
    assert not future.kill()
    assert control.kills == []


def raising(called: list[Any], *errors: BaseException | None) -> TaskFuture:
    """A future with a callback for each of the errors, which notes the error and raises it, or returns for None."""
    future = TaskFuture(1, "fit", 0.0)

    def callback(error: BaseException | None, told: Any) -> None:
        assert told is future
        called.append(error)
        if error is not None:
            raise error

    for error in errors:
        future.add_done_callback(functools.partial(callback, error))
    return future


@pytest.mark.parametrize("way", ["a result", "an error", "cancelled"])
def test_all_callbacks_are_called_whatever_one_raises(caplog: pytest.LogCaptureFixture, way: str) -> None:
    errors = [ValueError("bad"), KeyboardInterrupt("first"), None, SystemExit("second"), TypeError("worse"), None]
    called: list[Any] = []
    future = raising(called, *errors)
    with caplog.at_level(logging.ERROR, "concurrent.futures"), pytest.raises(KeyboardInterrupt) as raised:
        if way == "cancelled":
            future.cancel()
        else:
            future.settle(1, LookupError("x") if way == "an error" else None)
    assert raised.value is errors[1]
    assert called == errors
    assert future.done()
    logged = [record.exc_info[1] for record in caplog.records if record.exc_info is not None]
    assert logged == [errors[0], errors[4]]


def test_what_callbacks_raise_that_is_an_exception_gets_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    called: list[Any] = []
    with caplog.at_level(logging.CRITICAL, "concurrent.futures"):
        assert raising(called, ValueError("bad"), None).settle(1, None)
    assert len(called) == 2


def test_no_callback_ends_a_delivery(caplog: pytest.LogCaptureFixture) -> None:
    called: list[Any] = []
    request = new_request()
    request.future = raising(called, SystemExit(3), None)
    with caplog.at_level(logging.ERROR, "executor"):
        deliver(request, value(1))
    assert (len(called), request.future.result(0)) == (2, 1)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info is not None] == [SystemExit]


# ---- threads


def test_news_are_delivered_in_their_order_on_a_thread_of_its_own(delivery: Delivery) -> None:
    done = threading.Event()
    threads = []
    requests = [new_request(number) for number in range(5)]
    order: list[int] = []
    for request in requests:
        request.future.add_done_callback(lambda future: order.append(future.task_id))
        request.future.add_done_callback(lambda _: threads.append(threading.current_thread()))
    requests[-1].future.add_done_callback(lambda _: done.set())
    delivery.put([(request, value(1)) for request in requests[:3]])
    delivery.put([(request, value(1)) for request in requests[3:]])
    assert done.wait(PATIENCE)
    assert order == [0, 1, 2, 3, 4]
    assert set(threads) == set(delivery._threads)
    assert threads[0].name == "hpc-executor-test-delivery"


def test_without_news_there_is_nothing_to_look_after(delivery: Delivery) -> None:
    assert delivery.look_after() is None
    assert len(delivery._threads) == 1


def refuse_to_start(thread: threading.Thread) -> None:
    raise RuntimeError("can't create new thread at interpreter shutdown")


def test_where_no_thread_can_be_started_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", refuse_to_start)
    delivery = Delivery("hpc-executor-test")
    with pytest.raises(RuntimeError, match="can't create new thread"):
        delivery.start()
    delivery.close()
    delivery.join()


def test_if_no_other_thread_can_be_started_the_first_goes_on(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    first, second = new_request(1), new_request(2)
    entered, release = threading.Event(), threading.Event()
    first.future.add_done_callback(lambda _: entered.set())
    first.future.add_done_callback(lambda _: release.wait(PATIENCE))
    delivery.put([(first, value(1)), (second, value(2))])
    assert entered.wait(PATIENCE)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse_to_start)
        delivery.look_after()
        delivery.look_after()
    release.set()
    assert second.future.result(PATIENCE) == 2
    assert len(delivery._threads) == 1


def test_one_thread_is_enough_as_long_as_it_goes_on(delivery: Delivery) -> None:
    for number in range(20):
        request = new_request(number)
        delivery.put([(request, value(1))])
        delivery.look_after()
        assert request.future.result(PATIENCE) == 1
    assert len(delivery._threads) == 1


def test_a_callback_that_waits_does_not_hold_up_the_others(delivery: Delivery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback that waits for another future would wait for ever if its thread alone delivered."""
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    first, second = new_request(1), new_request(2)
    entered = threading.Event()
    got: list[Any] = []

    def wait_for_second(_: Any) -> None:
        entered.set()
        got.append(second.future.result(PATIENCE))

    first.future.add_done_callback(wait_for_second)
    delivery.put([(first, value(1))])
    assert entered.wait(PATIENCE)
    delivery.put([(second, value(2))])
    delivery.look_after()  # sees that something waits
    delivery.look_after()  # and now, at the latest, that nobody has come
    assert second.future.result(PATIENCE) == 2
    delivery.close()
    delivery.join()
    assert got == [2]
    assert len(delivery._threads) > 1


def test_no_more_threads_than_allowed_are_started(delivery: Delivery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    monkeypatch.setattr(module, "MOST_THREADS", 3)
    release = threading.Event()
    entered = threading.Semaphore(0)

    def hold(_: Any) -> None:
        entered.release()
        assert release.wait(PATIENCE)

    requests = [new_request(number) for number in range(6)]
    for request in requests:
        request.future.add_done_callback(hold)
        delivery.put([(request, value(1))])
    for _ in range(3):
        delivery.look_after()
        delivery.look_after()
        assert entered.acquire(timeout=PATIENCE)
    for _ in range(5):
        delivery.look_after()
    assert len(delivery._threads) == 3
    release.set()
    assert all(request.future.result(PATIENCE) == 1 for request in requests)


def test_a_thread_knows_that_it_is_one_of_these(delivery: Delivery) -> None:
    request = new_request()
    seen: list[bool] = []
    done = threading.Event()
    request.future.add_done_callback(lambda _: seen.append(delivery.is_own_thread()))
    request.future.add_done_callback(lambda _: delivery.join())  # does not wait for itself
    request.future.add_done_callback(lambda _: done.set())
    delivery.put([(request, value(1))])
    delivery.close()
    assert done.wait(PATIENCE)
    assert seen == [True]
    assert not delivery.is_own_thread()


# ---- the end


def test_what_was_put_before_the_end_is_delivered() -> None:
    delivery = Delivery("hpc-executor-test")
    delivery.start()
    requests = [new_request(number) for number in range(3)]
    for request in requests:
        delivery.put([(request, value(request.future.task_id))])
    delivery.close()
    delivery.join()
    assert [request.future.result(0) for request in requests] == [0, 1, 2]


def test_without_news_it_ends_at_once() -> None:
    delivery = Delivery("hpc-executor-test")
    delivery.start()
    delivery.close()
    delivery.join()
    assert not delivery._threads[0].is_alive()


def test_all_threads_end() -> None:
    delivery = Delivery("hpc-executor-test")
    for _ in range(3):
        delivery.start()
    delivery.close()
    delivery.join()
    assert not any(thread.is_alive() for thread in delivery._threads)


def test_a_callback_that_waits_does_not_hold_up_the_end() -> None:
    """The hub has ended, so it does not look after the threads any more."""
    delivery = Delivery("hpc-executor-test")
    first, second = new_request(1), new_request(2)
    got: list[Any] = []
    first.future.add_done_callback(lambda _: got.append(second.future.result(PATIENCE)))
    delivery.start()
    delivery.put([(first, value(1)), (second, value(2))])
    delivery.close()
    delivery.join()
    assert got == [2]


def test_news_of_a_task_come_in_order_though_threads_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by a soak: on a busy machine there were two threads, and an outcome overtook its program's output."""
    delivery, first, other = Delivery("hpc-executor-test"), new_request(1), new_request(2)
    entered, release, other_came = threading.Event(), threading.Event(), threading.Event()
    heard: list[Any] = []

    def hear(request: Request, news: Any, _: Any) -> None:
        if request is other:
            other_came.set()
            return
        if not heard:
            entered.set()
            assert release.wait(PATIENCE)
        heard.append(news)

    monkeypatch.setattr(module, "deliver", hear)
    for _ in range(3):
        delivery.start()
    delivery.put([(first, 1)])
    assert entered.wait(PATIENCE)
    delivery.put([(first, 2), (first, 3), (other, 0)])
    assert other_came.wait(PATIENCE)
    assert heard == []
    release.set()
    delivery.close()
    delivery.join()
    assert heard == [1, 2, 3]
