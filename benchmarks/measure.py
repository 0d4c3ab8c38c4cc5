"""How a figure is taken: each function constructs a pool, asks it, and gives the values by their units."""

import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import tasks
from benchmarks.candidates import WORKERS, Construct, Pool

Values = dict[str, float]

MIB = 1 << 20


def throughput(construct: Construct, count: int) -> Values:
    with construct() as pool:
        return tasks_per_second(pool, count, tasks.nothing)


def throughput_of_builtin(construct: Construct, count: int) -> Values:
    with construct() as pool:
        return tasks_per_second(pool, count, pow, 2, 3)


def throughput_of_programs(construct: Construct, count: int) -> Values:
    with construct() as pool:
        return tasks_per_second(pool, count, pool.program)


def latency(construct: Construct, count: int) -> Values:
    """One at a time: from submit to the result in hand, median."""
    with construct() as pool:
        warm(pool, count, tasks.nothing)
        return {"ms": 1e3 * statistics.median(seconds(pool.one, tasks.nothing) for _ in range(count))}


def startup(construct: Construct, _count: int) -> Values:
    """From before construction to the first result; imports are done."""
    start = time.perf_counter()
    with construct() as pool:
        pool.one(tasks.nothing)
        return {"ms": 1e3 * (time.perf_counter() - start)}


def payload(construct: Construct, count: int, make: Callable[[int], Any], mib: int) -> Values:
    """Each payload is new, so that nobody gains by remembering the last one. MB/s counts both ways."""
    with construct() as pool:
        pool.burst(WORKERS, tasks.nap, make(8))
        took = statistics.median(there_and_back(pool, make(mib * MIB)) for _ in range(count))
        return {"MB/s": 2 * mib * MIB / 1e6 / took}


def backlog(construct: Construct, count: int) -> Values:
    """All tasks at once; the memory is that of this process, the client."""
    with construct() as pool:
        warm(pool, count, tasks.nothing)
        burst = pool.burst(count, tasks.nothing)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"submits/s": count / burst.submitted, "tasks/s": count / burst.done, "peak MiB": peak}


def tasks_per_second(pool: Pool, count: int, call: Any, *args: Any) -> Values:
    warm(pool, count, call, *args)
    return {"tasks/s": count / pool.burst(count, call, *args).done}


def warm(pool: Pool, count: int, call: Any, *args: Any) -> None:
    """All workers are up, and have seen what comes."""
    pool.burst(WORKERS, tasks.nap)
    pool.burst(max(WORKERS, count // 20), call, *args)


def seconds(call: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    call(*args)
    return time.perf_counter() - start


def there_and_back(pool: Pool, value: Any) -> float:
    start = time.perf_counter()
    back = pool.one(tasks.identity, value)
    took = time.perf_counter() - start
    assert type(back) is type(value), f"sent {type(value)}, got {type(back)}"
    assert bytes(memoryview(back)) == bytes(memoryview(value)), "what came back is not what was sent"
    return took


def new_bytes(size: int) -> bytes:
    return os.urandom(size)


def new_array(size: int) -> Any:
    import numpy

    return numpy.random.default_rng().random(size // 8)
