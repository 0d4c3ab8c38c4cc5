"""``%{JOB_ID}`` and the like in paths: HyperQueue's placeholders. An agent fills in ``%{INSTANCE_ID}``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_PLACEHOLDER = re.compile(r"%\{([A-Z_]+)\}")
_LIKE_ONE = re.compile(r"%\{([^{}/]*)\}")

#: What is known in the directory of a stream, in that of a task, and in the paths of its output.
IN_STREAM: Final = ("JOB_ID", "SUBMIT_DIR")
IN_CWD: Final = (*IN_STREAM, "TASK_ID", "INSTANCE_ID")
IN_OUTPUT: Final = (*IN_CWD, "CWD")


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with each placeholder that has a value replaced; others stay as they are."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)


def unknown(text: str, known: tuple[str, ...]) -> list[str]:
    """Placeholders in the text that nothing will ever replace."""
    return [name for name in _LIKE_ONE.findall(text) if name not in known]
