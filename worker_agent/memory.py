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
import itertools
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from worker_agent import processes
from worker_agent.loop import Loop, Timer

__all__ = ["KernelKills", "MemoryGuard", "Peak"]

#: Seconds from one look at the guarded tasks to the next, unless that were more than ``SHARE`` of a CPU.
PERIOD = 0.1
SHARE = 0.05
#: What all our control groups are called, and the one for our own processes: in version 2 a group has either processes
#: or, for its children, controllers.
PREFIX = "hpc-executor-"
HOME = f"{PREFIX}home"
#: So often do we go after processes that fork while we move them.
_ROUNDS = 10

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Peak:
    """What was seen of a task's memory, in bytes; ``by`` tells who found it beyond its limit: "agent", "kernel", ""."""

    peak: int
    limit: int
    by: str = ""


@dataclass(eq=False, slots=True)
class Guarded:
    """A task that has a limit."""

    pid: int
    limit: int
    #: the variables that its processes have in their environment, as NAME=VALUE
    marks: frozenset[bytes] = frozenset()
    peak: int = 0
    by: str = ""
    told: bool = False
    #: its control group's directory, if it has one
    group: str = ""
    #: its processes, and when they began: pids are used again
    members: dict[int, int | None] = field(default_factory=dict)
    #: the process that it was forked from, if that was not us: we only execute
    template: int = 0
    #: what the sum has too much, when it was last measured, and when that was
    shared: int = 0
    measured: float = 0.0


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


# ---- watching ------------------------------------------------------------------------------------------------------


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
        latest = _read(f"{self._proc}/loadavg").rpartition(b" ")[2]
        if latest and latest == self._latest:
            return
        self._latest = latest
        there = _pids(self._proc)
        # At the first look, who is not below us can only be in a tree that was adopted, or nobody's.
        new = there - self._placed if self._placed else there & set(processes.descendants(os.getpid(), self._proc))
        self._placed = there
        for each in watched:
            each.members = {pid: born for pid, born in each.members.items() if pid in there}
        self._place({pid: _read(f"{self._proc}/{pid}/status") for pid in new}, watched)

    def _adopt(self, guarded: Guarded) -> None:
        """At the first look: most tasks do not live to see one."""
        if guarded.measured:
            return
        guarded.measured = time.monotonic()
        pids = [guarded.pid, *processes.descendants(guarded.pid, self._proc)]
        guarded.members = {pid: processes.start_time(pid, self._proc) for pid in pids}
        parent = _field(_read(f"{self._proc}/{guarded.pid}/status"), b"PPid")
        if parent not in (0, 1, os.getpid()):
            guarded.template = parent
            guarded.shared = _memory(_read(f"{self._proc}/{parent}/status"))

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
        parent = _field(new[line[-1]], b"PPid")
        if parent in owners:
            return owners[parent]
        sessions = {_field(new[pid], b"NSsid") for pid in line}
        marked = [each for each in watched if each.marks] if parent == os.getpid() else []
        variables = set(_read(f"{self._proc}/{line[-1]}/environ").split(b"\0")) if marked else set()
        candidates = [each for each in watched if each.pid in sessions]
        return next(iter(candidates + [each for each in marked if each.marks <= variables]), None)

    # How much it has

    def _add_up(self, guarded: Guarded) -> bool:
        """Whether only a measurement can tell if it has too much."""
        sizes = [_memory(_read(f"{self._proc}/{pid}/status")) for pid in guarded.members]
        template = _memory(_read(f"{self._proc}/{guarded.template}/status")) if guarded.template else 0
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
        lent = _lent(_read(f"{self._proc}/{template}/smaps_rollup")) if template else 0
        size = _memory(_read(f"{self._proc}/{template}/status")) if template else 0
        for pid in self._pids:
            most = _memory(_read(f"{self._proc}/{pid}/status"))
            rollup = _read(f"{self._proc}/{pid}/smaps_rollup")
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
    return max(_private(rollup), _anonymous(rollup) - lent) + _field(rollup, b"Pss_Shmem") * 1024


def _lent(rollup: bytes) -> int:
    """One process's share of those pages of a template that are shared: as large in the template as in its forks."""
    return max(0, _anonymous(rollup) - _private(rollup))


def _anonymous(rollup: bytes) -> int:
    return (_field(rollup, b"Pss_Anon") + _field(rollup, b"SwapPss")) * 1024


def _private(rollup: bytes) -> int:
    """Anonymous memory that nobody shares: at least so much. Files and shared memory may be private and dirty, too."""
    others = _field(rollup, b"Pss_Shmem") + _field(rollup, b"Pss_File")
    return max(0, _field(rollup, b"Private_Dirty") - others) * 1024


def _memory(status: bytes) -> int:
    """What a process has by its ``status``, shared or not. None of a zombie, a kernel thread, one that is gone."""
    return sum(_field(status, name) for name in (b"RssAnon", b"RssShmem", b"VmSwap")) * 1024


def _line(pid: int, new: Mapping[int, bytes], owners: Mapping[int, Guarded]) -> Iterator[int]:
    """``pid`` and those of its ancestors that are new and nobody's, upwards."""
    seen = set()
    while pid in new and pid not in owners and pid not in seen:  # read at different times, they may form a ring
        seen.add(pid)
        yield pid
        pid = _field(new[pid], b"PPid")


def _pids(proc: str) -> set[int]:
    return {int(name) for name in os.listdir(proc) if name.isdecimal()}


def _field(text: bytes, name: bytes) -> int:
    """The first number in the line of this name (``name: 12 kB``), or 0.

    In namespaces ``NSsid`` has several: the first is ours.
    """
    _, found, rest = text.partition(b"\n" + name + b":")
    word = rest[:64].split(None, 1)[0] if found and rest[:64].strip() else b""
    return int(word) if word.isdigit() else 0


def _read(path: str) -> bytes:
    """A small file; empty if it is gone, or not for us."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return b"".join(iter(lambda: os.read(fd, 65536), b""))
    except OSError:
        return b""
    finally:
        os.close(fd)


# ---- control groups ------------------------------------------------------------------------------------------------


class Unusable(OSError):
    """Our control group is not for us to divide."""


def open_groups(name: str, top: int, proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> Groups | None:
    """Control groups for tasks, if we may make them and nobody else is concerned."""
    own = _own_group(proc, cgroup)
    if not own:
        return None
    groups = Groups(os.path.dirname(own) if os.path.basename(own) == HOME else own, name, top, proc)
    try:
        groups.open()
    except OSError:
        groups.close()
        return None
    return groups


def _own_group(proc: str, cgroup: str) -> str:
    """The directory of our group in version 2, or ""."""
    lines = _read(f"{proc}/self/cgroup").decode(errors="replace").splitlines()
    paths = [line[3:].rstrip("/") for line in lines if line.startswith("0::")]
    # Containers have the path that the host knows, or the right one; only if we are in it is it ours.
    candidates = [f"{cgroup}{mount}{path}" for mount in ("", "/unified") for path in (*paths, "")]
    return next((each for each in candidates if os.getpid() in _members(each)), "")


class Groups:
    """A control group for each task, below one that is ours alone."""

    def __init__(self, root: str, name: str, top: int, proc: str) -> None:
        self._root = root
        self._home = f"{root}/{HOME}"
        self._prefix = f"{PREFIX}{name}-"
        self._top = top
        self._proc = proc
        self._numbers = itertools.count(1)
        #: groups that could not yet be removed
        self._left: list[str] = []
        #: whether the home is ours
        self._at_home = False

    def open(self) -> None:
        """Make ourselves at home, and try. Raises OSError: it cannot be."""
        if b"memory" not in _read(f"{self._root}/cgroup.controllers").split():
            raise Unusable(f"{self._root} does not count memory")
        folders = [each.name for each in os.scandir(self._root) if each.is_dir(follow_symlinks=False)]
        if not all(folder.startswith(PREFIX) for folder in folders):
            raise Unusable(f"{self._root} has groups of others")
        self._left = [f"{self._root}/{folder}" for folder in folders if folder.startswith(self._prefix)]
        self._move_in()
        _write(f"{self._root}/cgroup.subtree_control", "+memory")
        self._remove(self._make(limit=1 << 30))

    def _move_in(self) -> None:
        """All processes of the root go to the home: in one that has processes, children have no controllers."""
        self._check()
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._home)
        self._at_home = True
        for _ in range(_ROUNDS):
            if not _members(self._root):
                return
            self._check()
            _move(_members(self._root), self._home)
        raise Unusable(f"{self._root} does not become empty")

    def _check(self) -> None:
        """Raises OSError if somebody else is here."""
        for _ in range(_ROUNDS):
            members = _members(self._root) + _members(self._home)
            ours = {self._top, *processes.descendants(self._top, self._proc)}
            if ours.issuperset(members):
                return
        raise Unusable(f"{self._root} has processes of others")  # not such that began, or ended, while we looked

    def begin(self, guarded: Guarded) -> None:
        """Put a task into a group of its own, if there can be one."""
        try:
            guarded.group = self._make(guarded.limit)
        except OSError:  # too many; it is watched then
            return
        if not self._enter(guarded):
            self._remove(guarded.group)
            guarded.group = ""

    def _make(self, limit: int) -> str:
        group = f"{self._root}/{self._prefix}{next(self._numbers)}"
        os.mkdir(group)
        try:
            _write(f"{group}/memory.max", str(limit))
            for name, text in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                with contextlib.suppress(FileNotFoundError):  # no swap, or Linux before 4.19
                    _write(f"{group}/{name}", text)
        except OSError:
            self._remove(group)
            raise
        return group

    def _enter(self, guarded: Guarded) -> bool:
        """Move the task and what it has started; False if that is not allowed. New children are born in the group."""
        moved: set[int] = set()
        for _ in range(_ROUNDS):
            new = {guarded.pid, *processes.descendants(guarded.pid, self._proc)} - moved
            if not new:
                break
            if not _move(sorted(new), guarded.group):
                return False
            moved |= new
        return True

    def look(self, all_guarded: list[Guarded]) -> None:
        """See whom the kernel has killed."""
        for guarded in all_guarded:
            self._note(guarded)
        self._sweep()

    def _note(self, guarded: Guarded) -> None:
        highest = _read(f"{guarded.group}/memory.peak")  # there is one from Linux 5.19 on
        guarded.peak = max(guarded.peak, _number(highest or _read(f"{guarded.group}/memory.current")))
        if _oom_kills(_read(f"{guarded.group}/memory.events")):
            guarded.by = "kernel"

    def end(self, guarded: Guarded) -> None:
        """The last look; what still runs comes back to us, and the group goes."""
        self._note(guarded)
        self._remove(guarded.group)

    def _remove(self, group: str) -> None:
        self._left.append(group)
        self._sweep()

    def _sweep(self) -> None:
        """Remove what may be removed."""
        self._left = [group for group in self._left if not self._is_removed(group)]

    def _is_removed(self, group: str) -> bool:
        for _ in range(_ROUNDS):
            members = _members(group)
            if not members or not _move(members, self._home):
                break
        try:
            os.rmdir(group)
        except FileNotFoundError:
            return True
        except OSError:  # a process that cannot be moved, or is just ending
            return False
        return True

    def close(self) -> None:
        """Undo everything that :meth:`open` did, if nobody else has come."""
        if not self._at_home:
            return
        self._sweep()
        with contextlib.suppress(OSError):
            self._check()
            _write(f"{self._root}/cgroup.subtree_control", "-memory")
            for _ in range(_ROUNDS):
                _move(_members(self._home), self._root)
            os.rmdir(self._home)


def _members(group: str) -> list[int]:
    """The processes of a group; 0 stands for one that our namespace has no number for."""
    return [int(word) for word in _read(f"{group}/cgroup.procs").split()]


def _move(pids: Iterable[int], group: str) -> bool:
    """Move processes, also those that end meanwhile; False if one may not be."""
    for pid in pids:
        try:
            _write(f"{group}/cgroup.procs", str(pid))
        except ProcessLookupError:
            continue
        except OSError:
            return False
    return True


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _number(text: bytes) -> int:
    return int(text) if text.strip().isdigit() else 0


def _oom_kills(text: bytes) -> int | None:
    """What a file says of processes that the kernel killed for memory, if it does."""
    words = text.split()
    return int(words[words.index(b"oom_kill") + 1]) if b"oom_kill" in words[:-1] else None


# ---- the kernel's kills --------------------------------------------------------------------------------------------


class KernelKills:
    """Counts the processes that the kernel has killed because there was no memory.

    The kernel counts before it kills: if a task has died by a SIGKILL that nobody sent, and there are more than when it
    started, then it was this. We ask the nearest control group that counts, of ours and those around it, since that of
    the whole node (``vmstat``) has the kills of all others, too.
    """

    def __init__(self, proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> None:
        files = [*_counting_files(proc, cgroup), f"{proc}/vmstat"]
        self._file = next((file for file in files if _oom_kills(_read(file)) is not None), "")

    def count(self) -> int:
        """How many there have been; 0 if nothing here tells."""
        return _oom_kills(_read(self._file)) or 0


def _counting_files(proc: str, cgroup: str) -> Iterator[str]:
    """Files of our group and those around it: version 1 if its ``memory`` is in use, since then version 2 has none."""
    for line in _read(f"{proc}/self/cgroup").decode(errors="replace").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            yield from (f"{each}/memory.oom_control" for each in processes._with_ancestors(f"{cgroup}/memory", path))
        elif not controllers:
            yield from (f"{each}/memory.events" for each in processes._with_ancestors(cgroup, path))
