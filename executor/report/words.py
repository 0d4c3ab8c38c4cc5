"""Numbers and texts as the page shows them."""

from __future__ import annotations

import html
import re
from datetime import datetime

#: Colours and cursor movements for terminals.
_TERMINAL = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
#: What no page may contain.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def escape(text: str) -> str:
    """The text as content or attribute of an element, whatever a task wrote there."""
    return html.escape(_CONTROL.sub("\ufffd", _TERMINAL.sub("", text)))


def render_seconds(seconds: float) -> str:
    """A duration as people read it: ``12 ms``, ``4.4 s``, ``12 min 5 s``, ``3 h 12 min``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds else "0 s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name} {rest} {smaller_name}" if rest else f"{whole // unit} {name}"
    return f"{whole} s"


def render_mark(seconds: float) -> str:
    """A moment on an axis, in seconds from its beginning, as short as can be: ``5 s``, ``0.5 s``, ``2 min``."""
    return f"{seconds:.6g} s" if seconds < 60 else render_seconds(seconds)


def render_count(number: int, one: str, many: str = "") -> str:
    """``1 attempt``, ``20 000 attempts``."""
    return f"{number:,}".replace(",", "\u202f") + f" {one if number == 1 else many or one + 's'}"


def render_moment(at: float) -> str:
    """A time of the clock here."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def round_step(span: float, most: int) -> float:
    """The distance of marks on an axis of ``span`` seconds, with at most so many: as clocks have them."""
    steps = [10.0**power * digit for power in range(-6, 1) for digit in (1, 2, 5)]
    steps += [10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400]
    return next((step for step in steps if span / step <= most), 86400.0 * max(1, round(span / 86400 / most + 0.5)))
