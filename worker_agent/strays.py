"""Strays: processes that became the agent's children because the task that started them is gone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from worker_agent import processes
from worker_agent.attempt import State
from worker_agent.programs import Programs, task_marks

#: Seconds that processes which were killed may take to end, before the next attempt of their task may start.
PATIENCE = 0.2
#: The same for the interpreters of a template that has died: they are the tasks themselves, and such a death is rare.
TASKS_PATIENCE = 2.0


class Strays:
    """Finds them among the agent's children, and ends them."""

    def __init__(self, programs: Programs, owns: Callable[[int], bool]) -> None:
        """``owns`` says of a process whether the agent itself has started it."""
        self._children = processes.OwnChildren()
        self._programs = programs
        self._owns = owns

    def kill(self, patience: float = PATIENCE) -> None:
        """End all that there are, and wait until they have ended, but not longer than ``patience`` seconds.

        What a running program started may be our child too (a daemon's double fork): it carries the task's variables
        in its environment, or is in the program's session.
        """
        sessions = {attempt.pid for attempt in self._programs.running_attempts()}
        strays = [pid for pid in self._children.pids() if not self._owns(pid)]
        strays = [pid for pid in strays if not self._belongs_to_running(pid, sessions)]
        processes.kill_all(strays)
        processes.wait_for_ends(strays, patience)

    def _belongs_to_running(self, pid: int, sessions: set[int]) -> bool:
        try:
            if os.getsid(pid) in sessions:
                return True
        except OSError:
            return False
        variables = processes.variables_of(pid)
        for attempt in self._programs.running_attempts():
            if all(mark.encode() in variables for mark in task_marks(attempt.order)):
                return attempt.state is not State.ENDED
        return False


def end_ranks(marks: Sequence[str]) -> None:
    """End all processes of this host that began with all of these variables, whoever their parents are.

    The ranks of a task are children of a launcher's daemon, which goes on if the launcher is killed.
    """
    wanted = {os.fsencode(mark) for mark in marks}
    found = [pid for pid in processes.marked(os.fsencode(marks[0])) if wanted <= set(processes.variables_of(pid))]
    processes.kill_all(found)
    processes.wait_for_ends(found, PATIENCE)
