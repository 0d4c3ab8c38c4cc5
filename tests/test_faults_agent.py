"""Faults of agents: killed, told to leave, stopped, stuck, twice there, of another version, on a full disk.

Part C of the catalogue, as far as one machine shows it; test_kill_everything.py, test_agents.py and test_invited.py
have the rest of it. Some agents here are the real ones, some are real ones with a fault built in (``broken_agent``),
and some are made by hand from the pure parts of ours (``HandMade``): these say what no agent would say.
"""

# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import zmq
from pools import PATIENCE, error_of, gate, new_executor, outcome, sh
from test_agents import agent_of
from test_invited import Join, copied, join
from waiting import (
    Gate,
    announce,
    announced,
    parent_of,
    pass_gate,
    state_of,
    wait_announced,
    wait_gone,
    wait_until,
)

from executor import AgentFailed, HPCExecutor, TaskKilled, TaskLost, TaskTimeout, agents, local
from executor.core import members
from worker_agent import codec, dialing, protocol
from worker_agent.connection import read_connection
from worker_agent.pools import Pool
from worker_agent.session import AgentSession, Incoming

pytestmark = pytest.mark.shared

NewExecutor = Callable[..., HPCExecutor]

# By value, or each fresh interpreter would import pytest to find its function.
for name in (__name__, "test_agents"):
    cloudpickle.register_pickle_by_value(sys.modules[name])


def supervisor_of(pid: int) -> int:
    """The supervisor of the agent under which an interpreter runs."""
    return parent_of(agent_of(pid))


@pytest.fixture
def broken_agent(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts an invited agent with a fault: ``fault`` is Python that runs before it, ``path`` its invitation."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Any, fault: str, *before: str) -> subprocess.Popen[str]:
        script = tmp_path / f"agent-{len(started)}.py"
        end = "\nfrom worker_agent.__main__ import main\nmain(sys.argv[1:])\n"
        script.write_text("import sys\n" + textwrap.dedent(fault) + end)
        command = [*before, sys.executable, str(script), os.fspath(path)]
        env = {**os.environ, "PYTHONPATH": str(Path(local.__file__).parents[1])}
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env))
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        try:
            process.communicate(timeout=20)
        finally:
            process.kill()


# ---- C1: killed


def test_the_loss_of_an_invited_agent_is_noticed_at_once(
    new_executor: NewExecutor, join: Join, gate: Gate
) -> None:
    """C1: only its process died, so its supervisor starts another one, whose hello tells that the first is gone.

    Its silence would tell so only after 45 s, and meanwhile its task would not run.
    """
    executor = new_executor(1, agents=0)
    join(executor.invite(1, host="127.0.0.1"))
    future = executor.submit(pass_gate, *gate.paths)
    [first] = gate.wait_arrivals()
    began = time.monotonic()
    os.kill(agent_of(first), signal.SIGKILL)
    _, second = gate.wait_arrivals(2)
    assert time.monotonic() - began < 15
    assert not os.path.exists(f"/proc/{first}"), "an attempt is still alive while the next one runs"
    assert len(executor.workers()) == 1
    gate.open()
    assert (outcome(future), future.attempt) == (second, 2)


def test_an_invited_agent_whose_supervisor_is_killed_ends_its_tasks_and_says_so(
    new_executor: NewExecutor, join: Join, gate: Gate
) -> None:
    """C1: it has the parent-death signal, and the hub need not wait for its silence."""
    executor = new_executor(1, agents=0)
    invitation = executor.invite(2, host="127.0.0.1")
    join(invitation)
    future = executor.submit(pass_gate, *gate.paths)
    [first] = gate.wait_arrivals()
    began = time.monotonic()
    os.kill(supervisor_of(first), signal.SIGKILL)
    wait_until(lambda: not executor.workers())
    assert time.monotonic() - began < 15
    wait_gone(first)
    join(invitation)
    gate.open()
    assert (outcome(future) != first, future.attempt) == (True, 2)


def test_an_invited_agent_that_is_killed_again_and_again_costs_a_task_its_crash_limit(
    new_executor: NewExecutor, join: Join
) -> None:
    """C23: a task that kills its agent each time; whoever waits behind it is served by the agent that comes next."""

    def poison() -> None:
        os.kill(agent_of(os.getpid()), signal.SIGKILL)
        threading.Event().wait()

    executor = new_executor(1, agents=0)
    join(executor.invite(1, host="127.0.0.1"))
    future = executor.options(crash_limit=2).submit(poison)
    others = [executor.submit(pow, number, 2) for number in range(10)]
    error = error_of(future)
    assert isinstance(error, TaskLost)
    assert error.losses == 3
    assert os.uname().nodename in str(error)
    assert [outcome(other) for other in others] == [number**2 for number in range(10)]


def test_an_agent_that_dies_at_its_start_each_time_is_not_started_for_ever(
    new_executor: NewExecutor, broken_agent: Any, tmp_path: Path
) -> None:
    """C17: the supervisor gives up, and its status says how the last one ended."""
    fault = f"""
        import os, signal
        import worker_agent.__main__ as program
        def die(*_):
            with open({str(tmp_path / "starts")!r}, "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        program._run_agent = die
    """
    process = broken_agent(new_executor(1, agents=0).invite(1, host="127.0.0.1"), fault)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGKILL
    assert len((tmp_path / "starts").read_text()) == 11


ORDERS = ["Welcome", "Prepare", "Define", "Open", "Run"]
REPORTS = ["Started", "Finished"]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("message", ORDERS + REPORTS)
def test_an_agent_may_be_killed_at_any_message(
    new_executor: NewExecutor, broken_agent: Any, tmp_path: Path, message: str, moment: str
) -> None:
    """C1: before and after it takes each order and says each report. No task is lost, none runs twice at a time."""
    fault = f"""
        import os, signal
        from worker_agent import agent

        def fail():
            try:
                open({str(tmp_path / "failed")!r}, "x").close()
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

        def failing(action, *args):
            "before" == {moment!r} and fail()
            action(*args)
            fail()

        class Broken(agent.Agent):
            def __init__(self, *args):
                super().__init__(*args)
                for kind, action in list(self._handlers.items()):
                    if kind.__name__ == {message!r}:
                        self._handlers[kind] = lambda order, action=action: failing(action, order)

            def report(self, report):
                if type(report).__name__ == {message!r}:
                    failing(super().report, report)
                else:
                    super().report(report)

        agent.Agent = Broken
    """
    executor = new_executor(2, agents=0)
    broken_agent(executor.invite(1, host="127.0.0.1"), fault)
    story = tmp_path / "story"

    def tell(number: int) -> int:
        announce(story, number, os.getpid())
        if number == 0:
            time.sleep(0.02)  # long enough for a report that it has started
        return number**2

    futures = [executor.submit(tell, number) for number in range(12)]
    assert [outcome(future) for future in futures] == [number**2 for number in range(12)]
    assert (tmp_path / "failed").exists()
    told = announced(story)
    assert set(told[::2]) == set(range(12))
    assert max(future.attempt for future in futures) <= 2


# ---- C2: told to leave


@pytest.fixture(autouse=True)
def leaving_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """That an agent leaves is no warning: it happens each day."""
    caplog.set_level(logging.INFO, "executor")


@pytest.fixture(params=["agent", "supervisor"])
def leave(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Tells the agent to leave under which an interpreter runs, as a batch system would: either of the two."""

    def tell(pid: int) -> None:
        os.kill(agent_of(pid) if request.param == "agent" else supervisor_of(pid), signal.SIGTERM)

    return tell


def wait_leaving(caplog: pytest.LogCaptureFixture, times: int = 1) -> None:
    """Until the hub knows that an agent leaves."""
    wait_until(lambda: caplog.text.count("is about to leave") >= times)


def test_an_agent_that_is_told_to_leave_lets_its_tasks_end_within_their_grace(
    new_executor: NewExecutor, gate: Gate, tmp_path: Path, caplog: Any, leave: Any
) -> None:
    """C2: what runs gives its result; what had not started runs on the agent that takes its place."""
    executor = new_executor(1, kill_grace=30)
    future = executor.submit(pass_gate, *gate.paths)
    waiting = [executor.submit(agent_of_this) for _ in range(3)]
    [pid] = gate.wait_arrivals()
    agent = agent_of(pid)
    leave(pid)
    wait_leaving(caplog)
    assert not any(each.done() for each in waiting)
    gate.open()
    assert (outcome(future), future.attempt) == (pid, 1)
    assert agent not in {outcome(each) for each in waiting}
    wait_gone(agent)


def agent_of_this() -> int:
    return agent_of(os.getpid())


@pytest.mark.parametrize("kind", ["call", "reused", "program"])
def test_what_does_not_end_in_its_grace_runs_again_and_no_limit_counts_that(
    new_executor: NewExecutor, gate: Gate, kind: str, leave: Any
) -> None:
    """C2: three agents leave, and the task may lose one."""
    executor = new_executor(1, kill_grace=0.1, max_tasks_per_child=None if kind == "reused" else 1)
    bound = executor.options(crash_limit=1)
    if kind == "program":
        future = bound.submit(sh('exec 9<"$1"; echo $$ >> "$0"; read -r -n1 token <&9 || head -c1 <&9', *gate.paths))
    else:
        future = bound.submit(pass_gate, *gate.paths)
    for number in range(1, 4):
        pids = gate.wait_arrivals(number)
        leave(pids[-1])
    pids = gate.wait_arrivals(4)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids[:3])
    gate.open()
    outcome(future)
    assert (future.attempt, future.pid) == (4, pids[-1])


def test_what_may_never_start_twice_is_lost_with_an_agent_that_leaves(
    new_executor: NewExecutor, gate: Gate, leave: Any
) -> None:
    """C2, P3: ``crash_limit=0`` is at most once, whoever is to blame; what had not started has nothing to fear."""
    executor = new_executor(1, kill_grace=0.1)
    once = executor.options(crash_limit=0)
    future, waiting = once.submit(pass_gate, *gate.paths), once.submit(pow, 2, 3)
    leave(gate.wait_arrivals()[0])
    error = error_of(future)
    assert isinstance(error, TaskLost)
    assert "told to leave" in str(error)
    assert outcome(waiting) == 8


def test_while_an_agent_leaves_others_get_the_tasks(
    new_executor: NewExecutor, gate: Gate, caplog: Any, leave: Any
) -> None:
    """C2: it takes no new ones, and hinders nobody."""
    executor = new_executor(2, agents=2, kill_grace=30)
    held = executor.submit(pass_gate, *gate.paths)
    [pid] = gate.wait_arrivals()
    leave(pid)
    wait_leaving(caplog)
    later = [executor.submit(agent_of_this) for _ in range(20)]
    [other] = {outcome(each) for each in later}
    assert other != agent_of(pid)
    assert not held.done()
    gate.open()
    assert (outcome(held), held.attempt) == (pid, 1)


def test_an_agent_that_is_killed_while_it_leaves_costs_no_loss_either(
    new_executor: NewExecutor, gate: Gate, caplog: Any
) -> None:
    """C2, G6: batch systems send SIGTERM, and SIGKILL soon after."""
    executor = new_executor(1, kill_grace=30)
    future = executor.options(crash_limit=1).submit(pass_gate, *gate.paths)
    for number in range(1, 4):
        pid = gate.wait_arrivals(number)[-1]
        os.kill(supervisor_of(pid), signal.SIGTERM)
        wait_leaving(caplog, number)
        os.kill(agent_of(pid), signal.SIGKILL)
    pid = gate.wait_arrivals(4)[-1]
    gate.open()
    assert (outcome(future), future.attempt) == (pid, 4)


@pytest.mark.parametrize("end", ["time limit", "kill", "cancel", "terminate"])
def test_tasks_of_an_agent_that_leaves_can_be_ended(
    new_executor: NewExecutor, gate: Gate, caplog: Any, end: str
) -> None:
    """C2: before their grace is over, and they do not run again."""
    executor = new_executor(1, kill_grace=30)
    future = executor.options(time_limit=1 if end == "time limit" else None).submit(pass_gate, *gate.paths)
    [pid] = gate.wait_arrivals()
    os.kill(supervisor_of(pid), signal.SIGTERM)
    wait_leaving(caplog)
    if end == "kill":
        future.kill()
    elif end == "cancel":
        assert future.cancel(kill=True)
    elif end == "terminate":
        executor.terminate_workers()
    wait_gone(pid)
    if end == "cancel":
        assert future.cancelled()
    elif end != "terminate":
        assert isinstance(error_of(future), TaskTimeout if end == "time limit" else TaskKilled)
    assert gate.wait_arrivals() == [pid]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2])
def test_an_invited_agent_that_is_told_to_leave_goes_in_peace(
    new_executor: NewExecutor, join: Join, gate: Gate, caplog: Any, number: int
) -> None:
    """C2: by its batch system (USR2: Grid Engine), by Ctrl-C, or by the end of its terminal. Another one goes on."""
    executor = new_executor(1, agents=0, kill_grace=0.1)
    invitation = executor.invite(2, host="127.0.0.1")
    # whoever runs the tests may have told us to ignore the signal (nohup, a job in the background), and so the agent
    process = join(invitation, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))
    future = executor.options(crash_limit=1).submit(pass_gate, *gate.paths)
    [first] = gate.wait_arrivals()
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    wait_until(lambda: not executor.workers())
    join(invitation)
    second = gate.wait_arrivals(2)[-1]
    gate.open()
    assert (outcome(future), future.attempt, first != second) == (second, 2, True)


def test_an_idle_agent_that_is_told_to_leave_does_so_at_once(new_executor: NewExecutor, join: Join) -> None:
    """C2: whatever the grace."""
    executor = new_executor(1, agents=0, kill_grace=1000)
    process = join(executor.invite(1, host="127.0.0.1"))
    assert outcome(executor.submit(pow, 2, 3)) == 8
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 0
    wait_until(lambda: not executor.workers())


def test_an_agent_is_ended_by_force_whatever_signals_the_client_has_blocked(run_script: Any) -> None:
    """C2: blocked signals are inherited, and a supervisor that hears none could not be told anything."""
    ended = run_script("""if True:
        import os, signal, sys
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        from executor import HPCExecutor
        from executor.core import members
        members.LOCAL_PATIENCE = 1.0
        executor = HPCExecutor(1, lease=1)
        def stop_agent():
            with open(f"/proc/{os.getppid()}/stat") as template:
                agent = int(template.read().rpartition(")")[2].split()[1])
            if int(os.environ["HPC_ATTEMPT"]) == 1:
                os.kill(agent, signal.SIGSTOP)
                signal.pause()
            return "again"
        print(executor.submit(stop_agent).result(20))
    """, env={"PYTHONWARNINGS": "ignore"})
    assert (ended.returncode, ended.stdout) == (0, "again\n"), ended.stderr


# ---- agents made by hand


class HandMade:
    """An invited agent that is a thread of the test: it says what it is told to, and notes its orders."""

    def __init__(self, invitation: Any, **hello: Any) -> None:
        self._connection = read_connection(Path(invitation).read_bytes())
        self._context = zmq.Context()
        keys = [key.encode() for key in (
            self._connection.server_key, self._connection.public_key, self._connection.secret_key)]  # fmt: skip
        self._socket = dialing.agent_socket(self._context, *keys)
        self._socket.connect(self._connection.endpoints[0])
        self._hello = {"process": f"process {id(self)}", "name": "", **hello}
        names = iter(range(1000))
        self.session = AgentSession(
            self._connection.session, self._say_hello, lambda: f"name {id(self)} {next(names)}"
        )
        self.orders: list[Any] = []
        self.fenced = 0
        self.refused = ""

    def _say_hello(self, name: str) -> protocol.Hello:
        fields = {
            "launch": self._connection.launch, "host": "by hand", "pid": os.getpid(),
            "pools": [Pool("cpus", [["0"]])], "python": sys.version.split()[0], **self._hello, "name": name,
        }  # fmt: skip
        return protocol.Hello(**fields)

    def turn(self) -> None:
        """Send what is to be sent and take what has come."""
        while (frame := self.session.take(time.monotonic())) is not None:
            self.send(frame)
        if self._socket.poll(20):
            self._take(self.session.receive(self.receive(), time.monotonic()))

    def receive(self) -> protocol.Orders:
        """The next frame."""
        assert self._socket.poll(10_000)
        return codec.decode_orders(self._socket.recv())

    def send(self, frame: bytes) -> None:
        """Bytes to the hub, as soon as there is a connection."""
        assert self._socket.poll(10_000, zmq.POLLOUT)
        self._socket.send(frame)

    def _take(self, incoming: Incoming) -> None:
        self.orders += incoming.orders
        self.fenced += incoming.fenced
        self.refused = self.refused or incoming.refused

    def until(self, condition: Callable[[], Any]) -> Any:
        """Go on until something is so."""
        end = time.monotonic() + 20
        while not (found := condition()):
            assert time.monotonic() < end, f"{self.orders}, fenced {self.fenced}, refused {self.refused!r}"
            self.turn()
        return found

    def runs(self) -> list[protocol.Run]:
        """The tasks that it was given."""
        return [order for order in self.orders if isinstance(order, protocol.Run)]

    def finish(self, run: protocol.Run, end: str = protocol.COMPLETED, **fields: Any) -> None:
        """Say that a task has ended."""
        self.session.report(protocol.Finished(run.task, run.attempt, end, **{"returncode": 0, **fields}))

    def settle(self) -> None:
        """Until the hub has all that was said."""
        self.until(lambda: self.session.said_all)

    def close(self) -> None:
        """It leaves, or the end of the executor would wait for it."""
        end = time.monotonic() + 0.5
        while not self.session.epoch and not self.refused and time.monotonic() < end:
            self.turn()
        self.session.report(protocol.Bye("the test is over"))
        self.turn()
        self._socket.close(linger=0)
        self._context.term()


@pytest.fixture
def by_hand() -> Iterator[Callable[..., HandMade]]:
    """Makes agents that a test plays."""
    made: list[HandMade] = []

    def make(invitation: Any, **hello: Any) -> HandMade:
        made.append(HandMade(invitation, **hello))
        return made[-1]

    yield make
    for each in made:
        each.close()


ByHand = Callable[..., HandMade]
TRUE = sh("exit 0")


def test_an_agent_made_by_hand_is_as_good_as_another(new_executor: NewExecutor, by_hand: ByHand) -> None:
    """Or the tests below would show nothing."""
    executor = new_executor(1, agents=0)
    agent = by_hand(executor.invite(1, host="127.0.0.1"))
    future = executor.submit(TRUE)
    agent.until(agent.runs)
    agent.finish(agent.runs()[0])
    agent.until(future.done)
    assert (future.result().returncode, future.host) == (0, "by hand")


def test_a_second_agent_of_the_same_name_takes_the_place_of_the_first(
    new_executor: NewExecutor, by_hand: ByHand, tmp_path: Path
) -> None:
    """C9: a copy (a virtual machine that was cloned, say). The two are never taken for one: the first is fenced."""
    executor = new_executor(1, agents=0)
    invitation = copied(executor.invite(1, host="127.0.0.1"), tmp_path)
    first = by_hand(invitation, process="the same")
    future = executor.submit(TRUE)
    first.until(first.runs)
    second = by_hand(invitation, process="the same")
    second.until(second.runs)
    assert [second.runs()[0].task, second.runs()[0].attempt] == [first.runs()[0].task, 2]
    first.finish(first.runs()[0], returncode=7)
    first.until(lambda: first.fenced)
    assert not future.done()
    second.finish(second.runs()[0])
    second.until(future.done)
    assert (future.result().returncode, future.attempt) == (0, 2)


def test_an_agent_of_another_invitation_cannot_take_a_place_by_its_name(
    new_executor: NewExecutor, by_hand: ByHand
) -> None:
    """C9: whose key it has decides."""
    executor = new_executor(1, agents=0)
    first = by_hand(executor.invite(1, host="127.0.0.1"), process="the same")
    future = executor.submit(TRUE)
    first.until(first.runs)
    second = by_hand(executor.invite(1, host="127.0.0.1"), process="the same")
    for _ in range(5):
        second.turn()
    assert second.orders == []
    first.finish(first.runs()[0])
    first.until(future.done)
    assert (future.result().returncode, future.attempt, first.fenced) == (0, 1, 0)


def test_a_result_that_comes_after_the_task_was_given_to_another_is_dropped(
    new_executor: NewExecutor, by_hand: ByHand
) -> None:
    """C11, C4: from the old epoch, and once more after the agent has joined anew."""
    executor = new_executor(1, agents=0, lease=1)
    invitation = executor.invite(2, host="127.0.0.1")
    slow, quick = by_hand(invitation), by_hand(invitation)
    future = executor.submit(TRUE)
    slow.until(slow.runs)
    quick.until(quick.runs)  # it goes on talking; the other one is silent
    assert quick.runs()[0].attempt == 2
    late = slow.runs()[0]
    slow.finish(late, returncode=7)
    slow.until(lambda: slow.fenced and slow.session.epoch)
    slow.finish(late, returncode=7)
    slow.settle()
    assert not future.done()
    quick.finish(quick.runs()[0])
    quick.until(future.done)
    assert (future.result().returncode, future.attempt) == (0, 2)


def test_results_that_nobody_waits_for_are_dropped(new_executor: NewExecutor, by_hand: ByHand) -> None:
    """C12, C13: of a task that is unknown, cancelled, finished; of an attempt that is over or has not begun."""
    executor = new_executor(1, agents=0)
    agent = by_hand(executor.invite(1, host="127.0.0.1"), pools=[Pool("cpus", [["0", "1", "2"]])])
    finished, cancelled, current = [executor.submit(TRUE) for _ in range(3)]
    agent.until(lambda: len(agent.runs()) == 3)
    runs = {run.task: run for run in agent.runs()}
    agent.finish(runs[finished.task_id])
    agent.until(finished.done)
    asking = threading.Thread(target=cancelled.cancel)
    asking.start()
    agent.until(lambda: [order for order in agent.orders if isinstance(order, protocol.Recall)])
    agent.session.report(protocol.Recalled(cancelled.task_id, 1, True))
    agent.until(cancelled.cancelled)
    asking.join()
    for task, attempt in ((10**6, 1), (2**63 - 1, 1), (finished.task_id, 1), (cancelled.task_id, 1),
                          (current.task_id, 0), (current.task_id, 2), (-1, -1)):  # fmt: skip
        for report in (
            protocol.Started(task, attempt, 1, 0.0), protocol.Output(task, attempt, 1, b"x"),
            protocol.Recalled(task, attempt, True), protocol.Finished(task, attempt, protocol.COMPLETED, returncode=7),
            protocol.Finished(task, attempt, protocol.LOST), protocol.Finished(task, attempt, protocol.RETURNED),
            protocol.Finished(task, attempt, "no such end"),
        ):  # fmt: skip
            agent.session.report(report)
    agent.settle()
    assert not current.done()
    agent.finish(runs[current.task_id])
    agent.until(current.done)
    assert (current.result().returncode, finished.result().returncode, cancelled.cancelled()) == (0, 0, True)


def test_an_agent_cannot_end_the_task_of_another(new_executor: NewExecutor, by_hand: ByHand) -> None:
    """C14: what it claims is dropped."""
    executor = new_executor(1, agents=0)
    invitation = executor.invite(2, host="127.0.0.1")
    owner = by_hand(invitation)
    future = executor.submit(TRUE)
    owner.until(owner.runs)
    liar = by_hand(invitation)
    liar.until(lambda: liar.session.epoch)
    for end in (protocol.COMPLETED, protocol.LOST, protocol.RETURNED, protocol.KILLED, protocol.NOT_STARTED):
        liar.finish(owner.runs()[0], end, returncode=7)
    liar.session.report(protocol.Recalled(future.task_id, 1, True))
    liar.settle()
    assert not future.done()
    owner.finish(owner.runs()[0])
    owner.until(future.done)
    assert (future.result().returncode, future.attempt, future.host) == (0, 1, "by hand")


@pytest.mark.parametrize(
    ("hello", "words"),
    [({"python": "2.7.18"}, ["2.7.18", "3."]), ({"cloudpickle": "1.0"}, ["cloudpickle 1.0", cloudpickle.__version__])],
    ids=["python", "cloudpickle"],
)
def test_an_agent_of_another_version_is_refused_and_others_go_on(
    new_executor: NewExecutor, by_hand: ByHand, caplog: Any, hello: dict[str, str], words: list[str]
) -> None:
    """C18, A24: both versions are named, on both sides."""
    executor = new_executor(1)
    agent = by_hand(executor.invite(1, host="127.0.0.1"), **hello)
    agent.until(lambda: agent.refused)
    assert all(word in agent.refused for word in words)
    assert all(word in caplog.text for word in words)
    assert outcome(executor.submit(pow, 2, 3)) == 8


def test_an_agent_of_another_protocol_is_refused_and_others_go_on(
    new_executor: NewExecutor, by_hand: ByHand, monkeypatch: Any
) -> None:
    """C18: by a frame that it may not be able to read more of than its beginning."""
    executor = new_executor(1)
    agent = by_hand(executor.invite(1, host="127.0.0.1"))
    hello = agent._say_hello("of another version")
    agent.send(codec.encode(protocol.Reports(99, agent._connection.session, 0, 0, 0, False, 0.0, [hello])))
    refusal = agent.receive().messages[0].text
    assert "protocol 99" in refusal
    assert f"protocol {protocol.PROTOCOL}" in refusal
    assert outcome(executor.submit(pow, 2, 3)) == 8


# ---- C10: connections


class Proxy:
    """Stands between an agent and its hub, and cuts their connections."""

    def __init__(self, endpoint: str) -> None:
        import socket

        self._target = re.fullmatch(r"tcp://(.*):(\d+)", endpoint).groups()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[Any] = []
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        import socket

        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection((self._target[0], int(self._target[1])))
            self._open += [near, far]
            self.connections += 1
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=pair, daemon=True).start()

    def _copy(self, source: Any, target: Any) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        self._end(source, target)

    def _end(self, *ends: Any) -> None:
        import socket

        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def cut(self) -> None:
        """What is on the way is lost."""
        ends, self._open = self._open, []
        self._end(*ends)

    def close(self) -> None:
        """No more."""
        self._end(self._listener)
        self.cut()


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Callable[[Any], tuple[Proxy, Path]]]:
    """Puts a proxy into an invitation."""
    made: list[Proxy] = []

    def make(invitation: Any) -> tuple[Proxy, Path]:
        proxy = Proxy(invitation.endpoints[0])
        made.append(proxy)
        text = Path(invitation).read_text().replace(invitation.endpoints[0], proxy.endpoint)
        path = tmp_path / "through the proxy"
        path.touch(0o600)
        path.write_text(text)
        return proxy, path

    yield make
    for proxy in made:
        proxy.close()


def test_an_agent_whose_connection_is_cut_goes_on_and_nothing_runs_twice(
    new_executor: NewExecutor, join: Join, proxied: Any, gate: Gate
) -> None:
    """C10, C5: in the middle of five hundred tasks, again and again; what was lost is sent again."""
    executor = new_executor(2, agents=0, max_tasks_per_child=None)
    proxy, path = proxied(executor.invite(1, host="127.0.0.1"))
    join(path)
    held = executor.submit(pass_gate, *gate.paths)
    [pid] = gate.wait_arrivals()
    futures = [executor.submit(pow, number, 2) for number in range(500)]
    for number in range(0, 500, 125):
        outcome(futures[number])
        cuts = proxy.connections
        proxy.cut()
        wait_until(lambda: proxy.connections > cuts)
    gate.open()
    assert [outcome(future) for future in futures] == [number**2 for number in range(500)]
    assert (outcome(held), held.attempt) == (pid, 1)
    assert {future.attempt for future in futures} == {1}
    executor.shutdown()  # as long as there is a proxy


# ---- C15, C16, C17: stuck, or never there


def test_an_agent_that_is_stuck_is_found_though_its_sockets_still_answer(
    new_executor: NewExecutor, broken_agent: Any, join: Join, tmp_path: Path
) -> None:
    """C15: it holds the GIL in C, so ZeroMQ's thread answers pings; what counts is what the agent itself says."""
    fault = f"""
        import ctypes, os
        from worker_agent import agent
        from pathlib import Path

        class Stuck(agent.Agent):
            def _on_run(self, order):
                super()._on_run(order)
                if not Path({str(tmp_path / "pid")!r}).exists():
                    Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()) + "\\n")
                    ctypes.PyDLL(None).pause()

        agent.Agent = Stuck
    """
    executor = new_executor(1, agents=0, lease=1)
    invitation = executor.invite(2, host="127.0.0.1")
    broken_agent(invitation, fault)
    future = executor.submit(pow, 2, 3)
    [pid] = wait_announced(tmp_path / "pid")
    join(invitation)
    assert (outcome(future), future.attempt) == (8, 2)
    os.kill(pid, signal.SIGINT)  # which ends the pause
    wait_until(lambda: len(executor.workers()) == 2)
    assert outcome(executor.submit(pow, 2, 4)) == 16


@pytest.fixture
def agent_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Has another script started in the place of local agents."""

    def use(text: str) -> None:
        (tmp_path / "agent.py").write_text(text)
        monkeypatch.setattr(local, "_SCRIPT", str(tmp_path / "agent.py"))

    return use


@pytest.mark.parametrize("number", [1, 2])
def test_agents_that_fail_at_their_start_are_an_error_with_their_cause(
    new_executor: NewExecutor, agent_script: Any, number: int
) -> None:
    """C17: within seconds, and they are not started for ever."""
    agent_script("import sys; sys.exit('no such library: libexample.so')")
    executor = new_executor(2, agents=number)
    error = error_of(executor.submit(pow, 2, 3))
    assert isinstance(error, AgentFailed)
    assert "no such library: libexample.so" in str(error)


def test_an_agent_that_never_says_hello_is_given_up(
    new_executor: NewExecutor, agent_script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C16: the error has what it wrote, and it is ended."""
    agent_script("import os, signal, sys; print('waiting for the licence server', file=sys.stderr); signal.pause()")
    monkeypatch.setattr(agents, "LAUNCH_PATIENCE", 0.5)
    error = error_of(new_executor(1).submit(pow, 2, 3))
    assert isinstance(error, AgentFailed)
    assert "waiting for the licence server" in str(error)


# ---- C19: a full disk


def test_with_a_full_disk_a_result_fails_and_the_agent_lives(run_script: Any) -> None:
    """C19: in a mount namespace, where all that the session may write to has 256 KiB."""
    if os.getuid() != 0 or not shutil.which("unshare"):
        pytest.skip("a file system of a known size is for root, with unshare(1)")
    ended = run_script("""if True:
        import ctypes, os, subprocess, sys, tempfile
        ctypes.CDLL(None).unshare(0x00020000)
        folder = tempfile.mkdtemp()
        for place in ("/dev/shm", folder):
            for command in (["mount", "--make-rprivate", "/"], ["mount", "-t", "tmpfs", "-o", "size=256k", "x", place]):
                subprocess.run(command, check=True)
        tempfile.tempdir = folder
        from executor import HPCExecutor
        with HPCExecutor(1) as executor:
            print(type(executor.submit(pow, 2, 3).exception()).__name__)
            print(executor.submit(bytes, 3_000_000).exception())
            print(executor.submit(len, bytes(3_000_000)).exception())
            agents = [executor.submit(os.getppid).result() for _ in range(2)]
            print(executor.submit(bytes, 100_000).exception(), agents[0] == agents[1])
    """)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("NoneType", "None True")
    assert all("No space left" in line for line in lines[1:-1]), ended.stdout


# ---- C20: clocks


def test_an_agent_whose_wall_clock_jumps_by_years_works(new_executor: NewExecutor, broken_agent: Any) -> None:
    """C20: nobody compares the clocks of two machines."""
    fault = """
        import itertools, time
        wrong = itertools.cycle([4e7, -4e7, 0.0])
        real = time.time
        time.time = lambda: real() + next(wrong)
    """
    executor = new_executor(2, agents=0)
    broken_agent(executor.invite(1, host="127.0.0.1"), fault)
    futures = [executor.submit(pow, number, 2) for number in range(50)]
    futures += [executor.submit(sh("true")) for _ in range(5)]
    assert [outcome(future) for future in futures[:50]] == [number**2 for number in range(50)]
    assert {outcome(future).returncode for future in futures[50:]} == {0}
    assert {future.attempt for future in futures} == {1}
    limited = executor.options(time_limit=0.3).submit(sh("sleep 600"))
    assert isinstance(error_of(limited), TaskTimeout)


def test_an_agent_whose_monotonic_clock_is_another_keeps_its_lease(
    new_executor: NewExecutor, broken_agent: Any, gate: Gate
) -> None:
    """C20: it has run for a year longer than the client's machine."""
    before = ["unshare", "--time", "--monotonic=31536000", "--boottime=31536000", "--fork", "--kill-child"]
    if subprocess.run([*before, "true"], capture_output=True).returncode != 0:
        pytest.skip("time namespaces are for root, with unshare(1) and Linux 5.6")
    executor = new_executor(1, agents=0, lease=1)
    broken_agent(executor.invite(1, host="127.0.0.1"), "", *before)
    held = executor.submit(pass_gate, *gate.paths)
    [pid] = gate.wait_arrivals()
    worker = next(iter(executor._hub._agents))
    joined = worker.member.heard
    wait_until(lambda: worker.member.heard > joined + 2)
    gate.open()
    assert (outcome(held), held.attempt) == (pid, 1)
    executor.shutdown()  # unshare(1) hears no signals


# ---- C21: a machine that is suspended


def test_a_node_that_was_suspended_is_fenced_with_all_that_ran_on_it(
    new_executor: NewExecutor, join: Join, gate: Gate
) -> None:
    """C21: supervisor, agent, template and task all stand still, and then go on."""
    executor = new_executor(1, agents=0, lease=1)
    invitation = executor.invite(2, host="127.0.0.1")
    join(invitation)
    future = executor.submit(pass_gate, *gate.paths)
    [first] = gate.wait_arrivals()
    node = [supervisor_of(first), agent_of(first), parent_of(first), first]
    for pid in node:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: not executor.workers())
    join(invitation)
    second = gate.wait_arrivals(2)[-1]
    for pid in reversed(node):
        os.kill(pid, signal.SIGCONT)
    wait_gone(first)
    wait_until(lambda: len(executor.workers()) == 2)
    gate.open()
    assert (outcome(future), future.attempt) == (second, 2)


# ---- C22: numbers of processes


def fork_with_number(pid: int) -> bool:
    """A child of ours with that number, if that can be had; it waits for a signal."""
    try:
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
    except OSError:
        pytest.skip("the number of the next process is for root to set")
    child = os.fork()
    if child == 0:
        try:
            signal.pause()
        finally:
            os._exit(0)
    if child != pid:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return child == pid


def end_child(pid: int) -> int:
    """Ends it; gives the signal that it had ended by."""
    os.kill(pid, signal.SIGUSR1)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("end", ["result", "time limit", "kill"])
def test_a_process_that_has_the_number_of_a_task_that_ended_is_never_signalled(
    new_executor: NewExecutor, gate: Gate, end: str
) -> None:
    """C22: whatever was still due for the task: its time limit, SIGKILL after the grace, the end of its interpreter."""
    executor = new_executor(2, kill_grace=1.0)
    for _ in range(20):
        limit = 0.2 if end == "time limit" else 1.0
        future = executor.options(time_limit=limit).submit(signal.pause if end != "result" else os.getpid)
        if end == "kill":
            wait_until(lambda: future.pid)
            future.kill()
        error = future.exception(PATIENCE / 2)
        assert isinstance(error, {"result": type(None), "time limit": TaskTimeout, "kill": TaskKilled}[end])
        wait_gone(future.pid)
        wait_until(lambda: not os.path.exists(f"/proc/{future.pid}"))
        if fork_with_number(future.pid):
            break
    else:
        pytest.skip("others start too many processes here")
    try:
        clock = executor.options(time_limit=2.5).submit(signal.pause)
        assert isinstance(error_of(clock), TaskTimeout)  # longer than all that might have been due
        future.kill()
        executor.shutdown()
    finally:
        assert end_child(future.pid) == signal.SIGUSR1


# ---- C24: nobody reads what an agent writes


@pytest.mark.parametrize("reader", ["gone", "asleep"])
def test_an_agent_whose_stderr_nobody_reads_works(
    new_executor: NewExecutor, reader: str, tmp_path: Path
) -> None:
    """C24: the launcher has gone, or is busy. An agent neither waits for it nor dies."""
    executor = new_executor(1, agents=0)
    path = executor.invite(1, host="127.0.0.1").path
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writable, b"x" * 4096)
    os.set_blocking(writable, True)
    if reader == "gone":
        os.close(readable)
    process = subprocess.Popen([sys.executable, "-m", "worker_agent", path], cwd=tmp_path, stderr=writable)
    os.close(writable)
    try:
        assert outcome(executor.submit(pow, 2, 3)) == 8
        executor.shutdown()
        assert process.wait(PATIENCE / 2) == 0
    finally:
        process.kill()
        process.wait()
        if reader == "asleep":
            os.close(readable)
