"""The agent: the process on a node that runs the hub's tasks, one loop, one thread.

    hub --orders-->  Agent -> Lane -> Interpreters --tasks socket--> fresh interpreter
    hub <--reports-- Agent <- Lane <- Interpreters <--reports socket--'
                               Lane -> Programs --posix_spawn--> program

It is a sub-reaper: whatever a task leaves behind becomes its child, is found by ``strays``, and ends.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import msgspec

from worker_agent import bodies, directories, processes, protocol, spawning, store, task_files
from worker_agent.attempt import Attempt
from worker_agent.connection import Connection
from worker_agent.environments import Environments, make_setup
from worker_agent.lane import Lane
from worker_agent.looking import Looking
from worker_agent.loop import Loop
from worker_agent.memory import KernelKills, MemoryGuard
from worker_agent.offer import Offer
from worker_agent.pieces import Received, read_pieces
from worker_agent.places import Ledger
from worker_agent.programs import Programs
from worker_agent.recorder import Recorder
from worker_agent.scratch import Scratch
from worker_agent.session import NOTHING, AgentSession, Incoming
from worker_agent.strays import Strays, end_ranks
from worker_agent.stream_files import StreamFiles
from worker_agent.supervisor import scratch_place
from worker_agent.templates import Templates
from worker_agent.wire import Wire

#: Seconds after which the hub is told that a task has started: most small ones have ended by then.
ANNOUNCE = 0.005
#: Seconds that all our processes may take to end when we are fenced: less than the hub waits beyond our lease.
FENCE_PATIENCE = 5.0
#: Seconds that an agent which was told to leave takes to tell the hub, beyond the grace of its tasks.
LEAVE_PATIENCE = 5.0
#: Seconds before the end of its time at which an agent begins to leave; a tenth of its time, if that is shorter.
LAST_MOMENT = 10.0


class Agent:
    """All that an agent knows and does."""

    def __init__(
        self, connection: Connection, own: list[str], early: spawning.TemplateProcess | None, process: str,
        offer: Offer,
    ) -> None:  # fmt: skip
        """``own`` are directories for payloads if we do not see those of the session, else empty.

        ``early`` is a template that was started before we knew what for. ``process`` names our supervisor: the agent
        that it starts in the place of one that was killed has the same.
        """
        self.loop = Loop()
        self.templates = Templates(self.loop, early)
        #: the payloads that were sent to us, if we do not see the session's files
        self._received = Received(own) if own else None
        self._looking = Looking(self.loop, self.report)
        self.scratch = Scratch(self.loop, scratch_place(own or connection.stores, process), self._received)
        self.programs = Programs(self.loop, self._on_program_end, self.path_of, self.scratch)
        self.strays = Strays(self.programs, self._owns)
        self._connection = connection
        self._stores = own or connection.stores
        self._offer = offer
        self.ledger = Ledger(offer.pools)
        self._session = AgentSession(connection.session, self._hello, lambda: os.urandom(8).hex())
        self._wire = Wire(self.loop, self._session, connection)
        self._process = process
        self._supervisor = os.getppid()
        self._lanes: dict[int, Lane] = {}
        #: lanes that are to be closed when their last interpreter has left
        self._closing: set[int] = set()
        self._environments = Environments(self.loop, connection.launch, self._on_environment, self.give_up)
        #: orders for lanes whose environment is not ready
        self._held: list[protocol.Give | protocol.Take] = []
        #: those for which no interpreters can be had, as the hub knows
        self._given_up: set[int] = set()
        self._functions: dict[int, protocol.Payload] = {}
        self._attempts: dict[int, Attempt] = {}
        self._starting: list[Attempt] = []
        #: made when the first task has a limit
        self._memory: MemoryGuard[Attempt] | None = None
        self._kernel_kills = KernelKills()
        # The session is private, and what the files name may be read by others.
        self._streams = StreamFiles(hashlib.sha256(connection.session.encode()).hexdigest()[:12])
        self._stopping = False
        #: a signal has told us to leave; set by its handler, seen by the loop
        self._told_to_leave = False
        #: we give back what the hub sends
        self._leaving = False
        self._left = False
        #: what the hub is told at the end, if it is there
        self._reason = "it failed"
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            protocol.Welcome: lambda _: None,  # orders follow
            protocol.Prepare: self._on_prepare,
            protocol.Define: self._on_define,
            protocol.Forget: self._on_forget,
            protocol.Open: self._on_open,
            protocol.Give: self._on_give,
            protocol.Take: self._on_take,
            protocol.Close: self._on_close,
            protocol.Run: self._on_run,
            protocol.Recall: self._on_recall,
            protocol.Kill: self._on_kill,
            protocol.Stop: self._on_stop,
            protocol.Piece: self._on_piece,
            protocol.Drop: self._on_drop,
            protocol.Look: self._looking.look,
            protocol.Sweep: self._on_sweep,
        }

    # --- life ---------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the hub says so, the client is gone, or a signal comes."""
        self._watch_client()
        self._watch_children()
        self._watch_time()
        wire = self._wire
        wire.connect()
        try:
            while not self._left:
                # sending may have eaten the descriptor's signal
                self.loop.run_once(wait=not wire.has_mail(), until=self._session.due())
                wire.receive(self._take)
                self._take(self._session.tick(time.monotonic()))
                if wire.endpoint and self._session.should_dial(time.monotonic()):
                    wire.dial_again()
                wire.flush(gather=self._attempts != {})
        finally:
            self._end_everything()

    def _hello(self, name: str) -> protocol.Hello:
        invited = not self._connection.client_pid  # the others have the client's own: to look it up takes a while
        return protocol.Hello(
            launch=self._connection.launch, process=self._process, name=name, host=socket.gethostname(),
            pid=os.getpid(), python=sys.version.split()[0], pools=self._offer.pools, group=self._offer.group,
            remaining=self._offer.remaining,
            cloudpickle=processes.version_of("cloudpickle") if invited else "",
            shares=self._received is None, missing=[each for each in self._connection.imports if not _is_here(each)],
            sees_cwd=_sees(self._connection.cwd, self._connection.cwd_inode),
        )  # fmt: skip

    def _watch_client(self) -> None:
        """End when the client process ends, however it ends: its pidfd becomes readable."""
        pid = self._connection.client_pid
        if not pid:
            return  # it is elsewhere: the lease tells
        pidfd = os.pidfd_open(pid)
        if processes.start_time(pid) != self._connection.client_start:
            raise ProcessLookupError(f"the client (process {pid}) has ended")
        self.loop.watch(pidfd, lambda: self._leave(""))

    def _watch_children(self) -> None:
        readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._note_sigterm())
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            signal.signal(number, lambda *_: None)  # to all of a group: our supervisor hears them too, and tells us
        self.loop.watch(readable, lambda: self._on_signal(readable))

    def _note_sigterm(self) -> None:
        self._told_to_leave = True

    def _on_signal(self, fd: int) -> None:
        os.read(fd, 4096)
        self._reap()
        if self._told_to_leave and os.getppid() != self._supervisor:
            self._leave("its supervisor was killed")  # the signal is the kernel's: see supervisor.py
        elif self._told_to_leave and not self._leaving:
            self._give_back_everything("it was told to (SIGTERM)")

    def _watch_time(self) -> None:
        """Leave a moment before who has started us ends us."""
        left = self._offer.remaining
        if left is not None:
            self.loop.call_in(left - min(LAST_MOMENT, left / 10), self._on_time_over)

    def _on_time_over(self) -> None:
        if not self._leaving:
            self._give_back_everything("its time is over")

    def _give_back_everything(self, why: str) -> None:
        """Leave, but in peace: nothing new starts, what runs may end within its grace, the rest others run."""
        self._stopping = self._leaving = True
        self.report(protocol.Leaving(why))
        attempts = list(self._attempts.values())
        for attempt in attempts:
            self._lanes[attempt.order.lane].give_back(attempt)
        grace = max((attempt.settings.grace for attempt in attempts), default=0.0)
        self.loop.call_in(grace + LEAVE_PATIENCE, lambda: self._leave("it was told to, and could not end in peace"))
        self._leave_if_done()

    def _leave(self, reason: str) -> None:
        """Leave the loop. Without a reason the hub is told nothing: it is not there."""
        self._left, self._reason = True, reason

    def _end_everything(self) -> None:
        """Nothing that was started here remains; then the hub may know."""
        for lane in self._lanes.values():
            lane.close()
        self.templates.close()
        self._end_processes()
        self.scratch.forget_all(FENCE_PATIENCE)
        if self._memory is not None:
            self._memory.close()
        self._streams.close()
        if self._reason and self._session.epoch:
            self.report(protocol.Bye(self._reason))
            self._wire.flush_now()
        self._wire.close()
        if self._received is not None:
            directories.remove(self._stores)

    # --- to the hub and from it ---------------------------------------------------------------------------------------

    def report(self, report: protocol.Report) -> None:
        """Send to the hub, with the next frame."""
        if self._received is not None and isinstance(report, protocol.Finished):
            self._report_end(report)
        else:
            self._session.report(report)
        self._wire.has_news = True

    def _report_end(self, finished: protocol.Finished) -> None:
        """The files of an outcome, and of a program, go before it, in pieces."""
        if finished.outputs is not None:
            self._session.report_bulk(self._send_outputs(finished, finished.outputs))
        elif finished.body[:1] in bodies.WITH_FILES and finished.end in (protocol.VALUE, protocol.ERROR):
            self._session.report_bulk(self._send_outcome(finished))
        else:
            self._session.report(finished)

    def _send_outcome(self, finished: protocol.Finished) -> Iterator[protocol.Piece]:
        try:
            finished.body = bodies.whole(finished.body)
            for path, size in bodies.files_of(finished.body):
                yield from read_pieces(path, size)
                store.remove(path)
        except OSError as error:  # somebody has removed them
            finished.end, finished.body = protocol.ERROR, bodies.dump_error(error, [])
        self._session.report(finished)

    def _send_outputs(self, finished: protocol.Finished, outputs: protocol.Tree) -> Iterator[protocol.Piece]:
        try:
            for file in outputs.files:
                yield from read_pieces(file.piece, file.size, on_disk=True)
                store.remove(file.piece)
        except OSError as error:
            task_files.discard(outputs)
            finished.end = protocol.NO_OUTPUT
            finished.body = msgspec.json.encode(protocol.Uncollected(text=f"its outputs cannot be sent: {error}"))
        self._session.report(finished)

    def announce_soon(self, attempt: Attempt) -> None:
        """The attempt has started; the hub is told if it does not end within ``ANNOUNCE`` seconds."""
        if not self._starting:
            self.loop.call_in(ANNOUNCE, self._announce)
        self._starting.append(attempt)

    def _announce(self) -> None:
        starting, self._starting = self._starting, []
        for attempt in starting:
            attempt.announce()

    def _take(self, incoming: Incoming) -> None:
        """Do what the hub wants."""
        if incoming is NOTHING:
            return
        if incoming.refused:
            raise SystemExit(f"this agent leaves: {incoming.refused}")
        if incoming.fenced:
            self._start_over()
        for order in incoming.orders:
            self._handlers[type(order)](order)
        self.start_ready()

    def _start_over(self) -> None:
        """Our tasks were given to others, or are about to be: nothing of them may go on here."""
        for attempt in self._attempts.values():
            attempt.stop_timers()
        for lane in self._lanes.values():
            lane.close()
        self.templates.close()
        self.programs.forget_all()
        self._end_processes()
        self._looking.forget_all()
        self.scratch.forget_all(FENCE_PATIENCE)
        if self._memory is not None:
            self._memory.release_all()
        self._lanes.clear()
        self._closing.clear()
        self._attempts.clear()
        self._starting.clear()
        self._environments.clear()
        self._held.clear()
        self._given_up.clear()
        self._functions.clear()
        if self._received is not None:
            self._received.clear()
            directories.empty(self._stores)
        if self._leaving:
            self._leave("")

    def _end_processes(self) -> None:
        processes.end_all_below(FENCE_PATIENCE)

    # --- orders -------------------------------------------------------------------------------------------------------

    def _on_prepare(self, order: protocol.Prepare) -> None:
        self._environments.add(order)

    def _on_define(self, order: protocol.Define) -> None:
        self._functions[order.function] = order.body

    def _on_forget(self, order: protocol.Forget) -> None:
        for function in order.functions:
            self._functions.pop(function, None)

    def _on_open(self, order: protocol.Open) -> None:
        environment = self._environments[order.environment]
        if self._environments.is_ready(order.environment):
            self.templates.expect(environment)
        setup = make_setup(environment, self._stores)
        self._lanes[order.lane] = Lane(self, order, environment, setup)

    def _on_environment(self, environment: protocol.Prepare) -> None:
        """It is ready: its lanes can work."""
        for lane in self._lanes.values():
            if lane.environment.environment == environment.environment:
                lane.enter(environment, make_setup(environment, self._stores))
        held, self._held = self._held, []
        for order in held:
            if order.lane in self._lanes:
                self._handlers[type(order)](order)

    def _on_give(self, order: protocol.Give) -> None:
        lane = self._lanes[order.lane]
        if self._environments.is_ready(lane.environment.environment):
            lane.give(order.places)
        else:
            self._held.append(order)

    def _on_take(self, order: protocol.Take) -> None:
        lane = self._lanes[order.lane]
        if self._environments.is_ready(lane.environment.environment):
            lane.take(order.count)
        else:
            self._held.append(order)

    def _on_close(self, order: protocol.Close) -> None:
        self._closing.add(order.lane)
        self._close_idle_lanes()

    def _close_idle_lanes(self) -> None:
        for number in [number for number in self._closing if not self._lanes[number].busy]:
            self._closing.discard(number)
            self._lanes.pop(number).close()

    def _on_run(self, order: protocol.Run) -> None:
        attempt = Attempt(order, self)
        stream = attempt.settings.stream
        if stream is not None:
            attempt.recorder = Recorder(self._streams, order, stream, partial(self._on_unrecorded, attempt))
        if self._leaving:
            attempt.finish(protocol.RETURNED)
            return
        try:
            self._check_payloads(order.body)
        except OSError as error:
            attempt.finish(protocol.ERROR, body=bodies.dump_error(error, []))
            return
        self._attempts[order.task] = attempt
        self._lanes[order.lane].queue.append(attempt)

    def _check_payloads(self, body: protocol.Call | protocol.Command) -> None:
        """Raises OSError if one that was sent to us could not be stored."""
        if self._received is None:
            return
        if isinstance(body, protocol.Command):
            needed: list[protocol.Payload | None] = [body.stdin]
        else:
            files = [protocol.Stored(*file) for result in body.inputs for file in bodies.files_of(result)]
            needed = [body.args, self._functions[body.function], *body.buffers, *files]
        for payload in needed:
            if isinstance(payload, protocol.Stored):
                self.path_of(payload)

    def _on_recall(self, order: protocol.Recall) -> None:
        attempt = self._current(order.task, order.attempt)
        given_back = attempt is not None and self._lanes[attempt.order.lane].take_back(attempt)
        self.report(protocol.Recalled(order.task, order.attempt, given_back))

    def _on_kill(self, order: protocol.Kill) -> None:
        attempt = self._current(order.task, order.attempt)
        if attempt is not None:
            self._lanes[attempt.order.lane].end(attempt, protocol.KILLED, order.signal, order.grace)

    def _current(self, task: int, number: int) -> Attempt | None:
        attempt = self._attempts.get(task)
        return attempt if attempt is not None and attempt.order.attempt == number else None

    def _on_piece(self, order: protocol.Piece) -> None:
        if self._received is not None:
            self._received.receive(order)
            self._session.acknowledge_now(time.monotonic())
            self._wire.has_news = True

    def _on_drop(self, order: protocol.Drop) -> None:
        if self._received is not None:
            for path in order.paths:
                self._received.remove(path)

    def _on_sweep(self, order: protocol.Sweep) -> None:
        end_ranks(order.marks)

    def _on_stop(self, order: protocol.Stop) -> None:
        self._stopping = True
        for attempt in list(self._attempts.values()):
            self._lanes[attempt.order.lane].end(attempt, protocol.KILLED, order.signal, order.grace)
        self._leave_if_done()

    def _leave_if_done(self) -> None:
        idle = not self._attempts and not self._session.has_bulk
        if not self._stopping or not idle or any(lane.busy for lane in self._lanes.values()):
            return
        if not self._leaving:
            self._leave("the hub said stop")
        elif self._session.epoch and self._session.said_all:
            self._leave("it was told to")

    # --- what lanes need ----------------------------------------------------------------------------------------------

    def payload(self, function: int) -> protocol.Payload:
        """The pickle of a function that was defined."""
        return self._functions[function]

    def path_of(self, stored: protocol.Stored) -> str:
        """The file of a payload on this node. Raises OSError if it is not here."""
        return stored.path if self._received is None else self._received.path(stored.path, stored.size)

    def start_ready(self) -> None:
        """Let every lane start what it can."""
        if not self._session.may_start(time.monotonic()):
            return
        if self._closing:
            self._close_idle_lanes()
        for lane in self._lanes.values():
            if lane.waits:
                lane.start_ready()
        self._leave_if_done()

    def give_up(self, report: protocol.Unprepared) -> None:
        """No interpreters can be had for an environment. The hub hears it once; lanes may find out one by one."""
        for lane in self._lanes.values():
            if lane.environment.environment == report.environment:
                lane.forget_queue()
        self.start_ready()
        if report.environment not in self._given_up:
            self._given_up.add(report.environment)
            self.report(report)

    def forget(self, attempt: Attempt) -> None:
        """The attempt has ended, or is not to start here; its process may still be leaving."""
        if self._attempts.get(attempt.order.task) is attempt:
            del self._attempts[attempt.order.task]

    # --- stream files -------------------------------------------------------------------------------------------------

    def _on_unrecorded(self, attempt: Attempt) -> None:
        """Its output cannot be kept: it is to end, but not in the middle of what is going on with it."""
        if self._attempts.get(attempt.task) is attempt:
            self.loop.call_in(0.0, partial(self._end_unrecorded, attempt))
        elif attempt.recorder is not None:
            text = f"what task {attempt.task} prints after its end is lost: {attempt.recorder.failure}"
            self.report(protocol.Warn(text))

    def _end_unrecorded(self, attempt: Attempt) -> None:
        if self._attempts.get(attempt.task) is attempt:
            self._lanes[attempt.order.lane].end(attempt, protocol.ERROR, signal.SIGTERM, attempt.settings.grace)

    # --- memory -------------------------------------------------------------------------------------------------------

    def guard_memory(self, attempt: Attempt, limit: int, marks: list[str]) -> None:
        """End an attempt that has more bytes than that. Its orphans are known by the ``marks``, if there are any."""
        if self._memory is None:
            self._memory = MemoryGuard(self.loop, self._on_memory, name=self._process, top=self._supervisor)
        self._memory.guard(attempt, attempt.pid, limit, marks)

    def _on_memory(self, attempt: Attempt, _: int) -> None:
        self._lanes[attempt.order.lane].end(attempt, protocol.OUT_OF_MEMORY, signal.SIGKILL, 0.0)

    def release_memory(self, attempt: Attempt, killed: bool) -> protocol.Memory | None:
        """Its memory is not guarded any more; what was seen, if it had too much. ``killed``: by who knows whom."""
        seen = self._memory.release(attempt) if self._memory is not None else None
        if seen is not None and seen.by:
            return protocol.Memory(seen.peak, seen.limit, seen.by)
        if killed and self._kernel_kills.are_more():
            return protocol.Memory(seen.peak if seen else 0, seen.limit if seen else 0, "kernel")
        return None

    # --- processes ----------------------------------------------------------------------------------------------------

    def _on_program_end(self, attempt: Attempt) -> None:
        self.strays.kill()
        self._lanes[attempt.order.lane].on_free(attempt)

    def _reap(self) -> None:
        """Everything that ended."""
        for pid, status, used in processes.reap_children():
            self._on_reaped(pid, status, protocol.Usage(used.ru_utime, used.ru_stime, used.ru_maxrss * 1024))

    def _on_reaped(self, pid: int, status: int, usage: protocol.Usage) -> None:
        if pid in self.programs:
            self.programs.ended(pid, os.waitstatus_to_exitcode(status), usage)
            return
        if self.templates.owns(pid):
            self.templates.reaped(pid, status)
            return
        if self._environments.owns(pid):
            self._environments.reaped(pid, status)
            return
        for lane in self._lanes.values():
            if lane.owns(pid):
                lane.reaped(pid, status, usage)
                return
        self.strays.kill()  # what it had started is our child now

    def _owns(self, pid: int) -> bool:
        ours = pid in self.programs or self.templates.owns(pid) or self._environments.owns(pid)
        return ours or any(lane.owns(pid) for lane in self._lanes.values())


def _sees(directory: str, inode: int) -> bool:
    """Whether it is here what the client has there. On a file system that both share it has the same inode."""
    try:
        return not directory or os.stat(directory).st_ino == inode
    except OSError:
        return False


def _is_here(module: str) -> bool:
    """Whether a module can be imported, by its first name: to look further would import that."""
    return find_spec(module.partition(".")[0]) is not None
