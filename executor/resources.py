"""What users write about resources, and the needs that it means.

``Resources(cpus=4, memory="8GiB")``, or the options of the same names. Both end as
:class:`~executor.core.needs.Needs`: amounts in ten-thousandths, sorted by name, without zeros.

    AMOUNT:  a number, not negative, with 4 decimal places at most; text is exact, a float is rounded up
    text:    AMOUNT [compact | compact! | tight | tight! | scatter]     or     all

``memory`` is a size in bytes; the resource of that name counts in MiB.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from numbers import Rational, Real
from typing import Final, TypeAlias, TypeVar

from executor.core.needs import ONE_CPU, POLICIES, Need, Needs
from executor.errors import OptionTypeError, OptionValueError
from executor.quantities import parse_duration, parse_size, read_count
from executor.refusals import did_you_mean, read_named, shown
from worker_agent.pools import UNIT

__all__ = ["RESOURCE_OPTIONS", "Amount", "Resources", "change_variants", "parse_amount", "request_texts"]

Read = TypeVar("Read")

#: How much of a resource: see above.
Amount: TypeAlias = int | float | str | Decimal | Fraction

#: The resources that have options of their own.
_NAMED: Final = ("cpus", "gpus", "memory")
#: The options that are about resources.
RESOURCE_OPTIONS: Final = (*_NAMED, "resources", "time_request", "nodes", "ranks")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9/]*", re.ASCII)
_MAPPING_HELP = "expected a mapping of names to amounts, such as {'fpga': 1}"
_RESOURCES_HELP = f"{_MAPPING_HELP}, or Resources, or a list of Resources"
#: In units, it still is a number of 64 bits.
_LARGEST = 10**14
_TOO_MUCH = f"expected {_LARGEST} or less (memory: in MiB)"
_MIB = 2**20


@dataclass(frozen=True, init=False, repr=False)
class Resources:
    """What a task needs of its agent, all at once; a value. Several of them are variants: any one will do.

    :param cpus, gpus: amounts: numbers with four decimal places at most, or text such as "2 scatter" or "all". 0: none
        is needed. None: nothing is said, which means 1 CPU, or one for each rank, and no GPU.
    :param memory: a size, in bytes or as text such as "8GiB", or "all"; None: nothing is said.
    :param time_request: a duration, in seconds or as text such as "1h": the time that the agent has to live at least.
    :param nodes: so many whole agents; nothing but ``time_request`` may be given beside it. 0: any part of one.
    :param ranks: so many processes in all, which a launcher starts, evenly on the nodes; 0: one, without a launcher.
    :param resources: amounts of any resources, by name.
    :raises OptionTypeError, OptionValueError: for what makes no sense.
    """

    _needs: Needs

    def __init__(
        self,
        *,
        cpus: Amount | None = None,
        gpus: Amount | None = None,
        memory: int | str | None = None,
        time_request: float | str | timedelta | None = None,
        nodes: int = 0,
        ranks: int = 0,
        resources: Mapping[str, Amount | None] | None = None,
    ) -> None:
        request = _read_request({
            "cpus": cpus, "gpus": gpus, "memory": memory, "resources": resources, "time_request": time_request,
            "nodes": nodes, "ranks": ranks,
        })  # fmt: skip
        object.__setattr__(self, "_needs", _laid_over(ONE_CPU, request))

    def __repr__(self) -> str:
        return f"Resources({', '.join(_render_arguments(self._needs))})"

    def to_needs(self) -> Needs:
        """What it means to the scheduler."""
        return self._needs


def change_variants(base: Sequence[Needs], asked: Mapping[str, object]) -> tuple[Needs, ...]:
    """``base`` with what is ``asked`` by some of the options: merged by name into each variant, or other variants."""
    resources = asked.get("resources", {})
    if resources is None:
        base = (ONE_CPU,)
    elif not isinstance(resources, Mapping):
        variants = read_named("resources", _read_variants, resources)
        _refuse_beside(resources, [option for option in asked if option != "resources"])
        return variants
    request = _read_request(asked)
    return tuple(_laid_over(each, request) for each in base)


def request_texts(needs: Needs) -> list[tuple[str, str]]:
    """The canonical text of each need, as tasks find it in HPC_RESOURCE_REQUEST_<name>; memory is in MiB."""
    return [(need.name, _render_request(need)) for need in needs.needs]


# ---- amounts

_HELP = "expected an amount such as 2, 0.5, '0.5', '2 scatter' or 'all'"
_TEXT = re.compile(r"(?P<sign>-?)(?P<number>\d{1,20}(?:\.(?P<places>\d+))?)(?:\s+(?P<policy>\S+))?", re.ASCII)


def parse_amount(value: object) -> tuple[int | None, str]:
    """Units (None: all there is) and the policy of an amount as people write it.

    :raises TypeError: neither a number nor text; a bool is not a number here.
    :raises ValueError: a negative or infinite number, NaN, more than four decimal places, text that is no amount.
    """
    if isinstance(value, str):
        return _parse_text(value.strip())
    if type(value) is int and 0 <= value <= _LARGEST:
        return value * UNIT, POLICIES[0]  # as most are, and a view may be made for each task
    return _to_units(_parse_number(value)), POLICIES[0]


def _parse_text(text: str) -> tuple[int | None, str]:
    if text == "all":
        return None, POLICIES[0]
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"{_HELP}; 'all' has no policy" if text.split()[:1] == ["all"] else _HELP)
    if match["sign"]:
        raise ValueError(f"{_HELP}; it cannot be negative")
    policy = match["policy"] or POLICIES[0]
    if policy not in POLICIES:
        hint = did_you_mean(policy, POLICIES) or "."
        raise ValueError(f"there is no policy {shown(policy)}{hint} The policies are: {', '.join(POLICIES)}")
    number = Fraction(match["number"])
    if len(match["places"] or "") > 4:
        raise ValueError(_too_fine(number))
    return _to_units(number), policy


def _parse_number(value: object) -> Fraction:
    if isinstance(value, bool):
        raise TypeError(_HELP)
    if isinstance(value, Rational):
        return Fraction(int(value.numerator), int(value.denominator))  # NumPy's integers would overflow
    if isinstance(value, Decimal | Real):
        if not math.isfinite(value):
            raise ValueError(f"{_HELP}; it has to be finite")
        return Fraction(value) if isinstance(value, Decimal) else _rounded_up(float(value))
    raise TypeError(_HELP)


def _rounded_up(number: float) -> Fraction:
    # By the digits that a user sees: the binary number behind 0.1 is a little more than 0.1.
    exact = Fraction(repr(number))
    return _up(exact) if exact > 0 else exact


def _up(number: Fraction) -> Fraction:
    return Fraction(math.ceil(number * UNIT), UNIT)


def _to_units(number: Fraction) -> int:
    if number < 0:
        raise ValueError(f"{_HELP}; it cannot be negative")
    if number > _LARGEST:
        raise ValueError(_TOO_MUCH)
    units = number * UNIT
    if units.denominator != 1:
        raise ValueError(_too_fine(number))
    return int(units)


def _too_fine(number: Fraction) -> str:
    return f"expected four decimal places or fewer; write '{render_amount(int(_up(number) * UNIT))}', which is enough"


def parse_memory(value: object) -> int | None:
    """Units of the resource ``memory`` (ten-thousandths of a MiB, rounded up) from a size; None from "all"."""
    if isinstance(value, str) and value.strip() == "all":
        return None
    units = -(-parse_size(value) * UNIT // _MIB)
    if units > _LARGEST * UNIT:
        raise ValueError(_TOO_MUCH)
    return units


def render_amount(units: int) -> str:
    """The shortest exact text."""
    whole, part = divmod(units, UNIT)
    return f"{whole}.{part:04}".rstrip("0") if part else str(whole)


# ---- from what users write to needs


@dataclass(frozen=True, slots=True)
class _Request:
    """What users said, and no more; None: nothing. A need that is None is taken back."""

    needs: Mapping[str, Need | None]
    seconds: float | None = None
    nodes: int | None = None
    ranks: int | None = None


def _read_request(asked: Mapping[str, object]) -> _Request:
    named = {name: _read_need(name, name, asked[name]) for name in _NAMED if name in asked}
    seconds = _read(asked, "time_request", _read_time_request)
    nodes, ranks = _read(asked, "nodes", _read_nodes), _read(asked, "ranks", _read_ranks)
    return _Request({**named, **_read_mapping(asked)}, seconds, nodes, ranks)


def _read(asked: Mapping[str, object], option: str, reader: Callable[[object], Read]) -> Read | None:
    return read_named(option, reader, asked[option]) if option in asked else None


def _read_time_request(value: object) -> float:
    return 0.0 if value is None else parse_duration(value)


def _read_nodes(value: object) -> int:
    return 0 if value is None else read_count(value, "expected a number of whole agents, 0 or more, such as 2")


def _read_ranks(value: object) -> int:
    return 0 if value is None else read_count(value, "expected a number of processes, 0 or more, such as 4")


def _read_mapping(asked: Mapping[str, object]) -> dict[str, Need | None]:
    resources = asked.get("resources")
    if resources is None:
        return {}
    if not isinstance(resources, Mapping):
        raise OptionTypeError(f"option resources={shown(resources)}: {_MAPPING_HELP}")
    read_named("resources", _check_names, resources)
    for name in resources:
        if asked.get(name) is not None:
            raise OptionValueError(
                f"option resources={shown(resources)}: {name}={shown(asked[name])} is given as well; give it once"
            )
    return {str(name): _read_need(f"resources[{name!r}]", name, value) for name, value in resources.items()}


def _check_names(resources: Mapping[object, object]) -> None:
    expected = "expected names of resources: a letter, then letters, digits and '/', such as 'gpus/nvidia'"
    for name in resources:
        if not isinstance(name, str):
            raise TypeError(f"{expected}; {shown(name)} is of type {type(name).__name__}")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{expected}, not {shown(name)}")
        if name in RESOURCE_OPTIONS and name not in _NAMED:
            raise ValueError(f"{expected}; {name} is no resource, so say {name}=... beside it")


def _read_need(option: str, name: str, value: object) -> Need | None:
    if value is None:
        return None
    if name == "memory":
        return Need(name, read_named(option, parse_memory, value))
    return Need(name, *read_named(option, parse_amount, value))


def _laid_over(base: Needs, request: _Request) -> Needs:
    """``base``, with what the request says by name."""
    seconds = base.seconds if request.seconds is None else request.seconds
    nodes = base.nodes if request.nodes is None else request.nodes
    ranks = base.ranks if request.ranks is None else request.ranks
    unsaid, default = _default_cpus(base.nodes, base.ranks), _default_cpus(nodes, ranks)
    needs = {need.name: need for need in base.needs}
    if needs.get("cpus") == unsaid or base.nodes:
        needs["cpus"] = default
    needs.update((name, need or _default_of(name, default)) for name, need in request.needs.items())
    left = tuple(needs[name] for name in sorted(needs) if needs[name].amount != 0)
    if nodes and left:
        raise _not_beside_nodes(left, nodes)
    if nodes and ranks % nodes:
        raise OptionValueError(f"option ranks={ranks}: expected a multiple of nodes={nodes}: each has equally many")
    return Needs(left, seconds, nodes, ranks)


def _default_cpus(nodes: int, ranks: int) -> Need:
    """So many CPUs a task needs of which that was not said: none beside whole agents, else one for each process."""
    return Need("cpus", 0 if nodes else max(1, ranks) * UNIT)


def _default_of(name: str, cpus: Need) -> Need:
    return cpus if name == "cpus" else Need(name, 0)


def _not_beside_nodes(needs: Sequence[Need], nodes: int) -> OptionValueError:
    others = ", ".join(f"{need.name}={_value(need)!r}" for need in needs)
    return OptionValueError(
        f"option nodes={nodes}: expected no other needs beside whole agents but time_request, not {others}; "
        f"leave them out, or write resources=Resources(nodes={nodes}) to replace those of the view"
    )


def _read_variants(value: object) -> tuple[Needs, ...]:
    variants = [value] if isinstance(value, Resources) else value
    if not isinstance(variants, Sequence):
        raise TypeError(_RESOURCES_HELP)
    for each in variants:
        if not isinstance(each, Resources):
            raise TypeError(f"{_RESOURCES_HELP}; {shown(each)} is of type {type(each).__name__}")
    if not variants:
        raise ValueError(f"{_RESOURCES_HELP}; at least one variant is needed, and None is the default")
    needs = tuple(each.to_needs() for each in variants)
    if len({each.ranks > 0 for each in needs}) > 1:
        raise ValueError("expected ranks in all variants, or in none: a function on ranks gives a list of results")
    return needs


def _refuse_beside(variants: object, others: list[str]) -> None:
    if others:
        raise OptionValueError(
            f"option resources={shown(variants)}: expected nothing beside it, since each Resources says all that a "
            f"task needs; say {others[0]} in it"
        )


# ---- from needs to text


def _render_request(need: Need) -> str:
    return "all" if need.amount is None else f"{render_amount(need.amount)} {need.policy}"


def _render_arguments(needs: Needs) -> Iterator[str]:
    values = {need.name: _value(need) for need in needs.needs}
    if not needs.nodes:
        yield f"cpus={values.pop('cpus', 0)!r}"
    yield from (f"{name}={values.pop(name)!r}" for name in ("gpus", "memory") if name in values)
    if needs.seconds:
        yield f"time_request={needs.seconds!r}"
    if needs.nodes:
        yield f"nodes={needs.nodes!r}"
    if needs.ranks:
        yield f"ranks={needs.ranks!r}"
    if values:
        yield f"resources={values!r}"


def _value(need: Need) -> int | str:
    """What a user may write for it."""
    if need.amount is None:
        return "all"
    if need.name == "memory":
        return _render_size(need.amount)
    if need.policy != POLICIES[0]:
        return _render_request(need)
    return render_amount(need.amount) if need.amount % UNIT else need.amount // UNIT


def _render_size(units: int) -> int | str:
    """The shortest size that means so many units; they are larger than a byte, so that most have one."""
    size = units * _MIB // UNIT
    for unit in ("TiB", "TB", "GiB", "GB", "MiB", "MB", "KiB", "KB"):
        text = f"{size // parse_size(f'1{unit}')}{unit}"
        if parse_memory(text) == units:
            return text
    return size
