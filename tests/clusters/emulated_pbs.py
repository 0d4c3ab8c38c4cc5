"""An emulated OpenPBS: qsub, qstat, qselect, qdel and pbsdsh, in front of a real Slurm. Nothing of PBS runs here.

``python emulated_pbs.py qsub ...``. It takes what our adapter says and no more: the rest is an error, as a misspelt
option would be. What it does is what OpenPBS's sources and manuals say (https://github.com/openpbs/openpbs):

- Exit statuses are the last 8 bits of the error codes in src/include/pbs_error.h: 153 for PBSE_UNKJOBID (15001), 170
  for PBSE_UNKQUE (15018), 35 for PBSE_HISTJOBID (15139). ``qstat`` of several jobs goes on after one that fails, and
  ends with the status of the last one that did (src/cmds/qstat.c); ``qdel`` likewise (src/cmds/qdel.c).
- A job has none of the variables of who has submitted it but as PBS_O_...; the variables it has are those of qsub(1B).
- Its output is kept on its first host while it runs, and copied to where it is wanted when it has ended.
- ``pbsdsh`` passes on no variable, sends signals on and then ends with 1; of what it has started it prints how that has
  ended, and ends with 0 itself (src/cmds/pbsdsh.c).
"""

from __future__ import annotations

import getopt
import getpass
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile

from emulation import SlurmJob, SlurmRefusal, all_jobs, fail, slurm, step, submit

SERVER = "login"
_FINISHED, _UNKNOWN_JOB, _UNKNOWN_QUEUE = 35, 153, 170
_STATES = {"PENDING": "Q", "CONFIGURING": "Q", "RUNNING": "R", "COMPLETING": "E"}
#: Of those that have ended: JOB_SUBSTATE_... of src/include/job.h, and what the comment says.
_SUBSTATES = {"COMPLETED": (92, "finished"), "CANCELLED": (91, "terminated")}
_FAILED = (93, "failed")
#: JOB_EXEC_KILL_WALLTIME of src/include/job.h
_WALLTIME_EXCEEDED = -29
#: What pbs_mom does. A job that is deleted gets SIGTERM as a whole: not to end before it, this only notes that.
_JOB = """\
#!/bin/bash
trap : TERM
aux=/dev/shm/pbs-$SLURM_JOB_ID
mkdir "$aux"
cat > "$aux/script" <<'end of the script of {token}'
{script}
end of the script of {token}
for host in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    for ((rank = 0; rank < {ranks}; rank++)); do echo "$host"; done
done > "$aux/nodes"
env -i HOME="$HOME" LOGNAME=root USER=root SHELL=/bin/bash PATH="$PATH" TMPDIR="$aux" \\
    PBS_ENVIRONMENT=PBS_BATCH PBS_JOBID="$SLURM_JOB_ID.{server}" PBS_JOBNAME={name} PBS_QUEUE="$SLURM_JOB_PARTITION" \\
    PBS_NODEFILE="$aux/nodes" PBS_JOBDIR="$HOME" NCPUS={cpus} OMP_NUM_THREADS={cpus} \\
    PBS_O_HOST={server} PBS_O_WORKDIR={workdir} PBS_O_PATH="$PATH" PBS_O_HOME="$HOME" \\
    /bin/bash "$aux/script" > "$aux/stdout" {stderr_here} &
job=$!
wait "$job"
status=$?
while kill -0 "$job" 2> /dev/null; do
    wait "$job"
    status=$?
done
cp "$aux/stdout" {stdout}
{copy_stderr}
rm -r "$aux"
exit "$status"
"""


# ---- qsub


def qsub(words: list[str]) -> None:
    """Submit the script on stdin."""
    script = sys.stdin.read()
    try:
        options, rest = getopt.getopt([*_directives(script), *words], "N:S:r:l:q:A:o:e:j:")
    except getopt.GetoptError as error:
        fail(f"qsub: {error}\nusage: qsub ...", 2)
    asked = dict(each for each in options if each[0] != "-l")
    resources = dict(value.split("=", 1) for name, value in options if name == "-l")
    chunks, *parts = resources["select"].split(":")
    chunk = {"ncpus": "1", "mpiprocs": "1", **dict(part.split("=", 1) for part in parts)}
    try:
        number = submit(_job(script, asked, chunk), _slurm_options(asked, resources, int(chunks), chunk))
    except SlurmRefusal as error:
        if "partition" in str(error):
            fail("qsub: Unknown queue", _UNKNOWN_QUEUE)
        fail(f"qsub: {error}", 1)
    print(_id(number))


def _directives(script: str) -> Iterator[str]:
    """The words of its ``#PBS`` lines, which end at its first command."""
    for line in takewhile(lambda line: not line or line.startswith("#"), script.splitlines()):
        if line.startswith("#PBS "):
            yield from shlex.split(line.removeprefix("#PBS "))


def _slurm_options(
    asked: dict[str, str], resources: dict[str, str], chunks: int, chunk: dict[str, str]
) -> dict[str, str | int | bool | None]:
    place = resources.get("place", "free").split(":")
    walltime = resources.get("walltime")
    return {
        "--job-name": asked.get("-N", "STDIN"), "--partition": asked.get("-q"), "--account": asked.get("-A"),
        "--nodes": chunks, "--ntasks-per-node": 1, "--cpus-per-task": chunk["ncpus"], "--mem": chunk.get("mem"),
        "--nodelist": chunk.get("host"), "--exclusive": "excl" in place,
        "--time": "UNLIMITED" if walltime is None else math.ceil(int(walltime) / 60),
        "--output": "/dev/null", "--chdir": "/",
    }  # fmt: skip


def _job(script: str, asked: dict[str, str], chunk: dict[str, str]) -> str:
    name = asked.get("-N", "STDIN")
    joined = asked.get("-j") == "oe"
    stderr = shlex.quote(asked.get("-e", f"{os.getcwd()}/{name}.e"))
    return _JOB.format(
        token=os.urandom(8).hex(), script=script, server=SERVER, name=name, ranks=chunk["mpiprocs"],
        cpus=chunk["ncpus"], workdir=shlex.quote(os.getcwd()), stderr_here="2>&1" if joined else '2> "$aux/stderr"',
        stdout=shlex.quote(asked.get("-o", f"{os.getcwd()}/{name}.o")),
        copy_stderr="" if joined else f'cp "$aux/stderr" {stderr}',
    )  # fmt: skip


# ---- qstat, qselect, qdel


def qstat(words: list[str]) -> None:
    """Tell of jobs: in a table, or (``-f``) all of one; with ``-x`` of those that have ended, too."""
    options, ids = getopt.getopt(words, "txf")
    flags, jobs, status = dict(options), all_jobs(), 0
    if "-f" not in flags:
        print("Job id            Name             User              Time Use S Queue")
        print("----------------  ---------------- ----------------  -------- - -----")
    for each in ids:
        job = _find(each, jobs)
        if job is None:
            status = _say(f"qstat: Unknown Job Id {each}", _UNKNOWN_JOB)
        elif not job.is_active and "-x" not in flags:
            finished = "Job has finished, use -x or -H to obtain historical job information"
            status = _say(f"qstat: {each} {finished}", _FINISHED)
        else:
            print(_full(job) if "-f" in flags else _row(job))
    sys.exit(status)


def _row(job: SlurmJob) -> str:
    number, name, queue = _id(job.number), job.fields["JobName"], job.fields["Partition"]
    return f"{number:<16.16}  {name:<16.16} {getpass.getuser():<16.16}  {'00:00:00':>8} {_state(job)} {queue}"


def _full(job: SlurmJob) -> str:
    cpus = int(job.fields["NumCPUs"]) // max(1, len(job.hosts))
    where = "+".join(f"({host}:ncpus={cpus})" for host in job.hosts)
    substate, how = _SUBSTATES.get(job.state, _FAILED)
    fields = {"Job_Name": job.fields["JobName"], "Job_Owner": f"{getpass.getuser()}@{SERVER}", "job_state": _state(job)}
    if job.hosts:
        fields |= {"exec_host": "+".join(f"{host}/0*{cpus}" for host in job.hosts)}
    fields |= {"comment": f"Job run at Thu Aug 10 at 16:10 on {where}" if where else "Not Running: no resources"}
    if not job.is_active:
        fields |= {"substate": str(substate), "Exit_status": str(_exit_status(job))}
        fields |= {"comment": f"{fields['comment']} and {how}"}
    return "\n".join([f"Job Id: {_id(job.number)}", *(_folded(f"    {name} = {fields[name]}") for name in fields), ""])


def _folded(line: str) -> str:
    """Lines have 78 columns; what is longer goes on behind a tab."""
    return line if len(line) <= 78 else f"{line[:78]}\n\t{_folded(line[78:])}"


def _exit_status(job: SlurmJob) -> int:
    """256 and more is the end by a signal; less than 0 is PBS's own doing."""
    if job.state == "TIMEOUT":
        return _WALLTIME_EXCEEDED
    if job.state == "CANCELLED":
        return 256 + signal.SIGTERM
    status, number = job.exit_status
    return 256 + number if number else status


def qselect(words: list[str]) -> None:
    """The ids of a user's jobs with a name, of those that have not ended."""
    asked = dict(getopt.getopt(words, "u:N:")[0])
    for job in all_jobs().values():
        owner = job.fields["UserId"].partition("(")[0]
        if job.is_active and (job.fields["JobName"], owner) == (asked["-N"], asked["-u"]):
            print(_id(job.number))


def qdel(ids: list[str]) -> None:
    """Delete jobs."""
    jobs, status = all_jobs(), 0
    for each in ids:
        job = _find(each, jobs)
        if job is None:
            status = _say(f"qdel: Unknown Job Id {each}", _UNKNOWN_JOB)
        elif not job.is_active:
            status = _say(f"qdel: Job has finished {each}", _FINISHED)
        else:
            slurm("scancel", str(job.number))
    sys.exit(status)


def _id(number: int) -> str:
    return f"{number}.{SERVER}"


def _find(job: str, jobs: dict[int, SlurmJob]) -> SlurmJob | None:
    return jobs.get(int(job.partition(".")[0]))


def _state(job: SlurmJob) -> str:
    return _STATES.get(job.state, "F")


def _say(text: str, status: int) -> int:
    print(text, file=sys.stderr)
    return status


# ---- pbsdsh


def pbsdsh(words: list[str]) -> None:
    """Run a command once for each chunk of the job that we are in; each of these is on a node of its own here."""
    if "PBS_ENVIRONMENT" not in os.environ:
        fail("pbsdsh: not executing under PBS", 1)
    _, command = getopt.getopt(words, "")
    number = int(os.environ["PBS_JOBID"].partition(".")[0])
    kept = [f"{name}={os.environ[name]}" for name in ("PBS_JOBID", "PBS_ENVIRONMENT", "PBS_NODEFILE", "HOME")]
    bare = ["env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin", *kept]
    started = [subprocess.Popen([*step(number, host), *bare, *command]) for host in all_jobs()[number].hosts]

    def pass_on(number: int, _: object) -> None:
        for each in started:
            each.send_signal(number)
        sys.exit(1)

    for each in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(each, pass_on)
    for index, process in enumerate(started):
        if process.wait() != 0:
            print(f"pbsdsh: task 0x{index:08X} exit status {process.returncode}")


if __name__ == "__main__":
    {"qsub": qsub, "qstat": qstat, "qselect": qselect, "qdel": qdel, "pbsdsh": pbsdsh}[sys.argv[1]](sys.argv[2:])
