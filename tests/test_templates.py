"""One template for each environment: the lanes of an agent share it, it outlives them, and its end is everybody's.

    agent -> template -> interpreters of one lane, interpreters of another lane
"""
# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from pools import failure, gate, new_executor, outcome
from waiting import Gate, announce, announced, command_line, parent_of, pass_gate, wait_gone, wait_until

from executor import CAPTURE, EnvironmentFailed, HPCExecutor, TaskLost
from worker_agent import channel, environments, processes, protocol, spawning, templates
from worker_agent.loop import Loop
from worker_agent.templates import Template, Templates

pytestmark = pytest.mark.shared

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

New = Callable[..., HPCExecutor]
RESOURCES = {"cpus": 2, "memory": "16GiB"}
KINDS = pytest.mark.parametrize("options", [{}, {"max_tasks_per_child": None}], ids=["fresh", "kept"])
MEMORY = "HPC_RESOURCE_REQUEST_memory"


def where(paths: tuple[str, str] | None = None, *names: str) -> tuple[int, list[str | None]]:
    """Of which template the interpreter is, and what the variables are; told when the gate is open."""
    if paths is not None:
        pass_gate(*paths)
    return os.getppid(), [os.environ.get(name) for name in names]


def templates_of(agent: int) -> list[int]:
    return [pid for pid in processes.children(agent) if command_line(pid).split()[-1:] == ["template"]]


# ---- it is shared, and it stays


@KINDS
def test_tasks_of_many_needs_one_after_the_other_have_one_template(new_executor: New, options: dict[str, Any]) -> None:
    """Each of them needs all CPUs: the lane before it is closed, and opened anew in the next round."""
    executor = new_executor(None, resources=RESOURCES, **options)
    found = []
    for number in [*range(1, 8)] * 3:
        template, [asked] = outcome(executor.options(cpus=2, memory=f"{number}GiB").submit(where, None, MEMORY))
        assert asked == f"{number * 1024} compact"
        found.append(template)
    assert len(set(found)) == 1
    assert templates_of(parent_of(found[0])) == [found[0]]


@KINDS
def test_two_lanes_at_once_have_one_template_and_each_its_own_variables(
    new_executor: New, gate: Gate, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a lane sets hides what the user has set, for its own tasks."""
    monkeypatch.setenv(MEMORY, "the user's")
    executor = new_executor(None, resources=RESOURCES, **options)
    views = [executor, executor.options(memory="1GiB")]
    futures = [view.submit(where, gate.paths, MEMORY) for view in views]
    gate.wait_arrivals(2)
    gate.open()
    (one, mine), (other, told) = map(outcome, futures)
    assert one == other
    assert (mine, told) == (["the user's"], ["1024 compact"])
    for view, expected in [*zip(views, (mine, told), strict=True)] * 3:
        assert outcome(view.submit(where, None, MEMORY)) == (one, expected)


def test_tasks_in_two_lanes_print_and_end_each_in_its_own(new_executor: New, gate: Gate) -> None:
    """The template's reports go to the lane whose interpreter it is."""

    def speak(paths: tuple[str, str], text: str, status: int) -> None:
        pass_gate(*paths)
        print(text)
        sys.stdout.flush()
        os._exit(status)

    executor = new_executor(None, resources=RESOURCES).options(stdout=CAPTURE)
    views = [executor.options(memory=f"{number}GiB") for number in (1, 2)]
    futures = [view.submit(speak, gate.paths, f"text {number}", number) for number, view in enumerate(views, 5)]
    gate.wait_arrivals(2)
    gate.open()
    for number, future in enumerate(futures, 5):
        error: Any = failure(future)
        assert (error.returncode, error.pid, future.stdout) == (number, future.pid, f"text {number}\n")


def test_templates_of_environments_without_a_lane_are_kept_up_to_a_number(
    new_executor: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last ones that were used."""
    executor = new_executor(None, resources=RESOURCES)

    def run(number: int) -> int:
        monkeypatch.setenv("NUMBER", str(number))
        template, values = outcome(executor.options(cpus=2).submit(where, None, "NUMBER"))
        assert values == [str(number)]
        return template

    first = [run(number) for number in range(templates.KEPT)]
    agent = parent_of(first[0])
    assert [run(number) for number in range(templates.KEPT)] == first
    assert set(templates_of(agent)) == set(first)
    more = [run(number) for number in range(templates.KEPT, templates.KEPT + 3)]
    wait_gone(*first[:2])  # the third goes when the last of the others has no lane
    assert run(templates.KEPT) == more[0]
    assert run(0) not in first
    wait_until(lambda: len(templates_of(agent)) <= templates.KEPT + 1)


# ---- it dies


@KINDS
def test_a_template_that_is_killed_costs_no_task_of_any_lane(
    new_executor: New, gate: Gate, options: dict[str, Any]
) -> None:
    executor = new_executor(None, resources=RESOURCES, **options)
    views = [executor.options(memory=f"{number}GiB") for number in (1, 2)]
    held = [view.submit(where, gate.paths, MEMORY) for view in views]
    waiting = [views[number % 2].submit(pow, 2, number) for number in range(40)]
    first = gate.wait_arrivals(2)
    [template] = {parent_of(pid) for pid in first}
    agent = parent_of(template)
    os.kill(template, signal.SIGKILL)
    gate.wait_arrivals(4)
    wait_gone(*first)
    gate.open()
    (one, mine), (other, told) = map(outcome, held)
    assert one == other != template
    assert (mine, told) == (["1024 compact"], ["2048 compact"])
    assert [future.attempt for future in held] == [2, 2]
    assert [outcome(future) for future in waiting] == [2**number for number in range(40)]
    assert templates_of(agent) == [one]


def wait_with_much_memory(started: str) -> None:
    held = b"x" * 400_000_000  # when the process is killed, this is freed before it has ended
    announce(started)
    while held:
        signal.pause()


@KINDS
def test_a_task_whose_template_was_killed_is_over_when_its_process_has_ended(
    new_executor: New, tmp_path: Path, options: dict[str, Any]
) -> None:
    started = str(tmp_path / "started")
    executor = new_executor(None, resources=RESOURCES, **options)
    futures = [executor.options(crash_limit=0).submit(wait_with_much_memory, started) for _ in range(2)]
    wait_until(lambda: len(announced(started)) == 2)
    os.kill(parent_of(announced(started)[0]), signal.SIGKILL)
    for future in futures:
        assert type(failure(future)) is TaskLost
        assert processes._has_ended(future.pid)


def test_a_template_that_is_killed_again_and_again_while_lanes_come_and_go(new_executor: New) -> None:
    """Whatever it was about to do, and for whom. No task is lost more often than it may."""
    executor = new_executor(None, resources={"cpus": 4, "memory": "16GiB"})
    agent = parent_of(outcome(executor.submit(os.getppid)))
    for _ in range(8):
        views = [executor.options(cpus=number % 4 + 1, memory=f"{number + 1}GiB") for number in range(7)]
        futures = [view.options(crash_limit="unlimited").submit(pow, 2, 3) for view in views * 3]
        outcome(futures[5])
        for template in templates_of(agent):
            with contextlib.suppress(ProcessLookupError):
                os.kill(template, signal.SIGKILL)
        assert [outcome(future) for future in futures] == [8] * 21
    assert parent_of(outcome(executor.submit(os.getppid))) == agent


def test_a_template_that_is_killed_while_no_lane_is_open_is_started_when_there_is_one(
    new_executor: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = new_executor(None, resources=RESOURCES).options(cpus=2)
    template = outcome(executor.submit(where))[0]
    monkeypatch.setenv("OTHER", "1")
    other = outcome(executor.submit(where))[0]
    os.kill(template, signal.SIGKILL)
    wait_gone(template)
    assert outcome(executor.submit(where))[0] == other
    monkeypatch.delenv("OTHER")
    assert outcome(executor.submit(where))[0] not in (template, other)


def test_templates_that_die_before_a_task_has_run_are_counted_for_all_lanes(
    new_executor: New, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    code = "import os\nwith open({!r}, 'a') as file:\n    print(os.getpid(), file=file)\nos.kill(os.getpid(), 9)\n"
    (tmp_path / "dies_when_imported.py").write_text(code.format(str(started)))
    monkeypatch.syspath_prepend(str(tmp_path))
    executor = new_executor(None, resources=RESOURCES, preload=["dies_when_imported"])
    futures = [executor.options(memory=f"{number % 2 + 1}GiB").submit(pow, 2, 3) for number in range(6)]
    assert {type(failure(future)) for future in futures} == {EnvironmentFailed}
    assert len(announced(started)) == templates.FAILURES_ALLOWED


def test_a_template_that_cannot_be_prepared_is_refused_to_all_lanes(new_executor: New) -> None:
    executor = new_executor(None, resources=RESOURCES, preload=["there_is_no_such_module"])
    futures = [executor.options(memory=f"{number % 2 + 1}GiB").submit(pow, 2, 3) for number in range(6)]
    for future in futures:
        error = failure(future)
        assert type(error) is EnvironmentFailed
        assert "there_is_no_such_module" in str(error)
        assert isinstance(error.__cause__, ModuleNotFoundError)


# ---- what a closed lane leaves


def hang_unless_first(first: str, others: str) -> None:
    """The first interpreter with needs for memory is prepared; all others wait for ever."""
    if MEMORY in os.environ:
        try:
            os.close(os.open(first, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            announce(others)
            signal.pause()


def test_interpreters_of_a_closed_lane_do_not_outlive_it_by_much(new_executor: New, tmp_path: Path) -> None:
    """These would not leave by themselves, and their template lives on."""
    paths = str(tmp_path / "first"), str(tmp_path / "others")
    executor = new_executor(None, resources=RESOURCES, initializer=hang_unless_first, initargs=paths)
    template = outcome(executor.options(memory="1GiB").submit(where))[0]
    hanging = wait_until(lambda: announced(paths[1]))
    assert outcome(executor.options(cpus=2).submit(where))[0] == template
    wait_gone(*announced(paths[1]))
    assert hanging
    assert outcome(executor.options(cpus=2).submit(where))[0] == template


class Lane:
    """Whose interpreters a template forks, without tasks for them."""

    variables = {"NAME": "value"}

    def __init__(self) -> None:
        self.queues = spawning.Queues()
        self.adopted: list[int] = []
        self.exited: list[int] = []

    def adopt(self, pid: int, fds: list[int]) -> None:
        self.adopted.append(pid)
        for fd in fds:
            os.close(fd)

    def on_exited(self, exited: channel.Exited) -> None:
        self.exited.append(exited.pid)

    def look(self) -> None: ...

    def lose(self) -> None: ...

    def go_on(self) -> None: ...

    def refuse(self, text: str, error: bytes) -> None:
        raise AssertionError(text)


@pytest.fixture
def template(tmp_path: Path) -> Iterator[tuple[Loop, Template]]:
    """One that has no users, yet; it stands still."""
    loop = Loop()
    env = {name: text for name, text in os.environ.items() if name != "NAME"}
    environment = protocol.Prepare(
        environment=1, python=processes.this_python(), start="fork", max_tasks=1, cwd=str(tmp_path), path=sys.path,
        env=env, version=sys.version.split()[0],
    )  # fmt: skip
    made = Templates(loop, None)
    template = made.get(environment, environments.make_setup(environment, [str(tmp_path)]), {})
    pid = template.pid
    os.kill(pid, signal.SIGSTOP)
    yield loop, template
    made.close()
    os.waitpid(pid, 0)
    loop.close()


def test_orders_for_which_there_is_no_room_wait_until_there_is(template: tuple[Loop, Template]) -> None:
    """As when a module takes long to import, and many lanes are opened meanwhile."""
    loop, shared = template
    assert shared._process is not None
    shared._process.control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    lanes = [Lane() for _ in range(20)]
    numbers = [shared.join(lane) for lane in lanes]
    for number in numbers:
        shared.fork(number, channel.FORK * 2)
    assert len(shared._orders) > 5
    closed = lanes.pop()
    shared.leave(numbers.pop())
    closed.queues.close()
    os.kill(shared.pid, signal.SIGCONT)
    while not all(len(lane.adopted) == 2 for lane in lanes):
        loop.run_once()
    for lane in lanes:
        lane.queues.close()
    while not all(sorted(lane.exited) == sorted(lane.adopted) for lane in lanes):
        loop.run_once()
    assert not closed.adopted
    assert not shared._orders


def test_what_is_forked_for_a_lane_that_was_closed_meanwhile_ends_at_once(template: tuple[Loop, Template]) -> None:
    loop, shared = template
    closed, lane = Lane(), Lane()
    number = shared.join(closed)
    other = shared.join(lane)
    shared.fork(number, channel.FORK * 3)
    shared.leave(number)  # its queues are still there: nothing tells its interpreters to leave
    shared.fork(other, channel.FORK)
    os.kill(shared.pid, signal.SIGCONT)
    while not lane.adopted:
        loop.run_once()
    wait_until(lambda: processes.children(shared.pid) == lane.adopted)
    assert not closed.adopted
    closed.queues.close()
    lane.queues.close()
    while not lane.exited:
        loop.run_once()
    assert not shared._interpreters
