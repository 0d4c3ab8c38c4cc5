"""How a wrong option is refused: by its name, its value, what was expected, and the word that was probably meant."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

from executor.errors import OptionTypeError, OptionValueError

Value = TypeVar("Value")
Read = TypeVar("Read")

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


def shown(value: object) -> str:
    """The value as an error shows it: in part, if it is huge."""
    return _repr.repr(value)


def read_named(option: str, reader: Callable[[Value], Read], value: Value, *, secret: bool = False) -> Read:
    """What ``reader`` makes of ``value``; its TypeError or ValueError becomes one that names the option.

    Errors end up in logs, and do not show the value of a ``secret`` one.
    """
    try:
        return reader(value)
    except TypeError as error:
        raise OptionTypeError(f"option {_label(option, value, secret)}: {error}") from None
    except ValueError as error:
        raise OptionValueError(f"option {_label(option, value, secret)}: {error}") from None


def _label(option: str, value: object, secret: bool) -> str:
    return option if secret else f"{option}={shown(value)}"


def did_you_mean(word: str, known: Iterable[str], synonyms: Mapping[str, str] = MappingProxyType({})) -> str:
    """``"; did you mean 'right'?"`` if a known word is near, else nothing; ``synonyms`` are words of other tools."""
    names = list(known)
    synonym = synonyms.get(word)
    nearest = [synonym] if synonym in names else difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
