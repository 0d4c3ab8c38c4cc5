"""What options change for a task that really runs: environment, directory, streams, name. How they are read is in
test_options.py, limits and retries are in test_tasks_ends.py.
"""
# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from pools import CALL_AND_PROGRAM, check_works, end, error_of, new_executor, outcome, sh
from waiting import pass_gate, wait_until

from executor import (
    CAPTURE,
    DEVNULL,
    FORWARD,
    HPCExecutor,
    OptionTypeError,
    OptionValueError,
    Program,
    ProgramFailed,
    ProgramNotStarted,
    TaskDied,
    TaskFuture,
    TaskTimeout,
)

if TYPE_CHECKING:
    from conftest import Gate

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])



@pytest.fixture(scope="module")
def executor() -> Iterator[HPCExecutor]:
    """Shared by the tests that do no harm to it: two workers, fresh interpreters."""
    shared = HPCExecutor(2)
    yield shared
    end(shared)


@pytest.fixture(scope="module")
def reused() -> Iterator[HPCExecutor]:
    """The same with one interpreter, which is kept."""
    shared = HPCExecutor(1, max_tasks_per_child=None)
    yield shared
    end(shared)


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """What was written to ``sys.stdout`` and ``sys.stderr`` of this process so far."""
    seen = ["", ""]

    def look() -> list[str]:
        seen[:] = map(operator.add, seen, capsys.readouterr())
        return seen

    return look


def variables(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


def talk(text: str = "") -> None:
    """On both streams; whatever the interpreter keeps back is written at its end."""
    sys.stdout.write(f"out {text}")
    sys.stderr.write(f"err {text}")


TALK = sh('printf "out $0"; printf "err $0" >&2', "")


# ---- env


def test_variables_are_set_changed_and_unset_for_calls_and_programs(
    executor: HPCExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KEPT", "CHANGED", "UNSET"):
        monkeypatch.setenv(name, "as here")
    view = executor.options(env={"CHANGED": "grün = 1", "UNSET": None, "EMPTY": "", "NEVER_WAS": None})
    names = ["KEPT", "CHANGED", "UNSET", "EMPTY", "NEVER_WAS"]
    assert outcome(view.submit(variables, *names)) == ["as here", "grün = 1", None, "", None]
    script = 'echo "$KEPT|$CHANGED|${UNSET-unset}|${EMPTY-unset}|${NEVER_WAS-unset}"'
    assert outcome(view.options(stdout=CAPTURE).submit(sh(script))).stdout == "as here|grün = 1|unset||unset\n"
    assert (os.environ["CHANGED"], os.environ["UNSET"]) == ("as here", "as here")


def test_a_view_of_a_view_adds_its_variables_to_those_of_the_first(executor: HPCExecutor) -> None:
    first = executor.options(env={"ONE": "1", "TWO": "1"})
    second = first.options(env={"TWO": "2", "THREE": "2"})
    forgetful = second.options(env=None)
    seen = [outcome(view.submit(variables, "ONE", "TWO", "THREE")) for view in (first, second, forgetful)]
    assert seen == [["1", "1", None], ["1", "2", "2"], [None, None, None]]


def test_variables_that_an_interpreter_reads_at_its_start_have_their_effect(executor: HPCExecutor) -> None:
    view = executor.options(env={"PYTHONINTMAXSTRDIGITS": "777", "PYTHONHASHSEED": "0"})
    assert outcome(view.submit(sys.get_int_max_str_digits)) == 777
    assert outcome(executor.submit(sys.get_int_max_str_digits)) == sys.get_int_max_str_digits()


def test_a_kept_interpreter_is_for_the_next_task_as_it_was(reused: HPCExecutor, tmp_path: Path) -> None:
    """Variables, directory and streams that options have changed, whether or not the task was successful."""

    def look() -> list[Any]:
        print("printed")
        return [os.getpid(), os.getcwd(), sorted(name for name in os.environ if name != "HPC_TASK_ID")]

    before = outcome(reused.options(stdout=CAPTURE).submit(look))
    options = {"env": {"NEW": "1", "HOME": None}, "cwd": tmp_path / "there", "stdout": tmp_path / "out"}
    pid, directory, names = outcome(reused.options(**options).submit(look))
    assert (pid, directory) == (before[0], str(tmp_path / "there"))
    assert "NEW" in names
    assert "HOME" not in names
    assert type(error_of(reused.options(**options).submit(divmod, 1, 0))) is ZeroDivisionError
    assert type(error_of(reused.options(cwd=__file__).submit(look))) is FileExistsError
    after = reused.options(stdout=CAPTURE).submit(look)
    assert outcome(after) == before
    assert after.stdout == "printed\n"


# ---- cwd


@CALL_AND_PROGRAM
def test_the_directory_is_made_if_it_is_missing(executor: HPCExecutor, tmp_path: Path, of: str) -> None:
    folder = tmp_path / "case 1" / "run"
    view = executor.options(cwd=folder, stdout=CAPTURE)
    if of == "call":
        assert outcome(view.submit(os.getcwd)) == str(folder)
    else:
        assert outcome(view.submit(sh("pwd; echo > here"))).stdout == f"{folder}\n"
        assert (folder / "here").exists()
    assert outcome(view.submit(os.getcwd)) == str(folder)  # which is there now
    assert outcome(executor.submit(os.getcwd)) == os.getcwd()


def test_relative_paths_begin_here_and_not_in_the_directory_of_the_task(
    executor: HPCExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    view = executor.options(cwd="run", stdout="log/out", stderr="log/err")
    monkeypatch.undo()
    outcome(view.submit(sh("pwd; echo trouble >&2")))
    assert (tmp_path / "log" / "out").read_text() == f"{tmp_path}/run\n"
    assert (tmp_path / "log" / "err").read_text() == "trouble\n"


@pytest.mark.parametrize("option", ["cwd", "stdout", "stderr"])
def test_a_path_that_cannot_be_used_is_the_error_of_the_task_and_named(
    executor: HPCExecutor, tmp_path: Path, option: str
) -> None:
    """A file in the place of a folder; the task does not run then."""
    (tmp_path / "file").write_text("")
    view = executor.options(**{option: tmp_path / "file" / "sub"})
    call, program = view.submit((tmp_path / "ran").touch), view.submit(Program(["touch", tmp_path / "ran"]))
    error = error_of(call)
    assert type(error) is NotADirectoryError if option == "cwd" else isinstance(error, OSError)
    assert str(tmp_path / "file") in "\n".join([str(error), *getattr(error, "__notes__", [])])
    error = error_of(program)
    assert type(error) is ProgramNotStarted
    assert str(tmp_path / "file") in str(error)
    assert "'touch'" in str(error)
    assert not (tmp_path / "ran").exists()
    check_works(executor)


# ---- where output goes


@CALL_AND_PROGRAM
def test_output_to_a_file_makes_its_folder_and_is_nowhere_else(
    executor: HPCExecutor, tmp_path: Path, shown: Callable[[], list[str]], of: str
) -> None:
    out, err = tmp_path / "logs" / "deep" / "out", tmp_path / "errors" / "err"
    future = executor.options(stdout=out, stderr=str(err)).submit(talk if of == "call" else TALK)
    result = outcome(future)
    assert (out.read_text(), err.read_text()) == ("out ", "err ")
    assert (future.stdout, future.stderr) == ("", "")
    assert shown() == ["", ""]
    assert of == "call" or (result.stdout, result.stderr) == ("", "")


@CALL_AND_PROGRAM
def test_the_same_file_for_both_streams_has_them_in_their_order(executor: HPCExecutor, tmp_path: Path, of: str) -> None:
    def call() -> None:
        for number in range(3):
            print("out", number)
            print("err", number, file=sys.stderr, flush=True)

    script = 'for n in 0 1 2; do echo "out $n"; echo "err $n" >&2; done'
    view = executor.options(stdout=tmp_path / "log", stderr=tmp_path / "log")
    outcome(view.submit(call if of == "call" else sh(script)))
    assert (tmp_path / "log").read_text() == "out 0\nerr 0\nout 1\nerr 1\nout 2\nerr 2\n"


def test_a_file_for_output_has_that_of_the_last_attempt(executor: HPCExecutor, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("of last week, and longer than what comes\n" * 10)
    view = executor.options(stdout=tmp_path / "log", retries=2)
    future = view.submit(sh("echo attempt $HPC_ATTEMPT; test $HPC_ATTEMPT = 3"))
    outcome(future)
    assert (tmp_path / "log").read_text() == "attempt 3\n"


@CALL_AND_PROGRAM
@pytest.mark.parametrize("place", [DEVNULL, CAPTURE, FORWARD], ids=str)
def test_each_stream_is_dropped_or_kept_or_kept_and_shown(
    executor: HPCExecutor, shown: Callable[[], list[str]], place: Any, of: str
) -> None:
    """The other one stays as it is: FORWARD."""
    task = talk if of == "call" else TALK
    futures = {
        "stdout": executor.options(stdout=place).submit(task),
        "stderr": executor.options(stderr=place).submit(task),
    }
    results = {name: outcome(future) for name, future in futures.items()}
    kept = ["", ""] if place is DEVNULL else ["out ", "err "]
    assert [getattr(future, name) for name, future in futures.items()] == kept
    assert [futures["stderr"].stdout, futures["stdout"].stderr] == ["out ", "err "]
    times = 2 if place is FORWARD else 1
    assert shown() == ["out " * times, "err " * times]
    assert of == "call" or [getattr(result, name) for name, result in results.items()] == kept


def test_output_is_shown_on_the_same_stream_while_the_task_runs(
    executor: HPCExecutor, gate: Gate, shown: Callable[[], list[str]]
) -> None:
    def speak(*paths: str) -> None:
        print("a line")
        print("a warning", file=sys.stderr)
        pass_gate(*paths)
        print("another line")

    future = executor.submit(speak, *gate.paths)
    gate.wait_arrivals(1)
    wait_until(lambda: shown() == ["a line\n", "a warning\n"])
    assert (future.state, future.stdout, future.stderr) == ("running", "a line\n", "a warning\n")
    gate.open()
    outcome(future)
    assert shown() == ["a line\nanother line\n", "a warning\n"]


def test_what_is_shown_is_what_is_kept(executor: HPCExecutor, shown: Callable[[], list[str]]) -> None:
    """Beginning and end, and how much is missing between."""
    future = executor.options(output_limit=1000).submit(sh("seq 100000"))
    outcome(future)
    assert "bytes left out" in future.stdout
    assert shown() == [future.stdout, ""]


def test_a_letter_that_arrives_in_two_pieces_is_shown_as_one(
    executor: HPCExecutor, gate: Gate, shown: Callable[[], list[str]]
) -> None:
    script = "printf 'gr\\303'; head -c1 < \"$0\" > /dev/null; printf '\\274n'"
    future = executor.submit(sh(script, gate.paths[1]))
    wait_until(lambda: len(future.stdout) == 3)
    gate.open()
    assert outcome(future).stdout == "grün"
    assert shown() == ["grün", ""]


def test_a_letter_in_the_middle_of_the_limit_is_shown_as_one(
    executor: HPCExecutor, shown: Callable[[], list[str]]
) -> None:
    """Nothing is left out: it is only that the end is shown later than the beginning."""
    future = executor.options(output_limit=90).submit(print, "ü" * 40, end="")
    outcome(future)
    assert future.stdout == "ü" * 40
    assert shown() == ["ü" * 40, ""]


# ---- output_limit


def test_the_last_words_are_kept_however_the_task_ends(executor: HPCExecutor) -> None:
    """Of the stream and in the errors, of all kinds."""
    flood = "seq 100000 >&2; echo the last words >&2;"
    view = executor.options(stderr=CAPTURE, stdout=CAPTURE, output_limit=1000)

    def die() -> None:
        os.system(flood)
        os._exit(3)

    ends: dict[TaskFuture, type[Exception]] = {
        view.submit(die): TaskDied,
        view.submit(sh(flood + "exit 3")): ProgramFailed,
        view.submit(sh(flood + "kill -9 $$")): ProgramFailed,
        view.options(time_limit=1).submit(sh(flood + "exec sleep 600")): TaskTimeout,
    }
    for future, kind in ends.items():
        error = error_of(future)
        assert error.stderr == future.stderr
        assert future.stderr.startswith("1\n2\n3\n")
        assert future.stderr.endswith("100000\nthe last words\n")
        assert 1000 < len(future.stderr) < 1100
        assert str(error).endswith("\n  100000\n  the last words")
        assert type(error) is kind


@CALL_AND_PROGRAM
def test_output_below_the_limit_is_whole(executor: HPCExecutor, of: str) -> None:
    """Much more than a pipe holds, and some of it written just before the end."""
    view = executor.options(stdout=CAPTURE, output_limit="3 MiB")
    text = "".join(f"{number}\n" for number in range(1, 400_001))
    future = view.submit(print, text, end="") if of == "call" else view.submit(sh("seq 400000"))
    outcome(future)
    assert len(future.stdout) == len(text) > 2_600_000
    assert hash(future.stdout) == hash(text)  # nobody wants to see the difference


def test_a_limit_of_nothing_keeps_nothing_but_the_count(executor: HPCExecutor) -> None:
    future = executor.options(stdout=CAPTURE, output_limit=0).submit(print, "x" * 99)
    outcome(future)
    assert future.stdout.strip() == "[... 100 bytes left out ...]"


def test_a_limit_without_limits_harms_nobody(new_executor: Callable[..., HPCExecutor]) -> None:
    executor = new_executor(1)
    assert outcome(executor.options(output_limit=2**70).submit(pow, 2, 3)) == 8


# ---- names, and what is refused


@CALL_AND_PROGRAM
def test_the_name_is_in_every_error_and_in_the_display(executor: HPCExecutor, of: str) -> None:
    view = executor.options(name="case 7/b", stderr=CAPTURE)
    died = view.submit(os.abort) if of == "call" else view.submit(Program(["/nowhere/at/all"]))
    late = view.options(time_limit=0.1).submit(Program(["sleep", "600"]))
    assert died.name == late.name == "case 7/b"
    assert repr(died).startswith(f"<TaskFuture {died.task_id} 'case 7/b' ")
    assert f"task {died.task_id} (case 7/b)" in str(error_of(died))
    assert f"task {late.task_id} (case 7/b)" in str(error_of(late))
    assert error_of(late).task == "case 7/b"


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"timeout": 3}, OptionTypeError, ["'timeout'", "'time_limit'"]),
        ({"mem": "4GiB"}, OptionTypeError, ["'mem'", "'memory'"]),
        ({"memory": "4 gigs"}, OptionValueError, ["memory='4 gigs'"]),
        ({"retries": 1.5}, OptionTypeError, ["retries=1.5"]),
        ({"time_limit": "10:30"}, OptionValueError, ["time_limit='10:30'"]),
        ({"crash_limit": -1}, OptionValueError, ["crash_limit=-1"]),
        ({"env": {"A": 1}}, OptionTypeError, ["option env", "'A'"]),
        ({"stdout": None}, OptionTypeError, ["stdout=None"]),
        ({"name": "good", "cwd": ""}, OptionValueError, ["cwd=''"]),
    ],
    ids=str,
)
def test_wrong_options_fail_at_once_with_the_name_of_the_option(
    executor: HPCExecutor, wrong: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    for tasks in (executor, executor.options(name="a view")):
        with pytest.raises(error) as caught:
            tasks.options(**wrong)
        assert isinstance(caught.value, TypeError if error is OptionTypeError else ValueError)
        assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("option", "value"),
    [("cwd", "/tmp/\udcff"), ("stdout", "/tmp/\udcff"), ("env", {"PASSWORD": "secret\udcff"})],
    ids=["cwd", "stdout", "env"],
)  # fmt: skip
def test_text_that_cannot_be_sent_is_refused_with_the_name_of_the_option_and_without_secrets(
    executor: HPCExecutor, option: str, value: Any
) -> None:
    with pytest.raises(OptionValueError) as caught:
        executor.options(**{option: value})
    assert f"option {option}" in str(caught.value)
    assert "secret" not in str(caught.value)
