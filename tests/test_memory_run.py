"""Tasks that use more memory than they asked for: they end, and their neighbours do not notice. What is counted, and
how, is in test_memory.py.
"""
# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from pools import failure, gate, new_executor, outcome, sh
from waiting import announce, announced, pass_gate, wait_gone, wait_until

from executor import (
    CAPTURE,
    HPCExecutor,
    Program,
    ProgramFailed,
    ProgramNotStarted,
    TaskDied,
    TaskKilled,
    TaskOutOfMemory,
    TaskTimeout,
)

pytestmark = pytest.mark.shared

if TYPE_CHECKING:
    from waiting import Gate

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

New = Callable[..., HPCExecutor]
MIB = 2**20
KINDS: dict[str, dict[str, Any]] = {"fresh": {}, "kept": {"max_tasks_per_child": None}}

HOG = """
import os, sys, time
size, arrivals, opened = int(sys.argv[1]), sys.argv[2], sys.argv[3]
held = bytearray(size)
held[::4096] = b"x" * len(held[::4096])
with open(arrivals, "a") as file:
    file.write(f"{os.getpid()}\\n")
with open(opened, "rb", buffering=0) as gate:
    gate.read(1)
print(len(held))
"""


def hog(mebibytes: int, paths: tuple[str, str] | None = None) -> int:
    """Have so much memory, and keep it until the gate is open."""
    held = bytearray(mebibytes * MIB)
    held[::4096] = b"x" * len(held[::4096])
    if paths is not None:
        pass_gate(*paths)
    return len(held) // MIB


def hogs(number: int, mebibytes: int, paths: tuple[str, str]) -> int:
    """Have processes that have so much memory each; none of them has too much alone."""
    import subprocess

    command = [sys.executable, "-c", HOG, str(mebibytes * MIB), *paths]
    children = [subprocess.Popen(command) for _ in range(number)]
    return sum(child.wait() for child in children)


def submit_hog(tasks: Any, kind: str, mebibytes: int, paths: tuple[str, str]) -> Any:
    """A task of this kind that has so much memory in all."""
    if kind == "program":
        return tasks.submit(Program([sys.executable, "-c", HOG, str(mebibytes * MIB), *paths]))
    if kind == "tree":
        return tasks.submit(hogs, 4, mebibytes // 4, paths)
    return tasks.submit(hog, mebibytes, paths)


@pytest.mark.parametrize("kind", ["fresh", "kept", "program", "tree"])
def test_a_task_with_too_much_memory_ends_and_its_neighbour_does_not(
    new_executor: New, gate: Gate, tmp_path: Path, kind: str
) -> None:
    executor = new_executor(None, resources={"cpus": 2, "memory": "600MiB"}, **KINDS.get(kind, {}))
    quiet = executor.options(stdout=CAPTURE, stderr=CAPTURE)
    neighbour = quiet.options(memory="200MiB").submit(hog, 30, gate.paths)
    gate.wait_arrivals()
    os.mkfifo(tmp_path / "never")
    greedy = submit_hog(quiet.options(memory="150MiB", name="greedy"), kind, 240, (gate.arrivals, f"{tmp_path}/never"))
    error = failure(greedy)
    assert type(error) is TaskOutOfMemory
    assert error.limit == 150 * MIB
    assert error.peak is not None
    assert 150 * MIB < error.peak < 500 * MIB
    assert (error.by, error.task, error.attempt, error.pid) == ("agent", "greedy", 1, greedy.pid)
    assert "(greedy)" in str(error)
    assert "might have 150 MiB. Ask for more by memory=..." in str(error)
    gate.open()
    assert outcome(neighbour) == 30
    wait_gone(*(pid for pid in announced(gate.arrivals) if pid != neighbour.pid))
    assert outcome(quiet.options(memory="600MiB").submit(pow, 2, 3)) == 8


@pytest.mark.parametrize("kind", ["fresh", "kept", "program", "tree"])
def test_a_task_that_keeps_within_its_memory_is_left_alone(new_executor: New, gate: Gate, kind: str) -> None:
    """It lives through many looks: what it takes long for is to be looked at."""
    executor = new_executor(None, resources={"cpus": 1, "memory": "600MiB"}, **KINDS.get(kind, {}))
    modest = submit_hog(executor.options(memory="400MiB", stdout=CAPTURE), kind, 200, gate.paths)
    gate.wait_arrivals(4 if kind == "tree" else 1)
    gate.open()
    outcome(modest)


@pytest.mark.parametrize("kind", ["fresh", "kept", "program"])
def test_a_task_whose_memory_is_not_enforced_lives(new_executor: New, gate: Gate, kind: str) -> None:
    executor = new_executor(None, resources={"cpus": 2, "memory": "600MiB"}, **KINDS.get(kind, {}))
    view = executor.options(memory="50MiB", enforce_memory=False, stdout=CAPTURE)
    generous = submit_hog(view, kind, 200, gate.paths)
    gate.wait_arrivals()
    other = executor.options(memory="50MiB").submit(hog, 200, ("/dev/null", str(gate.opened)))
    assert type(failure(other)) is TaskOutOfMemory
    gate.open()
    outcome(generous)


def test_memory_grows_with_the_attempts(new_executor: New, tmp_path: Path) -> None:
    executor = new_executor(None, resources={"cpus": 1, "memory": "1GiB"})
    os.mkfifo(tmp_path / "never")

    def attempt() -> str:
        if os.environ["HPC_ATTEMPT"] == "1":
            hog(200, (str(tmp_path / "arrivals"), str(tmp_path / "never")))
        return os.environ["HPC_RESOURCE_REQUEST_memory"]

    view = executor.options(memory="100MiB", retries={"oom": 1}, memory_on_oom=2)
    future = view.submit(attempt)
    assert outcome(future) == "200 compact"
    assert future.attempt == 2
    error = failure(view.submit(lambda: hog(300, (str(tmp_path / "arrivals"), str(tmp_path / "never")))))
    assert type(error) is TaskOutOfMemory
    assert (error.attempt, error.limit) == (2, 200 * MIB)


def test_memory_does_not_grow_beyond_what_there_is(new_executor: New, tmp_path: Path) -> None:
    """It did, and the task waited for ever."""
    executor = new_executor(None, resources={"cpus": 1, "memory": "300MiB"})
    os.mkfifo(tmp_path / "never")
    view = executor.options(memory="100MiB", retries={"oom": 2}, memory_on_oom=10)
    assert outcome(view.submit(hog, 200)) == 200
    error = failure(view.submit(hog, 400, (str(tmp_path / "arrivals"), str(tmp_path / "never"))))
    assert type(error) is TaskOutOfMemory
    assert (error.attempt, error.limit) == (3, 300 * MIB)
    assert outcome(executor.submit(pow, 2, 3)) == 8


def test_a_task_without_a_memory_request_has_no_limit(new_executor: New) -> None:
    executor = new_executor(None, resources={"cpus": 1, "memory": "20MiB"})
    assert outcome(executor.submit(hog, 100)) == 100


# ---- classes of failures


def fail_once(kind: str, path: str, never: str) -> int:
    """Fail at the first attempt in one of many ways."""
    announce(path)
    if os.environ["HPC_ATTEMPT"] == "1":
        if kind == "exit":
            os._exit(3)
        if kind == "exception":
            raise ValueError
        if kind == "oom":
            hog(100, (path + ".x", never))
        if kind == "timeout":
            open(never).read()
    return 5


FAILURES: dict[str, tuple[str, type[BaseException]]] = {
    "exit": ("exit", TaskDied), "exception": ("exit", ValueError), "oom": ("oom", TaskOutOfMemory),
    "timeout": ("timeout", TaskTimeout),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAILURES)
def test_a_task_is_tried_again_by_the_class_of_its_failure(new_executor: New, tmp_path: Path, kind: str) -> None:
    executor = new_executor(None, resources={"cpus": 1, "memory": "300MiB"}, kill_grace=0.1)
    os.mkfifo(tmp_path / "never")
    name, error = FAILURES[kind]
    limit = 1.0 if kind == "timeout" else None
    view = executor.options(memory="60MiB", time_limit=limit, stderr=CAPTURE)
    others = {each: 3 for each in ("exit", "timeout", "oom", "start", "lost") if each != name}
    for retries in (0, others):
        future = view.options(retries=retries).submit(fail_once, kind, f"{tmp_path}/first", f"{tmp_path}/never")
        assert type(failure(future)) is error
        assert future.attempt == 1
    future = view.options(retries={name: 1}).submit(fail_once, kind, f"{tmp_path}/again", f"{tmp_path}/never")
    assert outcome(future) == 5
    assert future.attempt == 2


def test_a_program_is_tried_again_by_the_class_of_its_failure(new_executor: New, tmp_path: Path) -> None:
    executor = new_executor(1).options(stdout=CAPTURE, stderr=CAPTURE)
    missing = Program([tmp_path / "program"])
    for retries, error, attempts in (({"exit": 2}, ProgramNotStarted, 1), ({"start": 2}, ProgramNotStarted, 3)):
        future = executor.options(retries=retries).submit(missing)
        assert type(failure(future)) is error
        assert future.attempt == attempts
    for retries, attempts in (({"start": 2}, 1), ({"exit": 2}, 3)):
        future = executor.options(retries=retries).submit(sh("exit 3"))
        assert type(failure(future)) is ProgramFailed
        assert future.attempt == attempts
    assert outcome(executor.options(retries={"exit": 2}).submit(sh("exit 3", check=False))).returncode == 3


def test_a_task_that_was_killed_by_its_user_is_not_tried_again(new_executor: New, gate: Gate) -> None:
    executor = new_executor(1)
    future = executor.options(retries={"exit": 3, "oom": 3, "start": 3, "timeout": 3}).submit(pass_gate, *gate.paths)
    gate.wait_arrivals()
    future.kill()
    assert type(failure(future)) is TaskKilled
    assert future.attempt == 1
