"""An emulated Flux: batch, jobs, cancel, run and exec, in front of a real Slurm. Nothing of Flux runs here.

``python emulated_flux.py batch ...``. It takes what our adapter says and no more: the rest is an error, as a misspelt
option would be. What it does is what Flux's manual pages and sources say (https://github.com/flux-framework/flux-core):

- A job has the variables of who has submitted it, but none of the FLUX_JOB_..., SLURM_... and PMI_...; FLUX_URI is that
  of an instance of its own, to which the commands in it speak (flux-batch(1), flux-environment(7)).
- Options in the script stand behind a common sentinel and are split as by a shell (flux-batch(1), RFC 36).
- Ids are base 58 (RFC 19), behind an f where the locale has no other letter for it.
- ``flux jobs`` of ids prints those that it knows, an error for each of the others, and ends with 1 then
  (src/cmd/flux-jobs.py, src/bindings/python/flux/job/list.py).
- ``flux cancel`` of several jobs goes on after one that fails, and ends with 1 (src/cmd/flux-cancel.py); what has
  ended is an "unknown job id", too (src/modules/job-manager/raise.c).
"""

from __future__ import annotations

import argparse
import getpass
import math
import os
import re
import shlex
import signal
import subprocess
import sys

from emulation import SlurmJob, SlurmRefusal, all_jobs, fail, slurm, step, submit

_DIGITS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
#: RFC 21
_STATES = {"PENDING": "SCHED", "CONFIGURING": "SCHED", "RUNNING": "RUN", "COMPLETING": "CLEANUP"}
_RESULTS = {"COMPLETED": "COMPLETED", "CANCELLED": "CANCELED", "TIMEOUT": "TIMEOUT"}
#: What is told of a job that was canceled before it started, by flux-jobs(1).
_NEVER_RAN = "-128"
_SYSTEM_URI = "local:///run/flux/local"
_DIRECTIVE = re.compile(r"^[^\w\n]*flux: (.*)$", re.MULTILINE)
_URI = "local:///tmp/flux-{number}/local-0"
#: What the job shell does, and the first program of the job's instance.
_JOB = """\
#!/bin/bash
script=/dev/shm/flux-$SLURM_JOB_ID
cat > "$script" <<'end of the script of {token}'
{script}
end of the script of {token}
export FLUX_URI={uri}
unset "${{!SLURM@}}" "${{!SBATCH@}}" "${{!PMI_@}}"
exec /bin/bash "$script"
"""


def f58(number: int) -> str:
    """An id as text."""
    text = ""
    while number:
        number, digit = divmod(number, len(_DIGITS))
        text = _DIGITS[digit] + text
    return f"f{text or _DIGITS[0]}"


def parse_f58(text: str) -> int:
    """The number of an id."""
    number = 0
    for letter in text[1:]:
        number = number * len(_DIGITS) + _DIGITS.index(letter)
    return number


# ---- flux batch


def batch(words: list[str]) -> None:
    """Submit the script on stdin."""
    script = sys.stdin.read()
    parser = argparse.ArgumentParser("flux batch", allow_abbrev=False)
    for name in ("--job-name", "--time-limit", "--queue", "--bank", "--cwd", "--output", "--error", "--requires"):
        parser.add_argument(name)
    for name in ("--nodes", "--nslots", "--cores-per-slot", "--gpus-per-slot"):
        parser.add_argument(name, type=int, default=1)
    parser.add_argument("--exclusive", action="store_true")
    directives = [word for line in _DIRECTIVE.findall(script) for word in shlex.split(line, comments=True)]
    asked = parser.parse_args([*directives, *words])
    text = _JOB.format(token=os.urandom(8).hex(), script=script, uri=_URI.format(number="$SLURM_JOB_ID"))
    try:
        print(f58(submit(text, _slurm_options(asked))))
    except SlurmRefusal as error:
        if "partition" in str(error):
            fail(f"flux-batch: ERROR: Invalid queue '{asked.queue}' specified", 1)
        fail(f"flux-batch: ERROR: {error}", 1)


def _slurm_options(asked: argparse.Namespace) -> dict[str, str | int | bool | None]:
    slots = asked.nslots // asked.nodes
    host = asked.requires and asked.requires.removeprefix("host:")
    return {
        "--job-name": asked.job_name or "flux", "--partition": asked.queue, "--account": asked.bank,
        "--nodes": asked.nodes, "--ntasks-per-node": 1, "--cpus-per-task": asked.cores_per_slot * slots,
        "--nodelist": host, "--exclusive": asked.exclusive, "--chdir": asked.cwd,
        "--time": "UNLIMITED" if asked.time_limit is None else math.ceil(int(asked.time_limit.rstrip("s")) / 60),
        "--output": asked.output or f"{os.getcwd()}/flux-%j.out", "--error": asked.error,
    }  # fmt: skip


# ---- flux jobs, flux cancel


def jobs(words: list[str]) -> None:
    """Tell of jobs."""
    parser = argparse.ArgumentParser("flux jobs", allow_abbrev=False)
    parser.add_argument("-a", action="store_true")
    parser.add_argument("-n", action="store_true", required=True)
    parser.add_argument("-c", type=int)
    parser.add_argument("-u", default=getpass.getuser())
    parser.add_argument("-o", required=True)
    parser.add_argument("--name")
    parser.add_argument("ids", nargs="*")
    asked = parser.parse_args(words)
    known = all_jobs()
    unknown = [each for each in asked.ids if parse_f58(each) not in known]
    for each in unknown:
        print(f"flux-jobs: ERROR: JobID {each} unknown", file=sys.stderr)
    for job in known.values():
        if f58(job.number) in asked.ids or (not asked.ids and _is_wanted(job, asked)):
            print(re.sub(r"\{([\w.]+)\}", lambda match, job=job: _fields(job)[match[1]], asked.o))
    sys.exit(1 if unknown else 0)


def _is_wanted(job: SlurmJob, asked: argparse.Namespace) -> bool:
    owner = job.fields["UserId"].partition("(")[0]
    return owner == asked.u and asked.name in (None, job.fields["JobName"]) and (asked.a or job.is_active)


def _fields(job: SlurmJob) -> dict[str, str]:
    result = "" if job.is_active else _RESULTS.get(job.state, "FAILED")
    return {
        "id": f58(job.number), "id.f58": f58(job.number), "state": _STATES.get(job.state, "INACTIVE"),
        "result": result, "returncode": _returncode(job) if result else "", "nodelist": ",".join(job.hosts),
        "exception.note": "resource allocation expired" if result == "TIMEOUT" else "",
    }  # fmt: skip


def _returncode(job: SlurmJob) -> str:
    """That of the job's shell, which ends with 128 and the signal where one has ended the script."""
    if job.state == "TIMEOUT":
        return str(128 + signal.SIGALRM)
    status, number = job.exit_status
    return _NEVER_RAN if not job.hosts else str(128 + number if number else status)


def cancel(ids: list[str]) -> None:
    """Cancel jobs."""
    known, status = all_jobs(), 0
    for each in ids:
        job = known.get(parse_f58(each))
        if job is None or not job.is_active:
            print(f"flux-cancel: ERROR: {each}: unknown job id", file=sys.stderr)
            status = 1
        else:
            slurm("scancel", str(job.number))
    sys.exit(status)


# ---- in a job


def run(words: list[str]) -> None:
    """Run a command on nodes of the instance that we are in."""
    parser = argparse.ArgumentParser("flux run", allow_abbrev=False)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--ntasks", type=int, required=True)
    parser.add_argument("--exclusive", action="store_true")
    parser.add_argument("-o")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args(words)
    job = _own_job()
    assert asked.ntasks == asked.nodes == len(job.hosts)
    _start_on_all(job, ["env", f"FLUX_JOB_ID={f58(job.number)}", *asked.command])


def exec_(words: list[str]) -> None:
    """Run a command on each node of the instance that we are in."""
    assert words[:2] == ["-r", "all"]
    _start_on_all(_own_job(), words[2:])


def _own_job() -> SlurmJob:
    found = re.fullmatch(_URI.format(number="([0-9]+)"), os.environ.get("FLUX_URI", _SYSTEM_URI))
    if found is None:
        fail("flux: ERROR: this is the system's instance, in which nobody may run anything directly", 1)
    return all_jobs()[int(found[1])]


def _start_on_all(job: SlurmJob, command: list[str]) -> None:
    """Ends with the largest of their exit statuses; SIGINT and SIGTERM are sent on."""
    bare = ["/bin/bash", "-c", 'unset "${!SLURM@}" "${!PMI_@}"; exec "$@"', "flux"]
    started = [subprocess.Popen([*step(job.number, host), *bare, *command]) for host in job.hosts]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: [each.send_signal(number) for each in started])
    sys.exit(max(each.wait() for each in started))


if __name__ == "__main__":
    {"batch": batch, "jobs": jobs, "cancel": cancel, "run": run, "exec": exec_}[sys.argv[1]](sys.argv[2:])
