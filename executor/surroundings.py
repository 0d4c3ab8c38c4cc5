"""What tasks see of who submits them: the directory, ``sys.path`` and environment of that moment."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import platform
import sys
from typing import Any

from executor.errors import OptionValueError
from executor.options import TaskOptions, is_text
from executor.python_env import SAME_PYTHON, PythonEnv
from worker_agent import processes, protocol


class Surroundings:
    """Orders to prepare environments: the same one as long as nothing has changed.

    ``max_tasks``, ``preload`` and ``initializer`` are the executor's, for all of them; ``python_env`` where a task's
    options say nothing else.
    """

    def __init__(
        self, max_tasks: int, preload: list[str], initializer: bytes | None, python_env: PythonEnv = SAME_PYTHON
    ) -> None:
        self._python_env = python_env
        self.max_tasks = max_tasks
        self.preload = preload
        self._initializer = initializer
        self._seen: tuple[str, list[str], dict[bytes, bytes], bool] = ("", [], {}, False)
        self._orders: dict[tuple[Any, ...], protocol.Prepare] = {}
        self._numbers = itertools.count(1)

    def order(self, options: TaskOptions, start: str) -> protocol.Prepare:
        """What is now, for tasks with these options that are started in this way."""
        variables = processes.variables()
        directory = os.getcwd()
        managers = "multiprocessing.managers" in sys.modules
        if self._seen != (directory, sys.path, variables, managers):
            self._seen = (directory, list(sys.path), dict(variables), managers)
            self._orders = {}
        read = protocol.START_VARIABLES
        changes = tuple(pair for pair in options.env if pair[0].startswith(read)) if options.env else ()
        python_env = options.python_env or self._python_env
        found = self._orders.get((start, changes, python_env))
        if found is None:
            found = self._orders[start, changes, python_env] = self._make(start, changes, python_env)
        return found

    def _make(
        self, start: str, changes: tuple[tuple[str, str | None], ...], python_env: PythonEnv
    ) -> protocol.Prepare:
        directory, path, variables, _ = self._seen  # and not what another thread makes of them meanwhile
        if not is_text(directory):
            raise OptionValueError(f"the working directory {directory!r} has a name that is not UTF-8: go elsewhere")
        env = _changed({os.fsdecode(name): os.fsdecode(text) for name, text in variables.items()}, changes)
        raw = {name: text for name, text in env.items() if not (is_text(name) and is_text(text))}
        return protocol.Prepare(
            environment=next(self._numbers), python=python_env.command, start=start, max_tasks=self.max_tasks,
            cwd=directory, path=[each for each in python_env.path(path) if is_text(each)],
            prologue=python_env.prologue or "", shell=python_env.shell, foreign=python_env.python is not None,
            env={name: text for name, text in env.items() if name not in raw},
            raw=[(os.fsencode(name), os.fsencode(text)) for name, text in raw.items()], preload=self.preload,
            initializer=self._initializer, authkey=_authkey(), argv=[each for each in sys.argv if is_text(each)],
            version=platform.python_version(),
        )  # fmt: skip


def _changed(env: dict[str, str], changes: tuple[tuple[str, str | None], ...]) -> dict[str, str]:
    """The environment with these variables set, or without them."""
    changed: dict[str, str | None] = {**env, **dict(changes)}
    return {name: text for name, text in changed.items() if text is not None}


def _authkey() -> bytes | None:
    """The key by which managers of multiprocessing know their clients, if there are any: proxies may be arguments."""
    return bytes(multiprocessing.current_process().authkey) if "multiprocessing.managers" in sys.modules else None
