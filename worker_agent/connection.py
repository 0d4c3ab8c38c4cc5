"""The connection data of an agent: where its hub is, and as whom it may join."""

from __future__ import annotations

import msgspec

from worker_agent.codec import ProtocolError
from worker_agent.pools import Pool
from worker_agent.protocol import PROTOCOL


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent needs to find its hub; handed over by a pipe or a 0600 file, never in argv.

    ``client_pid`` and ``client_start`` (clock ticks since boot) name the process whose end is the agent's end.
    ``directory`` is the session's private directory; ``stores`` are directories for payloads, tried in order.
    ``path`` is added at the end of the agent's ``sys.path``, for modules that the client found elsewhere.

    An agent that was invited has no client that it could watch (``client_pid`` 0): it dials the ``endpoints`` one after
    the other, with the keys of its launch, and finds out itself what it has if there are no ``pools``. ``imports`` are
    modules that its tasks will need. ``cwd``, which has that inode, is where the client works: it tells whether it sees
    that directory.
    """

    protocol: int
    endpoints: list[str]
    session: str
    launch: str
    client_pid: int
    client_start: int
    directory: str
    stores: list[str]
    pools: list[Pool] = []
    path: list[str] = []
    imports: list[str] = []
    cwd: str = ""
    cwd_inode: int = 0
    server_key: str = ""
    public_key: str = ""
    secret_key: str = ""

    def __repr__(self) -> str:
        return f"<Connection to {self.endpoints}, launch {self.launch}>"  # never the keys


def write_connection(connection: Connection) -> bytes:
    """The connection as one line of JSON."""
    return msgspec.json.encode(connection) + b"\n"


def read_connection(data: bytes) -> Connection:
    """The connection in ``data``. Raises ProtocolError if it is not one."""
    try:
        connection = msgspec.json.decode(data, type=Connection)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"this is not the connection data of an agent: {error}") from error
    if connection.protocol != PROTOCOL:
        raise ProtocolError(f"the hub speaks protocol {connection.protocol}, this agent protocol {PROTOCOL}")
    return connection
