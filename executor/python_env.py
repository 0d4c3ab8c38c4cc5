"""The Python of tasks: ``HPCExecutor(python_env=PythonEnv("python3", prologue="module load python/3.12"))``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from worker_agent import processes


@dataclass(frozen=True, slots=True)
class PythonEnv:
    """Which interpreter runs tasks, and what a shell does before: nothing of ours needs to be installed in it.

    :param python: str, the interpreter: a path, or a name that is looked for in the PATH that the prologue leaves;
        None: the one that submits. Functions travel only to the same minor version of Python.
    :param prologue: str, lines of shell, such as ``module load gcc`` or ``source venv/bin/activate``; None: nothing.
        They run once on each agent, with the variables that the process had at ``submit``; the variables that they
        leave are those of the tasks, of programs too. The first line that fails makes all tasks fail, with that line
        and what it printed.
    :param shell: str, that runs the prologue.
    :raises TypeError, ValueError: what is no text, or empty.
    """

    python: str | None = None
    prologue: str | None = None
    shell: str = "bash"

    def __post_init__(self) -> None:
        for name in ("python", "prologue", "shell"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name != "shell"):
                raise TypeError(f"{name}={value!r}: expected text")
            if value is not None and ("\0" in value or (not value.strip() and name != "prologue")):
                raise ValueError(f"{name}={value!r}: expected the name of a program, such as 'python3'")

    @property
    def command(self) -> list[str]:
        """The interpreter with its flags."""
        return processes.this_python() if self.python is None else [self.python]

    def path(self, path: Sequence[str]) -> list[str]:
        """What of our ``sys.path`` another interpreter is to have: what does not come with ours."""
        if self.python is None:
            return list(path)
        ours = tuple({sys.prefix, sys.base_prefix, sys.exec_prefix})
        return [each for each in path if not each.startswith(ours)]


#: The one that submits.
SAME_PYTHON = PythonEnv()
