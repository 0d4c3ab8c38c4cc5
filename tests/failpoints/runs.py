"""Runs of the workload with one fault each, some at a time, and what is wrong with what they leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import points
from points import Point
from waiting import SOON, state_of, wait_until
from workload import EXPECTED

from worker_agent import directories

#: So many runs at a time: they wait more than they work.
AT_A_TIME = 4
#: Seconds that a client may take, and the processes of an invited agent to leave after it.
PATIENCE = 30.0
#: Seconds from the moment that a process is seen to be stopped until it goes on.
STOPPED = {"stop": 0.3, "stop for long": 2.0}
_FOLDER = Path(__file__).parent
_PATHS = [str(_FOLDER.parents[1]), str(_FOLDER.parent)]


class Case(NamedTuple):
    """A point, an action, and the executor's options; ``invited`` agents join over the network.

    ``constants`` of the agent have other values: see :class:`points.Fault`.
    """

    point: Point
    action: str
    options: tuple[tuple[str, Any], ...] = ()
    invited: int = 0
    constants: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """A name for pytest."""
        agents = [f"{value}-agents" for name, value in self.options if name == "agents" and value]
        return "-".join([self.point.name, self.action.replace(" ", "-"), *agents])

    @property
    def ends_client(self) -> bool:
        """Whether the client's process ends by the fault."""
        return self.point.place in ("main", "hub", "delivery") and self.action in ("exit", "kill")

    @property
    def is_patience(self) -> bool:
        """Whether nobody may notice anything: a process was only slow for a moment."""
        return self.action in ("delay", "stop")


@dataclass
class Result:
    """What a run has left behind."""

    case: Case
    directory: Path
    status: int | None = None
    seconds: float = 0.0
    report: dict[str, Any] = field(default_factory=dict)
    history: list[list[str]] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def story(self) -> str:
        """All that may help to understand it."""
        texts = [f"{path.name}:\n{path.read_text(errors='replace')}" for path in sorted(self.directory.glob("*.txt"))]
        lines = [" ".join(words) for words in self.history]
        return "\n".join([*self.troubles, f"{self.case}", f"report: {self.report}", *texts, "history:", *lines])


# ---- a run


def run(case: Case, directory: Path, environment: dict[str, str]) -> Result:
    """Run the workload with this fault in an environment, and look at what is left."""
    result, begin = Result(case, directory), time.monotonic()
    for name in ("m", "t"):
        (directory / name).mkdir()
    mark = points.write_fault(case.point, case.action, str(directory), dict(case.constants))
    changes = {points.VARIABLE: mark, "PYTHONPATH": os.pathsep.join(_PATHS), "TMPDIR": str(directory / "t")}
    try:
        result.status = _run_client(case, directory, {**environment, **changes})
    except Exception as error:
        result.troubles.append(f"{type(error).__name__}: {error}")
    _look_for_remains(result, f"{points.VARIABLE}={mark}".encode())
    result.seconds = time.monotonic() - begin
    result.troubles += judge(result)
    return result


def _run_client(case: Case, directory: Path, env: dict[str, str]) -> int:
    arguments = json.dumps({"options": dict(case.options), "invited": case.invited})
    client = _start(["workload.py", arguments], directory, "client", env)
    agents: list[subprocess.Popen[bytes]] = []
    try:
        if case.invited:
            invitation = directory / "invitation"
            wait_until(lambda: invitation.exists() or client.poll() is not None, "for the invitation", PATIENCE)
            script = ["agent_script.py", "invited", str(invitation.resolve())]
            agents = [_start(script, directory, f"agent-{number}", env) for number in range(case.invited)]
        if case.action in STOPPED:
            _continue_later(client, directory, STOPPED[case.action])
        return client.wait(PATIENCE)
    finally:
        for process in (client, *agents):
            _end(process)


def _start(command: list[str], directory: Path, name: str, env: dict[str, str]) -> subprocess.Popen[bytes]:
    with open(directory / f"{name}.txt", "wb") as log:
        script = [sys.executable, "-W", "error", str(_FOLDER / command[0]), *command[1:]]
        return subprocess.Popen(script, cwd=directory, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _end(process: subprocess.Popen[bytes]) -> None:
    """An agent leaves by itself; whoever does not shows where it is, and is killed."""
    try:
        process.wait(SOON if process.args[3].endswith("agent_script.py") else 0)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGUSR1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.kill()
        process.wait()


def _continue_later(client: subprocess.Popen[bytes], directory: Path, seconds: float) -> None:
    """Wait until a process has stopped itself, and let it go on after a while."""
    fired = directory / "fired"
    wait_until(lambda: fired.exists() and fired.read_text().endswith("\n") or client.poll() is not None)
    if not fired.exists():
        return
    pid = int(fired.read_text())
    try:
        wait_until(lambda: state_of(pid) == "T", f"for process {pid} to be stopped", SOON)
        pidfd = os.pidfd_open(pid)
    except (FileNotFoundError, ProcessLookupError):
        return  # somebody has killed it already, as he may
    time.sleep(seconds)  # how long it stands still is what is tested
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGCONT)
    os.close(pidfd)


# ---- what is left


def _look_for_remains(result: Result, mark: bytes) -> None:
    """No process and no directory is left, soon after the client has ended."""
    _read(result)
    may_leave_files = _may_leave_files(result)
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not _processes(mark), "", SOON)
        wait_until(lambda: may_leave_files or not _directories(result.directory), "", SOON)
    if left := _processes(mark):
        result.troubles.append(f"processes are left: {left}")
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if (left_folders := _directories(result.directory)) and not may_leave_files:
        result.troubles.append(f"directories are left: {left_folders}")
    for place in ("m", "t"):
        directories._remove_stale(str(result.directory / place))
    if left_folders := _directories(result.directory):
        result.troubles.append(f"the next executor does not remove {left_folders}")


def _may_leave_files(result: Result) -> bool:
    """A client that is killed leaves its files to its supervisor; if it has none, to the next executor."""
    started = any(words[0] == "started" for words in result.history)
    alone = result.case.invited > 0 or not started or result.case.point.target == "executor.agents:Agents.close"
    return result.case.ends_client and alone


def _processes(mark: bytes) -> dict[int, str]:
    """The processes of a run, which have its variable in their environment, and what they are."""
    found = {}
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[-120:]
    return found


def _directories(directory: Path) -> list[str]:
    return [str(path) for place in ("m", "t") for path in (directory / place).iterdir()]


def _read(result: Result) -> None:
    history, report = result.directory / "history", result.directory / "report.json"
    if history.exists():
        result.history = [line.split() for line in history.read_text().splitlines()]
    if report.exists():
        result.report = json.loads(report.read_text())


# ---- what is wrong


def judge(result: Result) -> list[str]:
    """All that is not as it has to be."""
    wrong = [*_judge_fault(result), *_judge_history(result)]
    if result.case.ends_client:
        return [*wrong, *_judge_end_of_client(result)]
    if result.status != 0 or not result.report:
        return [*wrong, f"the client ended with status {result.status}"]
    return [*wrong, *_judge_report(result), *_judge_outcomes(result)]


def _judge_fault(result: Result) -> list[str]:
    count = [words[0] for words in result.history].count("fault")
    return [] if count == (result.case.action != "none") else [f"the fault happened {count} times"]


def _judge_end_of_client(result: Result) -> list[str]:
    expected = points.EXIT_STATUS if result.case.action == "exit" else -signal.SIGKILL
    return [] if result.status == expected else [f"the client ended with status {result.status}"]


def _may_run_on(result: Result) -> bool:
    """An agent that stands still beyond its lease cannot end what it runs: the documented exception."""
    return result.case.action == "stop for long" and result.case.point.place == "agent"


def _judge_history(result: Result) -> list[str]:
    """Attempts of a task follow each other: none begins before the last one has ended, and numbers grow."""
    wrong = []
    running: dict[str, int] = {}
    for what, name, *numbers in result.history:
        number = int(numbers[0]) if what in ("started", "ended", "overlap") else 0
        if what == "overlap" and not _may_run_on(result):
            wrong.append(f"{name}: attempt {number} runs beside attempt {numbers[3]}")
        elif what == "alive" and not _may_run_on(result):
            wrong.append(f"{name} still ran when its future said that it had ended")
        elif what == "started" and number <= running.get(name, 0):
            wrong.append(f"{name}: attempt {number} follows attempt {running[name]}")
        elif what == "ended" and number != running.get(name):
            wrong.append(f"{name}: attempt {number} ends after attempt {running.get(name)} has started")
        if what == "started":
            running[name] = number
    return [*wrong, *_judge_starts(result)]


def _judge_starts(result: Result) -> list[str]:
    """One fault costs a task one start at most, and one that nobody may notice costs none.

    The starts are counted, not the numbers of the attempts: a task that an agent holds in advance may be asked back, so
    that it starts sooner elsewhere. That costs a number, and nothing else.
    """
    starts = Counter(words[1] for words in result.history if words[0] == "started")
    spare = 5 if result.case.invited else 0 if result.case.is_patience else 1  # a lease may run out on a busy machine
    allowed = {name: 1 + spare + (name == "once") for name in EXPECTED}
    return [f"{name} was started {count} times" for name, count in starts.items() if count > allowed[name]]


def _judge_report(result: Result) -> list[str]:
    report, wrong = result.report, []
    done = Counter(words[1] for words in result.history if words[0] == "done")
    if done != Counter(report["outcomes"].keys()):
        wrong.append(f"futures were done {done}")
    if set(report["outcomes"]) | set(report["refused"]) != set(EXPECTED):
        wrong.append("tasks have vanished")
    for what in ("children", "threads"):
        if report[what]:
            wrong.append(f"{what} are left after shutdown: {report[what]}")
    return wrong


def _judge_outcomes(result: Result) -> list[str]:
    report = result.report
    off = {name for name, outcome in report["outcomes"].items() if not _is_expected(result, name, outcome)}
    off |= set(report["refused"])
    excused = {name for name in off if _is_excused(result, name)}
    wrong = [f"{name}: {report['outcomes'].get(name) or report['refused'][name]}" for name in off - excused]
    if len(excused) > _victims(result.case):
        wrong.append(f"more tasks than may be are hit: {sorted(excused)}")
    return [*wrong, *_judge_cancels(result)]


def _judge_cancels(result: Result) -> list[str]:
    """What was cancelled never starts from then on, and what was not says so."""
    wrong = []
    for name, answer in zip(("recalled", "withdrawn"), result.report["answers"], strict=False):
        outcome = result.report["outcomes"].get(name)
        if outcome is not None and isinstance(answer, bool) and answer != (outcome["what"] == "CancelledError"):
            wrong.append(f"{name}: cancel said {answer}, and the outcome is {outcome}")
    return wrong


def _is_expected(result: Result, name: str, outcome: dict[str, Any]) -> bool:
    """As without any fault, and done by the attempt that the future names."""
    what, detail = EXPECTED[name]
    if (outcome["what"], outcome["detail"]) == (what, detail):
        return what != "value" or ["ended", name, str(result.report["attempts"][name])] in [
            words[:3] for words in result.history
        ]
    return what == "CancelledError" and (outcome["what"], outcome["detail"]) == ("value", "0")


def _victims(case: Case) -> int:
    """How many tasks a fault may hit at most."""
    whole = case.point.place in ("hub", "template") or case.point.target in _PREPARES
    return 0 if case.is_patience else len(EXPECTED) if whole else 1


def _is_excused(result: Result, name: str) -> bool:
    """Whether this outcome is what the fault has to do to this task."""
    case, outcome = result.case, result.report["outcomes"].get(name, {"what": result.report["refused"].get(name)})
    pid = int(next(words[2] for words in result.history if words[0] == "fault"))
    if case.action == "raise" and case.point.target in _PREPARES:
        return outcome["what"] == "EnvironmentFailed"
    if case.point.place == "interpreter":
        return _is_victim(case.action, outcome, pid)
    if case.action != "raise":
        return False
    allowed = {
        "main": {"Injected", "SerializationError"}, "hub": {"AgentFailed"}, "delivery": {"RemoteError"},
    }.get(case.point.place, set())  # fmt: skip
    return outcome["what"] in allowed


#: Where template or interpreter, if something is raised, says that there can be no interpreters.
_PREPARES = {"worker_agent.runner:prepare"}


def _is_victim(action: str, outcome: dict[str, Any], pid: int) -> bool:
    """A task whose interpreter ended, or raised in the middle of our own lines there."""
    if action == "raise" and outcome["what"] in ("Injected", "SerializationError"):
        return True
    status = {"exit": points.EXIT_STATUS, "kill": -signal.SIGKILL, "raise": 1}.get(action)
    return (outcome["what"], outcome.get("detail"), outcome.get("pid")) == ("TaskDied", str(status), pid)


# ---- many runs


class Runs:
    """All runs that are wanted, begun in their order; each test waits for its own."""

    def __init__(self, cases: list[Case], directory: Path) -> None:
        self._pool = ThreadPoolExecutor(AT_A_TIME)
        self._futures: dict[Case, Future[Result]] = {}
        environment = dict(os.environ)  # here, once: pytest changes its own between the tests, while runs begin
        for number, case in enumerate(cases):
            folder = directory / str(number)
            folder.mkdir()
            self._futures[case] = self._pool.submit(run, case, folder, environment)

    def result(self, case: Case) -> Result:
        """What has become of a case."""
        return self._futures[case].result()

    def close(self) -> None:
        """Begin no more, and wait for those that have begun."""
        self._pool.shutdown(cancel_futures=True)
