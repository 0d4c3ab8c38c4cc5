"""TOML as text: values, and tables of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from executor.options import is_text
from executor.refusals import shown

#: Lists that would make longer lines have one line for each element.
_WIDTH = 100
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def render_table(name: str, values: Mapping[str, Any], *, header: str = "") -> Iterator[str]:
    """The lines of a table; lists of tables in it follow it, each with a header of its own.

    :param name: its keys from the top, such as "task"; "" is the top itself.
    :raises ValueError: text that is not UTF-8.
    """
    yield from [header] if header else []
    tables = {key: value for key, value in values.items() if _is_list_of_tables(value)}
    yield from (f"{_key(key)} = {_broken(value)}" for key, value in values.items() if key not in tables)
    for key, elements in tables.items():
        full = f"{name}.{_key(key)}" if name else _key(key)
        for each in elements:
            yield ""
            yield from render_table(full, each, header=f"[[{full}]]")


def _is_list_of_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _broken(value: Any) -> str:
    text = render_value(value)
    if isinstance(value, list) and len(text) > _WIDTH:
        return "\n".join(["[", *(f"    {render_value(each)}," for each in value), "]"])
    return text


def render_value(value: Any) -> str:
    """A value in one line. Raises ValueError: text that is not UTF-8."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list):
        return f"[{', '.join(map(render_value, value))}]"
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_key(key)} = {render_value(each)}" for key, each in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    assert isinstance(value, int | float), f"{value!r} is nothing that we write"
    return repr(value)


def _string(text: str) -> str:
    if not is_text(text):
        raise ValueError(f"{shown(text)} is not UTF-8 text, and no job file can hold it")
    # JSON's strings are strings of TOML but for DEL, which has to be escaped here and is not there.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _string(key)
