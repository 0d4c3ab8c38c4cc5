"""``hpc-executor submit``: a program, an array of it, or the programs of a job file, as batch jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import typer

from executor.batch.array import BatchArray, BatchArrayHandle
from executor.batch.handle import BatchHandle
from executor.batch.job import BatchJob
from executor.batch.native import submit_natively
from executor.cli.program import read_pairs
from executor.cli.run import WORDS
from executor.cli.saying import FAILED, refusing, say, write_json
from executor.errors import BatchCommandFailed
from executor.jobs.ids import parse_ids
from executor.jobs.job import Job

Done = TypeVar("Done")

SchedulerName = Annotated[
    str | None,
    typer.Option(
        "--scheduler", metavar="NAME", help="A cluster of hpc-executor.toml, or slurm, sge, pbs, flux, local."
    ),
]


def _asked(metavar: str, text: str) -> Any:
    return typer.Option(metavar=metavar, help=text, rich_help_panel="What the program needs")


def submit(
    ctx: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    scheduler: SchedulerName = None,
    kind: Annotated[
        str | None, typer.Option("--type", metavar="NAME", help="With the settings [types.NAME] of hpc-executor.toml.")
    ] = None,
    script: Annotated[bool, typer.Option("--script", help="Print what would be submitted; nothing is.")] = False,
    json: Annotated[bool, typer.Option("--json", help="On stdout an object for each job.")] = False,
    name: Annotated[str | None, _asked("TEXT", "Its name; default: the program's.")] = None,
    cpus: Annotated[int | None, _asked("N", "CPUs for each rank.")] = None,
    gpus: Annotated[int | None, _asked("N", "GPUs for each node.")] = None,
    memory: Annotated[str | None, _asked("SIZE", "Memory for each node: 500MB, 8GiB.")] = None,
    nodes: Annotated[int | None, _asked("N", "How many nodes; default: 1.")] = None,
    time: Annotated[str | None, _asked("TIME", "How long it may run: 90s, 10m, 01:30:00.")] = None,
    queue: Annotated[str | None, _asked("NAME", "The queue or partition.")] = None,
    account: Annotated[str | None, _asked("NAME", "Who pays for it.")] = None,
    module: Annotated[list[str] | None, _asked("NAME", "A module that is loaded; may be repeated.")] = None,
    workdir: Annotated[str | None, _asked("DIR", "Its directory; default: this one.")] = None,
    stdout: Annotated[str | None, _asked("FILE", "Its stdout; default: NAME-%{JOB_ID}.out.")] = None,
    stderr: Annotated[str | None, _asked("FILE", "Its stderr; default: where stdout goes.")] = None,
    env: Annotated[list[str] | None, _asked("NAME=VALUE", "A variable; may be repeated.")] = None,
    after: Annotated[list[str] | None, _asked("ID", "A job that has to end first; may be repeated.")] = None,
    dependency_type: Annotated[
        str | None, _asked("HOW", "How those have to end: afterok, afterany, afternotok.")
    ] = None,
    directive: Annotated[list[str] | None, _asked("TEXT", "An option of the batch system, as it stands.")] = None,
    array: Annotated[
        str | None, _asked("FIRST-LAST", "A task for each number, which is in its HPC_ARRAY_INDEX.")
    ] = None,
    max_concurrent: Annotated[int | None, _asked("N", "Of an array so many run at a time.")] = None,
) -> None:
    """Submit a program, or the programs of a job file, as batch jobs; prints their ids.

    They are the batch system's, and go on when this command has ended.

    The exit status is 0, 1 if the batch system refuses it, 2 for bad input.

    \b
    Examples:
      hpc-executor submit --cpus 4 --memory 8GiB --time 2h -- ./simulate case.inp
      hpc-executor submit --type gpu --script -- python train.py
      hpc-executor submit --array 1-100 -- sh -c './step $HPC_ARRAY_INDEX'
      hpc-executor submit --scheduler local study.toml
    """
    options = {
        "name": name, "cpus": cpus, "gpus": gpus, "memory": memory, "nodes": nodes, "time": time, "queue": queue,
        "account": account, "modules": module, "workdir": workdir, "stdout": stdout, "stderr": stderr,
        "dependencies": after, "dependency_type": dependency_type, "directives": directive,
    }  # fmt: skip
    with refusing():
        said: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
        if env:
            said["env"] = read_pairs("--env", env, "OMP_NUM_THREADS=1")
        what = _read(ctx.meta.get(WORDS), words or [], kind, said, array, max_concurrent)
        if script:
            typer.echo(_script(what, scheduler), nl=False)
            return
        handles = _submit(what, scheduler, kind)
    for handle in handles:
        _tell(handle, json=json)


def _read(
    argv: list[str] | None, words: Sequence[str], kind: str | None, options: dict[str, Any], array: str | None,
    max_concurrent: int | None,
) -> Job | BatchJob | BatchArray:  # fmt: skip
    if argv is None:
        return _read_file(words, options, array)
    if words or not argv:
        raise ValueError("expected a program behind '--', or FILE.toml; write: hpc-executor submit -- PROGRAM ARGS")
    job = BatchJob.from_config(kind, command=argv, **options)
    if array is None:
        if max_concurrent is not None:
            raise ValueError("--max-concurrent is about an array; say --array as well, or leave it out")
        return job
    numbers = parse_ids(array)
    if list(numbers) != list(range(numbers[0], numbers[-1] + 1)):
        raise ValueError(f"--array {array}: expected numbers in a row, such as 1-100")
    return BatchArray(job, numbers[0], numbers[-1], max_concurrent or 0)


def _read_file(words: Sequence[str], options: dict[str, Any], array: str | None) -> Job:
    if len(words) != 1 or not words[0].endswith(".toml"):
        raise ValueError("nothing to submit; write: hpc-executor submit FILE.toml, or: submit -- PROGRAM ARGS")
    if options or array:
        raise ValueError("what a program needs is said for programs after '--'; in a job file, write it into the file")
    return Job.from_file(words[0])


def _script(what: Job | BatchJob | BatchArray, scheduler: str | None) -> str:
    if isinstance(what, Job):
        raise ValueError("--script shows one script; a job file has one for each task")
    return _with_lookup(lambda: what.script(scheduler))


def _submit(
    what: Job | BatchJob | BatchArray, scheduler: str | None, kind: str | None
) -> list[BatchHandle | BatchArrayHandle]:
    try:
        if isinstance(what, Job):
            return _with_lookup(lambda: list(submit_natively(what, scheduler, kind=kind).values()))
        return _with_lookup(lambda: [what.submit(scheduler)])
    except BatchCommandFailed as error:
        say(f"hpc-executor: {error}", "red")
        raise typer.Exit(FAILED) from None


def _with_lookup(work: Callable[[], Done]) -> Done:
    """Without a batch system the command line makes no sense."""
    try:
        return work()
    except LookupError as error:
        raise ValueError(f"{error.args[0]}; say it with --scheduler") from None


def _tell(handle: BatchHandle | BatchArrayHandle, *, json: bool) -> None:
    kept = handle.submission
    if json:
        write_json({
            "id": kept.id, "scheduler": kept.scheduler, "name": kept.name, "stdout": kept.stdout,
            "stderr": kept.stderr or kept.stdout, "tasks": kept.tasks,
        })  # fmt: skip
    else:
        typer.echo(kept.id)
