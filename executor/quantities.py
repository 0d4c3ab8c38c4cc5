"""Durations, sizes and counts as people write them: ``"1h 30m"``, ``"4MiB"``, ``3``.

A reader gives the value in its final form, or raises TypeError or ValueError that says what was expected; whoever
calls it names the option.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from numbers import Real

from worker_agent.amounts import parse_size, read_count

__all__ = ["as_float", "parse_duration", "parse_size", "read_count"]

# ---- durations

_NUMBER = r"\d+(?:\.\d+)?"
_UNITS = {  # in the order in which they are written, each at most once
    "days": (86400.0, "days|day|d"),
    "hours": (3600.0, "hours|hour|hrs|hr|h"),
    "minutes": (60.0, "minutes|minute|mins|min|m"),
    "seconds": (1.0, "seconds|second|secs|sec|s"),
    "milliseconds": (0.001, "milliseconds|millisecond|msec|ms"),
}
_WORDS = re.compile(
    "".join(rf"(?:(?P<{unit}>{_NUMBER})\s*(?:{names})\s*)?" for unit, (_, names) in _UNITS.items()), re.ASCII
)
_CLOCK = re.compile(
    r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d(?:\.\d+)?)", re.ASCII
)
_HALF_A_CLOCK = re.compile(r"(\d+):(\d\d)", re.ASCII)
_DURATION_HELP = (
    "expected seconds (90, 0.5), a timedelta, or text such as '1h 30m', '500ms', '01:30:00' or '2-00:00:00'"
)


def parse_duration(value: object) -> float:
    """Seconds, 0 or more and finite, from a number of seconds, a ``timedelta`` or text.

    Text is either numbers with the units d, h, m, s, ms (or their names), the larger first: ``"1m 10s"``,
    ``"1.5h"``; or a clock ``HH:MM:SS`` or ``D-HH:MM:SS``. ``"10:30"`` and ``"90"`` are refused: batch systems
    do not agree on what they mean.

    :raises TypeError: anything else; a bool is not a number here.
    :raises ValueError: text that is no duration, a negative or infinite one, or NaN.
    """
    if isinstance(value, str):
        seconds = _parse_duration_text(value.strip())
    elif isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, Real) and not isinstance(value, bool):
        seconds = as_float(value)
    else:
        raise TypeError(_DURATION_HELP)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"expected a finite time that is not negative; {_DURATION_HELP}")
    return seconds


def as_float(value: Real) -> float:
    """The nearest float; infinity for what is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _parse_duration_text(text: str) -> float:
    if match := _CLOCK.fullmatch(text):
        return _clock_seconds(match)
    if text and (match := _WORDS.fullmatch(text)):
        return sum(_UNITS[unit][0] * float(number) for unit, number in match.groupdict("0").items())
    raise ValueError(_why_no_duration(text))


def _clock_seconds(match: re.Match[str]) -> float:
    part = {unit: float(number) for unit, number in match.groupdict("0").items()}
    if part["minutes"] >= 60 or part["seconds"] >= 60 or (match["days"] and part["hours"] >= 24):
        raise ValueError("minutes and seconds go up to 59, hours to 23 if there are days; write D-HH:MM:SS")
    return sum(_UNITS[unit][0] * number for unit, number in part.items())


def _why_no_duration(text: str) -> str:
    if match := _HALF_A_CLOCK.fullmatch(text):
        first, second = match.groups()
        return (
            f"hours and minutes, or minutes and seconds? Write '{first.zfill(2)}:{second}:00' or "
            f"'00:{first.zfill(2)}:{second}'"
        )
    if re.fullmatch(_NUMBER, text, re.ASCII):
        return f"a number without a unit means minutes to some and seconds to others; write '{text}s'"
    return _DURATION_HELP
