"""What a batch system is to us: text in and text out. One that is not here can be brought along by a site.

    JobRequest --script--> text --submit--> Command ... Answer --read_id--> "4711"
    ids --ask--> Command ... Answer --read_records--> {"4711": JobRecord}

Nothing here runs a command: that does :mod:`executor.batch.allocator`. Rules for all, each from a scheduler that was
seen to behave so: what is absent from a listing is UNKNOWN, and so is a word that we do not know; a status may go back
(a job is requeued); we ask for our own jobs only, and for all of them at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from executor.batch.request import JobRequest
from executor.batch.states import JobRecord


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
    #: the program that submits: where it is, there is this batch system
    program: str
    #: variables that tell a job about itself, by the beginning of their names: not to be passed on to other jobs
    job_variables: tuple[str, ...]
    #: those of them that configure the batch system, and have to be passed on
    site_variables: tuple[str, ...] = ()

    @abstractmethod
    def script(self, request: JobRequest) -> str:
        """The job script."""

    @abstractmethod
    def on_each_node(self, command: str, nodes: int) -> str:
        """What a job script ends with to have the command (shell text) run once on each of its nodes.

        It is that command (``exec``) or the launcher, so that the job ends as they do and hears of signals.
        """

    @abstractmethod
    def submit(self, request: JobRequest) -> Command:
        """Submit the request's script."""

    @abstractmethod
    def read_id(self, answer: Answer) -> str | None:
        """The id that the job was given; None if there is none in the answer."""

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

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """The variables without those that tell of a job that we may be in: submitted from there, another would
        take them for its own."""
        return {
            name: value
            for name, value in env.items()
            if not name.startswith(self.job_variables) or name.startswith(self.site_variables)
        }
