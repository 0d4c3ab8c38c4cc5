"""Private directories on a node for the files of one session: unguessable, ours alone, and swept when nobody is left.

They lie in memory (``/dev/shm``) where the node has that, and what does not fit there goes to the directory for
temporary files. ``mkdtemp`` makes them 0700, whatever the umask. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile

from worker_agent import processes
from worker_agent.store import SESSION_STORES

_PREFIX = "hpc-executor-"
#: The file that tells whose session a directory is of.
_OWNER = "owner"
_MEMORY = "/dev/shm"  # noqa: S108  nothing is made there but by mkdtemp


def make() -> list[str]:
    """New directories, the one to be filled first in front; those of dead sessions are removed. Raises OSError."""
    places = _outer_stores()
    if not places:
        places = [_MEMORY] if os.access(_MEMORY, os.W_OK | os.X_OK) else []
        places.append(tempfile.gettempdir())
    for place in places:
        _check_is_safe(place)
        _remove_stale(place)
    made = [tempfile.mkdtemp(prefix=_PREFIX, dir=place) for place in places]
    for directory in made:
        with open(os.path.join(directory, _OWNER), "x") as file:
            file.write(" ".join(map(str, _who(os.getpid()))))
    return made


def _check_is_safe(place: str) -> None:
    """Where others may rename what is ours, they can put theirs in its place, whatever its own mode."""
    mode = os.stat(place).st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise OSError(f"everybody may rename what lies in {place}: set TMPDIR to another directory, or try chmod +t")


def empty(directories: list[str]) -> None:
    """Remove the files in them."""
    for directory in directories:
        for entry in os.scandir(directory):
            if entry.name != _OWNER and entry.is_file(follow_symlinks=False):
                os.unlink(entry)


def remove(directories: list[str]) -> None:
    """Remove them with all that is in them."""
    for directory in directories:
        remove_tree(directory)


def remove_tree(path: str) -> None:
    """Remove a directory with all that is in it, directories too that a task has made read-only, as far as it can be.

    No link is followed.
    """
    shutil.rmtree(path, ignore_errors=True)
    if not os.path.isdir(path) or os.path.islink(path):
        return
    with contextlib.suppress(OSError):
        os.chmod(path, 0o700)
        for folder, folders, _ in os.walk(path):
            for each in (os.path.join(folder, name) for name in folders):
                if not os.path.islink(each):
                    os.chmod(each, 0o700)
    shutil.rmtree(path, ignore_errors=True)


def _remove_stale(place: str) -> None:
    """Remove what sessions have left that were killed, with all that might have removed it."""
    for name in os.listdir(place):
        path = os.path.join(place, name)
        if name.startswith(_PREFIX) and _is_stale(path):
            remove_tree(path)


def _is_stale(directory: str) -> bool:
    """Whether it is ours and its owner has ended; one that we could not see (another node, a container) may live."""
    try:
        if os.lstat(directory).st_uid != os.getuid() or os.path.islink(directory):
            return False
        with open(os.path.join(directory, _OWNER)) as file:
            pid, start, *where = file.read().split()
    except (OSError, ValueError):
        return False
    now = _who(int(pid))
    return where == list(now[2:]) and start != str(now[1])


def _who(pid: int) -> tuple[int, int | None, str, str]:
    """A process, when it began, and where its number means it: since which boot, and in which namespace."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return pid, processes.start_time(pid), boot, os.readlink("/proc/self/ns/pid")


def _outer_stores() -> list[str]:
    """The directories of the session whose task this process is, if it is one; with them, ours go at the latest."""
    places = [place for place in os.environ.get(SESSION_STORES, "").split(os.pathsep) if place]
    return [place for place in places if os.path.isdir(place) and os.stat(place).st_uid == os.getuid()]
