"""Cancels the batch jobs of a client that was killed: ``python -E -P guardian.py``, a process that outlives it.

It reads one line of JSON: the client's pid and start, what to run when that has ended, in which environment, and which
directories to remove then. A second line of any text is the client's word that it has seen to all of that itself.
Standard library only; it is started before the first job is submitted.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time

#: Seconds that a command may take.
PATIENCE = 30.0
#: Seconds after which the commands are run again: a submission that was on its way may have come through.
AGAIN = 5.0


def main() -> None:
    """Wait for the client's end, or for its word."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # meant for the client, which is what we wait for
    with open(0, "rb", buffering=0, closefd=False) as pipe:  # a buffer would swallow a word that is there already
        charge = json.loads(pipe.readline())
    if not _outlive(charge["pid"], charge["start"]):
        return
    for wait in (0.0, AGAIN):
        time.sleep(wait)
        for argv in charge["commands"]:
            _run(argv, charge["environment"])
    for directory in charge["directories"]:
        shutil.rmtree(directory, ignore_errors=True)


def _outlive(pid: int, start: int) -> bool:
    """Whether the client has ended without its word. Forks of it may hold the pipe open: that tells nothing."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(0, select.POLLIN)
    if _start_time(pid) != start:
        return True
    while True:
        for fd, _ in poll.poll():
            if fd == 0 and os.read(0, 1):
                return False
            if fd == 0:
                poll.unregister(0)
            else:
                return not _has_word()


def _has_word() -> bool:
    """The client may have said it as its last act."""
    ready, _, _ = select.select([0], [], [], 0)
    return bool(ready and os.read(0, 1))


def _start_time(pid: int) -> int | None:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])
    return None


def _run(argv: list[str], environment: dict[str, str]) -> None:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        null = subprocess.DEVNULL
        subprocess.run(argv, env=environment, stdin=null, stdout=null, stderr=null, timeout=PATIENCE, check=False)


if __name__ == "__main__":
    main()
