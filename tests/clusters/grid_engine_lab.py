"""A real Grid Engine on pretended hosts: sge_qmaster on the login host, an sge_execd on each compute host.

Its cell is in one directory, with the spooling of the classic kind: plain files.
"""

from __future__ import annotations

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from hosts import COMPUTE, ENVIRONMENT, LOGIN, Hosts
from slurm_lab import CPUS, missing_programs
from waiting import wait_until

_PROGRAMS = Path("/usr/lib/gridengine")
_SHARE = Path("/usr/share/gridengine")
#: Commands that clients give; on the login host, because Grid Engine finds its hosts by their names.
_COMMANDS = ("qsub", "qstat", "qdel", "qacct", "qconf", "qhost")

_BOOTSTRAP = """
admin_user              root
default_domain          none
ignore_fqdn             true
spooling_method         classic
spooling_lib            libspoolc
spooling_params         {common};{lab}/qmaster
binary_path             /usr/sbin
qmaster_spool_dir       {lab}/qmaster
security_mode           none
listener_threads        2
worker_threads          2
scheduler_threads       1
"""
#: What differs from the configuration that comes with it: root's jobs are taken, and a lost host is noticed soon.
_CONFIGURATION = {
    "execd_spool_dir": "{lab}/execd", "min_uid": "0", "min_gid": "0", "load_report_time": "00:00:01",
    "max_unheard": "00:00:06", "reschedule_unknown": "00:00:05", "finished_jobs": "1000", "mailer": "/bin/true",
    "execd_params": "KEEP_ACTIVE=ERROR,ENABLE_ADDGRP_KILL=TRUE",
    "reporting_params": "accounting=true reporting=false accounting_flush_time=00:00:00 flush_time=00:00:01 "
    "joblog=false sharelog=00:00:00",
}  # fmt: skip
_SCHEDULER = {
    "schedule_interval": "0:0:1", "flush_submit_sec": "1", "flush_finish_sec": "1", "load_formula": "slots",
    "job_load_adjustments": "NONE",
}  # fmt: skip
_HOST = """
hostname {name}
load_scaling NONE
complex_values slots={slots}
user_lists NONE
xuser_lists NONE
projects NONE
xprojects NONE
usage_scaling NONE
report_variables NONE
"""
_PARALLEL_ENVIRONMENT = """
pe_name {name}
slots 9999
user_lists NONE
xuser_lists NONE
start_proc_args NONE
stop_proc_args NONE
allocation_rule {rule}
control_slaves {slaves}
job_is_first_task {first}
urgency_slots min
accounting_summary FALSE
qsort_args NONE
"""
#: name: which slots (a number: so many on each host), whether qrsh may start processes on the other hosts, whether the
#: script counts as one of them
_ENVIRONMENTS = {"smp": ("$pe_slots", "FALSE", "TRUE"), "mpi": (str(CPUS), "TRUE", "FALSE")}
#: The temporary directories of jobs are in memory, which each host has of its own.
_QUEUE = {
    "qname": "all.q", "hostlist": "@allhosts", "qtype": "BATCH INTERACTIVE", "pe_list": "smp mpi", "rerun": "FALSE",
    "slots": str(CPUS), "tmpdir": "/dev/shm", "shell": "/bin/bash", "shell_start_mode": "unix_behavior",
    "notify": "00:00:02", "load_thresholds": "NONE",
}  # fmt: skip


class GridEngineLab:
    """It runs when this is made."""

    daemon = "sge_execd"
    #: the class of its clusters, and what these need to be told here
    cluster = "GridEngine"
    settings: ClassVar[dict[str, Any]] = {"pe": "smp"}
    #: ... for allocations of several nodes
    settings_of_several: ClassVar[dict[str, Any]] = {"pe": "mpi"}
    submit_command = "qsub"
    #: what it says to a job for a queue ``nowhere``
    refusal = 'queue "nowhere"'

    def __init__(self, hosts: Hosts, directory: Path) -> None:
        self.hosts = hosts
        self._lab = directory
        self._common = directory / "root" / "default" / "common"
        self._cell = {
            "SGE_ROOT": str(directory / "root"), "SGE_CELL": "default", "SGE_CLUSTER_NAME": "lab",
            "SGE_ARCH": self.hosts.run(LOGIN, str(_SHARE / "util" / "arch")).strip(),
            "SGE_QMASTER_PORT": "6444", "SGE_EXECD_PORT": "6445",
        }  # fmt: skip
        #: for the commands of its clients
        self.env = {**self._cell, "PATH": f"{directory / 'bin'}:{os.environ['PATH']}"}
        self._write_commands()
        self._make_cell()
        self._run(LOGIN, "/usr/sbin/sge_qmaster")
        wait_until(lambda: not self._failed("qconf", "-sm"), "for the qmaster")
        self._configure()
        with ThreadPoolExecutor(len(COMPUTE)) as pool:  # each takes two seconds until it has become a daemon
            list(pool.map(self.start_daemon, COMPUTE))
        self.wait_ready()

    @staticmethod
    def obstacle() -> str:
        """Why there can be none here; "" if there can."""
        return missing_programs(("sge_qmaster", "sge_execd", "qsub"))

    def _run(self, host: str, *words: str) -> str:
        program = _PROGRAMS / words[0]
        return self.hosts.run(host, str(program), *words[1:], env=self._cell)

    def _failed(self, *words: str) -> bool:
        command = self.hosts.command(LOGIN, str(_PROGRAMS / words[0]), *words[1:])
        return subprocess.run(command, env={**ENVIRONMENT, **self._cell}, capture_output=True).returncode != 0

    # --- starting it --------------------------------------------------------------------------------------------------

    def _write_commands(self) -> None:
        (self._lab / "bin").mkdir()
        for name in _COMMANDS:
            path = self._lab / "bin" / name
            command = " ".join(self.hosts.command(LOGIN, str(_PROGRAMS / name)))
            path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            path.chmod(0o755)

    def _make_cell(self) -> None:
        for folder in (self._common, self._lab / "qmaster" / "job_scripts", self._lab / "execd"):
            folder.mkdir(parents=True)
        for folder in ("bin", "lib", "util", "utilbin"):
            (self._lab / "root" / folder).symlink_to(f"/var/lib/gridengine/{folder}")
        (self._common / "act_qmaster").write_text(f"{LOGIN}\n")
        (self._common / "bootstrap").write_text(_BOOTSTRAP.format(common=self._common, lab=self._lab).lstrip())
        defaults = (_SHARE / "default-configuration").read_text()
        changes = {name: value.format(lab=self._lab) for name, value in _CONFIGURATION.items()}
        self._run(LOGIN, "spoolinit", "classic", "libspoolc", f"{self._common};{self._lab}/qmaster", "init")
        for what in (
            ["configuration", self._write("global", _changed(defaults, changes))],
            ["complexes", str(_SHARE / "util/resources/centry")],
            ["usersets", str(_SHARE / "util/resources/usersets")],
            ["managers", "root"],
        ):
            self._run(LOGIN, "spooldefaults", *what)

    def _write(self, name: str, text: str) -> str:
        path = self._lab / name
        path.write_text(text.lstrip())
        return str(path)

    def _configure(self) -> None:
        self._run(LOGIN, "qconf", "-as", LOGIN)
        for name in COMPUTE:
            self._run(LOGIN, "qconf", "-Ae", self._write(f"host-{name}", _HOST.format(name=name, slots=CPUS)))
            for option in ("-as", "-ah"):
                self._run(LOGIN, "qconf", option, name)
        group = f"group_name @allhosts\nhostlist {' '.join(COMPUTE)}\n"
        self._run(LOGIN, "qconf", "-Ahgrp", self._write("group", group))
        for name, (rule, slaves, first) in _ENVIRONMENTS.items():
            text = _PARALLEL_ENVIRONMENT.format(name=name, rule=rule, slaves=slaves, first=first)
            self._run(LOGIN, "qconf", "-Ap", self._write(f"pe-{name}", text))
        queue = _changed(self._run(LOGIN, "qconf", "-sq"), _QUEUE)  # the template of a queue
        self._run(LOGIN, "qconf", "-Aq", self._write("queue", queue))
        scheduler = _changed(self._run(LOGIN, "qconf", "-ssconf"), _SCHEDULER)
        self._run(LOGIN, "qconf", "-Msconf", self._write("scheduler", scheduler))

    def start_daemon(self, host: str) -> None:
        """Start the node daemon of a host."""
        self.hosts.run(host, "/usr/sbin/sge_execd", env=self._cell)

    def kill_daemon(self, host: str) -> None:
        """Kill the node daemon of a host, and nothing else there."""
        for pid in self.hosts.pids(host, self.daemon):
            os.kill(pid, 9)

    def wait_ready(self) -> None:
        """Until all hosts take jobs."""
        wait_until(lambda: self.ready() == set(COMPUTE), f"for all hosts, {self.ready()} are ready")

    def ready(self) -> set[str]:
        """The hosts that take jobs."""
        rows = [line.split() for line in self._run(LOGIN, "qstat", "-f").splitlines() if "@" in line]
        # the last column has letters for what is wrong: u for a host that is unreachable, or was never heard
        return {row[0].partition("@")[2] for row in rows if len(row) == 5 or "u" not in row[5]}

    # --- using it -----------------------------------------------------------------------------------------------------

    def jobs(self) -> dict[str, str]:
        """The jobs in the queue, of all users, with their first host, those that are ending too."""
        lines = self._run(LOGIN, "qstat", "-u", "*").splitlines()[2:]
        return {line.split()[0]: _host_of(line) for line in lines}

    def cancel(self, job: str) -> None:
        """Cancel a job, as somebody else would."""
        self._run(LOGIN, "qdel", job)

    def end_time_of(self, job: str) -> None:
        """Its time is over now. Here it has asked for a second."""

    def submit(self, script: str, *options: str) -> str:
        """Submit a job that has nothing to do with us."""
        words = self.hosts.command(LOGIN, str(_PROGRAMS / "qsub"), "-terse", "-o", "/dev/null", "-j", "y", *options)
        done = subprocess.run(
            words, input=script, env={**ENVIRONMENT, **self._cell}, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    @staticmethod
    def on_two_hosts() -> list[str]:
        """Options of a job that has two hosts."""
        return ["-pe", "mpi", str(2 * CPUS), "-S", "/bin/bash"]

    @staticmethod
    def on_host(name: str) -> list[str]:
        """Options of a job that is to run there, for as long as it likes."""
        return ["-l", f"h={name}"]


def _changed(text: str, changes: dict[str, str]) -> str:
    """Lines of names and values; each name has to be there."""
    for name, value in changes.items():
        text, count = re.subn(rf"(?m)^{name}\s.*(\\\n.*)*$", f"{name} {value}", text)
        assert count == 1, f"{count} lines with {name} in:\n{text}"
    return text


def _host_of(line: str) -> str:
    found = re.search(r"@(\S+)", line)
    return found[1].partition(".")[0] if found else ""
