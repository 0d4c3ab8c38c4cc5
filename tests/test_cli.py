"""The command line: what it prints, how it exits, and what a person at a terminal sees."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result
from waiting import wait_until

from executor import HPCExecutor, Job, Program, TaskFuture
from executor.cli import findings
from executor.cli.__main__ import make_app
from executor.cli.program import read_lines
from executor.cli.progress import Lines, render_bar, render_end
from executor.cli.summary import MOST_FAILURES, MOST_LINES, read_end
from executor.cli.tally import Tally, render_counts, render_seconds

pytestmark = pytest.mark.shared

ROOT = str(Path(__file__).parent.parent)
ESCAPE = "\x1b"
STUDY = """
name = "study"

[[task]]
id = 0
name = "mesh"
command = ["sh", "-c", "echo meshed"]

[[task]]
id = 1
name = "solve"
command = ["sh", "-c", "echo diverged >&2; exit 3"]
deps = [0]

[[task]]
id = 2
command = ["true"]
deps = [1]
"""


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A job of which one task ends well, one fails, and one is not run."""
    file = tmp_path / "study.toml"
    file.write_text(STUDY)
    return file


def invoke(*args: object, **options: Any) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(make_app(), list(map(str, args)), prog_name="hpc-executor", **options)


def start(*args: object, **options: Any) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "executor", *map(str, args)]
    env = {**os.environ, "PYTHONPATH": ROOT, **options.pop("env", {})}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=env, text=True, **{**pipes, **options})


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit status, stdout and stderr."""
    with process:
        out, err = process.communicate(timeout=50)
    return process.returncode, out, err


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# ---- a program


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
)
def test_the_exit_status_of_a_program_is_ours(script: str, status: int) -> None:
    assert invoke("run", "--", "sh", "-c", script).exit_code == status


def test_a_program_that_ends_by_a_signal_is_told_of_and_one_with_a_status_speaks_for_itself() -> None:
    assert "SIGKILL" in invoke("run", "--", "sh", "-c", "kill -9 $$").stderr
    assert invoke("run", "--", "sh", "-c", "exit 7").output == ""


def test_a_program_that_cannot_be_started_gives_the_status_of_a_shell(tmp_path: Path) -> None:
    missing = invoke("run", "--", "./missing")
    assert (missing.exit_code, "there is no such file" in missing.stderr) == (127, True)
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    refused = invoke("run", "--", "./plain")
    assert (refused.exit_code, "is not executable" in refused.stderr) == (126, True)


def test_a_program_shows_its_output_on_the_same_streams() -> None:
    assert finish(start("run", "--", "sh", "-c", "echo out; echo err >&2")) == (0, "out\n", "err\n")


def test_output_is_shown_as_it_comes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    process = start("run", "--", "sh", "-c", "echo before; read line < gate; echo after")
    assert process.stdout is not None
    assert process.stdout.readline() == "before\n"  # the program cannot end before this
    (tmp_path / "gate").write_text("go\n")
    assert finish(process) == (0, "after\n", "")


def test_all_words_after_the_dashes_are_the_programs(tmp_path: Path) -> None:
    words = ["--cpus", "2", "--", "-q", "[red]", "--json"]
    assert finish(start("run", "-q", "--", "printf", "%s\\n", *words))[1].splitlines() == words


def test_options_reach_the_program(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    script = "pwd; echo $COLOUR; echo $HPC_RESOURCE_REQUEST_cpus; echo $HPC_RESOURCE_REQUEST_fpga"
    invoke(
        "run", "--cwd", "there", "--env", "COLOUR=a=b", "--cpus", "2", "--resource", "fpga=0.5", "--max-workers", 2,
        "--resources", "fpga=2", "--stdout", "../out", "--name", "tester", "--retries", 1, "--crash-limit",
        "never-restart", "--time-limit", "1m", "--priority", 3, "--", "sh", "-c", script,
    )  # fmt: skip
    read = (tmp_path / "out").read_text().splitlines()
    assert read == [str(tmp_path / "there"), "a=b", "2 compact", "0.5 compact"]


def test_a_program_reads_our_stdin_only_if_that_is_said() -> None:
    assert finish(start("run", "--", "cat"))[:2] == (0, "")
    with start("run", "--stdin", "--", "cat", stdin=subprocess.PIPE) as process:
        assert process.communicate("hello\n", timeout=50)[0] == "hello\n"


def test_a_program_that_runs_too_long_has_failed() -> None:
    result = invoke("run", "--time-limit", "200ms", "--", "sleep", 60)
    assert (result.exit_code, "time_limit" in result.stderr or "longer" in result.stderr) == (1, True)


# ---- arrays of a program


def test_an_array_writes_files_as_job_files_do(tmp_path: Path) -> None:
    result = invoke("run", "--array", "1-3", "--", "sh", "-c", "echo $HQ_TASK_ID")
    assert result.exit_code == 0
    assert [(tmp_path / f"job-1/{number}.stdout").read_text() for number in (1, 2, 3)] == ["1\n", "2\n", "3\n"]


def test_each_line_of_a_file_is_the_entry_of_a_task(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("a b\n\nc\n")
    invoke("run", "--each-line", "lines", "--stdout", "%{TASK_ID}", "--", "sh", "-c", 'echo "<$HQ_ENTRY>"')
    assert [(tmp_path / name).read_text() for name in "012"] == ["<a b>\n", "<>\n", "<c>\n"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a\nb\xff\n", "--each-line: lines.txt, line 2: the byte 0xff is not UTF-8"),
        (b"", "--each-line: lines.txt is empty"),
    ],
)
def test_a_file_that_has_no_lines_of_text_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "lines.txt").write_bytes(content)
    done = invoke("run", "--each-line", "lines.txt", "--", "true")
    assert (done.exit_code, told in done.stderr) == (2, True)


def test_what_a_line_is_depends_on_its_end_only(tmp_path: Path) -> None:
    """str.splitlines() took a form feed, and some letters of Unicode, for the end of a line."""
    (tmp_path / "lines.txt").write_text("a\x0cb\u2028c\n\nlast", encoding="utf-8")
    assert read_lines(tmp_path / "lines.txt") == ["a\x0cb\u2028c", "", "last"]


@pytest.mark.parametrize("args", [("run", "--array", "x", "--", "true"), ("output", "--task", "x", ".")])
def test_numbers_that_are_none_are_told_with_their_option(args: tuple[str, ...]) -> None:
    done = invoke(*args)
    assert (done.exit_code, f"{args[1]}: expected numbers" in done.stderr) == (2, True)


def test_when_too_many_have_failed_the_rest_is_aborted() -> None:
    result = invoke("run", "--json", "--array", "1-50", "--max-fails", 2, "--max-concurrent", 1, "--", "false")
    job = objects(result.stdout)[-1]
    assert (result.exit_code, job["state"]) == (1, "failed")
    assert job["counts"]["failed"] >= 3
    assert sum(job["counts"].values()) == 50 == job["counts"]["failed"] + job["counts"]["aborted"]


def test_output_that_goes_nowhere_makes_no_file(tmp_path: Path) -> None:
    invoke("run", "--array", "1-2", "--stdout", "none", "--stderr", "none", "--", "echo", "hello")
    assert list(tmp_path.iterdir()) == []


# ---- job files


def test_a_job_that_ends_well_gives_0(study: Path, tmp_path: Path) -> None:
    study.write_text(STUDY.replace("exit 3", "exit 0"))
    result = invoke("run", study)
    assert (result.exit_code, result.stdout) == (0, "")
    assert re.fullmatch(r"study: 3 finished, in .* s\n", result.stderr)
    assert (tmp_path / "job-1/0.stdout").read_text() == "meshed\n"


def test_of_a_quiet_job_that_ends_well_nothing_is_told(study: Path) -> None:
    study.write_text(STUDY.replace("exit 3", "exit 0"))
    assert invoke("run", "--quiet", study).output == ""


def test_the_summary_tells_of_failed_tasks_what_is_needed_to_go_on(study: Path, tmp_path: Path) -> None:
    result = invoke("run", "--quiet", study)
    assert result.exit_code == 1
    first, *others = result.stderr.splitlines()
    assert re.fullmatch(r"task 1 'solve' failed on .*: the program 'sh' exited with status 3", first)
    assert others[:-1] == [
        f"  directory: {tmp_path}", f"  stdout: {tmp_path}/job-1/1.stdout", f"  stderr: {tmp_path}/job-1/1.stderr",
        "    diverged",
    ]  # fmt: skip
    assert others[-1].startswith("study: 1 finished, 1 failed, 1 aborted, in ")


def test_of_many_failures_some_are_told() -> None:
    result = invoke("run", "--array", f"1-{MOST_FAILURES + 3}", "--", "false")
    assert len(re.findall(r"^task \d+ ", result.stderr, re.MULTILINE)) == MOST_FAILURES
    assert "... and 3 more failed" in result.stderr


def test_of_a_long_stderr_the_end_is_told(tmp_path: Path) -> None:
    file = tmp_path / "long"
    file.write_bytes(b"".join(b"line %d \xff\n" % number for number in range(100_000)))
    assert read_end(str(file)) == [f"line {number} \ufffd" for number in range(100_000 - MOST_LINES, 100_000)]
    assert read_end(str(tmp_path / "missing")) == ["(No such file or directory here)"]


def test_json_has_an_object_for_each_task_that_ends_and_one_for_the_job(study: Path, tmp_path: Path) -> None:
    result = invoke("run", "--json", study)
    *tasks, job = objects(result.stdout)
    assert {each["task"]: each["state"] for each in tasks} == {0: "finished", 1: "failed", 2: "aborted"}
    solve = next(each for each in tasks if each["task"] == 1)
    assert solve["stderr"] == f"{tmp_path}/job-1/1.stderr"
    assert (solve["returncode"], solve["error"]) == (3, "the program 'sh' exited with status 3")
    assert solve["started"] < solve["ended"]
    assert {key: job[key] for key in ("kind", "name", "state", "tasks", "counts", "failed", "status")} == {
        "kind": "job", "name": "study", "state": "failed", "tasks": 3, "failed": [1], "status": 1,
        "counts": {"finished": 1, "failed": 1, "aborted": 1},
    }  # fmt: skip


def test_with_json_the_output_of_a_program_is_in_files(tmp_path: Path) -> None:
    (task, job) = objects(invoke("run", "--json", "--", "echo", "hello").stdout)
    assert Path(task["stdout"]).read_text() == "hello\n"


# ---- bad input


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["run"], "nothing to run; write: hpc-executor run FILE.toml"),
        (["run", "--"], "there is no program after '--'"),
        (["run", "echo", "hi"], "run -- echo hi"),
        (["run", "study.toml", "--", "echo"], "run a file, or a program"),
        (["run", "--cpus", "2", "study.toml"], "write them into the file"),
        (["run", "--array", "1-2", "study.toml"], "write them into the file"),
        (["run", "missing.toml"], "missing.toml: No such file or directory"),
        (["check", "missing.toml"], "missing.toml: No such file or directory"),
        (["run", "--cpus", "many", "--", "true"], "option cpus='many': expected an amount"),
        (["run", "--memory", "much", "--", "true"], "option memory='much'"),
        (["run", "--cpus", "9999", "--", "true"], "needs cpus=9999, and an agent has"),
        (["run", "--env", "COLOUR", "--", "true"], "--env: expected NAME=VALUE"),
        (["run", "--resource", "a=1", "--resource", "a=2", "--", "true"], "a is there twice"),
        (["run", "--resources", "fpga", "--", "true"], "--resources: expected NAME=VALUE"),
        (["run", "--max-fails", "1", "--", "true"], "--max-fails is about many tasks"),
        (["run", "--array", "5-1", "--", "true"], "ends before it begins"),
        (["run", "--each-line", "missing", "--", "true"], "missing: No such file"),
        (["run", "--max-workers", "0", "--", "true"], "max_workers"),
        (["graph", "study.toml", "-o", "study.gif"], "expected a name that ends in .dot"),
        (["run", "--nonsense", "--", "true"], "--nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gives_2_and_says_what_is_wrong(args: list[str], told: str, study: Path) -> None:
    result = invoke(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr


def test_what_makes_no_sense_starts_nothing(tmp_path: Path) -> None:
    file = tmp_path / "circle.toml"
    file.write_text("".join(
        f'[[task]]\nid = {number}\ncommand = ["touch", "ran"]\ndeps = [{after}]\n' for number, after in ((0, 1), (1, 0))
    ))  # fmt: skip
    for command in ("run", "check", "graph"):
        result = invoke(command, file)
        assert (result.exit_code, "depend on each other" in result.stderr) == (2, True)
    assert not (tmp_path / "ran").exists()


# ---- check, graph


def test_check_prints_tasks_after_those_that_they_depend_on(study: Path) -> None:
    lines = invoke("check", study).stdout.splitlines()
    assert lines[0].split() == ["task", "name", "after", "runs"]
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["0", "mesh", "sh"], ["1", "solve", "mesh"], ["2", "solve", "true"],
    ]  # fmt: skip
    assert lines[-1] == "study: 3 tasks; the longest chain of them has 3"


def test_check_gives_a_script_what_the_file_says(study: Path) -> None:
    (job,) = objects(invoke("check", "--json", study).stdout)
    assert [(task["id"], task["name"], task["deps"]) for task in job["tasks"]] == [
        (0, "mesh", []), (1, "solve", [0]), (2, None, [1]),
    ]  # fmt: skip
    assert job["tasks"][2]["command"] == ["true"]


def test_graph_writes_text_for_graphviz(study: Path, tmp_path: Path) -> None:
    text = invoke("graph", study).stdout
    assert "0 -> 1;" in text
    assert "1 -> 2;" in text
    invoke("graph", study, "-o", "graph.dot")
    assert (tmp_path / "graph.dot").read_text() == text == Job.from_file(study).to_dot()


def test_a_picture_without_graphviz_is_refused_with_a_remedy(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = invoke("graph", study, "-o", "graph.svg")
    assert result.exit_code == 2
    assert "'dot' is not in PATH; install it" in result.stderr


@pytest.fixture
def graphviz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that stands for Graphviz where there is none: it copies what it reads."""
    if shutil.which("dot") is None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/dot").write_text('#!/bin/sh\necho "$@"; cat\n')
        (tmp_path / "bin/dot").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")


def test_graphviz_draws_pictures(study: Path, tmp_path: Path, graphviz: None) -> None:
    assert invoke("graph", study, "-o", "graph.svg").exit_code == 0
    assert "mesh" in (tmp_path / "graph.svg").read_text()


def test_pictures_show_states_in_colour(executor: HPCExecutor) -> None:
    job = Job("colours")
    first = job.program(["true"], name='a "quoted" \\ name')
    failing = job.array(Program(["sh", "-c", "exit $HQ_TASK_ID"]), ids="1-2,10", deps=[first])
    job.function(len, args=[failing])
    submitted = executor.submit_job(job)
    submitted.wait(50)
    text = submitted.to_dot()
    labels = dict(re.findall(r'^ +(\d+) \[label="(.*?)", fillcolor', text, re.MULTILINE))
    assert labels["0"] == 'a \\"quoted\\" \\\\ name\\ntrue'
    assert labels["1"].endswith("\\n3 tasks\\n3 failed")
    assert re.findall(r'tooltip="(\w+)"', text) == ["finished", "failed", "aborted"]
    assert re.findall(r"(\d+ -> \d+);", text) == ["0 -> 1", "1 -> 11"]
    assert "fillcolor" not in job.to_dot().partition("];")[2]  # nothing has a state before it was submitted


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
@pytest.mark.parametrize("name", ['"', "\\", "\\n", 'a\\"', "line\nline", "<b>", "ü", "]; x [", "\\N"])
def test_graphviz_reads_names_of_any_letters(name: str, tmp_path: Path) -> None:
    job = Job(name)
    job.program(["echo", name], name=name)
    job.plot(tmp_path / "graph.svg")
    drawn = (tmp_path / "graph.svg").read_text()
    assert name.partition("\n")[0].replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;") in drawn


# ---- doctor


def test_the_doctor_finds_that_tasks_run_here() -> None:
    result = invoke("doctor", "--json")
    (found,) = objects(result.stdout)
    assert (result.exit_code, found["works"]) == (0, True)
    about = {each["about"]: each for each in found["findings"]}
    assert {"CPUs", "memory", "GPUs", "open files", "processes", "schedulers", "Python"} <= set(about)
    assert about["agent runs a function"]["found"] == about["agent runs a program"]["found"] == "yes"


def test_the_doctor_tells_people_a_line_for_each_finding() -> None:
    result = invoke("doctor")
    assert result.stdout.splitlines()[-1] == "tasks can run here"
    assert all(re.match(r"ok  |!!  |    ", line) for line in result.stdout.splitlines()[:-1])


def test_the_doctor_has_a_remedy_for_what_is_wrong() -> None:
    script = f"ulimit -S -n 100; exec {sys.executable} -m executor doctor"
    done = subprocess.run(
        ["sh", "-c", script], env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, timeout=50,
        check=False,
    )  # fmt: skip
    assert "!!  open files: 100\n    each agent that joins needs one" in done.stdout
    assert "; raise it: ulimit -S -n " in done.stdout


def test_the_doctor_says_why_work_cannot_be_done() -> None:
    finding = findings.try_work("a function", lambda: 1 // 0)
    assert (finding.found, finding.fatal) == ("ZeroDivisionError: integer division or modulo by zero", True)
    assert finding.remedy


def test_the_doctor_finds_batch_systems_by_their_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (nothing,) = findings.find_schedulers()
    assert re.fullmatch(r"none \(sbatch.* are not in PATH\)", nothing.found)
    (tmp_path / "sbatch").touch(mode=stat.S_IRWXU)
    sinfo = tmp_path / "sinfo"
    sinfo.write_text("#!/bin/sh\necho main\n")
    sinfo.chmod(stat.S_IRWXU)
    (answering,) = findings.find_schedulers()
    assert (answering.about, answering.found) == ("schedulers", f"slurm ({tmp_path}/sbatch) answers")
    sinfo.write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    (silent,) = findings.find_schedulers()
    assert silent.found.endswith("ended with status 1: Unable to contact slurm controller")
    assert silent.remedy


# ---- output


def test_output_prints_what_tasks_wrote_to_a_stream(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        'stream = "streams"\n[array]\nids = "1-2"\ncommand = ["sh", "-c", "echo wrote-$HQ_TASK_ID; echo erred >&2"]\n'
    )
    assert invoke("run", "job.toml").exit_code == 0
    assert all(f"wrote-{number}\n" in invoke("output", "streams").stdout for number in (1, 2))
    one = invoke("output", "streams", "--task", "2").stdout
    assert ("wrote-2\n" in one, "wrote-1" in one, "erred" in one) == (True, False, False)
    assert "erred\n" in invoke("output", "streams", "--stderr").stdout
    assert invoke("output", "missing").exit_code == 2
    told = objects(invoke("output", "--json", "streams").stdout)
    assert [(each["task"], each["returncode"], each["stdout"]) for each in told] == [
        (1, 0, "wrote-1\n"), (2, 0, "wrote-2\n"),
    ]  # fmt: skip
    assert objects(invoke("output", "--json", "--task", "2", "--stderr", "streams").stdout)[0]["stderr"] == "erred\n"


# ---- help, version, completion


@pytest.mark.parametrize("command", ["run", "check", "graph", "output", "doctor"])
def test_the_help_of_each_command_has_examples(command: str) -> None:
    text = invoke(command, "--help").stdout
    assert re.search(rf"^  Examples:\n    hpc-executor {command}", text, re.MULTILINE)


def test_the_page_names_all_options() -> None:
    page = (Path(ROOT) / "docs/command-line.md").read_text()
    table = page.partition("| option | means |")[2].partition("\n\n")[0]
    shown = invoke("run", "--help").stdout.partition("Options:")[2]
    options = set(re.findall(r"^  (?:-q, )?(--[a-z-]+)", shown, re.MULTILINE)) - {"--help"}
    assert set(re.findall(r"`(--[a-z-]+)", table)) == options


def test_help_and_version_start_nothing() -> None:
    script = (
        "import sys, threading\nfrom executor.cli.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert threading.active_count() == 1\n"
    )
    for args in (["--help"], ["--version"], ["run", "--help"]):
        env = {**os.environ, "PYTHONPATH": ROOT}
        done = subprocess.run([sys.executable, "-c", script, *args], env=env, capture_output=True, check=True)
        assert done.stdout


def test_the_executor_itself_loads_neither_typer_nor_rich() -> None:
    script = "import sys, executor; assert not {'typer', 'rich'} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": ROOT}, check=True)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_script_for_completion_is_printed(shell: str) -> None:
    status, out, err = finish(start(env={"_HPC_EXECUTOR_COMPLETE": f"source_{shell}"}))
    assert (status, err) == (0, "")
    assert "complete" in out
    assert "hpc-executor" in out


def test_a_shell_is_told_how_a_command_goes_on() -> None:
    env = {"_HPC_EXECUTOR_COMPLETE": "complete_bash", "COMP_WORDS": "hpc-executor do", "COMP_CWORD": "1"}
    assert finish(start(env=env))[1].split() == ["doctor"]


# ---- signals, and lines for those who are no terminal


def test_elsewhere_than_on_a_terminal_lines_are_plain(study: Path) -> None:
    for args in (["run", study], ["check", study], ["doctor"], ["--help"], ["run", "--nonsense"]):
        _, out, err = finish(start(*args, env={"COLUMNS": "40"}))
        assert ESCAPE not in out + err
    long = study.with_name("long.toml")
    long.write_text(f'[[task]]\nname = "{"n" * 150}"\ncommand = ["true"]\n')
    assert "n" * 150 + "         true" in finish(start("check", long, env={"COLUMNS": "40"}))[1]


def test_colours_of_a_task_are_not_in_plain_lines() -> None:
    _, _, err = finish(start("run", "--array", "1", "--", "sh", "-c", r"printf '\033[31mred\033[0m\n' >&2; exit 1"))
    assert "    red\n" in err
    assert ESCAPE not in err


#: It says that it runs; when it is asked to end, it saves its work first.
SAVING = "trap 'echo > saved-$HQ_TASK_ID; exit 0' TERM; echo > ready-$HQ_TASK_ID; while :; do sleep 0.02; done"
#: It does not want to end.
STUBBORN = "trap '' TERM; echo > ready-$HQ_TASK_ID; while :; do sleep 0.02; done"


@pytest.mark.parametrize(
    ("number", "name", "status"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)]
)
def test_a_signal_cancels_with_grace(tmp_path: Path, number: int, name: str, status: int) -> None:
    process = start("run", "--max-workers", 1, "--array", "1-3", "--", "sh", "-c", SAVING)
    wait_until((tmp_path / "ready-1").exists)
    process.send_signal(number)
    ended, _, err = finish(process)
    assert ended == status
    assert f"{name}: ending the tasks, which have 2 seconds for it; again: at once\n" in err
    assert "job: 3 cancelled, in" in err
    assert (tmp_path / "saved-1").exists()
    assert not (tmp_path / "ready-2").exists()


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    process = start("run", "--max-workers", 1, "--array", "1-3", "--", "sh", "-c", STUBBORN)
    assert process.stderr is not None
    wait_until((tmp_path / "ready-1").exists)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("Ctrl-C: ending the tasks, which")
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 130
    assert err.splitlines()[0] == "Ctrl-C: ending the tasks at once"
    assert "job: 3 cancelled, in" in err


def test_a_signal_ends_a_job_that_is_still_being_submitted(tmp_path: Path) -> None:
    process = start("run", "--array", "1-30000", "--stdout", "none", "--stderr", "none", "--", "touch", "ready")
    wait_until((tmp_path / "ready").exists)  # the first tasks run long before the last ones are submitted
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    assert (status, out, "Traceback" in err) == (130, "", False)
    assert err.splitlines()[-1] == "all tasks have been ended" or "cancelled, in" in err.splitlines()[-1]


def test_a_signal_ends_a_single_program_too(tmp_path: Path) -> None:
    process = start("run", "--", "sh", "-c", SAVING)
    wait_until((tmp_path / "ready-0").exists)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert (status, err.splitlines()[-1]) == (130, "all tasks have been ended")
    assert (tmp_path / "saved-0").exists()


# ---- a terminal


class Terminal:
    """A command line at a terminal of its own."""

    def __init__(self, *args: object, stdout: Path | None = None) -> None:
        self._ours, theirs = os.openpty()
        login = (
            "import os, sys; os.login_tty(int(sys.argv[1])); "
            "sys.argv[2] and os.dup2(os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT), 1); "
            "os.execv(sys.executable, [sys.executable, '-m', 'executor', *sys.argv[3:]])"
        )
        env = {**os.environ, "PYTHONPATH": ROOT, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        env.pop("NO_COLOR", None)
        command = [sys.executable, "-c", login, str(theirs), str(stdout or ""), *map(str, args)]
        self.process = subprocess.Popen(command, env=env, pass_fds=[theirs])
        os.close(theirs)
        self.shown = ""

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Until it has shown what matches; escape codes are taken away."""
        while not (match := re.search(pattern, self.text)):
            assert self._read(), f"it ended, and showed {self.text!r}"
        return match

    @property
    def text(self) -> str:
        """All that it has shown, without colours and the like."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.shown)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def finish(self) -> int:
        """Its exit status, when it has shown everything."""
        while self._read():
            pass
        return self.process.wait(50)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._ours], [], [], 50)
        assert ready, f"it shows nothing more than {self.text!r}"
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # the other side is closed: so Linux says it
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    """Open terminals that are closed after the test."""
    opened: list[Terminal] = []

    def open_one(*args: object, **options: Any) -> Terminal:
        opened.append(Terminal(*args, **options))
        return opened[-1]

    yield open_one
    for terminal in opened:
        terminal.close()


def test_a_bar_shows_counts_and_the_tasks_that_run(open_terminal: Callable[..., Terminal], gate: Any) -> None:
    script = f"test $HQ_TASK_ID -lt 3 || head -c 1 {gate.paths[1]}; test $HQ_TASK_ID != 2"
    terminal = open_terminal("run", "--name", "bars", "--max-workers", 1, "--array", "1-4", "--", "sh", "-c", script)
    terminal.wait_for(r"bars .*50 %  2 of 4  about .* left, until \d\d:\d\d\r?\n")
    terminal.wait_for(r"1 running  1 waiting  1 finished  1 failed")
    terminal.wait_for(r"\d s  bars\[3\]")
    gate.open(2)
    assert terminal.finish() == 1
    assert "task 2 'bars[2]' failed" in terminal.text
    assert terminal.text.rstrip().splitlines()[-1].startswith("bars: 3 finished, 1 failed, in")


def test_ctrl_c_at_a_terminal_cancels_and_once_more_ends_at_once(
    open_terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    terminal = open_terminal("run", "--max-workers", 1, "--array", "1-3", "--", "sh", "-c", STUBBORN)
    wait_until((tmp_path / "ready-1").exists)
    terminal.wait_for("1 running")
    terminal.press("\x03")
    terminal.wait_for("Ctrl-C: ending the tasks, which have 2 seconds for it; again: at once")
    terminal.press("\x03")
    terminal.wait_for("Ctrl-C: ending the tasks at once")
    assert terminal.finish() == 130
    assert "job: 3 cancelled, in" in terminal.text


def test_the_terminal_is_left_as_it_was(open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal("run", "--array", "1-2", "--", "true")
    assert terminal.finish() == 0
    assert terminal.shown.count(f"{ESCAPE}[?25l") == terminal.shown.count(f"{ESCAPE}[?25h")  # the cursor


def test_a_bar_keeps_out_of_what_a_script_reads(open_terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    """A terminal for people and a file for a script; and one terminal for both, where there is no bar."""
    terminal = open_terminal("run", "--json", "--array", "1-2", "--", "sleep", 1, stdout=tmp_path / "objects")
    terminal.wait_for("2 finished, in")
    assert terminal.finish() == 0
    assert ("2 running" in terminal.text, "kind" in terminal.text) == (True, False)
    assert [each["kind"] for each in objects((tmp_path / "objects").read_text())] == ["task", "task", "job"]
    alone = open_terminal("run", "--json", "--array", "1-2", "--", "sleep", 1)
    assert (alone.finish(), "running" in alone.text) == (0, False)


def test_quiet_shows_no_bar_at_a_terminal(open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal("run", "-q", "--array", "1-2", "--", "true")
    assert (terminal.finish(), terminal.shown) == (0, "")


# ---- the tally


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_tally_tells_what_is_new_and_counts_the_rest(executor: HPCExecutor, make_gate: Callable[[], Any]) -> None:
    gate, clock = make_gate(), Clock()
    job = Job()
    held = Program(["sh", "-c", f"echo $$ > {gate.paths[0]}; head -c 1 {gate.paths[1]} > hold"])
    job.array(held, ids="5-8", max_concurrent=2)
    submitted = executor.submit_job(job)
    tally = Tally(submitted, clock)
    gate.wait_arrivals(2)
    wait_until(lambda: tally.update() == [] and len(tally.running) == 2)
    assert (tally.total, tally.ended, tally.counts["waiting"], tally.seconds_left()) == (4, 0, 2, None)
    gate.open(1)
    gate.wait_arrivals(1)
    clock.now += 10
    new = wait_until(tally.update)
    assert (len(new), tally.counts["finished"], tally.ended) == (1, 1, 1)
    assert (tally.seconds(), tally.seconds_left()) == (10, 30)
    gate.open_wide()
    submitted.wait(50)
    assert sorted([*new, *tally.update()]) == [5, 6, 7, 8]
    assert tally.counts == Counter(finished=4)
    assert tally.update() == []


class _Submitted:
    """Of a hundred thousand tasks none has ended."""

    def __init__(self) -> None:
        self.futures = {number: TaskFuture(number, "task", 0.0) for number in range(100_000)}
        self.questions = 0

    def __len__(self) -> int:
        return len(self.futures)

    def ended(self, since: int = 0) -> list[int]:
        return []

    def state_of(self, number: int) -> str:
        self.questions += 1
        return "waiting"


def test_what_has_not_changed_is_not_asked_again() -> None:
    submitted = _Submitted()
    tally = Tally(submitted)  # type: ignore[arg-type]
    for _ in range(3):
        tally.update()
    assert submitted.questions == 0
    assert tally.counts["waiting"] == 100_000
    assert all("_condition" not in future.__dict__ for future in submitted.futures.values())  # they stay small


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_bar_of_many_running_tasks_names_a_few(width: int) -> None:
    submitted = _Submitted()
    tally = Tally(submitted)  # type: ignore[arg-type]
    tally.update()
    tally.running = list(submitted.futures.values())
    console = Console(width=width, record=True, file=open(os.devnull, "w"))
    with console.file:
        console.print(render_bar("a title that is much too long for a line of this width", tally, width))
    lines = console.export_text().splitlines()
    assert len(lines) == 8
    assert all(len(line) <= width for line in lines)
    assert lines[0].startswith("a title")
    assert "0 %  0 of 100,000" in lines[0]
    assert lines[-1].strip() == "and 99,995 more"


def test_a_bar_says_what_waiting_tasks_wait_for() -> None:
    tally = Tally(_Submitted())  # type: ignore[arg-type]  # it has all that a tally asks of a job
    tally.update()
    console = Console(width=100, record=True, file=open(os.devnull, "w"))
    with console.file:
        console.print(render_bar("study", tally, 100, "waits for 2 slurm jobs (Priority)"))
        tally.counts["waiting"] = 0
        console.print(render_bar("study", tally, 100, "waits for 2 slurm jobs (Priority)"))
    lines = [line.strip() for line in console.export_text().splitlines()]
    assert lines[1] == "100,000 waiting  waits for 2 slurm jobs (Priority)"
    assert lines[3] == ""


def test_a_log_gets_a_line_now_and_then(executor: HPCExecutor, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job()
    job.program(["true"])
    submitted = executor.submit_job(job)
    submitted.wait(50)
    tally = Tally(submitted)
    tally.update()
    assert tally.seconds_left() is None  # nothing is left, though what was cancelled may still be ending
    often, seldom = Lines(every=0), Lines(every=3600)
    for lines in (often, often, seldom):
        lines.show("study", tally, "waits for 1 slurm job")
        lines.show("study", None, "")
    assert capsys.readouterr().err == "study: 1 of 1 tasks have ended; 1 finished\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0 s"), (0.04, "0.0 s"), (9.94, "9.9 s"), (10, "0:00:10"), (3661, "1:01:01"), (90_061, "1 d 01:01:01")],
)
def test_seconds_are_shown_as_people_read_them(seconds: float, text: str) -> None:
    assert render_seconds(seconds) == text


def test_the_estimated_end_has_the_day_if_it_is_another_one() -> None:
    now = datetime(2026, 11, 22, 23, 0)
    assert render_end(None, now) == ""
    assert render_end(1800, now) == "about 0:30:00 left, until 23:30"
    assert render_end(7200, now) == "about 2:00:00 left, until Mon 23 Nov, 01:00"
    assert render_end(1e18, now) == "centuries left"


def test_counts_are_told_in_the_order_of_a_tasks_life() -> None:
    assert render_counts(Counter(failed=1, waiting=2000, running=0)) == "2,000 waiting, 1 failed"
