"""Control groups for tasks: see ``memory``, "cgroup"."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable

from worker_agent import processes
from worker_agent.guarded import Guarded, oom_kills, read_file

#: What all our control groups are called, and the one for our own processes: in version 2 a group has either processes
#: or, for its children, controllers.
PREFIX = "hpc-executor-"
HOME = f"{PREFIX}home"
#: So often do we go after processes that fork while we move them.
_ROUNDS = 10


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
    lines = read_file(f"{proc}/self/cgroup").decode(errors="replace").splitlines()
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
        if b"memory" not in read_file(f"{self._root}/cgroup.controllers").split():
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
        highest = read_file(f"{guarded.group}/memory.peak")  # there is one from Linux 5.19 on
        guarded.peak = max(guarded.peak, _number(highest or read_file(f"{guarded.group}/memory.current")))
        if oom_kills(read_file(f"{guarded.group}/memory.events")):
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
    return [int(word) for word in read_file(f"{group}/cgroup.procs").split()]


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
