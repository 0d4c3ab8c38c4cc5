"""The templates of an agent: one for each environment, which forks the interpreters of all lanes of that.

    Interpreters (of one lane) -> Source -> Template -> spawning.TemplateProcess ==control==> the process
    Interpreters <------------------------- Template <- its reports, by the number of the lane or by the interpreter

A template outlives its lanes: the next task with other needs opens another lane, and finds it there.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import msgspec

from worker_agent import channel, processes, protocol, runner, spawning
from worker_agent.child import EXIT_GRACE
from worker_agent.loop import Loop
from worker_agent.task_variables import THREADS

#: Templates that may die before an interpreter of theirs has run a task.
FAILURES_ALLOWED = 3
#: Templates that are kept although no lane of theirs is open. A program that goes back and forth between a few
#: environments finds them all there; one that makes a new environment each time does not fill the memory (15 MB each,
#: and what ``preload`` takes). To start one anew costs tens of milliseconds, and ``preload``.
KEPT = 4


class User(Protocol):
    """A lane's interpreters, as their template knows them."""

    variables: Mapping[str, str]

    @property
    def queues(self) -> spawning.Queues:
        """Those that the interpreters share."""

    def adopt(self, pid: int, fds: list[int]) -> None:
        """An interpreter was forked, and these are its stdout, its stderr and, if it is kept, what lets it go on."""

    def on_exited(self, exited: channel.Exited) -> None:
        """One of them was reaped."""

    def look(self) -> None:
        """The template has died: what its interpreters had said before counts."""

    def lose(self) -> None:
        """All interpreters end with their template, and nothing is to start, yet."""

    def go_on(self) -> None:
        """There is another template."""

    def refuse(self, text: str, error: bytes) -> None:
        """There is none."""


class Template:
    """Forks for its users; when its process dies there is another one."""

    def __init__(
        self, loop: Loop, environment: protocol.Prepare, setup: runner.Setup, on_idle: Callable[[Template], None]
    ) -> None:
        """``on_idle`` is called when it has no users any more."""
        self._loop = loop
        self.environment = environment
        self._setup = setup
        self._on_idle = on_idle
        self._process: spawning.TemplateProcess | None = None
        self._users: dict[int, User] = {}
        self._numbers = itertools.count(1)
        #: for whom the process forks now
        self._turned_to = 0
        #: what it is to fork and for whom: those of the orders that could not be sent
        self._orders: deque[tuple[int, bytes]] = deque()
        #: the interpreters that live, each with its user's number
        self._interpreters: dict[int, int] = {}
        #: deaths since one of the interpreters has started a task
        self.failures = 0

    def start(self, early: spawning.TemplateProcess | None = None) -> None:
        """Start the process, or use one that was started ``early``. Raises OSError: there is no python."""
        env = self.environment.env
        process = early or spawning.TemplateProcess(self.environment.python, env)
        process.prepare(runner.pack_setup(self._setup._replace(env=_changes(process.env, env))))
        self._loop.watch(process.control.fileno(), self._read)
        self._process, self._turned_to = process, 0

    @property
    def pid(self) -> int:
        """That of the process; 0: there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def idle(self) -> bool:
        """Whether it has no users."""
        return not self._users

    # --- users --------------------------------------------------------------------------------------------------------

    def join(self, user: User) -> int:
        """Be used by a lane; gives the number by which it is known here."""
        number = next(self._numbers)
        self._users[number] = user
        return number

    def leave(self, number: int) -> None:
        """A lane is closed: its interpreters find the end of its queues and leave; those that do not are killed."""
        del self._users[number]
        self._loop.call_in(EXIT_GRACE, partial(self._end_interpreters, number))
        if not self._users:
            self._on_idle(self)

    def _end_interpreters(self, number: int) -> None:
        processes.kill_all([pid for pid, user in self._interpreters.items() if user == number])

    def fork(self, number: int, order: bytes) -> None:
        """Fork for a user, as :meth:`spawning.TemplateProcess.fork` has it."""
        self._orders.append((number, order))
        self._send_orders()

    def _send_orders(self) -> None:
        """Send as many as there is room for; the others when it has forked: there are only more if it still has to."""
        try:
            while self._orders and self._process is not None:
                number, order = self._orders[0]
                if number in self._users:
                    self._turn_to(number, self._process)
                    self._process.fork(order)
                self._orders.popleft()
        except BlockingIOError:
            return

    def _turn_to(self, number: int, process: spawning.TemplateProcess) -> None:
        if number != self._turned_to:
            user = self._users[number]
            process.turn_to(channel.pack_lane(number, dict(user.variables)), user.queues)
            self._turned_to = number

    # --- reports ------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read what the process has said."""
        process = self._process
        while process is not None and process is self._process:
            try:
                data, fds = process.receive()
            except BlockingIOError:
                break
            if not data:
                self._loop.unwatch(process.control.fileno())
                return
            self._on_message(data, fds)
        if self._orders:
            self._send_orders()

    def _on_message(self, data: memoryview, fds: list[int]) -> None:
        try:
            report = channel.unpack_report(data)
        except channel.GarbledReport:
            report = None
        if type(report) is channel.Forked and len(fds) >= 2:
            self._on_forked(report, fds)
            return
        for fd in fds:
            os.close(fd)
        if type(report) is channel.Exited:
            user = self._users.get(self._interpreters.pop(report.pid, 0))
            if user is not None:
                user.on_exited(report)
        elif type(report) is channel.Broken:
            self.failures = FAILURES_ALLOWED
            self._refuse(report.text, report.error)

    def _on_forked(self, forked: channel.Forked, fds: list[int]) -> None:
        self._interpreters[forked.pid] = forked.lane
        user = self._users.get(forked.lane)
        if user is not None:
            user.adopt(forked.pid, fds)
            return
        for fd in fds:
            os.close(fd)
        processes.kill_all([forked.pid])  # its lane was closed meanwhile

    # --- ends ---------------------------------------------------------------------------------------------------------

    def on_end(self, status: int) -> None:
        """The process has ended: so have the interpreters, of all users, before anything new is offered to others."""
        self._read()
        for user in list(self._users.values()):
            user.look()
        printed = self.close()
        for user in self._users.values():
            user.lose()
        self._orders.clear()
        self.failures += 1
        if self._users:
            self._start_again(os.waitstatus_to_exitcode(status), printed)

    def _start_again(self, code: int, printed: str) -> None:
        python = self.environment.python[0]
        if self.failures >= FAILURES_ALLOWED:
            text = f"the template interpreter {python} ended with status {code}. It printed: {printed!r}"
            self._refuse(text, b"")
        else:
            try:
                self.start()
            except OSError as error:
                self._refuse(f"the interpreter {python!r} cannot be started: {error.strerror or error}", b"")
        for user in list(self._users.values()):
            user.go_on()

    def _refuse(self, text: str, error: bytes) -> None:
        for user in list(self._users.values()):
            user.refuse(text, error)

    def close(self) -> str:
        """The process leaves, if there is one, and its interpreters with it. Gives the end of its stderr."""
        process, self._process = self._process, None
        self._interpreters.clear()
        if process is None:
            return ""
        self._loop.unwatch(process.control.fileno())
        printed = process.log_tail()
        process.close()
        return printed


class Templates:
    """All templates of an agent."""

    def __init__(self, loop: Loop, early: spawning.TemplateProcess | None) -> None:
        """``early`` was started before it was known what for: see :meth:`expect`."""
        self._loop = loop
        self._early = early
        #: the one that was used last at the end
        self._templates: list[Template] = []

    def expect(self, environment: protocol.Prepare) -> None:
        """A lane of this environment is opened. A template that was started first ends if it is of no use for that."""
        early = self._early
        if early is not None and not (environment.start == "fork" and environment.starts_like(early.python, early.env)):
            self._drop_early()

    def _drop_early(self) -> None:
        if self._early is not None:
            self._early.close()
            self._early = None

    def get(self, environment: protocol.Prepare, setup: runner.Setup, variables: Mapping[str, str]) -> Template:
        """The template for a lane of this environment with these variables. Raises OSError: there is no python."""
        wanted = _shared(environment, variables)
        template = next((each for each in self._templates if each.pid and each.environment == wanted), None)
        if template is None:
            early, self._early = self._early, None
            template = Template(self._loop, wanted, setup, self._on_idle)
            template.start(early)
        else:
            self._templates.remove(template)
        self._templates.append(template)
        return template

    def _on_idle(self, template: Template) -> None:
        self._templates.remove(template)
        if template.pid:
            self._templates.append(template)
        for each in [each for each in self._templates if each.idle][:-KEPT]:
            self._templates.remove(each)
            each.close()

    def owns(self, pid: int) -> bool:
        """Whether ``pid`` is a template."""
        return self._find(pid) is not None or (self._early is not None and pid == self._early.pid)

    def _find(self, pid: int) -> Template | None:
        return next((each for each in self._templates if each.pid == pid), None)

    def reaped(self, pid: int, status: int) -> None:
        """One of them has ended."""
        template = self._find(pid)
        if template is None:
            self._drop_early()
            return
        template.on_end(status)
        if template.idle and template in self._templates:
            self._templates.remove(template)

    def close(self) -> None:
        """They all leave."""
        for template in self._templates:
            template.close()
        self._templates.clear()
        self._drop_early()


def _shared(environment: protocol.Prepare, variables: Mapping[str, str]) -> protocol.Prepare:
    """What is the same for all lanes that have one template: the environment, whichever number it has this time.

    Numerical libraries look once, when they are loaded, how many threads they may have. So where modules are imported
    ahead, lanes that differ in that have templates of their own.
    """
    threads = {name: variables[name] for name in THREADS if name in variables} if environment.preload else {}
    return msgspec.structs.replace(environment, environment=0, env={**environment.env, **threads})


def _changes(before: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str | None]:
    """What makes an environment the wanted one; None as a value unsets a variable."""
    gone: dict[str, str | None] = dict.fromkeys(before.keys() - wanted.keys())
    return gone | {name: text for name, text in wanted.items() if before.get(name) != text}
