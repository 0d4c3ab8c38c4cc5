"""The workload of the failpoint tests: thirty tasks of all kinds, run by a client process that may be killed.

``python workload.py '{"options": {...}, "invited": 0}'`` with ``HPC_FAILPOINT`` in the environment. In its directory:

    history       what the attempts and the callbacks do, a line each, as it happens
    report.json   what became of each future, at the end

The functions are found by import, so that they are the same in whoever runs them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from functools import partial
from typing import Any

import points

#: Seconds that a step of this client may take.
PATIENCE = 20.0
_LARGE = 1_000_000
#: Seconds that tasks work which shall still run while others end.
_WORK = 0.05


# ---- in the tasks


def note(*words: object) -> None:
    """Append a line to the history."""
    points.append(points.read_fault().history, " ".join(map(str, words)) + "\n")


def read_history() -> list[list[str]]:
    """The lines of the history so far, as words."""
    with contextlib.suppress(FileNotFoundError), open(points.read_fault().history) as file:
        return [line.split() for line in file.read().splitlines()]
    return []


def stat_of(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on; nothing if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def runs(pid: int, began: str) -> bool:
    """Whether the process that began then can still do anything."""
    stat = stat_of(pid)
    return bool(stat) and stat[0] not in "ZX" and stat[19] == began


@contextlib.contextmanager
def attempt(name: str) -> Iterator[None]:
    """Note the start and the end of an attempt, and whether another one of the same task still runs."""
    who = name, os.environ["HPC_ATTEMPT"], os.getpid()
    lines = read_history()
    ended = {tuple(words[1:4]) for words in lines if words[0] == "ended"}
    for words in lines:
        if words[:2] == ["started", name] and tuple(words[1:4]) not in ended and len(words) > 4:
            if int(words[3]) != os.getpid() and runs(int(words[3]), words[4]):
                note("overlap", *who, "with", *words[2:4])
    note("started", *who, stat_of(os.getpid())[19])
    try:
        yield
    finally:
        note("ended", *who)


def square(name: str, number: int) -> int:
    with attempt(name):
        return number * number


def work(name: str) -> str:
    with attempt(name):
        time.sleep(_WORK)
        return name


def fail(name: str) -> None:
    with attempt(name):
        raise ValueError(name)


def size(name: str, data: bytes) -> int:
    with attempt(name):
        return len(data)


def blob(name: str, length: int) -> bytes:
    with attempt(name):
        return bytes(length)


def talk(name: str) -> str:
    with attempt(name):
        print("one\ntwo")
        print("three", file=sys.stderr)
        return name


def wait_for_ever(name: str) -> None:
    with attempt(name):
        threading.Event().wait()


def fail_once(name: str) -> str:
    with attempt(name):
        try:
            os.close(os.open(os.path.join(points.read_fault().directory, name), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return name
        raise ValueError(name)


def die(name: str) -> None:
    with attempt(name):
        pass
    os._exit(7)


def leave_a_child(name: str) -> str:
    with attempt(name):
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        return name


_PROGRAM = 'echo "started $0 $HPC_ATTEMPT $$" >>"$1"; eval "$2"; s=$?; echo "ended $0 $HPC_ATTEMPT $$" >>"$1"; exit $s'


def program(name: str, command: str, **options: Any) -> Any:
    """A program that keeps the history as functions do."""
    from executor import Program

    return Program(["sh", "-c", _PROGRAM, name, points.read_fault().history, command], **options)


# ---- the client

Submit = Callable[[Any, str], Any]

#: What becomes of each task when nothing goes wrong.
EXPECTED: dict[str, tuple[str, str]] = {
    **{f"square-{number}": ("value", str(number**2)) for number in range(7)},
    **{name: ("value", name) for name in ("work-1", "work-2", "talk", "once", "child")},
    **{name: ("ValueError", name) for name in ("fail-1", "fail-2", "fail-3")},
    **{name: ("value", str(_LARGE)) for name in ("size-1", "size-2", "blob")},
    "echo": ("value", "here"), "cat": ("value", "there"), "long": ("value", ""),
    "status": ("ProgramFailed", "3"), "missing": ("ProgramNotStarted", ""),
    "killed-1": ("TaskKilled", ""), "killed-2": ("TaskKilled", ""), "limited": ("TaskTimeout", ""),
    "dead": ("TaskDied", "7"), "late": ("value", "49"),
    "recalled": ("CancelledError", ""), "withdrawn": ("CancelledError", ""),
}  # fmt: skip


def submissions(executor: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The names of the tasks and how each is submitted.

    The first two run until they are killed, so that the third waits at an agent, and the last one does not get there.
    """
    from executor import CAPTURE, Program

    quiet = executor.options(stdout=CAPTURE, stderr=CAPTURE)
    submit = partial(partial, quiet.submit)
    yield "killed-1", submit(wait_for_ever, "killed-1")
    yield "killed-2", submit(wait_for_ever, "killed-2")
    yield "recalled", submit(square, "recalled", 0)
    for number in range(3):
        yield f"square-{number}", submit(square, f"square-{number}", number)
    yield "work-1", submit(work, "work-1")
    yield "echo", submit(program("echo", "echo here"))
    yield "fail-1", submit(fail, "fail-1")
    yield "size-1", submit(size, "size-1", b"1" * _LARGE)
    yield "limited", partial(quiet.options(time_limit=0.1).submit, wait_for_ever, "limited")
    yield "talk", submit(talk, "talk")
    yield "long", submit(program("long", f"sleep {_WORK}"))
    for number in range(3, 6):
        yield f"square-{number}", submit(square, f"square-{number}", number)
    yield "fail-2", submit(fail, "fail-2")
    yield "blob", submit(blob, "blob", _LARGE)
    yield "once", partial(quiet.options(retries=2).submit, fail_once, "once")
    yield "cat", submit(program("cat", "cat", stdin="there"))
    yield "status", submit(program("status", "exit 3"))
    yield "dead", submit(die, "dead")
    yield "missing", submit(Program(["/there/is/no/such/program"]))
    yield "child", submit(leave_a_child, "child")
    yield "work-2", submit(work, "work-2")
    yield "square-6", submit(square, "square-6", 6)
    yield "size-2", submit(size, "size-2", b"2" * _LARGE)
    yield "fail-3", submit(fail, "fail-3")
    yield "late", submit(square, "late", 7)
    yield "withdrawn", submit(square, "withdrawn", 0)


def main(options: dict[str, Any], invited: int) -> None:
    """Run the workload, and report."""
    from executor import HPCExecutor
    from executor.core import model

    model.ASSUMED = model.LONG / 2  # agents hold tasks in advance from the start, so that one can be asked back
    if "mp_context" in options:
        options["mp_context"] = multiprocessing.get_context(options["mp_context"])
    executor = HPCExecutor(2, kill_grace=0.3, **options)
    if invited:
        invite(executor, invited)
    futures, refused = submit_all(executor)
    steps = [partial(cancel, futures, name) for name in ("recalled", "withdrawn")]
    steps += [partial(kill, futures, name) for name in ("killed-1", "killed-2")]
    answers = [attempt_or_text(step) for step in steps]
    outcomes = {name: outcome(future) for name, future in futures.items()}
    answers.append(attempt_or_text(executor.shutdown))
    report(
        outcomes=outcomes, refused=refused, answers=answers,
        attempts={name: future.attempt for name, future in futures.items()},
        children=children(), threads=[each.name for each in threading.enumerate() if each.name.startswith("hpc-")],
    )  # fmt: skip


def invite(executor: Any, number: int) -> None:
    """Write down where agents find the invitation."""
    path = os.path.join(points.read_fault().directory, "invitation")
    os.symlink(executor.invite(number, host="127.0.0.1").path, path)


def submit_all(executor: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The futures; and for tasks that could not be submitted, why."""
    futures: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name, submit in submissions(executor):
        try:
            futures[name] = submit()
        except (RuntimeError, OSError) as error:
            refused[name] = type(error).__name__
        else:
            futures[name].add_done_callback(partial(note_end, name))
    return futures, refused


def note_end(name: str, future: Any) -> None:
    """Note that a future is done; and whether its task still runs although the outcome says that it has ended."""
    note("done", name)
    if not future.cancelled() and type(future.exception()).__name__ in ("TaskDied", "TaskKilled", "TaskTimeout"):
        starts = [words for words in read_history() if words[:2] == ["started", name]]
        if any(runs(int(words[3]), words[4]) for words in starts):
            note("alive", name)


def attempt_or_text(action: Callable[[], Any]) -> Any:
    """What it gives, or the type of what it raises."""
    try:
        return action()
    except Exception as error:
        return type(error).__name__


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what tells nobody that it has happened."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.005)


def cancel(futures: dict[str, Any], name: str) -> bool | None:
    """Cancel a task, if it is the one to be recalled as soon as an agent has it; whether that was granted."""
    if name not in futures:
        return None
    wait_until(lambda: name != "recalled" or futures[name].state != "pending", f"{name} is never sent")
    answer: bool = futures[name].cancel()
    return answer


def kill(futures: dict[str, Any], name: str) -> None:
    """Kill a task, once it runs."""
    if name in futures:
        started = ["started", name]

        def runs() -> bool:
            return futures[name].done() or started in [words[:2] for words in read_history()]

        wait_until(runs, f"{name} never starts")
        try:
            futures[name].kill()
        except points.Injected:
            futures[name].kill()  # as a user would, who wants it to end


def outcome(future: Any) -> dict[str, Any]:
    """What became of a future: ``what`` is "value" or the type of the exception."""
    try:
        return {"what": "value", "detail": describe(future.result(PATIENCE))}
    except CancelledError:
        return {"what": "CancelledError", "detail": ""}
    except Exception as error:
        return {
            "what": type(error).__name__, "detail": describe_error(error), "text": str(error),
            "pid": getattr(error, "pid", None),
        }  # fmt: skip


def describe(value: Any) -> str:
    """A value as a short text."""
    if isinstance(value, bytes):
        return str(len(value))
    return value.stdout.strip() if hasattr(value, "stdout") else str(value)


def describe_error(error: Exception) -> str:
    """What has to be the same in each run: the text, or the status of a process that nobody else has ended."""
    if isinstance(error, ValueError):
        return str(error)
    return str(getattr(error, "returncode", "")) if type(error).__name__ in ("TaskDied", "ProgramFailed") else ""


def children() -> list[int]:
    """The processes that this one has started and not waited for, or that are left."""
    threads = os.listdir("/proc/self/task")
    found = []
    for thread in threads:
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{thread}/children") as file:
            found += map(int, file.read().split())
    return found


def report(**fields: Any) -> None:
    """Write the report, whole or not at all."""
    path = os.path.join(points.read_fault().directory, "report.json")
    with open(path + ".new", "w") as file:
        json.dump(fields, file)
    os.rename(path + ".new", path)


def start(options: dict[str, Any], invited: int) -> None:
    """Arm the failpoint, here and in what is started here; then run the workload."""
    from executor import local
    from worker_agent import directories

    faulthandler.register(signal.SIGUSR1, all_threads=True)
    fault = points.read_fault()
    local._SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "agent_script.py")
    directories._MEMORY = os.path.join(fault.directory, "m")  # so that what is left there is of this run
    points.install(fault, "client")
    main(options, invited)


if __name__ == "__main__":
    import workload  # so that the functions are those of a module

    workload.start(**json.loads(sys.argv[1]))
