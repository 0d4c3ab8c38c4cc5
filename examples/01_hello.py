"""A picture, each row of which is computed in a Python interpreter of its own.

What you learn: ``HPCExecutor`` takes the place of ``ProcessPoolExecutor``. One line of the program changes, and each
task gets a fresh interpreter. No ``if __name__ == "__main__"`` is needed: tasks do not run this file again.

It prints: the Mandelbrot set, beside each row the process that computed it, and how long all of it took.
"""

import os
import time

from rich.console import Console
from rich.text import Text

from executor import HPCExecutor  # was: from concurrent.futures import ProcessPoolExecutor

WIDTH, HEIGHT = 60, 24
SHADES = " .:-=+*#%@"
COLOURS = ["blue", "blue", "cyan", "cyan", "green", "yellow", "yellow", "red", "magenta", "white"]


def escape_time(point: complex) -> int:
    """How many steps the point takes to leave the circle of radius 2, at most 90."""
    z = 0j
    for step in range(90):
        if abs(z) > 2:
            return step
        z = z * z + point
    return 90


def compute_row(y: int) -> tuple[list[int], int]:
    """One row as levels from 0 to 9, and the process that computed it."""
    points = (complex(-2.2 + 3.2 * x / WIDTH, -1.2 + 2.4 * (y + 0.5) / HEIGHT) for x in range(WIDTH))
    return [min(9, escape_time(point) // 3) for point in points], os.getpid()


console = Console(highlight=False)
start = time.perf_counter()
pids = set()
with HPCExecutor() as ex:  # was: ProcessPoolExecutor()
    for levels, pid in ex.map(compute_row, range(HEIGHT)):
        pids.add(pid)
        row = Text.assemble(*((SHADES[level], COLOURS[level]) for level in levels))
        console.print(row.append(f"  process {pid}", style="dim"))
seconds = time.perf_counter() - start
console.print(f"\n{HEIGHT} rows, {len(pids)} fresh interpreters, {seconds:.2f} seconds.")
