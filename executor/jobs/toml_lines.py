"""Where the keys of a TOML text are: ``tomllib`` tells their values, and not their lines.

The text has been read by tomllib and is valid, so that it is enough to find the way through it:

    statement:  [[header]]  |  [header]  |  key = value
    value:      string  |  [value, ...]  |  {key = value, ...}  |  anything else, up to the next blank or bracket

A place is named by keys and positions: ("task", 2, "env", "HOME") is ``HOME`` in ``env`` of the third ``[[task]]``.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from typing import TypeAlias

Place: TypeAlias = tuple[str | int, ...]

_STRING = r'"""(?:[^\\]|\\.)*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'"
_KEY = re.compile(rf"\s*(?:(?P<bare>[\w-]+)|(?P<quoted>{_STRING}))\s*(?P<after>[.=\]])", re.DOTALL)
#: Commas too: between the elements of an array they say nothing about places.
_BETWEEN = re.compile(r"(?:[\s,]|#[^\n]*)*")
#: A date may have a blank before the time.
_VALUE = re.compile(rf"{_STRING}|\d{{4}}-\d\d-\d\d \d\d[^\s,\]}}#]*|[^\s,\]}}#]+", re.DOTALL)


def line_of(text: str, place: Place) -> int:
    """The line, from 1, where the place begins in a valid text; if it is not there, where what it belongs to does."""
    lines = find_lines(text)
    known = next((place[:end] for end in range(len(place), 0, -1) if place[:end] in lines), None)
    return 1 if known is None else lines[known]


def find_lines(text: str) -> dict[Place, int]:
    """The lines of all places of a valid text."""
    return _Scan(text).lines


class _Scan:
    """One way through a text, from its beginning to its end."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Place, int] = {}
        self._text = text
        self._at = 0
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        #: the position of the last element of each array of tables
        self._last: dict[Place, int] = {}
        table: Place = ()
        while self._more():
            table = self._statement(table)

    def _more(self) -> bool:
        """Go to what comes next; whether there is something."""
        match = _BETWEEN.match(self._text, self._at)
        assert match is not None  # it matches nothing, too
        self._at = match.end()
        return self._at < len(self._text)

    def _statement(self, table: Place) -> Place:
        """Read one; the table to which the next one belongs."""
        if not self._text.startswith("[", self._at):
            self._pair(table)
            return table
        start, brackets = self._at, 2 if self._text.startswith("[[", self._at) else 1
        self._at += brackets
        names = self._names()
        self._at += brackets - 1
        return self._open(names, start, appends=brackets == 2)

    def _names(self) -> list[str]:
        """The parts of a key, up to and with what ends it."""
        names = []
        while match := _KEY.match(self._text, self._at):
            self._at = match.end()
            quoted = match["quoted"]
            names.append(match["bare"] if quoted is None else tomllib.loads(f"key = {quoted}")["key"])
            if match["after"] != ".":
                return names
        raise AssertionError(f"no key at {self._text[self._at:self._at + 40]!r}")

    def _open(self, names: list[str], start: int, *, appends: bool) -> Place:
        """The table of a header; it belongs to the last element of each array of tables on the way."""
        place: Place = ()
        for depth, name in enumerate(names, 1):
            place = (*place, name)
            if appends and depth == len(names):
                self._last[place] = self._last.get(place, -1) + 1
            self._note(place, start)
            if place in self._last:
                place = (*place, self._last[place])
                self._note(place, start)
        return place

    def _pair(self, table: Place) -> None:
        start = self._at
        for name in self._names():
            table = (*table, name)
            self._note(table, start)
        self._value(table)

    def _value(self, place: Place) -> None:
        self._more()
        if self._text[self._at] == "[":
            self._elements(place)
        elif self._text[self._at] == "{":
            self._pairs(place)
        else:
            match = _VALUE.match(self._text, self._at)
            assert match is not None  # in a valid text there is a value
            self._at = match.end()

    def _elements(self, place: Place) -> None:
        self._at += 1
        number = 0
        while self._more() and self._text[self._at] != "]":
            self._note((*place, number), self._at)
            self._value((*place, number))
            number += 1
        self._at += 1

    def _pairs(self, place: Place) -> None:
        self._at += 1
        while self._more() and self._text[self._at] != "}":
            self._pair(place)
        self._at += 1

    def _note(self, place: Place, at: int) -> None:
        self.lines.setdefault(place, bisect_right(self._starts, at))
