"""The memory of tasks, added up over their processes: see ``memory``, "watch"."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping

from worker_agent import processes
from worker_agent.guarded import Guarded, field_of, read_file

#: The part of a CPU that looking may take.
SHARE = 0.05


class Watch:
    """Adds up the memory of tasks' processes."""

    def __init__(self, proc: str) -> None:
        self._proc = proc
        #: processes of which it is known whose they are: a task's, or nobody's
        self._placed: set[int] = set()
        #: the number of the latest process (or thread) of all, at the last look
        self._latest = b""
        self._measurement: Measurement | None = None
        self._rested_at = 0.0

    def look(self, watched: list[Guarded]) -> None:
        """Find new processes, add up, and find out who has too much."""
        for each in watched:
            self._adopt(each)
        self._find_new(watched)
        self._learn()
        in_doubt = [each for each in watched if not each.by and self._add_up(each)]
        if in_doubt and self._measurement is None and time.monotonic() >= self._rested_at:
            self._measurement = Measurement(min(in_doubt, key=lambda each: each.measured), self._proc)

    def look_again(self, guarded: Guarded) -> None:
        """Add up once more, for the peak; without a look for new processes."""
        if not guarded.by:
            self._adopt(guarded)
            self._add_up(guarded)
            guarded.by = ""  # it has ended in peace

    def forget(self) -> None:
        """Nobody is watched: when somebody is again, pids may be those of others."""
        self._placed.clear()
        self._latest = b""
        self._measurement = None

    # Whose a process is

    def _find_new(self, watched: list[Guarded]) -> None:
        latest = read_file(f"{self._proc}/loadavg").rpartition(b" ")[2]
        if latest and latest == self._latest:
            return
        self._latest = latest
        there = _pids(self._proc)
        # At the first look, who is not below us can only be in a tree that was adopted, or nobody's.
        new = there - self._placed if self._placed else there & set(processes.descendants(os.getpid(), self._proc))
        self._placed = there
        for each in watched:
            each.members = {pid: born for pid, born in each.members.items() if pid in there}
        self._place({pid: read_file(f"{self._proc}/{pid}/status") for pid in new}, watched)

    def _adopt(self, guarded: Guarded) -> None:
        """At the first look: most tasks do not live to see one."""
        if guarded.measured:
            return
        guarded.measured = time.monotonic()
        pids = [guarded.pid, *processes.descendants(guarded.pid, self._proc)]
        guarded.members = {pid: processes.start_time(pid, self._proc) for pid in pids}
        parent = field_of(read_file(f"{self._proc}/{guarded.pid}/status"), b"PPid")
        if parent not in (0, 1, os.getpid()):
            guarded.template = parent
            guarded.shared = _memory(read_file(f"{self._proc}/{parent}/status"))

    def _place(self, new: Mapping[int, bytes], watched: list[Guarded]) -> None:
        owners = {pid: each for each in watched for pid in each.members}
        for pid in new:
            line = list(_line(pid, new, owners))
            owner = self._owner(line, new, owners, watched) if line else None
            if owner is not None:
                owners.update(dict.fromkeys(line, owner))
                owner.members.update((each, processes.start_time(each, self._proc)) for each in line)

    def _owner(
        self, line: list[int], new: Mapping[int, bytes], owners: Mapping[int, Guarded], watched: list[Guarded]
    ) -> Guarded | None:
        """Whose they are: a process, its parent, and so on up to the eldest that is new."""
        parent = field_of(new[line[-1]], b"PPid")
        if parent in owners:
            return owners[parent]
        sessions = {field_of(new[pid], b"NSsid") for pid in line}
        marked = [each for each in watched if each.marks] if parent == os.getpid() else []
        variables = set(read_file(f"{self._proc}/{line[-1]}/environ").split(b"\0")) if marked else set()
        candidates = [each for each in watched if each.pid in sessions]
        return next(iter(candidates + [each for each in marked if each.marks <= variables]), None)

    # How much it has

    def _add_up(self, guarded: Guarded) -> bool:
        """Whether only a measurement can tell if it has too much."""
        sizes = [_memory(read_file(f"{self._proc}/{pid}/status")) for pid in guarded.members]
        template = _memory(read_file(f"{self._proc}/{guarded.template}/status")) if guarded.template else 0
        most = sum(sizes)
        # Nothing is shared by one that is alone and was not forked. Else this is sure: what the largest has beyond its
        # template.
        least = max(0, max(sizes, default=0) - template)
        guarded.peak = max(guarded.peak, least, min(most - guarded.shared, guarded.limit))
        if least > guarded.limit:
            self._exceed(guarded)
        return most > guarded.limit >= least

    def _exceed(self, guarded: Guarded) -> None:
        strangers = [pid for pid, born in guarded.members.items() if self._is_another(pid, born)]
        for pid in strangers:
            del guarded.members[pid]
        if not strangers:  # else it has less, and the next look tells
            guarded.by = "agent"

    def _is_another(self, pid: int, born: int | None) -> bool:
        now = processes.start_time(pid, self._proc)
        return now is not None and now != born

    def _learn(self) -> None:
        """Take the measurement's result, if it has one."""
        done = self._measurement
        if done is None or not done.finished.is_set():
            return
        self._measurement = None
        self._rested_at = time.monotonic() + done.took / SHARE
        done.guarded.shared = max(0, done.most - done.own)
        done.guarded.peak = max(done.guarded.peak, done.own)
        if done.own > done.guarded.limit:
            self._exceed(done.guarded)


class Measurement:
    """How much memory is a task's own: read by a thread, since it may take seconds."""

    def __init__(self, guarded: Guarded, proc: str) -> None:
        self.guarded = guarded
        self.most = self.own = 0
        self.took = 0.0
        self.finished = threading.Event()
        self._proc = proc
        self._pids = list(guarded.members)
        guarded.measured = time.monotonic()
        try:
            threading.Thread(target=self._run, name="memory", daemon=True).start()
        except RuntimeError:  # there may be no more threads
            self._run()

    def _run(self) -> None:
        began = time.thread_time()
        template = self.guarded.template
        lent = _lent(read_file(f"{self._proc}/{template}/smaps_rollup")) if template else 0
        size = _memory(read_file(f"{self._proc}/{template}/status")) if template else 0
        for pid in self._pids:
            most = _memory(read_file(f"{self._proc}/{pid}/status"))
            rollup = read_file(f"{self._proc}/{pid}/smaps_rollup")
            self.most += most
            # what we may not read: a set-uid program's, or another user's
            self.own += _own(rollup, lent) if b"Pss_Anon" in rollup else max(0, most - size)
        self.took = time.thread_time() - began
        self.finished.set()


def _own(rollup: bytes, lent: int) -> int:
    """What of a process's memory is not its template's, by its ``smaps_rollup``; too little, if not exact.

    ``lent`` is as much as its share of the template's pages can be. Each page counts by the number of processes that
    have it: what only the task's own processes share comes to its whole in their sum.
    """
    return max(_private(rollup), _anonymous(rollup) - lent) + field_of(rollup, b"Pss_Shmem") * 1024


def _lent(rollup: bytes) -> int:
    """One process's share of those pages of a template that are shared: as large in the template as in its forks."""
    return max(0, _anonymous(rollup) - _private(rollup))


def _anonymous(rollup: bytes) -> int:
    return (field_of(rollup, b"Pss_Anon") + field_of(rollup, b"SwapPss")) * 1024


def _private(rollup: bytes) -> int:
    """Anonymous memory that nobody shares: at least so much. Files and shared memory may be private and dirty, too."""
    others = field_of(rollup, b"Pss_Shmem") + field_of(rollup, b"Pss_File")
    return max(0, field_of(rollup, b"Private_Dirty") - others) * 1024


def _memory(status: bytes) -> int:
    """What a process has by its ``status``, shared or not. None of a zombie, a kernel thread, one that is gone."""
    return sum(field_of(status, name) for name in (b"RssAnon", b"RssShmem", b"VmSwap")) * 1024


def _line(pid: int, new: Mapping[int, bytes], owners: Mapping[int, Guarded]) -> Iterator[int]:
    """``pid`` and those of its ancestors that are new and nobody's, upwards."""
    seen = set()
    while pid in new and pid not in owners and pid not in seen:  # read at different times, they may form a ring
        seen.add(pid)
        yield pid
        pid = field_of(new[pid], b"PPid")


def _pids(proc: str) -> set[int]:
    return {int(name) for name in os.listdir(proc) if name.isdecimal()}
