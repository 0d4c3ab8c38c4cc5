"""What the batch system that started us has given us: CPUs, memory, time. Told by variables alone; no command is run.

The variables are those in the manuals of Slurm (sbatch, srun), PBS Professional, Torque (qsub) and Grid Engine
(submit). What does not say what it should sets no limit.
"""

from __future__ import annotations

from collections.abc import Mapping

from worker_agent.amounts import MIB
from worker_agent.cgroups import positive


def granted_cpus(env: Mapping[str, str]) -> int | None:
    """How many CPUs of this node are ours; None: nobody says."""
    return min((*_slurm_cpus(env), *_pbs_cpus(env), *_grid_engine_cpus(env)), default=None)


def _slurm_cpus(env: Mapping[str, str]) -> list[int]:
    # In a batch script the CPUs of a task are only a part of the job's; in a step, each of its processes is a task.
    names = ["SLURM_CPUS_ON_NODE", *(["SLURM_CPUS_PER_TASK"] if "SLURM_STEP_ID" in env else [])]
    return _numbers(env, *names) if "SLURM_JOB_ID" in env else []


def _pbs_cpus(env: Mapping[str, str]) -> list[int]:
    return _numbers(env, "NCPUS") if "PBS_JOBID" in env else []  # users have an NCPUS of their own elsewhere


def _grid_engine_cpus(env: Mapping[str, str]) -> list[int]:
    # Slots are counted over all hosts of the job, and how many of them are on this one is in a file only.
    return _numbers(env, "NSLOTS") if "JOB_ID" in env and env.get("NHOSTS") == "1" else []


def granted_memory(env: Mapping[str, str], cpus: int) -> int | None:
    """Bytes of this node's memory that are ours, if we have ``cpus`` and nobody says how many; None: nobody says."""
    if "SLURM_JOB_ID" not in env:
        return None
    on_node = _numbers(env, "SLURM_MEM_PER_NODE")  # 0 is all there is
    per_cpu = [(granted_cpus(env) or cpus) * each for each in _numbers(env, "SLURM_MEM_PER_CPU")]
    return min((mebibytes * MIB for mebibytes in on_node + per_cpu), default=None)


def remaining_seconds(env: Mapping[str, str], now: float) -> float | None:
    """Seconds until the batch system ends our job; None: nobody says. ``now`` is in seconds since the epoch.

    PBS says only how long the job runs in all: that is right for an agent that begins as the job does.
    """
    left = [max(0.0, end - now) for end in _numbers(env, "SLURM_JOB_END_TIME")]
    return min((*left, *map(float, _numbers(env, "PBS_WALLTIME"))), default=None)


def default_group(env: Mapping[str, str]) -> str:
    """What all agents of one batch job have in common, and no others; "" outside of a batch job.

    An instance of Flux runs inside of jobs of the others, so that its own jobs come first.
    """
    for system, name in (("flux", "FLUX_JOB_ID"), ("slurm", "SLURM_JOB_ID"), ("pbs", "PBS_JOBID")):
        if env.get(name):
            return f"{system}-{env[name]}"
    return _grid_engine_group(env)


def _grid_engine_group(env: Mapping[str, str]) -> str:
    """All tasks of an array have the job's number; "undefined" is the task's number where there is no array."""
    task = env.get("SGE_TASK_ID", "")
    if not env.get("JOB_ID") or not (task or "SGE_ROOT" in env):  # others have a JOB_ID, too
        return ""
    return f"sge-{env['JOB_ID']}" + (f".{task}" if positive(task) else "")


def _numbers(env: Mapping[str, str], *names: str) -> list[int]:
    """Those of these variables that are set to whole numbers above 0."""
    return [number for name in names if (number := positive(env.get(name, ""))) is not None]
