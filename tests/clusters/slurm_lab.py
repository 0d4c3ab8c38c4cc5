"""A real Slurm on pretended hosts: munged and slurmctld on the login host, a slurmd on each compute host.

With accounting also slurmdbd and its data base, so that sacct answers. All files are in one directory. The times are
short: Slurm's own would make each test of a lost node take minutes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any, ClassVar

from hosts import ADDRESSES, COMPUTE, ENVIRONMENT, LOGIN, Hosts, HostsError
from waiting import wait_until

#: CPUs that each host says it has. An agent counts those that there are: let there be no more than any machine has.
CPUS = 2

_SLURM_CONF = """
ClusterName=lab
SlurmctldHost={login}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={lab}/munge/socket,cred_expire=5
StateSaveLocation={lab}/state
SlurmdSpoolDir={lab}/spool-%n
SlurmctldPidFile={lab}/slurmctld.pid
SlurmdPidFile={lab}/slurmd-%n.pid
SlurmctldLogFile={lab}/slurmctld.log
SlurmdLogFile={lab}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
LaunchParameters=enable_nss_slurm
# nodes may claim more than the machine has
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,bf_resolution=1,batch_sched_delay=0
# time enough for an agent to leave in peace
KillWait=10
SlurmctldTimeout=30
SlurmdTimeout=6
MessageTimeout=5
TCPTimeout=2
ReturnToService=2
{accounting}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP
"""
_NODE = "NodeName={name} NodeHostname={name} NodeAddr={address} CPUs={cpus} RealMemory=4000 State=UNKNOWN"
_WITHOUT_ACCOUNTING = "JobAcctGatherType=jobacct_gather/none\nAccountingStorageType=accounting_storage/none"
_WITH_ACCOUNTING = """
# seconds
MinJobAge=2
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={address}
AccountingStoragePass={lab}/munge/socket
"""
_SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={lab}/munge/socket
DbdHost={login}
DbdAddr={address}
SlurmUser=root
LogFile={lab}/slurmdbd.log
PidFile={lab}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct
CommitDelay=1
"""
#: What has to be installed, without and with accounting.
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr")


def missing_programs(names: tuple[str, ...]) -> str:
    """A sentence about those that are not installed; "" if all are."""
    missing = [name for name in names if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    return f"{', '.join(missing)}: not installed" if missing else ""


class SlurmLab:
    """It runs when this is made."""

    daemon = "slurmd"
    #: the class of its clusters, and what these need to be told here
    cluster = "Slurm"
    settings: ClassVar[dict[str, Any]] = {}
    #: ... for allocations of several nodes
    settings_of_several: ClassVar[dict[str, Any]] = {}
    submit_command = "sbatch --parsable"
    #: what it says to a job for a queue ``nowhere``
    refusal = "invalid partition specified: nowhere"
    #: whether sacct answers
    accounting = False

    def __init__(self, hosts: Hosts, directory: Path) -> None:
        self.hosts = hosts
        self._lab = directory
        self._conf = {"SLURM_CONF": str(directory / "slurm.conf")}
        #: for the commands of its clients
        self.env = dict(self._conf)
        self._write_configuration()
        self._start_munge()
        if self.accounting:
            self._start_accounting()
        self._run(LOGIN, "slurmctld")
        for name in COMPUTE:
            self.start_daemon(name)
        self.wait_ready()

    @classmethod
    def obstacle(cls) -> str:
        """Why there can be none here; "" if there can."""
        return missing_programs(PROGRAMS + (ACCOUNTING_PROGRAMS if cls.accounting else ()))

    def _run(self, host: str, *words: str) -> str:
        return self.hosts.run(host, *words, env=self._conf)

    # --- starting it --------------------------------------------------------------------------------------------------

    def _write_configuration(self) -> None:
        values = {"login": LOGIN, "address": ADDRESSES[LOGIN], "lab": self._lab}
        accounting = (_WITH_ACCOUNTING if self.accounting else _WITHOUT_ACCOUNTING).format(**values)
        nodes = [_NODE.format(name=name, address=ADDRESSES[name], cpus=CPUS) for name in COMPUTE]
        text = _SLURM_CONF.format(**values, accounting="\n".join([accounting, *nodes]))
        (self._lab / "slurm.conf").write_text(text)
        if _version(self._run(LOGIN, "slurmctld", "-V")) >= 23:
            (self._lab / "cgroup.conf").write_text("CgroupPlugin=disabled\n")  # or slurmd insists on cgroups
        database = self._lab / "slurmdbd.conf"
        database.touch(0o600)  # slurmdbd insists
        database.write_text(_SLURMDBD_CONF.format(**values))
        for name in COMPUTE:
            (self._lab / f"spool-{name}").mkdir()

    def _start_munge(self) -> None:
        place = self._lab / "munge"
        place.mkdir(mode=0o755)
        key = place / "key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = {"--key-file": key, "--socket": place / "socket", "--pid-file": place / "pid",
                 "--log-file": place / "log", "--seed-file": place / "seed"}  # fmt: skip
        # --force: only root uses it, who passes through a private directory
        self._run(LOGIN, "munged", "--force", *(f"{option}={path}" for option, path in files.items()))

    def _start_accounting(self) -> None:
        data, base = self._lab / "db", ["--no-defaults", "--user=root"]
        self._run(LOGIN, "mariadb-install-db", *base, f"--datadir={data}", "--skip-test-db",
                  "--auth-root-authentication-method=normal")  # fmt: skip
        # In the login host's mounts, so that this is where slurmdbd looks for a data base on its own host.
        self._run(LOGIN, "mkdir", "-p", "/run/mysqld")
        self._run(LOGIN, "mount", "-t", "tmpfs", "database", "/run/mysqld")
        log = self._lab / "mariadbd.log"
        words = ["mariadbd", *base, f"--datadir={data}", "--socket=/run/mysqld/mysqld.sock", f"--log-error={log}",
                 "--skip-networking", "--skip-log-bin", "--innodb-buffer-pool-size=64M",
                 "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900"]  # fmt: skip
        self._run(LOGIN, "setsid", "--fork", "sh", "-c", 'exec "$@" >/dev/null 2>&1', "sh", *words)
        wait_until(lambda: self._succeeds("test", "-S", "/run/mysqld/mysqld.sock"), f"for the data base, see {log}")
        self._run(LOGIN, "slurmdbd")
        wait_until(lambda: self._succeeds("sacctmgr", "-n", "list", "cluster"), f"for slurmdbd, see {self._lab}")
        self._run(LOGIN, "sacctmgr", "-i", "-Q", "add", "cluster", "lab")

    def _succeeds(self, *words: str) -> bool:
        try:
            self._run(LOGIN, *words)
        except HostsError:
            return False
        return True

    def start_daemon(self, host: str) -> None:
        """Start the node daemon of a host."""
        self._run(host, "slurmd", "-N", host)

    def kill_daemon(self, host: str) -> None:
        """Kill the node daemon of a host, and nothing else there."""
        for pid in self.hosts.pids(host, self.daemon):
            os.kill(pid, 9)

    def wait_ready(self) -> None:
        """Until all hosts take jobs."""
        wait_until(lambda: self.ready() == set(COMPUTE), f"for all hosts, {self.ready()} are ready")

    def ready(self) -> set[str]:
        """The hosts that take jobs."""
        return set(self._run(LOGIN, "sinfo", "-h", "-N", "-t", "idle,mixed,allocated", "-o", "%N %t").split()[::2])

    # --- using it -----------------------------------------------------------------------------------------------------

    def jobs(self) -> dict[str, str]:
        """The jobs in the queue, of all users, with their first host, those that are ending too."""
        lines = self._run(LOGIN, "squeue", "-h", "-o", "%i %B").splitlines()
        return {line.split()[0]: line.split()[1] for line in lines}

    def cancel(self, job: str) -> None:
        """Cancel a job, as somebody else would."""
        self._run(LOGIN, "scancel", job)

    def end_time_of(self, job: str) -> None:
        """Its time is over now. It has asked for a second, and got a minute."""
        self._run(LOGIN, "scontrol", "update", f"JobId={job}", "EndTime=now")

    def submit(self, script: str, *options: str) -> str:
        """Submit a job that has nothing to do with us."""
        words = self.hosts.command(LOGIN, "sbatch", "--parsable", "--output=/dev/null", *options)
        done = subprocess.run(
            words, input=script, env={**ENVIRONMENT, **self._conf}, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    @staticmethod
    def on_two_hosts() -> list[str]:
        """Options of a job that has two hosts."""
        return ["--nodes=2", "--ntasks-per-node=1", f"--cpus-per-task={CPUS}"]

    @staticmethod
    def on_host(name: str) -> list[str]:
        """Options of a job that is to run there, for as long as it likes."""
        return [f"--nodelist={name}", "--time=UNLIMITED"]


class AccountedSlurmLab(SlurmLab):
    """... with accounting. Its controller forgets a job soon after its end: then only sacct tells of it."""

    accounting = True


def _version(text: str) -> int:
    """The major one, of ``slurm-wlm 22.05.8``."""
    return int(text.split()[1].partition(".")[0])
