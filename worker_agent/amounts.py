"""Amounts as people write them: whole numbers, sizes of memory, decimals that are exact to ten-thousandths."""

from __future__ import annotations

import operator
import re
from fractions import Fraction
from typing import Final, SupportsIndex

from worker_agent.pools import UNIT

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<prefix>[kmgtp]?)(?P<suffix>i?b)?", re.ASCII | re.IGNORECASE)
_SIZE_HELP = "expected bytes (4194304) or text such as '4MiB' or '512 KB'"
_DECIMAL = re.compile(r"(\d+)(?:\.(\d{1,4})0*)?", re.ASCII)

#: Bytes in one of the resource ``memory``.
MIB: Final = 1024**2


def read_count(value: object, expected: str = "expected a whole number, 0 or more, such as 3") -> int:
    """A whole number, 0 or more.

    :raises TypeError: no int; a bool is not an int here. The message is ``expected``.
    :raises ValueError: a negative number.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):  # NumPy's integers are welcome
        raise TypeError(expected)
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(expected) from None
    if number < 0:
        raise ValueError(f"{expected}; it cannot be negative")
    return number


def parse_size(value: object) -> int:
    """Bytes, 0 or more, from an int or from text such as ``"4MiB"``; a fraction of a byte is dropped.

    Units are as in Slurm and GNU: KiB, MiB, ... and K, M, ... count in 1024, KB, MB, ... in 1000. Case does
    not matter. Text without a unit is bytes.

    :raises TypeError: neither an int nor text; a bool is not an int here.
    :raises ValueError: text that is no size, or a negative number.
    """
    if not isinstance(value, str):
        return read_count(value, _SIZE_HELP)
    match = _SIZE.fullmatch(value.strip())
    if match is None or ((match["suffix"] or "").lower() == "ib" and not match["prefix"]):
        raise ValueError(_SIZE_HELP)
    thousand = 1000 if (match["suffix"] or "").lower() == "b" else 1024
    return int(Fraction(match["number"]) * thousand ** " kmgtp".index(match["prefix"].lower() or " "))


def units_of_memory(size: int) -> int:
    """So many bytes in units of the resource ``memory``, which counts MiB; what is less than a unit is dropped."""
    return size * UNIT // MIB


def parse_units(text: str) -> int:
    """Units from a decimal number without a sign, such as ``"2.5"``.

    :raises ValueError: text that is none, or one that is not a whole number of ten-thousandths.
    """
    match = _DECIMAL.fullmatch(text.strip())
    if match is None:
        raise ValueError("expected a number with at most 4 decimal places, such as 2 or 0.25")
    whole, part = match.groups("")
    return int(whole) * UNIT + int(part.ljust(4, "0"))
