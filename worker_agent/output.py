"""The beginning and the end of a stream of bytes, in bounded memory.

    stream   |<---- head ---->|<---------- omitted ---------->|<---- tail ---->|
              streamed at once         seen and forgotten        kept in a ring

The beginning has the first error, the end has the last words; what is between them may be a terabyte.
"""

from __future__ import annotations

__all__ = ["HeadTail", "join_head_tail"]


class HeadTail:
    """Splits a stream into its first bytes, which it gives back at once, and its last bytes, which it keeps.

    ``limit`` is in bytes: the first ``limit // 2`` and the last ``limit - limit // 2``, so that a stream of
    up to ``limit`` bytes is whole. Memory: about the tail, and only as much as came.
    """

    __slots__ = ("_after_head", "_room", "_start", "_tail", "_tail_limit")

    def __init__(self, limit: int, *, head: bool = True) -> None:
        """Without ``head`` all of it is for the end."""
        if limit < 0:
            raise ValueError(f"limit={limit}: expected a number of bytes, 0 or more")
        #: how many bytes the head still takes
        self._room = limit // 2 if head else 0
        self._tail_limit = limit - self._room
        #: grows to the limit, and from then on is a ring whose oldest byte is at ``_start``
        self._tail = bytearray()
        self._start = 0
        self._after_head = 0

    def add(self, data: bytes) -> bytes:
        """Take the next bytes of the stream; returns those of them that belong to the head, often none."""
        head = data[: self._room]
        self._room -= len(head)
        if len(head) < len(data):
            self._keep(data[len(head) :])
        return head

    def tail(self) -> bytes:
        """The last bytes of the stream, without those that :meth:`add` returned."""
        return bytes(self._tail[self._start :] + self._tail[: self._start])

    @property
    def omitted(self) -> int:
        """How many bytes between head and tail are gone."""
        return self._after_head - len(self._tail)

    def _keep(self, data: bytes) -> None:
        self._after_head += len(data)
        last = data[max(0, len(data) - self._tail_limit) :]
        free = self._tail_limit - len(self._tail)
        self._tail += last[:free]
        self._overwrite(last[free:])

    def _overwrite(self, data: bytes) -> None:
        # A ring and not "append, then delete in front": that copies the whole tail every few chunks.
        to_end = data[: self._tail_limit - self._start]
        from_begin = data[len(to_end) :]
        self._tail[self._start : self._start + len(to_end)] = to_end
        self._tail[: len(from_begin)] = from_begin
        if data:
            self._start = (self._start + len(data)) % self._tail_limit


def join_head_tail(head: bytes, tail: bytes, omitted: int) -> bytes:
    """Head and tail of a stream as one text; a line between them counts the bytes left out, if any are."""
    if not omitted:
        return head + tail
    return head + b"\n[... %d bytes left out ...]\n" % omitted + tail
