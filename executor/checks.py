"""What the constructor, ``map`` and ``submit`` are given: checked, and put into the form that the rest works with.

Each function gives the value to go on with, and raises TypeError or ValueError that names the argument, its value and
what was expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from executor.options import is_text, parse_duration
from executor.program import Program
from worker_agent import detection
from worker_agent.declared import parse_pools
from worker_agent.pools import Pool


def check_workers(max_workers: int | None) -> int | None:
    """How many tasks run at a time, if that is said."""
    if max_workers is None:
        return None
    if isinstance(max_workers, bool) or not isinstance(max_workers, int):
        raise TypeError(f"max_workers={max_workers!r}: expected an int, or None for all usable CPUs")
    if max_workers <= 0:
        raise ValueError(f"max_workers must be greater than 0, not {max_workers}")
    return max_workers


def check_resources(resources: Mapping[str, Any] | None, max_workers: int | None) -> list[Pool]:
    """What agents here have: what is declared, else what is found; ``max_workers`` CPUs if that is said."""
    if resources is not None and not isinstance(resources, Mapping):
        raise TypeError(f"resources={resources!r}: expected a mapping of names to what there is, such as {{'fpga': 2}}")
    declared = {pool.name: pool for pool in parse_pools(resources or {})}
    if max_workers is not None and "cpus" in declared:
        raise ValueError(f"max_workers={max_workers} and resources={{'cpus': ...}}: say only one of them")
    pools = list({**{pool.name: pool for pool in detection.detect()}, **declared}.values())
    return pools if max_workers is None else detection.limited(pools, max_workers)


def check_context(context: Any) -> str:
    """How interpreters are started: "fork" or "spawn"."""
    if context is None:
        return "fork"
    if not hasattr(context, "get_start_method"):
        raise TypeError(f"mp_context={context!r}: expected a context as of multiprocessing.get_context(), or None")
    return "spawn" if context.get_start_method() == "spawn" else "fork"


def check_initializer(initializer: Any) -> None:
    """Something that can be called, or None."""
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")


def check_agents(agents: Any, cpus: int) -> int:
    """How many agents are started here."""
    if isinstance(agents, bool) or not isinstance(agents, int):
        raise TypeError(f"agents={agents!r}: expected a number of agents on this machine, such as 2")
    if not 0 <= agents <= cpus:
        raise ValueError(f"agents={agents}: expected 0 to {cpus}, the number of CPUs; each agent has one at least")
    return agents


#: Seconds: a shorter lease would run out while a busy machine has no time for the agent.
SHORTEST_LEASE = 1.0


def check_duration(name: str, value: Any, least: float = 0.0) -> float:
    """Seconds."""
    try:
        seconds = parse_duration(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}={value!r}: {error}") from None
    if seconds < least:
        raise ValueError(f"{name}={value!r}: expected {least:g} s or more")
    return seconds


def check_max_tasks(max_tasks: int | None) -> int | None:
    """How many tasks an interpreter runs; None: any number."""
    if max_tasks is None:
        return None
    if isinstance(max_tasks, bool) or not isinstance(max_tasks, int):
        raise TypeError(f"max_tasks_per_child must be an integer or None, not {max_tasks!r}")
    if max_tasks <= 0:
        raise ValueError(f"max_tasks_per_child must be >= 1, not {max_tasks}")
    return max_tasks


def check_modules(name: str, modules: Sequence[str]) -> list[str]:
    """Names of modules, which the argument of that name has."""
    if isinstance(modules, str) or not all(isinstance(each, str) for each in modules):
        raise TypeError(f"{name}={modules!r}: expected a list of names of modules, such as ['numpy']")
    return list(modules)


def check_map(chunksize: int, buffersize: int | None) -> None:
    """How the calls of a ``map`` are cut into tasks, and how many wait."""
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is not None and not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")


def check_program_call(program: Program, args: Any, kwargs: dict[str, Any]) -> None:
    """A program that can be sent, and nothing beside it."""
    for position, word in enumerate(program.argv):
        if not is_text(word):
            raise ValueError(f"argv[{position}] of {program!r} is not UTF-8: rename the file, or let a script name it")
    if args or kwargs:
        raise TypeError("a Program takes no arguments when it is called or submitted: they are part of its argv")
