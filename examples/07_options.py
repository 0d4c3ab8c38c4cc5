"""Options: what one task gets that another does not.

What you learn: ``ex.options(...)`` is a light view of the executor with ``submit`` and ``map`` of its own, so that no
name is taken from your function's arguments. Views can be refined, and wrong options fail where they are written.

It prints: what tasks with different environments and directories saw, the files that they wrote, a task that succeeded
at its third attempt, and the error for a misspelt option.
"""

import os
import tempfile
from pathlib import Path

from executor import HPCExecutor, OptionTypeError, Program


def surroundings() -> str:
    """What a task finds around it."""
    return f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')} in {Path.cwd().name}/"


def flaky() -> str:
    """Fails twice. Each attempt is a fresh interpreter, so it remembers by files."""
    attempt = len(list(Path.cwd().iterdir())) + 1
    Path(f"attempt-{attempt}").touch()
    if attempt < 3:
        raise OSError("the file server is busy")
    return f"succeeded at attempt {attempt}"


with tempfile.TemporaryDirectory() as folder, HPCExecutor() as ex:
    root = Path(folder)
    for threads in ("1", "8"):
        view = ex.options(env={"OMP_NUM_THREADS": threads}, cwd=root / f"run-{threads}")  # the folder is made
        print(view.submit(surroundings).result())

    case = ex.options(cwd=root / "case")
    case.options(stdout=root / "logs" / "case.log").submit(Program(["sh", "-c", "echo solved"])).result()
    print("case.log:", (root / "logs" / "case.log").read_text().strip())

    future = ex.options(cwd=root / "flaky", retries=5, name="upload").submit(flaky)
    print(f"{future.name}: {future.result()}, future.attempt is {future.attempt}")

    try:
        ex.options(timeout=60)
    except OptionTypeError as error:
        print(f"OptionTypeError: {error}")
