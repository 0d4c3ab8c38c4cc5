"""Networks of their own for tests: a namespace for each node, and a cable from each to a switch. As root only.

    node --eth0--.                       .--eth0-- node
                  switch (a bridge in a
                  namespace of its own)

The machine's own addresses, routes and interfaces are not touched. All namespaces of a network are named after the
process that made them, so that what a killed run has left is found and removed by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import PATIENCE, wait_gone, wait_until

_PREFIX = "hx-"
_PLACE = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
#: Nobody's: frames that are sent there reach nobody, and the sender is not told.
_NOBODY = "02:00:00:00:00:99"
_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


def ip(*words: str, check: bool = True) -> str:
    """Run ``ip``; what it printed."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def obstacle() -> str:
    """Why there can be no namespaces here; "" if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = _new_name()
    try:
        ip("netns", "add", name)
        ip("-n", name, "link", "add", "switch", "type", "bridge")
    except (OSError, RuntimeError) as error:
        return f"no network namespaces here: {error}"
    finally:
        _delete(name)
    return ""


def _new_name() -> str:
    return f"{_PREFIX}{os.getpid()}-{next(_numbers)}"


def _delete(name: str) -> None:
    with contextlib.suppress(OSError):
        ip("netns", "delete", name, check=False)


def remove_leftovers() -> None:
    """Delete the namespaces of test runs that were killed."""
    for path in _PLACE.glob(f"{_PREFIX}*"):
        found = re.fullmatch(rf"{_PREFIX}(\d+)-\d+", path.name)
        if found and not os.path.exists(f"/proc/{found[1]}"):
            _delete(path.name)


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """This thread, and the threads and processes that it starts meanwhile, use the network of that namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(os.open(_PLACE / name, os.O_RDONLY | os.O_CLOEXEC))
        try:
            yield
        finally:
            _enter(os.dup(home))
    finally:
        os.close(home)


def _enter(fd: int) -> None:
    failed = _libc.setns(fd, _CLONE_NEWNET)
    number = ctypes.get_errno()
    os.close(fd)
    if failed:
        raise OSError(number, os.strerror(number))


class Node:
    """A machine on the network, with one address for each switch that it is plugged into."""

    def __init__(self, directory: Path) -> None:
        self.name = _new_name()
        self._directory = directory
        self._cables: list[tuple[Switch, str]] = []
        self.agents: list[Agent] = []
        ip("netns", "add", self.name)
        self.ip("link", "set", "lo", "up")

    def ip(self, *words: str) -> str:
        """Run ``ip`` for this node."""
        return ip("-n", self.name, *words)

    def plug(self, switch: Switch, address: str) -> str:
        """Put a cable into a switch; gives the name of the interface."""
        interface, port = f"eth{len(self._cables)}", switch.new_port()
        self.ip("link", "add", interface, "type", "veth", "peer", "name", port, "netns", switch.name)
        ip("-n", switch.name, "link", "set", port, "master", "switch", "up")
        self.ip("address", "add", f"{address}/{64 if ':' in address else 24}", "dev", interface, *_at_once(address))
        self.ip("link", "set", interface, "up")
        if not self._cables:  # the way to all others: it leads nowhere
            self.ip(*_family(address), "route", "add", "default", "dev", interface)
        self._cables.append((switch, port))
        return interface

    def wait_up(self) -> None:
        """Until the kernel has noticed that there is something at the other end of each cable; it takes its time."""
        wait_until(lambda: self.ip("link").count("state UP") == len(self._cables), "for the cables")

    # --- faults -------------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Nothing comes in or goes out any more."""
        self._set_cables("down")

    def heal(self) -> None:
        """The cables are whole again."""
        self._set_cables("up")

    def _set_cables(self, state: str) -> None:
        for switch, port in self._cables:
            ip("-n", switch.name, "link", "set", port, state)

    def lose_all_to(self, address: str) -> None:
        """What this node sends there is lost; what comes from there still comes."""
        self.ip("neighbour", "replace", address, "lladdr", _NOBODY, "nud", "permanent", "dev", "eth0")

    def reach_again(self, address: str) -> None:
        """The end of :meth:`lose_all_to`."""
        self.ip("neighbour", "delete", address, "dev", "eth0")

    def vanish(self) -> None:
        """As if somebody had pulled the plug: its processes end, and nobody on the network is told."""
        for number in range(len(self._cables)):
            self.ip("link", "delete", f"eth{number}")
        self._cables.clear()
        self.end()

    # --- life ---------------------------------------------------------------------------------------------------------

    def command(self, *words: str) -> list[str]:
        """``words``, run on this node."""
        return ["nsenter", f"--net={_PLACE / self.name}", *words]

    def join(self, invitation: os.PathLike[str], *before: str) -> Agent:
        """Start an agent; ``before`` are words of a command that starts it in turn."""
        log = self._directory / f"agent-{next(_numbers)}.log"
        command = self.command(*before, sys.executable, "-m", "worker_agent", os.fspath(invitation))
        with log.open("wb") as stderr:
            process = subprocess.Popen(command, cwd=self._directory, stderr=stderr)
        self.agents.append(Agent(process, log))
        return self.agents[-1]

    def end(self) -> None:
        """End everything that runs there, and the node."""
        pids = [int(word) for word in ip("netns", "pids", self.name, check=False).split()]
        for pid in pids:
            if pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for agent in self.agents:
            agent.process.wait(PATIENCE)
        wait_gone(*(pid for pid in pids if pid != os.getpid()))
        _delete(self.name)


def _family(address: str) -> list[str]:
    return ["-6"] if ":" in address else []


def _at_once(address: str) -> list[str]:
    return ["nodad"] if ":" in address else []  # or the address is of no use for the first second


class Agent:
    """An agent that was invited: its process (the supervisor), and what it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def told(self) -> str:
        """What it wrote to stderr until now."""
        return self._log.read_text()

    def wait(self) -> int:
        """Its exit status, when it has ended."""
        return self.process.wait(PATIENCE)


class Switch:
    """What cables are plugged into."""

    def __init__(self) -> None:
        self.name = _new_name()
        self._ports = itertools.count()
        ip("netns", "add", self.name)
        ip("-n", self.name, "link", "add", "switch", "type", "bridge", "mcast_snooping", "0")
        ip("-n", self.name, "link", "set", "switch", "up")

    def new_port(self) -> str:
        """The name of the next port."""
        return f"port{next(self._ports)}"

    def listen(self) -> Sniffer:
        """Hear everything that passes from now on."""
        with inside(self.name):
            return Sniffer()


class Sniffer:
    """Somebody who reads everything on a network: the kernel keeps it until :meth:`heard` asks."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 256 * 2**20)
        self._socket.setblocking(False)

    def heard(self) -> bytes:
        """All of it."""
        frames = []
        with self._socket as source:
            with contextlib.suppress(BlockingIOError):
                while True:
                    frames.append(source.recv(2**18))
            dropped = int.from_bytes(source.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)[4:], sys.byteorder)
        assert dropped == 0, f"{dropped} frames were not heard"
        return b"".join(frames)


class Lan:
    """The nodes of a test. ``client`` is where the test itself is, and the executors that it makes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.switches: list[Switch] = []
        self._nodes: list[Node] = []

    def switch(self) -> Switch:
        """A new switch."""
        self.switches.append(Switch())
        return self.switches[-1]

    def node(self, *addresses: str) -> Node:
        """A new node; the first address is on the first switch, and so on."""
        self._nodes.append(Node(self._directory))
        for number, address in enumerate(addresses):
            if number == len(self.switches):
                self.switch()
            self._nodes[-1].plug(self.switches[number], address)
        return self._nodes[-1]

    def listen(self) -> Sniffer:
        """Hear everything on the first switch."""
        return self.switches[0].listen()

    def end(self) -> None:
        """Remove it all."""
        for node in self._nodes:
            node.end()
        for switch in self.switches:
            _delete(switch.name)
        assert not list(_PLACE.glob(f"{_PREFIX}{os.getpid()}-*"))


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips where there can be none."""
    if why := obstacle():
        pytest.skip(why)
    remove_leftovers()


@pytest.fixture
def lan(namespaces: None, tmp_path: Path) -> Iterator[Lan]:
    """A network that goes with the test, whatever became of it."""
    made = Lan(tmp_path)
    try:
        yield made
    finally:
        made.end()
