"""Those who have not joined: how often they are answered."""

from __future__ import annotations

from executor.strangers import ANSWER_EVERY, MOST_REMEMBERED, Strangers


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
