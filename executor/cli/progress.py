"""What people see while a job runs: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from executor.cli.saying import people, say
from executor.cli.tally import Tally, render_counts, render_seconds
from executor.future import TaskFuture

#: So many of the tasks that run are named.
NAMED: Final = 5
#: A terminal with fewer letters in a line has no room for a bar beside the numbers.
NARROW: Final = 80
STYLES: Final = {
    "running": "cyan", "waiting": "dim", "finished": "green", "failed": "red", "cancelled": "yellow",
    "aborted": "magenta",
}  # fmt: skip


class Silence:
    """Shows nothing of how a job stands; the others show it from time to time."""

    def show(self, title: str, tally: Tally | None, coming: str) -> None:
        """Show it; None: its tasks are still being submitted. ``coming``: what it waits for, as in :class:`Counts`."""

    def tell(self, text: str) -> None:
        """Say something that matters now."""
        say(text, "yellow")

    def close(self) -> None:
        """No more of it."""


class Lines(Silence):
    """Plain lines, for logs: one each half minute in which something has changed."""

    def __init__(self, every: float = 30.0) -> None:
        self._every = every
        self._next = time.monotonic() + every
        self._told = ""

    def show(self, title: str, tally: Tally | None, coming: str) -> None:
        """Write a line, if it is time and there is anything new."""
        if tally is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every
        line = f"{title}: {tally.ended:,} of {tally.total:,} tasks have ended; {render_counts(tally.counts)}"
        line += f"; {coming}" if coming and tally.counts["waiting"] else ""
        if line != self._told:
            self._told = line
            say(line)


class Bar(Silence):
    """A bar with counts, the estimated end, and what runs; drawn by time, whatever the number of tasks."""

    def __init__(self) -> None:
        self._console = people()
        # No thread draws it but the one that looks. Warnings go above it; stdout is for scripts, and stays as it is.
        self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._live.start()

    def show(self, title: str, tally: Tally | None, coming: str) -> None:
        """Draw it anew."""
        submitting = Text(f"{title}: submitting", "dim")
        content = submitting if tally is None else render_bar(title, tally, self._console.width, coming)
        self._live.update(content, refresh=True)

    def tell(self, text: str) -> None:
        """Say it above the bar."""
        self._console.print(Text(text, "yellow"))

    def close(self) -> None:
        """Take it away: the summary has more to tell."""
        self._live.stop()


def make_progress(quiet: bool) -> Silence:
    """What suits the stderr of this process."""
    if quiet:
        return Silence()
    return Bar() if _can_draw(people()) else Lines()


def _can_draw(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal


def render_bar(title: str, tally: Tally, width: int, coming: str = "") -> RenderableType:
    """The bar, the counts, and the tasks that have been running for longest; ``width`` is that of the terminal."""
    head = _render_head(title, tally, width)
    return Group(head, _render_states(tally, coming), *_render_running(tally.running, time.time()))


def _render_head(title: str, tally: Tally, width: int) -> RenderableType:
    name = Text(title, "bold")
    name.truncate(width // 4, overflow="ellipsis")
    share = f"{100 * tally.ended // tally.total} %  {tally.ended:,} of {tally.total:,}"
    words = f"{share}  {render_end(tally.seconds_left(), datetime.now())}"
    if width < NARROW:
        return Text.assemble(name, "  ", words, no_wrap=True, overflow="ellipsis")
    head = Table.grid(Column(), Column(width=30), Column(no_wrap=True, overflow="ellipsis"), padding=(0, 1))
    head.add_row(name, ProgressBar(total=tally.total, completed=tally.ended), words)
    return head


def _render_states(tally: Tally, coming: str) -> Text:
    told = [(f"{tally.counts[state]:,} {state}", style) for state, style in STYLES.items() if tally.counts[state]]
    told += [(coming, "dim")] if coming and tally.counts["waiting"] else []
    parts = [part for each in told for part in (("  ", ""), each)]
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def render_end(seconds: float | None, now: datetime) -> str:
    """Such as ``about 0:01:12 left, until 14:32``; with the day if it is another one."""
    if seconds is None:
        return ""
    try:
        end = now + timedelta(seconds=seconds)
    except OverflowError:
        return "centuries left"
    shown = f"{end:%H:%M}" if end.date() == now.date() else f"{end:%a %d %b, %H:%M}"
    return f"about {render_seconds(seconds)} left, until {shown}"


def _render_running(running: list[TaskFuture], now: float) -> Iterator[Text]:
    began = [(future.started or now, future.name) for future in running]
    for start, name in sorted(began)[:NAMED]:
        # the clock of its host may differ from ours
        line = f"    {render_seconds(max(0.0, now - start)):>9}  {name}"
        yield Text(line, "cyan", no_wrap=True, overflow="ellipsis")
    if len(began) > NAMED:
        yield Text(f"               and {len(began) - NAMED:,} more", "dim")
