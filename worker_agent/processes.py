"""Processes as Linux shows them: process trees and how to end them.

Standard library only. ``ctypes`` is imported by the two functions that need it, since each fresh interpreter
would pay for it. ``proc`` says where that file system is mounted; tests give trees of their own.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import select
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "AGENT", "END_AT_ONCE", "OwnChildren", "become_subreaper", "children", "descendants", "end_all_below",
    "end_marked", "kill_all", "kill_group", "kill_tree", "marked", "pidfd_alive", "say", "set_parent_death_signal",
    "start_time", "this_python", "variables_of", "version_of", "wait_for_ends",
]  # fmt: skip

#: The signal by which a supervisor ends its agent at once. (SIGTERM lets the agent leave in its own time.)
END_AT_ONCE = signal.SIGUSR1

#: The variable by which the processes of an agent can be found when all their parents are dead: its launch.
AGENT = "HPC_AGENT"

# <linux/prctl.h>
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def set_parent_death_signal(sig: int) -> None:
    """Have the kernel send ``sig`` to this process when its parent ends; 0 takes that back.

    "Parent" is the *thread* that forked us (prctl(2)). The parent may have ended before this call: compare
    ``os.getppid()`` afterwards with what it should be. Not inherited by children; lost on exec of a set-uid
    program.

    :raises OSError: the kernel refuses, such as for a signal that does not exist.
    """
    _prctl(_PR_SET_PDEATHSIG, sig)


def become_subreaper() -> None:
    """Make this process the parent of all its descendants that lose theirs; it has to wait for them then.

    :raises OSError: the kernel refuses.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if _find_prctl()(option, value, 0, 0, 0) != 0:
        number = errno.EINVAL  # the only one that it knows for what we ask
        raise OSError(number, f"prctl({option}, {value}): {os.strerror(number)}")


@functools.cache  # found once, in the template: its forks do not search again
def _find_prctl() -> Callable[..., int]:
    import ctypes

    return ctypes.PyDLL(None).prctl  # no argument types and no errno: a fork pays for each page


def has_children() -> bool:
    """Whether this process has children, zombies too; cheaper than :func:`children`."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def variables() -> dict[bytes, bytes]:
    """The dictionary behind ``os.environ``: to compare it costs a microsecond, to copy ``os.environ`` twenty."""
    found: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]  # not public
    return found


def this_python() -> list[str]:
    """This interpreter, with the flags it was started with (as :mod:`multiprocessing` does it)."""
    import subprocess

    return [sys.executable, *subprocess._args_from_interpreter_flags()]  # type: ignore[attr-defined]


def version_of(distribution: str) -> str:
    """The version of a distribution as it is installed here; "" if that is not told (one that was only copied)."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def say(text: str) -> None:
    """Write to stderr, if somebody reads that: nobody is to wait for a reader, nor to die for the lack of one."""
    data = f"{text}\n".encode(errors="replace")
    poll = select.poll()
    with contextlib.suppress(OSError):
        poll.register(2, select.POLLOUT)
        for start in range(0, len(data), select.PIPE_BUF):
            if any(events & select.POLLOUT for _, events in poll.poll(0)):
                os.write(2, data[start : start + select.PIPE_BUF])


# ---- process trees -----------------------------------------------------------------------------------------


def start_time(pid: int, proc: str = "/proc") -> int | None:
    """When the process began, in clock ticks since boot, or None if it is gone. With the pid it is unique."""
    fields = _stat_fields(pid, proc)
    return int(fields[19]) if fields else None


def _stat_fields(pid: int, proc: str) -> list[bytes]:
    """The fields of ``stat`` from the third on: field N of proc(5) is at N - 3. Empty if it is gone."""
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            # The second is the command in parentheses, and it may itself hold blanks, parentheses and line
            # ends.
            return file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def children(pid: int, proc: str = "/proc") -> list[int]:
    """The pids of the children of ``pid``, zombies too; empty if it is gone."""
    return _child_lister(proc)(pid)


class OwnChildren:
    """The children of this process, for who asks often: one file that stays open.

    A process that loses its parent goes to the first thread of its reaper, so that other threads change nothing.
    """

    def __init__(self) -> None:
        try:
            self._fd = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # the kernel has no CONFIG_PROC_CHILDREN
            self._fd = -1

    def pids(self) -> list[int]:
        """Their pids, zombies too."""
        if self._fd < 0:
            return children(os.getpid())
        found = block = os.pread(self._fd, 65536, 0)
        while block:
            block = os.pread(self._fd, 65536, len(found))
            found += block
        return [int(pid) for pid in found.split()]


def descendants(pid: int, proc: str = "/proc") -> list[int]:
    """The pids of all processes below ``pid``, parents before their children, without ``pid``."""
    children_of = _child_lister(proc)
    found = {pid: None}  # a set that keeps its order
    waiting = [pid]
    for each in waiting:  # grows while we walk
        new = [child for child in children_of(each) if child not in found]
        found |= dict.fromkeys(new)
        waiting += new
    return waiting[1:]


def _child_lister(proc: str) -> Callable[[int], list[int]]:
    # Without CONFIG_PROC_CHILDREN there are no children files; then one look at all processes has to do.
    if os.path.exists(f"{proc}/thread-self/children"):
        return lambda pid: _read_children(pid, proc)
    by_parent = _children_by_parent(proc)
    return lambda pid: by_parent.get(pid, [])


def _read_children(pid: int, proc: str) -> list[int]:
    found: list[int] = []
    for thread in _list_directory(f"{proc}/{pid}/task"):
        # Threads and processes may end at any moment, and then have no children.
        with (
            contextlib.suppress(FileNotFoundError, ProcessLookupError),
            open(f"{proc}/{pid}/task/{thread}/children", "rb") as file,
        ):
            found += map(int, file.read().split())
    return found


def _children_by_parent(proc: str) -> dict[int, list[int]]:
    by_parent: dict[int, list[int]] = defaultdict(list)
    for name in _list_directory(proc):
        fields = _stat_fields(int(name), proc) if name.isdecimal() else []
        if fields:
            by_parent[int(fields[1])].append(int(name))
    return by_parent


def _list_directory(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except (FileNotFoundError, ProcessLookupError):
        return []


# ---- ending processes --------------------------------------------------------------------------------------

#: So many rounds over a tree that forks faster than we look; then it is for the caller to try again.
_MOST_ROUNDS = 1000


def kill_group(pgid: int, sig: int) -> bool:
    """Send ``sig`` to the process group ``pgid``; False if there is none.

    :raises ValueError: ``pgid`` is 1 or less: to kill(2), that means our own group or every process there is.
    :raises PermissionError: all of its processes belong to somebody else.
    """
    if pgid <= 1:
        raise ValueError(f"pgid={pgid}: expected the number of one process group, more than 1")
    try:
        os.killpg(pgid, sig)
    except ProcessLookupError:
        return False
    return True


def kill_tree(pid: int, sig: int = signal.SIGKILL) -> None:
    """Send ``sig`` to every process below ``pid``, and not to ``pid``; those born meanwhile get it too.

    The caller itself is spared, and what is below it, if it is below ``pid``. What has already lost its
    parent is found only if ``pid`` is a subreaper. Waits for nobody: the dead remain zombies until their
    parents reap them.
    """
    if sig == signal.SIGKILL:
        _kill_stopped(_signal_descendants(pid, signal.SIGSTOP))
    _signal_descendants(pid, sig)


def _kill_stopped(stopped: dict[int, int | None]) -> None:
    # Stopped first, because a process that dies hands its children to somebody else, and one that it had just
    # born would be lost to us; and because the children files are exact only as long as nobody in them ends
    # (proc(5)). The start time shows that a pid is still the same process.
    for pid, born in stopped.items():
        if start_time(pid) == born:
            _send(pid, signal.SIGKILL)


def _signal_descendants(pid: int, sig: int) -> dict[int, int | None]:
    """Look for descendants until a round finds nobody new; returns whom it reached, with start times."""
    reached: dict[int, int | None] = {}
    parents = [pid]
    for _ in range(_MOST_ROUNDS):
        new = _signal_children(parents, sig, reached)
        if not new:
            break
        # A tree that forks and dies leaves zombies by the hundred; to ask them again and again takes time.
        parents = [pid, *(each for each in parents[1:] + new if not _has_ended(each))]
    return reached


def _signal_children(parents: list[int], sig: int, reached: dict[int, int | None]) -> list[int]:
    """Signal the children of ``parents`` that are not yet in ``reached``, and note them there."""
    children_of = _child_lister("/proc")
    new = []
    # The youngest first: who loses its parent moves up the tree, to somebody whom we ask later.
    for parent in reversed(parents):
        for child in reversed(children_of(parent)):
            if child not in reached and child != os.getpid():
                _send(child, sig)
                reached[child] = start_time(child)
                new.append(child)
    return new


def _has_ended(pid: int) -> bool:
    # The first thread of a process may be a zombie while others run; num_threads (field 20) tells.
    fields = _stat_fields(pid, "/proc")
    return not fields or (fields[0] in b"ZX" and int(fields[17]) <= 1)


def _send(pid: int, sig: int) -> None:
    # Gone is what we want; and a set-uid program, which is beyond our reach, must not save its whole tree.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, sig)


def end_all_below(seconds: float) -> None:
    """Kill all that is below this process, a subreaper, and wait until it has ended, but not longer than so."""
    end = time.monotonic() + seconds
    while (left := [pid for pid in descendants(os.getpid()) if not _has_ended(pid)]) and time.monotonic() < end:
        kill_tree(os.getpid())
        wait_for_ends(left, end - time.monotonic())


def end_marked(name: str, value: str, seconds: float) -> None:
    """Kill all processes that began with this variable, and what is below them, and wait as :func:`end_all_below`.

    So does Jenkins find what a build has left ("ProcessTreeKiller"); who has cleaned its environment escapes.
    """
    end = time.monotonic() + seconds
    while (left := marked(f"{name}={value}".encode())) and time.monotonic() < end:
        below = [each for pid in left for each in descendants(pid)]
        kill_all(left)
        wait_for_ends([*left, *below], end - time.monotonic())


def marked(mark: bytes) -> list[int]:
    """Processes that live and have this (NAME=VALUE) among the variables with which they began; without ourselves."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return [pid for pid in pids if pid != os.getpid() and mark in variables_of(pid)]


def variables_of(pid: int) -> list[bytes]:
    """The variables with which a process began, as NAME=VALUE; none of a zombie, or of what we may not read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL to each of these processes and to all that is below it."""
    for pid in pids:
        kill_tree(pid)
        _send(pid, signal.SIGKILL)


def wait_for_ends(pids: Iterable[int], seconds: float) -> None:
    """Wait until these processes have ended, but not longer than so."""
    end = time.monotonic() + seconds
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(max(0.0, end - time.monotonic()) * 1000)
        os.close(pidfd)


def reap_children() -> Iterator[tuple[int, int, resource.struct_rusage]]:
    """Each child that has ended: its pid, wait status and usage, after what is left of its process group was killed.

    The group is killed before the child is reaped: until then its number cannot be anybody else's.
    """
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None:
            return
        kill_group(ended.si_pid, signal.SIGKILL)
        yield os.wait4(ended.si_pid, 0)


def pidfd_alive(pidfd: int, patience: float = 0.0) -> bool:
    """Whether the process behind ``pidfd`` still runs; one that ended and was not waited for does not.

    One that is about to end gets ``patience`` seconds for it.

    :raises OSError: ``pidfd`` is not an open file descriptor.
    """
    poll = select.poll()  # not select.select, which fails for descriptors above 1023
    poll.register(pidfd, select.POLLIN)
    events = poll.poll(patience * 1000)
    if events and events[0][1] & select.POLLNVAL:
        raise OSError(errno.EBADF, f"pidfd {pidfd} is not open")
    return not events
