"""Batch jobs from their submission to their end: with "local" always, where there may be some in real batch systems."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from labs import Lab
from waiting import PATIENCE, wait_gone, wait_until

from executor import BatchArray, BatchJob, Job, JobStatus, get_scheduler, submit_natively
from executor.batch.handle import BatchHandle, find_submission, scheduler_of
from executor.batch.schedulers import Scheduler

pytestmark = pytest.mark.shared

_REAL = [pytest.param(kind, marks=pytest.mark.heavy) for kind in ("slurm", "grid engine")]
everywhere = pytest.mark.parametrize("kind", ["local", *_REAL], indirect=True, scope="session")
real = pytest.mark.parametrize("kind", _REAL, indirect=True, scope="session")
ROOT = str(Path(__file__).parents[2])


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def local() -> Scheduler:
    return get_scheduler("local", poll="100ms")


def ends(handle: BatchHandle) -> tuple[JobStatus, int | None]:
    return handle.wait(PATIENCE), handle.returncode


# ---- how they end


@everywhere
def test_a_job_ends_with_the_status_of_its_command(where: Scheduler) -> None:
    handle = BatchJob("echo out; echo err >&2; exit 7", name="seven, with a blank").submit(where)
    assert ends(handle) == (JobStatus.FAILED, 7)
    assert handle.is_complete
    assert sorted(handle.read_stdout().split()) == sorted(handle.read_stderr().split()) == ["err", "out"]
    assert Path(f"seven_with_a_blank-{handle.job_id}.out").exists()


@everywhere
def test_words_keep_their_quoting_and_text_is_for_the_shell(where: Scheduler) -> None:
    words = ["printf", "%s|", "a b", "$HOME", "it's", '"', "*", "new\nline"]
    by_words = BatchJob(words, stdout="words").submit(where)
    by_text = BatchJob("printf '%s|' $GREETING you", env={"GREETING": "hello to"}, stdout="text").submit(where)
    assert ends(by_words) == ends(by_text) == (JobStatus.COMPLETED, 0)
    assert by_words.read_stdout() == "".join(f"{word}|" for word in words[2:])
    assert by_text.read_stdout() == "hello|to|you|"


@everywhere
def test_output_goes_where_it_is_said_whatever_the_name(where: Scheduler, tmp_path: Path) -> None:
    job = BatchJob("pwd; echo oops >&2", workdir=tmp_path / "wörk d%jr", stdout="50%j.txt", stderr="logs/e-%{JOB_ID}")
    (tmp_path / "wörk d%jr").mkdir()
    handle = job.submit(where)
    assert ends(handle) == (JobStatus.COMPLETED, 0)
    assert handle.read_stdout() == f"{tmp_path}/wörk d%jr\n"
    assert handle.read_stderr() == (tmp_path / "wörk d%jr" / "logs" / f"e-{handle.job_id}").read_text() == "oops\n"


@everywhere
def test_a_job_waits_for_others_to_end_as_it_wants(where: Scheduler) -> None:
    bad = BatchJob("exit 1").submit(where)
    after = {
        kind: BatchJob("true", dependencies=[bad], dependency_type=kind).submit(where)
        for kind in ("afterok", "afterany", "afternotok")
    }
    assert {kind: handle.wait(PATIENCE).name for kind, handle in after.items()} == {
        "afterok": "FAILED" if where.name == "sge" else "CANCELLED", "afterany": "COMPLETED",
        "afternotok": "COMPLETED",
    }  # fmt: skip
    if where.name == "sge":  # which starts it, for it has no such dependencies: it finds that out by itself
        assert after["afterok"].read_stdout() == f"not run: afterok, and job {bad.job_id} has not ended well\n"
    else:
        assert "never" in after["afterok"].record.reason.lower()


@everywhere
def test_a_job_is_cancelled_while_it_runs_and_while_it_waits(where: Scheduler) -> None:
    running = BatchJob("echo $$ > pid; exec sleep 300").submit(where)
    waiting = BatchJob("true", dependencies=[running]).submit(where)
    wait_until(lambda: running.status is JobStatus.RUNNING, "it runs")
    with pytest.raises(TimeoutError, match=f"job {running.job_id} is running after 0 s"):
        running.wait(0)
    waiting.cancel()
    assert waiting.wait(PATIENCE) is JobStatus.CANCELLED
    running.cancel()
    assert running.wait(PATIENCE) is JobStatus.CANCELLED
    running.cancel()  # it has ended: nothing is to be done


@everywhere
def test_an_array_has_a_status_for_each_number(where: Scheduler) -> None:
    job = BatchJob('echo "<$HPC_ARRAY_INDEX>"; exit $((HPC_ARRAY_INDEX - 1))')
    array = BatchArray(job, 1, 4, max_concurrent=2).submit(where)
    last = BatchJob("true", dependencies=[array], dependency_type="afterany").submit(where)
    statuses = array.wait(PATIENCE)
    assert {index: status.name for index, status in statuses.items()} == {
        1: "COMPLETED", 2: "FAILED", 3: "FAILED", 4: "FAILED",
    }  # fmt: skip
    assert array.returncodes == {1: 0, 2: 1, 3: 2, 4: 3}
    assert [array.read_stdout(index) for index in range(1, 5)] == ["<1>\n", "<2>\n", "<3>\n", "<4>\n"]
    assert last.wait(PATIENCE) is JobStatus.COMPLETED


@everywhere
def test_one_task_of_an_array_is_cancelled_by_itself(where: Scheduler) -> None:
    array = BatchArray(BatchJob('[ "$HPC_ARRAY_INDEX" = 1 ] || exec sleep 300'), 1, 3).submit(where)
    wait_until(lambda: array.statuses[1] is JobStatus.COMPLETED and array.statuses[3] is JobStatus.RUNNING, "they run")
    array.cancel(2)
    wait_until(lambda: array.statuses[2] is JobStatus.CANCELLED, "the second one is cancelled")
    assert array.statuses[3] is JobStatus.RUNNING
    array.cancel()
    assert array.wait(PATIENCE)[3] is JobStatus.CANCELLED
    assert array.is_complete


@everywhere
def test_a_graph_runs_as_native_jobs(where: Scheduler, tmp_path: Path) -> None:
    job = Job()
    first = job.program(["sh", "-c", "echo first > order"])
    bad = job.program(["sh", "-c", "cat order; exit 3"], deps=[first], stdout="seen")
    good = job.program(["sh", "-c", "echo good >> order"], deps=[first])
    last = job.program(["sh", "-c", "echo last >> order"], deps=[first, good])
    never = job.program(["sh", "-c", "echo never >> order"], deps=[good, bad])
    handles = submit_natively(job, where)
    assert [ends(handles[task.id]) for task in (first, good, last)] == [(JobStatus.COMPLETED, 0)] * 3
    assert ends(handles[bad.id]) == (JobStatus.FAILED, 3)
    assert handles[never.id].wait(PATIENCE) in (JobStatus.CANCELLED, JobStatus.FAILED)
    assert (tmp_path / "order").read_text() == "first\ngood\nlast\n"


@real
def test_a_job_whose_time_is_over_is_ended(where: Scheduler, lab: Lab) -> None:
    handle = BatchJob("exec sleep 300", time=1).submit(where)
    wait_until(lambda: handle.status is not JobStatus.PENDING, "it runs")
    lab.end_time_of(handle.job_id)
    assert handle.wait(PATIENCE) is JobStatus.TIMEOUT


# ---- the script


def test_a_module_is_loaded_where_no_login_shell_has_made_it_known(local: Scheduler, tmp_path: Path) -> None:
    init = tmp_path / "modules" / "init" / "bash"
    init.parent.mkdir(parents=True)
    # as those of some sites do, it uses a status other than 0 on its way
    init.write_text('module() { false; [ "$2" = gcc/12 ] && export LOADED="$2"; }\n')
    env = {"MODULESHOME": str(tmp_path / "modules")}
    good = BatchJob("echo $LOADED", modules=["gcc/12"], env=env).submit(local)
    bad = BatchJob("echo not reached", modules=["gcc/12", "cuda/1 2"], env=env).submit(local)
    assert ends(good) == (JobStatus.COMPLETED, 0)
    assert good.read_stdout() == "gcc/12\n"
    assert ends(bad) == (JobStatus.FAILED, 1)
    assert bad.read_stdout() == "hpc-executor: module load cuda/1 2 failed\n"


def test_a_line_of_the_prologue_that_fails_is_named(local: Scheduler) -> None:
    handle = BatchJob("echo not reached", prologue="export A=1\ntest -d /not/there\n").submit(local)
    assert ends(handle) == (JobStatus.FAILED, 1)
    assert handle.read_stdout() == "hpc-executor: the prologue failed: test -d /not/there\n"


def test_a_command_may_fail_in_its_middle(local: Scheduler) -> None:
    """The prologue's strictness is not the command's."""
    assert ends(BatchJob("false\ntrue", prologue="true").submit(local)) == (JobStatus.COMPLETED, 0)


def test_nothing_is_submitted_or_made_for_a_look_at_the_script(local: Scheduler, tmp_path: Path) -> None:
    script = BatchJob(["echo", "a b"], stdout="new/out").script(local)
    assert script.startswith("#!/bin/bash\n")
    assert script.endswith("\necho 'a b'\n")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "state" / "hpc-executor" / "local").exists()


# ---- local jobs


def test_a_local_job_that_takes_too_long_is_ended(local: Scheduler, tmp_path: Path) -> None:
    handle = BatchJob(f"sleep 300 & echo $! > {tmp_path}/pid; wait", time=1).submit(local)
    assert ends(handle) == (JobStatus.TIMEOUT, None)
    wait_gone(int((tmp_path / "pid").read_text()))


def test_a_local_job_that_ignores_its_end_is_ended_all_the_same(local: Scheduler, tmp_path: Path) -> None:
    handle = BatchJob("trap '' TERM; sleep 300 & echo $! > pid; wait").submit(local)
    pid = int(wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "it runs"))
    handle.cancel()
    handle.cancel()  # it does not disturb the first one
    assert handle.wait(PATIENCE) is JobStatus.CANCELLED
    wait_gone(pid)


def test_of_a_local_array_only_so_many_run_at_a_time(local: Scheduler, tmp_path: Path) -> None:
    job = BatchJob(f"mkdir {tmp_path}/alone && sleep 0.05 && rmdir {tmp_path}/alone")
    array = BatchArray(job, 1, 5, max_concurrent=1).submit(local)
    assert set(array.wait(PATIENCE).values()) == {JobStatus.COMPLETED}


def test_a_local_job_whose_runner_was_killed_is_lost(local: Scheduler, tmp_path: Path) -> None:
    handle = BatchJob("echo $$ $PPID > pids; exec sleep 300").submit(local)
    pids = wait_until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text().split(), "it runs")
    script, runner = map(int, pids)
    os.kill(runner, signal.SIGKILL)
    assert handle.wait(PATIENCE) is JobStatus.LOST
    os.kill(script, signal.SIGKILL)


def test_a_local_job_may_be_cancelled_while_its_runner_starts(local: Scheduler, tmp_path: Path) -> None:
    """The signal killed the runner, as long as that had no handler, and the job was lost."""
    for _ in range(5):
        job = BatchJob("sleep 1000").submit(local)
        [runner] = (tmp_path / "state" / "hpc-executor" / "local" / job.job_id).glob("runner")
        lines = Path(f"/proc/{runner.read_text().split()[0]}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines)
        ignored_or_caught = int(status["SigIgn"], 16) | int(status["SigCgt"], 16)
        assert ignored_or_caught & 1 << signal.SIGTERM - 1
        job.cancel()
        assert job.wait(PATIENCE) is JobStatus.CANCELLED


def test_a_local_job_that_cannot_start_says_why(local: Scheduler, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    handle = BatchJob("true", stdout="out").submit(local)
    assert handle.wait(PATIENCE) is JobStatus.FAILED
    assert "Is a directory" in handle.record.reason


@everywhere
def test_a_job_goes_on_when_its_client_has_ended(where: Scheduler, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    code = f"from executor import BatchJob; print(BatchJob('cat gate', name='long').submit({where.name!r}).job_id)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, check=True
    )
    kept = find_submission(done.stdout.strip())
    handle = BatchHandle(kept, scheduler_of(kept))
    wait_until(lambda: handle.status is JobStatus.RUNNING, "it runs")
    (tmp_path / "gate").write_text("let in")
    assert handle.wait(PATIENCE) is JobStatus.COMPLETED
    assert handle.read_stdout() == "let in"


# ---- output


@pytest.mark.parametrize("tail", [0, 1, 3, 5000, None])
def test_the_last_lines_are_read_from_the_end(local: Scheduler, tail: int | None) -> None:
    handle = BatchJob("seq 1 30000; printf end", stdout="out").submit(local)
    assert handle.wait(PATIENCE) is JobStatus.COMPLETED
    lines = Path("out").read_text().splitlines(keepends=True)
    assert handle.read_stdout(tail) == "".join(lines if tail is None else lines[len(lines) - tail :])


def test_output_that_is_not_there_is_an_error(local: Scheduler) -> None:
    handle = BatchJob("rm out", stdout="out").submit(local)
    handle.wait(PATIENCE)
    with pytest.raises(FileNotFoundError, match="out"):
        handle.read_stdout()
    with pytest.raises(ValueError, match="tail=-1"):
        handle.read_stdout(-1)
