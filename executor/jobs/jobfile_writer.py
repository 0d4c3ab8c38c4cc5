"""Jobs as job definition files, in HyperQueue's words as far as it has some.

What no file can say is refused, so that the job that is read back is equal to the one that was written. Options are
written by what they mean: ``cpus=2, memory="1GiB"`` becomes a ``[[task.request]]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any, Protocol

from executor.core.needs import POLICIES, Need, Needs
from executor.core.retries import UNLIMITED, Retries
from executor.errors import JobError
from executor.files import OutputFile
from executor.jobs.ids import render_ids
from executor.jobs.jobfile_tasks import DEFAULT_OUTPUT, REMOVE, STREAM_MODES
from executor.jobs.task import Array, Task, meaning
from executor.jobs.toml_text import render_table
from executor.options import DEVNULL
from executor.program import Program
from executor.quantities import parse_duration
from executor.refusals import shown
from executor.resources import render_amount
from worker_agent.pools import UNIT


class Described(Protocol):
    """What is written: a :class:`Job`, which this module does not know."""

    name: str | None
    max_fails: int | None
    cwd: str | None
    env: dict[str, str | None]
    stream: str | None

    @property
    def tasks(self) -> Sequence[Task]:
        """Its tasks and arrays."""

    def check(self) -> object:
        """Raises JobError if it makes no sense."""


def render_job(job: Described) -> str:
    """The text of the file. Raises JobError for what no file can say."""
    job.check()
    tasks = job.tasks
    numbered = [task.id for task in tasks] != list(range(len(tasks)))
    lines = _render("the job", "", _settings(job))
    for task in tasks:
        _refuse_beside(task, tasks)
        values = _task(task, numbered=numbered, streams=job.stream is not None)
        lines += ["", *_render(task.title, "array" if isinstance(task, Array) else "task", values)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _render(title: str, name: str, values: Mapping[str, Any]) -> list[str]:
    header = {"": "", "task": "[[task]]", "array": "[array]"}[name]
    try:
        return list(render_table(name, {key: each for key, each in values.items() if each is not None}, header=header))
    except ValueError as error:
        raise JobError(f"{title}: {error}") from None


def _settings(job: Described) -> dict[str, Any]:
    _refuse_unset("the job", job.env)
    return {
        "name": job.name, "max_fails": job.max_fails, "cwd": job.cwd, "env": job.env or None, "stream": job.stream,
    }  # fmt: skip


def _refuse_beside(task: Task, tasks: Sequence[Task]) -> None:
    if isinstance(task, Array) and len(tasks) > 1:
        raise JobError(
            f"{task.title} is not alone in its job, and a job file has tasks or one array; write a task for each "
            "element, or two jobs",
            tasks=(task.id,),
        )


# ---- a task; what is None is left out


def _task(task: Task, *, numbered: bool, streams: bool) -> dict[str, Any]:
    program, said = _program_of(task), meaning(task.options)
    outputs = {key: said.pop(key, None) for key in DEFAULT_OUTPUT}
    default = dict.fromkeys(DEFAULT_OUTPUT) if streams else DEFAULT_OUTPUT
    return {
        **(_numbers(task) if isinstance(task, Array) else _number(task, numbered=numbered)),
        "name": task.name, "command": list(program.argv), "stdin": program.stdin,
        "check": None if program.check else False,
        **{key: _output(value) for key, value in outputs.items() if value != default[key]},
        **_options(task, said),
    }  # fmt: skip


def _number(task: Task, *, numbered: bool) -> dict[str, Any]:
    deps = dict.fromkeys(each.id if isinstance(each, Task) else each for each in task.deps)
    return {"id": task.id if numbered else None, "deps": list(deps) or None}


def _numbers(array: Array) -> dict[str, Any]:
    counted = array.entries is not None and list(array.ids) == list(range(len(array.ids)))
    return {
        "ids": None if counted else render_ids(array.ids),
        "entries": array.entries, "max_concurrent": array.max_concurrent,
    }  # fmt: skip


def _program_of(task: Task) -> Program:
    if not isinstance(task.body, Program):
        raise _refusal(task, f"is the function {shown(task.body.fn)}, and a job file has programs only")
    if not isinstance(task.body.stdin, str | None):
        raise _refusal(task, f"has stdin={shown(task.body.stdin)}, and in a job file it can be text (str) only")
    return task.body


def _refusal(task: Task, problem: str) -> JobError:
    return JobError(f"{task.title} {problem}", tasks=(task.id,))


def _options(task: Task, said: Mapping[str, Any]) -> dict[str, Any]:
    """In one order, whatever the one in which they were said."""
    for field, value in said.items():
        if field not in _WRITERS or (value is None and field != "pin"):
            raise _refusal(task, f"has {field}={shown(value)}, which no job file can say; say it to the executor")
    if any(need.name == "mem" for needs in said.get("variants", ()) for need in needs.needs):
        raise _refusal(task, "needs the resource 'mem', which is memory in a job file; call it by another name")
    _refuse_unset(task.title, dict(said.get("env", ())))
    written = {field: write(said[field]) for field, write in _WRITERS.items() if field in said}
    written["request"] = written.pop("variants", None)
    return written


def _refuse_unset(title: str, env: Mapping[str, str | None]) -> None:
    for name, text in env.items():
        if text is None:
            raise JobError(f"{title} unsets the variable {name!r}, which no job file can say; env -u {name} does it")


def _output(value: Any) -> Any:
    """HyperQueue's words for a file, and ours for what is no file."""
    if isinstance(value, OutputFile):
        return {"path": value.path, "on_close": "rm-if-finished"}
    if isinstance(value, str):
        return {"path": value} if value == "none" or value.endswith(REMOVE) else value
    return "none" if value is DEVNULL else {"mode": _MODES[value]}


_MODES = {value: mode for mode, value in STREAM_MODES.items()}


# ---- options as the file has them


def _duration(seconds: float) -> str:
    """Text that means so many seconds, in whole units where that is exact."""
    left = round(seconds * 1000)
    parts = []
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        number, left = divmod(left, length)
        parts += [f"{number}{unit}"] if number else []
    text = " ".join(parts) or "0s"
    return text if parse_duration(text) == seconds else f"{Decimal(repr(seconds)):f}s"


def _retries(retries: Retries) -> int | dict[str, int]:
    counts = asdict(retries)
    if len(set(counts.values())) == 1:
        return retries.exit
    return {kind: count for kind, count in counts.items() if count}


def _crash_limit(limit: int) -> int | str:
    return {0: "never-restart", UNLIMITED: "unlimited"}.get(limit, limit)


def _request(needs: Needs) -> dict[str, Any]:
    amounts = {"mem" if need.name == "memory" else need.name: _amount(need) for need in needs.needs}
    if not needs.nodes:
        amounts.setdefault("cpus", 0)  # where nothing is said, it would be 1
    request = {"resources": amounts} if amounts else {}
    times = {"time_request": _duration(needs.seconds)} if needs.seconds else {}
    counts = {"n_nodes": needs.nodes, "ranks": needs.ranks}
    return {**request, **times, **{key: count for key, count in counts.items() if count}}


def _requests(variants: Sequence[Needs]) -> list[dict[str, Any]]:
    return [_request(each) for each in variants]


def _amount(need: Need) -> int | str:
    if need.amount is None:
        return "all"
    if need.policy != POLICIES[0]:
        return f"{render_amount(need.amount)} {need.policy}"
    return render_amount(need.amount) if need.amount % UNIT else need.amount // UNIT


def _same(value: Any) -> Any:
    return value


#: By field of :class:`TaskOptions`, in the order of the file.
_WRITERS: dict[str, Callable[[Any], Any]] = {
    "env": dict, "cwd": _same, "pin": lambda pin: pin or "none", "task_dir": _same, "time_limit": _duration,
    "priority": _same, "crash_limit": _crash_limit, "retries": _retries, "memory_on_oom": _same,
    "enforce_memory": _same, "output_limit": _same, "inputs": _same, "outputs": _same, "launcher": list,
    "variants": _requests,
}  # fmt: skip
