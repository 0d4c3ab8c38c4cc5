"""The one place that runs the commands of batch systems for an executor: a thread, so that nobody waits for them.

    Supply --submit, cancel--> Allocator --commands--> batch system
    Supply <--on_submitted, on_refused, on_record-- Allocator <--answers--

What becomes of the jobs :mod:`executor.batch.watch` tells, which is asked every ``poll`` seconds.
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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from executor.batch import guardian
from executor.batch.commands import render_failure, run
from executor.batch.request import JobRequest
from executor.batch.states import JobRecord
from executor.batch.system import BatchSystem, Command
from executor.batch.watch import Followed, Watch
from worker_agent import processes

log = logging.getLogger("executor")


class Listener(Protocol):
    """Who is told what becomes of jobs; on the allocator's thread."""

    def on_submitted(self, key: int, job: str, /) -> None:
        """The batch system has given it an id."""

    def on_refused(self, key: int, why: str, /) -> None:
        """It could not be submitted."""

    def on_record(self, key: int, record: JobRecord, /) -> None:
        """It is so now. After a final status nothing more is told of it."""


class Guard(NamedTuple):
    """What is done when this process is killed.

    ``commands`` cancel all that is ours, one for each batch system; then the directories are removed.
    """

    commands: list[Command]
    directories: list[str]


class Allocator:
    """Submits, watches and cancels. Methods may be called from any thread; what they ask for is done in turn."""

    def __init__(self, systems: Sequence[BatchSystem], poll: float, listener: Listener, guard: Guard) -> None:
        self._watches = [Watch(system) for system in systems]
        self._poll = poll
        self._listener = listener
        self._guard = guard
        self._guardian: subprocess.Popen[bytes] | None = None
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        #: the jobs that have not ended, and the watches that follow them
        self._jobs: dict[int, tuple[Watch, str]] = {}
        #: a submission had no answer that we understand: there may be a job of which we do not know
        self._unclear = False
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

    def do(self, work: Callable[[], None]) -> None:
        """Have something else done there that may take long."""
        self._orders.put(work)

    def close(self) -> None:
        """Cancel all jobs, and end; waits for that."""
        self._orders.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (order := self._next()) is not None:
            self._do(order)
        self._cancel_all()
        self._dismiss_guardian()

    def _next(self) -> Callable[[], None] | None:
        """The next order; if there is none for a while: to ask."""
        try:
            return self._orders.get(timeout=self._patience())
        except queue.Empty:
            return self._ask

    @staticmethod
    def _do(order: Callable[[], object]) -> None:
        try:
            order()
        except Exception:  # a bug, or an adapter's: what else there is to do is done all the same
            log.exception("asking for allocations, or after them, failed; it goes on with what comes next")

    def _patience(self) -> float | None:
        """Seconds until the next question; None: there is nothing to ask."""
        return max(0.0, self._asked + self._poll - time.monotonic()) if self._jobs else None

    def _submit(self, key: int, system: BatchSystem, request: JobRequest) -> None:
        try:
            self._try_to_submit(key, system, request)
        except Exception as error:  # an adapter's, or there is no room for a process: the job's tasks are to hear of it
            self._unclear = True
            self._listener.on_refused(key, f"submitting to {system.name} failed: {type(error).__name__}: {error}")

    def _try_to_submit(self, key: int, system: BatchSystem, request: JobRequest) -> None:
        if self._guardian is None:
            self._call_guardian()
        command = system.submit(request)
        answer = run(command, system)
        job = system.read_id(answer)
        if job is None:
            self._unclear |= answer.returncode in (None, 0)
            self._listener.on_refused(key, render_failure(command, answer))
            return
        if not self._jobs:
            self._asked = time.monotonic()  # it is not asked for at once
        watch = next(watch for watch in self._watches if watch.system is system)
        watch.add(Followed(job, job, lambda record: self._tell(key, record)))
        self._jobs[key] = watch, job
        self._listener.on_submitted(key, job)

    def _cancel(self, keys: Sequence[int]) -> None:
        for watch in self._watches:
            jobs = [job for key in keys for of, job in self._find(key) if of is watch]
            self._do(partial(self._cancel_in, watch, jobs))

    def _cancel_in(self, watch: Watch, jobs: list[str]) -> None:
        complaints = watch.cancel(jobs)
        if complaints:
            log.warning("cancelling %s jobs: %s", watch.system.name, complaints)

    def _cancel_all(self) -> None:
        self._cancel(list(self._jobs))
        if self._unclear:
            for watch, command in zip(self._watches, self._guard.commands, strict=True):
                self._do(partial(run, command, watch.system))

    def _find(self, key: int) -> list[tuple[Watch, str]]:
        """The job, unless it has ended."""
        return [self._jobs[key]] if key in self._jobs else []

    def _ask(self) -> None:
        self._asked = time.monotonic()
        for watch in self._watches:
            self._do(watch.ask)

    def _tell(self, key: int, record: JobRecord) -> None:
        if record.status.is_final:
            del self._jobs[key]
        self._listener.on_record(key, record)

    # --- if we are killed ---------------------------------------------------------------------------------------------

    def _call_guardian(self) -> None:
        pid = os.getpid()
        environment: Mapping[str, str] = os.environ
        for watch in self._watches:  # we may be in a job of any of them
            environment = watch.system.environment(environment)
        charge = {
            "pid": pid, "start": processes.start_time(pid), "directories": self._guard.directories,
            "commands": [command.argv for command in self._guard.commands],
            "environment": {**environment, "LC_ALL": "C"},
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
