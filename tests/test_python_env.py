"""The Python of tasks and its prologue: on real agents."""

# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from pools import end, error_of, new_executor
from waiting import wait_gone, wait_until

from executor import CAPTURE, HPCExecutor, Program
from executor.errors import EnvironmentFailed
from executor.python_env import PythonEnv
from worker_agent import protocol
from worker_agent.prologue import Prologue, PrologueFailed

pytestmark = pytest.mark.shared

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def quiet() -> Iterator[Any]:
    """A view of an executor that shows no output here."""
    executor = HPCExecutor(2)
    yield executor.options(stdout=CAPTURE, stderr=CAPTURE)
    end(executor)


def variable(name: str) -> str | None:
    return os.environ.get(name)


def interpreter() -> tuple[str | None, list[str]]:
    return os.environ.get("STARTED_BY"), sys.path


def test_functions_and_programs_have_the_variables_of_one_prologue(
    new_executor: Callable[..., HPCExecutor], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    executor = new_executor(2, python_env=PythonEnv(prologue=f"export FLAVOUR=sweet\necho run >> '{log}'"))
    assert [executor.submit(variable, "FLAVOUR").result() for _ in range(3)] == ["sweet"] * 3
    completed = executor.options(stdout=-1).submit(Program(["sh", "-c", "echo $FLAVOUR"])).result()
    assert completed.stdout == "sweet\n"
    assert log.read_text() == "run\n"


def test_options_of_a_task_change_what_its_prologue_left(new_executor: Callable[..., HPCExecutor]) -> None:
    executor = new_executor(1, python_env=PythonEnv(prologue="export FLAVOUR=sweet"))
    assert executor.options(env={"FLAVOUR": "sour"}).submit(variable, "FLAVOUR").result() == "sour"


def test_a_task_has_another_prologue_than_its_neighbour(quiet: Any) -> None:
    tasks = [
        quiet.options(python_env=PythonEnv(prologue=f"export FLAVOUR={each}")).submit(variable, "FLAVOUR")
        for each in ("sweet", "sour")
    ]
    assert [task.result() for task in [*tasks, quiet.submit(variable, "FLAVOUR")]] == ["sweet", "sour", None]


def test_a_line_that_fails_is_in_the_error_with_what_was_printed(quiet: Any) -> None:
    prologue = "echo looking\nno_such_module load gcc/12\nexport FLAVOUR=sweet"
    error = error_of(quiet.options(python_env=PythonEnv(prologue=prologue)).submit(variable, "FLAVOUR"))
    assert isinstance(error, EnvironmentFailed)
    assert "the line 'no_such_module load gcc/12' with status 127" in str(error)
    assert "looking" in str(error)
    assert "line 2" in str(error)  # as its author counts
    assert quiet.submit(variable, "FLAVOUR").result() is None


def test_a_task_that_waits_for_its_prologue_can_be_cancelled(new_executor: Callable[..., HPCExecutor]) -> None:
    executor = new_executor(1)
    task = executor.options(python_env=PythonEnv(prologue="sleep 1000")).submit(variable, "FLAVOUR")
    other = executor.submit(variable, "NO_SUCH_VARIABLE")
    assert task.cancel()
    assert other.result() is None


@pytest.mark.parametrize("end", ["exit 3", "kill -9 $$"])
def test_a_prologue_that_ends_its_shell_fails(quiet: Any, end: str) -> None:
    error = error_of(quiet.options(python_env=PythonEnv(prologue=end)).submit(variable, "FLAVOUR"))
    assert isinstance(error, EnvironmentFailed)
    assert "the prologue of the environment ended" in str(error)


def test_a_prologue_that_takes_too_long_is_killed_with_all_below_and_its_error_says_so(tmp_path: Path) -> None:
    child = tmp_path / "child"
    text = f"echo looking\nsleep 1000 &\necho $! > '{child}.part'\nmv '{child}.part' '{child}'\nwait"
    order = protocol.Prepare(
        environment=1, python=[], start="exec", max_tasks=0, cwd="/", path=[], env={}, prologue=text
    )  # fmt: skip
    process = Prologue(order)
    wait_until(child.exists)
    process.give_up()
    # behind that the shell may say that its child was killed, if it sees that before its own end
    with pytest.raises(PrologueFailed, match="was killed, as it had not ended after 600 s. It printed: looking\\b"):
        process.end(os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1]))
    wait_gone(int(child.read_text()))


def test_the_python_is_the_one_that_the_prologue_has_in_its_path(quiet: Any, tmp_path: Path) -> None:
    (tmp_path / "our_python").write_text(f'#!/bin/sh\nSTARTED_BY=$0 exec {sys.executable} "$@"\n')
    (tmp_path / "our_python").chmod(0o755)
    env = PythonEnv("our_python", prologue=f"export PATH='{tmp_path}':$PATH")
    started_by, path = quiet.options(python_env=env).submit(interpreter).result()
    assert started_by == str(tmp_path / "our_python")
    assert sysconfig.get_path("stdlib") in path  # its own, as far as it has one


def test_a_python_that_is_not_there_is_named_with_where_it_was_looked_for(quiet: Any) -> None:
    error = error_of(quiet.options(python_env=PythonEnv("no_such_python")).submit(interpreter))
    assert isinstance(error, EnvironmentFailed)
    assert "'no_such_python' is not to be found" in str(error)
    assert "PATH=" in str(error)


def test_a_shell_that_is_not_there_is_named(quiet: Any) -> None:
    env = PythonEnv(prologue="true", shell="no_such_shell")
    assert "the shell 'no_such_shell'" in str(error_of(quiet.options(python_env=env).submit(interpreter)))


def test_another_shell_runs_the_prologue(quiet: Any) -> None:
    env = PythonEnv(prologue="export FLAVOUR=sweet", shell="sh")
    assert quiet.options(python_env=env).submit(variable, "FLAVOUR").result() == "sweet"


@pytest.mark.parametrize("wrong", [{"python": 3}, {"shell": None}, {"prologue": b"x"}])
def test_what_is_no_text_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="expected text"):
        PythonEnv(**wrong)


def test_the_option_takes_an_environment_only(quiet: Any) -> None:
    with pytest.raises(TypeError, match="PythonEnv"):
        quiet.options(python_env="python3")
