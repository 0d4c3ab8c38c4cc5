"""What a seed that fails tells."""

from __future__ import annotations

from judge import Violation
from world import World


def story(seed: int) -> str:
    """Of the task concerned, who did what and when; and how to see it again."""
    world = World(seed, trace=True)
    try:
        world.run()
    except Violation as violation:
        return "\n".join(_render(world, seed, str(violation), violation.task))
    except Exception as error:
        return "\n".join(_render(world, seed, f"{type(error).__name__}: {error}", None))
    return f"seed {seed} fails no more"


def _render(world: World, seed: int, what: str, about: int | None) -> list[str]:
    assert world.trace is not None
    lines = [f"seed {seed}, {world.now:.3f} s: {what}", f"faults: {', '.join(sorted(world.faults))}"]
    for time, who, text, task in world.trace:
        if task is None or task == about:
            lines.append(f"{time:10.4f}  {who:8}  {text}" + (f" (task {task})" if task else ""))
    lines.append(f"again: python tests/simulation/simulate.py 1 --first {seed}")
    return lines
