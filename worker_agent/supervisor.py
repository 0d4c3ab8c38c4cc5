"""The parent of an agent: nothing of the agent's survives it, and no file either.

    client -> supervisor -> agent -> template -> interpreters
                                  -> programs

It is a sub-reaper and does nothing else: when the agent ends, however it ends, it kills all that is left below and
removes the session's directories (an invited agent's own, if it does not see those). If it is itself killed, its agent
gets SIGTERM by the parent-death signal, and ends everything. The client learns the agent's end from the supervisor's:
when that is gone, so are the tasks.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from worker_agent import processes

#: Seconds that an agent may take to end by itself once the client is gone.
_PATIENCE_MS = 2000


def supervise(data: bytes, agent: Callable[[list[str]], None]) -> NoReturn:
    """Fork, run ``agent`` in the child, and stay until it has ended and nothing of it is left.

    ``data`` is the agent's connection data: the session's directories are removed when the client is gone too.
    ``agent`` is called with directories of its own if it is one that does not see those of the session, else with none.
    """
    connection = read_fields(data)
    invited = connection.get("client_pid") == 0
    own = _make_own_directories(connection) if invited else []
    processes.become_subreaper()
    pid = os.fork()
    if pid == 0:
        _become_agent(lambda: agent(own))
    signal.signal(signal.SIGTERM, lambda *_: processes.kill_tree(os.getpid(), signal.SIGKILL))
    client = None if invited else _open_client(connection)
    _wait(os.pidfd_open(pid), client, invited)
    processes.kill_tree(os.getpid(), signal.SIGKILL)
    status = _reap_all(pid)
    for directory in own:
        shutil.rmtree(directory, ignore_errors=True)
    if not invited and (client is None or not processes.pidfd_alive(client)):
        for directory in (connection.get("directory"), *connection.get("stores", ())):
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)
    os._exit(_exit_code(status))


def read_fields(data: bytes) -> dict[str, Any]:
    """The fields of connection data, unchecked; none if it is no such thing, which the agent will say."""
    try:
        fields = json.loads(data)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _make_own_directories(connection: dict[str, Any]) -> list[str]:
    """Directories for payloads, if those of the session are on another machine; else none."""
    from worker_agent import directories

    return [] if all(map(os.path.isdir, connection.get("stores", ()))) else directories.make()


def _become_agent(agent: Callable[[], None]) -> NoReturn:
    parent = os.getppid()
    processes.set_parent_death_signal(signal.SIGTERM)
    processes.become_subreaper()
    if os.getppid() != parent:
        os._exit(1)
    code = 1
    try:
        agent()
        code = 0
    except SystemExit as end:
        sys.stderr.write(f"{end}\n")  # a sentence: the hub refuses us, or is not there
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def _open_client(connection: dict[str, Any]) -> int | None:
    """A pidfd of the client; None if it has ended."""
    pid = connection.get("client_pid", 0)
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, TypeError, OverflowError):
        return None
    return pidfd if processes.start_time(pid) == connection.get("client_start") else None


def _wait(agent: int, client: int | None, invited: bool) -> None:
    """Until the agent has ended; if the client ends first, the agent gets a little time to follow.

    One that was invited has a client elsewhere, and ends by itself.
    """
    poll = select.poll()
    poll.register(agent, select.POLLIN)
    if client is not None:
        poll.register(client, select.POLLIN)
    elif not invited:
        return
    if agent not in dict(poll.poll()):
        assert client is not None
        poll.unregister(client)
        poll.poll(_PATIENCE_MS)


def _reap_all(agent: int) -> int:
    status = 0
    while True:
        try:
            pid, ended = os.wait()
        except ChildProcessError:
            return status
        if pid == agent:
            status = ended
        processes.kill_tree(os.getpid(), signal.SIGKILL)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
