"""Attacks on a live executor that listens: each is refused, tasks before and after it work, the log stays short.

T1 to T16 are the rows of the table of attacks, C and D those of the catalogue of faults. What strangers do to the
listening socket alone is in ``test_network.py``.
"""

# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import json
import logging
import os
import pickle
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from handmade import HandmadeAgent, handmade
from pools import new_executor, outcome
from test_agents import agent_of
from test_invited import Join, gone, join
from test_network import _Relay
from waiting import PATIENCE, pass_gate, wait_until
from zmq.utils import z85

import executor as product
from executor import HPCExecutor, Program, local
from executor.sparing_log import LINES_A_MINUTE
from worker_agent import __main__ as agent_main
from worker_agent import protocol
from worker_agent.connection import read_connection
from worker_agent.dialing import MESSAGE_LIMIT, Attempt, agent_socket
from worker_agent.protocol import PROTOCOL, Finished, Hello, Run, Started, Unprepared

pytestmark = pytest.mark.heavy

REPOSITORY = str(Path(product.__file__).parents[1])
NOBODY = 65534
#: Lines of warnings that an attack may leave in the log, and letters of one.
LINES, LINE = 2 * LINES_A_MINUTE, 800
AS_ANOTHER_USER = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else for a while")
#: Put before a script: its interpreter is started by us, and goes on as somebody with no rights here.
BE_NOBODY = f"""
import os
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
"""


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def pool(
    join: Join, new_executor: Callable[..., HPCExecutor], caplog: pytest.LogCaptureFixture
) -> Iterator[HPCExecutor]:
    """An executor of one agent here that listens; it works before the attack and after it, and the log stays short.

    ``join`` is the first, so that its agents live until the executor says stop.
    """
    pool = new_executor(1, lease=10)
    pool.invite(1, host="127.0.0.1")
    assert outcome(pool.submit(pow, 2, 3)) == 8
    yield pool
    assert outcome(pool.submit(pow, 2, 4)) == 16
    said = warnings(caplog)
    assert len(said) <= LINES, said
    assert max(map(len, said), default=0) <= LINE


@pytest.fixture
def held(pool: HPCExecutor, gate: Any) -> Iterator[HPCExecutor]:
    """The pool, whose own agent is busy with a neighbour: what is submitted goes to who joins."""
    neighbour = pool.submit(pass_gate, *gate.paths)
    (pid,) = gate.wait_arrivals(1)
    yield pool
    gate.open()
    assert (outcome(neighbour), neighbour.attempt) == (pid, 1)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Any]:
    from waiting import Gate

    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()


class KeepingContext(zmq.Context):
    """Keeps its sockets until it is destroyed."""

    kept: list[Any] = []

    def socket(self, *args: Any, **options: Any) -> Any:
        self.kept.append(super().socket(*args, **options))
        return self.kept[-1]


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    context = KeepingContext()
    yield context
    context.destroy(linger=0)
    context.kept.clear()


def endpoint_of(pool: HPCExecutor) -> str:
    assert pool._hub is not None
    return network_of(pool).endpoints[0]


def what_becomes_of(peer: zmq.Socket[Any], pool: HPCExecutor) -> zmq.Event:
    """What ends its attempt to connect."""
    attempt = Attempt(peer, endpoint_of(pool))
    try:
        return wait_until(attempt.outcome, "for the end of an attempt")
    finally:
        attempt.stop()


def port_of(pool: HPCExecutor) -> int:
    return int(endpoint_of(pool).rpartition(":")[2])


def network_of(pool: HPCExecutor) -> Any:
    assert pool._hub is not None
    return pool._hub._agents.invitations.network


def run_task(agent: HandmadeAgent, pool: HPCExecutor, *task: Any) -> tuple[Any, Run]:
    """A task that went to the agent made by hand: its future, and the order."""
    future = pool.submit(*task or (pow, 2, 5))
    return future, agent.next(Run)


def plain(value: Any) -> bytes:
    return b"\0" + pickle.dumps(value, 5)


# ---- strangers: T1, T2, T14, T16


def test_strangers_are_refused(pool: HPCExecutor, context: zmq.Context[Any], caplog: pytest.LogCaptureFixture) -> None:
    """T1, D8: no mechanism, PLAIN, a key that nobody gave out, the right key for another hub."""
    connection = read_connection(Path(pool.invite(host="127.0.0.1")).read_bytes())
    right = connection.public_key.encode(), connection.secret_key.encode()
    plain_peer = context.socket(zmq.DEALER)
    plain_peer.plain_username, plain_peer.plain_password = b"root", b"root"
    peers = [
        context.socket(zmq.DEALER), plain_peer,
        agent_socket(context, connection.server_key.encode(), *zmq.curve_keypair()),
        agent_socket(context, zmq.curve_keypair()[0], *right),
    ]  # fmt: skip
    for peer in peers:
        assert what_becomes_of(peer, pool) is not zmq.Event.HANDSHAKE_SUCCEEDED
    assert len(pool.workers()) == 1


def test_while_the_handler_is_broken_nobody_joins(
    pool: HPCExecutor, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T2, D9."""
    invitation = pool.invite(2, host="127.0.0.1")
    with monkeypatch.context() as patch:
        patch.setattr(network_of(pool), "_judge", lambda *_: 1 / 0)
        agent = join(invitation)
        assert "refused our key" in agent.communicate(timeout=PATIENCE)[1]
        assert outcome(pool.submit(pow, 2, 3)) == 8
    join(invitation)
    wait_until(lambda: len(pool.workers()) == 2)


def test_an_agent_of_another_hub_is_refused(
    pool: HPCExecutor, new_executor: Callable[..., HPCExecutor], join: Join, tmp_path: Path
) -> None:
    """T14: it has a file of its own hub, with our address."""
    other = new_executor(1, agents=0).invite(host="127.0.0.1")
    agent = join(changed(other, tmp_path, endpoints=[endpoint_of(pool)]))
    told = agent.communicate(timeout=PATIENCE)[1]
    assert "no hub of ours" in told or "it may be another hub" in told
    assert agent.returncode == 1


def changed(invitation: Any, folder: Path, **fields: Any) -> Path:
    """A copy of an invitation in which some things are different."""
    path = folder / f"invitation-{len(os.listdir(folder))}.json"
    path.touch(0o600)
    path.write_text(json.dumps({**json.loads(Path(invitation).read_bytes()), **fields}))
    return path


def test_a_flood_of_handshakes_that_fail_is_one_line(
    pool: HPCExecutor, context: zmq.Context[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """T16."""
    for _ in range(100):
        peer = agent_socket(context, network_of(pool).server_key, *zmq.curve_keypair())
        assert what_becomes_of(peer, pool) is zmq.Event.HANDSHAKE_FAILED_AUTH
        peer.close(linger=0)
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("parts", [[b"garbage"], [b""], [b"a", b"b"], [b"", b"a", b""], [b"x"] * 50])
def test_a_flood_on_the_local_socket_is_a_few_lines(
    pool: HPCExecutor, context: zmq.Context[Any], parts: list[bytes]
) -> None:
    """T16, D3: of several parts, none may be taken for the next message's beginning."""
    assert pool._hub is not None
    peer = context.socket(zmq.DEALER)
    peer.connect(f"ipc://{pool._hub.directories.endpoint_path}")
    for _ in range(500):
        peer.send_multipart(parts)
    peer.send(msgspec.msgpack.encode([PROTOCOL + 1]))
    assert peer.poll(5000)  # which is answered: it has read all before


# ---- another user: T3, T7, T8, T9


@pytest.fixture
def nobody(start_script: Callable[..., Any]) -> Callable[..., Any]:
    """Starts scripts that run as another user, after their imports; they say a line when they are ready."""

    def start(imports: str, script: str, *args: str, **options: Any) -> Any:
        return start_script(imports + BE_NOBODY + textwrap.dedent(script), *args, **options)

    return start


FLOOD_IMPORTS = "import encodings.idna, resource, socket, sys\n"
FLOOD = """
    port, silent, half = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_NOFILE, (silent + half + 100,) * 2)
    kept = [socket.create_connection(("127.0.0.1", port)) for _ in range(silent)]
    greeting = b"\\xff\\0\\0\\0\\0\\0\\0\\0\\1\\x7f\\3\\0CURVE".ljust(64, b"\\0")
    for number in range(half):
        kept.append(socket.create_connection(("127.0.0.1", port)))
        kept[-1].send([greeting[:11], greeting, greeting + b"\\4\\xc8\\5HELLO\\1\\0"][number % 3])
    print("ready", flush=True)
    sys.stdin.read()
"""


@AS_ANOTHER_USER
def test_connections_of_another_user_that_say_nothing_keep_no_agent_out(
    pool: HPCExecutor, join: Join, nobody: Callable[..., Any]
) -> None:
    """T3, D7."""
    attacker = nobody(FLOOD_IMPORTS, FLOOD, str(port_of(pool)), "500", "120", stdin=subprocess.PIPE)
    assert attacker.stdout.readline() == "ready\n", attacker.stderr.read()
    started = time.monotonic()
    join(pool.invite(host="127.0.0.1"))
    wait_until(lambda: len(pool.workers()) == 2)
    assert time.monotonic() - started < 10
    assert outcome(pool.submit(pow, 2, 3)) == 8


@AS_ANOTHER_USER
def test_when_another_user_has_taken_all_descriptors_tasks_go_on(nobody: Callable[..., Any], start_script: Any) -> None:
    """D7: nobody can join meanwhile; who has joined works, and when there are descriptors again, others may."""
    client = start_script(textwrap.dedent("""
        import resource, subprocess, sys
        from executor import HPCExecutor
        resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120))
        with HPCExecutor(1) as executor:
            assert executor.submit(pow, 2, 3).result(30) == 8
            invitation = executor.invite(host="127.0.0.1")
            print(invitation.endpoints[0].rpartition(":")[2], flush=True)
            for line in sys.stdin:
                assert executor.submit(pow, 2, 3).result(30) == 8
                print(len(executor.workers()), invitation.path, flush=True)
    """), stdin=subprocess.PIPE)  # fmt: skip
    port = client.stdout.readline().strip()
    attacker = nobody(FLOOD_IMPORTS, FLOOD, port, "200", "0", stdin=subprocess.PIPE)
    assert attacker.stdout.readline() == "ready\n", attacker.stderr.read()
    told = ask(client)
    assert told.split()[0] == "1"
    attacker.stdin.close()
    attacker.wait(PATIENCE)
    agent = start_script(JOIN, told.split()[1])
    wait_until(lambda: ask(client).split()[0] == "2")
    client.stdin.close()
    assert client.wait(PATIENCE) == 0, client.stderr.read()
    agent.wait(PATIENCE)


JOIN = "from worker_agent.__main__ import main\nmain()"


def ask(client: Any) -> str:
    client.stdin.write("\n")
    client.stdin.flush()
    line: str = client.stdout.readline()
    assert line, client.stderr.read()
    return line


SEARCH = """
    needles = [bytes.fromhex(line) for line in sys.stdin.readline().split()]
    since = float(sys.argv[1])
    found, looked, refused = [], 0, 0

    def look(path):
        global looked, refused
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            refused += 1
            return
        with open(fd, "rb") as file:
            try:
                data = file.read(10_000_000) or b""
            except OSError:
                refused += 1
                return
        looked += 1
        found.extend(f"{path}: {number}" for number, needle in enumerate(needles) if needle in data)

    for pid in filter(str.isdecimal, os.listdir("/proc")):
        for name in ("cmdline", "environ", "maps", "stack", "mem"):
            look(f"/proc/{pid}/{name}")
    look("/proc/net/unix")
    for top in sys.argv[2:]:
        for folder, folders, files in os.walk(top):
            folders[:] = [each for each in folders if each != "site-packages"]
            for name in files:
                path = os.path.join(folder, name)
                try:
                    status = os.lstat(path)
                except OSError:
                    continue
                if stat.S_ISREG(status.st_mode) and status.st_mtime >= since:
                    look(path)
    print(json.dumps([found, looked, refused]))
"""


@AS_ANOTHER_USER
def test_another_user_finds_no_key_anywhere(
    pool: HPCExecutor, join: Join, nobody: Callable[..., Any], start_script: Any, tmp_path: Path
) -> None:
    """T7: not in arguments, environments, files, nor in logs, while an agent that was invited runs a task."""
    since = time.time() - 1
    invitation = pool.invite(2, host="127.0.0.1")  # its file stays until the other one has joined, too
    agent = join(invitation)
    wait_until(lambda: len(pool.workers()) == 2)
    network, connection = network_of(pool), read_connection(Path(invitation).read_bytes())
    canary = b"what everybody may read"
    keys = [network._secret, connection.secret_key.encode(), connection.session.encode()]
    needles = [canary, *keys, *(z85.decode(key) for key in keys[:2])]
    with tempfile.NamedTemporaryFile(dir="/tmp", prefix="hpc-test-canary-") as file:
        file.write(canary)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        start_script("import sys; sys.stdin.read()", canary.decode(), stdin=subprocess.PIPE)
        searcher = nobody("import json, os, stat, sys\n", SEARCH, str(since), "/tmp", "/dev/shm", stdin=subprocess.PIPE)
        out, err = searcher.communicate(" ".join(needle.hex() for needle in needles) + "\n", timeout=PATIENCE)
        found, looked, refused = json.loads(out)
        assert sorted(each for each in found if each.endswith(": 0")) == sorted(found), found
        assert {file.name + ": 0"} < set(found)  # and in a command line: it does look there
    assert looked > 10
    assert refused > 10
    assert agent.poll() is None


@AS_ANOTHER_USER
def test_what_another_user_has_put_where_sessions_lie_is_neither_used_nor_removed(
    nobody: Callable[..., Any], new_executor: Callable[..., HPCExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """T8: directories, links and pipes with our names, in a directory where everybody may write."""
    place = Path(tempfile.mkdtemp(dir="/tmp", prefix="hpc-test-"))
    victim = place / "victim"
    try:
        victim.mkdir()
        (victim / "owner").write_text(Path("/proc/sys/kernel/random/boot_id").read_text())
        place.chmod(0o1777)
        planter = nobody("import os, sys\n", """
            os.chdir(sys.argv[1])
            os.umask(0)
            os.symlink("victim", "hpc-executor-link")
            os.symlink("victim/owner", "hpc-executor-owner")
            for name in ("hpc-executor-open", "hpc-executor-pipe"):
                os.mkdir(name)
            open("hpc-executor-open/owner", "w").write("1 2 3 4")
            os.symlink("../victim/owner", "hpc-executor-open/hub")
            os.mkfifo("hpc-executor-pipe/owner")
            os.mkfifo("hpc-executor-fifo")
        """, str(place))  # fmt: skip
        assert planter.wait(PATIENCE) == 0, planter.stderr.read()
        before = sorted(str(path) for path in place.rglob("*"))
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        executor = new_executor(1)
        assert outcome(executor.submit(pow, 2, 3)) == 8
        for store in session_of(executor).stores:
            status = os.lstat(store)
            assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o700, os.getuid())
            assert all(os.lstat(path).st_uid == os.getuid() for path in Path(store).iterdir())
        executor.shutdown()
        assert sorted(str(path) for path in place.rglob("*")) == before
    finally:
        shutil.rmtree(place)


def session_of(pool: HPCExecutor) -> local.SessionDirectories:
    assert pool._hub is not None
    return pool._hub.directories


def test_no_session_is_made_where_everybody_may_rename_it(
    new_executor: Callable[..., HPCExecutor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """T8: without the sticky bit, another user puts a directory of his in the place of ours."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tmp_path.chmod(0o777)
    with pytest.raises(OSError, match="everybody may rename"):
        new_executor(1).submit(pow, 2, 3)
    tmp_path.chmod(0o1777)
    assert outcome(new_executor(1).submit(pow, 2, 3)) == 8


@AS_ANOTHER_USER
def test_an_invitation_of_somebody_else_is_never_read(nobody: Callable[..., Any]) -> None:
    """T9: whatever is put in its place between the check and the reading, by renaming, as fast as it goes."""
    place = Path(tempfile.mkdtemp(dir="/tmp", prefix="hpc-test-"))
    try:
        place.chmod(0o777)
        ours = place / "ours"
        ours.write_text("ours")
        ours.chmod(0o600)
        swapper = nobody("import itertools, os, sys\n", """
            os.chdir(sys.argv[1])
            print("ready", flush=True)
            for number in itertools.count():
                try:
                    if number % 3 == 0:
                        open("new", "w").write("theirs")
                        os.chmod("new", 0o600)
                    elif number % 3 == 1:
                        os.symlink("ours", "new")
                    else:
                        os.mkfifo("new")
                    os.rename("ours", "kept")
                    os.rename("new", "ours")
                    os.rename("kept", "ours")
                except FileExistsError:
                    os.unlink("new")
        """, str(place))  # fmt: skip
        assert swapper.stdout.readline() == "ready\n", swapper.stderr.read()
        outcomes = [read_or_refuse(ours) for _ in range(10_000)]
        assert swapper.poll() is None
        assert set(outcomes) <= {"ours", "refused"}
        assert min(outcomes.count("ours"), outcomes.count("refused")) > 0
    finally:
        swapper.kill()
        swapper.wait()
        shutil.rmtree(place)


def read_or_refuse(path: Path) -> str:
    try:
        return agent_main._read_private(str(path)).decode()
    except (SystemExit, OSError):
        return "refused"


@pytest.mark.parametrize("what", ["link", "pipe", "mode", "directory"])
def test_a_file_that_is_not_private_is_refused_at_once(join: Join, tmp_path: Path, what: str) -> None:
    """T8: also a pipe, in which an agent would wait for ever."""
    real, path = tmp_path / "real", tmp_path / "file"
    real.touch(0o600)
    if what == "link":
        path.symlink_to(real)
    elif what == "pipe":
        os.mkfifo(path, 0o600)
    elif what == "mode":
        path.touch(0o644)
    else:
        path.mkdir(0o700)
    agent = join(path)
    agent.communicate(timeout=PATIENCE)
    assert agent.returncode == 1


# ---- agents with a key: T5, T6, C13, C14, C18, S6


def test_an_agent_cannot_speak_for_one_of_another_invitation(
    held: HPCExecutor, handmade: Callable[..., HandmadeAgent]
) -> None:
    """T5, C14: by its epoch, its name, its process, or by the number of its task."""
    victim = handmade(held.invite(host="127.0.0.1")).join()
    attacker = handmade(held.invite(host="127.0.0.1"), host="attacker")
    future, run = run_task(victim, held)
    attacker.join()
    lie = Finished(run.task, run.attempt, protocol.VALUE, plain("a lie"))
    attacker.send_frame(lie, epoch=victim.epoch)
    attacker.send_frame(protocol.Bye("a lie"), epoch=victim.epoch, first=2)
    for hello in (attacker.hello(victim.name), protocol_hello(attacker, process=victim.process)):
        attacker.send_frame(hello, epoch=0, first=0)
    attacker.report(lie, Started(run.task, run.attempt, 1, 0.0), protocol.Recalled(run.task, run.attempt, True))
    assert not future.done()
    assert {worker.host for worker in held.workers()} >= {"handmade", "attacker"}
    victim.report(Finished(run.task, run.attempt, protocol.VALUE, plain("the truth")))
    assert (outcome(future), future.attempt) == ("the truth", 1)


def protocol_hello(agent: HandmadeAgent, **changes: Any) -> Hello:
    fields = {name: getattr(agent.hello("x"), name) for name in Hello.__struct_fields__}
    return Hello(**{**fields, **changes})


def test_an_agent_cannot_guess_the_epoch_of_another_one_with_its_key(
    held: HPCExecutor, handmade: Callable[..., HandmadeAgent]
) -> None:
    """T5: the agents of one invitation have one key; what tells them apart is known to each alone."""
    invitation = held.invite(2, host="127.0.0.1")
    victim = handmade(invitation).join()
    future, run = run_task(victim, held)
    attacker = handmade(invitation).join()
    for epoch in (*range(10), victim.epoch + 1, victim.epoch - 1, attacker.epoch - 1, attacker.epoch + 1):
        attacker.send_frame(Finished(run.task, run.attempt, protocol.VALUE, plain("a lie")), epoch=epoch)
    attacker.settle()
    assert not future.done()
    victim.report(Finished(run.task, run.attempt, protocol.VALUE, plain("the truth")))
    assert outcome(future) == "the truth"


def test_results_of_tasks_that_were_not_given_are_dropped(
    held: HPCExecutor, handmade: Callable[..., HandmadeAgent]
) -> None:
    """T6, C13, C14, D6: unknown, finished, of another attempt; of another session or epoch."""
    agent = handmade(held.invite(host="127.0.0.1")).join()
    future, run = run_task(agent, held)
    body = plain("a lie")
    for task, attempt in ((run.task + 1000, 1), (1, 1), (2, 1), (0, 0), (-1, 1), (2**63, 1), (run.task, 2)):
        agent.report(Finished(task, attempt, protocol.VALUE, body), Started(task, attempt, 1, 0.0))
    right = Finished(run.task, run.attempt, protocol.VALUE, body)
    agent.send_frame(right, session="another")
    agent.send_frame(right, epoch=agent.epoch + 1)
    agent.send_frame(right, epoch=2**64 - 1, first=2**64 - 1, ack=2**64 - 1)
    agent.settle()
    assert not future.done()
    agent.report(Finished(run.task, run.attempt, protocol.VALUE, plain("the truth")))
    agent.report(Finished(run.task, run.attempt, protocol.VALUE, body))
    assert outcome(future) == "the truth"


def test_a_report_that_names_a_file_of_the_user_does_not_touch_it(
    held: HPCExecutor, handmade: Callable[..., HandmadeAgent], tmp_path: Path
) -> None:
    """A payload is removed when it was read, or is not wanted; a report of an unknown task removed any file.

    With a pipe in its place, the hub's thread waited for ever.
    """
    precious, pipe = tmp_path / "precious", tmp_path / "pipe"
    precious.write_bytes(b"\1\2\0\0\0[]" + pickle.dumps("stolen"))
    os.mkfifo(pipe)
    agent = handmade(held.invite(host="127.0.0.1")).join()
    own = session_of(held)
    names = json.dumps([[str(precious), 1], [str(pipe), 1]]).encode()
    lists = [kind + len(names).to_bytes(4, "little") + names for kind in (b"\1", b"\2")]
    paths = [str(precious), str(pipe), own.endpoint_path, f"{own.main}/../../{precious}"]
    for body in [*(b"\4" + path.encode() for path in paths), *lists]:
        agent.report(Finished(10**6, 1, protocol.VALUE, body))
        future, run = run_task(agent, held)
        agent.report(Finished(run.task, run.attempt, protocol.VALUE, body))
        assert "no payload of this session" in str(future.exception(PATIENCE))
    assert precious.read_bytes().endswith(pickle.dumps("stolen"))
    assert os.path.exists(own.endpoint_path)


def test_an_agent_cannot_refuse_an_environment_that_it_was_not_told(
    pool: HPCExecutor, handmade: Callable[..., HandmadeAgent]
) -> None:
    """One report of one agent ended the whole executor."""
    agent = handmade(pool.invite(host="127.0.0.1")).join()
    for environment in (*range(20), -1, 2**63):
        agent.report(Unprepared(environment, "no such Python", b"", True), Unprepared(environment, "none", plain(1)))
    agent.leave()
    assert outcome(pool.submit(pow, 2, 3)) == 8


class Stalls:
    """A pickle that takes its time."""

    def __reduce__(self) -> Any:
        return time.sleep, (4,)


class Bomb:
    """A pickle that raises what it should not."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit(3)",)


BODIES = [
    b"", b"\0", b"\3", b"\x7f" * 100, b"\0" + b"(" * 30_000, b"\3" + pickle.dumps(Bomb()),
    b"\0" + pickle.dumps(Bomb()), b"\1\xff\xff\xff\xff", b"\2\2\0\0\0[]", b"\4", b"\4\0", b"\4\xff", b"\4relative",
    b"\0\x80\5X\xff\xff\xff\xff", b"\3\x80\5\x8e" + b"\xff" * 8, b"\1\2\0\0\0[]" + b"\x97.",
]  # fmt: skip


def test_a_malformed_outcome_is_the_exception_of_its_own_future(
    held: HPCExecutor, handmade: Callable[..., HandmadeAgent]
) -> None:
    """T6."""
    agent = handmade(held.invite(host="127.0.0.1")).join()
    for body in BODIES:
        for end in (protocol.VALUE, protocol.ERROR, "nonsense"):
            future, run = run_task(agent, held)
            agent.report(Finished(run.task, run.attempt, end, body, -(2**63), 2**64 - 1, float("nan"), float("inf")))
            assert future.exception(PATIENCE) is not None, body


def test_a_pickle_that_takes_its_time_holds_up_nobody_else(
    held: HPCExecutor, handmade: Callable[..., HandmadeAgent]
) -> None:
    """S7: an outcome that was called plain was unpickled on the hub's thread, whatever was in it."""
    agent = handmade(held.invite(host="127.0.0.1")).join()
    slow, run = run_task(agent, held)
    started = time.monotonic()
    agent.report(Finished(run.task, run.attempt, protocol.VALUE, plain(Stalls())))
    future, run = run_task(agent, held)
    agent.report(Finished(run.task, run.attempt, protocol.VALUE, plain(5)))
    assert outcome(future) == 5
    assert time.monotonic() - started < 3.5
    assert outcome(slow) is None


def test_frames_that_are_too_long_or_garbled_harm_their_sender_only(
    held: HPCExecutor, handmade: Callable[..., HandmadeAgent], caplog: pytest.LogCaptureFixture
) -> None:
    """T6, D3, D4: what it still says in its epoch counts, over a new connection if need be."""
    agent = handmade(held.invite(host="127.0.0.1")).join()
    future, run = run_task(agent, held)
    for data in (b"\xff" * 1000, b"\x91" * 100_000, msgspec.msgpack.encode(["x" * 100_000]), b"\0"):
        for _ in range(50):
            agent.send(data)
    agent.send(bytes(MESSAGE_LIMIT))
    tag = msgspec.msgpack.encode([PROTOCOL, agent.connection.session, agent.epoch, 1, 0, False, 0.0, [["x" * 10**6]]])
    agent.send(tag)
    agent.settle()
    agent.send(bytes(MESSAGE_LIMIT + 1))  # ends the connection
    agent.report(Finished(run.task, run.attempt, protocol.VALUE, plain("the truth")))
    assert outcome(future) == "the truth"
    assert len(held.workers()) == 2


@pytest.mark.parametrize(
    "fields", [{"python": "3.5.2"}, {"cloudpickle": "1.0"}, {"missing": ["numpy"]}, {"launch": "x"}]
)
def test_an_agent_that_does_not_fit_is_told_so_and_others_go_on(
    pool: HPCExecutor, handmade: Callable[..., HandmadeAgent], caplog: pytest.LogCaptureFixture, fields: dict[str, Any]
) -> None:
    """C18: one sentence on both sides."""
    agent = handmade(pool.invite(host="127.0.0.1"), **fields)
    agent.until(lambda: agent.refused)
    (line,) = warnings(caplog)
    assert line.startswith("an agent on handmade (process ")
    assert line.endswith(f"was refused: {agent.refused}")
    assert len(pool.workers()) == 1


def test_an_agent_of_another_protocol_is_told_so_in_one_sentence(
    pool: HPCExecutor, start_script: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """C18: whichever side is older, and wherever it notices."""
    invitation = pool.invite(2, host="127.0.0.1")
    before = "from worker_agent import protocol\nprotocol.PROTOCOL = 99\n"
    told = start_script(before + JOIN, invitation.path).communicate(timeout=PATIENCE)[1].splitlines()
    assert told == [f"this agent leaves: the hub speaks protocol {PROTOCOL}, this agent protocol 99"]
    after = textwrap.dedent("""
        from worker_agent import codec, connection
        def read(data, read=connection.read_connection):
            found = read(data)
            codec.PROTOCOL = 99
            return found
        connection.read_connection = read
    """)
    told = start_script(after + JOIN, invitation.path).communicate(timeout=PATIENCE)[1].splitlines()
    assert told[1:] == [f"this agent leaves: the peer speaks protocol {PROTOCOL}, this is protocol 99"]
    assert warnings(caplog) == [f"a frame was dropped: the peer speaks protocol 99, this is protocol {PROTOCOL}"]


def test_before_its_hello_a_key_is_good_for_nothing_else(
    pool: HPCExecutor, handmade: Callable[..., HandmadeAgent]
) -> None:
    """S6: nothing counts, little is answered, and a hello is short."""
    agent = handmade(pool.invite(host="127.0.0.1"))
    for number in range(2000):
        agent.send_frame(Finished(1, 1, protocol.VALUE, plain("a lie")), epoch=number + 1)
        agent.send_frame(protocol.Warn("x" * 10_000), epoch=0, first=0)
        agent.send_frame(protocol_hello(agent, host="x" * 5000), epoch=0, first=0)
    agent.until(lambda: agent.epoch)
    assert len(agent.frames) < 50
    assert len(pool.workers()) == 2


def test_an_agent_that_joins_again_and_again_is_a_few_lines(
    pool: HPCExecutor, handmade: Callable[..., HandmadeAgent]
) -> None:
    """S6, S8."""
    agent = handmade(pool.invite(host="127.0.0.1")).join()
    for number in range(500):
        agent.send_frame(agent.hello(f"{number}"), epoch=0, first=0)
        agent.send_frame(protocol_hello(agent, process=f"{number}"), epoch=0, first=0)
    agent.report(*(protocol.Warn(f"{number} {'x' * 10_000}") for number in range(500)))
    assert len(pool.workers()) == 2


# ---- in between: T10, T11


class Tampering(_Relay):
    """A way to the hub on which somebody sits, who records all and changes some of it."""

    def __init__(self, port: int, tamper: Callable[[int, bool, bytes], bytes]) -> None:
        super().__init__(port)
        self._tamper = tamper
        self._counts: dict[socket.socket, int] = {}
        #: what agents have sent, by connection, and all that was sent either way
        self.sent: dict[socket.socket, bytes] = {}
        self.recorded = b""

    def _carry(self, source: socket.socket) -> None:
        try:
            data = source.recv(65536)
            if data:
                self._pass_on(source, data)
                return
        except OSError:
            pass  # one of the two has hung up
        for each in (source, self._pairs.pop(source)):
            self._pairs.pop(each, None)
            each.close()

    def _pass_on(self, source: socket.socket, data: bytes) -> None:
        self.recorded += data
        towards_agent = source.getpeername()[1] == self._port
        if not towards_agent:
            self.sent[source] = self.sent.get(source, b"") + data
        count = self._counts[source] = self._counts.get(source, 0) + 1
        self._pairs[source].sendall(self._tamper(count, towards_agent, data))


def untouched(count: int, towards_agent: bool, data: bytes) -> bytes:
    return data


#: By then a connection is well beyond its handshake.
LATE = 25


def one_bit_flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 4])


def some_records_repeated(data: bytes) -> bytes:
    return data * 2


def echo(text: str) -> str:
    """A task whose name, argument and result would be seen."""
    return text + text


def leave(agent: Any, pool: HPCExecutor) -> None:
    """Let an agent go while it is still reached: or the end of the test would wait for its lease."""
    agent.terminate()
    wait_until(lambda: len(pool.workers()) == 1)


def test_what_is_on_the_wire_cannot_be_read(held: HPCExecutor, join: Join, tmp_path: Path) -> None:
    """T10: neither what is called nor with what, nor the result, nor what we say about it."""
    with Tampering(port_of(held), untouched) as relay:
        agent = join(changed(held.invite(host="127.0.0.1"), tmp_path, endpoints=[relay.endpoint]))
        wait_until(lambda: len(held.workers()) == 2)
        assert outcome(held.submit(echo, "canary")) == "canarycanary"
        leave(agent, held)
        assert len(relay.recorded) > 2000
        session = held._hub.session if held._hub is not None else ""
        for word in ("canary", "test_attacks", session, session[:8], "hello", "finished", "worker_agent"):
            assert word.encode() not in relay.recorded


@pytest.mark.parametrize("to_agent", [False, True], ids=["to the hub", "to the agent"])
@pytest.mark.parametrize("change", [one_bit_flipped, some_records_repeated])
def test_what_is_changed_on_the_wire_ends_the_connection_and_nothing_else(
    held: HPCExecutor, join: Join, tmp_path: Path, change: Callable[[bytes], bytes], to_agent: bool
) -> None:
    """T11. What came garbled to an agent ended its connection for good: libzmq makes no new one then."""
    changes: list[bytes] = []

    def tamper(count: int, towards_agent: bool, data: bytes) -> bytes:
        if towards_agent != to_agent or count < LATE or changes:
            return data
        changes.append(change(data))
        return changes[0]

    with Tampering(port_of(held), tamper) as relay:
        agent = join(changed(held.invite(host="127.0.0.1"), tmp_path, endpoints=[relay.endpoint]))
        wait_until(lambda: len(held.workers()) == 2)
        number = 0
        while len(relay.sent) < 2:
            future = held.submit(echo, str(number))
            assert (outcome(future), future.attempt) == (f"{number}{number}", 1)
            number += 1
        leave(agent, held)
    assert changes


def test_a_program_s_large_standard_input_is_no_frame_beyond_the_limit(held: HPCExecutor, join: Join) -> None:
    """D4: the hub refused to send it, and failed."""
    join(held.invite(host="127.0.0.1"))
    assert outcome(held.submit(Program(["wc", "-c"], stdin=bytes(MESSAGE_LIMIT + 1)))).stdout.split() == [
        str(MESSAGE_LIMIT + 1)
    ]


def test_a_connection_that_is_played_again_says_nothing(held: HPCExecutor, join: Join, tmp_path: Path) -> None:
    """T11: its keys were made for it."""
    ran = tmp_path / "ran"
    with Tampering(port_of(held), untouched) as relay:
        agent = join(changed(held.invite(2, host="127.0.0.1"), tmp_path, endpoints=[relay.endpoint]))
        outcome(held.submit(Program(["sh", "-c", f"echo x >> {ran}"])))
        (recorded,) = relay.sent.values()
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port_of(held)), timeout=PATIENCE) as again:
                try:
                    again.sendall(recorded)
                    while again.recv(4096):
                        continue
                except ConnectionResetError:
                    pass
        assert outcome(held.submit(pow, 2, 3)) == 8
        assert len(held.workers()) == 2
        assert ran.read_text() == "x\n"
        leave(agent, held)


# ---- what lies about: T13


PLANTED = """
import os, sys
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "imported"), "a") as file:
    file.write(f"{__name__} by {sys.orig_argv}\\n")
"""
NAMES = (
    "argparse", "cloudpickle", "json", "mmap", "msgspec", "pickle", "psutil", "secrets", "signal", "sitecustomize",
    "socket", "struct", "subprocess", "tempfile", "usercustomize", "zmq",
)  # fmt: skip
#: What ``python -m`` itself imports before any line of ours.
OURS = ("executor", "worker_agent", "contextlib", "warnings", "__future__")


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Makes a directory with modules that tell who imports them; nobody may have done so when the test is over."""

    def make(*names: str) -> str:
        folder = tmp_path / "trap" / "planted"
        for name in names:
            (folder / name).mkdir(parents=True)
            (folder / name / "__init__.py").write_text(PLANTED)
        return str(folder)

    yield make
    imported = tmp_path / "trap" / "imported"
    assert not imported.exists(), imported.read_text()


CLIENT = """
import sys
from executor import HPCExecutor, Program
import multiprocessing

def folder_of(name):
    import importlib
    return importlib.import_module(name).__file__

def what_is_loaded():
    return [name for name, module in sys.modules.items() if "planted" in (getattr(module, "__file__", "") or "")]

if __name__ == "__main__":
    sys.path[:0] = sys.argv[2:]
    context = multiprocessing.get_context(sys.argv[1])
    with HPCExecutor(2, context) as executor:
        assert executor.submit(what_is_loaded).result(30) == []
        assert executor.options(cwd=sys.path[-1]).submit(what_is_loaded).result(30) == []
        assert executor.submit(len, bytes(1_000_000)).result(30) == 1_000_000
        assert executor.submit(Program(["true"])).result(30).returncode == 0
"""


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("on_path", [False, True], ids=["where it runs", "first on its path"])
def test_client_and_tasks_import_nothing_that_was_planted(
    planted: Callable[..., str], start_script: Any, start: str, on_path: bool
) -> None:
    """T13: where the client works, and first on the ``sys.path`` of its tasks. What tasks import is theirs."""
    names = {*NAMES, *OURS} - ({"cloudpickle"} if on_path else set())  # which tasks have as their own path has it
    folder = planted(*names)
    client = start_script(CLIENT, start, *[folder] * on_path, cwd=folder)
    assert client.wait(PATIENCE) == 0, client.stderr.read()


@pytest.mark.parametrize(("flags", "names"), [(["-P"], (*NAMES, *OURS)), ([], NAMES)], ids=["with -P", "without"])
def test_an_agent_imports_nothing_that_was_planted(
    pool: HPCExecutor, planted: Callable[..., str], flags: list[str], names: tuple[str, ...]
) -> None:
    """T13: ``python -m`` looks first where it is started. What it imports itself before us only ``-P`` guards."""
    command = [sys.executable, *flags, "-m", "worker_agent", pool.invite(host="127.0.0.1").path]
    env = {**os.environ, "PYTHONPATH": REPOSITORY}
    agent = subprocess.Popen(command, cwd=planted(*names), env=env, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: len(pool.workers()) == 2 or agent.poll() is not None)
        assert agent.poll() is None
    finally:
        agent.terminate()
        agent.communicate(timeout=PATIENCE)


# ---- after the end: T15


@pytest.mark.parametrize("other", ["another hub", "garbage"])
def test_an_agent_whose_hub_s_port_is_somebody_else_s_now_ends(
    start_script: Any, join: Join, new_executor: Callable[..., HPCExecutor], tmp_path: Path, other: str
) -> None:
    """T15: it knows its hub by a key, so that the stranger is none; within its lease, its task has ended."""
    client = start_script(textwrap.dedent(f"""
        from executor import HPCExecutor, Program
        executor = HPCExecutor(1, agents=0, lease=1)
        invitation = executor.invite(host="127.0.0.1")
        print(invitation.path, invitation.endpoints[0].rpartition(":")[2], flush=True)
        executor.submit(Program(["sh", "-c", "echo $$ > {tmp_path}/pid; exec sleep 600"])).result()
    """))
    path, port = client.stdout.readline().split()
    agent = join(path)
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
    pid = int((tmp_path / "pid").read_text())
    client.kill()
    client.wait()
    stranger = new_executor(1, lease=1)
    with Rude(int(port)) if other == "garbage" else network_executor(stranger, int(port)):
        _, told = agent.communicate(timeout=PATIENCE)
        assert gone(pid)
        assert told.splitlines()[-1] == "this agent leaves: the hub has not answered for 2 s"
    assert outcome(stranger.submit(pow, 2, 3)) == 8
    assert all(worker.local for worker in stranger.workers())


class network_executor:
    """An executor that listens on a port."""

    def __init__(self, executor: HPCExecutor, port: int) -> None:
        executor.invite(5, host="127.0.0.1", port=port)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class Rude:
    """Listens on a port, and answers whoever connects with garbage."""

    def __init__(self, port: int) -> None:
        self._server = socket.create_server(("127.0.0.1", port))
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        greeting = b"\xff\0\0\0\0\0\0\0\1\x7f\3\0CURVE".ljust(64, b"\0")
        for number in range(1000):
            try:
                peer, _ = self._server.accept()
            except OSError:
                return
            with peer:
                try:
                    peer.sendall([b"HTTP/1.1 400 Bad Request\r\n\r\n", greeting + b"\xff" * 1000][number % 2])
                except OSError:
                    continue

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()
