"""The template interpreter: started once for an environment, it forks a pristine child for each fresh interpreter.

It imports what every task needs, freezes its heap, and stays single-threaded, so that a fork is safe and costs about a
millisecond. It does three things: fork when the agent says so, reap, and tell the agent both. It forks for all lanes of
its environment, one after the other: each fork has the queues and the variables of the lane that was named last.

    agent --control--> "l", a lane and its queues: what follows is for this one; end of file: leave
                       "fff": fork as many interpreters; "p" and a place: one that is kept there
    agent <-control--  Forked (with the read ends of stdout and stderr), Exited, Broken
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from importlib.machinery import PathFinder
from typing import Any, NoReturn

from worker_agent import channel, descriptors, processes, runner

#: The descriptors of a lane's queues, as they come with a message.
_QUEUES = struct.Struct(f"@{len(descriptors.QUEUES)}i")
_QUEUES_SPACE = socket.CMSG_SPACE(_QUEUES.size)


class Template:
    """Forks interpreters and reaps them."""

    def __init__(self, interpreter: runner.Interpreter, control: socket.socket, *, reused: bool) -> None:
        self._interpreter = interpreter
        self._control = control
        self._reused = reused
        self._pid = os.getpid()
        self._children: dict[int, int] = {}
        self._poll = select.poll()
        self._lane = 0
        #: what the lane's variables were before; None: there was no such
        self._before: dict[str, str | None] = {}
        #: to receive into a new buffer of that size takes ten times as long
        self._buffer = bytearray(descriptors.MESSAGE_LIMIT)
        self._view = memoryview(self._buffer)

    def serve(self) -> None:
        """Until the agent closes the control socket."""
        self._poll.register(self._control, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._children:
                    self._reap(fd)
                elif not self._obey():
                    return

    def _obey(self) -> bool:
        size, ancillary, _, _ = self._control.recvmsg_into([self._buffer], _QUEUES_SPACE, socket.MSG_CMSG_CLOEXEC)
        order = self._view[:size]
        if order[:1] == channel.LANE:
            self._turn_to(order, ancillary[0][2])
        elif order[:1] == channel.IN_PLACE:
            self._fork(*channel.unpack_place(order))
        else:
            for _ in order:
                self._fork({}, [])
        return size > 0

    def _turn_to(self, order: memoryview, queues: bytes) -> None:
        """From now on fork for another lane: its queues have the fixed numbers, and its variables are set."""
        self._lane, variables = channel.unpack_lane(order)
        for fd, number in zip(_QUEUES.unpack(queues), descriptors.QUEUES, strict=True):
            os.dup2(fd, number, inheritable=False)
            os.close(fd)
        self._interpreter.note_queues()
        runner.enter(None, self._before)
        self._before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)

    def _fork(self, variables: dict[str, str], cpus: list[int]) -> None:
        out_end, out = os.pipe()
        err_end, err = os.pipe()
        go = os.eventfd(0, os.EFD_CLOEXEC) if self._reused else None
        pid = os.fork()
        if pid == 0:
            self._interpreter.take_place(variables, cpus)
            self._become_interpreter(out, err, go)
        ends = [out_end, err_end] if go is None else [out_end, err_end, go]
        socket.send_fds(self._control, [channel.pack_forked(pid, self._lane)], ends)
        for fd in (out, err, *ends):
            os.close(fd)
        pidfd = os.pidfd_open(pid)  # and not SIGCHLD: each child would have to take our handler off
        self._children[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)

    def _become_interpreter(self, out: int, err: int, go: int | None) -> NoReturn:
        os.setsid()
        processes.become_subreaper()
        # The agent sees the template's end and kills us; but agent and supervisor may have been killed together.
        processes.set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != self._pid:
            os._exit(1)  # it came too late
        os.close(descriptors.CONTROL)
        os.dup2(out, 1)
        os.dup2(err, 2)
        gc.enable()
        reseed()
        self._interpreter.serve(go)

    def _reap(self, pidfd: int) -> None:
        """Report a child that ended; what is left of its group goes before its number may be anybody else's."""
        self._poll.unregister(pidfd)
        os.close(pidfd)
        pid = self._children.pop(pidfd)
        processes.kill_group(pid, signal.SIGKILL)
        _, status, used = os.wait4(pid, 0)
        exited = channel.Exited(pid, status, used.ru_utime, used.ru_stime, used.ru_maxrss * 1024)
        self._control.send(channel.pack_exited(exited))


def reseed() -> None:
    """Give NumPy's global generator a state of its own; ``random`` does this by itself after a fork."""
    module = sys.modules.get("numpy.random")
    if module is not None:
        module.seed()


def main(release_fork_hooks: Callable[[], list[dict[str, Any]]]) -> None:
    """Set up and serve. The hooks are for the children: see ``interpreter.hold_fork_hooks``."""
    processes.set_parent_death_signal(signal.SIGKILL)
    faulthandler.enable()
    control = runner.adopt(descriptors.CONTROL)
    with contextlib.suppress(Exception):  # what is wrong with it is said when it is asked for
        import cloudpickle  # noqa: F401  needed whatever is to come: while we wait to hear that
    if not control.recv(1):
        os._exit(0)  # nobody has found a use for us
    setup = runner.read_setup()
    try:
        runner.prepare(setup)
        hooks = release_fork_hooks()
        runner.preload(setup)
    except BaseException as error:
        text = f"the template interpreter could not be prepared: {type(error).__name__}: {error}"
        runner.give_up(error, text, setup, preparing=False)
    if threading.active_count() > 1:  # a module of ``preload`` has started threads: there is something to repair
        register(hooks)
    else:
        register_when_a_child_forks(hooks)
    runner.note_exit_functions()
    list_import_folders()
    interpreter = runner.Interpreter(setup)
    gc.collect()
    gc.freeze()
    gc.disable()
    Template(interpreter, control, reused=setup.max_tasks != 1).serve()


def list_import_folders() -> None:
    """Read the folders of ``sys.path`` once: an import in a child then only looks whether they have changed."""
    PathFinder.find_spec("no module has this name")


def register(hooks: list[dict[str, Any]]) -> None:
    """Hand hooks that were held back to the interpreter."""
    for hook in hooks:
        os.register_at_fork(**hook)


def register_when_a_child_forks(hooks: list[dict[str, Any]]) -> None:
    """Few tasks fork. Those that do find all hooks in place; the others never touch their pages."""
    template = os.getpid()

    def before_fork() -> None:
        if hooks and os.getpid() != template:
            held, hooks[:] = hooks[:], []
            register(held)
            for hook in reversed(held):  # this fork has begun: what is registered now is asked only after it
                hook.get("before", _nothing)()

    os.register_at_fork(before=before_fork)


def _nothing() -> None:
    """No hook."""
