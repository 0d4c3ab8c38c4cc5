"""Outputs that agents have sent, on their way to where they are wanted: moved there at once and whole, on errands.

Transfers --files of ours, and the end of the task--> Placing --the end, when they are there--> core
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from executor.errands import Errand, Errands
from executor.worker import Worker
from worker_agent import protocol, task_files

#: Seconds in which outputs that are given up have left the disk alone, unless that hangs.
PATIENCE = 5.0


@dataclass(slots=True, eq=False)
class _Placed:
    """The end of a task whose outputs are being moved."""

    worker: Worker
    report: protocol.Finished
    abandoned: threading.Event
    errand: Errand | None = None
    #: its agent is gone: if its outputs are not in their places now, another attempt has others
    lost: bool = False
    #: somebody wants its end
    killed: bool = False
    #: its outputs are in their places
    done: bool = False


class Placing:
    """The tasks that have ended but for their outputs. Used from the hub's thread only."""

    def __init__(self, errands: Errands, stores: list[str], tell: Callable[[Worker, protocol.Finished], None]) -> None:
        """``tell`` is told the end of a task when its outputs are in their places, or are not to be had."""
        self._errands = errands
        self._place = stores[-1]
        self._tell = tell
        self._placed: set[_Placed] = set()

    def place(self, worker: Worker, report: protocol.Finished, outputs: Mapping[str, str], tree: protocol.Tree) -> None:
        """Move ``outputs`` to their places. The ``tree`` names files of ours (as pieces), which are used up."""
        placed = _Placed(worker, report, threading.Event())
        self._placed.add(placed)
        placed.errand = self._errands.start(
            lambda: _move(self._place, outputs, tree, placed.abandoned), lambda answer: self._on_moved(placed, answer)
        )

    def _on_moved(self, placed: _Placed, answer: protocol.Uncollected | Exception | None) -> None:
        self._placed.discard(placed)
        if isinstance(answer, Exception):
            answer = protocol.Uncollected(text=f"its outputs cannot be put in their places: {answer}")
        if answer is not None and placed.killed:
            placed.report.end = protocol.KILLED
        elif answer is not None:
            placed.report.end, placed.report.body = protocol.NO_OUTPUT, msgspec.json.encode(answer)
        placed.done = answer is None
        if not placed.lost:
            self._tell(placed.worker, placed.report)

    def abandon(self, worker: Worker) -> list[protocol.Finished]:
        """The agent is gone, and its tasks are tried again: from now on nothing is written for these attempts.

        Gives the ends of those whose outputs are in their places in this moment; ``tell`` is not told.
        """
        return self._give_up([placed for placed in self._placed if placed.worker is worker])

    def abandon_all(self) -> None:
        """Nobody wants to know how tasks end."""
        self._give_up(list(self._placed))

    def _give_up(self, given_up: list[_Placed]) -> list[protocol.Finished]:
        for placed in given_up:
            placed.lost = True
            placed.abandoned.set()
        until = time.monotonic() + PATIENCE
        for placed in given_up:
            assert placed.errand is not None
            self._errands.wait(placed.errand, max(0.0, until - time.monotonic()))
        self._placed.difference_update(given_up)
        return [placed.report for placed in given_up if placed.done]

    def kill(self, task: int) -> None:
        """The task is to end: its outputs are given up, if it has some that are not yet in their places."""
        for placed in self._placed:
            if placed.report.task == task:
                placed.killed = True
                placed.abandoned.set()


def _move(
    place: str, outputs: Mapping[str, str], tree: protocol.Tree, abandoned: threading.Event
) -> protocol.Uncollected | None:
    """On the thread. The files get their names in a directory of ours first, in which no agent can put a link."""
    try:
        with tempfile.TemporaryDirectory(prefix="outputs-", dir=place, ignore_cleanup_errors=True) as top:
            task_files.lay_out(top, tree, _name)
            return task_files.collect(top, outputs, abandoned)
    finally:
        task_files.discard(tree)


def _name(top: str, file: protocol.SentFile) -> None:
    path = task_files.parented(top, file.name)
    os.chmod(file.piece, file.mode & 0o777)
    os.rename(file.piece, path)
