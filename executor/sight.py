"""Which files an agent elsewhere sees as the same ones that we see: it is asked once for each of them, as it is now.

    Transfers --identities--> Sight --Look--> agent
    Transfers <---answered--- Sight <--Seen-- agent

An answer is remembered for a version (``input_files``), by which we notice that a file was written to or replaced.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping

from worker_agent import protocol

#: So many answers are remembered.
KEPT = 10_000


class Sight:
    """What one agent has said of what it sees. Used from the hub's thread only. Files are known by their paths."""

    def __init__(self, send: Callable[[protocol.Order], None], kept: int = KEPT) -> None:
        self._send = send
        self._kept = kept
        self._numbers = itertools.count(1)
        #: by path and version, whether it sees that, too; the latest last
        self._answers: OrderedDict[tuple[str, str], bool] = OrderedDict()
        #: the versions for which it was asked and has not answered, and who waits for that
        self._asked: dict[int, tuple[Mapping[str, str], Callable[[], None]]] = {}

    def unknown(self, versions: Mapping[str, str]) -> dict[str, str]:
        """Those of these versions for which it has not answered."""
        return {path: each for path, each in versions.items() if (path, each) not in self._answers}

    def seen(self, versions: Mapping[str, str]) -> set[str]:
        """The paths of those that it has seen."""
        return {path for path, each in versions.items() if self._answers.get((path, each), False)}

    def ask(self, versions: Mapping[str, str], identities: Mapping[str, str], answered: Callable[[], None]) -> None:
        """Ask for these ``versions``; call ``answered`` when it has answered.

        ``identities`` are what :func:`worker_agent.trees.identity` gave here; what has none is not seen.
        """
        number = next(self._numbers)
        self._asked[number] = versions, answered
        self._send(protocol.Look(number, dict(identities)))

    def on_seen(self, seen: protocol.Seen) -> None:
        """Its answer, if it was asked."""
        if seen.number not in self._asked:
            return
        versions, answered = self._asked.pop(seen.number)
        paths = set(seen.paths)
        self._answers.update({(path, each): path in paths for path, each in versions.items()})
        while len(self._answers) > self._kept:
            self._answers.popitem(last=False)
        answered()

    def forget(self, versions: Mapping[str, str]) -> None:
        """Ask for these again: a task was not started, and one of them may be the reason."""
        for each in versions.items():
            self._answers.pop(each, None)
