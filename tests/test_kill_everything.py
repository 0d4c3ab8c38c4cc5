"""``kill -9`` of every part while a thousand tasks run: no future hangs, nothing is left, and others take over.

    client (this process, or a script) -> supervisor -> agent -> template -> interpreters
                                                              -> programs

Tasks are held by a gate until the part is dead; nothing here sleeps.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import as_completed, wait
from pathlib import Path

import cloudpickle
import psutil
import pytest

from executor import AgentFailed, Program, TaskDied, TaskLost

pytestmark = pytest.mark.shared

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

TASKS = 1000
#: where each takes a millisecond, and the point is the moment
FEWER = 300
kept = pytest.mark.parametrize("kept", [1, None], ids=["fresh", "reused"])


def pass_gate(arrivals, tokens, value=None):
    """Say by its pid that the task has started, wait for a token, return ``value``. See ``Gate`` in conftest.py."""
    with open(arrivals, "wb", buffering=0) as entry:
        entry.write(b"%d\n" % os.getpid())
    with open(tokens, "rb", buffering=0) as gate:
        gate.read(1)
    return value


def square(number):
    return number * number


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# ---- the parts of an executor


def supervisor_of(executor):
    [pid] = executor._hub.worker_pids()
    return pid


def agent_of(executor):
    [agent] = psutil.Process(supervisor_of(executor)).children()
    return agent.pid


def template_of(executor):
    [template] = [
        child for child in psutil.Process(agent_of(executor)).children() if child.cmdline()[-1:] == ["template"]
    ]
    return template.pid


PARTS = {"template": template_of, "agent": agent_of, "supervisor": supervisor_of}


def below(executor):
    return [process.pid for process in psutil.Process(supervisor_of(executor)).children(recursive=True)]


# ---- one part is killed while tasks run


@kept
@pytest.mark.parametrize("part", PARTS)
def test_all_tasks_give_results_though_a_part_is_killed_while_they_run(make, gate, wait_until, part, kept):
    """C1. Two are running, the others wait; what had started is run again, after the first attempt is dead."""
    executor = make(2, max_tasks_per_child=kept)
    held = [executor.submit(pass_gate, *gate.paths, number) for number in range(2)]
    number_of_tasks = TASKS if kept is None or part == "agent" else FEWER
    futures = [executor.submit(square, number) for number in range(number_of_tasks)]
    first = gate.wait_arrivals(2)
    killed = below(executor)
    kill(PARTS[part](executor))
    second = gate.wait_arrivals(2)
    assert all(map(gone, first)), "an attempt is still alive while the next one runs"
    gate.open_wide()
    assert [future.result(timeout=30) for future in held] == [0, 1]
    assert [future.attempt for future in held] == [2, 2]
    assert [future.pid for future in held] != first
    assert sorted(second) == sorted(future.pid for future in held)
    assert [future.result(timeout=30) for future in futures] == [number**2 for number in range(number_of_tasks)]
    if part != "template":
        wait_until(lambda: all(map(gone, killed)), seconds=5)


@kept
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("moment", [1, 150])
def test_all_tasks_give_results_though_a_part_is_killed_between_results(make, part, kept, moment):
    """C1. At the ``moment``-th result, wherever the others then are: sent, started, finished, under way to us."""
    executor = make(2, max_tasks_per_child=kept)
    futures = [executor.submit(square, number) for number in range(FEWER if kept else TASKS)]
    for number, _ in enumerate(as_completed(futures, timeout=30), 1):
        if number == moment:
            kill(PARTS[part](executor))
            break
    done, pending = wait(futures, timeout=30)
    assert not pending
    assert [future.result() for future in futures] == [number**2 for number in range(len(futures))]


@kept
def test_a_killed_task_is_the_only_one_that_fails(make, gate, kept):
    """A1, P3. It is not run again; its neighbour and the others do not notice."""
    executor = make(2, max_tasks_per_child=kept)
    held = [executor.submit(pass_gate, *gate.paths, number) for number in range(2)]
    futures = [executor.submit(square, number) for number in range(FEWER)]
    pid, _ = gate.wait_arrivals(2)
    kill(pid)
    [victim] = wait(held, timeout=10, return_when="FIRST_COMPLETED").done
    error = victim.exception()
    assert type(error) is TaskDied
    assert (error.pid, error.returncode, error.signal, error.attempt) == (pid, -9, 9, 1)
    gate.open_wide()
    assert [future.result(timeout=30) for future in held if future is not victim] == [1 - held.index(victim)]
    assert [future.result(timeout=30) for future in futures] == [number**2 for number in range(FEWER)]


@kept
def test_tasks_that_are_killed_one_after_the_other_each_fail_alone(make, gate, kept):
    """A1. Twenty in a row: interpreters that die do not count against their template or their agent."""
    executor = make(2, max_tasks_per_child=kept)
    held = [executor.submit(pass_gate, *gate.paths, number) for number in range(20)]
    futures = [executor.submit(square, number) for number in range(20)]
    for _ in range(20):
        kill(gate.wait_arrivals(1)[0])
    assert [type(future.exception(timeout=20)) for future in held] == [TaskDied] * 20
    assert [future.result(timeout=20) for future in futures] == [number**2 for number in range(20)]


@kept
def test_an_idle_interpreter_that_is_killed_takes_no_task_along(make, kept):
    """A1. It was waiting for work; the next task runs in another one."""
    executor = make(2, max_tasks_per_child=kept)
    assert executor.submit(square, 2).result(timeout=20) == 4
    for child in psutil.Process(template_of(executor)).children():
        with contextlib.suppress(ProcessLookupError):  # the one that ran the task may be leaving
            kill(child.pid)
    futures = [executor.submit(square, number) for number in range(50)]
    assert [future.result(timeout=20) for future in futures] == [number**2 for number in range(50)]


@pytest.mark.parametrize("part", ["agent", "supervisor"])
def test_programs_are_run_again_when_their_agent_was_killed(make, gate, wait_until, part):
    """C1. They are children of the agent, and so are theirs; none of them outlives it."""
    executor = make(2)
    command = 'echo $$ > "$0"; setsid sh -c \'echo $$ > "$0"; exec sleep 600\' "$0" & read token < "$1"; echo "$token"'
    future = executor.submit(Program(["sh", "-c", command, *gate.paths]))
    first = gate.wait_arrivals(2)
    kill(PARTS[part](executor))
    gate.wait_arrivals(2)
    wait_until(lambda: all(map(gone, first)), seconds=5)
    Path(gate.paths[1]).write_text("token\n")
    assert future.result(timeout=20).stdout == "token\n"
    assert future.attempt == 2


# ---- again and again


@pytest.mark.parametrize("part", ["agent", "supervisor"])
def test_a_task_whose_agents_die_more_often_than_its_crash_limit_is_lost(make, gate, wait_until, part):
    """C23, P3. Only what had started counts; the one that waited is run by the last agent."""
    executor = make(1)
    future = executor.options(crash_limit=1).submit(pass_gate, *gate.paths)
    waiting = executor.options(crash_limit=0).submit(square, 3)
    for _ in range(2):
        [pid] = gate.wait_arrivals(1)
        wait_until(lambda: future.pid == pid)  # so the client knows of the start, and counts it
        kill(PARTS[part](executor))
    error = future.exception(timeout=20)
    assert type(error) is TaskLost
    assert (error.losses, error.crash_limit) == (2, 1)
    assert waiting.result(timeout=20) == 9


def test_a_template_that_dies_each_time_a_task_runs_does_not_run_it_for_ever(make, gate):
    """P3. Like the loss of an agent: counted against ``crash_limit``."""
    executor = make(1)
    future = executor.options(crash_limit=2).submit(pass_gate, *gate.paths)
    for _ in range(3):
        gate.wait_arrivals(1)
        kill(template_of(executor))
    assert isinstance(future.exception(timeout=20), TaskLost)
    assert executor.submit(square, 3).result(timeout=20) == 9


def test_a_task_that_kills_its_agent_is_lost_and_hits_no_waiting_task(make):
    """C23. The poison task kills its agent each time, before anybody has been told that it started."""

    def poison():
        with open(f"/proc/{os.getppid()}/stat") as template:
            os.kill(int(template.read().rpartition(")")[2].split()[1]), signal.SIGKILL)
        threading.Event().wait()

    executor = make(1)
    future = executor.options(crash_limit=1).submit(poison)
    others = [executor.submit(square, number) for number in range(10)]
    assert isinstance(future.exception(timeout=20), TaskLost)
    assert [other.result(timeout=20) for other in others] == [number**2 for number in range(10)]


# ---- before and after


def test_an_agent_that_is_killed_before_it_said_hello_is_replaced(make, wait_until):
    """C16. The first one dies while it starts."""
    executor = make(1)
    future = executor.submit(square, 3)
    wait_until(lambda: executor._hub.worker_pids())
    first = supervisor_of(executor)
    kill(first)
    assert future.result(timeout=20) == 9
    assert supervisor_of(executor) != first


def test_agents_that_die_at_once_each_time_are_not_started_for_ever(make, wait_until):
    """C17. The future says what happened."""
    executor = make(1)
    future = executor.submit(square, 3)
    seen = set()
    while not future.done() and len(seen) < 20:
        for pid in set(executor._hub.worker_pids()) - seen:
            seen.add(pid)
            kill(pid)
    assert isinstance(future.exception(timeout=20), AgentFailed)
    assert len(seen) == 3


@kept
@pytest.mark.parametrize("part", PARTS)
def test_shutdown_returns_though_a_part_is_killed_meanwhile(make, gate, part, kept):
    """P1. With a task that is running, and after it."""
    executor = make(1, max_tasks_per_child=kept)
    future = executor.submit(pass_gate, *gate.paths, "run again")
    gate.wait_arrivals(1)
    victim = PARTS[part](executor)
    executor.shutdown(wait=False)
    kill(victim)
    gate.wait_arrivals(1)
    gate.open_wide()
    executor.shutdown()
    assert future.result(timeout=0) == "run again"


@pytest.mark.parametrize("part", PARTS)
def test_an_idle_executor_whose_part_is_killed_goes_on(make, part):
    """C1. Nothing runs when it happens."""
    executor = make(1)
    assert executor.submit(square, 3).result(timeout=20) == 9
    kill(PARTS[part](executor))
    assert executor.submit(square, 4).result(timeout=20) == 16


@pytest.mark.parametrize("part", PARTS)
def test_an_idle_executor_whose_part_is_killed_can_be_shut_down(make, part):
    """C1. Nothing runs when it happens, and nothing comes after."""
    executor = make(1)
    assert executor.submit(square, 3).result(timeout=20) == 9
    kill(PARTS[part](executor))
    executor.shutdown()


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_stopped_and_killed_is_replaced(make, gate, part):
    """C3. A stopped process hears no signal but the last one."""
    executor = make(1)
    future = executor.submit(pass_gate, *gate.paths, "done")
    gate.wait_arrivals(1)
    victim = PARTS[part](executor)
    os.kill(victim, signal.SIGSTOP)
    kill(victim)
    gate.wait_arrivals(1)
    gate.open()
    assert future.result(timeout=20) == "done"


def test_cancel_and_kill_are_answered_though_the_agent_dies(make, gate):
    """P1. A cancel waits for the answer of an agent that is dead."""
    executor = make(1)
    executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals(1)
    queued = [executor.submit(square, number) for number in range(10)]
    os.kill(agent_of(executor), signal.SIGSTOP)
    answers = []
    asking = threading.Thread(target=lambda: answers.append([future.cancel() for future in queued]))
    asking.start()
    kill(agent_of(executor))
    asking.join(timeout=20)
    gate.open_wide()
    assert not asking.is_alive()
    assert answers == [[future.cancelled() for future in queued]]
    assert wait(queued, timeout=20).not_done == set()


@pytest.mark.parametrize("others", [["agent"], ["agent", "template"]], ids="-".join)
def test_what_ran_has_ended_though_all_that_would_see_to_it_is_killed(make, gate, others, tmp_path):
    """C1. With the supervisor go those that it watches: programs, and what calls have started, have lost everybody."""
    executor = make(2)
    call = executor.submit(start_and_pass_gate, *gate.paths, tmp_path / "below")
    program = executor.submit(Program(["sh", "-c", LIKE_THE_CALL, "sh", *gate.paths, str(tmp_path / "below")]))
    first = gate.wait_arrivals(2)
    below = [int(line) for line in (tmp_path / "below").read_text().split()]
    assert len(below) == 2
    victims = [PARTS[part](executor) for part in (*others, "supervisor")]
    for victim in (victims[-1], *victims[:-1]):
        kill(victim)
    gate.wait_arrivals(2)
    assert all(map(gone, [*first, *below])), "an attempt is still alive while the next one runs"
    gate.open_wide()
    assert call.result(timeout=20) == "done"
    assert program.result(timeout=20).returncode == 0


#: A process in a session of its own, which nobody waits for; then the gate.
LIKE_THE_CALL = 'setsid sleep 600 & echo $! >>"$3"; echo $$ >"$1"; head -c 1 "$2" >/dev/null'


def start_and_pass_gate(arrivals, tokens, below):
    with open(below, "a") as file:
        print(subprocess.Popen(["sleep", "600"], start_new_session=True).pid, file=file)
    return pass_gate(arrivals, tokens, "done")


# ---- the client


CLIENT = '''
import os, sys, threading
from executor import HPCExecutor, Program

def pass_gate(arrivals, tokens, value=None):
    with open(arrivals, "wb", buffering=0) as entry:
        entry.write(b"%d\\n" % os.getpid())
    with open(tokens, "rb", buffering=0) as gate:
        gate.read(1)

paths, kept = sys.argv[1:3], eval(sys.argv[3])
executor = HPCExecutor(2, max_tasks_per_child=kept)
if len(sys.argv) > 4:  # large arguments and results lie in files
    executor.submit(len, bytes(3_000_000)).result()
    executor.submit(bytes, 3_000_000).result()
futures = [executor.submit(pass_gate, *paths) for _ in range(1000)]
executor.submit(Program(["sleep", "600"]))
threading.Event().wait()
'''


def directories_of(pid):
    """Where the unix sockets of a process are bound."""
    inodes = {os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd") if os.path.islink(entry.path)}
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {Path(words[7]).parent for words in lines if len(words) > 7 and f"socket:[{words[6]}]" in inodes}


@kept
@pytest.mark.parametrize("stored", [False, True])
def test_nothing_is_left_of_a_client_that_is_killed(start_script, gate, wait_until, kept, stored):
    """E1, P6. Processes, and the directories in memory and on disk (which the check after each test looks for)."""
    client = start_script(CLIENT, *gate.paths, str(kept), *["stored"] * stored)
    gate.wait_arrivals(2)
    processes = [each.pid for each in psutil.Process(client.pid).children(recursive=True)]
    [directory] = directories_of(client.pid)
    assert len(processes) >= 5
    assert directory.exists()
    client.kill()
    client.wait()
    wait_until(lambda: all(map(gone, processes)), seconds=5, what=lambda: [pid for pid in processes if not gone(pid)])
    wait_until(lambda: not directory.exists(), seconds=5, what=lambda: directory)


@pytest.mark.parametrize("also", ["supervisor", "agent"])
def test_no_process_is_left_when_client_and_agent_are_killed_at_once(start_script, gate, wait_until, also, tmp_path):
    """E1. Two faults at a time; but if the supervisor is one, nobody is left to remove the directories."""
    client = start_script(CLIENT, *gate.paths, "1", env={"TMPDIR": str(tmp_path)})
    gate.wait_arrivals(2)
    processes = [each.pid for each in psutil.Process(client.pid).children(recursive=True)]
    [directory] = directories_of(client.pid)
    [supervisor] = psutil.Process(client.pid).children()
    victim = supervisor if also == "supervisor" else supervisor.children()[0]
    client.kill()
    victim.kill()
    client.wait()
    wait_until(lambda: all(map(gone, processes)), seconds=5, what=lambda: [pid for pid in processes if not gone(pid)])
    if also == "supervisor":
        shutil.rmtree(directory, ignore_errors=True)  # a session that starts just now, in another run, may sweep it too
    wait_until(lambda: not directory.exists(), seconds=5, what=lambda: directory)


def test_nothing_is_left_of_a_client_that_is_killed_and_not_waited_for(start_script, gate, wait_until):
    """E1. Its parent is busy: the dead client remains as a zombie, with its number and its start time."""
    client = start_script(CLIENT, *gate.paths, "1")
    gate.wait_arrivals(2)
    processes = [each.pid for each in psutil.Process(client.pid).children(recursive=True)]
    [directory] = directories_of(client.pid)
    client.kill()
    wait_until(lambda: all(map(gone, processes)), seconds=5, what=lambda: [pid for pid in processes if not gone(pid)])
    wait_until(lambda: not directory.exists(), seconds=5, what=lambda: directory)


def test_nothing_is_left_of_a_client_that_is_killed_while_its_agent_starts(start_script, wait_until):
    """E1. The agent finds nobody to report to."""
    client = start_script(
        "from executor import HPCExecutor\n"
        "executor = HPCExecutor(1)\n"
        "executor.submit(pow, 2, 3)\n"
        "while not executor._hub.worker_pids(): pass\n"
        "print(*executor._hub.directories.stores, flush=True)\n"
        "input()\n",
        stdin=subprocess.PIPE,
    )
    directories = client.stdout.readline().split()
    client.kill()
    client.wait()
    wait_until(lambda: not any(map(os.path.exists, directories)), seconds=5, what=lambda: directories)
