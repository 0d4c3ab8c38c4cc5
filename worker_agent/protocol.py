"""Every message between hub and agent, in both directions: typed, validated, never pickled.

Orders go to the agent, reports go to the hub. A frame holds one :class:`Orders` or :class:`Reports`: the protocol
version, the session (one executor's life), the epoch (one registration of one agent), numbers by which nothing is lost
or taken twice (see ``link``), and a list of messages, so that many small tasks share one frame. Whatever speaks of a
task names its attempt: a late answer is recognised by it.

    order          meaning                                      report       meaning
    Welcome        you are registered; your epoch               Hello        I am here: who and what I am
    Fence/Refuse   your epoch is over; you may not join
    Prepare        an environment that lanes will name          Unprepared   this environment cannot be had
    Define/Forget  a function, sent once; no longer needed      Started      the task runs, as this process
    Open/Close     a lane; it is no longer needed               Output       what a task printed
    Give/Take      places of a lane; give some back             Freed        places that were given back
    Run            run this task on this lane                   Finished     how an attempt ended
    Recall         give this task back if it has not started    Recalled     given back, or already started
    Kill           end this task                                Leaving      no more tasks: I am about to leave
    Stop           end everything and leave                     Bye          I leave, and why
    Piece          of a payload, to who does not see our files  Piece        likewise
    Drop           payloads that are no longer needed           Warn         a sentence for the log
    Look           which of these files do you see, too?        Seen         the answer
    Sweep          end what a task elsewhere has left here

Bytes that are large do not travel in messages: a :class:`Stored` names a file in the session's private directories. An
agent that does not see these gets the file in pieces, and sends those of its own; so do inputs and outputs of programs,
which are files of users. A message that is too large for a frame all the same (a program's standard input, say) travels
as :class:`Fragment` messages, in either direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from worker_agent.pools import Place, Pool

PROTOCOL: Final = 1

#: No task takes longer, in seconds: a thousand years.
LONGEST: Final = 3.2e10

#: Variables that an interpreter reads when it starts: a task that changes one needs a template of its own.
START_VARIABLES: Final = ("LD_", "PYTHON", "MALLOC_", "GLIBC_TUNABLES")

#: Bytes of a payload from which on it goes out of band; a message on a SEQPACKET socket must stay below 208 KiB.
INLINE_LIMIT: Final = 32 * 1024


class Stored(msgspec.Struct, array_like=True, frozen=True, tag="stored"):
    """A payload that lies in a file: its absolute path and its size in bytes."""

    path: str
    size: int


Payload = bytes | Stored


class Call(msgspec.Struct, array_like=True, frozen=True, tag="call"):
    """A Python call: the function (sent before by :class:`Define`) and its pickled ``(args, kwargs)``.

    ``buffers`` are the out-of-band buffers of pickle protocol 5. ``inputs`` are outcomes of other tasks (see
    :mod:`worker_agent.bodies`), for the futures among the arguments. With ``chunk`` the arguments are a list of
    argument tuples and the outcome is the list of results (``map`` with a chunksize).
    """

    function: int
    args: Payload
    buffers: list[Stored] = []
    chunk: bool = False
    inputs: list[bytes] = []


class Command(msgspec.Struct, array_like=True, frozen=True, tag="command"):
    """An external program: its argv, and its standard input as a payload or as the path of a file, or nothing."""

    argv: list[str]
    stdin: Payload | None = None
    stdin_path: str | None = None


class StreamTo(msgspec.Struct, array_like=True, frozen=True):
    """Where a task's output goes instead of to the hub: a directory in which each agent has one file for all tasks.

    ``job`` and ``task`` are the numbers that it is found by, and ``name`` another way to find it; ``job`` 0: it is of
    no job, and found by its own number. ``stdout`` and ``stderr`` say which of the two it is about.
    """

    directory: str
    job: int = 0
    task: int = 0
    name: str = ""
    stdout: bool = True
    stderr: bool = True


class SentFile(msgspec.Struct, array_like=True, frozen=True):
    """A file that travels in pieces.

    ``name`` is its path in the task's directory, ``piece`` what its pieces call it, ``size`` in bytes; of ``mode`` the
    permissions count.
    """

    name: str
    piece: str
    size: int
    mode: int


class Tree(msgspec.Struct, array_like=True, frozen=True):
    """Files that travel, and the folders that are there without them, by their paths in the task's directory."""

    files: list[SentFile] = []
    folders: list[str] = []


class Files(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What an agent does with files before and after a task.

    With ``task_dir``, ``inputs`` or ``outputs`` the attempt has a private directory; with one of the latter the program
    runs there. Both are names in it, and for each the path that it is linked to before, or moved to after a good end.
    Of the streams (1, 2) in ``removed`` the files go after a good end. ``numbered``: paths of the task have
    ``%{INSTANCE_ID}`` in them, for the number of the attempt.

    An agent that does not see the session's files has those inputs as ``sent`` that it does not see either, with their
    pieces before the order, and gives the outputs back with :class:`Finished`.
    """

    task_dir: bool = False
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    removed: list[int] = []
    numbered: bool = False
    sent: Tree | None = None

    @property
    def in_scratch(self) -> bool:
        """Whether the program runs in its private directory."""
        return bool(self.inputs or self.outputs or self.sent)


class Settings(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What distinguishes a task from the others of its lane.

    A destination is the path of a file, "" to discard, or None: then the hub gets what is printed, at most
    ``output_limit`` bytes of each, or, if ``stream`` says so, a stream file. ``grace`` is the time in seconds between a
    signal and SIGKILL. ``pin`` is "taskset" (the task may run on its CPUs only), "omp" (OpenMP is told them), or "".
    ``enforce_memory``: a task that has more memory than its place is ended. ``launcher`` starts its ranks, if it has
    some: a name, or several words with placeholders; nothing: the agent picks one.
    """

    env: dict[str, str | None] = {}
    cwd: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    time_limit: float | None = None
    grace: float = 2.0
    output_limit: int = 4 * 2**20
    pin: str = ""
    enforce_memory: bool = True
    stream: StreamTo | None = None
    files: Files | None = None
    launcher: list[str] = []


DEFAULT_SETTINGS: Final = Settings()


class Piece(msgspec.Struct, array_like=True, frozen=True, tag="piece"):
    """Bytes of a stored payload, which is named by its path where it comes from; its pieces come in order.

    One at 0 begins it anew. ``on_disk``: it is a file of a program, and to lie on a disk and not in memory.
    """

    path: str
    offset: int
    data: bytes
    on_disk: bool = False


class Fragment(msgspec.Struct, array_like=True, frozen=True, tag="fragment"):
    """A part of an encoded message; the parts come one after the other."""

    data: bytes
    last: bool


# --- orders: to the agent ---------------------------------------------------------------------------------------------


class Welcome(msgspec.Struct, array_like=True, frozen=True, tag="welcome"):
    """The agent that said hello under this name is registered, under this epoch.

    It says something every ``beat`` seconds. ``lease`` is how long, in seconds, it may be without contact before it
    ends its tasks; None: as long as its client lives.
    """

    epoch: int
    name: str
    beat: float
    lease: float | None = None


class Fence(msgspec.Struct, array_like=True, frozen=True, tag="fence"):
    """This epoch is over: end all that runs, and say hello anew."""

    epoch: int


class Refuse(msgspec.Struct, array_like=True, frozen=True, tag="refuse"):
    """The agent that said hello under this name may not join; why, in a sentence."""

    name: str
    text: str


class Prepare(msgspec.Struct, array_like=True, frozen=True, tag="prepare", kw_only=True):
    """An environment: how interpreters come to be, and what a task sees in them.

    ``raw`` are the variables that are not UTF-8.

    ``python`` is the interpreter with its flags. ``start`` is "fork" (from a template), "spawn" (exec for each),
    "exec": programs, no interpreter at all, or "ranks": calls on several ranks, which a launcher starts. ``max_tasks``
    is how many tasks an interpreter runs, 0 for any number. ``initializer`` is a pickled ``(function, args)``.
    ``authkey`` lets tasks use proxies of multiprocessing's managers; ``argv`` is the submitter's ``sys.argv``,
    ``version`` its Python, such as "3.12.1".

    ``prologue`` is shell text that ``shell`` runs first, once on each agent; the variables that it leaves are those of
    the environment. ``foreign``: the interpreter is another than the submitter's, and keeps its own ``sys.path`` behind
    ``path``.
    """

    environment: int
    python: list[str]
    start: str
    max_tasks: int
    cwd: str
    path: list[str]
    env: dict[str, str]
    raw: list[tuple[bytes, bytes]] = []
    preload: list[str] = []
    initializer: Payload | None = None
    authkey: bytes | None = None
    argv: list[str] = []
    version: str = ""
    prologue: str = ""
    shell: str = "bash"
    foreign: bool = False

    def starts_like(self, python: list[str], env: Mapping[str, str]) -> bool:
        """Whether an interpreter that was started so, with these variables, can become one of this environment."""
        return self.python == python and _read_at_start(self.env) == _read_at_start(env)


def _read_at_start(env: Mapping[str, str]) -> dict[str, str]:
    read = (*START_VARIABLES, "LANG", "LC_")
    return {name: text for name, text in env.items() if name.startswith(read)}


class Define(msgspec.Struct, array_like=True, frozen=True, tag="define"):
    """A pickled function, named by a number in the orders that follow."""

    function: int
    body: Payload


class Forget(msgspec.Struct, array_like=True, frozen=True, tag="forget"):
    """These functions will not be named again unless defined anew."""

    functions: list[int]


class Open(msgspec.Struct, array_like=True, frozen=True, tag="open"):
    """A lane: tasks of one environment and of equal needs. It has no places yet.

    ``request`` are the needs as names and texts, for the tasks to see; ``variant`` which of several ways to run them
    this is, None if there is only one. ``hosts`` are those of a task on several nodes, this agent's first. ``ranks``:
    each task is so many processes in all, evenly on the nodes; 0: one, without a launcher.
    """

    lane: int
    environment: int
    request: list[tuple[str, str]] = []
    variant: int | None = None
    hosts: list[str] = []
    ranks: int = 0


class Give(msgspec.Struct, array_like=True, frozen=True, tag="give"):
    """Further places of a lane: at each of them one task may run at a time."""

    lane: int
    places: list[Place]


class Take(msgspec.Struct, array_like=True, frozen=True, tag="take"):
    """So many places of the lane are wanted back, each as soon as nothing runs there; :class:`Freed` tells which."""

    lane: int
    count: int


class Close(msgspec.Struct, array_like=True, frozen=True, tag="close"):
    """The lane is empty and not needed any more, nor are its places; its interpreters may end."""

    lane: int


class Run(msgspec.Struct, array_like=True, frozen=True, tag="run"):
    """Run this attempt of a task on a lane."""

    lane: int
    task: int
    attempt: int
    body: Call | Command
    settings: Settings | None = None


class Recall(msgspec.Struct, array_like=True, frozen=True, tag="recall"):
    """Give the task back if it has not started; answered by :class:`Recalled` either way."""

    task: int
    attempt: int


class Kill(msgspec.Struct, array_like=True, frozen=True, tag="kill"):
    """End the task: ``signal`` to its process group, ``grace`` seconds, then SIGKILL to all that it started."""

    task: int
    attempt: int
    signal: int
    grace: float


class Drop(msgspec.Struct, array_like=True, frozen=True, tag="drop"):
    """These payloads, which were sent in pieces, will not be named again unless sent anew."""

    paths: list[str]


class Look(msgspec.Struct, array_like=True, frozen=True, tag="look"):
    """Which of these files and directories are the same there? By their paths, what :func:`trees.identity` gave here.

    :class:`Seen` is the answer; it has the same number.
    """

    number: int
    identities: dict[str, str]


class Sweep(msgspec.Struct, array_like=True, frozen=True, tag="sweep"):
    """End all processes of this host that have these variables (NAME=VALUE): ranks of a task that has ended elsewhere.

    Who has started them may have been killed, and could not end them.
    """

    marks: list[str]


class Stop(msgspec.Struct, array_like=True, frozen=True, tag="stop"):
    """End all tasks that still run (with ``signal``, ``grace`` seconds, SIGKILL) and leave."""

    signal: int
    grace: float


Order = (
    Welcome | Fence | Refuse | Prepare | Define | Forget | Open | Give | Take | Close | Run | Recall | Kill | Stop
    | Piece | Drop | Look | Sweep | Fragment
)  # fmt: skip

# --- reports: to the hub ----------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, array_like=True, frozen=True, tag="hello", kw_only=True):
    """Who the agent is: the launch that it belongs to, its host and process, and what it offers.

    ``process`` tells apart all processes of agents, ``name`` all their registrations: both are random and never given
    twice. ``shares`` says that it sees the files of the session, ``missing`` which of the imports that the connection
    names it has not, ``sees_cwd`` that it sees the client's working directory.

    ``pools`` is what it has. ``group`` names workers on which one task may run together, ``remaining`` is the seconds
    until it has to leave, None: nobody knows.
    """

    launch: str
    process: str
    name: str
    host: str
    pid: int
    python: str
    pools: list[Pool]
    group: str = ""
    remaining: float | None = None
    cloudpickle: str = ""
    shares: bool = True
    missing: list[str] = []
    sees_cwd: bool = True


class Unprepared(msgspec.Struct, array_like=True, tag="unprepared"):
    """An environment cannot be had; why, in a sentence and, if there is one, a pickled exception.

    ``initializer`` says that it was the user's initializer that failed, or ended its process.
    """

    environment: int
    text: str
    error: bytes = b""
    initializer: bool = False


class Started(msgspec.Struct, array_like=True, frozen=True, tag="started"):
    """The attempt runs as process ``pid`` since ``at`` (seconds since the epoch, by the agent's clock)."""

    task: int
    attempt: int
    pid: int
    at: float


class Output(msgspec.Struct, array_like=True, frozen=True, tag="output"):
    """What a running task wrote to descriptor ``stream`` (1 or 2)."""

    task: int
    attempt: int
    stream: int
    data: bytes


class Tail(msgspec.Struct, array_like=True, frozen=True):
    """The end of an output whose beginning went out as :class:`Output`; ``omitted`` bytes between were dropped."""

    data: bytes = b""
    omitted: int = 0


class Usage(msgspec.Struct, array_like=True, frozen=True):
    """What an attempt used: CPU seconds in user and system mode, peak resident set size in bytes."""

    user: float = 0.0
    system: float = 0.0
    max_rss: int = 0


#: How an attempt ended. VALUE and ERROR carry the pickled result or exception of a call; COMPLETED is the end of a
#: program, EXITED that of an interpreter that had not given a result.
VALUE, ERROR, COMPLETED, EXITED = "value", "error", "completed", "exited"
TIMED_OUT, KILLED, NOT_STARTED, LOST, RETURNED = "time", "kill", "start", "lost", "returned"
OUT_OF_MEMORY = "memory"
#: a program ended well, and its outputs are not in their places
NO_OUTPUT = "output"


class Memory(msgspec.Struct, array_like=True, frozen=True):
    """Of a task that ran out of memory: the most that was seen and what it may have, in bytes (0: not known); who
    has ended it, "agent" or "kernel"."""

    peak: int
    limit: int
    by: str


class Uncollected(msgspec.Struct, frozen=True):
    """Which outputs were ``missing`` in a program's directory and what was ``found`` there; or, as a sentence that
    begins after "but", why they could not be put in their places."""

    missing: list[str] = []
    found: list[str] = []
    text: str = ""


class Finished(msgspec.Struct, array_like=True, tag="finished"):
    """How an attempt ended.

    ``returncode`` is negative for a signal and None where there is none. ``body`` is the outcome of a call in the form
    that :mod:`worker_agent.runner` writes; for LOST the reason; for NOT_STARTED what stood in the way, if not the
    program itself, with the errno as ``returncode``; for NO_OUTPUT an :class:`Uncollected` as JSON; for COMPLETED what
    the program said of its failure, if it did. RETURNED: the agent leaves; if ``started`` is 0, it had not begun.
    ``outputs`` are those of a program whose agent does not see our files; their pieces came before.
    """

    task: int
    attempt: int
    end: str
    body: bytes = b""
    returncode: int | None = None
    pid: int = 0
    started: float = 0.0
    ended: float = 0.0
    usage: Usage = Usage()
    stdout: Tail | None = None
    stderr: Tail | None = None
    memory: Memory | None = None
    outputs: Tree | None = None


class Recalled(msgspec.Struct, array_like=True, frozen=True, tag="recalled"):
    """The answer to :class:`Recall`: whether the task was given back; if not, it runs or has ended."""

    task: int
    attempt: int
    given_back: bool


class Freed(msgspec.Struct, array_like=True, frozen=True, tag="freed"):
    """Places of a lane that were wanted back, and where nothing runs any more, by their numbers."""

    lane: int
    places: list[int]


class Seen(msgspec.Struct, array_like=True, frozen=True, tag="seen"):
    """The answer to :class:`Look`: the paths at which the agent sees the same."""

    number: int
    paths: list[str]


class Warn(msgspec.Struct, array_like=True, frozen=True, tag="warn"):
    """Something that no future tells, for the log: a sentence."""

    text: str


class Leaving(msgspec.Struct, array_like=True, frozen=True, tag="leaving"):
    """The agent was told to go, and why: it takes no more tasks, and gives back those that do not end soon."""

    reason: str


class Bye(msgspec.Struct, array_like=True, frozen=True, tag="bye"):
    """The agent leaves; why, in a sentence."""

    reason: str


Report = (
    Hello | Unprepared | Started | Output | Finished | Recalled | Freed | Seen | Warn | Leaving | Bye | Piece | Fragment
)  # fmt: skip


class Orders(msgspec.Struct, array_like=True, frozen=True):
    """A frame to an agent.

    ``first`` is the number of the first message, 0 if they have none (a welcome, a fence, a refusal). ``ack`` is the
    last of the agent's messages that was received, ``misses`` says that some after it were lost. ``echo`` is the
    newest ``clock`` of the agent that has arrived.
    """

    protocol: int
    session: str
    epoch: int
    first: int
    ack: int
    misses: bool
    echo: float
    messages: list[Order]


class Reports(msgspec.Struct, array_like=True, frozen=True):
    """A frame to the hub, like :class:`Orders`. ``clock`` is when it was sent, by the agent's clock."""

    protocol: int
    session: str
    epoch: int
    first: int
    ack: int
    misses: bool
    clock: float
    messages: list[Report]
