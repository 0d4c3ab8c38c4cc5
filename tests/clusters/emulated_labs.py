"""Emulated batch systems: commands in the dialect of PBS and of Flux, in front of a real Slurm, on pretended hosts.

Their clients have these commands in PATH and nothing of Slurm: ``PATH -> bin/qsub -> emulated_pbs.py -> sbatch``.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import emulated_flux
import emulated_pbs
from hosts import ENVIRONMENT, LOGIN, Hosts
from slurm_lab import CPUS, SlurmLab


class EmulatedLab(SlurmLab):
    """It runs when this is made. Its jobs have ids of their own."""

    #: the program that emulates, its commands, and whether these are words of one command or stand for themselves
    program: ClassVar[str]
    commands: ClassVar[dict[str, str]]

    def __init__(self, hosts: Hosts, directory: Path) -> None:
        super().__init__(hosts, directory)
        bin = directory / "bin"
        bin.mkdir()
        words = ["env", f"SLURM_CONF={directory / 'slurm.conf'}", sys.executable, "-E", "-S", "-B", self.program]
        for name, first in self.commands.items():
            (bin / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} {first} "$@"\n')
            (bin / name).chmod(0o755)
        self.env = {"PATH": f"{bin}:{os.environ['PATH']}"}
        self._env_of_jobs = {**ENVIRONMENT, "PATH": f"{bin}:{ENVIRONMENT['PATH']}"}

    def id_of(self, number: int) -> str:
        """What a job of Slurm is called here."""
        raise NotImplementedError  # each of the dialects says

    def cancel_command(self, job: str) -> list[str]:
        """What cancels a job."""
        raise NotImplementedError  # each of the dialects says

    def jobs(self) -> dict[str, str]:
        return {self.id_of(int(number)): host for number, host in super().jobs().items()}

    def cancel(self, job: str) -> None:
        self.hosts.run(LOGIN, *self.cancel_command(job), env=self._env_of_jobs)

    def submit(self, script: str, *options: str) -> str:
        words = self.hosts.command(LOGIN, *self.submit_command.split(), *options)
        done = subprocess.run(words, input=script, env=self._env_of_jobs, cwd="/", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


class EmulatedPBS(EmulatedLab):
    """OpenPBS's commands."""

    cluster = "PBS"
    settings: ClassVar[dict[str, Any]] = {}
    submit_command = "qsub"
    refusal = "qsub: Unknown queue"
    program = emulated_pbs.__file__
    commands: ClassVar[dict[str, str]] = {name: name for name in ("qsub", "qstat", "qselect", "qdel", "pbsdsh")}

    def id_of(self, number: int) -> str:
        return f"{number}.{emulated_pbs.SERVER}"

    def cancel_command(self, job: str) -> list[str]:
        return ["qdel", job]

    @staticmethod
    def on_two_hosts() -> list[str]:
        return ["-l", f"select=2:ncpus={CPUS}", "-l", "place=scatter", "-j", "oe", "-o", "/dev/null"]

    @staticmethod
    def on_host(name: str) -> list[str]:
        return ["-l", f"select=1:ncpus=1:host={name}", "-j", "oe", "-o", "/dev/null"]


class EmulatedFlux(EmulatedLab):
    """Flux's commands."""

    cluster = "Flux"
    submit_command = "flux batch"
    refusal = "Invalid queue 'nowhere' specified"
    program = emulated_flux.__file__
    commands: ClassVar[dict[str, str]] = {"flux": ""}

    def id_of(self, number: int) -> str:
        return emulated_flux.f58(number)

    def cancel_command(self, job: str) -> list[str]:
        return ["flux", "cancel", job]

    @staticmethod
    def on_two_hosts() -> list[str]:
        return ["--nodes=2", "--nslots=2", f"--cores-per-slot={CPUS}", "--output=/dev/null"]

    @staticmethod
    def on_host(name: str) -> list[str]:
        return ["--nodes=1", f"--requires=host:{name}", "--output=/dev/null"]
