"""The same program on the standard library's pool and on ours.

What you learn: ``submit``, ``map``, ``as_completed``, ``wait``, callbacks and exceptions are those that you know. What
differs is where tasks run: the standard pool keeps its two processes, ``HPCExecutor`` has a new one for each task.

It prints: the same answers twice, and how many processes gave them.
"""

import math
import os
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed, wait

from executor import HPCExecutor


def count_primes(limit: int) -> tuple[int, int]:
    """How many primes there are below ``limit``, and the process that counted them."""
    primes = sum(all(n % d for d in range(2, math.isqrt(n) + 1)) for n in range(2, limit))
    return primes, os.getpid()


def use(pool: Executor, seen: list[str]) -> None:
    """Whatever the pool is, this does not care. The callback appends to ``seen``, in a thread of the pool's."""
    futures = {pool.submit(count_primes, limit): limit for limit in range(1000, 9000, 1000)}
    counts, pids = {}, set()
    for future in as_completed(futures):
        counts[futures[future]], pid = future.result()
        pids.add(pid)
    print("  submit, as_completed:", dict(sorted(counts.items())))

    print("  map:", list(pool.map(pow, [2, 3, 10], [10, 5, 3], timeout=60)))

    wrong = pool.submit(math.sqrt, -1)
    wrong.add_done_callback(lambda future: seen.append(type(future.exception()).__name__))
    wait([wrong])
    print("  exception:", wrong.exception())
    print("  processes:", len(pids))


if __name__ == "__main__":  # ProcessPoolExecutor needs this where it starts its processes anew
    for kind in (ProcessPoolExecutor, HPCExecutor):
        print(kind.__name__)
        seen: list[str] = []
        with kind(max_workers=2) as pool:
            use(pool, seen)
        print("  callback saw:", *seen)
