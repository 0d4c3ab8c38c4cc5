"""The exceptions: each travels with all that it knows, and is caught where its standard bases are."""

from __future__ import annotations

import concurrent.futures
import copy
import errno
import pickle
import subprocess
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cloudpickle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executor import errors
from executor.errors import (
    AgentFailed,
    BatchCommandFailed,
    DependencyFailed,
    EnvironmentFailed,
    ExecutorTerminated,
    InitializerFailed,
    JobError,
    JobFileError,
    ListenError,
    NetworkUnsafe,
    OptionTypeError,
    OptionValueError,
    OutputMissing,
    ProgramFailed,
    ProgramNotStarted,
    RemoteError,
    RemoteTraceback,
    SerializationError,
    StreamError,
    TaskDied,
    TaskKilled,
    TaskLost,
    TaskOutOfMemory,
    TaskTimeout,
    UnsatisfiableRequest,
    describe_end,
    with_stderr,
)

SETTINGS = settings(
    max_examples=50, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
WHERE = {"task": "fit", "host": "node7", "pid": 4711, "attempt": 2, "returncode": -9, "stderr": "last words"}


def examples() -> list[BaseException]:
    """One of each, made anew."""
    return [
        TaskDied("task 1 (fit) ended", **WHERE),
        TaskKilled("task 1 (fit) was killed", **WHERE),
        TaskOutOfMemory("task 1 (fit) was out of memory", **WHERE, peak=3 * 2**30, limit=2**31, by="agent"),
        DependencyFailed("task 2 (solve) did not run", task="solve", failed="fit", failed_id=1),
        UnsatisfiableRequest("no agent has so much", task="fit", resource="gpus", requested=4.0, most=0.5),
        TaskLost("task 1 was lost", task="fit", losses=6, crash_limit=5),
        EnvironmentFailed("no python"),
        InitializerFailed("the initializer raised"),
        AgentFailed("no agent"),
        ExecutorTerminated("terminated"),
        TaskTimeout("too long", task="fit", time_limit=2.5, stderr="still here"),
        ProgramFailed(3, ["mesher", "-n", "4"], "out", "err"),
        OutputMissing("no 'out.csv'", task="fit", missing=("out.csv",), found=("log",), stderr="oops"),
        ProgramNotStarted(errno.ENOENT, "no program 'mesher'", "mesher"),
        ListenError("all ports from 1 to 2 are in use"),
        BatchCommandFailed("sbatch ended with status 1", command=["sbatch"], returncode=1, output="no"),
        NetworkUnsafe("a connection without a key had an answer"),
        SerializationError("argument 0 cannot be pickled"),
        RemoteError("raised Odd: text", type_name="Odd", text="text", traceback="Traceback ..."),
        RemoteTraceback("Traceback ..."),
        OptionTypeError("there is no option 'x'"),
        OptionValueError("option retries=-1"),
        JobError("there are two tasks 'fit'", tasks=(1, 2)),
        JobFileError("study.toml, line 3: ...", file="study.toml", line=3, key="task.cpus"),
        StreamError("no stream files"),
    ]


def marked(error: BaseException) -> Any:
    return pytest.param(error, id=type(error).__name__)


def known(error: BaseException) -> tuple[Any, ...]:
    """All that an exception knows."""
    of_system = (error.errno, error.strerror, error.filename) if isinstance(error, OSError) else ()
    return type(error), str(error), repr(error), error.args, of_system, vars(error)


def test_there_is_an_example_of_each() -> None:
    assert {type(error).__name__ for error in examples()} == set(errors.__all__)


@pytest.mark.parametrize("travel", [
    pytest.param(lambda error: pickle.loads(pickle.dumps(error, 5)), id="pickle"),
    pytest.param(lambda error: pickle.loads(pickle.dumps(error, 2)), id="an old protocol"),
    pytest.param(lambda error: pickle.loads(cloudpickle.dumps(error)), id="cloudpickle"),
    pytest.param(copy.copy, id="copy"),
    pytest.param(copy.deepcopy, id="deepcopy"),
])  # fmt: skip
@pytest.mark.parametrize("error", [marked(error) for error in examples()])
def test_an_exception_travels_with_all_that_it_knows(error: BaseException, travel: Any) -> None:
    arrived = travel(error)
    assert arrived is not error
    assert known(arrived) == known(error)
    assert known(travel(arrived)) == known(error)


@pytest.mark.parametrize("error", [marked(error) for error in examples()])
def test_notes_and_attributes_of_others_travel_as_well(error: BaseException) -> None:
    error.add_note("seen on node7")
    error.ticket = 42
    arrived = pickle.loads(pickle.dumps(error))
    assert known(arrived) == known(error)
    assert arrived.__notes__ == ["seen on node7"]


TEXTS = st.text(max_size=50)
ATTRIBUTES = st.fixed_dictionaries(
    {}, optional={"task": TEXTS, "host": TEXTS, "pid": st.none() | st.integers(0), "attempt": st.integers(0),
                  "returncode": st.none() | st.integers(-64, 255), "stderr": TEXTS},
)  # fmt: skip


@SETTINGS
@given(st.sampled_from([TaskDied, TaskKilled, TaskOutOfMemory]), TEXTS, ATTRIBUTES)
def test_a_death_travels_with_whatever_it_knows(kind: type[TaskDied], text: str, attributes: dict[str, Any]) -> None:
    error = kind(text, **attributes)
    assert known(pickle.loads(pickle.dumps(error))) == known(error)
    assert str(error) == text
    assert {name: getattr(error, name) for name in attributes} == attributes


@SETTINGS
@given(
    st.integers(-64, 255), st.lists(TEXTS, min_size=1, max_size=3), st.none() | TEXTS, st.none() | TEXTS, st.booleans()
)  # fmt: skip
def test_a_failure_of_a_program_travels(
    returncode: int, argv: list[str], out: str | None, err: str | None, named: bool
) -> None:
    if named:
        error = ProgramFailed(returncode=returncode, cmd=argv, output=out, stderr=err)
    else:
        error = ProgramFailed(returncode, argv, out, err)
    assert known(pickle.loads(pickle.dumps(error))) == known(error)
    assert (error.returncode, error.cmd, error.stdout, error.stderr) == (returncode, argv, out, err)


@SETTINGS
@given(st.sampled_from([errno.ENOENT, errno.EACCES, errno.ENOEXEC]), TEXTS.filter(bool), TEXTS)
def test_a_program_that_was_not_started_travels(number: int, text: str, name: str) -> None:
    error = ProgramNotStarted(number, text, name)
    assert known(pickle.loads(pickle.dumps(error))) == known(error)
    assert (str(error), error.errno, error.filename) == (text, number, name)


@SETTINGS
@given(TEXTS, st.floats(0, 1e9), TEXTS)
def test_a_timeout_travels(text: str, limit: float, stderr: str) -> None:
    error = TaskTimeout(text, task="fit", time_limit=limit, stderr=stderr)
    assert known(pickle.loads(pickle.dumps(error))) == known(error)


@SETTINGS
@given(st.none() | st.integers(0), st.none() | st.integers(0), st.sampled_from(["agent", "kernel"]))
def test_an_end_by_lack_of_memory_travels(peak: int | None, limit: int | None, by: str) -> None:
    error = TaskOutOfMemory("x", **WHERE, peak=peak, limit=limit, by=by)
    assert known(pickle.loads(pickle.dumps(error))) == known(error)
    assert (error.peak, error.limit, error.by, error.signal) == (peak, limit, by, 9)


def test_a_failed_dependency_travels_without_the_future_which_belongs_to_its_process() -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    error = DependencyFailed("task 2 did not run", task="solve", failed="fit", failed_id=1, future=future)
    error.add_note("seen on node7")
    assert error.future is future
    for arrived in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert (str(arrived), arrived.task, arrived.failed, arrived.failed_id) == (str(error), "solve", "fit", 1)
        assert arrived.future is None
        assert arrived.__notes__ == ["seen on node7"]
    assert error.future is future


def test_the_cause_of_a_failed_dependency_is_the_error_of_the_other_task() -> None:
    first = TaskDied("task 1 (fit) ended", **WHERE)
    with pytest.raises(DependencyFailed) as caught:
        raise DependencyFailed("task 2 did not run", failed="fit", failed_id=1) from first
    assert caught.value.__cause__ is first


class Diagnosis(TaskDied):
    """A user's own subclass, with a signature of its own."""

    def __init__(self, patient: str, *, doctor: str) -> None:
        super().__init__(f"{patient} died", task=patient)
        self.doctor = doctor


def test_no_signature_of_a_subclass_can_break_the_pickle() -> None:
    error = Diagnosis("fit", doctor="who")
    assert known(pickle.loads(pickle.dumps(error))) == known(error)


# ---- what existing code catches


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (TaskDied, [BrokenProcessPool, concurrent.futures.BrokenExecutor, RuntimeError]),
        (TaskKilled, [TaskDied, BrokenProcessPool]),
        (TaskOutOfMemory, [TaskDied, BrokenProcessPool]),
        (TaskLost, [BrokenProcessPool]),
        (EnvironmentFailed, [BrokenProcessPool]),
        (InitializerFailed, [BrokenProcessPool]),
        (AgentFailed, [BrokenProcessPool]),
        (ExecutorTerminated, [BrokenProcessPool]),
        (TaskTimeout, [TimeoutError, concurrent.futures.TimeoutError]),
        (ProgramFailed, [subprocess.CalledProcessError]),
        (ProgramNotStarted, [OSError]),
        (SerializationError, [pickle.PicklingError, pickle.PickleError]),
        (RemoteError, [Exception]),
        (DependencyFailed, [Exception]),
        (OptionTypeError, [TypeError]),
        (OptionValueError, [ValueError]),
        (UnsatisfiableRequest, [ValueError]),
    ],
)
def test_an_exception_is_caught_by_what_existing_code_says(kind: type[BaseException], bases: list[Any]) -> None:
    assert all(issubclass(kind, base) for base in bases)
    assert issubclass(kind, Exception)


def test_the_error_of_one_task_is_none_of_another_kind() -> None:
    assert not issubclass(TaskTimeout, BrokenProcessPool)
    assert not issubclass(TaskLost, TaskDied)
    assert not issubclass(RemoteError, BrokenProcessPool)
    assert not issubclass(DependencyFailed, BrokenProcessPool)
    assert not issubclass(TaskOutOfMemory, TaskKilled)
    assert not issubclass(UnsatisfiableRequest, OptionValueError)


# ---- what they say


@pytest.mark.parametrize(
    ("returncode", "text"),
    [
        (None, "ended in an unknown way"),
        (0, "exited with status 0"),
        (3, "exited with status 3"),
        (-9, "was ended by signal 9 (SIGKILL)"),
        (-11, "was ended by signal 11 (SIGSEGV)"),
        (-63, "was ended by signal 63 (unknown signal)"),
    ],
)
def test_the_end_of_a_process_in_words(returncode: int | None, text: str) -> None:
    assert describe_end(returncode) == text


@pytest.mark.parametrize("stderr", ["", "\n", "\n\n\n"])
def test_an_empty_stderr_is_not_mentioned(stderr: str) -> None:
    assert with_stderr("it died", stderr) == "it died"


def test_the_last_lines_of_stderr_are_shown() -> None:
    stderr = "".join(f"line {number}\n" for number in range(100))
    shown = with_stderr("it died", stderr, lines=3)
    assert shown == "it died\nThe end of its stderr:\n  line 97\n  line 98\n  line 99"
    assert with_stderr("it died", stderr).endswith("line 99")
    assert with_stderr("it died", stderr).count("\n") < 50


@pytest.mark.parametrize(
    ("returncode", "signal", "exit_code"), [(None, None, None), (0, None, 0), (7, None, 7), (-9, 9, None)]
)
def test_a_death_is_by_signal_or_by_exit(returncode: int | None, signal: int | None, exit_code: int | None) -> None:
    error = TaskDied("x", returncode=returncode)
    assert (error.signal, error.exit_code) == (signal, exit_code)


def test_what_was_not_given_has_a_value_that_says_nothing() -> None:
    error = TaskDied()
    assert (str(error), error.task, error.host, error.pid, error.returncode, error.stderr) == (
        "",
        "",
        "",
        None,
        None,
        "",
    )
    assert (TaskLost().losses, TaskTimeout().time_limit, RemoteError().type_name) == (0, 0.0, "")
    assert (TaskOutOfMemory().peak, TaskOutOfMemory().limit, TaskOutOfMemory().by) == (None, None, "")
    assert (DependencyFailed().failed, DependencyFailed().failed_id, DependencyFailed().future) == ("", None, None)
    asked = UnsatisfiableRequest()
    assert (asked.task, asked.resource, asked.requested, asked.most) == ("", "", 0, 0)


def test_a_failed_program_says_its_command_line_and_its_last_words() -> None:
    text = str(ProgramFailed(2, ["mesher", "-n", "4"], "", "no such case\n"))
    assert text == (
        "the program 'mesher' exited with status 2; its command line: ['mesher', '-n', '4']\n"
        "The end of its stderr:\n  no such case"
    )
    assert "was ended by signal 15 (SIGTERM)" in str(ProgramFailed(-15, "mesher"))


def test_a_program_that_was_not_started_is_missing_or_is_not() -> None:
    assert ProgramNotStarted(errno.ENOENT, "x", "a").missing
    assert not ProgramNotStarted(errno.EACCES, "x", "a").missing
    assert str(ProgramNotStarted(errno.EACCES)) != ""
    assert str(ProgramNotStarted("only a text")) == "only a text"


def test_a_remote_traceback_is_shown_as_it_is() -> None:
    assert str(RemoteTraceback('\n"""\nTraceback\n"""')) == '\n"""\nTraceback\n"""'
