"""MPI: a program and a function on several ranks.

What you learn: ``ranks=4`` has a launcher (``srun`` in Slurm, ``mpirun`` elsewhere) start a task four times at once,
each of them a rank that knows the others. A program is one as always; a function gives the list of its results, by
rank. With ``nodes=2`` they are spread over two whole nodes. The function needs mpi4py.

It prints: the number of ranks that the program saw, and pi, which each rank has summed up a part of. Without MPI or
mpi4py it says so.
"""

import os
import shutil
from importlib.util import find_spec

from executor import CAPTURE, HPCExecutor, Program

RANKS = 4


def pi(steps: int) -> tuple[int, float]:
    """Midpoints below a quarter of a circle: each rank takes every fourth."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    midpoints = ((step + 0.5) / steps for step in range(world.rank, steps, world.size))
    part = sum(4 / (1 + x * x) for x in midpoints) / steps
    return world.rank, world.allreduce(part)


def main() -> None:
    if os.getuid() == 0:  # in a container, say: Open MPI wants to hear twice that this is meant
        os.environ |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    with HPCExecutor(RANKS) as ex:
        tasks = ex.options(ranks=RANKS, stdout=CAPTURE)
        if shutil.which("mpirun"):
            done = tasks.submit(Program(["sh", "-c", "echo $HPC_NUM_RANKS"])).result()
            print("each of them saw", done.stdout.split())
        else:
            print("no program was started: there is no mpirun; apt install openmpi-bin")
        if shutil.which("mpirun") and find_spec("mpi4py"):
            for rank, value in tasks.submit(pi, 200_000).result():
                print(f"rank {rank}: pi is {value:.6f}")
        else:
            print("no function was called: there is no mpirun or no mpi4py; pip install mpi4py")


if __name__ == "__main__":
    main()
