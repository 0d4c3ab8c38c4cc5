"""Programs and functions on several ranks, by the MPI of this machine. The command lines are in test_launchers.py.

Without an MPI, or without mpi4py, the tests that need them are skipped, and pytest counts them.
"""
# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from pools import failure, gate, new_executor, outcome, sh
from waiting import SOON, Gate, wait_gone, wait_until

from executor import (
    CAPTURE,
    HPCExecutor,
    Job,
    OptionValueError,
    Program,
    ProgramNotStarted,
    Resources,
    SerializationError,
    TaskDied,
    TaskKilled,
    TaskTimeout,
)

pytestmark = pytest.mark.shared
cloudpickle.register_pickle_by_value(sys.modules[__name__])

New = Callable[..., HPCExecutor]
needs_mpi = pytest.mark.skipif(not shutil.which("mpirun"), reason="there is no mpirun: Debian has it in openmpi-bin")
needs_mpi4py = pytest.mark.skipif(
    not shutil.which("mpirun") or find_spec("mpi4py") is None, reason="there is no mpirun, or no mpi4py"
)


@pytest.fixture(autouse=True)
def allow_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open MPI does not run as root, as which CI does; and a container may have fewer ways to talk than a node."""
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")


@pytest.fixture
def executor(new_executor: New) -> HPCExecutor:
    return new_executor(None, resources={"cpus": 4})


def failed(future: Any, kind: type[BaseException]) -> Any:
    """The failure, which is of that kind."""
    error = failure(future)
    assert isinstance(error, kind), repr(error)
    return error


def world() -> Any:
    from mpi4py import MPI

    return MPI.COMM_WORLD


def place_and_sum(number: int) -> tuple[int, int, int]:
    return world().rank, world().size, world().allreduce(number + world().rank)


# ---- programs

RANKS = 'echo "$OMPI_COMM_WORLD_RANK$PMI_RANK of $OMPI_COMM_WORLD_SIZE$PMI_SIZE, $HPC_NUM_RANKS, $OMP_NUM_THREADS"'


@needs_mpi
def test_a_program_runs_on_its_ranks_and_its_output_and_status_are_the_futures(executor: HPCExecutor) -> None:
    view = executor.options(ranks=2, cpus=4, stdout=CAPTURE, stderr=CAPTURE)
    assert sorted(outcome(view.submit(sh(RANKS))).stdout.splitlines()) == ["0 of 2, 2, 2", "1 of 2, 2, 2"]
    done = outcome(view.submit(Program(["sh", "-c", "exit 3"], check=False)))
    assert done.returncode == 3


@needs_mpi
def test_the_ranks_of_a_task_on_several_agents_are_spread_over_them(new_executor: New) -> None:
    executor = new_executor(None, resources={"cpus": 4}, agents=2)
    own = ["mpirun", "-n", "{ranks}", "--host", "localhost:{ranks}", "sh", "-c", '"$@"; cat {hostfile}', "sh"]
    view = executor.options(nodes=2, ranks=4, stdout=CAPTURE)
    assert sorted(outcome(view.submit(sh("echo $HPC_NUM_RANKS"))).stdout.split()) == ["4"] * 4
    printed = outcome(view.options(launcher=own).submit(sh("true"))).stdout.split()
    assert printed == [socket.gethostname()] * 16


@needs_mpi
def test_stdin_is_that_of_the_first_rank(executor: HPCExecutor) -> None:
    program = Program(["sh", "-c", "cat"], stdin="once")
    assert outcome(executor.options(ranks=2, stdout=CAPTURE).submit(program)).stdout == "once"


def test_without_a_launcher_the_error_says_what_was_looked_for_and_where(executor: HPCExecutor) -> None:
    view = executor.options(ranks=2, env={"PATH": "/nowhere"})
    error = failed(view.submit(Program(["/bin/true"])), ProgramNotStarted)
    assert "there is no mpirun and no mpiexec in PATH (/nowhere)" in str(error)
    assert (
        str(failed(view.submit(int), ProgramNotStarted)).partition("no launcher")[2]
        == (str(error).partition("no launcher")[2])
    )


def test_a_program_that_is_missing_is_told_by_its_own_name_and_not_by_the_launcher(executor: HPCExecutor) -> None:
    error = failed(executor.options(ranks=2).submit(Program(["no-such-solver"])), ProgramNotStarted)
    assert "'no-such-solver'" in str(error)


def test_a_launcher_that_is_neither_of_those_that_we_know_is_named_with_the_remedy(
    executor: HPCExecutor, tmp_path: Any
) -> None:
    unknown = tmp_path / "mpiexec"
    unknown.write_text("#!/bin/sh\necho mpiexec version 1.2\n")
    unknown.chmod(0o755)
    view = executor.options(ranks=2, launcher=str(unknown), stderr=CAPTURE)
    done = outcome(view.submit(Program(["true"], check=False)))
    assert done.returncode == 127
    assert "--version says 'mpiexec version 1.2" in done.stderr
    assert "launcher=[" in done.stderr


@needs_mpi
@pytest.mark.parametrize("how", ["kill", "force", "limit"])
def test_the_end_of_a_task_is_the_end_of_all_its_ranks(executor: HPCExecutor, gate: Gate, how: str) -> None:
    path = os.path.dirname(__file__)
    code = f"import sys; sys.path.insert(0, {path!r}); import waiting; waiting.pass_gate(*sys.argv[1:])"
    view = executor.options(ranks=2, time_limit=3 if how == "limit" else None, stderr=CAPTURE)
    future = view.submit(Program([sys.executable, "-c", code, *gate.paths]))
    if how == "limit":
        failed(future, TaskTimeout)
    else:
        pids = gate.wait_arrivals(2)
        future.kill(signal.SIGKILL if how == "force" else signal.SIGTERM)
        failed(future, TaskKilled)
        wait_gone(*pids)
    gate.open()
    assert outcome(executor.options(cpus=4).submit(int)) == 0, "its place is free again"


def test_ranks_that_a_daemon_has_started_end_with_their_task(new_executor: New, gate: Gate) -> None:
    """Slurm's daemons start ranks, which went on after SIGKILL to srun: on its host, and on those of other agents."""
    executor = new_executor(None, resources={"cpus": 2}, agents=2)
    launcher = ["sh", "-c", 'env -0 > "$0/env"; mv "$0/env" "$0/told"; exec sleep 1000', str(gate.paths[0]) + "-d"]
    os.mkdir(launcher[-1])
    future = executor.options(nodes=2, ranks=2, launcher=launcher).submit(Program(["true"]))
    told = Path(launcher[-1]) / "told"
    wait_until(told.exists, "for the launcher to start")
    env = dict(each.split("=", 1) for each in told.read_text().split("\0") if each)
    with subprocess.Popen(["sleep", "1000"], env=env) as rank, subprocess.Popen(["sleep", "1000"]) as another:
        try:
            future.kill(signal.SIGKILL, grace=0)
            failed(future, TaskKilled)
            assert rank.wait(SOON) == -signal.SIGKILL
            assert another.poll() is None
        finally:
            rank.kill()
            another.kill()


# ---- functions


@needs_mpi4py
def test_a_function_on_several_ranks_gives_the_list_of_its_results(executor: HPCExecutor) -> None:
    view = executor.options(ranks=3, stdout=CAPTURE)
    assert outcome(view.submit(place_and_sum, 10)) == [(rank, 3, 33) for rank in range(3)]


@needs_mpi4py
def test_a_function_finds_its_directory_its_variables_and_its_output(executor: HPCExecutor, tmp_path: Any) -> None:
    def where() -> tuple[str, str]:
        sys.stdout.write(f"rank {world().rank}\n")  # at once, where streams are not buffered
        return os.getcwd(), os.environ["CASE"]

    future = executor.options(ranks=2, cwd=tmp_path / "made", env={"CASE": "7"}, stdout=CAPTURE).submit(where)
    assert outcome(future) == [(str(tmp_path / "made"), "7")] * 2
    assert sorted(future.stdout.splitlines()) == ["rank 0", "rank 1"]


@needs_mpi4py
def test_large_arguments_results_and_futures_reach_all_ranks(executor: HPCExecutor) -> None:
    def double(first: bytes, second: bytes) -> bytes:
        return first + second

    first = executor.submit(bytes, 100_000)
    values = outcome(executor.options(ranks=2).submit(double, first, b"x" * 100_000))
    assert values == [bytes(100_000) + b"x" * 100_000] * 2


@needs_mpi4py
def test_map_gives_the_lists_of_each_call(executor: HPCExecutor) -> None:
    def scaled(number: int) -> int:
        return number * world().rank

    expected = [[0, 0], [0, 1], [0, 2]]
    assert list(executor.options(ranks=2).map(scaled, range(3), chunksize=2)) == expected
    assert list(executor.options(ranks=2).map(scaled, range(3))) == expected


@needs_mpi4py
@pytest.mark.parametrize("failing", [0, 1])
def test_what_one_rank_raises_ends_the_others_and_has_its_number(executor: HPCExecutor, failing: int) -> None:
    """The others wait for it in a barrier, in which they would wait for ever."""

    def fail() -> None:
        if world().rank == failing:
            raise KeyError("mesh")
        world().Barrier()

    error = failed(executor.options(ranks=3, stderr=CAPTURE).submit(fail), KeyError)
    assert error.args == ("mesh",)
    assert error.__notes__[0] == f"(on rank {failing} of 3, on host {socket.gethostname()})"


@needs_mpi4py
def test_a_result_that_cannot_be_pickled_is_told_as_everywhere(executor: HPCExecutor) -> None:
    def lock() -> Any:
        import threading

        return threading.Lock()

    error = failed(executor.options(ranks=2, stderr=CAPTURE).submit(lock), SerializationError)
    assert "of type _thread.lock, cannot be pickled" in str(error)


@needs_mpi4py
def test_a_rank_that_crashes_is_the_tasks_death(executor: HPCExecutor) -> None:
    def crash() -> None:
        if world().rank == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        world().Barrier()

    failed(executor.options(ranks=2, stderr=CAPTURE).submit(crash), TaskDied)


@needs_mpi4py
def test_a_function_whose_launcher_is_of_another_mpi_is_told_so(executor: HPCExecutor) -> None:
    """Each rank would be a world of its own, and all of them would give the result of rank 0."""
    alone = ["sh", "-c", '"$@" & "$@"; wait', "sh"]
    error = failed(executor.options(ranks=2, launcher=alone, stderr=CAPTURE).submit(place_and_sum, 1), RuntimeError)
    assert "has started 2 ranks, and this one sees 1: mpi4py uses " in str(error)


def test_without_mpi4py_the_error_names_the_python_and_the_remedy(executor: HPCExecutor, tmp_path: Any) -> None:
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text("raise ImportError('libmpi.so.40: cannot open shared object')")
    view = executor.options(ranks=2, launcher=["sh", "-c", '"$@"', "sh"], env={"PYTHONPATH": str(tmp_path)})
    sys.path.insert(0, str(tmp_path))
    try:
        error = failed(view.submit(place_and_sum, 1), ImportError)
    finally:
        sys.path.remove(str(tmp_path))
    assert "a function on several ranks needs mpi4py, and " in str(error)
    assert "libmpi.so.40" in str(error)
    assert "pip install mpi4py" in str(error)


# ---- what is needed, and how it is written


@pytest.mark.parametrize(
    ("said", "cpus"), [({"ranks": 4}, 4), ({"ranks": 4, "cpus": 8}, 8), ({"ranks": 4, "cpus": 1}, 1), ({"ranks": 0}, 1)]
)
def test_ranks_need_a_cpu_each_if_nothing_is_said(said: dict[str, int], cpus: int) -> None:
    assert Resources(**said).to_needs().needs[0].amount == cpus * 10_000


def test_a_view_of_a_view_changes_the_ranks_and_keeps_what_was_said() -> None:
    with HPCExecutor(1) as executor:
        view = executor.options(memory="1GiB").options(ranks=4)
        assert view._options.variants == (Resources(ranks=4, cpus=4, memory="1GiB").to_needs(),)
        assert view.options(ranks=2)._options.variants == (Resources(ranks=2, memory="1GiB").to_needs(),)
        assert view.options(cpus=6).options(ranks=2)._options.variants[0].needs[0].amount == 60_000


def test_ranks_are_even_over_nodes_and_the_same_kind_in_all_variants() -> None:
    assert Resources(nodes=2, ranks=4) == eval(repr(Resources(nodes=2, ranks=4)))
    with pytest.raises(OptionValueError, match="ranks=3: expected a multiple of nodes=2"):
        Resources(nodes=2, ranks=3)
    with HPCExecutor(1) as executor, pytest.raises(OptionValueError, match="ranks in all variants, or in none"):
        executor.options(resources=[Resources(ranks=2), Resources(cpus=2)])


def test_a_job_file_says_ranks_and_launcher_and_is_written_back(tmp_path: Any) -> None:
    job = Job("study")
    job.program(["solve"], ranks=4, nodes=2, launcher=["aprun", "-n", "{ranks}"])
    job.program(["solve"], ranks=2, launcher="srun")
    job.to_file(tmp_path / "job.toml")
    text = (tmp_path / "job.toml").read_text()
    assert "n_nodes = 2\nranks = 4\n" in text
    Job.from_file(tmp_path / "job.toml").to_file(tmp_path / "again.toml")
    assert (tmp_path / "again.toml").read_text() == text
