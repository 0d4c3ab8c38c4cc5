"""Batch jobs in a batch system that forgets, refuses, or is away: commands of ours in PATH."""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE, wait_until

from executor import BatchCommandFailed, BatchJob, Job, JobStatus, get_scheduler, submit_natively
from executor.batch import poller, watch
from executor.batch.schedulers import Scheduler

pytestmark = pytest.mark.shared

Tool = Callable[[str, str], None]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Writes a command of a batch system; it is replaced at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(poller, "_pollers", {})  # one that has never been asked, and has not learned to hurry
    (tmp_path / "bin").mkdir()

    def write(name: str, text: str) -> None:
        new = tmp_path / "bin" / f".{name}"
        new.write_text(f"#!/bin/sh\n{text}\n")
        new.chmod(0o755)
        new.rename(tmp_path / "bin" / name)

    for name in ("scontrol", "sacct"):
        write(name, "echo 'Invalid job id specified' >&2; exit 1")
    write("sbatch", f"cat > /dev/null; echo x >> {tmp_path}/count; wc -l < {tmp_path}/count")
    write("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    return write


@pytest.fixture
def slurm(tool: Tool) -> Scheduler:
    return get_scheduler("slurm", poll="100ms")


def rows(*rows: str) -> str:
    """A squeue that tells this."""
    return "\n".join(f"echo '{row}'" for row in rows)


def test_a_refused_job_quotes_the_command_and_what_it_said(tool: Tool, slurm: Scheduler) -> None:
    tool("sbatch", "echo 'sbatch: error: invalid partition specified: fast' >&2; exit 1")
    with pytest.raises(
        BatchCommandFailed, match=r"sbatch --parsable ended with status 1: sbatch: error: .*: fast"
    ) as e:
        BatchJob("true", queue="fast").submit(slurm)
    copy = pickle.loads(pickle.dumps(e.value))
    assert (copy.command, copy.returncode) == (["sbatch", "--parsable"], 1)
    assert copy.output == "sbatch: error: invalid partition specified: fast"


def test_what_is_not_listed_has_not_ended(tool: Tool, slurm: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MISSING", 0.0)
    handle = BatchJob("true").submit(slurm)
    asked = Path("asked")
    tool("scontrol", f"echo >> {asked.absolute()}; exit 1")
    wait_until(lambda: asked.exists() and len(asked.read_text()) > 2, "it is asked for by itself")
    assert handle.status is JobStatus.PENDING
    tool("squeue", rows("1|1|RUNNING|None|n1"))
    wait_until(lambda: handle.status is JobStatus.RUNNING, "it is listed again")
    tool("squeue", rows("1|1|PENDING|BeginTime|"))
    wait_until(lambda: handle.status is JobStatus.PENDING, "it was requeued")
    tool("squeue", rows("1|1|COMPLETED|None|n1"))
    assert (handle.wait(PATIENCE), handle.returncode) == (JobStatus.COMPLETED, 0)


def test_of_a_job_that_was_forgotten_its_script_tells_the_end(
    slurm: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "MISSING", 0.0)
    handle = BatchJob("exit 3").submit(slurm)
    Path(handle.submission.exit_file).write_text("")  # it is being written
    Path(handle.submission.exit_file).write_text("3\n")
    assert (handle.wait(PATIENCE), handle.returncode) == (JobStatus.FAILED, 3)


def test_a_job_of_which_nobody_tells_is_lost_some_time(slurm: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MISSING", 0.0)
    monkeypatch.setattr(watch, "LOST_AFTER", 0.2)
    handle = BatchJob("true").submit(slurm)
    assert handle.wait(PATIENCE) is JobStatus.LOST
    assert "has not told of it" in handle.record.reason


def test_a_controller_that_is_away_ends_no_job(
    tool: Tool, slurm: Scheduler, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "MISSING", 0.0)
    monkeypatch.setattr(watch, "LOST_AFTER", 0.0)
    asked = Path("asked").absolute()
    tool("squeue", f"echo >> {asked}; echo 'Unable to contact slurm controller' >&2; exit 1")
    with caplog.at_level(logging.WARNING, "executor"):
        handle = BatchJob("true").submit(slurm)
        wait_until(lambda: asked.exists() and len(asked.read_text()) > 3, "it was asked several times")
    assert handle.status is JobStatus.PENDING
    assert len([each for each in caplog.messages if "Unable to contact" in each]) == 1  # and not once each time
    tool("squeue", rows("1|1|COMPLETED|None|n1"))
    assert handle.wait(PATIENCE) is JobStatus.COMPLETED


def test_an_adapter_that_fails_ends_nobodys_wait(
    tool: Tool, slurm: Scheduler, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_records = type(slurm.system).read_records
    monkeypatch.setattr(type(slurm.system), "read_records", lambda *_: 1 / 0)
    handle = BatchJob("true").submit(slurm)
    wait_until(lambda: "ZeroDivisionError" in caplog.text, "it has failed")
    monkeypatch.setattr(type(slurm.system), "read_records", read_records)
    tool("squeue", rows("1|1|COMPLETED|None|n1"))
    assert handle.wait(PATIENCE) is JobStatus.COMPLETED


def test_all_jobs_of_the_process_are_asked_for_by_one_command(tool: Tool, slurm: Scheduler) -> None:
    log = Path("asked").absolute()
    running = [f"{number}|{number}|RUNNING|None|n1" for number in range(1, 6)]
    tool("squeue", f'echo "$6" >> {log}; {rows(*running)}'.replace("\n", "; "))
    handles = [BatchJob("true").submit(slurm) for _ in range(5)]
    wait_until(lambda: all(each.status is JobStatus.RUNNING for each in handles), "all run")
    count = len(log.read_text().splitlines())
    wait_until(lambda: len(log.read_text().splitlines()) > count + 2, "they are asked for again")
    assert set(log.read_text().splitlines()[count:]) == {"1,2,3,4,5"}
    tool("squeue", rows(*(each.replace("RUNNING", "COMPLETED") for each in running)))
    assert {each.wait(PATIENCE) for each in handles} == {JobStatus.COMPLETED}


def test_a_cancel_that_fails_says_so(tool: Tool, slurm: Scheduler) -> None:
    tool("scancel", "echo 'scancel: error: Access/permission denied' >&2; exit 1")
    handle = BatchJob("true").submit(slurm)
    with pytest.raises(BatchCommandFailed, match="permission denied"):
        handle.cancel()
    tool("squeue", rows("1|1|COMPLETED|None|n1"))
    handle.wait(PATIENCE)


def test_of_a_graph_that_is_refused_in_its_middle_nothing_stays(tool: Tool, slurm: Scheduler, tmp_path: Path) -> None:
    """Also if one cannot be cancelled: then the error tells of it."""
    count = tmp_path / "count"
    tool("sbatch", f"if grep -q third; then echo 'too many' >&2; exit 1; fi; echo x >> {count}; wc -l < {count}")
    tool("scancel", f'echo "$@" >> {tmp_path}/cancelled; if [ $1 = 1 ]; then echo "access denied" >&2; exit 1; fi')
    job = Job()
    first = job.program(["true"], name="first")
    job.program(["true"], name="second", deps=[first])
    job.program(["true"], name="third", deps=[first])
    with pytest.raises(BatchCommandFailed, match="too many") as caught:
        submit_natively(job, slurm)
    assert (tmp_path / "cancelled").read_text() == "1\n2\n"
    assert caught.value.__notes__ == ["batch job 1 was not cancelled: scancel 1: access denied"]
    tool("squeue", rows("1|1|CANCELLED|None|", "2|2|CANCELLED|None|"))
    wait_until(lambda: "hpc-executor-poller" not in {each.name for each in threading.enumerate()}, "it is seen")


def test_of_a_graph_that_ctrl_c_interrupts_nothing_stays(
    tool: Tool, slurm: Scheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(job: BatchJob, where: Scheduler) -> Any:
        if job.name == "second":
            raise KeyboardInterrupt
        return original(job, where)

    original = BatchJob.submit
    monkeypatch.setattr(BatchJob, "submit", submit)
    tool("scancel", f'echo "$@" >> {tmp_path}/cancelled')
    job = Job()
    first = job.program(["true"], name="first")
    job.program(["true"], name="second", deps=[first])
    with pytest.raises(KeyboardInterrupt):
        submit_natively(job, slurm)
    assert (tmp_path / "cancelled").read_text() == "1\n"
    tool("squeue", rows("1|1|CANCELLED|None|"))
    wait_until(lambda: "hpc-executor-poller" not in {each.name for each in threading.enumerate()}, "it is seen")
