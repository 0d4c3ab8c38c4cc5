"""Many seeds: ``python tests/simulation/simulate.py 1000000 [--jobs N] [--first SEED] [--go-on]``.

Each core takes some hundred in a second; a line says now and then how far it is. Ends at the first seed that fails,
with its story, unless it is to ``--go-on``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, NamedTuple

from story import story
from world import World

#: Seeds that a process runs before it says what happened.
CHUNK = 250
#: Seconds between two lines of progress.
TELL = 10.0


class Ran(NamedTuple):
    """What has happened in some seeds, and which of them failed, and how."""

    seeds: int
    seen: Counter[Any]
    failed: list[tuple[int, str]]


def run_seeds(first: int, count: int) -> Ran:
    """These seeds, one after the other."""
    seen: Counter[Any] = Counter()
    failed = []
    for seed in range(first, first + count):
        world = World(seed)
        try:
            world.run()
        except Exception as error:
            failed.append((seed, f"{type(error).__name__}: {error}"))
        seen.update(world.seen)
    return Ran(count, seen, failed)


def run_in_processes(first: int, count: int, jobs: int) -> Iterator[Ran]:
    """The same in so many processes, as they come. To close it is to start no more of them."""
    starts = range(first, first + count, CHUNK)
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:  # whoever calls may have threads
        futures = [pool.submit(run_seeds, start, min(CHUNK, first + count - start)) for start in starts]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


class Progress:
    """How far it is."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._began = self._told = time.monotonic()

    def add(self, count: int) -> None:
        """So many more seeds have been run."""
        self._done += count
        if time.monotonic() > self._told + TELL:
            self._told = time.monotonic()
            left = (self._total - self._done) / self.rate
            print(f"{self._done} of {self._total}: {self.rate:.0f} seeds/s, {left:.0f} s to go", flush=True)

    @property
    def rate(self) -> float:
        """Seeds in a second."""
        return self._done / max(time.monotonic() - self._began, 1e-9)

    def __str__(self) -> str:
        return f"{self._done} seeds in {time.monotonic() - self._began:.1f} s: {self.rate:.0f} seeds/s"


def main() -> int:
    """Run the seeds, and say how fast, and what has happened in them."""
    options = read_arguments()
    seen: Counter[Any] = Counter()
    failed, progress = 0, Progress(options.seeds)
    for ran in run_in_processes(options.first, options.seeds, options.jobs):
        progress.add(ran.seeds)
        seen.update(ran.seen)
        failed += len(ran.failed)
        for seed, what in ran.failed:
            print(f"seed {seed}: {what}" if options.go_on else story(seed), flush=True)
        if ran.failed and not options.go_on:
            break
    print(render_coverage(seen))
    print(f"{progress} with {options.jobs} processes; {failed} failed")
    return failed > 0


def read_arguments() -> argparse.Namespace:
    """What the command line wants."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("seeds", type=int, nargs="?", default=20_000, help="how many")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--go-on", action="store_true", help="one line for each seed that fails, and no end")
    return parser.parse_args()


def render_coverage(seen: Counter[Any]) -> str:
    """How often each thing happened."""
    lines = [f"{count:10}  {' × '.join(what) if isinstance(what, tuple) else what}" for what, count in seen.items()]
    return "\n".join(sorted(lines, key=lambda line: line[12:]))


if __name__ == "__main__":
    sys.exit(main())
