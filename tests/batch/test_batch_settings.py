"""Settings from hpc-executor.toml, and what is refused of batch jobs before anything is submitted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from executor import BatchArray, BatchJob, HPCExecutor, Job, JobError, JobFileError, get_scheduler, submit_natively
from executor.batch.settings import FILE
from executor.cluster_settings import find_cluster
from executor.clusters import Slurm

SETTINGS = """
[defaults]
time = "1h"
account = "physics"

[types.gpu]
gpus = 1
cpus = 2
queue = "gpu"
modules = ["cuda/12.0"]
cluster = "big"

[clusters.big]
type = "slurm"
queue = "main"
account = "site"
nodes = [0, 4]
poll = "30s"
omit = ["--mem"]
directives = ["--constraint=avx512"]
prologue = "export SITE=big"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: one of a repository."""
    (tmp_path / "project" / ".git").mkdir(parents=True)
    (tmp_path / "project" / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "project" / "deep")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "hpc-executor").mkdir(parents=True)
    return tmp_path / "project"


def test_a_job_has_what_its_kind_says_and_what_is_said_besides(project: Path) -> None:
    (project / FILE).write_text(SETTINGS)
    job = BatchJob.from_config("gpu", command="train", cpus=8)
    assert (job.time, job.account, job.gpus, job.cpus, job.queue) == ("1h", "physics", 1, 8, "gpu")
    assert BatchJob.from_config(command="train").gpus is None
    script = BatchJob.from_config("gpu", command="train", memory="1GiB", queue=None).script()
    assert "#SBATCH --partition=main\n" in script  # the cluster's, since the job has none
    assert "#SBATCH --account=physics\n" in script
    assert "#SBATCH --constraint=avx512\n" in script
    assert "--mem" not in script
    assert script.index("export SITE=big") < script.index("module load cuda/12.0") < script.index("\ntrain\n")


def test_what_the_project_says_counts_more_than_what_the_user_says(project: Path, tmp_path: Path) -> None:
    (tmp_path / "config" / "hpc-executor" / FILE).write_text('[types.big]\ncpus = 4\nqueue = "long"\n')
    (project / FILE).write_text("[types.big]\ncpus = 64\n")
    job = BatchJob.from_config("big", command="true")
    assert (job.cpus, job.queue) == (64, "long")


def test_no_file_above_the_repository_is_read(project: Path, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("nonsense")
    assert BatchJob.from_config(command="true").cpus is None


def test_a_file_that_somebody_else_has_put_there_is_not_read(project: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root may give a file away")
    (project / FILE).write_text('[defaults]\nprologue = "evil"\n')
    os.chown(project / FILE, 65534, 65534)
    with pytest.raises(PermissionError, match="belongs to neither you nor the owner of its directory"):
        BatchJob.from_config(command="true")


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("[default]\n", 1, "default", "did you mean 'defaults'"),
        ("[types.gpu]\n\ncpu = 4\n", 3, "types.gpu.cpu", "did you mean 'cpus'"),
        ("[defaults]\nmem = '1GiB'\n", 2, "defaults.mem", "did you mean 'memory'"),
        ("[defaults]\ncpus = 'four'\n", 2, "defaults.cpus", "cpus='four': expected a whole number"),
        ("[defaults]\ntime = '10:30'\n", 2, "defaults.time", "hours and minutes, or minutes and seconds"),
        ("[defaults\n", 1, "", "this is no TOML"),
        ("types = 3\n", 1, "types", "expected a table"),
    ],
)
def test_what_makes_no_sense_in_a_file_is_told_with_its_place(
    project: Path, text: str, line: int, key: str, words: str
) -> None:
    (project / FILE).write_text(text)
    with pytest.raises(JobFileError) as e:
        BatchJob.from_config("gpu" if "types" in text else None, command="true")
    assert (e.value.file, e.value.line, e.value.key) == (str(project / FILE), line, key)
    assert words in str(e.value)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("nodes = 3", 1, "it has no type"),
        ('type = "slurn"', 2, "did you mean 'slurm'"),
        ('type = "slurm"\nnode = 3', 3, "did you mean 'nodes'"),
        ('type = "slurm"\nnodes = [3, 1]', 3, "expected how many at most"),
        ('type = "slurm"\ntime = "soon"', 3, "expected seconds"),
    ],
)
def test_a_cluster_that_makes_no_sense_is_told_with_its_place(project: Path, text: str, line: int, words: str) -> None:
    (project / FILE).write_text(f"[clusters.big]\n{text}\n")
    with pytest.raises(JobFileError, match=words) as e:
        find_cluster("big")
    assert e.value.line == line


def test_an_executor_has_its_cluster_by_name(project: Path) -> None:
    (project / FILE).write_text(SETTINGS)
    with pytest.raises(ValueError, match=r"no \[clusters.bog\].*did you mean 'big'"):
        HPCExecutor(cluster="bog")
    executor = HPCExecutor(cluster=["big", Slurm(nodes=1)])
    first, second = executor._clusters
    assert (first.nodes, first.queue, second.queue) == ((0, 4), "main", None)
    executor.shutdown()


def test_without_settings_there_are_no_kinds(project: Path) -> None:
    with pytest.raises(ValueError, match=r"no \[types.gpu\] in the settings. No hpc-executor.toml has any"):
        BatchJob.from_config("gpu", command="true")
    with pytest.raises(TypeError, match="needs a command"):
        BatchJob.from_config()


def test_a_scheduler_is_found_by_its_command_and_never_guessed(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no cluster or batch system 'slrum'; did you mean 'slurm'"):
        get_scheduler("slrum")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LookupError, match="no batch system: none of .*sbatch"):
        BatchJob("true").submit()
    (tmp_path / "sbatch").touch(0o700)
    assert get_scheduler().name == "slurm"
    assert (get_scheduler("slurm").poll, get_scheduler("slurm", poll="1m").poll) == (10.0, 60.0)


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"command": ""}, "expected a command"),
        ({"command": []}, "expected a command"),
        ({"command": ["ls", 1]}, "expected shell text, or a list"),
        ({"cpus": 0}, "cpus=0: expected 1 or more"),
        ({"cpus": True}, "cpus=True: expected a whole number or None"),
        ({"nodes": None}, "nodes=None: expected a whole number"),
        ({"memory": "much"}, "memory='much': "),
        ({"time": "90"}, "time='90': .* write '90s'"),
        ({"modules": "cuda"}, "modules='cuda': expected a list"),
        ({"env": {"A": 1}}, "env: expected a mapping"),
        ({"env": {"A B": "1"}}, "env: 'A B' is no name"),
        ({"dependencies": "17"}, "dependencies='17': expected a list"),
        ({"dependencies": [1.5]}, "neither the handle of a batch job nor an id"),
        ({"dependency_type": "afterokay"}, "did you mean 'afterok'"),
        ({"stdout": ""}, "stdout='': expected text that is not empty"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused_where_it_is_written(options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        BatchJob(**{"command": "true", **options})


def test_what_is_changed_later_is_checked_when_it_is_submitted(project: Path) -> None:
    job = BatchJob("true")
    job.cpus = -1
    with pytest.raises(ValueError, match="cpus=-1"):
        job.submit("local")


@pytest.mark.parametrize(
    ("stdout", "array", "words"),
    [
        ("%{JOB}", False, r"local does not fill in %\{JOB\}"),
        ("%{TASK_ID}", False, "this is no array"),
        ("out", True, r"put %\{TASK_ID\} into it"),
        ("%{JOB_ID}/out", False, "only the file's name"),
    ],
)
def test_a_path_that_cannot_be_is_refused(project: Path, stdout: str, array: bool, words: str) -> None:
    job = BatchJob("true", stdout=stdout)
    with pytest.raises(ValueError, match=words):
        (BatchArray(job, 1, 2) if array else job).submit("local")


def test_an_array_needs_numbers_that_make_sense() -> None:
    with pytest.raises(ValueError, match="from 3 to 1"):
        BatchArray(BatchJob("true"), 3, 1)


# ---- graphs of programs


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"retries": 2, "priority": 1}, "retries, priority: no batch system has that"),
        ({"cpus": 0.5}, "cpus=0.5: expected a whole number"),
        ({"resources": {"fpga": 1}}, "resources: no batch system"),
    ],
)
def test_what_only_an_executor_can_do_is_refused(project: Path, options: dict[str, Any], words: str) -> None:
    job = Job()
    job.program(["true"], name="first", **options)
    with pytest.raises(JobError, match=f"first cannot be a batch job: {words}"):
        submit_natively(job, "local")


def test_functions_are_refused_before_anything_is_submitted(project: Path, tmp_path: Path) -> None:
    job = Job()
    first = job.program(["true"])
    job.function(print, name="tell", deps=[first])
    with pytest.raises(
        JobError, match="tell cannot be a batch job: it is a function, and a batch system runs programs"
    ):
        submit_natively(job, "local")
    assert not (tmp_path / "state").exists()


def test_a_graph_of_programs_runs_in_its_order(project: Path) -> None:
    job = Job(env={"WHO": "world", "HOME": None})
    first = job.program(["sh", "-c", "cat > word"], stdin="it's\n", name="write", id=7)
    many = job.array(
        ["sh", "-c", 'echo "$HQ_TASK_ID $HQ_ENTRY $WHO ${HOME-unset}" > $HQ_ENTRY'], ids="3-4", entries=["a b", "c"],
        deps=[first], max_concurrent=1,
    )  # fmt: skip
    job.program(["sh", "-c", "cat word [ac]*"], deps=[many], stdout="job-%{JOB_ID}/%{TASK_ID}.txt", time_limit="1m")
    handles = submit_natively(job, "local")
    assert list(handles) == [7, 3, 8]
    assert handles[8].wait(60).name == "COMPLETED"
    text = (project / "deep" / "job-1" / "8.txt").read_text()
    assert text.splitlines()[0] == "it's"
    assert sorted(text.splitlines()[1:]) == ["3 a b world unset", "4 c world unset"]
    for handle in handles.values():
        handle.wait(60)
