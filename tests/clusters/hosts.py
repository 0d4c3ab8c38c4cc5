"""Pretended hosts: a login host and compute hosts on one machine, each with a kernel of its own as far as it can see.

    pytest --parent-death signal--> login host: 10.79.0.1, with the switch
                                      |-- n1: 10.79.0.11      network, name, processes, memory files and mounts of its
                                      |-- n2: 10.79.0.12      own; the file system is the same for all, as on a cluster
                                      '-- n3: 10.79.0.13

All are processes of the login host. So they end with its first process, and that with the process that made it, however
that ends: the kernel ends what runs in a name space of processes, and takes away a network that nobody is in. Nothing
of it is in the machine's own network, and several sets do not meet.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from waiting import wait_gone, wait_until

from worker_agent import processes

LOGIN, COMPUTE = "login", ("n1", "n2", "n3")
NET = "10.79.0"
ADDRESSES = {LOGIN: f"{NET}.1", **{name: f"{NET}.{number}" for number, name in enumerate(COMPUTE, 11)}}
#: What daemons and jobs are started with, not to have the variables of the tests.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/root"}
#: The first process of a host: all that are orphans there become its children, and nobody waits for them.
_FIRST = "exec env --ignore-signal=CHLD PRETENDED_HOST=$0 sleep infinity"
_SET_UP = "hostname $0 && mount -t proc proc /proc && mount -t tmpfs shm /dev/shm && mount --bind $1 /etc/hosts"
_UNSHARE = "unshare --net --uts --pid --ipc --mount --propagation slave --fork --kill-child=KILL".split()
_ENTER = "--net --uts --pid --ipc --mount".split()


class HostsError(Exception):
    """A command for a host has failed."""


def obstacle() -> str:
    """Why there can be no such hosts here; "" if there can."""
    if os.geteuid() != 0:
        return "pretended hosts need root"
    probe = [*_UNSHARE, "sh", "-c", "ip link add switch type bridge && mount -t tmpfs shm /dev/shm"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True)
    except OSError as error:
        return f"pretended hosts need unshare, ip and nsenter: {error}"
    return f"no pretended hosts here: {done.stderr.strip()}" if done.returncode else ""


class Hosts:
    """The login host and the compute hosts. They are up when this is made."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._table = directory / "hosts"
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in ADDRESSES.items())]
        self._table.write_text("\n".join(lines) + "\n")
        self._first: dict[str, int] = {}
        self._login = self._boot_login()
        try:
            for name in COMPUTE:
                self.on(name)
        except BaseException:
            self.down()
            raise

    def _boot_login(self) -> subprocess.Popen[bytes]:
        words = ["setpriv", "--pdeathsig", "KILL", *self._first_words(LOGIN)]
        with open(self._directory / f"{LOGIN}.log", "ab") as log:
            process = subprocess.Popen(words, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._first[LOGIN] = wait_until(lambda: _first_process(process.pid, LOGIN), f"for {LOGIN}")
        self._ip("link", "add", "switch", "type", "bridge")
        self._ip("address", "add", f"{ADDRESSES[LOGIN]}/24", "dev", "switch")
        self._ip("link", "set", "switch", "up")
        self._ip("link", "set", "lo", "up")
        self._ip("route", "add", "default", "dev", "switch")
        return process

    def _first_words(self, name: str) -> list[str]:
        return [*_UNSHARE, "sh", "-c", f"{_SET_UP} && {_FIRST}", name, str(self._table)]

    # --- processes ----------------------------------------------------------------------------------------------------

    def command(self, name: str, *words: str, enter: Sequence[str] = _ENTER) -> list[str]:
        """``words``, run on a host."""
        return ["nsenter", "--target", str(self._first[name]), *enter, "--", *words]

    def run(self, name: str, *words: str, env: dict[str, str] | None = None, seconds: float = 30) -> str:
        """Run a command on a host, and give what it printed. Raises HostsError if it fails."""
        done = subprocess.run(
            self.command(name, *words), env={**ENVIRONMENT, **(env or {})}, timeout=seconds,
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise HostsError(f"{' '.join(words)} on {name} ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    def pids(self, name: str, program: str) -> list[int]:
        """The processes of a compute host that run this program, but for what is started there from here."""
        below = processes.descendants(self._first[name])
        return [pid for pid in below if _program_of(pid) == program]

    @property
    def network(self) -> str:
        """The network of the login host, for :func:`namespaces.inside`: who starts there listens there."""
        return f"/proc/{self._first[LOGIN]}/ns/net"

    # --- faults -------------------------------------------------------------------------------------------------------

    def cut(self, name: str) -> None:
        """Cable out: what is sent vanishes, and nobody is told."""
        self._ip("link", "set", name, "down")

    def heal(self, name: str) -> None:
        """Cable in."""
        self._ip("link", "set", name, "up")

    def off(self, name: str) -> None:
        """Power off: all its processes end, and nobody on the network is told."""
        first = self._first.pop(name)
        below = processes.descendants(first)
        self._ip("link", "delete", name)  # first, or the kernel would close its connections
        os.kill(first, signal.SIGKILL)
        wait_gone(first, *below)

    def on(self, name: str) -> None:
        """Power on: it boots, without any daemon."""
        login, words = self._first[LOGIN], ["setsid", "--fork", *self._first_words(name)]
        with open(self._directory / f"{name}.log", "ab") as log:
            subprocess.run(self.command(LOGIN, *words), env=ENVIRONMENT, stdout=log, stderr=log, check=True)
        self._first[name] = wait_until(lambda: _first_process(login, name), f"for {name}")
        self._plug(name)

    def _plug(self, name: str) -> None:
        first, mac = str(self._first[name]), f"02:79:00:00:00:{COMPUTE.index(name) + 11:02x}"  # the same after a reboot
        self._ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", first)
        self._ip("link", "set", name, "master", "switch", "up")
        for words in ("link set lo up", f"address add {ADDRESSES[name]}/24 dev eth0", "link set eth0 up",
                      f"route add default via {ADDRESSES[LOGIN]}"):  # fmt: skip
            self._ip(*words.split(), host=name)

    def down(self) -> None:
        """The end of all of them."""
        below = processes.descendants(self._login.pid)
        self._login.kill()
        self._login.wait()
        wait_gone(*below)

    def _ip(self, *words: str, host: str = LOGIN) -> None:
        """Only in the host's network: pids are those that we know."""
        done = subprocess.run(self.command(host, "ip", *words, enter=["--net"]), capture_output=True, text=True)
        if done.returncode:
            raise HostsError(f"ip {' '.join(words)} on {host}: {done.stderr.strip()}")


def _program_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return ""


def _first_process(above: int, name: str) -> int | None:
    """The first process of a host, once that is set up: no other process there has this variable."""
    mark = f"PRETENDED_HOST={name}".encode()
    return next((pid for pid in processes.descendants(above) if mark in processes.variables_of(pid)), None)
