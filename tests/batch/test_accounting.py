"""A real Slurm with accounting: ``sacct`` knows of a job some seconds after it was submitted, and for good."""

from __future__ import annotations

from pathlib import Path

import pytest
from labs import Lab
from waiting import wait_until

from executor.batch.commands import run
from executor.batch.request import JobRequest
from executor.batch.schedulers import Scheduler
from executor.batch.states import JobRecord, JobStatus
from executor.batch.system import Answer
from executor.batch.watch import Followed, ask_ended, look

pytestmark = [
    pytest.mark.heavy, pytest.mark.parametrize("kind", ["slurm with accounting"], indirect=True, scope="session"),
]  # fmt: skip


def records(where: Scheduler, job: str) -> list[JobRecord]:
    told: list[JobRecord] = []
    look(where.system, [Followed(job, job, told.append)])
    return told


def is_forgotten(where: Scheduler, job: str) -> bool:
    """By the controller, as it is some seconds after the end of a job."""
    shown, _ = where.system.ask_ended(job)
    return run(shown, where.system).returncode != 0


def test_a_job_has_not_ended_because_it_is_not_accounted_yet(where: Scheduler, lab: Lab, tmp_path: Path) -> None:
    """All questions are those for a job that nothing is known of, from its very beginning."""
    job = where.submit_request(JobRequest(f"sleep 2; touch {tmp_path}/ended", stdout="/dev/null"))
    _, accounted = where.system.ask_ended(job)
    shown_nothing = Answer(1, "", "slurm_load_jobs error: Invalid job id specified")

    def ended() -> bool:
        record = where.system.read_ended([shown_nothing, run(accounted, where.system)], job)
        return record is not None and record.status.is_final

    wait_until(ended, "for sacct")
    assert (tmp_path / "ended").exists()
    assert [each.status for each in records(where, job)] == [JobStatus.COMPLETED]


@pytest.mark.parametrize(
    ("command", "status", "returncode"),
    [("exit 7", JobStatus.FAILED, 7), ("exec sleep 300", JobStatus.CANCELLED, None)],
)
def test_what_the_controller_has_forgotten_is_accounted(
    where: Scheduler, lab: Lab, command: str, status: JobStatus, returncode: int | None
) -> None:
    """Nobody has asked for it before: somebody else has cancelled the one that sleeps, which is no success."""
    job = where.submit_request(JobRequest(command, stdout="/dev/null"))
    if status is JobStatus.CANCELLED:
        wait_until(lambda: records(where, job)[0].status is JobStatus.RUNNING, "it runs")
        lab.cancel(job)
    wait_until(lambda: is_forgotten(where, job), "for the controller to forget it")
    [record] = records(where, job)
    assert record.status is status
    assert returncode in (None, record.returncode)
    assert record == ask_ended(where.system, job)
