"""Each example is a short whole program that runs, prints what its docstring promises, and complains about nothing."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.shared

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))

#: Regular expressions that must be found in what each example prints, in this order.
PRINTED = {
    "01_hello.py": [r"@@@@.* process \d+", r"24 rows, 24 fresh interpreters, \d+\.\d\d seconds\."],
    "02_drop_in.py": [
        r"ProcessPoolExecutor\n.*1000: 168.*\n  map: \[1024, 243, 1000\]\n  exception: .+\n  processes: [12]\n",
        r"callback saw: ValueError",
        r"HPCExecutor\n.*1000: 168.*\n  map: \[1024, 243, 1000\]\n  exception: .+\n  processes: 8\n",
        r"callback saw: ValueError",
    ],
    "03_programs.py": [
        r"sort: \['4', '30', '100'\]",
        r"awk: 5050",
        r"check=False: status 1",
        r"ProgramFailed: .* exited with status 2.*\n.*stderr:\n  mesh.msh: no such mesh",
        r"ProgramFailed: status -11: .*SIGSEGV",
        r"ProgramNotStarted: .*'awk2'.*there is no such program",
        r"here: hello",
    ],
    "04_task_story.py": [
        r"the function gave done\nthe program gave 2000000",
        r"name +work +counting",
        r"state +finished +finished",
        r"attempt +1 +1",
        r"process +\d+ on \S+ +\d+ on \S+",
        r"CPU time +0\.[3-9]\d s",
        r"peak memory +1\d\d MiB",
        r"status +None +0",
        r"stdout +100 MiB in hand +2000000",
        r"stderr +a warning, say",
    ],
    "05_limits_and_kill.py": [
        r"TaskTimeout: limit 0\.3 s, ran [0-2]\.\d s",
        r"TaskKilled: status 1, its last words: I was asked to leave",
        r"waiting task: True\n.*running task: False\n.*running task: True\n.*another one: True",
        r"goes on: 42",
    ],
    "06_failures.py": [
        r"TaskDied: signal=11, exit_code=None\nTaskDied: signal=None, exit_code=3",
        r"ZeroDivisionError: .*\n.*\nTraceback[^$]*in divide\n    return a / b",
        r"RemoteError: .*Refusal: licence server is down \(7\)",
        r"SerializationError: argument 0, .*lock",
        r"SerializationError: the result of .*lock",
        r"the neighbours: \[1, 2, 4, 8, 16, 32, 64, 128\]",
    ],
    "07_options.py": [
        r"OMP_NUM_THREADS=1 in run-1/\nOMP_NUM_THREADS=8 in run-8/",
        r"case.log: solved",
        r"upload: succeeded at attempt 3, future.attempt is 3",
        r"OptionTypeError: .*'timeout'; did you mean 'time_limit'",
    ],
    "08_reuse_and_initializer.py": [
        r"max_tasks_per_child=1: 400 processes",
        r"max_tasks_per_child=None: [12] processes",
        r"1/7 = 0\.1428571428571428571428571428571428571429",
        r"preload=\[\]: import numpy took \d+\.\d ms\npreload=\['numpy'\]: import numpy took [01]\.\d ms",
    ],
    "09_asyncio.py": [
        r"\['simulated 0\.1 s', 'simulated 0\.2 s'\]",
        r"simulate: simulated 0\.3 s|sleep: .*returncode=0",
        r"simulated 0\.1 s\nthe loop ticked meanwhile: True",
        r"no more patience\nall tasks have ended; cancelled: 1",
    ],
    "11_more_agents.py": [
        r"process \d+ on \S+: 1 places, ours\nprocess \d+ on \S+: 1 places, ours",
        r"process \d+ on \S+: \d+ places, invited",
        r"60 results are right: True\n3 agents have worked\nthe invited one has left: True",
    ],
    "12_resources_and_dependencies.py": [
        r"task 6 \(table\): it waits for task 1 \(afterok\), .*task 5 \(afterok\)",
        r"rendered on (CPUs|a GPU)",
        r"   32 cells: mean 1\.000, most 2\.0\n",
        r"  256 cells: mean 1\.000, most 130\.1\n\[ +.+ +\]",
    ],
    "13_workflow.py": [
        r"\['prepare', 'train 0', .*'evaluate'\] True \{'finished': 5\}",
        r"strength  10: slope 1\.9763, error 37\.22\nstrength   0: .*\nstrength 100: .*error 51\.28",
        r"the same: True",
    ],
    "14_cluster.py": [r"pi is about 3\.14\n16 players on \S+\n"],
    "15_batch_job.py": [
        r"#!/bin/bash\n# mesh\nmesh: completed -> 100",
        r"solve 1: completed -> 5050\nsolve 2: completed -> 338350\nsolve 3: completed -> 25502500",
        r"check: failed with status 3 -> but I do not like them",
    ],
    "16_mpi.py": [
        r"each of them saw \['4', '4', '4', '4'\]|no program was started: there is no mpirun",
        r"rank 0: pi is 3\.141593\n.*\n.*\nrank 3: pi is 3\.141593|no function was called",
    ],
    "10_parameter_study.py": [
        r"pendulums .*100%",
        r"A driven pendulum",
        r"damping .*drive 0\.5 .*drive 1\.4",
        r"0\.2 .* 1\.00, 0\.110 .*too wild for me",
        r"0\.8 .* 0\.63, 0\.110 ",
    ],
}


def test_every_example_is_known_here() -> None:
    assert [path.name for path in EXAMPLES] == sorted(PRINTED)
    listed = re.findall(r"^\| \[(\w+\.py)\]", (EXAMPLES[0].parent / "README.md").read_text(), re.MULTILINE)
    assert listed == [path.name for path in EXAMPLES]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_teaches_and_prints(path: Path) -> None:
    text = path.read_text()
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert len(text.splitlines()) < 60
    assert "What you learn: " in docstring
    assert "It prints: " in docstring


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_it_promises_and_nothing_on_stderr(path: Path, tmp_path: Path) -> None:
    state, folder = tmp_path / "state", tmp_path / "folder"
    folder.mkdir()
    environment = {
        **os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "utf-8",
        "XDG_STATE_HOME": str(state),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "error", path], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    position = 0
    for pattern in PRINTED[path.name]:
        found = re.compile(pattern).search(done.stdout, position)
        assert found, f"{pattern!r} was not found in\n{done.stdout[position:]}"
        position = found.end()
    assert not list(folder.iterdir()), "an example leaves no files"
