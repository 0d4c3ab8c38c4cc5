"""What README and docs say is so: their Python runs, and their tables name what there is."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

import executor
from executor import (
    BatchArrayHandle,
    BatchHandle,
    BatchJob,
    HPCExecutor,
    Job,
    Program,
    Report,
    SubmittedJob,
    TaskFuture,
    errors,
)
from executor.batch import settings
from executor.cli.__main__ import make_app
from executor.cluster_settings import find_cluster
from executor.clusters import BatchCluster
from executor.options import OPTIONS
from executor.worker import WorkerInfo

pytestmark = pytest.mark.shared

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), ROOT / "examples" / "README.md", *sorted(ROOT.glob("docs/*.md"))]
COMMANDS = typer.main.get_command(make_app()).commands
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"```.*?```|`[^`]+`", re.DOTALL)
#: What has no underscore, and is for the package itself all the same.
OURS = {
    BatchCluster: {"on_each_node", "policy", "pools", "request", "seconds", "seconds_between_polls"},
    BatchJob: {"request", "submission", "submit_as"},
    Job: {"node"},
    Program: {"stdin_bytes"},
    executor.OutputFile: {"at"},
    executor.PythonEnv: {"command", "path"},
    executor.Resources: {"to_needs"},
    executor.Ssh: {"each"},
    TaskFuture: {
        "announce_cancel", "begin", "claim", "mark_cancelled", "printed", "settle", "settle_plainly", "tell",
        "tell_end", "unclaim", "when_ended", "exception",  # the last is that of the standard library, only quicker
    },
}  # fmt: skip


def blocks(wanted: str) -> list[pytest.ParameterSet]:
    """All blocks of a kind. Python is whole scripts; a fragment, or what is another tool's, is of another kind."""
    return [
        pytest.param(text, id=f"{path.name}-{number}")
        for path in DOCUMENTS
        for number, (kind, text) in enumerate(_FENCE.findall(path.read_text()))
        if kind == wanted
    ]


def run(script: str, folder: Path) -> str:
    """What the script prints; it must end well and complain about nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=folder, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "XDG_STATE_HOME": str(folder)}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def first_column(path: Path, header: str) -> set[str]:
    """The words in backticks in the first column of all tables of ``path`` whose first column is called ``header``."""
    words: set[str] = set()
    in_table = False
    for line in path.read_text().splitlines():
        cell = line.split("|")[1].strip() if line.startswith("|") else ""
        in_table = cell == header or (in_table and line.startswith("|"))
        if in_table:
            words.update(re.findall(r"`(\w+)`", cell))
    return words


@pytest.mark.parametrize("script", blocks("python"))
def test_python_in_the_documents_runs(script: str, tmp_path: Path) -> None:
    run(script, tmp_path)


@pytest.mark.parametrize("text", blocks("py"))
def test_python_that_is_not_run_names_what_there_is(text: str) -> None:
    """It needs a cluster, or is another tool's: what it has of ours exists, and takes the arguments that it gives."""
    tree = ast.parse(text)
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and _is_ours(node.module)]
    ours = {name.name: getattr(import_module(node.module), name.name) for node in imported for name in node.names}
    for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]:
        if call.func.id in ours:
            inspect.signature(ours[call.func.id]).bind_partial(*call.args, **{word.arg: 0 for word in call.keywords})


def _is_ours(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] == "executor"


@pytest.mark.parametrize("text", blocks("toml"))
def test_files_in_the_documents_make_sense(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job file, or one of settings: all that it says is read."""
    tables = tomllib.loads(text)
    is_settings = tables.keys() <= {"defaults", "types", "clusters"}
    path = tmp_path / (settings.FILE if is_settings else "job.toml")
    path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    if not is_settings:
        assert Job.from_file(path).check()
    for name in tables.get("clusters", ()):
        assert isinstance(find_cluster(name), BatchCluster)
    for name in tables.get("types", ()):
        assert BatchJob.from_config(name, command=["true"]).check() is None


@pytest.mark.parametrize("text", blocks("console"))
def test_command_lines_in_the_documents_make_sense(text: str) -> None:
    for line in re.findall(r"^\$ hpc-executor (.*)$", text, re.MULTILINE):
        name, *words = shlex.split(line.partition(" | ")[0])
        COMMANDS[name].make_context(name, words)  # raises for an option that there is not; runs nothing


def test_the_page_of_the_command_line_names_all_options() -> None:
    named = set(re.findall(r"--[a-z-]+", (ROOT / "docs" / "command-line.md").read_text()))
    for name, command in COMMANDS.items():
        options = {word for option in command.params for word in option.opts if word.startswith("--")}
        assert options <= named, name


def test_the_readme_script_prints_what_it_should(tmp_path: Path) -> None:
    script = next(text for kind, text in _FENCE.findall((ROOT / "README.md").read_text()) if kind == "python")
    lines = run(script, tmp_path).splitlines()
    assert lines[0] == "[0, 1, 4, 9, 16]"
    assert sorted(line.partition(" CPU time 0.")[0] for line in lines[1:3]) == ["10 55", "100 5050"]
    assert lines[3].endswith(": signal 6")
    assert lines[4:] == ["144"]


def test_the_tables_of_options_name_all_options() -> None:
    assert first_column(ROOT / "README.md", "option") <= set(OPTIONS)
    assert first_column(ROOT / "docs" / "options.md", "option") == set(OPTIONS)


def test_the_tables_of_arguments_name_all_arguments() -> None:
    arguments = {*inspect.signature(HPCExecutor).parameters, *inspect.signature(Program).parameters}
    assert first_column(ROOT / "docs" / "options.md", "argument") == arguments


def test_the_tables_of_jobs_name_all_arguments() -> None:
    page = ROOT / "docs" / "jobs.md"
    assert first_column(page, "argument of the job") == set(inspect.signature(Job).parameters)
    methods = (Job.program, Job.function, Job.array)
    arguments = {name for method in methods for name in inspect.signature(method).parameters}
    assert first_column(page, "argument") == arguments - {"self", "options"}


def words_in_code(*paths: Path) -> set[str]:
    """The words in blocks and between backticks."""
    return {word for path in paths for text in _CODE.findall(path.read_text()) for word in re.findall(r"\w+", text)}


def members(kind: type) -> set[str]:
    """What a class and those of its bases that are ours have, and say that everybody may use."""
    bases = [base for base in kind.__mro__ if base.__module__.startswith("executor")]
    ours = {name for base in bases for name in OURS.get(base, ())}
    return {name for base in bases for name in vars(base) if not name.startswith("_")} - ours


def public_words(thing: Any) -> Iterator[str]:
    """The members of a class, and the names of all arguments, of a function or of these."""
    for name in members(thing) if isinstance(thing, type) else ():
        yield name
        yield from arguments_of(getattr(thing, name))
    yield from arguments_of(thing)


#: What users get and do not make.
GIVEN = Exception | TaskFuture | BatchHandle | BatchArrayHandle


def arguments_of(thing: Any) -> Iterator[str]:
    if inspect.isfunction(thing) or (isinstance(thing, type) and not issubclass(thing, GIVEN)):
        yield from set(inspect.signature(thing).parameters) - {"self"}


@pytest.mark.parametrize("name", executor.__all__)
def test_all_that_is_public_is_in_the_documents(name: str) -> None:
    assert {name, *public_words(getattr(executor, name))} - words_in_code(*DOCUMENTS) == set()


@pytest.mark.parametrize(("page", "kind"), [("report", Report), ("options", WorkerInfo), ("jobs", SubmittedJob)])
def test_the_page_about_it_names_all_that_a_value_has(page: str, kind: type) -> None:
    assert members(kind) - words_in_code(ROOT / "docs" / f"{page}.md") == set()


def test_every_exception_is_described() -> None:
    public = set(errors.__all__) & set(executor.__all__)
    assert first_column(ROOT / "README.md", "exception") <= public
    headings = re.findall(r"^### (.*)$", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    assert {word for heading in headings for word in re.findall(r"`(\w+)`", heading)} == public


def test_the_readme_names_what_a_future_tells() -> None:
    words = set(re.findall(r"`(\w+)`", (ROOT / "README.md").read_text()))
    told = {"task_id", "name", "state", "attempt", "host", "pid", "submitted", "started", "ended", "usage", "stdout"}
    assert told <= words
    assert all(hasattr(TaskFuture(1, "square", 0.0), name) for name in told)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
