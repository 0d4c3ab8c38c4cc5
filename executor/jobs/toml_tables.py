"""Tables of a TOML file that know where they are: what is wrong in one is told with file, line and key."""

from __future__ import annotations

import logging
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from executor.errors import JobFileError
from executor.jobs.placeholders import unknown
from executor.jobs.toml_lines import Place, line_of
from executor.refusals import did_you_mean, shown

Read = TypeVar("Read")

log = logging.getLogger("executor")

_AT_LINE = re.compile(r"(.*) \(at line (\d+), column \d+\)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Table:
    """One table, and its way from the top of the file."""

    file: str
    text: str
    place: Place
    values: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Its header as it would be in a file; of the top, nothing."""
        name = ".".join(each for each in self.place if isinstance(each, str))
        return f"[[{name}]]" if self.place and isinstance(self.place[-1], int) else f"[{name}]" if name else ""

    def refuse(self, problem: str, *keys: str) -> JobFileError:
        """The error about one of its keys, or about itself."""
        place = (*self.place, *keys)
        line = line_of(self.text, place)
        key = ".".join(each for each in place if isinstance(each, str))
        where = f"{self.file}, line {line}" + (f", in {self.title}" if self.title else "")
        return JobFileError(f"{where}: {problem}", file=self.file, line=line, key=key)

    def read(self, key: str, reader: Callable[[Any], Read], *, secret: bool = False) -> Read:
        """What the reader makes of the value; its TypeError or ValueError becomes one that says where.

        Errors end up in logs, and do not show a ``secret`` value.
        """
        value = self.values[key]
        try:
            return reader(value)
        except (TypeError, ValueError) as error:
            problem = _problem(str(error), key, value)
            raise self.refuse(f"{key}: {problem}" if secret else f"{key}={shown(value)}: {problem}", key) from None

    def table(self, key: str) -> Table:
        """The table that is the value."""
        self.read(key, _check_table)
        return self._part(self.values[key], key)

    def tables(self, key: str) -> list[Table]:
        """The tables of an array of them; none if there is no such key."""
        if key not in self.values:
            return []
        title = ".".join([*(each for each in self.place if isinstance(each, str)), key])
        if not _is_list_of_tables(self.values[key]):
            raise self.refuse(f"expected tables with the header [[{title}]], in two pairs of brackets", key)
        return [self._part(each, key, number) for number, each in enumerate(self.values[key])]

    def warn(self, problem: str, key: str) -> None:
        """Log what is no error, but hardly meant."""
        log.warning("%s", self.refuse(problem, key))

    def warn_of_placeholders(self, key: str, path: str, known: tuple[str, ...]) -> None:
        """Log the placeholders in the path that nothing will replace."""
        for name in unknown(path, known):
            hint = did_you_mean(name.upper(), known) or "."
            there_are = ", ".join(f"%{{{each}}}" for each in known)
            self.warn(f"{key}={shown(path)}: %{{{name}}} stays as it is{hint} Here {there_are} are replaced", key)

    def _part(self, values: Mapping[str, Any], *place: str | int) -> Table:
        return Table(self.file, self.text, (*self.place, *place), values)

    def check_keys(
        self, known: Iterable[str], synonyms: Mapping[str, str] = MappingProxyType({}),
        elsewhere: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Refuse keys that are not known.

        :param synonyms: words of other tools.
        :param elsewhere: what to say about keys that belong to other tables.
        """
        names = list(known)
        for key in self.values:
            if key not in names:
                remedy = f": {elsewhere[key]}." if key in elsewhere else did_you_mean(key, names, synonyms) or "."
                raise self.refuse(f"there is no key {key!r} here{remedy} The keys are: {', '.join(names)}", key)


def parse_toml(data: str | bytes, file: str) -> Table:
    """The table at the top of a text, or of the bytes of a file, which is called ``file`` in errors.

    Raises JobFileError: it is not UTF-8, or no TOML.
    """
    text = data if isinstance(data, str) else _decode(data, file)
    try:
        return Table(file, text, (), tomllib.loads(text))
    except ValueError as error:  # mostly a TOMLDecodeError; of a number with too many digits, a plain one
        raise _no_toml(str(error), text, file) from None


def _decode(data: bytes, file: str) -> str:
    try:
        return str(data, "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"the byte {data[error.start]:#x} is not UTF-8; a job file is UTF-8 text"
        raise JobFileError(f"{file}, line {line}: {problem}", file=file, line=line) from None


def _no_toml(message: str, text: str, file: str) -> JobFileError:
    match = _AT_LINE.fullmatch(message)
    problem = match[1] if match else message
    line = int(match[2]) if match else len(text.splitlines()) or 1
    return JobFileError(f"{file}, line {line}: this is no TOML: {problem}", file=file, line=line)


def _problem(message: str, key: str, value: object) -> str:
    """What is wrong, without the name and the value of an option, with which errors about options begin."""
    if not message.startswith("option "):
        return message
    starts = [f"={shown(each)}: " for each in (value, {key: value})]
    start = next((each for each in starts if each in message), ": ")
    return message.partition(start)[2]


# ---- values


def read_text(value: object) -> str:
    """Text."""
    if not isinstance(value, str):
        raise TypeError("expected text in quotes")
    return value


def read_path(value: object) -> str:
    """A path, as text."""
    path = read_text(value)
    if not path or "\0" in path:
        raise ValueError("expected a path, which is not empty and has no NUL character")
    return path


def read_texts(value: object) -> list[str]:
    """A list of text."""
    if not isinstance(value, list):
        raise TypeError('expected a list of text, such as ["one", "two"]')
    for position, each in enumerate(value):
        if not isinstance(each, str):
            raise TypeError(f"expected a list of text; item {position} is {shown(each)}: put it in quotes")
    return value


def read_text_table(value: object) -> dict[str, str]:
    """A table of text. Its error does not show the text: it may be a password."""
    _check_table(value)
    assert isinstance(value, dict)  # as tomllib makes them
    for name, each in value.items():
        if not isinstance(each, str):
            raise TypeError(f"expected a table of text; put the value of {name!r} in quotes")
    return value


def read_flag(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise TypeError("expected true or false")
    return value


def read_whole(least: int, most: int, value: object) -> int:
    """A whole number in these bounds."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected a whole number from {least} to {most}")
    if not least <= value <= most:
        raise ValueError(f"expected a whole number from {least} to {most}")
    return value


def read_word(words: Iterable[str], value: object) -> str:
    """One of these words."""
    known = tuple(words)
    expected = f"expected one of {', '.join(map(repr, known))}"
    if not isinstance(value, str):
        raise TypeError(expected)
    if value not in known:
        raise ValueError(f"{expected}{did_you_mean(value, known)}")
    return value


def _check_table(value: object) -> None:
    if not isinstance(value, Mapping):
        raise TypeError('expected a table, such as { name = "value" }')


def _is_list_of_tables(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, Mapping) for each in value)
