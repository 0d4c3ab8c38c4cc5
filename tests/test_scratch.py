"""The files of a task without any agent: what options say of them, and what is done on the disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor import DEVNULL, OptionTypeError, OptionValueError, OutputFile
from executor.files import check_names, make_files
from executor.options import TaskOptions, make_options
from worker_agent import directories, protocol, task_files
from worker_agent.pieces import Received

pytestmark = pytest.mark.shared

PLAIN = TaskOptions()
NOBODY = 65534


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A scratch directory."""
    path = tmp_path / "scratch"
    task_files.prepare(str(path), protocol.Files(), Received([]).input_path)
    return path


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory to which nothing can be renamed from ``tmp_path``."""
    if os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("/dev/shm and the directory for temporary files are one file system here")
    path = tempfile.mkdtemp(dir="/dev/shm")
    yield Path(path)
    shutil.rmtree(path)


@pytest.fixture(params=["same", "other"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where outputs are to be: on the disk of the scratch directory, or on another one."""
    folder: Path = tmp_path if request.param == "same" else request.getfixturevalue("other_disk")
    return folder / "results" / "deep" / "out"


def collect(scratch: Path, event: threading.Event | None = None, **outputs: Path) -> protocol.Uncollected | None:
    places = {name: str(path) for name, path in outputs.items()}
    return task_files.collect(str(scratch), places, event or threading.Event())


# ---- options


def test_paths_are_made_absolute_where_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = make_options(PLAIN, inputs={"a": "x"}, outputs={"b/c": Path("/y")}, stdout=OutputFile("o", True))
    assert options.inputs == (("a", f"{tmp_path}/x"),)
    assert options.outputs == (("b/c", "/y"),)
    assert options.stdout == OutputFile(f"{tmp_path}/o", True)


def test_an_output_file_that_stays_is_its_path() -> None:
    assert make_options(PLAIN, stderr=OutputFile("/e")).stderr == "/e"
    assert make_options(PLAIN, stderr=OutputFile("/e")) == make_options(PLAIN, stderr="/e")


def test_a_view_of_a_view_replaces_inputs_and_keeps_outputs() -> None:
    first = make_options(PLAIN, inputs={"a": "/a"}, outputs={"b": "/b"})
    second = make_options(first, inputs={"c": "/c"})
    assert (second.inputs, second.outputs) == ((("c", "/c"),), (("b", "/b"),))


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"task_dir": 1}, "option task_dir=1: expected True or False"),
        ({"inputs": ["a"]}, "option inputs.*mapping of names"),
        ({"inputs": {"../a": "/a"}}, r"option inputs.*'../a' is no plain path"),
        ({"outputs": {"/a": "/a"}}, "option outputs.*'/a' is no plain path"),
        ({"outputs": {"a/": "/a"}}, "is no plain path"),
        ({"outputs": {"": "/a"}}, "is no plain path"),
        ({"outputs": {"\udcff": "/a"}}, "is no plain path"),
        ({"outputs": {1: "/a"}}, "name 1 is not text"),
        ({"outputs": {"a": 1}}, "expected a path"),
        ({"inputs": {"a": "/a"}, "outputs": {"a": "/b"}}, "inputs and outputs: the name 'a'.*another one"),
        ({"outputs": {"a": "/a", "a/b": "/b"}}, "'a/b'.*apart from 'a'"),
        ({"input": {"a": "/a"}}, "did you mean 'inputs'"),
        ({"scratch": True}, "did you mean 'task_dir'"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_where_it_is_written(wrong: dict[str, Any], hint: str) -> None:
    with pytest.raises((OptionTypeError, OptionValueError), match=hint):
        make_options(PLAIN, **wrong)


def test_a_name_that_a_view_adds_is_held_against_those_that_are_there() -> None:
    with pytest.raises(OptionValueError, match="'data/x'"):
        make_options(make_options(PLAIN, inputs={"data": "/data"}), outputs={"data/x": "/x"})


@pytest.mark.parametrize("wrong", [{"path": 3}, {"path": "x", "remove_if_finished": "yes"}])
def test_an_output_file_checks_its_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="expected"):
        OutputFile(**wrong)


names = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("/".join)


@settings(derandomize=True, database=None, deadline=None)
@given(st.lists(names, max_size=6))
def test_names_are_refused_exactly_if_one_is_another_or_below_it(drawn: list[str]) -> None:
    clash = any(
        one == other or other.startswith(one + "/")
        for at, one in enumerate(drawn) for number, other in enumerate(drawn) if at != number
    )  # fmt: skip
    places = [(name, "/x") for name in drawn]
    try:
        check_names(tuple(places[:2]), tuple(places[2:]))
    except ValueError:
        assert clash
    else:
        assert not clash


def test_a_task_without_any_of_it_has_nothing_of_it_in_its_order() -> None:
    assert make_files(False, (), (), "/cwd", "/out", DEVNULL) is None
    assert make_files(False, (), (), None, OutputFile("/out"), None) is None


def test_an_order_says_which_files_go_and_whether_paths_have_the_number_of_the_attempt() -> None:
    made = make_files(False, (), (), None, OutputFile("/o-%{INSTANCE_ID}", True), OutputFile("/e", True))
    assert made == protocol.Files(removed=[1, 2], numbered=True)
    assert make_files(False, (), (), "/%{INSTANCE_ID}", None, None) == protocol.Files(numbered=True)


def test_the_number_of_the_attempt_is_filled_in_as_hyperqueue_counts() -> None:
    told = protocol.Settings(cwd="/a/%{INSTANCE_ID}", stdout="/%{INSTANCE_ID}-%{INSTANCE_ID}", stderr="")
    filled = task_files.fill_instance(told, 3)
    assert (filled.cwd, filled.stdout, filled.stderr) == ("/a/2", "/2-2", "")


# ---- before a task


def test_inputs_are_links_under_their_names(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("text")
    scratch = tmp_path / "scratch"
    files = protocol.Files(inputs={"in/a": f"{tmp_path}/data"}, outputs={"out/b": "/x"})
    task_files.prepare(str(scratch), files, Received([]).input_path)
    assert (scratch / "in" / "a").readlink() == tmp_path / "data"
    assert (scratch / "out").is_dir()
    assert scratch.stat().st_mode & 0o777 == 0o700


def test_an_input_that_is_not_there_is_named(tmp_path: Path) -> None:
    files = protocol.Files(inputs={"a": f"{tmp_path}/nothing"})
    with pytest.raises(OSError, match=f"its input 'a' is not to be had: .* has no '{tmp_path}/nothing'"):
        task_files.prepare(str(tmp_path / "scratch"), files, Received([]).input_path)


# ---- outputs


def test_an_output_is_moved_with_its_mode_and_nothing_is_left_beside_it(scratch: Path, target: Path) -> None:
    (scratch / "out").write_text("result")
    (scratch / "out").chmod(0o750)
    assert collect(scratch, out=target) is None
    assert target.read_text() == "result"
    assert target.stat().st_mode & 0o777 == 0o750
    assert os.listdir(target.parent) == ["out"]


def test_an_output_takes_the_place_of_what_is_there(scratch: Path, target: Path) -> None:
    target.parent.mkdir(parents=True)
    target.write_text("old")
    with target.open() as reader:
        (scratch / "out").write_text("new")
        assert collect(scratch, out=target) is None
        assert reader.read() == "old"  # who reads it meanwhile sees no part of the new one
    assert target.read_text() == "new"


def test_a_directory_is_an_output_too_and_replaces_the_old_one(scratch: Path, target: Path) -> None:
    (target / "old").mkdir(parents=True)
    (scratch / "out" / "deep").mkdir(parents=True)
    (scratch / "out" / "deep" / "file").write_text("result")
    assert collect(scratch, out=target) is None
    assert [str(path.relative_to(target)) for path in sorted(target.rglob("*"))] == ["deep", "deep/file"]
    assert os.listdir(target.parent) == ["out"]


def test_what_a_link_of_the_program_leads_to_is_copied_and_stays(scratch: Path, target: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").write_text("ours")
    (scratch / "out").symlink_to(tmp_path / "shared")
    assert collect(scratch, out=target) is None
    assert target.read_text() == "ours"
    assert not target.is_symlink()
    assert (tmp_path / "shared").read_text() == "ours"


def test_nothing_is_moved_if_one_of_several_is_missing(scratch: Path, tmp_path: Path) -> None:
    (scratch / "there").write_text("")
    (scratch / "sub").mkdir()
    (scratch / "sub" / "else").write_text("")
    failure = collect(scratch, there=tmp_path / "a", gone=tmp_path / "b")
    assert failure == protocol.Uncollected(["gone"], ["sub/else", "there"])
    assert not (tmp_path / "a").exists()


def test_names_that_are_no_text_can_be_told_all_the_same(scratch: Path, tmp_path: Path) -> None:
    (scratch / os.fsdecode(b"caf\xe9")).write_text("")
    failure = collect(scratch, out=tmp_path / "out")
    assert failure is not None
    assert msgspec.json.decode(msgspec.json.encode(failure), type=protocol.Uncollected).found == ["caf?"]


def test_only_the_first_of_many_names_are_told(scratch: Path, tmp_path: Path) -> None:
    for number in range(200):
        (scratch / f"{number:03}").write_text("")
    failure = collect(scratch, out=tmp_path / "out")
    assert failure is not None
    assert len(failure.found) == task_files.NAMES_TOLD + 1
    assert failure.found[-1] == "..."


def test_a_place_that_cannot_be_had_is_told(scratch: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (scratch / "out").write_text("")
    failure = collect(scratch, out=tmp_path / "file" / "out")
    assert failure is not None
    assert f"the output 'out' cannot be moved to '{tmp_path}/file/out'" in failure.text


def test_a_pipe_or_a_device_is_no_output_that_could_be_copied(scratch: Path, target: Path) -> None:
    (scratch / "out").symlink_to("/dev/zero")
    failure = collect(scratch, out=target)
    assert failure is not None
    assert "no file and no directory" in failure.text
    assert os.listdir(target.parent) == []


class SetAfter(threading.Event):
    """Is set when it has been asked so often."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._left = times

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.mark.parametrize("times", [0, 1, 2])
def test_outputs_that_are_given_up_midway_leave_nothing(
    scratch: Path, other_disk: Path, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_files, "_BLOCK", 10)
    (scratch / "out").write_bytes(bytes(100))
    failure = collect(scratch, SetAfter(times), out=other_disk / "out")
    assert failure == protocol.Uncollected(text="its outputs were given up")
    assert os.listdir(other_disk) == []


def test_what_is_given_up_at_the_last_moment_is_not_put_in_its_place(scratch: Path, tmp_path: Path) -> None:
    (scratch / "out").write_text("new")
    target = tmp_path / "results" / "out"
    target.parent.mkdir()
    target.write_text("old")
    assert collect(scratch, SetAfter(1), out=target) == protocol.Uncollected(text="its outputs were given up")
    assert target.read_text() == "old"
    assert os.listdir(target.parent) == ["out"]


# ---- after a task


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: None], ids=["directory", "pipe", "nothing"])
def test_what_is_no_file_says_nothing(scratch: Path, make: Callable[[str], None]) -> None:
    make(task_files.variables(str(scratch))["HQ_ERROR_FILENAME"])
    assert task_files.read_said(str(scratch)) == b""


def test_two_kibibytes_of_what_was_said_are_read(scratch: Path) -> None:
    Path(task_files.variables(str(scratch))["HQ_ERROR_FILENAME"]).write_bytes(b"x" * 5000)
    assert task_files.read_said(str(scratch)) == b"x" * 2048


def test_files_of_streams_are_removed_and_may_be_gone_or_the_same(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("")
    told = protocol.Settings(stdout=str(path), stderr=str(path), files=protocol.Files(removed=[1, 2]))
    task_files.remove_finished(told)
    assert not path.exists()


def test_removing_a_directory_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o555)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "link").symlink_to(tmp_path / "shared")
    directories.remove_tree(str(tmp_path / "scratch"))
    assert os.listdir(tmp_path) == ["shared"]
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o555


def test_directories_that_a_task_has_made_read_only_are_removed(
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """As a user to whom modes mean something: tests may run as root."""
    done = run_script(
        "import os, sys, tempfile\n"
        "from worker_agent import directories\n"
        f"if os.getuid() == 0: os.setresgid(*[{NOBODY}] * 3); os.setresuid(*[{NOBODY}] * 3)\n"
        "top = tempfile.mkdtemp(dir='/tmp')\n"
        "os.makedirs(top + '/a/b/c')\n"
        "os.symlink('/usr', top + '/a/link')\n"
        "for each in ('/a/b/c', '/a/b', '/a'): os.chmod(top + each, 0o500)\n"
        "directories.remove_tree(top)\n"
        "print(os.path.exists(top))\n"
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
