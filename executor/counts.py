"""How many tasks there are, by state. A value, never changed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counts:
    """How many tasks there are; those that ended, by how. Tasks of :meth:`HPCExecutor.map` are chunks.

    ``failed`` are those with an exception, those that were not to run since another one failed included. ``coming``
    says for how many jobs of which batch system they wait; "" if they do not.
    """

    total: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    #: None: not known
    running: int | None = None
    coming: str = ""

    @property
    def ended(self) -> int:
        """How many have ended, well or not."""
        return self.finished + self.failed + self.cancelled

    @property
    def pending(self) -> int:
        """How many have not started."""
        return self.total - self.ended - (self.running or 0)
