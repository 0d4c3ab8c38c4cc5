"""What `simulate` simulates: agents with their pools, jobs with their needs, durations and dependencies.

Each shape is a function from a :class:`Size` to jobs. All is drawn from one seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from executor.core.model import ONE_CPU_EACH, Variants
from executor.core.needs import Need, Needs
from worker_agent.pools import UNIT, Pool

#: Of each CPU, in MiB.
MEMORY_PER_CPU: Final = 4096
#: One agent in so many has GPUs, and that many of them.
GPU_AGENTS, GPUS = 10, 8
#: One class in so many needs a GPU; as many may have one.
GPU_CLASSES: Final = 20
#: What tasks of a class take on average is between these, in seconds; each takes up to half more or less.
SHORTEST, LONGEST = 5.0, 40.0
EQUAL: Final = 10.0
#: To split the work and to join it takes a moment: meanwhile nothing else can run, and no bound knows that.
FORK: Final = 1.0
#: Stages of fork-join graphs, and layers of layered ones.
STAGES, LAYERS = 4, 10


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is of everything."""

    agents: int = 1000
    cpus: int = 128
    tasks: int = 100_000
    classes: int = 50
    seed: int = 1
    #: tasks of the shape "equal" take up to this part more or less
    jitter: float = 0.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What the tasks of one class have in common; ``seconds`` is their mean duration."""

    environment: int
    variants: Variants
    seconds: float


@dataclass(frozen=True, slots=True)
class Job:
    """A task as the simulation knows it: the scheduler is not told the ``seconds``."""

    number: int
    kind: Kind
    seconds: float
    after: tuple[int, ...] = ()


def make_pools(size: Size) -> list[list[Pool]]:
    """Of each agent."""
    half = -(-size.cpus // 2)
    sockets = [[str(cpu) for cpu in range(size.cpus)][start : start + half] for start in range(0, size.cpus, half)]
    plain = [Pool("cpus", sockets), Pool("memory", size=size.cpus * MEMORY_PER_CPU * UNIT)]
    rich = [*plain, Pool("gpus", [[str(gpu) for gpu in range(GPUS)]])]
    return [rich if number % GPU_AGENTS == 0 else plain for number in range(size.agents)]


def make_jobs(shape: str, size: Size) -> list[Job]:
    """The tasks of a shape. What one waits for comes before it."""
    return SHAPES[shape](_Maker(size, mixed=shape != "equal"))


class _Maker:
    """Makes jobs of random classes."""

    def __init__(self, size: Size, *, mixed: bool) -> None:
        self.size = size
        self.chance = random.Random(size.seed)
        self.jobs: list[Job] = []
        self._kinds = list(self._mixed_kinds()) if mixed else [Kind(0, ONE_CPU_EACH, EQUAL)]
        self._spread = 0.5 if mixed else size.jitter

    def _mixed_kinds(self) -> Iterator[Kind]:
        for number in range(self.size.classes):
            seconds = math.exp(self.chance.uniform(math.log(SHORTEST), math.log(LONGEST)))
            yield Kind(number, self._variants(number), seconds)

    def _variants(self, number: int) -> Variants:
        most = min(32, self.size.cpus)
        cpus = min(most, int(2 ** self.chance.uniform(0, math.log2(most + 1))))
        memory = min(self.chance.choice([0, 512, 2048, 6144]) * cpus, self.size.cpus * MEMORY_PER_CPU)
        on_cpus = _needs(cpus=cpus, memory=memory)
        if number % GPU_CLASSES == 5:
            return (_needs(cpus=1, gpus=self.chance.choice([0.5, 1, 2]), memory=memory),)
        if number % GPU_CLASSES == 15:
            return _needs(cpus=1, gpus=1, memory=memory), on_cpus
        return (on_cpus,)

    def add(self, after: tuple[int, ...] = (), seconds: float = 0.0) -> int:
        """One more job, of any class; its number."""
        kind = self.chance.choice(self._kinds)
        seconds = seconds or round(kind.seconds * self.chance.uniform(1 - self._spread, 1 + self._spread), 3)
        self.jobs.append(Job(len(self.jobs) + 1, kind, seconds, after))
        return len(self.jobs)


def _needs(**amounts: float) -> Needs:
    return Needs(tuple(Need(name, round(amount * UNIT)) for name, amount in sorted(amounts.items()) if amount))


def _independent(maker: _Maker) -> list[Job]:
    for _ in range(maker.size.tasks):
        maker.add()
    return maker.jobs


def _fork_join(maker: _Maker) -> list[Job]:
    """Stage after stage: one task, then many that wait for it, for all of which the next one waits."""
    wide = max(1, maker.size.tasks // STAGES - 1)
    parts: tuple[int, ...] = ()
    for _ in range(STAGES):
        first = maker.add(parts, FORK)
        parts = tuple(maker.add((first,)) for _ in range(wide))
    maker.add(parts, FORK)
    return maker.jobs


def _layered(maker: _Maker) -> list[Job]:
    """Each task waits for up to three of the layer before."""
    wide = max(1, maker.size.tasks // LAYERS)
    layer = range(0)
    for _ in range(LAYERS):
        first = len(maker.jobs) + 1
        for _ in range(wide):
            maker.add(tuple({maker.chance.choice(layer) for _ in range(maker.chance.randint(1, 3))} if layer else ()))
        layer = range(first, first + wide)
    return maker.jobs


def _workflow(maker: _Maker) -> list[Job]:
    """Montage: images are projected, their overlaps compared, all fitted at once; then each is corrected; mosaics."""
    images = max(2, maker.size.tasks // 5)
    projected = [maker.add() for _ in range(images)]
    neighbours = [(number, (number + step) % images) for number in range(images) for step in (1, 2, 3)]
    overlaps = [maker.add((projected[one], projected[other])) for one, other in neighbours if one != other]
    model = maker.add((maker.add(tuple(overlaps)),))
    corrected = [maker.add((model, image)) for image in projected]
    tiles = [maker.add(tuple(corrected[start : start + 20])) for start in range(0, images, 20)]
    maker.add(tuple(tiles))
    return maker.jobs


SHAPES: Final[dict[str, Callable[[_Maker], list[Job]]]] = {
    "equal": _independent,
    "mixed": _independent,
    "fork-join": _fork_join,
    "layered": _layered,
    "workflow": _workflow,
}
