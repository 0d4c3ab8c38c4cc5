"""One rank of a call on several: all of them run the function, and the result is the list of what it gave, by rank.

    agent --file--> root --bcast--> all ranks: call --gather--> root --file--> agent
                      ^                |
                      '---- error -----'    then MPI_Abort

A launcher starts the ranks, some of them on other hosts, which do not see the agent's files. The root is the first rank
that sees them. Standard library, cloudpickle, and mpi4py as the task's environment has it.
"""

from __future__ import annotations

import faulthandler
import marshal
import os
import pickle
import socket
import sys
import threading
from typing import Any, NoReturn

from worker_agent import bodies, channel, inputs, runner, store

#: Seconds between two looks for a rank that has failed. A receive that waits would take a CPU: MPI waits busily.
_INTERVAL = 0.05
_FAILED = 1


# ---- the agent's side


def write_call(task: channel.Task, setup: runner.Setup, ranks: int) -> str:
    """Write a file with all that so many ranks need; gives its path. Raises OSError."""
    return store.store(marshal.dumps((tuple(setup), tuple(task), ranks), 4), setup.stores)[0]


def take_outcome(file: str) -> tuple[bool, bytes] | None:
    """Whether the call returned, and its body, in the form of :mod:`worker_agent.bodies`; the files go.

    None: the ranks have ended without a word.
    """
    try:
        with open(_outcome_of(file), "rb") as written:
            outcome = written.read()
    except FileNotFoundError:
        return None
    finally:
        store.remove(file)
        store.remove(_outcome_of(file))
    return outcome[:1] == b"1", outcome[1:]


def _outcome_of(file: str) -> str:
    return f"{file}-outcome"


# ---- the ranks' side


def main(file: str) -> None:
    """Be one of the ranks of the call that :func:`write_call` wrote to ``file``."""
    faulthandler.enable()
    rank = _Reader(file) if os.path.exists(file) else _Rank()
    try:
        rank.run()
    except BaseException as error:
        rank.fail(error)


class _Rank:
    """A rank that gets what it needs from the root."""

    file: str | None = None
    #: MPI's, as soon as it has begun
    world: Any = None
    errors: Any = None
    root = 0

    def run(self) -> None:
        """Call the function and hand over its value."""
        self._begin()
        setup, cwd, env, chunk = self.world.bcast(self._surroundings(), self.root)
        self._enter(runner.Setup(*setup), cwd, env)
        function, arguments = pickle.loads(self.world.bcast(self._packed(), self.root))
        value = [function(*each) for each in arguments] if chunk else function(*arguments[0], **arguments[1])
        runner.flush_streams()
        self.end(self.world.gather(_pickled(value), self.root), chunk)

    def _begin(self) -> None:
        self.world = _import_mpi().COMM_WORLD
        self.errors = self.world.Dup()
        sees = self.world.allgather(self.file is not None)
        if not any(sees):
            raise RuntimeError(f"no rank sees the call's file: {self.world.size} of them are among themselves")
        self.root = sees.index(True)

    def _enter(self, setup: runner.Setup, cwd: str | None, env: dict[str, str | None]) -> None:
        if self.file is None:
            runner.prepare(setup)
        runner.enter(cwd, env)
        runner.preload(setup)
        if setup.initializer is not None:
            initializer, args = bodies.load(setup.initializer, runner.NO_BUFFERS)
            initializer(*args)

    def _surroundings(self) -> Any:
        return None

    def _packed(self) -> bytes | None:
        return None

    def end(self, pickles: list[bytes] | None, chunk: bool) -> None:
        """All have called the function."""

    def fail(self, error: BaseException) -> NoReturn:
        """Tell the root what was raised here; it ends all ranks."""
        if self.world is None:
            sys.exit(f"hpc-executor: a rank on {socket.gethostname()} cannot begin: {error}")
        description = self._describe(error)
        if not _has_threads():
            sys.stderr.write(description[-1])
            self.world.Abort(_FAILED)
        self.errors.send(description, self.root)
        threading.Event().wait()  # until the root has ended us: what we say must arrive
        raise AssertionError("the wait has no end")

    def _describe(self, error: BaseException) -> tuple[Any, ...]:
        if self.world is not None:
            error.add_note(f"(on rank {self.world.rank} of {self.world.size}, on host {socket.gethostname()})")
        return error.args[0] if isinstance(error, _Unpicklable) else bodies.describe_error(error)


class _Reader(_Rank):
    """A rank that has read the call. The first of these is the root, and writes the outcome."""

    def __init__(self, file: str) -> None:
        with open(file, "rb") as written:
            setup, task, self._ranks = marshal.loads(written.read())  # noqa: S302  written by write_call
        self.file = file
        self._setup, self._task = runner.Setup(*setup), channel.Task(*task)
        self._lock = threading.Lock()
        self._over = threading.Event()

    def _begin(self) -> None:
        runner.prepare(self._setup)  # its path may have mpi4py
        super()._begin()
        if self.world.size != self._ranks:
            raise RuntimeError(_why_alone(self.world.size, self._ranks))
        if self.world.rank == self.root and _has_threads():
            threading.Thread(target=self._watch, daemon=True).start()

    def _surroundings(self) -> Any:
        setup = self._setup
        if isinstance(setup.initializer, tuple):
            setup = setup._replace(initializer=_bytes_of(*setup.initializer))
        return tuple(setup), self._task.cwd, self._task.env, self._task.chunk

    def _packed(self) -> bytes | None:
        """The function and its arguments, without files."""
        if self.world.rank != self.root:
            return None
        import cloudpickle

        if self._task.inputs:
            inputs.provide(self._task.inputs)
        function = bodies.load(self._task.function, runner.NO_BUFFERS)
        packed: bytes = cloudpickle.dumps((function, bodies.load(self._task.args, self._task.buffers)), protocol=5)
        return packed

    def end(self, pickles: list[bytes] | None, chunk: bool) -> None:
        """Write the list of the values; of a chunk of calls, a list for each of them."""
        self._over.set()
        if pickles is None:
            return
        values = [pickle.loads(each) for each in pickles]
        ok, body = bodies.dump_value([list(each) for each in zip(*values, strict=True)] if chunk else values,
                                     self._setup.stores)  # fmt: skip
        with self._lock:
            self._write(ok, body)

    def _watch(self) -> None:
        """End all when one has failed: the others may wait for it for ever."""
        while not self._over.wait(_INTERVAL):
            if self.errors.iprobe():
                self._end_all(self.errors.recv())

    def fail(self, error: BaseException) -> NoReturn:
        """Write what was raised here, and end all ranks."""
        if self.world is not None and self.world.rank != self.root and self.world.size == self._ranks:
            super().fail(error)
        self._end_all(self._describe(error))

    def _end_all(self, description: tuple[Any, ...]) -> NoReturn:
        with self._lock:
            self._write(False, bodies.dump_description(description, self._setup.stores))
            runner.flush_streams()
            if self.world is not None:
                self.world.Abort(_FAILED)
            os._exit(_FAILED)

    def _write(self, ok: bool, body: bytes) -> None:
        """The outcome, as a whole or not at all; of ranks that cannot begin each writes its own."""
        assert self.file is not None
        part = f"{self.file}-{os.getpid()}"
        with open(part, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as written:
            written.write((b"1" if ok else b"0") + body)
        os.replace(part, _outcome_of(self.file))


class _Unpicklable(Exception):
    """A value of the function that cannot be sent; its argument is the description for the submitter."""


def _pickled(value: Any) -> bytes:
    import cloudpickle

    try:
        packed: bytes = cloudpickle.dumps(value, protocol=5)
    except Exception as error:
        raise _Unpicklable(bodies.describe_unpicklable(value, error)) from error
    return packed


def _bytes_of(path: str, _: int) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _import_mpi() -> Any:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ImportError(
            f"a function on several ranks needs mpi4py, and {sys.executable} on {socket.gethostname()} cannot import "
            f"it: {error}. Install it there, built for the MPI of the launcher: pip install mpi4py", name="mpi4py"
        ) from error  # fmt: skip
    return MPI


def _has_threads() -> bool:
    """Whether MPI may be called by two threads at a time."""
    from mpi4py import MPI

    return bool(MPI.Query_thread() == MPI.THREAD_MULTIPLE)


def _why_alone(size: int, ranks: int) -> str:
    from mpi4py import MPI

    library = MPI.Get_library_version().partition("\n")[0].strip("\0 ")[:60]
    return (
        f"the launcher has started {ranks} ranks, and this one sees {size}: mpi4py uses {library}, which the launcher "
        "does not serve. Name the one that belongs to it, such as launcher='/opt/mpi/bin/mpirun'; with srun, choose "
        "the interface: env={'SLURM_MPI_TYPE': 'pmix'}"
    )
