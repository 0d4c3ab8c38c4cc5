"""The script that everything of ours starts with: ``python -P interpreter.py ROLE ...``.

It makes this package importable from where it lies, so that an interpreter's own environment needs nothing of ours and
gets nothing else of the agent's, and it leaves ``__main__`` empty for the user's code.
"""

import os
import sys

TYPE_CHECKING = False  # typing's own costs a new interpreter milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable


def load_package(directory: str) -> None:
    """Make ``worker_agent`` importable although its parent is not on ``sys.path``."""
    from importlib.util import module_from_spec, spec_from_file_location

    init = f"{directory}/__init__.py"
    spec = spec_from_file_location("worker_agent", init, submodule_search_locations=[directory])
    assert spec is not None
    assert spec.loader is not None
    package = module_from_spec(spec)
    sys.modules["worker_agent"] = package
    spec.loader.exec_module(package)


def hold_fork_hooks() -> "Callable[[], list[dict[str, object]]]":
    """Keep back what the standard library wants done after a fork; gives a function that ends this and tells it.

    ``threading`` and ``logging`` repair locks and threads. A template has no other threads and holds no locks: there is
    nothing to repair, and to look is three quarters of a fork's page faults. Its children register the hooks.
    """
    hooks: list[dict[str, object]] = []
    register = os.register_at_fork
    os.register_at_fork = lambda **hook: hooks.append(hook)

    def release() -> list[dict[str, object]]:
        os.register_at_fork = register
        return hooks

    return release


def main(role: str, directory: str) -> None:
    """Become a template, an interpreter that runs tasks at once, an agent, a launcher of ranks, or a rank of a call."""
    release = hold_fork_hooks() if role == "template" else None
    load_package(directory)
    if role == "agent":
        from worker_agent import __main__ as agent

        agent.main([], python=sys.argv[2:])
    if role == "invited":
        from worker_agent import __main__ as agent

        agent.main(sys.argv[2:])
    if role == "launch":
        from worker_agent import launch

        launch.main(sys.argv[2:])
    arguments = sys.argv[2:]
    sys.modules["__main__"] = type(sys)("__main__")
    sys.argv[:] = [""]
    if release is not None:
        from worker_agent import template

        template.main(release)
    elif role == "rank":
        from worker_agent import rank

        rank.main(arguments[0])
    else:
        from worker_agent import runner

        runner.main()


if __name__ == "__main__":
    main(sys.argv[1], __file__.rpartition("/")[0])
