"""Grid Engine's texts: scripts as they are sent, and answers as Grid Engine 8.1.9 gave them on three hosts."""

from __future__ import annotations

import pytest

from executor.batch.grid_engine import GridEngineSystem
from executor.batch.request import ArrayRange, JobRequest
from executor.batch.states import JobRecord, JobStatus
from executor.batch.system import Answer, Command

SGE = GridEngineSystem(pe="mpi", memory_resource="h_vmem")


def test_a_script_asks_for_all_that_is_said() -> None:
    request = JobRequest(
        "./model", "1st model", nodes=2, cpus=4, memory=6 * 2**30, gpus=1, time=90.5, queue="long.q", account="p42",
        workdir="/data/my runs", stdout="/data/a:b", stderr="/data/err.$JOB_ID", dependencies=("1", "2"),
        dependency_type="afterany", array=ArrayRange(1, 9, 3), directives=("-l scratch=10G",),
    )  # fmt: skip
    assert (
        SGE.script(request)
        == """\
#!/bin/bash
#$ -N j1st_model
#$ -S /bin/bash
#$ -r n
#$ -pe mpi 8
#$ -l h_rt=91
#$ -l h_vmem=1536M
#$ -l gpu=1
#$ -q long.q
#$ -P p42
#$ -wd "/data/my runs"
#$ -o :/data/a:b
#$ -e "/data/err.$JOB_ID"
#$ -hold_jid 1,2
#$ -t 1-9
#$ -tc 3
#$ -l scratch=10G
: "here the options end"
./model
"""
    )


def test_an_agent_is_told_before_it_is_killed() -> None:
    """On several hosts only the script would be, which starts agents and is none."""
    assert "-notify" in SGE.options(JobRequest("agent", warning=True))
    assert "-notify" not in SGE.options(JobRequest("agent", nodes=2, warning=True))
    assert "-notify" not in SGE.options(JobRequest("true"))


def test_an_array_has_no_task_0() -> None:
    """It was submitted, and refused without a word of what would be right."""
    with pytest.raises(ValueError, match="an array from 0 to 3: Grid Engine has no task 0; expected start >= 1"):
        SGE.script(JobRequest("true", array=ArrayRange(0, 3)))


def test_a_small_job_needs_no_parallel_environment() -> None:
    assert (
        GridEngineSystem().script(JobRequest("true"))
        == """\
#!/bin/bash
#$ -N hpc-executor
#$ -S /bin/bash
#$ -r n
#$ -j y
#$ -cwd
: "here the options end"
true
"""
    )


def test_memory_may_be_counted_for_each_host() -> None:
    system = GridEngineSystem(pe="smp", memory_resource="mem_free", memory_per_slot=False)
    assert "#$ -l mem_free=6144M\n" in system.script(JobRequest("true", cpus=4, memory=6 * 2**30))


@pytest.mark.parametrize(
    ("request_", "wrong"),
    [
        (JobRequest("true", cpus=2), "pe=None: Grid Engine gives 2 slots in a parallel environment only"),
        (JobRequest("true", memory=1), "expected memory_resource="),
        (JobRequest("true", workdir='/a"b'), "workdir='/a\"b': Grid Engine cannot have quotes"),
        (JobRequest("true", stdout="/a,b"), "stdout='/a,b': Grid Engine takes a comma for the end of a path"),
        (JobRequest("true", queue="a\nb"), "expected a single line"),
        (JobRequest("true\n#$ -q fast.q\n"), "'#\\$ -q fast.q' in a command: sge takes this for an option"),
        (JobRequest("true", dependencies=("1",), dependency_type="after"), "expected one of afterany, afterok"),
        (JobRequest("true", env={"a b": ""}), "env has 'a b'"),
    ],
)
def test_what_it_cannot_be_told_is_refused(request_: JobRequest, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        GridEngineSystem().script(request_)


@pytest.mark.parametrize(
    ("said", "job"),
    [
        ("4\n", "4"),
        ("9.1-5:1\n", "9"),
        ('warning: "-N" option has already been set, overriding previous setting\n17\n', "17"),
        ("", None),
    ],
)
def test_the_id_is_found(said: str, job: str | None) -> None:
    assert SGE.read_id(Answer(0, said)) == job


def test_a_refusal_has_no_id() -> None:
    said = 'Unable to run job: Job was rejected because job requests unknown queue "nosuch.q"\nExiting.'
    assert SGE.read_id(Answer(1, "", said)) is None


XSD = 'xmlns:xsd="http://arc.liv.ac.uk/repos/darcs/sge/source/dist/util/resources/schemas/qstat/qstat.xsd"'
EMPTY = f"""\
<?xml version='1.0'?>
<job_info  {XSD}>
  <queue_info>
  </queue_info>
  <job_info>
  </job_info>
</job_info>
"""


def entry(number: int, state: str, queue: str = "", tasks: str = "") -> str:
    return f"""
    <job_list state="{"running" if queue else "pending"}">
      <JB_job_number>{number}</JB_job_number>
      <JAT_prio>0.25000</JAT_prio>
      <JB_name>x</JB_name>
      <JB_owner>root</JB_owner>
      <state>{state}</state>
      <queue_name>{queue}</queue_name>
      <slots>1</slots>
      {tasks and f"<tasks>{tasks}</tasks>"}
    </job_list>"""


def listing(*entries: str) -> Answer:
    return Answer(0, EMPTY.replace("<queue_info>", "<queue_info>" + "".join(entries)))


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("qw", JobStatus.PENDING),
        ("hqw", JobStatus.PENDING),
        ("t", JobStatus.PENDING),  # it is being started; others take it for failed
        ("r", JobStatus.RUNNING),
        ("Rr", JobStatus.RUNNING),
        ("Rq", JobStatus.PENDING),
        ("Rt", JobStatus.PENDING),
        ("s", JobStatus.RUNNING),
        ("dr", JobStatus.ENDING),
        ("dRr", JobStatus.ENDING),
        ("r!", JobStatus.UNKNOWN),
        ("", JobStatus.UNKNOWN),
    ],
)
def test_each_state_has_a_status(state: str, status: JobStatus) -> None:
    records = SGE.read_records(listing(entry(4, state, "all.q@n1")), ["4"])
    assert records == {"4": JobRecord(status, state, hosts="n1")}


def test_a_job_in_the_state_of_an_error_has_failed_and_is_stuck() -> None:
    records = SGE.read_records(listing(entry(6, "Eqw")), ["6"])
    assert records == {"6": JobRecord(JobStatus.FAILED, "Eqw", stuck=True)}


def test_the_tasks_of_an_array_are_told_one_by_one() -> None:
    answer = listing(entry(9, "r", "all.q@n2", "1"), entry(9, "qw", tasks="3-7:2,9"), entry(10, "r", "all.q@n1", "1"))
    records = SGE.read_records(answer, ["9"])
    assert records is not None
    assert {job: record.word for job, record in records.items()} == {
        "9.1": "r", "9.3": "qw", "9.5": "qw", "9.7": "qw", "9.9": "qw",
    }  # fmt: skip
    assert list(SGE.read_records(answer, [SGE.task_id("9", 5)]) or {}) == ["9.5"]


def test_an_empty_queue_is_an_answer_and_anything_else_is_none() -> None:
    assert SGE.read_records(Answer(0, EMPTY), ["4"]) == {}
    assert SGE.read_records(Answer(0, ""), ["4"]) is None
    assert SGE.read_records(Answer(0, "<unknown_jobs><ST_name>9</ST_name></unknown_jobs>"), ["9"]) is None
    away = "error: commlib error: got select error (Connection refused)\nerror: unable to contact qmaster using port 1"
    assert SGE.read_records(Answer(1, "", away), ["4"]) is None


GONE = Answer(1, "", "Following jobs do not exist: \n4")


def account(status: str, failed: str = "0    ", queued: str = "32:43", ended: str = "Sun Nov 22 03:32:46 2026") -> str:
    return f"""\
==============================================================
qname        all.q               
hostname     n3                  
owner        root                
jobname      par                 
jobnumber    10                  
taskid       undefined
qsub_time    Sun Nov 22 03:{queued} 2026
start_time   Sun Nov 22 03:{queued} 2026
end_time     {ended}
granted_pe   mpi                 
slots        3                   
failed       {failed}
exit_status  {status}
ru_wallclock 2s
"""  # noqa: W291  these blanks are there


@pytest.mark.parametrize(
    ("said", "record"),
    [
        (account("0                   "), JobRecord(JobStatus.COMPLETED, "finished", "", 0, "n3")),
        (account("7                   "), JobRecord(JobStatus.FAILED, "finished", "", 7, "n3")),
        (account("137"), JobRecord(JobStatus.FAILED, "finished", "", 137, "n3")),  # its own exit status
        (
            account("137                  (Killed)", "100 : assumedly after job"),  # by qdel, too
            JobRecord(JobStatus.FAILED, "failed 100", "assumedly after job", -9, "n3"),
        ),
        (
            account("137                  (Killed)", "37  : qmaster enforced h_rt, h_cpu, or h_vmem limit"),
            JobRecord(JobStatus.TIMEOUT, "failed 37", "qmaster enforced h_rt, h_cpu, or h_vmem limit", -9, "n3"),
        ),
        (
            account("0", "28  : changing into working directory", ended="-/-"),
            JobRecord(JobStatus.FAILED, "failed 28", "changing into working directory", None, "n3"),
        ),
        ("", None),
    ],
)
def test_how_a_job_ended_is_accounted(said: str, record: JobRecord | None) -> None:
    assert SGE.read_ended([GONE, Answer(0, said)], "10") == record


def test_of_a_parallel_job_its_own_record_counts_and_not_those_of_its_parts() -> None:
    """Each ``qrsh`` has one, queued later; it may stand before the job's or behind it, and end in the same second."""
    part, whole = account("0", queued="32:44"), account("3", queued="32:43")
    early = account("5", queued="32:45", ended="Sun Nov 22 03:32:45 2026")
    for said in (part + whole, whole + part, whole + early + part):
        record = SGE.read_ended([GONE, Answer(0, said)], "10")
        assert record is not None
        assert record.returncode == 3


def test_a_job_that_is_still_known_has_not_ended_whatever_is_accounted() -> None:
    assert SGE.read_ended([Answer(0, "job_number:                 10\n"), Answer(0, account("0"))], "10") is None


def test_why_a_job_is_in_an_error_is_told() -> None:
    why = "11/22/2026 03:32:44 [0:625]: error: can't chdir to /nosuch/dir: No such file or directory"
    known = Answer(0, f"job_number:                 6\nerror reason          1:      {why}\nscheduling info: x\n")
    accounted = Answer(0, account("0", "28  : changing into working directory", ended="-/-"))
    assert SGE.read_ended([known, accounted], "6") == JobRecord(JobStatus.FAILED, "E", why)
    assert SGE.read_ended([known, Answer(0, account("0"))], "6.2") == JobRecord(
        JobStatus.COMPLETED, "finished", "", 0, "n3"
    )


def test_nothing_is_known_of_a_job_that_is_not_accounted_yet() -> None:
    assert SGE.read_ended([GONE, Answer(1, "", "error: job id 4 not found")], "4") is None


def test_an_array_task_is_asked_for_by_its_index() -> None:
    assert SGE.ask_ended("9.3") == [Command(["qstat", "-j", "9"]), Command(["qacct", "-j", "9", "-t", "3"])]


DELETED = """\
denied: job "40" does not exist
root has deleted job 44
root has registered the job 47 for deletion
root has registered the job-array task 49.1 for deletion
root has deleted job 49
root has deleted job-array task 50.2
"""


def test_what_was_deleted_before_it_started_is_gone_for_good() -> None:
    """It comes to no accounts. Of an array of which a task runs, only some are gone."""
    assert SGE.read_cancelled(Answer(1, DELETED)) == {"44", "50.2"}


def test_to_cancel_what_has_ended_is_no_trouble_and_to_reach_nobody_is_one() -> None:
    assert SGE.complaints(Answer(1, DELETED)) == ""
    assert SGE.complaints(Answer(1, "The job x of user(s) root does not exist\n")) == ""
    assert "not a manager" in SGE.complaints(Answer(1, DELETED + "denied: you are not a manager\n"))
    assert SGE.complaints(Answer(1, "", "error: unable to contact qmaster")) == "error: unable to contact qmaster"
    assert SGE.complaints(Answer(None, "", "qdel has not ended within 30 s")) == "qdel has not ended within 30 s"
