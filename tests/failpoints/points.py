"""Failpoints: the places of the product where something goes wrong once, and how it goes wrong there.

A test names one :class:`Point` and one action in the variable ``HPC_FAILPOINT``. Each process of the run reads it (the
client by ``workload.py``, all others by ``agent_script.py``) and wraps that one function. The product has no hook.

    HPC_FAILPOINT --> read_fault --> install --> the function, wrapped --> Fault.hit --nth time--> Fault.fire

The n-th call is counted over all processes of the run, so that a fault happens once, whoever is started anew after it.
Standard library only, and little of it: template and interpreters load this.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

#: The variable that holds the fault of a run, as JSON.
VARIABLE = "HPC_FAILPOINT"
#: Seconds that the action "delay" takes.
DELAY = 0.5
ACTIONS = ("exit", "kill", "stop", "raise", "delay")
#: The status with which the action "exit" ends its process.
EXIT_STATUS = 3


class Point(NamedTuple):
    """A function of the product, and which call of it is hit, before or after it does its work.

    ``when`` may also be "given": after it, and calls that give None do not count.
    ``place`` is who calls it: "main", "hub" and "delivery" are threads of the client, the others are processes.
    """

    place: str
    target: str
    when: str = "before"
    number: int = 1

    @property
    def name(self) -> str:
        """A short name for humans."""
        return f"{self.place}-{self.target.rpartition(':')[2]}-{self.when}-{self.number}"


#: The client: what is sent, received, acknowledged, started and settled there.
CLIENT = (
    Point("main", "executor.local:SessionDirectories.__init__"),
    Point("main", "executor.inbox:Inbox.put", "before", 12),
    Point("main", "worker_agent.store:store"),
    Point("main", "executor.hub:Hub.recall"),
    Point("main", "executor.hub:Hub.kill"),
    Point("hub", "executor.agents:Agents.open"),
    Point("hub", "executor.local:launch"),
    Point("hub", "executor.agents:Agents.launch", "after"),
    Point("hub", "worker_agent.codec:decode_reports"),
    Point("hub", "executor.core.members:Members.join", "after"),
    Point("hub", "executor.agents:Agents._send"),
    Point("hub", "executor.agents:Agents._send", "after", 3),
    Point("hub", "executor.core.members:Members.take", "after", 4),
    Point("hub", "executor.core.members:Members.receive", "after", 6),
    Point("hub", "worker_agent.link:Link.acknowledged", "before", 4),
    Point("hub", "executor.core.scheduler:Scheduler.submit", "after"),
    Point("hub", "executor.core.scheduler:Scheduler.receive", "before", 3),
    Point("hub", "executor.core.scheduler:Scheduler.receive", "after", 6),
    Point("hub", "executor.core.scheduler:Scheduler.cancel", "after"),
    Point("hub", "executor.future:TaskFuture.claim", "before", 5),
    Point("hub", "executor.unsettled:Unsettled.settle", "before", 5),
    Point("hub", "executor.unsettled:Unsettled.hand_over_news", "before", 10),
    Point("hub", "executor.hub:Hub._stop_agents"),
    Point("hub", "executor.agents:Agents.close"),
    Point("delivery", "executor.outcome:unpack", "before", 3),
    Point("delivery", "executor.delivery:_settle", "before", 3),
)

#: The agent and its supervisor.
AGENT = (
    Point("supervisor", "worker_agent.supervisor:supervise"),
    Point("supervisor", "worker_agent.supervisor:_wait"),
    Point("supervisor", "worker_agent.supervisor:_reap_all"),
    Point("agent", "worker_agent.supervisor:_become_agent"),
    Point("agent", "worker_agent.spawning:TemplateProcess.__init__", "after"),
    Point("agent", "worker_agent.wire:Wire.connect"),
    Point("agent", "worker_agent.wire:Wire.connect", "after"),
    Point("agent", "worker_agent.codec:decode_orders"),
    Point("agent", "worker_agent.session:AgentSession.receive", "after", 4),
    Point("agent", "worker_agent.session:AgentSession.take", "after", 3),
    Point("agent", "worker_agent.wire:Wire._send_frames", "before", 4),
    Point("agent", "worker_agent.link:Link.acknowledged", "before", 3),
    Point("agent", "worker_agent.lane:Lane.give"),
    Point("agent", "worker_agent.lane:Lane.give", "after", 2),
    Point("agent", "worker_agent.places:Places.release", "before", 5),
    Point("agent", "worker_agent.mailbox:Mailbox.offer", "after", 6),
    Point("agent", "worker_agent.spawning:TemplateProcess.fork", "before", 2),
    Point("agent", "worker_agent.interpreters:Interpreters._on_started", "before", 5),
    Point("agent", "worker_agent.interpreters:Interpreters._on_ended", "before", 5),
    Point("agent", "worker_agent.interpreters:Interpreters._on_ended", "after", 8),
    Point("agent", "worker_agent.interpreters:Interpreters.on_exit", "before", 4),
    Point("agent", "worker_agent.interpreters:Interpreters.on_exit", "after", 4),
    Point("agent", "worker_agent.programs:_execute", "before", 2),
    Point("agent", "worker_agent.programs:_execute", "after", 2),
    Point("agent", "worker_agent.agent:Agent._on_reaped", "before", 1),
    Point("agent", "worker_agent.strays:Strays.kill"),
    Point("agent", "worker_agent.lane:Lane.end"),
    Point("agent", "worker_agent.agent:Agent._on_stop"),
    Point("agent", "worker_agent.agent:Agent._end_everything"),
)

#: The template and the interpreters that it forks.
INTERPRETER = (
    Point("template", "worker_agent.runner:read_setup"),
    Point("template", "worker_agent.runner:prepare", "after"),
    Point("template", "worker_agent.template:Template._obey", "before", 3),
    Point("template", "worker_agent.template:Template._fork", "before", 3),
    Point("template", "worker_agent.template:Template._fork", "after", 3),
    Point("template", "worker_agent.template:Template._reap", "after", 2),
    Point("interpreter", "worker_agent.template:Template._become_interpreter", "before", 3),
    Point("interpreter", "worker_agent.channel:take_task", "before", 4),
    Point("interpreter", "worker_agent.channel:take_task", "after", 4),
    Point("interpreter", "worker_agent.runner:Interpreter._next_task", "after", 4),
    Point("interpreter", "worker_agent.runner:Interpreter._execute", "after", 4),
    Point("interpreter", "worker_agent.store:Spill._open_next"),
    Point("interpreter", "worker_agent.runner:Interpreter._send", "before", 5),
    Point("interpreter", "worker_agent.runner:Interpreter._send", "after", 5),
    Point("interpreter", "worker_agent.runner:leave", "before", 5),
    Point("template", "worker_agent.template:Template._turn_to"),
    Point("template", "worker_agent.template:Template._turn_to", "after"),
)

#: With interpreters that are kept: they take the next task before anybody has asked them to.
REUSED = (
    Point("agent", "worker_agent.mailbox:Mailbox.offer", "after", 6),
    Point("agent", "worker_agent.interpreters:Interpreters._go_on", "before", 6),
    Point("template", "worker_agent.template:Template._fork", "after", 2),
    Point("interpreter", "worker_agent.channel:take_task", "after", 4),
    Point("interpreter", "worker_agent.runner:Interpreter._take_waiting", "given", 3),
    Point("interpreter", "worker_agent.runner:Interpreter._send", "before", 5),
    Point("interpreter", "worker_agent.runner:Interpreter._send", "after", 5),
)

#: With interpreters that are executed one by one.
SPAWNED = (
    Point("agent", "worker_agent.source:Source._spawn", "before", 2),
    Point("agent", "worker_agent.source:Source._spawn", "after", 2),
    Point("agent", "worker_agent.interpreters:Interpreters.reaped"),
    Point("interpreter", "worker_agent.runner:prepare", "before", 2),
    Point("interpreter", "worker_agent.runner:Interpreter._send", "before", 5),
)

#: With two agents, one of which is hit while the other one goes on.
TWO_AGENTS = (
    Point("supervisor", "worker_agent.supervisor:_wait", "before", 2),
    Point("agent", "worker_agent.wire:Wire.connect", "after", 2),
    Point("agent", "worker_agent.session:AgentSession.receive", "after", 6),
    Point("agent", "worker_agent.interpreters:Interpreters._on_started", "after", 6),
    Point("agent", "worker_agent.interpreters:Interpreters._on_ended", "before", 6),
    Point("agent", "worker_agent.agent:Agent._on_stop"),
)

#: With two agents that were invited: what they do not say in time counts as lost.
INVITED = (
    Point("hub", "executor.network:Network.send", "after", 6),
    Point("hub", "executor.core.members:Members.receive", "after", 8),
    Point("agent", "worker_agent.codec:decode_orders", "before", 4),
    Point("agent", "worker_agent.session:AgentSession.receive", "after", 6),
    Point("agent", "worker_agent.wire:Wire._send_frames", "before", 8),
    Point("agent", "worker_agent.link:Link.acknowledged", "after", 6),
    Point("agent", "worker_agent.interpreters:Interpreters._on_ended", "before", 5),
)

#: Where an agent loses its supervisor while it runs tasks, and takes a moment to notice.
ORPHANED = (
    Point("agent", "worker_agent.interpreters:Interpreters._on_started", "after", 2),
    Point("agent", "worker_agent.programs:_execute", "after"),
)

#: Places by the role in which a process of ours is started; each installs only what runs there.
_PLACES = {
    "client": ("main", "hub", "delivery"),
    "agent": ("supervisor", "agent"),
    "template": ("template", "interpreter"),
    "spawned": ("interpreter",),
}


class Injected(RuntimeError):
    """What the action "raise" raises."""


class Fault:
    """What is to go wrong in this run."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.point = Point(*fields["point"])
        self.action: str = fields["action"]
        self.directory: str = fields["directory"]
        #: constants of the agent that have other values in this run, so that the point is reached each time
        self.constants: dict[str, Any] = fields["constants"]

    @property
    def history(self) -> str:
        """The file to which tasks and faults append what they do."""
        return os.path.join(self.directory, "history")

    def hit(self) -> None:
        """The function is called; if it is the call that counts, here it goes wrong."""
        if append(os.path.join(self.directory, "calls"), ".") == self.point.number:
            self.fire()

    def fire(self) -> None:
        """Say so, and go wrong."""
        append(self.history, f"fault {self.action} {os.getpid()}\n")
        append(os.path.join(self.directory, "fired"), f"{os.getpid()}\n")
        _DOINGS[self.action]()


def append(path: str, text: str) -> int:
    """Append a text to a file, as a whole; gives the size of the file with it: nobody else gets the same."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode())
        return os.lseek(fd, 0, os.SEEK_CUR)
    finally:
        os.close(fd)


def _raise() -> None:
    raise Injected("a failpoint")


def _lose_supervisor() -> None:
    """In an agent: its supervisor is killed while it is busy."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(3 * DELAY)


_DOINGS: dict[str, Callable[[], object]] = {
    "exit": lambda: os._exit(EXIT_STATUS),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "stop for long": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "raise": _raise,
    "orphan": _lose_supervisor,
    "delay": lambda: time.sleep(DELAY),
}


def read_fault() -> Fault:
    """The fault of this run."""
    return Fault(json.loads(os.environ[VARIABLE]))


def write_fault(point: Point, action: str, directory: str, constants: dict[str, Any]) -> str:
    """What :func:`read_fault` reads, for the variable."""
    return json.dumps({"point": point, "action": action, "directory": directory, "constants": constants})


def set_constants(fault: Fault) -> None:
    """Give constants of this process the values of the run."""
    for path, value in fault.constants.items():
        module, _, name = path.partition(":")
        __import__(module)
        setattr(sys.modules[module], name, value)


def install(fault: Fault, role: str) -> None:
    """Wrap the function, if it is one that a process of this role calls. Before anybody has called it."""
    if fault.point.place not in _PLACES[role]:
        return
    module, _, path = fault.point.target.partition(":")
    __import__(module)
    owner, names = sys.modules[module], path.split(".")
    for name in names[:-1]:
        owner = getattr(owner, name)
    setattr(owner, names[-1], _wrap(getattr(owner, names[-1]), fault))


def _wrap(function: Callable[..., Any], fault: Fault) -> Callable[..., Any]:
    when = fault.point.when

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            fault.hit()
        result = function(*args, **kwargs)
        if when == "after" or (when == "given" and result is not None):
            fault.hit()
        return result

    return wrapper
