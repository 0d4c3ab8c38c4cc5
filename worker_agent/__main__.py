"""``python -m worker_agent [FILE]``: run an agent with the connection data in FILE, or from standard input."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from worker_agent import protocol, supervisor


def main(arguments: list[str] | None = None) -> NoReturn:
    """Read the connection data, then supervise an agent that uses it. ``arguments`` default to those of the process."""
    data = _connection_data(arguments)
    if not data:
        sys.exit("there is no connection data: the client has ended")
    connection = protocol.read_connection(data)
    sys.path.extend(folder for folder in connection.path if folder not in sys.path)
    _detach_stdin()
    supervisor.supervise(
        connection.client_pid, connection.client_start, [connection.directory, *connection.stores],
        lambda: _run_agent(connection),
    )  # fmt: skip


def _run_agent(connection: protocol.Connection) -> int:
    from worker_agent.agent import Agent

    Agent(connection).run()
    return 0


def _connection_data(words: list[str] | None) -> bytes:
    parser = argparse.ArgumentParser(prog="python -m worker_agent", description=__doc__)
    parser.add_argument("file", nargs="?", help="a file with connection data that only its owner may read (0600)")
    arguments = parser.parse_args(words)
    if arguments.file is None:
        return sys.stdin.buffer.readline()
    return _read_private(arguments.file)


def _read_private(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            sys.exit(f"{path} must belong to you and be readable by nobody else; try: chmod 600 {path}")
        return file.read()


def _detach_stdin() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


if __name__ == "__main__":
    main()
