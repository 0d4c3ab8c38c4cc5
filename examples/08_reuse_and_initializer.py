"""Keeping interpreters, preparing them, and importing once for all of them.

What you learn: by default each task has a fresh interpreter. ``max_tasks_per_child=None`` keeps interpreters, which
makes tiny tasks cheaper. ``initializer`` prepares each interpreter before its first task. ``preload`` imports modules
once, in the interpreter from which the others are forked, so that fresh interpreters have them at no cost.

It prints: how many processes 400 tasks had and how long they took in each mode; what the initializer changed; and how
long NumPy's import takes a task with and without ``preload``.
"""

import decimal
import os
import time

from executor import HPCExecutor


def pid(_: int) -> int:
    """The process that runs this."""
    return os.getpid()


def set_precision(digits: int) -> None:
    """The initializer: decimal numbers have so many digits."""
    decimal.getcontext().prec = digits


def divide(a: int, b: int) -> str:
    """A task that needs it."""
    return str(decimal.Decimal(a) / b)


def import_numpy() -> float:
    """Milliseconds that a task waits for NumPy."""
    start = time.perf_counter()
    import numpy  # noqa: F401

    return 1000 * (time.perf_counter() - start)


for limit in (1, None):
    with HPCExecutor(2, max_tasks_per_child=limit) as ex:
        ex.submit(pid, 0).result()
        start = time.perf_counter()
        pids = set(ex.map(pid, range(400)))
        print(f"max_tasks_per_child={limit}: {len(pids)} processes, {time.perf_counter() - start:.2f} s")

with HPCExecutor(2, initializer=set_precision, initargs=(40,)) as ex:
    print("1/7 =", ex.submit(divide, 1, 7).result())

for preload in ([], ["numpy"]):
    with HPCExecutor(2, preload=preload) as ex:
        print(f"preload={preload}: import numpy took {ex.submit(import_numpy).result():.1f} ms")
