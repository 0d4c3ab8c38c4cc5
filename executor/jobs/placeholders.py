"""``%{JOB_ID}`` and the like in paths: HyperQueue's placeholders. An agent fills in ``%{INSTANCE_ID}``."""

from __future__ import annotations

import re
from collections.abc import Mapping

_PLACEHOLDER = re.compile(r"%\{([A-Z_]+)\}")


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with each placeholder that has a value replaced; others stay as they are."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)


def unknown(text: str, known: frozenset[str]) -> list[str]:
    """Placeholders in the text that nothing will ever replace."""
    return [name for name in _PLACEHOLDER.findall(text) if name not in known]
