"""What an agent has to give, and what of it a task is given. Amounts are whole numbers of ten-thousandths.

A :class:`Pool` is one resource of an agent. Indexed ones have parts with names (CPUs, GPUs), perhaps in groups (NUMA
nodes); the others are a plain sum (memory, in MiB). A :class:`Share` is what a task has of one pool, a :class:`Place`
what one task at a time has of an agent.

After HyperQueue's resource pools.
"""

from __future__ import annotations

from typing import Final

import msgspec

#: One of something.
UNIT: Final = 10_000


class Pool(msgspec.Struct, array_like=True, frozen=True):
    """A resource of an agent: indexed (``groups`` of names, ``size`` is 0), or a sum of ``size`` units."""

    name: str
    groups: list[list[str]] = []
    size: int = 0

    @property
    def total(self) -> int:
        """All there is of it, in units."""
        return self.size or UNIT * sum(map(len, self.groups))


class Share(msgspec.Struct, array_like=True, frozen=True):
    """So much of one pool, in units. Of the named ``indices`` all are whole but the last, if the amount has a part."""

    name: str
    amount: int
    indices: list[str] = []


class Place(msgspec.Struct, array_like=True, frozen=True):
    """Where one task at a time runs: a number that its lane gives once, and what the task has there."""

    number: int
    shares: list[Share]
