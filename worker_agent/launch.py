"""Becomes ``mpirun``: asks it first whose it is, as the same name takes other options in each MPI.

    interpreter.py launch LAUNCHER RANKS HOSTS PROGRAM ARGS...

It is the task's own process that asks, with the task's variables: the agent's loop does not wait for a command, and
another environment may have another MPI.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

from worker_agent.launchers import NoLauncher, Ranks, mpi_words

#: Seconds within which a launcher says what it is.
PATIENCE = 60.0
#: The status of a shell that has not found a program.
_NOT_FOUND = 127


def pack(launcher: str, ranks: Ranks, argv: Sequence[str]) -> list[str]:
    """The arguments for :func:`main`."""
    return [launcher, str(ranks.number), ",".join(ranks.hosts), *argv]


def main(arguments: Sequence[str]) -> NoReturn:
    """Become the launcher that :func:`pack` was told of; does not return."""
    launcher, number, hosts, *argv = arguments
    try:
        words = mpi_words(launcher, _version(launcher), Ranks(int(number), tuple(hosts.split(","))), os.environ)
        for each in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(each, signal.SIG_DFL)  # Python's own would be inherited
        os.execv(launcher, [*words, *argv])  # noqa: S606  a shell is the last thing that it needs
    except (NoLauncher, OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"hpc-executor: the ranks were not started: {error}\n")
        sys.exit(_NOT_FOUND)


def _version(launcher: str) -> str:
    asked = subprocess.run(
        [launcher, "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    return asked.stdout.decode(errors="replace")
