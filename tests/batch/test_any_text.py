"""Any text in a request is asked for as it is meant, or refused; any text in an answer is read, or not understood."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from executor.batch.flux import FluxSystem
from executor.batch.grid_engine import GridEngineSystem
from executor.batch.pbs import PBSSystem, TorqueSystem
from executor.batch.request import JobRequest
from executor.batch.slurm import SlurmSystem
from executor.batch.system import Answer, BatchSystem

pytestmark = pytest.mark.shared

SYSTEMS = [
    SlurmSystem(), GridEngineSystem(pe="mpi", memory_resource="h_vmem"), PBSSystem(), TorqueSystem(), FluxSystem(),
]  # fmt: skip

# ---- how they read scripts, each as its manual says


def read_head(script: str, sentinel: str) -> list[str]:
    """Slurm and PBS: up to the first line that is neither empty nor a comment."""
    options = []
    for line in script.split("\n"):
        if line.startswith(sentinel):
            options.append(line.removeprefix(sentinel).strip())
        elif line.strip() and not line.lstrip().startswith("#"):
            break
    return options


def read_all(script: str) -> list[str]:
    """Grid Engine: every line of the script, as was tried."""
    return [line[2:].strip() for line in script.split("\n") if line.startswith("#$")]


def read_flux(script: str) -> list[str]:
    """RFC 36: a tag behind anything that is no word, in any line; one behind the first command is an error."""
    lines = script.split("\n")
    tagged = [number for number, line in enumerate(lines) if re.match(r"^([^\w]*)(flux|FLUX):", line)]
    assert tagged == list(range(1, len(tagged) + 1))
    return [lines[number].partition(":")[2].strip() for number in tagged]


def split_grid_engine(option: str) -> list[str]:
    """As was tried: # begins a comment, quotes hold together, and vanish wherever they stand."""
    return [
        re.sub("[\"']", "", each) for each in re.findall(r"(?:[^\s\"']|\"[^\"]*\"|'[^']*')+", option.partition("#")[0])
    ]


def split_pbs(option: str) -> list[str]:
    """Both quotes hold together, and there is no way to write one within itself."""
    words = re.findall(r"\"[^\"]*\"|'[^']*'|\S+", option)
    return [each[1:-1] if each[0] in "\"'" else each for each in words]


READ: dict[str, Callable[[str], list[str]]] = {
    "slurm": lambda script: read_head(script, "#SBATCH"),
    "sge": read_all,
    "pbs": lambda script: read_head(script, "#PBS"),
    "torque": lambda script: read_head(script, "#PBS"),
    "flux": read_flux,
}
SPLIT: dict[str, Callable[[str], list[str]]] = {
    "slurm": shlex.split,
    "sge": split_grid_engine,
    "pbs": split_pbs,
    "torque": split_pbs,
    "flux": lambda option: shlex.split(option, comments=True),
}

# ---- what goes to them

PIECES = st.sampled_from([
    "a", "/", " ", "\n", "\r", "\t", "\0", '"', "'", "\\", "#", "$", "`", ",", ":", "%", "=", "ä", "\u2028", "-",
    '"""', "'''",
    "\n#SBATCH --x", "#SBATCH", "\n#$ -N x", "#$ -N x", "\n#PBS -N x", "#PBS", "\n# flux: -N9", "flux: -N9",
])  # fmt: skip
TEXT = st.lists(PIECES | st.text(max_size=3), max_size=6).map("".join)
PATHS = st.none() | TEXT.map(lambda text: f"/{text}")
REQUESTS = st.builds(
    JobRequest, command=TEXT, name=TEXT, queue=PATHS, account=PATHS, workdir=PATHS, stdout=PATHS, stderr=PATHS,
    prologue=TEXT, env=st.dictionaries(st.sampled_from(["A", "B"]) | TEXT, TEXT, max_size=2),
    dependencies=st.lists(PATHS.filter(bool), max_size=2).map(tuple),
)  # fmt: skip


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
@given(request=REQUESTS)
@example(request=JobRequest("#SBATCH --x\n#PBS -N x\ntrue"))
def test_a_script_has_the_options_that_are_meant_and_no_others(system: BatchSystem, request: JobRequest) -> None:
    try:
        script = system.script(request)
    except ValueError:
        return
    found = READ[system.name](script)
    assert found == [option.strip() for option in system.options(request)]
    words = [SPLIT[system.name](option) for option in found]
    for value in (request.queue, request.account, request.workdir, request.stdout, request.stderr):
        if value is not None and system.name in ("slurm", "flux"):
            assert any(len(each) == 1 and each[0].partition("=")[2] == value for each in words)
    if system.name in ("sge", "pbs", "torque"):
        assert all(len(each) <= 2 or each[0] == "-pe" for each in words)
        for value in (request.queue, request.account, request.stderr):
            assert value is None or any(each[-1].removeprefix(":") == value.removeprefix(":") for each in words)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
@given(request=REQUESTS)
def test_a_scripts_body_is_the_one_that_was_asked_for(system: BatchSystem, request: JobRequest) -> None:
    try:
        script = system.script(request)
    except ValueError:
        return
    assert script.endswith(f"\n{request.command}\n")


# ---- what comes from them

ANSWERS = st.sampled_from([
    "JobState=FAILED", "ExitCode=9:9", "Restarts=x", "1|1|RUNNING|x|n", "1|FAILED|7:0|n1|None", "|", "<job_info>",
    "<job_list><JB_job_number>1</JB_job_number><state>qw</state><tasks>1-9999999:1</tasks></job_list>", "</job_info>",
    "failed 0", "exit_status 137", "end_time Sun Nov 22 03:32:44 2026", "====", "\n", " ", "\t", "9" * 20,
    "Job Id: 1", "    job_state = F", "    Exit_status = -29", "1[].x n u 0 R q", "1[3] n u 0 Z q",
    "f1|INACTIVE|COMPLETED|0|n|",
])  # fmt: skip
SAID = st.lists(ANSWERS | st.text(max_size=5), max_size=12).map("".join)
ANY = st.builds(Answer, st.sampled_from([0, 1, 35, 153, None, -9]), SAID, SAID)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
@example(answer=Answer(0, "JobState=FAILED Restarts=x"), other=Answer(0), job="1")
@example(answer=Answer(0, "JobState=FAILED1|1|RUNNING|x|n"), other=Answer(0), job="1")
@given(answer=ANY, other=ANY, job=st.sampled_from(["1", "1[]", "1.2", "f1", "1_2"]))
def test_no_answer_is_too_strange(system: BatchSystem, answer: Answer, other: Answer, job: str) -> None:
    system.read_id(answer)
    records = system.read_records(answer, [job])
    assert records is None or all(name.startswith(job[:1]) for name in records)
    system.read_ended([answer, other][: len(system.ask_ended(job))], job)
    system.read_cancelled(answer)
    assert isinstance(system.complaints(answer), str)
