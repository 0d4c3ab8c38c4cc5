"""All exceptions of HPCExecutor. Who erred is in the type.

    Exception
    ├── concurrent.futures.process.BrokenProcessPool     (so that existing ``except`` clauses work)
    │   ├── TaskDied             the task's own process ended without a result: exit, signal, out of memory
    │   │   ├── TaskKilled       ... because ``future.kill()`` asked for it
    │   │   └── TaskOutOfMemory  ... because it used more memory than it may, or than there is
    │   ├── TaskLost             the task's agent was lost, more often than ``crash_limit`` allows
    │   ├── EnvironmentFailed    no interpreter can be started, or a module of ``preload`` not be imported
    │   ├── InitializerFailed    the executor's initializer raised: the executor is broken
    │   ├── AgentFailed          no agent could be started, or the hub failed: the executor is broken
    │   └── ExecutorTerminated   ``terminate_workers()`` or ``kill_workers()`` ended the task
    ├── TimeoutError
    │   └── TaskTimeout          the task ran longer than its ``time_limit`` and was killed
    ├── subprocess.CalledProcessError
    │   └── ProgramFailed        a program ended with a nonzero status and ``check=True``
    ├── OSError
    │   ├── ProgramNotStarted    a program is missing or cannot be executed
    │   └── ListenError          no agents can be invited: there is no such address or port, or too few descriptors
    ├── RuntimeError
    │   ├── BatchCommandFailed   a command of a batch system failed: a batch job was refused, or not cancelled
    │   └── NetworkUnsafe        no agents can be invited: strangers could get in
    ├── pickle.PicklingError
    │   └── SerializationError   an argument or a result cannot be pickled
    ├── DependencyFailed         a task that this one was to run after did not end as it had to; so it did not run
    ├── OutputMissing            a program ended well, and an output of it is not there
    ├── RemoteError              the task's exception does not survive pickling: its type, text and traceback
    ├── TypeError
    │   └── OptionTypeError      an option of the wrong type, or one that does not exist
    └── ValueError
        ├── OptionValueError     an option of the right type whose value makes no sense
        ├── UnsatisfiableRequest the task needs more of a resource than any agent has, or can have
        ├── JobError             a job makes no sense: two tasks of one name, a cycle
        │   └── JobFileError     ... and it was written in a file: which, and in which line
        └── StreamError          a directory has no stream files, a damaged one, or none of that task

Only InitializerFailed and AgentFailed break the executor; every other exception belongs to one future.
Every exception pickles and keeps its attributes.
"""

from __future__ import annotations

import errno
import pickle
import signal as signals
import subprocess
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any

__all__ = [
    "AgentFailed", "BatchCommandFailed", "DependencyFailed", "EnvironmentFailed", "ExecutorTerminated",
    "InitializerFailed", "JobError", "JobFileError", "ListenError", "NetworkUnsafe", "OptionTypeError",
    "OptionValueError", "OutputMissing", "ProgramFailed", "ProgramNotStarted", "RemoteError", "RemoteTraceback",
    "SerializationError", "StreamError", "TaskDied", "TaskKilled", "TaskLost", "TaskOutOfMemory", "TaskTimeout",
    "UnsatisfiableRequest",
]  # fmt: skip


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    if not error.args:  # an OSError without an __init__ of its own has made sense of them already
        error.args = args
    error.__dict__.update(state)
    return error


class _Rebuilt(BaseException):
    """Pickles by its attributes and not by its ``__init__``, so that no signature can break it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def describe_end(returncode: int | None) -> str:
    """How a process ended, in words. ``returncode`` is negative for a signal, as in ``subprocess``."""
    if returncode is None:
        return "ended in an unknown way"
    if returncode < 0:
        try:
            name = signals.Signals(-returncode).name
        except ValueError:
            name = "unknown signal"
        return f"was ended by signal {-returncode} ({name})"
    return f"exited with status {returncode}"


#: What stands between an error's own text and what the task has written.
STDERR_FOLLOWS = "\nThe end of its stderr:"


def with_stderr(text: str, stderr: str, *, lines: int = 25) -> str:
    """``text`` followed by the last ``lines`` lines of ``stderr``, if there are any."""
    tail = stderr.rstrip("\n").splitlines()[-lines:]
    if not tail:
        return text
    return "\n".join([text + STDERR_FOLLOWS, *(f"  {line}" for line in tail)])


class TaskDied(_Rebuilt, BrokenProcessPool):
    """The process of the task ended before it gave a result; only this task is hit.

    ``returncode`` is the exit status, negative for a signal (as in :mod:`subprocess`); ``signal`` is that signal's
    number or None; ``stderr`` is what the task wrote there, bounded. ``host``, ``pid`` and ``attempt`` say where.
    """

    task: str = ""
    host: str = ""
    pid: int | None = None
    attempt: int = 0
    returncode: int | None = None
    stderr: str = ""

    def __init__(self, message: str = "", **attributes: Any) -> None:
        super().__init__(message)
        self.__dict__.update(attributes)

    @property
    def signal(self) -> int | None:
        """The number of the signal that ended the process, or None."""
        return -self.returncode if self.returncode is not None and self.returncode < 0 else None

    @property
    def exit_code(self) -> int | None:
        """The exit status of the process, or None if a signal ended it."""
        return self.returncode if self.returncode is not None and self.returncode >= 0 else None


class TaskKilled(TaskDied):
    """``future.kill()`` ended the task."""


class TaskOutOfMemory(TaskDied):
    """The task used more memory than it may, or than there is.

    ``peak`` is the most that it was seen to use, ``limit`` what it was allowed, both in bytes, or None if that is not
    known; ``by`` is who ended it: "agent" or "kernel".
    """

    peak: int | None = None
    limit: int | None = None
    by: str = ""


class TaskLost(_Rebuilt, BrokenProcessPool):
    """The agents that ran this task were lost, one time more than its ``crash_limit`` allows.

    ``losses`` is how often; ``crash_limit`` is the option's value.
    """

    task: str = ""
    losses: int = 0
    crash_limit: int = 0

    def __init__(self, message: str = "", **attributes: Any) -> None:
        super().__init__(message)
        self.__dict__.update(attributes)


class InitializerFailed(_Rebuilt, BrokenProcessPool):
    """The initializer raised in a new interpreter; the executor takes no more tasks. Its error is the cause."""


class EnvironmentFailed(_Rebuilt, BrokenProcessPool):
    """Interpreters for the task cannot be had: python is missing or broken, or ``preload`` failed (the cause)."""


class AgentFailed(_Rebuilt, BrokenProcessPool):
    """No agent could be started, or the hub failed; the executor takes no more tasks. The text has the agent's log."""


class ExecutorTerminated(_Rebuilt, BrokenProcessPool):
    """``terminate_workers()`` or ``kill_workers()`` was called while the task was pending or running."""


class TaskTimeout(_Rebuilt, TimeoutError):
    """The task ran longer than its ``time_limit`` (seconds); its whole process group was killed."""

    task: str = ""
    time_limit: float = 0.0
    stderr: str = ""

    def __init__(self, message: str = "", **attributes: Any) -> None:
        super().__init__(message)
        self.__dict__.update(attributes)


class ProgramFailed(_Rebuilt, subprocess.CalledProcessError):
    """A program ended with a nonzero status. Attributes as those of :class:`subprocess.CalledProcessError`.

    ``said`` is what it wrote to the file HQ_ERROR_FILENAME, its first 2 KiB; "" if it has none (see ``task_dir``).
    """

    said: str = ""

    def __str__(self) -> str:
        command = self.cmd[0] if isinstance(self.cmd, list | tuple) else self.cmd
        text = f"the program {command!r} {describe_end(self.returncode)}; its command line: {self.cmd!r}"
        if self.said:
            text += f". It said: {self.said}"
        return with_stderr(text, self.stderr or "")


class ProgramNotStarted(_Rebuilt, OSError):
    """A program is missing or cannot be executed. ``errno`` and ``filename`` as in :class:`OSError`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), (self.errno, self.strerror, self.filename), dict(self.__dict__))

    def __str__(self) -> str:
        return self.strerror or OSError.__str__(self)

    @property
    def missing(self) -> bool:
        """Whether there is no such file, as against one that cannot be executed."""
        return self.errno == errno.ENOENT


class ListenError(_Rebuilt, OSError):
    """There is no address or port to listen on as it was asked for, or there are too few descriptors."""


class BatchCommandFailed(_Rebuilt, RuntimeError):
    """A command of a batch system failed: a batch job was refused, could not be cancelled, or tells no nodes.

    ``command`` (a list of str) is what was run, ``returncode`` its exit status (None: it did not end in time) and
    ``output`` what it said.
    """

    command: list[str]
    returncode: int | None = None
    output: str = ""

    def __init__(self, message: str = "", **attributes: Any) -> None:
        super().__init__(message)
        self.__dict__.update(attributes)


class NetworkUnsafe(_Rebuilt, RuntimeError):
    """Strangers could get in, or it cannot be shown that they cannot; so nobody may."""


class DependencyFailed(_Rebuilt, Exception):
    """The task did not run: one that it was to run after did not end as it had to, and that one's error is the cause.

    ``failed`` and ``failed_id`` are name and id of the first task that failed, in a chain of such; ``failed_id`` is
    None if it is a future of somebody else. ``future`` is its future, in this process only: None in a copy.
    """

    task: str = ""
    failed: str = ""
    failed_id: int | None = None
    future: Future[Any] | None = None

    def __init__(self, message: str = "", **attributes: Any) -> None:
        super().__init__(message)
        self.__dict__.update(attributes)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if name != "future"}
        return _rebuild, (type(self), self.args, state)  # a future belongs to its process


class SerializationError(_Rebuilt, pickle.PicklingError):
    """An argument or a result cannot be pickled. The text names it and its type; the original error is the cause."""


class OutputMissing(_Rebuilt, Exception):
    """A program ended with status 0, and what its option ``outputs`` names is not all in its place.

    ``missing`` are the names (str) that were not there; none, if they could not be put where they belong, which the
    text explains. ``found`` is what was in the program's directory instead, as paths in it. ``stderr`` is what the
    program wrote there, bounded. Nothing was moved if one of several was not there.
    """

    task: str = ""
    missing: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    stderr: str = ""

    def __init__(self, message: str = "", **attributes: Any) -> None:
        super().__init__(message)
        self.__dict__.update(attributes)


class RemoteError(_Rebuilt, Exception):
    """A task's exception that cannot be pickled, or not be rebuilt: ``type_name``, ``text`` and ``traceback``."""

    type_name: str = ""
    text: str = ""
    traceback: str = ""

    def __init__(self, message: str = "", **attributes: Any) -> None:
        super().__init__(message)
        self.__dict__.update(attributes)


class RemoteTraceback(_Rebuilt, Exception):
    """The cause of an exception that a task raised: the traceback in the task's process, and where that was."""

    def __init__(self, tb: str = "") -> None:
        super().__init__(tb)
        self.tb = tb

    def __str__(self) -> str:
        return self.tb


class OptionTypeError(_Rebuilt, TypeError):
    """An option of the wrong type, or an unknown one."""


class OptionValueError(_Rebuilt, ValueError):
    """An option whose value makes no sense."""


class JobError(_Rebuilt, ValueError):
    """A job that makes no sense: two tasks of one name, a dependency on nothing, a cycle.

    ``tasks`` are the numbers of the tasks that it is about, as far as they are known.
    """

    tasks: tuple[int, ...] = ()

    def __init__(self, message: str = "", **attributes: Any) -> None:
        super().__init__(message)
        self.__dict__.update(attributes)


class JobFileError(JobError):
    """A job definition file, or a file of settings, that makes no sense.

    ``file`` is its path, ``line`` the number of the line, from 1, and ``key`` says what is wrong there, such as
    "task.time_limit" ("" if the text is no TOML).
    """

    file: str = ""
    line: int = 0
    key: str = ""


class StreamError(_Rebuilt, ValueError):
    """A directory that holds no stream files, a file there that is damaged, or a task that it knows nothing of."""


class UnsatisfiableRequest(_Rebuilt, ValueError):
    """The task needs more of a resource than any agent has, or can have.

    ``resource`` is its name, or "nodes", or "time_request"; ``requested`` is how much the task needs at least and
    ``most`` the most that one agent has (memory in MiB, times in seconds, others in numbers; 0 if there is none).
    """

    task: str = ""
    resource: str = ""
    requested: float = 0.0
    most: float = 0.0

    def __init__(self, message: str = "", **attributes: Any) -> None:
        super().__init__(message)
        self.__dict__.update(attributes)
