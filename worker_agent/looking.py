"""Looks at users' files, to tell the hub which of them are the same here: each look on a thread, as a disk may hang.

    hub --Look--> Looking --> a thread: trees.identity
    hub <--Seen-- Looking <--'

A look that takes long sees nothing: what is not seen is sent. While one hangs, the next ones see nothing at once.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial

from worker_agent import protocol, trees
from worker_agent.loop import Loop, Timer

#: Seconds that a look may take.
PATIENCE = 30.0


class _Look:
    """One order, and the thread that looks."""

    def __init__(self, order: protocol.Look, work: Callable[[_Look], None]) -> None:
        self.order = order
        self.thread = threading.Thread(target=work, args=[self], name="look", daemon=True)
        self.timer: Timer | None = None


class Looking:
    """What was asked and is not yet answered. Used from the loop's thread only."""

    def __init__(self, loop: Loop, answer: Callable[[protocol.Seen], None], patience: float = PATIENCE) -> None:
        """``answer`` sends one to the hub. ``patience`` in seconds."""
        self._loop = loop
        self._answer = answer
        self._patience = patience
        self._wakeup = -1
        self._open: set[_Look] = set()
        #: threads of looks that nobody waits for any more
        self._late: list[threading.Thread] = []
        self._done: deque[tuple[_Look, list[str]]] = deque()

    def look(self, order: protocol.Look) -> None:
        """Answer it, later."""
        self._late = [thread for thread in self._late if thread.is_alive()]
        if self._late:
            self._answer(protocol.Seen(order.number, []))
            return
        if self._wakeup < 0:
            self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._loop.watch(self._wakeup, self._on_done)
        look = _Look(order, self._look)
        self._open.add(look)
        look.timer = self._loop.call_in(self._patience, partial(self._give_up, look))
        try:
            look.thread.start()
        except RuntimeError:  # the system has no more threads for us
            self._give_up(look)

    def _look(self, look: _Look) -> None:
        """On the thread."""
        self._done.append((look, seen_here(look.order.identities)))
        os.eventfd_write(self._wakeup, 1)

    def _on_done(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a stale event: the number was another descriptor's in this round
            os.eventfd_read(self._wakeup)
        while self._done:
            look, paths = self._done.popleft()
            if look in self._open:
                self._end(look, paths)

    def _end(self, look: _Look, paths: list[str]) -> None:
        self._open.discard(look)
        assert look.timer is not None
        look.timer.cancel()
        self._answer(protocol.Seen(look.order.number, paths))

    def _give_up(self, look: _Look) -> None:
        self._late.append(look.thread)
        self._end(look, [])

    def forget_all(self) -> None:
        """Nobody waits for answers any more."""
        for look in self._open:
            assert look.timer is not None
            look.timer.cancel()
            self._late.append(look.thread)
        self._open.clear()


def seen_here(identities: Mapping[str, str]) -> list[str]:
    """The paths at which that is here, too."""
    return [path for path, identity in identities.items() if _is_here(path, identity)]


def _is_here(path: str, identity: str) -> bool:
    try:
        return trees.identity(path) == identity
    except (OSError, ValueError):  # not here, not to be read, or no path
        return False
