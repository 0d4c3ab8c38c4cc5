"""What a task waits for: what users write as ``after``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any, TypeAlias

from executor.refusals import did_you_mean, shown

#: A condition, and the future that has to meet it.
Dependency: TypeAlias = tuple[str, Future[Any]]

#: What may be asked of a future: that it gave a result, that it ended, that it failed. The first is the default.
CONDITIONS = ("afterok", "afterany", "afternotok")
_SYNONYMS = {
    "any": "afterany", "failed": "afternotok", "finished": "afterany", "notok": "afternotok", "ok": "afterok",
    "success": "afterok",
}  # fmt: skip
_HELP = "expected futures, as submit() returns them, or a mapping of conditions to futures: {'afterany': [future]}"


def read_after(value: object) -> tuple[Dependency, ...]:
    """Pairs of a condition and a future, each once, in the order in which they were given."""
    conditions = value if isinstance(value, Mapping) else {CONDITIONS[0]: value}
    asked = [(_read_condition(name), _read(futures)) for name, futures in conditions.items()]
    pairs = [(condition, future) for condition, futures in asked for future in futures]
    _refuse_contradictions(pairs)
    return tuple(dict.fromkeys(pairs))


def _read_condition(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the condition {shown(name)} is not text; the conditions are: {', '.join(CONDITIONS)}")
    if name not in CONDITIONS:
        hint = did_you_mean(name, CONDITIONS, _SYNONYMS) or "."
        raise ValueError(f"there is no condition {shown(name)}{hint} The conditions are: {', '.join(CONDITIONS)}")
    return name


def _read(futures: object) -> list[Future[Any]]:
    if isinstance(futures, Future):
        return [futures]
    if futures is None:
        return []
    if isinstance(futures, str | Mapping) or not isinstance(futures, Iterable):
        raise TypeError(_HELP)
    return [_read_future(each) for each in futures]


def _read_future(value: object) -> Future[Any]:
    if not isinstance(value, Future):
        raise TypeError(f"{_HELP}; {shown(value)} is of type {type(value).__name__}")
    return value


def _refuse_contradictions(pairs: list[Dependency]) -> None:
    failed = {id(future) for condition, future in pairs if condition == "afternotok"}
    for condition, future in pairs:
        if condition == "afterok" and id(future) in failed:
            raise ValueError(
                f"{shown(future)} cannot both give a result (afterok) and fail (afternotok); write 'afterany'"
            )
