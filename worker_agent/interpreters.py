"""The interpreters of one lane: how they come to be, which task each of them runs, and how they end.

All interpreters of a lane read tasks from one socket and write reports to one other, so that an idle one takes the next
task without asking us. They are forked from a template, or (start method "spawn") executed one by one.

    fresh (max_tasks 1, fork)   idle children are forked ahead, as many as the lane is wide
    otherwise                   interpreters are started when there is a task for them, up to the lane's width
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import signal
import socket
from functools import partial
from typing import Protocol

from worker_agent import channel, processes, protocol, runner
from worker_agent.attempt import Attempt, State
from worker_agent.loop import Loop, Timer
from worker_agent.pipes import Pipe
from worker_agent.programs import FileAction

#: Seconds that an interpreter may take to leave after its last outcome (exit functions, threads of the user's code).
EXIT_GRACE = 2.0
#: Seconds until a task that an interpreter must have taken into its death is given up.
VANISHED_GRACE = 1.0
#: Templates (or spawned interpreters) that may die before one has run a task.
FAILURES_ALLOWED = 3
#: Work, in seconds, that is offered to reused interpreters beyond what they run.
LOOK_AHEAD = 0.002
LOOK_AHEAD_TASKS = 128

_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "interpreter.py")
#: Blocks of output kept from before an interpreter's first task.
_EARLY_BLOCKS = 16


class Owner(Protocol):
    """What the interpreters tell their lane."""

    def on_started(self, attempt: Attempt) -> None:
        """A task runs."""

    def on_result(self, attempt: Attempt, ended: channel.Ended) -> None:
        """A task has an outcome."""

    def on_free(self, attempt: Attempt) -> None:
        """What the task occupied is free again."""

    def on_returned(self, attempt: Attempt) -> None:
        """The task was offered, and nobody took it."""

    def on_room(self) -> None:
        """Places may have become free otherwise."""

    def on_crash(self) -> None:
        """An interpreter did not end by itself: what it had started is the agent's child now, if it lives."""

    def on_unprepared(self, text: str, error: bytes, initializer: bool) -> None:
        """There will be no interpreters."""


class Child:
    """One interpreter."""

    __slots__ = ("current", "doomed", "early", "go", "last", "leaving", "pid", "pipes", "unheard")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.current: Attempt | None = None
        self.last: Attempt | None = None
        self.pipes: list[Pipe] = []
        self.go: int | None = None
        self.leaving: Timer | None = None
        #: a task of it was to be ended: it runs no more than what it has taken
        self.doomed = False
        #: an end whose output could not be read yet
        self.unheard: channel.Ended | None = None
        #: what it printed before its first task: streams and blocks
        self.early: list[tuple[int, bytes]] = []

    def printed(self, stream: int, data: bytes) -> None:
        """Its output belongs to the task that it runs, ran last, or will run first."""
        attempt = self.current or self.last
        if attempt is not None:
            attempt.printed(stream, data)
        elif len(self.early) < _EARLY_BLOCKS:
            self.early.append((stream, data))

    def take(self, attempt: Attempt) -> None:
        """It runs ``attempt`` now, whose output begins with what was printed before any task."""
        self.current = attempt
        for stream, data in self.early:
            attempt.printed(stream, data)
        self.early.clear()

    def drain(self) -> None:
        """Read what it has printed so far."""
        for pipe in self.pipes:
            pipe.drain()

    def close(self) -> None:
        """It is gone."""
        for pipe in self.pipes:
            pipe.finish()
        if self.go is not None:
            os.close(self.go)
        if self.leaving is not None:
            self.leaving.cancel()


class Interpreters:
    """The interpreters of one lane."""

    def __init__(self, loop: Loop, environment: protocol.Prepare, setup: runner.Setup, owner: Owner) -> None:
        self._loop = loop
        self._environment = environment
        self._setup = setup
        self._owner = owner
        self._children: dict[int, Child] = {}
        self._offered: dict[int, Attempt] = {}
        self._requested = 0
        #: interpreters that run a task, or have run their last one and are leaving
        self._busy = 0
        #: the template's stderr, a file in memory
        self._log = -1
        #: interpreters that were told to leave
        self._retiring = 0
        self._template: int | None = None
        self._control: socket.socket | None = None
        self._failures = 0
        self._duration = 0.0
        self._closed = False
        self.width = 0
        self._buffer = bytearray(channel.MESSAGE_LIMIT)
        self._view = memoryview(self._buffer)
        self._open_sockets()
        if environment.start == "fork":
            self._start_template()

    # --- sockets and processes ----------------------------------------------------------------------------------------

    def _open_sockets(self) -> None:
        self._tasks, self._tasks_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._reports, self._reports_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._tasks.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, channel.MESSAGE_LIMIT)
        for end in (self._tasks, self._reports):
            end.setblocking(False)
        self._loop.watch(self._reports.fileno(), self._on_reports)

    def _start_template(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        if self._log < 0:
            self._log = _memory_file(b"")
        fds: dict[int, int | str] = {0: os.devnull, 2: self._log, runner.CONTROL_FD: theirs.fileno()}
        with theirs:
            self._template = self._execute("template", fds)
        self._loop.watch(self._control.fileno(), self._on_control)

    def _template_log(self) -> str:
        """The end of what the template wrote to its stderr."""
        size = os.fstat(self._log).st_size
        return os.pread(self._log, 4000, max(0, size - 4000)).decode(errors="replace").strip()

    def _execute(self, role: str, fds: dict[int, int | str]) -> int:
        python = self._environment.python
        setup = _memory_file(runner.pack_setup(self._setup))
        fds = {
            **fds, runner.TASKS_FD: self._tasks_end.fileno(), runner.REPORTS_FD: self._reports_end.fileno(),
            runner.SETUP_FD: setup,
        }  # fmt: skip
        high = {target: source if isinstance(source, str) else _high(source) for target, source in fds.items()}
        os.close(setup)
        try:
            return os.posix_spawn(
                python[0], [*python, "-P", _SCRIPT, role], self._environment.env,
                file_actions=_file_actions(high), setsid=True, setsigmask=[], setsigdef=[signal.SIGPIPE],
            )  # fmt: skip
        finally:
            for fd in high.values():
                if isinstance(fd, int):
                    os.close(fd)

    def _spawn(self) -> None:
        out_end, out = os.pipe()
        err_end, err = os.pipe()
        go = os.eventfd(0, os.EFD_CLOEXEC)
        pid = self._execute("spawned", {0: os.devnull, 1: out, 2: err, runner.GO_FD: go})
        os.close(out)
        os.close(err)
        self._adopt(pid, [out_end, err_end, go])

    def _adopt(self, pid: int, fds: list[int]) -> None:
        child = self._children.setdefault(pid, Child(pid))
        for stream, fd in zip((1, 2), fds, strict=False):
            # What a reused interpreter has reported decides whose output it is: that is read first.
            before = None if self.fresh else self._on_reports
            child.pipes.append(Pipe(self._loop, fd, partial(child.printed, stream), before))
        child.go = fds[2] if len(fds) > 2 else None
        if child.unheard is not None:
            ended, child.unheard = child.unheard, None
            self._on_ended(ended)

    # --- tasks --------------------------------------------------------------------------------------------------------

    @property
    def fresh(self) -> bool:
        """Whether each interpreter runs one task."""
        return self._environment.max_tasks == 1

    @property
    def room(self) -> int:
        """How many more tasks may be offered now."""
        if self._failures >= FAILURES_ALLOWED:
            return 0
        if self.fresh:
            return self.width - self._busy - len(self._offered)
        shortest = LOOK_AHEAD / LOOK_AHEAD_TASKS
        ahead = int(LOOK_AHEAD / max(shortest, self._duration)) if self._duration else 0
        return self.width * (1 + ahead) - self._busy - len(self._offered)

    def offer(self, attempt: Attempt, task: channel.Task) -> bool:
        """Give a task to whichever interpreter takes it; False if the socket is full for now."""
        try:
            self._tasks.send(channel.pack_task(task, self._setup.stores))
        except BlockingIOError:
            return False
        attempt.state = State.OFFERED
        self._offered[task.task] = attempt
        return True

    def take_back(self, wanted: Attempt) -> bool:
        """Take a task out of the socket again; False if an interpreter has it."""
        found = False
        for message in self._waiting():
            if message != channel.RETIRE and channel.unpack_task_id(message) == wanted.task:
                found = True
                del self._offered[wanted.task]
            else:
                self._tasks.send(message)
        return found

    def resize(self, width: int) -> None:
        """Run ``width`` tasks at a time; idle interpreters beyond that leave."""
        self.width = width
        if not self.fresh:
            surplus = len(self._children) + self._requested - width - self._retiring
            for _ in range(surplus):
                self._tasks.send(channel.RETIRE)
                self._retiring += 1
        self.provide()

    def _waiting(self) -> list[bytes]:
        messages = []
        try:
            while True:
                messages.append(self._tasks_end.recv(channel.MESSAGE_LIMIT, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return messages

    def provide(self) -> None:
        """Start interpreters for what is offered, or ahead of it."""
        if self._closed or self._failures >= FAILURES_ALLOWED:
            return
        idle = self._requested + len(self._children) - self._busy
        if self.fresh and self._environment.start == "fork":
            missing = self.width - idle
        else:
            live = self._requested + len(self._children)
            missing = min(len(self._offered) - idle, self.width - live)
        if missing > 0:
            try:
                self._start_more(missing)
            except OSError as error:
                self._fail_to_start(error)

    def _fail_to_start(self, error: OSError) -> None:
        self._failures = FAILURES_ALLOWED
        text = f"the interpreter {self._environment.python[0]!r} cannot be started: {error.strerror or error}"
        self._owner.on_unprepared(text, b"", False)

    def _start_more(self, number: int) -> None:
        if self._environment.start == "spawn":
            for _ in range(number):
                self._spawn()
        elif self._control is not None:
            self._requested += number
            self._send_control(b"f" * number)

    def _send_control(self, message: bytes) -> None:
        assert self._control is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died, which is seen when it is reaped
            self._control.send(message)

    # --- reports ------------------------------------------------------------------------------------------------------

    def _on_reports(self) -> None:
        while self._read_report():
            pass

    def _read_report(self) -> bool:
        try:
            size = self._reports.recv_into(self._buffer)
        except BlockingIOError:
            return False
        try:
            report = channel.unpack_report(self._view[:size])
        except channel.GarbledReport:
            return True  # user code found the socket and wrote to it; its own task suffers at most
        if type(report) is channel.Ended:
            self._on_ended(report)
        elif type(report) is channel.Started:
            self._on_started(report.pid, report.task, report.at)
        elif type(report) is channel.Broken:
            self._on_broken(report)
        return size > 0

    def _on_control(self) -> None:
        """The template forked or reaped; what its children had reported before that comes first."""
        control = self._control
        while control is not None and control is self._control:
            try:
                data, fds = _receive_with_fds(control)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data, fds = b"", []  # it died with orders unread
            if not data:
                self._loop.unwatch(control.fileno())
                return
            self._on_control_message(data, fds)

    def _on_control_message(self, data: bytes, fds: list[int]) -> None:
        try:
            report = channel.unpack_report(memoryview(data))
        except channel.GarbledReport:
            report = None
        if type(report) is channel.Forked and len(fds) >= 2:
            self._requested = max(0, self._requested - 1)
            self._adopt(report.pid, fds)
            return
        for fd in fds:
            os.close(fd)
        if type(report) is channel.Exited:
            self._on_reports()
            self.on_exit(report.pid, report.status, protocol.Usage(report.user, report.system, report.max_rss))

    def _on_started(self, pid: int, task: int, at: float) -> None:
        attempt = self._offered.pop(task, None)
        if attempt is None:
            return
        child = self._children.get(pid)
        if child is None:
            child = self._children[pid] = Child(pid)
        self._failures = 0
        self._busy += 1
        attempt.begin(pid, at)
        child.take(attempt)
        self._owner.on_started(attempt)
        if self.fresh:
            self.provide()

    def _on_ended(self, ended: channel.Ended) -> None:
        child = self._children.get(ended.pid)
        attempt = child.current if child is not None else None
        if child is None or attempt is None or attempt.order.task != ended.task:
            return
        if ended.printed and not child.pipes:
            child.unheard = ended  # the template is about to hand over the pipes: see _adopt
            return
        if ended.printed:
            child.drain()
        self._measure(ended.ended - ended.started)
        child.current, child.last = None, attempt
        child.doomed = child.doomed or attempt.end is not None
        if ended.leaving:
            child.leaving = self._loop.call_in(EXIT_GRACE, lambda: end_by_force(child.pid))
        else:
            self._busy -= 1
        self._owner.on_result(attempt, ended)
        if ended.next_task:
            self._on_started(ended.pid, ended.next_task, ended.ended)
        if ended.printed and child.go is not None:
            os.eventfd_write(child.go, 1)
        if not ended.leaving:
            if child.doomed and child.current is None:
                end_by_force(child.pid)  # it survived its own kill; what its task has started may have as well
            self._owner.on_free(attempt)

    def _measure(self, duration: float) -> None:
        """A task took so long, by clocks that may have been set back, and by the word of a process of the user's."""
        if 0 <= duration < protocol.LONGEST:
            self._duration = 0.9 * self._duration + 0.1 * duration if self._duration else duration

    def on_exit(self, pid: int, status: int, usage: protocol.Usage) -> None:
        """An interpreter ended; if it ran a task, so did that."""
        child = self._children.pop(pid, None)
        if child is None:
            return
        child.close()
        code = os.waitstatus_to_exitcode(status)
        if child.current is not None or child.leaving is not None:
            self._busy -= 1
        if child.leaving is None:
            self._owner.on_crash()
        if child.current is None and child.last is None:
            self._count_failure(child, code)
        if child.current is not None:
            child.current.finish(protocol.EXITED, returncode=code, usage=usage)
            self._owner.on_free(child.current)
        elif child.leaving is not None and child.last is not None:
            self._owner.on_free(child.last)
        elif code != 0 and self._offered:
            self._look_for_vanished()
        self.provide()

    def _count_failure(self, child: Child, code: int) -> None:
        """An interpreter ended before it ran a task. If that goes on, there is no use in starting more."""
        if code == 0 and self._retiring > 0:
            self._retiring -= 1
            return
        self._failures += 1
        if self._failures == FAILURES_ALLOWED:
            printed = b"".join(data for _, data in child.early).decode(errors="replace")
            what = f"interpreters ({self._environment.python[0]}) end before they run a task"
            initializer = self._environment.initializer is not None
            if initializer:
                what += ", in the initializer or before it"
            text = f"{what}; the last one ended with status {code}. It printed: {printed!r}"
            self._owner.on_unprepared(text, b"", initializer)

    def _look_for_vanished(self) -> None:
        """An idle interpreter died. Did it take a task along, before it could say so?"""
        waiting = self._waiting()
        for message in waiting:
            self._tasks.send(message)
        there = {channel.unpack_task_id(message) for message in waiting if message != channel.RETIRE}
        missing = [attempt for task, attempt in self._offered.items() if task not in there]
        self._loop.call_in(VANISHED_GRACE, lambda: self._give_up(missing))

    def _give_up(self, missing: list[Attempt]) -> None:
        for attempt in missing:
            if self._offered.get(attempt.task) is attempt:
                del self._offered[attempt.task]
                attempt.finish(protocol.LOST, body=b"an interpreter was killed before it could start the task")
                self._owner.on_free(attempt)

    def _on_broken(self, broken: channel.Broken) -> None:
        if not self._may_be_broken(broken.pid):
            return  # user code found the socket
        self._failures = FAILURES_ALLOWED
        preparing = broken.pid == self._template or broken.preparing
        self._owner.on_unprepared(broken.text, broken.error, not preparing)

    def _may_be_broken(self, pid: int) -> bool:
        child = self._children.get(pid)
        if child is not None:
            return child.current is None and child.last is None
        return pid == self._template or (self._template is not None and pid in processes.children(self._template))

    # --- ends ---------------------------------------------------------------------------------------------------------

    def owns(self, pid: int) -> bool:
        """Whether ``pid`` is the template or one of the interpreters."""
        return pid == self._template or pid in self._children

    def reaped(self, pid: int, status: int, usage: protocol.Usage) -> None:
        """A child of the agent ended that belongs here: the template, or an interpreter that was executed."""
        self._on_reports()
        if pid == self._template:
            self._on_template_end(status)
        else:
            self.on_exit(pid, status, usage)

    def _on_template_end(self, status: int) -> None:
        self._template = None
        if self._closed:
            return
        self._close_control()
        lost = self._lose_children()
        self._failures += 1
        if self._failures < FAILURES_ALLOWED:
            self._open_sockets()
            try:
                self._start_template()
            except OSError as error:
                self._fail_to_start(error)
        for attempt in lost:
            attempt.finish(protocol.LOST, body=b"the template interpreter died")
            self._owner.on_free(attempt)
        if self._failures >= FAILURES_ALLOWED:
            code = os.waitstatus_to_exitcode(status)
            text = f"the template interpreter {self._environment.python[0]} ended with status {code}"
            self._owner.on_unprepared(f"{text}. It printed: {self._template_log()!r}", b"", False)
        self._owner.on_room()
        self.provide()

    def _close_control(self) -> None:
        if self._control is not None:
            self._on_control()
            self._loop.unwatch(self._control.fileno())
            self._control.close()
            self._control = None

    def _lose_children(self) -> list[Attempt]:
        """The interpreters end with their template, before anything new is offered: they would take it.

        Gives the attempts that end with them, which are not to blame and may run again. What none of them had taken
        goes back to the lane.
        """
        for pid in self._children:
            end_by_force(pid)
        waiting = {channel.unpack_task_id(message) for message in self._waiting() if message != channel.RETIRE}
        lost = [attempt for attempt in self._offered.values() if attempt.task not in waiting]
        for child in self._children.values():
            child.close()
            lost += [each for each in (child.current, child.last if child.leaving else None) if each is not None]
        returned = [attempt for attempt in self._offered.values() if attempt.task in waiting]
        self._close_sockets()
        self._children.clear()
        self._offered.clear()
        self._busy = self._requested = 0
        for attempt in reversed(returned):
            self._owner.on_returned(attempt)
        return lost

    def _close_sockets(self) -> None:
        self._loop.unwatch(self._reports.fileno())
        for end in (self._tasks, self._tasks_end, self._reports, self._reports_end):
            end.close()

    @property
    def busy(self) -> bool:
        """Whether an interpreter runs a task or is leaving."""
        return self._busy > 0

    def look(self) -> None:
        """Read what interpreters have reported."""
        self._on_reports()

    def close(self) -> None:
        """No more tasks: idle interpreters and the template end by themselves at the end of their sockets."""
        self._closed = True
        self._close_control()
        self._close_sockets()
        if self._log >= 0:
            os.close(self._log)
            self._log = -1
        for child in self._children.values():
            child.close()


def end_by_force(pid: int) -> None:
    """SIGKILL to a task's process, its group, and all that it started."""
    processes.kill_tree(pid, signal.SIGKILL)
    processes.kill_group(pid, signal.SIGKILL)


def _receive_with_fds(control: socket.socket) -> tuple[bytes, list[int]]:
    """A message and the descriptors that came with it, close-on-exec (``socket.recv_fds`` forgets its flags)."""
    fds = array.array("i")
    space = socket.CMSG_SPACE(3 * fds.itemsize)
    data, ancillary, _, _ = control.recvmsg(256, space, socket.MSG_CMSG_CLOEXEC)
    for _, _, block in ancillary:
        fds.frombytes(block[: len(block) - len(block) % fds.itemsize])
    return data, list(fds)


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("setup", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _file_actions(fds: dict[int, int | str]) -> list[FileAction]:
    """Open or duplicate descriptors onto fixed numbers; every source lies above every target (see ``_high``)."""
    actions: list[FileAction] = []
    for target, source in fds.items():
        if isinstance(source, str):
            actions.append((os.POSIX_SPAWN_OPEN, target, source, os.O_RDONLY, 0))
        else:
            actions.append((os.POSIX_SPAWN_DUP2, source, target))
    return actions


def _high(fd: int) -> int:
    """A duplicate of ``fd`` with a number above all that interpreters have fixed."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, runner.GO_FD + 1)
