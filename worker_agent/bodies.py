"""Outcomes of calls as bytes: written in the task's interpreter, read on the submitter's side.

Standard library and cloudpickle only. A body is

    0x00 pickle                          a small outcome
    0x03 JSON                            None, a bool, an int or a float: to read it runs nobody's code
    0x01 length JSON pickle              JSON: [[path, size], ...] of the out-of-band buffers
    0x02 length JSON                     the same, and the first entry is the pickle itself
    0x04 path                            a file that holds the body, too large for a message

with the value as the pickle if the call returned, and else one of the tuples of :func:`describe_error`.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import traceback
from typing import Any

from worker_agent import descriptors, store

#: What the body of a plain value begins with.
PLAIN = b"\3"
#: What a body begins with that lies in a file.
ELSEWHERE = b"\4"
#: Bytes of a body in a message; it may have the names of very many buffers.
BODY_LIMIT = descriptors.MESSAGE_LIMIT // 2

#: What bodies begin with that hold all that there is: no files.
INLINE = frozenset({b"\0", PLAIN})
#: What bodies begin with that name files.
WITH_FILES = frozenset({b"\1", b"\2", ELSEWHERE})

_CONSTANTS = {None: PLAIN + b"null", True: PLAIN + b"true", False: PLAIN + b"false"}
#: What any reader of JSON takes for an int.
_INTS = range(-(2**63), 2**64)
#: Files whose frames do not belong into the traceback of a task.
_OURS = frozenset({__file__, *(os.path.join(os.path.dirname(__file__), each) for each in ("runner.py", "rank.py"))})


def load(payload: Any, buffers: list[tuple[str, int]]) -> Any:
    """Unpickle a payload: bytes, or the ``(path, size)`` of a stored one; ``buffers`` are mapped, not copied."""
    if not buffers and isinstance(payload, bytes):
        return pickle.loads(payload)
    mapped = [store.map_file(path, size) for path, size in buffers]
    if isinstance(payload, bytes):
        return pickle.loads(payload, buffers=mapped)
    with open(payload[0], "rb") as file:
        return pickle.load(file, buffers=mapped)


def load_body(body: bytes) -> Any:
    """The value of a whole body; its files stay."""
    if body[:1] == PLAIN:
        return json.loads(body[1:])
    if body[:1] in INLINE:
        return pickle.loads(memoryview(body)[1:])
    files = files_of(body)
    if body[:1] == b"\2":
        return load(files[0], files[1:])
    return load(pickle_of(body), files)


def dump_value(value: Any, stores: list[str]) -> tuple[bool, bytes]:
    """The body for a result; if it cannot be pickled, the body for the error that says so."""
    plain = _plain(value)
    if plain is not None:
        return True, plain
    try:
        return True, _dump(value, stores)
    except BaseException as error:
        return False, _dump(describe_unpicklable(value, error), stores)


def describe_unpicklable(value: Any, error: BaseException) -> tuple[str, ...]:
    """What is sent for a result that cannot be pickled: ``("unpicklable", type, reason, traceback)``."""
    text = f"{type(value).__module__}.{type(value).__qualname__}"
    return "unpicklable", text, f"{type(error).__name__}: {safe_str(error)}", format_error(error)


def _plain(value: Any) -> bytes | None:
    """The body of a plain value; None if it is something else."""
    kind = type(value)
    if kind is int:
        return PLAIN + repr(value).encode() if value in _INTS else None
    if kind is float:
        return PLAIN + repr(value).encode() if value - value == 0.0 else None  # not for inf and nan
    return _CONSTANTS[value] if value is None or kind is bool else None


def _dump(value: Any, stores: list[str]) -> bytes:
    import cloudpickle

    spill = store.Spill(stores)
    buffers: list[Any] = []
    kept: list[tuple[str, int]] = []
    try:
        cloudpickle.Pickler(spill, protocol=5, buffer_callback=store.keep_small_in_band(buffers)).dump(value)
        kept.extend(store.store(buffer, stores) for buffer in buffers)
    except BaseException:
        spill.discard()
        for path, _ in kept:
            store.remove(path)
        raise
    spill.close()
    body = _frame(spill, kept)
    return body if len(body) <= BODY_LIMIT else ELSEWHERE + store.store(body, stores)[0].encode()


def _frame(spill: store.Spill, kept: list[tuple[str, int]]) -> bytes:
    if spill.path is not None:
        names = json.dumps([(spill.path, spill.size), *kept]).encode()
        return b"\2" + struct.pack("<I", len(names)) + names
    if kept:
        names = json.dumps(kept).encode()
        return b"\1" + struct.pack("<I", len(names)) + names + spill.inline()
    return b"\0" + spill.inline()


def whole(body: bytes) -> bytes:
    """The body itself, if it was too large for a message and lies in a file; that is removed."""
    if body[:1] != ELSEWHERE:
        return body
    path = body[1:].decode()
    with open(path, "rb") as file:
        data = file.read()
    store.remove(path)
    return data


def files_of(body: bytes) -> list[tuple[str, int]]:
    """The files that belong to a whole body: their paths and sizes. Raises ValueError if it is garbled."""
    if body[:1] in INLINE:
        return []
    try:
        named = [(path, size) for path, size in json.loads(body[5 : _names_end(body)])]
    except (struct.error, TypeError, RecursionError) as error:
        raise ValueError(f"an outcome of {len(body)} bytes is garbled: {error}") from error
    if not all(isinstance(path, str) and type(size) is int and size >= 0 for path, size in named):
        raise ValueError(f"an outcome of {len(body)} bytes names files that are none")
    return named


def with_files(body: bytes, files: list[tuple[str, int]]) -> bytes:
    """The same body with its files elsewhere."""
    names = json.dumps(files).encode()
    return body[:1] + struct.pack("<I", len(names)) + names + pickle_of(body)


def pickle_of(body: bytes) -> bytes:
    """What stands behind the names of the files."""
    return body[_names_end(body) :]


def _names_end(body: bytes) -> int:
    return 5 + int(struct.unpack_from("<I", body, 1)[0])


def dump_error(error: BaseException, stores: list[str]) -> bytes:
    """The body for an exception. It never raises."""
    return dump_description(describe_error(error), stores)


def dump_description(description: tuple[Any, ...], stores: list[str]) -> bytes:
    """The body for what :func:`describe_error` or :func:`describe_unpicklable` gave. It never raises."""
    try:
        return _dump(description, stores)
    except BaseException as trouble:
        return b"\0" + pickle.dumps(("remote", str(description[-3]), f"(not sent: {trouble!r})", ""), 5)


def describe_error(error: BaseException) -> tuple[Any, ...]:
    """What is sent for an exception: itself if it survives pickling, else its type and text; always the traceback.

    ``("error", pickled exception, type, text, traceback)`` or ``("remote", type, text, traceback)``.
    """
    text = format_error(error)
    add_hint(error)
    try:
        import cloudpickle

        pickled = cloudpickle.dumps(error, protocol=5)
        if isinstance(pickle.loads(pickled), BaseException):
            return "error", pickled, type(error).__qualname__, safe_str(error), text
    except BaseException:  # noqa: S110  whatever the exception's own code does here, its text is sent instead
        pass
    return "remote", type(error).__qualname__, safe_str(error), text


def format_error(error: BaseException) -> str:
    """The traceback as text, without our own frames at its top; never raises."""
    try:
        frames = error.__traceback__
        while frames is not None and frames.tb_next is not None and frames.tb_frame.f_code.co_filename in _OURS:
            frames = frames.tb_next
        return "".join(traceback.format_exception(type(error), error, frames))
    except BaseException as trouble:
        return f"(the traceback of {type(error).__name__} cannot be formatted: {type(trouble).__name__})"


def safe_str(error: BaseException) -> str:
    """``str(error)``, or a placeholder if that raises."""
    try:
        return str(error)
    except BaseException as trouble:
        return f"(its text cannot be had: {type(trouble).__name__})"


def add_hint(error: BaseException) -> None:
    """Tell where a module was looked for."""
    if isinstance(error, ModuleNotFoundError):
        error.add_note(
            f"{error.name!r} was looked for on host {os.uname().nodename} in {sys.path!r}. Install it there, or pass "
            "the code by value: cloudpickle.register_pickle_by_value(module)."
        )
