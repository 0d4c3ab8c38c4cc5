"""Thousands of worlds, in each of which everything goes wrong that this seed has drawn; see ``world``.

``SIMULATION_SEEDS`` says how many, ``SIMULATION_FIRST`` from which on: about 400 in a second on one core. The default
takes some 15 s, for in CI three Pythons run at once. ``simulate.py`` runs them without pytest, by the million.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
from world import FAULTS, Violation, World, story

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "6000"))
FIRST = int(os.environ.get("SIMULATION_FIRST", "0"))
#: The seeds are run in so many tests, each of which has its own limit of time.
PARTS = 6

#: What must have happened in some world, or the simulator has become blind for it.
SOMETIMES = [
    *(f"fault: {fault}" for fault in FAULTS),
    "fenced", "crash", "stop", "hub stop", "shutdown", "discarded", "late hello", "hello again",
    "frame of an old epoch", "lost: was silent", "lost: registers anew", "cancelled before it was sent",
    "overlap with a stopped agent", "task done", "task failed", "task cancelled",
    ("Started", "sent"), ("Output", "running"), ("Finished", "sent"), ("Finished", "running"), ("Finished", "gone"),
    ("Recalled", "sent"), ("Recalled", "running"), ("Recalled", "later"), ("Recalled", "gone"), ("Output", "sent"),
    ("Recall", "queued"), ("Recall", "running"), ("Recall", "gone"),
    ("Kill", "queued"), ("Kill", "running"), ("Kill", "gone"),
]  # fmt: skip


@pytest.fixture(scope="module")
def seen() -> Counter[Any]:
    """What has happened, in all tests of this module."""
    return Counter()


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_goes_wrong_each_future_ends_once_and_nothing_runs_twice(part: int, seen: Counter[Any]) -> None:
    for seed in range(FIRST + part, FIRST + SEEDS, PARTS):
        world = World(seed)
        try:
            world.run()
        except Violation:
            pytest.fail(story(seed), pytrace=False)
        seen.update(world.seen)


def test_all_that_can_happen_has_happened(seen: Counter[Any]) -> None:
    if SEEDS < 2000 or not seen:
        pytest.skip("too few seeds were run to say so")
    assert [what for what in SOMETIMES if not seen[what]] == []


def test_a_seed_is_the_same_world_each_time() -> None:
    first, second = World(4711, trace=True), World(4711, trace=True)
    first.run()
    second.run()
    assert first.trace == second.trace
    assert first.trace
