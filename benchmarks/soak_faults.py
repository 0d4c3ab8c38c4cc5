"""What befalls the executor of a soak: the agents that join it, and the faults that come at random times."""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from benchmarks import soak_tasks
from benchmarks.soak_relay import Relay
from executor import HPCExecutor
from executor.invitations import Invitation
from worker_agent import processes

#: Seconds of an invited agent's lease; the hub's patience is half as long again.
LEASE = 4.0
#: Invited agents that there should be.
INVITED = 2


class Victims(Protocol):
    """The workload, as faults see it."""

    def submit(self, *, victim: bool) -> None:
        """A task that is to be killed."""

    def kill_victims(self) -> int:
        """Kill those that run now."""


class Crew:
    """Agents that join through the relay, and are invited again when they have gone."""

    def __init__(self, executor: HPCExecutor, directory: Path) -> None:
        self._executor, self._directory = executor, directory
        self.relay = self._relay()
        self.agents: list[subprocess.Popen[bytes]] = []
        self.ended: Counter[str] = Counter()
        self._logs: dict[int, Path] = {}

    def _relay(self) -> Relay:
        [endpoint] = self._executor.invite(host="127.0.0.1").endpoints
        return Relay(int(endpoint.rpartition(":")[2]))

    def fill_up(self) -> None:
        """Invite as many as have gone."""
        for agent in [agent for agent in self.agents if agent.poll() is not None]:
            self.agents.remove(agent)
            lines = self._logs[agent.pid].read_text().splitlines()
            self.ended[lines[-1] if agent.returncode == 1 and lines else f"status {agent.returncode}"] += 1
        while len(self.agents) < INVITED:
            self._invite()

    def _invite(self) -> None:
        path = self._directory / f"invitation-{secrets.token_hex(4)}"
        self._write(self._executor.invite(host="127.0.0.1"), path)
        log = path.with_suffix(".log")
        with log.open("wb") as stderr:
            command = [sys.executable, "-m", "worker_agent", str(path)]
            self.agents.append(subprocess.Popen(command, stderr=stderr, stdout=stderr))
        self._logs[self.agents[-1].pid] = log

    def _write(self, invitation: Invitation, path: Path) -> None:
        fields = json.loads(Path(invitation.path).read_bytes())
        os.unlink(invitation.path)  # they would be many
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            json.dump({**fields, "endpoints": [self.relay.endpoint], "pools": [["cpus", [["0", "1"]]]]}, file)

    def pids(self) -> list[int]:
        """The agents themselves; what was started are their supervisors."""
        return [pid for agent in self.agents if agent.poll() is None for pid in processes.children(agent.pid)]

    def close(self) -> None:
        """All have left, if the executor has ended."""
        for agent in self.agents:
            try:
                agent.wait(20)
            except subprocess.TimeoutExpired:
                agent.terminate()
                agent.wait()
                raise
        self.relay.close()


class Faults:
    """Each kind comes at random times, by its own mean; what a fault begins another moment ends."""

    def __init__(self, workload: Victims, executor: HPCExecutor, crew: Crew, chance: random.Random) -> None:
        self._workload, self._executor, self._crew, self._chance = workload, executor, crew, chance
        self.counts: Counter[str] = Counter()
        self._busy: set[int] = set()
        self._held_up = False
        self._later: list[tuple[float, Callable[[], object]]] = []
        means: dict[Callable[[], object], float] = {
            self.kill_a_task: 3, self.kill_a_local_agent: 25, self.kill_an_invited_agent: 25,
            self.kill_a_supervisor: 40, self.stop_shortly: 10, self.stop_for_long: 30, self.stop_a_local_one: 150,
            self.drop: 8, self.freeze: 20, self.cut_shortly: 12, self.cut_for_long: 30,
        }  # fmt: skip
        self._means = means
        self._next = {fault: time.monotonic() + chance.expovariate(1 / mean) for fault, mean in means.items()}

    def take_turn(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        for due in [each for each in self._later if each[0] <= now]:
            self._later.remove(due)
            due[1]()
        for fault, at in self._next.items():
            if at <= now:
                self._next[fault] = now + self._chance.expovariate(1 / self._means[fault])
                if fault() is not False:
                    self.counts[fault.__name__.replace("_", " ")] += 1
        self._workload.kill_victims()

    def end(self) -> None:
        """All is well again."""
        self._next.clear()
        while self._later:
            self._later.pop()[1]()

    def _after(self, seconds: float, action: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + seconds, action))

    def kill_a_task(self) -> None:
        """Its interpreter, or the program; it is submitted for that."""
        self._workload.submit(victim=True)

    # --- agents -------------------------------------------------------------------------------------------------------

    def kill_a_local_agent(self) -> bool:
        """``kill -9``. The first one is spared, so that there is one to watch for growth."""
        return self._kill(local_agents(self._executor)[1:])

    def kill_an_invited_agent(self) -> bool:
        """Without its supervisor."""
        return self._kill(self._crew.pids()[1:])

    def kill_a_supervisor(self) -> bool:
        """Of an agent that was invited or not."""
        agents = [*local_agents(self._executor)[1:], *self._crew.pids()[1:]]
        return self._kill([parent for pid in agents if (parent := parent_of(pid)) > 1])

    def _kill(self, pids: list[int]) -> bool:
        pids = [pid for pid in pids if pid not in self._busy]
        return bool(pids) and send(self._chance.choice(pids), signal.SIGKILL)

    def stop_shortly(self) -> bool:
        """Ctrl-Z of any agent, for less than the lease."""
        return self._stop([*local_agents(self._executor), *self._crew.pids()], LEASE / 3)

    def stop_a_local_one(self) -> bool:
        """For longer than the hub waits; it ends it then."""
        return self._stop(local_agents(self._executor)[1:], 60.0)

    def _stop(self, pids: list[int], seconds: float) -> bool:
        pids = [pid for pid in pids if pid not in self._busy]
        if not pids:
            return False
        pid = self._chance.choice(pids)
        self._busy.add(pid)
        self._after(seconds, lambda: self._wake([pid]))
        return send(pid, signal.SIGSTOP)

    def stop_for_long(self) -> bool:
        """An agent elsewhere with all that runs there, as if its machine were suspended: it is fenced when it wakes.

        What is below it gets no SIGCONT for a while: the agent has to end it, and we must not be faster.
        """
        free = [pid for pid in self._crew.pids()[1:] if pid not in self._busy]
        if not free:
            return False
        pid = self._chance.choice(free)
        self._busy.add(pid)
        below = [each for each in processes.descendants(pid) if send(each, signal.SIGSTOP)]
        send(pid, signal.SIGSTOP)
        below += [each for each in processes.descendants(pid) if each not in below and send(each, signal.SIGSTOP)]
        began = {each: soak_tasks.began_at(each) for each in below}
        self._after(2 * LEASE, lambda: self._wake([pid]))
        self._after(
            2 * LEASE + 5, lambda: self._wake([each for each in below if soak_tasks.began_at(each) == began[each]])
        )
        return True

    def _wake(self, pids: Iterable[int]) -> None:
        for pid in pids:
            self._busy.discard(pid)
            send(pid, signal.SIGCONT)

    # --- the network --------------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """All connections, and both ends learn of it."""
        self._crew.relay.drop()

    def freeze(self) -> None:
        """As a firewall that has forgotten all connections."""
        self._crew.relay.freeze()

    def cut_shortly(self) -> bool:
        """Less than the lease."""
        return self._cut(LEASE / 3)

    def cut_for_long(self) -> bool:
        """More than the hub's patience."""
        return self._cut(2 * LEASE)

    def _cut(self, seconds: float) -> bool:
        if self._held_up:
            return False
        self._held_up = True
        self._crew.relay.hold_up()
        self._after(seconds, self._heal)
        return True

    def _heal(self) -> None:
        self._held_up = False
        self._crew.relay.go_on()


def local_agents(executor: HPCExecutor) -> list[int]:
    """The agents of this machine that have joined, the oldest first."""
    return [worker.pid for worker in executor.workers() if worker.local]


def parent_of(pid: int) -> int:
    """Its parent; 0 if it is gone."""
    fields = soak_tasks.stat_of(pid)
    return int(fields[1]) if fields else 0


def send(pid: int, number: int) -> bool:
    """Send a signal; whether there was somebody."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
