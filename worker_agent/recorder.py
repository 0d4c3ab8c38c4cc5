"""What one attempt adds to the stream file of its agent: its start, its output, its end."""

from __future__ import annotations

import os
from collections.abc import Callable

from worker_agent import bodies, protocol, store
from worker_agent.records import Kind, pack
from worker_agent.stream_files import StreamFiles

#: Bytes of the end of stderr that are kept for errors to quote.
LAST_WORDS = 4096
#: Ends that are the task's own, and that a failure to keep its output takes the place of.
_OWN_ENDS = frozenset({protocol.VALUE, protocol.ERROR, protocol.COMPLETED, protocol.EXITED})


class Recorder:
    """Writes for one attempt. It goes silent with the first error, which is kept, and told once."""

    __slots__ = ("_files", "_on_failure", "_order", "_to", "failure")

    def __init__(
        self, files: StreamFiles, order: protocol.Run, to: protocol.StreamTo, on_failure: Callable[[], None]
    ) -> None:
        """``on_failure`` is called in the middle of whatever writes."""
        self._files = files
        self._order = order
        self._to = to
        self._on_failure = on_failure
        #: why its output is not kept
        self.failure: OSError | None = None

    def takes(self, stream: int) -> bool:
        """Whether what is written to this descriptor belongs here."""
        return self._to.stdout if stream == 1 else self._to.stderr

    def start(self, at: float) -> None:
        """The attempt starts."""
        self._append(Kind.START, self._to.name.encode(), at)

    def output(self, stream: int, data: bytes, at: float) -> None:
        """It wrote ``data``."""
        self._append(Kind.OUTPUT, data, at, stream)

    def end(self, end: str, returncode: int | None, at: float) -> None:
        """The attempt has ended."""
        self._append(Kind.END, (end if returncode is None else f"{end} {returncode}").encode(), at)

    def outcome(self, end: str, body: bytes) -> tuple[str, bytes]:
        """How the attempt has ended, and its body: that its output is not kept, if so, and nothing else ended it."""
        if self.failure is None or end not in _OWN_ENDS:
            return end, body
        if body[:1] in bodies.WITH_FILES:
            for path, _ in bodies.files_of(bodies.whole(body)):
                store.remove(path)
        return protocol.ERROR, bodies.dump_error(self.failure, [])

    def _append(self, kind: Kind, data: bytes, at: float, stream: int = 0) -> None:
        if self.failure is not None:
            return
        # A task of no job has the executor's number.
        task = self._to.task if self._to.job else self._order.task
        record = pack(kind, data, at, stream=stream, job=self._to.job, task=task, attempt=self._order.attempt)
        try:
            self._files.append(self._to.directory, record)
        except OSError as error:
            self.failure = self._explain(error)
            self._on_failure()

    def _explain(self, error: OSError) -> OSError:
        reason = os.strerror(error.errno) if error.errno else str(error)
        text = f"{reason}: the output of the task cannot be added to a stream file in the directory"
        return OSError(error.errno, text, self._to.directory)
