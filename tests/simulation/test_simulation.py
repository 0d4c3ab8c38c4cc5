"""Thousands of worlds, in each of which everything goes wrong that this seed has drawn; see ``world``.

``SIMULATION_SEEDS`` says how many, ``SIMULATION_FIRST`` from which on. ``tests/run.py`` gives 20 000 to one Python, the
default is 300. ``simulate.py`` runs them without pytest, by the million.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from faults import FAULTS, Faults
from simulate import Ran, run_in_processes
from story import story
from users import ENDINGS
from world import World

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "300"))
FIRST = int(os.environ.get("SIMULATION_FIRST", "0"))

#: What must have happened in some world, or the simulator has become blind for it. All that comes of an agent about a
#: task comes in order and in its epoch, so there is no Started or Finished of an attempt that has been followed by
#: another; but the answer to a recall may be late, and a task that the hub gave up may go on.
OFTEN = [
    *(f"fault: {fault}" for fault in FAULTS),
    *(f"happens: {fault}" for fault in Faults.planned),
    *(f"ending: {ending}" for ending in ENDINGS),
    "fenced", "crash", "reboot", "refused", "discarded", "late hello", "hello again", "frame of an old epoch",
    "frame meets a cut", "joins: leased", "joins: local", "local agent was silent", "lost: was silent",
    "lost: registers anew", "lost: has left", "lost: its process has ended", "launch took too long",
    "refuses: its launch is unknown", "cancelled before it was sent", "closed: all have left",
    "closed: waited in vain", "task done", "task failed", "task cancelled",
    ("Started", "sent"), ("Started", "gone"), ("Output", "sent"), ("Output", "running"), ("Output", "gone"),
    ("Finished", "sent"), ("Finished", "running"), ("Finished", "gone"),
    ("Recalled", "sent"), ("Recalled", "running"), ("Recalled", "later"), ("Recalled", "gone"),
    ("Bye", "any"), ("Unprepared", "any"), ("Freed", "any"),
    ("Take", "idle"), ("Take", "busy"), ("Close", "idle"), ("Close", "leaving"),
    "given up for another", "waits for an ended one", "a place is kept by who leaves",
    ("Recall", "incomplete"), ("Recall", "queued"), ("Recall", "running"), ("Recall", "gone"),
    ("Kill", "queued"), ("Kill", "running"), ("Kill", "gone"), ("Stop", "idle"), ("Stop", "busy"),
]  # fmt: skip
#: What takes more seeds.
SELDOM = ["overlap with an agent that was stopped", "endless kill", "broken", ("Kill", "incomplete")]


@pytest.fixture(scope="module")
def ran() -> Ran:
    """All seeds, or up to one that fails."""
    count = 0
    seen: Counter[object] = Counter()
    for part in run_in_processes(FIRST, SEEDS, len(os.sched_getaffinity(0))):
        count += part.seeds
        seen.update(part.seen)
        if part.failed:
            return Ran(count, seen, part.failed)
    return Ran(count, seen, [])


def test_whatever_goes_wrong_each_future_ends_once_and_nothing_runs_twice(ran: Ran) -> None:
    if ran.failed:
        pytest.fail(story(ran.failed[0][0]), pytrace=False)


def test_all_that_can_happen_has_happened(ran: Ran) -> None:
    if SEEDS < 3000:
        pytest.skip("too few seeds were run to say so")
    wanted = OFTEN + (SELDOM if SEEDS >= 20_000 else [])
    assert [what for what in wanted if not ran.seen[what]] == []


def test_a_seed_is_the_same_world_each_time() -> None:
    first, second = World(4711, trace=True), World(4711, trace=True)
    first.run()
    second.run()
    assert first.trace == second.trace
    assert first.trace


def test_a_seed_that_fails_tells_its_story(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hub.Hub.on_frame", lambda *frame: None)
    text = story(1)
    assert text.startswith("seed 1, ")
    assert "faults: " in text
    assert text.endswith("simulate.py 1 --first 1")
