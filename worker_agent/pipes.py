"""The agent's end of a pipe that tasks write their output to."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from worker_agent.loop import Loop
from worker_agent.runner import count_unread, unread

#: What one read takes at most: the capacity of a pipe.
_BLOCK = 64 * 1024


class Pipe:
    """Hands on what arrives. A background child that keeps the other end open delays nobody.

    With ``before``, whose the bytes are is learnt when they are there and before they are read: what a writer had said
    when it wrote them is known then, and it says nothing more about them as long as they lie in the pipe.
    """

    __slots__ = ("_before", "_fd", "_loop", "_receive", "_there")

    def __init__(
        self, loop: Loop, fd: int, receive: Callable[[bytes], None], before: Callable[[], None] | None = None
    ) -> None:
        """``before`` is called before what the loop has found is read."""
        self._loop = loop
        self._fd = fd
        self._receive = receive
        self._before = before
        #: bytes that were there before ``before`` was called, and were not read since
        self._there = 0
        # An event may be stale: its descriptor was closed, and opened again as ours, within one round of the loop.
        os.set_blocking(fd, False)
        loop.watch(fd, self._on_ready)

    def _on_ready(self) -> None:
        if self._before is None:
            self._read()
            return
        self._there = count_unread(self._fd)
        if self._there == 0 and _has_writers(self._fd):
            return  # somebody has read it in this round of the loop
        self._before()
        if self._fd >= 0 and (self._there or not _has_writers(self._fd)):
            self._read(self._there or _BLOCK)

    def _read(self, most: int = _BLOCK) -> None:
        self._there = 0
        try:
            data = os.read(self._fd, most)
        except BlockingIOError:
            return
        if data:
            self._receive(data)
        else:
            self._close()

    def drain(self) -> None:
        """Hand on all that was written so far, without waiting for more."""
        while self._fd >= 0 and unread(self._fd):
            self._read()

    def finish(self) -> None:
        """Drain, at most one pipe's capacity over what is there, and close."""
        for _ in range(2):
            if self._fd >= 0 and unread(self._fd):
                self._read()
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1


def _has_writers(fd: int) -> bool:
    """Whether more may come."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return not any(events & select.POLLHUP for _, events in poll.poll(0))
