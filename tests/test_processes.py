import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from worker_agent.processes import (
    _has_ended,
    children,
    descendants,
    end_marked,
    kill_group,
    kill_tree,
    pidfd_alive,
    set_parent_death_signal,
    start_time,
)

ROOT = Path(__file__).parent.parent
PATIENCE = 30  # seconds until a test that waits for a pipe has failed; none of them waits as long when all is well


@contextlib.contextmanager
def script(source):
    """A process that runs the Python ``source``, with pipes to its stdin and stdout; killed at the end."""
    # Unbuffered, so that select() in line() knows of every line that came.
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        start_new_session=True, cwd=ROOT,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            kill_group(process.pid, signal.SIGKILL)


def line(process):
    """The next line of the process, as numbers."""
    assert select.select([process.stdout], [], [], PATIENCE)[0], "the process says nothing"
    return [int(word) for word in process.stdout.readline().split()]


def wait_all_closed(process):
    """Wait until nobody has the stdout of the process open: until it and its descendants have ended."""
    while True:
        assert select.select([process.stdout], [], [], PATIENCE)[0], "somebody is still alive"
        if not os.read(process.stdout.fileno(), 65536):
            return


# A process with a child and two grandchildren, which prints [child, grandchild, grandchild] and then waits
# for its stdin.
TREE = """
    import os, signal, sys
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        pids = []
        for _ in range(2):
            pids.append(os.fork())
            if pids[-1] == 0:
                while True: signal.pause()
        os.write(write, b"%d %d" % tuple(pids))
        while True: signal.pause()
    print(child, os.read(read, 100).decode(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["children files", "a scan of all processes"])
def proc(request, tmp_path):
    """/proc, and one of a kernel without children files: links to the real processes, and no ``self``."""
    if request.param == "children files":
        return lambda *pids: "/proc"

    def link(*pids):
        for pid in pids:
            (tmp_path / str(pid)).symlink_to(f"/proc/{pid}")
        return str(tmp_path)

    return link


# ---- trees


def test_children_and_descendants_are_found_parents_first(proc):
    with script(TREE) as process:
        child, first, second = line(process)
        root = proc(process.pid, child, first, second)
        assert children(process.pid, root) == [child]
        assert sorted(children(child, root)) == sorted([first, second])
        assert descendants(process.pid, root)[0] == child
        assert sorted(descendants(process.pid, root)) == sorted([child, first, second])
        assert descendants(first, root) == []


def test_a_process_that_is_gone_has_no_children_and_no_start(proc):
    with script("") as process:
        process.wait()
        root = proc(process.pid)
        assert (children(process.pid, root), descendants(process.pid, root)) == ([], [])
        assert start_time(process.pid, root) is None


def test_children_of_other_threads_are_found():
    source = """
        import subprocess, sys, threading
        def start():
            child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
            print(child.pid, flush=True)
            sys.stdin.read()
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    """
    with script(source) as process:
        child = line(process)
        assert children(process.pid) == child


def test_a_zombie_is_a_child_with_a_start():
    with script("import os\nif os.fork() == 0: os._exit(0)\nos.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)\n"
                "print(0, flush=True)\ninput()") as process:  # fmt: skip
        line(process)
        (zombie,) = children(process.pid)
        assert start_time(zombie) >= start_time(process.pid)


def test_the_start_time_is_a_number_of_its_own_for_each_process():
    own = start_time(os.getpid())
    with script("input()") as process:
        assert start_time(process.pid) >= own == start_time(os.getpid())


@pytest.mark.parametrize("name", ["a) R 1 2", "(((", ")))", "two\nlines", "S 7 (x)"])
def test_the_start_time_is_found_behind_any_command_name(tmp_path, name):
    (tmp_path / "7").mkdir()
    numbers = " ".join(str(number) for number in range(4, 53))
    (tmp_path / "7" / "stat").write_text(f"7 ({name}) S {numbers}\n")
    assert start_time(7, str(tmp_path)) == 22
    assert children(4, str(tmp_path)) == [7]


# ---- the end


def test_kill_tree_kills_all_below_and_not_the_process_itself():
    with script(
        TREE.replace("sys.stdin.read()", "sys.stdin.readline(); os.wait(); print(0, flush=True); sys.stdin.read()")
    ) as process:
        line(process)
        kill_tree(process.pid)
        process.stdin.write(b"\n")
        assert line(process) == [0]
        assert process.poll() is None
        process.stdin.close()
        wait_all_closed(process)


def test_kill_tree_reaches_those_that_ignore_all_else():
    with script(TREE.replace("read, write", "signal.signal(15, signal.SIG_IGN); read, write", 1)) as process:
        line(process)
        kill_tree(process.pid, signal.SIGTERM)
        kill_tree(process.pid)
        process.stdin.close()
        wait_all_closed(process)


def test_kill_tree_sends_any_signal():
    source = """
        import os, signal
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGUSR1, lambda *_: os._exit(7))
            print(0, flush=True)
            while True: signal.pause()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    """
    with script(source) as process:
        line(process)
        kill_tree(process.pid, signal.SIGUSR1)
        assert line(process) == [7]


def test_kill_tree_catches_processes_that_fork_while_it_looks():
    """Each forks and ends just before it is stopped; only a subreaper sees its child.

    There are 3 processes and 30 forks, so that a failure cannot fill the process table; all are reaped.
    """
    source = """
        import os, signal
        from worker_agent import processes
        processes.become_subreaper()
        (births, born), chain = os.pipe(), {}
        def be_born(go):
            while True:
                os.write(born, b"%d\\n" % os.getpid())
                os.read(go, 1)
                if os.fork(): os._exit(0)
        for _ in range(3):
            go, may_fork = os.pipe()
            if os.fork() == 0: be_born(go)
            chain[int(os.read(births, 100))] = may_fork
        kill, forks = os.kill, 0
        def fork_before(pid, number):
            global forks
            if number == signal.SIGSTOP and forks < 30 and pid in chain:
                forks += 1
                os.write(chain[pid], b".")
                chain[int(os.read(births, 100))] = chain.pop(pid)
            kill(pid, number)
        os.kill = fork_before
        processes.kill_tree(os.getpid())
        reaped = 0
        while True:
            try: os.wait()
            except ChildProcessError: break
            reaped += 1
        print(forks, reaped, len(processes.descendants(os.getpid())), flush=True)
    """
    with script(source) as process:
        assert line(process) == [30, 33, 0]
        wait_all_closed(process)


def test_kill_tree_spares_the_caller():
    source = """
        import os, sys
        from worker_agent.processes import kill_tree
        if os.fork() == 0:
            if os.fork() == 0: sys.stdin.read()
            kill_tree(os.getppid())
            print(os.getpid(), flush=True)
            kill_tree(os.getpid())
            os._exit(0)
        os.wait()
    """
    with script(source) as process:
        (survivor,) = line(process)
        assert survivor != process.pid
        wait_all_closed(process)


def test_kill_tree_of_a_process_that_is_gone_does_nothing():
    with script("") as process:
        process.wait()
        kill_tree(process.pid)


def test_all_below_has_ended_when_we_are_told_so():
    """The grandchild takes a while: its memory is freed first. Its parent, which is not waited for, dies before it."""
    source = """
        import os, signal, subprocess, sys
        from worker_agent.processes import become_subreaper, descendants, end_all_below
        become_subreaper()
        hog = "b = bytearray(400_000_000); print(flush=True); input()"
        parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hog!r}])"
        child = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.readline()
        below = descendants(os.getpid())
        end_all_below(20)
        print(len(below), *(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z" for pid in below))
    """
    with script(source) as process:
        assert process.stdout.readline().split() == [b"2", b"True", b"True"]


def test_processes_are_found_by_what_they_carry_though_their_parents_are_gone():
    """Also what is below them and has cleaned its own environment; and nobody else."""
    source = """
        import os, subprocess, sys
        if os.fork() == 0:
            os.setsid()
            env = {**os.environ, "HPC_MARK": sys.argv[0]}
            first = subprocess.Popen(["sh", "-c", "env -i sleep 600 & echo $!; wait"], env=env, stdout=subprocess.PIPE)
            below = int(first.stdout.readline())
            other = subprocess.Popen(["sleep", "600"], env={**env, "HPC_MARK": "-cc"})
            print(first.pid, below, other.pid, flush=True)
            os._exit(0)
        os.wait()
        print(flush=True)
        input()
    """
    with script(source) as process:
        first, below, other = line(process)
        line(process)
        try:
            end_marked("HPC_MARK", "-c", PATIENCE)
            assert [_has_ended(pid) for pid in (first, below, other)] == [True, True, False]
        finally:
            os.kill(other, signal.SIGKILL)


def test_kill_group_says_whether_there_was_a_group():
    with script("input()") as process:
        assert kill_group(process.pid, signal.SIGKILL)
        process.wait()
        assert not kill_group(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("pgid", [1, 0, -1, -5])
def test_kill_group_refuses_numbers_that_mean_more_than_one_group(pgid):
    with pytest.raises(ValueError, match="more than 1"):
        kill_group(pgid, 0)


def test_a_pidfd_is_alive_until_its_process_ends_reaped_or_not():
    with script("input()") as process:
        pidfd = os.pidfd_open(process.pid)
        try:
            assert pidfd_alive(pidfd)
            process.stdin.close()
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
            assert not pidfd_alive(pidfd)
            process.wait()
            assert not pidfd_alive(pidfd)
        finally:
            os.close(pidfd)


def test_a_pidfd_that_is_not_open_is_an_error():
    read, write = os.pipe()
    os.close(write)
    os.close(read)
    with pytest.raises(OSError, match="not open") as caught:
        pidfd_alive(read)
    assert caught.value.errno == errno.EBADF


# ---- prctl


def test_a_child_with_a_death_signal_ends_with_its_parent():
    source = """
        import os, signal, sys
        from worker_agent.processes import set_parent_death_signal
        if os.fork() == 0:
            set_parent_death_signal(signal.SIGKILL)
            print(0, flush=True)
            while True: signal.pause()
        sys.stdin.read()
    """
    with script(source) as process:
        line(process)
        process.kill()
        wait_all_closed(process)


def test_a_signal_that_does_not_exist_is_an_error():
    with pytest.raises(OSError, match="prctl") as caught:
        set_parent_death_signal(1000)
    assert caught.value.errno == errno.EINVAL


def test_a_subreaper_becomes_the_parent_of_orphans():
    source = """
        import os
        from worker_agent.processes import become_subreaper
        become_subreaper()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            if os.fork(): os._exit(0)
            os.read(read, 1)
            print(os.getppid(), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        os.write(write, b"x")
        os.wait()
    """
    with script(source) as process:
        assert line(process) == [process.pid]


def test_the_module_is_imported_without_ctypes():
    source = "import sys, worker_agent.processes; print(int('ctypes' in sys.modules), flush=True)"
    with script(source) as process:
        assert line(process) == [0]
