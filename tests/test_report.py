"""The report of a run: its numbers, what is kept of long runs, and the page, which is opened in a browser too."""
# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import dataclasses
import gc
import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import capturing, failure, gate, new_executor, outcome, sh
from waiting import pass_gate, wait_until

from executor import HPCExecutor, Report
from executor.calls import Request
from executor.core.model import Lane, LaneId, Task, TaskClass, Worker, WorkerId
from executor.core.needs import ONE_CPU, Need, Needs
from executor.delivery import deliver
from executor.errors import DependencyFailed, RemoteTraceback, TaskDied
from executor.future import TaskFuture
from executor.options import TaskOptions
from executor.report.advice import advise_cpus, advise_memory, render_size, round_up_size
from executor.report.drawing import MOST_DRAWN, draws_attempts, family, pack
from executor.report.making import make_report
from executor.report.page import render_page
from executor.report.recorder import FAILURES, Recorder
from executor.report.series import BINS, FINEST, Scale
from executor.report.tally import KINDS, LANES, NAMES, SLOWEST, WHOLE
from executor.report.values import Attempt
from executor.report.words import escape, render_count, render_mark, render_seconds, round_step
from worker_agent import protocol
from worker_agent.pools import Pool, Share

pytestmark = pytest.mark.shared

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

New = Callable[..., HPCExecutor]
GIB = 2**30
MIB = 2**20
BEGIN = 1_700_000_000.0
#: None of them draws on the examples of another run.
EXACT = settings(derandomize=True, database=None, deadline=None)
PREPARE = protocol.Prepare(environment=1, python=["python"], start="fork", max_tasks=1, cwd="/", path=[], env={})


# ---- a run that never was


class Run:
    """A recorder, and the hub that feeds it."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self._lanes: dict[tuple[int, Needs], Lane] = {}
        self._numbers = iter(range(1, 10**9)).__next__
        self._joined: set[int] = set()

    def join(self, worker: int, cpus: int, at: float = 0.0) -> None:
        self._joined.add(worker)
        pools = [Pool("cpus", [[str(number) for number in range(cpus)]])]
        self.recorder.joined(WorkerId(worker), f"node{worker} (process {worker})", pools, BEGIN + at)

    def attempt(
        self, start: float, end: float, worker: int = 1, needs: Needs = ONE_CPU, name: str = "fit", cpu: float = 0.0,
        peak: int = 0, how: str = protocol.VALUE, number: int = 1, **rest: Any,
    ) -> None:  # fmt: skip
        """A task that was submitted at the beginning, and whose attempt ran so."""
        if worker not in self._joined:
            self.join(worker, cpus=4)
        future = TaskFuture(self._numbers(), name, BEGIN)
        task = Task(future.task_id, 1, Request(future, TaskOptions(), None, PREPARE), attempt=number)
        task.lane = self._lane(worker, needs)
        usage = protocol.Usage(cpu, 0.0, peak)
        report = protocol.Finished(task.id, number, how, started=BEGIN + start, ended=BEGIN + end, usage=usage, **rest)
        self.recorder.attempt(WorkerId(worker), task, report)

    def _lane(self, number: int, needs: Needs) -> Lane:
        if (number, needs) not in self._lanes:
            worker = Worker.of_pools(WorkerId(number), [Pool("cpus", [["0", "1", "2", "3"]])])
            cpus = next(need.amount or 0 for need in needs.needs if need.name == "cpus")
            lane = Lane(LaneId(len(self._lanes) + 1), worker, TaskClass(1, (needs,)), 0)
            lane.places[0] = [Share("cpus", cpus)]
            self._lanes[number, needs] = lane
        return self._lanes[number, needs]

    def report(self) -> Report:
        return make_report(self.recorder.snapshot())


def needs_of(cpus: int, memory: int = 0) -> Needs:
    """``memory`` in MiB."""
    return Needs((Need("cpus", cpus * 10_000), *([Need("memory", memory * 10_000)] if memory else [])))


def failed_request(name: str = "fit", number: int = 1) -> Request:
    return Request(TaskFuture(number, name, BEGIN), TaskOptions(), None, PREPARE)


# ---- numbers


def test_the_numbers_of_a_small_run() -> None:
    run = Run()
    run.join(1, cpus=2)
    run.join(2, cpus=4, at=4.0)
    run.attempt(0.0, 8.0, cpu=4.0, peak=100 * MIB)
    run.attempt(4.0, 8.0, worker=2, needs=needs_of(2, 1024), name="train", cpu=6.0, peak=10 * MIB)
    report = run.report()
    assert (report.began, report.ended, report.wall_time, report.cpu_time) == (BEGIN, BEGIN + 8, 8.0, 10.0)
    assert [(agent.name, agent.cpus) for agent in report.agents] == [("node1 (process 1)", 2), ("node2 (process 2)", 4)]
    assert report.utilisation == pytest.approx((8 + 8) / (16 + 16))
    assert [(lane.agent, lane.needs, lane.attempts) for lane in report.lanes] == [
        ("node1 (process 1)", "1 CPU", 1), ("node2 (process 2)", "2 CPUs, 1 GiB", 1),
    ]  # fmt: skip
    assert [attempt.name for attempt in report.slowest] == ["fit", "train"]
    assert report.attempts[1].submitted == BEGIN
    assert report.attempts[1].seconds == 4.0


def test_cpus_over_time_are_those_that_are_there_given_and_used() -> None:
    run = Run()
    run.join(1, cpus=4)
    run.attempt(0.0, 4.0, needs=needs_of(2), cpu=2.0)
    run.recorder.left(WorkerId(1), BEGIN + 2.0)
    run.join(2, cpus=8, at=3.0)
    times = run.report().timeline
    quarter = len(times.there) // 4
    assert times.bin_seconds * len(times.there) == 4.0
    assert times.there == pytest.approx([4.0] * 2 * quarter + [0.0] * quarter + [8.0] * quarter)
    assert times.given == pytest.approx([2.0] * 4 * quarter)
    assert times.used == pytest.approx([0.5] * 4 * quarter)


def test_usage_by_needs_comes_with_advice() -> None:
    run = Run()
    for _ in range(3):
        run.attempt(0.0, 2.0, needs=needs_of(4, 8192), name="simulate", cpu=1.8, peak=310 * MIB)
    run.attempt(0.0, 1.0, needs=needs_of(4, 8192), name="other", cpu=1.5, peak=10 * MIB)
    [usage] = run.report().usage
    assert (usage.needs, usage.names, usage.attempts) == ("4 CPUs, 8 GiB", {"simulate": 3, "other": 1}, 4)
    assert (usage.mean_seconds, usage.longest_seconds) == (7 / 4, 2.0)
    assert (usage.cpus_asked, usage.cpus_used, usage.cpus_peak) == (4.0, pytest.approx(6.9 / 7), 1.5)
    assert (usage.memory_asked, usage.memory_peak) == (8 * GIB, 310 * MIB)
    assert usage.advice == [
        "asked 4 CPUs, used 0.99 on average and 1.50 at most: ask 2 CPUs",
        "asked 8 GiB, peak 310 MiB: ask 512 MiB",
    ]


@pytest.mark.parametrize(
    ("asked", "peak", "out_of_memory", "advice"),
    [
        (8 * GIB, 310 * MIB, 0, "asked 8 GiB, peak 310 MiB: ask 512 MiB"),
        (512 * MIB, 310 * MIB, 0, ""),
        (GIB, 2 * GIB, 0, "asked 1 GiB, peak 2 GiB: ask 3 GiB"),
        (0, 310 * MIB, 0, ""),
        (0, 2 * GIB, 0, "asked for no memory, peak 2 GiB: ask 3 GiB, so that all fit side by side"),
        (GIB, GIB, 3, "asked 1 GiB, and 3 times out of memory: ask 2 GiB"),
        (0, GIB, 1, "asked for no memory, and once out of memory: ask 2 GiB"),
        (GIB, 0, 0, ""),
    ],
)
def test_advice_on_memory(asked: int, peak: int, out_of_memory: int, advice: str) -> None:
    assert advise_memory(asked, peak, out_of_memory) == advice


@pytest.mark.parametrize(
    ("asked", "seconds", "cpu", "most", "advice"),
    [
        (1.0, 10.0, 9.0, 0.99, ""),
        (4.0, 10.0, 9.0, 1.02, "asked 4 CPUs, used 0.90 on average and 1.02 at most: ask 1 CPU"),
        (4.0, 10.0, 9.0, 3.5, ""),
        (1.0, 10.0, 38.0, 3.9, "asked 1 CPU, used up to 3.9: ask 4 CPUs, or have it start fewer threads"),
        (1.0, 10.0, 3.0, 0.3, ""),  # perhaps others were on its CPU
        (2.0, 0.5, 0.1, 0.3, ""),  # too short to say
        (0.0, 10.0, 1.0, 0.1, ""),
        (0.25, 10.0, 0.1, 0.01, ""),
    ],
)
def test_advice_on_cpus(asked: float, seconds: float, cpu: float, most: float, advice: str) -> None:
    assert advise_cpus(asked, seconds, cpu, most) == advice


def test_no_attempt_at_most_used_less_than_their_mean() -> None:
    """Attempts too short to be measured one by one used "0.09 on average and 0.00 at most"."""
    run = Run()
    run.attempt(0.0, 0.1, cpu=0.05)
    run.attempt(0.0, 1.0)
    [usage] = run.report().usage
    assert usage.cpus_peak == usage.cpus_used == pytest.approx(0.05 / 1.1)


def test_who_waits_most_of_the_time_is_told_so() -> None:
    assert "they wait most of the time" in advise_cpus(1.0, 10.0, 0.1, 0.02)


@given(st.integers(1, 10**13))
@EXACT
def test_a_rounded_size_is_enough_and_not_much_more(size: int) -> None:
    assert size <= round_up_size(size) <= max(64 * MIB, 2 * size)


def test_how_each_end_of_an_attempt_is_called() -> None:
    run = Run()
    ends = {
        protocol.VALUE: "finished", protocol.COMPLETED: "finished", protocol.ERROR: "failed",
        protocol.EXITED: "failed", protocol.TIMED_OUT: "timed out", protocol.KILLED: "killed",
        protocol.OUT_OF_MEMORY: "out of memory", protocol.LOST: "lost", protocol.RETURNED: "lost",
    }  # fmt: skip
    for end in ends:
        run.attempt(0.0, 1.0, how=end, returncode=0)
    run.attempt(0.0, 1.0, how=protocol.COMPLETED, returncode=3)
    report = run.report()
    assert [attempt.how for attempt in report.attempts] == [*ends.values(), "failed"]
    assert report.lanes[0].failed == 8
    assert report.usage[0].out_of_memory == 1


def test_what_ran_out_of_memory_has_the_peak_that_was_seen_by_who_ended_it() -> None:
    run = Run()
    run.attempt(0.0, 1.0, how=protocol.OUT_OF_MEMORY, peak=MIB, memory=protocol.Memory(GIB, GIB, "agent"))
    assert run.report().attempts[0].max_rss == GIB


def test_reports_that_do_not_count_for_the_scheduler_do_not_count_here() -> None:
    run = Run()
    run.attempt(0.0, 1.0)
    future = TaskFuture(7, "fit", BEGIN)
    task = Task(7, 1, Request(future, TaskOptions(), None, PREPARE), attempt=2)
    late = protocol.Finished(7, 1, protocol.VALUE, started=BEGIN, ended=BEGIN + 1)
    run.recorder.attempt(WorkerId(1), None, late)  # of a task that has ended
    run.recorder.attempt(WorkerId(1), task, late)  # of an earlier attempt, or a task that is with nobody
    task.attempt, task.lane = 1, run._lane(2, ONE_CPU)
    run.recorder.attempt(WorkerId(1), task, late)  # by another agent
    assert run.report().counts.attempts == 1


def test_clocks_that_are_set_back_do_no_harm() -> None:
    run = Run()
    run.attempt(5.0, 3.0)
    run.attempt(-100.0, 2.0)
    report = run.report()
    assert [attempt.seconds for attempt in report.attempts] == [0.0, 102.0]
    assert max(report.timeline.given) == pytest.approx(1.0)
    render_page(report)


def test_nothing_has_run_yet() -> None:
    report = HPCExecutor().report()
    assert (report.began, report.wall_time, report.counts.submitted, report.timeline.there) == (None, 0.0, 0, [])
    assert "Nothing has run yet" in render_page(report)


def test_json_has_the_numbers() -> None:
    run = Run()
    run.join(1, cpus=2)
    run.attempt(0.0, 1.0, name="a\udcff")
    report = run.report()
    assert json.loads(report.to_json()) == json.loads(json.dumps(dataclasses.asdict(report)))


# ---- over time


@st.composite
def intervals(draw: st.DrawFn) -> list[tuple[float, float, float]]:
    ends = st.floats(0.0, 3000.0, allow_nan=False)
    pairs = draw(st.lists(st.tuples(ends, ends, st.sampled_from([0.5, 1.0, 4.0])), max_size=20))
    return [(min(one, other), max(one, other), weight) for one, other, weight in pairs]


@given(intervals())
@EXACT
def test_the_means_of_the_bins_are_those_of_the_intervals(added: list[tuple[float, float, float]]) -> None:
    scale = Scale(0.0)
    series = scale.new()
    for start, end, weight in added:
        scale.reach(end)
        series.add(scale.span(start, end), weight)
    means = series.means(scale.width)
    for place, mean in enumerate(means):
        left, right = place * scale.width, (place + 1) * scale.width
        exact = sum(weight * max(0.0, min(end, right) - max(start, left)) for start, end, weight in added)
        assert mean == pytest.approx(exact / scale.width, abs=1e-6)


def test_bins_become_wider_with_the_run_and_never_more() -> None:
    scale = Scale(BEGIN)
    series = scale.new()
    scale.reach(BEGIN + 30 * 86400)
    assert len(series.steps) == BINS
    assert BINS * scale.width / 2 <= 30 * 86400 < BINS * scale.width
    assert (scale.width / FINEST).is_integer()


def fed(count: int, run: Run, begin: int = 0) -> Run:
    for number in range(begin, begin + count):
        run.attempt(number * 0.01, number * 0.01 + 0.5 + number % 7, name=f"fit {number}", cpu=0.4, peak=MIB)
    return run


def test_a_long_run_is_summed_and_its_first_attempts_are_kept() -> None:
    run = fed(WHOLE + 2500, Run())
    run.attempt(0.0, 1000.0, name="slow")
    report = run.report()
    assert (len(report.attempts), report.attempts_left_out, report.counts.attempts) == (WHOLE, 2501, WHOLE + 2501)
    assert report.cpu_time == pytest.approx(0.4 * (WHOLE + 2500))
    assert sum(report.timeline.given) * report.timeline.bin_seconds == pytest.approx(
        sum(0.5 + number % 7 for number in range(WHOLE + 2500)) + 1000, rel=0.01
    )
    assert (report.slowest[0].name, len(report.slowest)) == ("slow", SLOWEST)
    assert run.report() == report  # to look does not change it


def test_200_000_attempts_take_no_more_memory_than_50_000() -> None:
    run = Run()
    run.join(1, 4)
    task = Task(1, 1, failed_request(), attempt=1)
    task.lane = run._lane(1, ONE_CPU)

    def feed(begin: int, end: int) -> int:
        for number in range(begin, end):
            at, usage = BEGIN + number * 0.01, protocol.Usage(0.4 + number, 0.1, MIB + number)
            report = protocol.Finished(1, 1, protocol.VALUE, started=at, ended=at + 0.5 + number % 7, usage=usage)
            run.recorder.attempt(WorkerId(1), task, report)
        gc.collect()
        return sys.getallocatedblocks()

    before = feed(0, 50_000)
    after = feed(50_000, 200_000)
    assert after - before < 10_000  # a record has more than five
    assert run.report().counts.attempts == 200_000


def test_many_different_needs_and_agents_are_told_apart_to_a_limit() -> None:
    run = Run()
    for number in range(1, 3 * LANES):
        run.attempt(0.0, 1.0, worker=number, needs=needs_of(1, number))
    report = run.report()
    assert (len(report.lanes), len(report.usage)) == (LANES + 1, KINDS + 1)
    assert (report.lanes[-1].agent, report.lanes[-1].needs) == ("others", "others")
    assert sum(lane.attempts for lane in report.lanes) == sum(each.attempts for each in report.usage) == 3 * LANES - 1
    assert render_page(report).count('class="row"') <= 100


# ---- failures


def test_of_many_failures_the_first_are_told_and_all_are_counted() -> None:
    recorder = Recorder()
    for number in range(FAILURES + 50):
        recorder.settled(failed_request(number=number), None, ValueError(f"number {number}"))
    recorder.settled(failed_request(), None, KeyError("x"))
    report = make_report(recorder.snapshot())
    assert (len(report.failures), report.counts.failed) == (FAILURES, FAILURES + 51)
    assert report.failures_by_error == {"ValueError": FAILURES + 50, "KeyError": 1}


def test_a_failure_says_its_text_and_the_end_of_what_it_wrote_once() -> None:
    recorder, request = Recorder(), failed_request()
    stderr = "\n".join(f"line {number}" for number in range(100))
    request.future.tell_end(protocol.Finished(1, 1, protocol.EXITED, stderr=protocol.Tail(stderr.encode())))
    error = TaskDied("task 1 died\nThe end of its stderr:\n  line 99")
    error.__cause__ = RemoteTraceback('\n"""\ntask 1:\nTraceback: here\n"""')
    recorder.settled(request, None, error)
    [failed] = make_report(recorder.snapshot()).failures
    assert (failed.error, failed.text) == ("TaskDied", "task 1 died")
    assert failed.traceback.strip() == "task 1:\nTraceback: here"
    assert failed.stderr.splitlines() == [f"line {number}" for number in range(75, 100)]


def test_what_was_not_run_because_something_else_failed_is_no_failure() -> None:
    recorder = Recorder()
    recorder.settled(failed_request(), None, DependencyFailed("task 2 was not run"))
    report = make_report(recorder.snapshot())
    assert (report.counts.aborted, report.counts.failed, report.failures) == (1, 0, [])


def test_an_error_whose_text_cannot_be_had_is_told_without() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no")

    recorder = Recorder()
    recorder.settled(failed_request(), None, Mute())
    [failed] = make_report(recorder.snapshot()).failures
    assert failed.error == "Mute"


def test_who_sees_that_a_task_has_failed_finds_it_in_the_report() -> None:
    recorder, request = Recorder(), failed_request()
    known: list[bool] = []

    def on_end(request: Request, news: Any, error: BaseException | None) -> None:
        recorder.settled(request, news, error)
        known.append(request.future.done())

    deliver(request, ValueError("too much"), on_end)
    assert (known, request.future.done()) == ([False], True)
    assert make_report(recorder.snapshot()).counts.failed == 1


# ---- real runs


def complain(text: str) -> None:
    print(text, file=sys.stderr)
    raise ValueError(f"too much: {text}")


def fail_once(path: str) -> int:
    if not os.path.exists(path):
        Path(path).touch()
        raise ConnectionError("not yet")
    return 1


def test_a_run_in_numbers(new_executor: New, tmp_path: Path) -> None:
    executor = new_executor(2, agents=2)
    quiet = capturing(executor)
    outcome(quiet.submit(pow, 0, 2))
    wait_until(lambda: len(executor.workers()) == 2)
    squares = [quiet.submit(pow, number, 2) for number in range(10)]
    again = quiet.options(retries=1).submit(fail_once, str(tmp_path / "once"))
    bad = quiet.options(name="bad").submit(complain, "heat")
    never = quiet.options(after=[bad]).submit(pow, 1, 1)
    program = quiet.submit(sh("echo broken >&2; exit 3"))
    unsendable = quiet.submit(print, (each for each in ()))
    assert [outcome(future) for future in squares] == [number**2 for number in range(10)]
    assert outcome(again) == 1
    for future in (bad, never, program, unsendable):
        failure(future)
    report = executor.report()
    counts = report.counts
    assert (counts.submitted, counts.finished, counts.failed, counts.aborted, counts.unfinished) == (16, 12, 3, 1, 0)
    assert (counts.attempts, counts.retried) == (15, 1)
    told = {failed.task_id: failed for failed in report.failures}
    assert set(told) == {bad.task_id, program.task_id, unsendable.task_id}
    assert (told[bad.task_id].text, told[bad.task_id].stderr) == ("too much: heat", "heat")
    assert "in complain" in told[bad.task_id].traceback
    assert (told[program.task_id].returncode, told[program.task_id].stderr) == (3, "broken")
    assert len(report.agents) == 2
    assert executor.report() == report
    executor.shutdown()
    assert executor.report().counts == counts


def test_each_attempt_is_told_as_its_future_tells_it(new_executor: New) -> None:
    executor = new_executor(2)
    futures = {future.task_id: future for future in (executor.submit(sum, range(10**5)) for _ in range(5))}
    for future in futures.values():
        outcome(future)
    [worker] = executor.workers()
    report = executor.report()
    for attempt in report.attempts:
        future = futures.pop(attempt.task_id)
        assert (attempt.submitted, attempt.started, attempt.ended) == (future.submitted, future.started, future.ended)
        assert (attempt.cpu_time, attempt.max_rss) == (future.usage.cpu_time, future.usage.max_rss)
        assert attempt.agent == f"{worker.host} (process {worker.pid})"
    assert not futures


def test_a_report_in_the_midst_of_a_run_counts_what_has_not_ended(new_executor: New, gate: Any) -> None:
    executor = new_executor(1)
    held = executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals()
    waits = [executor.submit(pow, 2, 2) for _ in range(3)]
    assert waits[0].cancel()
    counts = executor.report().counts
    assert (counts.submitted, counts.cancelled, counts.unfinished) == (4, 1, 3)
    gate.open()
    outcome(held)
    assert held.cancel(kill=True) is False
    assert [outcome(future) for future in waits[1:]] == [4, 4]
    assert executor.report().counts.unfinished == 0


def test_who_is_killed_by_a_cancel_is_cancelled_and_nothing_else(new_executor: New, gate: Any) -> None:
    executor = new_executor(1)
    held = executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals()
    assert held.cancel(kill=True)
    assert outcome(executor.submit(pow, 2, 2)) == 4  # the place is free: the other one has ended
    executor.shutdown()
    counts = executor.report().counts
    assert (counts.finished, counts.failed, counts.cancelled, counts.unfinished) == (1, 0, 1, 0)


def test_where_no_page_can_be_written_is_said(new_executor: New, tmp_path: Path) -> None:
    executor = new_executor(1)
    with pytest.raises(TypeError, match=r"path=3: expected a file to write"):
        executor.report(3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        executor.report(tmp_path / "missing" / "run.html")


# ---- the page


class Structure(HTMLParser):
    """Each element that begins ends, in its turn; none loads anything."""

    ALONE = {"meta", "link", "img", "br", "hr", "input"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href", "srcset", "onclick", "onload"} & {name for name, _ in attrs}
        self.seen.append(tag)
        if tag not in self.ALONE:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.ALONE:
            assert self.open.pop() == tag


def check_page(page: str) -> Structure:
    structure = Structure()
    structure.feed(page)
    structure.close()
    assert structure.open == []
    assert "http" not in page.replace('<meta http-equiv="Content-Security-Policy"', "")
    assert "url(" not in page
    assert "@import" not in page
    page.encode()
    return structure


HOSTILE = "<script>alert('x')</script>\"&\x00\x1b[31m\udcff"


def hostile_report() -> Report:
    run = Run()
    run.recorder.joined(WorkerId(1), f"host{HOSTILE}", [Pool("cpus", [["0"]])], BEGIN)
    run.recorder.ends.submitted = 2
    run.attempt(0.0, 1.0, name=HOSTILE, how=protocol.ERROR)
    run.attempt(1.0, 2.0, name="fit")
    request, bad = failed_request(HOSTILE), type("Bad<script>", (Exception,), {})
    request.future.tell_end(protocol.Finished(1, 1, protocol.ERROR, stderr=protocol.Tail(HOSTILE[:-1].encode())))
    run.recorder.settled(request, None, bad(HOSTILE))
    return run.report()


def test_what_users_and_tasks_write_is_text_on_the_page() -> None:
    page = render_page(hostile_report())
    structure = check_page(page)
    assert structure.seen.count("script") == 1
    assert "alert('x')" not in page
    assert page.count("&lt;script&gt;") >= 5
    assert "\x00" not in page
    assert "\x1b" not in page


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    small, large = fed(10, Run()), fed(MOST_DRAWN + 1, Run())
    for run, rects in ((small, 10), (large, 0)):
        run.join(1, 4)
        report = run.report()
        structure = check_page(render_page(report))
        assert structure.seen.count("rect") == rects
        assert draws_attempts(report) == (rects > 0)


def test_who_prints_a_report_reads_a_line_and_a_notebook_shows_the_page() -> None:
    report = hostile_report()
    assert repr(report) == "<Report 1 failed, 1 unfinished; 2.0 s, 0.0 s of CPU time>"
    begin, page, end = report._repr_html_().split('"', 2)
    assert (begin, html.unescape(page), end[:7]) == ("<iframe srcdoc=", render_page(report), " style=")


def test_an_attempt_that_is_too_short_for_a_frame_has_none() -> None:
    """The frames of short attempts covered them: good ones were as white as the card, bad ones black."""
    run = Run()
    run.join(1, 4)
    run.attempt(0.0, 100.0)
    run.attempt(0.0, 0.1)
    run.attempt(1.0, 1.1, how=protocol.ERROR)
    assert re.findall('<rect class="([^"]*)"', render_page(run.report())) == ["c1", "c1 thin", "bad thin"]


def test_names_of_one_family_are_named_once_and_no_others_are_supposed() -> None:
    run = Run()
    for number in range(NAMES + 1):
        run.attempt(0.0, 1.0, name=f"train {number}")
    assert "<td>train …</td>" in render_page(run.report())


def test_the_page_of_a_long_run_is_small() -> None:
    run = fed(WHOLE + 1000, Run())
    run.join(1, 4)
    assert len(render_page(run.report())) < 200_000


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.001, 10)), max_size=40))
@EXACT
def test_attempts_in_one_row_never_meet_and_the_rows_are_as_few_as_can_be(times: list[tuple[float, float]]) -> None:
    attempts = [
        Attempt(number, "fit", 1, "node1", "1 CPU", 0.0, start, start + took, 0.0, 0, "finished")
        for number, (start, took) in enumerate(times)
    ]
    packed = pack(attempts)
    last: dict[int, float] = {}
    for row, attempt in packed:
        assert last.get(row, 0.0) <= attempt.started
        last[row] = attempt.ended
    most = max((sum(each.started <= at.started < each.ended for each in attempts) for at in attempts), default=0)
    assert len(last) <= max(most, 1 if attempts else 0)


def test_names_that_differ_by_numbers_have_one_colour() -> None:
    assert {family(name) for name in ("train rate=0.01", "train rate=10")} == {"train rate=…"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.012, "12 ms"), (4.44, "4.4 s"), (725, "12 min 5 s"), (11520, "3 h 12 min"), (86400, "1 d")],
)
def test_durations_as_people_read_them(seconds: float, text: str) -> None:
    assert render_seconds(seconds) == text


def test_marks_of_an_axis_are_few_and_round() -> None:
    assert [round_step(span, 8) for span in (0.4, 7, 40, 3600, 86400, 30 * 86400)] == [0.05, 1, 5, 600, 10800, 345600.0]
    assert [render_mark(at) for at in (0.5, 5.0, 120)] == ["0.5 s", "5 s", "2 min"]
    assert render_count(20000, "attempt") == "20\u202f000 attempts"
    assert [render_size(size) for size in (310 * MIB, 1.5 * GIB, 2048)] == ["310 MiB", "1.5 GiB", "2 KiB"]
    assert escape("a\x1b[31mb<") == "ab&lt;"


# ---- a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BROWSER = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage", "--no-first-run", "--enable-logging=stderr", "--dump-dom",
]  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium")
def test_a_browser_opens_the_page_without_complaint(tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    page.write_text(render_page(hostile_report()), encoding="utf-8")
    opened = subprocess.run(
        [str(CHROMIUM), *BROWSER, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, timeout=50, check=True,
    )  # fmt: skip
    assert [line for line in opened.stderr.splitlines() if "CONSOLE" in line] == []
    assert "Bad&lt;script&gt;" in opened.stdout
    assert re.search(r'<div class="tools">', opened.stdout)  # the script has run
