"""Many seeds: ``python tests/simulation/simulate.py --seeds 1000000 --first N``. Ends at the first that fails."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from typing import Any

from world import Violation, World, story


def main() -> int:
    """Run the seeds, and say how fast, and what has happened in them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--go-on", action="store_true", help="one line for each seed that fails, and no end")
    options = parser.parse_args()
    seen: Counter[Any] = Counter()
    began, failed = time.perf_counter(), 0
    for number in range(options.first, options.first + options.seeds):
        world = World(number)
        try:
            world.run()
        except Violation as violation:
            failed += 1
            if not options.go_on:
                print(story(number))
                return 1
            print(f"seed {number}: {violation}")
        seen.update(world.seen)
    print(render_coverage(seen))
    seconds = time.perf_counter() - began
    print(f"{options.seeds} seeds in {seconds:.1f} s: {options.seeds / seconds:.0f} seeds/s; {failed} failed")
    return failed > 0


def render_coverage(seen: Counter[Any]) -> str:
    """How often each thing happened."""
    lines = [f"{count:10}  {' × '.join(what) if isinstance(what, tuple) else what}" for what, count in seen.items()]
    return "\n".join(sorted(lines, key=lambda line: line[12:]))


if __name__ == "__main__":
    sys.exit(main())
