"""More agents: two here, and one that is invited, as it would be on another machine.

What you learn: tasks spread over all agents. ``invite`` gives a private file with a key; whoever starts an agent with
it (``python -P -m worker_agent FILE``) joins, over an encrypted connection, and leaves with the executor.

It prints: the agents, and that all of them were used.
"""

import os
import subprocess
import sys
import time

from executor import HPCExecutor


def work(number: int) -> tuple[int, int]:
    """A task of a tenth of a second; gives a number, and the template of its agent."""
    time.sleep(0.1)
    return number**2, os.getppid()


with HPCExecutor(2, agents=2) as ex:
    ex.submit(work, 0).result()
    invitation = ex.invite(host="127.0.0.1")  # elsewhere: the name or interface by which others reach us
    command = [sys.executable, "-P", "-m", "worker_agent", invitation.path]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as agent:
        while len(ex.workers()) < 3:
            time.sleep(0.05)
        for worker in ex.workers():
            kind = "ours" if worker.local else "invited"
            print(f"process {worker.pid} on {worker.host}: {worker.slots} places, {kind}")

        squares, templates = zip(*ex.map(work, range(60)), strict=True)
        print("60 results are right:", list(squares) == [number**2 for number in range(60)])
        print(f"{len(set(templates))} agents have worked")
        ex.shutdown()
        print("the invited one has left:", agent.wait(10) == 0)
