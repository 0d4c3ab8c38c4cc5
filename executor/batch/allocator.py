"""The one place that runs the commands of batch systems for an executor: a thread, so that nobody waits for them.

    Supply --submit, cancel--> Allocator --commands--> batch system
    Supply <--on_submitted, on_refused, on_record-- Allocator <--answers--

All jobs of one batch system are asked for at once, every ``poll`` seconds. What the answer leaves out is not taken for
ended before it was asked for by itself and nothing was heard of it for long.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from executor.batch import guardian
from executor.batch.commands import run
from executor.batch.request import JobRequest
from executor.batch.states import JobRecord, JobStatus
from executor.batch.system import Answer, BatchSystem, Command
from worker_agent import processes

log = logging.getLogger("executor")

#: Seconds for which a job may be missing from its batch system's answers until it is asked for by itself.
MISSING = 5.0
#: Seconds after which a job of which nothing is heard any more is taken for lost.
LOST_AFTER = 600.0
#: Ids that fit into one command.
CHUNK = 500


class Listener(Protocol):
    """Who is told what becomes of jobs; on the allocator's thread."""

    def on_submitted(self, key: int, job: str, /) -> None:
        """The batch system has given it an id."""

    def on_refused(self, key: int, why: str, /) -> None:
        """It could not be submitted."""

    def on_record(self, key: int, record: JobRecord, /) -> None:
        """It is so now. After a final status nothing more is told of it."""


@dataclass(slots=True, eq=False)
class _Job:
    key: int
    system: BatchSystem
    id: str
    record: JobRecord | None = None
    #: since when it is missing
    missing: float | None = None


class Guard(NamedTuple):
    """What is done when this process is killed."""

    commands: list[Command]
    directories: list[str]


class Allocator:
    """Submits, watches and cancels. Methods may be called from any thread; what they ask for is done in turn."""

    def __init__(self, systems: Sequence[BatchSystem], poll: float, listener: Listener, guard: Guard) -> None:
        self._systems = systems
        self._poll = poll
        self._listener = listener
        self._guard = guard
        self._guardian: subprocess.Popen[bytes] | None = None
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._jobs: dict[int, _Job] = {}
        self._asked = float("-inf")
        self._thread = threading.Thread(target=self._run, name="hpc-executor-allocator", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, key: int, system: BatchSystem, request: JobRequest) -> None:
        """Submit a job that is to be known as ``key``."""
        self._orders.put(lambda: self._submit(key, system, request))

    def cancel(self, key: int) -> None:
        """Cancel a job."""
        self._orders.put(lambda: self._cancel([key]))

    def close(self) -> None:
        """Cancel all jobs, and end; waits for that."""
        self._orders.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                order = self._orders.get(timeout=self._patience())
            except queue.Empty:
                self._ask_all(time.monotonic())
                continue
            if order is None:
                break
            order()
        self._cancel(list(self._jobs))
        self._dismiss_guardian()

    def _patience(self) -> float | None:
        """Seconds until the next question; None: there is nothing to ask."""
        return max(0.0, self._asked + self._poll - time.monotonic()) if self._jobs else None

    def _submit(self, key: int, system: BatchSystem, request: JobRequest) -> None:
        if self._guardian is None:
            self._call_guardian()
        command = system.submit(request)
        answer = run(command, system)
        job = system.read_id(answer)
        if job is None:
            self._listener.on_refused(key, _refusal(command, answer))
            return
        if not self._jobs:
            self._asked = time.monotonic()  # it is not asked for at once
        self._jobs[key] = _Job(key, system, job)
        self._listener.on_submitted(key, job)

    def _cancel(self, keys: Sequence[int]) -> None:
        for system in self._systems:
            jobs = [job.id for key in keys if (job := self._jobs.get(key)) is not None and job.system is system]
            for start in range(0, len(jobs), CHUNK):
                answer = _cancel(system, jobs[start : start + CHUNK])
                self._take_cancelled(system, system.read_cancelled(answer))

    def _take_cancelled(self, system: BatchSystem, ids: set[str]) -> None:
        for job in [job for job in self._jobs.values() if job.system is system and job.id in ids]:
            self._tell(job, JobRecord(JobStatus.CANCELLED))

    # --- what becomes of them -----------------------------------------------------------------------------------------

    def _ask_all(self, now: float) -> None:
        self._asked = now
        for system in self._systems:
            jobs = {job.id: job for job in self._jobs.values() if job.system is system}
            ids = list(jobs)
            for start in range(0, len(ids), CHUNK):
                self._ask(system, {each: jobs[each] for each in ids[start : start + CHUNK]})

    def _ask(self, system: BatchSystem, jobs: dict[str, _Job]) -> None:
        answer = run(system.ask(list(jobs)), system)
        records = system.read_records(answer, list(jobs))
        if records is None:
            log.warning("%s does not tell of its jobs: %s", system.name, answer.text)
            return
        for job in jobs.values():
            record = records.get(job.id)
            if record is None:
                self._miss(job, time.monotonic())
            elif record.status.is_final:
                ended = self._ask_ended(job) or record
                if record.stuck:
                    _cancel(system, [job.id])
                self._tell(job, ended)
            else:
                job.missing = None
                self._tell(job, record)

    def _ask_ended(self, job: _Job) -> JobRecord | None:
        answers = [run(command, job.system) for command in job.system.ask_ended(job.id)]
        record = job.system.read_ended(answers, job.id)
        return record if record is not None and record.status.is_final else None

    def _miss(self, job: _Job, now: float) -> None:
        """It is not listed: that alone means nothing."""
        job.missing = job.missing or now
        if now - job.missing < MISSING:
            return
        record = self._ask_ended(job)
        if record is None and now - job.missing > LOST_AFTER:
            record = JobRecord(JobStatus.LOST, reason=f"its batch system has not told of it for {LOST_AFTER:g} s")
        if record is not None:
            self._tell(job, record)

    def _tell(self, job: _Job, record: JobRecord) -> None:
        if record == job.record:
            return
        job.record = record
        if record.status.is_final:
            del self._jobs[job.key]
        self._listener.on_record(job.key, record)

    # --- if we are killed ---------------------------------------------------------------------------------------------

    def _call_guardian(self) -> None:
        system = self._systems[0]
        pid = os.getpid()
        charge = {
            "pid": pid, "start": processes.start_time(pid), "directories": self._guard.directories,
            "commands": [command.argv for command in self._guard.commands],
            "environment": {**system.environment(os.environ), "LC_ALL": "C"},
        }  # fmt: skip
        self._guardian = subprocess.Popen(
            [sys.executable, "-E", "-P", guardian.__file__], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, cwd="/", start_new_session=True,
        )  # fmt: skip
        self._say(json.dumps(charge).encode())

    def _dismiss_guardian(self) -> None:
        if self._guardian is not None:
            self._say(b"done")
            assert self._guardian.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._guardian.stdin.close()
            self._guardian.wait()

    def _say(self, line: bytes) -> None:
        assert self._guardian is not None
        assert self._guardian.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # somebody has killed it
            self._guardian.stdin.write(line + b"\n")
            self._guardian.stdin.flush()


def _cancel(system: BatchSystem, ids: Sequence[str]) -> Answer:
    answer = run(system.cancel(ids), system)
    if complaints := system.complaints(answer):
        log.warning("cancelling %s jobs: %s", system.name, complaints)
    return answer


def _refusal(command: Command, answer: Answer) -> str:
    how = "did not answer" if answer.returncode is None else f"ended with status {answer.returncode}"
    return f"{' '.join(command.argv)} {how}: {answer.text or 'and said nothing'}"
