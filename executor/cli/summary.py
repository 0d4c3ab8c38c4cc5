"""What is told of a job that has ended: to people what failed, to scripts everything."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from executor.cli.saying import say, write_json
from executor.cli.tally import Tally, render_counts, render_seconds
from executor.errors import ProgramFailed, describe_end
from executor.jobs.submitted import FailedTask, SubmittedJob

#: So many failures are told in full, and so much of the end of what each wrote to stderr.
MOST_FAILURES: Final = 10
MOST_LINES: Final = 10
_MOST_BYTES: Final = 16 * 1024


def tell_end(name: str, tally: Tally, *, quiet: bool = False) -> None:
    """Tell people how the job ended, and what failed."""
    failed = tally.submitted.failed()
    numbers = sorted(failed)
    for number in numbers[:MOST_FAILURES]:
        for line, style in render_failure(tally.submitted, number, failed[number]):
            say(line, style)
    if len(numbers) > MOST_FAILURES:
        say(f"... and {len(numbers) - MOST_FAILURES:,} more failed; --json tells of all of them", "red")
    well = tally.counts["finished"] == tally.total
    if not (quiet and well):
        say(f"{name}: {render_counts(tally.counts)}, in {render_seconds(tally.seconds())}", "green" if well else "bold")


def render_failure(submitted: SubmittedJob, number: int, failed: FailedTask) -> Iterator[tuple[str, str]]:
    """Lines, each with its style: the task, its error, the end of its stderr, and where its files are."""
    future = submitted.futures[number]
    where = f" on {future.host}" if future.host else ""
    yield f"task {number} {future.name!r} failed{where}: {render_error(failed.error)}", "red"
    yield f"  directory: {failed.cwd}", ""
    for stream, path in (("stdout", failed.stdout), ("stderr", failed.stderr)):
        if path:
            yield f"  {stream}: {path}", ""
    if failed.command:
        yield f"  its output: {failed.command}", ""
    lines = read_end(failed.stderr) if failed.stderr else future.stderr.splitlines()[-MOST_LINES:]
    for line in lines:
        yield f"    {line}", "dim"


def render_error(error: BaseException) -> str:
    """The error as a sentence, and the type of one that is not ours. What stderr has is told below it."""
    if isinstance(error, ProgramFailed):
        return f"the program {error.cmd[0]!r} {describe_end(error.returncode)}"
    text = str(error).partition("\nThe end of its stderr:")[0]
    return text if type(error).__module__.startswith("executor.") else f"{type(error).__name__}: {text}"


def read_end(path: str) -> list[str]:
    """The last lines of a file, or why it cannot be read."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _MOST_BYTES))
            lines = file.read(_MOST_BYTES).decode(errors="replace").splitlines()
    except OSError as error:  # it may be on a disk of another node
        return [f"({error.strerror} here)"]
    return list(deque(lines, MOST_LINES))


def write_ended(tally: Tally, numbers: list[int]) -> None:
    """A line of JSON for each task that has ended."""
    for number in numbers:
        write_json(_task_object(tally.submitted, number))


def _task_object(submitted: SubmittedJob, number: int) -> dict[str, Any]:
    future, state = submitted.futures[number], submitted.state_of(number)
    error = None if future.cancelled() else future.exception()
    usage, paths = future.usage, submitted.paths(number)
    return {
        "kind": "task", "task": number, "name": future.name, "state": state, "host": future.host,
        "attempt": future.attempt, "started": future.started, "ended": future.ended, "returncode": future.returncode,
        "cpu_seconds": usage and round(usage.cpu_time, 6), "max_rss": usage and usage.max_rss,
        "error": error and render_error(error),
        "cwd": paths.cwd, "stdout": paths.stdout, "stderr": paths.stderr, "command": paths.command,
    }  # fmt: skip


def write_job(name: str, tally: Tally, status: int) -> None:
    """The last line of JSON: the job as a whole."""
    counts = {state: count for state, count in tally.counts.items() if count}
    write_json({
        "kind": "job", "name": name, "state": tally.submitted.state, "tasks": tally.total, "counts": counts,
        "seconds": round(tally.seconds(), 3), "status": status, "failed": sorted(tally.submitted.failed()),
    })  # fmt: skip
