"""A log that strangers cannot fill, nor write lines of their own to."""

from __future__ import annotations

import logging
import time

log = logging.getLogger("executor")

#: Lines that strangers can make us log in a minute.
LINES_A_MINUTE = 5


def in_one_line(text: str) -> str:
    """The text without characters that would begin a line of the log, or move the cursor: what others say is in it."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class SparingLog:
    """Warnings that others can provoke: each kind once a minute, and few kinds in a minute."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._unsaid = 0
        self._ends = 0.0

    def warning(self, kind: str, text: str, *args: object, exc_info: bool = False) -> None:
        """Log it, or count it only."""
        now = time.monotonic()
        if now >= self._ends:
            self._begin_minute(now)
        if kind in self._said or len(self._said) >= LINES_A_MINUTE:
            self._unsaid += 1
            return
        self._said.add(kind)
        log.warning("%s", in_one_line(text % args), exc_info=exc_info)

    def _begin_minute(self, now: float) -> None:
        if self._unsaid:
            log.warning("%d more warnings of the network were not logged", self._unsaid)
        self._said.clear()
        self._unsaid, self._ends = 0, now + 60.0
