"""The parent of an agent: nothing of the agent's survives it, and no file either.

    client -> supervisor -> agent -> template -> interpreters
                                  -> programs

It is a sub-reaper and does little else: when the agent ends, however it ends, it kills all that is left below and
removes the session's directories (an invited agent's own, if it does not see those). If it is itself killed, its agent
gets SIGTERM by the parent-death signal, and ends everything. The client learns the agent's end from the supervisor's:
when that is gone, so are the tasks.

A client elsewhere sees no process end. So in the place of an agent that was invited and then killed another one starts,
under the same name: by its hello the hub knows that what the first one ran is dead.

SIGTERM, SIGINT, SIGHUP and SIGUSR2 (Grid Engine's word before it kills) are passed on, as SIGTERM: the agent is to
leave. ``END_AT_ONCE`` means what its name says.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from worker_agent import processes

#: Milliseconds that an agent may take to end by itself once the client is gone.
_PATIENCE_MS = 2000
#: Seconds in which a client that was killed along with its agent has ended, too. If it lives, it only hears so much
#: later that its agent was killed.
_TOGETHER = 0.1
#: So many agents in a row may be killed less than ``_SHORT`` seconds after their start, until no other one starts.
_KILLS_ALLOWED = 10
_SHORT = 2.0
#: Passed on to the agent as SIGTERM is, unless who has started us wants these ignored.
_PASSED_ON = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)


def supervise(data: bytes, agent: Callable[[list[str]], None], name: str) -> NoReturn:
    """Fork, run ``agent`` in the child, and stay until it has ended and nothing of it is left.

    ``data`` is the agent's connection data: the session's directories are removed when the client is gone too.
    ``agent`` is called with directories of its own if it is one that does not see those of the session, else with none.
    ``name`` is ours, by which the scratch directories of its tasks are found.
    """
    connection = read_fields(data)
    invited = connection.get("client_pid") == 0
    own = _make_own_directories(connection) if invited else []
    stores = own or connection.get("stores", ())
    processes.become_subreaper()
    charge = _Charge(lambda: agent(own))
    client = None if invited else _open_client(connection)
    status = _see_to_its_end(charge, client, invited)
    _remove_scratch(stores, name)
    while invited and charge.may_start_again(status):
        _empty(own)
        charge.start()
        status = _see_to_its_end(charge, client, invited)
        _remove_scratch(stores, name)
    for directory in own:
        _remove(directory)
    patience = _TOGETHER if os.WIFSIGNALED(status) else 0.0
    if not invited and (client is None or not processes.pidfd_alive(client, patience)):
        for directory in (connection.get("directory"), *connection.get("stores", ())):
            if directory is not None:
                _remove(directory)
    os._exit(_exit_code(status))


class _Charge:
    """The agent that is under supervision, and what signals mean for it."""

    def __init__(self, agent: Callable[[], None]) -> None:
        self._agent = agent
        self._is_to_end = False
        self._killed_in_a_row = 0
        self._signals = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]  # nohup
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # whatever the client, or a shell, has blocked
        self.start()

    def start(self) -> None:
        """Start it. The fork is to have no handlers of ours; a signal that comes just now ends both."""
        self._handle(signal.SIG_DFL, signal.SIG_DFL)
        self._started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _become_agent(self._agent)
        self.pidfd = os.pidfd_open(self.pid)
        self._handle(lambda *_: self._pass_on(), lambda *_: self._end_at_once())

    def _handle(self, ask: Any, force: Any) -> None:
        for number in [signal.SIGTERM, *self._signals]:
            signal.signal(number, ask)
        signal.signal(processes.END_AT_ONCE, force)

    def _pass_on(self) -> None:
        self._is_to_end = True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    def _end_at_once(self) -> None:
        self._is_to_end = True
        processes.kill_tree(os.getpid(), signal.SIGKILL)

    def may_start_again(self, status: int) -> bool:
        """Whether another one is to take its place: it was killed, and not by us, nor does that always happen."""
        os.close(self.pidfd)
        lived_long = time.monotonic() - self._started >= _SHORT
        self._killed_in_a_row = 1 if lived_long else self._killed_in_a_row + 1
        return os.WIFSIGNALED(status) and not self._is_to_end and self._killed_in_a_row <= _KILLS_ALLOWED


def _see_to_its_end(charge: _Charge, client: int | None, invited: bool) -> int:
    _wait(charge.pidfd, client, invited)
    processes.kill_tree(os.getpid(), signal.SIGKILL)
    return _reap_all(charge.pid)


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


def _empty(own: list[str]) -> None:
    from worker_agent import directories

    directories.empty(own)


def scratch_place(stores: Sequence[str], name: str) -> str:
    """Where the scratch directories are of the tasks of this supervisor's agents: on a disk, as the last store is."""
    return os.path.join(stores[-1], f"scratch-{name}")


def _remove_scratch(stores: Sequence[str], name: str) -> None:
    if stores and os.path.isdir(scratch_place(stores, name)):
        _remove(scratch_place(stores, name))


def _remove(directory: str) -> None:
    from worker_agent import directories

    directories.remove_tree(directory)


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
        processes.say(str(end))  # a sentence: the hub refuses us, or is not there
    except BaseException:
        import traceback

        processes.say(traceback.format_exc())
    finally:
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
