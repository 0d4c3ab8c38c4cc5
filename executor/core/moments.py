"""When it is looked again though nothing has happened. All look at the same moments: each costs a look at everybody."""

from __future__ import annotations

import math

#: Seconds from one look to the next: at first, and for who waits long.
LOOK_AGAIN, LOOK_LATER = 0.1, 1.0


def soon(now: float) -> float:
    """The next moment for who has just begun to wait."""
    return _multiple(now, LOOK_AGAIN)


def later(now: float) -> float:
    """The next moment for who waits long."""
    return _multiple(now, LOOK_LATER)


def _multiple(now: float, step: float) -> float:
    """That is half a step away at least: a nearer one may be now, by rounding."""
    return math.floor(now / step + 1.5) * step
