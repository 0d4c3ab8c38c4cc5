"""What a task may ask for: its name, environment, directory, output, limits, retries, resources and dependencies.

Users write options as it suits them (``time_limit="1m 10s"``, ``env={...}``, ``cwd=Path("run")``).
``make_options`` turns that into one ``TaskOptions``, whose fields have one form each, and refuses what makes
no sense where it is written, not an hour later in a queue. Everything relative is resolved here, since the
task runs elsewhere.
"""

from __future__ import annotations

import operator
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeAlias

from executor.attempts import read_crash_limit, read_lost, read_memory_on_oom, read_retries
from executor.core.needs import ONE_CPU, Needs
from executor.core.retries import NO_RETRIES, Retries
from executor.dependencies import Dependency, read_after
from executor.errors import OptionTypeError, OptionValueError
from executor.files import OutputFile, Places, check_names, read_output_file, read_places
from executor.python_env import PythonEnv
from executor.quantities import parse_duration, parse_size
from executor.refusals import did_you_mean, read_named, shown
from executor.resources import RESOURCE_OPTIONS, change_variants
from worker_agent.launchers import BRACED, KNOWN, PLACEHOLDERS
from worker_agent.protocol import StreamTo

__all__ = [
    "CAPTURE", "DEVNULL", "FORWARD", "OPTIONS", "Destination", "Environment", "Stream", "TaskOptions",
    "make_options", "parse_duration", "parse_size", "unknown_option",
]  # fmt: skip


class Stream(Enum):
    """Where a task's stdout or stderr goes, if not to a file."""

    #: nowhere
    DEVNULL = "devnull"
    #: kept on the future, and shown nowhere
    CAPTURE = "capture"
    #: kept on the future, and shown on the same stream of the submitter
    FORWARD = "forward"
    #: added to the stream files of the task's agent
    STREAM = "stream"


DEVNULL: Final = Stream.DEVNULL
CAPTURE: Final = Stream.CAPTURE
FORWARD: Final = Stream.FORWARD

#: A stream, or the absolute path of a file, which may be one that goes if the task ends well.
Destination: TypeAlias = Stream | str | OutputFile
#: Changes to the environment, sorted by name; None unsets the variable. Pairs, so that options can be hashed
#: and pickled.
Environment: TypeAlias = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How one task runs. Values are final and not checked again: make it with :func:`make_options`."""

    #: for logs, errors and displays; None: one is made from the function or the program
    name: str | None = None
    #: changes to the environment that the task would have had
    env: Environment = ()
    #: the absolute working directory; None: that of the submitter
    cwd: str | None = None
    stdout: Destination = FORWARD
    stderr: Destination = FORWARD
    #: the directory for the stream files of those of the two that are Stream.STREAM; None: none is
    stream: StreamTo | None = None
    #: seconds that one attempt may run; None: no limit
    time_limit: float | None = None
    #: how often a task that failed by itself is tried again, by the class of its failure
    retries: Retries = NO_RETRIES
    #: how often a task whose agent was lost is tried again; 0: one that has started never starts again
    crash_limit: int = 5
    #: bytes of each stream that are kept on the future: the first half and the last half of it
    output_limit: int = 4 * 1024**2
    #: what it needs; if there are several, any one will do, the earlier the better
    variants: tuple[Needs, ...] = (ONE_CPU,)
    #: the larger, the earlier
    priority: int = 0
    #: how it is bound to its CPUs: "taskset", "omp", or not at all
    pin: str | None = None
    #: whether it is ended when it uses more memory than it asked for
    enforce_memory: bool = True
    #: by how much the memory request grows when it is tried again after it was out of memory; None: not at all
    memory_on_oom: float | None = None
    #: what it waits for
    after: tuple[Dependency, ...] = ()
    #: whether each attempt has a private directory, HPC_TASK_DIR, that goes when it has ended
    task_dir: bool = False
    #: of a program: what is put into its private directory, in which it runs then; and what is taken from there
    inputs: Places = ()
    outputs: Places = ()
    #: the Python that runs it, and its prologue; None: the executor's
    python_env: PythonEnv | None = None
    #: what starts its ranks: a name or a path, or words with placeholders; none: the agent picks one
    launcher: tuple[str, ...] = ()


def make_options(base: TaskOptions, /, **changes: object) -> TaskOptions:
    """``base`` with ``changes``, checked and in their final form; ``base`` and the values stay as they are.

    :param name: str, or None.
    :param env: a mapping of str to str, or to None, which unsets the variable. It is merged over
        ``base.env``: new names are added, old ones replaced. ``env=None`` forgets the changes of ``base``.
    :param cwd: a directory (str or PathLike); relative to the directory of this process at this moment.
    :param stdout, stderr: a file (str, PathLike or :class:`OutputFile`, relative as above), ``DEVNULL``,
        ``CAPTURE`` or ``FORWARD``, or ``subprocess.DEVNULL`` and ``subprocess.PIPE`` (the same as ``CAPTURE``).
    :param stream: a directory (str or PathLike, relative as above), or None. What would be forwarded is added to one
        file there for each agent, see :mod:`executor.jobs.stream`; a ``stdout`` or ``stderr`` beside it stays.
    :param time_limit: seconds or text, more than zero, see :func:`parse_duration`; None for no limit.
    :param retries: int, 0 or more, or a mapping of such to classes of failures, see :mod:`executor.attempts`.
    :param crash_limit: int, 0 or more, or "never-restart" (0), or "unlimited".
    :param output_limit: bytes or text, see :func:`parse_size`.
    :param cpus, gpus, memory, resources, time_request, nodes, ranks: see :mod:`executor.resources`. They are merged by
        name over what ``base`` needs, in each of its variants; ``Resources`` replace all.
    :param priority: int.
    :param pin: "taskset", "omp" or None.
    :param enforce_memory: bool.
    :param memory_on_oom: a factor, more than 1, or None.
    :param python_env: a :class:`~executor.python_env.PythonEnv`, or None.
    :param launcher: what starts the ``ranks``: "srun", "mpirun", "mpiexec" or "flux", or the path of one of these; or a
        list of words, the program first, in which ``{ranks}``, ``{nodes}``, ``{ranks_per_node}``, ``{hosts}`` and
        ``{hostfile}`` are replaced; or None.
    :param after: futures, or a mapping of conditions to futures, see :mod:`executor.dependencies`.
    :param task_dir: bool.
    :param inputs, outputs: mappings of names in the directory of a program to paths (str or PathLike, relative
        as above).
    :raises OptionTypeError: an option that does not exist, or a value of a wrong type.
    :raises OptionValueError: a value of a right type that makes no sense.
    """
    final: dict[str, object] = {}
    resources = {}
    for name, value in changes.items():
        if name in _READERS:
            final[name] = _read(base, name, value)
        elif name in RESOURCE_OPTIONS:
            resources[name] = value
        else:
            raise unknown_option(name, OPTIONS)
    if "stream" in changes:
        final.update(_streamed(base, final))
    if "retries" in changes:
        final.update(_lost(changes))
    if "inputs" in final or "outputs" in final:
        _check_names(base, final)
    if resources:
        final["variants"] = change_variants(base.variants, resources)
    return replace(base, **final)  # type: ignore[arg-type]  # the readers have checked them


def _read(base: TaskOptions, name: str, value: object) -> object:
    # An environment holds passwords: its reader itself says what is wrong in it.
    final = read_named(name, _READERS[name], value, secret=name == "env")
    return _merged(base.env, final) if name == "env" else final


def _streamed(base: TaskOptions, final: Mapping[str, object]) -> dict[str, object]:
    """A stream has what would be forwarded; one that is taken away gives it back."""
    old, new = (FORWARD, Stream.STREAM) if final["stream"] is not None else (Stream.STREAM, FORWARD)
    return {name: new for name in ("stdout", "stderr") if name not in final and getattr(base, name) is old}


def _check_names(base: TaskOptions, final: Mapping[str, Any]) -> None:
    try:
        check_names(final.get("inputs", base.inputs), final.get("outputs", base.outputs))
    except ValueError as error:
        raise OptionValueError(str(error)) from None


def _lost(changes: Mapping[str, object]) -> dict[str, object]:
    """What ``retries`` says about lost agents: it is the same as ``crash_limit``."""
    lost = read_lost(changes["retries"])
    if lost is not None and "crash_limit" in changes:
        raise OptionValueError(
            f"option crash_limit={shown(changes['crash_limit'])}: retries={shown(changes['retries'])} says the same "
            "by 'lost'; give it once"
        )
    return {} if lost is None else {"crash_limit": lost}


def unknown_option(name: str, known: Iterable[str]) -> OptionTypeError:
    """The error for an option ``name`` that does not exist; it names the nearest and all of ``known``."""
    names = list(known)
    hint = did_you_mean(name, names, _SYNONYMS) or "."
    return OptionTypeError(f"there is no option {name!r}{hint} The options are: {', '.join(names)}")


#: Words of other tools. By its letters alone, "timeout" would be nearest to "stdout".
_SYNONYMS = {
    "cores": "cpus",
    "dependencies": "after",
    "depends_on": "after",
    "deps": "after",
    "dir": "cwd",
    "directory": "cwd",
    "input_files": "inputs",
    "output_files": "outputs",
    "sandbox": "task_dir",
    "scratch": "task_dir",
    "environment": "env",
    "max_retries": "retries",
    "mem": "memory",
    "min_time": "time_request",
    "mpi": "ranks",
    "n_nodes": "nodes",
    "ncpus": "cpus",
    "np": "ranks",
    "ntasks": "ranks",
    "threads": "cpus",
    "timeout": "time_limit",
    "variants": "resources",
    "walltime": "time_limit",
    "workdir": "cwd",
}


# ---- one reader for each option: the value in its final form, or TypeError or ValueError with what was expec


def _read_priority(value: object) -> int:
    expected = "expected a whole number, such as 10 or -1; larger ones go first"
    if isinstance(value, bool):
        raise TypeError(expected)
    try:
        return operator.index(value)  # type: ignore[arg-type]  # NumPy's integers are welcome
    except TypeError:
        raise TypeError(expected) from None


def _read_pin(value: object) -> str | None:
    expected = "expected 'taskset', 'omp' or None"
    if value is not None and not isinstance(value, str):
        raise TypeError(expected)
    if value not in (None, "taskset", "omp"):
        raise ValueError(expected)
    return value


def _read_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("expected True or False")
    return value


def _read_name(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError("expected text (str), or None; convert it with str()")
    if value is not None and (not value or "\0" in value):
        raise ValueError("expected text that is not empty, without NUL; None has a name made for you")
    return None if value is None else str(value)


def _read_env(value: object) -> Environment | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        kind = type(value).__name__
        raise TypeError(
            f"expected a mapping of names to text, such as {{'OMP_NUM_THREADS': '1'}}, not {kind}"
        )
    return tuple(_read_variable(name, text) for name, text in value.items())


def _read_variable(name: object, text: object) -> tuple[str, str | None]:
    if not isinstance(name, str):
        raise TypeError(f"the name {shown(name)} of a variable is not text; convert it with str()")
    if not name or "=" in name or "\0" in name:
        raise ValueError(
            f"the name {shown(name)} of a variable is empty or has '=' or NUL in it; choose another one"
        )
    if text is not None and not isinstance(text, str):
        kind = type(text).__name__
        raise TypeError(f"the value of {name!r} is of type {kind}, not text; use str(), or None to unset it")
    if not is_text(name) or not is_text(text or ""):
        raise ValueError(f"the variable {shown(name)} or its value is not UTF-8 text, and cannot be sent")
    if text is not None and "\0" in text:
        raise ValueError(
            f"the value of {name!r} has a NUL character in it, which no environment can hold; remove it"
        )
    return str(name), None if text is None else str(text)


def is_text(word: str) -> bool:
    """Whether it can be sent as text; file names and variables of other encodings cannot."""
    return word.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in word)


def _merged(old: Environment, new: object) -> Environment:
    if not isinstance(new, tuple):
        return ()
    return tuple(sorted({**dict(old), **dict(new)}.items()))


def _read_path(value: object, expected: str = "expected a path (str or os.PathLike)") -> str:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(expected)
    path = os.fsdecode(value)
    if not path or "\0" in path or not is_text(path):
        raise ValueError(f"{expected} that is not empty, is UTF-8 and has no NUL character")
    return _absolute(path)


def _absolute(path: str) -> str:
    try:
        # Not os.path.abspath: it shortens "link/../file" to "file", which is another file if link is a
        # symbolic link.
        return str(Path(path).absolute())
    except FileNotFoundError:
        raise ValueError(
            "the path is relative, but the current directory no longer exists; give an absolute path"
        ) from None


def _read_cwd(value: object) -> str | None:
    return None if value is None else _read_path(value, "expected a directory (str or os.PathLike), or None")


def _read_python_env(value: object) -> PythonEnv | None:
    if value is None or isinstance(value, PythonEnv):
        return value
    raise TypeError("expected PythonEnv(python=..., prologue=...), or None for that of the executor")


_LAUNCHER_HELP = f"expected {', '.join(map(repr, KNOWN))}, or the path of one, a list of words, or None"


def _read_launcher(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise TypeError(_LAUNCHER_HELP)
    if not words or not words[0] or any("\0" in word or not is_text(word) for word in words):
        raise ValueError(f"{_LAUNCHER_HELP}; the words are not empty, are UTF-8 and have no NUL character")
    if len(words) == 1 and os.path.basename(words[0]) not in KNOWN:
        example = [words[0], "-n", "{ranks}", "--hostfile", "{hostfile}"]
        raise ValueError(f"{_LAUNCHER_HELP}. Of others, say how they are used: launcher={example}")
    _check_placeholders(words)
    return tuple(words)


def _check_placeholders(words: Iterable[str]) -> None:
    for name in (match[1] for word in words for match in BRACED.finditer(word)):
        if name not in PLACEHOLDERS:
            hint = did_you_mean(name, PLACEHOLDERS) or "."
            known = ", ".join(f"{{{each}}}" for each in PLACEHOLDERS)
            raise ValueError(f"there is no {{{name}}}{hint} There are: {known}")


def _read_stream(value: object) -> StreamTo | None:
    if value is None or isinstance(value, StreamTo):  # of a job: it knows the task's numbers, too
        return value
    return StreamTo(_read_path(value, "expected a directory (str or os.PathLike), or None"))


_DESTINATION_HELP = "expected a file (str, os.PathLike or OutputFile), DEVNULL, CAPTURE or FORWARD"


def _read_destination(value: object) -> Destination:
    if isinstance(value, Stream) and value is not Stream.STREAM:
        return value
    if isinstance(value, OutputFile):
        return read_output_file(value, _read_path)
    if isinstance(value, int) and not isinstance(value, bool):
        return _read_subprocess_constant(value)
    return _read_path(value, _DESTINATION_HELP)


def _read_subprocess_constant(value: int) -> Stream:
    if value == subprocess.STDOUT:
        raise ValueError(
            f"{_DESTINATION_HELP}; to mix both streams, let a shell do it: Program(['sh', '-c', '... 2>&1'])"
        )
    known = {subprocess.DEVNULL: DEVNULL, subprocess.PIPE: CAPTURE}
    if value not in known:
        raise TypeError(
            f"{_DESTINATION_HELP}; the task runs elsewhere and cannot have a file descriptor of this process"
        )
    return known[value]


def _read_time_limit(value: object) -> float | None:
    seconds = None if value is None else parse_duration(value)
    if seconds == 0:
        raise ValueError("expected more than zero; None means that there is no limit")
    return seconds


_READERS: dict[str, Callable[[object], object]] = {
    "name": _read_name,
    "env": _read_env,
    "cwd": _read_cwd,
    "stdout": _read_destination,
    "stderr": _read_destination,
    "stream": _read_stream,
    "time_limit": _read_time_limit,
    "retries": read_retries,
    "crash_limit": read_crash_limit,
    "output_limit": parse_size,
    "priority": _read_priority,
    "pin": _read_pin,
    "enforce_memory": _read_bool,
    "memory_on_oom": read_memory_on_oom,
    "after": read_after,
    "python_env": _read_python_env,
    "task_dir": _read_bool,
    "inputs": lambda value: read_places(value, _read_path),
    "outputs": lambda value: read_places(value, _read_path),
    "launcher": _read_launcher,
}
assert {*_READERS, "variants"} == {field.name for field in fields(TaskOptions)}, "each option has one reader"
#: The names of all options.
OPTIONS: Final = (*_READERS, *RESOURCE_OPTIONS)
