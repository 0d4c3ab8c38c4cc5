"""Those who have not joined: how often they are answered."""

from __future__ import annotations

import platform
from typing import Any

import pytest

from executor.sparing_log import in_one_line
from executor.strangers import ANSWER_EVERY, MOST_REMEMBERED, Strangers, mismatch
from worker_agent import protocol
from worker_agent.pools import UNIT, Pool


def test_a_stranger_is_answered_once_in_a_while_about_each_thing() -> None:
    strangers = Strangers()
    asked = [("a", "hello"), ("a", "hello"), ("a", "fence"), ("b", "hello")]
    assert [strangers.may_answer(*each, 10.0) for each in asked] == [True, False, True, True]
    assert not strangers.may_answer("a", "hello", 10.0 + ANSWER_EVERY / 2)
    assert strangers.may_answer("a", "hello", 10.0 + ANSWER_EVERY)


def test_who_was_answered_is_forgotten_before_there_are_too_many() -> None:
    strangers = Strangers()
    assert all(strangers.may_answer(number, "hello", 10.0) for number in range(3 * MOST_REMEMBERED))
    assert len(strangers._answered) <= MOST_REMEMBERED


def hello(**other: Any) -> protocol.Hello:
    fields: dict[str, Any] = {
        "launch": "l", "process": "p", "name": "n", "host": "node-1", "pid": 1, "python": platform.python_version(),
        "pools": [Pool("cpus", [["0", "1"]])],
    }  # fmt: skip
    return protocol.Hello(**{**fields, **other})


def test_who_is_as_we_are_may_join() -> None:
    assert mismatch(hello()) == ""


@pytest.mark.parametrize("host", ["node\nWARNING all is lost", "node\x1b[2J", "n" * 300, "\x00"])
def test_a_host_has_a_name_that_fits_into_a_line(host: str) -> None:
    assert "host name" in mismatch(hello(host=host))
    assert mismatch(hello(host=host)).isprintable()


@pytest.mark.parametrize(
    "pools",
    [
        [Pool("cpus", [["0"]]), Pool("cpus", [["1"]])],
        [Pool("cpus", [["0", "0"]])],
        [Pool("cpus", [["0"], ["0"]])],
        [Pool("no name", [["0"]])],
        [Pool("", size=UNIT)],
        [Pool("memory")],
        [Pool("memory", [["0"]], UNIT)],
        [Pool("memory", size=-UNIT)],
        [Pool("memory", size=2**60)],
    ],
)
def test_resources_that_cannot_be_are_refused(pools: list[Pool]) -> None:
    assert "resource" in mismatch(hello(pools=pools))


def test_what_others_say_stays_in_its_line_of_the_log() -> None:
    assert in_one_line("a\nb\x1b[0m\tc é") == "a\\nb\\x1b[0m\\tc é"
