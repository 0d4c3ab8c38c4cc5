"""The hub's inbox: tasks and wishes of other threads, and the descriptor that wakes the hub for them."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator

from executor.core.model import Task


class Inbox:
    """What waits for the hub. :meth:`put`, :meth:`post` and :meth:`wake` may be called from any thread."""

    def __init__(self) -> None:
        #: the oldest first; the hub's thread takes them out
        self.items: deque[Task | Callable[[], None]] = deque()
        #: readable when the hub is to wake
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        #: whether new tasks wake the hub
        self.sleeping = False
        self._lock = threading.Lock()

    def put(self, task: Task) -> None:
        """A new task."""
        self.items.append(task)
        if self.sleeping:
            self.wake()

    def post(self, wish: Callable[[], None]) -> None:
        """Something that the hub's thread is to do, at once."""
        self.items.append(wish)
        self.wake()

    def wake(self) -> None:
        """Have the hub look what there is."""
        with self._lock:  # once closed, its number may be that of anything
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def take_tasks(self) -> Iterator[Task]:
        """Take out everything, and give the tasks; wishes are forgotten."""
        while self.items:  # others may still put something there
            item = self.items.popleft()
            if isinstance(item, Task):
                yield item

    def close(self) -> None:
        """Nobody is woken any more."""
        with self._lock:
            os.close(self.fd)
            self.fd = -1
