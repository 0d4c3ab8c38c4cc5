"""Resources and dependencies: simulations of different sizes, and analyses that take their futures as arguments.

What you learn: a task says what it needs (CPUs, memory, GPUs), and runs where and when there is that; several variants
say how else it may run. A future among the arguments is replaced by its result, which goes from task to task and not
through this process; the task waits for it. ``after`` waits without taking anything; ``explain`` says why a task waits.

It prints: what each simulation was given, why the last task waits, and the table that it makes of all results.
"""

import os

import numpy as np

from executor import HPCExecutor, Resources


def diffuse(cells: int) -> np.ndarray:
    """Heat that spreads in a plate: the temperature after 200 steps."""
    plate = np.zeros((cells, cells))
    plate[cells // 2, cells // 2] = cells**2
    for _ in range(200):
        neighbours = sum(np.roll(plate, shift, axis) for axis in (0, 1) for shift in (-1, 1))
        plate += 0.2 * (neighbours - 4 * plate)
    print(f"{cells} cells: {os.environ['HPC_CPUS'].count(',') + 1} CPUs, {os.environ['OMP_NUM_THREADS']} threads")
    return plate


def render(plate: np.ndarray) -> str:
    """A picture, made by a GPU if there is one, else by CPUs."""
    print("rendered on", "a GPU" if "CUDA_VISIBLE_DEVICES" in os.environ else "CPUs")
    middle = plate[plate.shape[0] // 2]
    return "".join(" .:-=+*#@"[int(9 * each / (middle.max() * 1.001))] for each in middle[:: len(middle) // 32])


def table(plates: dict[int, np.ndarray], picture: str) -> str:
    """One line for each plate."""
    rows = [f"{cells:5} cells: mean {plate.mean():.3f}, most {plate.max():.1f}" for cells, plate in plates.items()]
    return "\n".join([*rows, f"[{picture}]"])


with HPCExecutor(2, preload=["numpy"]) as ex:
    coarse, fine = ex.options(cpus=1, memory="200MiB"), ex.options(cpus=2, memory="400MiB", priority=1)
    plates = {cells: coarse.submit(diffuse, cells) for cells in (32, 64, 96)}
    plates[256] = fine.options(retries={"oom": 2}, memory_on_oom=2).submit(diffuse, 256)

    either = ex.options(resources=[Resources(cpus=1, gpus=1), Resources(cpus=2)], after=list(plates.values()))
    picture = either.submit(render, plates[256])
    summary = ex.submit(table, plates, picture)  # futures in a dictionary are arguments, too

    print(ex.explain(summary))
    print(summary.result())
