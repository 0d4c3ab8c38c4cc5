"""Inputs and outputs of programs on agents that do not see the client's files: sent there, and sent back."""

# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import hashlib
import os
import queue
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from pools import end, error_of, gate, new_executor, outcome, session_directories, sh
from test_invited import BLIND, Join, join
from test_job_agents import here, leased
from test_scratch import other_disk
from test_transfers import MIB, Sender, moved, names
from waiting import Gate, parent_of, wait_announced, wait_until

from executor import CAPTURE, HPCExecutor, OutputMissing, Program, ProgramFailed, ProgramNotStarted, TaskKilled
from executor import placing as placing_module
from executor.errands import Errands
from executor.placing import Placing
from worker_agent import bodies, protocol, store, task_files, trees
from worker_agent.pieces import Received
from worker_agent.protocol import Finished, Piece, Run, SentFile, Tree

pytestmark = pytest.mark.shared

New = Callable[..., HPCExecutor]
#: Says that it is there, and waits at a gate.
HELD = 'echo $$ >> "$0"; head -c1 < "$1"'


@pytest.fixture
def elsewhere(new_executor: New, join: Join, tmp_path: Path) -> Iterator[HPCExecutor]:
    """An executor whose one agent sees none of our files."""
    executor = new_executor(2, agents=0)
    join(moved(executor.invite(host="127.0.0.1").path, tmp_path), program=BLIND)
    yield executor
    executor.shutdown()


def said(executor: HPCExecutor, script: str, *words: Any, **options: Any) -> str:
    """What a program prints that has these options."""
    text: str = outcome(executor.options(stdout=CAPTURE, **options).submit(sh(script, *words))).stdout
    return text


def payloads(executor: HPCExecutor) -> list[Path]:
    """What the session has in its directories."""
    return [path for place in session_directories(executor) for path in place.iterdir() if path.name[0] in "0123456789o"
            and path.name != "owner"]  # fmt: skip


# ---- inputs


def test_a_file_is_sent_and_looks_like_one(elsewhere: HPCExecutor, here: Path) -> None:
    (here / "data.csv").write_text("3\n1\n2\n")
    (here / "empty").touch()
    (here / "tool").write_text('#!/bin/sh\nsort "$1"\n')
    (here / "tool").chmod(0o755)
    inputs = {"in/data.csv": "data.csv", "tool": "tool", "empty": "empty"}
    script = "test ! -L in/data.csv && test -f empty && test ! -s empty && ./tool in/data.csv"
    assert said(elsewhere, script, inputs=inputs) == "1\n2\n3\n"


def test_a_directory_is_sent_with_all_that_is_in_it(elsewhere: HPCExecutor, here: Path) -> None:
    (here / "data" / "deep" / "empty").mkdir(parents=True)
    (here / "data" / "deep" / "file").write_text("deep")
    (here / "data" / "link").symlink_to(here / "data" / "deep" / "file")
    script = "find in | sort; cat in/link; touch in/deep/mine"
    listed = "in\nin/deep\nin/deep/empty\nin/deep/file\nin/link\ndeep"
    assert said(elsewhere, script, inputs={"in": "data"}) == listed
    assert not (here / "data" / "deep" / "mine").exists()


def test_a_file_is_sent_once_and_again_when_it_has_changed(elsewhere: HPCExecutor, here: Path) -> None:
    (here / "data").write_text("old")
    look = "stat -c %i in; cat in"
    first = said(elsewhere, look, inputs={"in": "data"})
    assert said(elsewhere, look, inputs={"in": "data"}) == first
    (here / "data").write_text("new")
    changed = said(elsewhere, look, inputs={"in": "data"})
    assert changed.splitlines()[1] == "new"
    assert changed.splitlines()[0] != first.splitlines()[0]
    (here / "data").chmod(0o700)
    assert said(elsewhere, "test -x in && cat in", inputs={"in": "data"}) == "new"


def test_a_program_that_writes_to_its_input_spoils_it_for_nobody(elsewhere: HPCExecutor, here: Path) -> None:
    """Modes keep most from it; root may, and then the next task says so, and the one after that has the original."""
    (here / "data").write_text("ours")
    tasks = elsewhere.options(inputs={"in": "data"}, stdout=CAPTURE)
    assert outcome(tasks.submit(sh("stat -c %a in; rm in; echo mine > in"))).stdout == "444\n"
    assert outcome(tasks.submit(sh("cat in; chmod u+w in; echo mine > in"))).stdout == "ours"
    error = error_of(tasks.submit(sh("cat in")))
    assert isinstance(error, ProgramNotStarted)
    assert "its input 'in'" in str(error)
    assert "let tasks copy what they change" in str(error)
    assert outcome(tasks.submit(sh("cat in"))).stdout == "ours"
    assert (here / "data").read_text() == "ours"
    outcome(tasks.submit(sh("chmod u+w in; echo mine > in")))
    assert outcome(tasks.options(retries={"start": 1}).submit(sh("cat in"))).stdout == "ours"


def test_an_input_that_cannot_be_sent_says_why(elsewhere: HPCExecutor, here: Path) -> None:
    (here / "data").mkdir()
    (here / "data" / "link").symlink_to("/usr")
    os.mkfifo(here / "pipe")
    for name, why in {"data": "link to a directory", "pipe": "no file", "nothing": f"has no '{here}/nothing'"}.items():
        error = error_of(elsewhere.options(inputs={"in": name}).submit(sh("true")))
        assert isinstance(error, ProgramNotStarted)
        assert "its input" in str(error)
        assert why in str(error)
    assert said(elsewhere, "echo fine") == "fine\n"


def test_a_small_task_passes_a_large_input(elsewhere: HPCExecutor, here: Path) -> None:
    data = os.urandom(50 * MIB)
    (here / "data").write_bytes(data)
    tasks = elsewhere.options(inputs={"in": "data"}, outputs={"out": "copy"}, stdout=CAPTURE)
    large = tasks.submit(sh("sha256sum < in; cp in out"))
    small = [outcome(elsewhere.submit(pow, number, 2)) for number in range(5)]
    assert small == [0, 1, 4, 9, 16]
    assert not large.done()
    assert outcome(large).stdout.split()[0] == hashlib.sha256(data).hexdigest()
    assert (here / "copy").read_bytes() == data


def test_a_task_whose_input_is_on_its_way_can_be_cancelled_and_killed(elsewhere: HPCExecutor, here: Path) -> None:
    for name in "abc":
        (here / name).write_bytes(os.urandom(20 * MIB))
    first, second, third = (
        elsewhere.options(inputs={"in": name}, stdout=CAPTURE).submit(sh("wc -c < in")) for name in "abc"
    )
    third.kill()
    assert second.cancel()
    assert isinstance(error_of(third), TaskKilled)
    assert outcome(first).stdout == f"{20 * MIB}\n"


def test_an_agent_that_dies_while_it_is_sent_an_input_costs_nothing_but_time(
    new_executor: New, join: Join, tmp_path: Path, here: Path
) -> None:
    executor = new_executor(1, agents=0, lease=1)
    first = join(moved(executor.invite(host="127.0.0.1").path, tmp_path), program=BLIND)
    outcome(executor.submit(pow, 2, 3))
    (here / "data").write_bytes(os.urandom(30 * MIB))
    future = executor.options(inputs={"in": "data"}, stdout=CAPTURE).submit(sh("wc -c < in"))
    wait_until(lambda: future.attempt == 1)
    first.kill()
    join(moved(executor.invite(host="127.0.0.1").path, tmp_path), program=BLIND)
    assert outcome(future).stdout == f"{30 * MIB}\n"


# ---- outputs


def test_outputs_come_back_to_the_directory_of_who_submits(elsewhere: HPCExecutor, here: Path) -> None:
    (here / "results").mkdir()
    (here / "results" / "tool").write_text("old")
    script = (
        "mkdir -p out/deep/empty; echo deep > out/deep/file; ln -s deep/file out/link; touch none;"
        "echo '#!/bin/sh' > tool; chmod 750 tool; ln -s tool linked"
    )
    outputs = {"out": "results/all", "tool": "results/tool", "none": "none", "linked": "linked"}
    outcome(elsewhere.options(outputs=outputs).submit(sh(script)))
    listed = sorted(str(path.relative_to(here)) for path in here.rglob("*"))
    assert listed == [
        "linked", "none", "results", "results/all", "results/all/deep", "results/all/deep/empty",
        "results/all/deep/file", "results/all/link", "results/tool",
    ]  # fmt: skip
    assert (here / "results" / "all" / "link").read_text() == "deep\n"
    assert stat.S_IMODE((here / "results" / "tool").stat().st_mode) == 0o750
    assert (here / "linked").read_text() == "#!/bin/sh\n"
    assert not (here / "linked").is_symlink()
    assert payloads(elsewhere) == []


def test_an_output_is_there_when_the_next_task_starts(elsewhere: HPCExecutor, here: Path) -> None:
    first = elsewhere.options(outputs={"out": "data"}).submit(sh("echo text > out"))
    second = elsewhere.options(inputs={"in": "data"}, after=[first], stdout=CAPTURE).submit(sh("cat in"))
    assert outcome(second).stdout == "text\n"


def test_a_missing_output_is_told_and_none_is_moved(elsewhere: HPCExecutor, here: Path) -> None:
    tasks = elsewhere.options(outputs={"there": "there", "gone": "gone"})
    error = error_of(tasks.submit(sh("touch there else")))
    assert isinstance(error, OutputMissing)
    assert (error.missing, error.found) == (("gone",), ("else", "there"))
    assert isinstance(error_of(tasks.submit(sh("touch there gone; exit 3"))), ProgramFailed)
    assert os.listdir(here) == []


def test_an_output_that_cannot_be_put_in_its_place_is_the_error_of_its_task(elsewhere: HPCExecutor, here: Path) -> None:
    (here / "file").touch()
    error = error_of(elsewhere.options(outputs={"out": "file/out"}).submit(sh("touch out")))
    assert isinstance(error, OutputMissing)
    assert f"the output 'out' cannot be moved to '{here}/file/out'" in str(error)
    error = error_of(elsewhere.options(outputs={"out": "out"}).submit(sh("mkfifo out")))
    assert "its outputs cannot be sent" in str(error)
    assert "no file and no directory" in str(error)
    assert payloads(elsewhere) == []


def test_an_agent_that_is_killed_while_it_sends_an_output_leaves_no_part_of_it(
    new_executor: New, join: Join, tmp_path: Path, here: Path
) -> None:
    """Its supervisor starts another one, which does it again."""
    executor = new_executor(1, agents=0)
    join(moved(executor.invite(host="127.0.0.1").path, tmp_path), program=BLIND)
    script = 'echo $PPID >> "$0"; head -c 100M /dev/urandom > out; sha256sum < out'
    tasks = executor.options(outputs={"out": "results/out"}, stdout=CAPTURE)
    future = tasks.submit(sh(script, tmp_path / "agents"))
    wait_until(lambda: payloads(executor))
    agent = int((tmp_path / "agents").read_text())
    os.kill(agent, signal.SIGSTOP)
    assert not future.done()
    assert not (here / "results").exists()
    os.kill(agent, signal.SIGKILL)
    text = outcome(future).stdout
    assert future.attempt == 2
    assert text.split()[0] == hashlib.sha256((here / "results" / "out").read_bytes()).hexdigest()
    assert os.listdir(here / "results") == ["out"]
    wait_until(lambda: not payloads(executor))


def test_a_program_that_is_killed_or_too_slow_gives_no_output(elsewhere: HPCExecutor, here: Path, gate: Gate) -> None:
    tasks = elsewhere.options(outputs={"out": "out"})
    future = tasks.submit(sh(f"touch out; {HELD}", *gate.paths))
    gate.wait_arrivals()
    future.kill()
    assert isinstance(error_of(future), TaskKilled)
    assert os.listdir(here) == []


def test_nothing_is_left_on_either_side_but_inputs_for_the_next_one(elsewhere: HPCExecutor, here: Path) -> None:
    (here / "data").write_text("text")
    own = [Path(place) for place in outcome(elsewhere.submit(os.getenv, "HPC_SESSION_STORES")).split(os.pathsep)]
    tasks = elsewhere.options(inputs={"in": "data"}, outputs={"out": "out", "more": "more"})
    futures = [tasks.submit(sh(script)) for script in ("touch out more", "touch out", "touch out more; false", "cp in")]
    for future in futures:
        future.exception(30)
    wait_until(lambda: not any(place for each in own for place in each.glob("scratch-*/*")))
    kept = [path.read_text() for each in own for path in each.iterdir() if path.is_file() and path.name[0].isdigit()]
    assert kept == ["text"]
    assert payloads(elsewhere) == []
    assert sorted(os.listdir(here)) == ["data", "more", "out"]


# ---- what agents may say


def run_pieces(sender: Sender, task: int, **files: Any) -> Run:
    settings = protocol.Settings(files=protocol.Files(**files))
    run = Run(1, task, 1, protocol.Command(["true"]), settings)
    sender.transfers.send(run, [])
    return run


def turn(sender: Sender) -> None:
    """The hub's thread hears of one errand."""
    sender.posted.get(timeout=30)()


def answer(sender: Sender, *paths: Path) -> None:
    """The agent is asked for the inputs of a task, and sees those at these paths."""
    turn(sender)  # versions
    turn(sender)  # identities
    [asked] = sender.take_all()
    sender.transfers.take_reports([protocol.Seen(asked.number, list(map(str, paths)))])


def ended(*files: SentFile, attempt: int = 1) -> Finished:
    return Finished(7, attempt, protocol.COMPLETED, returncode=0, outputs=Tree(list(files)))


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[Sender]:
    sender = Sender(tmp_path)
    yield sender
    sender.transfers.close()
    sender.errands.close()


def test_outputs_wait_for_their_places(sender: Sender) -> None:
    run_pieces(sender, 7, outputs={"out": "/target", "empty": "/empty"})
    sender.take_all()
    said = [Piece("/x", 0, b"text", True), ended(SentFile("out", "/x", 4, 0o640), SentFile("empty", "/y", 0, 0o600))]
    assert sender.transfers.take_reports(said) == []
    [(report, wanted, tree)] = sender.placed
    assert wanted == {"out": "/target", "empty": "/empty"}
    assert [Path(file.piece).read_bytes() for file in tree.files] == [b"text", b""]
    assert {Path(file.piece).parent for file in tree.files} == {sender.directory}


@pytest.mark.parametrize("name", ["../out", "/out", "out/../../x", "out//x", "else", "outer", "out/./x", "", "out/\0"])
def test_an_agent_cannot_make_us_write_elsewhere(sender: Sender, name: str) -> None:
    run_pieces(sender, 7, outputs={"out": "/target"})
    sender.take_all()
    [report] = sender.transfers.take_reports([Piece("/x", 0, b"text", True), ended(SentFile(name, "/x", 4, 0o600))])
    assert (report.end, report.outputs) == (protocol.NO_OUTPUT, None)
    assert b"its agent sent" in report.body
    assert sender.placed == []
    assert os.listdir(sender.directory) == []


def test_one_file_cannot_be_two_outputs(sender: Sender) -> None:
    """It would be handed over twice, which ended the hub."""
    run_pieces(sender, 7, outputs={"a": "/a", "b": "/b"})
    sender.take_all()
    files = [SentFile(name, "/x", 4, 0o600) for name in ("a", "b")]
    [report] = sender.transfers.take_reports([Piece("/x", 0, b"text", True), ended(*files)])
    assert report.end == protocol.NO_OUTPUT
    assert os.listdir(sender.directory) == []


@pytest.mark.parametrize("which", ["another attempt", "no outputs", "unknown", "not told", "failed"])
def test_outputs_that_nobody_wants_are_removed(sender: Sender, which: str) -> None:
    if which != "unknown":
        run_pieces(sender, 7, **({"task_dir": True} if which == "no outputs" else {"outputs": {"out": "/target"}}))
    if which != "not told":
        sender.take_all()
    else:
        sender.transfers._sendings[7].waits = True
    report = ended(SentFile("out", "/x", 4, 0o600), attempt=2 if which == "another attempt" else 1)
    report.returncode = 1 if which == "failed" else 0
    assert sender.transfers.take_reports([Piece("/x", 0, b"text", True), report]) == [report]
    assert (report.end, report.outputs) == (protocol.COMPLETED, None)
    assert sender.placed == []
    assert os.listdir(sender.directory) == []


def test_an_output_that_was_announced_and_not_sent_is_missing(sender: Sender) -> None:
    run_pieces(sender, 7, outputs={"out": "/target"})
    sender.take_all()
    [report] = sender.transfers.take_reports([ended(SentFile("out", "/x", 4, 0o600))])
    assert report.end == protocol.NO_OUTPUT
    assert b"has not arrived" in report.body


# ---- inputs, piece by piece


@pytest.mark.parametrize("how", ["written", "replaced", "truncated", "removed"])
def test_an_input_that_changes_while_it_is_sent_is_an_error_of_the_task(
    sender: Sender, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(10 * MIB))
    run_pieces(sender, 7, inputs={"in": str(path)})
    answer(sender)
    turn(sender)  # looked at
    turn(sender)  # the first block
    sender.take_all()
    second = sender.posted.get(timeout=30)
    if how == "written":
        path.write_bytes(b"x" * 10 * MIB)
    elif how == "truncated":
        os.truncate(path, MIB)
    else:
        path.unlink()
        if how == "replaced":
            path.write_bytes(bytes(10 * MIB))
    second()  # it was read before
    assert Run not in map(type, sender.take_all())
    while not sender.failed:
        turn(sender)
        assert Run not in map(type, sender.take_all())
    [failed] = sender.failed
    assert (failed.task, failed.end) == (7, protocol.NOT_STARTED)
    assert b"its input 'in'" in failed.body
    assert (b"was changed while it was sent" in failed.body) == (how != "removed")


def test_the_next_task_goes_on_where_one_was_withdrawn(sender: Sender, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(os.urandom(10 * MIB))
    for task in (1, 2):
        run_pieces(sender, task, inputs={"in": str(path)})
    answer(sender)
    turn(sender)  # looked at
    turn(sender)  # the first block
    messages = sender.take()
    assert sender.transfers.withdraw(1)
    sender.transfers.done(1)
    sender.acknowledge()
    while Run not in map(type, messages):
        messages += sender.take_all()
        if Run not in map(type, messages):
            turn(sender)
    assert [each.task for each in messages if isinstance(each, Run)] == [2]
    received = Received([str(tmp_path / "hub")])
    for each in messages[:-1]:
        received.receive(each)
    [file] = messages[-1].settings.files.sent.files
    assert Path(received.sent_path(file)).read_bytes() == path.read_bytes()
    assert sum(len(each.data) for each in messages[:-1]) == file.size
    received.clear()


def test_a_piece_at_the_beginning_begins_anew(tmp_path: Path) -> None:
    received = Received([str(tmp_path)])
    for data in (b"old", b"newer"):
        received.receive(Piece("/x", 0, data, True))
    assert Path(received.path("/x", 5)).read_bytes() == b"newer"
    received.clear()
    assert os.listdir(tmp_path) == []


# ---- at the client


class Placed:
    """Placing, and what the hub's thread is told."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.errands = Errands(self.posted.put)
        self.told: list[Finished] = []
        self.placing = Placing(self.errands, [str(place)], lambda worker, report: self.told.append(report))
        self.worker: Any = SimpleNamespace()

    def start(self, target: Path) -> None:
        """One file is to get there."""
        path, size = store.store(b"text", [str(self.place)])
        tree = Tree([SentFile("out", path, size, 0o640)])
        self.placing.place(self.worker, Finished(7, 1, protocol.COMPLETED, returncode=0), {"out": str(target)}, tree)


@pytest.fixture
def placed(tmp_path: Path) -> Iterator[Placed]:
    (tmp_path / "store").mkdir()
    placed = Placed(tmp_path / "store")
    yield placed
    placed.errands.close()
    assert os.listdir(tmp_path / "store") == []


def test_an_end_is_told_when_the_output_is_in_its_place(placed: Placed, tmp_path: Path) -> None:
    placed.start(tmp_path / "target")
    placed.posted.get(timeout=30)()
    assert [report.end for report in placed.told] == [protocol.COMPLETED]
    assert (tmp_path / "target").read_text() == "text"


def test_what_an_agent_has_not_sent_is_missing(placed: Placed, tmp_path: Path) -> None:
    placed.placing.place(placed.worker, ended(), {"out": str(tmp_path / "target")}, Tree())
    placed.posted.get(timeout=30)()
    [report] = placed.told
    assert report.end == protocol.NO_OUTPUT
    assert msgspec.json.decode(report.body)["missing"] == ["out"]


def test_of_an_agent_that_is_gone_counts_what_is_in_its_place(placed: Placed, tmp_path: Path) -> None:
    placed.start(tmp_path / "target")
    wait_until((tmp_path / "target").exists)
    [report] = placed.placing.abandon(placed.worker)
    assert report.end == protocol.COMPLETED
    assert placed.placing.abandon(placed.worker) == []
    placed.posted.get(timeout=30)()
    assert placed.told == []


class SlowDisk:
    """A copy to it begins when ``entered`` is set, and goes on when ``go_on`` is."""

    def __init__(self) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    disk, copy_file = SlowDisk(), task_files._copy_file

    def copy_slowly(*args: Any) -> None:
        disk.entered.set()
        disk.go_on.wait(30)
        copy_file(*args)

    monkeypatch.setattr(task_files, "_copy_file", copy_slowly)
    return disk


def test_an_attempt_that_was_given_up_writes_nothing_though_the_disk_hung(
    placed: Placed, other_disk: Path, slow_disk: SlowDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing_module, "PATIENCE", 0.0)
    placed.start(other_disk / "target")
    assert slow_disk.entered.wait(30)
    assert placed.placing.abandon(placed.worker) == []
    slow_disk.go_on.set()
    placed.posted.get(timeout=30)()
    assert placed.told == []
    wait_until(lambda: not os.listdir(placed.place))
    assert os.listdir(other_disk) == []


def test_a_task_that_is_killed_while_its_output_is_moved_is_killed(
    placed: Placed, other_disk: Path, slow_disk: SlowDisk
) -> None:
    placed.start(other_disk / "target")
    assert slow_disk.entered.wait(30)
    placed.placing.kill(8)
    placed.placing.kill(7)
    slow_disk.go_on.set()
    placed.posted.get(timeout=30)()
    assert [report.end for report in placed.told] == [protocol.KILLED]
    assert os.listdir(other_disk) == []
