"""The hub's listening end for agents on other machines, and who may use it.

Every machine of a cluster can reach this port, and so can every account there. Who wants in needs a key that was made
for the launch of an agent; all else is refused before it can send a byte to the hub.

    grant  --key, by a private way-->  agent  --handshake-->  answer_zap  --user id = launch-->  may_join (hello)

CURVE without a ZAP handler lets anybody in. The handler here is ours, in the hub's own loop: a thread for it may end.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq
from zmq.utils import z85

from executor import addresses
from executor.errors import ListenError, NetworkUnsafe
from executor.sparing_log import SparingLog
from worker_agent.dialing import COMMON_OPTIONS, MESSAGE_LIMIT, Attempt, agent_socket

log = logging.getLogger("executor")

#: Where libzmq looks for the handler, within a context.
ZAP_ENDPOINT = "inproc://zeromq.zap.01"
#: The first libzmq in which no stranger can overflow or block a CURVE server (CVE-2019-13132, CVE-2020-15166).
OLDEST_LIBZMQ = (4, 3, 3)
#: Connections that may wait to be accepted: the agents of a job start in the same second.
BACKLOG = 1024

_DOMAIN = b"hpc-executor"

Ports = int | tuple[int, int] | None


@dataclass(slots=True, eq=False)
class _Grant:
    """Who may join under a launch: as many processes as ``count``, the first hello of each before ``expires``."""

    count: int
    expires: float
    processes: set[str] = field(default_factory=set)


class Network:
    """A ROUTER with CURVE, its keys, and who may use it. Used from the hub's thread only."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        """Make the server's keys and the handler that is asked about each peer; nothing listens yet."""
        _check_library()
        self._context = context
        self._public, self._secret = zmq.curve_keypair()
        self._grants: dict[str, _Grant] = {}
        self._launch_of_key: dict[bytes, str] = {}
        #: the key with which we test ourselves: refused like any, but no news
        self._stranger = b""
        self._log = SparingLog()
        #: at which agents reach us, once we listen
        self.endpoints: list[str] = []
        self._router: zmq.Socket[Any] | None = None
        self._zap = context.socket(zmq.ROUTER)
        self._zap.setsockopt(zmq.LINGER, 0)
        try:
            self._zap.bind(ZAP_ENDPOINT)
        except zmq.ZMQError as error:
            self.close()
            raise NetworkUnsafe("this ZeroMQ context has another authenticator already") from error

    # --- listening ----------------------------------------------------------------------------------------------------

    def listen(self, host: str | None = None, port: Ports = None) -> list[str]:
        """Listen, and say at which endpoints agents can reach us. Raises ListenError.

        ``host`` is an address, a name or a network interface of this machine, ``"routable"`` for all addresses that
        others may reach, or ``"*"`` for all there are; by default the address on the way out. ``port`` is one, or the
        first and the last of a range; by default any that is free.
        """
        if self._router is None:
            router = self._make_router()
            try:
                self.endpoints = _bind_all(router, addresses.addresses_to_listen_on(host), port)
                if host == addresses.ROUTABLE:
                    self.endpoints.append(addresses.by_name(self.endpoints[0]))
            except BaseException:
                router.close()
                raise
            self._router = router
        return list(self.endpoints)

    def _make_router(self) -> zmq.Socket[Any]:
        router: zmq.Socket[Any] = self._context.socket(zmq.ROUTER)
        for option, value in COMMON_OPTIONS.items():
            router.setsockopt(option, value)
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.BACKLOG, BACKLOG)
        router.setsockopt(zmq.CURVE_SERVER, 1)
        router.setsockopt(zmq.CURVE_SECRETKEY, self._secret)
        router.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # or all are let in should the handler be missing
        return router

    @property
    def server_key(self) -> bytes:
        """The public key by which agents know us."""
        return self._public

    # --- who may ------------------------------------------------------------------------------------------------------

    def grant(self, launch: str, count: int, expires: float) -> tuple[bytes, bytes]:
        """A public and a secret key with which ``count`` agent processes may join, if they say hello in time."""
        if launch in self._grants:
            raise ValueError(f"launch {launch} has a key already")
        public, secret = zmq.curve_keypair()
        self._grants[launch] = _Grant(count, expires)
        self._launch_of_key[z85.decode(public)] = launch
        return public, secret

    def revoke(self, launch: str) -> None:
        """Nobody joins under this launch any more; those who have may stay and connect anew."""
        grant = self._grants.get(launch)
        if grant is not None:
            grant.expires = float("-inf")

    def open_until(self, launch: str) -> float:
        """Until when processes may join under this launch; -inf if no more may."""
        grant = self._grants.get(launch)
        return grant.expires if grant is not None and len(grant.processes) < grant.count else float("-inf")

    def may_join(self, launch: str, process: str, now: float) -> str:
        """Why this process may not join under the launch; empty if it may, and it counts from now on."""
        grant = self._grants.get(launch)
        if grant is None:
            return f"launch {launch} is unknown"
        if process in grant.processes:
            return ""
        if now > grant.expires:
            return f"launch {launch} has expired"
        if len(grant.processes) >= grant.count:
            return f"all agents of launch {launch} have joined already ({grant.count})"
        grant.processes.add(process)
        return ""

    def answer_zap(self, now: float) -> None:
        """Answer all handshakes that wait for whether they may go on."""
        while request := _receive(self._zap):
            parts = [frame.bytes for frame in request]
            try:
                launch = self._judge(parts, now)
            except Exception as error:  # whatever it is, it lets nobody in
                self._log.warning("judge", "connections cannot be judged: %r", error, exc_info=True)
                launch = ""
            code, text = (b"200", b"OK") if launch else (b"400", b"refused")
            self._zap.send_multipart([*parts[:4], code, text, launch.encode(), b""], zmq.NOBLOCK)

    def _judge(self, parts: Sequence[bytes], now: float) -> str:
        """The launch whose key the peer has shown to have; empty if it has none that counts."""
        _, _, _, _, domain, address, _, mechanism, *credentials = parts
        if mechanism != b"CURVE" or domain != _DOMAIN:
            return self._refuse(address, "without a key")
        launch = self._launch_of_key.get(credentials[0], "")
        if not launch:
            return self._refuse(address, "its key is unknown", quiet=credentials[0] == self._stranger)
        grant = self._grants[launch]
        if now > grant.expires and not grant.processes:
            return self._refuse(address, f"launch {launch} has expired")
        return launch

    def _refuse(self, address: bytes, why: str, quiet: bool = False) -> str:
        peer = address.decode("ascii", "replace")
        if not quiet:
            self._log.warning(f"{peer} {why}", "a connection from %s was refused: %s", peer, why)
        return ""

    # --- messages -----------------------------------------------------------------------------------------------------

    def receive(self) -> Iterator[tuple[bytes, str, bytes]]:
        """What has come: the connection's identity, the launch whose key it has, and the message."""
        while self._router is not None and (parts := _receive(self._router)):
            launch = str(parts[-1].get("User-Id"))
            if launch not in self._grants:
                self._log.warning(f"unknown {launch}", "a message of launch %s was dropped: there is none", launch)
            elif len(parts) != 2 or not len(parts[1]):
                self._log.warning(f"parts {launch}", "a message of launch %s was dropped: %d parts", launch, len(parts))
            else:
                yield parts[0].bytes, launch, parts[1].bytes

    def send(self, identity: bytes, data: bytes) -> bool:
        """Send a message; whether there is such a connection. Never waits."""
        if len(data) > MESSAGE_LIMIT:  # the other end would drop the connection, and nobody be told why
            raise ValueError(f"a message of {len(data)} bytes is longer than the limit of {MESSAGE_LIMIT}")
        if self._router is None:
            return False
        try:
            self._router.send_multipart([identity, data], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.EAGAIN):
                raise
            return False
        return True

    def fds(self) -> list[int]:
        """Descriptors that become readable when :meth:`has_mail` should be asked; after that, ask until it says no."""
        return [int(each.getsockopt(zmq.FD)) for each in self._sockets()]

    def has_mail(self) -> bool:
        """Whether there is a message or a handshake that waits."""
        return any(int(each.getsockopt(zmq.EVENTS)) & zmq.POLLIN for each in self._sockets())

    def _sockets(self) -> list[zmq.Socket[Any]]:
        return [each for each in (self._router, self._zap) if each is not None and not each.closed]

    # --- the proof, and the end ---------------------------------------------------------------------------------------

    def self_test(self, patience: float = 5.0) -> None:
        """Try to get in with a key that was given to nobody, and without one. Raises NetworkUnsafe if that works."""
        keys = zmq.curve_keypair()
        self._stranger = z85.decode(keys[0])
        ipv6 = "[" in self.listen()[0]
        stranger = agent_socket(self._context, self._public, *keys, ipv6=ipv6)
        bare = self._context.socket(zmq.DEALER)
        bare.setsockopt(zmq.IPV6, ipv6)
        with stranger, bare:
            for each in (stranger, bare):
                each.setsockopt(zmq.LINGER, 0)
            # without a key, the first words of both ends do not match; with one, it has to be the handler that says no
            self._prove_refusal(stranger, "with a random key", [zmq.Event.HANDSHAKE_FAILED_AUTH], patience)
            mismatch = [zmq.Event.HANDSHAKE_FAILED_PROTOCOL, zmq.Event.HANDSHAKE_FAILED_NO_DETAIL]
            self._prove_refusal(bare, "without a key", mismatch, patience)

    def _prove_refusal(self, peer: zmq.Socket[Any], how: str, proofs: list[zmq.Event], patience: float) -> None:
        endpoint = self.listen()[0]
        attempt = Attempt(peer, endpoint)
        try:
            outcome = self._watch(attempt, time.monotonic() + patience)
        finally:
            attempt.stop()
        if outcome not in proofs:
            what = "no answer" if outcome is None else outcome.name
            raise NetworkUnsafe(f"a connection {how} to {endpoint} should be refused, but had {what}")

    def _watch(self, attempt: Attempt, deadline: float) -> zmq.Event | None:
        poller = zmq.Poller()
        for each in (self._zap, attempt.monitor):
            poller.register(each, zmq.POLLIN)
        while (outcome := attempt.outcome()) is None and (left := deadline - time.monotonic()) > 0:
            poller.poll(int(left * 1000) + 1)
            self.answer_zap(time.monotonic())
        return outcome

    def close(self) -> None:
        """Stop listening, and forget all keys."""
        for each in self._sockets():
            each.close(linger=0)
        self._router = None
        self._public = self._secret = self._stranger = b""
        self._grants.clear()
        self._launch_of_key.clear()


def _check_library() -> None:
    if zmq.zmq_version_info() < OLDEST_LIBZMQ:
        oldest = ".".join(map(str, OLDEST_LIBZMQ))
        raise NetworkUnsafe(f"libzmq {zmq.zmq_version()} has known holes; {oldest} or later is needed")
    if not zmq.has("curve"):
        raise NetworkUnsafe("this libzmq was built without CURVE; the wheels of pyzmq have it")


def _receive(source: zmq.Socket[Any]) -> list[zmq.Frame]:
    """The next message, if there is one."""
    try:
        return [] if source.closed else source.recv_multipart(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return []


def _bind_all(router: zmq.Socket[Any], hosts: list[str], port: Ports) -> list[str]:
    """Bind to as many of the addresses as can be had, one at least; gives the endpoints for others."""
    endpoints, failures = [], []
    for host in hosts:
        try:
            number = _bind(router, host, port)
        except ListenError as error:
            failures.append(error)
        else:
            endpoints += [addresses.endpoint(each, number) for each in addresses.addresses_for_others(host)]
    if not endpoints:
        raise failures[0]
    for failure in failures:
        log.warning("agents cannot use an address of this machine: %s", failure)
    return endpoints


def _bind(router: zmq.Socket[Any], address: str, port: Ports) -> int:
    """Bind to a port as asked for, and say which."""
    router.setsockopt(zmq.IPV6, ":" in address)
    first, last = port if isinstance(port, tuple) else (port, port)
    numbers: Sequence[int | str] = ["*"] if first is None or last is None else range(first, last + 1)
    if first is not None and last is not None and not 0 < first <= last < 2**16:  # libzmq takes 70000 for 4464
        raise ListenError(f"ports from {first} to {last} make no sense: they are from 1 to 65535, the lower one first")
    for number in numbers:
        try:
            router.bind(addresses.endpoint(address, number))
        except zmq.ZMQError as error:
            if error.errno != errno.EADDRINUSE:
                raise ListenError(
                    f"cannot listen on {addresses.endpoint(address, number)}: {error.strerror}"
                ) from error
        else:
            bound: Any = router.getsockopt(zmq.LAST_ENDPOINT)
            return int(bound.rstrip(b"\0").rpartition(b":")[2])
    raise ListenError(f"all ports from {first} to {last} of {address} are in use; give a wider range, or no port")
