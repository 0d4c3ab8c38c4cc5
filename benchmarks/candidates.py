"""Who is measured: ours and its peers, each behind the same few questions.

A pool is a context manager that answers `burst` (so many equal tasks at once), `one` (one task, its result
in hand) and `program` (what it must be given to run /bin/true). Loading a candidate does its imports;
constructing the pool comes after, so that it can be timed alone.
"""

import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any, Protocol, Self

from benchmarks import tasks

WORKERS = 2

OURS = "ours"
REUSED = "ours, reused"
REUSED_MILLION = "ours, reused, 1 000 000 tasks"
PRELOADED = "ours, preload=[numpy]"
ALL_OURS = (OURS, REUSED, REUSED_MILLION, PRELOADED)

FORK = "ProcessPoolExecutor fork"
SPAWN = "ProcessPoolExecutor spawn"
FORKSERVER = "ProcessPoolExecutor forkserver"
SPAWN_1 = "ProcessPoolExecutor spawn, 1 task per child"
FORKSERVER_1 = "ProcessPoolExecutor forkserver, 1 task per child"
THREADS = "threads with subprocess.run"
THREADS_PYTHON = "threads with subprocess.run([python, ...])"
LOKY = "loky"
HYPERQUEUE = "HyperQueue"
BARE_FORK = "limit: bare fork loop"


@dataclass(frozen=True, slots=True)
class Burst:
    """Seconds since the first submit."""

    submitted: float
    done: float


class Pool(Protocol):
    program: Any

    def burst(self, count: int, call: Any, *args: Any) -> Burst: ...
    def one(self, call: Any, *args: Any) -> Any: ...


Construct = Callable[[], AbstractContextManager[Pool]]


@dataclass(frozen=True, slots=True)
class Candidate:
    load: Callable[[], Construct]
    #: The module without which it cannot be measured; "" when it comes with Python or is ours.
    needs: str = ""


class FuturesPool:
    """Everything that is a `concurrent.futures.Executor`."""

    def __init__(self, executor: Executor, program: Any = tasks.true) -> None:
        self._executor = executor
        self.program = program

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()

    def burst(self, count: int, call: Any, *args: Any) -> Burst:
        start = time.perf_counter()
        futures = [self.submit(call, *args) for _ in range(count)]
        submitted = time.perf_counter()
        for future in futures:
            future.result()
        return Burst(submitted - start, time.perf_counter() - start)

    def one(self, call: Any, *args: Any) -> Any:
        return self.submit(call, *args).result()

    def submit(self, call: Any, *args: Any) -> Future[Any]:
        return self._executor.submit(call, *args)


RUNNER = """
import pickle, sys
fn, args = pickle.load(sys.stdin.buffer)
pickle.dump(fn(*args), sys.stdout.buffer)
"""


class FreshInterpreters(FuturesPool):
    """What people write by hand: two threads, each of which starts an interpreter for each task."""

    def submit(self, call: Any, *args: Any) -> Future[Any]:
        return self._executor.submit(run_interpreter, call, args)


def run_interpreter(call: Any, args: tuple[Any, ...]) -> Any:
    return pickle.loads(run_python(RUNNER, pickle.dumps((call, args))))


def run_python(code: str, payload: bytes) -> bytes:
    argv = [sys.executable, "-c", code]
    return subprocess.run(argv, input=payload, stdout=subprocess.PIPE, check=True).stdout


class BareForkPool:
    """The loop of `bare_fork.py`, in a small process of its own; it times itself and brings no results."""

    program = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def burst(self, count: int, call: Any, *args: Any) -> Burst:
        code = f"from benchmarks.bare_fork import main; main({count}, {WORKERS})"
        return Burst(0.0, float(run_python(code, pickle.dumps((call, args, {})))))

    def one(self, call: Any, *args: Any) -> Any:
        raise NotImplementedError("the bare fork loop brings no results")


def load_ours(**options: Any) -> Construct:
    from executor import HPCExecutor, Program

    return lambda: FuturesPool(HPCExecutor(max_workers=WORKERS, **options), Program(["/bin/true"]))


def load_process_pool(start_method: str, **options: Any) -> Construct:
    context = get_context(start_method)
    return lambda: FuturesPool(ProcessPoolExecutor(WORKERS, mp_context=context, **options))


def load_threads() -> Construct:
    return lambda: FuturesPool(ThreadPoolExecutor(WORKERS))


def load_fresh_interpreters() -> Construct:
    return lambda: FreshInterpreters(ThreadPoolExecutor(WORKERS))


def load_loky() -> Construct:
    import loky

    return lambda: FuturesPool(loky.ProcessPoolExecutor(max_workers=WORKERS))


def load_hyperqueue() -> Construct:
    from benchmarks.hyperqueue_pool import HyperQueuePool

    return lambda: HyperQueuePool(WORKERS)


def load_bare_fork() -> Construct:
    return BareForkPool


CANDIDATES = {
    OURS: Candidate(load_ours),
    REUSED: Candidate(partial(load_ours, max_tasks_per_child=None)),
    REUSED_MILLION: Candidate(partial(load_ours, max_tasks_per_child=None)),
    PRELOADED: Candidate(partial(load_ours, preload=["numpy"])),
    FORK: Candidate(partial(load_process_pool, "fork")),
    SPAWN: Candidate(partial(load_process_pool, "spawn")),
    FORKSERVER: Candidate(partial(load_process_pool, "forkserver")),
    SPAWN_1: Candidate(partial(load_process_pool, "spawn", max_tasks_per_child=1)),
    FORKSERVER_1: Candidate(partial(load_process_pool, "forkserver", max_tasks_per_child=1)),
    THREADS: Candidate(load_threads),
    THREADS_PYTHON: Candidate(load_fresh_interpreters),
    LOKY: Candidate(load_loky, needs="loky"),
    HYPERQUEUE: Candidate(load_hyperqueue, needs="hyperqueue"),
    BARE_FORK: Candidate(load_bare_fork, needs="cloudpickle"),
}
