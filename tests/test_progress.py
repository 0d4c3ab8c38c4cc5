"""Progress bars: what they say, by values; where they are drawn; and that they do nothing per task."""

from __future__ import annotations

import io
import itertools
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from waiting import PATIENCE

from executor import Counts, HPCExecutor, Job, Program, track
from executor.progress import Pace, ProgressBar, render_counts, render_rate, render_seconds

pytestmark = pytest.mark.shared

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def pass_gate(arrivals: str, tokens: str) -> int:
    """Say by the pid that the task has started, wait for a token. See ``Gate`` in conftest.py."""
    with open(arrivals, "wb", buffering=0) as entry:
        entry.write(b"%d\n" % os.getpid())
    with open(tokens, "rb", buffering=0) as gate:
        gate.read(1)
    return os.getpid()


def new_console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None, force_jupyter=False)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# ---- what it says


def paced(*notes: tuple[float, int]) -> Pace:
    pace = Pace()
    for now, ended in notes:
        pace.note(now, ended)
    return pace


@pytest.mark.parametrize(
    ("counts", "notes", "text"),
    [
        (Counts(running=0), [], "0/0  in 0.0 s"),
        (Counts(100, running=4), [(0.0, 0)], "0/100  4 running  96 pending"),
        (
            Counts(9, 1, 3, 2, 1), [(0.0, 0), (4.0, 6)],
            "6/9  1 running  2 pending  3 failed  2 cancelled  1.5/s  2.0 s left",
        ),
        (Counts(100, 12), [(0.0, 0), (4.0, 12)], "12/100  3.0/s  29 s left"),
        (Counts(4, running=0, coming="waits for 1 slurm job"), [(0.0, 0)], "0/4  4 pending  waits for 1 slurm job"),
        (Counts(4, 4, running=0, coming="waits for 1 slurm job"), [(0.0, 0)], "4/4  in 0.0 s"),
        (Counts(100, 98, 2, running=0), [(0.0, 0), (65.0, 100)], "100/100  2 failed  in 1:05"),
    ],
)  # fmt: skip
def test_a_bar_says_how_many_tasks_are_in_each_state(counts: Counts, notes: Any, text: str) -> None:
    assert render_counts(counts, paced(*notes)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (3.21, "3.2 s"), (9.96, "10 s"), (59.4, "59 s"), (60, "1:00"), (245, "4:05"), (3723, "1:02:03")],
)
def test_durations_are_shown_for_people(seconds: float, text: str) -> None:
    assert render_seconds(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(0.2, "12.0/min"), (3.5, "3.5/s"), (9.96, "10/s"), (4860.2, "4860/s")])
def test_rates_are_shown_for_people(rate: float, text: str) -> None:
    assert render_rate(rate) == text


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    assert paced((0.0, 0)).rate == 0
    assert Pace().rate == Pace().elapsed == 0
    assert paced((0.0, 0), (10.0, 1000), (50.0, 1000), (60.0, 1030)).rate == 3.0
    assert paced((0.0, 0), (10.0, 1000), (50.0, 1000), (60.0, 1030)).elapsed == 60.0


@settings(derandomize=True, database=None, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 10**6)), max_size=20))
def test_a_pace_is_never_negative_nor_infinite(steps: list[tuple[float, int]]) -> None:
    times = itertools.accumulate(step for step, _ in steps)
    pace = paced(*zip(times, itertools.accumulate(ended for _, ended in steps), strict=True))
    assert 0 <= pace.rate < math.inf
    assert pace.elapsed >= 0


# ---- where it is drawn


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_drawn_in_a_terminal_and_one_line_written_elsewhere(terminal: bool) -> None:
    console = new_console(terminal=terminal)
    with ProgressBar(lambda: Counts(3, 3), "[fits]", console):
        pass
    text = shown(console)
    assert ("\x1b" in text) == terminal
    assert "[fits]" in text
    assert "3/3  in 0." in text
    if not terminal:
        assert text.count("\n") == 1


def test_it_is_drawn_by_time_and_not_by_task() -> None:
    """Whatever the number of tasks, its source is asked by the bar alone."""
    asked: list[str] = []

    def counts() -> Counts:
        asked.append(threading.current_thread().name)
        return Counts(100_000, len(asked))

    futures: list[Future[int]] = [Future() for _ in range(5000)]
    for future in futures:
        future.set_result(1)
    console = new_console(terminal=False)
    with ProgressBar(counts, "fits", console):
        assert len(list(track(futures, console=console))) == 5000
    assert len(asked) == 2  # at its start and its end: the time for a line is far away
    assert "tasks: 5000/5000" in shown(console)


def test_a_bar_in_a_terminal_is_drawn_again_and_again_by_a_thread_that_ends() -> None:
    drawn = threading.Event()
    asked = itertools.count()

    def counts() -> Counts:
        if next(asked) == 3:
            drawn.set()
        return Counts(10, 5, running=2)

    bar = ProgressBar(counts, "fits", new_console(terminal=True), lambda: drawn.wait(PATIENCE / 2))
    bar.wait()
    assert drawn.is_set()
    assert not [each for each in threading.enumerate() if each.name == "hpc-executor-progress"]
    bar.stop()  # may be said twice


def test_a_bar_is_started_once() -> None:
    with ProgressBar(Counts, "fits", new_console(terminal=False)) as bar, pytest.raises(RuntimeError, match="already"):
        bar.start()


def test_after_an_exception_a_bar_ends_without_waiting() -> None:
    waited: list[int] = []
    bar = ProgressBar(Counts, "fits", new_console(terminal=True), lambda: waited.append(1))
    with pytest.raises(LookupError), bar:
        raise LookupError
    assert waited == []


def test_by_default_it_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([])) == []
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tasks: 0/0")


def test_without_rich_the_error_says_so(monkeypatch: pytest.MonkeyPatch, executor: HPCExecutor) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError, match="needs the package rich, .*: pip install rich"):
        track([])
    with pytest.raises(ImportError, match="pip install rich"):
        executor.progress()


def test_rich_is_imported_for_a_bar_only(run_script: Callable[..., Any]) -> None:
    ended = run_script("""
import sys
from executor import HPCExecutor
with HPCExecutor(1) as executor:
    executor.submit(pow, 2, 3).result()
    print([name for name in sys.modules if name.startswith("rich")])
    with executor.progress():
        executor.submit(pow, 2, 3)
print("rich.progress" in sys.modules, "rich.console" in sys.modules)
""")
    assert ended.stdout == "[]\nFalse True\n", ended.stderr
    assert ended.stderr.startswith("tasks: 2/2  in ")


# ---- track


def test_futures_come_as_they_complete_and_are_counted_by_how_they_ended() -> None:
    futures: list[Future[int]] = [Future() for _ in range(4)]
    futures[0].set_result(1)
    futures[1].set_exception(ValueError())
    futures[2].cancel()
    futures[2].set_running_or_notify_cancel()
    console = new_console(terminal=False)
    iterator = track(iter(futures), "fits", console)
    assert {next(iterator) for _ in range(3)} == set(futures[:3])
    futures[3].set_result(1)
    assert list(iterator) == futures[3:]
    assert shown(console).startswith("fits: 4/4  1 failed  1 cancelled  in ")


def test_to_leave_the_loop_ends_the_bar() -> None:
    futures: list[Future[int]] = [Future(), Future()]
    futures[0].set_result(1)
    console = new_console(terminal=True)
    for future in track(futures, console=console):
        assert future is futures[0]
        break
    assert "1/2" in shown(console)


@pytest.mark.parametrize("futures", [[1], ["fit"], {Future(): 1, None: 2}])
def test_what_is_no_future_is_refused_at_once(futures: Any) -> None:
    with pytest.raises(TypeError, match=r"futures: .* is none. Expected futures"):
        track(futures)


def test_what_is_no_console_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a rich\.console\.Console"):
        track([], console=sys.stderr)


def test_a_job_is_tracked_by_its_name(executor: HPCExecutor) -> None:
    job = Job("study")
    failing = job.function(divmod, args=(1, 0))
    job.function(pow, args=(2, 3))
    job.function(pow, args=(2, 4), deps=[failing])
    console = new_console(terminal=False)
    submitted = executor.submit_job(job)
    assert set(track(submitted, console=console)) == set(submitted)
    assert shown(console).startswith("study: 3/3  2 failed  in ")


# ---- all tasks of an executor


@pytest.fixture
def console() -> Iterator[Console]:
    yield new_console(terminal=False)


def test_an_executor_without_tasks_has_counts_and_a_bar_that_ends_at_once(console: Console) -> None:
    with HPCExecutor(1) as executor:
        assert executor.counts() == Counts(running=0)
        executor.progress(console=console).wait()
    assert shown(console).startswith("tasks: 0/0")


def test_the_counts_follow_the_tasks(make: Any, gate: Any) -> None:
    executor = make(2)
    held = [executor.submit(pass_gate, *gate.paths) for _ in range(2)]
    gate.wait_arrivals(2)
    after = executor.options(after=held[0]).submit(pow, 2, 3)
    waiting = [executor.submit(pow, 2, number) for number in range(8)]
    counts = executor.counts()
    assert counts == Counts(11, running=2)
    assert counts.pending == 9
    assert waiting[0].cancel()
    assert waiting[-1].cancel()
    executor.submit(id, threading.Lock())
    assert executor.counts() == Counts(12, cancelled=2, failed=1, running=2)
    assert held[0].cancel(kill=True)
    assert isinstance(after.exception(PATIENCE / 2), BaseException)
    gate.open_wide()
    executor.submit(divmod, 1, 0)
    executor.shutdown()
    assert executor.counts() == Counts(13, finished=7, failed=3, cancelled=3, running=0)


def test_what_a_dependency_cancels_is_cancelled(make: Any, gate: Any) -> None:
    executor = make(1)
    executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals(1)
    waiting = [executor.submit(pow, 2, 3) for _ in range(20)]
    after = executor.options(after=waiting[-1]).submit(pow, 2, 3)
    assert waiting[-1].cancel()
    gate.open_wide()
    executor.shutdown()
    assert after.cancelled()
    assert executor.counts() == Counts(22, finished=20, cancelled=2, running=0)


def test_programs_are_counted_by_their_status(executor: HPCExecutor) -> None:
    executor.submit(Program(["true"]))
    executor.submit(Program(["false"]))
    executor.submit(Program(["false"], check=False))
    executor.submit(Program(["/nowhere/at/all"]))
    executor.shutdown()
    assert executor.counts() == Counts(4, finished=2, failed=2, running=0)


@pytest.mark.parametrize("way", ["terminate", "cancel_futures"])
def test_whatever_ends_an_executor_all_its_tasks_are_counted(make: Any, gate: Any, way: str) -> None:
    executor = make(1)
    futures = [executor.submit(pass_gate, *gate.paths) for _ in range(30)]
    gate.wait_arrivals(1)
    if way == "terminate":
        executor.terminate_workers()
    else:
        executor.shutdown(wait=False, cancel_futures=True)
        gate.open_wide()
        executor.shutdown()
    cancelled = sum(future.cancelled() for future in futures)
    failed = sum(not future.cancelled() and future.exception() is not None for future in futures)
    finished = 30 - cancelled - failed
    assert executor.counts() == Counts(30, finished, failed, cancelled, running=0)
    assert (failed == 30) if way == "terminate" else (cancelled >= 29)


def test_leaving_the_bar_waits_for_all_tasks_of_the_executor(executor: HPCExecutor, gate: Any) -> None:
    console = new_console(terminal=True)
    with executor.progress("fits", console):
        futures = [executor.submit(pass_gate, *gate.paths) for _ in range(4)]
        gate.wait_arrivals(2)
        assert executor.counts() == Counts(4, running=2)
        gate.open_wide()
    assert executor.counts() == Counts(4, finished=4, running=0)
    assert "4/4  in " in shown(console)
    assert all(future.result(PATIENCE / 2) for future in futures)


def test_a_bar_alone_waits_for_what_was_submitted(executor: HPCExecutor, console: Console) -> None:
    futures = [executor.submit(pow, 2, number) for number in range(100)]
    executor.progress(console=console).wait()
    assert shown(console).startswith("tasks: 100/100  in ")
    assert [future.result(PATIENCE / 2) for future in futures] == [2**number for number in range(100)]


def test_a_bar_ends_with_its_executor(make: Any, gate: Any, console: Console) -> None:
    executor = make(1)
    executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals(1)
    bar = executor.progress(console=console)
    waiter = threading.Thread(target=bar.wait)
    waiter.start()
    executor.kill_workers()
    waiter.join(PATIENCE / 2)
    assert not waiter.is_alive()
    assert "1/1  1 failed" in shown(console)


def test_what_is_printed_under_a_bar_is_not_lost(executor: HPCExecutor, capsys: pytest.CaptureFixture[str]) -> None:
    console = new_console(terminal=True)
    with executor.progress(console=console):
        executor.submit(print, "from a task")
        print("from here")
    executor.shutdown()
    assert sorted(capsys.readouterr().out.splitlines()) == ["from a task", "from here"]
