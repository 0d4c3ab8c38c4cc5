"""Failures: each hits one task, and says what happened.

What you learn: a task that crashes costs itself only. Its neighbours run on, and the executor takes new tasks. A
``ProcessPoolExecutor`` would be broken after the first of these and fail all its other futures.

It prints: six kinds of failure, then the results of the neighbours.
"""

import ctypes
import os
import threading

from executor import CAPTURE, HPCExecutor, RemoteError, SerializationError, TaskDied


def crash() -> None:
    """Read memory that is not ours: a segmentation fault in C code."""
    ctypes.string_at(0)


def divide(a: float, b: float) -> float:
    """An ordinary Python error, if b is 0."""
    return a / b


class Refusal(Exception):
    """An exception that cannot be rebuilt from its pickle: its arguments are not those of __init__."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")


def refuse() -> None:
    """Raise it."""
    raise Refusal(7, "licence server is down")


with HPCExecutor(max_workers=2) as ex:
    quiet = ex.options(stderr=CAPTURE)
    neighbours = [quiet.submit(pow, 2, n) for n in range(8)]
    crashed, left = quiet.submit(crash), quiet.submit(os._exit, 3)
    raised, refused = quiet.submit(divide, 1, 0), quiet.submit(refuse)
    argument, result = quiet.submit(repr, threading.Lock()), quiet.submit(threading.Lock)

    for future in (crashed, left):
        error = future.exception()
        assert isinstance(error, TaskDied)  # a BrokenProcessPool, so that existing except clauses work
        print(f"{type(error).__name__}: signal={error.signal}, exit_code={error.exit_code}")
    print(f"ZeroDivisionError: {raised.exception()}; the traceback in the task is its __cause__:")
    print(str(raised.exception().__cause__).strip('\n"'))
    for future, kind in ((refused, RemoteError), (argument, SerializationError), (result, SerializationError)):
        assert isinstance(future.exception(), kind)
        print(f"{kind.__name__}: {str(future.exception()).splitlines()[0]}")
    print("the neighbours:", [future.result() for future in neighbours])
