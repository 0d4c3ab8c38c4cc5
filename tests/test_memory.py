"""Limits on the memory of tasks: real processes that grow, fork, and hide; made-up trees; control groups if we may."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from worker_agent import guarded, memory, memory_groups, processes
from worker_agent.loop import Loop
from worker_agent.memory import KernelKills, MemoryGuard, Peak
from worker_agent.memory_groups import open_groups

pytestmark = pytest.mark.shared

MB = 1 << 20
PATIENCE = 60.0

#: How processes of the tests use memory, say how far they are, and wait.
_PRELUDE = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
MB = 1 << 20
held = []
def hold(megabytes):
    block = bytearray(megabytes * MB)
    block[::4096] = b"x" * (256 * megabytes)
    held.append(block)
def grow(until, step=10, pause=0.02):
    for _ in range(0, until, step):
        hold(step); time.sleep(pause)
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def wait():
    while True: signal.pause()
def child(function, new_session=False):
    pid = os.fork()
    if pid == 0:
        if new_session: os.setsid()
        function()
        os._exit(0)
    return pid
"""


class Task:
    """A process as an agent starts one: the leader of a session, with a pipe that it says things to."""

    def __init__(self, source: str, **env: str) -> None:
        text = _PRELUDE.format(root=str(Path(memory.__file__).parents[1])) + source
        self._process = subprocess.Popen(
            [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            env={**os.environ, **env}, bufsize=0,
        )  # fmt: skip
        self.pid = self._process.pid

    def line(self) -> list[int]:
        assert self._process.stdout is not None
        return [int(word) for word in self._process.stdout.readline().split()]

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    def wait(self) -> int:
        return self._process.wait(PATIENCE)

    def end(self) -> None:
        processes.kill_tree(self.pid)
        processes.kill_group(self.pid, signal.SIGKILL)
        with self._process:
            self._process.wait(PATIENCE)


@pytest.fixture
def start() -> Iterator[Callable[..., Task]]:
    tasks: list[Task] = []

    def start_one(source: str, **env: str) -> Task:
        tasks.append(Task(source, **env))
        return tasks[-1]

    yield start_one
    for task in tasks:
        task.end()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    assert not [timer for _, _, timer in loop._timers if timer.action is not None], "a timer is left"
    loop.close()


class Guard(MemoryGuard[str]):
    """One that watches, unless it is told otherwise, and notes whom it reports."""

    def __init__(self, loop: Loop, **options: Any) -> None:
        self.reported: list[tuple[str, int]] = []
        super().__init__(loop, lambda key, peak: self.reported.append((key, peak)), **{"groups": False, **options})

    @property
    def keys(self) -> list[str]:
        return [key for key, _ in self.reported]


@pytest.fixture
def guard(loop: Loop) -> Iterator[Guard]:
    guard = Guard(loop)
    yield guard
    guard.close()


def run(loop: Loop, until: Callable[[], object], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"nothing after {seconds} s"
        loop.run_once(until=time.monotonic() + 0.1)


def run_for(loop: Loop, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        loop.run_once(until=end)


def look(loop: Loop, guard: Guard, times: int = 3) -> None:
    """Let so many looks pass, and the measurements that they ask for, on a machine however slow."""
    for _ in range(times):
        timer = guard._timer
        run(loop, lambda timer=timer: guard._timer is not timer)  # type: ignore[misc]


def measure(loop: Loop, guard: Guard, key: str) -> None:
    """Until this task was measured twice from now on: the second time begins after now."""
    for _ in range(2):
        before = guard._guarded[key].measured
        run(loop, lambda before=before: guard._guarded[key].measured > before)  # type: ignore[misc]
    run(loop, lambda: guard._watch._measurement is None)


# ---- watching


def test_a_task_that_grows_is_reported_near_its_limit_and_its_neighbour_is_not(
    loop: Loop, guard: Guard, start: Callable[..., Task]
) -> None:
    hog, healthy = start("sys.stdin.read(1); grow(2000)\nwait()"), start("hold(30); say(1); wait()")
    healthy.line()
    guard.guard("hog", hog.pid, 100 * MB)
    guard.guard("healthy", healthy.pid, 100 * MB)
    hog.go_on()
    run(loop, lambda: guard.reported)
    hog.end()
    look(loop, guard)
    assert guard.keys == ["hog"]  # once
    peak = guard.release("hog")
    assert peak.by == "agent"
    assert peak.limit == 100 * MB
    assert 100 * MB < peak.peak == guard.reported[0][1]
    healthy_peak = guard.release("healthy")
    assert healthy_peak.by == ""
    assert 30 * MB < healthy_peak.peak < 60 * MB


def test_a_tree_is_reported_for_its_sum(loop: Loop, guard: Guard, start: Callable[..., Task]) -> None:
    source = "sys.stdin.read(1)\nfor _ in range({}): child(lambda: (hold(40), wait()))\nsay(1); wait()"
    large, small = start(source.format(3)), start(source.format(1))
    for task in (large, small):
        guard.guard(str(task.pid), task.pid, 100 * MB)
        task.go_on()
        task.line()
    run(loop, lambda: guard.reported)
    look(loop, guard)
    assert guard.keys == [str(large.pid)]


def test_a_child_in_a_session_of_its_own_counts(loop: Loop, guard: Guard, start: Callable[..., Task]) -> None:
    task = start("child(lambda: (sys.stdin.read(1), hold(150), wait()), new_session=True); wait()")
    guard.guard("task", task.pid, 100 * MB)
    look(loop, guard)
    assert not guard.reported
    task.go_on()
    run(loop, lambda: guard.reported)


ORPHAN = """
def middle():
    child(lambda: (say(os.getpid()), sys.stdin.read(1), hold(150), wait()), new_session={new_session})
    {pause}
    os._exit(0)
os.waitpid(child(middle, new_session={new_session}), 0)
say(0)
wait()
"""


@pytest.fixture
def subreaper() -> Iterator[None]:
    """Orphans become our children, as an agent's."""
    processes.become_subreaper()
    yield
    processes._prctl(processes._PR_SET_CHILD_SUBREAPER, 0)


@pytest.fixture
def end_orphans(subreaper: None) -> Iterator[list[int]]:
    pids: list[int] = []
    yield pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def first_line(task: Task) -> int:
    """The orphan's pid, when it has lost its parent: which of the two lines comes first is open."""
    return max(task.line() + task.line())


@pytest.mark.parametrize("new_session", [False, True])
def test_an_orphan_that_came_to_us_counts_for_its_task(
    new_session: bool, loop: Loop, guard: Guard, start: Callable[..., Task], end_orphans: list[int]
) -> None:
    """By its session, or by its variables."""
    source = ORPHAN.format(new_session=new_session, pause="")
    task, other = start(source, HPC_TASK_ID="17"), start("wait()", HPC_TASK_ID="18")
    orphan = first_line(task)
    end_orphans.append(orphan)
    assert orphan in processes.children(os.getpid())
    guard.guard("other", other.pid, 100 * MB, ["HPC_TASK_ID=18"])
    guard.guard("task", task.pid, 100 * MB, ["HPC_TASK_ID=17"])
    task.go_on()
    run(loop, lambda: guard.reported)
    assert guard.keys == ["task"]


def test_who_was_seen_in_the_tree_stays_in_it(
    loop: Loop, guard: Guard, start: Callable[..., Task], end_orphans: list[int]
) -> None:
    """It leaves session and parent, and has no marks."""
    task = start(ORPHAN.format(new_session=True, pause="wait()"))
    orphan = task.line()[0]
    guard.guard("task", task.pid, 100 * MB)
    look(loop, guard, 1)
    assert orphan in guard._guarded["task"].members
    os.kill(guarded.field_of(Path(f"/proc/{orphan}/status").read_bytes(), b"PPid"), signal.SIGKILL)
    task.line()
    end_orphans.append(orphan)
    assert orphan in processes.children(os.getpid())
    task.go_on()
    run(loop, lambda: guard.reported)


def test_processes_that_come_later_are_found(loop: Loop, guard: Guard, start: Callable[..., Task]) -> None:
    task = start("sys.stdin.read(1); child(lambda: child(lambda: (hold(150), wait())) and wait()); wait()")
    guard.guard("task", task.pid, 100 * MB)
    look(loop, guard)
    assert list(guard._guarded["task"].members) == [task.pid]
    task.go_on()
    run(loop, lambda: guard.reported)


# Processes that share: an interpreter and its template, a task and its own children

TEMPLATE = """
hold(300)
from worker_agent import processes
def interpreter():
    os.setsid()
    say(os.getpid())
    sys.stdin.read(1)
    {does}
    say(1)
    wait()
child(interpreter)
wait()
"""


def test_the_memory_of_its_template_is_not_the_tasks(loop: Loop, guard: Guard, start: Callable[..., Task]) -> None:
    template = start(TEMPLATE.format(does="hold(20)"))
    guard.guard("task", template.line()[0], 100 * MB)
    template.go_on()
    template.line()
    measure(loop, guard, "task")
    assert not guard.reported
    peak = guard.release("task")
    assert 15 * MB < peak.peak < 50 * MB
    assert peak.by == ""


@pytest.mark.parametrize("does", ["hold(150)", "held[0][::4096] = bytes(300 * 256)"], ids=["new", "copied"])
def test_what_a_forked_task_has_of_its_own_counts(
    does: str, loop: Loop, guard: Guard, start: Callable[..., Task]
) -> None:
    """Pages of the template's that it writes to, too."""
    template = start(TEMPLATE.format(does=does))
    guard.guard("task", template.line()[0], 100 * MB)
    look(loop, guard)
    assert not guard.reported
    template.go_on()
    run(loop, lambda: guard.reported)


def test_what_a_task_shares_with_its_own_children_counts_once(
    loop: Loop, guard: Guard, start: Callable[..., Task]
) -> None:
    """The sum of what each has is 450 MB; what they have is 150 MB."""
    task = start("hold(150); child(wait); child(wait); say(1); wait()")
    task.line()
    guard.guard("large", task.pid, 120 * MB)
    run(loop, lambda: guard.reported)
    guard.release("large")
    guard.guard("small", task.pid, 250 * MB)
    measure(loop, guard, "small")
    assert guard.keys == ["large"]
    assert 150 * MB < guard._guarded["small"].peak <= 250 * MB


def test_shared_memory_counts_once(loop: Loop, guard: Guard, start: Callable[..., Task]) -> None:
    source = """
import mmap
block = mmap.mmap(-1, 80 * MB)
def use():
    block[::4096] = bytes(80 * 256)
    say(1); wait()
child(use); child(use); wait()
"""
    task = start(source)
    task.line(), task.line()
    guard.guard("small", task.pid, 70 * MB)
    run(loop, lambda: guard.reported)
    guard.release("small")
    guard.guard("large", task.pid, 130 * MB)
    measure(loop, guard, "large")
    assert guard.keys == ["small"]


def test_files_that_are_mapped_do_not_count(
    loop: Loop, guard: Guard, start: Callable[..., Task], tmp_path: Path
) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(200 * MB))
    source = f"import mmap\nm = mmap.mmap(os.open({str(path)!r}, os.O_RDWR), 0); sum(m[::4096]); m[::4096] = m[::4096]"
    task = start(f"{source}\nsay(1); wait()")
    task.line()
    guard.guard("task", task.pid, 50 * MB)
    look(loop, guard)
    assert not guard.reported
    assert guard.release("task").peak < 50 * MB


# Beginnings and ends


def test_there_is_a_timer_only_as_long_as_somebody_is_guarded(
    loop: Loop, guard: Guard, start: Callable[..., Task]
) -> None:
    assert guard._timer is None
    task = start("wait()")
    guard.guard("a", task.pid, MB << 10)
    guard.guard("b", task.pid, MB << 10)
    assert len(loop._timers) == 1
    guard.release("a")
    assert guard._timer is not None
    guard.release("b")
    assert guard._timer is None


def test_a_task_that_was_never_looked_at_has_a_peak_too(guard: Guard, start: Callable[..., Task]) -> None:
    task = start("hold(40); say(1); wait()")
    task.line()
    guard.guard("task", task.pid, 30 * MB)
    peak = guard.release("task")
    assert 40 * MB < peak.peak
    assert peak.by == ""  # nobody had been told


def test_the_end_of_a_task_is_no_trouble(loop: Loop, guard: Guard, start: Callable[..., Task]) -> None:
    task = start("hold(40); say(1); sys.stdin.read(1)")
    task.line()
    guard.guard("task", task.pid, 100 * MB)
    look(loop, guard)
    task.go_on()
    task.wait()
    look(loop, guard)
    assert not guard.reported
    assert guard.release("task").peak > 40 * MB


def test_a_process_that_never_was_is_no_trouble(loop: Loop, guard: Guard) -> None:
    guard.guard("task", 1 << 30, MB)
    look(loop, guard)
    assert guard.release("task") == Peak(0, MB, "")


def test_a_key_that_is_not_guarded_has_no_peak(guard: Guard) -> None:
    assert guard.release("nobody") == Peak(0, 0, "")


def test_who_is_told_may_release_anybody(loop: Loop, start: Callable[..., Task]) -> None:
    told: list[str] = []

    def on_exceeded(key: str, peak: int) -> None:
        told.append(key)
        guard.release("a")
        guard.release("b")

    guard = MemoryGuard(loop, on_exceeded, groups=False)
    for key in ("a", "b"):
        task = start("hold(20); say(1); wait()")
        task.line()
        guard.guard(key, task.pid, 10 * MB)
    run(loop, lambda: told)
    assert told == ["a"]
    guard.close()


def test_a_tree_that_forks_and_dies_all_the_time_is_no_trouble(
    loop: Loop, guard: Guard, start: Callable[..., Task]
) -> None:
    task = start("while True:\n  for pid in [child(lambda: child(lambda: None)) for _ in range(5)]: os.waitpid(pid, 0)")
    guard.guard("task", task.pid, MB << 10)
    guard.guard("tight", task.pid, 20 * MB)  # measured as long as it lives, perhaps
    look(loop, guard, 3)
    task.end()
    look(loop, guard)
    assert "task" not in guard.keys


def test_who_forks_all_the_time_does_not_hide_by_that(loop: Loop, guard: Guard, start: Callable[..., Task]) -> None:
    task = start("hold(60)\nwhile True:\n  for pid in [child(lambda: None) for _ in range(5)]: os.waitpid(pid, 0)")
    guard.guard("task", task.pid, 50 * MB)
    run(loop, lambda: guard.reported)


def test_without_descriptors_nobody_is_looked_at_and_nothing_fails(
    loop: Loop, guard: Guard, start: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = start("hold(20); say(1); wait()")
    task.line()
    guard.guard("task", task.pid, 10 * MB)
    with monkeypatch.context() as patch:
        patch.setattr(processes, "descendants", lambda *_: os.open("/nowhere", 0))
        look(loop, guard)
    assert not guard.reported
    run(loop, lambda: guard.reported)


def test_a_name_that_no_group_can_have_is_refused(loop: Loop) -> None:
    with pytest.raises(ValueError, match=r"name='\.\./x': expected letters and digits"):
        Guard(loop, name="../x")


# ---- made-up trees


class Proc:
    """A ``/proc`` of our making."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def process(self, pid: int, parent: int, *, anon: int = 0, session: int = 0, born: int = 1, **rollup: int) -> None:
        folder = self.path / str(pid)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stat").write_text(f"{pid} (a b) S {parent} " + " ".join(["0"] * 17) + f" {born} 0\n")
        (folder / "status").write_text(
            f"Name:\ta b\nPPid:\t{parent}\nNSsid:\t{session or pid}\t1\nRssAnon:\t{anon} kB\nRssFile:\t99 kB\n"
        )
        (folder / "smaps_rollup").write_text(
            "\n".join(["0-1 ---p 0 00:00 0 [rollup]", *(f"{name}: {size} kB" for name, size in rollup.items())])
        )


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    made = Proc(tmp_path / "proc")
    made.process(1, 0)
    made.process(os.getpid(), 1)
    return made


@pytest.fixture
def faked(loop: Loop, proc: Proc) -> Iterator[Guard]:
    guard = Guard(loop, proc=str(proc.path))
    yield guard
    guard.close()


def test_the_latest_process_tells_whether_there_are_new_ones(loop: Loop, proc: Proc, faked: Guard) -> None:
    (proc.path / "loadavg").write_text("0.1 0.2 0.3 1/99 5000\n")
    proc.process(2000, os.getpid())
    faked.guard("task", 2000, MB)
    look(loop, faked, 1)
    proc.process(5001, 2000)
    look(loop, faked, 1)
    assert list(faked._guarded["task"].members) == [2000]
    (proc.path / "loadavg").write_text("0.1 0.2 0.3 1/99 5001\n")
    look(loop, faked, 1)
    assert list(faked._guarded["task"].members) == [2000, 5001]


def test_a_whole_line_of_new_processes_belongs_to_its_task(loop: Loop, proc: Proc, faked: Guard) -> None:
    proc.process(2000, os.getpid())
    proc.process(2001, os.getpid())
    faked.guard("a", 2000, MB)
    faked.guard("b", 2001, MB)
    look(loop, faked, 1)
    for pid, parent in ((3000, 2000), (2500, 3000), (2600, 2500), (4000, 2001), (5000, 5001), (5001, 5000), (6000, 1)):
        proc.process(pid, parent)
    proc.process(7000, 1, session=2001)
    look(loop, faked, 1)
    assert sorted(faked._guarded["a"].members) == [2000, 2500, 2600, 3000]
    assert sorted(faked._guarded["b"].members) == [2001, 4000, 7000]


def test_a_number_that_is_used_again_is_not_held_against_the_task(loop: Loop, proc: Proc, faked: Guard) -> None:
    proc.process(2000, os.getpid(), anon=10)
    proc.process(2001, 2000, anon=10)
    faked.guard("task", 2000, MB)
    look(loop, faked, 1)
    proc.process(2001, 1, anon=5000, born=7)
    look(loop, faked)
    assert not faked.reported
    assert list(faked._guarded["task"].members) == [2000]


def test_a_process_that_may_not_be_measured_counts_as_it_says(loop: Loop, proc: Proc, faked: Guard) -> None:
    """Less what it may have of its template's."""
    proc.process(1999, os.getpid(), anon=500)
    proc.process(2000, 1999, anon=1000)
    proc.process(2001, 2000, anon=1000)
    faked.guard("task", 2000, MB)
    faked.guard("tight", 2000, MB - 49 * 1024)
    measure(loop, faked, "task")
    run(loop, lambda: faked.reported)
    assert faked.reported == [("tight", 1000 * 1024)]


def test_a_measurement_leaves_out_what_the_template_lends(loop: Loop, proc: Proc, faked: Guard) -> None:
    proc.process(1999, os.getpid(), anon=900, Pss_Anon=500, Private_Dirty=100)
    proc.process(2000, 1999, anon=1300, Pss_Anon=950, Private_Dirty=500, Pss_Shmem=30, Pss_File=5)
    faked.guard("task", 2000, MB)
    measure(loop, faked, "task")
    assert faked._guarded["task"].shared == (1300 - (950 - 400) - 30) * 1024
    assert not faked.reported


def test_a_long_look_is_followed_by_a_long_pause(
    loop: Loop, proc: Proc, faked: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 0.5, 0.0, 0.0])
    faked.guard("task", 2000, MB)
    assert faked._timer is not None
    faked._timer.cancel()
    with monkeypatch.context() as patch:
        patch.setattr(memory.time, "thread_time", lambda: next(times))
        faked._look()
    assert faked._timer.at - time.monotonic() == pytest.approx(10, abs=1)
    faked.release("task")


@pytest.mark.parametrize(
    ("text", "number"),
    [(b"A: 1\nB:\t12 kB\n", 12), (b"A: 1\nB:\n", 0), (b"A: 1\nB: x\n", 0), (b"", 0), (b"A: 1\nBB: 2", 0)],
)
def test_a_field_is_a_number(text: bytes, number: int) -> None:
    assert guarded.field_of(text, b"B") == number


# ---- control groups


class Tree:
    """A control group and a ``/proc/self/cgroup`` of our making: files remain what is written to them."""

    def __init__(self, path: Path, pids: list[int], controllers: str = "cpu memory") -> None:
        self.proc, self.cgroup = path / "p", path / "c"
        self.root = self.cgroup / "a" / "b"
        self.root.mkdir(parents=True)
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self" / "cgroup").write_text("1:name=systemd:/x\n0::/a/b\n")
        (self.proc / "thread-self").mkdir()
        (self.proc / "thread-self" / "children").write_text("")
        (self.root / "cgroup.controllers").write_text(controllers)
        (self.root / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        (self.root / "cgroup.subtree_control").write_text("")

    def open(self) -> memory_groups.Groups | None:
        return open_groups("x", os.getpid(), str(self.proc), str(self.cgroup))

    def folders(self) -> list[str]:
        return [each.name for each in self.root.iterdir() if each.is_dir()]


@pytest.mark.parametrize(
    ("pids", "controllers", "folder"),
    [([os.getpid()], "cpu", ""), ([os.getpid(), 1], "memory", ""), ([os.getpid(), 0], "memory", ""),
     ([1], "memory", ""), ([os.getpid()], "memory", "user.slice")],
    ids=["no memory", "somebody else", "another namespace", "not ours", "others' groups"],
)  # fmt: skip
def test_a_group_that_is_not_ours_alone_is_left_as_it_is(
    pids: list[int], controllers: str, folder: str, tmp_path: Path
) -> None:
    tree = Tree(tmp_path, pids, controllers)
    if folder:
        (tree.root / folder).mkdir()
    assert tree.open() is None
    assert tree.folders() == ([folder] if folder else [])
    assert (tree.root / "cgroup.subtree_control").read_text() == ""


def test_without_control_groups_tasks_are_watched(loop: Loop, tmp_path: Path) -> None:
    guard = Guard(loop, groups=True, cgroup=str(tmp_path))
    assert guard.mechanism == "watch"
    guard.close()


@pytest.fixture
def own_group() -> Iterator[Path]:
    """A control group below the root that is ours, with the memory controller; removed at the end."""
    root = Path("/sys/fs/cgroup")
    if not _counts_memory(root):
        pytest.skip("version 2 of control groups does not have the memory controller here")
    path = root / f"hpc-executor-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no control groups can be made here: {error}")
    yield path
    left = [each for each in path.iterdir() if each.is_dir()]
    for each in [*left, path]:
        wait_until(lambda each=each: not (each / "cgroup.procs").read_text(), f"{each} to become empty")  # type: ignore[misc]
        each.rmdir()
    assert not left


def _counts_memory(root: Path) -> bool:
    with contextlib.suppress(OSError):
        return "memory" in (root / "cgroup.subtree_control").read_text().split()
    return False


#: An agent in a control group of its own. It starts a task, guards it, and says what came of it.
AGENT = """
sys.path.insert(0, {tests!r})
group = {group!r}
place = group + "/hpc-executor-home"  # where one is that was started in the place of another
open((place if os.path.exists(place) else group) + "/cgroup.procs", "w").write(str(os.getpid()))
import subprocess
from test_memory import Guard, Task, MB, run, run_for
from worker_agent.loop import Loop
from worker_agent.memory import KernelKills
loop = Loop()
guard = Guard(loop, groups=True, name="agent1")
assert guard.mechanism == "cgroup", guard.mechanism
def folders():
    return sorted(name for name in os.listdir(group) if os.path.isdir(group + "/" + name))
{does}
guard.close()
assert folders() == [], folders()
say(1)
"""


@pytest.fixture
def run_agent(own_group: Path, start: Callable[..., Task]) -> Callable[[str], None]:
    def run_one(does: str) -> None:
        agent = start(AGENT.format(tests=str(Path(__file__).parent), group=str(own_group), does=does))
        assert agent.line() == [1]
        agent.end()

    return run_one


def test_the_kernel_ends_a_task_in_a_group_and_only_that(run_agent: Callable[[str], None]) -> None:
    run_agent("""
hog, healthy = Task("child(wait); sys.stdin.read(1); grow(1000); wait()"), Task("hold(30); say(1); wait()")
healthy.line()
guard.guard("hog", hog.pid, 100 * MB)
guard.guard("healthy", healthy.pid, 100 * MB)
assert folders() == ["hpc-executor-agent1-2", "hpc-executor-agent1-3", "hpc-executor-home"], folders()
hog.go_on()
assert hog.wait() == -9
run(loop, lambda: guard.reported)
run_for(loop, 0.3)
assert guard.keys == ["hog"], guard.keys
peak = guard.release("hog")
assert peak.by == "kernel" and 90 * MB < peak.peak <= 100 * MB, peak
peak = guard.release("healthy")
assert peak.by == "", peak
assert folders() == ["hpc-executor-home"], folders()
healthy.end(), hog.end()
""")


def test_children_of_a_task_are_in_its_group_and_come_back(run_agent: Callable[[str], None]) -> None:
    run_agent("""
task = Task("child(lambda: wait(), new_session=True); say(1); sys.stdin.read(1); hold(50); say(2); wait()")
task.line()
guard.guard("task", task.pid, 100 * MB)
assert len(open(group + "/hpc-executor-agent1-2/cgroup.procs").read().split()) == 2
task.go_on(); task.line()
run_for(loop, 0.3)
assert guard._guarded["task"].peak > 50 * MB
peak = guard.release("task")
assert peak.by == "" and 50 * MB < peak.peak < 100 * MB, peak
assert folders() == ["hpc-executor-home"], folders()
assert len(open(group + "/hpc-executor-home/cgroup.procs").read().split()) == 3
guard.guard("task", task.pid, 100 * MB)
task.end()
assert guard.release("task").by == ""
""")


def test_a_task_that_cannot_have_a_group_is_watched(run_agent: Callable[[str], None]) -> None:
    run_agent("""
open(group + "/cgroup.max.descendants", "w").write("2")
one, two = Task("hold(30); say(1); wait()"), Task("hold(30); say(1); wait()")
one.line(), two.line()
guard.guard("one", one.pid, 20 * MB)
guard.guard("two", two.pid, 20 * MB)
assert len(folders()) == 2
run(loop, lambda: guard.reported)
assert guard.keys == ["two"]  # what the other has it had before
assert guard.release("two").by == "agent"
assert guard.release("one").by == ""
one.end(), two.end()
open(group + "/cgroup.max.descendants", "w").write("max")
""")


def test_groups_of_an_agent_that_died_are_removed_by_the_next(run_agent: Callable[[str], None]) -> None:
    run_agent("""
task = Task("wait()")
guard.guard("task", task.pid, 100 * MB)
task.end()
assert len(folders()) == 2
say(1)
os._exit(0)
""")
    run_agent('assert folders() == ["hpc-executor-home"], folders()')


def test_a_group_with_processes_of_others_is_left_alone(run_agent: Callable[[str], None]) -> None:
    run_agent("""
guard.close()
other = Task("wait()")
mine = Task("say(1); wait()")
mine.line()
again = Guard(loop, groups=True, top=mine.pid)
assert again.mechanism == "watch"
again.close()
assert folders() == []
other.end(), mine.end()
""")


def test_a_kill_by_the_kernel_is_counted(run_agent: Callable[[str], None]) -> None:
    run_agent("""
hog = Task("sys.stdin.read(1); grow(1000); wait()")
guard.guard("hog", hog.pid, 50 * MB)
hog.go_on()
assert hog.wait() == -9
inside = open(group + "/memory.events").read()
assert "oom_kill 0" not in inside, inside
assert KernelKills(cgroup="/nowhere").count() > 0
assert guard.release("hog").by == "kernel"
hog.end()
""")


# ---- the kernel's kills


def test_the_nearest_group_that_counts_is_asked(tmp_path: Path) -> None:
    tree = Tree(tmp_path, [])
    (tree.cgroup / "a" / "memory.events").write_text("low 0\noom 5\noom_kill 3\noom_group_kill 0\n")
    (tree.proc / "vmstat").write_text("pgfault 1\noom_kill 24\n")
    kills = KernelKills(str(tree.proc), str(tree.cgroup))
    assert kills.count() == 3
    (tree.cgroup / "a" / "memory.events").write_text("oom_kill 4\n")
    assert kills.count() == 4


def test_in_version_1_its_own_file_is_asked(tmp_path: Path) -> None:
    tree = Tree(tmp_path, [])
    (tree.proc / "self" / "cgroup").write_text("4:cpuset,memory:/m\n0::/a/b\n")
    (tree.cgroup / "memory" / "m").mkdir(parents=True)
    (tree.cgroup / "memory" / "m" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n")
    assert KernelKills(str(tree.proc), str(tree.cgroup)).count() == 7


@pytest.mark.parametrize("events", ["", "oom 1\noom_kill", "oom_kill"])
def test_where_no_group_counts_the_node_does(events: str, tmp_path: Path) -> None:
    tree = Tree(tmp_path, [])
    (tree.root / "memory.events").write_text(events)
    (tree.proc / "vmstat").write_text("pgfault 1\noom_kill 24\n")
    assert KernelKills(str(tree.proc), str(tree.cgroup)).count() == 24


def test_where_nobody_counts_there_are_none(tmp_path: Path) -> None:
    assert KernelKills(str(tmp_path), str(tmp_path)).count() == 0


def test_the_count_can_be_read_here() -> None:
    assert KernelKills()._file
    assert KernelKills().count() >= 0
