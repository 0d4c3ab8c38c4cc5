"""What tasks give back: results of programs, time and memory that were used, large arguments and results.

How a Program is made and what it is called here is in test_program.py; how payloads are stored in test_payloads.py.
"""
# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import pytest
from pools import check_works, end, error_of, new_executor, outcome, session_directories, sh
from waiting import pass_gate, wait_until

from executor import (
    CAPTURE,
    HPCExecutor,
    Program,
    ProgramFailed,
    ProgramNotStarted,
    TaskDied,
    TaskKilled,
    TaskTimeout,
)

if TYPE_CHECKING:
    from conftest import Gate

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

MB = 1_000_000


@pytest.fixture(scope="module")
def executor() -> Iterator[HPCExecutor]:
    """Shared by the tests that do no harm to it: two workers, fresh interpreters."""
    shared = HPCExecutor(2, kill_grace=0.3, preload=["numpy"])
    yield shared
    end(shared)


@pytest.fixture(scope="module")
def quiet(executor: HPCExecutor) -> Any:
    """A view of it that shows no output here."""
    return executor.options(stdout=CAPTURE, stderr=CAPTURE)


def echo(value: Any) -> Any:
    return value


def payloads(executor: HPCExecutor) -> dict[str, int]:
    """The files of the session that hold arguments and results, and their sizes."""
    files = [path for folder in session_directories(executor) for path in folder.iterdir() if path.is_file()]
    return {path.name: path.stat().st_size for path in files if path.suffix != ".log" and path.name != "owner"}


# ---- programs


PROGRAMS = {
    "arguments": Program(["printf", "%s|", "two words", "", "a\nb", "'\"$HOME*\\", "grün"]),
    "nothing to read": Program(["cat"]),
    "text": Program(["cat"], stdin="grün\r\nno line end"),
    "bytes": Program(["od", "-c"], stdin=bytes(range(256))),
    "both streams": sh("echo out; echo err >&2"),
    "a status that is not checked": sh("echo no; exit 3", check=False),
    "a signal that is not checked": sh("echo no; kill -KILL $$", check=False),
    "no UTF-8": sh("printf '\\377'"),
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_that_is_submitted_gives_what_it_gives_when_it_is_called_here(quiet: Any, program: Program) -> None:
    there, here = outcome(quiet.submit(program)), program()
    assert isinstance(there, subprocess.CompletedProcess)
    assert vars(there) == vars(here)
    assert there.args == list(program.argv)


def test_a_large_stdin_arrives_whole_whether_or_not_it_is_read(quiet: Any) -> None:
    text = b"0123456789abcde\n" * 500_000
    count, ignore = quiet.submit(Program(["cksum"], stdin=text)), quiet.submit(Program(["true"], stdin=text))
    assert outcome(count).stdout == Program(["cksum"], stdin=text)().stdout
    assert outcome(ignore).returncode == 0


def test_stdin_from_a_file_is_opened_where_and_when_the_program_runs(quiet: Any, tmp_path: Path) -> None:
    program = Program(["cat"], stdin=tmp_path / "input")
    error = error_of(quiet.submit(program))
    assert type(error) is ProgramNotStarted
    assert error.missing
    assert str(tmp_path / "input") in str(error)
    (tmp_path / "input").write_text("is there now")
    assert outcome(quiet.submit(program)).stdout == "is there now"


def test_a_program_that_failed_says_how_with_the_last_lines_of_its_stderr_here_and_there(quiet: Any) -> None:
    program = sh('seq 40 >&2; echo result; echo "cannot converge" >&2; exit 3')
    error = error_of(quiet.submit(program))
    with pytest.raises(ProgramFailed) as caught:
        program()
    assert vars(error) == vars(caught.value)
    assert str(error) == str(caught.value)
    assert (error.returncode, error.cmd, error.stdout) == (3, list(program.argv), "result\n")
    first, *lines = str(error).splitlines()
    assert "'sh' exited with status 3" in first
    assert [line.strip() for line in lines[1:]] == [*map(str, range(17, 41)), "cannot converge"]
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_program_is_looked_for_in_the_path_and_the_directory_of_its_task(quiet: Any, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my_solver").write_text(f"#!/bin/sh\necho the {folder} in $(pwd)\n")
        (tmp_path / folder / "my_solver").chmod(0o755)
    assert type(error_of(quiet.submit(Program(["my_solver"])))) is ProgramNotStarted
    path = f"{tmp_path}/first:{os.environ['PATH']}"
    by_path = quiet.options(env={"PATH": path}).submit(Program(["my_solver"]))
    assert outcome(by_path).stdout == f"the first in {os.getcwd()}\n"
    by_directory = quiet.options(env={"PATH": path}, cwd=tmp_path / "second").submit(Program(["./my_solver"]))
    assert outcome(by_directory).stdout == f"the second in {tmp_path}/second\n"
    by_entry = quiet.options(env={"PATH": f"first:{path}"}, cwd=tmp_path).submit(Program(["my_solver"]))
    assert outcome(by_entry).stdout == f"the first in {tmp_path}\n"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("/nowhere/at/all", "there is no such file"),
        ("./solve", "Did you mean './solver'?"),
        ("solver", "Did you mean './solver'?"),
        ("./data", "is not executable; chmod +x"),
        ("./script", "has no valid interpreter line"),
        ("../case", "is a directory; name the program in it"),
        ("no_such_solver", "there is no such program in PATH"),
        ("echo hello", "did you mean Program(['echo', 'hello'])?"),
    ],
)
def test_a_program_that_cannot_be_started_is_explained(quiet: Any, tmp_path: Path, program: str, words: str) -> None:
    """As it is seen from the directory of the task."""
    case = tmp_path / "case"
    case.mkdir()
    for name, text, mode in (("solver", "#!/bin/sh", 0o755), ("data", "", 0o644), ("script", "echo", 0o755)):
        (case / name).write_text(text)
        (case / name).chmod(mode)
    future = quiet.options(cwd=case).submit(Program([program]))
    error = error_of(future)
    assert type(error) is ProgramNotStarted
    assert words in str(error)
    assert f"task {future.task_id} " in str(error)
    assert f"in the directory '{case}'" in str(error)
    assert socket.gethostname() in str(error)
    assert error.filename == program
    assert (future.state, future.pid, future.signal) == ("finished", None, None)


def test_a_program_that_was_not_started_has_no_returncode(quiet: Any) -> None:
    """There was no process; 2 would be a status that programs have."""
    future = quiet.submit(Program(["/nowhere/at/all"]))
    assert error_of(future).missing
    assert future.returncode is None


def test_a_program_can_be_an_argument_is_equal_to_itself_there_and_can_be_called_there(quiet: Any) -> None:
    program = sh("echo $HPC_TASK_ID; cat", stdin="text")
    future = quiet.submit(lambda each: (each, each().stdout), program)
    assert outcome(future) == (program, f"{future.task_id}\ntext")


def test_a_program_takes_no_arguments_and_says_so(executor: HPCExecutor) -> None:
    future = executor.submit(Program(["true"]), "--verbose")
    assert type(error_of(future)) is TypeError
    assert "part of its argv" in str(error_of(future))


def test_programs_can_be_mapped_and_chosen_by_a_call(quiet: Any) -> None:
    """A call of a Program is a call like others."""
    programs = [sh(f"echo {number}") for number in range(5)]
    assert [done.stdout for done in quiet.map(Program.__call__, programs)] == [f"{number}\n" for number in range(5)]


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_a_program_whose_stream_is_a_pipe_that_nobody_serves_holds_up_nobody_else(
    new_executor: Callable[..., HPCExecutor], tmp_path: Path, stream: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    executor = new_executor(2)
    check_works(executor)
    if stream == "stdin":
        held = executor.submit(Program(["cat"], stdin=tmp_path / "pipe"))
    else:
        held = executor.options(stdout=tmp_path / "pipe").submit(Program(["true"]))
    other = executor.submit(pow, 2, 3)
    try:
        assert other.result(timeout=20) == 8
    finally:  # opened as the other end: that waits for the task's own open, which may come later than the result
        os.close(os.open(tmp_path / "pipe", os.O_WRONLY if stream == "stdin" else os.O_RDONLY))
    assert held.result(timeout=20).returncode == 0


def test_a_program_that_is_looked_for_without_a_path_is_not_said_to_be_in_it(quiet: Any, tmp_path: Path) -> None:
    (tmp_path / "my_solver").write_text("#!/bin/sh\n")
    (tmp_path / "my_solver").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{os.environ['PATH']}:{tmp_path}")
        future = quiet.options(env={"PATH": None}).submit(Program(["my_solver"]))
    assert "PATH is not set" in str(error_of(future))


def test_a_missing_input_that_is_called_as_the_program_is_still_what_is_missing(quiet: Any, tmp_path: Path) -> None:
    future = quiet.submit(Program(["cat"], stdin=tmp_path / "cat"))
    assert str(tmp_path / "cat") in str(error_of(future))


# ---- what was used


def burn() -> None:
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass


def burn_and_wait(*paths: str) -> None:
    burn()
    pass_gate(*paths)


@pytest.mark.parametrize("way", ["time limit", "kill", "death"])
def test_what_a_task_had_used_is_told_however_it_ended(executor: HPCExecutor, gate: Gate, way: str) -> None:
    future = executor.options(time_limit=0.7 if way == "time limit" else None).submit(burn_and_wait, *gate.paths)
    [pid] = gate.wait_arrivals(1)
    wait_until(future.running)
    assert (future.usage, future.ended) == (None, None)
    if way == "kill":
        future.kill()
    elif way == "death":
        os.kill(pid, signal.SIGKILL)
    assert type(error_of(future)) is {"time limit": TaskTimeout, "kill": TaskKilled, "death": TaskDied}[way]
    assert future.usage is not None
    assert 0.1 <= future.usage.cpu_time < 1
    assert MB < future.usage.max_rss < 500 * MB
    assert future.submitted <= future.started < future.ended <= time.time()
    assert (future.pid, future.host) == (pid, socket.gethostname())


def test_a_program_has_used_what_those_used_that_it_waited_for(quiet: Any) -> None:
    script = 'import time\nwhile time.process_time() < 0.1: pass\nb"x" * 100_000_000'
    future = quiet.submit(sh('"$0" -S -c "$1"; true', sys.executable, script))
    outcome(future)
    assert future.usage.cpu_time >= 0.1
    assert future.usage.max_rss > 100 * MB
    assert future.ended - future.started >= 0.1


# ---- large arguments and results


def make_value(kind: str, size: int) -> Any:
    if kind == "bytes":
        return os.urandom(size)
    if kind == "text":
        return "ü" * (size // 2)
    return np.arange(size // 8, dtype=float)


@pytest.mark.parametrize(
    ("kind", "size"), [("bytes", 50 * MB), ("text", 5 * MB), ("array", 5 * MB), ("array", 50 * MB)]
)
def test_a_large_value_comes_back_equal(executor: HPCExecutor, kind: str, size: int) -> None:
    """By position, by name, and within something else."""
    value = make_value(kind, size)
    back = outcome(executor.submit(lambda first, *, named: (first, {"inside": [named]}), value, named=value))
    for each in (back[0], back[1]["inside"][0]):
        assert type(each) is type(value)
        assert np.array_equal(each, value) if kind == "array" else each == value


@pytest.mark.parametrize(
    "array",
    [
        np.arange(200_000).reshape(400, 500).T, np.arange(400_000)[::-2], np.zeros((0, 5)), np.arange(400_000) > 3,
        np.array([("a", 1.5)] * 50_000, dtype=[("name", "U4"), ("x", "f8")]), np.array([{"an": "object"}] * 50_000),
    ],
    ids=["columns", "every second", "empty", "bools", "records", "objects"],
)  # fmt: skip
def test_arrays_of_all_sorts_come_back_as_they_were(executor: HPCExecutor, array: Any) -> None:
    back = outcome(executor.submit(echo, array))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert np.array_equal(back, array)


def test_a_task_may_write_into_its_array_and_nobody_else_sees_that(executor: HPCExecutor) -> None:
    """Though all have the same file of it."""

    def overwrite(array: Any) -> tuple[float, float]:
        before = float(array.sum())
        array[:] = 7
        return before, float(array.sum())

    array = np.ones(MB)
    futures = [executor.submit(overwrite, array) for _ in range(5)]
    assert [outcome(future) for future in futures] == [(MB, 7 * MB)] * 5
    assert array.sum() == MB


@pytest.mark.parametrize("kind", ["bytes", "array"])
def test_an_argument_of_many_tasks_is_stored_once(new_executor: Callable[..., HPCExecutor], kind: str) -> None:
    """By its content: an equal one that was made anew is the same. Results are gone as soon as they are here."""
    executor = new_executor(2, preload=["numpy"])
    value = make_value(kind, 5 * MB)
    futures = [executor.submit(len, value) for _ in range(10)]
    futures += [executor.submit(lambda *_, named: len(named), number, named=value) for number in range(10)]
    futures += [executor.submit(len, pickle.loads(pickle.dumps(value))) for _ in range(10)]
    assert set(map(outcome, futures)) == {len(value)}
    assert [size for size in payloads(executor).values() if size > MB] == [5 * MB]
    other = outcome(executor.submit(echo, value[:-1]))
    assert len(other) == len(value) - 1
    assert sum(size > MB for size in payloads(executor).values()) == 2


def test_nothing_is_left_of_large_values_after_shutdown_but_the_results_themselves(
    new_executor: Callable[..., HPCExecutor],
) -> None:
    executor = new_executor(2, preload=["numpy"])
    array, text = make_value("array", 5 * MB), make_value("bytes", 5 * MB)
    futures = [executor.submit(echo, array), executor.submit(echo, text)]
    never_asked_for = executor.submit(make_value, "array", 5 * MB)
    directories = session_directories(executor)
    executor.shutdown()
    assert not any(folder.exists() for folder in directories)
    assert np.array_equal(outcome(futures[0]), array)
    assert outcome(futures[1]) == text
    outcome(futures[0])[:] = 3.5
    assert outcome(never_asked_for)[-1] == 5 * MB / 8 - 1


def fail_with_much(attempts: int) -> int:
    if int(os.environ["HPC_ATTEMPT"]) < attempts:
        raise ValueError("x" * MB)
    return attempts


def test_the_file_of_a_large_error_is_gone_when_the_error_is_here(new_executor: Callable[..., HPCExecutor]) -> None:
    executor = new_executor(1)
    assert len(error_of(executor.submit(fail_with_much, 9)).args[0]) == MB
    assert payloads(executor) == {}


def test_nothing_is_kept_of_the_large_error_of_an_attempt_before(new_executor: Callable[..., HPCExecutor]) -> None:
    executor = new_executor(1)
    assert outcome(executor.options(retries=3).submit(fail_with_much, 4)) == 4
    wait_until(lambda: payloads(executor) == {}, patience=0.3)


@pytest.mark.parametrize("way", ["time limit", "kill"])
def test_nothing_is_kept_of_the_large_value_of_a_task_that_came_too_late(
    new_executor: Callable[..., HPCExecutor], gate: Gate, way: str
) -> None:
    """It was to be ended, and returned at the signal."""

    def give(*paths: str) -> bytes:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        with open(paths[0], "w") as arrivals:
            arrivals.write(f"{os.getpid()}\n")
        signal.sigwait([signal.SIGTERM])
        return bytes(MB)

    executor = new_executor(1)
    future = executor.options(time_limit=0.5 if way == "time limit" else None).submit(give, *gate.paths)
    gate.wait_arrivals(1)
    if way == "kill":
        future.kill()
    assert type(error_of(future)) is (TaskKilled if way == "kill" else TaskTimeout)
    wait_until(lambda: payloads(executor) == {}, patience=0.3)


def test_nothing_is_kept_of_large_orders_of_tasks_that_have_ended(new_executor: Callable[..., HPCExecutor]) -> None:
    executor = new_executor(2)
    view = executor.options(env={"LARGE": "x" * 200_000})
    assert [len(outcome(view.submit(os.getenv, "LARGE"))) for _ in range(5)] == [200_000] * 5
    wait_until(lambda: payloads(executor) == {}, patience=0.3)
