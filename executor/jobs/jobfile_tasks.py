"""The keys of a ``[[task]]`` and an ``[array]`` in a job definition file.

Values become what :class:`Job` takes. Options are checked by :func:`~executor.options.make_options`, so that a file may
say what Python code may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from executor.files import OutputFile
from executor.jobs.jobfile_requests import REQUEST_KEYS, read_request
from executor.jobs.placeholders import IN_CWD, IN_OUTPUT
from executor.jobs.toml_tables import (
    Table,
    read_flag,
    read_path,
    read_text,
    read_text_table,
    read_texts,
    read_word,
)
from executor.options import CAPTURE, DEVNULL, FORWARD, TaskOptions, make_options
from executor.program import Program
from executor.refusals import shown

#: Where the output of a task goes if nothing is said about it, and the job has no ``stream``.
DEFAULT_OUTPUT: Final = {
    "stdout": "%{CWD}/job-%{JOB_ID}/%{TASK_ID}.stdout",
    "stderr": "%{CWD}/job-%{JOB_ID}/%{TASK_ID}.stderr",
}
#: The end of a path that says that the file is removed when the task has ended well.
REMOVE: Final = ":rm-if-finished"
#: What ``mode`` says about a file, and what it says where there is none; the latter are ours.
_FILE_MODES = ("none", "rm-if-finished")
STREAM_MODES: Final = {"capture": CAPTURE, "forward": FORWARD, "inherit": None}

# ---- keys: what there is, and what to say about others

_OPTIONS = (
    "env", "cwd", "pin", "task_dir", "time_limit", "priority", "crash_limit", "retries", "memory_on_oom",
    "enforce_memory", "output_limit", "inputs", "outputs", "launcher",
)  # fmt: skip
_BODY = ("name", "command", "stdin", "check", "stdout", "stderr", *_OPTIONS, "request")
TASK_KEYS: Final = ("id", "deps", *_BODY)
ARRAY_KEYS: Final = ("ids", "entries", "max_concurrent", *_BODY)
_OUTPUT_KEYS = ("path", "mode", "on_close")

#: Words of other tools, and slips.
_SYNONYMS = {
    "argv": "command", "args": "command", "cmd": "command", "program": "command", "dependencies": "deps",
    "depends_on": "deps", "directory": "cwd", "workdir": "cwd", "environment": "env", "max_retries": "retries",
    "requests": "request", "timeout": "time_limit", "walltime": "time_limit",
}  # fmt: skip


def _elsewhere(title: str) -> dict[str, str]:
    """What to say about keys of other tables."""
    return {
        **dict.fromkeys(ARRAY_KEYS, "it belongs to [array]"),
        **dict.fromkeys(TASK_KEYS, "it belongs to [[task]]"),
        **dict.fromkeys(("max_fails", "stream"), "it belongs to the job; write it at the top, above all headers"),
        **dict.fromkeys(REQUEST_KEYS, f"it belongs below the header [[{title}.request]]"),
        **dict.fromkeys(
            ("cpus", "gpus", "mem", "memory"), f"write it in resources = {{ ... }}, below [[{title}.request]]"
        ),
    }


# ---- tasks and arrays


def read_task(table: Table, *, streams: bool) -> tuple[Program, dict[str, Any]]:
    """The program of a task or an array; its name and its options.

    :param streams: the job has a ``stream``, for the output about which nothing is said.
    """
    is_array = table.place == ("array",)
    table.check_keys(ARRAY_KEYS if is_array else TASK_KEYS, _SYNONYMS, _elsewhere("array" if is_array else "task"))
    keys = [key for key in ("name", *_OPTIONS) if key in table.values]
    options = {key: table.read(key, partial(_read_option, key), secret=key == "env") for key in keys}
    options.update(_read_outputs(table, streams=streams))
    requests = [read_request(each) for each in table.tables("request")]
    if requests:
        options["resources"] = requests
    _warn(table, options, is_array=is_array)
    return _read_program(table), options


def _read_program(table: Table) -> Program:
    if "command" not in table.values:
        raise table.refuse('it has no command; expected one, such as command = ["echo", "hello"]', "command")
    words = table.read("command", _read_command)
    stdin = table.read("stdin", _read_stdin) if "stdin" in table.values else None
    check = table.read("check", read_flag) if "check" in table.values else True
    return Program(words, stdin=stdin, check=check)


def _read_command(value: Any) -> list[str]:
    words = value.split() if isinstance(value, str) else [] if isinstance(value, list) and not value else None
    if words is not None:
        example = ", ".join(f'"{word}"' for word in words or ["echo", "hello"])
        raise TypeError(f"expected a list, the program first; it is not given to a shell: [{example}]")
    return list(Program(read_texts(value)).argv)


def _read_stdin(value: Any) -> str:
    return str(Program(["cat"], stdin=read_text(value)).stdin)


#: What values are, where ``make_options`` would speak of Python's types.
_FORMS: dict[str, Callable[[Any], Any]] = {
    "name": read_text, "env": read_text_table, "cwd": read_path, "task_dir": read_flag, "enforce_memory": read_flag,
    "inputs": read_text_table, "outputs": read_text_table,
    "pin": lambda value: None if value == "none" else read_word(("none", "omp", "taskset"), value),
}  # fmt: skip


def _read_option(key: str, value: Any) -> Any:
    final = _FORMS[key](value) if key in _FORMS else value
    make_options(TaskOptions(), **{key: final})
    return final


# ---- output


def _read_outputs(table: Table, *, streams: bool) -> dict[str, Any]:
    outputs: dict[str, Any] = {} if streams else dict(DEFAULT_OUTPUT)
    for key in DEFAULT_OUTPUT:
        if isinstance(table.values.get(key), Mapping):
            outputs[key] = _read_output_table(table.table(key))
        elif key in table.values:
            outputs[key] = table.read(key, _read_output)
    return {key: output for key, output in outputs.items() if output is not None}


def _read_output(value: Any) -> Any:
    if value == "none":
        return DEVNULL
    path = read_path(read_text(value).removesuffix(REMOVE))
    return OutputFile(path, True) if path != value else path


def _read_output_table(table: Table) -> Any:
    table.check_keys(_OUTPUT_KEYS, {"file": "path", "name": "path"})
    if "mode" in table.values and "on_close" in table.values:
        raise table.refuse("mode and on_close are two words for one thing; give one of them", "on_close")
    key = "on_close" if "on_close" in table.values else "mode"
    words = _FILE_MODES if "path" in table.values else (*STREAM_MODES, *_FILE_MODES)
    mode = table.read(key, partial(read_word, words)) if key in table.values else "none"
    if mode in STREAM_MODES:
        return STREAM_MODES[mode]
    if "path" not in table.values:
        raise table.refuse(f"it has no path; only the modes {', '.join(STREAM_MODES)} need none", "path")
    path = table.read("path", read_path)
    return OutputFile(path, True) if mode == "rm-if-finished" else path


def _warn(table: Table, options: Mapping[str, Any], *, is_array: bool) -> None:
    """Say what will run, but hardly as it was meant."""
    cwd = options.get("cwd", "")
    table.warn_of_placeholders("cwd", cwd, IN_CWD)
    for key in DEFAULT_OUTPUT:
        output = options.get(key)
        path = output.path if isinstance(output, OutputFile) else output
        if isinstance(path, str):
            table.warn_of_placeholders(key, path, IN_OUTPUT)
            if is_array and "%{TASK_ID}" not in (path if path.startswith("/") else f"{cwd}/{path}"):
                table.warn(f"{key}={shown(path)}: all tasks of the array have this file; put %{{TASK_ID}} into it", key)
