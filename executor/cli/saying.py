"""How commands speak: to people on stderr, to scripts on stdout; plain lines where nobody looks.

Text of tasks may hold colours of its own. On a terminal they are shown; elsewhere there is no escape code in any line.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

#: Exit status: some tasks failed, and: the command line or a file makes no sense. As of most programs.
FAILED = 1
BAD_INPUT = 2


def people() -> Console:
    """The console for people: stderr of this moment."""
    return Console(file=sys.stderr, highlight=False)


def say(text: str, style: str = "") -> None:
    """A line, or several, for people on stderr."""
    _print(people(), text, style)


def tell(text: str, style: str = "") -> None:
    """A line, or several, on stdout: what the command was asked for."""
    _print(Console(file=sys.stdout, highlight=False), text, style)


def _print(console: Console, text: str, style: str) -> None:
    content = Text.from_ansi(text)
    content.stylize(style)
    console.print(content, soft_wrap=True)


def write_json(value: dict[str, Any]) -> None:
    """One object on one line of stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False, default=str))


def refuse(error: BaseException | str) -> NoReturn:
    """Say what is wrong with the input, and exit with status 2."""
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else f"{error}"
    say(f"hpc-executor: {text}", "red")
    raise typer.Exit(BAD_INPUT)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """What is refused inside, or cannot be read, is bad input. To be put around readers only: our own bugs are none."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        refuse(error)


@contextlib.contextmanager
def naming(option: str) -> Iterator[None]:
    """What is refused inside is the value of this option."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def write_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; elsewhere than on a terminal columns that nothing cuts."""
    console = Console(highlight=False)
    rows = list(rows)
    if not console.is_terminal:
        typer.echo("\n".join(_aligned([columns, *rows])))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
