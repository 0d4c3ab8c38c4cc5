"""The listening end for other machines and the agents' way to it, with real sockets on loopback: who gets in, who does
not, and that the service goes on whatever strangers do."""

from __future__ import annotations

import errno
import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
from zmq.utils import z85

from executor import addresses
from executor import network as module
from executor.errors import ListenError, NetworkUnsafe
from executor.network import Network
from executor.sparing_log import LINES_A_MINUTE, SparingLog
from worker_agent import dialing
from worker_agent.dialing import MESSAGE_LIMIT, Attempt, agent_socket, dial

pytestmark = pytest.mark.shared

Keys = tuple[bytes, bytes]
PATIENCE = 5.0
LATER = 1e12
SUCCEEDED, KEY_REFUSED = zmq.Event.HANDSHAKE_SUCCEEDED, zmq.Event.HANDSHAKE_FAILED_AUTH
MISMATCH = {zmq.Event.HANDSHAKE_FAILED_PROTOCOL, zmq.Event.HANDSHAKE_FAILED_NO_DETAIL}


class Service:
    """A hub that serves its network and nothing else, one step at a time, by its descriptors as a hub would."""

    def __init__(self, context: zmq.Context[Any], network: Network) -> None:
        self.context = context
        self.network = network
        self.endpoint = ""
        self.received: list[tuple[bytes, str, bytes]] = []
        self.serves_zap = True
        self._others: list[zmq.Socket[Any]] = []
        self._attempts: list[Attempt] = []

    def until(self, true: Callable[[], Any], *others: zmq.Socket[Any] | int, patience: float = PATIENCE) -> Any:
        """Serve until something is so; it is looked at again whenever one of the others has something to read."""
        end = time.monotonic() + patience
        poller = zmq.Poller()
        for each in (*self.network.fds(), *others):
            poller.register(each, zmq.POLLIN)
        while not (found := true()):
            if time.monotonic() > end:
                raise TimeoutError(f"waited {patience} s")
            if not self.step():
                poller.poll(50)
        return found

    def step(self) -> bool:
        """Take what has come; whether there was anything that can be taken."""
        if self.serves_zap:
            self.network.answer_zap(time.monotonic())
        self.received += self.network.receive()
        return self.serves_zap and self.network.has_mail()

    def keep(self, peer: zmq.Socket[Any]) -> zmq.Socket[Any]:
        peer.setsockopt(zmq.LINGER, 0)
        self._others.append(peer)
        return peer

    def attempt(self, peer: zmq.Socket[Any]) -> Attempt:
        self._attempts.append(Attempt(self.keep(peer), self.endpoint))
        return self._attempts[-1]

    def outcome(self, peer: zmq.Socket[Any], patience: float = PATIENCE) -> zmq.Event:
        """What becomes of a peer that connects."""
        attempt = self.attempt(peer)
        return self.until(attempt.outcome, attempt.monitor, patience=patience)

    def agent(self, keys: Keys, server_key: bytes = b"") -> zmq.Socket[Any]:
        return agent_socket(self.context, server_key or self.network.server_key, *keys)

    def joined(self, keys: Keys) -> zmq.Socket[Any]:
        peer = self.agent(keys)
        assert self.outcome(peer) is SUCCEEDED
        return peer

    def said(self, peer: zmq.Socket[Any], data: bytes) -> tuple[bytes, str]:
        """Let an agent say something; who it is and its user id, once it has come."""
        peer.send(data, zmq.NOBLOCK)
        found = self.until(lambda: [each for each in self.received if each[2] == data])
        self.received.clear()
        return found[0][:2]

    def exchange(self, keys: Keys) -> None:
        """A new agent with the right key comes, says something, has an answer, and leaves."""
        peer = self.joined(keys)
        identity, _ = self.said(peer, b"ping")
        assert self.network.send(identity, b"pong")
        assert self.until(lambda: peer.poll(0) and peer.recv(), peer) == b"pong"
        self.forget(peer)

    def forget(self, peer: zmq.Socket[Any]) -> None:
        for attempt in [each for each in self._attempts if each.socket is peer]:
            attempt.stop()
            self._attempts.remove(attempt)
        peer.close(linger=0)

    def close(self) -> None:
        for peer in self._others:
            self.forget(peer)
        self.network.close()


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    with zmq.Context() as context:
        yield context


@pytest.fixture
def network(context: zmq.Context[Any]) -> Iterator[Network]:
    network = Network(context)
    yield network
    network.close()


@pytest.fixture
def service(context: zmq.Context[Any], network: Network) -> Iterator[Service]:
    """It listens on loopback."""
    service = Service(context, network)
    (service.endpoint,) = network.listen("127.0.0.1")
    yield service
    service.close()


@pytest.fixture
def keys(service: Service) -> Keys:
    """Of a launch named "right", for any number of agents."""
    return service.network.grant("right", 1000, LATER)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---- those who may


def test_an_agent_with_the_right_key_gets_in_and_has_an_answer(service: Service, keys: Keys) -> None:
    service.exchange(keys)


def test_what_comes_says_under_which_launch(service: Service) -> None:
    first, second = (service.joined(service.network.grant(name, 1, LATER)) for name in ("one", "two"))
    one, two = service.said(first, b"I am two"), service.said(second, b"I am one")
    assert (one[1], two[1]) == ("one", "two")
    assert one[0] != two[0]


def test_a_message_of_the_greatest_length_comes(service: Service, keys: Keys) -> None:
    peer = service.joined(keys)
    identity, _ = service.said(peer, b"x" * MESSAGE_LIMIT)
    assert service.network.send(identity, b"y" * MESSAGE_LIMIT)
    assert len(service.until(lambda: peer.poll(0) and peer.recv(), peer)) == MESSAGE_LIMIT


def test_nothing_is_sent_to_who_is_not_there(service: Service, keys: Keys) -> None:
    assert not service.network.send(b"nobody", b"x")
    peer = service.joined(keys)
    identity, _ = service.said(peer, b"hello")
    service.forget(peer)
    service.until(lambda: not service.network.send(identity, b"x"))


def test_what_is_too_long_is_not_sent(service: Service) -> None:
    with pytest.raises(ValueError, match="longer than the limit"):
        service.network.send(b"nobody", b"x" * (MESSAGE_LIMIT + 1))


def test_many_messages_are_taken_at_one_waking(service: Service, keys: Keys) -> None:
    peer = service.joined(keys)
    for number in range(2000):
        peer.send(b"%d" % number)
    service.until(lambda: len(service.received) == 2000)
    assert [int(data) for _, _, data in service.received] == list(range(2000))
    assert not service.network.has_mail()


# ---- hello


def test_as_many_processes_may_join_as_were_granted(network: Network) -> None:
    network.grant("two", 2, LATER)
    assert [network.may_join("two", process, 0) for process in ("a", "b", "a")] == ["", "", ""]
    assert "joined already (2)" in network.may_join("two", "c", 0)
    assert network.may_join("two", "b", 0) == ""


def test_who_has_joined_may_come_again_after_the_expiry_and_nobody_else(network: Network) -> None:
    network.grant("early", 2, 10.0)
    assert network.may_join("early", "a", 10.0) == ""
    assert network.may_join("early", "a", 11.0) == ""
    assert "expired" in network.may_join("early", "b", 11.0)


def test_nobody_joins_under_a_launch_that_is_unknown_or_revoked_and_who_has_joined_stays(network: Network) -> None:
    network.revoke("x")
    assert "unknown" in network.may_join("x", "a", 0)
    network.grant("x", 2, LATER)
    assert network.may_join("x", "a", 0) == ""
    network.revoke("x")
    network.revoke("x")
    assert network.may_join("x", "a", 0) == ""
    assert "expired" in network.may_join("x", "b", 0)


def test_a_launch_has_one_key(network: Network) -> None:
    network.grant("x", 1, LATER)
    with pytest.raises(ValueError, match="already"):
        network.grant("x", 1, LATER)


# ---- those who may not


def _null(service: Service) -> zmq.Socket[Any]:
    return service.context.socket(zmq.DEALER)


def _plain(service: Service) -> zmq.Socket[Any]:
    peer = service.context.socket(zmq.DEALER)
    peer.plain_username, peer.plain_password = b"right", b"right"
    return peer


def _unknown_key(service: Service) -> zmq.Socket[Any]:
    return service.agent(zmq.curve_keypair())


def _another_secret(service: Service) -> zmq.Socket[Any]:
    public, _ = service.network.grant("another", 1, LATER)
    return service.agent((public, zmq.curve_keypair()[1]))


def _wrong_server_key(service: Service) -> zmq.Socket[Any]:
    return service.agent(service.network.grant("another", 1, LATER), zmq.curve_keypair()[0])


def _revoked(service: Service) -> zmq.Socket[Any]:
    keys = service.network.grant("another", 1, LATER)
    service.network.revoke("another")
    return service.agent(keys)


def _expired(service: Service) -> zmq.Socket[Any]:
    return service.agent(service.network.grant("another", 1, time.monotonic() - 0.001))


@pytest.mark.parametrize(
    ("stranger", "outcomes"),
    [
        (_null, MISMATCH),
        (_plain, MISMATCH),
        (_unknown_key, {KEY_REFUSED}),
        (_another_secret, MISMATCH),
        (_wrong_server_key, MISMATCH),
        (_revoked, {KEY_REFUSED}),
        (_expired, {KEY_REFUSED}),
    ],
)
def test_a_stranger_is_refused_and_the_service_goes_on(
    service: Service, keys: Keys, stranger: Callable[[Service], zmq.Socket[Any]], outcomes: set[zmq.Event]
) -> None:
    service.exchange(keys)
    assert service.outcome(stranger(service)) in outcomes
    service.exchange(keys)
    assert service.received == []


def test_who_has_joined_connects_again_after_the_expiry(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = service.network.grant("early", 1, time.monotonic() + 3600)
    assert service.network.may_join("early", "a", time.monotonic()) == ""
    service.network._grants["early"].expires = 0.0
    service.exchange(keys)


def test_a_launch_that_is_used_up_is_refused_at_its_hello(service: Service, keys: Keys) -> None:
    one = service.network.grant("one", 1, LATER)
    peers = service.joined(one), service.joined(one)
    answers = [
        service.network.may_join(service.said(peer, name.encode())[1], name, 0) for peer, name in zip(peers, "ab")
    ]
    assert answers[0] == ""
    assert "joined already" in answers[1]
    service.exchange(keys)


def test_what_comes_under_a_launch_that_there_is_not_is_dropped(
    service: Service, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody gets in without a launch; if somebody does, the hub does not take it for one of its own agents."""
    peer = service.joined(service.network.grant("another", 1, LATER))
    service.said(peer, b"before")
    del service.network._grants["another"]
    peer.send(b"after")
    service.until(lambda: warnings(caplog))
    service.exchange(keys)
    assert service.received == []
    assert "another was dropped: there is none" in warnings(caplog)[0]


def test_a_handler_that_raises_lets_nobody_in(
    service: Service, keys: Keys, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service.exchange(keys)
    with monkeypatch.context() as patch:
        patch.setattr(service.network, "_judge", lambda *_: 1 / 0)
        assert service.outcome(service.agent(keys)) is KEY_REFUSED
        assert service.outcome(_unknown_key(service)) is KEY_REFUSED
    service.exchange(keys)
    assert [line for line in warnings(caplog) if "cannot be judged" in line]


def test_a_request_that_makes_no_sense_is_refused(service: Service) -> None:
    asker = service.keep(service.context.socket(zmq.REQ))
    asker.connect(module.ZAP_ENDPOINT)
    short, no_key = [b"1.0", b"7"], [b"1.0", b"7", b"hpc-executor", b"a", b"", b"CURVE"]
    for request in (short, no_key, [*no_key, b"short"], [b"\xff"] * 9, [*short, *[b""] * 5]):
        asker.send_multipart(request)
        answer = service.until(lambda: asker.poll(0) and asker.recv_multipart(), asker)
        assert answer[2:] == [b"400", b"refused", b"", b""]


def test_the_right_key_for_another_domain_is_refused(service: Service, keys: Keys) -> None:
    asker = service.keep(service.context.socket(zmq.REQ))
    asker.connect(module.ZAP_ENDPOINT)
    codes = []
    for domain in (b"", b"*", b"hpc-executor"):
        asker.send_multipart([b"1.0", b"7", domain, b"a", b"", b"CURVE", z85.decode(keys[0])])
        codes.append(service.until(lambda: asker.poll(0) and asker.recv_multipart(), asker)[2])
    assert codes == [b"400", b"400", b"200"]


def test_the_limits_are_set(service: Service, keys: Keys) -> None:
    wanted = {
        zmq.MAXMSGSIZE: 4 * 2**20, zmq.HANDSHAKE_IVL: 10_000, zmq.HEARTBEAT_IVL: 5_000,
        zmq.HEARTBEAT_TIMEOUT: 15_000, zmq.SNDHWM: 0, zmq.RCVHWM: 0,
    }  # fmt: skip
    router, agent = service.network._router, service.keep(service.agent(keys))
    assert router is not None
    for each in (router, agent):
        assert {option: each.getsockopt(option) for option in wanted} == wanted
    assert router.getsockopt(zmq.BACKLOG) >= 1024


def test_with_the_handler_not_served_nobody_gets_in(service: Service, keys: Keys) -> None:
    service.serves_zap = False
    peers = [service.attempt(peer) for peer in (service.agent(keys), _unknown_key(service))]
    service.until(lambda: module.Network.has_mail(service.network))  # the handshakes have come as far as that
    with pytest.raises(TimeoutError):
        service.until(lambda: any(each.outcome() for each in peers), patience=0.3)
    assert not peers[0].socket.poll(0, zmq.POLLOUT)
    service.serves_zap = True
    service.until(lambda: peers[0].outcome() is SUCCEEDED)


def test_with_no_handler_at_all_nobody_gets_in(service: Service, keys: Keys) -> None:
    service.network._zap.close()
    outcomes = []
    for peer in (service.agent(keys), _unknown_key(service)):
        try:
            outcomes.append(service.outcome(peer, patience=0.3))
        except TimeoutError:
            outcomes.append(None)
    assert SUCCEEDED not in outcomes


# ---- rubbish


def test_a_message_beyond_the_limit_ends_its_connection_only(
    service: Service, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    service.exchange(keys)
    peer = service.agent(keys)
    peer.setsockopt(zmq.IMMEDIATE, 0)
    attempt = service.attempt(peer)
    service.until(attempt.outcome, attempt.monitor)
    peer.send(b"x" * (MESSAGE_LIMIT + 1))
    service.until(lambda: attempt.outcome() is zmq.Event.DISCONNECTED, attempt.monitor)
    service.exchange(keys)
    assert service.received == []


@pytest.mark.parametrize("parts", [[b""], [b"", b""], [b"a", b"b"], [b"a"] * 100, [b"", b"a"]])
def test_what_is_not_one_part_with_something_in_it_is_dropped(
    service: Service, keys: Keys, parts: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    peer = service.joined(keys)
    for _ in range(50):
        peer.send_multipart(parts)
    assert service.said(peer, b"sense")[1] == "right"
    assert len(warnings(caplog)) == 1
    service.exchange(keys)


def test_connections_that_say_nothing_do_not_stop_the_service(
    context: zmq.Context[Any], network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(dialing.COMMON_OPTIONS, zmq.HANDSHAKE_IVL, 1000)
    service = Service(context, network)
    (service.endpoint,) = network.listen("127.0.0.1")
    keys = network.grant("right", 10, LATER)
    address = ("127.0.0.1", int(service.endpoint.rpartition(":")[2]))
    silent = [socket.create_connection(address) for _ in range(200)]
    try:
        for each in silent[::2]:
            each.send(b"\xff\0\0\0\0\0\0\0\1\x7f\3")  # the beginning of a greeting
        service.exchange(keys)
        end = time.monotonic() + PATIENCE
        for each in silent:  # sooner or later each is hung up on
            each.settimeout(max(0.01, end - time.monotonic()))
            while each.recv(4096):
                continue
        service.exchange(keys)
    finally:
        for each in silent:
            each.close()
        service.close()


def test_garbage_instead_of_a_greeting_is_hung_up_on(service: Service, keys: Keys) -> None:
    address = ("127.0.0.1", int(service.endpoint.rpartition(":")[2]))
    for garbage in (b"GET / HTTP/1.1\r\n\r\n" * 10, b"\xff" * 1000, b"\0" * 1000, b"\1\0" * 500):
        with socket.create_connection(address, timeout=PATIENCE) as stranger:
            try:
                stranger.sendall(garbage)
                stranger.shutdown(socket.SHUT_WR)
                while stranger.recv(4096):
                    continue
            except TimeoutError:
                raise
            except OSError:
                pass  # hung up on before it was done
    service.exchange(keys)


# ---- the log


def test_a_flood_of_strangers_is_a_few_lines(service: Service, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(100):
        peer = _unknown_key(service)
        assert service.outcome(peer) is KEY_REFUSED
        service.forget(peer)
    service.exchange(keys)
    (line,) = warnings(caplog)
    assert "127.0.0.1 was refused" in line


def test_many_kinds_of_lines_are_few_too_and_the_next_minute_tells_how_many(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    sparing = SparingLog()
    for number in range(1000):
        sparing.warning(f"kind {number}", "line %d", number)
    assert warnings(caplog) == [f"line {number}" for number in range(LINES_A_MINUTE)]
    now[0] += 60
    sparing.warning("kind", "again")
    unsaid = f"{1000 - LINES_A_MINUTE} more warnings of the network were not logged"
    assert warnings(caplog)[LINES_A_MINUTE:] == [unsaid, "again"]


def test_no_key_is_in_the_log_or_in_a_repr(
    service: Service, keys: Keys, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    strange = zmq.curve_keypair()
    service.exchange(keys)
    service.outcome(service.agent(strange))
    service.network.self_test()
    monkeypatch.setattr(service.network, "_launch_of_key", None)
    service.outcome(service.agent(keys))
    texts = [caplog.text, repr(service.network), str(vars(service.network)["_grants"])]
    secrets = [*keys, *strange, service.network.server_key, service.network._secret]
    for key in [*secrets, *map(z85.decode, secrets)]:
        for form in (key.decode("latin1"), str(key)[2:-1], key.hex()):
            assert not any(form in text for text in texts)


# ---- where it listens


def test_nothing_listens_before_it_is_told_to(network: Network, context: zmq.Context[Any]) -> None:
    assert len(network.fds()) == 1
    assert not network.send(b"x", b"y")
    assert list(network.receive()) == []
    assert not network.has_mail()
    assert network.listen("127.0.0.1") == network.listen("127.0.0.1") == network.listen()
    assert len(network.fds()) == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "lo", "::1", "[::1]"])
def test_it_listens_where_it_was_told_to_and_there_only(network: Network, host: str) -> None:
    (endpoint,) = network.listen(host)
    address, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if host not in ("localhost", "lo"):
        assert address.strip("[]") == host.strip("[]")
    socket.create_connection((address.strip("[]"), int(port)), timeout=PATIENCE).close()
    for other in ("127.0.0.1", "127.0.0.2", "::1"):
        if other != address.strip("[]"):
            with pytest.raises(OSError):
                socket.create_connection((other, int(port)), timeout=PATIENCE)


def test_the_default_is_one_address_of_this_machine(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    (endpoint,) = network.listen()
    address, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    assert address not in ("0.0.0.0", "[::]", "*")
    socket.create_connection((address.strip("[]"), int(port)), timeout=PATIENCE).close()


def test_without_a_way_out_the_default_is_loopback(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_outward_address", lambda: "")
    assert network.listen()[0].startswith("tcp://127.0.0.1:")


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "::"])
def test_all_interfaces_are_advertised_as_addresses(network: Network, host: str) -> None:
    endpoints = network.listen(host)
    assert endpoints
    assert len(set(endpoints)) == len(endpoints)
    for endpoint in endpoints:
        address, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        assert address not in ("0.0.0.0", "[::]", "*")
        assert ":" not in address or host == "::"
        socket.create_connection((address.strip("[]"), int(port)), timeout=PATIENCE).close()


@pytest.mark.parametrize("before", [0, 1])
def test_a_port_that_was_asked_for_and_a_range_of_which_one_is_taken(network: Network, before: int) -> None:
    with _taken_ports(2) as (first, takers):
        takers[1].close()
        port = (first, first + 1) if before else first + 1
        assert network.listen("127.0.0.1", port) == [f"tcp://127.0.0.1:{first + 1}"]


class _taken_ports:
    """So many ports in a row that somebody listens on."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> tuple[int, list[socket.socket]]:
        for _ in range(100):
            self._takers = [socket.create_server(("127.0.0.1", 0))]
            first = self._takers[0].getsockname()[1]
            try:
                for number in range(first + 1, first + self._count):
                    self._takers.append(socket.create_server(("127.0.0.1", number)))
            except (OSError, OverflowError):
                self.__exit__()
                continue
            return first, self._takers
        raise AssertionError("no ports")

    def __exit__(self, *_: object) -> None:
        for taker in self._takers:
            taker.close()


def test_a_range_of_which_all_is_taken_says_so(network: Network) -> None:
    with _taken_ports(2) as (first, _):
        with pytest.raises(ListenError, match=f"from {first} to {first + 1} of 127.0.0.1 are in use; give a wider"):
            network.listen("127.0.0.1", (first, first + 1))
        with pytest.raises(ListenError, match="in use"):
            network.listen("127.0.0.1", first)
        assert network.listen("127.0.0.1") != []  # it may be tried again


@pytest.mark.parametrize("port", [(5, 3), 70000, -1])
def test_a_port_that_makes_no_sense_says_so(network: Network, port: Any) -> None:
    with pytest.raises(ListenError, match="5 to 3" if port == (5, 3) else str(port)):
        network.listen("127.0.0.1", port)


def test_an_interface_that_is_down_and_link_local_addresses_are_not_advertised(monkeypatch: pytest.MonkeyPatch) -> None:
    class Of:
        def __init__(self, family: int, address: str = "", isup: bool = True) -> None:
            self.family, self.address, self.isup = family, address, isup

    four, six = socket.AF_INET, socket.AF_INET6
    interfaces = {
        "lo": [Of(four, "127.0.0.1"), Of(six, "::1")],
        "bridge": [Of(four, "172.17.0.1")],
        "ib0": [Of(four, "10.0.0.7"), Of(six, "fe80::1%ib0"), Of(six, "fd00::7"), Of(17, "00:11:22:33:44:55")],
        "ib0:1": [Of(four, "10.0.0.8")],
        "eth0": [Of(four, "192.168.3.4")],
    }
    status = {name: Of(0, isup=name != "bridge") for name in interfaces if ":" not in name}
    monkeypatch.setattr(addresses.psutil, "net_if_addrs", lambda: interfaces)
    monkeypatch.setattr(addresses.psutil, "net_if_stats", lambda: status)
    monkeypatch.setattr(addresses, "_outward_address", lambda: "192.168.3.4")
    assert addresses.addresses_for_others("0.0.0.0") == ["192.168.3.4", "10.0.0.7", "10.0.0.8"]
    assert addresses.addresses_for_others("::") == ["192.168.3.4", "10.0.0.7", "fd00::7", "10.0.0.8"]
    assert addresses.addresses_to_listen_on("ib0") == ["10.0.0.7"]
    assert addresses.addresses_to_listen_on(addresses.ROUTABLE) == ["192.168.3.4", "10.0.0.7", "10.0.0.8"]


@pytest.mark.parametrize("host", ["no.such.name.invalid", "198.51.100.7", "not a name"])
def test_a_host_that_is_not_ours_says_so(network: Network, host: str) -> None:
    with pytest.raises(ListenError, match=host):
        network.listen(host)


def test_a_name_that_has_loopback_first_means_the_other_address(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(0, 0, 0, "", ("127.0.1.1", 0)), (0, 0, 0, "", ("10.1.2.3", 0))]
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_, **__: answers)
    assert addresses.addresses_to_listen_on("myself") == ["10.1.2.3"]


# ---- the proof


def test_the_proof_succeeds_quickly_and_is_no_news(
    service: Service, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.monotonic()
    service.network.self_test()
    assert time.monotonic() - started < 1.0
    assert warnings(caplog) == []
    service.exchange(keys)


def test_the_proof_is_had_with_ipv6(network: Network) -> None:
    network.listen("::1")
    network.self_test()


def test_the_proof_fails_if_the_handler_lets_all_in(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.network, "_judge", lambda *_: "anybody")
    with pytest.raises(NetworkUnsafe, match="with a random key .* HANDSHAKE_SUCCEEDED"):
        service.network.self_test()


class Sabotaged(Network):
    """Its ROUTER does not have some of its options."""

    without: tuple[int, ...] = ()

    def _make_router(self) -> zmq.Socket[Any]:
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        for option, value in (
            (zmq.CURVE_SERVER, 1), (zmq.CURVE_SECRETKEY, self._secret), (zmq.ZAP_DOMAIN, b"hpc-executor"),
            (zmq.ZAP_ENFORCE_DOMAIN, 1),
        ):  # fmt: skip
            if option not in self.without:
                router.setsockopt(option, value)
        return router


@pytest.mark.parametrize(
    ("without", "handled", "how"),
    [
        ((zmq.ZAP_ENFORCE_DOMAIN,), False, "with a random key .* HANDSHAKE_SUCCEEDED"),
        ((), False, "with a random key"),
        ((zmq.ZAP_DOMAIN,), True, "with a random key"),
        ((zmq.CURVE_SERVER, zmq.CURVE_SECRETKEY), True, "with a random key"),
    ],
)
def test_the_proof_fails_if_the_socket_is_not_as_it_should_be(
    context: zmq.Context[Any], without: tuple[int, ...], handled: bool, how: str
) -> None:
    network = Sabotaged(context)
    network.without = without
    try:
        network.listen("127.0.0.1")
        if not handled:
            network._zap.unbind(module.ZAP_ENDPOINT)
        with pytest.raises(NetworkUnsafe, match=how):
            network.self_test(patience=0.5)
    finally:
        network.close()


def test_without_a_key_nobody_gets_in_where_all_keys_are_refused(
    context: zmq.Context[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Sabotaged(context)
    network.without = (zmq.CURVE_SERVER, zmq.CURVE_SECRETKEY, zmq.ZAP_DOMAIN, zmq.ZAP_ENFORCE_DOMAIN)
    prove = network._prove_refusal
    monkeypatch.setattr(
        network, "_prove_refusal", lambda peer, how, *rest: "random" in how or prove(peer, how, *rest)
    )  # fmt: skip
    try:
        network.listen("127.0.0.1")
        with pytest.raises(NetworkUnsafe, match="without a key .* HANDSHAKE_SUCCEEDED"):
            network.self_test()
    finally:
        network.close()


def test_the_proof_fails_if_nobody_answers(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.network, "answer_zap", lambda now: None)
    with pytest.raises(NetworkUnsafe, match="no answer"):
        service.network.self_test(patience=0.2)


def test_a_library_that_is_too_old_or_lacks_curve_is_refused(
    context: zmq.Context[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 2))
        with pytest.raises(NetworkUnsafe, match=r"4\.3\.3 or later"):
            Network(context)
    monkeypatch.setattr(zmq, "has", lambda name: False)
    with pytest.raises(NetworkUnsafe, match="CURVE"):
        Network(context)


def test_a_second_handler_in_a_context_is_refused(context: zmq.Context[Any], network: Network) -> None:
    with pytest.raises(NetworkUnsafe, match="another authenticator"):
        Network(context)


# ---- the end


def test_closing_twice_is_closing_once_and_nothing_works_any_more(service: Service, keys: Keys) -> None:
    service.joined(keys)
    service.network.close()
    service.network.close()
    assert service.network.fds() == []
    assert not service.network.has_mail()
    assert not service.network.send(b"x", b"y")
    assert list(service.network.receive()) == []
    service.network.answer_zap(0.0)
    assert service.network.server_key == b""
    assert service.network._grants == service.network._launch_of_key == {}


# ---- dialling, from a thread of its own as an agent is a process of its own


def dialled(service: Service, keys: Keys, endpoints: list[str], server_key: bytes = b"", patience: float = 2.0) -> Any:
    read, write = socket.socketpair()
    result: list[Any] = []
    server_key = server_key or service.network.server_key

    def run() -> None:
        try:
            result.append(dial(service.context, endpoints, server_key, *keys, patience=patience))
        except ConnectionError as error:
            result.append(error)
        finally:
            write.send(b".")

    thread = threading.Thread(target=run)
    thread.start()
    service.until(lambda: select.select([read], [], [], 0)[0], read.fileno(), patience=30)
    thread.join()
    read.close()
    write.close()
    if not isinstance(result[0], ConnectionError):
        service.keep(result[0][0])
    return result[0]


@pytest.fixture
def nobody() -> Iterator[str]:
    """An endpoint at which nobody listens: it is bound, so that nobody else will."""
    with socket.socket() as taker:
        taker.bind(("127.0.0.1", 0))
        yield f"tcp://127.0.0.1:{taker.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as taker:
        yield f"tcp://127.0.0.1:{taker.getsockname()[1]}"


def test_the_first_endpoint_that_answers_is_taken(
    service: Service, keys: Keys, nobody: str, silent: str, capfd: pytest.CaptureFixture[str]
) -> None:
    peer, endpoint = dialled(service, keys, ["nonsense", nobody, silent, service.endpoint, silent], patience=0.3)
    assert endpoint == service.endpoint
    identity, launch = service.said(peer, b"at once")
    assert launch == "right"
    assert service.network.send(identity, b"pong")
    assert service.until(lambda: peer.poll(0) and peer.recv(), peer) == b"pong"
    lines = capfd.readouterr().err.splitlines()
    said = dict(line.split(" ", 1) for line in lines)
    assert set(said) == {"nonsense", nobody, silent, service.endpoint}
    assert said[service.endpoint] == "is connected"


def test_an_error_says_what_became_of_each_endpoint(service: Service, nobody: str, silent: str) -> None:
    error = dialled(service, zmq.curve_keypair(), ["nonsense", nobody, silent, service.endpoint], patience=0.3)
    assert isinstance(error, ConnectionError)
    text = str(error)
    assert "nonsense cannot be dialled" in text
    assert f"{nobody} refused the connection" in text
    assert f"{silent} gave no answer in 0.3 s" in text
    assert f"{service.endpoint} refused our key" in text


def test_another_server_key_is_another_hub(service: Service, keys: Keys) -> None:
    error = dialled(service, keys, [service.endpoint], server_key=zmq.curve_keypair()[0])
    assert "another" in str(error)
    assert service.received == []


def test_a_hub_without_endpoints_is_an_error(context: zmq.Context[Any]) -> None:
    with pytest.raises(ConnectionError, match="no endpoint"):
        dial(context, [], *[zmq.curve_keypair()[0]] * 3)


def test_an_agent_connects_again_by_itself(service: Service, keys: Keys) -> None:
    """Its hub's end has another identity for it then."""
    with _Relay(int(service.endpoint.rpartition(":")[2])) as relay:
        peer, _ = dialled(service, keys, [relay.endpoint])
        first, _ = service.said(peer, b"one")
        relay.cut()
        service.until(lambda: not service.network.send(first, b"x"))
        service.until(lambda: _can_send(peer), peer)
        second, launch = service.said(peer, b"two")
        assert (launch, second != first) == ("right", True)


def _can_send(peer: zmq.Socket[Any]) -> bool:
    try:
        peer.send(b"again", zmq.NOBLOCK)
    except zmq.ZMQError as error:
        assert error.errno == errno.EAGAIN
        return False
    return True


class _Relay:
    """A way to a port that can be cut; a thread carries the bytes."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self._stop, self._stopped = socket.socketpair()
        self.endpoint = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Relay:
        self._thread.start()
        return self

    def _run(self) -> None:
        while True:
            ready = select.select([self._server, self._stopped, *self._pairs], [], [])[0]
            if self._stopped in ready:
                if self._stopped.recv(1) == b"e":
                    return
                self._drop()
            elif self._server in ready:
                one, other = self._server.accept()[0], socket.create_connection(("127.0.0.1", self._port))
                self._pairs |= {one: other, other: one}
            else:
                self._carry(ready[0])

    def _carry(self, source: socket.socket) -> None:
        data = source.recv(65536)
        if data:
            self._pairs[source].sendall(data)
        else:
            for each in (source, self._pairs.pop(source)):
                self._pairs.pop(each, None)
                each.close()

    def _drop(self) -> None:
        for each in list(self._pairs):
            each.close()
        self._pairs.clear()

    def cut(self) -> None:
        self._stop.send(b"c")

    def __exit__(self, *_: object) -> None:
        self._stop.send(b"e")
        self._thread.join()
        self._drop()
        for each in (self._server, self._stop, self._stopped):
            each.close()
