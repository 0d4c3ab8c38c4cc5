"""Keeps a task on its CPUs: by the system ("taskset"), or by telling OpenMP ("omp"). Standard library only."""

import contextlib
import os
from collections.abc import Iterator, Sequence


def pin_variables(pin: str, cpus: Sequence[int]) -> dict[str, str]:
    """What a task sees of how it is pinned; with "omp" OpenMP sees to it. Nothing without CPUs of its own."""
    if not pin or not cpus:
        return {}
    told = {"HPC_PIN": pin, "HQ_PIN": pin}
    if pin == "omp":
        told |= {"OMP_PROC_BIND": "close", "OMP_PLACES": ",".join(f"{{{cpu}}}" for cpu in cpus)}
    return told


@contextlib.contextmanager
def pinned(pin: str, cpus: Sequence[int]) -> Iterator[None]:
    """What starts meanwhile in this thread starts on these CPUs, if ``pin`` is "taskset".

    Raises OSError if they are not ours to use.
    """
    if pin != "taskset" or not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        text = f"the task cannot be pinned to its CPUs {list(cpus)}: none of them is usable here"
        raise OSError(error.errno, text) from error
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
