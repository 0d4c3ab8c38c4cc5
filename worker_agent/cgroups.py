"""What our control groups leave to us of the machine's CPUs and memory, in their version 2 and version 1.

``proc`` and ``cgroup`` say where these file systems are mounted; tests give trees of their own. Nothing here raises:
what cannot be read or understood sets no limit.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator

_NUMBER = re.compile(r"[0-9]{1,19}")


def usable_cpus(proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> int:
    """How many CPUs we may keep busy: the affinity, and the control groups' quota rounded up; at least 1."""
    cpus = len(os.sched_getaffinity(0))
    quota = cpu_quota(proc, cgroup)
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def cpu_quota(proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> float | None:
    """CPUs' worth of time that our control group and all those around it leave to us, or None: no limit."""
    quotas = [_read_quota(directory) for directory in _groups_around_us("cpu", proc, cgroup)]
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_limit(proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> int | None:
    """Bytes of memory that our control group and all those around it leave to us, or None: no limit.

    Version 1 says 2**63, less a page, where it sets none.
    """
    limits = [_read_memory_limit(directory) for directory in _groups_around_us("memory", proc, cgroup)]
    return min((limit for limit in limits if limit is not None), default=None)


def _groups_around_us(controller: str, proc: str, cgroup: str) -> Iterator[str]:
    """The directories of our group and its ancestors, in version 2 and in version 1's ``controller``."""
    for line in read_text(f"{proc}/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for mount in _mounts(controller, number, controllers):
            yield from with_ancestors(f"{cgroup}{mount}", path)


def _mounts(controller: str, number: str, controllers: str) -> list[str]:
    if number == "0" and not controllers:
        return ["", "/unified"]  # version 2; the second where both versions are in use
    return [f"/{controller}", f"/{controllers}"] if controller in controllers.split(",") else []


def with_ancestors(root: str, path: str) -> Iterator[str]:
    """The directories of a group and of those around it, the innermost first."""
    # In a container the path may be that of the host, of which only the root is mounted: what is missing is
    # skipped by the reader. ".." stands for groups outside of our namespace, which cannot be read.
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for length in range(len(parts), -1, -1):
        yield "/".join([root, *parts[:length]])


def _read_quota(directory: str) -> float | None:
    words = read_text(f"{directory}/cpu.max").split() or [
        read_text(f"{directory}/cpu.cfs_quota_us").strip(),
        read_text(f"{directory}/cpu.cfs_period_us").strip(),
    ]
    quota, period = map(positive, words) if len(words) == 2 else (None, None)
    return quota / period if quota and period else None  # "max" in version 2, -1 in version 1, or no such file


def _read_memory_limit(directory: str) -> int | None:
    text = read_text(f"{directory}/memory.max") or read_text(f"{directory}/memory.limit_in_bytes")
    return positive(text.strip())  # "max" in version 2 if there is no limit


def positive(text: str) -> int | None:
    """The whole number above 0 that this is, or None if it is anything else."""
    return (int(text) or None) if _NUMBER.fullmatch(text) else None


def read_text(path: str) -> str:
    """What is in a file of the kernel's; "" if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except (OSError, ValueError):  # what cannot be read, or is no path, sets no limit that we know of
        return ""
