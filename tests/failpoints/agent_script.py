"""In place of ``worker_agent/interpreter.py``: ``agent_script.py agent|template|spawned|invited ...``.

It does what that script does, with a failpoint: in between it wraps the function that is to fail. Processes that the
agent starts are started with this script again. ``invited FILE`` is ``python -m worker_agent FILE``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
#: Where the product's package is: this script belongs to the same repository.
_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(_HERE)), "worker_agent")


def main(role: str) -> None:
    """Become a process of this role."""
    sys.path[:0] = [_HERE, _PACKAGE]
    import interpreter
    import points

    del sys.path[:2]
    load_package = interpreter.load_package
    fault = points.read_fault()

    def load_package_and_install(directory: str) -> None:
        load_package(directory)
        if role in ("agent", "invited"):
            install_in_agent(points, fault)
        else:
            points.install(fault, role)

    interpreter.load_package = load_package_and_install
    if role == "invited":
        interpreter.load_package(_PACKAGE)
        from worker_agent import __main__ as agent

        agent.main(sys.argv[2:])
    interpreter.main(role, _PACKAGE)


def install_in_agent(points: Any, fault: Any) -> None:
    """The failpoint of an agent is installed in the agent: what its supervisor does not need is not loaded there."""
    from worker_agent import supervisor

    become_agent = supervisor._become_agent
    in_supervisor = fault.point.target.startswith("worker_agent.supervisor:")

    def become_agent_and_install(agent: Callable[[], None]) -> None:
        from worker_agent import spawning

        spawning.SCRIPT = os.path.abspath(__file__)
        points.set_constants(fault)
        if not in_supervisor:
            points.install(fault, "agent")
        become_agent(agent)

    supervisor._become_agent = become_agent_and_install
    if in_supervisor:
        points.install(fault, "agent")


if __name__ == "__main__":
    main(sys.argv[1])
