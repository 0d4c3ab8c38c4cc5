"""Job definition files: what they say, how they are written, and what is told about those that make no sense.

``jobfiles/`` has the examples of HyperQueue's manual, and ``jobfiles/errors/`` a file for each error. In such a file
the comment ``#! KEY | TEXT`` marks the line where the error is, and says what it tells.
"""
# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pools import new_executor

from executor import (
    CAPTURE,
    DEVNULL,
    FORWARD,
    HPCExecutor,
    Job,
    JobError,
    JobFileError,
    OutputFile,
    Program,
    Resources,
)
from executor.jobs.job import Array, Task
from executor.jobs.jobfile import JOB_KEYS, parse_job
from executor.jobs.jobfile_requests import REQUEST_KEYS
from executor.jobs.jobfile_tasks import ARRAY_KEYS, TASK_KEYS
from executor.jobs.jobfile_writer import render_job
from executor.options import TaskOptions, make_options

pytestmark = pytest.mark.shared

#: On a machine under load, generating jobs takes its time.
PROPERTY = settings(
    derandomize=True, database=None, deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow]
)
FILES = Path(__file__).parent / "jobfiles"
ERRORS = sorted((FILES / "errors").glob("*.toml"))
_MARK = re.compile(r"#! (\S*) ?\| (.*?)\"*$", re.MULTILINE)
New = Callable[..., HPCExecutor]


def parse(text: str) -> Job:
    return parse_job(text, new=Job)


def only(text: str) -> Task:
    """The task of a job that has one."""
    (task,) = parse(text).tasks
    return task


def task_with(line: str) -> Task:
    return only(f'[[task]]\ncommand = ["true"]\n{line}\n')


def final(task: Task) -> TaskOptions:
    return make_options(TaskOptions(), **task.options)


# ---- errors


@pytest.mark.parametrize("path", ERRORS, ids=lambda path: path.stem)
def test_an_error_tells_file_line_key_and_what_to_do(path: Path) -> None:
    text = path.read_text()
    mark = _MARK.search(text)
    assert mark
    with pytest.raises(JobFileError) as caught:
        Job.from_file(path)
    error = caught.value
    assert (error.file, error.line, error.key) == (str(path), text.count("\n", 0, mark.start()) + 1, mark[1])
    assert str(error).startswith(f"{path}, line {error.line}")
    assert mark[2].strip() in str(error)


def test_an_error_is_a_job_error_and_pickles() -> None:
    with pytest.raises(JobError) as caught:
        Job.from_file(FILES / "errors" / "id_twice.toml")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy), vars(copy)) == (JobFileError, str(caught.value), vars(caught.value))
    assert copy.line == 5


def test_an_error_shows_no_value_of_a_variable() -> None:
    with pytest.raises(JobFileError) as caught:
        Job.from_file(FILES / "errors" / "variable_is_a_number.toml")
    assert "12345" not in str(caught.value)


def test_a_file_that_is_not_utf8_is_refused_in_the_line_of_the_first_such_byte(tmp_path: Path) -> None:
    path = tmp_path / "latin1.toml"
    path.write_bytes(b'[[task]]\ncommand = ["echo", "gr\xfc\xdfe"]\n')
    with pytest.raises(JobFileError, match="0xfc is not UTF-8") as caught:
        Job.from_file(path)
    assert caught.value.line == 2


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Job.from_file(tmp_path / "none.toml")


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes(b'\xef\xbb\xbf[[task]]\r\ncommand = ["true"]\r\n')
    assert Job.from_file(path) == parse('[[task]]\ncommand = ["true"]')


#: What may be put into a file in one place or another.
FRAGMENTS = [
    "", '"', "'", '"""', "[", "]", "{", "}", "[[", "]]", "=", ".", ",", "#", "\n", " ", "-", "0", "1e9", "inf", "true",
    "[[task]]", "[array]", "[task]", "[[task.request]]", "[task.env]", "\nid = 0\n", "\ndeps = [0]\n", "\nname = 'a'\n",
    "1979-05-27 07:32:00", "\\u0000", "\\ud800", "\0", "\ufeff", "%{X}", "all", ":rm-if-finished", "none",
    "\nx.y = 1\n",
]  # fmt: skip


@settings(PROPERTY, max_examples=100)
@given(
    st.sampled_from([path.read_text() for path in sorted(FILES.rglob("*.toml"))]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 9), st.sampled_from(FRAGMENTS)), min_size=1, max_size=4),
)
def test_whatever_is_in_a_file_is_a_job_or_an_error_that_says_where(
    text: str, changes: list[tuple[int, int, str]]
) -> None:
    for start, removed, fragment in changes:
        text = text[:start] + fragment + text[start + removed:]
    try:
        assert len(parse(text))
    except JobFileError as error:
        assert 1 <= error.line <= len(text.splitlines()) + 1
        assert str(error).startswith(f"<text>, line {error.line}")


# ---- what a file says


def test_an_array_has_requests_and_tables_as_tasks_have() -> None:
    text = """
        [array]
        ids = "1-2"
        command = ["true"]
        [array.env]
        A = "1"
        [[array.request]]
        resources.cpus = 2
        [[array.request]]
        [array.request.resources]
        gpus = 1
    """
    assert only(text).options["resources"] == [Resources(cpus=2), Resources(cpus=1, gpus=1)]
    assert only(text).options["env"] == {"A": "1"}


def test_every_key_becomes_what_python_would_say() -> None:
    job = parse(
        """
        name = "study"
        max_fails = 2
        stream = "logs/%{JOB_ID}"
        cwd = "runs"
        env = { A = "1" }

        [[task]]
        id = 4
        name = "mesh"
        command = ["mesher", "case.geo"]
        stdin = "yes"
        check = false
        env = { B = "2" }
        cwd = "mesh"
        stdout = "out-%{TASK_ID}"
        stderr = { path = "err", on_close = "rm-if-finished" }
        pin = "taskset"
        task_dir = true
        time_limit = "1m 10s"
        priority = -1
        crash_limit = "never-restart"
        retries = { oom = 2 }
        memory_on_oom = 1.5
        enforce_memory = false
        output_limit = "1MiB"
        inputs = { "data.csv" = "/shared/data.csv" }
        outputs = { "out.csv" = "results/out.csv" }
        [[task.request]]
        resources = { cpus = "4 compact!", "gpus/nvidia" = 0.5, mem = 2048, foo = "1.5" }
        time_request = "00:10:00"
        weight = 2
        [[task.request]]
        n_nodes = 2

        [[task]]
        command = ["solver"]
        deps = ["mesh", 6]

        [[task]]
        id = 6
        command = ["true"]
        """
    )
    same = Job("study", max_fails=2, stream="logs/%{JOB_ID}", cwd="runs", env={"A": "1"})
    same.program(
        Program(["mesher", "case.geo"], stdin="yes", check=False), id=4, name="mesh", env={"B": "2"}, cwd="mesh",
        stdout="out-%{TASK_ID}", stderr=OutputFile("err", True), pin="taskset", task_dir=True, time_limit=70,
        priority=-1, crash_limit=0, retries={"oom": 2}, memory_on_oom=1.5, enforce_memory=False, output_limit=2**20,
        inputs={"data.csv": "/shared/data.csv"}, outputs={"out.csv": "results/out.csv"},
        resources=[
            Resources(cpus="4 compact!", memory="2GiB", time_request=600, resources={"gpus/nvidia": 0.5, "foo": "1.5"}),
            Resources(nodes=2),
        ],
    )  # fmt: skip
    same.program(["solver"], id=7, deps=["mesh", 6])
    same.program(["true"], id=6)
    assert job == same


def test_an_array_has_ids_and_entries() -> None:
    array = only('[array]\nids = "1,5-6"\nentries = ["a", "b", "c"]\nmax_concurrent = 2\ncommand = ["true"]')
    assert isinstance(array, Array)
    assert (array.ids, array.entries, array.max_concurrent) == ([1, 5, 6], ["a", "b", "c"], 2)


def test_an_array_of_entries_alone_counts_from_zero() -> None:
    assert list(only('[array]\nentries = ["a", "b"]\ncommand = ["true"]').ids) == [0, 1]


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ([None, None, None], [0, 1, 2]),
        ([10, 11, 2], [10, 11, 2]),
        ([None, 10, None], [11, 10, 12]),
        ([0, None], [0, 1]),
    ],
)
def test_tasks_without_an_id_come_after_the_largest_that_is_given(given: list[int | None], ids: list[int]) -> None:
    heads = ["" if each is None else f"id = {each}" for each in given]
    job = parse("\n".join(f'[[task]]\n{head}\ncommand = ["true"]' for head in heads))
    assert [task.id for task in job.tasks] == ids


def test_a_dependency_may_be_on_a_later_task() -> None:
    job = parse('[[task]]\ncommand = ["a"]\ndeps = [1]\n[[task]]\ncommand = ["b"]')
    assert [task.id for task in job.check()] == [1, 0]


def test_a_job_with_an_empty_name_has_none() -> None:
    assert parse('name = ""\n[[task]]\ncommand = ["true"]').name is None


@pytest.mark.parametrize(
    ("line", "stdout"),
    [
        ("", "%{CWD}/job-%{JOB_ID}/%{TASK_ID}.stdout"),
        ('stdout = "none"', DEVNULL),
        ('stdout = "a.txt"', "a.txt"),
        ('stdout = "a.txt:rm-if-finished"', OutputFile("a.txt", True)),
        ('stdout = { path = "a.txt" }', "a.txt"),
        ('stdout = { path = "none" }', "none"),
        ('stdout = { path = "a.txt", mode = "none" }', "a.txt"),
        ('stdout = { path = "a.txt", mode = "rm-if-finished" }', OutputFile("a.txt", True)),
        ('stdout = { path = "a.txt", on_close = "rm-if-finished" }', OutputFile("a.txt", True)),
        ('stdout = { mode = "capture" }', CAPTURE),
        ('stdout = { mode = "forward" }', FORWARD),
        ('stdout = { mode = "inherit" }', None),
    ],
)
def test_output_goes_where_the_file_says(line: str, stdout: Any) -> None:
    assert task_with(line).options.get("stdout") == stdout


def test_the_output_of_a_job_with_a_stream_is_streamed_unless_a_task_has_a_file() -> None:
    task = only('stream = "logs"\n[[task]]\ncommand = ["true"]\nstderr = "err"')
    assert {key: task.options.get(key) for key in ("stdout", "stderr")} == {"stdout": None, "stderr": "err"}


@pytest.mark.parametrize(
    ("line", "option", "value"),
    [
        ('time_limit = "500ms"', "time_limit", 0.5),
        ('time_limit = "2h"', "time_limit", 7200),
        ('time_limit = "01:30:00"', "time_limit", 5400),
        ("time_limit = 90", "time_limit", 90),
        ('crash_limit = "unlimited"', "crash_limit", 2**63 - 1),
        ("crash_limit = 12", "crash_limit", 12),
        ('pin = "none"', "pin", None),
        ('pin = "omp"', "pin", "omp"),
    ],
)
def test_words_and_durations_mean_what_they_mean_in_python(line: str, option: str, value: Any) -> None:
    task = task_with(line)
    assert option in task.options
    assert getattr(final(task), option) == value


@pytest.mark.parametrize(
    ("request_", "resources"),
    [
        ("resources = { gpus = 1 }", Resources(gpus=1, cpus=1)),
        ("resources = { cpus = 0, gpus = 1 }", Resources(gpus=1, cpus=0)),
        ('resources = { cpus = "all" }', Resources(cpus="all")),
        ("resources = { mem = 1.5 }", Resources(memory=3 * 2**19)),
        ('resources = { mem = "100" }', Resources(memory="100MiB")),
        ('resources = { mem = "all" }', Resources(memory="all")),
        ('resources = { memory = "8GiB" }', Resources(memory="8GiB")),
        ("", Resources()),
        ("n_nodes = 3\ntime_request = '1h'", Resources(nodes=3, time_request="1h")),
    ],
)
def test_a_request_asks_for_what_the_options_would(request_: str, resources: Resources) -> None:
    assert task_with(f"[[task.request]]\n{request_}").options["resources"] == [resources]


# ---- warnings


def warnings(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    with caplog.at_level(logging.WARNING, "executor"):
        parse(text)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("line", "warning"),
    [
        ('stdout = "%{TASKID}.txt"', "%{TASKID} stays as it is; did you mean 'TASK_ID'? Here"),
        ('stderr = "%{task_id}:rm-if-finished"', "%{task_id} stays as it is; did you mean 'TASK_ID'?"),
        ('cwd = "%{CWD}/x"', "%{CWD} stays as it is. Here %{JOB_ID}, %{SUBMIT_DIR}, %{TASK_ID}, %{INSTANCE_ID} are"),
    ],
)
def test_a_placeholder_that_nothing_replaces_is_warned_of(
    caplog: pytest.LogCaptureFixture, line: str, warning: str
) -> None:
    (message,) = warnings(caplog, f'[[task]]\ncommand = ["true"]\n{line}')
    assert warning in message
    assert message.startswith("<text>, line 3, in [[task]]: ")


def test_placeholders_that_are_replaced_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    names = "%{JOB_ID} %{SUBMIT_DIR} %{TASK_ID} %{INSTANCE_ID}"
    task = f'[[task]]\ncommand = ["true", "%{{X}}"]\ncwd = "{names}"\nstdout = "{names} %{{CWD}}"'
    assert warnings(caplog, 'stream = "%{JOB_ID}"\n' + task) == []


def test_a_stream_knows_nothing_of_tasks(caplog: pytest.LogCaptureFixture) -> None:
    (message,) = warnings(caplog, 'stream = "%{TASK_ID}"\n[[task]]\ncommand = ["true"]')
    assert "%{TASK_ID} stays as it is. Here %{JOB_ID}, %{SUBMIT_DIR} are replaced" in message


@pytest.mark.parametrize(
    ("lines", "warned"),
    [
        ("", 0),
        ('stdout = "out"', 1),
        ('stdout = "out"\nstderr = "err:rm-if-finished"', 2),
        ('stdout = "out"\ncwd = "%{TASK_ID}"', 0),
        ('stdout = "%{CWD}/out"\ncwd = "%{TASK_ID}"', 0),
        ('stdout = "/out"\ncwd = "%{TASK_ID}"', 1),
        ('stdout = "none"', 0),
    ],
)
def test_an_array_whose_tasks_write_to_one_file_is_warned_of(
    caplog: pytest.LogCaptureFixture, lines: str, warned: int
) -> None:
    messages = warnings(caplog, f'[array]\nids = "1-3"\ncommand = ["true"]\n{lines}')
    assert len(messages) == warned
    assert all("all tasks of the array have this file; put %{TASK_ID} into it" in each for each in messages)


# ---- writing


def reread(job: Job) -> Job:
    return parse(render_job(job))


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
paths = words | words.map(Path) | st.sampled_from(["none", "a:rm-if-finished", "%{CWD}/%{TASK_ID}"])
variables = st.dictionaries(words.filter(lambda word: "=" not in word), words, max_size=3)
counts = st.integers(0, 2**40)
seconds = st.floats(0.0001, 1e9) | st.integers(1, 10**9) | st.sampled_from(["1m 10s", timedelta(days=1, seconds=1)])
outputs = paths | st.sampled_from([CAPTURE, DEVNULL, FORWARD]) | st.builds(OutputFile, words, st.booleans())
amounts = (
    st.integers(0, 10**9) | st.floats(0, 1e6) | st.sampled_from(["all", "1.5", "4 compact!", "2.25 scatter", "tight"])
).filter(lambda amount: amount != "tight")
sizes = st.integers(0, 2**50) | st.sampled_from(["all", "1.5GiB", "3 MB"])
asked = {"cpus": amounts, "gpus": amounts, "memory": sizes, "time_request": seconds,
         "resources": st.dictionaries(st.sampled_from(["foo", "gpus/nvidia", "A1"]), amounts)}
resources = st.builds(Resources, **asked) | st.builds(Resources, nodes=st.integers(1, 9), time_request=seconds)
needs = st.fixed_dictionaries({}, optional=asked) | st.fixed_dictionaries(
    {"resources": resources | st.lists(resources, min_size=1, max_size=3)}
)
said = st.fixed_dictionaries({}, optional={
    "env": variables, "cwd": paths, "stdout": outputs, "stderr": outputs, "time_limit": seconds,
    "priority": st.integers(-(2**31), 2**31), "pin": st.sampled_from(["omp", "taskset", None]),
    "retries": counts | st.dictionaries(st.sampled_from(["exit", "oom", "timeout", "start"]), counts),
    "crash_limit": counts | st.sampled_from(["unlimited", "never-restart"]), "enforce_memory": st.booleans(),
    "memory_on_oom": st.floats(1.001, 1e9), "output_limit": counts | st.just("4MiB"), "task_dir": st.booleans(),
    "inputs": st.dictionaries(words.map("in-{}".format), paths, max_size=2),
    "outputs": st.dictionaries(words.map("out-{}".format), paths, max_size=2),
})  # fmt: skip
options = st.builds(lambda these, those: these | those, said, needs)
stdins = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
programs = st.builds(Program, st.lists(words, min_size=1, max_size=4), stdin=stdins, check=st.booleans())
empty_jobs = st.builds(
    Job, st.none() | words, max_fails=st.none() | st.integers(0, 2**32 - 1), cwd=st.none() | paths, env=variables,
    stream=st.none() | paths,
)  # fmt: skip


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Jobs of programs, each of which depends on some that come before it, by task, name or number."""
    job = draw(empty_jobs)
    names = draw(st.lists(st.none() | words, min_size=1, max_size=4, unique_by=lambda name: name or object()))
    ids = draw(st.lists(st.integers(0, 2**32 - 1), min_size=len(names), max_size=len(names), unique=True))
    for name, number in zip(names, draw(st.sampled_from([ids, range(len(names))])), strict=True):
        known = [each for task in job.tasks for each in (task, task.id, task.name) if each is not None]
        deps = draw(st.lists(st.sampled_from(known), max_size=2, unique=True)) if known else []
        job.program(draw(programs), id=number, name=name, deps=deps, **draw(options))
    return job


@st.composite
def array_jobs(draw: st.DrawFn) -> Job:
    """Jobs of one array."""
    job = draw(empty_jobs)
    ids = draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5, unique=True))
    entries = draw(st.none() | st.lists(words, min_size=len(ids), max_size=len(ids)))
    job.array(
        draw(programs), ids=draw(st.sampled_from([ids, range(len(ids))])), entries=entries,
        max_concurrent=draw(st.none() | st.integers(1, 99)), name=draw(st.none() | words), **draw(options),
    )  # fmt: skip
    return job


@PROPERTY
@given(jobs() | array_jobs())
def test_a_job_that_is_written_reads_back_as_an_equal_one(job: Job) -> None:
    text = render_job(job)
    again = parse(text)
    assert again == job
    assert render_job(again) == text


@pytest.mark.parametrize("path", sorted(FILES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_of_the_manual_read_back_as_they_are_written(path: Path, tmp_path: Path) -> None:
    job = Job.from_file(path)
    job.to_file(tmp_path / "again.toml")
    assert Job.from_file(tmp_path / "again.toml") == job


def test_losses_that_are_said_by_retries_are_written_as_a_crash_limit() -> None:
    job = _with(retries={"lost": 3, "oom": 1})
    assert {"retries = { oom = 1 }", "crash_limit = 3"} <= set(render_job(job).splitlines())
    assert reread(job) == job


def test_jobs_that_say_something_else_are_not_equal() -> None:
    said: list[dict[str, Any]] = [
        {}, {"cpus": 1}, {"cpus": 2}, {"priority": 0}, {"stdout": "a"}, {"stdout": OutputFile("a", True)},
        {"stdout": CAPTURE}, {"cwd": "a"}, {"pin": None}, {"retries": 1}, {"retries": {"lost": 1}},
    ]  # fmt: skip
    jobs = []
    for options in said:
        jobs.append(Job())
        jobs[-1].program(["true"], **options)
    assert all((one == other) == (one is other) for one in jobs for other in jobs)


def test_a_file_is_written_in_words_of_hyperqueue() -> None:
    job = Job("study", max_fails=3)
    mesh = job.program(["mesher"], name="mesh", stdout="mesh.txt", stderr=DEVNULL, time_limit=70)
    job.program(["solver"], deps=[mesh], cpus=4, memory="8GiB", stdout=OutputFile("a", True), stderr="b", crash_limit=0)
    assert render_job(job) == """\
name = "study"
max_fails = 3

[[task]]
name = "mesh"
command = ["mesher"]
stdout = "mesh.txt"
stderr = "none"
time_limit = "1m 10s"

[[task]]
deps = [0]
command = ["solver"]
stdout = { path = "a", on_close = "rm-if-finished" }
stderr = "b"
crash_limit = "never-restart"

[[task.request]]
resources = { cpus = 4, mem = 8192 }
"""


def _with(**options: Any) -> Job:
    job = Job()
    job.program(options.pop("argv", ["true"]), name="step", **options)
    return job


def _function() -> Job:
    job = Job()
    job.function(len, args=["abc"], name="step")
    return job


def _array_and_task() -> Job:
    job = Job()
    job.array(["true"], ids="0-3", name="step")
    job.program(["true"])
    return job


def _unset_for_all() -> Job:
    job = Job(env={"A": None})
    job.program(["true"])
    return job


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (_function, "step is the function <built-in function len>, and a job file has programs only"),
        (_array_and_task, "step is not alone in its job, and a job file has tasks or one array"),
        (lambda: _with(stdin=b"a"), "step has stdin=b'a', and in a job file it can be text"),
        (lambda: _with(stdin=Path("/a")), "step has stdin=PosixPath('/a'), and in a job file it can be text"),
        (lambda: _with(env={"A": None}), "step unsets the variable 'A', which no job file can say"),
        (_unset_for_all, "the job unsets the variable 'A', which no job file can say"),
        (lambda: _with(time_limit=None), "step has time_limit=None, which no job file can say"),
        (lambda: _with(after=()), "step has after=(), which no job file can say"),
        (lambda: _with(argv=["\udcff"]), "step: '\\udcff' is not UTF-8 text"),
        (lambda: _with(resources={"mem": 1}), "step needs the resource 'mem', which is memory in a job file"),
        (Job, "the job 'job' has no tasks"),
    ],
)
def test_what_no_file_can_say_is_refused(make: Callable[[], Job], problem: str, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=re.escape(problem)):
        make().to_file(tmp_path / "job.toml")
    assert not (tmp_path / "job.toml").exists()


# ---- running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of who submits."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


MACHINE = {"cpus": 4, "gpus/nvidia": 2, "foo": "sum(2)"}


@pytest.mark.parametrize("path", sorted(FILES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_of_the_manual_run(new_executor: New, folder: Path, path: Path) -> None:
    text = path.read_text().replace('"sleep"', '"echo"')
    job = parse(text)
    submitted = new_executor(None, resources=MACHINE).submit_job(job)
    assert submitted.wait(30)
    assert submitted.counts() == {"finished": len(job)}
    if path.stem == "configured":
        assert (folder / "testout-0").read_text() == "123\n"
    else:
        assert (folder / f"job-{submitted.id}" / f"{job.tasks[0].id}.stdout").read_text() == "1\n"


def test_a_task_of_a_file_has_the_variables_of_hyperqueue(new_executor: New, folder: Path) -> None:
    job = parse("""
        [array]
        ids = "3,7"
        entries = ["one", "two words"]
        command = ["sh", "-c", 'echo "$HQ_JOB_ID/$HQ_TASK_ID/$HQ_ENTRY/$HQ_SUBMIT_DIR"; cat']
        stdin = "said"
        stdout = "%{TASK_ID}-of-%{JOB_ID}.txt"
    """)
    assert new_executor(2).submit_job(job).wait(30)
    assert (folder / "3-of-1.txt").read_text() == f"1/3/one/{folder}\nsaid"
    assert (folder / "7-of-1.txt").read_text() == f"1/7/two words/{folder}\nsaid"


def test_a_task_runs_after_those_that_it_depends_on(new_executor: New, folder: Path) -> None:
    job = parse("""
        [[task]]
        command = ["sh", "-c", "cat one two > all"]
        deps = ["two", 1]
        [[task]]
        command = ["sh", "-c", "echo 1 > one"]
        [[task]]
        name = "two"
        command = ["sh", "-c", "cat one > two"]
        deps = [1]
    """)
    assert new_executor(2).submit_job(job).wait(30)
    assert (folder / "all").read_text() == "1\n1\n"


# ---- the page about them

PAGE = Path(__file__).parent.parent / "docs" / "job-files.md"


@pytest.mark.parametrize("text", re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
def test_the_files_on_the_page_are_right(text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert parse(text).check()
    assert not caplog.records


def test_the_tables_on_the_page_name_all_keys() -> None:
    named = set()
    in_table = False
    for line in PAGE.read_text().splitlines():
        in_table = line.startswith("| key |") or (in_table and line.startswith("|"))
        named |= set(re.findall(r"`(\w+)`", line.split("|")[1])) if in_table else set()
    assert named == {*JOB_KEYS, *TASK_KEYS, *ARRAY_KEYS, *REQUEST_KEYS}
