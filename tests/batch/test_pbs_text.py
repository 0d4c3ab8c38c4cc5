"""PBS's texts. None of it was seen by us: each answer says who has recorded it."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from executor.batch.pbs import PBSSystem, TorqueSystem
from executor.batch.request import ArrayRange, JobRequest
from executor.batch.states import JobRecord, JobStatus
from executor.batch.system import Answer

PBS = PBSSystem()
TORQUE = TorqueSystem()
REQUEST = JobRequest(
    "./model", "a long name of a job", nodes=2, ranks=2, cpus=3, memory=2**30, gpus=1, time=60, queue="long",
    account="p42", workdir="/data/my runs", stdout="/data/it's", stderr="/data/err", dependencies=("1.head", "2.head"),
    array=ArrayRange(0, 9, 3), exclusive=True, directives=("-l storage=x",),
)  # fmt: skip


def test_a_script_asks_for_all_that_is_said() -> None:
    assert (
        PBS.script(REQUEST)
        == """\
#!/bin/bash
#PBS -N a_long_name_of_
#PBS -S /bin/bash
#PBS -r n
#PBS -l select=2:ncpus=6:mpiprocs=2:mem=1024mb:ngpus=1
#PBS -l place=scatter:excl
#PBS -l walltime=60
#PBS -J 0-9%3
#PBS -q long
#PBS -A p42
#PBS -o "/data/it's"
#PBS -e /data/err
#PBS -W depend=afterok:1.head:2.head
#PBS -l storage=x
: "here the options end"
cd '/data/my runs' || exit
./model
"""
    )


def test_torque_is_asked_in_its_own_words() -> None:
    lines = TORQUE.script(REQUEST).splitlines()
    assert lines[4:9] == [
        "#PBS -l nodes=2:ppn=6:gpus=1", "#PBS -l mem=2048mb", "#PBS -n", "#PBS -l walltime=60", "#PBS -t 0-9%3",
    ]  # fmt: skip
    assert TORQUE.ask_ended("1")[0].argv == ["qstat", "-f", "1"]  # -x would be for XML


def test_a_job_begins_where_it_was_submitted() -> None:
    """And not in the home directory. Both outputs are in one file."""
    assert (
        PBS.script(JobRequest("true"))
        == """\
#!/bin/bash
#PBS -N hpc-executor
#PBS -S /bin/bash
#PBS -r n
#PBS -l select=1:ncpus=1:mpiprocs=1
#PBS -j oe
: "here the options end"
cd "${PBS_O_WORKDIR:-.}" || exit
true
"""
    )


@pytest.mark.parametrize(
    ("request_", "wrong"),
    [
        (JobRequest("true", stdout="""/a'b"c"""), "-o .*: PBS cannot have both quotes"),
        (JobRequest("true", queue="a\nb"), "expected a single line"),
    ],
)
def test_what_it_cannot_be_told_is_refused(request_: JobRequest, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        PBS.script(request_)


def test_a_command_on_each_node_has_the_scripts_variables(tmp_path: Path) -> None:
    """``pbsdsh`` passes on none. One that starts its command twice, in an empty environment, stands for it."""
    pbsdsh = tmp_path / "pbsdsh"
    pbsdsh.write_text('#!/bin/bash\n[ "$1" = -- ] && shift\nenv -i "$@" && env -i "$@"\n')
    pbsdsh.chmod(0o700)
    command = shlex.join(["printf", "%s\n", "it's; here"]) + ' "$FROM_MODULES"'
    script = f"export FROM_MODULES=$'a \\'b\\'\\n#c'\n{PBS.on_each_node(command, 2)}\necho never\n"
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    said = subprocess.run(["/bin/bash", "-c", script], env=env, capture_output=True, text=True, check=True).stdout
    assert said == "it's; here\na 'b'\n#c\n" * 2
    assert PBS.on_each_node("agent", 1) == "exec agent"
    assert TORQUE.on_each_node("agent", 2).startswith("exec pbsdsh -u -- ")  # once for each host


@pytest.mark.parametrize(
    ("said", "job"),
    [
        ("7669002.wlm01\n", "7669002.wlm01"),
        ("-- welcome --\n106[].pbs-server.example\n", "106[].pbs-server.example"),
        ("106\n", "106"),  # Slurm's wrappers
        ("", None),
    ],
)
def test_the_id_is_found_among_banners(said: str, job: str | None) -> None:
    assert PBS.read_id(Answer(0, said)) == job


# The head is that of PBS Professional in a tutorial of Clemson University (Palmetto, lesson "PBS job submission"), as
# is the first line; the second is of the National Supercomputing Centre Singapore; both were printed by ``qstat ID``.
LISTED = """\
Job id            Name             User              Time Use S Queue
----------------  ---------------- ----------------  -------- - -----
4442295.pbs02     sleeper          atrikut           00:00:00 R c1_solo
7669002.wlm01     CS5242_Training  e0319586          00:00:00 F gpunormal
2315056.pbs       auto_task_1      user                     0 Q quick
"""


def test_the_listing_tells_of_our_jobs_but_not_how_one_has_ended() -> None:
    """rc 35: "qstat: 7669002.wlm01 Job has finished, use -x or -H to obtain historical job information"."""
    records = PBS.read_records(Answer(35, LISTED), ["4442295.pbs02", "7669002.wlm01", "2315056.pbs", "1.pbs"])
    assert records == {
        "4442295.pbs02": JobRecord(JobStatus.RUNNING, "R"), "2315056.pbs": JobRecord(JobStatus.PENDING, "Q"),
    }  # fmt: skip


def test_an_id_may_be_cut_in_its_column() -> None:
    said = "5666289.frontal1* x                user              00:00:00 R main\n"
    assert PBS.read_records(Answer(0, said), ["5666289.frontal1.cluster"]) == {
        "5666289.frontal1.cluster": JobRecord(JobStatus.RUNNING, "R")
    }


def test_the_tasks_of_an_array_have_ids_of_their_own() -> None:
    """As qstat(1B) shows an array with -t: B is one that has begun, X a task that has ended."""
    said = """\
106[].head        x                user                     0 B workq
106[1].head       x                user              00:00:01 X workq
106[2].head       x                user              00:00:01 R workq
"""
    records = PBS.read_records(Answer(0, said), ["106[].head"])
    assert records == {
        "106[].head": JobRecord(JobStatus.RUNNING, "B"), "106[2].head": JobRecord(JobStatus.RUNNING, "R"),
    }  # fmt: skip
    assert PBS.task_id("106[].head", 2) == "106[2].head"
    assert "-t" in PBS.ask(["106[].head"]).argv


def test_an_unknown_id_leaves_the_others_and_a_server_that_is_away_says_nothing() -> None:
    assert PBS.read_records(Answer(153, LISTED, "qstat: Unknown Job Id 1.pbs"), ["4442295.pbs02"]) is not None
    # equinor/ert, issue 7103
    away = "Connection refused\nqsub: cannot connect to server s034-lc (errno=15010)"
    assert PBS.read_records(Answer(162, "", away), ["4442295.pbs02"]) is None


# ``qstat -f`` of a running job: aiidateam/aiida-core, tests/schedulers/fixtures/qstat-running.txt, shortened.
RUNNING = """\
Job Id: 171390152.mycluster
    Job_Name = script.sh
    job_state = R
    exec_host = mycluster-cpu-0686/24
    Resource_List.select = 1:ncpus=1:mpiprocs=1:mem=524288000:job_tags=normal:j
\tobfs=104857600
    substate = 42
    Variable_List = PBS_O_HOME=/,
\tPBS_O_PATH=/path/to/scripts:/path/to/scripts/
    comment = Job run at Wed Jun 17 at 04:57 on (mycluster-cpu-0686:ncpus=1:mem=
\t512000kb:jobfs=102400kb)
    run_count = 1
"""

# ``qstat -xf`` of a finished job: documentation of UNSW's cluster Katana, 10 August 2023, shortened. The values below
# are those of openpbs: substates 91 to 93 by its tests (expect F with 93 if it failed, 91 if it was deleted, else 92),
# exit statuses -24 to -30 by its job.h (JOB_EXEC_KILL_...), 256 and the signal by its reference guide.
FINISHED = """\
Job Id: 4711.katana
    Job_Name = hacky
    job_state = F
    exec_host = k242/0*2+k243/1*2+k242/3
    substate = {substate}
    Variable_List = PBS_O_HOME=/home/z3536424,PBS_O_LANG=en_AU.UTF-8,
\tPBS_O_LOGNAME=z3536424,
    comment = Job run at Thu Aug 10 at 16:10 on (k242:ncpus=1:mem=1048576kb:ngp
\tus=0) and finished
{exit_status}    Submit_arguments = -N hacky -I

Job Id: 4712.katana
    job_state = R
"""
COMMENT = "Job run at Thu Aug 10 at 16:10 on (k242:ncpus=1:mem=1048576kb:ngpus=0) and finished"


def test_a_job_that_runs_has_not_ended() -> None:
    record = PBS.read_ended([Answer(0, RUNNING)], "171390152.mycluster")
    assert record is not None
    assert (record.status, record.hosts, record.returncode) == (JobStatus.RUNNING, "mycluster-cpu-0686", None)
    assert record.reason.endswith("mem=512000kb:jobfs=102400kb)")


@pytest.mark.parametrize(
    ("substate", "code", "status", "returncode"),
    [
        (92, 0, JobStatus.COMPLETED, 0),
        (93, 7, JobStatus.FAILED, 7),
        (93, 265, JobStatus.FAILED, -9),
        (91, 271, JobStatus.CANCELLED, -15),
        (91, None, JobStatus.CANCELLED, None),  # deleted before it ran
        (93, -29, JobStatus.TIMEOUT, None),
        (93, -27, JobStatus.OUT_OF_MEMORY, None),
        (93, -1, JobStatus.FAILED, None),
        (92, None, JobStatus.UNKNOWN, None),
    ],
)
def test_how_a_job_ended_is_in_its_history(
    substate: int, code: int | None, status: JobStatus, returncode: int | None
) -> None:
    line = "" if code is None else f"    Exit_status = {code}\n"
    said = FINISHED.format(substate=substate, exit_status=line)
    record = PBS.read_ended([Answer(0, said)], "4711.katana")
    assert record == JobRecord(status, "F", COMMENT, returncode, "k242,k243")


# docs.adaptivecomputing.com, Torque 4.0.2, "2.7 Job exit status", shortened
TORQUE_FAILED = """\
Job Id: 179.host
    Job_Name = STDIN
    job_state = C
    exec_host = node1/0
    Variable_List = PBS_O_HOME=/home/user,PBS_O_LOGNAME=user,
\tPBS_O_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:,PBS_O_SHELL=/bin/bash,PBS_O_HOST=host,
    sched_hint = Post job file processing error; job 179.host on host node1/0Ba
\td UID for job execution REJHOST=pala.cridomain MSG=cannot find user 'user' in password file
    etime = Fri Aug 29 14:55:55 2008
    exit_status = -1
"""


def test_torque_writes_it_a_little_differently() -> None:
    assert TORQUE.read_ended([Answer(0, TORQUE_FAILED)], "179.host") == JobRecord(JobStatus.FAILED, "C", hosts="node1")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(153, "", "qstat: Unknown Job Id 2315.pbs"),
        Answer(0, ""),
        Answer(None, "", "qstat has not ended within 30 s"),
        Answer(0, FINISHED),  # of another job
    ],
)
def test_nothing_is_known_of_a_job_that_is_not_told_of(answer: Answer) -> None:
    assert PBS.read_ended([answer], "2315.pbs") is None


def test_to_cancel_what_has_ended_is_no_trouble() -> None:
    # equinor/ert, issue 7103
    assert PBS.complaints(Answer(35, "", "qdel: Job has finished 484874.s034-lcam")) == ""
    assert PBS.complaints(Answer(168, "", "qdel: Request invalid for state of job 486044.s034-lcam")) == ""
    assert PBS.complaints(Answer(159, "", "qdel: Unauthorized Request 1.x")) == "qdel: Unauthorized Request 1.x"
