"""The settings of a task, as its agent is told them: made of its options."""

from __future__ import annotations

import os

import msgspec

from executor.files import OutputFile, make_files
from executor.options import DEVNULL, Destination, Stream, TaskOptions
from worker_agent import protocol

#: No stream is longer: what a message holds as a number.
_MOST_BYTES = 2**62


def make_settings(options: TaskOptions, grace: float) -> protocol.Settings | None:
    """What the options say, if ``grace`` seconds pass between a signal and SIGKILL; None: nothing is said."""
    made = protocol.Settings(
        env=dict(options.env), cwd=options.cwd, stdout=_destination(options.stdout),
        stderr=_destination(options.stderr), time_limit=options.time_limit, grace=grace,
        output_limit=min(options.output_limit, _MOST_BYTES), pin=options.pin or "",
        enforce_memory=options.enforce_memory, stream=_stream(options),
        files=make_files(
            options.task_dir, options.inputs, options.outputs, options.cwd, options.stdout, options.stderr
        ),
        launcher=list(options.launcher),
    )  # fmt: skip
    return None if made == protocol.DEFAULT_SETTINGS else made


def _stream(options: TaskOptions) -> protocol.StreamTo | None:
    """Where stdout and stderr go, those of them that go to stream files."""
    if options.stream is None:
        return None
    stdout, stderr = (destination is Stream.STREAM for destination in (options.stdout, options.stderr))
    if not (stdout or stderr):
        return None
    name = options.stream.name or options.name or ""
    sendable = name.encode(errors="replace").decode()
    return msgspec.structs.replace(options.stream, name=sendable, stdout=stdout, stderr=stderr)


def _destination(destination: Destination) -> str | None:
    if destination is DEVNULL:
        return ""
    if isinstance(destination, OutputFile):
        return os.fspath(destination.path)
    return destination if isinstance(destination, str) else None
