"""Where in a TOML text its keys are, and text that TOML reads as what it was."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executor.jobs.toml_lines import Place, find_lines, line_of
from executor.jobs.toml_text import render_table

pytestmark = pytest.mark.shared

#: On a machine under load, generating documents takes its time.
PROPERTY = settings(
    derandomize=True, database=None, deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)

#: Each line that begins something ends with the place that begins there.
TEXT = '''\
title = "a # no comment"                             # title
multi = """
[[task]]
key = "in a text" \\"""
"""
literal = \'\'\'
x = 1\'\'\'\'\'
after = 1                                            # after
list = [ [1, 2],                                     # list
  "]", # a comment ]
  { a = "}", "b.c" = [3] },                          # list 2 b.c
  \'"\',
]
date = 1979-05-27 07:32:00                           # date
a."b c".d = true                                     # a b c d
[[task]]                                             # task 0
env = { A = "1", B = "2" }                           # task 0 env B
[[task.request]]                                     # task 0 request 0
weight = 1.5                                         # task 0 request 0 weight
[[ task . request ]]                                 # task 0 request 1
[task.request.resources]                             # task 0 request 1 resources
"gpus/nvidia" = 1                                    # task 0 request 1 resources gpus/nvidia
[[task]]                                             # task 1
[task.env]                                           # task 1 env
A = \'\'                                               # task 1 env A
[[task.request]]                                     # task 1 request 0
[other]                                              # other
last = """"quoted\\u0041""""                          # other last
'''


def marks() -> dict[str, int]:
    lines = enumerate(TEXT.splitlines(), 1)
    return {line.rpartition("# ")[2]: number for number, line in lines if "  # " in line}


def named(place: Place) -> str:
    return " ".join(map(str, place))


def test_each_key_is_in_the_line_where_it_is_written() -> None:
    tomllib.loads(TEXT)
    found = {named(place): line for place, line in find_lines(TEXT).items()}
    assert {name: found[name] for name in marks()} == marks()


def test_with_windows_line_ends_it_is_the_same() -> None:
    assert find_lines(TEXT.replace("\n", "\r\n")) == find_lines(TEXT)


def test_what_is_not_there_is_where_it_belongs_to() -> None:
    assert line_of(TEXT, ("task", 1, "command")) == marks()["task 1"]
    assert line_of(TEXT, ("nothing",)) == 1
    assert line_of("", ()) == 1


def places(value: Any, place: Place = ()) -> set[Place]:
    """All places in a document."""
    pairs: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {place} | {each for key, inner in pairs for each in places(inner, (*place, key))}


def test_all_places_are_found_and_no_others() -> None:
    assert set(find_lines(TEXT)) | {()} == places(tomllib.loads(TEXT))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | texts
inline = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
)
tables = st.dictionaries(texts, inline, max_size=4)
documents = st.dictionaries(texts, inline | st.lists(tables, min_size=1, max_size=3), max_size=5)


@PROPERTY
@given(documents)
def test_a_document_that_is_rendered_reads_back_and_all_its_places_are_found(document: dict[str, Any]) -> None:
    text = "\n".join(render_table("", document))
    assert tomllib.loads(text) == document
    lines = find_lines(text)
    assert set(lines) | {()} == places(document)
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


def test_a_long_list_has_a_line_for_each_element() -> None:
    entries = [f"entry number {number}" for number in range(20)]
    text = "\n".join(render_table("", {"entries": entries}))
    assert text.count("\n") == 21
    assert line_of(text, ("entries", 7)) == 9
    assert tomllib.loads(text) == {"entries": entries}


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ValueError, match="not UTF-8"):
        list(render_table("", {"path": "\udcff"}))
