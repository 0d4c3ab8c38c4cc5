"""How often a task may be tried: what users write as ``retries``, ``crash_limit`` and ``memory_on_oom``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

from executor.core.retries import UNLIMITED, Retries
from executor.quantities import as_float, read_count
from executor.refusals import did_you_mean, shown

#: The classes of failures; the loss of an agent is counted by ``crash_limit``.
CLASSES = ("exit", "timeout", "oom", "lost", "start")
_SYNONYMS = {
    "agent": "lost",
    "crash": "lost",
    "error": "exit",
    "exception": "exit",
    "failure": "exit",
    "launch": "start",
    "memory": "oom",
    "not_started": "start",
    "out_of_memory": "oom",
    "returncode": "exit",
    "signal": "exit",
    "spawn": "start",
    "status": "exit",
    "time_limit": "timeout",
    "walltime": "timeout",
    "worker": "lost",
}
_RETRIES_HELP = (
    "expected a whole number, 0 or more, such as 3, or a mapping of classes of failures to such numbers: {'oom': 2}"
)
_CRASH_LIMIT_HELP = "expected a whole number, 0 or more, such as 3, or 'never-restart', or 'unlimited'"
_FACTOR_HELP = "expected a finite number more than 1, such as 2, or None, which means that nothing grows"


def read_retries(value: object) -> Retries:
    """A count for each class; an int counts for all of them but "lost", which :func:`read_lost` reads."""
    if not isinstance(value, Mapping):
        count = read_count(value, _RETRIES_HELP)
        return Retries(count, count, count, count)
    counts = {_read_class(name): _read_class_count(name, count) for name, count in value.items()}
    counts.pop("lost", None)
    return Retries(**counts)


def read_lost(retries: object) -> int | None:
    """What a mapping says about the class "lost": a ``crash_limit``; None if it says nothing."""
    return read_crash_limit(retries["lost"]) if isinstance(retries, Mapping) and "lost" in retries else None


def _read_class(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the class {shown(name)} of failures is not text; the classes are: {', '.join(CLASSES)}")
    if name not in CLASSES:
        hint = did_you_mean(name, CLASSES, _SYNONYMS) or "."
        raise ValueError(f"there is no class {shown(name)} of failures{hint} The classes are: {', '.join(CLASSES)}")
    return name


def _read_class_count(name: str, count: object) -> int:
    try:
        return read_crash_limit(count) if name == "lost" else read_count(count)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{shown(count)} for {name!r}: {error}") from None


def read_crash_limit(value: object) -> int:
    """How many losses of its agent a task survives; 0: one that has started never starts again."""
    if not isinstance(value, str):
        return read_count(value, _CRASH_LIMIT_HELP)
    words = {"never-restart": 0, "unlimited": UNLIMITED}
    if value not in words:
        raise ValueError(f"{_CRASH_LIMIT_HELP}{did_you_mean(value, words)}")
    return words[value]


def read_memory_on_oom(value: object) -> float | None:
    """The factor by which the memory request grows; None: it does not."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(_FACTOR_HELP)
    factor = as_float(value)
    if not 1 < factor < math.inf:
        raise ValueError(_FACTOR_HELP)
    return factor
