"""Jobs that run: in which order, how often at a time, what becomes of the rest when something fails."""
# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, ClassVar

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import PATIENCE, gate, new_executor, sh
from waiting import Gate, announce, announced, pass_gate, wait_until

from executor import (
    CAPTURE,
    DependencyFailed,
    HPCExecutor,
    Job,
    JobError,
    Pipeline,
    ProgramFailed,
    SubmittedJob,
    TaskFuture,
    UnsatisfiableRequest,
)
from executor.counts import Counts
from executor.jobs import submitted as submitted_module

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.shared

New = Callable[..., HPCExecutor]


def fail(text: str = "no") -> None:
    raise ValueError(text)


def add(*numbers: Any) -> Any:
    return sum(each if isinstance(each, int) else sum(each) for each in numbers)


def named(**values: Any) -> Any:
    return values


def square(number: int) -> int:
    return number * number


def count_those_that_run(folder: str, number: int) -> int:
    """How many run at this moment, it included."""
    path = os.path.join(folder, str(number))
    open(path, "x").close()
    running = len(os.listdir(folder))
    os.remove(path)
    return running


def ended(job: SubmittedJob) -> SubmittedJob:
    """The same, when all its tasks have ended."""
    job.wait(PATIENCE / 2)
    return job


# ---- results


def test_functions_get_the_results_of_tasks_and_arrays(new_executor: New) -> None:
    job = Job()
    one = job.function(add, args=[1], name="one")
    squares = job.array(square, entries=[2, 3], name="squares")
    job.function(named, kwargs={"one": one, "all": squares, "both": {"list": [one, (squares,)]}}, name="last")
    submitted = ended(new_executor(2).submit_job(job))
    assert submitted.futures["last"].result() == {"one": 1, "all": [4, 9], "both": {"list": [1, ([4, 9],)]}}
    assert [each.result() for each in submitted.futures["squares"]] == [4, 9]
    assert submitted.futures[2] is submitted.futures["squares"][1]
    assert list(submitted.futures) == [0, 1, 2, 3]
    assert (submitted.state, submitted.counts()) == ("finished", {"finished": 4})


def test_tasks_start_after_those_that_they_depend_on(new_executor: New, tmp_path: Path) -> None:
    job = Job(cwd=tmp_path)
    job.program(["sh", "-c", "cat a b c"], name="read", deps=["a", "rest"], stdout=str(tmp_path / "all"))
    job.program(["sh", "-c", "echo a >a"], name="a")
    job.array(["sh", "-c", "echo $HQ_ENTRY >$HPC_ENTRY"], entries=["b", "c"], name="rest", deps=["a"])
    assert new_executor(2).submit_job(job).wait(PATIENCE / 2)
    assert (tmp_path / "all").read_text() == "a\nb\nc\n"


def test_its_futures_come_as_they_end_as_often_as_one_asks(new_executor: New, gate: Gate) -> None:
    job = Job()
    held = job.function(pass_gate, args=gate.paths)
    job.function(square, args=[3])
    submitted = new_executor(2).submit_job(job)
    futures = iter(submitted)
    assert next(futures).result() == 9
    wait_until(lambda: submitted.state_of(held.id) == "running")
    assert (submitted.done(), submitted.state) == (False, "running")
    with pytest.raises(TimeoutError, match="1 of 2 tasks have not ended"):
        submitted.wait(0.01)
    gate.open()
    assert [each.task_id for each in futures] == [submitted.futures[held.id].task_id]
    assert len(list(submitted)) == 2


def test_arrays_run_no_more_at_a_time_than_they_may(new_executor: New, tmp_path: Path) -> None:
    job, folder = Job(), tmp_path / "running"
    folder.mkdir()
    job.array(count_in(str(folder)), ids="0-19", max_concurrent=2)
    submitted = ended(new_executor(2, max_tasks_per_child=None).submit_job(job))
    assert max(each.result() for each in submitted) <= 2
    one_by_one = Job()
    one_by_one.array(count_in(str(folder)), ids="0-9", max_concurrent=1)
    submitted = ended(new_executor(2, max_tasks_per_child=None).submit_job(one_by_one))
    assert {each.result() for each in submitted} == {1}


def count_in(folder: str) -> Callable[[int], int]:
    return lambda number: count_those_that_run(folder, number)


# ---- what tasks see


def test_a_program_knows_its_job_its_number_and_where_it_comes_from(
    new_executor: New, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = Job(env={"OF_JOB": "1", "BOTH": "job"})
    line = "echo $HQ_JOB_ID $HQ_TASK_ID $HQ_SUBMIT_DIR $HPC_JOB_ID $HPC_JOB_TASK_ID $HPC_SUBMIT_DIR $OF_JOB $BOTH"
    job.program(["sh", "-c", line], id=7, env={"BOTH": "task"}, stdout=CAPTURE)
    executor = new_executor()
    for number in (1, 2):
        submitted = ended(executor.submit_job(job))
        assert submitted.id == number
        where = f"{number} 7 {tmp_path}"
        assert submitted.futures[7].stdout == f"{where} {where} 1 task\n"


def test_paths_are_those_of_the_job_and_placeholders_are_filled_in(new_executor: New, tmp_path: Path) -> None:
    (tmp_path / "run-1" / "5").mkdir(parents=True)
    job = Job(cwd=tmp_path)
    job.array(["sh", "-c", "pwd"], ids="5", cwd="run-%{JOB_ID}/%{TASK_ID}", stdout="%{CWD}/../out-%{TASK_ID}-%{OTHER}")
    submitted = new_executor().submit_job(job)
    assert submitted.wait(PATIENCE / 2)
    assert (tmp_path / "run-1" / "out-5-%{OTHER}").read_text() == f"{tmp_path}/run-1/5\n"


def test_the_options_of_a_view_are_those_of_its_jobs(new_executor: New, tmp_path: Path) -> None:
    job = Job()
    job.program(["pwd"])
    job.program(["pwd"], cwd="sub", stdout=CAPTURE)
    (tmp_path / "sub").mkdir()
    submitted = ended(new_executor().options(cwd=tmp_path, stdout=CAPTURE, name="view").submit_job(job))
    assert [each.stdout for each in submitted.futures.values()] == [f"{tmp_path}\n", f"{tmp_path}/sub\n"]
    assert [each.name for each in submitted.futures.values()] == ["pwd", "pwd"]


# ---- failures


def test_what_failed_is_told_with_its_files_and_what_needed_it_is_aborted(new_executor: New, tmp_path: Path) -> None:
    job = Job(cwd=tmp_path)
    bad = job.program(["sh", "-c", "echo why >&2; exit 3"], stderr="bad-%{TASK_ID}", name="bad")
    job.program(["true"], deps=[bad], name="never")
    job.program(["true"], name="other")
    submitted = new_executor(2).submit_job(job)
    assert submitted.wait(PATIENCE / 2) is False
    assert (submitted.state, submitted.counts()) == ("failed", {"failed": 1, "aborted": 1, "finished": 1})
    assert isinstance(submitted.futures["never"].exception(), DependencyFailed)
    [(number, failed)] = submitted.failed().items()
    assert number == 0
    assert isinstance(failed.error, ProgramFailed)
    assert (failed.cwd, failed.stdout, failed.stderr) == (str(tmp_path), None, str(tmp_path / "bad-0"))
    assert (tmp_path / "bad-0").read_text() == "why\n"


@pytest.mark.parametrize(("max_fails", "failures"), [(0, 1), (1, 2), (None, 4)])
def test_when_too_many_have_failed_the_rest_is_aborted(
    new_executor: New, max_fails: int | None, failures: int
) -> None:
    job = Job(max_fails=max_fails)
    job.array(["sh", "-c", "exit $HQ_ENTRY"], entries=list("011110"), max_concurrent=1)
    submitted = new_executor().submit_job(job)
    assert submitted.wait(PATIENCE / 2) is False
    counts = submitted.counts()
    assert counts["failed"] == failures
    assert counts["aborted"] == (0 if max_fails is None else 5 - failures)
    assert set(submitted.failed()) == set(range(1, 1 + failures))


def test_what_runs_when_too_many_have_failed_is_ended(new_executor: New, gate: Gate) -> None:
    job = Job(max_fails=0)
    running = job.function(pass_gate, args=gate.paths)
    bad = job.function(fail_after_arrival, args=[str(gate.arrivals)])
    job.function(square, args=[bad])
    submitted = ended(new_executor(2).submit_job(job))
    assert [submitted.state_of(each) for each in (running.id, bad.id, 2)] == ["aborted", "failed", "aborted"]
    assert submitted.state == "failed"


def fail_after_arrival(arrivals: str) -> None:
    wait_until(lambda: announced(arrivals))
    raise ValueError


def test_a_whole_array_that_failed_in_part_fails_who_needs_it_at_once(new_executor: New, gate: Gate) -> None:
    job = Job()
    array = job.array(pass_gate_if(gate.paths), entries=[False, True])
    last = job.function(square, args=[3], deps=[array])
    submitted = new_executor(2).submit_job(job)
    error = submitted.futures[last.id].exception(PATIENCE / 2)
    assert isinstance(error, DependencyFailed)
    gate.open()
    assert ended(submitted).counts() == {"failed": 1, "finished": 1, "aborted": 1}


def pass_gate_if(paths: tuple[str, str]) -> Callable[[bool], None]:
    def task(waits: bool) -> None:
        if not waits:
            raise ValueError
        pass_gate(*paths)

    return task


def test_a_job_that_is_cancelled_ends_whatever_it_does(new_executor: New, gate: Gate) -> None:
    job = Job()
    array = job.array(pass_gate_always(gate.paths), ids="0-5")
    job.function(square, args=[3], deps=[array])
    submitted = new_executor(2).submit_job(job)
    gate.wait_arrivals(2)
    submitted.cancel()
    assert ended(submitted).counts() == {"cancelled": 7}
    assert submitted.state == "cancelled"
    assert submitted.failed() == {}
    with pytest.raises(CancelledError):
        submitted.futures[0].result()


def pass_gate_always(paths: tuple[str, str]) -> Callable[[int], Any]:
    return lambda _: pass_gate(*paths)


def test_of_what_is_submitted_after_too_much_has_failed_nothing_runs(new_executor: New, tmp_path: Path) -> None:
    """Tasks were submitted and cancelled one by one: some had started by then, and some failed by being ended."""
    job = Job(max_fails=0)
    job.function(square, args=[threading.Lock()], name="cannot be sent")
    job.array(["touch", f"{tmp_path}/%{{TASK_ID}}"], ids="1-500")
    submitted = ended(new_executor(2).submit_job(job))
    assert (submitted.state, submitted.counts()) == ("failed", {"failed": 1, "aborted": 500})
    assert list(tmp_path.iterdir()) == []


def test_of_a_job_that_is_aborted_no_task_fails_by_being_ended(new_executor: New) -> None:
    """A task that was ended before its future was cancelled had failed, by its being ended."""
    job = Job(max_fails=0)
    job.array(fail_if_first, ids="0-2999")
    submitted = ended(new_executor(2, max_tasks_per_child=None).submit_job(job))
    counts = submitted.counts()
    assert counts["failed"] == 1
    assert set(counts) <= {"failed", "aborted", "finished"}


def fail_if_first(number: int) -> None:
    if not number:
        raise ValueError


def test_a_job_with_a_task_that_can_never_run_is_refused_before_anything_starts(
    new_executor: New, tmp_path: Path
) -> None:
    """Those that were written before it had been submitted, and nobody had them in hand."""
    job = Job()
    job.program(["touch", str(tmp_path / "ran")])
    job.program(["true"], name="big", cpus=999)
    executor = new_executor()
    with pytest.raises(UnsatisfiableRequest, match="'big' needs cpus=999"):
        executor.submit_job(job)
    assert executor.submit(square, 3).result(PATIENCE / 2) == 9
    assert not (tmp_path / "ran").exists()
    assert executor.counts().total == 1


def test_what_cannot_be_submitted_whole_is_cancelled(new_executor: New, gate: Gate) -> None:
    executor = new_executor(2)
    job = Job()
    job.function(pass_gate, args=gate.paths)
    job.function(square, args=[ShutsDown(executor, gate)])
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit_job(job)
    executor.shutdown()
    assert executor.counts() == Counts(1, cancelled=1, running=0)


class ShutsDown:
    """Whoever pickles it finds the executor shut down."""

    def __init__(self, executor: HPCExecutor, gate: Gate) -> None:
        self._executor, self._gate = executor, gate

    def __reduce__(self) -> Any:
        self._gate.wait_arrivals(1)
        self._executor.shutdown(wait=False)
        return int, ()


def test_who_needs_an_array_learns_which_of_its_tasks_has_failed(new_executor: New) -> None:
    """The error named a future of ours."""
    job = Job()
    array = job.array(fail_if_first, ids="0-1", name="fits")
    job.function(square, args=[3], deps=[array])
    submitted = ended(new_executor(2).submit_job(job))
    error = submitted.futures[2].exception()
    assert isinstance(error, DependencyFailed)
    assert (error.failed, error.future) == ("fits[0]", submitted.futures[0])
    assert isinstance(error.__cause__, ValueError)


def test_who_needs_an_array_of_which_a_task_was_cancelled_is_cancelled(new_executor: New, gate: Gate) -> None:
    """As who needs a task that was cancelled."""
    job = Job()
    array = job.array(pass_gate_always(gate.paths), ids="0-1")
    job.function(square, args=[3], deps=[array])
    submitted = new_executor(2).submit_job(job)
    assert submitted.futures[1].cancel(kill=True)
    gate.open()
    assert ended(submitted).counts() == {"finished": 1, "cancelled": 2}


def test_of_a_failed_task_whose_output_is_in_a_stream_is_told_how_to_see_it(new_executor: New, tmp_path: Path) -> None:
    job = Job(stream=tmp_path / "a stream", cwd=tmp_path)
    job.program(["sh", "-c", "echo why >&2; exit 3"])
    job.program(["sh", "-c", "echo what; exit 3"], stderr="err")
    job.program(["sh", "-c", "exit 3"], stdout=CAPTURE, stderr=CAPTURE)
    failed = ended(new_executor().submit_job(job)).failed()
    assert [each.stream for each in failed.values()] == [str(tmp_path / "a stream")] * 2 + [None]
    shown = []
    for each in (failed[0], failed[1]):
        assert each.command is not None
        program, *arguments = shlex.split(each.command)
        assert program == "hpc-executor"
        done = subprocess.run([sys.executable, "-m", "executor", *arguments], capture_output=True, check=True)
        shown.append(done.stdout)
    assert shown == [b"why\n", b"what\n"]
    assert failed[2].command is None


def test_a_name_is_what_it_was_written_as(new_executor: New) -> None:
    """Of "train/first", what is before the slash was left out, as of the path of a program."""
    job = Job()
    job.program(["/bin/true"], name="train/first")
    job.program(["/bin/true"])
    job.array(["/bin/true"], ids="7", name="a/b")
    submitted = ended(new_executor().submit_job(job))
    assert [submitted.futures[number].name for number in (0, 1, 7)] == ["train/first", "true", "a/b[7]"]


def test_what_is_no_job_is_refused(new_executor: New) -> None:
    with pytest.raises(TypeError, match=r"job='study.toml': expected a Job; Job.from_file\(\) makes one"):
        new_executor().submit_job("study.toml")  # type: ignore[arg-type]  # that is what is tested


# ---- any job


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Job, dict[int, list[int]], set[int]]:
    """One, what each of its tasks needs, and those that fail."""
    job, needs = Job(max_fails=draw(st.none() | st.integers(0, 2))), {}
    order = draw(st.permutations(range(draw(st.integers(1, 8)))))
    bad = draw(st.sets(st.sampled_from(order)))
    for place, number in enumerate(order):
        needs[number] = draw(st.lists(st.sampled_from(order[:place]), unique=True)) if place else []
    for number in sorted(needs):
        job.function(divmod, args=[1, 0 if number in bad else 1], id=number, deps=needs[number])
    return job, needs, bad


def test_any_graph_runs_in_its_order_and_what_fails_keeps_from_running_what_needs_it(new_executor: New) -> None:
    executor = new_executor(2, max_tasks_per_child=None)

    @given(jobs())
    @settings(max_examples=60, derandomize=True, database=None, deadline=None)
    def check(drawn: tuple[Job, dict[int, list[int]], set[int]]) -> None:
        job, needs, bad = drawn
        submitted = ended(executor.submit_job(job))
        states = {number: submitted.state_of(number) for number in needs}
        assert {number for number, state in states.items() if state == "failed"} <= bad
        ran = [number for number, state in states.items() if state in ("finished", "failed")]
        assert all(states[need] == "finished" for number in ran for need in needs[number])
        if job.max_fails is None or len(submitted.failed()) <= job.max_fails:
            assert all(state != "aborted" or any(states[need] != "finished" for need in needs[number])
                       for number, state in states.items())  # fmt: skip
        else:
            assert submitted.state == "failed"
        places = {number: place for place, number in enumerate(submitted.ended())}
        assert all(places[need] < places[number] for number in ran for need in needs[number])

    check()


def test_whose_turn_has_not_come_does_not_start_once_too_much_has_failed(new_executor: New) -> None:
    """The end of the task that was one too many made it the turn of the next one."""
    executor = new_executor(1, max_tasks_per_child=None)

    @given(st.integers(0, 3), st.lists(st.booleans(), min_size=5, max_size=12))
    @settings(max_examples=25, derandomize=True, database=None, deadline=None)
    def check(max_fails: int, fails: list[bool]) -> None:
        job = Job(max_fails=max_fails)
        job.array(fail_if, entries=fails, max_concurrent=1)
        submitted = ended(executor.submit_job(job))
        allowed = next((end for end in range(len(fails)) if sum(fails[: end + 1]) > max_fails), len(fails))
        late = range(allowed + 1, len(fails))
        assert [number for number in late if submitted.futures[number].attempt] == []
        assert submitted.counts()["aborted"] == len(late)

    check()


def fail_if(bad: bool) -> None:
    if bad:
        raise ValueError


class Late:
    """An argument of a task that is submitted when all before it have ended or were cancelled."""

    cancelled: ClassVar[threading.Event]

    def __reduce__(self) -> Any:
        assert self.cancelled.wait(PATIENCE)
        return str, ("late",)


def test_whose_turn_comes_while_it_is_submitted_does_not_start_once_too_much_has_failed(
    new_executor: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not yet among those that were cancelled, and the one before it gave it its turn."""
    executor = new_executor(1, max_tasks_per_child=None)
    monkeypatch.setattr(Late, "cancelled", threading.Event(), raising=False)
    cancel_all, cancel = submitted_module.cancel_all, TaskFuture.cancel

    def cancel_all_but_the_late(futures: list[TaskFuture]) -> None:
        cancel_all(futures)
        Late.cancelled.set()

    def cancel_late(future: TaskFuture, *, kill: bool = False) -> bool:
        if Late.cancelled.is_set() and not future.done():
            assert executor.submit(pow, 2, 3).result() == 8  # what may start has started then
        return cancel(future, kill=kill)

    monkeypatch.setattr(submitted_module, "cancel_all", cancel_all_but_the_late)
    monkeypatch.setattr(TaskFuture, "cancel", cancel_late)
    job = Job(max_fails=0)
    job.array(fail_if, entries=[True, False, Late()], max_concurrent=1)
    submitted = ended(executor.submit_job(job))
    assert [submitted.futures[number].attempt for number in range(3)] == [1, 0, 0]


def test_nothing_runs_of_a_job_whose_tasks_need_each_other(new_executor: New, tmp_path: Path) -> None:
    job = Job()
    job.program(["touch", str(tmp_path / "ran")])
    job.program(["true"], name="a", deps=["b"])
    job.program(["true"], name="b", deps=["a"])
    executor = new_executor()
    with pytest.raises(JobError, match="a -> b -> a|b -> a -> b"):
        executor.submit_job(job)
    assert executor.submit(square, 3).result(PATIENCE / 2) == 9
    assert not (tmp_path / "ran").exists()


def test_an_array_after_an_array_costs_what_both_have(new_executor: New) -> None:
    """Each task of the second one waits for all of the first one: that is one thing to wait for."""
    job = Job()
    first = job.array(square, ids="0-1999")
    second = job.array(square, ids="10000-11999", deps=[first])
    submitted = new_executor(2, max_tasks_per_child=None).submit_job(job)
    assert len(submitted._gates[second].__dict__["_done_callbacks"]) == 0
    assert submitted.wait(PATIENCE)
    assert submitted.counts() == {"finished": 4000}


# ---- pipelines


def test_steps_run_in_the_order_of_their_names(new_executor: New, tmp_path: Path) -> None:
    executor = new_executor(2).options(cwd=tmp_path)
    with Pipeline("ml", executor=executor) as pipeline:
        pipeline.add("sh -c 'cat data >model'", name="train", depends_on="prepare", cpus=2, memory="1MiB")
        pipeline.add("echo $((1 + 1)) | cat >data", name="prepare", shell=True)
        pipeline.add(["cp", "model", "a copy"], depends_on=["train", "prepare"])
    assert pipeline.wait(PATIENCE / 2)
    assert list(pipeline.results) == ["train", "prepare", "step_3"]
    assert all(isinstance(each, TaskFuture) for each in pipeline.results.values())
    assert (tmp_path / "a copy").read_text() == "2\n"
    with pytest.raises(JobError, match="'ml' was submitted already"):
        pipeline.add("true")


def test_a_pipeline_that_was_not_written_to_its_end_does_not_run(new_executor: New, tmp_path: Path) -> None:
    executor = new_executor()
    with pytest.raises(ZeroDivisionError), Pipeline(executor=executor) as pipeline:
        pipeline.add(f"touch {tmp_path}/ran")
        1 / 0  # noqa: B018
    assert pipeline.results == {}
    assert executor.submit(square, 3).result(PATIENCE / 2) == 9
    assert not (tmp_path / "ran").exists()


def test_a_command_with_an_open_quote_is_refused(new_executor: New) -> None:
    pipeline = Pipeline(executor=new_executor())
    with pytest.raises(JobError, match="cannot be split into words"):
        pipeline.add("echo 'a")
    with pytest.raises(TypeError, match="a line of text"):
        pipeline.add(["echo"], shell=True)


# ---- numbers


def test_output_of_an_earlier_run_is_not_overwritten(
    new_executor: New, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of jobs begin anew with each executor."""
    monkeypatch.chdir(tmp_path)
    job = Job()
    job.program(["pwd"], stdout="job-%{JOB_ID}/out", name="a")
    other = Job()
    other.program(["pwd"])
    (tmp_path / "job-2").mkdir()
    assert [ended(new_executor().submit_job(job)).id for _ in range(2)] == [1, 3]
    executor = new_executor()
    assert [ended(executor.submit_job(each)).id for each in (other, job, other)] == [1, 4, 5]
    written = sorted(str(each.relative_to(tmp_path)) for each in tmp_path.glob("job-*/*"))
    assert written == ["job-1/out", "job-3/out", "job-4/out"]
