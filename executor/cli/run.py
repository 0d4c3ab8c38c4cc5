"""``hpc-executor run``: a job file, or a program, to its end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from executor import HPCExecutor
from executor.cli.program import Wishes, make_job, read_crash_limit, read_pairs, status_of
from executor.cli.progress import Silence, make_progress
from executor.cli.running import Run
from executor.cli.saying import FAILED, refuse, refusing, say
from executor.cli.summary import render_error, tell_end, write_ended, write_job
from executor.cli.tally import Tally
from executor.errors import ProgramFailed
from executor.jobs.job import Job

#: Where the command keeps the words behind "--".
WORDS: Final = "hpc-executor.words"
_PANEL: Final = "The program after --"


class RunCommand(TyperCommand):
    """A command that leaves all words behind the first ``--`` as they are: they are a program's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take them away before the options are read."""
        if "--" in args:
            position = args.index("--")
            ctx.meta[WORDS] = args[position + 1 :]
            args = args[:position]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, _: Any) -> list[str]:
        """What stands behind "Usage:"."""
        return ["[OPTIONS]", "FILE.toml | -- PROGRAM ARGS..."]


def _program(metavar: str, text: str) -> Any:
    return typer.Option(metavar=metavar, help=text, rich_help_panel=_PANEL)


def _flag(name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel=_PANEL)


def _array(metavar: str, text: str) -> Any:
    return typer.Option(metavar=metavar, help=text, rich_help_panel="Many tasks of that program")


def run(
    ctx: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    max_workers: Annotated[
        int | None, typer.Option(metavar="N", help="Tasks with one CPU that run at a time; default: all CPUs.")
    ] = None,
    resources: Annotated[
        list[str] | None, typer.Option(metavar="NAME=AMOUNT", help="What this machine has beyond what is found.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="NAME", help="It runs there: a cluster of hpc-executor.toml.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; what fails is told all the same.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="On stdout an object for each task that ends, and one for the job.")
    ] = False,
    name: Annotated[str | None, _program("TEXT", "Its name, for displays.")] = None,
    cpus: Annotated[str | None, _program("AMOUNT", "CPUs: 2, 0.5, all. Default: 1.")] = None,
    gpus: Annotated[str | None, _program("AMOUNT", "GPUs: 1, 0.5, all.")] = None,
    memory: Annotated[str | None, _program("SIZE", "Memory: 500MB, 8GiB, all.")] = None,
    resource: Annotated[list[str] | None, _program("NAME=AMOUNT", "Anything else it needs: fpga=1.")] = None,
    time_limit: Annotated[str | None, _program("TIME", "It is ended after: 90s, 10m, 01:30:00.")] = None,
    time_request: Annotated[str | None, _program("TIME", "Its agent has to live so long at least.")] = None,
    nodes: Annotated[int | None, _program("N", "So many whole agents.")] = None,
    ranks: Annotated[int | None, _program("N", "So many processes, started by mpirun, srun or the like.")] = None,
    launcher: Annotated[str | None, _program("WORDS", "What starts the ranks: srun, 'mpirun -n {ranks}'.")] = None,
    priority: Annotated[int | None, _program("N", "The larger, the earlier.")] = None,
    retries: Annotated[int | None, _program("N", "So many more tries if it fails.")] = None,
    crash_limit: Annotated[
        str | None, _program("N", "So many more tries if its agent is lost; or never-restart, unlimited.")
    ] = None,
    cwd: Annotated[str | None, _program("DIR", "Its directory. Default: this one.")] = None,
    env: Annotated[list[str] | None, _program("NAME=VALUE", "A variable in its environment.")] = None,
    stdin: Annotated[bool, _flag("--stdin", "It reads what we get on stdin.")] = False,
    stdout: Annotated[str | None, _program("FILE", "Its stdout goes to a file; none: nowhere.")] = None,
    stderr: Annotated[str | None, _program("FILE", "Its stderr goes to a file; none: nowhere.")] = None,
    pin: Annotated[str | None, _program("HOW", "It is bound to its CPUs: taskset, omp.")] = None,
    array: Annotated[str | None, _array("IDS", "A task for each number: 1-100, 0-98:2, 1,2,7.")] = None,
    each_line: Annotated[Path | None, _array("FILE", "A task for each line, which is in its HQ_ENTRY.")] = None,
    max_fails: Annotated[int | None, _array("N", "When more than N have failed, the rest is aborted.")] = None,
    max_concurrent: Annotated[int | None, _array("N", "So many run at a time, at most.")] = None,
) -> None:
    """Run a job file, or a program, to the end.

    A program shows its output as it comes. Of many tasks, output goes to files: job-N/TASK.stdout and .stderr.

    Ctrl-C ends the tasks with grace; once more: at once.

    The exit status is 0 if all tasks ended well, 1 if not, 2 for bad input, 130 after Ctrl-C; of a program its own.

    \b
    Examples:
      hpc-executor run study.toml
      hpc-executor run --cluster big study.toml
      hpc-executor run --cpus 4 --memory 8GiB --time-limit 2h -- ./simulate case.inp
      hpc-executor run --array 1-100 --max-concurrent 10 -- sh -c './step $HQ_TASK_ID'
      hpc-executor run --each-line cases.txt --max-fails 3 -- sh -c './solve "$HQ_ENTRY"'
      hpc-executor run --json study.toml | jq 'select(.state == "failed")'
    """
    said = {
        "name": name, "cpus": cpus, "gpus": gpus, "memory": memory, "resources": resource, "time_limit": time_limit,
        "time_request": time_request, "nodes": nodes, "ranks": ranks, "launcher": launcher, "priority": priority,
        "retries": retries,
        "crash_limit": crash_limit, "cwd": cwd, "env": env, "stdout": stdout, "stderr": stderr, "pin": pin,
    }  # fmt: skip
    wishes = Wishes(array, each_line, stdin, max_fails, max_concurrent, files=json)
    argv = ctx.meta.get(WORDS)
    with refusing():
        options = {key: _read(key, value) for key, value in said.items() if value}
        job = _read_file(words, wishes, options) if argv is None else _read_program(words, argv, wishes, options)
        job.check()
        pairs = read_pairs("--resources", resources or (), "fpga=2")
        executor = HPCExecutor(max_workers, resources=pairs or None, cluster=cluster)
    shows_output = argv is not None and not wishes.is_array and not json
    raise typer.Exit(_run_shown(executor, job) if shows_output else _run_job(executor, job, quiet=quiet, json=json))


# ---- reading the command line


def _read(option: str, value: Any) -> Any:
    """Words to what the option of this name takes."""
    if option == "env":
        return read_pairs("--env", value, "OMP_NUM_THREADS=1")
    if option == "resources":
        return read_pairs("--resource", value, "fpga=1")
    if option == "launcher":
        return shlex.split(value)
    return read_crash_limit(value) if option == "crash_limit" else value


def _read_program(words: Sequence[str] | None, argv: list[str], wishes: Wishes, options: Mapping[str, Any]) -> Job:
    if words:
        raise ValueError(f"{words[0]!r} and a program after '--': run a file, or a program")
    if not argv:
        raise ValueError("there is no program after '--'; write: hpc-executor run -- PROGRAM ARGS")
    return make_job(argv, wishes, options)


def _read_file(words: Sequence[str] | None, wishes: Wishes, options: Mapping[str, Any]) -> Job:
    if not words:
        raise ValueError("nothing to run; write: hpc-executor run FILE.toml, or: hpc-executor run -- PROGRAM ARGS")
    if len(words) > 1 or not words[0].endswith(".toml"):
        raise ValueError(f"{words[0]!r} is no FILE.toml; a program is written so: run -- {' '.join(words)}")
    if options or wishes != Wishes(files=wishes.files):
        raise ValueError("options of tasks are for programs after '--'; in a job file, write them into the file")
    return Job.from_file(words[0])


# ---- running


def _run_job(executor: HPCExecutor, job: Job, *, quiet: bool, json: bool) -> int:
    crowded = json and sys.stdout.isatty()  # a bar and objects would be in each other's way
    running = Run(executor, job, make_progress(quiet or crowded), write_ended if json else _ignore)
    tally = _to_end(running)
    if tally is None:
        return _interrupted(running)
    name = job.name or "job"
    well = tally.counts["finished"] == tally.total
    status = running.status() or (0 if well else FAILED)
    tell_end(name, tally, quiet=quiet)
    if json:
        write_job(name, tally, status)
    return status


def _run_shown(executor: HPCExecutor, job: Job) -> int:
    """A single program: its output is all that there is to see, and a nonzero status speaks for itself."""
    running = Run(executor, job, Silence(), _ignore)
    tally = _to_end(running)
    if tally is None or running.interrupted is not None:
        return _interrupted(running)
    (future,) = tally.submitted
    error = future.exception()
    if error is not None and not (isinstance(error, ProgramFailed) and error.returncode > 0):
        say(f"hpc-executor: {render_error(error)}", "red")
    return status_of(future)


def _ignore(tally: Tally, ended: list[int]) -> None:
    """Nobody wants to know."""


def _to_end(running: Run) -> Tally | None:
    # What its submission refuses is wrong with the job: more than any agent has, an option that makes no sense.
    try:
        return running.to_end()
    except (ValueError, TypeError) as error:
        refuse(error)
    except BrokenProcessPool as error:  # no agent can be started, and the text says why
        say(f"hpc-executor: {error}", "red")
        raise typer.Exit(FAILED) from None


def _interrupted(running: Run) -> int:
    say("all tasks have been ended", "yellow")
    return running.status()
