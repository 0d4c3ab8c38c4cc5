"""Real networks that fail: each node is a network namespace, and what fails are its cables, neighbours and clocks.

As root only. The lease is one or two seconds here, so that what takes a minute in life takes some seconds. The names in
brackets are those of the catalogue of faults.
"""

# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from histories import History, stamp_until
from namespaces import Agent, Lan, Node, inside, lan, namespaces
from pools import PATIENCE, failure, new_executor, outcome
from test_agents import agent_of
from waiting import wait_gone, wait_until

from executor import CAPTURE, HPCExecutor, Program
from executor.invitations import Invitation
from worker_agent.processes import children

pytestmark = pytest.mark.heavy

CLIENT, A, B = "10.77.0.1", "10.77.0.2", "10.77.0.3"
#: Seconds: shorter than a lease of LONG, though the last sign of life was a while before and the next takes a while.
SHORT_CUT = 0.6
LONG, SHORT = 2, 1
#: So many tasks an agent runs at a time, whatever the machine has.
PLACES = 2

Cut = Callable[..., contextlib.AbstractContextManager[None]]


class Site:
    """A client on a node of its own, with an executor that invites agents of others."""

    def __init__(self, node: Node, executor: HPCExecutor, invitation: Invitation, path: Path) -> None:
        self.node, self.executor = node, executor
        self.endpoints, self.invitation = invitation.endpoints, path

    def epochs(self) -> list[int]:
        """Of the agents that belong to the hub now, by their numbers: what else is in an epoch cannot be guessed."""
        return [member.epoch >> 40 for member in self.executor._hub._agents._members]

    def wait_joined(self, count: int) -> None:
        """Until so many agents belong to the hub."""
        wait_until(lambda: len(self.epochs()) == count, f"for {count} agents, there are {self.epochs()}")


@pytest.fixture
def make_site(lan: Lan, new_executor: Callable[..., HPCExecutor], tmp_path: Path) -> Callable[..., Site]:
    """Makes sites."""

    def make(lease: float, *addresses: str, host: str | None = None) -> Site:
        node = lan.node(*addresses or [CLIENT])
        node.wait_up()
        with inside(node.name):  # the hub's thread starts here, and with it all that opens sockets
            executor = new_executor(1, agents=0, lease=lease)
            invitation = executor.invite(10, host=host)
        return Site(node, executor, invitation, with_places(invitation, tmp_path / "invitation.json"))

    return make


def with_places(invitation: Invitation, path: Path) -> Path:
    """The same invitation, but for agents that do not count their processors."""
    fields = json.loads(Path(invitation.path).read_bytes())
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        json.dump({**fields, "pools": [["cpus", [[str(number) for number in range(PLACES)]]]]}, file)
    return path


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """A history; its task ends with the test at the latest."""
    history = History(tmp_path)
    yield history
    history.open()


def check_is_of_use(site: Site, agent: Agent, directory: Path) -> None:
    """The agent belongs to the hub again and runs tasks, if there are more than the other one has places for."""
    wait_until(lambda: {each.pid for each in site.executor.workers()} & {*children(agent.process.pid)}, "for the agent")
    more = [History(directory, f"more-{number}") for number in range(PLACES + 1)]
    futures = [site.executor.submit(stamp_until, *history.paths) for history in more]
    pids = [history.wait_attempts(1)[0] for history in more]
    agents = [agent_of(pid) for pid in pids]
    for history in more:
        history.open()
    assert set(agents) & {*children(agent.process.pid)}
    assert [outcome(future) for future in futures] == pids


# ---- cuts [C5, C6, C7]


@contextlib.contextmanager
def both_ways(site: Site, node: Node) -> Iterator[None]:
    """The cable is cut."""
    node.cut()
    yield
    node.heal()


@contextlib.contextmanager
def to_the_agent(site: Site, node: Node) -> Iterator[None]:
    """What the client says is lost."""
    site.node.lose_all_to(A)
    yield
    site.node.reach_again(A)


@contextlib.contextmanager
def to_the_client(site: Site, node: Node) -> Iterator[None]:
    """What the agent says is lost."""
    node.lose_all_to(CLIENT)
    yield
    node.reach_again(CLIENT)


CUTS = pytest.mark.parametrize("cut", [both_ways, to_the_agent, to_the_client], ids=lambda cut: cut.__name__)


@CUTS
def test_a_cut_shorter_than_the_lease_is_no_news_to_any_task(
    lan: Lan, make_site: Callable[..., Site], history: History, cut: Cut
) -> None:
    """C5: the agent is the same, in the same epoch, and what it runs goes on."""
    site, node = make_site(LONG), lan.node(A)
    node.join(site.invitation)
    running = site.executor.submit(stamp_until, *history.paths)
    [pid] = history.wait_attempts(1)
    with cut(site, node):
        during = site.executor.submit(pow, 2, 3)
        time.sleep(SHORT_CUT)  # this is the cut: there is nothing to wait for
        assert not during.done()
    assert (outcome(during), during.attempt) == (8, 1)
    history.open()
    assert (outcome(running), running.attempt) == (pid, 1)
    history.check_no_overlap(1)
    assert site.epochs() == [1]


@CUTS
def test_after_a_cut_longer_than_the_lease_tasks_run_elsewhere_and_never_twice_at_a_time(
    lan: Lan, make_site: Callable[..., Site], history: History, cut: Cut, tmp_path: Path
) -> None:
    """C6, C7: the first attempt is dead before the second one starts; the agent that was cut off is of use again."""
    site, node = make_site(LONG), lan.node(A)
    agent = node.join(site.invitation)
    future = site.executor.submit(stamp_until, *history.paths)
    [first] = history.wait_attempts(1)
    lan.node(B).join(site.invitation)
    site.wait_joined(2)
    with cut(site, node):
        history.wait_attempts(2)
        assert not os.path.exists(f"/proc/{first}")
    check_is_of_use(site, agent, tmp_path)
    history.open()
    assert (outcome(future), future.attempt) == (history.attempts()[1], 2)
    history.check_no_overlap(2)
    assert agent.process.poll() is None


def test_an_agent_that_hears_nothing_is_given_no_tasks(
    lan: Lan, make_site: Callable[..., Site], history: History
) -> None:
    """C7: its hellos arrived and the answers did not. Tasks that it had waited until it counted as lost once more.

    Now it dials again before it says hello, and a new connection needs both ways. The other agent is there from the
    beginning, and busy: it would take too long to start while this one still tries.
    """
    site, node = make_site(LONG), lan.node(A)
    lan.node(B).join(site.invitation)
    site.wait_joined(1)
    held = [site.executor.submit(stamp_until, *history.paths) for _ in range(PLACES)]
    wait_until(lambda: all(future.running() for future in held))
    agent = node.join(site.invitation)
    site.wait_joined(2)
    with to_the_agent(site, node):
        wait_until(lambda: 2 not in site.epochs())
        future = site.executor.submit(pow, 2, 3)
        history.open()
        assert (outcome(future), future.attempt) == (8, 1)
    assert agent.process.poll() is None


def test_an_agent_that_is_cut_off_for_good_ends_its_tasks_and_leaves(
    lan: Lan, make_site: Callable[..., Site], history: History
) -> None:
    """D14: the client's host has vanished. Nobody is there to be told; what ran here ends within the lease."""
    site = make_site(SHORT)
    agent = lan.node(A).join(site.invitation)
    future = site.executor.submit(stamp_until, *history.paths)
    [pid] = history.wait_attempts(1)
    site.node.cut()
    wait_gone(pid)
    assert agent.wait() == 1
    assert "the hub has not answered" in agent.told
    wait_until(lambda: not site.epochs())
    assert future.cancel()


# ---- hosts that are gone [C8]


def test_a_host_that_is_gone_is_replaced_by_one_with_its_address_and_ports(
    lan: Lan, make_site: Callable[..., Site], history: History
) -> None:
    """C8: the client has a connection that nobody closed, and another host speaks from the same address and port."""
    site = make_site(SHORT)
    for number in (1, 2):
        node = lan.node(A)
        use_one_port(node)
        node.join(site.invitation)
        if number == 1:
            future = site.executor.submit(stamp_until, *history.paths)
        history.wait_attempts(number)
        if number == 1:
            node.vanish()
    history.open()
    assert (outcome(future), future.attempt) == (history.attempts()[1], 2)
    history.check_no_overlap(2)
    assert site.epochs() == [2]


def use_one_port(node: Node) -> None:
    """All connections of the node come from the same port."""
    with inside(node.name):
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40001")


# ---- which address [D10, D11]


def test_an_agent_without_a_way_to_the_hub_names_all_addresses_that_it_tried(
    lan: Lan, make_site: Callable[..., Site]
) -> None:
    """D10."""
    site, stranger = make_site(SHORT, CLIENT, "10.79.0.1", host="*"), lan.node()
    agent = stranger.join(site.invitation)
    assert agent.wait() == 1
    assert len(site.endpoints) == 2
    for endpoint in site.endpoints:
        assert endpoint in agent.told.splitlines()[-1]
    assert "the hub cannot be reached" in agent.told.splitlines()[-1]


def test_of_several_interfaces_the_one_is_found_that_the_agent_can_reach(
    lan: Lan, make_site: Callable[..., Site]
) -> None:
    """D11: the way out of the client is its first interface, and the agent is on the second one."""
    site = make_site(LONG, CLIENT, "10.79.0.1", host="*")
    node = lan.node()
    node.plug(lan.switches[1], "10.79.0.2")
    node.ip("route", "delete", "default")
    node.join(site.invitation)
    assert outcome(site.executor.submit(pow, 2, 3)) == 8
    first, second = site.endpoints
    assert first.startswith(f"tcp://{CLIENT}:")
    assert second.startswith("tcp://10.79.0.1:")


def test_an_interface_is_chosen_by_its_name(lan: Lan, make_site: Callable[..., Site]) -> None:
    """D11."""
    site = make_site(LONG, CLIENT, "10.79.0.1", host="eth1")
    node = lan.node("10.77.0.2", "10.79.0.2")
    node.join(site.invitation)
    assert outcome(site.executor.submit(pow, 2, 3)) == 8
    [endpoint] = site.endpoints
    assert endpoint.startswith("tcp://10.79.0.1:")
    with inside(node.name), pytest.raises(OSError):
        socket.create_connection((CLIENT, int(endpoint.rpartition(":")[2])), timeout=PATIENCE)


@pytest.mark.parametrize("host", [None, "::", "eth0"])
def test_a_network_with_ipv6_only(lan: Lan, make_site: Callable[..., Site], host: str | None) -> None:
    """D11."""
    site = make_site(LONG, "fd77::1", host=host)
    lan.node("fd77::2").join(site.invitation)
    assert outcome(site.executor.submit(pow, 2, 3)) == 8
    [endpoint] = site.endpoints
    assert endpoint.startswith("tcp://[fd77::1]:")


# ---- who listens [T10]


def test_what_tasks_say_and_are_told_cannot_be_read_on_the_network(lan: Lan, make_site: Callable[..., Site]) -> None:
    """T10. That the listener hears is shown by a word that is said in the clear."""
    canary, control = secrets.token_hex(12), secrets.token_hex(12)
    site, node, sniffer = make_site(LONG), lan.node(A), lan.listen()
    node.join(site.invitation)
    exec(f"def tell(word): return {canary!r} + word", scope := {"__name__": "__main__"})
    assert outcome(site.executor.submit(scope["tell"], canary)) == 2 * canary
    loud = site.executor.options(stdout=CAPTURE, env={"CANARY": canary})
    assert outcome(loud.submit(Program(["sh", "-c", 'echo "$0$CANARY"', canary]))).stdout == f"{2 * canary}\n"
    assert canary in str(failure(site.executor.submit(int, canary)))
    say_in_the_clear(site.node, node, control.encode())
    heard = sniffer.heard()
    assert control.encode() in heard
    assert len(heard) > 5000
    for word in (canary.encode(), canary.encode("utf-16-le"), bytes.fromhex(canary), b"worker_agent", b"fake"):
        assert word not in heard


def say_in_the_clear(client: Node, node: Node, word: bytes) -> None:
    """Send it from the client to the node by TCP."""
    with inside(node.name):
        server = socket.create_server((A, 0))
    with server, inside(client.name), socket.create_connection(server.getsockname()) as speaker:
        speaker.sendall(word)
        with server.accept()[0] as listener:
            assert listener.recv(1024) == word


# ---- clocks [C20]


@pytest.mark.parametrize("shift", [-0.9, 31536000])
def test_a_node_whose_clock_is_another_one_is_a_node_like_any(
    lan: Lan, make_site: Callable[..., Site], history: History, shift: float, tmp_path: Path
) -> None:
    """C20: times of two machines are never compared. A cut ends its lease as that of any other."""
    site, node = make_site(LONG), lan.node(A)
    seconds = str(int(shift if shift > 0 else shift * time.monotonic()))
    agent = node.join(site.invitation, "unshare", "--time", "--monotonic", seconds)
    future = site.executor.submit(stamp_until, *history.paths)
    [first] = history.wait_attempts(1)
    there = history.stamps()[0][1] / 1e9
    assert abs(there - time.monotonic() - float(seconds)) < PATIENCE
    lan.node(B).join(site.invitation)
    site.wait_joined(2)
    with both_ways(site, node):
        history.wait_attempts(2)
        assert not os.path.exists(f"/proc/{first}")
    check_is_of_use(site, agent, tmp_path)
    history.open()
    assert (outcome(future), future.attempt) == (history.attempts()[1], 2)
    assert agent.process.poll() is None
