"""Flux's texts. None of it was seen by us: the formats are those of flux-batch(1), flux-jobs(1) and RFC 36."""

from __future__ import annotations

import pytest

from executor.batch.flux import FluxSystem
from executor.batch.request import ArrayRange, JobRequest
from executor.batch.states import JobRecord, JobStatus
from executor.batch.system import Answer

FLUX = FluxSystem()


def test_a_script_asks_for_all_that_is_said() -> None:
    request = JobRequest(
        "./model", "my model", nodes=2, ranks=2, cpus=3, gpus=4, time=60.5, queue="long", account="p42",
        workdir="/data/my runs", stdout="/data/it's #1", stderr="/data/err", dependencies=("ƒABC", "ƒABD"),
        directives=("--setattr=user.x=1",),
    )  # fmt: skip
    assert (
        FLUX.script(request)
        == r"""#!/bin/bash
# flux: --job-name=my_model
# flux: --nodes=2
# flux: --nslots=4
# flux: --cores-per-slot=3
# flux: --gpus-per-slot=2
# flux: --time-limit=61s
# flux: --queue=long
# flux: --bank=p42
# flux: --cwd='/data/my runs'
# flux: --output='/data/it'"'"'s #1'
# flux: --error=/data/err
# flux: --dependency='afterok:ƒABC'
# flux: --dependency='afterok:ƒABD'
# flux: --setattr=user.x=1
: "here the options end"
./model
"""
    )


@pytest.mark.parametrize(
    ("request_", "wrong"),
    [
        (JobRequest("true", memory=1), "Flux does not grant memory"),
        (JobRequest("true", array=ArrayRange(0, 1)), "Flux has no arrays"),
        (JobRequest("true", ranks=2, gpus=1), "expected as many for each rank"),
        (JobRequest("true", stdout='/a"""b'), "three quotes in a row"),
        (JobRequest("true\n# flux: -N9\n"), "'# flux: -N9' in a command: flux takes this for an option"),
    ],
)
def test_what_it_cannot_be_told_is_refused(request_: JobRequest, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        FLUX.script(request_)


def test_an_agent_on_each_node_has_the_whole_node() -> None:
    assert FLUX.on_each_node("agent", 1) == "exec agent"
    assert FLUX.on_each_node("agent", 2) == "exec flux run --nodes=2 --ntasks=2 --exclusive -o cpu-affinity=off agent"


@pytest.mark.parametrize(
    ("said", "job"),
    [
        ("ƒM7Zq9AKHno\n", "ƒM7Zq9AKHno"),  # flux-batch(1)
        ("f3NCgEB6TL5D\n", "f3NCgEB6TL5D"),  # where the locale has no ƒ: ours is C
        ("", None),
    ],
)
def test_the_id_is_found(said: str, job: str | None) -> None:
    assert FLUX.read_id(Answer(0, said)) == job


# The columns by flux-jobs(1): returncode "is the highest job shell exit code, or negative signal number [...] If the
# job was canceled before it started, then the returncode is set to the special value -128", and empty while it runs.
LISTED = """\
fD|DEPEND||||
fS|SCHED||||
fR|RUN|||node[1-2]|
fC|CLEANUP|COMPLETED|0|node1|
fA|INACTIVE|COMPLETED|0|node1|
fF|INACTIVE|FAILED|7|node1|
fK|INACTIVE|FAILED|-9|node1|task 0 killed | by a signal
fX|INACTIVE|CANCELED|-128||no more
fT|INACTIVE|TIMEOUT|142|node1|resource allocation expired
fZ|HIBERNATE||||
fY|INACTIVE|EXPLODED|0|node1|
"""


def test_each_state_and_each_result_has_a_status() -> None:
    ids = [f"ƒ{letter}" for letter in "DSRCAFKXTZY"] + ["ƒQ"]
    records = FLUX.read_records(Answer(1, LISTED, "flux-jobs: ERROR: JobID ƒQ unknown"), ids)
    assert records == {
        "ƒD": JobRecord(JobStatus.PENDING, "DEPEND"),
        "ƒS": JobRecord(JobStatus.PENDING, "SCHED"),
        "ƒR": JobRecord(JobStatus.RUNNING, "RUN", hosts="node[1-2]"),
        "ƒC": JobRecord(JobStatus.ENDING, "CLEANUP", hosts="node1"),
        "ƒA": JobRecord(JobStatus.COMPLETED, "COMPLETED", "", 0, "node1"),
        "ƒF": JobRecord(JobStatus.FAILED, "FAILED", "", 7, "node1"),
        "ƒK": JobRecord(JobStatus.FAILED, "FAILED", "task 0 killed | by a signal", -9, "node1"),
        "ƒX": JobRecord(JobStatus.CANCELLED, "CANCELED", "no more"),
        "ƒT": JobRecord(JobStatus.TIMEOUT, "TIMEOUT", "resource allocation expired", 142, "node1"),
        "ƒZ": JobRecord(JobStatus.UNKNOWN, "HIBERNATE"),
        "ƒY": JobRecord(JobStatus.UNKNOWN, "EXPLODED", "", 0, "node1"),
    }
    assert FLUX.read_ended([Answer(0, LISTED)], "fF") == records["ƒF"]


def test_an_instance_that_is_away_says_nothing() -> None:
    assert FLUX.read_records(Answer(1, "", "flux-jobs: ERROR: Unable to connect to Flux"), ["fA"]) is None


def test_to_cancel_what_has_ended_is_no_trouble() -> None:
    """flux-framework/flux-core, src/modules/job-manager/raise.c: "unknown job id"."""
    assert FLUX.complaints(Answer(1, "", "flux-job: 323145957376: unknown job id")) == ""
    assert FLUX.complaints(Answer(1, "", "flux-cancel: guests can only cancel their own jobs")) != ""


def test_the_instance_that_we_are_in_is_the_one_that_is_asked() -> None:
    env = {"FLUX_URI": "local:///run/flux/local", "FLUX_JOB_ID": "fA", "FLUX_TASK_RANK": "0"}
    assert FLUX.environment(env) == {"FLUX_URI": "local:///run/flux/local"}
