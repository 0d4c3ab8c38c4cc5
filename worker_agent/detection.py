"""What this process may really use of its machine: CPUs, memory and GPUs; and how to limit and divide that.

A machine has more than we may use: an affinity, control groups and a batch system's grant all take away from it, and
the least that any of them leaves counts. What cannot be read or understood sets no limit: nothing here raises for it.
``proc``, ``sys`` and ``cgroup`` say where these file systems are mounted; tests give trees of their own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile

from worker_agent.amounts import MIB
from worker_agent.cgroups import memory_limit, positive, read_text, usable_cpus
from worker_agent.grants import granted_cpus, granted_memory
from worker_agent.pools import UNIT, Pool


def detect(
    proc: str = "/proc", sys: str = "/sys", cgroup: str = "/sys/fs/cgroup", env: Mapping[str, str] = os.environ
) -> list[Pool]:
    """The pools of this process, in this order: ``cpus``, ``memory``, ``gpus/nvidia``, ``gpus/amd``.

    Those of which there is nothing are left out.
    """
    cpus = sorted(os.sched_getaffinity(0))
    pools = [
        Pool("cpus", _first(_by_node(cpus, sys), _most_cpus(cpus, proc, cgroup, env))),
        Pool("memory", size=_memory(len(cpus), proc, cgroup, env) // MIB * UNIT),
        *_gpus(proc, sys, env),
    ]
    return [pool for pool in pools if pool.total]


# ---- CPUs --------------------------------------------------------------------------------------------------


def _most_cpus(cpus: Sequence[int], proc: str, cgroup: str, env: Mapping[str, str]) -> int:
    return min(usable_cpus(proc, cgroup), granted_cpus(env) or len(cpus))


def _by_node(cpus: Sequence[int], sys: str) -> list[list[str]]:
    """The CPUs in the groups of their NUMA nodes; those of which no node knows are a group of their own."""
    left = dict.fromkeys(cpus)
    groups = []
    for node in _numbered(f"{sys}/devices/system/node", "node"):
        known = [cpu for cpu in _parse_cpus(read_text(f"{node}/cpulist")) if cpu in left]
        groups.append(sorted(set(known)))
        for cpu in groups[-1]:
            del left[cpu]
    return [[str(cpu) for cpu in group] for group in [*groups, list(left)] if group]


def _parse_cpus(text: str) -> Iterator[int]:
    """The numbers of a list such as ``0-3,8``."""
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if _CPU.fullmatch(first) and _CPU.fullmatch(last if dash else first):
            yield from range(int(first), int(last if dash else first) + 1)


#: The kernel has 8192 at most; a number of any length would be counted up to.
_CPU = re.compile(r"[0-9]{1,5}")


def _numbered(directory: str, prefix: str) -> list[str]:
    """The paths in a directory of names that end with a number, by that number."""
    numbers = [name.removeprefix(prefix) for name in _list(directory) if name.startswith(prefix)]
    return [f"{directory}/{prefix}{number}" for number in sorted(filter(_CPU.fullmatch, numbers), key=int)]


def _list(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:  # what cannot be read is not there for us
        return []


# ---- memory ------------------------------------------------------------------------------------------------


def _memory(cpus: int, proc: str, cgroup: str, env: Mapping[str, str]) -> int:
    """Bytes; 0 if nobody says."""
    limits = [_installed(proc), memory_limit(proc, cgroup), granted_memory(env, cpus)]
    return min((limit for limit in limits if limit is not None), default=0)


def _installed(proc: str) -> int | None:
    match = re.search(r"^MemTotal:\s*([0-9]+) kB$", read_text(f"{proc}/meminfo"), re.MULTILINE)
    kib = positive(match[1]) if match else None
    return None if kib is None else 1024 * kib


# ---- GPUs --------------------------------------------------------------------------------------------------

#: A number, or a name that the maker gave it. Where CUDA finds anything else, it ignores that and all that follows.
_DEVICE = re.compile(r"[0-9]+|(?:GPU|MIG)-[0-9A-Za-z/-]+")


def _gpus(proc: str, sys: str, env: Mapping[str, str]) -> Iterator[Pool]:
    """The GPUs that variables let us see; where these say nothing, all that the drivers have.

    Slurm sets the variables of both makers unless its configuration says whose GPUs it has: the variable of one is not
    believed where there is only the driver of the other.
    """
    nvidia, amd = _count_nvidia(proc), _count_amd(sys)
    if nvidia or not amd:
        yield _gpu_pool("gpus/nvidia", env.get("CUDA_VISIBLE_DEVICES"), nvidia)
    if amd or not nvidia:
        yield _gpu_pool("gpus/amd", env.get("ROCR_VISIBLE_DEVICES"), amd)


def _gpu_pool(name: str, visible: str | None, count: int) -> Pool:
    devices = list(map(str, range(count))) if visible is None else _parse_devices(visible)
    return Pool(name, [devices] if devices else [])


def _parse_devices(text: str) -> list[str]:
    return list(dict.fromkeys(takewhile(_DEVICE.fullmatch, map(str.strip, text.split(",")))))


def _count_nvidia(proc: str) -> int:
    """How many CUDA would count from 0 in the order of the bus; so their numbers ("Device Minor") do not matter."""
    directory = f"{proc}/driver/nvidia/gpus"
    texts = [read_text(f"{directory}/{bus}/information") for bus in _list(directory)]
    return sum(
        bool(re.search(r"^Device Minor:\s*\d", text, re.MULTILINE))
        and not re.search(r"^GPU Excluded:\s*Yes", text, re.MULTILINE)
        for text in texts
    )


def _count_amd(sys: str) -> int:
    """How many nodes of the driver's have processors of a GPU; CPUs are nodes too, and those of others are not read."""
    nodes = _numbered(f"{sys}/class/kfd/kfd/topology/nodes", "")
    return sum(bool(re.search(r"^simd_count 0*[1-9]", read_text(f"{node}/properties"), re.MULTILINE)) for node in nodes)


# ---- less, or more, or parts of it -------------------------------------------------------------------------


def limited(pools: Iterable[Pool], cpus: int) -> list[Pool]:
    """These pools with just so many CPUs: the first there are, and further numbers if there are not enough.

    Users may ask for more than there are. These numbers follow the greatest, and go to the smallest groups.
    """
    if cpus < 0:
        raise ValueError(f"cpus={cpus}: expected how many CPUs to have, 0 or more")
    pools = list(pools)
    groups = [group for pool in pools if pool.name == "cpus" for group in _first(pool.groups, cpus)]
    chosen = [Pool("cpus", _extended(groups, cpus))] if cpus else []
    return chosen + [pool for pool in pools if pool.name != "cpus"]


def _extended(groups: Sequence[Sequence[str]], count: int) -> list[list[str]]:
    extended = [list(group) for group in groups] or [[]]
    names = [name for group in groups for name in group]
    first = 1 + max((int(name) for name in names if name.isdecimal()), default=-1)
    for number in range(first, first + count - len(names)):
        min(extended, key=len).append(str(number))
    return extended


def divided(pools: Iterable[Pool], count: int) -> list[list[Pool]]:
    """What each of ``count`` agents on one machine has of these pools: nothing twice, and as even as can be.

    What is left over goes to the first ones, neighbours stay together, and who gets nothing of a pool has none.
    """
    if count < 1:
        raise ValueError(f"count={count}: expected how many agents to divide by, 1 or more")
    pools = list(pools)
    portions = [[_portion(pool, number, count) for pool in pools] for number in range(count)]
    return [[pool for pool in portion if pool.total] for portion in portions]


def _portion(pool: Pool, number: int, count: int) -> Pool:
    each, left = divmod(pool.size or sum(map(len, pool.groups)), count)
    start = number * each + min(number, left)
    end = start + each + (number < left)
    return Pool(pool.name, size=end - start) if pool.size else Pool(pool.name, _slice(pool.groups, start, end))


def _first(groups: Iterable[Sequence[str]], count: int) -> list[list[str]]:
    return _slice(groups, 0, count)


def _slice(groups: Iterable[Sequence[str]], start: int, end: int) -> list[list[str]]:
    """The names from one position to another, counted over all groups: in their groups, of which none is empty."""
    found = []
    position = 0
    for group in groups:
        found.append(list(group[max(0, start - position) : max(0, end - position)]))
        position += len(group)
    return [group for group in found if group]
