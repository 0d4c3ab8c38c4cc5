"""Runs calls in an interpreter of their own. Each fresh interpreter pays for every line of this.

Standard library and cloudpickle only. The interpreter takes a task from the socket that it shares with its siblings,
says so, runs it, and reports the outcome; then it leaves (``max_tasks``) or takes the next one.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import fcntl
import io
import marshal
import os
import pickle
import resource
import signal
import socket
import sys
import termios
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from typing import Any, NamedTuple, NoReturn

from worker_agent import bodies, channel, descriptors, inputs, processes, store
from worker_agent.pinning import pin_variables, pinned

#: Exit status of an interpreter whose report socket is gone: the user's code closed it, or the agent died.
NO_AGENT = 70

_FUNCTIONS_KEPT = 64
_waiting, _NOTHING_WAITS = bytearray(4), bytes(4)
NO_BUFFERS: list[tuple[str, int]] = []


class Setup(NamedTuple):
    """What an interpreter is told before its first task.

    ``initializer`` is a pickled ``(function, args)`` or None, ``max_tasks`` 0 for any number, ``stores`` directories
    for large payloads, ``cloudpickle`` the folder that has it, for environments without it. ``authkey`` is the
    submitter's, if tasks may use proxies of multiprocessing's managers. ``env`` is what is to change in the variables
    that this process was started with; None as a value unsets one. ``cpus`` are those of an interpreter that is kept.
    """

    cwd: str
    path: list[str]
    preload: list[str]
    initializer: Any
    max_tasks: int
    stores: list[str]
    cloudpickle: str
    authkey: bytes | None
    argv: list[str]
    version: str
    foreign: bool
    env: dict[str, str | None]
    cpus: list[int]


class Interpreter:
    """This process as a place where tasks run, one after the other."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._tasks = adopt(descriptors.TASKS)
        self._starts = adopt(descriptors.STARTS)
        self._reports = adopt(descriptors.REPORTS)
        self._reports_inode = 0
        self.note_queues()
        self._go: int | None = None
        self._pid = 0
        self._functions: dict[int, Callable[..., Any]] = {}
        self._used = (0.0, 0.0)
        self._retired = False
        self._main = vars(sys.modules["__main__"])
        #: names in ``__main__`` that the initializer has given a value: it stays
        self._initialized: set[str] = set()

    def note_queues(self) -> None:
        """The queues' descriptors have their numbers, and are what they are to stay."""
        self._reports_inode = os.fstat(self._reports.fileno()).st_ino

    def take_place(self, variables: dict[str, str], cpus: list[int]) -> None:
        """This interpreter is kept, and all its tasks run in one place: what they see of it, and its CPUs."""
        os.environ.update(variables)
        self._setup = self._setup._replace(cpus=cpus)

    def serve(self, go: int | None) -> NoReturn:
        """Run the initializer, then tasks until there are no more; does not return.

        ``go`` is the eventfd by which the agent says that it has read what a task printed; fresh ones have none.
        """
        self._go, self._pid = go, os.getpid()
        if self._initialize():
            self._run_tasks()
        leave(0)

    def _initialize(self) -> bool:
        if self._setup.initializer is None:
            return True
        try:
            function, args = self._load_function(self._setup.initializer)
            before = dict(self._main)
            function(*args)
            unset = object()
            self._initialized = {name for name in self._main if self._main[name] is not before.get(name, unset)}
        except BaseException as error:
            text = f"the initializer raised {type(error).__name__}: {error}"
            broken = channel.Broken(self._pid, text, bodies.dump_error(error, self._setup.stores))
            self._send(channel.pack_broken(broken))
            return False
        return True

    def _run_tasks(self) -> None:
        left = self._setup.max_tasks
        task = self._next_task()
        while task is not None:
            left -= 1
            following = self._run(task, leaving=left == 0)
            if left == 0:
                return
            task = following or self._next_task()

    def _next_task(self) -> tuple[Any, ...] | None:
        """Wait for a task and say that it starts; None: there will be no more."""
        message = b"" if self._retired else self._tasks.recv(descriptors.MESSAGE_LIMIT)
        if not message or message == channel.RETIRE:
            return None
        task = channel.take_task(message)
        self._starts.send(channel.pack_started(task[0], task[1], self._pid, time.time()))
        return task

    def _run(self, task: tuple[Any, ...], leaving: bool) -> tuple[Any, ...] | None:
        """Run one task and report it; gives the next one if that waited, announced by the same report."""
        started = time.time()
        number, attempt, instance = str(task[0]), str(task[1]), str(task[1] - 1)
        set_variables({"HPC_TASK_ID": number, "HPC_ATTEMPT": attempt, "HQ_TASK_ID": number, "HQ_INSTANCE_ID": instance})
        ok, body, value = self._execute(*task[2:])
        if os.getpid() != self._pid:
            os._exit(0)  # a fork made by the user's code came out of the call too: the outcome is not its to report
        flush_streams()
        printed, intact = (True, True) if self._setup.max_tasks == 1 else self._look_at_streams()
        leaving = leaving or not intact
        following = None if leaving or printed else self._take_waiting()
        after = (0, 0) if following is None else following[:2]
        self._send(
            channel.pack_ended(
                *task[:2], self._pid, ok, started, time.time(), *self._usage(), *after, leaving, printed, body=body
            )
        )
        del value  # not before the outcome is sent: its destructor is the user's code
        if self._setup.max_tasks != 1:
            os.chdir(self._setup.cwd)
        if not intact:
            leave(0)
        if printed and not leaving:
            os.eventfd_read(self._go_fd)  # the next task must not add to this one's output
        return following

    def _look_at_streams(self) -> tuple[bool, bool]:
        """Whether output of this task is still in its pipes, and whether stdout and stderr are still those pipes."""
        try:
            return unread(1) or unread(2), True
        except OSError:
            return False, False  # user code closed one, or made it something else: no next task here

    @property
    def _go_fd(self) -> int:
        assert self._go is not None
        return self._go

    def _execute(
        self, function_id: int, function: Any, args: Any, buffers: list[tuple[str, int]], chunk: bool,
        cwd: str | None, env: dict[str, str | None], stdout: str | None, stderr: str | None,
        variables: dict[str, str], cpus: list[int], pin: str, results: list[bytes],
    ) -> tuple[bool, bytes, Any]:  # fmt: skip
        try:
            set_variables(variables)
            if results:
                inputs.provide(results)
            if pin:
                cpus = cpus or self._setup.cpus
                with pinned(pin, cpus), self._surroundings(cwd, {**pin_variables(pin, cpus), **env}, stdout, stderr):
                    value = self._call(function_id, function, args, buffers, chunk)
            elif not (cwd or env or stdout is not None or stderr is not None):
                value = self._call(function_id, function, args, buffers, chunk)
            else:
                with self._surroundings(cwd, env, stdout, stderr):
                    value = self._call(function_id, function, args, buffers, chunk)
        except BaseException as error:
            return False, bodies.dump_error(error, self._setup.stores), None
        return *bodies.dump_value(value, self._setup.stores), value

    @contextlib.contextmanager
    def _surroundings(
        self, cwd: str | None, env: dict[str, str | None], stdout: str | None, stderr: str | None
    ) -> Iterator[None]:
        """Where and how the task wants to run; afterwards as before, for the next task of this interpreter."""
        saved = processes.variables().copy()
        try:
            enter(cwd, env)
            with redirected(stdout, stderr):
                yield
        finally:
            restore_variables(saved)
            os.chdir(self._setup.cwd)

    def _call(
        self, function_id: int, packed: Any, args: Any, buffers: list[tuple[str, int]], chunk: bool
    ) -> Any:
        function = self._function(function_id, packed)
        arguments = bodies.load(args, buffers)
        if chunk:
            return [function(*each) for each in arguments]
        return function(*arguments[0], **arguments[1])

    def _function(self, function_id: int, packed: Any) -> Callable[..., Any]:
        function = self._functions.get(function_id)
        if function is None:
            function = self._load_function(packed)
            if len(self._functions) >= _FUNCTIONS_KEPT:
                self._functions.clear()
            self._functions[function_id] = function
        return function

    def _load_function(self, packed: Any) -> Any:
        """Unpickle a function. With an initializer, functions of ``__main__`` share their globals.

        cloudpickle gives the functions of each pickle globals of their own; but what an initializer sets, tasks are to
        find, as in a process that has imported the script.
        """
        if self._setup.initializer is None or not isinstance(packed, bytes) or b"_make_function" not in packed:
            return bodies.load(packed, NO_BUFFERS)
        kept = {name: self._main[name] for name in self._initialized}
        function = SharingUnpickler(io.BytesIO(packed)).load()
        self._main.update(kept)
        return function

    def _take_waiting(self) -> tuple[Any, ...] | None:
        try:
            message = self._tasks.recv(descriptors.MESSAGE_LIMIT, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        if message and message != channel.RETIRE:
            return channel.take_task(message)
        self._retired = True
        return None

    def _usage(self) -> tuple[float, float, int]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        before, self._used = self._used, (used.ru_utime, used.ru_stime)
        return used.ru_utime - before[0], used.ru_stime - before[1], used.ru_maxrss * 1024

    def _send(self, message: bytes) -> None:
        """Send a report, unless the descriptor is no longer ours (user code may close anything and open files)."""
        try:
            if os.fstat(self._reports.fileno()).st_ino == self._reports_inode:
                self._reports.send(message)
                return
        except OSError:
            pass  # closed, or the agent is gone: leaving says it, by the status
        os._exit(NO_AGENT)


class SharingUnpickler(pickle.Unpickler):
    """Unpickles functions that cloudpickle took from ``__main__`` so that they belong to this ``__main__``."""

    def find_class(self, module: str, name: str) -> Any:
        """As usual, but for the maker of functions."""
        found = super().find_class(module, name)
        if name != "_make_function":
            return found

        def make(code: Any, names: dict[str, Any], *rest: Any) -> Any:
            shared = vars(sys.modules["__main__"]) if names.get("__name__") == "__main__" else names
            return found(code, shared, *rest)

        return make


def unread(fd: int) -> bool:
    """Whether bytes that were written to the pipe ``fd`` wait to be read. Raises OSError if it is no pipe."""
    fcntl.ioctl(fd, termios.FIONREAD, _waiting)
    return _waiting != _NOTHING_WAITS


def count_unread(fd: int) -> int:
    """How many bytes that were written to the pipe ``fd`` wait to be read. Raises OSError if it is no pipe."""
    fcntl.ioctl(fd, termios.FIONREAD, _waiting)
    return int.from_bytes(_waiting, sys.byteorder)


def enter(cwd: str | None, env: dict[str, str | None]) -> None:
    """Go to the task's directory, made if missing, and set its variables; None as a value unsets one."""
    if cwd is not None:
        try:
            os.makedirs(cwd, exist_ok=True)
            os.chdir(cwd)
        except OSError as error:
            error.add_note(f"(it is the task's directory that cannot be made or entered: cwd={cwd!r})")
            raise
    for name, value in env.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def set_variables(variables: dict[str, str]) -> None:
    """Set them one by one: to ask whether they are a mapping, as ``update`` does, costs a child pages of its own."""
    environ = os.environ
    for name, value in variables.items():
        environ[name] = value


def restore_variables(saved: dict[bytes, bytes]) -> None:
    """Make the environment what it was; there are few differences, and each variable that is set takes a while."""
    environ, now = os.environb, processes.variables()
    if now != saved:
        for name in now.keys() - saved.keys():
            del environ[name]
        for name, value in saved.items():
            if now.get(name) != value:
                environ[name] = value


@contextlib.contextmanager
def redirected(stdout: str | None, stderr: str | None) -> Iterator[None]:
    """With the streams written to files, as :func:`redirect` has it, and not any more afterwards."""
    if stdout is None and stderr is None:
        yield
        return
    saved = os.dup(1), os.dup(2)
    try:
        redirect(stdout, stderr)
        yield
    finally:
        flush_streams()
        for fd, stream in zip(saved, (1, 2), strict=True):
            os.dup2(fd, stream)
            os.close(fd)


def redirect(stdout: str | None, stderr: str | None) -> None:
    """Write the streams to files ("" discards them); both to one file if it is the same."""
    for stream, path, other in ((1, stdout, None), (2, stderr, stdout)):
        if path is None:
            continue
        if path and path == other:
            os.dup2(1, 2)
            continue
        fd = open_output(path or os.devnull)
        os.dup2(fd, stream)
        os.close(fd)


def open_output(path: str) -> int:
    """Open a file for output, its folder created if missing."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o666)


def flush_streams() -> None:
    """Flush what the task printed; a stream that it broke or closed is its own affair."""
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105  a context manager would be made anew for each task
            stream.flush()
        except Exception:  # noqa: S110  user code may put anything there
            pass


def leave(status: int) -> NoReturn:
    """End as an interpreter ends: threads, exit functions, streams; then nothing that was started here remains.

    In a fork every step that can be seen to be needless is left out: each page that it touches must be copied first.
    """
    threads = _thread._count() > 0
    if threads or atexit._ncallbacks() != _exit_functions_of_template:
        run_exit_functions()
    if threads or processes.has_children():
        processes.kill_tree(os.getpid(), signal.SIGKILL)
    os._exit(status)


#: Exit functions that were registered before any of the user's code ran: of no use to a fork that is thrown away.
_exit_functions_of_template = -1


def note_exit_functions() -> None:
    """What is registered now was not by the user's code."""
    global _exit_functions_of_template
    _exit_functions_of_template = atexit._ncallbacks()


def run_exit_functions() -> None:
    """Wait for threads that are not daemons, run what ``atexit`` has, flush."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    flush_streams()


def prepare(setup: Setup) -> None:
    """Give this interpreter the submitter's ``sys.path`` and directory, and cloudpickle."""
    if setup.version.split(".")[:2] != sys.version.split()[0].split(".")[:2]:
        what = f"it is Python {sys.version.split()[0]} and the submitter's is Python {setup.version}"
        raise RuntimeError(f"{what}: functions cannot travel between them (programs can)")
    enter(None, setup.env)
    sys.path[:] = [*setup.path, *sys.path] if setup.foreign else setup.path
    sys.argv[:] = setup.argv
    os.environ[store.SESSION_STORES] = os.pathsep.join(setup.stores)
    os.chdir(setup.cwd)
    load_cloudpickle(setup.cloudpickle)
    if setup.authkey is not None:
        import multiprocessing

        multiprocessing.current_process().authkey = setup.authkey
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # shown as it is printed, not at the end


def preload(setup: Setup) -> None:
    """Import the modules that the user wants in every interpreter."""
    for name in setup.preload:
        __import__(name)


def load_cloudpickle(folder: str) -> None:
    """Import cloudpickle as ``sys.path`` has it, or from the agent's ``folder`` if this environment has none.

    A template has imported one before it knew the path; should the path have another, that one counts.
    """
    loaded, found = sys.modules.get("cloudpickle"), PathFinder.find_spec("cloudpickle")
    if loaded is not None and found is not None and found.origin != loaded.__file__:
        for name in [name for name in sys.modules if name.partition(".")[0] == "cloudpickle"]:
            del sys.modules[name]
    try:
        import cloudpickle
    except ImportError:
        sys.path.append(folder)
        try:
            import cloudpickle  # noqa: F401
        finally:
            sys.path.remove(folder)


def read_setup() -> Setup:
    """What the agent wrote to the file for it."""
    with open(descriptors.SETUP, "rb") as file:
        return Setup(*marshal.loads(file.read()))  # noqa: S302  written by pack_setup


def pack_setup(setup: Setup) -> bytes:
    """The bytes that :func:`read_setup` reads."""
    return marshal.dumps(tuple(setup), 4)


def main() -> None:
    """An interpreter that was started for tasks itself (start method "spawn")."""
    import faulthandler

    processes.set_parent_death_signal(signal.SIGKILL)
    processes.become_subreaper()
    faulthandler.enable()
    setup = read_setup()
    try:
        prepare(setup)
        preload(setup)
    except BaseException as error:
        text = f"the interpreter could not be prepared: {type(error).__name__}: {error}"
        give_up(error, text, setup, preparing=True)
    os.set_inheritable(descriptors.GO, False)
    Interpreter(setup).serve(descriptors.GO)


def give_up(error: BaseException, text: str, setup: Setup, *, preparing: bool) -> NoReturn:
    """Tell the agent that there is no interpreter here, and why."""
    broken = channel.Broken(os.getpid(), text, bodies.dump_error(error, setup.stores), preparing)
    adopt(descriptors.REPORTS).send(channel.pack_broken(broken))
    os._exit(1)


def adopt(fd: int) -> socket.socket:
    """The socket that was handed to us as ``fd``; programs that the user's code starts do not get it."""
    os.set_inheritable(fd, False)
    return socket.socket(fileno=fd)
