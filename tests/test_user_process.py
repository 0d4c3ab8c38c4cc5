"""What may happen to the user's process: the faults E1 to E22 of the catalogue, each with a test or a few.

The catalogue is the project's list of faults and of what the user is to see of each; the number begins each docstring.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import textwrap
import threading
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed, wait
from functools import partial
from pathlib import Path

import cloudpickle
import psutil
import pytest

from executor import AgentFailed, HPCExecutor
from executor.core.scheduler import Scheduler

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = [
    pytest.mark.shared, pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning"),
]  # fmt: skip

#: Whether interpreters are kept.
KEPT = pytest.mark.parametrize("kept", [1, None])


def pass_gate(arrivals, tokens, value=None):
    """Say by its pid that the task has started, wait for a token, return ``value``. See ``Gate`` in conftest.py."""
    with open(arrivals, "wb", buffering=0) as entry:
        entry.write(b"%d\n" % os.getpid())
    with open(tokens, "rb", buffering=0) as gate:
        gate.read(1)
    return value


def echo(value):
    return value


def append(path, line):
    with open(path, "a") as file:
        file.write(f"{line}\n")


#: What the scripts begin with: the same tasks, and the paths of a gate as their arguments.
PRELUDE = '''
import os, signal, sys, threading, time
from concurrent.futures import as_completed, wait
from pathlib import Path
from executor import CAPTURE, HPCExecutor, Program

def pass_gate(arrivals, tokens, value=None):
    with open(arrivals, "wb", buffering=0) as entry:
        entry.write(b"%d\\n" % os.getpid())
    with open(tokens, "rb", buffering=0) as gate:
        gate.read(1)
    return value

paths = sys.argv[1:3]
'''


def script(text):
    return PRELUDE + textwrap.dedent(text)


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# ---- E1 to E3: the end of the process


def test_after_kill_9_of_the_client_its_tasks_and_all_that_they_started_are_gone(start_script, gate, wait_until):
    """E1: a call, its child in a session of its own, and a program."""
    client = start_script(
        script('''
        import subprocess

        def with_child(*paths):
            subprocess.Popen(["sh", "-c", 'echo $$ > "$0"; exec sleep 600', paths[0]], start_new_session=True)
            pass_gate(*paths)

        executor = HPCExecutor(2)
        executor.submit(with_child, *paths)
        executor.submit(Program(["sh", "-c", 'echo $$ > "$0"; exec sleep 600', paths[0]]))
        threading.Event().wait()
        '''),
        *gate.paths,
    )
    pids = gate.wait_arrivals(3)
    client.kill()
    client.wait()
    wait_until(lambda: all(map(gone, pids)), seconds=5, what=lambda: [pid for pid in pids if not gone(pid)])


@KEPT
def test_the_end_of_the_interpreter_waits_for_what_was_submitted(run_script, tmp_path, kept):
    """E2: as in the standard library, and nothing is printed."""
    text = script('''
        executor = HPCExecutor(2, max_tasks_per_child=eval(sys.argv[2]))
        for number in range(20):
            executor.submit(Path(sys.argv[1], str(number)).touch)
        executor.submit(print, "printed by the last one")
    ''')
    ended = run_script(text, str(tmp_path), str(kept))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "printed by the last one\n", "")
    assert all((tmp_path / str(number)).exists() for number in range(20))


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [("1 / 0", 1, "ZeroDivisionError"), ("sys.exit(3)", 3, "")],
)
@pytest.mark.parametrize("block", ["with HPCExecutor(1) as executor", "executor = HPCExecutor(1)\nif True"])
def test_a_script_that_ends_by_an_exception_finishes_its_tasks_and_says_nothing_else(
    run_script, tmp_path, end, code, words, block
):
    """E3: an unhandled exception, ``sys.exit``."""
    text = PRELUDE + f"{block}:\n    executor.submit(Path(sys.argv[1]).touch)\n    {end}\n"
    ended = run_script(text, str(tmp_path / "done"))
    assert ended.returncode == code
    assert (tmp_path / "done").exists()
    assert ended.stderr.count("Traceback") == bool(words), ended.stderr
    assert words in ended.stderr


@pytest.mark.parametrize("block", ["with HPCExecutor(1) as executor", "executor = HPCExecutor(1)\nif True"])
def test_a_script_that_ends_by_a_keyboard_interrupt_ends_its_tasks(start_script, gate, wait_until, block):
    """E3: nobody wants to wait for them; and nothing is printed but the one traceback."""
    text = PRELUDE + f"{block}:\n    executor.submit(pass_gate, *paths)\n    signal.pause()\n"
    client = start_script(text, *gate.paths)
    [pid] = gate.wait_arrivals(1)
    client.send_signal(signal.SIGINT)
    out, err = client.communicate(timeout=10)
    assert (client.returncode, out, err.count("Traceback")) == (-signal.SIGINT, "", 1), err
    wait_until(lambda: gone(pid), seconds=5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_that_ends_the_client_ends_its_tasks(start_script, gate, wait_until, number):
    """E3: SIGTERM and its like give the process no chance to say anything."""
    text = script('''
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with HPCExecutor(2) as executor:
            list(executor.map(lambda _: pass_gate(*paths), range(2)))
    ''')
    client = start_script(text, *gate.paths)
    pids = gate.wait_arrivals(2)
    client.send_signal(number)
    out, err = client.communicate(timeout=10)
    assert (client.returncode, out, err) == (-number, "", "")
    wait_until(lambda: all(map(gone, pids)), seconds=5)


def test_sigterm_handled_by_sys_exit_ends_as_sys_exit_does(start_script, gate):
    """E3: the handler that many scripts have; running tasks are waited for."""
    text = script('''
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        with HPCExecutor(1) as executor:
            print(executor.submit(pass_gate, *paths, "never printed").result())
    ''')
    client = start_script(text, *gate.paths)
    gate.wait_arrivals(1)
    client.terminate()
    gate.open()
    out, err = client.communicate(timeout=10)
    assert (client.returncode, out, err) == (7, "", "")


# ---- E3 and E4: the terminal


class Terminal:
    """A script in the foreground of a terminal of its own."""

    def __init__(self, start_script, text, *args):
        self._master, slave = pty.openpty()
        settings = termios.tcgetattr(slave)
        settings[3] |= termios.NOFLSH  # or Ctrl-C discards what the script has just answered to it
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        first = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        self.process = start_script(
            first + text, *args, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.seen = ""

    def read_until(self, word, seconds=20):
        """Read what is shown until ``word`` is there, or to the end if that is None."""
        end = time.monotonic() + seconds
        while word is None or word not in self.seen:
            ready, _, _ = select.select([self._master], [], [], max(0, end - time.monotonic()))
            assert ready, f"waited for {word!r}, seen: {self.seen!r}"
            try:
                data = os.read(self._master, 4096)
            except OSError:  # the other end is closed
                data = b""
            if not data:
                assert word is None, f"waited for {word!r}, seen: {self.seen!r}"
                return
            self.seen += data.decode()

    def press_ctrl_c(self):
        """Once the main thread waits: CPython itself sleeps through a signal that comes just before it falls asleep."""
        while (seen := self._switches()) is None or (time.sleep(0.02), self._switches())[1] != seen:
            assert self.process.poll() is None, self.seen
        os.write(self._master, b"\x03")

    def _switches(self):
        """How often the main thread fell asleep, if it sleeps; one that waits for the GIL wakes up all the time."""
        status = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/status").read_text()
        found = re.search(r"State:\tS.*\nvoluntary_ctxt_switches:\t(\d+)", status, re.DOTALL)
        return found and found[1]

    def hang_up(self):
        if self._master is not None:
            os.close(self._master)
            self._master = None


@pytest.fixture
def open_terminal(start_script):
    opened = []

    def open_one(*args):
        opened.append(Terminal(start_script, *args))
        return opened[-1]

    yield open_one
    for terminal in opened:
        terminal.hang_up()


WAITS = {
    "as_completed": "[future.result() for future in as_completed(futures)]",
    "result": "futures[0].result()",
    "wait": "wait(futures)",
    "map": "list(executor.map(lambda _: pass_gate(*paths), range(2)))",
}


@pytest.mark.parametrize("waiting", WAITS)
@KEPT
def test_ctrl_c_reaches_the_main_thread_once_and_no_task(open_terminal, gate, waiting, kept):
    """E4: the tasks are in sessions of their own. They end as usual, and so does the ``with`` block."""
    text = script(f'''
        def task(*paths):
            try:
                return pass_gate(*paths, "finished")
            except KeyboardInterrupt:
                return "interrupted"

        with HPCExecutor(2, max_tasks_per_child={kept}) as executor:
            futures = [executor.submit(task, *paths) for _ in range(2)]
            try:
                print("waiting", flush=True)
                {WAITS[waiting]}
            except KeyboardInterrupt:
                print("one interrupt", flush=True)
        print([future.result() for future in futures])
    ''')
    terminal = open_terminal(text, *gate.paths)
    terminal.read_until("waiting")
    gate.wait_arrivals(2)
    terminal.press_ctrl_c()
    terminal.read_until("one interrupt")
    gate.open(4)
    terminal.read_until(None)
    assert terminal.process.wait(10) == 0
    assert "['finished', 'finished']" in terminal.seen
    assert terminal.seen.count("interrupt") == 1
    assert "Traceback" not in terminal.seen


def test_ctrl_c_ends_a_script_whose_tasks_do_not_end(open_terminal, gate, wait_until):
    """E4: the ``with`` block ends the tasks; those that wait never start."""
    text = script('''
        with HPCExecutor(2) as executor:
            futures = [executor.submit(pass_gate, *paths) for _ in range(50)]
            print("waiting", flush=True)
            futures[0].result()
    ''')
    terminal = open_terminal(text, *gate.paths)
    terminal.read_until("waiting")
    pids = gate.wait_arrivals(2)
    terminal.press_ctrl_c()
    terminal.read_until(None)
    assert terminal.process.wait(10) == -signal.SIGINT
    assert terminal.seen.count("Traceback") == 1, terminal.seen
    wait_until(lambda: all(map(gone, pids)), seconds=5)


def test_a_second_ctrl_c_does_not_wait_for_tasks_that_ignore_signals(open_terminal, gate, wait_until):
    """E4: it comes while the ``with`` block waits for them to end."""
    text = script('''
        def stubborn(*paths):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            pass_gate(*paths)

        with HPCExecutor(2, kill_grace=600) as executor:
            futures = [executor.submit(stubborn, *paths) for _ in range(50)]
            try:
                print("waiting", flush=True)
                futures[0].result()
            finally:
                print("leaving", flush=True)
    ''')
    terminal = open_terminal(text, *gate.paths)
    terminal.read_until("waiting")
    pids = gate.wait_arrivals(2)
    terminal.press_ctrl_c()
    terminal.read_until("leaving")
    terminal.press_ctrl_c()
    terminal.read_until(None)
    assert terminal.process.wait(10) == -signal.SIGINT
    wait_until(lambda: all(map(gone, pids)), seconds=5)


def test_ctrl_c_at_the_end_of_the_interpreter_ends_it(open_terminal, gate, wait_until):
    """E4: no ``with`` block; the interpreter waits for a task that would run for ever."""
    text = script('''
        executor = HPCExecutor(1)
        executor.submit(pass_gate, *paths)
        threading._register_atexit(print, "the end", flush=True)  # called before the hook of the executor
    ''')
    terminal = open_terminal(text, *gate.paths)
    terminal.read_until("the end")
    pids = gate.wait_arrivals(1)
    terminal.press_ctrl_c()
    terminal.read_until(None)
    terminal.process.wait(10)
    wait_until(lambda: all(map(gone, pids)), seconds=5)


def test_a_terminal_that_hangs_up_ends_the_tasks(open_terminal, gate, wait_until):
    """E3: SIGHUP by the terminal."""
    text = script('''
        with HPCExecutor(1) as executor:
            executor.submit(pass_gate, *paths).result()
    ''')
    terminal = open_terminal(text, *gate.paths)
    pids = gate.wait_arrivals(1)
    terminal.hang_up()
    assert terminal.process.wait(10) == -signal.SIGHUP
    wait_until(lambda: all(map(gone, pids)), seconds=5)


# ---- E5 to E8: the end of the executor


def test_a_dropped_executor_completes_its_futures_and_ends(gate, wait_until):
    """E5: nothing refers to it any more but its pending work."""
    executor = HPCExecutor(1)
    reference = weakref.ref(executor)
    futures = [executor.submit(pass_gate, *gate.paths, number) for number in range(3)]
    gate.wait_arrivals(1)
    del executor
    gc.collect()
    assert reference() is None
    gate.open(3)
    assert [future.result(timeout=20) for future in futures] == [0, 1, 2]
    wait_until(lambda: not any(thread.name.startswith("hpc-executor") for thread in threading.enumerate()))


def test_a_dropped_executor_cancels_nothing_of_a_map_that_is_read_on(gate):
    """E5: the iterator holds the futures, and they hold nothing of the executor."""
    results = HPCExecutor(1).map(echo, range(10))
    gc.collect()
    assert list(results) == list(range(10))


def test_an_executor_that_keeps_itself_alive_by_its_own_future_is_collected(make, gate):
    """E5: a cycle of executor, future and callback must not outlive its task."""
    executor = HPCExecutor(1)
    reference = weakref.ref(executor)
    future = executor.submit(echo, 1)
    future.add_done_callback(partial(lambda executor, future: None, executor))
    future.result()
    del executor, future
    gc.collect()
    assert reference() is None


def test_eight_threads_shut_down_at_once(make, gate):
    """E6: each of them returns, and only when all has ended."""
    executor = make(1)
    future = executor.submit(pass_gate, *gate.paths, "done")
    gate.wait_arrivals(1)
    barrier = threading.Barrier(9)

    def shut_down(_):
        barrier.wait()
        executor.shutdown()
        return future.done()

    with ThreadPoolExecutor(8) as threads:
        ends = [threads.submit(shut_down, number) for number in range(8)]
        barrier.wait()
        gate.open()
        assert [end.result(timeout=20) for end in ends] == [True] * 8
    executor.shutdown()


def test_a_callback_may_shut_down_and_shut_down_again(make):
    """E6: on the thread that completes futures, where waiting would be for oneself."""
    executor = make(1)
    called = threading.Event()

    def shut_down(_):
        executor.shutdown()
        executor.shutdown(cancel_futures=True)
        called.set()

    executor.submit(echo, 1).add_done_callback(shut_down)
    assert called.wait(20)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(echo, 2)


def test_an_executor_within_a_task_may_be_shut_down_twice(executor):
    """E6: it is a process like any other."""

    def nest():
        nested = HPCExecutor(1)
        value = nested.submit(pow, 2, 10).result()
        nested.shutdown()
        nested.shutdown()
        return value

    assert executor.submit(nest).result() == 1024


@pytest.mark.parametrize("round", range(4))
def test_submits_that_race_with_shutdown_are_refused_or_give_a_future_that_ends(make, round):
    """E7: eight threads submit while the executor is shut down, at a moment that differs from round to round."""
    executor = make(2, max_tasks_per_child=None)
    barrier, futures, strange = threading.Barrier(9), [], []

    def submit(number):
        barrier.wait()
        for _ in range(1000):
            try:
                futures.append(executor.submit(echo, number))
            except RuntimeError as error:
                if "after shutdown" not in str(error):
                    strange.append(error)
                return

    with ThreadPoolExecutor(8) as threads:
        ends = [threads.submit(submit, number) for number in range(8)]
        barrier.wait()
        while len(futures) < round * 300:
            os.sched_yield()
        executor.shutdown(cancel_futures=True)
        wait(ends)
    assert not strange
    assert wait(futures, timeout=20).not_done == set()
    assert all(future.cancelled() or future.exception() is None for future in futures)


def test_what_shutdown_cancels_without_waiting_is_done_for_wait_and_as_completed(make, gate):
    """E8: in the standard library these calls hang."""
    executor = make(1)
    futures = [executor.submit(pass_gate, *gate.paths, number) for number in range(10)]
    gate.wait_arrivals(1)
    executor.shutdown(wait=False, cancel_futures=True)
    gate.open_wide()
    assert wait(futures, timeout=20).not_done == set()
    assert set(as_completed(futures, timeout=20)) == set(futures)
    assert futures[0].result() == 0
    assert all(future.cancelled() for future in futures[3:])


# ---- E9, E10: callbacks


def test_a_thousand_callbacks_each_submit_the_next_task(reused_executor):
    """E9: a chain, each link made by the callback of the one before."""
    last = threading.Event()
    seen = []

    def follow(future):
        seen.append(future.result())
        if seen[-1] < 1000:
            reused_executor.submit(echo, seen[-1] + 1).add_done_callback(follow)
        else:
            last.set()

    reused_executor.submit(echo, 1).add_done_callback(follow)
    assert last.wait(30)
    assert seen == list(range(1, 1001))


def test_callbacks_on_a_finished_future_nest_as_deep_as_the_interpreter_allows(executor):
    """E9: added to a future that has its result, a callback runs at once, in the frame of the one that added it."""
    future = executor.submit(echo, 1)
    future.result()
    depth = []

    def deeper(future):
        depth.append(1)
        if len(depth) < 100:
            future.add_done_callback(deeper)

    future.add_done_callback(deeper)
    assert len(depth) == 100


def test_a_callback_that_waits_for_another_task_holds_nobody_up(make, make_gate):
    """E10: callbacks run on a thread of their own kind; while one waits, the results of others still arrive."""
    executor, late = make(2), make_gate()
    slow = executor.submit(pass_gate, *late.paths, "late")
    seen = []
    waited = threading.Event()

    def wait_for_slow(_):
        seen.append(slow.result())
        waited.set()

    executor.submit(echo, 0).add_done_callback(wait_for_slow)
    late.wait_arrivals(1)
    assert [executor.submit(echo, number).result(timeout=20) for number in range(5)] == list(range(5))
    assert seen == []
    late.open()
    assert waited.wait(20)
    assert seen == ["late"]


# ---- E11: executors in tasks


def test_executors_within_tasks_work_though_all_slots_are_taken_by_their_parents(executor):
    """E11: each level has an executor of its own."""

    def nest(level):
        with HPCExecutor(1) as nested:
            return nested.submit(nest, level - 1).result() + 1 if level else 0

    assert list(executor.map(nest, [1, 2])) == [1, 2]


def test_an_executor_that_a_task_forgot_ends_with_the_task(executor, gate, wait_until):
    """E11: neither its agent nor its tasks outlive the task."""

    def forget(*paths):
        nested = HPCExecutor(1)
        held = nested.submit(pass_gate, *paths)
        while not held.running():
            time.sleep(0.001)
        with open(paths[0], "wb", buffering=0) as entry:
            entry.write(b"%d\n" % nested._hub.worker_pids()[0])
        os._exit(0)

    executor.submit(forget, *gate.paths)
    pids = gate.wait_arrivals(2)
    wait_until(lambda: all(map(gone, pids)), seconds=5)


# ---- E12, E13: forks


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)"])
@pytest.mark.parametrize("used", [True, False])
def test_a_fork_cannot_use_the_executor_and_its_end_harms_nobody(start_script, end, used):
    """E12, E13: the child is refused, may shut down and wait, and leaves; the parent goes on."""
    text = script(f'''
        executor = HPCExecutor(2)
        if {used}:
            executor.submit(pow, 2, 3).result()
        held = executor.submit(pass_gate, *paths, "held") if {used} else None
        pid = os.fork()
        if pid == 0:
            try:
                executor.submit(pow, 2, 3)
            except RuntimeError as error:
                print(error, flush=True)
            executor.shutdown(wait=True, cancel_futures=True)
            {end}
        assert os.waitpid(pid, 0)[1] == 0
        print(executor.submit(pow, 2, 4).result())
        if held is not None:
            with open(paths[1], "wb") as tokens:
                tokens.write(b".")
            print(held.result())
        executor.shutdown()
    ''')
    directory = subprocess.check_output(["mktemp", "-d"], text=True).strip()
    paths = [f"{directory}/a", f"{directory}/t"]
    for path in paths:
        os.mkfifo(path)
    keepers = [os.open(path, os.O_RDWR) for path in paths]
    try:
        client = start_script(text, *paths, flags=("-W", "ignore"))
        out, err = client.communicate(timeout=30)
    finally:
        for keeper in keepers:
            os.close(keeper)
    assert err == ""
    assert client.returncode == 0
    lines = out.splitlines()
    assert "belongs to the process that made it" in lines[0]
    assert lines[1:] == (["16", "held"] if used else ["16"])


def test_a_fork_may_make_an_executor_of_its_own(run_script):
    """E13: the advice that the error gives."""
    text = script('''
        parent = HPCExecutor(1)
        parent.submit(pow, 2, 3).result()
        pid = os.fork()
        if pid == 0:
            with HPCExecutor(1) as own:
                print(own.submit(pow, 2, 5).result(), flush=True)
            sys.exit(0)
        print(os.waitpid(pid, 0)[1], parent.submit(pow, 2, 4).result())
    ''')
    ended = run_script(text, flags=("-W", "ignore"))
    assert (ended.stdout, ended.stderr) == ("32\n0 16\n", "")


def test_multiprocessing_beside_an_executor_works(run_script):
    """E12: forked workers inherit the executor's descriptors, and must not hold anything open or close anything."""
    text = script('''
        import multiprocessing
        executor = HPCExecutor(1)
        executor.submit(pow, 2, 3).result()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(abs, [-1, -2]), executor.submit(pow, 2, 4).result())
        executor.shutdown()
        print("over")
    ''')
    ended = run_script(text, flags=("-W", "ignore"))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "[1, 2] 16\nover\n", "")


def test_shutdown_does_not_wait_for_a_fork_of_the_client(run_script):
    """E12: a fork that lives on holds copies of all descriptors; agents and the hub do not care."""
    text = script('''
        executor = HPCExecutor(1)
        executor.submit(pow, 2, 3).result()
        readable, writable = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writable)
            os.read(readable, 1)
            os._exit(0)
        os.close(readable)
        executor.shutdown()
        print("over", flush=True)
        os.close(writable)
        os.waitpid(pid, 0)
    ''')
    ended = run_script(text, flags=("-W", "ignore"))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "over\n", "")


# ---- E14, E15: threads and event loops


def test_fifty_threads_submit_and_nothing_is_lost(reused_executor):
    """E14."""
    with ThreadPoolExecutor(50) as threads:
        parts = threads.map(lambda part: [reused_executor.submit(echo, (part, n)) for n in range(40)], range(50))
        futures = [future for part in parts for future in part]
    assert [future.result() for future in futures] == list(itertools.product(range(50), range(40)))


def test_an_event_loop_can_wait_for_a_task_and_cancel_one(make, gate):
    """E15."""
    executor = make(1)

    async def main():
        loop = asyncio.get_running_loop()
        held = loop.run_in_executor(executor, pass_gate, *gate.paths, "held")
        queued = [asyncio.wrap_future(executor.submit(echo, number)) for number in range(10)]
        gate.wait_arrivals(1)
        queued[-1].cancel()
        gate.open()
        assert await held == "held"
        assert await asyncio.gather(*queued[:-1]) == list(range(9))
        with pytest.raises(asyncio.CancelledError):
            await queued[-1]

    asyncio.run(main())


def test_cancelling_the_waiter_in_the_loop_leaves_a_running_task_alone(make, gate, tmp_path):
    """E15: a running task cannot be cancelled, as with threads."""
    executor = make(1)

    async def main():
        future = executor.submit(pass_gate, *gate.paths, "finished")
        gate.wait_arrivals(1)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(future), 0.01)
        return future

    future = asyncio.run(main())
    gate.open()
    assert future.result(timeout=20) == "finished"


# ---- E16: signals and children of the user's own


@pytest.mark.parametrize(
    "habit",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "signal.signal(signal.SIGCHLD, lambda *_: reap())",
    ],
)
def test_the_end_of_an_agent_is_noticed_though_the_user_s_code_reaps_all_children(start_script, gate, habit):
    """E16: ``waitpid`` may have nothing to tell; the agent's descriptor does."""
    text = script(f'''
        def reap():
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass

        {habit}
        executor = HPCExecutor(1)
        future = executor.submit(pass_gate, *paths, "run again")
        while not future.running():
            time.sleep(0.01)
        os.kill(executor._hub.worker_pids()[0], signal.SIGKILL)
        print(future.result(), future.attempt)
        executor.shutdown()
        print("over")
    ''')
    client = start_script(text, *gate.paths)
    gate.wait_arrivals(2)
    gate.open_wide()
    out, err = client.communicate(timeout=30)
    assert (client.returncode, out.splitlines()) == (0, ["run again 2", "over"]), err


def test_a_client_that_blocks_or_handles_signals_passes_nothing_of_that_on(run_script):
    """E16: tasks begin with the signal mask and the handlers of a new interpreter."""
    text = script('''
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

        def look():
            return [len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), signal.getsignal(signal.SIGTERM).name]

        with HPCExecutor(1) as executor:
            print(executor.submit(look).result())
            executor.submit(Program(["grep", "SigBlk", "/proc/self/status"])).result()
    ''')
    ended = run_script(text)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["[0, 'SIG_DFL']", "SigBlk:\t0000000000000000"]


# ---- E17: surroundings


def test_a_task_has_the_directory_and_the_environment_of_the_moment_of_its_submit(executor, tmp_path, monkeypatch):
    """E17: later changes of the client do not reach it, earlier ones do, though agents run already."""

    def surroundings():
        return os.getcwd(), os.environ.get("COLOUR"), sys.path[-1]

    seen = []
    for name in ("red", "green"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("COLOUR", name)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(sys, "path", [*sys.path, f"/nowhere/{name}"])
        seen.append(executor.submit(surroundings))
    monkeypatch.delenv("COLOUR")
    monkeypatch.chdir(tmp_path)
    assert [future.result() for future in seen] == [
        (str(tmp_path / name), name, f"/nowhere/{name}") for name in ("red", "green")
    ]
    assert executor.submit(surroundings).result()[:2] == (str(tmp_path), None)


def test_a_client_whose_directory_was_deleted_is_told_so(executor, tmp_path, monkeypatch):
    """E17: a task has no directory to begin in then."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError):
        executor.submit(echo, 1).result(timeout=20)
    monkeypatch.chdir(tmp_path)
    assert executor.submit(echo, 1).result(timeout=20) == 1


def test_a_directory_deleted_after_submit_is_the_error_of_those_tasks_alone(make, gate, tmp_path, monkeypatch):
    """E17: of tasks that had not started."""
    executor = make(1)
    held = executor.submit(pass_gate, *gate.paths, "held")
    gate.wait_arrivals(1)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    future = executor.submit(echo, 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").rmdir()
    gate.open()
    error = future.exception(timeout=20)
    assert error is not None
    assert "gone" in str(error) + str(error.__cause__)
    assert held.result() == "held"
    assert executor.submit(echo, 2).result(timeout=20) == 2


# ---- E18: cancel


@KEPT
def test_a_queued_task_and_a_sent_one_can_be_cancelled_a_running_and_a_finished_one_cannot(make, gate, kept, tmp_path):
    """E18: never both a result and cancelled, and what was cancelled has not run."""
    executor = make(1, max_tasks_per_child=kept)
    running = executor.submit(pass_gate, *gate.paths, "ran")
    gate.wait_arrivals(1)
    others = [executor.submit(append, tmp_path / "log", number) for number in range(10)]
    assert {future.state for future in others} <= {"sent", "pending"}
    assert not running.cancel()
    assert [future.cancel() for future in others[:9]] == [True] * 9
    gate.open()
    assert running.result(timeout=20) == "ran"
    assert others[9].result(timeout=20) is None
    assert not others[9].cancel()
    assert (tmp_path / "log").read_text() == "9\n"
    assert all(future.cancelled() for future in others[:9])
    with pytest.raises(CancelledError):
        others[0].result()


def test_a_cancelled_task_is_cancelled_for_all_who_ask(make, gate):
    """E18: while sent, in two threads at once: one answer for both."""
    executor = make(1)
    executor.submit(pass_gate, *gate.paths)
    gate.wait_arrivals(1)
    queued = [executor.submit(echo, number) for number in range(8)]
    with ThreadPoolExecutor(4) as threads:
        answers = [list(threads.map(lambda future: future.cancel(), [future] * 4)) for future in queued]
    assert answers == [[True] * 4] * 8
    gate.open()


def test_a_task_cancelled_at_any_moment_is_cancelled_or_has_its_result(reused_executor):
    """E18: at every boundary, by the luck of the moment."""
    for _ in range(100):
        futures = [reused_executor.submit(echo, number) for number in range(5)]
        cancelled = [future.cancel() for future in futures]
        wait(futures)
        for number, future in enumerate(futures):
            assert future.cancelled() == cancelled[number]
            assert future.cancelled() or future.result() == number


def test_cancel_with_kill_ends_a_running_task(executor, gate, wait_until):
    """E18: by option, its process is ended too."""
    future = executor.submit(pass_gate, *gate.paths)
    [pid] = gate.wait_arrivals(1)
    assert future.cancel(kill=True)
    assert future.cancelled()
    wait_until(lambda: gone(pid))
    assert executor.submit(echo, 1).result(timeout=20) == 1


# ---- E19: map


def test_a_map_that_is_abandoned_cancels_the_rest(make, gate):
    """E19."""
    executor = make(1)
    results = executor.map(partial(pass_gate, *gate.paths), range(30))
    gate.open()
    next(results)
    del results
    gc.collect()
    gate.open_wide()
    started = time.monotonic()
    executor.shutdown()
    assert time.monotonic() - started < 10


def test_an_endless_map_reads_as_much_as_its_buffer_holds(executor):
    """E19: infinite only with ``buffersize``."""
    read = []
    results = executor.map(echo, (read.append(n) or n for n in itertools.count()), buffersize=3)
    assert list(itertools.islice(results, 10)) == list(range(10))
    assert len(read) <= 14
    results.close()


def test_inputs_of_map_that_raise_cancel_nothing_that_was_not_theirs(executor):
    """E19: the error comes out of ``map``, and the executor goes on."""

    def inputs():
        yield 1
        raise LookupError("no second one")

    with pytest.raises(LookupError, match="no second one"):
        executor.map(echo, inputs())
    assert executor.submit(echo, 5).result(timeout=20) == 5


# ---- E20: the standard streams


@pytest.mark.parametrize(
    "streams",
    [
        "sys.stderr = None",
        "sys.stdout = sys.stderr = None",
        "os.close(2)",
        "os.closerange(0, 3)",
        "sys.stderr.close()",
    ],
)
def test_streams_that_are_closed_make_no_noise_and_no_hang(run_script, tmp_path, streams):
    """E20: the task prints, and its output has nowhere to go."""
    text = script(f'''
        def task(path):
            print("out")
            print("err", file=sys.stderr)
            Path(path).touch()

        {streams}
        executor = HPCExecutor(1)
        executor.submit(task, sys.argv[1])
    ''')
    ended = run_script(text, str(tmp_path / "done"), flags=())
    assert ended.returncode in (0, 120)  # 120: the interpreter could not flush what it was told to
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "done").exists()


def test_logging_that_is_broken_at_exit_makes_no_noise(run_script):
    """E20: a handler whose stream was closed, while the executor has something to log."""
    text = script('''
        import io, logging
        stream = io.StringIO()
        logging.basicConfig(stream=stream, level=logging.DEBUG)
        logging.raiseExceptions = False
        executor = HPCExecutor(1)
        executor.submit(pow, 2, 3).add_done_callback(lambda future: 1 / 0)
        stream.close()
    ''')
    ended = run_script(text)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


# ---- E21: unusual interpreters


WORKLOAD = script('''
    def fail(): raise LookupError("as told")

    def main():
        with HPCExecutor(2) as executor, HPCExecutor(1, max_tasks_per_child=None) as reused:
            assert executor.submit(pow, 2, 3).result() == 8 or sys.exit("pow")
            assert reused.submit(pow, 2, 3).result() == 8 or sys.exit("pow")
            if list(reused.map(abs, range(-50, 0), chunksize=7)) != list(range(50, 0, -1)): sys.exit("map")
            if executor.submit(bytes, 3_000_000).result() != bytes(3_000_000): sys.exit("bytes")
            if not isinstance(executor.submit(fail).exception(), LookupError): sys.exit("fail")
            if type(executor.submit(os._exit, 3).exception()).__name__ != "TaskDied": sys.exit("died")
            echo = executor.options(stdout=CAPTURE).submit(Program(["echo", "x"]))
            if echo.result().stdout != "x\\n": sys.exit("program")
    ''')


@pytest.mark.parametrize(
    ("flags", "env", "first"),
    [
        (("-O",), {}, ""),
        (("-OO",), {}, ""),
        (("-W", "error"), {}, ""),
        (("-X", "dev", "-W", "error"), {}, ""),
        (("-I", "-W", "error"), {}, ""),
        ((), {"PYTHONMALLOC": "debug", "PYTHONHASHSEED": "1"}, ""),
        ((), {}, "sys.setrecursionlimit(110)"),
        ((), {}, "import gc; gc.collect(); gc.freeze(); gc.set_threshold(1)"),
        ((), {}, "import gc; gc.disable()"),
        ((), {}, "threading.stack_size(128 * 1024)"),
        ((), {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, ""),
    ],
    ids=str,
)
def test_a_small_workload_runs_in_an_unusual_interpreter(run_script, flags, env, first):
    """E21."""
    path = f"sys.path.insert(0, {os.path.dirname(os.path.dirname(HPCExecutor.submit.__code__.co_filename))!r})"
    text = f"import sys\n{path}\n{WORKLOAD}\n{first}\nmain()\n"
    ended = run_script(text, flags=flags, env=env)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


# ---- E22: bugs of ours


def test_if_the_hub_dies_of_a_bug_at_submit_every_future_says_so(make, gate, monkeypatch, wait_until):
    """E22: the running task, one that an agent has, and those whose arrival hit the bug; then ``submit`` raises."""
    executor = make(1)
    executor.submit(time.sleep, 0.05).result(20)  # of such as this one is sent in advance
    futures = [executor.submit(pass_gate, *gate.paths)]
    [pid] = gate.wait_arrivals(1)
    futures.append(executor.submit(echo, 1))
    wait_until(lambda: futures[1].state == "sent")
    break_scheduler(monkeypatch, "submit")
    futures.append(executor.submit(echo, 2))
    check_that_all_say_so(futures, executor)
    executor.shutdown()
    assert gone(pid)


def test_if_the_hub_dies_of_a_bug_at_a_report_every_future_says_so(make, gate, monkeypatch):
    """E22: the task that has just ended, those that agents have, and those that wait here."""
    executor = make(1)
    futures = [executor.submit(pass_gate, *gate.paths) for _ in range(50)]
    gate.wait_arrivals(1)
    break_scheduler(monkeypatch, "receive")
    gate.open()
    check_that_all_say_so(futures, executor)


def break_scheduler(monkeypatch, method):
    def fail(*_):
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(Scheduler, method, fail)


def check_that_all_say_so(futures, executor):
    errors = [future.exception(timeout=5) for future in futures]
    assert {type(error) for error in errors} == {AgentFailed}
    assert {type(error.__cause__) for error in errors} == {ZeroDivisionError}
    assert "a bug of ours" in str(errors[0])
    assert len({id(error) for error in errors}) == len(futures)
    with pytest.raises(AgentFailed, match="a bug of ours"):
        executor.submit(echo, 3)


def test_if_the_hub_cannot_start_every_future_says_so(make, monkeypatch):
    """E22: no agent can be launched at all."""
    from executor import local

    def fail(*_):
        raise OSError(11, "no more processes")

    monkeypatch.setattr(local, "launch", fail)
    executor = make(1)
    with pytest.raises(AgentFailed, match="no more processes"):
        executor.submit(echo, 1).result(timeout=20)  # it is the future's exception, unless the hub was quicker
    with pytest.raises(AgentFailed, match="no more processes"):
        executor.submit(echo, 2)
