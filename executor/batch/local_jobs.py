"""The commands of the batch system "local": ``python -E -P -S local_jobs.py DIRECTORY VERB ...``.

It has no scheduler and no queue. Each job has a process of its own, the runner, which outlives whoever submitted it:
it waits for what the job depends on, runs its script, or that of each task of an array, and notes what becomes of it.

    DIRECTORY/17/script, request.json      what was submitted
                 runner                    pid and start of the runner
                 tasks.json                {task: [status, returncode, reason]}; of a job without an array, task ""

Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

if sys.argv[2:3] == ["run"]:  # the other commands do not need it, and it would take half of their time
    import asyncio

#: Seconds between SIGTERM to a script and SIGKILL.
GRACE = 2.0
#: Seconds after which a job that has ended is forgotten.
KEPT = 30 * 86400.0
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
#: By type of dependency: whether it is met by jobs that ended so.
_MET: dict[str, Callable[[list[str]], bool]] = {
    "afterok": lambda ends: all(end == "COMPLETED" for end in ends),
    "afterany": lambda _: True,
    "afternotok": lambda ends: any(end != "COMPLETED" for end in ends),
}

State = list[Any]


def submit(top: str, request: str) -> None:
    """Start a job with the script on stdin, and print its id."""
    os.makedirs(top, mode=0o700, exist_ok=True)
    _forget_old(top)
    job = _new_job(top)
    directory = os.path.join(top, job)
    _write(f"{directory}/script", sys.stdin.read())
    _write(f"{directory}/request.json", request)
    array = json.loads(request)["array"]
    tasks = [""] if array is None else [str(index) for index in range(array["start"], array["end"] + 1)]
    _write(f"{directory}/tasks.json", json.dumps({task: ["PENDING", None, ""] for task in tasks}))
    null = subprocess.DEVNULL
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # inherited: a cancel may come before the runner can obey
    command = [sys.executable, "-E", "-P", "-S", os.path.abspath(__file__), top, "run", job]
    runner = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, cwd="/", start_new_session=True)
    _write(f"{directory}/runner", f"{runner.pid} {_start_time(runner.pid)}")
    runner.returncode = 0  # it is not ours any more: no warning that it still runs
    sys.stdout.write(f"{job}\n")


def ask(top: str, jobs: list[str]) -> None:
    """Print a line for each task: ``job|task|status|returncode|reason``."""
    for job in jobs:
        directory = os.path.join(top, job)
        alive = _runner(directory) is not None  # looked at first: it writes how all has ended, and leaves
        for task, (status, returncode, reason) in _tasks(directory).items():
            gone = not alive and status not in FINAL
            told = ("LOST", "", "the process that ran it was killed") if gone else (status, returncode, reason)
            sys.stdout.write("|".join([job, task, *("" if each is None else str(each) for each in told)]) + "\n")


def cancel(top: str, jobs: list[str]) -> None:
    """End jobs; ``17_3`` is one task of an array."""
    for each in jobs:
        job, _, task = each.partition("_")
        directory = os.path.join(top, job)
        if not os.path.isdir(directory):
            sys.exit(f"there is no job {job} in {top}")
        _write(f"{directory}/cancel{'-' if task else ''}{task}", "")
        pid = _runner(directory)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def cancel_named(top: str, name: str) -> None:
    """End all jobs with this name."""
    for job in os.listdir(top) if os.path.isdir(top) else ():
        with contextlib.suppress(OSError, ValueError), open(os.path.join(top, job, "request.json")) as file:
            if json.load(file).get("name") == name:
                cancel(top, [job])


# ---- the runner


class Runner:
    """Runs one job to its end."""

    def __init__(self, top: str, job: str) -> None:
        self._top = top
        self._job = job
        self._directory = os.path.join(top, job)
        with open(f"{self._directory}/request.json") as file:
            self._request = json.load(file)
        self._states = _tasks(self._directory)
        array = self._request["array"] or {}
        self._room = asyncio.Semaphore(array.get("max_concurrent") or len(os.sched_getaffinity(0)))
        self._running: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Run it."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._look_for_cancels)
        self._running = {task: asyncio.create_task(self._follow(task)) for task in self._states}
        self._look_for_cancels()  # it may have been before us
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        for task in [task for task, (status, _, _) in self._states.items() if status not in FINAL]:
            self._note(task, "CANCELLED", None, "")  # before it had begun

    def _look_for_cancels(self) -> None:
        names = set(os.listdir(self._directory))
        for task, running in self._running.items():
            if (
                names & {"cancel", f"cancel-{task}"} and not running.cancelling()
            ):  # a second one would disturb the first
                running.cancel()

    async def _follow(self, task: str) -> None:
        try:
            unmet = await self._wait_for_dependencies()
            if unmet:
                self._note(task, "CANCELLED", None, unmet)
                return
            async with self._room:
                await self._run_script(task)
        except asyncio.CancelledError:
            self._note(task, "CANCELLED", None, "")

    async def _wait_for_dependencies(self) -> str:
        """Why it may not run; "" if it may."""
        kind = self._request["dependency_type"]
        for job in self._request["dependencies"]:
            directory = os.path.join(self._top, job)
            await _wait_for_end(directory)
            if not _MET[kind]([status for status, _, _ in _tasks(directory).values()]):
                return f"its dependency {kind}:{job} is never met"
        return ""

    async def _run_script(self, task: str) -> None:
        try:
            script = await self._start(task)
        except OSError as error:
            self._note(task, "FAILED", None, str(error))
            return
        self._note(task, "RUNNING", None, "")
        try:
            async with asyncio.timeout(self._request["time"]):
                returncode = await script.wait()
        except TimeoutError:
            await _end(script)
            self._note(task, "TIMEOUT", None, f"it ran longer than {self._request['time']:g} s")
        except asyncio.CancelledError:
            await _end(script)
            raise
        else:
            self._note(task, "FAILED" if returncode else "COMPLETED", returncode, "")

    async def _start(self, task: str) -> asyncio.subprocess.Process:
        os.chdir(self._request["workdir"])  # were it said below, the error would name bash
        with contextlib.ExitStack() as files:
            stdout = files.enter_context(open(self._path("stdout", task), "wb"))
            stderr = files.enter_context(open(self._path("stderr", task), "wb")) if self._request["stderr"] else stdout
            return await asyncio.create_subprocess_exec(
                "bash", f"{self._directory}/script", stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                env={**os.environ, "LOCAL_JOB_ID": self._job, "LOCAL_TASK_ID": task}, start_new_session=True,
            )  # fmt: skip

    def _path(self, stream: str, task: str) -> str:
        return str(self._request[stream].replace("%{JOB_ID}", self._job).replace("%{TASK_ID}", task))

    def _note(self, task: str, status: str, returncode: int | None, reason: str) -> None:
        self._states[task] = [status, returncode, reason.replace("\n", " ").replace("|", " ")]
        _write(f"{self._directory}/tasks.json", json.dumps(self._states))


async def _end(script: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):  # the second one also for what the script has left behind
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(script.wait()), GRACE)


async def _wait_for_end(directory: str) -> None:
    """Until the runner of another job has ended."""
    pid = _runner(directory)
    if pid is None:
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)


# ---- the files


def _new_job(top: str) -> str:
    number = max((int(name) for name in os.listdir(top) if name.isdecimal()), default=0)
    while True:
        number += 1
        with contextlib.suppress(FileExistsError):  # somebody submits at the same moment
            os.mkdir(os.path.join(top, str(number)), 0o700)
            return str(number)


def _forget_old(top: str) -> None:
    for name in os.listdir(top):
        directory = os.path.join(top, name)
        with contextlib.suppress(FileNotFoundError):
            if time.time() - os.stat(f"{directory}/tasks.json").st_mtime > KEPT and _runner(directory) is None:
                shutil.rmtree(directory, ignore_errors=True)


def _tasks(directory: str) -> dict[str, State]:
    with contextlib.suppress(FileNotFoundError), open(f"{directory}/tasks.json") as file:
        return dict(json.load(file))
    return {}


def _runner(directory: str) -> int | None:
    """The pid of the job's runner, if that lives."""
    with contextlib.suppress(FileNotFoundError), open(f"{directory}/runner") as file:
        pid, _, start = file.read().partition(" ")
        return int(pid) if _start_time(int(pid)) == start else None
    return None


def _start_time(pid: int) -> str:
    """With the pid it is unique; "" if the process has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
        return "" if fields[0] == b"Z" else fields[19].decode()
    return ""


def _write(path: str, text: str) -> None:
    """At once: whoever reads it has the old text or the new one."""
    with open(f"{path}.new", "w") as file:
        file.write(text)
    os.replace(f"{path}.new", path)


def main(top: str, verb: str, *words: str) -> None:
    """Obey the command line."""
    if verb == "submit":
        submit(top, words[0])
    elif verb == "ask":
        ask(top, list(words))
    elif verb == "cancel-named":
        cancel_named(top, words[0])
    elif verb == "cancel":
        cancel(top, list(words))
    else:
        asyncio.run(Runner(top, words[0]).run())


if __name__ == "__main__":
    main(*sys.argv[1:])
