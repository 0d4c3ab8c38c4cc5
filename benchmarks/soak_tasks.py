"""What the tasks of a soak do: note that they have begun and ended, and look whether an earlier attempt still runs.

A call imports this, a program is this file. Standard library only, and little of it.
"""

import os
import sys
import time

#: States of a process that runs no more, and of one that stands still as the whole of its suspended machine would.
_NOT_RUNNING = "ZXTt"


def work(path: str, seconds: float, data: bytes) -> bytes:
    """Note the beginning, take some time, note the end; gives back what came."""
    note_begin(path)
    time.sleep(seconds)
    note(path, "end", os.getpid())
    return data


def note_begin(path: str) -> None:
    """Who begins, and who had begun before and is still there: that is a violation, which the notes tell."""
    for word, pid, began in notes(path):
        if word == "begin" and is_running(pid, began):
            note(path, "overlap", pid)
    note(path, "begin", os.getpid())


def note(path: str, word: str, pid: int) -> None:
    """Append a line. It is written as a whole, so that lines of several processes do not mix."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, f"{word} {pid} {began_at(pid)}\n".encode())
    os.close(fd)


def notes(path: str) -> list[tuple[str, int, int]]:
    """Word, process and when that began (which tells processes with the same number apart)."""
    try:
        with open(path) as file:
            lines = [line.split() for line in file if line.endswith("\n")]
    except FileNotFoundError:
        return []
    return [(word, int(pid), int(began)) for word, pid, began in lines]


def stat_of(pid: int) -> list[str]:
    """The fields of the process from its state on; none if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def began_at(pid: int) -> int:
    """When the process began, in ticks; 0 if it is gone."""
    fields = stat_of(pid)
    return int(fields[19]) if fields else 0


def is_running(pid: int, began: int) -> bool:
    """Whether this very process runs."""
    fields = stat_of(pid)
    return bool(fields) and int(fields[19]) == began and fields[0] not in _NOT_RUNNING


if __name__ == "__main__":
    sys.stdout.write(work(sys.argv[1], float(sys.argv[2]), sys.argv[3].encode()).decode())
