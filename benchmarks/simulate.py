"""`python -m benchmarks.simulate`: the real scheduler, with thousands of agents that are not there.

Time is virtual; nothing is sent, no thread runs. Measured are

- decisions per second: starts, divided by the time within calls of the scheduler, of which only the part counts in
  which our process had a CPU, as on average over the run: other load on the machine does not count;
- the makespan, against what no scheduler can beat: the critical path, or all work divided by what there is;
- bytes per waiting task (``--waiting``).

It fails if anything is claimed twice, if a task does not end exactly once, or if a claim is not given back.
"""

import argparse
import gc
import os
import resource
import statistics
import sys
import time
import tracemalloc

from benchmarks.simulate_bounds import critical_path, work_bounds
from benchmarks.simulate_shapes import SHAPES, Job, Size, make_jobs, make_pools
from benchmarks.simulate_world import Measured, World
from executor.core.dependents import Condition
from executor.core.model import Task
from executor.core.scheduler import Scheduler


def main() -> int:
    """Run what the command line wants, and tell."""
    options = read_arguments()
    if options.waiting:
        for awaited in (0, 1, 2, 3):
            print(f"{bytes_per_waiting_task(options.waiting, awaited):6.0f} bytes per task that waits for "
                  f"{f'{awaited} others' if awaited else 'room'}")  # fmt: skip
        return 0
    size = Size(options.agents, options.cpus, options.tasks, options.classes, options.seed, options.jitter)
    jobs = make_jobs(options.shape, size)
    print(render_size(size, options.shape, jobs), flush=True)
    rates = []
    for _ in range(options.rounds):
        measured = simulate(size, jobs, lost=options.lost, check=options.check)
        rates.append(measured.decisions)
        print(render_measured(measured), flush=True)
    print(render_bounds(size, jobs, measured))
    if options.rounds > 1:
        print(f"median of {options.rounds}: {statistics.median(rates):,.0f} decisions/s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak RSS {peak:,.0f} MiB with the simulation's own, load {os.getloadavg()[0]:.1f}")
    return 0


def simulate(size: Size, jobs: list[Job], *, lost: float = 0.0, check: int = 0) -> Measured:
    """All jobs, from the first submit to the last end; ``lost`` is the part of the agents that die meanwhile."""
    pools = make_pools(size)
    world = World(pools, jobs, check=check)
    world.lose(round(lost * size.agents), lower_bound(size, jobs), size.seed)
    return world.run()


def lower_bound(size: Size, jobs: list[Job]) -> float:
    """No scheduler ends sooner."""
    return max(critical_path(jobs), *work_bounds(jobs, make_pools(size)).values())


def bytes_per_waiting_task(tasks: int, awaited: int) -> float:
    """What the scheduler has for a task that waits for room, or for others to end."""
    scheduler = Scheduler()
    scheduler.submit([Task(number, 0, None) for number in range(1, tasks + 1)], 0.0)
    gc.collect()
    tracemalloc.start()
    try:
        new = range(tasks + 1, 2 * tasks + 1)
        if awaited:
            for number in new:
                after = [Condition(1 + (number + step) % tasks) for step in range(awaited)]
                scheduler.submit_after(Task(number, 0, None), after, 0.0)
        else:
            scheduler.submit([Task(number, 0, None) for number in new], 0.0)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / tasks
    finally:
        tracemalloc.stop()


def render_size(size: Size, shape: str, jobs: list[Job]) -> str:
    """What is simulated."""
    kinds = len({job.kind.environment for job in jobs})
    return f"{shape}: {len(jobs):,} tasks of {kinds} classes on {size.agents:,} agents with {size.cpus} CPUs each"


def render_measured(measured: Measured) -> str:
    """One round."""
    rare = {"lost agents": measured.lost, "requeued": measured.requeued, "recalled": measured.recalled}
    return (
        f"{measured.decisions:10,.0f} decisions/s: {measured.starts:,} starts, {measured.calls:,} calls, "
        f"{measured.seconds:.2f} s" + "".join(f", {number:,} {what}" for what, number in rare.items() if number)
    )


def render_bounds(size: Size, jobs: list[Job], measured: Measured) -> str:
    """The makespan and what bounds it."""
    bounds = {"critical path": critical_path(jobs), **work_bounds(jobs, make_pools(size))}
    best = max(bounds.values())
    details = ", ".join(f"{what} {seconds:.1f}" for what, seconds in bounds.items())
    ratio = measured.makespan / best
    return f"makespan {measured.makespan:.1f} s = {ratio:.3f} x the bound of {best:.1f} s ({details})"


def read_arguments() -> argparse.Namespace:
    """What the command line wants."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulate", description=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    default = Size()
    parser.add_argument("--shape", choices=SHAPES, default="equal", help="which tasks (default: %(default)s)")
    parser.add_argument("--agents", type=int, default=default.agents, help="how many (default: %(default)s)")
    parser.add_argument("--cpus", type=int, default=default.cpus, help="of each agent (default: %(default)s)")
    parser.add_argument("--tasks", type=int, default=default.tasks, help="how many, about (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=default.classes,
                        help="of different needs; equal tasks have one (default: %(default)s)")  # fmt: skip
    parser.add_argument("--jitter", type=float, default=default.jitter, metavar="PART",
                        help="equal tasks take up to this part more or less than the others")  # fmt: skip
    parser.add_argument("--lost", type=float, default=0.0, metavar="PART",
                        help="this part of the agents dies at random times; others come for them")  # fmt: skip
    parser.add_argument("--seed", type=int, default=default.seed, help="of all that is random (default: %(default)s)")
    parser.add_argument("--check", type=int, default=0, metavar="EVENTS",
                        help="look at all books after so many events, not only at the end")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=1, help="run it so often; the median is told, too")
    parser.add_argument("--waiting", type=int, default=0, metavar="TASKS",
                        help="only measure the memory of so many waiting tasks")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    began = time.perf_counter()
    status = main()
    print(f"{time.perf_counter() - began:.1f} s in all")
    sys.exit(status)
