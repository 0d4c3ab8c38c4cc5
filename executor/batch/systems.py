"""Which batch systems there are: by name, by what this machine has, and those that a site brings along."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from executor.batch.flux import FluxSystem
from executor.batch.grid_engine import GridEngineSystem
from executor.batch.local import LocalSystem
from executor.batch.pbs import PBSSystem, TorqueSystem
from executor.batch.slurm import SlurmSystem
from executor.batch.system import BatchSystem

#: Entry points by which a site brings along batch systems: ``lsf = "site_package.lsf:LSFSystem"``. One that has the
#: name of one of ours takes its place.
GROUP = "hpc_executor.batch_systems"
_OURS: tuple[type[BatchSystem], ...] = (
    SlurmSystem, GridEngineSystem, PBSSystem, TorqueSystem, FluxSystem, LocalSystem
)  # fmt: skip
#: The one that is everywhere, and is only meant if it is said.
_EVERYWHERE = LocalSystem.name


def system_names() -> list[str]:
    """The names that :func:`get_system` knows."""
    return list(_makers())


def get_system(name: str, **settings: Any) -> BatchSystem:
    """The batch system of this name: "slurm", "sge", "pbs", "torque", "flux", or one that a site has brought along.

    :param settings: arguments of its class, such as ``pe="smp"`` for Grid Engine.

    Raises ValueError for a name that there is not, TypeError for settings that it does not have.
    """
    found = _makers().get(name)
    if found is None:
        raise ValueError(
            f"batch system {name!r}: expected one of {', '.join(sorted(_makers()))}; others are brought along by an "
            f"entry point in the group {GROUP!r}"
        )
    system = _load(found)(**settings)
    if not isinstance(system, BatchSystem):
        raise TypeError(f"batch system {name!r} is {system!r}: expected its entry point to make a BatchSystem")
    return system


def find_system(env: Mapping[str, str] = os.environ) -> BatchSystem:
    """The batch system of this machine: the one whose commands are in PATH.

    Where there are several, it is the one in whose job we are, or for which variables are set. Raises LookupError if
    there is none, or more than one all the same.
    """
    systems = [get_system(name) for name in _makers() if name != _EVERYWHERE]
    here = [system for system in systems if shutil.which(system.program, path=env.get("PATH"))]
    if len(here) > 1:
        here = [system for system in here if _is_told(system, env)] or here
    if len(here) == 1:
        return here[0]
    names = ", ".join(system.name for system in here or systems)
    if here:
        raise LookupError(f"this machine has several batch systems ({names}): expected one of these to be named")
    programs = ", ".join(f"{system.program} ({system.name})" for system in systems)
    raise LookupError(
        f"no batch system: none of {programs} is in PATH; add its directory to PATH, or name "
        f"one; jobs are processes of this machine in the one that is called {_EVERYWHERE!r}"
    )


def _is_told(system: BatchSystem, env: Mapping[str, str]) -> bool:
    return any(name.startswith((system.job_variables[0], *system.site_variables)) for name in env)


def _makers() -> dict[str, EntryPoint | type[BatchSystem]]:
    makers: dict[str, EntryPoint | type[BatchSystem]] = {system.name: system for system in _OURS}
    return makers | {entry.name: entry for entry in entry_points(group=GROUP)}


def _load(found: EntryPoint | type[BatchSystem]) -> Callable[..., Any]:
    if isinstance(found, EntryPoint):
        maker: Callable[..., Any] = found.load()
        return maker
    return found
