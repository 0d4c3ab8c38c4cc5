"""Batch jobs directly: one, an array, and one that waits for them.

What you learn: a ``BatchJob`` is submitted to the site's own batch system and goes on without this script. "local" is a
batch system without a queue, on this machine; ``python 15_batch_job.py slurm``, or the name of a cluster in
``hpc-executor.toml``, submits the same jobs there. Their directory has to be one that the nodes see.

It prints: the options of a job script, then how each of the jobs has ended, and what it wrote.
"""

import sys
from tempfile import TemporaryDirectory
from typing import Any

from executor import BatchArray, BatchJob, get_scheduler

scheduler = get_scheduler(sys.argv[1] if len(sys.argv) > 1 else "local")

with TemporaryDirectory(prefix="batch-jobs-", dir=".") as folder:

    def job(command: str, name: str, **options: Any) -> BatchJob:
        """A batch job in the directory; all its words but the command are options."""
        return BatchJob(command, name=name, workdir=folder, time="5m", **options)

    mesh = job("seq 100 > mesh && wc -l < mesh", "mesh", env={"LC_ALL": "C"})
    print(*(line for line in mesh.script(scheduler).splitlines() if line.startswith("#")), sep="\n")
    first = scheduler.submit(mesh)

    solve = job("awk -v n=$HPC_ARRAY_INDEX '{ sum += $1 ^ n } END { print sum }' mesh", "solve", dependencies=[first])
    runs = scheduler.submit(BatchArray(solve, 1, 3, max_concurrent=2))

    check = job("echo all runs are there; echo but I do not like them >&2; exit 3", "check", dependencies=[runs])
    last = scheduler.submit(check)

    print("mesh:", first.wait().value, "->", first.read_stdout().strip())
    for number, status in runs.wait().items():
        print(f"solve {number}:", status.value, "->", runs.read_stdout(number).strip())
    print("check:", last.wait().value, "with status", last.returncode, "->", last.read_stderr(tail=1).strip())
