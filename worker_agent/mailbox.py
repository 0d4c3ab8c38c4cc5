"""The agent's side of a lane's queues: tasks are offered to the interpreters there, and what these say is read."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

from worker_agent import channel, descriptors, spawning
from worker_agent.attempt import Attempt, State
from worker_agent.loop import Loop, Timer

#: Seconds after which a task that was offered is asked after, if nothing else has shown that it started.
_ASK = 0.005


class Mailbox:
    """What goes to the interpreters that share these queues, and what comes from them."""

    def __init__(
        self, loop: Loop, queues: spawning.Queues, stores: list[str], on_started: Callable[[channel.Started], None],
        on_ended: Callable[[channel.Ended], None], on_broken: Callable[[channel.Broken], None],
    ) -> None:  # fmt: skip
        """``stores`` are directories for payloads; each message that is read goes to one of the functions."""
        self._loop = loop
        self.queues = queues
        self._stores = stores
        self._on_started, self._on_ended, self._on_broken = on_started, on_ended, on_broken
        #: tasks in the socket, and those that were taken from it by who has not said so yet
        self.offered: dict[int, Attempt] = {}
        self._buffer = bytearray(descriptors.MESSAGE_LIMIT)
        self._view = memoryview(self._buffer)
        #: due when the eldest offered task should have started
        self._asking: Timer | None = None
        #: whether starts wake us
        self._listens = False
        loop.watch(queues.reports.fileno(), self._read_reports)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def offer(self, attempt: Attempt, task: channel.Task) -> bool:
        """Give a task to whichever interpreter takes it; False if the socket is full for now."""
        try:
            self.queues.tasks.send(channel.pack_task(task, self._stores))
        except BlockingIOError:
            return False
        attempt.state = State.OFFERED
        self.offered[task.task] = attempt
        self._ask_later()
        return True

    def take_back(self, wanted: Attempt) -> bool:
        """Take a task out of the socket again; False if an interpreter has it."""
        found = False
        for message in self._waiting():
            if message != channel.RETIRE and channel.unpack_task_id(message) == wanted.task:
                found = True
                del self.offered[wanted.task]
                channel.drop_task(message)
            else:
                self.queues.tasks.send(message)
        return found

    def withdraw(self) -> tuple[list[Attempt], list[Attempt]]:
        """Take everything out of the socket. Gives the attempts that somebody had taken, and those that nobody had."""
        messages = [message for message in self._waiting() if message != channel.RETIRE]
        waiting = {channel.unpack_task_id(message) for message in messages}
        for message in messages:
            channel.drop_task(message)
        taken = [attempt for attempt in self.offered.values() if attempt.task not in waiting]
        return taken, [attempt for attempt in self.offered.values() if attempt.task in waiting]

    def taken(self) -> list[Attempt]:
        """The attempts that were offered and are not in the socket any more."""
        waiting = self._waiting()
        for message in waiting:
            self.queues.tasks.send(message)
        there = {channel.unpack_task_id(message) for message in waiting if message != channel.RETIRE}
        return [attempt for task, attempt in self.offered.items() if task not in there]

    def retire_one(self) -> bool:
        """Let one interpreter leave instead of taking a task; False if the socket is full for now."""
        try:
            self.queues.tasks.send(channel.RETIRE)
        except BlockingIOError:
            return False
        return True

    def _waiting(self) -> list[bytes]:
        messages = []
        try:
            while True:
                messages.append(self.queues.tasks_end.recv(descriptors.MESSAGE_LIMIT, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return messages

    # --- starts -------------------------------------------------------------------------------------------------------

    def _ask_later(self) -> None:
        """What has started is read when its end is; what goes on for longer than that is asked after."""
        if self._asking is None and not self._listens:
            eldest = next(iter(self.offered.values()))
            self._asking = self._loop.call_in(_ASK, partial(self._ask, eldest))

    def _ask(self, eldest: Attempt) -> None:
        self._asking = None
        self.read_starts()
        if self.offered.get(eldest.task) is eldest:
            self._listens = True
            self._loop.watch(self.queues.starts.fileno(), self._on_starts)
        elif self.offered:
            self._ask_later()

    def _on_starts(self) -> None:
        self.read_starts()
        if not self.offered:
            self._listen_no_more()

    def _listen_no_more(self) -> None:
        if self._listens:
            self._listens = False
            self._loop.unwatch(self.queues.starts.fileno())

    def read_starts(self) -> None:
        """Read which tasks interpreters have taken."""
        while self._receive(self.queues.starts):
            pass

    # --- all that is said ---------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Read what interpreters have said."""
        if self.queues.closed:
            return
        self.read_starts()
        self._read_reports()

    def _read_reports(self) -> None:
        while self._receive(self.queues.reports):
            pass

    def _receive(self, queue: socket.socket) -> bool:
        """Take one message from a queue; False if there is none."""
        try:
            size = queue.recv_into(self._buffer)
        except BlockingIOError:
            return False
        try:
            report = channel.unpack_report(self._view[:size])
        except channel.GarbledReport:
            return size > 0  # user code found the socket and wrote to it; its own task suffers at most
        if type(report) is channel.Ended:
            self._on_ended(report)
        elif type(report) is channel.Started:
            self._on_started(report)
        elif type(report) is channel.Broken:
            self._on_broken(report)
        return True

    def close(self) -> None:
        """No more of either; interpreters that wait for a task leave."""
        self._listen_no_more()
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        self._loop.unwatch(self.queues.reports.fileno())
        self.queues.close()
        self.offered.clear()
