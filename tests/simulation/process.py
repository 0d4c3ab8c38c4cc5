"""What the hub and an agent have in common: a clock, sleep, and what comes for them while they are stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from world import World

_NEVER = 1e99
_TINY = 1e-6


class Clock:
    """A host's clock: it may be off, a little fast or slow, and stands still while its host is suspended."""

    __slots__ = ("offset", "rate")

    def __init__(self, offset: float = 0.0, rate: float = 1.0) -> None:
        self.offset, self.rate = offset, rate

    def at(self, time: float) -> float:
        """What it shows at a time of the world."""
        return self.offset + time * self.rate

    def when(self, reading: float) -> float:
        """The time of the world at which it shows this."""
        return (reading - self.offset) / self.rate


class Process:
    """It sleeps until something is due or comes; what comes while it is stopped waits."""

    name = ""

    def __init__(self, world: World, clock: Clock) -> None:
        self.world, self.clock = world, clock
        self.alive, self.stopped = True, False
        self._suspended_at: float | None = None
        self._inbox: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._wake_at = _NEVER

    @property
    def time(self) -> float:
        """What its clock shows."""
        return self.clock.offset + self.world.now * self.clock.rate

    def do(self, action: Callable[..., None], *arguments: Any) -> None:
        """Something comes for it."""
        if self.stopped:
            self._inbox.append((action, arguments))
        elif self.alive:
            action(*arguments)

    def step(self) -> None:
        """Look at the time, say what there is to say, sleep."""
        raise NotImplementedError

    def sleep_until(self, due: float) -> None:
        """Wake up when its clock shows ``due``, or before."""
        when = max((due - self.clock.offset) / self.clock.rate, self.world.now) + _TINY
        if when < self._wake_at:
            self._wake_at = when
            self.world.at(when, self._wake, when)

    def _wake(self, when: float) -> None:
        if when == self._wake_at:
            self._wake_at = _NEVER
            if self.alive and not self.stopped:
                self.on_wake()

    def on_wake(self) -> None:
        """It slept until now."""
        self.step()

    def stop(self, seconds: float, *, suspended: bool = False) -> None:
        """SIGSTOP; or its whole host is suspended, and its clock stands still."""
        if not self.alive or self.stopped:
            return
        self.world.tell(self.name, f"is {'suspended' if suspended else 'stopped'} for {seconds:.1f} s")
        self.stopped = True
        self._suspended_at = self.world.now if suspended else None
        self.world.later(seconds, self.go_on)

    def go_on(self) -> None:
        """SIGCONT: what has come meanwhile comes now."""
        if not self.alive or not self.stopped:
            return
        self.world.tell(self.name, "continues")
        self.on_continue(self._set_back())
        inbox, self._inbox, self._wake_at = self._inbox, [], _NEVER
        for action, arguments in inbox:
            self.do(action, *arguments)
        if self.alive and not self.stopped:
            self.step()

    def on_continue(self, suspended: float) -> None:
        """It continues; its host was suspended for so many seconds."""

    def _set_back(self) -> float:
        """Its clock has stood still for so many seconds."""
        self.stopped = False
        since, self._suspended_at = self._suspended_at, None
        seconds = 0.0 if since is None else self.world.now - since
        self.clock.offset -= seconds * self.clock.rate
        return seconds

    def end(self) -> None:
        """It is gone, however it was."""
        if self.alive:
            self.alive = False
            self._set_back()
            self._inbox.clear()
