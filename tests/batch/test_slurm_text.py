"""Slurm's texts: scripts as they are sent, and answers as Slurm 22.05.8 gave them on three nodes, with ``sacct``."""

from __future__ import annotations

import shlex

import pytest

from executor.batch.request import ArrayRange, JobRequest
from executor.batch.slurm import SlurmSystem
from executor.batch.states import JobRecord, JobStatus
from executor.batch.system import Answer

SLURM = SlurmSystem()


def test_a_script_asks_for_all_that_is_said() -> None:
    request = JobRequest(
        "srun ./model", "my model", nodes=2, ranks=4, cpus=3, memory=5 * 2**30 + 1, gpus=2, time=61.0, queue="long",
        account="p42", workdir="/data/my runs", stdout="/data/out.%j", stderr="/data/err.%j", env={"X": "a 'b'"},
        prologue="module load gcc\n", dependencies=("1", "2"), array=ArrayRange(0, 9, 3), exclusive=True,
        directives=("--constraint=avx512",),
    )  # fmt: skip
    assert (
        SLURM.script(request)
        == r"""#!/bin/bash
#SBATCH --job-name=my_model
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=3
#SBATCH --mem=5121M
#SBATCH --gres=gpu:2
#SBATCH --time=2
#SBATCH --partition=long
#SBATCH --account=p42
#SBATCH --chdir="/data/my runs"
#SBATCH --output=/data/out.%j
#SBATCH --error=/data/err.%j
#SBATCH --dependency=afterok:1:2
#SBATCH --array=0-9%3
#SBATCH --no-requeue
#SBATCH --exclusive
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --constraint=avx512
: "here the options end"
export X='a '"'"'b'"'"''
set -e
module load gcc
set +e
srun ./model
"""
    )


def test_what_a_site_does_not_want_is_left_out() -> None:
    request = JobRequest("true", memory=2**30, omit=frozenset({"--mem", "--no-requeue"}))
    assert "--mem" not in SLURM.script(request)
    assert "--no-requeue" not in SLURM.script(request)


def test_an_agent_is_started_on_each_node_with_the_prologues_variables() -> None:
    """Where the site submits with --export=NONE, srun would pass on nothing either."""
    assert SLURM.on_each_node("python agent.py", 1) == "exec python agent.py"
    words = shlex.split(SLURM.on_each_node("python agent.py", 2))
    assert words[:7] == ["exec", "srun", "--overlap", "--export=ALL", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert words[-2:] == ["python", "agent.py"]


@pytest.mark.parametrize(
    ("said", "job"),
    [
        ("4\n", "4"),
        ("4;lab\n", "4"),
        ("-----\nWelcome to lab 3\n-----\n4\n", "4"),
        ("4\n--- Your allocation ends soon ---\n", "4"),
        ("", None),
        ("Submitted batch job 4\n", None),  # without --parsable
    ],
)
def test_the_id_is_found_among_banners(said: str, job: str | None) -> None:
    assert SLURM.read_id(Answer(0, said)) == job


def test_a_refusal_has_no_id() -> None:
    said = "sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job submission failed"
    assert SLURM.read_id(Answer(1, "", said)) is None
    assert SLURM.read_id(Answer(1, "4\n", said)) is None


LISTED = """\
7|7|CANCELLED|DependencyNeverSatisfied|
3|3|COMPLETED|None|n1
5_0|5|COMPLETED|None|n2
8|8|COMPLETED|None|n[1-2]
1|1|FAILED|NonZeroExitCode|n1
2|2|FAILED|JobLaunchFailure|n1
6_2|6|PENDING|JobArrayTaskLimit|
9|9|PENDING|JobHeldUser|
4|4|RUNNING|None|n1
6_1|6|RUNNING|None|n2
"""


def test_the_listing_tells_of_our_jobs_and_of_all_tasks_of_our_arrays() -> None:
    records = SLURM.read_records(Answer(0, LISTED), ["4", "6", "7", "8", "9", "12"])
    assert records == {
        "4": JobRecord(JobStatus.RUNNING, "RUNNING", hosts="n1"),
        "6_1": JobRecord(JobStatus.RUNNING, "RUNNING", hosts="n2"),
        "6_2": JobRecord(JobStatus.PENDING, "PENDING", "JobArrayTaskLimit"),
        "7": JobRecord(JobStatus.CANCELLED, "CANCELLED", "DependencyNeverSatisfied"),
        "8": JobRecord(JobStatus.COMPLETED, "COMPLETED", hosts="n[1-2]"),
        "9": JobRecord(JobStatus.PENDING, "PENDING", "JobHeldUser"),
    }
    assert SLURM.task_id("6", 2) in records


def test_an_unknown_word_is_unknown_and_touches_no_other_job() -> None:
    """24.11 and 26.05 give a reason with colons to a job that died by a signal, on which others have stumbled."""
    said = "1|1|FAILED|RaisedSignal:9(Killed)|n1\n2|2|HIBERNATING|None|n1\n"
    records = SLURM.read_records(Answer(0, said), ["1", "2"])
    assert records == {
        "1": JobRecord(JobStatus.FAILED, "FAILED", "RaisedSignal:9(Killed)", hosts="n1"),
        "2": JobRecord(JobStatus.UNKNOWN, "HIBERNATING", hosts="n1"),
    }


def test_a_controller_that_is_away_says_nothing_and_one_that_knows_no_job_says_so() -> None:
    away = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    assert SLURM.read_records(Answer(1, "", away), ["1"]) is None
    assert SLURM.read_records(Answer(None, "", "squeue has not ended within 30 s"), ["1"]) is None
    assert SLURM.read_records(Answer(1, "", "slurm_load_jobs error: Invalid job id specified"), ["1"]) == {}


SHOWN = (
    "JobId=4 JobName=sbatch UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901756 Nice=0 Account=root "
    "QOS=normal JobState={state} Reason={reason} Dependency=(null) Requeue=0 Restarts=1 BatchFlag=1 Reboot=0 "
    "ExitCode={code} RunTime=00:00:08 TimeLimit=00:10:00 TimeMin=N/A Partition=main AllocNode:Sid=vm:3467 "
    "ReqNodeList=(null) ExcNodeList=(null) NodeList=n1 BatchHost=n1 NumNodes=1 NumCPUs=1 Command=(null) "
    "WorkDir=/tmp Comment=JobState=COMPLETED ExitCode=0:0 StdErr=/dev/null StdIn=/dev/null StdOut=/dev/null Power=\n"
)
UNKNOWN = Answer(1, "", "slurm_load_jobs error: Invalid job id specified")
NO_SACCT = Answer(1, "", "Slurm accounting storage is disabled")


@pytest.mark.parametrize(
    ("state", "reason", "code", "status", "returncode"),
    [
        ("FAILED", "NonZeroExitCode", "7:0", JobStatus.FAILED, 7),
        ("FAILED", "JobLaunchFailure", "0:9", JobStatus.FAILED, -9),
        ("FAILED", "JobLaunchFailure", "0:53", JobStatus.FAILED, None),
        ("CANCELLED", "None", "0:15", JobStatus.CANCELLED, -15),
        ("TIMEOUT", "TimeLimit", "0:15", JobStatus.TIMEOUT, -15),
        ("OUT_OF_MEMORY", "OutOfMemory", "0:125", JobStatus.OUT_OF_MEMORY, -125),
        ("NODE_FAIL", "NodeDown", "0:0", JobStatus.NODE_FAILED, None),
        ("COMPLETED", "None", "0:0", JobStatus.COMPLETED, 0),
        ("RUNNING", "None", "0:0", JobStatus.RUNNING, None),
        ("PENDING", "BeginTime", "0:0", JobStatus.PENDING, None),
    ],
)
def test_how_a_job_ended_is_shown(
    state: str, reason: str, code: str, status: JobStatus, returncode: int | None
) -> None:
    shown = Answer(0, SHOWN.format(state=state, reason=reason, code=code))
    record = SLURM.read_ended([shown, NO_SACCT], "4")
    assert record == JobRecord(status, state, reason.replace("None", ""), returncode, "n1", 1)


@pytest.mark.parametrize(
    ("job", "said", "record"),
    [
        ("1", "1|FAILED|7:0|n1|None\n", JobRecord(JobStatus.FAILED, "FAILED", "", 7, "n1")),
        ("2", "2|FAILED|0:9|n1|None\n", JobRecord(JobStatus.FAILED, "FAILED", "", -9, "n1")),
        ("4", "4|CANCELLED by 0|0:0|n1|None\n", JobRecord(JobStatus.CANCELLED, "CANCELLED by 0", hosts="n1")),
        ("7", "7|CANCELLED|0:0|None assigned|Dependency\n", JobRecord(JobStatus.CANCELLED, "CANCELLED", "Dependency")),
        ("5_1", "5_1|FAILED|1:0|n2|None\n", JobRecord(JobStatus.FAILED, "FAILED", "", 1, "n2")),
        ("99999", "", None),
    ],
)
def test_how_a_job_ended_is_accounted_when_the_controller_has_forgotten_it(
    job: str, said: str, record: JobRecord | None
) -> None:
    assert SLURM.read_ended([UNKNOWN, Answer(0, said)], job) == record


def test_nothing_is_known_of_a_forgotten_job_without_accounting() -> None:
    assert SLURM.read_ended([UNKNOWN, NO_SACCT], "1") is None


def test_variables_of_the_job_that_we_are_in_are_not_passed_on() -> None:
    env = {"SLURM_JOB_ID": "1", "SLURM_CONF": "/etc/slurm.conf", "SBATCH_PARTITION": "x", "PMIX_RANK": "0", "PATH": "/"}
    assert SLURM.environment(env) == {"SLURM_CONF": "/etc/slurm.conf", "PATH": "/"}
