"""How often a task is tried again, by the class of its failure. A value, never changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

#: A ``crash_limit`` that no number of losses reaches.
UNLIMITED: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Retries:
    """How often each class of failure may be tried again. The loss of an agent has ``crash_limit`` for that."""

    #: a nonzero status, a signal, an exception of the task
    exit: int = 0
    #: it ran longer than its ``time_limit``
    timeout: int = 0
    #: out of memory
    oom: int = 0
    #: its program, or an interpreter for it, was not started
    start: int = 0


    def after(self, kind: str) -> Retries | None:
        """What is left after a failure of this class; None if it is not tried again."""
        left = getattr(self, kind)
        return replace(self, **{kind: left - 1}) if left else None


#: What is tried once.
NO_RETRIES: Final = Retries()
