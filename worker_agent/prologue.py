"""Prologues: lines of shell that make an environment, run once on each agent, and what they leave in the variables.

    module load gcc/12              What this prints is kept for the error, should a line fail. The variables that are
    source venv/bin/activate        there at its end are those of all tasks of the environment, programs and functions.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping, Sequence

from worker_agent import processes, protocol

#: Seconds that a prologue may take: file systems of clusters are slow now and then, and some build what they load.
PATIENCE = 600.0
_SAID_LIMIT = 4000
#: Descriptors of the shell: what went wrong, and the variables.
_FAILED, _VARIABLES = 8, 9
#: The shell's own.
_NOT_KEPT = frozenset({"_", "PWD", "OLDPWD", "SHLVL"})

#: Not every shell that is started so knows ``module``; where it comes from is the site's matter.
_MODULES = (
    "if ! type module >/dev/null 2>&1; then "
    "for hpc_file in /etc/profile.d/lmod.sh /etc/profile.d/modules.sh /etc/profile.d/z00_lmod.sh; do "
    'if [ -r "$hpc_file" ]; then . "$hpc_file"; break; fi; done; fi; '
)
#: All of it on one line with the first of the prologue, so that the shell counts lines as their author does.
_TRAP = f"trap 'echo \"$BASH_COMMAND\" >&{_FAILED}' ERR; "
_AFTER = f"/usr/bin/env -0 >&{_VARIABLES}"


class PrologueFailed(Exception):
    """A prologue did not come to its end, or left no such interpreter; the text is for people."""


class Prologue:
    """A prologue that runs."""

    def __init__(self, environment: protocol.Prepare) -> None:
        """Start it. Raises PrologueFailed if there is no such shell."""
        self.environment = environment
        self._overdue = False
        self._said, self._failed, self._variables = (os.memfd_create(name, os.MFD_CLOEXEC) for name in "sfv")
        try:
            self.pid = self._start()
        except OSError as error:
            self._close()
            text = f"the shell {environment.shell!r} of the prologue cannot be started: {error.strerror}"
            raise PrologueFailed(text) from error

    def _start(self) -> int:
        shell, env = self.environment.shell, self.environment.env
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, self._said, 1),
            (os.POSIX_SPAWN_DUP2, self._said, 2),
            (os.POSIX_SPAWN_DUP2, self._failed, _FAILED),
            (os.POSIX_SPAWN_DUP2, self._variables, _VARIABLES),
        ]
        default = [signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD]
        return os.posix_spawnp(
            shell, [shell, "-c", _script(self.environment)], env, file_actions=actions, setsid=True, setsigmask=[],
            setsigdef=default,
        )  # fmt: skip

    def give_up(self) -> None:
        """It takes too long."""
        self._overdue = True
        processes.kill_tree(self.pid, signal.SIGKILL)
        processes.kill_all([self.pid])

    def end(self, returncode: int) -> dict[str, str]:
        """The variables that it leaves. Raises PrologueFailed."""
        try:
            if returncode != 0 or self._overdue:  # a shell whose children are killed first may end well
                raise PrologueFailed(self._why(returncode))
            return _read_variables(_contents(self._variables))
        finally:
            self._close()

    def _why(self, returncode: int) -> str:
        line = _contents(self._failed).decode(errors="replace").strip().partition("\n")[0]
        where = f"at the line {line!r} " if line else ""
        how = f"ended {where}with {f'status {returncode}' if returncode >= 0 else f'signal {-returncode}'}"
        if self._overdue:
            how = f"was killed, as it had not ended after {PATIENCE:g} s"
        said = _contents(self._said)[-_SAID_LIMIT:].decode(errors="replace").strip()
        return f"the prologue of the environment {how}. It printed: {said or '(nothing)'}"

    def _close(self) -> None:
        for fd in (self._said, self._failed, self._variables):
            os.close(fd)


def find_python(python: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """The interpreter with its whole path, as the variables find it. Raises PrologueFailed."""
    found = shutil.which(python[0], path=env.get("PATH", os.defpath))
    if found is None:
        where, host = env.get("PATH", os.defpath), os.uname().nodename
        raise PrologueFailed(f"the interpreter {python[0]!r} is not to be found on {host}, where PATH={where!r}")
    return [found, *python[1:]]


def _script(environment: protocol.Prepare) -> str:
    text = environment.prologue
    modules = _MODULES if "module" in text else ""
    trap = _TRAP if os.path.basename(environment.shell) == "bash" else ""  # other shells have no ERR
    return f"{modules}set -e; {trap}{text}\n{_AFTER}\n"


def _contents(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _read_variables(data: bytes) -> dict[str, str]:
    pairs = (os.fsdecode(entry).partition("=") for entry in data.split(b"\0") if entry)
    return {name: text for name, _, text in pairs if name not in _NOT_KEPT}
