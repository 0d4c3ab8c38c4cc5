"""How soon all jobs of a simulation can have ended at best."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from benchmarks.simulate_shapes import Job, Kind
from executor.core.needs import Needs
from worker_agent.pools import Pool

#: Weights of one resource against another: what is gained by one variant is lost by the other.
_WEIGHTS = [2.0**power for power in range(-3, 9)]


def critical_path(jobs: Iterable[Job]) -> float:
    """The longest chain of jobs that wait for one another, in seconds."""
    ends: dict[int, float] = {}
    for job in jobs:
        ends[job.number] = job.seconds + max((ends[number] for number in job.after), default=0.0)
    return max(ends.values(), default=0.0)


def work_bounds(jobs: Iterable[Job], agents: Iterable[Sequence[Pool]]) -> dict[str, float]:
    """Seconds in which the agents can do all the work, by resource.

    "cpus and gpus" is for tasks that may choose between them: a weighted sum of two resources is one, too, and each
    task needs as much of it as its cheapest variant says. The weight that makes the bound largest counts.
    """
    capacity = Counter[str]()
    for pools in agents:
        for pool in pools:
            capacity[pool.name] += pool.total
    seconds: defaultdict[Kind, float] = defaultdict(float)
    for job in jobs:
        seconds[job.kind] += job.seconds
    bounds = {name: _bound(seconds, capacity, {name: 1.0}) for name in capacity}
    if capacity["gpus"]:
        ways = ({"cpus": 1.0, "gpus": weight} for weight in _WEIGHTS)
        bounds["cpus and gpus"] = max(_bound(seconds, capacity, weights) for weights in ways)
    return bounds


def _bound(seconds: dict[Kind, float], capacity: Counter[str], weights: dict[str, float]) -> float:
    work = sum(total * min(_weigh(needs, weights) for needs in kind.variants) for kind, total in seconds.items())
    return work / sum(weight * capacity[name] for name, weight in weights.items())


def _weigh(needs: Needs, weights: dict[str, float]) -> float:
    return sum(weights.get(need.name, 0.0) * (need.amount or 0) for need in needs.needs)
