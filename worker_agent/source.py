"""Where a lane's interpreters come from: a template forks them, or (start method "spawn") each is executed."""

from __future__ import annotations

import os
from collections.abc import Mapping

from worker_agent import channel, descriptors, processes, protocol, runner, spawning
from worker_agent.templates import Template, Templates, User


class Source:
    """Makes interpreters that share its user's queues; the user adopts them."""

    def __init__(
        self, environment: protocol.Prepare, setup: runner.Setup, user: User, templates: Templates
    ) -> None:
        """Raises OSError: there is no python."""
        self._environment = environment
        self._setup = setup
        self._user = user
        self._template: Template | None = None
        if environment.start == "fork":
            self._template = templates.get(environment, setup, user.variables)
            self._number = self._template.join(user)

    def make(self, number: int) -> int:
        """Make so many interpreters. Gives how many of them are only on the way. Raises OSError."""
        if self._template is not None:
            self._template.fork(self._number, channel.FORK * number)
            return number
        for _ in range(number):
            self._spawn({}, [])
        return 0

    def make_in_place(self, variables: dict[str, str], cpus: list[int]) -> int:
        """Make one that is kept in a place, like :meth:`make`."""
        if self._template is not None:
            self._template.fork(self._number, channel.pack_place(variables, cpus))
            return 1
        self._spawn(variables, cpus)
        return 0

    def _spawn(self, variables: Mapping[str, str], cpus: list[int]) -> None:
        python, env = self._environment.python, {**self._environment.env, **self._user.variables, **variables}
        setup = runner.pack_setup(self._setup._replace(cpus=cpus))
        out_end, out = os.pipe()
        err_end, err = os.pipe()
        go = os.eventfd(0, os.EFD_CLOEXEC)
        fds: dict[int, int | str] = {0: os.devnull, 1: out, 2: err, descriptors.GO: go}
        try:
            pid = spawning.spawn(python, env, self._user.queues, setup, fds)
        except OSError:
            for fd in (out_end, err_end, go):
                os.close(fd)
            raise
        finally:
            os.close(out)
            os.close(err)
        self._user.adopt(pid, [out_end, err_end, go])

    def note_start(self) -> None:
        """An interpreter has started a task: so the template is of use."""
        if self._template is not None:
            self._template.failures = 0

    def has_forked(self, pid: int) -> bool:
        """Whether ``pid`` may be an interpreter of which the template has not told, yet."""
        return self._template is not None and pid in processes.children(self._template.pid)

    def close(self) -> None:
        """No more are wanted."""
        if self._template is not None:
            self._template.leave(self._number)
