"""A lane on its agent: tasks of one environment and of equal needs, run one after the other in each of its places."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

from worker_agent import bodies, channel, processes, protocol, rank, runner, spawning, store, task_files
from worker_agent.amounts import MIB
from worker_agent.attempt import Attempt, State
from worker_agent.interpreters import Interpreters, end_by_force
from worker_agent.launchers import Ranks
from worker_agent.loop import Loop
from worker_agent.places import Ledger, Places
from worker_agent.pools import UNIT, Place
from worker_agent.programs import NotExecutable, Programs, Surroundings, task_marks
from worker_agent.scratch import Scratch
from worker_agent.strays import TASKS_PATIENCE, Strays, end_ranks
from worker_agent.task_variables import cpus_of, lane_variables, node_variables, rank_variables
from worker_agent.templates import Templates

#: Seconds after SIGKILL in which a process has to end; then its task has ended for the hub, and its place is lost.
UNKILLABLE = 10.0


class Host(Protocol):
    """What a lane needs of its agent."""

    loop: Loop
    ledger: Ledger
    programs: Programs
    scratch: Scratch
    strays: Strays
    templates: Templates

    def payload(self, function: int) -> protocol.Payload:
        """The function's pickle."""

    def path_of(self, stored: protocol.Stored) -> str:
        """The file of a payload on this node. Raises OSError if it is not here."""

    def start_ready(self) -> None:
        """A place is free: let every lane start what it can."""

    def report(self, report: protocol.Report) -> None:
        """To the hub."""

    def give_up(self, report: protocol.Unprepared) -> None:
        """To the hub, and to all lanes of that environment."""

    def forget(self, attempt: Attempt) -> None:
        """The attempt is not ours any more."""

    def guard_memory(self, attempt: Attempt, limit: int, marks: list[str]) -> None:
        """End an attempt that has more bytes than that. Its orphans are known by the ``marks``, if there are any."""


class Lane:
    """Starts the tasks of its queue as long as there is room."""

    def __init__(self, host: Host, order: protocol.Open, environment: protocol.Prepare, setup: runner.Setup) -> None:
        self.number = number = order.lane
        self.environment = environment
        self.queue: deque[Attempt] = deque()
        self.places = Places(host.ledger, lambda numbers: host.report(protocol.Freed(number, numbers)))
        self._order = order
        #: what its tasks see beyond the environment's variables
        self._variables: Mapping[str, str] = {}
        #: both, as the system takes them
        self._encoded: dict[bytes, bytes] = {}
        #: bytes that a task may have; 0: nothing was said
        self._memory = 0
        self._host = host
        self._pool: Interpreters | None = None
        self._setup = setup
        #: of each task, if it has some
        self._ranks: Ranks | None = None
        #: with the names of its nodes
        self._files: list[str] = []

    def enter(self, environment: protocol.Prepare, setup: runner.Setup) -> None:
        """Its environment is ready. There are no places before."""
        self.environment, self._setup = environment, setup

    def give(self, places: Sequence[Place]) -> None:
        """Further places; the first of them tells what its tasks see."""
        if not self._encoded:
            self._prepare(places[0])
        self.places.add(places)
        if not self._executes and self._pool is None:
            self._open_pool()
        if self._pool is not None:
            self._pool.resize(self.places.width)
        self.start_ready()

    def _prepare(self, place: Place) -> None:
        env = self.environment.env
        per_node = self._order.ranks // max(1, len(self._order.hosts))
        added = lane_variables(self._order.request, self._order.variant, place.shares, env, per_node)
        if self._order.hosts:
            added |= self._name_nodes(self._order.hosts)
        if self._order.ranks:
            added |= self._spread(self._order.ranks, self._order.hosts or [socket.gethostname()])
        self._variables = added
        self._encoded = {os.fsencode(name): os.fsencode(text) for name, text in {**env, **added}.items()}
        self._memory = sum(share.amount for share in place.shares if share.name == "memory") * MIB // UNIT

    def _name_nodes(self, hosts: list[str]) -> dict[str, str]:
        nodes = [host.partition(".")[0] for host in hosts]
        try:
            for names in (nodes, hosts):
                text = "".join(f"{name}\n" for name in names)
                self._files.append(store.store(text.encode(), self._setup.stores)[0])
        except OSError as error:
            self._host.report(protocol.Warn(f"the nodes of a task cannot be written to a file: {error}"))
            return {}
        return node_variables(len(hosts), *self._files)

    def _spread(self, number: int, hosts: list[str]) -> dict[str, str]:
        """Where the ranks of a task are."""
        self._ranks = ranks = Ranks(number, tuple(hosts))
        names = "".join(f"{host}\n" * ranks.per_host for host in hosts)
        try:
            self._files.append(store.store(names.encode(), self._setup.stores)[0])
        except OSError as error:
            self._host.report(protocol.Warn(f"the hosts of a task's ranks cannot be written to a file: {error}"))
            return {}
        self._ranks = Ranks(number, tuple(hosts), self._files[-1])
        return rank_variables(number)

    def take(self, count: int) -> None:
        """So many places are wanted back."""
        self.places.ask_back(count)
        if self._pool is not None:
            self._pool.resize(self.places.width)

    def _open_pool(self) -> None:
        try:
            self._pool = Interpreters(
                self._host.loop, self.environment, self._setup, self._variables, self, self._host.templates
            )
        except OSError as error:
            text = f"the interpreter {self.environment.python[0]} cannot be started: {os.strerror(error.errno or 0)}"
            self.on_unprepared(text, b"", False)

    @property
    def _executes(self) -> bool:
        """Whether each task is a process that we start, and not one of the interpreters that wait for tasks."""
        return self.environment.start in ("exec", "ranks")

    @property
    def waits(self) -> bool:
        """Whether it has tasks that could start if there were room."""
        return bool(self.queue) or (self._pool is not None and self._pool.lacks_place)

    def start_ready(self) -> None:
        """Start what the queue holds, as far as there is room."""
        if self._executes:
            while self.queue and (place := self.places.take()) is not None:
                if not self._start_program(self.queue.popleft(), place):
                    return
        elif self._pool is not None:
            self._offer_calls(self._pool)

    def _offer_calls(self, pool: Interpreters) -> None:
        room, offered = pool.room, False
        while self.queue and room > 0 and self._offer(self.queue[0], pool):
            self.queue.popleft()
            room -= 1
            offered = True
        if offered or pool.lacks_place:
            pool.provide()

    def _offer(self, attempt: Attempt, pool: Interpreters) -> bool:
        if attempt.settings.files is not None and not self._prepare_files(attempt):
            return True
        if not pool.fresh:
            return pool.mailbox.offer(attempt, self._task(attempt, {}, []))
        place = self.places.take()
        if place is None:
            return False
        if not pool.mailbox.offer(attempt, self._task(attempt, self.place_variables(place), cpus_of(place.shares))):
            self.places.release(place)
            return False
        attempt.place = place
        return True

    def _prepare_files(self, attempt: Attempt) -> bool:
        """Whether it can start; if not, it has ended."""
        try:
            self._host.scratch.prepare(attempt)
        except OSError as error:
            attempt.finish(protocol.ERROR, body=bodies.dump_error(error, []))
            return False
        return True

    def _task(self, attempt: Attempt, variables: dict[str, str], cpus: list[int]) -> channel.Task:
        call, settings = attempt.order.body, attempt.settings
        assert isinstance(call, protocol.Call)
        function = self._host.payload(call.function)
        buffers = [(self._host.path_of(stored), stored.size) for stored in call.buffers]
        env = {**task_files.variables(attempt.scratch), **settings.env} if attempt.scratch else settings.env
        return channel.Task(
            attempt.order.task, attempt.order.attempt, call.function, self._plain(function), self._plain(call.args),
            buffers,
            call.chunk, settings.cwd, env, settings.stdout, settings.stderr, variables, cpus, settings.pin,
            [self._here(body) for body in call.inputs],
        )  # fmt: skip

    def _here(self, body: bytes) -> bytes:
        """The result of another task, with its files as they are called on this node."""
        files = bodies.files_of(body)
        if not files:
            return body
        return bodies.with_files(body, [(self._host.path_of(protocol.Stored(*file)), file[1]) for file in files])

    def _plain(self, payload: protocol.Payload) -> bytes | tuple[str, int]:
        return payload if isinstance(payload, bytes) else (self._host.path_of(payload), payload.size)

    def _start_program(self, attempt: Attempt, place: Place) -> bool:
        """Whether to go on with the next one."""
        variables, cpus = self.place_variables(place), cpus_of(place.shares)
        try:
            self._host.scratch.prepare(attempt)
            where = Surroundings(self._encoded, self.environment.cwd, variables, cpus, self._ranks)
            self._host.programs.start(attempt, self._command(attempt), where, time.time())
        except OSError as error:
            self.places.release(place)
            if attempt.call_file:
                store.remove(attempt.call_file)
            if error.errno in (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM) and self.places.busy:
                self.queue.appendleft(attempt)  # the node is short of something: again when a task has ended
                return False
            self._host.scratch.clear(attempt)
            obstacle = b"" if isinstance(error, NotExecutable) else _obstacle(error)
            attempt.finish(protocol.NOT_STARTED, body=obstacle, returncode=error.errno)
        else:
            attempt.place = place
            self.on_started(attempt)
        return True

    def _command(self, attempt: Attempt) -> protocol.Command:
        """What to execute: the program, or, for a call on several ranks, what each of them is."""
        if isinstance(attempt.order.body, protocol.Command):
            return attempt.order.body
        attempt.call_file = rank.write_call(self._task(attempt, {}, []), self._setup, self._order.ranks)
        return protocol.Command([*self.environment.python, "-P", spawning.SCRIPT, "rank", attempt.call_file])

    # --- from the interpreters ----------------------------------------------------------------------------------------

    def on_started(self, attempt: Attempt) -> None:
        """The clock of its time limit runs, and its memory is looked after."""
        if self._memory and attempt.settings.enforce_memory:
            marks = task_marks(attempt.order) if self._pool is None else []
            self._host.guard_memory(attempt, self._memory, marks)
        limit = attempt.settings.time_limit
        if limit is not None:
            attempt.deadline = self._host.loop.call_in(
                limit, lambda: self.end(attempt, protocol.TIMED_OUT, signal.SIGTERM, attempt.settings.grace)
            )
        if attempt.pending_kill is not None:
            self.end(attempt, *attempt.pending_kill)

    def on_result(self, attempt: Attempt, ended: channel.Ended) -> None:
        """A call has an outcome; its process may still be leaving."""
        attempt.started, attempt.ended = ended.started, ended.ended
        usage = protocol.Usage(ended.user, ended.system, ended.max_rss)
        attempt.finish(protocol.VALUE if ended.ok else protocol.ERROR, body=ended.body, usage=usage)

    def on_free(self, attempt: Attempt) -> None:
        """The place of a task is free again."""
        if self._ranks is not None:
            end_ranks([*task_marks(attempt.order), f"{processes.AGENT}={self.environment.env[processes.AGENT]}"])
        self._leave_place(attempt)
        self._host.start_ready()

    def _leave_place(self, attempt: Attempt) -> None:
        place, attempt.place = attempt.place, None
        if place is not None:
            self.places.release(place)
        if attempt.scratch:
            self._host.scratch.clear(attempt)

    def take_place(self) -> Place | None:
        """For an interpreter that is kept."""
        return self.places.take()

    def release_place(self, place: Place) -> None:
        """An interpreter that was kept is gone."""
        self.places.release(place)

    def place_variables(self, place: Place) -> dict[str, str]:
        """What a task sees of a place."""
        return self.places.variables[place.number]

    def on_lost(self, attempt: Attempt) -> None:
        """Its place is free when the next template is there."""
        self._leave_place(attempt)

    def on_returned(self, attempt: Attempt) -> None:
        """It waits again, before the others."""
        attempt.state = State.QUEUED
        self.queue.appendleft(attempt)
        self._leave_place(attempt)

    def on_room(self) -> None:
        """Every lane may start what it can."""
        self._host.start_ready()

    def on_crash(self) -> None:
        """What the process had started is to end with it."""
        self._host.strays.kill()

    def on_orphans(self) -> None:
        """They are the agent's children now, and nobody's: those too of which the template has not told."""
        self._host.strays.kill(TASKS_PATIENCE)

    def on_late_crash(self, attempt: Attempt, code: int) -> None:
        """The task's outcome stands; that its interpreter could not leave in peace is for the log."""
        how = f"ended with status {code}" if code > 0 else f"was ended by signal {-code}"
        text = f"the interpreter of task {attempt.task} (process {attempt.pid}) {how} after the task's outcome was sent"
        self._host.report(protocol.Warn(text))

    def on_unprepared(self, text: str, error: bytes, initializer: bool) -> None:
        """The hub gives up all tasks of the environment, and so do we."""
        self._host.give_up(protocol.Unprepared(self.environment.environment, text, error, initializer))

    def forget_queue(self) -> None:
        """The tasks of the environment are given up."""
        while self.queue:
            self._host.forget(self.queue.popleft())

    # --- ends ---------------------------------------------------------------------------------------------------------

    def take_back(self, attempt: Attempt) -> bool:
        """Give the task up if it has not started."""
        if attempt.state is State.QUEUED:
            self.queue.remove(attempt)
        elif attempt.state is not State.OFFERED or self._pool is None or not self._pool.take_back(attempt):
            return False
        self._leave_place(attempt)
        attempt.state = State.ENDED
        self._host.forget(attempt)
        return True

    def give_back(self, attempt: Attempt) -> None:
        """The agent leaves: the task goes back to the hub, at once or, if it runs, when its grace is over."""
        if self.take_back(attempt):
            attempt.state = State.QUEUED
            attempt.finish(protocol.RETURNED)
        else:
            end = partial(self.end, attempt, protocol.RETURNED, signal.SIGKILL, 0.0)
            self._host.loop.call_in(attempt.settings.grace, end)

    def end(self, attempt: Attempt, reason: str, number: int, grace: float) -> None:
        """Signal the task's process group; after ``grace`` seconds kill it and all that it started."""
        if attempt.state is State.ENDED:
            return
        if self._host.scratch.collects(attempt):
            self._end_collecting(attempt, reason)
            return
        if attempt.end is not None:
            self._end_harder(attempt, number, grace)
            return
        if self._pool is not None:
            self._pool.mailbox.look()  # a reused interpreter may be at another task by now
        if attempt.end is None:
            self._end_now(attempt, reason, number, grace)

    def _end_collecting(self, attempt: Attempt, reason: str) -> None:
        """Nothing of it runs any more; what moves its outputs ends as soon as the disk lets it."""
        attempt.end = attempt.end or reason
        self._host.scratch.abandon(attempt)
        if attempt.grace is None:
            attempt.grace = self._host.loop.call_in(UNKILLABLE, partial(self._give_up_outputs, attempt))

    def _give_up_outputs(self, attempt: Attempt) -> None:
        text = f"the outputs of task {attempt.task} were given up, but the disk does not answer; its place is not free"
        self._host.report(protocol.Warn(text))
        attempt.finish(attempt.end or protocol.KILLED)

    def _end_now(self, attempt: Attempt, reason: str, number: int, grace: float) -> None:
        if attempt.state is State.ENDED:
            return
        if attempt.state is not State.RUNNING:
            self._end_unstarted(attempt, reason, number, grace)
            return
        attempt.end = reason
        processes.kill_group(attempt.pid, number)
        attempt.grace = self._host.loop.call_in(grace, partial(self._end_by_force, attempt))

    def _end_by_force(self, attempt: Attempt) -> None:
        end_by_force(attempt.pid)
        attempt.grace = self._host.loop.call_in(UNKILLABLE, partial(self._give_up, attempt))

    def _give_up(self, attempt: Attempt) -> None:
        """Its process will run no more, but does not end: it is in the kernel, and waits for a disk or the like."""
        text = f"the process {attempt.pid} of task {attempt.task} was killed and does not end; its place is not free"
        self._host.report(protocol.Warn(text))
        assert attempt.end is not None
        attempt.finish(attempt.end)

    def _end_harder(self, attempt: Attempt, number: int, grace: float) -> None:
        """It is being ended already: another signal, perhaps less patience."""
        processes.kill_group(attempt.pid, number)
        assert attempt.grace is not None
        if time.monotonic() + grace < attempt.grace.at:
            attempt.grace.cancel()
            attempt.grace = self._host.loop.call_in(grace, partial(self._end_by_force, attempt))

    def _end_unstarted(self, attempt: Attempt, reason: str, number: int, grace: float) -> None:
        if self.take_back(attempt):
            attempt.state = State.QUEUED
            attempt.finish(reason)
        else:
            # an interpreter has just taken it; its start is on the way to us
            attempt.pending_kill = (reason, number, grace)

    def owns(self, pid: int) -> bool:
        """Whether ``pid`` belongs to this lane's interpreters."""
        return self._pool is not None and self._pool.owns(pid)

    def reaped(self, pid: int, status: int, usage: protocol.Usage) -> None:
        """One of them ended."""
        assert self._pool is not None
        self._pool.reaped(pid, status, usage)

    @property
    def busy(self) -> bool:
        """Whether something of it still runs, if only exit functions."""
        return self._pool.busy if self._pool is not None else self.places.busy > 0

    def close(self) -> None:
        """No more tasks."""
        if self._pool is not None:
            self._pool.close()
        self.places.close()
        for file in self._files:
            store.remove(file)


def _obstacle(error: OSError) -> bytes:
    """What stood in the way, other than the program itself: its directory, a file for its streams, or its CPUs."""
    if not error.filename:
        return str(error.strerror).encode()
    path = str(error.filename)
    return f"{error.strerror}: {path!r} (a directory or a file that its options name)".encode(errors="replace")
