"""Install and test on every Python that is here: ``python3 tests/run.py [--python 3.12] [--install] [-- PYTEST ...]``.

For each version: a virtual environment in ``.venvs/``, the installation with what the tests need, and pytest. On the
lowest one also ruff and mypy. One line for each step; the whole output of a step that failed, and then the end.
Standard library only, and no syntax that an older ``python3`` does not know: it only has to find the others.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import NoReturn, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.12", "3.13")
#: Seconds that a step may take; its output so far is shown then.
STEP_LIMIT = 2400
#: Schedules that the simulator goes through once, on the lowest version; with the other tests it has its own default.
SIMULATION_SEEDS = 20_000
#: What is not run again with the other tests.
SIMULATED = ("--ignore", "tests/simulation/test_mutants.py")
#: Of the shared tests, so many parts for each version: the last one alone has CPython's own tests of executors, too.
PARTS = {"3.11": 2, "3.12": 2, "3.13": 1}
#: Heavy tests that take all cores. The others mostly wait (for leases to run out, say), and do so at the same time.
BUSY = "tests/failpoints"
WAITING_AT_ONCE = 5
#: Says its version, if it is the Python that we want and can make virtual environments.
PROBE = """
import sys, sysconfig, ensurepip, venv
if sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED"):
    print("%d.%d" % sys.version_info[:2])
"""


def main() -> None:
    """All steps on all versions."""
    arguments, pytest_arguments = read_arguments()
    pythons = find_pythons(arguments.python or list(VERSIONS))
    venvs = dict(zip(pythons, at_once([partial(install, *each) for each in pythons.items()])))
    if arguments.install:
        return
    lowest = next(iter(venvs))
    run_step(lowest, "ruff", [venvs[lowest], "-m", "ruff", "check", "--extend-exclude", ".venvs"])
    run_step(lowest, "mypy", [venvs[lowest], "-m", "mypy"])
    if pytest_arguments:
        run_tests_of_all(venvs, pytest_arguments)
    else:
        run_tests_of_all(venvs, ["-m", "not heavy", *SIMULATED], shares(list(venvs)))
        run_heavy_tests(lowest, venvs[lowest])
    say(f"All passed on Python {', '.join(pythons)}.")


def shares(versions: list[str]) -> list[list[str]]:
    """For each version the arguments that give it its share of the tests that are the same on each Python."""
    ends = list(accumulate(PARTS[version] for version in versions))
    begins = [end - PARTS[version] + 1 for version, end in zip(versions, ends)]
    return [["--share", f"{begin}-{end}/{ends[-1]}"] for begin, end in zip(begins, ends)]


def run_tests_of_all(venvs: dict[str, str], pytest_arguments: list[str], more: list[list[str]] | None = None) -> None:
    """pytest on all versions at once. ``more``: for each of them arguments of its own."""
    at_once([
        partial(run_tests, version, venv_python, "pytest", [*pytest_arguments, *own])
        for (version, venv_python), own in zip(venvs.items(), more or [[]] * len(venvs))
    ])  # fmt: skip


def run_heavy_tests(version: str, venv_python: str) -> None:
    """By themselves, those that take all cores before those that mostly wait: these have short leases.

    The simulator beside them waits for nothing and has no clock but its own: it takes what the others leave.
    """
    run_tests(version, venv_python, "busy", ["-m", "heavy", BUSY])
    arguments = ["-m", "heavy", *files_with_heavy_tests()]
    parts = [[*arguments, "--share", f"{n}-{n}/{WAITING_AT_ONCE}"] for n in range(1, WAITING_AT_ONCE + 1)]
    waiting = [partial(run_tests, version, venv_python, "waiting", part) for part in parts]
    at_once([partial(simulate, version, venv_python), *waiting])


def simulate(version: str, venv_python: str) -> None:
    """Many schedules of messages and failures."""
    command = ["nice", "-n", "19", "env", f"SIMULATION_SEEDS={SIMULATION_SEEDS}", venv_python, "-m", "pytest", "-q"]
    run_step(version, "simulate", [*command, "tests/simulation"], show_last_line=True)


def files_with_heavy_tests() -> list[str]:
    """Those that mostly wait. To collect all tests, each of these runs would take as long as some of its own."""
    found = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.heavy" in path.read_text("utf-8")]
    return [str(path.relative_to(ROOT)) for path in found if not str(path.relative_to(ROOT)).startswith(BUSY)]


def at_once(steps: list[Callable[[], T]]) -> list[T]:
    """What the steps give, of which each has a thread. If one of them fails, the others end first."""
    with ThreadPoolExecutor(len(steps)) as pool:
        return [each.result() for each in [pool.submit(step) for step in steps]]


def run_tests(version: str, venv_python: str, name: str, pytest_arguments: list[str]) -> None:
    """pytest on one version. A test that hangs shows where, long before the step's limit."""
    command = [venv_python, "-m", "pytest", "-q", "-o", "faulthandler_timeout=120", *pytest_arguments]
    run_step(version, name, command, show_last_line=True)


def read_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Ours, and pytest's."""
    ours, theirs = sys.argv[1:], []  # type: list[str], list[str]
    if "--" in ours:
        cut = ours.index("--")
        ours, theirs = ours[:cut], ours[cut + 1 :]
    parser = argparse.ArgumentParser(
        usage="python3 tests/run.py [--python VERSION] [--install] [-- PYTEST ARGUMENTS]",
        description=__doc__.splitlines()[0],
    )
    parser.add_argument("--python", metavar="VERSION", action="append", choices=VERSIONS, help="run only this one")
    parser.add_argument("--install", action="store_true", help="only install")
    return parser.parse_args(ours), theirs


# --- Pythons ----------------------------------------------------------------------------------------------------------


def find_pythons(wanted: list[str]) -> dict[str, str]:
    """For each version an interpreter that runs. Ends the run if there is none at all."""
    found = {}
    for version in wanted:
        python = find_python(version)
        if python is None:
            say(f"{version}  not found: left out (no python{version} that runs and can make virtual environments)")
        else:
            found[version] = python
    if not found:
        fail(f"No Python of {', '.join(wanted)} was found; install one of them, with venv and ensurepip.")
    return found


def find_python(version: str) -> str | None:
    """The first interpreter of this version that really runs: pyenv's shims may exist and fail."""
    return next((python for python in candidates(version) if version_of(python) == version), None)


def candidates(version: str) -> Iterator[str]:
    """Where it may be: on PATH, with pyenv, and what runs this."""
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        yield os.path.join(folder, "python" + version)
    if shutil.which("pyenv"):
        pyenv_root = subprocess.run(["pyenv", "root"], stdout=subprocess.PIPE, text=True, check=False)
        yield from map(str, sorted(Path(pyenv_root.stdout.strip()).glob(f"versions/{version}*/bin/python")))
    yield sys.executable


def version_of(python: str) -> str:
    """What the interpreter says, or nothing."""
    try:
        done = subprocess.run(
            [python, "-c", PROBE], env=environment(), cwd=ROOT, timeout=60, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def install(version: str, python: str) -> str:
    """A virtual environment with the package in it, in place, and the tests' needs; gives its interpreter."""
    folder = ROOT / ".venvs" / version
    venv_python = str(folder / "bin" / "python")
    stamp, content = folder / "installed", hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == content and version_of(venv_python) == version:
        say(f"{version}  install  as before")
    else:
        make_venv(version, python, folder)
        stamp.write_text(content)
    return venv_python


def make_venv(version: str, python: str, folder: Path) -> None:
    """With all that the tests need; what only some of them need is there on one version."""
    run_step(version, "venv", [python, "-m", "venv", "--clear", str(folder)])
    extras = "test,integration" if version == VERSIONS[0] else "test"
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run_step(version, "install", [*pip, "-e", f".[{extras}]"], tries=2)  # networks fail


def environment() -> dict[str, str]:
    """The variables without those that would make another Python of it, or one that compiles all that it imports."""
    left_out = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__", "PYTHONDONTWRITEBYTECODE")
    return {**{key: value for key, value in os.environ.items() if key not in left_out}, "PYTHONUNBUFFERED": "1"}


# --- steps ------------------------------------------------------------------------------------------------------------


def run_step(version: str, name: str, command: list[str], show_last_line: bool = False, tries: int = 1) -> None:
    """Run a command; one line if it succeeds, else all of its output and the end of this run."""
    start = time.monotonic()
    for _ in range(tries):
        status, output = run(command)
        if status == 0:
            break
    seconds = time.monotonic() - start
    if status != 0:
        say(output.rstrip())
        fail(f"{version}  {name} failed ({status}) after {seconds:.0f} s: {' '.join(map(str, command))}")
    last = "  " + output.rstrip().rpartition("\n")[2] if show_last_line else ""
    say(f"{version}  {name:<8} {seconds:5.1f} s{last}")


def run(command: list[str]) -> tuple[int | str, str]:
    """The command's status (or why it was ended) and its output."""
    with tempfile.TemporaryFile() as file:  # not a pipe, which a process that is left behind would keep open
        process = subprocess.Popen(
            command, cwd=str(ROOT), env=environment(), stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
        status: int | str
        try:
            status = process.wait(STEP_LIMIT)
        except subprocess.TimeoutExpired:
            status = f"ended after {STEP_LIMIT} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        file.seek(0)
        return status, file.read().decode(errors="replace")


def say(text: str) -> None:
    """To stdout, at once."""
    print(text, flush=True)


def fail(text: str) -> NoReturn:
    """The end."""
    say(text)
    sys.exit(1)


if __name__ == "__main__":
    main()
