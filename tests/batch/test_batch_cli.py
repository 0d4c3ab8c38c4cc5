"""The command line for batch jobs, with the batch system "local"."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result
from waiting import PATIENCE

from executor import BatchHandle, HPCExecutor, JobStatus
from executor.batch import submissions
from executor.batch.submissions import Submission
from executor.cli.__main__ import make_app

pytestmark = pytest.mark.shared

ROOT = str(Path(__file__).parents[2])
GRAPH = """
[[task]]
name = "mesh"
command = ["sh", "-c", "echo meshed"]

[[task]]
name = "solve"
command = ["sh", "-c", "echo diverged >&2; exit 3"]
deps = ["mesh"]
"""


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def invoke(*args: object, **options: Any) -> Result:
    return CliRunner().invoke(make_app(), list(map(str, args)), prog_name="hpc-executor", **options)


def test_a_program_is_submitted_waited_for_and_read() -> None:
    done = invoke(
        "submit", "--scheduler", "local", "--name", "greet", "--", "sh", "-c", "echo out; echo err >&2; exit 3"
    )
    assert (done.exit_code, done.stdout) == (0, "1\n")
    waited = invoke("wait", "1", "--timeout", PATIENCE)
    assert waited.exit_code == 1
    assert waited.stdout.split("\n")[1].split() == ["1", "local", "greet", "failed", "exit", "status", "3"]
    assert invoke("logs", "1").stdout == "out\nerr\n"
    assert invoke("logs", "1", "--stderr", "--tail", 1).stdout == "err\n"
    told = json.loads(invoke("status", "--json").stdout)
    assert (told["id"], told["status"], told["final"], told["returncode"]) == ("1", "failed", True, 3)


def test_an_array_has_a_status_and_output_for_each_number() -> None:
    said = ("--scheduler", "local", "--array", "1-3", "--max-concurrent", 2, "--json", "--stderr", "%{TASK_ID}.err")
    told = json.loads(invoke("submit", *said, "--", "sh", "-c", "echo $HPC_ARRAY_INDEX; echo e >&2").stdout)
    assert told["tasks"] == [1, 2, 3]
    waited = invoke("wait", told["id"], "--json")
    assert waited.exit_code == 0
    assert {each["status"] for each in json.loads(waited.stdout)["tasks"].values()} == {"completed"}
    assert invoke("logs", told["id"], "--task", 2).stdout == "2\n"
    assert invoke("logs", told["id"], "--task", 2, "--stderr").stdout == "e\n"
    assert "a number from 1 to 3" in invoke("logs", told["id"]).stderr
    assert "3 completed" in invoke("status").stdout


def test_a_job_file_becomes_batch_jobs_with_dependencies(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(GRAPH)
    done = invoke("submit", "--scheduler", "local", "study.toml")
    assert (done.exit_code, done.stdout) == (0, "1\n2\n")
    waited = invoke("wait", 1, 2)
    assert waited.exit_code == 1
    assert [line.split()[2:4] for line in waited.stdout.splitlines()[1:]] == [
        ["mesh", "completed"],
        ["solve", "failed"],
    ]
    assert (tmp_path / "job-1" / "1.stderr").read_text() == "diverged\n"


def test_a_job_is_cancelled(tmp_path: Path) -> None:
    invoke("submit", "--scheduler", "local", "--", "sleep", 300)
    assert invoke("cancel", 1).exit_code == 0
    waited = invoke("wait", 1)
    assert (waited.exit_code, "cancelled" in waited.stdout) == (1, True)


def test_the_script_is_shown_and_nothing_submitted(tmp_path: Path) -> None:
    (tmp_path / "hpc-executor.toml").write_text(
        '[types.gpu]\ngpus = 1\ncluster = "big"\n[clusters.big]\ntype = "slurm"\n'
    )
    done = invoke("submit", "--type", "gpu", "--time", "2h", "--directive=--exclusive", "--script", "--", "echo", "a b")
    assert "#SBATCH --gres=gpu:1\n#SBATCH --time=120\n" in done.stdout
    assert "#SBATCH --exclusive\n" in done.stdout
    assert done.stdout.endswith("\necho 'a b'\n")
    assert invoke("status").stdout.splitlines()[1:] == []


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["submit"], 2, "nothing to submit"),
        (["submit", "--"], 2, "expected a program behind"),
        (["submit", "--cpus", "2", "study.toml"], 2, "write it into the file"),
        (["submit", "--scheduler", "slrum", "--", "true"], 2, "did you mean 'slurm'"),
        (["submit", "--type", "gpu", "--", "true"], 2, "no [types.gpu]"),
        (["submit", "--array", "1,3", "--", "true"], 2, "expected numbers in a row"),
        (["submit", "--max-concurrent", "3", "--", "true"], 2, "say --array as well"),
        (["submit", "--scheduler", "local", "--after", "17", "--stdout", "/dev/null/x", "--", "true"], 2, "/dev/null"),
        (["status", "17"], 2, "no batch job '17'"),
        (["cancel", "17"], 2, "no batch job '17'"),
        (["wait", "17"], 2, "no batch job '17'"),
        (["logs", "17"], 2, "no batch job '17'"),
        (["agent", "not-there"], 2, "not-there is not there"),
        (["run", "--cluster", "big", "--", "true"], 2, "no [clusters.big]"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], status: int, text: str) -> None:
    done = invoke(*words)
    assert (done.exit_code, done.stdout) == (status, "")
    assert text in done.stderr.replace("\n", " ")


def test_a_wait_that_is_too_long_fails() -> None:
    invoke("submit", "--scheduler", "local", "--", "sleep", 300)
    waited = invoke("wait", 1, "--timeout", 0)
    invoke("cancel", 1)
    assert (waited.exit_code, waited.stdout) == (1, "")
    assert waited.stderr == "hpc-executor: not ended after 0 s: 1\n"
    invoke("wait", 1)


def test_the_time_of_a_wait_is_that_of_all_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Any] = []

    def wait(handle: BatchHandle, timeout: float | None = None) -> JobStatus:
        waits.append(timeout)
        return original(handle, timeout)

    original = BatchHandle.wait
    monkeypatch.setattr(BatchHandle, "wait", wait)
    invoke("submit", "--scheduler", "local", "--", "true")
    invoke("submit", "--scheduler", "local", "--", "true")
    assert invoke("wait", 1, 2, "--timeout", PATIENCE).exit_code == 0
    assert PATIENCE >= waits[0] > waits[1] > 0
    assert invoke("wait", 1).exit_code == 0
    assert waits[2:] == [None]


def test_one_job_that_cannot_be_cancelled_keeps_no_other(tmp_path: Path) -> None:
    """The batch system is told of all of them at once."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    script = f'#!/bin/sh\necho "$@" >> {tmp_path}/cancelled; echo "1: access denied" >&2; exit 1\n'
    (bin_ / "scancel").write_text(script)
    (bin_ / "scancel").chmod(0o755)
    for job in ("1", "2"):
        submissions.keep(Submission("slurm", job, "x", "/dev/null", None, str(tmp_path / "exit")))
    done = invoke("cancel", 1, 2, env={"PATH": f"{bin_}:/usr/bin:/bin"})
    assert (done.exit_code, done.stderr) == (1, "hpc-executor: scancel 1 2: 1: access denied\n")
    assert (tmp_path / "cancelled").read_text() == "1 2\n"


def test_an_agent_is_started_by_hand() -> None:
    with HPCExecutor(1, agents=0) as executor:
        command = [
            sys.executable,
            "-m",
            "executor",
            "agent",
            os.fspath(executor.invite(host="127.0.0.1")),
            "--time-limit",
            "1h",
        ]
        agent = subprocess.Popen([*command, "--resource", "fpga=1"], env={**os.environ, "PYTHONPATH": ROOT})
        assert executor.options(resources={"fpga": 1}).submit(pow, 2, 5).result(PATIENCE) == 32
    assert agent.wait(PATIENCE) == 0
