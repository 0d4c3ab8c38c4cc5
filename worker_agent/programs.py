"""Starts external programs: no interpreter, no shell, no copy of the agent's memory (``posix_spawn``)."""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import msgspec

from worker_agent import launch, launchers, protocol, rank, spawning, task_files
from worker_agent.attempt import Attempt, State
from worker_agent.launchers import Ranks
from worker_agent.loop import Loop
from worker_agent.pinning import pin_variables, pinned
from worker_agent.pipes import Pipe
from worker_agent.runner import open_output
from worker_agent.scratch import Fate, Scratch

FileAction = tuple[int, int, str, int, int] | tuple[int, int, int] | tuple[int, int]

#: Signals whose dispositions Python changes, given back to programs as the system has them.
_RESTORED = [signal.SIGPIPE, signal.SIGXFSZ]


class NotExecutable(OSError):
    """It is the program itself that cannot be started, not what its options name."""


class Surroundings(NamedTuple):
    """What a program finds: variables as the system takes them, a directory, variables of its place, and its CPUs.

    With ``ranks``, a launcher starts it.
    """

    variables: Mapping[bytes, bytes]
    cwd: str
    place: Mapping[str, str]
    cpus: list[int]
    ranks: Ranks | None = None


class Programs:
    """The programs that run under this agent."""

    def __init__(
        self, loop: Loop, on_end: Callable[[Attempt], None], path_of: Callable[[protocol.Stored], str], scratch: Scratch
    ) -> None:
        """``path_of`` gives the file of a payload on this node."""
        self._scratch = scratch
        self._loop = loop
        self._path_of = path_of
        self._on_end = on_end
        self._running: dict[int, tuple[Attempt, list[Pipe]]] = {}
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def __contains__(self, pid: int) -> bool:
        return pid in self._running

    def running_attempts(self) -> list[Attempt]:
        """The attempts whose program runs."""
        return [attempt for attempt, _ in self._running.values()]

    def start(
        self, attempt: Attempt, command: protocol.Command, where: Surroundings, started_at: float
    ) -> None:
        """Start the program of ``attempt``. Raises OSError if that cannot be done; nothing is left open then."""
        env = task_environment(where, attempt)
        own = _own_directory(attempt)
        enter_directory(own or where.cwd, create=own is not None)
        executable, argv = find_executable(command.argv[0], env), command.argv
        if where.ranks is not None:
            executable, argv = _launched(executable, argv, where.ranks, attempt.settings.launcher, env)
            env = launchers.variables(env, os.environ, where.ranks)
        executable, argv = _with_named_pipes(command, attempt.settings, executable, argv)
        with _Descriptors() as descriptors:
            pipes = _captured(attempt.settings, descriptors)
            actions = [self._stdin(command, descriptors), *self._outputs(attempt.settings, pipes, descriptors)]
            with pinned(attempt.settings.pin, where.cpus):
                pid = _execute(executable, argv, env, actions)
            descriptors.keep()
        watched = [Pipe(self._loop, ends[0], partial(attempt.printed, stream)) for stream, ends in pipes.items()]
        self._running[pid] = (attempt, watched)
        attempt.begin(pid, started_at)

    def ended(self, pid: int, returncode: int, usage: protocol.Usage) -> None:
        """The program ``pid`` was reaped."""
        attempt, pipes = self._running.pop(pid)
        for pipe in pipes:
            pipe.finish()
        if attempt.call_file:
            self._end_call(attempt, returncode, usage)
            return
        files = attempt.settings.files
        if files is not None and files.outputs and returncode == 0 and attempt.end is None:
            attempt.ended = time.time()
            self._scratch.collect(attempt, partial(self._on_collected, attempt, usage))
            return
        said = task_files.read_said(attempt.scratch) if attempt.scratch and returncode and not attempt.end else b""
        attempt.finish(protocol.COMPLETED, body=said, returncode=returncode, usage=usage)
        self._on_end(attempt)

    def _end_call(self, attempt: Attempt, returncode: int, usage: protocol.Usage) -> None:
        """The ranks of a call have ended; if they were ended, what they have written does not count."""
        outcome = rank.take_outcome(attempt.call_file)
        if outcome is None:
            attempt.finish(protocol.EXITED, returncode=returncode, usage=usage)
        else:
            attempt.finish(protocol.VALUE if outcome[0] else protocol.ERROR, body=outcome[1], usage=usage)
        self._on_end(attempt)

    def _on_collected(self, attempt: Attempt, usage: protocol.Usage, fate: Fate) -> None:
        """Its outputs are in their places or can be sent, or are not to be had."""
        if isinstance(fate, protocol.Uncollected):
            body = b"" if attempt.end else msgspec.json.encode(fate)
            attempt.finish(protocol.NO_OUTPUT, body=body, returncode=0, usage=usage)
        else:
            attempt.finish(protocol.COMPLETED, returncode=0, usage=usage, outputs=fate)
        self._on_end(attempt)

    def forget_all(self) -> None:
        """They are being killed, and nobody wants to know how they end."""
        for attempt, pipes in self._running.values():
            attempt.state = State.ENDED
            for pipe in pipes:
                pipe.finish()
        self._running.clear()

    def _stdin(self, command: protocol.Command, descriptors: _Descriptors) -> FileAction:
        if command.stdin is None and (command.stdin_path is None or is_named_pipe(command.stdin_path)):
            return (os.POSIX_SPAWN_DUP2, self._null, 0)
        if isinstance(command.stdin, bytes):
            fd = descriptors.theirs(_memory_file(command.stdin))
        else:
            path = command.stdin_path if command.stdin is None else self._path_of(command.stdin)
            fd = descriptors.theirs(os.open(str(path), os.O_RDONLY | os.O_CLOEXEC))
        return (os.POSIX_SPAWN_DUP2, fd, 0)

    def _outputs(
        self, settings: protocol.Settings, pipes: Mapping[int, tuple[int, int]], descriptors: _Descriptors
    ) -> list[FileAction]:
        actions: list[FileAction] = []
        for stream, destination in ((1, settings.stdout), (2, settings.stderr)):
            if stream in pipes:
                actions.append((os.POSIX_SPAWN_DUP2, pipes[stream][1], stream))
            elif stream == 2 and destination and destination == settings.stdout:
                actions.append((os.POSIX_SPAWN_DUP2, 1, 2))
            elif not destination or is_named_pipe(destination):
                actions.append((os.POSIX_SPAWN_DUP2, self._null, stream))
            else:
                fd = descriptors.theirs(open_output(destination))
                actions.append((os.POSIX_SPAWN_DUP2, fd, stream))
        return actions


class _Descriptors:
    """Descriptors that are closed when a start fails; what only the program needs is closed in any case."""

    def __init__(self) -> None:
        self._ours: list[int] = []
        self._theirs: list[int] = []

    def __enter__(self) -> _Descriptors:
        return self

    def pipe(self) -> tuple[int, int]:
        read_end, write_end = os.pipe()
        self._ours.append(read_end)
        self._theirs.append(write_end)
        return read_end, write_end

    def theirs(self, fd: int) -> int:
        self._theirs.append(fd)
        return fd

    def keep(self) -> None:
        self._ours.clear()

    def __exit__(self, *_: object) -> None:
        for fd in self._ours + self._theirs:
            os.close(fd)


def _captured(settings: protocol.Settings, descriptors: _Descriptors) -> dict[int, tuple[int, int]]:
    streams = {1: settings.stdout, 2: settings.stderr}
    return {stream: descriptors.pipe() for stream, destination in streams.items() if destination is None}


def _execute(
    executable: str, argv: list[str], env: Mapping[bytes, bytes], actions: list[FileAction]
) -> int:
    try:
        return os.posix_spawn(
            executable, argv, env, file_actions=actions, setsid=True, setsigmask=[], setsigdef=_RESTORED
        )
    except OSError as error:
        raise NotExecutable(error.errno, error.strerror, executable) from error


#: Opens named pipes in the program's own process, which may wait for the other side; its arguments are never parsed.
_OPEN_PIPES = """
in=$1 out=$2 err=$3; shift 3
[ -z "$in" ] || exec <"$in"; [ -z "$out" ] || exec >"$out"; [ -z "$err" ] || exec 2>"$err"
exec "$@"
"""


def _with_named_pipes(
    command: protocol.Command, settings: protocol.Settings, executable: str, argv: list[str]
) -> tuple[str, list[str]]:
    """What to execute: the program, or, if streams of it are named pipes, what opens these first."""
    paths = [command.stdin_path, settings.stdout, settings.stderr]
    pipes = [path if path and is_named_pipe(path) else "" for path in paths]
    if not any(pipes):
        return executable, argv
    return "/bin/sh", ["/bin/sh", "-c", _OPEN_PIPES, "sh", *pipes, executable, *argv[1:]]


def _launched(
    executable: str, argv: list[str], ranks: Ranks, named: list[str], env: Mapping[bytes, bytes]
) -> tuple[str, list[str]]:
    """What to execute so that a launcher starts the program on its ranks."""
    launcher = _find_launcher(named, env)
    program = [executable, *argv[1:]]
    words = launchers.words(named, launcher, ranks, os.environ)
    if words is not None:
        return launcher, [*words, *program]
    return sys.executable, [sys.executable, "-I", spawning.SCRIPT, "launch", *launch.pack(launcher, ranks, program)]


def _find_launcher(named: list[str], env: Mapping[bytes, bytes]) -> str:
    names = launchers.candidates(named, os.environ)
    for name in names:
        try:
            return find_executable(name, env)
        except NotExecutable:
            continue
    path = os.fsdecode(env.get(b"PATH", os.fsencode(os.defpath)))
    raise OSError(errno.ENOENT, launchers.describe_missing(names, path))


def is_named_pipe(path: str) -> bool:
    """Whether there is a FIFO: to open it may take until somebody opens its other end."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False


def task_environment(where: Surroundings, attempt: Attempt) -> dict[bytes, bytes]:
    """The variables of a task: its surroundings', which task it is, and what the options change."""
    pin = pin_variables(attempt.settings.pin, where.cpus)
    own = {**task_identity(attempt.order), **where.place, **pin}
    if attempt.scratch:
        own |= task_files.variables(attempt.scratch)
    env = {**where.variables, **{name.encode(): os.fsencode(text) for name, text in own.items()}}
    for name, value in attempt.settings.env.items():
        if value is None:
            env.pop(os.fsencode(name), None)
        else:
            env[os.fsencode(name)] = os.fsencode(value)
    return env


def task_identity(order: protocol.Run) -> dict[str, str]:
    """How a task can tell which one it is. Where it is one of a job, that has another number for HQ_TASK_ID."""
    return {
        "HPC_TASK_ID": str(order.task), "HPC_ATTEMPT": str(order.attempt),
        "HQ_TASK_ID": str(order.task), "HQ_INSTANCE_ID": str(order.attempt - 1),
    }  # fmt: skip


def task_marks(order: protocol.Run) -> list[str]:
    """By what we know which task a stray process belongs to: what no option of ours changes."""
    return [f"HPC_TASK_ID={order.task}", f"HPC_ATTEMPT={order.attempt}"]


def _own_directory(attempt: Attempt) -> str | None:
    """Where the program runs, if its options say so: with inputs or outputs in its scratch directory."""
    files = attempt.settings.files
    return attempt.scratch if files is not None and files.in_scratch else attempt.settings.cwd


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def enter_directory(path: str, *, create: bool) -> None:
    """Make ``path`` the agent's directory, for the program that it starts next (posix_spawn has no cwd)."""
    if create:
        os.makedirs(path, exist_ok=True)
    os.chdir(path)


def find_executable(name: str, env: Mapping[bytes, bytes]) -> str:
    """The path of the program: as it is if it has a slash, else searched in the task's PATH.

    Like ``execvp``: a file that is found but cannot be executed is tried, so that the error says so.
    """
    if "/" in name:
        return name
    found = ""
    for folder in os.fsdecode(env.get(b"PATH", os.fsencode(os.defpath))).split(os.pathsep):
        path = os.path.join(folder or ".", name)
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
        if not found and os.path.exists(path):
            found = path
    if not found:
        raise NotExecutable(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return found
