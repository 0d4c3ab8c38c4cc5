"""What agents do for tasks of jobs: scratch directories, inputs and outputs, files of output, numbers and marks."""

# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from pools import KINDS, capturing, end, error_of, gate, new_executor, outcome, session_directories, sh
from test_agents import agent_of
from test_invited import Join, join
from test_transfers import moved
from waiting import Gate, announced, parent_of, pass_gate, wait_announced, wait_gone, wait_until

from executor import (
    HPCExecutor,
    Job,
    JobError,
    OptionTypeError,
    OutputFile,
    OutputMissing,
    Program,
    ProgramFailed,
    ProgramNotStarted,
    TaskKilled,
    TaskOutOfMemory,
    TaskTimeout,
)

pytestmark = pytest.mark.shared

pytestmark = pytest.mark.shared

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

New = Callable[..., HPCExecutor]
ALL = pytest.mark.parametrize("kind", KINDS)
#: A program that says where it is, and waits at a gate.
HELD = 'pwd > "$1.new"; mv "$1.new" "$1"; echo $$ >> "$2"; head -c1 < "$3"'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of who submits."""
    path = tmp_path / "here"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def scratch_directories(executor: HPCExecutor) -> list[Path]:
    """Those of its tasks that are there now."""
    places = [store.glob("scratch-*/*") for store in session_directories(executor)]
    return [path for found in places for path in found]


def wait_empty(executor: HPCExecutor) -> None:
    wait_until(lambda: not scratch_directories(executor), "for the scratch directories to go", patience=5)


def look_around() -> tuple[str, str, int, list[str]]:
    """Where the task is, its scratch directory, that one's mode, and what is in it; something is left there."""
    scratch = os.environ["HPC_TASK_DIR"]
    assert scratch == os.environ["HQ_TASK_DIR"]
    found = os.listdir(scratch)
    os.makedirs(f"{scratch}/a/b")
    Path(scratch, "a", "b", "c").write_text("c")
    return os.getcwd(), scratch, os.stat(scratch).st_mode & 0o777, found


# ---- scratch directories


@ALL
def test_a_function_has_a_private_directory_that_goes_with_it(new_executor: New, here: Path, kind: str) -> None:
    executor = new_executor(1, **KINDS[kind])
    told = [outcome(executor.options(task_dir=True).submit(look_around)) for _ in range(3)]
    assert [(cwd, mode, found) for cwd, _, mode, found in told] == [(str(here), 0o700, [])] * 3
    assert len({scratch for _, scratch, _, _ in told}) == 3
    assert "HPC_TASK_DIR" not in outcome(executor.submit(lambda: dict(os.environ)))
    wait_empty(executor)


def test_a_program_has_one_too_and_stays_in_its_directory(new_executor: New, here: Path) -> None:
    script = 'pwd; echo "$HPC_TASK_DIR"; stat -c %a "$HQ_TASK_DIR"; > "$HQ_TASK_DIR/x"'
    executor = new_executor()
    cwd, scratch, mode = outcome(capturing(executor, task_dir=True).submit(sh(script))).stdout.split()
    assert (cwd, mode) == (str(here), "700")
    assert Path(scratch).parent.parent in session_directories(executor)
    wait_empty(executor)


@pytest.mark.parametrize("how", ["failed", "killed", "too long", "died"])
@pytest.mark.parametrize("kind", ["fresh", "reused", "program"])
def test_it_goes_however_the_task_ends(new_executor: New, gate: Gate, how: str, kind: str, tmp_path: Path) -> None:
    executor = new_executor(1, **KINDS.get(kind, {}))
    tasks = executor.options(task_dir=True, time_limit=0.2 if how == "too long" else None)

    def work(how: str, *paths: str) -> None:
        Path(os.environ["HPC_TASK_DIR"], "file").write_text("")
        pass_gate(*paths)
        if how == "died":
            os._exit(3)
        raise ValueError(how)

    program = sh('touch "$HPC_TASK_DIR/file"; echo $$ >> "$0"; head -c1 < "$1"; exit 3', *gate.paths)
    future = tasks.submit(program) if kind == "program" else tasks.submit(work, how, *gate.paths)
    gate.wait_arrivals()
    assert len(scratch_directories(executor)) == 1
    future.kill() if how == "killed" else gate.open() if how != "too long" else None
    error_of(future)
    wait_empty(executor)


def test_each_attempt_has_its_own(new_executor: New, tmp_path: Path) -> None:
    script = 'ls -A "$HPC_TASK_DIR"; echo "$HPC_TASK_DIR" >> "$0"; touch "$HPC_TASK_DIR/x"; test "$HPC_ATTEMPT" = 3'
    future = capturing(new_executor(), task_dir=True, retries=2).submit(sh(script, tmp_path / "seen"))
    assert outcome(future).stdout == ""
    assert len(set((tmp_path / "seen").read_text().split())) == 3


def test_a_task_that_is_taken_back_before_it_starts_leaves_none(new_executor: New, gate: Gate) -> None:
    executor = new_executor(1, max_tasks_per_child=None)
    held = executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals()
    waiting = [executor.options(task_dir=True).submit(pow, 2, 3) for _ in range(3)]
    assert all(future.cancel() for future in waiting)
    wait_empty(executor)
    gate.open()
    outcome(held)


@pytest.mark.parametrize("part", ["agent", "supervisor", "both"])
@pytest.mark.parametrize("kind", ["function", "program"])
def test_kill_9_of_what_runs_a_task_leaves_no_directory(
    new_executor: New, gate: Gate, part: str, kind: str, tmp_path: Path
) -> None:
    executor = new_executor()
    program = sh('touch "$HPC_TASK_DIR/file"; echo $$ >> "$0"; head -c1 < "$1"', *gate.paths)
    tasks = executor.options(task_dir=True)
    future = tasks.submit(program) if kind == "program" else tasks.submit(pass_gate, *gate.paths)
    [pid] = gate.wait_arrivals()
    agent = parent_of(pid) if kind == "program" else agent_of(pid)
    [before] = scratch_directories(executor)
    supervisor = parent_of(agent)
    for each in {"agent": [agent], "supervisor": [supervisor], "both": [agent, supervisor]}[part]:
        os.kill(each, signal.SIGKILL)
    gate.wait_arrivals(2)
    if part == "agent":
        assert not before.parent.exists()  # its supervisor lives, and sees to it before others run the task
    gate.open()
    outcome(future)
    assert future.attempt == 2
    places = session_directories(executor)
    end(executor)
    assert not any(place.exists() for place in places)


def test_an_agent_elsewhere_keeps_them_in_directories_of_its_own(
    new_executor: New, join: Join, tmp_path: Path, gate: Gate, here: Path
) -> None:
    executor = new_executor(1, agents=0)
    process = join(moved(executor.invite(host="127.0.0.1").path, tmp_path))
    tasks = executor.options(outputs={"out": "out"})
    future = tasks.submit(sh(f'touch out; {HELD}', "", tmp_path / "where", *gate.paths))
    [pid] = gate.wait_arrivals()
    scratch = Path((tmp_path / "where").read_text().strip())
    assert scratch.parent.parent not in session_directories(executor)
    os.kill(parent_of(pid), signal.SIGKILL)  # its supervisor starts another one
    gate.wait_arrivals(2)
    assert not scratch.exists()
    gate.open()
    outcome(future)
    assert os.listdir(here) == ["out"]
    own = Path((tmp_path / "where").read_text().strip()).parent.parent
    assert own.exists()
    end(executor)
    process.wait(10)
    assert not own.exists()


def test_an_agent_elsewhere_that_has_not_the_input_says_so(
    new_executor: New, join: Join, tmp_path: Path, here: Path
) -> None:
    executor = new_executor(1, agents=0)
    join(moved(executor.invite(host="127.0.0.1").path, tmp_path))
    error = error_of(executor.options(inputs={"a": "nowhere"}).submit(sh("true")))
    assert isinstance(error, ProgramNotStarted)
    assert f"its input 'a' is not to be had: {os.uname().nodename} has no '{here}/nowhere'" in str(error)


# ---- inputs and outputs


def test_a_program_gets_its_inputs_and_gives_its_outputs(new_executor: New, here: Path) -> None:
    (here / "data.csv").write_text("3\n1\n2\n")
    executor = new_executor()
    tasks = capturing(executor, inputs={"data.csv": "data.csv"}, outputs={"out.csv": "results/deep/out.csv"})
    done = outcome(tasks.submit(sh('ls; test "$PWD" = "$HPC_TASK_DIR"; sort data.csv > out.csv; > left')))
    assert done.stdout == "data.csv\n"
    assert (here / "results" / "deep" / "out.csv").read_text() == "1\n2\n3\n"
    assert sorted(os.listdir(here)) == ["data.csv", "results"]
    wait_empty(executor)


def test_an_output_that_is_missing_is_an_error_of_its_own(new_executor: New, here: Path) -> None:
    tasks = capturing(new_executor(), name="sorter", outputs={"out.csv": "out.csv", "log": "log"})
    error = error_of(tasks.submit(sh("> log; > out.cvs; echo oops >&2")))
    assert type(error) is OutputMissing
    assert (error.task, error.missing, error.found) == ("sorter", ("out.csv",), ("log", "out.cvs"))
    assert "(sorter)" in str(error)
    assert "its output 'out.csv' is not in its directory, which holds 'log', 'out.cvs'" in str(error)
    assert "oops" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == (str(error), vars(error))
    assert os.listdir(here) == []


def test_a_missing_output_is_a_failure_that_is_tried_again(new_executor: New, here: Path) -> None:
    tasks = new_executor().options(outputs={"out": "out"}, retries={"exit": 1})
    future = tasks.submit(sh('test "$HPC_ATTEMPT" = 1 || echo good > out'))
    outcome(future)
    assert (future.attempt, (here / "out").read_text()) == (2, "good\n")


@pytest.mark.parametrize("check", [True, False])
def test_of_a_program_that_fails_nothing_is_moved(new_executor: New, here: Path, check: bool) -> None:
    future = new_executor().options(outputs={"out": "out"}).submit(sh("> out; exit 3", check=check))
    if check:
        assert type(error_of(future)) is ProgramFailed
    else:
        assert outcome(future).returncode == 3
    assert os.listdir(here) == []


def test_an_input_that_is_not_there_keeps_the_program_from_starting(new_executor: New, here: Path) -> None:
    executor = new_executor()
    error = error_of(executor.options(inputs={"a": "b"}, retries=1).submit(sh("true")))
    assert isinstance(error, ProgramNotStarted)
    assert f"has no '{here}/b'" in str(error)
    wait_empty(executor)


def test_an_output_that_cannot_be_put_in_its_place_says_why(new_executor: New, here: Path) -> None:
    (here / "file").write_text("")
    error = error_of(new_executor().options(outputs={"out": "file/out"}).submit(sh("> out")))
    assert isinstance(error, OutputMissing)
    assert f"the output 'out' cannot be moved to '{here}/file/out'" in str(error)


def test_a_function_has_no_inputs_and_no_outputs(new_executor: New) -> None:
    error = error_of(new_executor().options(inputs={"a": "b"}).submit(pow, 2, 3))
    assert isinstance(error, OptionTypeError)
    assert "pow is a function, and these are for programs" in str(error)
    for write in (Job().function, lambda fn, **options: Job().array(fn, ids="1-2", **options)):
        with pytest.raises(OptionTypeError, match="for programs"):
            write(print, outputs={"a": "b"})  # type: ignore[operator]


@contextlib.contextmanager
def leased(path: Path) -> Iterator[list[int]]:
    """Whoever opens the file waits until we leave: as on a disk that hangs. The list tells that somebody does."""
    waits: list[int] = []
    before = signal.signal(signal.SIGIO, lambda number, _: waits.append(number))
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        yield waits
    finally:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(fd)
        signal.signal(signal.SIGIO, before)


@pytest.mark.parametrize("how", ["left alone", "killed", "too long"])
def test_a_disk_that_hangs_while_outputs_are_moved_holds_up_nobody_else(
    new_executor: New, here: Path, how: str
) -> None:
    (here / "slow").write_text("text")
    executor = new_executor(2, resources={"memory": "128MiB"})
    limit = 0.5 if how == "too long" else None
    with leased(here / "slow") as waits:
        tasks = executor.options(outputs={"out": "results/out"}, time_limit=limit, memory="64MiB")
        future = tasks.submit(sh('ln -s "$0" out', here / "slow"))
        wait_until(lambda: waits)
        if how == "killed":
            future.kill()
            future.kill(signal.SIGKILL, grace=0)
        assert [outcome(executor.submit(pow, 2, number)) for number in range(5)] == [1, 2, 4, 8, 16]
        if how == "too long":  # the limit is over when a task that began later has met the same one
            assert isinstance(error_of(executor.options(time_limit=limit).submit(sh("sleep 60"))), TaskTimeout)
        assert not future.done()
    if how == "left alone":
        assert outcome(future).returncode == 0
        assert (here / "results" / "out").read_text() == "text"
    else:
        assert type(error_of(future)) is {"killed": TaskKilled, "too long": TaskTimeout}[how]
        assert os.listdir(here / "results") == []


# ---- files of output, the number of the attempt, and what a program says


@ALL
@pytest.mark.parametrize("works", [True, False])
def test_an_output_file_goes_if_the_function_has_a_result(
    new_executor: New, here: Path, kind: str, works: bool
) -> None:
    out, err = OutputFile("out", remove_if_finished=True), OutputFile("err")
    executor = new_executor(1, **KINDS[kind]).options(stdout=out, stderr=err)
    future = executor.submit(lambda: print("text") or 1 // works)  # type: ignore[func-returns-value]
    assert future.exception(30) is None if works else isinstance(error_of(future), ZeroDivisionError)
    assert sorted(os.listdir(here)) == (["err"] if works else ["err", "out"])


@pytest.mark.parametrize("status", [0, 3])
@pytest.mark.parametrize("check", [True, False])
def test_an_output_file_goes_if_the_program_has_status_0(
    new_executor: New, here: Path, status: int, check: bool
) -> None:
    file = OutputFile("deep/out", remove_if_finished=True)
    future = new_executor().options(stdout=file, stderr=file).submit(sh(f"echo text; exit {status}", check=check))
    future.exception(30)
    assert os.listdir(here / "deep") == (["out"] if status else [])


def test_an_output_file_stays_if_an_output_is_missing(new_executor: New, here: Path) -> None:
    file = OutputFile("log", remove_if_finished=True)
    error_of(new_executor().options(stdout=file, outputs={"out": "out"}).submit(sh("echo text")))
    assert (here / "log").read_text() == "text\n"


def test_a_file_that_cannot_be_removed_costs_no_result(
    new_executor: New, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = OutputFile("out", remove_if_finished=True)
    outcome(new_executor().options(stdout=file).submit(sh('rm "$0"; mkdir "$0"', here / "out")))
    assert "a file of its output cannot be removed" in caplog.text


@pytest.mark.parametrize("kind", ["function", "program"])
def test_each_attempt_can_have_paths_of_its_own(new_executor: New, here: Path, kind: str) -> None:
    paths = {"cwd": "at-%{INSTANCE_ID}", "stdout": "out-%{INSTANCE_ID}", "stderr": "err/%{INSTANCE_ID}"}
    tasks = new_executor().options(**paths, retries=2)

    def work() -> None:
        print(os.path.basename(os.getcwd()), os.environ["HQ_INSTANCE_ID"])
        assert os.environ["HPC_ATTEMPT"] == "3"

    program = sh('echo ${PWD##*/} "$HQ_INSTANCE_ID"; test "$HPC_ATTEMPT" = 3')
    outcome(tasks.submit(program if kind == "program" else work))
    assert [(here / f"out-{number}").read_text() for number in range(3)] == [f"at-{n} {n}\n" for n in range(3)]
    assert sorted(os.listdir(here / "err")) == ["0", "1", "2"]


def test_what_a_program_says_of_its_failure_is_in_its_error(new_executor: New) -> None:
    tasks = new_executor().options(task_dir=True)
    error = error_of(tasks.submit(sh('echo the mesh is broken > "$HQ_ERROR_FILENAME"; exit 3')))
    assert (error.returncode, error.said) == (3, "the mesh is broken")
    assert "It said: the mesh is broken" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert error_of(tasks.submit(sh("exit 3"))).said == ""
    assert outcome(tasks.submit(sh('echo no matter > "$HQ_ERROR_FILENAME"'))).returncode == 0


@pytest.mark.parametrize("first", [b"\1", b"\2", b"\3", b"\5", b"/"])
def test_what_a_program_says_is_never_taken_for_an_outcome(new_executor: New, tmp_path: Path, first: bytes) -> None:
    """A body that begins so names files of the session, which are read and removed."""
    (tmp_path / "said").write_bytes(first + b"/etc/passwd")
    program = sh('cp "$0" "$HQ_ERROR_FILENAME"; exit 3', tmp_path / "said")
    error = error_of(new_executor().options(task_dir=True).submit(program))
    assert isinstance(error, ProgramFailed)
    assert "/etc/passwd" in error.said


# ---- jobs


SHOW = 'env | grep -E "^(HQ|HPC)_(JOB_ID|TASK_ID|SUBMIT_DIR|ENTRY|INSTANCE_ID|JOB_TASK_ID)=" | sort'


def show() -> None:
    names = {f"{prefix}_{name}" for prefix in ("HQ", "HPC") for name in ("JOB_ID", "TASK_ID", "SUBMIT_DIR", "ENTRY")}
    for name in sorted({*names, "HQ_INSTANCE_ID", "HPC_JOB_TASK_ID"} & set(os.environ)):
        print(f"{name}={os.environ[name]}")


def test_tasks_of_two_jobs_write_to_directories_that_are_made(new_executor: New, here: Path) -> None:
    executor = new_executor(2)
    for number in (1, 2):
        job = Job(cwd=f"at-{number}")
        options = {"stdout": "%{CWD}/job-%{JOB_ID}/%{TASK_ID}.stdout", "cwd": "deep/%{TASK_ID}"}
        job.program(["pwd"], **options)
        job.function(lambda: print(os.getcwd()), **options)
        assert executor.submit_job(job).wait(30)
    for job, task in ((1, 0), (1, 1), (2, 0), (2, 1)):
        cwd = here / f"at-{job}" / "deep" / str(task)
        assert (cwd / f"job-{job}" / f"{task}.stdout").read_text() == f"{cwd}\n"


def test_tasks_of_jobs_have_the_variables_of_hyperqueue(new_executor: New, here: Path) -> None:
    executor = new_executor(1)
    outcome(executor.submit(pow, 2, 3))  # so that our numbers of tasks are others than the job's
    job = Job(env={"HQ_ENTRY": "is overwritten"})
    job.array(sh(SHOW), ids="5,9", entries=["a", "b"], stdout="%{TASK_ID}")
    job.function(show, id=11, stdout="%{TASK_ID}")
    submitted = executor.submit_job(job)
    assert submitted.wait(30)
    told = {task: (here / str(task)).read_text().splitlines() for task in (5, 9, 11)}
    common = [f"HPC_SUBMIT_DIR={here}", f"HQ_SUBMIT_DIR={here}", "HPC_JOB_ID=1", "HQ_JOB_ID=1", "HQ_INSTANCE_ID=0"]
    entries = {5: ["HPC_ENTRY=a", "HQ_ENTRY=a"], 9: ["HPC_ENTRY=b", "HQ_ENTRY=b"], 11: ["HQ_ENTRY=is overwritten"]}
    for task, lines in told.items():
        own = [f"HQ_TASK_ID={task}", f"HPC_JOB_TASK_ID={task}", f"HPC_TASK_ID={submitted.futures[task].task_id}"]
        assert sorted(lines) == sorted(common + own + entries[task])


def test_inputs_and_outputs_of_a_job_are_relative_to_the_directory_of_the_task(new_executor: New, here: Path) -> None:
    (here / "study").mkdir()
    (here / "study" / "data").write_text("text")
    job = Job(cwd="study")
    first = job.array(
        sh('cat data > out; echo " $HQ_TASK_ID" >> out'), ids="1-2", inputs={"data": "data"},
        outputs={"out": "job-%{JOB_ID}/%{TASK_ID}"},
    )  # fmt: skip
    job.program(sh("cat 1 2 > all"), deps=[first], inputs={"1": "job-%{JOB_ID}/1", "2": "%{CWD}/job-%{JOB_ID}/2"},
                outputs={"all": "%{SUBMIT_DIR}/all"})  # fmt: skip
    assert new_executor(2).submit_job(job).wait(30)
    assert (here / "all").read_text() == "text 1\ntext 2\n"


def test_the_files_of_a_task_that_failed_are_told_as_they_are_called(new_executor: New, here: Path) -> None:
    job = Job()
    job.program(
        sh("echo text; exit 3"), retries=1, cwd="%{INSTANCE_ID}", stderr="err",
        stdout=OutputFile("%{TASK_ID}-%{INSTANCE_ID}", remove_if_finished=True),
    )  # fmt: skip
    submitted = new_executor().submit_job(job)
    assert not submitted.wait(30)
    [failed] = submitted.failed().values()
    assert failed.cwd == f"{here}/1"
    assert failed.stdout is not None
    assert Path(failed.stdout).read_text() == "text\n"
    assert failed.stderr is not None
    assert Path(failed.stderr).exists()


DAEMON = '(setsid sh -c \'echo $$ >> "$0"; exec sleep 600\' "$0" &); echo $$ >> "$1"; head -c1 < "$2"'


def test_a_daemon_of_a_job_s_program_lives_as_long_as_that_and_no_longer(
    new_executor: New, tmp_path: Path, gate: Gate
) -> None:
    """It is the agent's child. When it was looked for by HQ_TASK_ID, which a job gives a number of its own, it was
    taken for one that another program had left, and ended with that one."""
    executor = new_executor(2)
    job = Job()
    job.program(sh(DAEMON, tmp_path / "daemon", *gate.paths), id=77)
    submitted = executor.submit_job(job)
    gate.wait_arrivals()
    [daemon] = wait_announced(tmp_path / "daemon")
    for _ in range(3):
        outcome(executor.submit(sh("true")))
    assert Path(f"/proc/{daemon}").exists()
    gate.open()
    assert submitted.wait(30)
    wait_gone(daemon)


HOG = 'import time; held = bytearray(b"x") * 300_000_000; time.sleep(600)'


def test_memory_of_a_daemon_of_a_job_s_program_is_that_of_the_program(new_executor: New, gate: Gate) -> None:
    """It, too, is found by its variables."""
    job = Job()
    script = '(setsid "$2" -c "$3" &); echo $$ >> "$0"; head -c1 < "$1"'
    job.program(sh(script, *gate.paths, sys.executable, HOG), id=77, memory="64MiB")
    submitted = new_executor(1, resources={"memory": "128MiB"}).submit_job(job)
    assert isinstance(error_of(submitted.futures[77]), TaskOutOfMemory)
