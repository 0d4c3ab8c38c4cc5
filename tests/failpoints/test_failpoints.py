"""A fault at every place where something is sent, received, acknowledged, started or reaped, in real processes.

Each run is the workload of thirty tasks (``workload.py``) with one fault (``points.py``): a process ends, is killed,
stands still for a moment, a function raises or takes long. Whatever it is, each future ends once, with what it has to
end with; no two attempts of a task overlap; nothing is left behind. ``runs.py`` says what is right.

A point is tried with two or three of the five actions, so that this takes two or three minutes on two cores;
``FAILPOINTS=all`` tries all of them with all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import points
import pytest
from points import Point
from runs import Case, Result, Runs

pytestmark = pytest.mark.heavy


def cases(wanted: tuple[Point, ...], actions: tuple[str, ...] = (), **options: Any) -> list[Case]:
    """The points with these actions, or else with those that :func:`chosen_for` gives."""
    invited, constants = options.pop("invited", 0), tuple(options.pop("constants", {}).items())
    chosen = tuple(options.items())
    return [
        Case(point, action, chosen, invited, constants)
        for number, point in enumerate(wanted)
        for action in actions or chosen_for(number)
    ]


def chosen_for(number: int) -> tuple[str, ...]:
    """The actions that a point is tried with: an end and an exception, and every other one a pause."""
    if os.environ.get("FAILPOINTS") == "all":
        return points.ACTIONS
    pause = ("stop", "delay")[number // 2 % 2]
    return ("kill", "exit")[number // 3 % 2], "raise", *((pause,) if number % 2 == 0 else ())


#: Interpreters that are kept get many tasks ahead as soon as one has ended, however long these take here.
FAR_AHEAD = {"worker_agent.interpreters:LOOK_AHEAD": 1000.0}


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The runs of all tests of this module that were asked for."""
    mine = [item for item in request.session.items if item.fspath == request.node.fspath]
    wanted = [item.callspec.params["case"] for item in mine if isinstance(item, pytest.Function)]
    made = Runs(wanted, tmp_path_factory.mktemp("f"))
    yield made
    made.close()


def check(result: Result) -> None:
    """Nothing is wrong with a run."""
    if result.troubles:
        pytest.fail(result.story(), pytrace=False)


def each(some: list[Case]) -> pytest.MarkDecorator:
    """A test for each of them."""
    return pytest.mark.parametrize("case", some, ids=[case.name for case in some])


@each([Case(Point("nowhere", "no:where"), "none")])
def test_without_a_fault_all_is_as_expected(case: Case, runs: Runs) -> None:
    check(runs.result(case))


@each(cases(points.CLIENT))
def test_a_fault_in_the_client(case: Case, runs: Runs) -> None:
    check(runs.result(case))


@each(cases(points.AGENT))
def test_a_fault_in_the_agent(case: Case, runs: Runs) -> None:
    check(runs.result(case))


@each(cases(points.INTERPRETER))
def test_a_fault_in_template_or_interpreter(case: Case, runs: Runs) -> None:
    check(runs.result(case))


@each(cases(points.REUSED, max_tasks_per_child=None, constants=FAR_AHEAD))
def test_a_fault_where_interpreters_are_kept(case: Case, runs: Runs) -> None:
    check(runs.result(case))


@each(cases(points.SPAWNED, max_tasks_per_child=None, mp_context="spawn"))
def test_a_fault_where_interpreters_are_spawned(case: Case, runs: Runs) -> None:
    check(runs.result(case))


@each(cases(points.TWO_AGENTS, agents=2))
def test_a_fault_in_one_of_two_agents(case: Case, runs: Runs) -> None:
    check(runs.result(case))


#: Long enough for the lease of an agent to run out, or for the agents' leases if it is the client that stands still.
LONG = cases(points.INVITED[::2], ("stop for long",), agents=0, lease=1, invited=2)


@each(cases(points.INVITED, agents=0, lease=1, invited=2) + LONG)
def test_a_fault_with_invited_agents(case: Case, runs: Runs) -> None:
    check(runs.result(case))


@each(cases(points.ORPHANED, ("orphan",)) + cases(points.ORPHANED[:1], ("orphan",), agents=2))
def test_an_agent_whose_supervisor_is_killed(case: Case, runs: Runs) -> None:
    check(runs.result(case))
