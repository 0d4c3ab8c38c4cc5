"""Whether a process grows, though what it holds comes and goes: its least memory and open files are compared."""

import ctypes
import os
import sys
from collections.abc import Iterable

MIB = 1 << 20
#: What grows by less than this over the whole run is noise: an allocator that has seen 64 MiB, an agent that has just
#: begun to run calls, which takes 13 descriptors for the template and its queues.
NOISE = {"MiB": 16.0, "files": 16.0, "thousand blocks of Python": 15.0}
#: Seconds of which only the least is kept.
_INTERVAL = 10.0
_libc = ctypes.CDLL(None)


class Gauge:
    """One process over time. Peaks are no growth: what counts is the floor of each quarter of the time."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        #: per interval: when it began, and the least of each unit
        self._floors: list[tuple[float, dict[str, float]]] = []

    def read(self, now: float) -> None:
        """Take note, if the process is there."""
        try:
            found = self._look()
        except OSError:
            return
        if not self._floors or now >= self._floors[-1][0] + _INTERVAL:
            self._floors.append((now, found))
            return
        least = self._floors[-1][1]
        least.update({unit: min(value, least[unit]) for unit, value in found.items()})

    def _look(self) -> dict[str, float]:
        with open(f"/proc/{self.pid}/status") as file:  # its own memory; files that it has mapped come and go
            [own] = [int(line.split()[1]) for line in file if line.startswith("RssAnon:")]
        found = {"MiB": own / 1024, "files": float(len(os.listdir(f"/proc/{self.pid}/fd")))}
        if self.pid == os.getpid():
            found["thousand blocks of Python"] = sys.getallocatedblocks() / 1000
        return found

    def verdicts(self, name: str) -> Iterable[tuple[bool, str]]:
        """Per unit: whether it is flat after the warm-up (a quarter of the time), and the figures in words."""
        quarters = self._quarters()
        if not all(quarters):
            yield True, f"{name}: too short to say"
            return
        for unit in quarters[0][0]:
            floors = [min(values[unit] for values in quarter) for quarter in quarters]
            flat = floors[3] - floors[1] < NOISE[unit]
            words = ", ".join(f"{floor:.1f}" for floor in floors)
            yield flat, f"{name}: {words} {unit} (floors of the quarters): {'flat' if flat else 'GROWS'}"

    def _quarters(self) -> list[list[dict[str, float]]]:
        quarters: list[list[dict[str, float]]] = [[], [], [], []]
        for at, values in self._floors:
            share = (at - self._floors[0][0]) / (self._floors[-1][0] - self._floors[0][0] or 1.0)
            quarters[min(3, int(4 * share))].append(values)
        return quarters


def give_back() -> None:
    """Return to the system what libc keeps for later."""
    _libc.malloc_trim(0)
