"""`python -m benchmarks`: every figure, ours and its peers in turn, one table."""

import argparse
import fnmatch
import signal
import sys
from collections.abc import Iterable, Sequence
from compileall import compile_dir
from pathlib import Path

from benchmarks.figures import ALL_FIGURES, FIGURES, MILLION, Figure
from benchmarks.report import compare, look_at_machine, render, write_json
from benchmarks.rounds import Turn, take_turns


def main(argv: Sequence[str] | None = None) -> int:
    """Fails if a measurement failed, not if a goal was missed: goals are read by people."""
    options = parse_options(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the turn's processes are ended
    compile_dir(Path(__file__).parent, quiet=2)  # as installed packages are, also where PYTHONDONTWRITEBYTECODE is set
    before = look_at_machine()
    turns = collect(take_turns(options.only or chosen(options.million), options.rounds, options.quick))
    rows, after = compare(turns), look_at_machine()
    print(render(rows, turns, before, after, describe(options)))
    if options.json:
        write_json(options.json, rows, turns, (before, after))
    return int(any(turn.trouble for turn in turns))


def collect(turns: Iterable[Turn]) -> list[Turn]:
    """Tells each turn as it ends; Ctrl-C ends the run, not the report."""
    taken: list[Turn] = []
    try:
        for turn in turns:
            taken.append(turn)
            print(turn, file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted: the table shows what was measured until now", file=sys.stderr)
    return taken


def describe(options: argparse.Namespace) -> str:
    return f"{options.rounds} rounds" + (", quick: a tenth of the tasks" if options.quick else "")


def chosen(million: bool) -> tuple[Figure, ...]:
    return (*ALL_FIGURES, MILLION) if million else ALL_FIGURES


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    names = ", ".join(FIGURES)
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__, epilog=f"figures: {names}")
    add = parser.add_argument
    add("--rounds", type=positive, default=3, metavar="N", help="rounds of turns (3)")
    add("--only", type=parse_figures, metavar="NAME[,NAME]", help="these figures; * stands for anything")
    add("--quick", action="store_true", help="a tenth of the tasks, to see that it runs")
    add("--million", action="store_true", help="also 1 000 000 tasks at once (minutes)")
    add("--json", type=Path, metavar="FILE", help="write all values of all rounds there")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


def parse_figures(text: str) -> list[Figure]:
    found = [name for pattern in text.split(",") for name in find_names(pattern)]
    return [FIGURES[name] for name in dict.fromkeys(found)]


def find_names(pattern: str) -> list[str]:
    names = fnmatch.filter(FIGURES, pattern)
    if not names:
        raise argparse.ArgumentTypeError(f"no figure is named {pattern!r}; there are {', '.join(FIGURES)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
