"""Running the commands of batch systems: with a time limit, in English, in a process group of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

from executor.batch.system import Answer, BatchSystem, Command
from executor.errors import BatchCommandFailed

#: Seconds that a command may take. A controller that is busy takes long; one that is away, for ever.
PATIENCE = 30.0


def run(command: Command, system: BatchSystem, patience: float = PATIENCE) -> Answer:
    """What the command gives. One that cannot be started, or does not end within ``patience`` seconds, gives that."""
    env = {**system.environment(os.environ), "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            command.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
            start_new_session=True, text=True, errors="replace",
        )  # fmt: skip
    except OSError as error:
        return Answer(127, "", f"{command.argv[0]} cannot be started: {error.strerror}")
    with process:
        try:
            stdout, stderr = process.communicate(command.stdin, patience)
        except subprocess.TimeoutExpired:
            _kill(process)
            return Answer(None, "", f"{command.argv[0]} has not ended within {patience:g} s")
    return Answer(process.returncode, stdout, stderr)


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def render_failure(command: Command, answer: Answer) -> str:
    """What was run, how it ended, and what it said."""
    how = "did not answer" if answer.returncode is None else f"ended with status {answer.returncode}"
    return f"{' '.join(command.argv)} {how}: {answer.text or 'and said nothing'}"


def command_failed(command: Command, answer: Answer, what: str = "") -> BatchCommandFailed:
    """The error that says what was run, and what came of it; ``what`` stands before that."""
    attributes = {"command": command.argv, "returncode": answer.returncode, "output": answer.text}
    return BatchCommandFailed(what + render_failure(command, answer), **attributes)
