"""Inputs of programs that an agent elsewhere sees, as on a shared file system: links to them, and nothing is sent."""

# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pools import error_of, new_executor, outcome, sh
from test_invited import Join, join
from test_job_agents import here
from test_sent_files import answer, run_pieces, said, sender, turn
from test_transfers import Sender, elsewhere, moved, names

from executor import CAPTURE, HPCExecutor, ProgramNotStarted, input_files
from executor.sight import Sight
from worker_agent import protocol, trees
from worker_agent.looking import Looking
from worker_agent.loop import Loop
from worker_agent.protocol import Finished, Look, Seen

pytestmark = pytest.mark.shared

New = Callable[..., HPCExecutor]
#: Shell text that becomes the agent on a machine where ``$1`` is a directory of its own, with what ``$2`` puts there.
OTHER_MACHINE = 'mount -t tmpfs none "$1" && (cd "$1" && eval "$2") && shift 2 && exec "$@"'


# ---- with agents


def test_what_an_agent_sees_is_linked(elsewhere: HPCExecutor, here: Path) -> None:
    (here / "data").write_text("ours")
    (here / "folder" / "deep").mkdir(parents=True)
    (here / "folder" / "usr").symlink_to("/usr")  # such a directory could not be sent
    script = "readlink in/data folder; cat in/data; touch folder/deep/new"
    words = said(elsewhere, script, inputs={"in/data": "data", "folder": "folder"})
    assert words == f"{here}/data\n{here}/folder\nours"
    assert (here / "folder" / "deep" / "new").exists()


def test_what_an_agent_has_seen_and_is_gone_is_an_error_and_asked_for_again(elsewhere: HPCExecutor, here: Path) -> None:
    (here / "data").write_text("ours")
    tasks = elsewhere.options(inputs={"in": "data"}, stdout=CAPTURE)
    look = sh("readlink in; cat in")
    assert outcome(tasks.submit(look)).stdout == f"{here}/data\nours"
    (here / "data").unlink()
    assert isinstance(error_of(tasks.submit(look)), ProgramNotStarted)
    (here / "data").write_text("new")
    assert outcome(tasks.submit(look)).stdout == f"{here}/data\nnew"


@pytest.mark.parametrize("there", ["", "echo ours > data", "mkdir data"])
def test_of_two_inputs_the_one_that_an_agent_does_not_see_is_sent(
    new_executor: New, join: Join, tmp_path: Path, here: Path, there: str
) -> None:
    """It has a file system that we have, and one of its own at a path where we have another one."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a directory of its own needs root and unshare")
    for name in ("both", "ours"):
        (here / name).mkdir()
        (here / name / "data").write_text("ours\n")
    executor = new_executor(1, agents=0)
    join(
        moved(executor.invite(host="127.0.0.1").path, tmp_path),
        wrapper=["unshare", "--mount", "sh", "-c", OTHER_MACHINE, "sh", str(here / "ours"), there],
    )
    script = "test -L a && test ! -L b && cat a b; test -L c && cat c/data; test ! -L d && cat d/data"
    inputs = {"a": "both/data", "b": "ours/data", "c": "both", "d": "ours"}
    assert said(executor, script, inputs=inputs) == "ours\n" * 4


# ---- which file it is


def change(path: Path, how: str) -> None:
    """What makes a directory another one."""
    file, status = path / "deep" / "file", os.stat(path / "deep" / "file")
    if how == "written":
        file.write_text("more than before")
    elif how == "replaced":
        (path / "deep" / "new").write_text("text")
        os.rename(path / "deep" / "new", file)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif how == "rewritten":
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif how == "renamed":
        os.rename(file, path / "deep" / "other")
    elif how == "another link":
        os.unlink(path / "link")
        (path / "link").symlink_to("deep")
    elif how == "a folder":
        (path / "deep" / "folder").mkdir()


@pytest.mark.parametrize("how", ["written", "replaced", "rewritten", "renamed", "another link", "a folder"])
def test_a_directory_is_another_one_when_something_in_it_is(tmp_path: Path, how: str) -> None:
    path = tmp_path / "data"
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "file").write_text("text")
    (path / "link").symlink_to("/usr")
    before = trees.identity(str(path)), trees.identity(str(path / "deep" / "file"))
    assert before == (trees.identity(str(path)), trees.identity(str(path / "deep" / "file")))
    change(path, how)
    assert trees.identity(str(path)) != before[0]
    if how in ("written", "replaced", "rewritten"):
        assert trees.identity(str(path / "deep" / "file")) != before[1]


def test_a_copy_is_another_file_and_a_link_is_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    shutil.copy2(tmp_path / "a", tmp_path / "b")
    (tmp_path / "link").symlink_to("a")
    a, b, link = (trees.identity(str(tmp_path / name)) for name in ("a", "b", "link"))
    assert a == link
    assert a != b


def test_what_is_no_file_has_no_identity(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "nothing"):
        with pytest.raises(OSError, match=path.name):
            trees.identity(str(path))


# ---- the hub's side


class Agent:
    """One that is asked, and what it says."""

    def __init__(self, kept: int = 10) -> None:
        self.asked: list[Look] = []
        self.told: list[set[str]] = []
        self.sight = Sight(self.asked.append, kept)  # type: ignore[arg-type]  # it sends nothing else

    def ask(self, **versions: str) -> set[str] | None:
        """What it sees of these; None: it is asked."""
        if not (unknown := self.sight.unknown(versions)):
            return self.sight.seen(versions)
        self.sight.ask(unknown, unknown, lambda: self.told.append(self.sight.seen(versions)))
        return None

    def see(self, *paths: str) -> set[str]:
        """It answers the last question; gives what the hub is told then."""
        self.sight.on_seen(Seen(self.asked[-1].number, list(paths)))
        return self.told.pop()


def test_an_agent_is_asked_for_each_file_once() -> None:
    agent = Agent()
    assert agent.ask(a="1", b="1") is None
    assert agent.see("a") == {"a"}
    assert agent.ask(a="1", b="1") == {"a"}
    assert agent.ask(a="2", b="1", c="1") is None
    assert agent.see("c") == {"c"}
    assert agent.ask(a="1", b="1", c="1") == {"a", "c"}
    assert [each.identities for each in agent.asked] == [{"a": "1", "b": "1"}, {"a": "2", "c": "1"}]


def test_what_an_agent_was_not_asked_does_not_count() -> None:
    agent = Agent()
    agent.sight.on_seen(Seen(1, ["a"]))
    assert agent.ask(a="1") is None
    assert agent.see("b", "a/../b") == set()
    agent.sight.on_seen(Seen(1, ["a"]))
    assert agent.ask(a="1") == set()
    assert agent.ask(b="1") is None


def test_an_agent_is_asked_again_for_what_is_forgotten() -> None:
    agent = Agent(kept=2)
    agent.ask(a="1")
    agent.see("a")
    agent.sight.forget({"a": "1", "b": "2"})
    assert agent.ask(a="1") is None
    agent.see("a")
    agent.ask(b="1", c="1")
    agent.see("b", "c")  # more than are remembered
    assert agent.ask(a="1") is None


def test_nothing_is_sent_of_what_an_agent_sees(sender: Sender, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    inputs = {name: str(tmp_path / name) for name in ("a", "b")}
    run_pieces(sender, 1, inputs=inputs)
    answer(sender, tmp_path / "a")
    turn(sender)  # b is looked at
    turn(sender)  # b is read
    messages = sender.take_all()
    assert [type(each) for each in messages] == [protocol.Piece, protocol.Run]
    files = messages[-1].settings.files
    assert files.inputs == {"a": inputs["a"]}
    assert [file.name for file in files.sent.files] == ["b"]
    run_pieces(sender, 2, inputs={"a": inputs["a"]})
    turn(sender)  # versions
    assert names(sender.take_all()) == [2]


def test_an_agent_is_asked_for_a_directory_once_in_a_while(
    sender: Sender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not while tasks follow each other: the directory may be a large one."""
    monkeypatch.setattr(input_files, "DIRECTORY_HOLDS", 1e9)
    (tmp_path / "a" / "deep").mkdir(parents=True)
    run_pieces(sender, 1, inputs={"a": str(tmp_path / "a")})
    answer(sender, tmp_path / "a")
    sender.take_all()
    (tmp_path / "a" / "deep" / "new").touch()
    run_pieces(sender, 2, inputs={"a": str(tmp_path / "a")})
    turn(sender)  # versions
    assert names(sender.take_all()) == [2]
    monkeypatch.setattr(input_files, "DIRECTORY_HOLDS", 1e-9)
    run_pieces(sender, 3, inputs={"a": str(tmp_path / "a")})
    answer(sender, tmp_path / "a")
    assert names(sender.take_all()) == [3]


def test_a_task_that_has_not_started_may_not_have_seen_its_input(sender: Sender, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    run_pieces(sender, 1, inputs={"a": str(tmp_path / "a")})
    answer(sender, tmp_path / "a")
    sender.take_all()
    sender.transfers.take_reports([Finished(1, 1, protocol.NOT_STARTED, b"not here", errno.ENOENT)])
    run_pieces(sender, 2, inputs={"a": str(tmp_path / "a")})
    answer(sender)
    turn(sender)  # looked at
    turn(sender)  # read
    assert [type(each) for each in sender.take_all()] == [protocol.Piece, protocol.Run]


def test_a_task_can_be_withdrawn_while_its_agent_looks(sender: Sender, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    for task in (1, 2):
        run_pieces(sender, task, inputs={"a": str(tmp_path / "a")})
    turn(sender)  # versions
    turn(sender)  # identities
    [asked] = sender.take_all()
    assert sender.transfers.withdraw(1)
    sender.transfers.done(1)
    sender.transfers.take_reports([Seen(asked.number, [str(tmp_path / "a")])])
    messages: list[Any] = []
    while not messages:
        turn(sender)
        messages = sender.take_all()
    assert names(messages) == [2]


def test_what_is_not_foreseen_is_the_error_of_its_task_and_of_no_other(
    sender: Sender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("a")
    with monkeypatch.context() as patch:
        patch.setattr(trees, "identity", lambda path: 1 / 0)
        run_pieces(sender, 1, inputs={"a": str(tmp_path / "a")})
        turn(sender)  # versions
        turn(sender)  # identities
    assert [(each.task, each.end) for each in sender.failed] == [(1, protocol.ERROR)]
    run_pieces(sender, 2, inputs={"a": str(tmp_path / "a")})
    answer(sender, tmp_path / "a")
    assert names(sender.take_all()) == [2]


# ---- the agent's side


class Disk:
    """Looks at files, until it hangs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.works = threading.Event()
        self.works.set()
        identity = trees.identity

        def slow(path: str) -> str:
            self.works.wait(30)
            return identity(path)

        monkeypatch.setattr(trees, "identity", slow)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.works.set()


class Looker:
    """An agent's looking at one directory, and what it answers."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.loop = Loop()
        self.answers: list[Seen] = []
        self.looking = Looking(self.loop, self.answers.append)
        self._identity = trees.identity(self.path)

    def ask(self, number: int) -> None:
        """With some paths that are not there."""
        self.looking.look(Look(number, {self.path: self._identity, "/no\0path": "", f"{self.path}/none": ""}))

    def wait_answer(self) -> Seen:
        """Let the loop run until there is one."""
        while not self.answers:
            self.loop.run_once()
        return self.answers.pop()

    def join_threads(self) -> None:
        """Wait for the looks that were given up."""
        for thread in self.looking._late:
            thread.join(30)


@pytest.fixture
def looker(tmp_path: Path, disk: Disk) -> Iterator[Looker]:
    looker = Looker(tmp_path)
    yield looker
    disk.works.set()
    looker.join_threads()
    if looker.looking._wakeup >= 0:
        os.close(looker.looking._wakeup)
    looker.loop.close()


def test_an_agent_tells_what_it_sees(looker: Looker) -> None:
    for number in (7, 8):
        looker.ask(number)
        assert looker.wait_answer() == Seen(number, [looker.path])


def test_while_the_disk_hangs_nothing_is_seen(looker: Looker, disk: Disk) -> None:
    disk.works.clear()
    looker.looking._patience = 0.0
    looker.ask(1)
    assert looker.wait_answer() == Seen(1, [])
    looker.looking._patience = 30.0
    looker.ask(2)
    assert looker.answers.pop() == Seen(2, [])  # at once
    disk.works.set()
    looker.join_threads()
    looker.ask(3)
    assert looker.wait_answer() == Seen(3, [looker.path])
    assert looker.answers == []


def test_after_a_fence_no_earlier_question_is_answered(looker: Looker, disk: Disk) -> None:
    """Its number may be that of another question by then."""
    disk.works.clear()
    looker.ask(1)
    [look] = looker.looking._open
    looker.looking.forget_all()
    disk.works.set()
    look.thread.join(30)
    looker.ask(2)
    assert looker.wait_answer() == Seen(2, [looker.path])
