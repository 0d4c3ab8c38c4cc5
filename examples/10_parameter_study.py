"""A parameter study: a real program and a NumPy function over a grid.

What you learn: the pieces together. ``awk`` simulates a driven, damped pendulum for each pair of parameters; as each
run ends, a NumPy function analyses what it printed; a progress bar follows, and a failed run costs one cell.

It prints: a progress bar, then a table of the amplitude and the dominant frequency of each run.
"""

from concurrent.futures import as_completed
from itertools import product

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from executor import CAPTURE, HPCExecutor, Program

DAMPING, DRIVE = [0.2, 0.4, 0.8], [0.5, 0.9, 1.1, 1.4]
PENDULUM = """BEGIN {
    dt = 0.01; x = 0.2; v = 0
    for (i = 0; i < 20000; i++) {
        v += dt * (-sin(x) - damping * v + drive * cos(2 * i * dt / 3)); x += dt * v
        if (i % 10 == 0) print sin(x)
    }
    if (damping < 0.3 && drive > 1.3) { print "too wild for me" > "/dev/stderr"; exit 1 }
}"""


def analyse(text: str) -> tuple[float, float]:
    """Amplitude and dominant frequency of the second half of the run."""
    signal = np.array(text.split(), dtype=float)[1000:]
    spectrum = np.abs(np.fft.rfft(signal - signal.mean()))
    return float(np.ptp(signal) / 2), float(np.fft.rfftfreq(signal.size, d=0.1)[spectrum.argmax()])


console, cells = Console(highlight=False), {}
with HPCExecutor(preload=["numpy"]) as ex:
    quiet = ex.options(stdout=CAPTURE, stderr=CAPTURE)
    runs, analyses = {}, {}
    for damping, drive in product(DAMPING, DRIVE):
        argv = ["awk", "-v", f"damping={damping}", "-v", f"drive={drive}", PENDULUM]
        runs[quiet.options(name=f"pendulum-{damping}-{drive}").submit(Program(argv))] = damping, drive
    for run in track(as_completed(runs), "pendulums", total=len(runs), console=console):
        if run.exception() is None:
            analyses[ex.submit(analyse, run.result().stdout)] = runs[run]
        else:
            cells[runs[run]] = run.stderr.strip()
    for future in as_completed(analyses):
        amplitude, frequency = future.result()
        cells[analyses[future]] = f"{amplitude:.2f}, {frequency:.3f}"

table = Table("damping", *(f"drive {drive}" for drive in DRIVE), title="A driven pendulum: amplitude, frequency in Hz")
for damping in DAMPING:
    table.add_row(str(damping), *(cells[damping, drive] for drive in DRIVE))
console.print(table)
