"""What the measured tasks do: next to nothing, so that what remains is the price of the executor.

Fresh interpreters import this module for each task, therefore it imports nothing itself.
"""

from typing import Any


def nothing() -> None:
    return None


def identity(value: Any) -> Any:
    return value


def nap(value: Any = None) -> Any:
    """Keeps one worker busy long enough that the other one gets its task, too."""
    import time

    time.sleep(0.1)
    return value


def true() -> None:
    """What people write today to run a program as a task."""
    import subprocess

    subprocess.run(["/bin/true"], check=True)


def keep(path: str, call: Any, args: tuple[Any, ...]) -> None:
    """For peers that throw results away: the result goes through a file."""
    import pickle

    with open(path, "wb") as file:
        pickle.dump(call(*args), file, protocol=pickle.HIGHEST_PROTOCOL)
