"""`python -m benchmarks.soak --minutes N`: one executor lives through many faults, and nothing may be lost or doubled.

Random faults (tasks and agents are killed and stopped, connections dropped, frozen, cut) hit a random workload. Each
attempt notes its beginning and end, each result is compared with what was submitted. What counts at the end:

- each task has had one outcome, the right one; those that were killed on purpose have TaskDied (programs:
  ProgramFailed), and no others have;
- no attempt began while another one of the same task ran, and none ran that the future does not count;
- nothing is left: no process, no directory; and nothing grows: memory and descriptors of client and agents;
- nothing was logged above a warning.
"""

import argparse
import contextlib
import logging
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import soak_tasks
from benchmarks.soak_faults import LEASE, Crew, Faults, local_agents
from benchmarks.soak_gauge import MIB, Gauge, give_back
from executor import CAPTURE, HPCExecutor, Program, ProgramFailed, TaskDied
from worker_agent import processes

#: Local agents.
LOCAL = 2
#: Tasks that are there at a time.
OUTSTANDING = 16
#: Seconds after which a task counts as lost: a stopped local agent is given 45, and its tasks may meet the next one.
PATIENCE = 240.0
#: Seconds of one turn of the loop.
TURN = 0.05
#: All processes of this run inherit it.
MARK = "HPC_SOAK"
#: Bytes that a task is given and gives back, and how often.
SIZES = {1: 30, 100: 30, 10_000: 20, 300_000: 8, 3 * MIB: 4, 64 * MIB: 0.25}


# ---- the workload


@dataclass(slots=True, eq=False)
class Job:
    """A task and what is to become of it."""

    path: str
    data: bytes
    #: it never ends by itself, and is killed as soon as it runs
    victim: bool
    kind: str
    future: Any = None
    submitted: float = 0.0
    kills: set[int] = field(default_factory=set)
    outcomes: int = 0

    def note_outcome(self, _: Future[Any]) -> None:
        """A callback of the future: it should come once."""
        self.outcomes += 1


class Workload:
    """Random tasks, and whether they end as they should."""

    def __init__(self, executor: HPCExecutor, chance: random.Random, directory: Path) -> None:
        self._executor = executor.options(crash_limit=10_000, stdout=CAPTURE, stderr=CAPTURE)
        self._chance, self._directory = chance, directory
        self.jobs: list[Job] = []
        self.done: Counter[str] = Counter()
        self.repeated = 0
        self.violations: list[str] = []
        self._numbers = iter(range(1, 2**62))

    def submit(self, *, victim: bool = False) -> None:
        """A new task of a random kind, size and duration."""
        chance = self._chance
        kind = chance.choice(["call", "call", "program"])
        size = chance.choices([*SIZES], [*SIZES.values()])[0]
        seconds = 3600.0 if victim else chance.choice([0, 0, 0, 0.01, 0.1, chance.expovariate(2.0)])
        path = str(self._directory / str(next(self._numbers)))
        data = chance.randbytes(size) if kind == "call" else chance.randbytes(min(size, 5000)).hex().encode()
        job = Job(path, data, victim, kind, submitted=time.monotonic())
        job.future = self._start(job, seconds)
        job.future.add_done_callback(job.note_outcome)
        self.jobs.append(job)

    def _start(self, job: Job, seconds: float) -> Any:
        if job.kind == "call":
            return self._executor.submit(soak_tasks.work, job.path, seconds, job.data)
        words = [sys.executable, "-E", "-S", soak_tasks.__file__, job.path, str(seconds), job.data.decode()]
        return self._executor.submit(Program(words))

    def kill_victims(self) -> int:
        """Kill those that run now; how many."""
        return sum(self._kill(job) for job in self.jobs if job.victim and not job.future.done())

    def _kill(self, job: Job) -> bool:
        begun = [(pid, began) for word, pid, began in soak_tasks.notes(job.path) if word == "begin"]
        if not begun or begun[-1][0] in job.kills or not soak_tasks.is_running(*begun[-1]):
            return False
        job.kills.add(begun[-1][0])
        with contextlib.suppress(ProcessLookupError):
            os.kill(begun[-1][0], signal.SIGKILL)
        return True

    def collect(self) -> None:
        """Look at what has ended, and for what does not end."""
        now, jobs, self.jobs = time.monotonic(), self.jobs, []
        for job in jobs:
            if job.outcomes:
                self._check(job)
            elif now > job.submitted + PATIENCE:
                self.violations.append(f"no outcome after {PATIENCE:g} s: {job.future!r} ({describe(job)})")
            else:
                self.jobs.append(job)

    def _check(self, job: Job) -> None:
        for trouble in (*self._check_outcome(job), *self._check_attempts(job)):
            self.violations.append(f"{job.future!r} ({describe(job)}): {trouble}")
        self.done[f"{job.kind}s{' killed' if job.victim else ''}"] += 1
        with contextlib.suppress(FileNotFoundError):
            os.unlink(job.path)

    def _check_outcome(self, job: Job) -> Iterable[str]:
        error = job.future.exception()
        if job.outcomes != 1:
            yield f"it had {job.outcomes} outcomes"
        if job.victim:
            if not (job.kills and has_died_by_kill(error)):
                yield f"killed were its processes {job.kills}, and it has {error!r}"
        elif error is not None:
            yield f"nobody has killed it, and it has {error!r}"
        elif (job.future.result() if job.kind == "call" else job.future.result().stdout.encode()) != job.data:
            yield "its result is not what was submitted"

    def _check_attempts(self, job: Job) -> Iterable[str]:
        notes = soak_tasks.notes(job.path)
        words = Counter(word for word, _, _ in notes)
        self.repeated += words["begin"] > 1
        if words["overlap"]:
            yield "an attempt began while another one ran"
        if not 1 <= words["begin"] <= job.future.attempt:
            yield f"it began {words['begin']} times in {job.future.attempt} attempts"
        if not job.victim and not words["end"]:
            yield "it has a result and never came to its end"


def has_died_by_kill(error: BaseException | None) -> bool:
    """Whether it says that SIGKILL has ended the task: of a call, or of a program."""
    return type(error) in (TaskDied, ProgramFailed) and error.returncode == -signal.SIGKILL


def describe(job: Job) -> str:
    """What a job is and what it noted."""
    return f"{job.kind} of {len(job.data)} bytes, noted: {soak_tasks.notes(job.path)[-6:]}"


# ---- the run


class Ear(logging.Handler):
    """Hears what the executor logs: how many lines of each level, the last ones, and all above a warning."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.grave: list[str] = []
        self.last: deque[str] = deque(maxlen=5)

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        self.counts[record.levelname] += 1
        self.last.append(record.getMessage())
        if record.levelno > logging.WARNING:
            self.grave.append(record.getMessage())


class Soak:
    """One run."""

    def __init__(self, seconds: float, seed: int) -> None:
        self._seconds = seconds
        self._ear = Ear()
        logging.getLogger("executor").addHandler(self._ear)
        self._directory = Path(tempfile.mkdtemp(prefix="soak-"))
        chance = random.Random(seed)
        self.executor = HPCExecutor(2 * LOCAL, agents=LOCAL, lease=LEASE)
        self.workload = Workload(self.executor, chance, self._directory)
        self.crew = Crew(self.executor, self._directory)
        self.faults = Faults(self.workload, self.executor, self.crew, chance)
        assert self.executor._hub is not None
        self._stores = [Path(store) for store in self.executor._hub.directories.stores]
        self._gauges: dict[str, Gauge] = {"client": Gauge(os.getpid())}
        self._start = time.monotonic()

    def run(self) -> list[str]:
        """Live through it; the violations."""
        told = self._start
        try:
            while (now := time.monotonic()) < self._start + self._seconds:
                self._take_turn(now)
                if now > told + 60:
                    told = now
                    print(self.progress(), flush=True)
        except KeyboardInterrupt:
            print("interrupted: the report is about what there was until now", file=sys.stderr)
        self._end()
        return self.workload.violations

    def _take_turn(self, now: float) -> None:
        while len(self.workload.jobs) < OUTSTANDING:
            self.workload.submit()
        self.crew.fill_up()
        self.faults.take_turn()
        self.workload.collect()
        self._watch(now)
        time.sleep(TURN)

    def _watch(self, now: float) -> None:
        for name, pids in (("local agent", local_agents(self.executor)), ("invited agent", self.crew.pids())):
            if pids and (name not in self._gauges or self._gauges[name].pid not in pids):
                self._gauges[name] = Gauge(pids[0])
        for gauge in self._gauges.values():
            if gauge.pid != os.getpid() or self._is_light():
                gauge.read(now)

    def _is_light(self) -> bool:
        """Whether this process has little to hold. Each task is there twice, also pickled. Frees what libc keeps."""
        if sum(len(job.data) for job in self.workload.jobs) > MIB:
            return False
        give_back()
        return True

    def _end(self) -> None:
        self.faults.end()
        deadline = time.monotonic() + PATIENCE
        while self.workload.jobs and time.monotonic() < deadline:
            self.crew.fill_up()
            self.workload.kill_victims()
            self.workload.collect()
            time.sleep(TURN)
        self._close()
        self.workload.violations += [f"left behind: {text}" for text in self._left()]
        self.workload.violations += [f"logged: {text}" for text in self._ear.grave]
        shutil.rmtree(self._directory, ignore_errors=True)

    def _close(self) -> None:
        began = time.monotonic()
        try:
            if self.workload.jobs:
                self.executor.kill_workers()
            self.executor.shutdown()
            self.crew.close()
        except subprocess.TimeoutExpired as error:
            self.workload.violations.append(f"an invited agent did not leave with the executor: {error}")
        print(f"shut down in {time.monotonic() - began:.1f} s", flush=True)

    def _left(self) -> list[str]:
        end = time.monotonic() + 5
        while (left := [*self._stores_left(), *marked_processes()]) and time.monotonic() < end:
            time.sleep(TURN)
        return left

    def _stores_left(self) -> list[str]:
        return [str(store) for store in self._stores if store.exists()]

    # --- what is told -------------------------------------------------------------------------------------------------

    def progress(self) -> str:
        """One line."""
        minutes = (time.monotonic() - self._start) / 60
        tasks = ", ".join(f"{count} {kind}" for kind, count in sorted(self.workload.done.items()))
        faults = sum(self.faults.counts.values())
        bad = len(self.workload.violations)
        return f"{minutes:.1f} min: {tasks}; {self.workload.repeated} ran again; {faults} faults; {bad} violations"

    def report(self) -> str:
        """The faults, what invited agents said when they left, and growth; adds to the violations what grows."""
        lines = [self.progress(), "faults: " + counted(self.faults.counts), "log: " + counted(self._ear.counts)]
        lines.append("invited agents that ended: " + counted(self.crew.ended))
        for name, gauge in self._gauges.items():
            for flat, words in gauge.verdicts(name):
                lines.append(words)
                if not flat:
                    self.workload.violations.append(words)
        return "\n".join(lines)


def counted(counts: Counter[str]) -> str:
    """In words."""
    return ", ".join(f"{count} x {name}" for name, count in counts.most_common()) or "none"


def marked_processes() -> list[str]:
    """Processes of this run that are left."""
    found = []
    for pid in processes.marked(f"{MARK}={os.environ[MARK]}".encode()):
        with contextlib.suppress(OSError):
            found.append(f"process {pid}: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 if anything was violated."""
    parser = argparse.ArgumentParser("python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, metavar="N", help="how long (10)")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="of the random choices (a new one)")
    options = parser.parse_args(argv)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    os.environ[MARK] = secrets.token_hex(8)
    print(f"a soak of {options.minutes:g} minutes, --seed {seed}", flush=True)
    soak = Soak(60 * options.minutes, seed)
    violations = soak.run()
    print(soak.report())
    for violation in violations:
        print(f"VIOLATION {violation}")
    print("failed" if violations else "passed")
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main())
