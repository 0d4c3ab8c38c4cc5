"""Stopping tasks: by a time limit, by hand, or before they start.

What you learn: ``time_limit`` ends a task with all that it started; ``kill()`` does so now; ``cancel()`` keeps a task
from starting; ``cancel(kill=True)`` works in either case. The next task has its place at once.

It prints: how each of five tasks ended, and what a killed program had still to say.
"""

import time

from executor import CAPTURE, HPCExecutor, Program, TaskFuture, TaskKilled, TaskTimeout

TALKER = """
trap 'echo I was asked to leave >&2; exit 1' TERM
echo started
while :; do sleep 0.05; done
"""


def wait_until_running(future: TaskFuture) -> None:
    """Until its process exists."""
    while not future.running():
        time.sleep(0.01)


with HPCExecutor(max_workers=1) as ex:
    quiet = ex.options(stdout=CAPTURE, stderr=CAPTURE)

    slow = quiet.options(time_limit="300ms").submit(time.sleep, 60)
    try:
        slow.result()
    except TaskTimeout as error:  # a TimeoutError
        print(f"TaskTimeout: limit {error.time_limit} s, ran {slow.ended - slow.started:.1f} s")

    talker = quiet.submit(Program(["sh", "-c", TALKER]))
    wait_until_running(talker)
    while "started" not in talker.stdout:  # output comes while the task runs
        time.sleep(0.01)
    talker.kill()  # SIGTERM to its process group; SIGKILL after kill_grace (2 s) to what is left
    try:
        talker.result()
    except TaskKilled as error:
        print(f"TaskKilled: status {error.returncode}, its last words: {error.stderr.splitlines()[-1]}")

    running, waiting, last = (quiet.submit(time.sleep, 60) for _ in range(3))
    wait_until_running(running)
    print("cancel() of a waiting task:", waiting.cancel())
    print("cancel() of a running task:", running.cancel())
    print("cancel(kill=True) of a running task:", running.cancel(kill=True))
    print("cancel(kill=True) of another one:", last.cancel(kill=True))
    print("and the executor goes on:", ex.submit(sum, [20, 22]).result())
