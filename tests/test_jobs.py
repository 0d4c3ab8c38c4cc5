"""Jobs as they are written: what is refused, what depends on what, and the numbers of arrays. Nothing runs here."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor import Job, JobError, OptionTypeError, OptionValueError, Program
from executor.jobs.ids import MOST_IDS, parse_ids, render_ids
from executor.jobs.job import Array, Task

pytestmark = pytest.mark.shared


def nothing(*args: Any) -> None: ...


# ---- numbers of arrays


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("7", [7]),
        ("1,2,50-53", [1, 2, 50, 51, 52, 53]),
        (" 1 , 3 - 5 ", [1, 3, 4, 5]),
        ("0-10:5", [0, 5, 10]),
        ("0-9:5", [0, 5]),
        ("5-5", [5]),
        ("1_000-1_002", [1000, 1001, 1002]),
        ("9,3", [9, 3]),
        ("4294967295", [2**32 - 1]),
    ],
)
def test_numbers_are_read_as_hyperqueue_reads_them(text: str, ids: list[int]) -> None:
    assert parse_ids(text) == ids


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "expected numbers and ranges"),
        ("1,,2", "expected numbers and ranges"),
        ("-3", "expected numbers and ranges"),
        ("1-", "expected numbers and ranges"),
        ("one", "not 'one'"),
        ("1__0", "not '1__0'"),
        ("5:2", "has a step and no end"),
        ("9-3", "write 3-9"),
        ("1-5:0", "from 1 to 4"),
        ("5-5:1", "from 1 to 0"),
        ("1-3:3", "from 1 to 2"),
        ("1-5,3", "the ranges 1-5 and 3 overlap"),
        ("0-8:2,3-5", "the ranges 0-8:2 and 3-5 overlap"),
        ("4294967296", "4294967295 at most"),
        (f"0-{MOST_IDS}", "make several arrays"),
    ],
)
def test_what_are_no_numbers_is_refused_with_the_part_that_is_wrong(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_ids(text)


@given(st.lists(st.integers(0, 300), min_size=1, unique=True))
@settings(derandomize=True, database=None, deadline=None)
def test_what_is_written_is_read_as_the_same_numbers(ids: list[int]) -> None:
    assert parse_ids(render_ids(ids)) == ids


def test_numbers_in_a_row_are_written_as_a_range() -> None:
    assert render_ids([1, 2, 3, 7, 9, 8]) == "1-3,7,9,8"
    assert render_ids(range(100_000)) == "0-99999"


# ---- writing


def test_tasks_have_numbers_in_the_order_in_which_they_are_written() -> None:
    job = Job()
    tasks = [job.program(["a"]), job.function(nothing), job.program(["b"], id=7), job.program(["c"])]
    assert [task.id for task in tasks] == [0, 1, 7, 8]
    assert job.array(["d"], ids="20-22").ids == [20, 21, 22]
    assert list(job.array(["e"], entries=["x", "y"]).ids) == [23, 24]
    assert len(job) == 9
    assert [task.id for task in job.tasks] == [0, 1, 7, 8, 20, 23]
    assert job.task(21) is job.tasks[4]


@pytest.mark.parametrize(
    ("write", "error", "why"),
    [
        (lambda job: job.program(["a"], name="one"), JobError, "there is a task 'one' in this job already"),
        (lambda job: job.program(["a"], id=0), JobError, "the id 0 is there twice"),
        (lambda job: job.array(["a"], ids="3,0"), JobError, "the id 0 is there twice"),
        (lambda job: job.array(["a"], ids=[4, 4]), JobError, "the id 4 is there twice"),
        (lambda job: job.program(["a"], id=-1), JobError, "from 0 to 4294967295"),
        (lambda job: job.program(["a"], id="x"), JobError, "expected a whole number"),
        (lambda job: job.program("a b"), TypeError, "never given to a shell"),
        (lambda job: job.program(Program(["a"]), stdin="x"), TypeError, "say it in the Program"),
        (lambda job: job.program(["a"], cpu=1), OptionTypeError, "did you mean 'cpus'"),
        (lambda job: job.program(["a"], cpus=-1), OptionValueError, "cpus=-1"),
        (lambda job: job.program(["a"], deps=[1.5]), TypeError, "expected tasks, names or numbers"),
        (lambda job: job.program(["a"], deps=None), TypeError, "deps=None: expected a list"),
        (lambda job: job.program(["a"], name=3), OptionTypeError, "name=3: expected text"),
        (lambda job: job.program(["a"], name=""), OptionValueError, "name='': expected text that is not empty"),
        (lambda job: job.function(nothing, args="ab"), TypeError, "args='ab': expected a list"),
        (lambda job: job.array(nothing, entries="ab"), TypeError, "entries='ab': expected a list"),
        (lambda job: job.array(nothing, entries=[job.task(0)]), TypeError, "is a task; only arguments of function"),
        (lambda job: job.array(["a"], ids=5), TypeError, "ids=5: expected a list"),
        (lambda job: job.function("a"), TypeError, "expected a function"),
        (lambda job: job.array(["a"]), JobError, "needs ids"),
        (lambda job: job.array(["a"], entries=[]), JobError, "without tasks"),
        (lambda job: job.array(["a"], ids="1-3", entries=["a"]), JobError, "3 ids has 1 entries"),
        (lambda job: job.array(["a"], entries=[1]), TypeError, "can only have text"),
        (lambda job: job.array(["a"], ids="1", max_concurrent=0), ValueError, "1 or more"),
        (lambda job: Job(max_fails=-1), ValueError, "0 or more"),
        (lambda job: Job(max_fails="1"), TypeError, "expected a whole number or None"),
        (lambda job: Job(env={"A": 1}), OptionTypeError, "env"),
    ],
)
def test_what_makes_no_sense_is_refused_where_it_is_written(write: Any, error: type[Exception], why: str) -> None:
    job = Job()
    job.program(["a"], name="one")
    with pytest.raises(error, match=why):
        write(job)
    assert len(job) == 1
    assert [task.name for task in job.check()] == ["one"]


def test_options_that_were_given_may_change_afterwards() -> None:
    job, env, args = Job(), {"A": "1"}, ["a", "b"]
    task = job.program(args, env=env)
    env["A"], args[0] = "2", "c"
    assert isinstance(task.body, Program)
    assert task.body.argv == ("a", "b")
    assert task.options["env"] == {"A": "1"}


# ---- the whole


def order(job: Job) -> list[str | None]:
    return [task.name for task in job.check()]


def test_each_task_comes_after_what_it_depends_on_whatever_was_written_first() -> None:
    job = Job()
    job.program(["a"], name="last", deps=["middle", 5])
    job.program(["b"], name="middle", deps=["first"])
    first = job.program(["c"], name="first")
    job.array(["d"], ids="5-6", name="array", deps=first)
    assert order(job) == ["first", "middle", "array", "last"]
    assert [each.name for each in job.needs(job.task(0))] == ["middle", "array"]
    alone = job.program(["e"], deps=0)
    assert job.needs(alone) == [job.task(0)]


def test_tasks_among_the_arguments_are_depended_on() -> None:
    job = Job()
    one, two, three = (job.function(nothing, name=name) for name in ("one", "two", "three"))
    all_of_them = job.function(nothing, args=[one, [(two,)]], kwargs={"x": {"y": three}}, deps=["one"])
    assert job.needs(all_of_them) == [one, two, three]


@pytest.mark.parametrize(
    ("deps", "why"),
    [
        ({"a": ["b"]}, "a depends on 'b', and the job has no such task"),
        ({"mesh": [], "b": ["mehs"]}, "did you mean 'mesh'"),
        ({"a": [9]}, "a depends on 9, and the job has no such task"),
        ({"a": ["a"]}, "depend on each other: a -> a"),
        ({"a": ["c"], "b": ["a"], "c": ["b"]}, "on each other: (a -> c -> b -> a|b -> a -> c -> b|c -> b -> a -> c);"),
    ],
)
def test_what_only_the_whole_shows_is_refused_by_its_name(deps: dict[str, list[Any]], why: str) -> None:
    job = Job()
    for name, needed in deps.items():
        job.program(["x"], name=name, deps=needed)
    with pytest.raises(JobError, match=why):
        job.check()


def test_a_task_of_another_job_is_nothing_to_depend_on() -> None:
    job, other = Job(), Job()
    job.program(["a"])
    foreign = other.program(["b"], name="foreign")
    job.program(["c"], deps=[foreign])
    with pytest.raises(JobError, match="task 1 depends on foreign, which is of another job"):
        job.check()


def test_a_job_without_tasks_cannot_run() -> None:
    with pytest.raises(JobError, match="the job 'empty' has no tasks"):
        Job("empty").check()


def test_a_chain_of_ten_thousand_is_put_in_order() -> None:
    job = Job()
    for number in range(10_000):
        job.program(["a"], deps=[number + 1] if number < 9_999 else [])
    assert [task.id for task in job.check()] == list(range(9_999, -1, -1))


@given(st.dictionaries(st.integers(0, 20), st.sets(st.integers(0, 20))))
@settings(derandomize=True, database=None, deadline=None)
def test_any_job_is_put_in_order_or_refused(deps: dict[int, set[int]]) -> None:
    job = Job()
    for number, needed in deps.items():
        job.program(["a"], id=number, deps=sorted(needed & deps.keys()))
    try:
        ordered = job.check()
    except JobError as error:
        assert "depend on each other" in str(error) or not deps
        return
    places = {task.id: place for place, task in enumerate(ordered)}
    assert sorted(places) == sorted(deps)
    assert all(places[need.id] < places[task.id] for task in ordered for need in job.needs(task))


# ---- equal jobs


def written(**changes: Any) -> Job:
    job = Job("study", max_fails=changes.get("max_fails", 2), env={"A": "1"})
    first = job.program(["a", changes.get("word", "b")], name="first", stdin="text")
    job.array(["c"], ids="1-3", deps=[first], cpus=changes.get("cpus", 2))
    return job


def test_jobs_with_the_same_content_are_equal() -> None:
    assert written() == written()
    assert written() != written(word="x")
    assert written() != written(cpus=3)
    assert written() != written(max_fails=None)
    assert written() != "a job"


def test_they_say_what_they_are() -> None:
    job = written()
    assert repr(job) == "<Job 'study': 4 tasks>"
    assert [task.title for task in job.tasks] == ["first", "array 1"]
    assert isinstance(job.tasks[1], Array)
    assert isinstance(job.tasks[0], Task)
