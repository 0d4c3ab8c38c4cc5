"""The template interpreter: started once for an environment, it forks a pristine child for each fresh interpreter.

It imports what every task needs, freezes its heap, and stays single-threaded, so that a fork is safe and costs about a
millisecond. It does three things: fork when the agent says so, reap, and tell the agent both.

    agent --control--> "n": fork n interpreters; end of file: leave
    agent <-control--  Forked (with the read ends of stdout and stderr), Exited
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C module, which the typeshed does not know
import faulthandler
import gc
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from worker_agent import channel, processes, runner


class Template:
    """Forks interpreters and reaps them."""

    def __init__(
        self, setup: runner.Setup, tasks: socket.socket, reports: socket.socket, control: socket.socket,
        hooks: list[dict[str, Any]],
    ) -> None:  # fmt: skip
        self._setup = setup
        self._hooks = hooks
        self._tasks = tasks
        self._reports = reports
        self._control = control
        self._wakeup, self._wakeup_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def serve(self) -> None:
        """Until the agent closes the control socket."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_in, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._wakeup in ready:
                os.read(self._wakeup, 4096)
                self._reap()
            if self._control.fileno() in ready and not self._obey():
                return

    def _obey(self) -> bool:
        wanted = self._control.recv(64)
        for _ in wanted:
            self._fork()
        return bool(wanted)

    def _fork(self) -> None:
        out_end, out = os.pipe()
        err_end, err = os.pipe()
        go = os.eventfd(0, os.EFD_CLOEXEC) if self._setup.max_tasks != 1 else None
        pid = os.fork()
        if pid == 0:
            self._become_interpreter(out, err, go)
        ends = [out_end, err_end] if go is None else [out_end, err_end, go]
        socket.send_fds(self._control, [channel.pack_forked(pid)], ends)
        for fd in (out, err, *ends):
            os.close(fd)

    def _become_interpreter(self, out: int, err: int, go: int | None) -> NoReturn:
        os.setsid()
        processes.become_subreaper()  # no parent-death signal: the agent sees the template's end, and kills us
        _signal.set_wakeup_fd(-1)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)  # the module ``signal`` would make enums of these
        for hook in self._hooks:
            os.register_at_fork(**hook)
        self._control.close()
        os.dup2(out, 1)
        os.dup2(err, 2)
        gc.enable()
        reseed()
        runner.Interpreter(self._setup, self._tasks, self._reports, go).serve()

    def _reap(self) -> None:
        """Report each child that ended."""
        for pid, status, used in processes.reap_children():
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
    runner.close_on_exec(runner.TASKS_FD, runner.REPORTS_FD, runner.CONTROL_FD)
    reports = socket.socket(fileno=runner.REPORTS_FD)
    control = socket.socket(fileno=runner.CONTROL_FD)
    setup = runner.read_setup(runner.SETUP_FD)
    faulthandler.enable()
    try:
        runner.prepare(setup)
        hooks = release_fork_hooks()
        runner.preload(setup)
    except BaseException as error:
        text = f"the template interpreter could not be prepared: {type(error).__name__}: {error}"
        body = runner.dump_error(error, setup.stores)
        reports.send(channel.pack_broken(channel.Broken(os.getpid(), text, body)))
        os._exit(1)
    if threading.active_count() > 1:  # a module of ``preload`` has started threads: there is something to repair
        for hook in hooks:
            os.register_at_fork(**hook)
        hooks = []
    runner.note_exit_functions()
    gc.collect()
    gc.freeze()
    gc.disable()
    Template(setup, socket.socket(fileno=runner.TASKS_FD), reports, control, hooks).serve()
