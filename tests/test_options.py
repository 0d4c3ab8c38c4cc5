import os
import pickle
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.core.needs import ONE_CPU
from executor.core.retries import Retries
from executor.errors import OptionTypeError, OptionValueError
from executor.future import TaskFuture
from executor.options import (
    CAPTURE,
    DEVNULL,
    FORWARD,
    OPTIONS,
    TaskOptions,
    make_options,
    parse_duration,
    parse_size,
    unknown_option,
)

DEFAULT = TaskOptions()
FIRST: Future = Future()
SECOND: Future = Future()
busy_machine = settings(deadline=None)  # to be slow is no failure


def refusal(**changes):
    """The text of the error; an OptionTypeError or OptionValueError that survives pickling."""
    with pytest.raises((OptionTypeError, OptionValueError)) as caught:
        make_options(DEFAULT, **changes)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy)) == (type(caught.value), str(caught.value))
    return str(caught.value)


# ---- the whole


def test_defaults_are_those_of_the_documentation():
    assert make_options(DEFAULT) == DEFAULT
    assert [getattr(DEFAULT, field.name) for field in fields(DEFAULT)] == [
        None, (), None, FORWARD, FORWARD, None, None, Retries(0, 0, 0, 0), 5, 4194304, (ONE_CPU,), 0, None, True, None,
        (), False, (), (), None, (),
    ]  # fmt: skip


def test_options_are_hashable_picklable_and_frozen():
    options = make_options(
        DEFAULT, name="n", env={"A": "1", "B": None}, stdout="out", time_limit="1m", cpus=2, memory="1GiB", retries=1
    )
    assert pickle.loads(pickle.dumps(options)) == options
    assert hash(pickle.loads(pickle.dumps(options))) == hash(options)
    with pytest.raises(AttributeError):
        options.retries = 1


def test_changes_make_new_options_and_leave_the_base_alone():
    base = make_options(DEFAULT, crash_limit=2, name="first")
    changed = make_options(base, name="second")
    assert (base.name, changed.name, changed.crash_limit) == ("first", "second", 2)


def test_an_unknown_option_is_refused_with_the_nearest_and_all_names():
    text = refusal(timelimit=5)
    assert "no option 'timelimit'" in text
    assert "did you mean 'time_limit'?" in text
    assert text.endswith(f"The options are: {', '.join(OPTIONS)}")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("timeout", "time_limit"), ("retry", "retries"), ("workdir", "cwd"), ("dir", "cwd"), ("cpu", "cpus"),
        ("mem", "memory"), ("n_nodes", "nodes"), ("deps", "after"), ("variants", "resources"), ("prio", "priority"),
        ("colour", ""), ("x", ""),
    ],
)
def test_an_unknown_option_names_a_right_word_only_if_one_is_near(wrong, right):
    assert (f"did you mean {right!r}?" if right else f"{wrong!r}. The options are") in refusal(**{wrong: 1})


def test_an_option_called_base_is_unknown_like_any_other():
    assert "no option 'base'" in refusal(base=1)


def test_whoever_has_more_options_names_them_all():
    text = str(unknown_option("cpu", ["cpus", "gpus"]))
    assert text == "there is no option 'cpu'; did you mean 'cpus'? The options are: cpus, gpus"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("name", 5), ("name", b"x"), ("env", ["A=1"]), ("env", "A=1"), ("env", {1: "x"}), ("env", {"A": 1}),
        ("env", {"A": b"x"}), ("cwd", 5), ("cwd", b"/tmp"), ("cwd", True), ("stdout", None), ("stdout", True),
        ("stderr", 7), ("stderr", b"/x"), ("time_limit", True), ("time_limit", b"1s"), ("time_limit", [1]),
        ("time_limit", 1j), ("retries", True), ("retries", 1.0), ("retries", "1"), ("retries", None),
        ("retries", {1: 1}), ("retries", {"oom": 1.5}), ("retries", {"oom": True}), ("retries", {"lost": None}),
        ("crash_limit", False), ("crash_limit", 0.5), ("crash_limit", None), ("output_limit", True),
        ("output_limit", 1e6), ("output_limit", None), ("priority", True), ("priority", 1.0), ("priority", "high"),
        ("priority", None), ("pin", True), ("pin", 1), ("enforce_memory", 1), ("enforce_memory", None),
        ("memory_on_oom", "2"), ("memory_on_oom", True), ("after", 1), ("after", "afterok"), ("after", [1]),
        ("after", [[FIRST]]), ("after", {"afterok": {"afterok": FIRST}}),
    ],
)  # fmt: skip
def test_a_value_of_a_wrong_type_is_refused_by_the_name_of_its_option(option, value):
    with pytest.raises(OptionTypeError, match=f"option {option}.*(expected|use str|convert|the classes are)"):
        make_options(DEFAULT, **{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("name", ""), ("name", "a\0b"), ("env", {"": "x"}), ("env", {"A=B": "x"}), ("env", {"A\0": "x"}),
        ("env", {"A": "x\0"}), ("cwd", ""), ("cwd", "a\0b"), ("stdout", ""), ("stdout", "a\0b"),
        ("stderr", subprocess.STDOUT), ("time_limit", 0), ("time_limit", "0s"), ("time_limit", -1),
        ("time_limit", float("nan")), ("time_limit", float("inf")), ("time_limit", 10**400),
        ("time_limit", "9" * 400 + "d"), ("time_limit", timedelta(seconds=-1)), ("time_limit", "soon"),
        ("time_limit", ""), ("retries", -1), ("retries", {"oom": -1}), ("retries", {"memory": 1}),
        ("crash_limit", -1), ("crash_limit", "never"), ("crash_limit", "3"), ("output_limit", -1),
        ("pin", "none"), ("pin", ""), ("memory_on_oom", 1), ("memory_on_oom", 0.5), ("memory_on_oom", -2),
        ("memory_on_oom", float("inf")), ("memory_on_oom", float("nan")), ("memory_on_oom", 10**400),
        ("after", {"ok": FIRST}), ("after", {"afterok": FIRST, "afternotok": FIRST}),
        ("output_limit", "much"), ("output_limit", "-1MiB"),
    ],
)  # fmt: skip
def test_a_value_that_makes_no_sense_is_refused_by_the_name_of_its_option(option, value):
    with pytest.raises(OptionValueError, match=f"option {option}"):
        make_options(DEFAULT, **{option: value})


def test_a_refusal_shows_the_value_and_what_was_expected():
    assert refusal(crash_limit=-1) == (
        "option crash_limit=-1: expected a whole number, 0 or more, such as 3, or 'never-restart', or 'unlimited'; "
        "it cannot be negative"
    )


def test_a_huge_value_is_shown_in_part():
    assert len(refusal(output_limit="x" * 10**6)) < 300


# ---- env


def test_env_is_merged_over_that_of_the_base():
    base = make_options(DEFAULT, env={"B": "1", "A": "1"})
    assert make_options(base, env={"B": None, "C": "2"}).env == (("A", "1"), ("B", None), ("C", "2"))


def test_env_none_forgets_what_the_base_has():
    assert make_options(make_options(DEFAULT, env={"A": "1"}), env=None).env == ()


def test_env_is_copied_and_its_order_does_not_matter():
    mine = {"B": "2", "A": "1"}
    options = make_options(DEFAULT, env=mine)
    mine["A"] = "changed"
    assert options == make_options(DEFAULT, env={"A": "1", "B": "2"})
    assert mine == {"B": "2", "A": "changed"}


def test_the_environment_itself_can_be_given():
    assert dict(make_options(DEFAULT, env=os.environ).env) == dict(os.environ)


def test_a_refusal_never_shows_what_the_environment_holds():
    assert "secret" not in refusal(env={"TOKEN": "secret\0"}) + refusal(env={"TOKEN": b"secret", "X": "secret"})
    assert "'TOKEN'" in refusal(env={"TOKEN": b"secret"})


# ---- paths and streams


def test_relative_paths_mean_the_directory_of_this_moment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = make_options(DEFAULT, cwd="run", stdout=Path("out.txt"), stderr="./err.txt")
    monkeypatch.chdir("/")
    paths = (options.cwd, options.stdout, options.stderr)
    assert paths == (f"{tmp_path}/run", f"{tmp_path}/out.txt", f"{tmp_path}/err.txt")
    assert all(type(path) is str for path in paths)


def test_a_link_before_two_dots_stays(tmp_path, monkeypatch):
    """``os.path.abspath`` would make another file of it."""
    monkeypatch.chdir(tmp_path)
    assert make_options(DEFAULT, stdout="link/../out").stdout == f"{tmp_path}/link/../out"


def test_a_relative_path_is_refused_if_the_directory_is_gone(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "give an absolute path" in refusal(cwd="run")
    assert make_options(DEFAULT, cwd="/run").cwd == "/run"


def test_cwd_and_name_and_time_limit_can_be_taken_back():
    base = make_options(DEFAULT, cwd="/", name="n", time_limit=1)
    assert make_options(base, cwd=None, name=None, time_limit=None) == DEFAULT


@pytest.mark.parametrize("stream", [FORWARD, CAPTURE, DEVNULL])
def test_streams_are_taken_as_they_are(stream):
    assert make_options(DEFAULT, stdout=stream, stderr=stream).stdout is stream


def test_the_constants_of_subprocess_are_understood():
    options = make_options(DEFAULT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert (options.stdout, options.stderr) == (CAPTURE, DEVNULL)


def test_subprocess_stdout_is_refused_with_the_way_to_mix_streams():
    assert "2>&1" in refusal(stderr=subprocess.STDOUT)


# ---- retries


@pytest.mark.parametrize(
    ("value", "retries"),
    [
        (0, Retries()),
        (2, Retries(exit=2, timeout=2, oom=2, start=2)),
        (np.int64(1), Retries(1, 1, 1, 1)),
        ({}, Retries()),
        ({"exit": 1, "timeout": 2, "oom": 3, "start": 4}, Retries(exit=1, timeout=2, oom=3, start=4)),
        ({"oom": 2}, Retries(oom=2)),
        ({"oom": 2, "lost": 1}, Retries(oom=2)),
    ],
)
def test_retries_are_counted_by_the_class_of_failure(value, retries):
    assert make_options(DEFAULT, retries=value).retries == retries


def test_retries_given_later_replace_all_earlier_ones():
    assert make_options(make_options(DEFAULT, retries=3), retries={"oom": 1}).retries == Retries(oom=1)


def test_the_class_lost_is_another_way_to_say_the_crash_limit():
    assert make_options(DEFAULT, retries={"lost": 2}).crash_limit == 2
    assert make_options(DEFAULT, retries={"lost": "unlimited"}).crash_limit == sys.maxsize
    assert make_options(make_options(DEFAULT, crash_limit=7), retries={"oom": 2}).crash_limit == 7
    assert refusal(retries={"lost": 2}, crash_limit=3) == (
        "option crash_limit=3: retries={'lost': 2} says the same by 'lost'; give it once"
    )


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("error", "exit"), ("time_limit", "timeout"), ("tmeout", "timeout"), ("OOM", ""), ("memory", "oom"),
     ("agent", "lost"), ("spawn", "start"), ("exits", "exit"), ("zzz", "")],
)  # fmt: skip
def test_an_unknown_class_of_failures_names_the_nearest_and_all(wrong, right):
    assert refusal(retries={wrong: 1}) == (
        f"option retries={{{wrong!r}: 1}}: there is no class {wrong!r} of failures"
        + (f"; did you mean {right!r}?" if right else ".")
        + " The classes are: exit, timeout, oom, lost, start"
    )


def test_a_wrong_count_names_its_class():
    assert refusal(retries={"oom": -1}) == (
        "option retries={'oom': -1}: -1 for 'oom': expected a whole number, 0 or more, such as 3; it cannot be negative"
    )
    assert refusal(retries=1.5) == (
        "option retries=1.5: expected a whole number, 0 or more, such as 3, or a mapping of classes of failures to "
        "such numbers: {'oom': 2}"
    )
    assert refusal(retries={1: 1}) == (
        "option retries={1: 1}: the class 1 of failures is not text; the classes are: exit, timeout, oom, lost, start"
    )


@pytest.mark.parametrize(
    ("value", "limit"), [(0, 0), (3, 3), ("never-restart", 0), ("unlimited", sys.maxsize), (np.int8(4), 4)]
)
def test_a_crash_limit_is_a_number_or_a_word(value, limit):
    assert make_options(DEFAULT, crash_limit=value).crash_limit == limit


def test_a_wrong_word_for_the_crash_limit_names_the_nearest():
    assert refusal(crash_limit="never") == (
        "option crash_limit='never': expected a whole number, 0 or more, such as 3, or 'never-restart', or "
        "'unlimited'; did you mean 'never-restart'?"
    )


@pytest.mark.parametrize(("value", "factor"), [(2, 2.0), (1.5, 1.5), (np.float32(1.25), 1.25), (None, None)])
def test_the_factor_after_out_of_memory_is_more_than_one(value, factor):
    assert make_options(make_options(DEFAULT, memory_on_oom=3), memory_on_oom=value).memory_on_oom == factor
    assert refusal(memory_on_oom=1) == (
        "option memory_on_oom=1: "
        "expected a finite number more than 1, such as 2, or None, which means that nothing grows"
    )


# ---- order and place


@pytest.mark.parametrize("value", [0, -5, 10**30, np.int16(3)])
def test_a_priority_is_any_whole_number(value):
    assert make_options(DEFAULT, priority=value).priority == value
    assert refusal(priority=1.5) == (
        "option priority=1.5: expected a whole number, such as 10 or -1; larger ones go first"
    )


@pytest.mark.parametrize("value", ["taskset", "omp", None])
def test_a_pin_is_one_of_two_words_or_none(value):
    assert make_options(make_options(DEFAULT, pin="omp"), pin=value).pin == value
    assert refusal(pin="none") == "option pin='none': expected 'taskset', 'omp' or None"


def test_memory_is_enforced_or_not():
    assert make_options(DEFAULT, enforce_memory=False).enforce_memory is False
    assert refusal(enforce_memory=1) == "option enforce_memory=1: expected True or False"


# ---- dependencies


@pytest.mark.parametrize(
    ("value", "pairs"),
    [
        (FIRST, [("afterok", FIRST)]),
        ([SECOND, FIRST, SECOND], [("afterok", SECOND), ("afterok", FIRST)]),
        ((each for each in (FIRST, SECOND)), [("afterok", FIRST), ("afterok", SECOND)]),
        ({"afterany": FIRST, "afternotok": (SECOND,)}, [("afterany", FIRST), ("afternotok", SECOND)]),
        ({"afterok": [FIRST], "afterany": [FIRST]}, [("afterok", FIRST), ("afterany", FIRST)]),
        ({"afterok": None}, []), ([], []), ({}, []), (None, []),
    ],
)  # fmt: skip
def test_futures_are_waited_for_under_a_condition(value, pairs):
    assert make_options(DEFAULT, after=value).after == tuple(pairs)


def test_the_futures_of_tasks_are_waited_for_as_any_others():
    task = TaskFuture(1, "fit", 0.0)
    assert make_options(DEFAULT, after=[task, FIRST]).after == (("afterok", task), ("afterok", FIRST))
    assert hash(make_options(DEFAULT, after=task)) == hash(make_options(DEFAULT, after=[task]))


def test_what_is_waited_for_is_copied_and_later_futures_replace_earlier_ones():
    mine = [FIRST]
    base = make_options(DEFAULT, after=mine)
    mine.append(SECOND)
    assert base.after == (("afterok", FIRST),)
    assert make_options(base, after={"afterany": SECOND}).after == (("afterany", SECOND),)
    assert make_options(base, name="same").after == base.after
    assert make_options(base, after=None).after == ()


def test_what_is_no_future_is_refused_with_what_was_expected():
    expected = "expected futures, as submit() returns them, or a mapping of conditions to futures"
    expected = f"{expected}: {{'afterany': [future]}}"
    assert refusal(after=1) == f"option after=1: {expected}"
    assert refusal(after=[1]) == f"option after=[1]: {expected}; 1 is of type int"
    assert refusal(after={1: FIRST}).endswith(
        "the condition 1 is not text; the conditions are: afterok, afterany, afternotok"
    )


@pytest.mark.parametrize(
    ("wrong", "right"), [("ok", "afterok"), ("any", "afterany"), ("after_ok", "afterok"), ("failed", "afternotok"),
                         ("zzz", "")],
)  # fmt: skip
def test_an_unknown_condition_names_the_nearest_and_all(wrong, right):
    assert refusal(after={wrong: []}) == (
        f"option after={{{wrong!r}: []}}: there is no condition {wrong!r}"
        + (f"; did you mean {right!r}?" if right else ".")
        + " The conditions are: afterok, afterany, afternotok"
    )


def test_no_future_has_to_give_a_result_and_to_fail():
    text = refusal(after={"afterok": FIRST, "afternotok": [SECOND, FIRST]})
    assert text.endswith("cannot both give a result (afterok) and fail (afternotok); write 'afterany'")


# ---- durations


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (90, 90), (0.5, 0.5), (np.int64(3), 3), (np.float32(0.5), 0.5), (timedelta(minutes=2), 120),
        ("1m 10s", 70), ("1m10s", 70), ("90s", 90), ("1.5h", 5400), ("2d", 172800), ("500ms", 0.5),
        (" 2 hours 3 min ", 7380), ("1day 1hr 1minute 1sec 1msec", 90061.001), ("5ms", 0.005), ("5min", 300),
        ("0s", 0), ("00:01:30", 90), ("100:00:00", 360000), ("2-03:04:05", 183845), ("00:00:00.25", 0.25),
    ],
)  # fmt: skip
def test_durations_are_read_as_people_write_them(value, seconds):
    assert parse_duration(value) == pytest.approx(seconds)
    assert type(parse_duration(value)) is float


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "s", "1", "1.5", "1x", "1m 1m", "1s 1m", "-1s", "1m, 1s", "1e3s", "1M", "01:60:00",
        "01:00:60", "1-24:00:00", "1:2:3", "10:30", "1-10:30", "1:00:00:00", "٣s", "inf", "nan", "infs",
    ],
)  # fmt: skip
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match=r"[a-z]{4}"):
        parse_duration(text)


def test_half_a_clock_is_refused_with_both_meanings_written_out():
    with pytest.raises(ValueError, match="'05:30:00' or '00:05:30'"):
        parse_duration("5:30")


def test_a_number_without_unit_in_text_is_refused_with_the_remedy():
    assert refusal(time_limit="90").endswith("write '90s'")


@busy_machine
@given(st.integers(0, 10**7), st.sampled_from(["", " "]))
def test_a_duration_written_in_words_is_read_back(milliseconds, blank):
    seconds, ms = divmod(milliseconds, 1000)
    minutes, s = divmod(seconds, 60)
    hours, m = divmod(minutes, 60)
    text = blank.join([f"{hours // 24}d", f"{hours % 24}h", f"{m}m", f"{s}s", f"{ms}ms"])
    assert parse_duration(text) == pytest.approx(milliseconds / 1000)


@busy_machine
@given(st.integers(0, 10**7))
def test_a_duration_written_as_a_clock_is_read_back(seconds):
    hours, rest = divmod(seconds, 3600)
    clock = f"{rest // 60:02}:{rest % 60:02}"
    assert parse_duration(f"{hours:02}:{clock}") == seconds
    assert parse_duration(f"{hours // 24}-{hours % 24:02}:{clock}") == seconds


@busy_machine
@given(st.timedeltas(min_value=timedelta(0)))
def test_a_timedelta_is_its_seconds(delta):
    assert parse_duration(delta) == delta.total_seconds()


@busy_machine
@given(st.text(alphabet="0123456789.:- dhms") | st.text())
def test_any_text_is_a_finite_duration_or_a_value_error(text):
    try:
        assert 0 <= parse_duration(text) < float("inf")
    except ValueError:
        pass


# ---- sizes


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0), (4096, 4096), (np.int32(5), 5), ("17B", 17), ("4MiB", 4 * 1024**2), ("4M", 4 * 1024**2),
        ("512 KB", 512000), ("512kb", 512000), ("1.5GiB", 3 * 1024**3 // 2), ("0.3KB", 300), ("0.1KiB", 102),
        ("2T", 2 * 1024**4), ("1PB", 10**15), (" 1 mib ", 1024**2), ("17", 17),
    ],
)  # fmt: skip
def test_sizes_are_read_as_people_write_them(value, size):
    assert parse_size(value) == size
    assert type(parse_size(value)) is int


@pytest.mark.parametrize("text", ["", "B", "iB", "4iB", "-4", "4XB", "4 M B", "1e3", "inf", "1_000", "٣", "9" * 5000])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"expected bytes|digits"):
        parse_size(text)


@busy_machine
@given(st.integers(0, 10**6), st.sampled_from("KMGTP"), st.sampled_from(["", " "]))
def test_a_size_written_with_a_unit_is_read_back(number, prefix, blank):
    power = "KMGTP".index(prefix) + 1
    assert parse_size(f"{number}{blank}{prefix}iB") == parse_size(f"{number}{prefix}") == number * 1024**power
    assert parse_size(f"{number}{blank}{prefix}B".lower()) == number * 1000**power


@busy_machine
@given(st.text())
def test_any_text_is_a_size_or_a_value_error(text):
    try:
        assert parse_size(text) >= 0
    except ValueError:
        pass
