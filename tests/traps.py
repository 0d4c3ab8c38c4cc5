"""What does not pickle, or does its worst where it is unpickled; for the tests of faults of what travels.

All of it travels by value, or each fresh interpreter would import pytest to find it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import cloudpickle

cloudpickle.register_pickle_by_value(sys.modules[__name__])

#: How a trap may raise, and what; how it may end the process, and the return code that this gives.
RAISED: dict[str, type[BaseException]] = {"error": ValueError, "exit": SystemExit, "interrupt": KeyboardInterrupt}
DEATHS: dict[str, int] = {"os._exit": 3, "segfault": -signal.SIGSEGV}


class Unpicklable:
    """Raises where it is pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> NoReturn:
        raise self.error


def explode(how: str) -> NoReturn:
    """What is called where a Trap is unpickled."""
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "os._exit":
        os._exit(DEATHS[how])
    raise RAISED[how]("a trap")


class Trap:
    """Pickles, and does its worst where it is unpickled."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self) -> str:
        return self.how

    def __reduce__(self) -> tuple[Any, ...]:
        return explode, (self.how,)


class TrapError(Trap, Exception):
    """The same, to be raised."""


def identity(value: Any = None, **named: Any) -> Any:
    """What it is given: the keyword arguments, if there are any."""
    return named or value


def fail_by(make_error: Callable[[], BaseException]) -> NoReturn:
    """Raise an exception that is made in the task."""
    raise make_error()
