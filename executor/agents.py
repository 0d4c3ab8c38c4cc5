"""The hub's agents: started here or invited, how they are reached, and what they say.

    hub --orders--> Worker --> core/members.py (numbers, echoes) --frames--> ROUTER --> agent
    hub <--Joined, Reported, Gone-- Agents <-- core/members.py <--frames-- ROUTER <-- agent

Used from the hub's thread only. It decides who may join; what a lost agent means for tasks decides the scheduler.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import select
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import zmq

from executor import local
from executor.core.members import Members
from executor.core.model import WorkerId
from executor.invitations import Invitations
from executor.sparing_log import SparingLog
from executor.strangers import Strangers, mismatch
from executor.worker import Event, Gone, Joined, Reported, Worker
from worker_agent import codec, protocol
from worker_agent.pools import Pool

log = logging.getLogger("executor")

#: Seconds that an agent may take from its start to its hello.
LAUNCH_PATIENCE = 60.0
#: Seconds until an agent that could not be started is tried again: descriptors or processes may be had by then.
LAUNCH_AGAIN = 1.0
#: Seconds that an agent may take to leave when all is done, beyond the grace of its tasks.
STOP_PATIENCE = 5.0
#: Bytes of the longest hello.
HELLO_LIMIT = 64 * 1024
#: Seconds that a registration over the network lasts at least: no lease is shorter.
STAY = 1.0
#: Of an epoch, so many bits are drawn.
_SECRET_BITS = 40


class Route(NamedTuple):
    """The way to an agent: its socket's identity, and the launch whose key it has ("" for one on our own socket)."""

    identity: bytes
    user: str


class Agents:
    """All agents of a hub."""

    def __init__(
        self, session: str, directories: local.SessionDirectories, epoll: select.epoll, lease: float
    ) -> None:
        self._session = session
        self._directories = directories
        self._epoll = epoll
        self._members = Members(session, lease, lambda number: number << _SECRET_BITS | secrets.randbits(_SECRET_BITS))
        self._workers: dict[WorkerId, Worker] = {}
        self._by_pidfd: dict[int, Worker] = {}
        self._ended: list[Worker] = []
        self._numbers = iter(range(1, 2**62)).__next__
        #: when to start agents that could not be started, and with which pools
        self._owed: list[tuple[float, list[Pool]]] = []
        self._log = SparingLog()
        self._strangers = Strangers()
        #: what was opened, to be closed in turn, though the next thing could not be opened
        self._opened = contextlib.ExitStack()

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._workers.values()))

    def __getitem__(self, worker: WorkerId) -> Worker:
        return self._workers[worker]

    def open(self, pools: Sequence[list[Pool]]) -> None:
        """Listen, and start an agent here for each of the lists of pools."""
        context = zmq.Context()
        self._opened.callback(context.term)
        self._socket = context.socket(zmq.ROUTER)
        self._opened.callback(self._socket.close)
        self.invitations = Invitations(context, self._session, self._directories, self._epoll)
        self._opened.callback(self.invitations.close)
        for option, value in ((zmq.LINGER, 0), (zmq.ROUTER_MANDATORY, 1), (zmq.SNDHWM, 0), (zmq.RCVHWM, 0)):
            self._socket.setsockopt(option, value)
        self._socket.bind(f"ipc://{self._directories.endpoint_path}")
        self._epoll.register(int(self._socket.getsockopt(zmq.FD)), select.EPOLLIN)
        for each in pools:
            self.launch(each)

    def launch(self, pools: list[Pool]) -> None:
        """Start an agent here. Raises OSError if that cannot be done."""
        launch = local.launch(self._session, self._directories, pools)
        worker = Worker(WorkerId(self._numbers()), launch, pools, time.monotonic())
        self._workers[worker.id] = worker
        self._by_pidfd[launch.pidfd] = worker
        self._epoll.register(launch.pidfd, select.EPOLLIN)

    def replace(self, pools: list[Pool]) -> None:
        """Start an agent in place of one that is gone, as soon as that can be done."""
        try:
            self.launch(pools)
        except OSError as error:
            self._log.warning("launch", "no agent can be started just now, it is tried again: %s", error)
            self._owed.append((time.monotonic() + LAUNCH_AGAIN, pools))

    def _replace_owed(self, now: float) -> None:
        owed, self._owed = self._owed, []
        for at, pools in owed:
            if now < at:
                self._owed.append((at, pools))
            else:
                self.replace(pools)

    # --- what they say ------------------------------------------------------------------------------------------------

    def has_mail(self) -> bool:
        """Whether :meth:`receive` has something that no descriptor announces."""
        local_mail = bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
        network = self.invitations.network
        return local_mail or (network is not None and network.has_mail())

    def on_ready(self, fd: int) -> None:
        """A descriptor is ready; if it is that of a process, this has ended."""
        if fd in self._by_pidfd:
            self._ended.append(self._by_pidfd[fd])

    def receive(self, now: float) -> Iterator[Event]:
        """What has happened."""
        yield from self._receive_frames(now)
        if self._owed:
            self._replace_owed(now)
        if self.invitations.network is not None:
            self.invitations.remove_used(now)
        while self._ended:
            yield self._on_end(self._ended.pop())
        for worker in self:
            if worker.launch is not None and worker.member is None and now - worker.started > LAUNCH_PATIENCE:
                worker.launch.kill()
        for member in self._members.silent(now):
            yield from self._on_silent(self._workers[member.worker], now)

    def _receive_frames(self, now: float) -> Iterator[Event]:
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            identity, data = self._socket.recv(), self._socket.recv()
            if self._socket.getsockopt(zmq.RCVMORE):  # what is left would be taken for the next message's beginning
                self._socket.recv_multipart()
                self._log.warning("parts", "a message of several parts was dropped")
                continue
            yield from self._on_data(Route(identity, ""), data, now)
        network = self.invitations.network
        if network is not None:
            network.answer_zap(now)
            for identity, user, data in network.receive():
                yield from self._on_data(Route(identity, user), data, now)

    def _on_data(self, route: Route, data: bytes, now: float) -> Iterator[Event]:
        try:
            frame = codec.decode_reports(data)
        except codec.ProtocolError as error:
            self._log.warning(f"garbled {route.user}", "a frame was dropped: %.300s", error)
            if isinstance(error, codec.OtherProtocol) and self._strangers.may_answer(route, "refusal", now):
                self._send(route, self._members.refuse("", str(error)))
            return
        if frame.session != self._session:
            self._log.warning(f"session {route.user}", "a frame of another session was dropped")
        elif frame.epoch == 0 and len(data) > HELLO_LIMIT:
            self._log.warning(f"long {route.user}", "a hello of %d bytes was dropped", len(data))
        elif frame.epoch == 0:
            if self._strangers.may_answer(route, "hello", now):
                yield from self._on_hello(route, frame, now)
        else:
            yield from self._on_frame(route, frame, now)

    def _on_frame(self, route: Route, frame: protocol.Reports, now: float) -> Iterator[Event]:
        known = self._members.of_epoch(frame.epoch)
        if known is not None and known.route.user != route.user:
            text = "a frame was dropped: its sender (launch %s) is not who has this epoch"
            self._log.warning(f"epoch {route.user}", text, route.user)
            return
        try:
            member, reports = self._members.receive(frame, route, now)
        except codec.ProtocolError as error:
            self._log.warning(f"garbled {route.user}", "a message was dropped: %.300s", error)
            return
        if member is None:
            if self._strangers.may_answer(route, "fence", now):
                self._send(route, self._members.fence(frame.epoch))
            return
        worker = self._workers[member.worker]
        if worker.transfers is not None and any(isinstance(report, protocol.Piece) for report in reports):
            member.link.acknowledge_now(now)  # or the next ones wait
        if reports:
            yield Reported(worker, reports)
        if worker.launch is None and any(isinstance(report, protocol.Bye) for report in reports):
            yield self._lose(worker, "it has left")

    def _on_hello(self, route: Route, frame: protocol.Reports, now: float) -> Iterator[Event]:
        hello = frame.messages[0] if frame.messages else None
        if not isinstance(hello, protocol.Hello):
            return
        member = self._members.named(hello.name)
        if member is not None:
            if member.route.user == route.user:
                self._send(route, self._members.welcome_again(member, frame.clock, now, leased=bool(route.user)))
            return
        earlier = self._members.of_process(hello.process)
        if earlier is not None and (earlier.route.user != route.user or self._members.is_late(hello, frame.clock)):
            return  # overtaken by the hello that counts, or no word of this process
        if earlier is not None and self._workers[earlier.worker].launch is None:
            if now < self._workers[earlier.worker].started + STAY:
                return  # no lease has run out: it is broken, and would come and go all the time
            yield self._lose(self._workers[earlier.worker], "it was out of contact")  # it has ended what it ran
        worker = self._place(hello, route)
        obstacle = self._obstacle(worker, hello, route, now)
        if worker is None or obstacle:
            text = "an agent on %.100s (process %d) was refused: %s"
            self._log.warning(f"refused {route.user} {obstacle}", text, hello.host, hello.pid, obstacle)
            self._send(route, self._members.refuse(hello.name, obstacle))
            return
        self._workers[worker.id] = worker
        leased = worker.launch is None
        worker.member, welcome = self._members.join(hello, worker.id, route, frame.clock, now, leased=leased)
        self._send(route, welcome)
        yield Joined(worker)

    def _place(self, hello: protocol.Hello, route: Route) -> Worker | None:
        """The worker that an agent becomes: one that was started here, or a new one that was invited."""
        if route.user:
            return Worker(WorkerId(self._numbers()), None, hello.pools, time.monotonic())
        started = (each for each in self if each.launch is not None and each.launch.id == hello.launch)
        return next(started, None)

    def _obstacle(self, worker: Worker | None, hello: protocol.Hello, route: Route, now: float) -> str:
        """Why an agent may not join; "" if it may."""
        if worker is None or (route.user and route.user != hello.launch):
            return "its launch is unknown"
        if worker.member is not None:
            return "another agent has joined with this launch"
        if difference := mismatch(hello):
            return difference
        network = self.invitations.network
        return network.may_join(hello.launch, hello.process, now) if route.user and network is not None else ""

    def _on_end(self, worker: Worker) -> Gone:
        """Its supervisor has ended, and with it all that it ran."""
        assert worker.launch is not None
        process = worker.launch.process
        worker.launch.wait(STOP_PATIENCE)
        where = f"{worker.host or 'this machine'} (process {process.pid})"
        text = worker.launch.log_tail()
        self._forget(worker)
        return Gone(worker, f"the agent on {where} ended with status {process.returncode}", text)

    def _on_silent(self, worker: Worker, now: float) -> Iterator[Event]:
        """One that was started here is ended, which is noticed; one elsewhere has ended its tasks, or will not."""
        assert worker.member is not None
        if worker.launch is None:
            yield self._lose(worker, f"nothing was heard of it for {worker.member.patience:g} s")
            return
        log.warning("the agent on %s (process %d) says nothing; it is ended", worker.host, worker.launch.process.pid)
        worker.member.heard = now
        worker.launch.kill()

    def _lose(self, worker: Worker, why: str) -> Gone:
        assert worker.member is not None
        hello = worker.member.hello
        self._forget(worker)
        return Gone(worker, f"the agent on {hello.host} (process {hello.pid}) is gone: {why}", "")

    def _forget(self, worker: Worker) -> None:
        del self._workers[worker.id]
        if worker.transfers is not None:
            worker.transfers.close()
        if worker.member is not None:
            self._members.remove(worker.member)
        if worker.launch is not None:
            self._epoll.unregister(worker.launch.pidfd)
            del self._by_pidfd[worker.launch.pidfd]
            worker.launch.close()

    def warn(self, worker: Worker, text: str) -> None:
        """What an agent wants to be in the log."""
        self._log.warning(f"warn {worker.id} {text[:100]}", "%.100s: %.500s", worker.host, text)

    # --- what they are told -------------------------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Send what is to be sent now."""
        for member in self._members:
            while (frame := self._members.take(member, now)) is not None:
                self._send(member.route, frame)

    def due(self) -> float | None:
        """When :meth:`flush` and :meth:`receive` have something to do, if nothing else happens."""
        times = [self._members.due(), self.invitations.due(), *(at for at, _ in self._owed)]
        due = min((time for time in times if time is not None), default=None)
        if any(worker.launch is not None and worker.member is None for worker in self):
            return min(due or time.monotonic() + 1.0, time.monotonic() + 1.0)
        return due

    def _send(self, route: Route, frame: bytes) -> None:
        if route.user:
            assert self.invitations.network is not None
            self.invitations.network.send(route.identity, frame)
            return
        try:
            self._socket.send(route.identity, zmq.SNDMORE)
            self._socket.send(frame)
        except zmq.ZMQError as error:
            log.debug("an agent cannot be reached: %s", error)  # what is not acknowledged is sent again

    # --- the end ------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """End them all by force, and what runs on them."""
        for worker in self:
            if worker.launch is None:
                continue
            if not worker.launch.wait(0):
                worker.launch.kill()
                worker.launch.wait(STOP_PATIENCE)
            worker.launch.close()
        self._workers.clear()

    def close(self) -> None:
        """Listen no more."""
        self._opened.close()
