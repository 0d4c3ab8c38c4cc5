"""What an agent offers its hub: what it has, with whom it is a group, and how long it stays."""

from __future__ import annotations

import os
import time
from typing import Any, NamedTuple

from worker_agent import detection, grants
from worker_agent.connection import Connection
from worker_agent.declared import parse_pool
from worker_agent.pools import Pool


class Offer(NamedTuple):
    """The pools, the group, and when the agent has to leave (seconds since the epoch; None: nobody knows)."""

    pools: list[Pool]
    group: str
    ends: float | None

    @property
    def remaining(self) -> float | None:
        """The seconds until it has to leave."""
        return None if self.ends is None else max(0.0, self.ends - time.time())


def make_offer(connection: Connection, said: dict[str, Any]) -> Offer:
    """What the connection says, else what is found here; and what was ``said`` by the options of the command.

    Raises ValueError for pools that are none.
    """
    pools = {pool.name: pool for pool in connection.pools or detection.detect()}
    for text in said.get("resource") or ():
        name, _, what = text.partition("=")
        pools[name] = parse_pool(name, what)
    group = said.get("group")
    ends = said.get("ends") or _end_of_job()
    return Offer(list(pools.values()), grants.default_group(os.environ) if group is None else group, ends)


def _end_of_job() -> float | None:
    now = time.time()
    left = grants.remaining_seconds(os.environ, now)
    return None if left is None else now + left
