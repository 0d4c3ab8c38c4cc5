"""The functions that the conformance tests submit. Standard library only: each fresh interpreter imports this."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any, NoReturn

greeting = "nobody has called the initializer"
calls = 0


def add(x: int, y: int) -> int:
    return x + y


def capture(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def echo(value: Any) -> Any:
    return value


def length(value: Any) -> int:
    return len(value)


def pass_gate(arrivals: str, tokens: str, value: Any = None) -> Any:
    """Say by its pid that the task has started, wait for a token, return ``value``. The paths are those of a gate."""
    with open(arrivals, "wb", buffering=0) as entry:
        entry.write(b"%d\n" % os.getpid())
    with open(tokens, "rb", buffering=0) as gate:
        gate.read(1)
    return value


def pass_gate_and_note(note: str, arrivals: str, tokens: str, value: Any = None) -> Any:
    """The same, with a line in the file ``note`` before: so many tasks have started."""
    append_line(note, value)
    return pass_gate(arrivals, tokens, value)


def raise_(error: BaseException) -> NoReturn:
    raise error


def raise_with_notes() -> NoReturn:
    error = ValueError("with a note")
    error.add_note("measured on a Tuesday")
    raise error


def raise_group() -> NoReturn:
    raise ExceptionGroup("two at once", [ValueError(1), TypeError(2)])


class FalseyError(Exception):
    """An error that is false where a truth value is asked for."""

    def __bool__(self) -> bool:
        return False


class TwoArgumentsError(Exception):
    """An error that pickles and cannot be rebuilt: its ``__init__`` wants what ``args`` does not hold."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


def raise_two_arguments() -> NoReturn:
    raise TwoArgumentsError(7, "of nine")


def raise_falsey() -> NoReturn:
    raise FalseyError("still an error")


def append_line(path: str, line: Any) -> None:
    with open(path, "a") as file:
        file.write(f"{line}\n")


def greet(text: str) -> None:
    global greeting
    greeting = text


def greeted() -> str:
    return greeting


def refuse() -> NoReturn:
    raise ValueError("error in initializer")


def count_calls() -> tuple[int, int]:
    """The pid, and how often this interpreter was here."""
    global calls
    calls += 1
    return os.getpid(), calls


def kill_myself() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL cannot be survived")


def exit_at_once(status: int) -> NoReturn:
    os._exit(status)


def exit_politely(status: int) -> NoReturn:
    sys.exit(status)


class FailsToPickle:
    def __reduce__(self) -> NoReturn:
        raise ValueError("error in pickle")


class FailsToUnpickle:
    def __reduce__(self) -> tuple[Any, ...]:
        return raise_, (ValueError("error in unpickle"),)


class ExitsAtPickle:
    def __reduce__(self) -> NoReturn:
        sys.exit(1)


class ExitsAtUnpickle:
    def __reduce__(self) -> tuple[Any, ...]:
        return exit_politely, (1,)


class DiesAtPickle:
    def __reduce__(self) -> NoReturn:
        kill_myself()


class DiesAtUnpickle:
    def __reduce__(self) -> tuple[Any, ...]:
        return kill_myself, ()


def make(cls: type) -> Any:
    return cls()


class Marked:
    """Writes a line into ``path`` when the copy of it in a task's interpreter is collected."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.owner = os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.owner:
            append_line(self.path, "collected")


def in_thread() -> str:
    """A task that starts a thread of its own and waits for it."""
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append("from a thread"))
    thread.start()
    thread.join()
    return seen[0]
