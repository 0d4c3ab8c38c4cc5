"""``python -P -m worker_agent [FILE]``: run an agent with the connection data in FILE, or from standard input."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # ``-m`` has put the directory in which it was started first: what lies there is not what we mean by ``zmq``.
    del sys.path[0]

import os
import stat
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from worker_agent import supervisor


def main(arguments: Sequence[str] | None = None, python: Sequence[str] = ()) -> NoReturn:
    """Read the connection data, then supervise an agent that uses it. ``arguments`` default to those of the process.

    ``python`` is the interpreter, with its flags, of the tasks that will probably come first.
    """
    data, said = _read_arguments(sys.argv[1:] if arguments is None else arguments)
    if not data:
        sys.exit("there is no connection data: the client has ended")
    _detach_stdin()
    name = os.urandom(8).hex()
    supervisor.supervise(data, lambda own: _run_agent(data, python, own, name, said), name)


def _run_agent(data: bytes, python: Sequence[str], own: list[str], name: str, said: dict[str, Any]) -> None:
    """What takes time to start is started first: a template, while we import the rest.

    ``own`` are the agent's directories, if it has any; ``name`` is the supervisor's; ``said`` are the options.
    """
    from worker_agent import spawning

    early = spawning.TemplateProcess(python, os.environ) if python else None
    path = supervisor.read_fields(data).get("path", ())
    sys.path.extend(folder for folder in path if folder not in sys.path)
    from worker_agent.agent import Agent
    from worker_agent.codec import ProtocolError
    from worker_agent.connection import read_connection
    from worker_agent.offer import make_offer

    try:
        connection = read_connection(data)
        offer = make_offer(connection, said)
    except ValueError as error:  # a sentence, like all that keeps an agent from joining
        raise SystemExit(f"this agent leaves: {error}") from error
    try:
        Agent(connection, own, early, name, offer).run()
    except ProtocolError as error:  # any other ValueError is a bug of ours, and shows where
        raise SystemExit(f"this agent leaves: {error}") from error


def _read_arguments(arguments: Sequence[str]) -> tuple[bytes, dict[str, Any]]:
    """The connection data, and what the options say."""
    if not arguments:
        return sys.stdin.buffer.readline(), {}
    import argparse

    parser = argparse.ArgumentParser(prog="python -m worker_agent", description=__doc__)
    parser.add_argument("file", help="a file with connection data that only its owner may read (0600); -: stdin")
    parser.add_argument(
        "--resource", action="append", metavar="NAME=TEXT", help="what there is, beyond or in place of what is found: "
        "cpus=4, memory=16GiB, fpga=[a,b], 'licenses=sum(2.5)'; may be repeated",
    )  # fmt: skip
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="how long the agent may stay")
    parser.add_argument("--group", help="agents of one group may run one task together")
    said = vars(parser.parse_args(arguments))
    limit = said.pop("time_limit")
    said["ends"] = None if limit is None else time.time() + limit  # also for an agent that takes this one's place
    file = said.pop("file")
    return sys.stdin.buffer.readline() if file == "-" else _read_private(file), said


def _read_private(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait
    except FileNotFoundError:
        sys.exit(f"{path} is not there: all its agents have joined, its time is over, or it is on another machine")
    except OSError as error:
        sys.exit(f"{path} cannot be read: {error.strerror}")
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            sys.exit(f"{path} is no file")
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            sys.exit(f"{path} must belong to you and be readable by nobody else; try: chmod 600 {path}")
        return file.read()


def _detach_stdin() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


if __name__ == "__main__":
    main()
