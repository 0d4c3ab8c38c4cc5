"""The executors that the contract is for: the standard library's of threads, and ours in its two ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from executor import HPCExecutor

KINDS: dict[str, Callable[..., Executor]] = {
    "threads": ThreadPoolExecutor,
    "fresh": HPCExecutor,
    "reused": partial(HPCExecutor, max_tasks_per_child=None),
}


@pytest.fixture(scope="module", params=["threads", "fresh", pytest.param("reused", marks=pytest.mark.shared)])
def kind(request: pytest.FixtureRequest) -> str:
    """A key of KINDS; a test that is not for all of them names its own.

    What depends on the Python are the executor's face and fresh interpreters: they are looked at on each.
    """
    return str(request.param)


@pytest.fixture(scope="module")
def pool(kind: str) -> Iterator[Executor]:
    """An executor of two workers, shared by the tests that neither break it nor shut it down."""
    with KINDS[kind](2) as shared:
        yield shared


@pytest.fixture
def create(kind: str) -> Callable[..., Executor]:
    """Make executors that the test itself ends or drops."""
    return KINDS[kind]


@pytest.fixture
def make(create: Callable[..., Executor], gate: Any) -> Iterator[Callable[..., Executor]]:
    """Make executors that are shut down when the test is over, whatever became of it."""
    made: list[Executor] = []

    def make_one(*args: Any, **options: Any) -> Executor:
        made.append(create(*args, **options))
        return made[-1]

    yield make_one
    gate.open_wide()  # or a task that a failed test has left there would hold up the shutdown
    while made:
        made.pop().shutdown(wait=True, cancel_futures=True)
