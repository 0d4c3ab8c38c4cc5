"""The records of a stream file: what many tasks printed, one after the other, in a file that only grows.

    file     MAGIC, a record of kind FILE, then records of any kinds, in the order of what happened
    record   a head of 48 bytes, then its data

    head     sum      4 bytes  CRC-32 of the rest of the head
             length   4 bytes  of the data
             kind     1 byte   what the data is: see Kind; readers skip what they do not know
             stream   1 byte   the descriptor, 1 or 2, of output; else 0
             -        6 bytes
             job      8 bytes  0: the task is of no job
             task     8 bytes  its number: in the job or, without one, in the executor
             attempt  8 bytes  the larger, the later
             time     8 bytes  seconds since the epoch, by the agent's clock: a float

Numbers are little-endian. The head tells where the next record begins, so that nobody has to read the data to get
there. A file has one writer, which adds each record by one write and cuts off what it could write in part only. Should
it be killed meanwhile, the file ends with less than a record: that, and only that, is no damage.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import Final, NamedTuple

#: What a stream file begins with; the last byte but one is the version of the format.
MAGIC: Final = b"\x89HPCstr\x01\n"
#: How the name of a stream file ends.
SUFFIX: Final = ".stream"

_SUM = struct.Struct("<I")
_REST = struct.Struct("<IBB6xQQQd")
HEAD_SIZE: Final = _SUM.size + _REST.size


class Kind(IntEnum):
    """What the data of a record is."""

    #: JSON: the run (of one executor) and the host that it is of
    FILE = 1
    #: the attempt starts; its task's name, or nothing
    START = 2
    #: output
    OUTPUT = 3
    #: the attempt has ended: a word of :mod:`worker_agent.protocol` and, if there is one, the return code
    END = 4


class Head(NamedTuple):
    """The head of a record, without its sum."""

    length: int
    kind: int
    stream: int
    job: int
    task: int
    attempt: int
    time: float


def pack(
    kind: Kind, data: bytes, time: float, *, stream: int = 0, job: int = 0, task: int = 0, attempt: int = 0
) -> bytes:
    """A whole record."""
    rest = _REST.pack(len(data), kind, stream, job, task, attempt, time)
    return _SUM.pack(zlib.crc32(rest)) + rest + data


def unpack_head(raw: bytes) -> Head | None:
    """The head that these ``HEAD_SIZE`` bytes are; None: they are none."""
    (expected,) = _SUM.unpack_from(raw)
    rest = raw[_SUM.size :]
    return Head._make(_REST.unpack(rest)) if zlib.crc32(rest) == expected else None
