"""What users say about resources, and the needs that it means: values against values."""

import pickle
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor import Resources
from executor.core.needs import ONE_CPU, POLICIES, Need, Needs
from executor.errors import OptionTypeError, OptionValueError
from executor.options import TaskOptions, make_options
from executor.resources import parse_amount, parse_memory, render_amount, request_texts
from worker_agent.pools import UNIT

DEFAULT = TaskOptions()
CPU = Need("cpus", UNIT)
AMOUNT = "expected an amount such as 2, 0.5, '0.5', '2 scatter' or 'all'"
NAMES = "expected names of resources: a letter, then letters, digits and '/', such as 'gpus/nvidia'"
MAPPING = "expected a mapping of names to amounts, such as {'fpga': 1}"
busy_machine = settings(deadline=None)  # to be slow is no failure


def needs(*each, seconds=0.0, nodes=0):
    return Needs(each, seconds, nodes)


def variants(base=DEFAULT, **changes):
    return make_options(base, **changes).variants


def refusal(make=Resources, **arguments):
    """The text of the error, which is the same in ``Resources`` and ``options`` and survives pickling."""
    with pytest.raises((OptionTypeError, OptionValueError)) as caught:
        make(**arguments)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy)) == (type(caught.value), str(caught.value))
    return str(caught.value)


def refused_option(base=DEFAULT, **changes):
    return refusal(lambda **given: make_options(base, **given), **changes)


# ---- Resources


def test_who_says_nothing_needs_one_cpu():
    assert Resources().to_needs() == ONE_CPU == Needs((CPU,))
    assert Resources(cpus=None) == Resources(cpus=1) == Resources()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"cpus": 4}, needs(Need("cpus", 40000))),
        ({"cpus": 0}, needs()),
        ({"gpus": 0.5}, needs(CPU, Need("gpus", 5000))),
        ({"gpus": "0.25 tight!"}, needs(CPU, Need("gpus", 2500, "tight!"))),
        ({"cpus": "all"}, needs(Need("cpus", None))),
        ({"memory": "8GiB"}, needs(CPU, Need("memory", 8192 * UNIT))),
        ({"memory": "all"}, needs(CPU, Need("memory", None))),
        ({"memory": 0, "gpus": 0, "resources": {"fpga": 0, "x": "0 scatter", "y": 0.0}}, ONE_CPU),
        ({"resources": {"memory": "1MiB", "gpus": 1}}, needs(CPU, Need("gpus", UNIT), Need("memory", UNIT))),
        ({"resources": {"cpus": 2}}, needs(Need("cpus", 20000))),
        ({"resources": {"cpus": 0, "fpga": None}}, needs()),
        (
            {"cpus": 2, "resources": {"gpus/nvidia": "2 scatter", "a": 1}},
            needs(Need("a", UNIT), Need("cpus", 20000), Need("gpus/nvidia", 20000, "scatter")),
        ),
        ({"time_request": "1h"}, needs(CPU, seconds=3600.0)),
        ({"time_request": timedelta(minutes=1), "cpus": 0}, needs(seconds=60.0)),
        ({"nodes": 2}, needs(nodes=2)),
        ({"nodes": 2, "time_request": 90, "cpus": 0, "gpus": 0, "memory": None}, needs(seconds=90.0, nodes=2)),
    ],
    ids=str,
)
def test_what_users_say_becomes_needs_sorted_by_name_and_without_zeros(arguments, expected):
    assert Resources(**arguments).to_needs() == expected
    assert variants(**arguments) == (expected,)


def test_needs_are_made_once():
    resources = Resources(cpus=2)
    assert resources.to_needs() is resources.to_needs()


def test_resources_are_values():
    one, other = Resources(cpus=2, gpus="0.5"), Resources(resources={"gpus": 0.5, "cpus": "2 compact"})
    assert one == other
    assert hash(one) == hash(other)
    assert one != Resources(cpus=2)
    assert len({one, other, Resources()}) == 2
    with pytest.raises(AttributeError):
        one.cpus = 3
    with pytest.raises(AttributeError):
        one._needs = ONE_CPU


@pytest.mark.parametrize(
    ("resources", "text"),
    [
        (Resources(), "Resources(cpus=1)"),
        (Resources(cpus=0), "Resources(cpus=0)"),
        (Resources(cpus=0.1, gpus="2 tight"), "Resources(cpus='0.1', gpus='2 tight')"),
        (Resources(memory="8GiB"), "Resources(cpus=1, memory='8GiB')"),
        (Resources(memory="8 gb"), "Resources(cpus=1, memory='8GB')"),
        (Resources(memory=1), "Resources(cpus=1, memory=104)"),  # the most that is as much
        (Resources(cpus="all", memory="all"), "Resources(cpus='all', memory='all')"),
        (Resources(nodes=3, time_request="1m"), "Resources(time_request=60.0, nodes=3)"),
        (Resources(resources={"b": 2, "a": "all"}), "Resources(cpus=1, resources={'a': 'all', 'b': 2})"),
    ],
)
def test_resources_show_how_they_are_made(resources, text):
    assert repr(resources) == text
    assert eval(text) == resources


AMOUNTS = st.integers(0, 10**6) | st.floats(0, 10**6) | st.just("all") | st.builds(
    "{}{}".format, st.decimals(0, 10**6, places=4), st.sampled_from(["", *(f" {policy}" for policy in POLICIES)])
)  # fmt: skip


@busy_machine
@given(
    st.fixed_dictionaries({}, optional={
        "cpus": AMOUNTS, "gpus": AMOUNTS, "memory": st.integers(0, 2**60) | st.just("all"),
        "time_request": st.floats(0, 1e9),
        "resources": st.dictionaries(st.from_regex(r"[a-bd-fh-ln-z][A-Za-z0-9/]*", fullmatch=True), AMOUNTS),
    })
)  # fmt: skip
def test_resources_are_read_back_from_what_they_show(arguments):
    resources = Resources(**arguments)
    for copy in (eval(repr(resources)), pickle.loads(pickle.dumps(resources))):
        assert copy == resources
        assert hash(copy) == hash(resources)
    asked = resources.to_needs().needs
    assert list(asked) == sorted(asked, key=lambda need: need.name)
    assert all(need.amount is None or need.amount > 0 for need in asked)


class Untouchable(Mapping):
    """A mapping that can be read only."""

    def __getitem__(self, name):
        return {"fpga": 1}[name]

    def __iter__(self):
        return iter(["fpga"])

    def __len__(self):
        return 1


def test_the_mapping_of_the_caller_is_neither_changed_nor_kept():
    mine = {"fpga": 1}
    resources, options = Resources(resources=mine), make_options(DEFAULT, resources=mine)
    assert mine == {"fpga": 1}
    mine["fpga"] = 2
    mine["gpus"] = 1
    assert resources.to_needs() == options.variants[0] == needs(CPU, Need("fpga", UNIT))
    assert Resources(resources=Untouchable()) == resources


# ---- amounts


@pytest.mark.parametrize(
    ("value", "units", "policy"),
    [
        (3, 30000, "compact"), (0, 0, "compact"), (np.int8(100), 10**6, "compact"), (0.5, 5000, "compact"),
        (0.1, 1000, "compact"), (0.3, 3000, "compact"), (1 / 3, 3334, "compact"), (0.1 + 0.2, 3001, "compact"),
        (1e-300, 1, "compact"), (-0.0, 0, "compact"), (np.float64(0.1), 1000, "compact"),
        (np.float32(0.5), 5000, "compact"), (Decimal("0.0001"), 1, "compact"), (Decimal("1.50000"), 15000, "compact"),
        (Fraction(1, 16), 625, "compact"), ("2", 20000, "compact"), (" 0.5 ", 5000, "compact"),
        ("1.0000", 10000, "compact"), ("2 compact", 20000, "compact"), ("2  compact!", 20000, "compact!"),
        ("0.25 tight", 2500, "tight"), ("2 tight!", 20000, "tight!"), ("12 scatter", 120000, "scatter"),
        ("all", None, "compact"), (" all ", None, "compact"), (10**14, 10**18, "compact"), ("007", 70000, "compact"),
    ],
)  # fmt: skip
def test_amounts_are_read_as_people_write_them(value, units, policy):
    assert parse_amount(value) == (units, policy)


@pytest.mark.parametrize("value", [True, False, np.bool_(True), b"2", [2], (2,), {}, 1j, object()], ids=repr)
def test_what_is_neither_a_number_nor_text_is_no_amount(value):
    assert refusal(cpus=value).endswith(f": {AMOUNT}")
    assert isinstance(pytest.raises(OptionTypeError, Resources, gpus=value).value, TypeError)


@pytest.mark.parametrize(
    "text", ["", " ", "two", "1e3", "1_000", "+1", ".5", "1.", "1,5", "2compact", "2 compact tight", "٣", "inf", "ALL",
             "9" * 21],
)  # fmt: skip
def test_text_that_is_no_amount_is_refused(text):
    assert refusal(cpus=text) == f"option cpus={text!r}: {AMOUNT}"


@pytest.mark.parametrize("value", [-1, -0.5, "-1", "-0.5 tight", Decimal("-0.0001"), Fraction(-1, 2), -1e-300])
def test_a_negative_amount_is_refused(value):
    assert refusal(cpus=value) == f"option cpus={value!r}: {AMOUNT}; it cannot be negative"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), Decimal("NaN"), Decimal("Infinity")])
def test_an_amount_that_is_not_finite_is_refused(value):
    assert refusal(cpus=value) == f"option cpus={value!r}: {AMOUNT}; it has to be finite"


@pytest.mark.parametrize(
    ("value", "enough"),
    [("0.33333", "0.3334"), ("0.00001", "0.0001"), ("1.00000", "1"), (Decimal("0.12345"), "0.1235"),
     (Fraction(1, 3), "0.3334"), (Fraction(99999, 100000), "1")],
)  # fmt: skip
def test_exact_amounts_have_four_decimal_places_at_most(value, enough):
    expected = f"expected four decimal places or fewer; write '{enough}', which is enough"
    assert refusal(cpus=value).endswith(f": {expected}")
    assert parse_amount(enough)[0] >= Fraction(value) * UNIT


@pytest.mark.parametrize(
    ("wrong", "right"), [("compcat", "compact"), ("tigth", "tight"), ("tight!!", "tight!"), ("spread", "")]
)
def test_an_unknown_policy_names_the_nearest_and_all(wrong, right):
    assert refusal(gpus=f"2 {wrong}") == (
        f"option gpus='2 {wrong}': there is no policy {wrong!r}"
        + (f"; did you mean {right!r}?" if right else ".")
        + " The policies are: compact, compact!, tight, tight!, scatter"
    )


def test_all_has_no_policy():
    assert refusal(cpus="all tight") == f"option cpus='all tight': {AMOUNT}; 'all' has no policy"


@pytest.mark.parametrize("value", [10**14 + 1, 1e300, "999999999999999"])
def test_more_than_a_number_of_64_bits_holds_is_refused(value):
    assert refusal(cpus=value).endswith(": expected 100000000000000 or less (memory: in MiB)")


@busy_machine
@given(st.integers(0, 10**18), st.sampled_from(POLICIES))
def test_an_amount_in_text_is_read_back_exactly(units, policy):
    text = render_amount(units)
    assert Fraction(text) * UNIT == units
    assert parse_amount(text) == (units, "compact")
    assert parse_amount(f"{text} {policy}") == (units, policy)
    assert parse_amount(Decimal(text)) == parse_amount(Fraction(text)) == (units, "compact")


@busy_machine
@given(st.decimals(0, 10**9, places=4))
def test_text_is_exact(number):
    assert parse_amount(f"{number:f}")[0] == Fraction(number) * UNIT


@busy_machine
@given(st.floats(0, 10**13))
def test_a_float_is_never_rounded_down_and_by_less_than_one_unit_up(number):
    units, _ = parse_amount(number)
    shown = Fraction(repr(number))  # the digits that a user sees
    assert shown * UNIT <= units < shown * UNIT + 1
    assert units / UNIT >= number


@busy_machine
@given(st.integers(0, 10**9))
def test_a_float_with_four_places_is_what_it_shows(units):
    assert parse_amount(units / UNIT)[0] == units


@busy_machine
@given(st.text(alphabet="0123456789.- acfhilmopst!") | st.text())
def test_any_text_is_an_amount_or_a_value_error(text):
    try:
        units, policy = parse_amount(text)
    except ValueError as error:
        assert "expected" in str(error) or "The policies are" in str(error)
    else:
        assert units is None or units >= 0
        assert policy in POLICIES


# ---- memory


@pytest.mark.parametrize(
    ("value", "units"),
    [(0, 0), (1, 1), (104, 1), (105, 2), (2**20, UNIT), ("1MiB", UNIT), ("1.5 GiB", 1536 * UNIT), ("1MB", 9537),
     (np.int64(2**40), 2**20 * UNIT), ("all", None)],
)  # fmt: skip
def test_memory_is_a_size_in_ten_thousandths_of_a_mib(value, units):
    assert parse_memory(value) == units


@busy_machine
@given(st.integers(0, 2**60))
def test_memory_is_never_rounded_down_and_by_less_than_one_unit_up(size):
    assert size * UNIT <= parse_memory(size) * 2**20 < size * UNIT + 2**20


def test_what_is_no_size_is_refused():
    expected = "expected bytes (4194304) or text such as '4MiB' or '512 KB'"
    assert refusal(memory="8x") == f"option memory='8x': {expected}"
    assert refusal(memory="2 tight") == f"option memory='2 tight': {expected}"
    assert refusal(memory=8e9) == f"option memory=8000000000.0: {expected}"
    assert refusal(memory=True) == f"option memory=True: {expected}"
    assert refusal(memory=-1) == f"option memory=-1: {expected}; it cannot be negative"
    assert refusal(resources={"memory": "8x"}) == f"option resources['memory']='8x': {expected}"
    assert refusal(memory=10**30).endswith(": expected 100000000000000 or less (memory: in MiB)")


# ---- what cannot be said


@pytest.mark.parametrize("name", ["", "a b", "1a", "a_b", "gpus[0]", "é", "/a", "a\n"])
def test_names_of_resources_are_letters_digits_and_slashes(name):
    assert refusal(resources={name: 1}) == f"option resources={ {name: 1}!r}: {NAMES}, not {name!r}"


@pytest.mark.parametrize("name", ["nodes", "time_request", "resources"])
def test_what_is_no_resource_is_not_taken_for_one(name):
    why = f", not {name!r}" if "_" in name else f"; {name} is no resource, so say {name}=... beside it"
    assert refusal(resources={name: 1}) == refused_option(resources={name: 1}) == (
        f"option resources={ {name: 1}!r}: {NAMES}{why}"
    )


def test_what_is_no_mapping_of_names_to_amounts_is_refused():
    assert refusal(resources=3) == f"option resources=3: {MAPPING}"
    assert refusal(resources=[Resources()]) == f"option resources=[Resources(cpus=1)]: {MAPPING}"
    assert refusal(resources={1: 2}) == f"option resources={{1: 2}}: {NAMES}; 1 is of type int"
    assert refusal(resources={"fpga": "x"}) == f"option resources['fpga']='x': {AMOUNT}"


@pytest.mark.parametrize("option", ["cpus", "gpus", "memory"])
def test_nothing_is_given_twice(option):
    expected = f"option resources={{{option!r}: 1}}: {option}=0 is given as well; give it once"
    assert refusal(**{option: 0}, resources={option: 1}) == expected
    assert refused_option(**{option: 0}, resources={option: 1}) == expected


def test_wrong_durations_and_numbers_of_nodes_are_refused():
    assert refusal(time_request="10:30").startswith("option time_request='10:30': hours and minutes, or")
    assert refusal(time_request=-1).startswith("option time_request=-1: expected a finite time that is not negative")
    expected = "expected a number of whole agents, 0 or more, such as 2"
    assert refusal(nodes=1.5) == f"option nodes=1.5: {expected}"
    assert refusal(nodes=True) == f"option nodes=True: {expected}"
    assert refusal(nodes=-1) == f"option nodes=-1: {expected}; it cannot be negative"


@pytest.mark.parametrize(
    ("arguments", "others"),
    [
        ({"cpus": 1}, "cpus=1"),
        ({"gpus": 0.5}, "gpus='0.5'"),
        ({"cpus": 0, "memory": "8GiB", "resources": {"fpga": "2 tight"}}, "fpga='2 tight', memory='8GiB'"),
    ],
)
def test_whole_agents_have_nothing_beside_them(arguments, others):
    assert refusal(nodes=2, **arguments) == refused_option(nodes=2, **arguments) == (
        f"option nodes=2: expected no other needs beside whole agents but time_request, not {others}; "
        "leave them out, or write resources=Resources(nodes=2) to replace those of the view"
    )


def test_resources_take_their_arguments_by_name_only():
    with pytest.raises(TypeError):
        Resources(4)


# ---- views of views


def test_needs_of_a_view_are_merged_by_name():
    base = make_options(DEFAULT, cpus=4, resources={"fpga": 1, "gpus": 2}, time_request="1h")
    assert variants(base, gpus=1, resources={"a": 1}) == (
        needs(Need("a", UNIT), Need("cpus", 40000), Need("fpga", UNIT), Need("gpus", UNIT), seconds=3600.0),
    )
    assert variants(base, name="other") is base.variants
    assert variants(base, cpus=0, resources={"gpus": 0}) == (needs(Need("fpga", UNIT), seconds=3600.0),)


def test_what_a_view_needs_can_be_taken_back():
    base = make_options(DEFAULT, cpus=4, gpus=1, memory="1GiB", resources={"fpga": 1}, time_request="1h")
    assert variants(base, cpus=None, gpus=None, memory=None, time_request=None, resources={"fpga": None}) == (ONE_CPU,)
    assert variants(base, resources=None) == (ONE_CPU,)
    assert variants(base, resources=None, gpus=2) == (needs(CPU, Need("gpus", 20000)),)
    assert variants(base, resources={}) == base.variants


def test_variants_replace_all_that_was_said_before():
    base = make_options(DEFAULT, cpus=4, memory="1GiB", time_request="1h")
    first, second = Resources(gpus=1), Resources(cpus=16)
    assert variants(base, resources=first) == (first.to_needs(),)
    assert variants(base, resources=[first, second]) == variants(base, resources=(first, second))
    assert variants(base, resources=[second, first]) == (second.to_needs(), first.to_needs())
    later = make_options(base, resources=[first, second])
    assert variants(later, resources=Resources(nodes=2)) == (needs(nodes=2),)


def test_what_is_said_after_variants_is_merged_into_each():
    base = make_options(DEFAULT, resources=[Resources(gpus=1), Resources(cpus=16, memory="2MiB")])
    assert variants(base, memory="1MiB", time_request=60) == (
        needs(CPU, Need("gpus", UNIT), Need("memory", UNIT), seconds=60.0),
        needs(Need("cpus", 160000), Need("memory", UNIT), seconds=60.0),
    )


@pytest.mark.parametrize("other", ["cpus", "gpus", "memory", "time_request", "nodes"])
def test_beside_variants_nothing_else_is_said_about_resources(other):
    assert refused_option(resources=[Resources(cpus=2)], **{other: 1}) == (
        "option resources=[Resources(cpus=2)]: expected nothing beside it, since each Resources says all that a task "
        f"needs; say {other} in it"
    )


def test_variants_are_resources_and_there_is_one_at_least():
    expected = f"{MAPPING}, or Resources, or a list of Resources"
    assert refused_option(resources=3) == f"option resources=3: {expected}"
    assert refused_option(resources={1}) == f"option resources={{1}}: {expected}"
    assert refused_option(resources="gpu") == f"option resources='gpu': {expected}; 'g' is of type str"
    assert refused_option(resources=[{"fpga": 1}]).endswith(f"{expected}; {{'fpga': 1}} is of type dict")
    assert refused_option(resources=[]).endswith(
        f"{expected}; at least one variant is needed, and None is the default"
    )


def test_whole_agents_take_the_place_of_the_default_and_of_nothing_else():
    nodes = make_options(DEFAULT, nodes=2, time_request="1h")
    assert nodes.variants == (needs(seconds=3600.0, nodes=2),)
    assert variants(nodes, nodes=4) == (needs(seconds=3600.0, nodes=4),)
    assert variants(nodes, gpus=0) == variants(nodes, cpus=None) == nodes.variants
    assert variants(nodes, nodes=0) == variants(nodes, nodes=None) == (needs(CPU, seconds=3600.0),)
    assert variants(nodes, nodes=0, cpus=4) == (needs(Need("cpus", 40000), seconds=3600.0),)
    assert "not gpus=1;" in refused_option(nodes, gpus=1)
    assert "not cpus=4;" in refused_option(make_options(DEFAULT, cpus=4), nodes=2)
    assert variants(make_options(DEFAULT, cpus=0), nodes=2) == (needs(nodes=2),)


def test_variants_are_made_once_for_a_view():
    base = make_options(DEFAULT, cpus=2)
    assert base.variants is base.variants
    assert make_options(base, retries=1).variants is base.variants
    assert DEFAULT.variants == (ONE_CPU,)


# ---- text for tasks


def test_each_need_has_its_canonical_text():
    resources = Resources(cpus=2, gpus="0.50 tight!", memory="1.5MiB", resources={"gpus/nvidia": "all", "fpga": 1.25})
    assert request_texts(resources.to_needs()) == [
        ("cpus", "2 compact"), ("fpga", "1.25 compact"), ("gpus", "0.5 tight!"), ("gpus/nvidia", "all"),
        ("memory", "1.5 compact"),
    ]  # fmt: skip
    assert request_texts(Resources(nodes=2).to_needs()) == []


@busy_machine
@given(st.integers(1, 10**18) | st.none(), st.sampled_from(POLICIES))
def test_the_canonical_text_is_read_back(amount, policy):
    need = Need("fpga", amount, policy if amount else "compact")
    ((name, text),) = request_texts(Needs((need,)))
    assert Need(name, *parse_amount(text)) == need
