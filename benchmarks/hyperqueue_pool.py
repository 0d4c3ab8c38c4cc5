"""HyperQueue behind the questions of `candidates.py`: server and worker are threads of this process.

It throws the results of functions away, so `one` brings them back through a file. Its documented wait looks
once in a second; that is what one task at a time costs, and `one` uses it. Throughput would be blurred by
it, so `burst` looks more often (a look takes a fraction of a millisecond).
"""

import contextlib
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig
from hyperqueue.task.function import PythonEnv

from benchmarks import tasks
from benchmarks.candidates import Burst

LOOK_EVERY = 0.01


class Looked(Exception):
    """Leaves HyperQueue's wait after its first look."""


class HyperQueuePool:
    program = ("/bin/true",)

    def __init__(self, workers: int) -> None:
        self._cluster = LocalCluster()
        self._cluster.start_worker(WorkerConfig(cores=workers))
        self._client = self._cluster.client(python_env=PythonEnv(python_bin=sys.executable))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.stop()

    def burst(self, count: int, call: Any, *args: Any) -> Burst:
        start = time.perf_counter()
        job = Job(default_workdir=Path.cwd())
        for _ in range(count):
            add_task(job, call, args)
        job_id = self._client.submit(job).id
        submitted = time.perf_counter()
        self._wait_completed(job_id)
        return Burst(submitted - start, time.perf_counter() - start)

    def one(self, call: Callable[..., Any], *args: Any) -> Any:
        kept = Path.cwd() / "result.pickle"
        job = Job(default_workdir=Path.cwd())
        job.function(tasks.keep, args=(str(kept), call, args))
        self._client.wait_for_jobs([self._client.submit(job)])
        with kept.open("rb") as file:
            return pickle.load(file)

    def _wait_completed(self, job_id: int) -> None:
        while not (counters := self._look(job_id))["completed"]:
            time.sleep(LOOK_EVERY)
        if counters["failed"]:
            raise RuntimeError(f"HyperQueue: {counters['failed']} of {counters['total']} tasks failed")

    def _look(self, job_id: int) -> dict[str, int]:
        looks: list[dict[int, dict[str, int]]] = []

        def look(jobs: dict[int, dict[str, int]]) -> None:
            looks.append({key: dict(counters) for key, counters in jobs.items()})
            raise Looked

        with contextlib.suppress(Looked):
            self._client.connection.wait_for_jobs((job_id,), look)
        return looks[0][job_id]


def add_task(job: Job, call: Any, args: tuple[Any, ...]) -> None:
    if call is HyperQueuePool.program:
        job.program(list(call))
    else:
        job.function(call, args=args)
