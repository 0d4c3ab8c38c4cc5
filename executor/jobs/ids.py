"""The numbers of an array's tasks as text: ``1,2,50-100`` or ``0-98:2``, after HyperQueue's array syntax.

    comma list of  START[-END][:STEP]   both ends belong to it; blanks, and "_" between digits, are allowed
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from executor.refusals import shown

#: An array has no more tasks than that: "0-4294967295" is a slip, and would take all memory.
MOST_IDS: Final = 10_000_000
#: Numbers of tasks are those of HyperQueue: 32 bits.
LARGEST_ID: Final = 2**32 - 1

_HELP = "expected numbers and ranges such as '1,2,50-100' or '0-98:2'"
_NUMBER = r"\d(?:_?\d)*"
_PART = re.compile(
    rf"\s*(?P<start>{_NUMBER})\s*(?:-\s*(?P<end>{_NUMBER})\s*)?(?::\s*(?P<step>{_NUMBER})\s*)?", re.ASCII
)


def parse_ids(text: str) -> list[int]:
    """The numbers, in the order in which they are written.

    :raises ValueError: text that is no such list; a range that ends before it begins, or that overlaps another one;
        a step that is 0 or beyond the range's end.
    """
    ranges: list[range] = []
    for part in text.split(","):
        new = _parse_part(part)
        _refuse_overlap(new, ranges)
        ranges.append(new)
        if sum(map(len, ranges)) > MOST_IDS:
            raise ValueError(f"{shown(text)} has more than {MOST_IDS:,} numbers; make several arrays of them")
    return [number for each in ranges for number in each]


def _parse_part(part: str) -> range:
    match = _PART.fullmatch(part)
    if match is None:
        raise ValueError(f"{_HELP}, not {shown(part.strip())}")
    start, end, step = (None if text is None else int(text) for text in match.group("start", "end", "step"))
    assert start is not None
    if end is None and step is not None:
        raise ValueError(f"{shown(part.strip())} has a step and no end; {_HELP}")
    end = start if end is None else end
    if end > LARGEST_ID:
        raise ValueError(f"{shown(part.strip())}: a task's number is {LARGEST_ID} at most")
    if end < start:
        raise ValueError(f"{shown(part.strip())} ends before it begins; write {end}-{start}")
    if step is not None and not 0 < step <= end - start:
        raise ValueError(f"{shown(part.strip())}: the step has to be from 1 to {end - start}, the length of the range")
    return range(start, end + 1, step or 1)


def _refuse_overlap(new: range, ranges: Iterable[range]) -> None:
    for old in ranges:
        if new.start <= old[-1] and old.start <= new[-1]:
            raise ValueError(f"the ranges {_render(old)} and {_render(new)} overlap; each number may be there once")


def render_ids(ids: Sequence[int]) -> str:
    """Text that :func:`parse_ids` reads as these numbers, which are all different; short where they are in a row."""
    return ",".join(map(_render, _runs(ids)))


def _runs(ids: Sequence[int]) -> Iterator[range]:
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or ids[end] != ids[end - 1] + 1:
            yield range(ids[start], ids[end - 1] + 1)
            start = end


def _render(ids: range) -> str:
    step = "" if ids.step == 1 else f":{ids.step}"
    return str(ids.start) if len(ids) == 1 else f"{ids.start}-{ids[-1]}{step}"
