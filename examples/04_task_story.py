"""What a future can tell about its task.

What you learn: besides the result, a ``TaskFuture`` has the task's output, process, times, CPU time, peak memory and
number of attempts, for functions and for programs.

It prints: a function's story and a program's story, side by side.
"""

import sys
import time

from executor import CAPTURE, HPCExecutor, Program, TaskFuture


def work(megabytes: int) -> str:
    """Use some memory and some CPU, and talk about it."""
    block = bytearray(megabytes * 2**20)
    print(f"{len(block) // 2**20} MiB in hand", flush=True)
    print("a warning, say", file=sys.stderr)
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    return "done"


def story(future: TaskFuture) -> dict[str, object]:
    """The attributes, in the order in which things happened."""
    return {
        "name": future.name,
        "state": future.state,
        "attempt": future.attempt,
        "process": f"{future.pid} on {future.host}",
        "waited": f"{future.started - future.submitted:.3f} s",
        "ran": f"{future.ended - future.started:.2f} s",
        "CPU time": f"{future.usage.cpu_time:.2f} s",
        "peak memory": f"{future.usage.max_rss / 2**20:.0f} MiB",
        "status": future.returncode,
        "stdout": future.stdout.strip(),
        "stderr": future.stderr.strip(),
    }


with HPCExecutor() as ex:
    quiet = ex.options(stdout=CAPTURE, stderr=CAPTURE)
    call = quiet.submit(work, 100)
    program = quiet.options(name="counting").submit(Program(["awk", "BEGIN { while (i < 2e6) i++; print i }"]))
    print("the function gave", call.result())
    print("the program gave", program.result().stdout.strip())

print(call, program, sep="\n", end="\n\n")

theirs = story(program)
for key, value in story(call).items():
    print(f"{key:>12}  {value!s:<20}  {theirs[key]}")
