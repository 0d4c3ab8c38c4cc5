"""What README and docs say is so: their Python runs, and their tables name what there is."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import executor
from executor import HPCExecutor, Program, TaskFuture, errors
from executor.options import OPTIONS

pytestmark = pytest.mark.shared

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def python_blocks() -> list[pytest.ParameterSet]:
    """All blocks of Python: they are whole scripts. A fragment is shown as another kind of block."""
    return [
        pytest.param(text, id=f"{path.name}-{number}")
        for path in DOCUMENTS
        for number, (kind, text) in enumerate(_FENCE.findall(path.read_text()))
        if kind == "python"
    ]


def run(script: str, folder: Path) -> str:
    """What the script prints; it must end well and complain about nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=folder, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"}, capture_output=True, text=True, timeout=60, check=False,
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


@pytest.mark.parametrize("script", python_blocks())
def test_python_in_the_documents_runs(script: str, tmp_path: Path) -> None:
    run(script, tmp_path)


def test_the_readme_script_prints_what_it_should(tmp_path: Path) -> None:
    script = next(text for kind, text in _FENCE.findall((ROOT / "README.md").read_text()) if kind == "python")
    lines = run(script, tmp_path).splitlines()
    assert lines[0] == "[0, 1, 4, 9, 16]"
    assert sorted(line.partition(" CPU time 0.")[0] for line in lines[1:3]) == ["10 55", "100 5050"]
    assert lines[3].endswith(": signal 6")
    assert lines[4:] == ["144"]


def test_the_tables_of_options_name_all_options() -> None:
    assert first_column(ROOT / "README.md", "option") == set(OPTIONS)
    assert first_column(ROOT / "docs" / "options.md", "option") == set(OPTIONS)


def test_the_tables_of_arguments_name_all_arguments() -> None:
    arguments = {*inspect.signature(HPCExecutor).parameters, *inspect.signature(Program).parameters}
    assert first_column(ROOT / "docs" / "options.md", "argument") == arguments


def test_every_exception_is_described() -> None:
    public = set(errors.__all__) & set(executor.__all__)
    assert first_column(ROOT / "README.md", "exception") == public
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
