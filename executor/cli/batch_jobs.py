"""``hpc-executor status|wait|cancel|logs``: batch jobs that were submitted from here."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from executor.batch.array import BatchArrayHandle
from executor.batch.handle import (
    BatchHandle,
    Progress,
    cancel_jobs,
    find_submission,
    followed,
    read_output,
    scheduler_of,
)
from executor.batch.states import JobRecord, JobStatus
from executor.batch.submissions import Submission, find_all
from executor.batch.watch import look
from executor.cli.saying import FAILED, refuse, refusing, say, write_json, write_table
from executor.cli.submit import SchedulerName
from executor.errors import BatchCommandFailed

Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="What submit has printed.")]
AnyIds = Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="What submit has printed; default: all.")]
Json = Annotated[bool, typer.Option("--json", help="On stdout an object for each job.")]

#: By the number of the task; of a job that is no array there is one, without a number.
Records = dict[int | None, JobRecord]


def status(ids: AnyIds = None, scheduler: SchedulerName = None, json: Json = False) -> None:
    """Say how batch jobs are; without ids: all that were submitted in the last 30 days.

    The batch systems are asked once.

    \b
    Examples:
      hpc-executor status
      hpc-executor status --json 4711 | jq -r .status
    """
    with _speaking():
        kept = find_all() if not ids else [find_submission(each, scheduler) for each in ids]
        _tell_all([(each, records) for each, records in _look_at_all(kept)], json=json)


def wait(
    ids: Ids, scheduler: SchedulerName = None, json: Json = False,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Wait no longer than that.")] = None,
) -> None:  # fmt: skip
    """Wait until batch jobs have ended, and say how.

    The exit status is 0 if all have ended well, 1 if not, or not in time.

    \b
    Examples:
      hpc-executor wait 4711
      hpc-executor wait $(hpc-executor submit -- ./simulate)
    """
    with _speaking():
        kept = [find_submission(each, scheduler) for each in ids]
        handles = [_attach(each) for each in kept]
        end = None if timeout is None else time.monotonic() + timeout
        try:
            for handle in handles:
                handle.wait(None if end is None else max(0.0, end - time.monotonic()))
        except TimeoutError:
            late = ", ".join(handle.job_id for handle in handles if not handle.is_complete)
            say(f"hpc-executor: not ended after {timeout:g} s: {late}", "red")
            raise typer.Exit(FAILED) from None
        told = [(handle.submission, _records_of(handle)) for handle in handles]
        _tell_all(told, json=json)
    well = all(record.status is JobStatus.COMPLETED for _, records in told for record in records.values())
    raise typer.Exit(0 if well else FAILED)


def cancel(ids: Ids, scheduler: SchedulerName = None) -> None:
    """Cancel batch jobs.

    \b
    Examples:
      hpc-executor cancel 4711 4712
    """
    with _speaking():
        for here in _by_scheduler([find_submission(each, scheduler) for each in ids]):
            cancel_jobs(scheduler_of(here[0]), [each.id for each in here])


def logs(
    id: Annotated[str, typer.Argument(metavar="ID", help="What submit has printed.")],  # noqa: A002  as it is shown
    scheduler: SchedulerName = None,
    task: Annotated[int | None, typer.Option(metavar="N", help="Of an array: this task.")] = None,
    stderr: Annotated[bool, typer.Option("--stderr", help="What it wrote to stderr.")] = False,
    tail: Annotated[int | None, typer.Option(metavar="N", help="The last N lines only.", min=0)] = None,
) -> None:
    """Print what a batch job has written, also while it runs.

    \b
    Examples:
      hpc-executor logs 4711 --tail 20
      hpc-executor logs 4712 --task 3 --stderr
    """
    with _speaking():
        kept = find_submission(id, scheduler)
        if (task in kept.tasks) != bool(kept.tasks):
            numbers = (
                f"a number from {kept.tasks[0]} to {kept.tasks[-1]}" if kept.tasks else "no number: it is no array"
            )
            raise ValueError(f"--task {task}: job {id} expects {numbers}")
        path = kept.stderr if stderr and kept.stderr is not None else kept.stdout
        typer.echo(read_output(path, tail, task), nl=False)


# ---- asking


def _look_at_all(kept: list[Submission]) -> Iterator[tuple[Submission, Records]]:
    """Each batch system is asked once."""
    progress = {
        (each.scheduler, each.id): {index: Progress(JobRecord(JobStatus.UNKNOWN)) for index in _numbers(each)}
        for each in kept
    }
    for here in _by_scheduler(kept):
        system = scheduler_of(here[0]).system
        look(
            system,
            [
                followed(each, system, one, i)
                for each in here
                for i, one in progress[each.scheduler, each.id].items()
            ],
        )
    for each in kept:
        yield each, {index: one.record for index, one in progress[each.scheduler, each.id].items()}


def _by_scheduler(kept: list[Submission]) -> Iterator[list[Submission]]:
    for name in dict.fromkeys(each.scheduler for each in kept):
        yield [each for each in kept if each.scheduler == name]


def _numbers(kept: Submission) -> list[int | None]:
    return [*kept.tasks] or [None]


def _attach(kept: Submission) -> BatchHandle | BatchArrayHandle:
    make = BatchArrayHandle if kept.tasks else BatchHandle
    return make(kept, scheduler_of(kept))


def _records_of(handle: BatchHandle | BatchArrayHandle) -> Records:
    if isinstance(handle, BatchHandle):
        return {None: handle.record}
    return {index: record for index, record in handle.records.items()}  # noqa: C416  its keys are of a wider type


@contextlib.contextmanager
def _speaking() -> Iterator[None]:
    """What was asked for wrongly is bad input; what a batch system refuses is a failure."""
    try:
        with refusing():
            yield
    except LookupError as error:
        refuse(str(error.args[0]))
    except BatchCommandFailed as error:
        say(f"hpc-executor: {error}", "red")
        raise typer.Exit(FAILED) from None


# ---- telling


def _tell_all(told: list[tuple[Submission, Records]], *, json: bool) -> None:
    if json:
        for kept, records in told:
            write_json(_object(kept, records))
    else:
        write_table(("id", "scheduler", "name", "status", "why"), (_row(kept, records) for kept, records in told))


def _row(kept: Submission, records: Records) -> tuple[str, ...]:
    if not kept.tasks:
        (record,) = records.values()
        return kept.id, kept.scheduler, kept.name, record.status.value, _why(record)
    counts = Counter(record.status.value for record in records.values())
    told = ", ".join(f"{count} {word}" for word, count in counts.items())
    return kept.id, kept.scheduler, kept.name, told, ""


def _why(record: JobRecord) -> str:
    code = f"exit status {record.returncode}" if record.returncode else ""
    return ", ".join(filter(None, [code, record.reason]))


def _object(kept: Submission, records: Records) -> dict[str, Any]:
    about = {"id": kept.id, "scheduler": kept.scheduler, "name": kept.name}
    if not kept.tasks:
        return {**about, **_fields(records[None])}
    return {**about, "tasks": {str(index): _fields(record) for index, record in records.items()}}


def _fields(record: JobRecord) -> dict[str, Any]:
    return {
        "status": record.status.value, "final": record.status.is_final, "returncode": record.returncode,
        "reason": record.reason, "hosts": record.hosts,
    }  # fmt: skip
