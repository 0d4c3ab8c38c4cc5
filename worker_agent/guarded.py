"""A task whose memory is limited, what was seen of it, and how files of the system are read for that."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Peak:
    """What was seen of a task's memory, in bytes; ``by`` tells who found it beyond its limit: "agent", "kernel", ""."""

    peak: int
    limit: int
    by: str = ""


@dataclass(eq=False, slots=True)
class Guarded:
    """A task that has a limit."""

    pid: int
    limit: int
    #: the variables that its processes have in their environment, as NAME=VALUE
    marks: frozenset[bytes] = frozenset()
    peak: int = 0
    by: str = ""
    told: bool = False
    #: its control group's directory, if it has one
    group: str = ""
    #: its processes, and when they began: pids are used again
    members: dict[int, int | None] = field(default_factory=dict)
    #: the process that it was forked from, if that was not us: we only execute
    template: int = 0
    #: what the sum has too much, when it was last measured, and when that was
    shared: int = 0
    measured: float = 0.0


def field_of(text: bytes, name: bytes) -> int:
    """The first number in the line of this name (``name: 12 kB``), or 0.

    In namespaces ``NSsid`` has several: the first is ours.
    """
    _, found, rest = text.partition(b"\n" + name + b":")
    word = rest[:64].split(None, 1)[0] if found and rest[:64].strip() else b""
    return int(word) if word.isdigit() else 0


def read_file(path: str) -> bytes:
    """A small file; empty if it is gone, or not for us."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return b"".join(iter(lambda: os.read(fd, 65536), b""))
    except OSError:
        return b""
    finally:
        os.close(fd)


def oom_kills(text: bytes) -> int | None:
    """What a file says of processes that the kernel killed for memory, if it does."""
    words = text.split()
    return int(words[words.index(b"oom_kill") + 1]) if b"oom_kill" in words[:-1] else None
