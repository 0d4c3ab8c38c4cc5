"""What an agent has to give, and what of it a task is given. Amounts are whole numbers of ten-thousandths.

A :class:`Pool` is one resource of an agent. Indexed ones have parts with names (CPUs, GPUs), perhaps in groups (NUMA
nodes); the others are a plain sum (memory, in MiB). A :class:`Share` is what a task has of one pool, a :class:`Place`
what one task at a time has of an agent.

After HyperQueue's resource pools.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

#: One of something.
UNIT: Final = 10_000
NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9/_]*")
#: Units of the largest pool: a message may hold such a number, and sums of many stay exact.
_MOST: Final = 2**53


class Pool(msgspec.Struct, array_like=True, frozen=True):
    """A resource of an agent: indexed (``groups`` of names, ``size`` is 0), or a sum of ``size`` units."""

    name: str
    groups: list[list[str]] = []
    size: int = 0

    @property
    def total(self) -> int:
        """All there is of it, in units."""
        return self.size or UNIT * sum(map(len, self.groups))


def trouble_with(pools: Sequence[Pool]) -> str:
    """What is wrong with pools that somebody says to have; "" if nothing is."""
    names = [pool.name for pool in pools]
    if len(set(names)) < len(names) or not all(map(NAME.fullmatch, names)):
        return f"its resources have names that are the same, or none: {names}"
    for pool in pools:
        parts = [part for group in pool.groups for part in group]
        if bool(parts) == bool(pool.size) or len(set(parts)) < len(parts) or not 0 <= pool.size <= _MOST:
            return f"its resource {pool.name!r} has parts twice, or a size that cannot be"
    return ""


class Share(msgspec.Struct, array_like=True, frozen=True):
    """So much of one pool, in units. Of the named ``indices`` all are whole but the last, if the amount has a part."""

    name: str
    amount: int
    indices: list[str] = []


class Place(msgspec.Struct, array_like=True, frozen=True):
    """Where one task at a time runs: a number that its lane gives once, and what the task has there."""

    number: int
    shares: list[Share]
