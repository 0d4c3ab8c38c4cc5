"""The inside of a fresh process: one candidate takes its turn at one figure."""

import json
from pathlib import Path

from benchmarks.candidates import CANDIDATES
from benchmarks.figures import FIGURES


def main(figure: str, candidate: str, count: int, into: str) -> None:
    """Writes the values at the very end: a candidate that cannot shut down has not finished its turn."""
    construct = CANDIDATES[candidate].load()
    values = FIGURES[figure].measure(construct, count)
    Path(into).write_text(json.dumps(values))
