"""The limit: what this machine gives to a loop that forks a warmed interpreter and does nothing else.

A template (a small process of its own, cloudpickle imported, heap frozen) keeps some children in flight.
Each one unpickles a call, calls it, pickles the result and leaves: no queue, no messages, nothing brought
back. It is the limit of executors that fork when a task comes.
"""

import gc
import os
import pickle
import sys
import time

import cloudpickle  # noqa: F401  (a template has it, and forking a larger heap costs more)


def main(count: int, in_flight: int) -> None:
    """Reads the pickled call from stdin, prints the seconds that `count` children took."""
    payload = sys.stdin.buffer.read()
    gc.freeze()
    start = time.perf_counter()
    fork_all(payload, count, in_flight)
    print(time.perf_counter() - start)


def fork_all(payload: bytes, count: int, in_flight: int) -> None:
    for started in range(count):
        if started >= in_flight:
            wait_child()
        if os.fork() == 0:
            run(payload)
    for _ in range(min(count, in_flight)):
        wait_child()


def run(payload: bytes) -> None:
    """The child's whole life; whatever happens, it never returns into the parent's loop."""
    status = 1
    try:
        fn, args, kwargs = pickle.loads(payload)
        pickle.dumps(fn(*args, **kwargs))
        status = 0
    finally:
        os._exit(status)


def wait_child() -> None:
    _, status = os.wait()
    if status != 0:
        raise RuntimeError(f"a child of the bare fork loop ended with status {status}")
