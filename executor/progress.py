"""Progress bars: of all tasks of an executor, and of futures as they complete.

    counts --ProgressBar, a few times a second--> _Bar, where somebody looks; _Lines elsewhere

Nothing here is done per task but to count it: the drawing goes by time. ``rich`` is imported when a bar is made.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, as_completed
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from executor.counts import Counts
from executor.jobs.submitted import SubmittedJob
from executor.refusals import shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

AnyFuture = TypeVar("AnyFuture", bound=Future[Any])

#: Seconds between two drawings of a bar, and between two lines where nobody looks.
INTERVAL, LINE_INTERVAL = 0.25, 60.0
#: The rate is that of so many seconds.
RATE_PERIOD = 30.0


def track(
    futures: Iterable[AnyFuture] | SubmittedJob, description: str | None = None, console: Console | None = None
) -> Iterator[AnyFuture]:
    """Iterate over futures as they complete, under a progress bar: ``for future in track(futures)``.

    :param futures: of any executor; or a job that was submitted.
    :param description: what stands before the bar; default: "tasks", or the job's name.
    :param console: of ``rich``, where it is drawn; default: standard error. Where that is no terminal and no notebook,
        a line is written each minute and at the end.
    :raises ImportError: ``rich`` is missing.
    :raises TypeError: something in ``futures`` is no future.
    """
    tally = _Tally()
    if isinstance(futures, SubmittedJob):
        ended: Iterator[Any] = iter(futures)
        tally.total, name = len(futures), futures.job.name
    else:
        waited_for = _check_futures(futures)
        ended, tally.total, name = as_completed(waited_for), len(waited_for), None
    return _tracked(ended, tally, ProgressBar(tally.counts, description or name or "tasks", console))


def _tracked(ended: Iterator[AnyFuture], tally: _Tally, bar: ProgressBar) -> Iterator[AnyFuture]:
    with bar:
        for future in ended:
            tally.add(future)
            yield future


def _check_futures(futures: Iterable[AnyFuture]) -> set[AnyFuture]:
    found = set(futures)
    for each in found:
        if not isinstance(each, Future):
            raise TypeError(f"futures: {shown(each)} is none. Expected futures, as submit() returns them")
    return found


class ProgressBar:
    """A bar that lives: what :meth:`HPCExecutor.progress` returns.

    As a context manager, or by :meth:`start`, :meth:`wait` and :meth:`stop`.
    """

    def __init__(
        self, counts: Callable[[], Counts], description: str, console: Console | None = None,
        wait: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        """``counts`` is asked a few times a second; ``wait`` returns when there is nothing more to show."""
        self._counts = counts
        self._wait = wait
        self._description = description
        self._console = _check_console(console)
        self._pace = Pace()
        self._display: _Display | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to draw, in a thread. Raises RuntimeError if it has begun already."""
        if self._thread is not None:
            raise RuntimeError("this progress bar has been started already: make another one")
        self._pace.note(time.monotonic(), self._counts().ended)
        self._display = _make_display(self._description, self._console)
        self._thread = threading.Thread(target=self._run, name="hpc-executor-progress", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Draw until all tasks that there are have ended; then :meth:`stop`."""
        if self._thread is None:
            self.start()
        try:
            self._wait()
        finally:
            self.stop()

    def stop(self) -> None:
        """Draw a last time and end."""
        self._stopping.set()
        display, self._display = self._display, None
        if self._thread is not None and display is not None:
            self._thread.join()
            try:
                self._draw(display)
            finally:
                display.close()

    def __enter__(self) -> ProgressBar:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: Any) -> None:
        """Wait until all tasks have ended, as the executor's own ``with`` does; after an exception end at once."""
        if kind is None:
            self.wait()
        else:
            self.stop()

    def _run(self) -> None:
        display = self._display
        assert display is not None
        while not self._stopping.wait(display.interval):
            self._draw(display)

    def _draw(self, display: _Display) -> None:
        counts = self._counts()
        self._pace.note(time.monotonic(), counts.ended)
        display.draw(counts, render_counts(counts, self._pace))


class Pace:
    """How quickly tasks end: of the last ``RATE_PERIOD`` seconds. The time is an argument."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._began: float | None = None

    def note(self, now: float, ended: int) -> None:
        """So many have ended by now."""
        if self._began is None:
            self._began = now
        self._seen.append((now, ended))
        while self._seen[0][0] < now - RATE_PERIOD:
            self._seen.popleft()

    @property
    def elapsed(self) -> float:
        """Seconds from the first to the last note."""
        return self._seen[-1][0] - self._began if self._began is not None else 0.0

    @property
    def rate(self) -> float:
        """Tasks per second; 0 if it is not known."""
        (then, before), (now, ended) = (self._seen[0], self._seen[-1]) if self._seen else ((0.0, 0), (0.0, 0))
        return max(0.0, (ended - before) / (now - then)) if now > then else 0.0


def render_counts(counts: Counts, pace: Pace) -> str:
    """What a bar says: ``12/100  4 running  84 pending  2 failed  3.5/s  25 s left``."""
    left = counts.total - counts.ended
    known = () if counts.running is None else (("running", counts.running), ("pending", counts.pending))
    words = [f"{counts.ended}/{counts.total}"]
    words += [f"{number} {name}" for name, number in (*known, *_bad(counts)) if number]
    words += [counts.coming] if counts.coming and counts.pending else []
    if not left:
        words.append(f"in {render_seconds(pace.elapsed)}")
    elif pace.rate:
        words += [render_rate(pace.rate), f"{render_seconds(left / pace.rate)} left"]
    return "  ".join(words)


def _bad(counts: Counts) -> tuple[tuple[str, int], ...]:
    return ("failed", counts.failed), ("cancelled", counts.cancelled)


def render_rate(rate: float) -> str:
    """Tasks per second, or per minute if they are few: ``340/s``, ``3.5/s``, ``12.0/min``."""
    if rate < 1:
        return f"{60 * rate:.1f}/min"
    return f"{rate:.1f}/s" if rate < 9.95 else f"{rate:.0f}/s"


def render_seconds(seconds: float) -> str:
    """A duration for people: ``3.2 s``, ``4:05``, ``1:02:03``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


# --- where it is shown ------------------------------------------------------------------------------------------------


class _Display(Protocol):
    #: seconds between two drawings
    interval: float

    def draw(self, counts: Counts, text: str, /) -> None: ...

    def close(self) -> None: ...


def _make_display(description: str, console: Console) -> _Display:
    if console.is_jupyter:
        return _Cell(description, console)
    return (_Bar if console.is_terminal else _Lines)(description, console)


def _make_bar(description: str, console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(24), TextColumn("{task.fields[text]}")
    # What is printed goes above the bar, unless it goes to a file.
    redirected = sys.stdout is not None and sys.stdout.isatty()
    bar = Progress(*columns, console=console, auto_refresh=False, redirect_stdout=redirected)
    bar.add_task(description, total=None, text="")
    return bar


def _set_bar(bar: Progress, counts: Counts, text: str) -> None:
    bar.update(bar.task_ids[0], total=counts.total, completed=counts.ended, text=text)


class _Bar:
    """For a terminal."""

    interval = INTERVAL

    def __init__(self, description: str, console: Console) -> None:
        self._progress = _make_bar(description, console)
        self._progress.start()

    def draw(self, counts: Counts, text: str, /) -> None:
        _set_bar(self._progress, counts, text)
        self._progress.refresh()

    def close(self) -> None:
        self._progress.stop()


class _Cell:
    """For a notebook: an output of the cell, replaced by each drawing.

    Not rich's own way, which is a widget: that needs ipywidgets, and is not in a file that is opened later.
    """

    interval = INTERVAL

    def __init__(self, description: str, console: Console) -> None:
        self._bar = _make_bar(description, console)
        show: Any = import_module("IPython.display").display  # it is there where there is a notebook
        self._output: Any = show(self._render(), display_id=True)

    def _render(self) -> Table:
        return self._bar.make_tasks_table(self._bar.tasks)

    def draw(self, counts: Counts, text: str, /) -> None:
        _set_bar(self._bar, counts, text)
        self._output.update(self._render())

    def close(self) -> None:
        """The last drawing stays."""


class _Lines:
    """For files and pipes."""

    interval = LINE_INTERVAL

    def __init__(self, description: str, console: Console) -> None:
        self._description = description
        self._console = console

    def draw(self, _: Counts, text: str, /) -> None:
        self._console.out(f"{self._description}: {text}", highlight=False)

    def close(self) -> None:
        """Nothing is open."""


def _check_console(console: Console | None) -> Console:
    try:
        from rich.console import Console
    except ImportError as error:
        raise ImportError("a progress bar needs the package rich, which is not here: pip install rich") from error
    if console is not None and not isinstance(console, Console):
        raise TypeError(f"console={shown(console)}: expected a rich.console.Console")
    return console or Console(stderr=True)


class _Tally:
    """Counts futures that have completed; another thread reads it."""

    def __init__(self) -> None:
        self.total = self._finished = self._failed = self._cancelled = 0

    def add(self, future: Future[Any]) -> None:
        if future.cancelled():
            self._cancelled += 1
        elif future.exception() is not None:
            self._failed += 1
        else:
            self._finished += 1

    def counts(self) -> Counts:
        return Counts(self.total, self._finished, self._failed, self._cancelled)
