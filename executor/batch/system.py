"""What a batch system is to us: text in and text out. One that is not here can be brought along by a site.

    JobRequest --options, script--> text --submit--> Command ... Answer --read_id--> "4711"
    ids --ask--> Command ... Answer --read_records--> {"4711": JobRecord}

Nothing here runs a command: that does :mod:`executor.batch.allocator`. Rules for all, each from a scheduler that was
seen to behave so: what is absent from a listing is UNKNOWN, and so is a word that we do not know; a status may go back
(a job is requeued); we ask for our own jobs only, and for all of them at once.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from executor.batch.request import JobRequest, body_lines, one_line
from executor.batch.states import JobRecord
from executor.jobs.placeholders import fill

#: Ends the options for batch systems that read them up to the first command: a comment of the user's is none of them.
_OPTIONS_END = ': "here the options end"'


@dataclass(frozen=True, slots=True)
class Command:
    """A command to be run, with its standard input."""

    argv: list[str]
    stdin: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command gave: its exit status (None: it did not end in time) and what it wrote."""

    returncode: int | None
    stdout: str = ""
    stderr: str = ""

    @property
    def text(self) -> str:
        """What it said, to people."""
        return (self.stderr.strip() or self.stdout.strip())[-2000:]


class BatchSystem(ABC):
    """One kind of batch system."""

    #: as users call it
    name: str
    #: a program that this batch system has and no other one: where it is, there is this batch system
    program: str
    #: what an option in a job script begins with, such as ``#SBATCH``
    sentinel: str
    #: lines that it would take for options wherever they stand
    stray: re.Pattern[str] | None = None
    #: variables that tell a job about itself, by the beginning of their names: not to be passed on to other jobs. The
    #: first one tells that we are in a job of this batch system, and no other one.
    job_variables: tuple[str, ...]
    #: those of them that configure the batch system, and have to be passed on
    site_variables: tuple[str, ...] = ()
    #: what :meth:`cancel` says of jobs that are cancelled, or have ended before
    harmless: re.Pattern[str] | None = None
    #: the variable in which a task of an array has its number
    array_variable: str = ""
    #: what it fills in itself in paths of output, by our placeholders: JOB_ID (of an array, the array's), TASK_ID
    placeholders: Mapping[str, str] = MappingProxyType({})
    #: seconds between two questions, if nothing else is said
    poll: float = 10.0
    #: a command that ends with 0 if the batch system answers; none: there is no such command
    ping: tuple[str, ...] = ()

    @property
    def whose(self) -> str:
        """Which batch system it is, of all those that a process may come to know: jobs of one are asked for at once."""
        return self.name

    @abstractmethod
    def options(self, request: JobRequest) -> list[str]:
        """What stands in the job script behind the sentinel, each as ``--name=value``, ``-n value`` or ``-n x=value``.

        Raises ValueError for what cannot be asked for here, or not be said in an option.
        """

    def script(self, request: JobRequest) -> str:
        """The job script. Raises ValueError for a request that this batch system cannot understand as it is meant."""
        options = [one_line("an option", each) for each in self.options(request) if not _omitted(each, request.omit)]
        options += [one_line("directives", each) for each in request.directives]
        body = "\n".join(self.body(request))
        if self.stray is not None and (line := self.stray.search(body)):
            raise ValueError(
                f"{line.group()!r} in a command: {self.name} takes this for an option; expected it in directives=[...]"
            )
        return "\n".join(["#!/bin/bash", *(f"{self.sentinel} {each}" for each in options), _OPTIONS_END, body, ""])

    def body(self, request: JobRequest) -> list[str]:
        """What the job does: all of the script below the options."""
        return body_lines(request)

    @abstractmethod
    def on_each_node(self, command: str, nodes: int) -> str:
        """What a job script ends with to have the command (shell text) run once on each of its nodes.

        It is that command (``exec``) or the launcher, so that the job ends as they do and hears of signals.
        """

    def output_path(self, path: str) -> str:
        """A path of output as it stands in a request: with its own words for ``%{JOB_ID}`` and ``%{TASK_ID}``."""
        return fill(path, self.placeholders)

    def ask_nodes(self, env: Mapping[str, str]) -> Command | None:  # noqa: ARG002  for those that have nodes
        """What prints the nodes of the allocation that we are in, as these variables tell; None: we are in none."""
        return None

    @abstractmethod
    def submit(self, request: JobRequest) -> Command:
        """Submit the request's script."""

    @abstractmethod
    def read_id(self, answer: Answer) -> str | None:
        """The id that the job was given; None if there is none in the answer."""

    @abstractmethod
    def task_id(self, job: str, index: int) -> str:
        """The id of an array's task, of which :meth:`read_records` tells where it is asked about the array."""

    @abstractmethod
    def ask(self, ids: Sequence[str]) -> Command:
        """Ask how these jobs are, in one command."""

    @abstractmethod
    def read_records(self, answer: Answer, ids: Sequence[str]) -> dict[str, JobRecord] | None:
        """What the answer says of each; a job that it does not tell of is missing. None: it says nothing at all."""

    @abstractmethod
    def ask_ended(self, job: str) -> list[Command]:
        """Ask how a job has ended that is no longer listed, or of which the listing does not tell all."""

    @abstractmethod
    def read_ended(self, answers: Sequence[Answer], job: str) -> JobRecord | None:
        """What the answers say of it; None if they say nothing (yet)."""

    @abstractmethod
    def cancel(self, ids: Sequence[str]) -> Command:
        """Cancel these jobs."""

    @abstractmethod
    def cancel_named(self, name: str) -> Command:
        """Cancel all our jobs with this name."""

    def read_cancelled(self, answer: Answer) -> set[str]:  # noqa: ARG002  for those that say so
        """The jobs that were cancelled and of which, so the answer, nothing will be heard any more."""
        return set()

    def complaints(self, answer: Answer) -> str:
        """What went wrong when jobs were cancelled; "" if all is well, or if they had ended before."""
        if answer.returncode == 0:
            return ""
        if answer.returncode is None or self.harmless is None or not answer.text:
            return answer.text or f"exit status {answer.returncode}"
        lines = f"{answer.stdout}\n{answer.stderr}".splitlines()
        return "\n".join(line for line in lines if line.strip() and not self.harmless.search(line))

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """The variables without those that tell of a job that we may be in: submitted from there, another would
        take them for its own."""
        return {
            name: value
            for name, value in env.items()
            if not name.startswith(self.job_variables) or name.startswith(self.site_variables)
        }


def last_line(pattern: re.Pattern[str], answer: Answer) -> str | None:
    """The last line of what it wrote that is like this, if all went well: sites print banners around it."""
    lines = [line.strip() for line in answer.stdout.splitlines() if pattern.fullmatch(line.strip())]
    return lines[-1] if lines and answer.returncode == 0 else None


def _omitted(option: str, omit: frozenset[str]) -> bool:
    """Whether it is one of those, with its value or without."""
    return any(option == each or option.startswith((f"{each}=", f"{each} ")) for each in omit)
