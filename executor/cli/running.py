"""A job that runs to its end under the eyes of its submitter.

The main thread has the signals and the screen; the job is submitted and awaited in a thread of its own:

    main thread   --- looks each quarter of a second, obeys Ctrl-C -------------------> status
    job           submit_job ... wait ... shut down
    ending                            cancel (Ctrl-C)   kill_workers (Ctrl-C again)
"""

from __future__ import annotations

import contextlib
import queue
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Any, Final

from executor import HPCExecutor
from executor.cli.progress import Silence
from executor.cli.tally import Tally
from executor.jobs.job import Job
from executor.jobs.submitted import SubmittedJob

#: Seconds between two looks.
INTERVAL: Final = 0.25
#: What ends a run: Ctrl-C, and what a batch system sends.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Run:
    """One job on one executor.

    :param on_end: called with the tally and the numbers of the tasks that have ended since the last call.
    """

    def __init__(
        self, executor: HPCExecutor, job: Job, progress: Silence, on_end: Callable[[Tally, list[int]], object]
    ) -> None:
        self._executor = executor
        self._job = job
        self._progress = progress
        self._on_end = on_end
        self._submitted: SubmittedJob | None = None
        self._tally: Tally | None = None
        #: signals, and None when the job has ended. A signal's handler may put while the main thread gets: only this
        #: queue of all is made for that.
        self._news: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        #: the first signal that came
        self.interrupted: int | None = None

    def to_end(self) -> Tally | None:
        """Run it to its end; its tally, or None if it was interrupted before all of it was submitted.

        Raises what :meth:`HPCExecutor.submit_job` raises; then nothing of it goes on.
        """
        with self._signals(), ThreadPoolExecutor(3) as threads:
            job = threads.submit(self._work)
            job.add_done_callback(lambda _: self._news.put(None))
            try:
                self._watch(job, threads)
            finally:
                self._progress.close()
        return self._told(job)

    def status(self) -> int:
        """The exit status that shells give for the signal that interrupted it; 0: none did."""
        return 0 if self.interrupted is None else 128 + self.interrupted

    # --- the job's thread ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._submitted = self._executor.submit_job(self._job)
            self._submitted.wait()
        except BaseException:
            self._executor.terminate_workers()  # what was submitted before the error
            raise
        finally:
            self._executor.shutdown()

    # --- the main thread ----------------------------------------------------------------------------------------------

    def _watch(self, job: Future[None], threads: ThreadPoolExecutor) -> None:
        while not job.done():
            self._look()
            try:
                number = self._news.get(timeout=INTERVAL)
            except queue.Empty:
                continue  # time for another look
            if number is not None:
                self._end(number, threads)
        self._look()

    def _look(self) -> None:
        if self._submitted is not None and self._tally is None:
            self._tally = Tally(self._submitted)
        if self._tally is not None:
            self._on_end(self._tally, self._tally.update())
        self._progress.show(self._job.name or "job", self._tally, self._executor.counts().coming)

    def _end(self, number: int, threads: ThreadPoolExecutor) -> None:
        """Obey a signal: in a thread, since it takes a while and there may be another one."""
        if self.interrupted is None:
            self.interrupted = number
            self._progress.tell(f"{_name(number)}: ending the tasks, which have 2 seconds for it; again: at once")
            threads.submit(self._cancel)
        else:
            self._progress.tell(f"{_name(number)}: ending the tasks at once")
            threads.submit(self._executor.kill_workers)

    def _cancel(self) -> None:
        if self._submitted is not None:
            self._submitted.cancel()
        else:
            self._executor.terminate_workers()

    def _told(self, job: Future[None]) -> Tally | None:
        error = job.exception()
        if error is not None and self.interrupted is None:
            raise error
        return self._tally

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def note(number: int, _: FrameType | None) -> None:
            self._news.put(number)

        before: list[Any] = [signal.signal(number, note) for number in _SIGNALS]
        try:
            yield
        finally:
            for number, handler in zip(_SIGNALS, before, strict=True):
                signal.signal(number, handler)


def _name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
