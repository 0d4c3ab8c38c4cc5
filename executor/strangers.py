"""Strangers: those who have not joined. How often they are answered, and what they must have in common with us."""

from __future__ import annotations

import sys
from collections.abc import Hashable

from worker_agent import processes, protocol
from worker_agent.pools import trouble_with

#: Seconds between two answers to the same stranger: who asks and never reads would fill our memory.
ANSWER_EVERY = 0.1
#: Letters of the longest name of a host.
_LONGEST_HOST = 255
#: So many are remembered.
MOST_REMEMBERED = 1000


class Strangers:
    """Who was answered, when, and about what."""

    def __init__(self) -> None:
        self._answered: dict[tuple[Hashable, str], float] = {}

    def may_answer(self, route: Hashable, about: str, now: float) -> bool:
        """Whether the one at the end of the ``route`` has an answer again; if so, it counts as given."""
        if now < self._answered.get((route, about), 0.0) + ANSWER_EVERY:
            return False
        if len(self._answered) >= MOST_REMEMBERED:
            self._answered.clear()
        self._answered[route, about] = now
        return True


def mismatch(hello: protocol.Hello) -> str:
    """What of an agent does not go with this client; "" if all does."""
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    if hello.python.split(".")[:2] != ours.split("."):
        return f"it runs Python {hello.python}, and the client Python {ours}: functions cannot travel between them"
    pickler = processes.version_of("cloudpickle") if hello.cloudpickle else ""
    if pickler and hello.cloudpickle.split(".")[0] != pickler.split(".")[0]:
        return f"it has cloudpickle {hello.cloudpickle}, and the client {pickler}"
    if not hello.host.isprintable() or len(hello.host) > _LONGEST_HOST:
        return f"its host name is none: {hello.host[:100]!a}"
    if trouble := trouble_with(hello.pools):
        return trouble
    if hello.missing:
        return f"it has no module {', '.join(hello.missing)}, which preload or require names: install it there"
    return ""
