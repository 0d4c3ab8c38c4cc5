"""The same script on a laptop, inside an allocation, and on a cluster.

What you learn: ``cluster="auto"`` starts an agent on each node of the allocation that the script is in, and here if it
is in none; the name of a cluster in ``hpc-executor.toml``, given as an argument, has nodes asked for as tasks wait:
``python 14_cluster.py big``. Nothing else changes.

It prints: an estimate of pi by darts, and the hosts that have thrown them.
"""

import random
import sys
from collections import Counter
from concurrent.futures import as_completed

from executor import HPCExecutor

DARTS, PLAYERS = 200_000, 16


def throw(seed: int) -> int:
    """How many of the darts of one player hit the quarter of a circle."""
    player = random.Random(seed)
    return sum(player.random() ** 2 + player.random() ** 2 < 1 for _ in range(DARTS))


cluster = sys.argv[1] if len(sys.argv) > 1 else "auto"
with HPCExecutor(cluster=cluster) as ex:
    throws = [ex.submit(throw, seed) for seed in range(PLAYERS)]
    hosts = Counter(future.host for future in as_completed(throws))
    hits = sum(future.result() for future in throws)
    print(f"pi is about {4 * hits / (DARTS * PLAYERS):.2f}")
    for host, players in sorted(hosts.items()):
        print(f"{players} players on {host}")
