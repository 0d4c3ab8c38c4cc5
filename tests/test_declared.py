"""What users say that an agent has, and what they are told if it makes no sense."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker_agent.amounts import parse_units
from worker_agent.declared import parse_pool, parse_pools
from worker_agent.pools import UNIT, Pool

pytestmark = pytest.mark.shared

busy_machine = settings(deadline=None)  # to be slow is no failure
GIB = 1024**3


def refusal(name, value):
    """The one line that a user is told; it names the resource."""
    with pytest.raises((TypeError, ValueError)) as caught:
        parse_pools({name: value})
    assert str(caught.value).startswith(f"resource {name}=")
    return str(caught.value)


# ---- parts with names


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("3", [["0", "1", "2"]]),
        (" 1 ", [["0"]]),
        ("2x3", [["0", "1", "2"], ["3", "4", "5"]]),
        ("2 x 1", [["0"], ["1"]]),
        ("range(1-3)", [["1", "2", "3"]]),
        ("range( 7 - 7 )", [["7"]]),
        ("[a]", [["a"]]),
        ("[a, b,c_1]", [["a", "b", "c_1"]]),
        ("""["a", 'b']""", [["a", "b"]]),
        ("[[0,1],[2,3]]", [["0", "1"], ["2", "3"]]),
        ("[ [0, 1] , [2] ]", [["0", "1"], ["2"]]),
        ("[GPU-8f1a, MIG-GPU-2/1/0, 0000:3b:00.0]", [["GPU-8f1a", "MIG-GPU-2/1/0", "0000:3b:00.0"]]),
    ],
)
def test_parts_are_declared_as_for_hyperqueue(text, groups):
    assert parse_pool("gpus/nvidia", text) == Pool("gpus/nvidia", groups=groups)


@pytest.mark.parametrize(
    ("value", "groups"),
    [
        (2, [["0", "1"]]),
        (np.int64(2), [["0", "1"]]),
        (2.0, [["0", "1"]]),
        (["a", "b"], [["a", "b"]]),
        (("a", 7), [["a", "7"]]),
        (range(4, 6), [["4", "5"]]),
        ([[0, 1], (2, 3)], [["0", "1"], ["2", "3"]]),
        ([range(2), range(2, 4)], [["0", "1"], ["2", "3"]]),
    ],
)
def test_parts_may_be_numbers_and_lists_of_python(value, groups):
    assert parse_pools({"x": value}) == [Pool("x", groups)]


def test_pools_are_in_the_order_of_their_declaration_and_nothing_that_was_given_is_changed():
    names = ["a", "b"]
    declared = {"x": names, "cpus": 1, "memory": "1GiB"}
    pools = parse_pools(declared)
    assert pools == [Pool("x", [["a", "b"]]), Pool("cpus", [["0"]]), Pool("memory", size=1024 * UNIT)]
    assert declared == {"x": ["a", "b"], "cpus": 1, "memory": "1GiB"}
    pools[0].groups[0].append("c")
    assert names == ["a", "b"]


# ---- amounts without parts


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("sum(1)", UNIT), ("sum(2.5)", 25000), ("sum( 0.0001 )", 1), ("sum (10)", 10 * UNIT), ("sum(1.10000)", 11000),
    ],
)  # fmt: skip
def test_sums_are_exact(text, size):
    assert parse_pool("licences", text) == Pool("licences", size=size)


@pytest.mark.parametrize(
    ("value", "mib"),
    [
        ("sum(64GiB)", 65536), ("64GiB", 65536), ("64g", 65536), (64 * GIB, 65536), (1.5 * GIB, 1536),
        ("sum(1048576)", 1), ("1024KB", 0.9765), ("sum(1.5 MiB)", 1.5), (np.int64(2 * GIB), 2048),
    ],
)  # fmt: skip
def test_memory_is_a_size_and_counted_in_mib(value, mib):
    assert parse_pools({"memory": value}) == [Pool("memory", size=int(mib * UNIT))]


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("x", "", "expected a number of parts"),
        ("x", "-1", "expected a number of parts"),
        ("x", "2.5", "sum(2.5)"),
        ("x", "٣", "expected a number of parts"),
        ("x", "[a", "expected a number of parts"),
        ("x", "[[a], b]", "expected a number of parts"),
        ("x", "[[a]][[b]]", "expected a number of parts"),
        ("x", "[[[a]]]", "expected a number of parts"),
        ("x", "range(1)", "'range(1-3)'"),
        ("x", "0", "leave the resource out"),
        ("x", "0x4", "leave the resource out"),
        ("x", "4x0", "leave the resource out"),
        ("x", "range(3-1)", "'range(1-3)'"),
        ("x", "[]", "leave out what is empty"),
        ("x", "[[], [a]]", "leave out what is empty"),
        ("x", "[a,]", "not ''"),
        ("x", "[a b]", "'a b'"),
        ("x", "[a, b, a]", "'a' is there 2 times"),
        ("x", "[[a], [a]]", "'a' is there 2 times"),
        ("x", "99999999999", "sum(...)"),
        ("x", "999999x999999", "sum(...)"),
        ("x", "range(0-99999999)", "sum(...)"),
        ("x", "sum()", "4 decimal places"),
        ("x", "sum(0)", "leave the resource out"),
        ("x", "sum(-1)", "4 decimal places"),
        ("x", "sum(0.00001)", "4 decimal places"),
        ("x", "sum(1e3)", "4 decimal places"),
        ("x", "sum(64GiB)", "4 decimal places"),
        ("x", "sum(99999999999999999)", "smaller amount"),
        ("x", 0, "leave the resource out"),
        ("x", -1, "negative"),
        ("x", 2.5, "'sum(2.5)'"),
        ("x", float("nan"), "whole number"),
        ("x", float("inf"), "whole number"),
        ("x", [], "leave out what is empty"),
        ("x", [[], [1]], "leave out what is empty"),
        ("x", [1, 1], "'1' is there 2 times"),
        ("x", [1, "1"], "'1' is there 2 times"),
        ("x", ["a,b"], "'a,b'"),
        ("x", [-1], "negative"),
        ("cpus", "sum(4)", "CPUs have numbers"),
        ("cpus", "[a, b]", "/proc/cpuinfo"),
        ("cpus", "[00, 1]", "/proc/cpuinfo"),
        ("memory", "[a, b]", "memory has no parts"),
        ("memory", "range(1-3)", "memory has no parts"),
        ("memory", [1, 2], "memory has no parts"),
        ("memory", "0", "'64GiB'"),
        ("memory", 64, "'64GiB'"),
        ("memory", "much", "'4MiB'"),
        ("memory", -1, "negative"),
        ("memory", float("inf"), "finite"),
        ("2x", 1, "begins with a letter"),
        ("gpus nvidia", 1, "rename the resource"),
        ("", 1, "rename the resource"),
        ("größe", 1, "rename the resource"),
    ],
)
def test_what_declares_no_pool_is_refused_with_what_to_write(name, value, hint):
    with pytest.raises(ValueError, match="resource"):
        parse_pools({name: value})
    assert hint in refusal(name, value)


@pytest.mark.parametrize("value", [None, True, {"a": 1}, {1, 2}, object(), b"4", [None], [True], [1.5], [["a"], "b"]])
def test_what_is_of_a_wrong_type_is_a_type_error(value):
    with pytest.raises(TypeError, match="resource x="):
        parse_pools({"x": value})


@pytest.mark.parametrize("value", [None, True, {"a": 1}, b"4"])
def test_memory_of_a_wrong_type_is_a_type_error(value):
    with pytest.raises(TypeError, match="resource memory="):
        parse_pools({"memory": value})


def test_names_and_mappings_of_a_wrong_type_are_type_errors():
    with pytest.raises(TypeError, match="resource 7=4"):
        parse_pools({7: 4})
    with pytest.raises(TypeError, match="names and amounts"):
        parse_pools(["cpus"])
    with pytest.raises(TypeError, match="expected text"):
        parse_pool("cpus", 4)


def test_an_error_shows_only_so_much_of_a_value():
    assert len(refusal("x", "!" * 10**6)) < 500


@busy_machine
@given(st.text(alphabet="[]()x-,. 0123456789rangesum'\"ab"))
def test_any_text_is_a_pool_or_a_value_error(text):
    try:
        assert parse_pool("x", text).total > 0
    except ValueError as error:
        assert str(error).startswith("resource x=")


@busy_machine
@given(st.lists(st.lists(st.integers(0, 99), min_size=1), min_size=1))
def test_lists_that_are_written_as_text_are_read_as_they_are(groups):
    names = [name for group in groups for name in group]
    if len(set(names)) == len(names):
        assert parse_pool("cpus", str(groups)) == parse_pools({"cpus": groups})[0]
        assert parse_pool("cpus", str(groups)).groups == [list(map(str, group)) for group in groups]
    else:
        assert "times" in refusal("cpus", str(groups))


@busy_machine
@given(st.integers(0, 10**12))
def test_units_are_read_back_exactly(units):
    assert parse_units(f"{units // UNIT}.{units % UNIT:04}") == units
