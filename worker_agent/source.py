"""Where a lane's interpreters come from: a template forks them, or (start method "spawn") each is executed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from worker_agent import channel, descriptors, protocol, runner, spawning
from worker_agent.loop import Loop


class Source:
    """Makes interpreters that share its queues."""

    def __init__(
        self, loop: Loop, environment: protocol.Prepare, setup: runner.Setup, on_made: Callable[[int, list[int]], None],
        on_exit: Callable[[channel.Exited], None], early: spawning.TemplateProcess | None = None,
    ) -> None:  # fmt: skip
        """``early`` is a template that was started before it was known what for. Raises OSError: there is no python.

        ``on_made`` gets each interpreter's pid and our descriptors for it: its stdout, its stderr, and what lets it go
        on. ``on_exit`` hears of those that a template has reaped.
        """
        self._loop = loop
        self._environment = environment
        self._setup = setup
        self._on_made, self._on_exit = on_made, on_exit
        self._template = self._start_template(early) if environment.start == "fork" else None
        #: the pid of the template; 0: there is none, or no longer
        self.template = self._template.pid if self._template is not None else 0
        self.queues = self._template.queues if self._template is not None else spawning.Queues()

    def _start_template(self, early: spawning.TemplateProcess | None) -> spawning.TemplateProcess:
        env = self._environment.env
        template = early or spawning.TemplateProcess(self._environment.python, env)
        template.prepare(runner.pack_setup(self._setup._replace(env=_changes(template.env, env))))
        self._loop.watch(template.control.fileno(), self.read)
        return template

    def make(self, number: int) -> int:
        """Make so many interpreters. Gives how many of them are only on the way. Raises OSError."""
        if self._environment.start == "spawn":
            for _ in range(number):
                self._spawn({}, [])
        elif self._template is not None:
            self._template.fork(number)
            return number
        return 0

    def make_in_place(self, variables: dict[str, str], cpus: list[int]) -> int:
        """Make one that is kept in a place, like :meth:`make`."""
        if self._environment.start == "spawn":
            self._spawn(variables, cpus)
        elif self._template is not None:
            self._template.fork_in_place(channel.pack_place(variables, cpus))
            return 1
        return 0

    def _spawn(self, variables: dict[str, str], cpus: list[int]) -> None:
        python, env = self._environment.python, {**self._environment.env, **variables}
        setup = runner.pack_setup(self._setup._replace(cpus=cpus))
        out_end, out = os.pipe()
        err_end, err = os.pipe()
        go = os.eventfd(0, os.EFD_CLOEXEC)
        fds: dict[int, int | str] = {0: os.devnull, 1: out, 2: err, descriptors.GO: go}
        try:
            pid = spawning.spawn(python, env, self.queues, setup, fds)
        except OSError:
            for fd in (out_end, err_end, go):
                os.close(fd)
            raise
        finally:
            os.close(out)
            os.close(err)
        self._on_made(pid, [out_end, err_end, go])

    def read(self) -> None:
        """Read what the template has said: what it forked, what it reaped."""
        template = self._template
        while template is not None and template is self._template:
            try:
                data, fds = template.receive()
            except BlockingIOError:
                return
            if not data:
                self._loop.unwatch(template.control.fileno())
                return
            self._on_message(data, fds)

    def _on_message(self, data: bytes, fds: list[int]) -> None:
        try:
            report = channel.unpack_report(memoryview(data))
        except channel.GarbledReport:
            report = None
        if type(report) is channel.Forked and len(fds) >= 2:
            self._on_made(report.pid, fds)
            return
        for fd in fds:
            os.close(fd)
        if type(report) is channel.Exited:
            self._on_exit(report)

    def close(self) -> str:
        """The template leaves, if there is one. Gives the end of what it wrote to its stderr."""
        template, self._template, self.template = self._template, None, 0
        if template is None:
            return ""
        self._loop.unwatch(template.control.fileno())
        printed = template.log_tail()
        template.close()
        return printed


def _changes(before: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str | None]:
    """What makes an environment the wanted one; None as a value unsets a variable."""
    gone: dict[str, str | None] = dict.fromkeys(before.keys() - wanted.keys())
    return gone | {name: text for name, text in wanted.items() if before.get(name) != text}
