"""What users say that an agent has: text or lists to pools.

    4                     parts 0, 1, 2, 3
    2x4                   2 groups of 4 parts: 0 to 3, 4 to 7
    range(1-3)            parts 1, 2, 3
    [a, b]                parts with these names
    [[0, 1], [2, 3]]      the same in groups, such as the CPUs of NUMA nodes
    sum(2.5)              no parts, only an amount

``memory`` is an amount too, counted in MiB and written as a size: ``64GiB`` or ``sum(64GiB)``. CPUs always have parts,
named by their numbers.

After HyperQueue's definitions of resources of workers.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from worker_agent.amounts import parse_size, parse_units, read_count, units_of_memory
from worker_agent.pools import UNIT, Pool

MEMORY: Final = "memory"
CPUS: Final = "cpus"

_POOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9/_]*")
_PART_NAME = re.compile(r"[A-Za-z0-9_.:/+-]+")
_CPU_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")

_COUNT = re.compile(r"(\d+)", re.ASCII)
_GRID = re.compile(r"(\d+)\s*x\s*(\d+)", re.ASCII)
_RANGE = re.compile(r"range\s*\(\s*(\d+)\s*-\s*(\d+)\s*\)", re.ASCII)
_SUM = re.compile(r"sum\s*\((.*)\)")
_LIST = re.compile(r"\[([^\[\]]*)\]")
_LIST_OF_LISTS = re.compile(r"\[\s*\[[^\[\]]*\]\s*(?:,\s*\[[^\[\]]*\]\s*)*\]")

#: Parts of one resource: each has a name in messages and in memory, and no machine has as many.
_MOST_PARTS = 100_000
#: Units of a sum, which travel as 64 bits.
_MOST_UNITS = 2**63 - 1

_HELP = (
    "expected a number of parts (4), groups of parts ('2x4'), 'range(1-3)', a list of names ('[a, b]'), a list of such "
    "lists ('[[0, 1], [2, 3]]'), or an amount without parts ('sum(2.5)')"
)

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


def parse_pools(declared: Mapping[str, object]) -> list[Pool]:
    """A pool for each resource, from its name and text, a number, a list of names or a list of such lists.

    :raises TypeError: something else; the message names the resource and its value, as for ValueError.
    :raises ValueError: a name that is none, or what declares no pool.
    """
    if not isinstance(declared, Mapping):
        raise TypeError(f"resources {_repr.repr(declared)}: expected names and amounts, such as {{'cpus': 4}}")
    return [_read_pool(name, value) for name, value in declared.items()]


def parse_pool(name: str, text: str) -> Pool:
    """The pool that a text declares; errors as of :func:`parse_pools`."""
    if not isinstance(text, str):
        raise TypeError(f"resource {name}={_repr.repr(text)}: expected text; parse_pools() takes the rest, too")
    return _read_pool(name, text)


def _read_pool(name: str, value: object) -> Pool:
    try:
        _check_name(name)
        return _read_memory(value) if name == MEMORY else _read_parts_or_sum(name, value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"resource {name}={_repr.repr(value)}: {error}") from None


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError("expected text as the resource's name, such as 'gpus/nvidia'")
    if not _POOL_NAME.fullmatch(name):
        raise ValueError(
            "expected a name that begins with a letter and goes on with letters, digits, '/' and '_', "
            "such as 'gpus/nvidia'; rename the resource"
        )


# ---- amounts without parts ---------------------------------------------------------------------------------


def _read_memory(value: object) -> Pool:
    if isinstance(value, list | tuple | range) or (isinstance(value, str) and value.strip().startswith(("[", "range"))):
        raise ValueError("memory has no parts; write its size, such as '64GiB' or 'sum(64GiB)'")
    least = "a ten-thousandth of a MiB; write a size with its unit, such as '64GiB'"
    return _sum_pool(MEMORY, units_of_memory(_read_bytes(value)), least)


def _read_bytes(value: object) -> int:
    if isinstance(value, str):
        match = _SUM.fullmatch(value.strip())
        return parse_size(match[1] if match else value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("expected a finite size, such as '64GiB'")
        value = math.floor(value)
    return parse_size(value)


def _sum_pool(name: str, units: int, least: str) -> Pool:
    if units < 1:
        raise ValueError(f"expected at least {least}, or leave the resource out")
    if units > _MOST_UNITS:
        raise ValueError(f"expected less than {_MOST_UNITS // UNIT + 1}; write a smaller amount")
    return Pool(name, size=units)


# ---- parts with names --------------------------------------------------------------------------------------


def _read_parts_or_sum(name: str, value: object) -> Pool:
    text = value.strip() if isinstance(value, str) else ""
    if match := _SUM.fullmatch(text):
        if name == CPUS:
            raise ValueError("CPUs have numbers, which a sum has not; write how many (4), '2x4' or 'range(0-3)'")
        return _sum_pool(name, parse_units(match[1]), "0.0001")
    groups = _parse_groups(text) if isinstance(value, str) else _read_groups(value)
    _check_groups(name, groups)
    return Pool(name, groups=groups)


def _parse_groups(text: str) -> list[list[str]]:
    if match := _COUNT.fullmatch(text):
        return _grid(1, int(match[1]))
    if match := _GRID.fullmatch(text):
        return _grid(int(match[1]), int(match[2]))
    if match := _RANGE.fullmatch(text):
        return _range(int(match[1]), int(match[2]))
    if match := _LIST.fullmatch(text):
        return [_split(match[1])]
    if _LIST_OF_LISTS.fullmatch(text):
        return [_split(names) for names in _LIST.findall(text[1:-1])]
    raise ValueError(_HELP)


def _read_groups(value: object) -> list[list[str]]:
    if isinstance(value, list | tuple | range):
        nested = any(isinstance(each, list | tuple | range) for each in value)
        return [_read_names(group) for group in value] if nested else [_read_names(value)]
    if isinstance(value, float):
        value = _whole(value)
    return _grid(1, read_count(value, _HELP))


def _read_names(names: object) -> list[str]:
    if not isinstance(names, list | tuple | range):
        raise TypeError(f"expected names or lists of names, not both; put {_repr.repr(names)} into a list of its own")
    return [_read_part(name) for name in names]


def _read_part(name: object) -> str:
    return name.strip() if isinstance(name, str) else str(read_count(name, "expected parts named by text or numbers"))


def _whole(value: float) -> int:
    if not value.is_integer():  # infinities and NaN are not, either
        raise ValueError(f"expected a whole number of parts; write 'sum({value})' for an amount without parts")
    return int(value)


def _grid(groups: int, parts: int) -> list[list[str]]:
    _check_number(groups * parts)
    return [[str(first + part) for part in range(parts)] for first in range(0, groups * parts, parts)]


def _range(start: int, end: int) -> list[list[str]]:
    if end < start:
        raise ValueError(f"expected the smaller number first: 'range({end}-{start})'")
    _check_number(end - start + 1)
    return [[str(part) for part in range(start, end + 1)]]


def _split(names: str) -> list[str]:
    return [_unquoted(name.strip()) for name in names.split(",")] if names.strip() else []


def _unquoted(name: str) -> str:
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"" else name


# ---- what all parts have to be -----------------------------------------------------------------------------


def _check_groups(name: str, groups: Sequence[Sequence[str]]) -> None:
    if not groups or not all(groups):
        raise ValueError("expected at least one part in each list; leave out what is empty")
    parts = [part for group in groups for part in group]
    _check_number(len(parts))
    for part in parts:
        _check_part(name, part)
    if len(set(parts)) < len(parts):
        [(part, times)] = Counter(parts).most_common(1)
        raise ValueError(f"expected each part once, and {part!r} is there {times} times; name it once")


def _check_number(parts: int) -> None:
    if parts < 1:
        raise ValueError("expected at least 1 part, or leave the resource out")
    if parts > _MOST_PARTS:
        raise ValueError(f"expected at most {_MOST_PARTS} parts; write 'sum(...)' for an amount without parts")


def _check_part(name: str, part: str) -> None:
    if not _PART_NAME.fullmatch(part):
        raise ValueError(f"expected names of letters, digits and _.:/+-, without blanks, not {part!r}; rename it")
    if name == CPUS and not _CPU_NUMBER.fullmatch(part):
        raise ValueError(f"expected CPUs by their numbers as in /proc/cpuinfo, such as 0, not {part!r}")
