"""The interpreters of one lane: how many there are, which task each of them runs, and how they end.

All interpreters of a lane read tasks from one socket and write reports to one other (``mailbox``), so that an idle one
takes the next task without asking us. They are forked from their environment's template, or executed (``source``).

    fresh (max_tasks 1, fork)   idle children are forked ahead, as many as the lane is wide
    otherwise                   interpreters are started when there is a task for them, up to the lane's width
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Protocol

from worker_agent import channel, processes, protocol, runner, spawning
from worker_agent.attempt import Attempt
from worker_agent.child import EXIT_GRACE, Child
from worker_agent.loop import Loop
from worker_agent.mailbox import Mailbox
from worker_agent.pipes import Pipe
from worker_agent.pools import Place
from worker_agent.source import Source
from worker_agent.task_variables import cpus_of
from worker_agent.templates import FAILURES_ALLOWED, Templates

#: Seconds until a task that an interpreter must have taken into its death is given up.
VANISHED_GRACE = 1.0
#: Work, in seconds, that is offered to reused interpreters beyond what they run.
LOOK_AHEAD = 0.002
LOOK_AHEAD_TASKS = 128


class Owner(Protocol):
    """What the interpreters tell their lane."""

    def on_started(self, attempt: Attempt) -> None:
        """A task runs."""

    def on_result(self, attempt: Attempt, ended: channel.Ended) -> None:
        """A task has an outcome."""

    def on_free(self, attempt: Attempt) -> None:
        """What a task occupied is free again."""

    def take_place(self) -> Place | None:
        """A place for an interpreter that is kept; None: there is none now."""

    def release_place(self, place: Place) -> None:
        """The interpreter is gone."""

    def place_variables(self, place: Place) -> dict[str, str]:
        """What a task sees of a place."""

    def on_lost(self, attempt: Attempt) -> None:
        """A task has ended with its template. What it occupied is free; nothing is to start there, yet."""

    def on_returned(self, attempt: Attempt) -> None:
        """The task was offered, and nobody took it."""

    def on_room(self) -> None:
        """Places may have become free otherwise."""

    def on_crash(self) -> None:
        """An interpreter did not end by itself: what it had started is the agent's child now, if it lives."""

    def on_orphans(self) -> None:
        """The interpreters of a template that died were killed: none of their tasks is over before they have ended."""

    def on_late_crash(self, attempt: Attempt, code: int) -> None:
        """An interpreter crashed after it had reported the end of its last task."""

    def on_unprepared(self, text: str, error: bytes, initializer: bool) -> None:
        """There will be no interpreters."""


class Interpreters:
    """The interpreters of one lane."""

    def __init__(
        self, loop: Loop, environment: protocol.Prepare, setup: runner.Setup, variables: Mapping[str, str],
        owner: Owner, templates: Templates,
    ) -> None:  # fmt: skip
        """``variables`` are the lane's, beyond the environment's. Raises OSError: there is no python."""
        self.variables = variables
        self._loop = loop
        self._environment = environment
        self._setup = setup
        self._owner = owner
        self._children: dict[int, Child] = {}
        #: interpreters that the template was told to fork, and has not
        self._requested = 0
        #: interpreters that run a task, or have run their last one and are leaving
        self._busy = 0
        #: interpreters that were told to leave
        self._retiring = 0
        #: where interpreters are about to be that were ordered
        self._promised: deque[Place] = deque()
        self._failures = 0
        self._duration = 0.0
        self._closed = False
        self.width = 0
        #: there was no place for an interpreter that is to be kept
        self.lacks_place = False
        self._source = Source(environment, setup, self, templates)
        self.mailbox = self._open_mailbox()

    def _open_mailbox(self) -> Mailbox:
        return Mailbox(
            self._loop, spawning.Queues(), self._setup.stores, self._on_started, self._on_ended, self._on_broken
        )

    @property
    def queues(self) -> spawning.Queues:
        """Those that the interpreters share."""
        return self.mailbox.queues

    # --- processes ----------------------------------------------------------------------------------------------------

    def adopt(self, pid: int, fds: list[int]) -> None:
        """An interpreter was made, and these are its stdout, its stderr and, if it is kept, what lets it go on."""
        child = self._child(pid)
        if self._promised:
            child.place = self._promised.popleft()
        before = partial(self._learn_whose, child)
        for stream, fd in zip((1, 2), fds, strict=False):
            child.pipes.append(Pipe(self._loop, fd, partial(child.printed, stream), before))
        child.go = fds[2] if len(fds) > 2 else None
        if child.unheard is not None:
            ended, child.unheard = child.unheard, None
            self._on_ended(ended)

    def _learn_whose(self, child: Child) -> None:
        """It has printed: what interpreters have said decides which task's output that is."""
        if not self.fresh:
            self.mailbox.look()
        elif child.current is None and child.last is None:
            self.mailbox.read_starts()

    def _child(self, pid: int) -> Child:
        """It may speak before the template says that it has forked it; from then on it is not on the way any more."""
        child = self._children.get(pid)
        if child is None:
            child = self._children[pid] = Child(pid)
            self._requested = max(0, self._requested - 1)
        return child

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
            return self.width - self._busy - len(self.mailbox.offered)
        shortest = LOOK_AHEAD / LOOK_AHEAD_TASKS
        ahead = int(LOOK_AHEAD / max(shortest, self._duration)) if self._duration else 0
        return self.width * (1 + ahead) - self._busy - len(self.mailbox.offered)

    def resize(self, width: int) -> None:
        """Run ``width`` tasks at a time; idle interpreters beyond that leave."""
        self.width = width
        self._retire_surplus()
        self.provide()

    def take_back(self, attempt: Attempt) -> bool:
        """Take a task that was offered back; False if an interpreter has it."""
        found = self.mailbox.take_back(attempt)
        self._retire_surplus()
        return found

    def _retire_surplus(self) -> None:
        """Tell interpreters to leave that are more than places. If the socket is full: again with each task less."""
        if self.fresh:
            return
        surplus = len(self._children) + self._requested - self.width - self._retiring
        while surplus > 0 and self.mailbox.retire_one():
            self._retiring += 1
            surplus -= 1

    def provide(self) -> None:
        """Start interpreters for what is offered, or ahead of it."""
        if self._closed or self._failures >= FAILURES_ALLOWED:
            return
        idle = self._requested + len(self._children) - self._busy
        if self.fresh and self._environment.start == "fork":
            # the replacement of one that takes a task is forked now
            missing = self.width - (idle - len(self.mailbox.offered))
        else:
            live = self._requested + len(self._children)
            missing = min(len(self.mailbox.offered) - idle, self.width - live)
        if missing > 0:
            try:
                if self.fresh:
                    self._requested += self._source.make(missing)
                else:
                    self._make_in_places(missing)
            except OSError as error:
                self._fail_to_start(error)

    def _make_in_places(self, number: int) -> None:
        """Interpreters that are kept have a place for as long as they live."""
        for _ in range(number):
            place = self._owner.take_place()
            self.lacks_place = place is None
            if place is None:
                return
            self._promised.append(place)
            try:
                self._requested += self._source.make_in_place(self._owner.place_variables(place), cpus_of(place.shares))
            except OSError:
                self._owner.release_place(self._promised.pop())
                raise

    def _fail_to_start(self, error: OSError) -> None:
        text = f"the interpreter {self._environment.python[0]!r} cannot be started: {error.strerror or error}"
        self.refuse(text, b"")

    # --- reports ------------------------------------------------------------------------------------------------------

    def _on_started(self, started: channel.Started) -> None:
        child = self._children.get(started.pid)
        if child is not None and child.current is not None:
            child.taken.append(started)  # the end of what it ran before is still on the other queue
            return
        attempt = self.mailbox.offered.pop(started.task, None)
        if attempt is None:
            return  # user code found the socket
        child = child or self._child(started.pid)
        self._failures = 0
        self._source.note_start()
        self._busy += 1
        attempt.begin(started.pid, started.at)
        child.take(attempt)
        self._owner.on_started(attempt)

    def on_exited(self, exited: channel.Exited) -> None:
        """The template reaped one; what it had reported before that comes first."""
        self.mailbox.look()
        self.on_exit(exited.pid, exited.status, protocol.Usage(exited.user, exited.system, exited.max_rss))

    def _on_ended(self, ended: channel.Ended) -> None:
        child = self._child_that_ran(ended)
        if child is None:
            return
        attempt = child.current
        assert attempt is not None
        if ended.printed and not child.pipes:
            child.unheard = ended  # the template is about to hand over the pipes: see adopt
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
        self._go_on(child, ended)
        self._retire_surplus()
        if not ended.leaving:
            if child.doomed and child.current is None:
                end_by_force(child.pid)  # it survived its own kill; what its task has started may have as well
            self._owner.on_free(attempt)

    def _go_on(self, child: Child, ended: channel.Ended) -> None:
        """It has taken its next task already, or waits until its output is read."""
        if ended.next_task:
            self._on_started(channel.Started(ended.next_task, ended.next_attempt, ended.pid, ended.ended))
        elif child.taken:
            self._on_started(child.taken.pop(0))
        if ended.printed and child.go is not None:
            os.eventfd_write(child.go, 1)

    def _child_that_ran(self, ended: channel.Ended) -> Child | None:
        """Whose task it was; None: it is not known here (any more)."""
        child = self._children.get(ended.pid)
        if child is None or child.current is None:
            self.mailbox.read_starts()
            child = self._children.get(ended.pid)
        running = child.current if child is not None else None
        return child if running is not None and running.order.task == ended.task else None

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
        retired = self._count_retired(child) and code == 0
        if child.current is None and child.last is None and not retired:
            self._count_failure(child, code)
        if child.current is None and child.last is not None and code != 0 and not child.doomed:
            self._owner.on_late_crash(child.last, code)
        if child.current is not None:
            child.current.finish(protocol.EXITED, returncode=code, usage=usage)
        self._free_place_of(child)
        if self.mailbox.offered and self._may_have_taken_more(child, code):
            self._look_for_vanished()
        self.provide()

    def _free_place_of(self, child: Child) -> None:
        if child.place is not None:
            self._owner.release_place(child.place)
        attempt = child.current or (child.last if child.leaving is not None else None)
        if attempt is not None:
            self._owner.on_free(attempt)

    def _may_have_taken_more(self, child: Child, code: int) -> bool:
        """Whether it may have died with a task of which it had not said that it has it."""
        if self.fresh:
            return code != 0 and child.current is None and child.last is None
        return code != 0 or child.current is not None  # one that is kept takes its next task before it reports the last

    def _count_retired(self, child: Child) -> bool:
        """Whether it may have been told to leave. If it was not, it counts all the same: another one will be."""
        retired = self._retiring > 0 and child.current is None and child.leaving is None
        self._retiring -= retired
        return retired

    def _count_failure(self, child: Child, code: int) -> None:
        """An interpreter ended before it ran a task. If that goes on, there is no use in starting more."""
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
        """An interpreter died. Did it take a task along, before it could say so?"""
        missing = self.mailbox.taken()
        self._loop.call_in(VANISHED_GRACE, lambda: self._give_up(missing))

    def _give_up(self, missing: list[Attempt]) -> None:
        for attempt in missing:
            if self.mailbox.offered.get(attempt.task) is attempt:
                del self.mailbox.offered[attempt.task]
                attempt.finish(protocol.LOST, body=b"an interpreter was killed before it could start the task")
                self._owner.on_free(attempt)

    def _on_broken(self, broken: channel.Broken) -> None:
        if not self._may_be_broken(broken.pid):
            return  # user code found the socket
        self._refuse(broken.text, broken.error, initializer=not broken.preparing)

    def _may_be_broken(self, pid: int) -> bool:
        child = self._children.get(pid)
        if child is not None:
            return child.current is None and child.last is None
        return self._source.has_forked(pid)

    def refuse(self, text: str, error: bytes) -> None:
        """There will be no interpreters."""
        self._refuse(text, error, initializer=False)

    def _refuse(self, text: str, error: bytes, *, initializer: bool) -> None:
        self._failures = FAILURES_ALLOWED
        self._owner.on_unprepared(text, error, initializer)

    # --- ends ---------------------------------------------------------------------------------------------------------

    def owns(self, pid: int) -> bool:
        """Whether ``pid`` is one of the interpreters."""
        return pid in self._children

    def reaped(self, pid: int, status: int, usage: protocol.Usage) -> None:
        """A child of the agent ended that belongs here: an interpreter that was executed."""
        self.mailbox.look()
        self.on_exit(pid, status, usage)

    def look(self) -> None:
        """Read what interpreters have said."""
        self.mailbox.look()

    def lose(self) -> None:
        """The interpreters end with their template, before anything new is offered: they would take it.

        The attempts that end with them are not to blame and may run again. What none of them had taken goes back to the
        lane. What comes then has queues of its own: who still dies has the others.
        """
        for pid in self._children:
            end_by_force(pid)
        lost, returned = self.mailbox.withdraw()
        for child in self._children.values():
            child.close()
            lost += [each for each in (child.current, child.last if child.leaving else None) if each is not None]
        self.mailbox.close()
        for place in [*self._promised, *(child.place for child in self._children.values() if child.place is not None)]:
            self._owner.release_place(place)
        self._promised.clear()
        self._children.clear()
        self._busy = self._requested = self._retiring = 0
        self.mailbox = self._open_mailbox()
        for attempt in reversed(returned):
            self._owner.on_returned(attempt)
        self._owner.on_orphans()
        for attempt in lost:
            attempt.finish(protocol.LOST, body=b"the template interpreter died")
            self._owner.on_lost(attempt)

    def go_on(self) -> None:
        """There is another template."""
        self._owner.on_room()
        self.provide()

    @property
    def busy(self) -> bool:
        """Whether an interpreter runs a task, is leaving, or has taken a task and has not said so yet."""
        return self._busy > 0 or bool(self.mailbox.offered)

    def close(self) -> None:
        """No more tasks: idle interpreters end by themselves at the end of their sockets."""
        self._closed = True
        self._source.close()
        self.mailbox.close()
        for child in self._children.values():
            child.close()


def end_by_force(pid: int) -> None:
    """SIGKILL to a task's process, its group, and all that it started."""
    processes.kill_tree(pid, signal.SIGKILL)
    processes.kill_group(pid, signal.SIGKILL)
