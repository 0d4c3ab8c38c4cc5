"""Taking turns: ours, peer A, peer B, ours, peer A, ... each turn in a fresh process, with a time limit.

A turn's processes are known by a mark in their environment. Whatever still carries it after the turn is
ended, by pid, so that nobody disturbs the next one; who left something behind is told in the report.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.candidates import CANDIDATES
from benchmarks.figures import Figure

ROOT = Path(__file__).resolve().parent.parent
MARK = "BENCHMARKS_TURN"
#: How long processes may take to notice that their turn is over.
GRACE = 2.0

#: `-c` and not a file: spawned children of `ProcessPoolExecutor` would each import the main module again.
TURN = "import sys; from benchmarks.one_turn import main; main(*sys.argv[1:3], int(sys.argv[3]), sys.argv[4])"


@dataclass(slots=True)
class Turn:
    figure: str
    candidate: str
    round: int
    values: dict[str, float] = field(default_factory=dict)
    #: Why there are no values.
    trouble: str = ""
    not_installed: str = ""
    left_behind: int = 0

    def __str__(self) -> str:
        values = ", ".join(f"{value:.4g} {unit}" for unit, value in self.values.items())
        missing = self.not_installed and f"{self.not_installed} is not installed"
        return f"{self.figure} [{self.round}] {self.candidate}: {values or self.trouble or missing}"


def take_turns(figures: Sequence[Figure], rounds: int, quick: bool) -> Iterator[Turn]:
    for figure in figures:
        for number in range(1, rounds * figure.repeats + 1):
            for candidate, count in figure.counts.items():
                yield take_turn(figure, candidate, number, quick_count(count) if quick else count)


def quick_count(count: int) -> int:
    return max(1, count // 10)


def take_turn(figure: Figure, candidate: str, number: int, count: int) -> Turn:
    turn = Turn(figure.name, candidate, number)
    turn.not_installed = find_missing(figure.needs, CANDIDATES[candidate].needs)
    if not turn.not_installed:
        try:
            run_in_fresh_process(turn, count, figure.limit)
        except OSError as error:  # the machine is full; others may fare better
            turn.trouble = f"the turn could not be taken: {error}"
    return turn


def find_missing(*modules: str) -> str:
    return next((name for name in modules if name and importlib.util.find_spec(name) is None), "")


def run_in_fresh_process(turn: Turn, count: int, limit: float) -> None:
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="benchmarks-", ignore_cleanup_errors=True) as name:
        room = Path(name)
        child = start(turn, count, room, mark)
        try:
            read_values(turn, child.wait(limit), room)
        except subprocess.TimeoutExpired:
            turn.trouble = f"no answer within {limit:g} s"
        finally:
            child.kill()
            child.wait()
            turn.left_behind = end_leftovers(mark)


def start(turn: Turn, count: int, room: Path, mark: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", TURN, turn.figure, turn.candidate, str(count), str(room / "values")]
    with (room / "log").open("wb") as log:
        return subprocess.Popen(
            argv, cwd=room, env=environment(mark), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def environment(mark: str) -> dict[str, str]:
    """Without PYTHONDONTWRITEBYTECODE, or each fresh interpreter would compile what it imports."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, MARK: mark}


def read_values(turn: Turn, status: int, room: Path) -> None:
    """Puts the values into the turn, or why there are none."""
    if status == 0:
        turn.values = json.loads((room / "values").read_text())
    else:
        lines = (room / "log").read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        turn.trouble = f"exit status {status}: {last[:200]}"


def end_leftovers(mark: str) -> int:
    """Gives the processes of a turn a moment to end, ends the others, and counts those."""
    deadline = time.monotonic() + GRACE
    while (pids := find_marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


def find_marked(mark: str) -> list[int]:
    wanted = f"{MARK}={mark}".encode()
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return [pid for pid in pids if wanted in read_environment(pid).split(b"\0")]


def read_environment(pid: int) -> bytes:
    """Empty for processes that are gone or not ours."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
