"""Environments on their way from the hub to a lane: what the agent adds, and what interpreters are told of them.

    Prepare --> Environments --(a prologue runs, once)--> complete, with all variables --> Lane
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import msgspec

from worker_agent import processes, prologue, protocol, runner
from worker_agent.loop import Loop, Timer
from worker_agent.prologue import Prologue, PrologueFailed, find_python

#: A prologue, the shell that runs it, and the variables that it begins with.
_Key: TypeAlias = tuple[str, str, frozenset[tuple[str, str]]]


def _key(environment: protocol.Prepare) -> _Key:
    return environment.prologue, environment.shell, frozenset(environment.env.items())


class _Running(NamedTuple):
    """A prologue that runs, and the environments that wait for it."""

    process: Prologue
    timer: Timer
    key: _Key
    waiting: set[int]


class Environments:
    """All that the hub has told us of. One with a prologue is ready when that has ended well."""

    def __init__(
        self, loop: Loop, launch: str, on_ready: Callable[[protocol.Prepare], None],
        on_failed: Callable[[protocol.Unprepared], None],
    ) -> None:  # fmt: skip
        """``launch`` marks the processes of our agent. One of the functions is called for each prologue that ends."""
        self._loop = loop
        self._launch = launch
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._ready: dict[int, protocol.Prepare] = {}
        self._unready: dict[int, protocol.Prepare] = {}
        #: by pid
        self._running: dict[int, _Running] = {}
        #: the variables that prologues have left
        self._left: dict[_Key, dict[str, str]] = {}

    def add(self, order: protocol.Prepare) -> None:
        """An environment of which we may need lanes."""
        complete = _complete(order, self._launch)
        needs_work = order.prologue or not os.path.isabs(order.python[0])
        (self._unready if needs_work else self._ready)[order.environment] = complete

    def __getitem__(self, number: int) -> protocol.Prepare:
        return self._ready.get(number) or self._unready[number]

    def is_ready(self, number: int) -> bool:
        """Whether lanes of it can work. Else it is made ready, and it is told when it is, or cannot be."""
        if number in self._ready:
            return True
        self._loop.call_in(0.0, partial(self._begin, number))
        return False

    def _begin(self, number: int) -> None:
        """Environments that differ in what comes later share what their prologue leaves."""
        environment = self._unready.get(number)
        if environment is None:
            return
        key = _key(environment)
        running = next((each for each in self._running.values() if each.key == key), None)
        if running is not None:
            running.waiting.add(number)
        elif key in self._left or not environment.prologue:
            self._finish(environment, self._left.get(key, environment.env))
        else:
            self._start(environment, key)

    def _start(self, environment: protocol.Prepare, key: _Key) -> None:
        number = environment.environment
        try:
            process = Prologue(environment)
        except PrologueFailed as error:
            self._on_failed(protocol.Unprepared(number, str(error)))
            return
        timer = self._loop.call_in(prologue.PATIENCE, process.give_up)
        self._running[process.pid] = _Running(process, timer, key, {number})

    def owns(self, pid: int) -> bool:
        """Whether ``pid`` is a prologue."""
        return pid in self._running

    def reaped(self, pid: int, status: int) -> None:
        """A prologue has ended."""
        running = self._running.pop(pid)
        running.timer.cancel()
        try:
            variables = self._left[running.key] = running.process.end(os.waitstatus_to_exitcode(status))
        except PrologueFailed as error:
            for number in running.waiting:
                self._on_failed(protocol.Unprepared(number, str(error)))
            return
        for number in running.waiting:
            self._finish(self._unready[number], variables)

    def _finish(self, environment: protocol.Prepare, variables: dict[str, str]) -> None:
        number = environment.environment
        try:
            python = environment.python if environment.start == "exec" else find_python(environment.python, variables)
        except PrologueFailed as error:
            self._on_failed(protocol.Unprepared(number, str(error)))
            return
        del self._unready[number]
        self._ready[number] = msgspec.structs.replace(environment, env=variables, python=python)
        self._on_ready(self._ready[number])

    def clear(self) -> None:
        """Forget all. The prologues are killed with everything else that runs here."""
        for running in self._running.values():
            running.timer.cancel()
        self._running.clear()
        self._left.clear()
        self._ready.clear()
        self._unready.clear()


def _complete(order: protocol.Prepare, launch: str) -> protocol.Prepare:
    """The environment with all its variables: those that are not UTF-8, and the mark of who has started the process."""
    raw = {os.fsdecode(name): os.fsdecode(text) for name, text in order.raw}
    env = {**raw, **order.env, processes.AGENT: launch}
    return msgspec.structs.replace(order, env=env, raw=[])


def make_setup(environment: protocol.Prepare, stores: list[str]) -> runner.Setup:
    """What its interpreters must know. ``stores`` are directories for payloads."""
    import cloudpickle

    initializer: Any = environment.initializer
    if isinstance(initializer, protocol.Stored):
        initializer = (initializer.path, initializer.size)
    folder = os.path.dirname(os.path.dirname(os.path.abspath(cloudpickle.__file__)))
    return runner.Setup(
        environment.cwd, environment.path, environment.preload, initializer, environment.max_tasks,
        stores, folder, environment.authkey, environment.argv,
        environment.version, environment.foreign, {}, [],
    )  # fmt: skip
