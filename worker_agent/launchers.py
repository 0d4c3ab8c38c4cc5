"""How programs are started on several ranks: the command lines of launchers. Values in, words out; nothing is run here.

    srun           srun(1) of Slurm, https://slurm.schedmd.com/srun.html; --overlap is there since 20.11
    Open MPI       mpirun(1) of 4.1, https://www.open-mpi.org/doc/v4.1/man1/mpirun.1.php; 5.0 takes the same options
    Hydra          mpiexec of MPICH, Intel MPI and MVAPICH, https://github.com/pmodels/mpich "Using the Hydra Process Manager"
    flux run       flux-run(1), https://flux-framework.readthedocs.io
    one's own      words with ``{ranks}`` and the like, see ``PLACEHOLDERS``

The hub has decided what fits where, so that each launcher is told how many ranks each host gets, and to bind none of
them to CPUs: that is what the option ``pin`` is for.
"""  # noqa: E501  the name of a page

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

#: Launchers that we know by the names of their programs.
KNOWN: Final = ("srun", "mpirun", "mpiexec", "flux")
#: What words of one's own launcher may have in them. ``{hostfile}`` has each host once for each of its ranks.
PLACEHOLDERS: Final = ("ranks", "nodes", "ranks_per_node", "hosts", "hostfile")
#: In braces, what may be a placeholder.
BRACED: Final = re.compile(r"\{(\w+)\}", re.ASCII)

#: Variables by which jobs, steps and launchers know their processes. Those of the submitter mean another job.
_FOREIGN = (
    "SLURM_", "SLURMD_", "SRUN_", "PMI_", "PMI2_", "PMIX_", "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_", "PBS_", "PE_HOSTFILE",
    "FLUX_",
)  # fmt: skip
#: Of these, what says how a site or a user wants things.
_KEPT = ("SLURM_CONF", "SLURM_MPI_TYPE", "PMIX_MCA_")
#: What tells launchers of the allocation that the agent is in. Those of its step they would take as options.
_ALLOCATION = (
    "SLURM_CONF", "SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_JOBID", "PBS_JOBID", "PBS_NODEFILE", "PBS_ENVIRONMENT",
    "PE_HOSTFILE", "JOB_ID", "SGE_TASK_ID", "SGE_ROOT", "SGE_CELL", "SGE_CLUSTER_NAME", "SGE_QMASTER_PORT",
    "SGE_EXECD_PORT", "FLUX_URI", "FLUX_JOB_ID",
)  # fmt: skip
#: How Open MPI and Hydra reach the other hosts of a job of Grid Engine: it only asks them where it was installed as
#: they expect. A tree would need that from these hosts, too.
_IN_GRID_ENGINE = {
    "OMPI_MCA_plm_rsh_agent": "qrsh -inherit -nostdin -V", "OMPI_MCA_plm_rsh_no_tree_spawn": "1",
    "HYDRA_BOOTSTRAP": "sge",
}  # fmt: skip
#: Variables that are another host's own.
_OF_A_HOST = ("HOME", "HOSTNAME", "LOGNAME", "OLDPWD", "PWD", "SHLVL", "TMPDIR", "USER", "XDG_RUNTIME_DIR", "_")
_PREFIXES_OF_A_HOST = ("SSH_", "SLURM_", "BASH_FUNC_", "OMPI_", "PMIX_", "PRTE_")


@dataclass(frozen=True, slots=True)
class Ranks:
    """So many processes in all, evenly on ``hosts``; ``file`` names each host once for each of its ranks."""

    number: int
    hosts: tuple[str, ...]
    file: str = ""

    @property
    def per_host(self) -> int:
        """How many ranks each entry of ``hosts`` has."""
        return self.number // len(self.hosts)

    @property
    def slots(self) -> str:
        """Each host once, with its ranks: ``n1:2,n2:2``. Two agents on one host add up."""
        counted = Counter(self.hosts)
        if len(counted) == 1:
            return f"localhost:{self.number}"  # the name of this host need not lead anywhere
        return ",".join(f"{host}:{times * self.per_host}" for host, times in counted.items())


class NoLauncher(Exception):
    """There is none; what was looked for and where, and what to do."""


def candidates(named: Sequence[str], agent: Mapping[str, str]) -> tuple[str, ...]:
    """The programs of which the first one that exists is the launcher; ``agent`` has the agent's own variables."""
    if named:
        return (named[0],)
    return ("srun",) if agent.get("SLURM_JOB_ID") else ("mpirun", "mpiexec")


def describe_missing(names: Iterable[str], path: str) -> str:
    """Why tasks with ranks cannot start."""
    return (
        f"no launcher for its ranks: there is no {' and no '.join(names)} in PATH ({path}). Load the MPI of your site "
        "(in a prologue: module load openmpi), or name its launcher: launcher='/opt/mpi/bin/mpirun'"
    )


def words(named: Sequence[str], program: str, ranks: Ranks, agent: Mapping[str, str]) -> list[str] | None:
    """What starts the ranks, up to the program itself; ``program`` is the path of the launcher.

    None: it is an MPI's own, of which several have the same name: :func:`mpi_words` knows more.
    """
    if len(named) > 1:
        return [program, *(_filled(word, ranks) for word in named[1:])]
    name = os.path.basename(program)
    if name == "srun":
        return [program, *_srun(ranks, agent)]
    return [program, *_flux(ranks)] if name == "flux" else None


def mpi_words(program: str, version: str, ranks: Ranks, names: Iterable[str]) -> list[str]:
    """The same for ``mpirun`` and ``mpiexec``, which have said what they are when asked for their ``--version``.

    ``names`` are the variables of the program. Raises NoLauncher: we do not know that one.
    """
    if any(word in version for word in ("Open MPI", "OpenRTE", "PRRTE", "Spectrum MPI")):
        return [program, *_open_mpi(ranks, names)]
    if any(word in version for word in ("HYDRA", "Hydra", "Intel(R) MPI", "MVAPICH")):
        return [program, *_hydra(ranks)]
    raise NoLauncher(
        f"{program} --version says {version[:200]!r}, and is neither Open MPI's nor Hydra's. Say how it is used: "
        f"launcher=[{program!r}, '-n', '{{ranks}}', '--hostfile', '{{hostfile}}']"
    )


def _srun(ranks: Ranks, agent: Mapping[str, str]) -> list[str]:
    hosts = dict.fromkeys(host.partition(".")[0] for host in ranks.hosts)
    return [
        "--overlap", f"--jobid={agent.get('SLURM_JOB_ID', '')}", f"--nodes={len(hosts)}", f"--ntasks={ranks.number}",
        f"--ntasks-per-node={ranks.number // len(hosts)}", f"--nodelist={','.join(hosts)}", "--distribution=block",
        "--cpu-bind=none", "--mem=0", "--export=ALL", "--input=0", "--kill-on-bad-exit=1",
    ]  # fmt: skip


def _open_mpi(ranks: Ranks, names: Iterable[str]) -> list[str]:
    # The slots are told, so that it never oversubscribes and never refuses what the hub has found to fit.
    found = ["-n", str(ranks.number), "--host", ranks.slots, "--bind-to", "none"]
    if len(set(ranks.hosts)) > 1:  # its daemons elsewhere have the variables of a login there
        found += [word for name in sorted(names) if _travels(name) for word in ("-x", name)]
    return found


def _travels(name: str) -> bool:
    return name.isidentifier() and name not in _OF_A_HOST and not name.startswith(_PREFIXES_OF_A_HOST)


def _hydra(ranks: Ranks) -> list[str]:
    return ["-n", str(ranks.number), "-hosts", ranks.slots, "-bind-to", "none"]


def _flux(ranks: Ranks) -> list[str]:
    hosts = list(dict.fromkeys(ranks.hosts))
    return [
        "run", f"--nodes={len(hosts)}", f"--ntasks={ranks.number}", f"--requires=host:{','.join(hosts)}",
        "-o", "cpu-affinity=off",
    ]  # fmt: skip


def _filled(word: str, ranks: Ranks) -> str:
    values = {
        "ranks": str(ranks.number), "nodes": str(len(set(ranks.hosts))), "ranks_per_node": str(ranks.per_host),
        "hosts": ",".join(dict.fromkeys(ranks.hosts)), "hostfile": ranks.file,
    }  # fmt: skip
    return BRACED.sub(lambda match: values.get(match[1], match[0]), word)


def variables(env: Mapping[bytes, bytes], agent: Mapping[str, str], ranks: Ranks) -> dict[bytes, bytes]:
    """What a launcher finds: the task's variables, and of batch systems only what ``agent``, the agent's own, say."""
    foreign, kept = (tuple(os.fsencode(each) for each in names) for names in (_FOREIGN, _KEPT))
    found = {name: text for name, text in env.items() if not name.startswith(foreign) or name.startswith(kept)}
    told = {name: agent[name] for name in _ALLOCATION if name in agent}
    if "SLURM_JOB_ID" in told:
        told |= _in_slurm(ranks)
    if "PE_HOSTFILE" in told:
        told |= {name: text for name, text in _IN_GRID_ENGINE.items() if os.fsencode(name) not in env}
    return found | {os.fsencode(name): os.fsencode(text) for name, text in told.items()}


def _in_slurm(ranks: Ranks) -> dict[str, str]:
    """What mpirun takes for its allocation: our hosts, with as many slots as there are ranks.

    Slurm counts tasks, of which an allocation of ours has one on each node: the agent. The agents' steps have all CPUs
    and memory already, which mpirun's own srun is told by the last ones.
    """
    hosts = list(dict.fromkeys(host.partition(".")[0] for host in ranks.hosts))
    slots = f"{ranks.number // len(hosts)}(x{len(hosts)})"
    return {
        **dict.fromkeys(("SLURM_JOB_NODELIST", "SLURM_NODELIST"), ",".join(hosts)),
        **dict.fromkeys(("SLURM_JOB_NUM_NODES", "SLURM_NNODES"), str(len(hosts))),
        **dict.fromkeys(("SLURM_TASKS_PER_NODE", "SLURM_JOB_CPUS_PER_NODE"), slots),
        "SLURM_OVERLAP": "1", "SLURM_MEM_PER_NODE": "0", "SLURM_CPU_BIND": "none",
    }  # fmt: skip
