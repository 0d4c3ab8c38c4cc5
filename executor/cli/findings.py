"""What a machine offers, as findings: each with what was looked at, what there is, and a remedy where it is wrong."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

from executor import HPCExecutor, Program, __version__
from executor.batch.commands import render_failure, run
from executor.batch.local import LocalSystem
from executor.batch.system import BatchSystem, Command
from executor.batch.systems import get_system, system_names
from executor.invitations import DESCRIPTORS
from worker_agent import cgroups, detection
from worker_agent.amounts import MIB
from worker_agent.pools import UNIT, Pool

#: Seconds within which an agent has to have started and a task to have run; on a busy machine it takes a while.
PATIENCE: Final = 60.0
#: What hpc-executor is built upon.
_LIBRARIES: Final = ("cloudpickle", "msgspec", "psutil", "pyzmq", "rich", "typer")
#: Less than this is a trouble sooner or later.
_LITTLE_MEMORY: Final = 512 * MIB
_FEW_PROCESSES: Final = 1024
_FEW_FILES: Final = 4 * DESCRIPTORS
_LITTLE_ROOM: Final = 100 * MIB


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    about: str
    found: str
    #: what to do; None: all is well
    remedy: str | None = None
    #: nothing works before it is remedied
    fatal: bool = False


def find_all() -> Iterator[Finding]:
    """Everything, in the order in which it is told; the last ones take seconds."""
    yield from find_versions()
    yield from find_resources(detection.detect(), os.environ)
    yield from find_limits()
    yield from find_room()
    yield from find_schedulers()
    yield from find_work()


def find_versions() -> Iterator[Finding]:
    """Of Python, of the system, and of what it is built upon."""
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    yield Finding("hpc-executor", f"{__version__}, with {libraries}")
    yield Finding("Python", f"{platform.python_version()} ({platform.python_implementation()})")
    yield Finding("system", f"{platform.system()} {platform.release()} on {platform.machine()}, {platform.node()}")


# ---- what tasks can have


def find_resources(pools: Iterable[Pool], env: Mapping[str, str]) -> Iterator[Finding]:
    """CPUs, memory and GPUs that tasks can have, and what takes away from what is built in."""
    by_name = {pool.name: pool for pool in pools}
    yield _find_cpus(by_name["cpus"].total // UNIT, os.cpu_count() or 0)
    memory = by_name.get("memory")
    yield _find_memory(memory.total // UNIT * MIB if memory else 0, cgroups.memory_limit() or 0)
    gpus = {name: pool.total // UNIT for name, pool in by_name.items() if name.startswith("gpus/")}
    yield _find_gpus(gpus, env)


def _find_cpus(usable: int, installed: int) -> Finding:
    quota = cgroups.cpu_quota()
    why = "" if usable >= installed else f" of {installed}: others are not ours (affinity, control group, batch system)"
    return Finding("CPUs", f"{usable}{why}{f'; the control group allows {quota:g}' if quota else ''}")


def _find_memory(usable: int, limit: int) -> Finding:
    found = f"{usable / 2**30:.1f} GiB{'; the control group allows no more' if limit // MIB == usable // MIB else ''}"
    little = usable < _LITTLE_MEMORY
    return Finding("memory", found, "ask the batch system, or the container, for more memory" if little else None)


def _find_gpus(gpus: Mapping[str, int], env: Mapping[str, str]) -> Finding:
    hidden = [name for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES") if name in env]
    said = f" ({', '.join(f'{name}={env[name]}' for name in hidden)})" if hidden else ""
    return Finding("GPUs", (", ".join(f"{count} {name}" for name, count in gpus.items()) or "none") + said)


# ---- what the system allows


def find_limits() -> Iterator[Finding]:
    """Of open files and of processes."""
    why = f"each agent that joins needs one, and {DESCRIPTORS} are needed besides"
    yield _find_limit("open files", resource.RLIMIT_NOFILE, _FEW_FILES, "n", why)
    yield _find_limit("processes", resource.RLIMIT_NPROC, _FEW_PROCESSES, "u", "all of yours on this machine count")


def _find_limit(about: str, number: int, few: int, letter: str, why: str) -> Finding:
    soft, hard = resource.getrlimit(number)
    if soft == resource.RLIM_INFINITY or soft >= few:
        return Finding(about, _render_limit(soft))
    raised = f"raise it: ulimit -S -{letter} {_render_limit(hard)}"
    return Finding(about, _render_limit(soft), f"{why}; {raised if hard != soft else 'ask those who run the machine'}")


def _render_limit(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else f"{limit}"


def find_room() -> Iterator[Finding]:
    """Where an executor keeps its files: in memory, and in the directory for temporary files."""
    for directory in ("/dev/shm", tempfile.gettempdir()):  # noqa: S108  only looked at
        yield _find_room(directory)


def _find_room(directory: str) -> Finding:
    about = f"room in {directory}"
    if not os.access(directory, os.W_OK | os.X_OK):
        return Finding(about, "cannot be written", "set TMPDIR to a directory that can be written")
    free = shutil.disk_usage(directory).free
    remedy = "remove what is not needed there, or set TMPDIR to another directory" if free < _LITTLE_ROOM else None
    return Finding(about, f"{free / 2**30:.1f} GiB free", remedy)


def find_schedulers() -> Iterator[Finding]:
    """Batch systems whose commands are in PATH, and whether they answer."""
    systems = [get_system(name) for name in system_names() if name != LocalSystem.name]
    here = [(system, path) for system in systems if (path := shutil.which(system.program))]
    for system, path in here:
        yield _find_scheduler(system, path)
    if not here:
        yield Finding("schedulers", f"none ({', '.join(system.program for system in systems)} are not in PATH)")


def _find_scheduler(system: BatchSystem, path: str) -> Finding:
    about, found = "schedulers", f"{system.name} ({path})"
    if not system.ping:
        return Finding(about, found)
    command = Command(list(system.ping))
    answer = run(command, system)
    if answer.returncode == 0:
        return Finding(about, f"{found} answers")
    why = f"{found} does not answer: {'; '.join(render_failure(command, answer).splitlines())}"
    return Finding(about, why, "no batch job can be submitted; is it the right machine? Ask those who run it")


# ---- whether it works


def find_work() -> Iterator[Finding]:
    """Whether an agent starts, and whether a function and a program run on it."""
    with HPCExecutor(1) as executor:
        yield try_work("a function", lambda: executor.submit(pow, 2, 10).result(PATIENCE))
        yield try_work("a program", lambda: executor.submit(Program(["true"])).result(PATIENCE))
        if any(executor.workers()):
            return
        executor.kill_workers()  # nothing of it is worth to wait for


def try_work(what: str, work: Callable[[], object]) -> Finding:
    """Whether an agent does some work, or why not."""
    about = f"agent runs {what}"
    try:
        work()
    except NotInTime:
        remedy = "is the machine overloaded? Look at its processes, and try again"
        return Finding(about, f"nothing after {PATIENCE:.0f} s", remedy, fatal=True)
    except Exception as error:  # whatever it is, it is what was asked for: why it does not work
        remedy = "the text says what was tried; the limits above may be the cause"
        return Finding(about, f"{type(error).__name__}: {error}", remedy, fatal=True)
    return Finding(about, "yes")
