"""The scratch directories of an agent's tasks, and the threads for what takes long with them.

    <store>/scratch-<supervisor>/<task>-<attempt>-<number>/

The directories lie in the last of the session's private directories, which is on a disk: what tasks write there is not
to be taken for memory. They are those of one supervisor, which removes them when its agent has ended, however it ended.

To copy outputs and to remove many files may take minutes, and the disk may hang: each such errand has a thread, and the
loop goes on. What it gave is handed to the loop's thread.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from worker_agent import directories, protocol, task_files
from worker_agent.attempt import Attempt
from worker_agent.loop import Loop
from worker_agent.pieces import Received

#: What became of outputs: None if they are in their places, what is to be sent, or why neither can be had.
Fate = protocol.Uncollected | protocol.Tree | None
Collected = Callable[[Fate], None]


class Scratch:
    """Makes and removes scratch directories, and moves outputs. Used from the loop's thread only."""

    def __init__(self, loop: Loop, place: str, received: Received | None = None) -> None:
        """``place`` is made when it is needed. ``received``: what was sent to us, if we do not see the client's files.

        Then outputs are gathered beside ``place``, to be sent.
        """
        self._received = received
        self._loop = loop
        self._place = place
        self._numbers = itertools.count()
        #: the directories that are there
        self._made: set[str] = set()
        self._wakeup = -1
        #: threads that move outputs, and by what they are told to end
        self._collecting: dict[Attempt, tuple[threading.Thread, threading.Event]] = {}
        self._collected: deque[tuple[Attempt, Collected, Fate]] = deque()

    def prepare(self, attempt: Attempt) -> None:
        """Make its directory, if it wants one and has none yet. Raises OSError; then there is none."""
        files = attempt.settings.files
        if files is None or attempt.scratch or not (files.task_dir or files.in_scratch):
            return
        os.makedirs(self._place, 0o700, exist_ok=True)
        name = f"{attempt.order.task}-{attempt.order.attempt}-{next(self._numbers)}"
        attempt.scratch = os.path.join(self._place, name)
        self._made.add(attempt.scratch)
        try:
            task_files.prepare(attempt.scratch, files, self._path_of)
        except OSError:
            self.clear(attempt)
            raise

    def _path_of(self, file: protocol.SentFile) -> str:
        if self._received is None:
            raise OSError("this agent sees the client's files, and is sent none")
        return self._received.input_path(file)

    def clear(self, attempt: Attempt) -> None:
        """Remove its directory: nothing of the attempt runs any more."""
        path, attempt.scratch = attempt.scratch, ""
        if path:
            self._remove(path)

    def _remove(self, path: str) -> None:
        self._made.discard(path)
        try:
            os.rmdir(path)
        except OSError:  # it is not empty
            _start("remove", partial(directories.remove_tree, path))

    # --- outputs ------------------------------------------------------------------------------------------------------

    def collect(self, attempt: Attempt, done: Collected) -> None:
        """Move the outputs of a program that has ended to where they are wanted; then call ``done``.

        Unless all is forgotten.
        """
        if self._wakeup < 0:
            self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._loop.watch(self._wakeup, self._on_collected)
        abandoned = threading.Event()
        thread = _start("collect", partial(self._collect, attempt, done, abandoned))
        self._collecting[attempt] = thread, abandoned

    def _collect(self, attempt: Attempt, done: Collected, abandoned: threading.Event) -> None:
        """On the thread."""
        assert attempt.settings.files is not None
        outputs = attempt.settings.files.outputs
        fate: Fate
        try:
            if self._received is None:
                fate = task_files.collect(attempt.scratch, outputs, abandoned)
            else:
                fate = task_files.gather(attempt.scratch, outputs, os.path.dirname(self._place), abandoned)
        except Exception as error:  # a bug: a thread that ends without a word would leave its task running for ever
            fate = protocol.Uncollected(text=f"its outputs cannot be moved: {error!r}")
        self._collected.append((attempt, done, fate))
        os.eventfd_write(self._wakeup, 1)

    def _on_collected(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a stale event: the number was another descriptor's in this round
            os.eventfd_read(self._wakeup)
        while self._collected:
            attempt, done, fate = self._collected.popleft()
            if self._collecting.pop(attempt, None) is not None:
                done(fate)
            elif isinstance(fate, protocol.Tree):
                task_files.discard(fate)

    def collects(self, attempt: Attempt) -> bool:
        """Whether the program of the attempt has ended, and its outputs are on the way."""
        return attempt in self._collecting

    def abandon(self, attempt: Attempt) -> None:
        """Its outputs are not wanted any more: its ``done`` is called soon, unless the disk hangs."""
        self._collecting[attempt][1].set()

    def forget_all(self, patience: float) -> None:
        """Nobody wants to know how attempts end: nothing is moved any more, and nothing of them stays.

        Waits until no thread writes where others may, at most so many seconds.
        """
        until = time.monotonic() + patience
        threads = list(self._collecting.values())
        self._collecting.clear()
        for _, abandoned in threads:
            abandoned.set()
        for thread, _ in threads:
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))
        for path in list(self._made):
            self._remove(path)


def _start(name: str, errand: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=errand, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the system has no more threads for us: then the loop has to wait
        errand()
    return thread
