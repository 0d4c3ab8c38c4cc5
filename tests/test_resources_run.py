"""Resources of tasks that really run: what they see, where they are bound, who goes first, and that nothing is given
twice. How amounts are read is in test_resources.py, the scheduler's decisions are in test_placement.py.
"""
# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import multiprocessing
import operator
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from pools import PATIENCE, failure, gate, new_executor, outcome, sh
from test_invited import Join, join
from waiting import Gate, announce, announced, parent_of, pass_gate, wait_until

from executor import (
    CAPTURE,
    HPCExecutor,
    OptionValueError,
    Program,
    ProgramNotStarted,
    Resources,
    TaskFuture,
    UnsatisfiableRequest,
)
from worker_agent.task_variables import THREADS

pytestmark = pytest.mark.shared

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

New = Callable[..., HPCExecutor]
KINDS: dict[str, dict[str, Any]] = {
    "fresh": {},
    "kept": {"max_tasks_per_child": None},
    "spawned": {"mp_context": multiprocessing.get_context("spawn")},
    "spawned-kept": {"mp_context": multiprocessing.get_context("spawn"), "max_tasks_per_child": None},
    "program": {},
}
OF_ALL_KINDS = pytest.mark.parametrize("kind", KINDS)
USABLE = sorted(os.sched_getaffinity(0))
two_cpus = pytest.mark.skipif(len(USABLE) < 2, reason="two CPUs are needed to bind tasks to different ones")


def variables() -> dict[str, str]:
    return dict(os.environ)


def variables_of(tasks: Any, kind: str) -> dict[str, str]:
    """What a task of this kind finds in its environment."""
    if kind == "program":
        text = outcome(tasks.options(stdout=CAPTURE).submit(Program(["env", "-0"]))).stdout
        return dict(each.split("=", 1) for each in text.split("\0") if each)
    return outcome(tasks.submit(variables))


def told(env: dict[str, str]) -> dict[str, str]:
    """What it was told of its resources."""
    names = ("RESOURCE_", "CPUS", "PIN", "NUM_NODES", "NODE_FILE", "HOST_FILE")
    mine = {name: text for name, text in env.items() if name.startswith(tuple(f"HPC_{each}" for each in names))}
    theirs = {name: text for name, text in env.items() if name.startswith(tuple(f"HQ_{each}" for each in names))}
    assert {name.replace("HPC_", "HQ_"): text for name, text in mine.items()} == theirs
    return {name.removeprefix("HPC_"): text for name, text in mine.items()}


def at_gate(paths: tuple[str, str], *names: str) -> list[str | None]:
    """What the variables are, told when the gate is open."""
    pass_gate(*paths)
    return [os.environ.get(name) for name in names]


# ---- what a task sees


@OF_ALL_KINDS
def test_a_task_is_told_what_it_was_given(new_executor: New, kind: str) -> None:
    resources = {"cpus": 4, "gpus/nvidia": "[a, b]", "memory": "2GiB", "fpga/x": 2, "licences": "sum(3)"}
    executor = new_executor(None, resources=resources, **KINDS[kind])
    view = executor.options(cpus="2 scatter", gpus=1.5, memory="1GiB", resources={"licences": 0.5, "fpga/x": 1})
    env = variables_of(view, kind)
    assert told(env) == {
        "CPUS": "0,1",
        "RESOURCE_REQUEST_cpus": "2 scatter",
        "RESOURCE_REQUEST_fpga_x": "1 compact",
        "RESOURCE_REQUEST_gpus": "1.5 compact",
        "RESOURCE_REQUEST_licences": "0.5 compact",
        "RESOURCE_REQUEST_memory": "1024 compact",
        "RESOURCE_VALUES_cpus": "0,1",
        "RESOURCE_VALUES_fpga_x": "0",
        "RESOURCE_VALUES_gpus_nvidia": "a,b",
    }
    assert (env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"]) == ("a,b", "PCI_BUS_ID")
    assert (env["HPC_TASK_ID"], env["HPC_ATTEMPT"]) == ("1", "1")
    assert (env["HQ_TASK_ID"], env["HQ_INSTANCE_ID"]) == ("1", "0")
    assert {env[name] for name in THREADS} == {"2"}


@OF_ALL_KINDS
def test_a_task_that_asks_for_nothing_has_one_cpu_and_no_gpu(new_executor: New, kind: str) -> None:
    executor = new_executor(None, resources={"cpus": 2, "gpus/nvidia": 1}, **KINDS[kind])
    env = variables_of(executor, kind)
    assert told(env) == {"CPUS": "0", "RESOURCE_REQUEST_cpus": "1 compact", "RESOURCE_VALUES_cpus": "0"}
    assert "CUDA_VISIBLE_DEVICES" not in env
    none = variables_of(executor.options(cpus=0, gpus="0"), kind)
    assert told(none) == {}


@OF_ALL_KINDS
def test_threads_are_set_where_the_user_has_set_none(
    new_executor: New, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    executor = new_executor(2, **KINDS[kind])
    view = executor.options(cpus=2, env={"OMP_NUM_THREADS": "5", "NUMBA_NUM_THREADS": None})
    env = variables_of(view, kind)
    assert [env.get(name) for name in ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")] == ["7", "5", None]
    assert env["OPENBLAS_NUM_THREADS"] == "2"
    assert variables_of(executor, kind)["OMP_NUM_THREADS"] == "1"
    part = variables_of(executor.options(cpus=1.5), kind)
    assert [part.get(name) for name in THREADS] == [None, "7", *[None] * 5]


def test_modules_that_are_imported_ahead_find_the_number_of_threads(
    new_executor: New, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NumPy's libraries do, which look at it once."""
    for name in THREADS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "looking_ahead.py").write_text("import os\nthreads = os.environ.get('OMP_NUM_THREADS')\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def look() -> str:
        import looking_ahead

        return looking_ahead.threads

    executor = new_executor(2, preload=["looking_ahead"])
    assert outcome(executor.options(cpus=2).submit(look)) == "2"
    assert outcome(executor.submit(look)) == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert outcome(executor.options(cpus=2).submit(look)) == "3"


# ---- where it is bound


def cpus_of(pid: int | str = "self") -> list[int]:
    """The CPUs that the kernel lets a process use."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [text] = [line.partition(":")[2].strip() for line in lines if line.startswith("Cpus_allowed_list")]
    pairs = [part.partition("-") for part in text.split(",")]
    return [cpu for first, _, last in pairs for cpu in range(int(first), int(last or first) + 1)]


@two_cpus
@OF_ALL_KINDS
def test_tasks_are_bound_to_the_cpus_that_they_are_given(new_executor: New, gate: Gate, kind: str) -> None:
    executor = new_executor(None, resources={"cpus": [USABLE[:2]]}, **KINDS[kind])
    pinned = executor.options(pin="taskset", stdout=CAPTURE)
    if kind == "program":
        script = 'echo $$ >> "$0"; echo $HPC_CPUS $HPC_PIN; head -c1 < "$1" > /dev/null'
        futures = [pinned.submit(sh(script, gate.arrivals, gate.opened)) for _ in range(2)]
    else:
        futures = [pinned.submit(at_gate, gate.paths, "HPC_CPUS", "HPC_PIN") for _ in range(2)]
    pids = gate.wait_arrivals(2)
    seen = {pid: cpus_of(pid) for pid in pids}
    assert sorted(seen.values()) == [[cpu] for cpu in USABLE[:2]]
    gate.open()
    for future in futures:
        result = outcome(future)
        cpus, pin = result.stdout.split() if kind == "program" else result
        assert (seen[future.pid], pin) == ([int(cpus)], "taskset")
    both = executor.options(cpus=2, pin="taskset")
    text = outcome(both.options(stdout=CAPTURE).submit(Program(["grep", "Cpus_allowed_list", "/proc/self/status"])))
    assert text.stdout.split()[1] in (f"{USABLE[0]}-{USABLE[1]}", f"{USABLE[0]},{USABLE[1]}")
    assert outcome(executor.submit(cpus_of)) == USABLE


@pytest.mark.parametrize("kind", ["kept", "spawned-kept"])
def test_after_a_task_that_was_bound_a_kept_interpreter_is_free_again(new_executor: New, kind: str) -> None:
    def look(fails: bool = False) -> tuple[int, list[int], list[str]]:
        if fails:
            raise ValueError
        return os.getpid(), cpus_of(), sorted(name for name in os.environ if "PIN" in name or "OMP" in name)

    executor = new_executor(None, resources={"cpus": [[USABLE[-1]]]}, **KINDS[kind])
    before = outcome(executor.submit(look))
    assert before[1] == USABLE
    for options in ({"pin": "taskset"}, {"pin": "omp"}):
        pid, cpus, names = outcome(executor.options(**options).submit(look))
        assert pid == before[0]
        assert cpus == ([USABLE[-1]] if options["pin"] == "taskset" else USABLE)
        assert {"HPC_PIN", "HQ_PIN"} <= set(names)
        assert ("OMP_PLACES" in names) == (options["pin"] == "omp")
        assert type(failure(executor.options(**options).submit(look, True))) is ValueError
        assert outcome(executor.submit(look)) == before


def test_a_cpu_that_is_not_there_is_named_where_a_task_is_to_be_bound_to_it(new_executor: New) -> None:
    missing = max(USABLE) + 400
    executor = new_executor(None, resources={"cpus": [[missing]]})
    assert outcome(executor.submit(cpus_of)) == USABLE
    text = f"cannot be pinned to its CPUs \\[{missing}\\]: none of them is usable here"
    with pytest.raises(OSError, match=text):
        executor.options(pin="taskset").submit(cpus_of).result(PATIENCE)
    error = failure(executor.options(pin="taskset").submit(Program(["true"])))
    assert type(error) is ProgramNotStarted
    assert "cannot be pinned to its CPUs" in str(error)
    assert "directory" not in str(error)
    assert outcome(executor.submit(pow, 2, 3)) == 8


def test_more_workers_than_cpus_still_work(new_executor: New, gate: Gate) -> None:
    executor = new_executor(8 + len(USABLE))
    futures = [executor.submit(at_gate, gate.paths, "HPC_CPUS") for _ in range(8 + len(USABLE))]
    gate.wait_arrivals(8 + len(USABLE))
    gate.open()
    assert len({outcome(future)[0] for future in futures}) == 8 + len(USABLE)


def test_more_workers_than_cpus_and_all_are_to_be_bound(new_executor: New, gate: Gate) -> None:
    """Those on CPUs that there are run; the others say what is wrong."""
    executor = new_executor(len(USABLE) + 2)
    futures = [executor.options(pin="taskset").submit(at_gate, gate.paths) for _ in range(len(USABLE))]
    gate.wait_arrivals(len(USABLE))
    error = failure(executor.options(pin="taskset").submit(cpus_of))
    assert type(error) is OSError
    assert "none of them is usable here" in str(error)
    assert outcome(executor.submit(cpus_of)) == USABLE
    gate.open()
    for future in futures:
        outcome(future)


# ---- GPUs


@pytest.mark.parametrize("kind", ["fresh", "kept"])
def test_tasks_at_the_same_time_have_different_gpus_or_share_one_by_parts(
    new_executor: New, tmp_path: Path, kind: str
) -> None:
    executor = new_executor(None, resources={"cpus": 4, "gpus/nvidia": "[a, b]"}, **KINDS[kind])
    for amount, expected in ((1, ["a", "b"]), (0.5, ["a", "a", "b", "b"])):
        gate = Gate(tmp_path / str(amount))
        view = executor.options(gpus=amount)
        futures = [view.submit(at_gate, gate.paths, "CUDA_VISIBLE_DEVICES") for _ in range(len(expected) + 1)]
        gate.wait_arrivals(len(expected))
        assert sum(future.running() for future in futures) <= len(expected)
        gate.open()
        *seen, last = (outcome(future)[0] for future in futures)
        assert sorted(seen) == expected
        assert last in expected
        gate.close()


# ---- nothing is given twice


def note(log: str, gate: tuple[str, str] | None = None) -> str:
    """Note what it has, at its begin and at its end."""
    names = ("HPC_RESOURCE_VALUES_cpus", "HPC_RESOURCE_VALUES_gpus_nvidia", "HPC_RESOURCE_REQUEST_gpus")
    values = ";".join(os.environ.get(name, "") for name in names)
    who = f"{os.environ['HPC_TASK_ID']}.{os.environ['HPC_ATTEMPT']}"
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"begin;{who};{values}\n".encode())
    if gate is not None:
        pass_gate(*gate)
    os.write(fd, f"end;{who};{values}\n".encode())
    os.close(fd)
    return who


NOTE = """
v="$HPC_TASK_ID.$HPC_ATTEMPT;$HPC_RESOURCE_VALUES_cpus;$HPC_RESOURCE_VALUES_gpus_nvidia;$HPC_RESOURCE_REQUEST_gpus"
echo "begin;$v" >> "$0"; echo "end;$v" >> "$0"
"""


def never_ended(log: Path) -> set[str]:
    """The attempts that have noted their begin, and not their end."""
    words = [line.split(";") for line in log.read_text().splitlines()]
    return {who for what, who, *_ in words if what == "begin"} - {who for what, who, *_ in words if what == "end"}


def check_nothing_was_given_twice(log: Path) -> Counter[str]:
    """Go through what tasks have noted, in its order; gives how often each index was had."""
    killed = never_ended(log)
    held: dict[str, list[tuple[str, float]]] = {}
    had: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        what, who, cpus, gpus, request = line.split(";")
        if what == "end":
            del held[who]
            continue
        parts = [(f"cpu {cpu}", 1.0) for cpu in cpus.split(",") if cpu]
        if gpus:
            indices, amount = gpus.split(","), float(request.split()[0])
            parts += [(f"gpu {index}", 1.0) for index in indices[:-1]]
            parts.append((f"gpu {indices[-1]}", amount - len(indices) + 1))
        held[who] = parts
        had.update(name for name, _ in parts)
        in_use: Counter[str] = Counter()
        for other, others in held.items():
            for name, amount in others if other not in killed else ():
                in_use[name] += amount  # type: ignore[assignment]
        assert all(amount <= 1.0001 for amount in in_use.values()), (line, held)
    return had


NEEDS: list[dict[str, Any]] = [
    {}, {"cpus": 2}, {"cpus": 3}, {"gpus": 0.5}, {"gpus": 1, "cpus": 2}, {"gpus": 1.5}, {"gpus": 0.25, "cpus": 0},
    {"resources": [Resources(cpus=1, gpus=2), Resources(cpus=3)]}, {"cpus": 4, "priority": 1}, {"memory": "1GiB"},
]  # fmt: skip


@pytest.mark.parametrize("agents", [1, 2])
@pytest.mark.parametrize("kind", ["fresh", "kept", "program"])
def test_many_tasks_of_several_needs_never_have_the_same_part(
    new_executor: New, tmp_path: Path, kind: str, agents: int
) -> None:
    resources = {"cpus": 4 * agents, "gpus/nvidia": 2 * agents, "memory": f"{2 * agents}GiB"}
    executor = new_executor(None, resources=resources, agents=agents, **KINDS[kind])
    log, chance = tmp_path / "log", random.Random(5)
    futures = []
    for _ in range(100):
        view = executor.options(**chance.choice(NEEDS), stdout=CAPTURE)
        futures.append(view.submit(sh(NOTE, log)) if kind == "program" else view.submit(note, str(log)))
    wait(futures, timeout=PATIENCE)
    for future in futures:
        outcome(future)
    assert not never_ended(log)
    had = check_nothing_was_given_twice(log)
    first = {f"cpu {number}" for number in range(4 * agents)}
    assert first <= set(had) <= first | {f"gpu {number}" for number in range(2 * agents)}
    wait_until(lambda: all(worker.free == worker.resources for worker in executor.workers()) or release(executor))


def release(executor: HPCExecutor) -> bool:
    """Idle lanes keep their places until somebody else wants them: have all be wanted."""
    for future in [executor.options(cpus="all").submit(pow, 2, 3) for _ in executor.workers()]:
        outcome(future)
    return all(worker.free["gpus/nvidia"] == worker.resources["gpus/nvidia"] for worker in executor.workers())


@pytest.mark.parametrize("size", [10, 30_000])
def test_kept_interpreters_make_room_while_many_tasks_lie_ready_for_them(
    new_executor: New, tmp_path: Path, size: int
) -> None:
    """Who is to leave is told by the socket that the tasks lie in."""
    executor = new_executor(2, max_tasks_per_child=None)
    agents = []
    for number in range(3):
        gate = Gate(tmp_path / f"gate-{number}")
        assert [outcome(each) for each in [executor.submit(len, bytes(size)) for _ in range(100)]] == [size] * 100
        held = [executor.submit(pass_gate, *gate.paths) for _ in range(2)]
        gate.wait_arrivals(2)
        more = [executor.submit(len, bytes(size)) for _ in range(100)]
        large = [executor.options(cpus=2, priority=1).submit(pow, 2, 3) for _ in range(3)]
        gate.open()
        assert [outcome(future) for future in large] == [8] * 3
        assert [outcome(future) for future in more] == [size] * 100
        assert [outcome(future) for future in held] == [future.pid for future in held]
        agents.append([worker.pid for worker in executor.workers()])
        gate.close()
    assert agents[0] == agents[1] == agents[2]


def test_kept_interpreters_make_room_when_tasks_that_filled_the_socket_are_taken_out_of_it(
    new_executor: New, tmp_path: Path
) -> None:
    """While the tasks lay there, nobody could be told to leave; and none of them ends here, which would be a chance."""
    executor = new_executor(2, max_tasks_per_child=None)
    small = bytes(30_000)
    for number in range(3):
        gate = Gate(tmp_path / f"gate-{number}")
        held = [executor.submit(pass_gate, *gate.paths) for _ in range(2)]
        stopped = gate.wait_arrivals(2)
        gate.open()
        for future in [*held, *[executor.submit(len, small) for _ in range(50)]]:
            outcome(future)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        more = [executor.submit(len, small) for _ in range(100)]
        wait_until(lambda: "it is on" in executor.explain(more[20]).summary)
        large = executor.options(cpus=2, priority=1).submit(pow, 2, 3)
        wait_until(lambda: "it is on" not in executor.explain(more[20]).summary)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        assert outcome(large) == 8
        assert [outcome(future) for future in more] == [len(small)] * 100
        gate.close()


@pytest.mark.parametrize("kind", ["fresh", "kept"])
def test_an_agent_that_is_killed_under_load_costs_no_task_and_nothing_overlaps(
    new_executor: New, gate: Gate, tmp_path: Path, kind: str
) -> None:
    executor = new_executor(
        None, resources={"cpus": 4, "gpus/nvidia": 2, "memory": "2GiB"}, agents=2, **KINDS[kind]
    )
    log, chance = tmp_path / "log", random.Random(7)
    fitting: list[dict[str, Any]] = [{}, {"cpus": 2}, {"gpus": 0.5}, {"gpus": 1}, {"memory": "1GiB"}, {"cpus": 0.5}]
    held = [executor.submit(note, str(log), gate.paths) for _ in range(4)]
    pids = gate.wait_arrivals(4)
    futures = [executor.options(**chance.choice(fitting)).submit(note, str(log)) for _ in range(50)]
    agent = parent_of(parent_of(pids[0]))
    os.kill(agent, signal.SIGKILL)
    again = gate.wait_arrivals(6)
    gate.open()
    for future in [*held, *futures]:
        assert outcome(future) == f"{future.task_id}.{future.attempt}"
    assert len(set(again)) == 6
    assert len(never_ended(log)) == 2
    check_nothing_was_given_twice(log)


# ---- who goes first, and where


def test_variants_are_taken_in_their_order(new_executor: New, gate: Gate) -> None:
    executor = new_executor(None, resources={"cpus": 6, "gpus/nvidia": 1})
    view = executor.options(resources=[Resources(cpus=1, gpus=1), Resources(cpus=2)])
    names = ("HPC_RESOURCE_VARIANT", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    futures = [view.submit(at_gate, gate.paths, *names) for _ in range(3)]
    gate.wait_arrivals(3)
    gate.open()
    assert sorted(map(outcome, futures), key=str) == [["0", "0", "1"], ["1", None, "2"], ["1", None, "2"]]


def test_the_more_important_go_first_then_the_older(new_executor: New, gate: Gate, tmp_path: Path) -> None:
    executor = new_executor(1)
    blocker = executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals()
    order = str(tmp_path / "order")
    futures = [
        executor.options(priority=priority).submit(announce, order, number)
        for number, priority in enumerate([0, 7, -3, 7, 2, 0])
    ]
    gate.open()
    for future in (blocker, *futures):
        outcome(future)
    assert announced(order) == [1, 3, 4, 0, 5, 2]


def test_a_large_task_is_not_starved_by_small_ones(new_executor: New) -> None:
    """Whenever a small one ends another one is submitted, until the large one has started."""
    executor = new_executor(2, max_tasks_per_child=None)
    started: list[Future[Any]] = []

    def go_on(_: Future[Any]) -> None:
        if not large.done():
            started.append(executor.submit(pow, 2, 3))
            started[-1].add_done_callback(go_on)

    small = [executor.submit(pow, 2, 3) for _ in range(10)]
    large = executor.options(cpus=2).submit(pow, 3, 3)
    for future in small:
        future.add_done_callback(go_on)
    assert outcome(large) == 27
    assert all(outcome(future) == 8 for future in started)


def test_holes_are_filled(new_executor: New, gate: Gate) -> None:
    """A task that finds no room does not keep others from what it cannot use."""
    executor = new_executor(None, resources={"cpus": 4, "licences": "sum(2)"})
    blockers = [executor.submit(pass_gate, *gate.paths) for _ in range(3)]
    gate.wait_arrivals(3)
    large = executor.options(cpus=4, priority=-1).submit(pow, 3, 3)
    assert outcome(executor.options(cpus=0, resources={"licences": 2}).submit(pow, 2, 3)) == 8
    assert outcome(executor.submit(pow, 2, 4)) == 16
    assert not large.done()
    gate.open()
    assert outcome(large) == 27
    for future in blockers:
        outcome(future)


# ---- several agents


def test_agents_divide_what_there_is(new_executor: New, gate: Gate) -> None:
    resources = {"cpus": 5, "gpus/nvidia": "[a, b]", "memory": "3GiB", "licences": "sum(1)"}
    executor = new_executor(None, resources=resources, agents=2)
    outcome(executor.submit(pow, 2, 3))
    wait_until(lambda: len(executor.workers()) == 2)
    first, second = sorted((worker.resources for worker in executor.workers()), key=lambda each: -each["cpus"])
    assert first == {"cpus": 3, "memory": 1536, "gpus/nvidia": 1, "licences": 0.5}
    assert second == {"cpus": 2, "memory": 1536, "gpus/nvidia": 1, "licences": 0.5}
    names = ("HPC_CPUS", "CUDA_VISIBLE_DEVICES")
    futures = [executor.options(cpus=2, gpus=1).submit(at_gate, gate.paths, *names) for _ in range(2)]
    pids = gate.wait_arrivals(2)
    assert len({parent_of(parent_of(pid)) for pid in pids}) == 2
    gate.open()
    (one, a), (other, b) = sorted(map(outcome, futures), key=operator.itemgetter(1))
    assert (a, b, other) == ("a", "b", "3,4")
    assert one in ("0,1", "1,2")


@pytest.mark.parametrize(
    ("needs", "resource", "requested", "most"),
    [
        ({"cpus": 3}, "cpus", 3, 2),
        ({"gpus": 0.5}, "gpus", 0.5, 0),
        ({"memory": "2GiB"}, "memory", 2048, 1024),
        ({"resources": {"fpga": 2}}, "fpga", 2, 1),
        ({"nodes": 3}, "nodes", 3, 2),
        ({"resources": [Resources(cpus=9), Resources(gpus=1)]}, "cpus", 9, 2),
    ],
    ids=str,
)
def test_what_no_agent_can_ever_have_is_refused_where_it_is_submitted(
    new_executor: New, needs: dict[str, Any], resource: str, requested: float, most: float
) -> None:
    executor = new_executor(None, resources={"cpus": 4, "memory": "2GiB", "fpga": 2}, agents=2)
    with pytest.raises(UnsatisfiableRequest, match=f"'pow' needs .*{resource}|'pow' needs .*nodes") as caught:
        executor.options(**needs).submit(pow, 2, 3)
    error = caught.value
    assert (error.task, error.resource, error.requested, error.most) == ("pow", resource, requested, most)
    assert outcome(executor.submit(pow, 2, 3)) == 8


def test_with_invitations_what_nobody_has_waits_for_who_has_it(
    new_executor: New, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    executor = new_executor(1, agents=0)
    invitation = executor.invite(host="127.0.0.1")
    future = executor.options(gpus=1).submit(variables)
    assert "and no agent has any: it waits for one that has" in caplog.text
    join(invitation, env={**os.environ, "CUDA_VISIBLE_DEVICES": "3,5"})
    assert outcome(future)["CUDA_VISIBLE_DEVICES"] in ("3", "5")


def test_an_invited_agent_has_what_its_batch_job_was_granted(new_executor: New, join: Join, gate: Gate) -> None:
    executor = new_executor(1, agents=0)
    end = int(time.time()) + 1000
    slurm = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "1", "SLURM_MEM_PER_NODE": "300"}
    slurm["SLURM_JOB_END_TIME"] = str(end)
    join(executor.invite(host="127.0.0.1"), env={**os.environ, **slurm})
    held = executor.submit(at_gate, gate.paths, "HPC_CPUS")
    gate.wait_arrivals()
    [worker] = executor.workers()
    assert (worker.resources["cpus"], worker.resources["memory"], worker.group) == (1, 300, "slurm-7")
    assert worker.ends is not None
    assert abs(worker.ends - end) < 30
    assert (worker.free["cpus"], worker.used) == (0, {"cpus": 1, "memory": 0})
    too_long = executor.options(time_request="2h").submit(pow, 2, 3)
    short = executor.options(time_request="5m").submit(pow, 2, 3)
    gate.open()
    assert outcome(held) == [str(USABLE[0])]
    assert outcome(short) == 8
    assert "ends in" in str(executor.explain(too_long))
    assert too_long.state == "pending"
    join(executor.invite(host="127.0.0.1"))
    assert outcome(too_long) == 8


# ---- several nodes


def nodes_seen(paths: tuple[str, str] | None = None) -> tuple[str, list[str], list[str], str]:
    if paths is not None:
        pass_gate(*paths)
    node_file, host_file = os.environ["HPC_NODE_FILE"], os.environ["HPC_HOST_FILE"]
    texts = [Path(path).read_text().splitlines() for path in (node_file, host_file)]
    assert (os.environ["HQ_NODE_FILE"], os.environ["HQ_HOST_FILE"]) == (node_file, host_file)
    assert os.stat(node_file).st_mode & 0o077 == 0
    return os.environ["HPC_NUM_NODES"], *texts, node_file


@OF_ALL_KINDS
def test_a_task_on_several_nodes_finds_their_names(new_executor: New, gate: Gate, kind: str) -> None:
    executor = new_executor(None, resources={"cpus": 4}, agents=2, **KINDS[kind])
    host = socket.gethostname()
    view = executor.options(nodes=2, stdout=CAPTURE)
    if kind == "program":
        script = 'echo $HPC_NUM_NODES $HQ_NUM_NODES; cat "$HPC_NODE_FILE" "$HQ_HOST_FILE"; echo $HPC_NODE_FILE'
        *words, file = outcome(view.submit(sh(script))).stdout.split()
        assert words == ["2", "2", *[host.partition(".")[0]] * 2, *[host] * 2]
    else:
        number, nodes, hosts, file = outcome(view.submit(nodes_seen))
        assert (number, nodes, hosts) == ("2", [host.partition(".")[0]] * 2, [host] * 2)
    futures = [executor.submit(at_gate, gate.paths, "HPC_NUM_NODES", "HPC_CPUS") for _ in range(4)]
    assert len({parent_of(pid) for pid in gate.wait_arrivals(4)}) == 2
    gate.open()
    assert sorted(map(outcome, futures)) == [[None, str(number)] for number in range(4)]
    wait_until(lambda: not os.path.exists(file), "for the file with the names of the nodes to go")


def test_a_task_on_several_nodes_has_them_alone(new_executor: New, gate: Gate, tmp_path: Path) -> None:
    executor = new_executor(None, resources={"cpus": 4}, agents=2)
    large = executor.options(nodes=2).submit(nodes_seen, gate.paths)
    gate.wait_arrivals()
    small = [executor.submit(announce, tmp_path / "small") for _ in range(4)]
    assert all(worker.free["cpus"] == 0 for worker in executor.workers())
    assert "several nodes" in str(executor.explain(small[-1]))
    assert not announced(tmp_path / "small")
    gate.open()
    assert outcome(large)[0] == "2"
    for future in small:
        outcome(future)


def test_a_task_on_several_nodes_starts_again_when_one_of_them_is_lost(new_executor: New, gate: Gate) -> None:
    executor = new_executor(None, resources={"cpus": 2}, agents=2, max_tasks_per_child=None)
    large = executor.options(nodes=2).submit(nodes_seen, gate.paths)
    [pid] = gate.wait_arrivals()
    first = parent_of(parent_of(pid))
    [other] = [worker.pid for worker in executor.workers() if worker.pid != first]
    os.kill(other, signal.SIGKILL)
    gate.wait_arrivals(2)
    gate.open()
    assert outcome(large)[0] == "2"
    assert large.attempt == 2
