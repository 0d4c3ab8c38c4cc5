"""Limits on the memory of tasks: which processes and which of their memory count, and who ends a task with too much.

There are two mechanisms. The better is chosen when a guard is made, and :attr:`MemoryGuard.mechanism` tells it.

"cgroup"
    A control group (version 2) for each task: the kernel counts, and kills the whole task where it would go beyond its
    limit. What its processes were charged before they came into the group is not in it: a template's memory never is;
    nor what a reused interpreter has kept from earlier tasks, nor the first milliseconds of a task. The files that a
    task reads and writes are: they do not kill it, for the kernel drops them first, but its ``peak`` has them. Files
    in a tmpfs (``/dev/shm``) cannot be dropped. To move a process into its group takes the kernel milliseconds.

"watch"
    The sum over the processes of a task, looked at every ``PERIOD`` seconds: anonymous memory, shared memory that they
    have mapped, and what of both was swapped out. Files that are mapped do not count, nor pages of hugetlbfs, nor a
    tmpfs of which nothing is mapped. What an interpreter shares with the template from which it was forked is not the
    task's; the template's pages that it has written to are (a copy is made then). What a reused interpreter has kept
    from earlier tasks counts. A task that grows fast is seen too late, and then the kernel may have to end it after
    all: :class:`KernelKills` tells.

A process counts for the task that it descends from, wherever it has moved since: a look notes who is there, and whose
child each new one is. One that has lost its parent before it was seen is a child of the task's interpreter, or of this
process: then its session, or variables in its environment (``marks``), tell whose it is.

What processes share is the costly part. ``status`` has it in every one of them, so its sum is too high at most, and a
sum within the limit is enough to know. ``smaps_rollup`` divides each page by the number of those who share it, but
walks all page tables (up to 0.1 s for each GB), so it is read only when the answer depends on it, by a thread. Hence a
``peak`` below the limit is too high by what the task's processes share with each other, or too low by those pages of
its template that it has written to.

Standard library only. ``proc`` and ``cgroup`` say where these file systems are mounted; tests give trees of their own.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

from worker_agent import cgroups
from worker_agent.guarded import Guarded, Peak, oom_kills, read_file
from worker_agent.loop import Loop, Timer
from worker_agent.memory_groups import open_groups
from worker_agent.memory_watch import SHARE, Watch

__all__ = ["KernelKills", "MemoryGuard", "Peak"]

#: Seconds from one look at the guarded tasks to the next, unless that were more than ``SHARE`` of a CPU.
PERIOD = 0.1

Key = TypeVar("Key", bound=Hashable)


class MemoryGuard(Generic[Key]):
    """Sees to it that tasks keep within their memory."""

    def __init__(
        self, loop: Loop, on_exceeded: Callable[[Key, int], None], *, name: str = "agent", top: int | None = None,
        groups: bool = True, proc: str = "/proc", cgroup: str = "/sys/fs/cgroup",
    ) -> None:  # fmt: skip
        """``on_exceeded(key, peak)`` is called once for a task beyond its limit: kill it, and release it when it ended.

        ``name`` is this agent's, and that of one which died in the same place: its groups are removed. Control groups
        are used only if our own holds no other processes than ``top`` (default: this one) and what is below it, which
        may be moved, and if ``groups`` says so.

        :raises ValueError: ``name`` has other characters than letters and digits.
        """
        if not name.isalnum():
            raise ValueError(f"name={name!r}: expected letters and digits, for the names of control groups")
        self._loop = loop
        self._on_exceeded = on_exceeded
        self._guarded: dict[Key, Guarded] = {}
        self._timer: Timer | None = None
        self._watch = Watch(proc)
        self._groups = open_groups(name, top or os.getpid(), proc, cgroup) if groups else None

    @property
    def mechanism(self) -> str:
        """How: "cgroup" or "watch"."""
        return "watch" if self._groups is None else "cgroup"

    def guard(self, key: Key, pid: int, limit_bytes: int, marks: Iterable[str] = ()) -> None:
        """From now on ``pid``, its children, and orphans of theirs with all of ``marks`` (NAME=VALUE) have this limit.

        ``pid`` is the leader of a session. A task that cannot have a control group, for there are too many, is watched.
        """
        assert key not in self._guarded
        guarded = Guarded(pid, limit_bytes, frozenset(mark.encode() for mark in marks))
        if self._groups is not None:
            self._groups.begin(guarded)
        self._guarded[key] = guarded
        if self._timer is None:
            self._timer = self._loop.call_in(PERIOD, self._look)

    def release(self, key: Key) -> Peak:
        """No longer; gives what was seen (of a key that is not guarded: nothing)."""
        guarded = self._guarded.pop(key, None)
        if guarded is None:
            return Peak(0, 0)
        with contextlib.suppress(OSError):  # we are short of descriptors; the peak is that of the last look
            self._look_at_last(guarded)
        if not self._guarded:
            self._stop()
        return Peak(guarded.peak, guarded.limit, guarded.by)

    def _look_at_last(self, guarded: Guarded) -> None:
        if guarded.group and self._groups is not None:
            self._groups.end(guarded)
        else:
            self._watch.look_again(guarded)

    def release_all(self) -> None:
        """Nothing is guarded any more."""
        for key in list(self._guarded):
            self.release(key)

    def close(self) -> None:
        """Nothing is, and no group of ours is left."""
        self.release_all()
        if self._groups is not None:
            self._groups.close()
            self._groups = None

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._watch.forget()

    def _look(self) -> None:
        began = time.thread_time()
        with contextlib.suppress(OSError):  # we are short of descriptors: at the next look
            self._look_at(list(self._guarded.values()))
        pause = max(PERIOD, (time.thread_time() - began) / SHARE)
        self._timer = self._loop.call_in(pause, self._look)
        self._tell()

    def _look_at(self, all_guarded: list[Guarded]) -> None:
        if self._groups is not None:
            self._groups.look([each for each in all_guarded if each.group])
        watched = [each for each in all_guarded if not each.group]
        if watched:
            self._watch.look(watched)

    def _tell(self) -> None:
        for key, guarded in list(self._guarded.items()):
            # who is told of one task may release others
            if guarded.by and not guarded.told and self._guarded.get(key) is guarded:
                guarded.told = True
                self._on_exceeded(key, guarded.peak)


class KernelKills:
    """Counts the processes that the kernel has killed because there was no memory.

    The kernel counts before it kills: if a task has died by a SIGKILL that nobody sent, and there are more than when we
    looked last, then it was this. We ask the nearest control group that counts, of ours and those around it, since
    that of the whole node (``vmstat``) has the kills of all others, too.
    """

    def __init__(self, proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> None:
        files = [*_counting_files(proc, cgroup), f"{proc}/vmstat"]
        self._file = next((file for file in files if oom_kills(read_file(file)) is not None), "")
        self._last = self.count()

    def are_more(self) -> bool:
        """Whether there are more than at the last time."""
        before, self._last = self._last, self.count()
        return self._last > before

    def count(self) -> int:
        """How many there have been; 0 if nothing here tells."""
        return oom_kills(read_file(self._file)) or 0


def _counting_files(proc: str, cgroup: str) -> Iterator[str]:
    """Files of our group and those around it: version 1 if its ``memory`` is in use, since then version 2 has none."""
    for line in read_file(f"{proc}/self/cgroup").decode(errors="replace").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            yield from (f"{each}/memory.oom_control" for each in cgroups.with_ancestors(f"{cgroup}/memory", path))
        elif not controllers:
            yield from (f"{each}/memory.events" for each in cgroups.with_ancestors(cgroup, path))
