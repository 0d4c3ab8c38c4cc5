"""How often a task is tried again, by the class of its failure. A value, never changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from worker_agent import protocol

#: A ``crash_limit`` that no number of losses reaches.
UNLIMITED: Final = 2**63 - 1


#: Ends that say that the task itself failed, and as which class of failures each counts.
_FAILED = {
    protocol.ERROR: "exit", protocol.EXITED: "exit", protocol.TIMED_OUT: "timeout", protocol.OUT_OF_MEMORY: "oom",
    protocol.NOT_STARTED: "start", protocol.NO_OUTPUT: "exit",
}  # fmt: skip


def failure(report: protocol.Finished, checked: bool) -> str:
    """The class of failure that an end is, "" for none; if ``checked``, an exit status other than 0 is one."""
    if report.end == protocol.COMPLETED:
        return "exit" if report.returncode != 0 and checked else ""
    return _FAILED.get(report.end, "")


def has_succeeded(outcome: object, checked: bool) -> bool:
    """Whether an outcome is the one that was wanted."""
    good = isinstance(outcome, protocol.Finished) and outcome.end in (protocol.VALUE, protocol.COMPLETED)
    return good and not failure(outcome, checked)  # type: ignore[arg-type]  # it is a Finished


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
