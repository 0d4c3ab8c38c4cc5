"""The thread that submits and watches allocations, with batch systems that answer what nobody expects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from listener import Listener
from waiting import PATIENCE

from executor.batch.allocator import Allocator, Guard
from executor.batch.request import JobRequest
from executor.batch.slurm import SlurmSystem
from executor.batch.states import JobRecord, JobStatus
from executor.batch.system import Answer, BatchSystem, Command


class Faulty(SlurmSystem):
    """Somebody's adapter, which fails at its first answer of each kind."""

    def __init__(self, method: str) -> None:
        self._method = method

    def _fail_once(self, method: str) -> None:
        if self._method == method:
            self._method = ""
            raise KeyError(f"no such field in {method}")

    def cancel(self, ids: Sequence[str]) -> Command:
        self._fail_once("cancel")
        return super().cancel(ids)

    def read_id(self, answer: Answer) -> str | None:
        self._fail_once("read_id")
        return super().read_id(answer)

    def read_records(self, answer: Answer, ids: Sequence[str]) -> dict[str, JobRecord] | None:
        self._fail_once("read_records")
        return super().read_records(answer, ids)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Commands in PATH, of which ``sbatch`` says what it is told; gives the file with what ``scancel`` was given."""

    def make(sbatch: str) -> Path:
        cancelled = tmp_path / "cancelled"
        for name, text in {
            "sbatch": f"cat > /dev/null; {sbatch}",
            "squeue": "echo '6|6|COMPLETED|None|n1'",
            "scancel": f'echo "$@" >> {cancelled}',
        }.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
            (tmp_path / name).chmod(0o700)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return cancelled

    return make


def allocator_of(system: BatchSystem, listener: Listener) -> Allocator:
    allocator = Allocator([system], 0.05, listener, Guard([system.cancel_named("ours")], []))
    allocator.start()
    allocator.submit(1, system, JobRequest("true"))
    return allocator


def test_an_adapter_that_fails_at_the_answer_to_a_submission_refuses_that_one_only(
    slurm: Callable[[str], Path],
) -> None:
    cancelled = slurm("echo 6")
    system, listener = Faulty("read_id"), Listener()
    allocator = allocator_of(system, listener)
    assert listener.next() == (1, "submitting to slurm failed: KeyError: 'no such field in read_id'")
    allocator.submit(2, system, JobRequest("true"))
    assert listener.next() == (2, "6")
    allocator.close()
    assert "--name=ours" in cancelled.read_text()  # the first one is in the queue, and nobody knows its id


def test_an_adapter_that_fails_at_an_answer_is_asked_again(
    slurm: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    slurm("echo 6")
    listener = Listener()
    allocator = allocator_of(Faulty("read_records"), listener)
    assert listener.next() == (1, "6")
    assert listener.next() == (1, JobRecord(JobStatus.COMPLETED, "COMPLETED", returncode=0, hosts="n1"))
    allocator.close()
    assert "no such field in read_records" in caplog.text


def test_an_adapter_that_fails_to_cancel_keeps_no_other_batch_system_from_it(slurm: Callable[[str], Path]) -> None:
    cancelled, listener = slurm("echo 6"), Listener()
    systems = [Faulty("cancel"), SlurmSystem()]
    allocator = Allocator(systems, PATIENCE, listener, Guard([each.cancel_named("ours") for each in systems], []))
    allocator.start()
    for key, system in enumerate(systems):
        allocator.submit(key, system, JobRequest("true"))
        assert listener.next() == (key, "6")
    allocator.close()
    assert cancelled.read_text() == "6\n"


@pytest.mark.parametrize(
    ("sbatch", "cleared"), [("echo Submitted, with pleasure", True), ("echo refused >&2; exit 1", False)]
)
def test_where_nobody_knows_whether_a_job_was_taken_all_of_our_name_are_cancelled_in_the_end(
    slurm: Callable[[str], Path], sbatch: str, cleared: bool
) -> None:
    cancelled, listener = slurm(sbatch), Listener()
    allocator = allocator_of(SlurmSystem(), listener)
    key, why = listener.next()
    assert key == 1
    assert "sbatch --parsable ended with status" in str(why)
    allocator.close()
    assert cancelled.exists() == cleared
