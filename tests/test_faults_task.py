"""Faults of a task's own process: each hits its own future and nothing else.

Every test that takes ``pool`` has a neighbour in the same executor, which must give its result as if nothing had been,
and tasks that are submitted afterwards have to work as well.
"""
# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

import atexit
import contextlib
import ctypes
import errno
import faulthandler
import locale
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cloudpickle
import pytest
from pools import (
    ALL_KINDS,
    FRESH,
    KINDS,
    ONE_TASK_EACH,
    agent_of,
    check_works,
    end,
    failure,
    gate,
    new_executor,
    outcome,
    pool,
    pools,
)
from waiting import (
    announce,
    announced,
    parent_of,
    pass_gate,
    state_of,
    wait_announced,
    wait_gone,
    wait_until,
)

from executor import (
    CAPTURE,
    DEVNULL,
    EnvironmentFailed,
    InitializerFailed,
    Program,
    ProgramFailed,
    ProgramNotStarted,
    TaskDied,
    TaskTimeout,
)
from worker_agent import channel, processes

pytestmark = pytest.mark.shared

# By value, or each fresh interpreter would import pytest to find its function.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def sleep_for_ever(pids):
    announce(pids)
    while True:
        signal.pause()


def fork_sleeper(pids, *, own_session=False):
    """One process that does not end by itself, nor by SIGTERM."""
    if os.fork() == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if own_session:
                os.setsid()
            sleep_for_ever(pids)
        finally:
            os._exit(1)


def grow_tree(pids):
    """Three generations, the youngest of which is in a session of its own; all ignore SIGTERM."""
    if os.fork() == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            fork_sleeper(pids, own_session=True)
            sleep_for_ever(pids)
        finally:
            os._exit(1)


def daemonise(pids):
    """Leave a process behind as daemons do: forked twice, in a session of its own, SIGTERM ignored."""
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            fork_sleeper(pids)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    wait_announced(pids)


# ---- A1-A3: the interpreter ends


@ALL_KINDS
def test_a_task_whose_process_is_killed_fails_alone(pool, gate):
    """A1."""
    future = pool.submit(pass_gate, *gate.paths)
    (pid,) = gate.wait_arrivals()
    os.kill(pid, signal.SIGKILL)
    error = failure(future)
    assert isinstance(error, TaskDied)
    assert isinstance(error, BrokenProcessPool)
    assert (error.signal, error.exit_code, error.pid, error.attempt) == (signal.SIGKILL, None, pid, 1)
    assert (future.signal, future.returncode, future.pid) == (signal.SIGKILL, -signal.SIGKILL, pid)
    assert "SIGKILL" in str(error)
    assert error.host
    assert error.host in str(error)
    wait_gone(pid)


@pytest.mark.parametrize("kind", ["fresh", "reused"])
def test_idle_interpreters_that_are_killed_are_replaced(new_executor, gate, kind):
    """A1, with no task."""
    executor = new_executor(3, **KINDS[kind])
    outcome(executor.submit(sum, range(9)))
    future = executor.submit(pass_gate, *gate.paths)
    (busy,) = gate.wait_arrivals()
    for pid in processes.children(parent_of(busy)):
        if pid != busy:
            with contextlib.suppress(ProcessLookupError):  # the one that ran the first task may be leaving
                os.kill(pid, signal.SIGKILL)
    check_works(executor)
    gate.open()
    assert outcome(future) == busy


def test_a_template_that_is_killed_is_replaced_and_its_tasks_run_again(new_executor, gate):
    """A1, with the process that interpreters are forked from."""
    executor = new_executor(2)
    futures = [executor.submit(pass_gate, *gate.paths) for _ in range(2)]
    first = gate.wait_arrivals(2)
    os.kill(parent_of(first[0]), signal.SIGKILL)
    again = gate.wait_arrivals(4)[2:]
    wait_gone(*first)
    gate.open()
    assert sorted(map(outcome, futures)) == sorted(again)
    assert [future.attempt for future in futures] == [2, 2]


def crash():
    faulthandler._sigsegv()


class CrashWhenPickled:
    def __reduce__(self):
        faulthandler._sigsegv()


class CrashWhenUnpickled:
    def __setstate__(self, state):
        faulthandler._sigsegv()

    def __getstate__(self):
        return {"some": "state"}


@ALL_KINDS
@pytest.mark.parametrize(
    ("function", "args"),
    [(crash, ()), (CrashWhenPickled, ()), (len, (CrashWhenUnpickled(),))],
    ids=["function", "result", "argument"],
)
def test_a_segmentation_fault_shows_where_it_was(pool, function, args):
    """A2."""
    future = pool.options(stderr=CAPTURE).submit(function, *args)
    error = failure(future)
    assert isinstance(error, TaskDied)
    assert error.signal == signal.SIGSEGV
    assert "Segmentation fault" in error.stderr
    assert error.stderr == future.stderr
    assert "Segmentation fault" in str(error)  # the first lines of a traceback say what, and where in the task


@ALL_KINDS
@pytest.mark.parametrize(("status", "exit"), [(3, "python"), (0, "python"), (3, "C"), (0, "C")])
def test_ending_without_a_result_is_never_success(pool, status, exit):
    """A3."""

    def leave():
        os._exit(status) if exit == "python" else ctypes.CDLL(None).exit(status)

    error = failure(pool.submit(leave))
    assert isinstance(error, TaskDied)
    assert (error.exit_code, error.signal, error.returncode) == (status, None, status)
    assert f"status {status}" in str(error)


@ALL_KINDS
@pytest.mark.parametrize("status", [3, 0])
def test_what_a_task_has_started_ends_with_it_when_it_leaves_without_a_result(pool, tmp_path, status):
    """A3, A7."""

    def leave():
        daemonise(tmp_path / "pids")
        os._exit(status)

    assert failure(pool.submit(leave)).exit_code == status
    wait_gone(*announced(tmp_path / "pids"))


# ---- A4-A5: exceptions that end a program elsewhere


def raise_it(error):
    raise error


@pytest.mark.parametrize("error", [SystemExit(1), SystemExit(), SystemExit("why"), KeyboardInterrupt("now")], ids=repr)
def test_exceptions_that_end_programs_are_the_futures_own(pool, error):
    """A4, A5."""
    future = pool.submit(raise_it, error)
    raised = failure(future)
    assert (type(raised), raised.args) == (type(error), error.args)
    with pytest.raises(type(error)):
        future.result()


def test_sys_exit_is_the_same(pool):
    """A4."""
    assert failure(pool.submit(sys.exit, 7)).code == 7


# ---- A6: after the result


class CrashWhenDeleted:
    def __init__(self, client):
        self.client = client

    def __reduce__(self):
        return CrashWhenDeleted, (self.client,)

    def __del__(self):
        if os.getpid() != self.client:
            os._exit(9)


def crash_at_exit(crash):
    atexit.register(crash)
    return "result"


def keep_and_crash(client):
    sys.kept = CrashWhenDeleted(client)
    return "result"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("function", "args"),
    [(crash_at_exit, (crash,)), (crash_at_exit, (sys.exit,)), (keep_and_crash, (os.getpid(),))],
    ids=["signal", "exit", "destructor"],
)
def test_a_result_stands_when_its_process_crashes_at_its_end(new_executor, kind, function, args):
    """A6."""
    executor = new_executor(2, **KINDS[kind])
    future = executor.options(stderr=CAPTURE).submit(function, *args)
    assert outcome(future) == "result"
    check_works(executor)
    end(executor)
    assert future.result() == "result"


@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_after_the_result_is_a_warning_in_the_log(new_executor, kind, caplog):
    """A6."""
    executor = new_executor(1, **{**KINDS[kind], "max_tasks_per_child": 1})
    future = executor.options(stderr=CAPTURE).submit(crash_at_exit, crash)
    assert outcome(future) == "result"
    end(executor)
    assert f"the interpreter of task {future.task_id} (process {future.pid}) was ended by signal" in caplog.text


@ALL_KINDS
def test_a_result_whose_destructor_crashes_arrives(pool):
    """A6."""
    assert isinstance(outcome(pool.submit(CrashWhenDeleted, os.getpid())), CrashWhenDeleted)


@pytest.mark.parametrize("next", ["call", "program"])
def test_exit_functions_run_to_their_end_whatever_comes_next(new_executor, tmp_path, gate, next):
    """A6, the other side: the end of an interpreter is the task's own."""

    def write_at_exit():
        @atexit.register
        def write():
            pass_gate(*gate.paths)
            announce(tmp_path / "written")

    executor = new_executor(1)
    outcome(executor.submit(write_at_exit))
    (pid,) = gate.wait_arrivals()
    following = executor.submit(Program(["true"]) if next == "program" else abs, *[1][: next == "call"])
    with contextlib.suppress(TimeoutError):
        following.result(0.3)  # it may have to wait for the place
    gate.open()
    outcome(following)
    wait_gone(pid)
    assert announced(tmp_path / "written") == [pid]


# ---- A7-A8: what a task leaves behind


@ONE_TASK_EACH
def test_a_daemon_ends_with_its_task(pool, tmp_path):
    """A7."""
    outcome(pool.submit(daemonise, tmp_path / "pids"))
    wait_gone(*announced(tmp_path / "pids"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_daemon_does_not_survive_the_executor(new_executor, tmp_path, kind):
    """A7, where the interpreter that has started it is kept."""
    executor = new_executor(2, **KINDS[kind])
    outcome(executor.submit(daemonise, tmp_path / "pids"))
    end(executor)
    wait_gone(*announced(tmp_path / "pids"), patience=1)


@ALL_KINDS
def test_a_background_process_that_keeps_stdout_open_delays_no_result(pool):
    """A8."""

    def start():
        return subprocess.Popen(["sleep", "600"]).pid

    pid = outcome(pool.submit(start))
    if not _is_reused(pool):
        wait_gone(pid)
    else:
        os.kill(pid, signal.SIGKILL)


@FRESH
def test_a_background_process_of_a_program_delays_no_result_and_ends(pool):
    """A8."""
    future = pool.options(stdout=CAPTURE).submit(Program(["sh", "-c", "sleep 600 & echo $!"]))
    wait_gone(int(outcome(future).stdout))


# ---- A9-A12: descriptors, output, memory


@pytest.mark.parametrize(("first", "last"), [(0, 4096), (3, 4096), (0, 3), (1, 2), (2, 3)])
def test_a_task_that_closes_descriptors_has_an_end(pool, first, last):
    """A9."""
    future = pool.submit(os.closerange, first, last)
    error = future.exception(30)
    assert error is None or isinstance(error, TaskDied)


@pytest.mark.parametrize("options", [{}, {"env": {"SOME": "variable"}}, {"stdout": DEVNULL}], ids=str)
@pytest.mark.parametrize("kind", ["fresh", "reused"])
def test_tasks_that_follow_have_their_descriptors(new_executor, tmp_path, kind, options):
    """A9: a task that closes its output has no effect on those that come after it."""

    def write():
        opened = os.open(tmp_path / "data", os.O_WRONLY | os.O_CREAT)
        print("printed")
        sys.stdout.flush()
        os.close(opened)
        return opened

    executor = new_executor(1, **KINDS[kind])
    executor.submit(os.closerange, 0, 3).exception(30)
    future = executor.options(**{"stdout": CAPTURE, **options}).submit(write)
    assert outcome(future) > 2
    assert future.stdout == ("" if "stdout" in options else "printed\n")
    assert (tmp_path / "data").read_bytes() == b""


@ALL_KINDS
def test_garbage_in_the_output_is_only_output(pool):
    """A10: bytes that look like our own messages, too."""
    garbage = [
        bytes(range(256)),
        channel.pack_exited(channel.Exited(os.getpid(), 9, 0.0, 0.0, 0)),
        channel.pack_started(1, 1, os.getpid(), 0.0),
        channel.RETIRE,
        b"\0" * 100,
    ]

    def write():
        for part in garbage:
            os.write(1, part)
            os.write(2, part)
        return "result"

    future = pool.options(stdout=CAPTURE, stderr=CAPTURE).submit(write)
    assert outcome(future) == "result"
    assert future.stdout == future.stderr == b"".join(garbage).decode(errors="replace")


@ALL_KINDS
def test_garbage_in_any_descriptor_hits_only_its_own_task(pool):
    """A10: whoever writes to all descriptors finds ours."""

    def write():
        for fd in range(3, 20):
            for garbage in (b"garbage", b"\0", b"\1" * 9, b"\2" * 29, b"\3" * 78, b"\5" + b"\xff" * 50):
                with contextlib.suppress(OSError):
                    os.write(fd, garbage)
        return "result"

    error = pool.submit(write).exception(30)
    assert error is None or isinstance(error, TaskDied)


@ALL_KINDS
def test_programs_that_a_task_starts_inherit_none_of_our_descriptors(pool):
    """A10."""

    def list_descriptors():
        command = ["find", "/proc/self/fd", "-type", "l", "-printf", "%f %l\n"]
        return subprocess.run(command, close_fds=False, capture_output=True, text=True).stdout.splitlines()

    found = dict(line.split(" ", 1) for line in outcome(pool.submit(list_descriptors)))
    assert [target for fd, target in found.items() if int(fd) > 2 and not target.startswith("/")] == []


def _peak(pid):
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def test_a_flood_of_output_is_cut_and_takes_little_memory(pool):
    """A11."""
    agent, before = agent_of(pool), _peak("self")

    def flood():
        os.write(1, b"begin\n")
        block = b"x" * 2**20
        for _ in range(300):
            rest = memoryview(block)
            while rest:
                rest = rest[os.write(1, rest) :]
        os.write(1, b"end\n")

    future = pool.options(stdout=CAPTURE, output_limit="1MiB").submit(flood)
    outcome(future)
    assert future.stdout.startswith("begin\nxxx")
    assert future.stdout.endswith("xxxend\n")
    assert f"{300 * 2**20 + 10 - 2**20} bytes left out" in future.stdout
    assert 2**20 < len(future.stdout) < 2**20 + 100
    assert _peak(agent) < 200 * 2**20
    assert _peak("self") < before + 50 * 2**20


def test_memory_that_is_not_to_be_had_is_a_memory_error(pool):
    """A12."""

    def exhaust(restore):
        old = resource.getrlimit(resource.RLIMIT_AS)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**25, old[1]))
        try:
            return bytearray(2**30)
        finally:
            if restore:
                resource.setrlimit(resource.RLIMIT_AS, old)

    assert isinstance(failure(pool.submit(exhaust, _is_reused(pool))), MemoryError)


# ---- A15: signals that are ignored


@ALL_KINDS
@pytest.mark.parametrize("way", ["time limit", "kill", "cancel"])
def test_a_task_that_ignores_sigterm_is_killed_after_the_grace(pool, gate, way):
    """A15."""

    future = pool.options(time_limit=0.2 if way == "time limit" else None).submit(ignore_and_sleep, gate.arrivals)
    (pid,) = gate.wait_arrivals()
    if way == "kill":
        future.kill()
    elif way == "cancel":
        assert future.cancel(kill=True)
    wait_gone(pid)
    if way == "cancel":
        assert future.cancelled()
    else:
        assert isinstance(failure(future), TaskTimeout if way == "time limit" else TaskDied)


def ignore_and_sleep(pids):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep_for_ever(pids)


# ---- A17-A18: what a task may change


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_may_delete_its_directory(new_executor, tmp_path, kind):
    """A17."""

    def delete():
        os.chdir(tmp_path / "its own")
        os.rmdir(tmp_path / "its own")

    (tmp_path / "its own").mkdir()
    executor = new_executor(1, **KINDS[kind])
    outcome(executor.submit(delete))
    assert outcome(executor.submit(os.getcwd)) == os.getcwd()


@pytest.mark.skipif(os.getuid() != 0, reason="chroot is for root")
@ONE_TASK_EACH
def test_a_task_may_change_its_root(pool, tmp_path):
    """A17."""

    def change():
        os.chroot(tmp_path)
        return os.listdir("/")

    assert outcome(pool.submit(change)) == os.listdir(tmp_path)
    assert outcome(pool.submit(os.listdir, "/")) == os.listdir("/")


def surroundings():
    """What a process has, besides its memory."""
    return {
        "umask": [os.umask(0o22), os.umask(0o22)][0],
        "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
        "environment": {name: text for name, text in os.environ.items() if name[:3] not in ("HPC", "HQ_")},
        "locale": locale.setlocale(locale.LC_ALL),
        "signals blocked": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "signal handlers": [repr(signal.getsignal(number)) for number in signal.valid_signals()],
        "path": sys.path,
        "directory": os.getcwd(),
        "recursion": sys.getrecursionlimit(),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "modules": "colorsys" in sys.modules,
        "main": sorted(vars(sys.modules["__main__"])),
    }


def change_everything():
    os.umask(0o77)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 1024))
    os.environ["CHANGED"] = "yes"
    del os.environ["PATH"]
    locale.setlocale(locale.LC_ALL, "C")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGTERM])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path.insert(0, "/changed")
    os.chdir("/")
    sys.setrecursionlimit(345)
    os.nice(5)
    import colorsys  # noqa: F401

    vars(sys.modules["__main__"])["changed"] = True


@pytest.mark.parametrize("kind", ["fresh", "spawned"])
def test_what_a_task_changes_is_unchanged_for_the_next_one(new_executor, kind):
    """A18."""
    executor = new_executor(1, **KINDS[kind])
    before = outcome(executor.submit(surroundings))
    outcome(executor.submit(change_everything))
    assert outcome(executor.submit(surroundings)) == before
    assert "CHANGED" not in before["environment"]


# ---- A19-A21: forks, threads, stops


@ALL_KINDS
@pytest.mark.parametrize("end", ["return", "raise", "exit"])
def test_a_fork_that_comes_out_of_the_call_too_gives_no_second_result(pool, tmp_path, end):
    """A19."""

    def fork():
        print("before", end="")
        pid = os.getpid()
        child = os.fork()
        announce(tmp_path / "pids")
        if child == 0:
            if end == "raise":
                raise ValueError("in the fork")
            if end == "exit":
                sys.exit(3)
            return "the fork's"
        os.waitid(os.P_PID, child, os.WEXITED)
        return pid

    future = pool.options(stdout=CAPTURE).submit(fork)
    assert outcome(future) == future.pid
    assert future.stdout == "before"
    pids = announced(tmp_path / "pids")
    assert len(pids) == 2
    wait_gone(*(pid for pid in pids if pid != future.pid))


@ONE_TASK_EACH
def test_a_thread_that_outlives_its_task_delays_no_result_and_is_ended(pool):
    """A20."""

    def start_thread():
        threading.Thread(target=time.sleep, args=(3600,)).start()
        return os.getpid()

    wait_gone(outcome(pool.submit(start_thread)))


def test_an_interpreter_kept_by_a_thread_is_ended_when_other_tasks_take_its_place(new_executor):
    """A20."""

    def start_thread():
        threading.Thread(target=time.sleep, args=(3600,)).start()
        return os.getpid()

    executor = new_executor(1)
    pid = outcome(executor.submit(start_thread))
    outcome(executor.submit(Program(["true"])))
    wait_gone(pid)


def test_threads_of_reused_interpreters_do_not_hold_up_shutdown(new_executor):
    """A20."""

    def start_thread():
        threading.Thread(target=time.sleep, args=(3600,)).start()
        return os.getpid()

    executor = new_executor(1, max_tasks_per_child=None)
    pid = outcome(executor.submit(start_thread))
    assert outcome(executor.submit(os.getpid)) == pid
    end(executor)
    wait_gone(pid, patience=1)


@ALL_KINDS
def test_a_task_that_was_stopped_goes_on_when_it_is_continued(pool, gate):
    """A21."""
    future = pool.submit(pass_gate, *gate.paths)
    (pid,) = gate.wait_arrivals()
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: state_of(pid) == "T")
    gate.open()
    check_works(pool)
    assert not future.done()
    os.kill(pid, signal.SIGCONT)
    assert outcome(future) == pid


@ALL_KINDS
def test_a_time_limit_holds_for_a_task_that_was_stopped(pool):
    """A21."""

    def stop():
        os.kill(os.getpid(), signal.SIGSTOP)

    future = pool.options(time_limit=0.3).submit(stop)
    assert isinstance(failure(future), TaskTimeout)
    wait_gone(future.pid)


# ---- A22: the time limit, and the whole tree


@ALL_KINDS
@pytest.mark.parametrize("manner", ["calm", "ignores SIGTERM", "catches SIGTERM", "leaves at SIGTERM"])
def test_at_the_time_limit_the_whole_tree_ends(pool, tmp_path, manner):
    """A22."""
    pids = tmp_path / "pids"

    def catch(*_):
        raise ValueError("caught")

    handlers = {
        "calm": signal.SIG_DFL, "ignores SIGTERM": signal.SIG_IGN, "catches SIGTERM": catch,
        "leaves at SIGTERM": lambda *_: os._exit(0),
    }  # fmt: skip

    def run():
        signal.signal(signal.SIGTERM, handlers[manner])
        try:
            grow_tree(pids)
            wait_announced(pids, 2)
            daemonise(tmp_path / "daemons")
            sleep_for_ever(pids)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    future = pool.options(time_limit="500ms").submit(run)
    error = failure(future)
    assert isinstance(error, TaskTimeout)
    assert isinstance(error, TimeoutError)
    assert error.time_limit == 0.5
    assert "0.5 s" in str(error)
    started = set(announced(pids)) | set(announced(tmp_path / "daemons"))
    assert len(started) == 4
    wait_gone(*(pid for pid in started if pid != future.pid or manner != "catches SIGTERM"))


# ---- A23: interpreters that cannot be had


def _bad_interpreter(kind, folder):
    """A file in the place of python. Scripts count their starts and stay from the twentieth on: no endless loop."""
    python = folder / "python"
    if kind == "missing":
        return python
    if kind == "wrong architecture":
        start = bytearray(Path(sys.executable).read_bytes()[:4096])
        start[18:20] = b"\xf7\0" if start[18] != 0xF7 else b"\x3e\0"
        python.write_bytes(start)
    else:
        script = "#!/bin/sh\necho start >> {0}/starts\n[ $(wc -l < {0}/starts) -gt 20 ] && exec sleep 600\n{1}\n"
        ends = {"exits 0": "exit 0", "exits 1": "echo no such library >&2; exit 1", "killed": "kill -9 $$"}
        python.write_text(script.format(folder, ends.get(kind, "exit 1")))
    python.chmod(0o000 if kind == "not executable" else 0o755)
    return python


@pytest.mark.parametrize("way", ["fresh", "reused", "spawned"])
@pytest.mark.parametrize("kind", ["missing", "not executable", "wrong architecture", "exits 0", "exits 1", "killed"])
def test_an_interpreter_that_cannot_be_had_is_said_in_each_future(new_executor, tmp_path, monkeypatch, gate, way, kind):
    """A23."""
    executor = new_executor(2, **KINDS[way])
    agent = agent_of(executor)
    neighbour = executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals()
    bad = _bad_interpreter(kind, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(bad))
        futures = [executor.options(env={"PYTHONUTF8": "1"}).submit(abs, number) for number in range(3)]
    errors = [future.exception(10) for future in futures]
    for error in errors:
        assert isinstance(error, EnvironmentFailed)
        assert str(bad) in str(error)
    if kind == "exits 1":
        assert "no such library" in str(errors[0])
    gate.open()
    outcome(neighbour)
    assert neighbour.attempt == 1
    assert agent_of(executor) == agent
    assert len((tmp_path / "starts").read_text().splitlines() if (tmp_path / "starts").exists() else []) < 10


@pytest.mark.parametrize("way", ["fresh", "reused", "spawned"])
@pytest.mark.parametrize("manner", ["exit 0", "exit 1", "signal"])
def test_an_initializer_that_ends_its_process_breaks_the_executor(new_executor, tmp_path, gate, way, manner):
    """A23: bounded, the twentieth process waits at a gate."""

    def initialize():
        announce(tmp_path / "starts")
        if len(announced(tmp_path / "starts")) >= 20:
            pass_gate(*gate.paths)
        if manner == "signal":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(int(manner[-1]))

    executor = new_executor(2, initializer=initialize, **KINDS[way])
    error = executor.submit(abs, -1).exception(10)
    assert isinstance(error, BrokenProcessPool)
    assert isinstance(error, InitializerFailed)
    with pytest.raises(BrokenProcessPool):
        executor.submit(abs, -1)
    assert len(announced(tmp_path / "starts")) < 20


@pytest.mark.parametrize("way", ["fresh", "reused", "spawned"])
def test_an_environment_in_which_no_process_lives_is_given_up(new_executor, tmp_path, gate, way):
    """A23: a module that ends each fork at once. Bounded, the twentieth waits at a gate."""
    (tmp_path / "deadly_module.py").write_text(
        "import os, waiting\n"
        "def die():\n"
        f"    waiting.announce({str(tmp_path / 'starts')!r})\n"
        f"    if len(waiting.announced({str(tmp_path / 'starts')!r})) >= 20:\n"
        f"        waiting.pass_gate(*{gate.paths!r})\n"
        "    os._exit(1)\n"
        "os.register_at_fork(after_in_child=die)\n"
        + ("die()\n" if way == "spawned" else "")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        executor = new_executor(2, preload=["deadly_module"], **KINDS[way])
        assert isinstance(executor.submit(abs, -1).exception(10), BrokenProcessPool)
    assert len(announced(tmp_path / "starts")) < 20


@pytest.mark.parametrize("max_tasks", [1, None])
def test_what_runs_where_no_more_processes_can_be_had_ends_and_makes_room(new_executor, tmp_path, max_tasks):
    """The first process could be had, the next one cannot, and the environment is given up with all of its tasks.

    What ran already ran on, for a future that had ended, and what waits for both workers never started.
    """
    fickle = "import os\nif os.path.exists({!r}):\n    raise ImportError('not any more')\n"
    (tmp_path / "fickle_module.py").write_text(fickle.format(str(tmp_path / "now")))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        executor = new_executor(
            2, preload=["fickle_module"], max_tasks_per_child=max_tasks, mp_context=KINDS["spawned"]["mp_context"]
        )
        runs = executor.submit(sleep_for_ever, tmp_path / "pids")
        (pid,) = wait_announced(tmp_path / "pids")
        (tmp_path / "now").touch()
        errors = [failure(future) for future in (executor.submit(abs, -1), runs)]
    assert [type(error) for error in errors] == [EnvironmentFailed] * 2
    wait_gone(pid)
    assert outcome(executor.options(cpus=2).submit(Program(["true"]))).returncode == 0


# ---- a template that is slow to say what it has forked


@pytest.fixture
def slow_template(new_executor, tmp_path, gate):
    """Makes executors whose template waits at the gate after each fork, before it says so; the child goes on."""
    hook = f"import os, waiting\nos.register_at_fork(after_in_parent=lambda: waiting.pass_gate(*{gate.paths!r}))\n"
    (tmp_path / "slow_module.py").write_text(hook)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        yield lambda workers: new_executor(workers, preload=["slow_module"], max_tasks_per_child=None)


def test_an_interpreter_is_kept_whose_task_ended_before_its_fork_was_known(slow_template, gate):
    """It counted twice, as one that is there and one that is to come, and was sent away as one too many."""
    executor = slow_template(1)
    first, second = [executor.submit(os.getpid) for _ in range(2)]
    pid = outcome(first)
    gate.open()
    assert outcome(second) == pid
    assert outcome(executor.submit(os.getpid)) == pid


def test_a_task_has_an_interpreter_though_the_fork_of_another_one_is_not_known_yet(slow_template, tmp_path, gate):
    """That one counted twice, and the second time as idle; nobody looked again before its task had ended."""
    executor = slow_template(3)
    runs = executor.submit(sleep_for_ever, tmp_path / "pids")
    wait_until(runs.running)
    waits = executor.submit(pow, 2, 3)
    outcome(executor.submit(Program(["true"])))  # so the agent has the task before
    gate.open()
    assert outcome(waits) == 8
    runs.kill()


# ---- A24: another Python


def _other_python():
    versions = [f"python3.{minor}" for minor in range(10, 16) if minor != sys.version_info.minor]
    for path in filter(None, map(shutil.which, versions)):
        if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    return None


@pytest.mark.skipif(_other_python() is None, reason="there is only one Python here")
def test_a_python_of_another_version_is_refused_with_both_versions(new_executor, monkeypatch):
    """A24."""
    executor = new_executor(1)
    check_works(executor)
    other = _other_python()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", other)
        future = executor.options(env={"PYTHONUTF8": "1"}).submit(lambda: 1)
    error = future.exception(20)
    assert isinstance(error, EnvironmentFailed)
    assert os.path.basename(other).removeprefix("python") in str(error)
    assert platform.python_version() in str(error)
    check_works(executor)


# ---- A25: programs


@FRESH
@pytest.mark.parametrize(
    ("script", "returncode", "word"),
    [
        ("exit 127", 127, "status 127"),
        ("no_such_command_at_all", 127, "status 127"),
        ("exit 1", 1, "status 1"),
        ("kill -9 $$", -9, "SIGKILL"),
        ("kill -TERM $$", -15, "SIGTERM"),
        ("kill -SEGV $$", -11, "SIGSEGV"),
    ],
)
def test_a_program_that_fails_says_how(pool, script, returncode, word):
    """A25."""
    future = pool.options(stderr=CAPTURE).submit(Program(["sh", "-c", f"echo why >&2; {script}"]))
    error = failure(future)
    assert isinstance(error, ProgramFailed)
    assert isinstance(error, subprocess.CalledProcessError)
    assert error.returncode == future.returncode == returncode
    assert word in str(error)
    assert "why" in str(error)


@FRESH
def test_a_program_that_is_missing_or_not_executable_says_so(pool, tmp_path):
    """A25."""
    (tmp_path / "text").write_text("no program")
    missing = failure(pool.submit(Program(["no_such_program_at_all"])))
    not_executable = failure(pool.submit(Program([tmp_path / "text"])))
    for error, number in ((missing, errno.ENOENT), (not_executable, errno.EACCES)):
        assert isinstance(error, ProgramNotStarted)
        assert isinstance(error, OSError)
        assert error.errno == number
    assert "there is no such program in PATH" in str(missing)
    assert "not executable" in str(not_executable)


def _is_reused(pool):
    return pool._surroundings.max_tasks == 0
