"""Results of other tasks among the arguments of a call: what their futures become in the pickle of the arguments.

Standard library only: this is imported where tasks run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from worker_agent import bodies

_results: Sequence[bytes] = ()


def provide(results: Sequence[bytes]) -> None:
    """These are the results for the arguments that are unpickled next, as the outcomes of their tasks."""
    global _results
    _results = results


def take(number: int) -> Any:
    """What the future with this number has as its result."""
    return bodies.load_body(_results[number])


def known(value: Any) -> Any:
    """What a future has as its result that had one when the arguments were pickled."""
    return value
