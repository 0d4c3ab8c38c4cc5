"""What a task may ask for besides resources: its name, environment, directory, output, limits and retries.

Users write options as it suits them (``time_limit="1m 10s"``, ``env={...}``, ``cwd=Path("run")``).
``make_options`` turns that into one ``TaskOptions``, whose fields have one form each, and refuses what makes
no sense where it is written, not an hour later in a queue. Everything relative is resolved here, since the
task runs elsewhere.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import reprlib
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from enum import Enum
from numbers import Real
from pathlib import Path
from typing import Final, TypeAlias

from executor.errors import OptionTypeError, OptionValueError
from worker_agent.amounts import parse_size, read_count

__all__ = [
    "CAPTURE", "DEVNULL", "FORWARD", "Destination", "Environment", "Stream", "TaskOptions",
    "make_options", "parse_duration", "parse_size", "unknown_option",
]  # fmt: skip


class Stream(Enum):
    """Where a task's stdout or stderr goes, if not to a file."""

    #: nowhere
    DEVNULL = "devnull"
    #: kept on the future, and shown nowhere
    CAPTURE = "capture"
    #: kept on the future, and shown on the same stream of the submitter
    FORWARD = "forward"


DEVNULL: Final = Stream.DEVNULL
CAPTURE: Final = Stream.CAPTURE
FORWARD: Final = Stream.FORWARD

#: A stream, or the absolute path of a file.
Destination: TypeAlias = Stream | str
#: Changes to the environment, sorted by name; None unsets the variable. Pairs, so that options can be hashed
#: and pickled.
Environment: TypeAlias = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How one task runs. Values are final and not checked again: make it with :func:`make_options`."""

    #: for logs, errors and displays; None: one is made from the function or the program
    name: str | None = None
    #: changes to the environment that the task would have had
    env: Environment = ()
    #: the absolute working directory; None: that of the submitter
    cwd: str | None = None
    stdout: Destination = FORWARD
    stderr: Destination = FORWARD
    #: seconds that one attempt may run; None: no limit
    time_limit: float | None = None
    #: how often a task that failed by itself is tried again
    retries: int = 0
    #: how often a task whose agent was lost is tried again
    crash_limit: int = 5
    #: bytes of each stream that are kept on the future: the first half and the last half of it
    output_limit: int = 4 * 1024**2


def make_options(base: TaskOptions, /, **changes: object) -> TaskOptions:
    """``base`` with ``changes``, checked and in their final form; ``base`` and the values stay as they are.

    :param name: str, or None.
    :param env: a mapping of str to str, or to None, which unsets the variable. It is merged over
        ``base.env``: new names are added, old ones replaced. ``env=None`` forgets the changes of ``base``.
    :param cwd: a directory (str or PathLike); relative to the directory of this process at this moment.
    :param stdout, stderr: a file (str or PathLike, relative as above), ``DEVNULL``, ``CAPTURE`` or
        ``FORWARD``, or ``subprocess.DEVNULL`` and ``subprocess.PIPE`` (the same as ``CAPTURE``).
    :param time_limit: seconds or text, more than zero, see :func:`parse_duration`; None for no limit.
    :param retries, crash_limit: int, 0 or more.
    :param output_limit: bytes or text, see :func:`parse_size`.
    :raises OptionTypeError: an option that does not exist, or a value of a wrong type.
    :raises OptionValueError: a value of a right type that makes no sense.
    """
    final = {name: _read(base, name, value) for name, value in changes.items()}
    return replace(base, **final)  # type: ignore[arg-type]  # the readers have checked them


def _read(base: TaskOptions, name: str, value: object) -> object:
    if name not in _READERS:
        raise unknown_option(name, _READERS)
    try:
        final = _READERS[name](value)
    except TypeError as error:
        raise OptionTypeError(f"option {_shown(name, value)}: {error}") from None
    except ValueError as error:
        raise OptionValueError(f"option {_shown(name, value)}: {error}") from None
    return _merged(base.env, final) if name == "env" else final


def unknown_option(name: str, known: Iterable[str]) -> OptionTypeError:
    """The error for an option ``name`` that does not exist; it names the nearest and all of ``known``."""
    names = list(known)
    synonym = _SYNONYMS.get(name)
    nearest = [synonym] if synonym in names else difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return OptionTypeError(f"there is no option {name!r}{hint} The options are: {', '.join(names)}")


#: Words of other tools. By its letters alone, "timeout" would be nearest to "stdout".
_SYNONYMS = {
    "directory": "cwd",
    "environment": "env",
    "max_retries": "retries",
    "timeout": "time_limit",
    "walltime": "time_limit",
    "workdir": "cwd",
}

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


def _shown(name: str, value: object) -> str:
    # An environment holds passwords, and errors end up in logs: its reader itself says what is wrong in it.
    return name if name == "env" else f"{name}={_repr.repr(value)}"


# ---- durations ---------------------------------------------------------------------------------------------

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
        seconds = _as_float(value)
    else:
        raise TypeError(_DURATION_HELP)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"expected a finite time that is not negative; {_DURATION_HELP}")
    return seconds


def _as_float(value: Real) -> float:
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


# ---- one reader for each option: the value in its final form, or TypeError or ValueError with what was expec


def _read_name(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError("expected text (str), or None; convert it with str()")
    if value is not None and (not value or "\0" in value):
        raise ValueError("expected text that is not empty, without NUL; None has a name made for you")
    return None if value is None else str(value)


def _read_env(value: object) -> Environment | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        kind = type(value).__name__
        raise TypeError(
            f"expected a mapping of names to text, such as {{'OMP_NUM_THREADS': '1'}}, not {kind}"
        )
    return tuple(_read_variable(name, text) for name, text in value.items())


def _read_variable(name: object, text: object) -> tuple[str, str | None]:
    if not isinstance(name, str):
        raise TypeError(f"the name {_repr.repr(name)} of a variable is not text; convert it with str()")
    if not name or "=" in name or "\0" in name:
        raise ValueError(
            f"the name {_repr.repr(name)} of a variable is empty or has '=' or NUL in it; choose another one"
        )
    if text is not None and not isinstance(text, str):
        kind = type(text).__name__
        raise TypeError(f"the value of {name!r} is of type {kind}, not text; use str(), or None to unset it")
    if not is_text(name) or not is_text(text or ""):
        raise ValueError(f"the variable {_repr.repr(name)} or its value is not UTF-8 text, and cannot be sent")
    if text is not None and "\0" in text:
        raise ValueError(
            f"the value of {name!r} has a NUL character in it, which no environment can hold; remove it"
        )
    return str(name), None if text is None else str(text)


def is_text(word: str) -> bool:
    """Whether it can be sent as text; file names and variables of other encodings cannot."""
    return word.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in word)


def _merged(old: Environment, new: object) -> Environment:
    if not isinstance(new, tuple):
        return ()
    return tuple(sorted({**dict(old), **dict(new)}.items()))


def _read_path(value: object, expected: str = "expected a path (str or os.PathLike)") -> str:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(expected)
    path = os.fsdecode(value)
    if not path or "\0" in path or not is_text(path):
        raise ValueError(f"{expected} that is not empty, is UTF-8 and has no NUL character")
    return _absolute(path)


def _absolute(path: str) -> str:
    try:
        # Not os.path.abspath: it shortens "link/../file" to "file", which is another file if link is a
        # symbolic link.
        return str(Path(path).absolute())
    except FileNotFoundError:
        raise ValueError(
            "the path is relative, but the current directory no longer exists; give an absolute path"
        ) from None


def _read_cwd(value: object) -> str | None:
    return None if value is None else _read_path(value, "expected a directory (str or os.PathLike), or None")


_DESTINATION_HELP = "expected a file (str or os.PathLike), DEVNULL, CAPTURE or FORWARD"


def _read_destination(value: object) -> Destination:
    if isinstance(value, Stream):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return _read_subprocess_constant(value)
    return _read_path(value, _DESTINATION_HELP)


def _read_subprocess_constant(value: int) -> Stream:
    if value == subprocess.STDOUT:
        raise ValueError(
            f"{_DESTINATION_HELP}; to mix both streams, let a shell do it: Program(['sh', '-c', '... 2>&1'])"
        )
    known = {subprocess.DEVNULL: DEVNULL, subprocess.PIPE: CAPTURE}
    if value not in known:
        raise TypeError(
            f"{_DESTINATION_HELP}; the task runs elsewhere and cannot have a file descriptor of this process"
        )
    return known[value]


def _read_time_limit(value: object) -> float | None:
    seconds = None if value is None else parse_duration(value)
    if seconds == 0:
        raise ValueError("expected more than zero; None means that there is no limit")
    return seconds


_READERS: dict[str, Callable[[object], object]] = {
    "name": _read_name,
    "env": _read_env,
    "cwd": _read_cwd,
    "stdout": _read_destination,
    "stderr": _read_destination,
    "time_limit": _read_time_limit,
    "retries": read_count,
    "crash_limit": read_count,
    "output_limit": parse_size,
}
assert list(_READERS) == [field.name for field in fields(TaskOptions)], "each option has one reader"
