"""Streamed output: the format by values and torn at every byte, and real agents that write it."""

# ruff: noqa: F401, F811  imported fixtures: tests name their arguments after them

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import agent_of, error_of, gate, new_executor, outcome, sh
from waiting import Gate, announce, announced, pass_gate, wait_until

from executor import (
    CAPTURE,
    DEVNULL,
    FORWARD,
    HPCExecutor,
    Job,
    OptionTypeError,
    OptionValueError,
    Program,
    ProgramFailed,
    StreamDirectory,
    StreamError,
    TaskTimeout,
)
from executor.jobs.stream import render
from executor.options import Stream, TaskOptions, make_options
from worker_agent import bodies, protocol, stream_files
from worker_agent.output import HeadTail
from worker_agent.recorder import Recorder
from worker_agent.records import HEAD_SIZE, MAGIC, SUFFIX, Kind, pack, unpack_head
from worker_agent.stream_files import StreamFiles

pytestmark = pytest.mark.shared

NewExecutor = Callable[..., HPCExecutor]
SETTINGS = settings(derandomize=True, database=None, deadline=None)

# By value, or each fresh interpreter would import pytest to find its function.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def files_in(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"*{SUFFIX}"))


class Written:
    """A stream file that is written here, record by record."""

    def __init__(self, directory: Path, run: str = "run") -> None:
        self.directory = directory
        self.files = StreamFiles(run)
        self.time = 100.0

    def add(self, kind: Kind, data: bytes = b"", *, task: int = 1, attempt: int = 1, stream: int = 0) -> None:
        self.time += 1
        record = pack(kind, data, self.time, stream=stream, job=1, task=task, attempt=attempt)
        self.files.append(str(self.directory), record)

    def start(self, task: int = 1, attempt: int = 1, name: str = "") -> None:
        self.add(Kind.START, name.encode(), task=task, attempt=attempt)

    def print(self, data: bytes, task: int = 1, attempt: int = 1, stream: int = 1) -> None:
        self.add(Kind.OUTPUT, data, task=task, attempt=attempt, stream=stream)

    def end(self, end: str = "completed 0", task: int = 1, attempt: int = 1) -> None:
        self.add(Kind.END, end.encode(), task=task, attempt=attempt)


@pytest.fixture
def written(tmp_path: Path) -> Any:
    made = Written(tmp_path / "out")
    yield made
    made.files.close()


# ---- the format


NUMBERS = st.tuples(st.integers(0, 255), *[st.integers(0, 2**64 - 1)] * 3)


@SETTINGS
@given(st.sampled_from(Kind), st.binary(max_size=50), st.floats(allow_nan=False), NUMBERS)
def test_a_record_is_read_as_it_was_written(
    kind: Kind, data: bytes, time: float, numbers: tuple[int, int, int, int]
) -> None:
    stream, job, task, attempt = numbers
    record = pack(kind, data, time, stream=stream, job=job, task=task, attempt=attempt)
    assert unpack_head(record[:HEAD_SIZE]) == (len(data), kind, stream, job, task, attempt, time)
    assert record[HEAD_SIZE:] == data


@SETTINGS
@given(st.integers(0, HEAD_SIZE - 1), st.integers(1, 255))
def test_a_head_with_a_byte_changed_is_none(position: int, change: int) -> None:
    raw = bytearray(pack(Kind.OUTPUT, b"text", 5.0, stream=1, job=1, task=2, attempt=3)[:HEAD_SIZE])
    raw[position] ^= change
    assert unpack_head(bytes(raw)) is None


def test_the_format_stays_as_it_is() -> None:
    """Files of today are read by the programs of tomorrow: another format is another version in MAGIC."""
    assert (MAGIC, HEAD_SIZE, list(map(int, Kind))) == (b"\x89HPCstr\x01\n", 48, [1, 2, 3, 4])
    assert pack(Kind.OUTPUT, b"hi\n", 1.5, stream=2, job=3, task=4, attempt=5).hex() == (
        "1e84b1fa" "03000000" "03" "02" "000000000000" "0300000000000000" "0400000000000000" "0500000000000000"
        "000000000000f83f" "68690a"
    )


@SETTINGS
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 2), st.binary(max_size=9)), max_size=30))
def test_each_attempt_has_what_it_wrote_and_the_latest_is_shown(
    tmp_path_factory: Any, prints: list[tuple[int, int, int, bytes]]
) -> None:
    written = Written(tmp_path_factory.mktemp("out"))
    written.start(task=99)
    for task, attempt, stream, data in prints:
        written.print(data, task, attempt, stream)
    written.files.close()
    output = StreamDirectory(written.directory)
    assert {task.number for task in output.tasks} == {99, *(task for task, *_ in prints)}
    for task in {task for task, *_ in prints}:
        attempts = {attempt for number, attempt, *_ in prints if number == task}
        assert [each.number for each in output.attempts(task)] == sorted(attempts)
        for stream, name in ((1, "stdout"), (2, "stderr")):
            of = {each: b"".join(d for t, a, s, d in prints if (t, a, s) == (task, each, stream)) for each in attempts}
            assert {each: b"".join(output.chunks(task, name, each)) for each in attempts} == of
            assert b"".join(output.chunks(task, name)) == of[max(attempts)]


def test_a_file_that_is_torn_at_any_byte_has_what_was_whole(written: Written, tmp_path: Path) -> None:
    """What a writer leaves that is killed; and when the rest comes, it is read."""
    written.start(name="one")
    written.print(b"first ")
    written.print(b"warning", stream=2)
    written.print(b"second")
    written.end()
    [path] = files_in(written.directory)
    whole = path.read_bytes()
    torn = tmp_path / "torn"
    torn.mkdir()
    copy = torn / f"copy{SUFFIX}"
    copy.write_bytes(b"")
    first = len(MAGIC) + HEAD_SIZE + unpack_head(whole[len(MAGIC) : len(MAGIC) + HEAD_SIZE]).length
    for size in range(first, len(whole) + 1):
        copy.write_bytes(whole[:size])
        output = StreamDirectory(torn)
        texts = [output.text(task) for task in output.tasks]
        assert texts in ([], [""], ["first "], ["first second"])
        assert bool(output.tasks and output.tasks[0].latest.ended) == (size == len(whole))
        copy.write_bytes(whole)
        output.refresh()
        assert (output.text("one"), output.text("one", "stderr")) == ("first second", "warning")
    for size in range(first):
        copy.write_bytes(whole[:size])
        with pytest.raises(StreamError, match="has no output of tasks"):
            StreamDirectory(torn)


def test_a_record_of_a_kind_that_is_not_known_is_skipped(written: Written) -> None:
    written.start()
    written.add(99, b"of a later version")  # type: ignore[arg-type]
    written.print(b"text")
    assert StreamDirectory(written.directory).text(1) == "text"


# ---- writing


def limit_file_size(pid: int, size: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_record_that_could_be_written_in_part_only_is_cut_off(written: Written) -> None:
    """As on a full disk. A limit of the file's size has it at a byte that is known."""
    written.start()
    [path] = files_in(written.directory)
    size = path.stat().st_size
    limit_file_size(0, size + HEAD_SIZE + 2)
    try:
        with pytest.raises(OSError, match="File too large"):
            written.print(b"too long")
        assert path.stat().st_size == size
    finally:
        limit_file_size(0, resource.RLIM_INFINITY)
    written.print(b"again")
    assert StreamDirectory(written.directory).text(1) == "again"


def test_a_file_that_cannot_even_begin_is_not_left_behind(written: Written) -> None:
    limit_file_size(0, 4)
    try:
        with pytest.raises(OSError, match="File too large"):
            written.start()
    finally:
        limit_file_size(0, resource.RLIM_INFINITY)
    assert files_in(written.directory) == []


def test_when_half_a_record_cannot_be_cut_off_the_next_one_goes_to_another_file(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    written.print(b"first ")
    [path] = files_in(written.directory)

    def refuse(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    limit_file_size(0, path.stat().st_size + 5)
    try:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="File too large"):
            patch.setattr(stream_files.os, "ftruncate", refuse)
            written.print(b"lost")
    finally:
        limit_file_size(0, resource.RLIM_INFINITY)
    written.print(b"second")
    assert len(files_in(written.directory)) == 2
    assert StreamDirectory(written.directory).text(1) == "first second"


def test_a_directory_that_was_cleared_between_has_another_file(written: Written) -> None:
    """Or the second job would write to a file that has no name any more."""
    written.print(b"of the first job")
    [path] = files_in(written.directory)
    path.unlink()
    written.print(b"of the second")
    assert StreamDirectory(written.directory).text(1) == "of the second"


def test_few_files_are_open_and_each_directory_has_one(tmp_path: Path) -> None:
    files = StreamFiles("run")
    directories = [tmp_path / str(number) for number in range(stream_files.MOST_OPEN + 8)]
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for directory in directories:
            files.append(str(directory), pack(Kind.START, b"", 1.0, job=1, task=1, attempt=1))
    assert len(os.listdir("/proc/self/fd")) == before + stream_files.MOST_OPEN
    files.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert {len(files_in(directory)) for directory in directories} == {1}


def test_a_stream_file_is_readable_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        written = Written(tmp_path / "out")
        written.start()
        written.files.close()
    finally:
        os.umask(before)
    assert files_in(tmp_path / "out")[0].stat().st_mode & 0o777 == 0o640


@SETTINGS
@given(st.integers(0, 20), st.lists(st.binary(max_size=9), max_size=9))
def test_without_a_head_all_of_the_limit_is_for_the_end(limit: int, chunks: list[bytes]) -> None:
    keeper = HeadTail(limit, head=False)
    assert [keeper.add(chunk) for chunk in chunks] == [b""] * len(chunks)
    text = b"".join(chunks)
    assert keeper.tail() == text[max(0, len(text) - limit) :]


class Full:
    """Stream files for which there is room for so many records."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.kinds: list[int] = []

    def append(self, directory: str, record: bytes) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError(28, "No space left on device")
        self.kinds.append(unpack_head(record[:HEAD_SIZE]).kind)


def recorder(files: Any, failures: list[str]) -> Recorder:
    order = protocol.Run(1, 7, 2, protocol.Command(["ls"]))
    return Recorder(files, order, protocol.StreamTo("/out", stderr=False), lambda: failures.append("failed"))


def test_a_recorder_goes_silent_with_the_first_error_which_is_told_once() -> None:
    files, failures = Full(1), []
    made = recorder(files, failures)
    assert (made.takes(1), made.takes(2)) == (True, False)
    made.start(1.0)
    made.output(1, b"text", 2.0)
    files.room = 9
    made.output(1, b"more", 3.0)
    made.end(protocol.COMPLETED, 0, 4.0)
    assert (files.kinds, failures) == ([Kind.START], ["failed"])
    assert (made.failure.errno, made.failure.filename) == (28, "/out")
    assert made.failure.strerror.startswith("No space left on device: the output of the task")


def test_a_failure_to_write_takes_the_place_of_an_end_that_is_the_tasks_own(tmp_path: Path) -> None:
    """Who was killed, ran too long or is given back has ended for that. A result that nobody gets leaves no file."""
    made = recorder(Full(0), [])
    ends = (protocol.KILLED, protocol.TIMED_OUT, protocol.OUT_OF_MEMORY, protocol.LOST, protocol.RETURNED)
    assert made.outcome(protocol.VALUE, b"value") == (protocol.VALUE, b"value")
    made.start(1.0)
    assert [made.outcome(end, b"body") for end in ends] == [(end, b"body") for end in ends]
    ok, body = bodies.dump_value(bytes(10**6), [str(tmp_path)])
    assert ok
    assert len(list(tmp_path.iterdir())) == 1
    for end, before in ((protocol.VALUE, body), (protocol.COMPLETED, b""), (protocol.EXITED, b"")):
        after, error = made.outcome(end, before)
        assert after == protocol.ERROR
        assert b"No space left on device" in error
    assert list(tmp_path.iterdir()) == []


# ---- reading


def test_tasks_are_found_by_number_by_name_and_by_the_name_of_their_array(written: Written) -> None:
    written.start(1, name="train")
    written.start(7, name="solve[7]")
    written.start(8, name="solve[8]")
    output = StreamDirectory(written.directory)
    wanted = (7, "7", (1, 7), "train", "solve", "solve[8]", 9)
    assert [[task.number for task in output.find(each)] for each in wanted] == [[7], [7], [7], [1], [7, 8], [8], []]
    assert output.task(output.tasks[0]).title == "task 1 of job 1 (train)"
    with pytest.raises(StreamError, match=r"'solve' means 2 tasks .*: \(1, 7\), \(1, 8\)"):
        output.text("solve")
    with pytest.raises(StreamError, match="has no task 'trian'.*did you mean 'train'"):
        output.text("trian")
    with pytest.raises(StreamError, match="has no attempt 3, but 1"):
        output.text(1, attempt=3)
    with pytest.raises(ValueError, match="stream='stdin': expected 'stdout', 'stderr', 'both'"):
        output.text(1, "stdin")


def test_of_several_runs_the_latest_is_shown_unless_another_one_is_named(tmp_path: Path) -> None:
    for number, run in enumerate(("first", "second")):
        written = Written(tmp_path, run)
        files = written.files
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stream_files.time, "time", lambda number=number: 1000.0 + number)
            written.print(run.encode(), attempt=2 - number)
        files.close()
    assert StreamDirectory(tmp_path).text(1) == "second"
    assert [run.id for run in StreamDirectory(tmp_path).runs] == ["first", "second"]
    assert StreamDirectory(tmp_path, run="first").text(1) == "first"
    with pytest.raises(StreamError, match="run='third'.*first, second"):
        StreamDirectory(tmp_path, run="third")


def test_what_is_no_stream_file_is_refused_with_what_to_do(written: Written, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        StreamDirectory(tmp_path / "nowhere")
    with pytest.raises(StreamError, match="has no output of tasks: expected files whose names end in '.stream'"):
        StreamDirectory(tmp_path)
    written.start()
    (written.directory / "notes.txt").write_text("other files do no harm")
    assert len(StreamDirectory(written.directory).tasks) == 1
    alien = written.directory / f"alien{SUFFIX}"
    alien.write_text("hello, world")
    with pytest.raises(StreamError, match=r"alien.stream' is no stream file .* b'hello, wo'; move it out"):
        StreamDirectory(written.directory)
    alien.write_bytes(MAGIC[:-2] + b"\x07\n")
    with pytest.raises(StreamError, match="is of version 7 of the format; .* reads 1: use a newer one"):
        StreamDirectory(written.directory)


def test_damage_is_told_with_its_place_and_what_is_before_it_can_be_saved(written: Written) -> None:
    written.print(b"good")
    [path] = files_in(written.directory)
    size = path.stat().st_size
    written.print(b"bad")
    data = bytearray(path.read_bytes())
    data[size + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(StreamError, match=rf"is damaged: there is no record at byte {size}; .*truncate -s {size} "):
        StreamDirectory(written.directory)
    os.truncate(path, size)
    assert StreamDirectory(written.directory).text(1) == "good"


def test_an_end_or_a_beginning_of_a_file_that_makes_no_sense_is_damage(written: Written) -> None:
    written.end("completed zero")
    with pytest.raises(StreamError, match="is damaged"):
        StreamDirectory(written.directory)
    [path] = files_in(written.directory)
    path.write_bytes(MAGIC + pack(Kind.START, b"", 1.0))
    with pytest.raises(StreamError, match="is damaged"):
        StreamDirectory(written.directory)


def test_output_is_rendered_task_by_task_with_headings_where_there_are_several(written: Written) -> None:
    written.start(1, name="train")
    written.start(2)
    written.print(b"gr\xc3", 1)
    written.print(b"two\n", 2)
    written.print(b"\xbcn", 1)
    written.print(b"careful\n", 2, stream=2)
    written.print(b"no", 2, attempt=2)
    host = os.uname().nodename
    assert "".join(render(written.directory, ["train"])) == "grün"
    heads = [f"==> task 1 of job 1 (train) on {host} <==\n", f"==> task 2 of job 1 on {host} <==\n"]
    again = f"==> task 2 of job 1, attempt 2 on {host} <==\n"
    both = f"{heads[0]}grün\n{heads[1]}two\ncareful\n{again}no"
    assert "".join(render(written.directory, stream="both", superseded=True)) == both
    assert "".join(render(StreamDirectory(written.directory), headings=False)) == "grünno"


def test_who_follows_gets_what_is_there_and_what_comes(written: Written) -> None:
    written.print(b"old", attempt=1)
    written.start(attempt=2)
    written.print(b"a", attempt=2)
    following = StreamDirectory(written.directory).follow(stream="both", interval=0)
    seen = [next(following)]
    written.print(b"b", attempt=2, stream=2)
    seen.append(next(following))
    written.print(b"c", task=2)
    written.end("value", attempt=2)
    written.end("error", task=2)
    seen += following
    assert [(each.task.number, each.attempt, each.stream, each.data) for each in seen] == [
        (1, 2, "stdout", b"a"), (1, 2, "stderr", b"b"), (2, 1, "stdout", b"c"),
    ]  # fmt: skip


def test_a_task_that_has_not_started_can_be_followed(written: Written) -> None:
    written.start(1)
    looks = iter([lambda: written.print(b"of another", 1), lambda: written.print(b"hello", 5), lambda: None])

    def until() -> bool:
        look = next(looks, None)
        if look is not None:
            look()
        return look is None

    output = StreamDirectory(written.directory)
    assert [chunk.data for chunk in output.follow([5], interval=0, until=until)] == [b"hello"]
    written.end(task=1)
    written.end(task=5)
    assert [chunk.data for chunk in output.follow([1, 5], interval=0)] == [b"of another", b"hello"]


def test_the_memory_of_a_reader_does_not_grow_with_what_tasks_print(written: Written) -> None:
    for _ in range(500):
        written.print(b"line\n")
        written.print(b"line\n", 2)
    output = StreamDirectory(written.directory)
    assert [len(task.latest.parts) for task in output.tasks] == [1, 1]
    assert output.text(2) == "line\n" * 500


# ---- the option


def test_the_stream_has_what_would_be_forwarded_and_nothing_else() -> None:
    default = TaskOptions()
    streamed = make_options(default, stream="/out")
    assert (streamed.stdout, streamed.stderr, streamed.stream.directory) == (Stream.STREAM, Stream.STREAM, "/out")
    assert make_options(streamed, stream=None) == default
    mixed = make_options(default, stream="/out", stdout="/file", stderr=FORWARD)
    assert (mixed.stdout, mixed.stderr) == ("/file", FORWARD)
    earlier = make_options(make_options(default, stdout=CAPTURE, stderr=DEVNULL), stream="/out")
    assert (earlier.stdout, earlier.stderr) == (CAPTURE, DEVNULL)
    assert make_options(streamed, stdout=FORWARD).stdout is FORWARD


@pytest.mark.parametrize(("wrong", "error"), [(5, OptionTypeError), (b"x", OptionTypeError), ("", OptionValueError)])
def test_a_stream_that_is_no_directory_is_refused(wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="option stream=.*expected a directory"):
        make_options(TaskOptions(), stream=wrong)
    with pytest.raises(error, match="option stream="):
        Job(stream=wrong)
    with pytest.raises(OptionTypeError, match="option stdout="):
        make_options(TaskOptions(), stdout=object())


# ---- agents


def speak(number: int) -> int:
    print("number", number)
    print("warning", number, file=sys.stderr)
    return number


@pytest.mark.parametrize("kept", [1, None])
def test_the_output_of_200_tasks_is_in_one_file_for_each_agent(
    new_executor: NewExecutor, tmp_path: Path, capfd: Any, kept: int | None
) -> None:
    executor = new_executor(2, agents=2, max_tasks_per_child=kept)
    job = Job("many", stream=tmp_path / "out")
    job.array(speak, ids="1-190", name="speak")
    job.array(["sh", "-c", "echo number $HQ_TASK_ID; echo warning $HQ_TASK_ID >&2"], ids="191-200")
    submitted = executor.submit_job(job)
    assert submitted.wait(60)
    output = StreamDirectory(tmp_path / "out")
    assert [output.text(number) for number in range(1, 201)] == [f"number {number}\n" for number in range(1, 201)]
    assert {output.text(number, "stderr") for number in range(1, 201)} == {f"warning {n}\n" for n in range(1, 201)}
    assert 1 <= len(files_in(tmp_path / "out")) <= 2
    assert (output.attempts(7)[0].end, output.attempts(195)[0].end) == ("value", "completed")
    assert [task.name for task in output.find("speak")] == [f"speak[{number}]" for number in range(1, 191)]
    assert capfd.readouterr() == ("", "")
    future = submitted.futures[200]
    assert (future.stdout, future.stderr) == ("", "warning 200\n")


def test_the_file_has_all_of_it_before_the_future_is_done(new_executor: NewExecutor, tmp_path: Path) -> None:
    executor = new_executor(1).options(stream=tmp_path, name="flood")

    def flood() -> None:
        os.write(1, b"x" * 3_000_000 + b"\n")
        os.write(2, b"y" * 300_000)

    for kind in (flood, sh("head -c 3000000 /dev/zero | tr '\\0' x; echo; head -c 300000 /dev/zero | tr '\\0' y >&2")):
        future = executor.submit(kind)
        outcome(future)
        output = StreamDirectory(tmp_path)
        assert output.text(future.task_id) == "x" * 3_000_000 + "\n"
        assert output.text(future.task_id, "stderr") == "y" * 300_000
        assert max(len(chunk) for chunk in output.chunks(future.task_id)) <= 65536
        assert future.stdout == ""
        assert future.stderr == "\n[... 295904 bytes left out ...]\n" + "y" * 4096
    assert len(files_in(tmp_path)) == 1
    assert [task.title for task in output.tasks] == ["task 1 (flood)", "task 2 (flood)"]


def test_it_can_be_read_while_the_task_runs(new_executor: NewExecutor, tmp_path: Path, gate: Gate) -> None:
    def wait(*paths: str) -> None:
        print("before", flush=True)
        pass_gate(*paths)
        print("after")

    future = new_executor(1).options(stream=tmp_path / "out").submit(wait, *gate.paths)
    gate.wait_arrivals()
    wait_until(lambda: any(path.stat().st_size for path in files_in(tmp_path / "out")))
    output = StreamDirectory(tmp_path / "out")
    following = output.follow(interval=0.01)
    seen = b""
    while seen != b"before\n":
        seen += next(following).data
    assert output.task(1).latest.ended is None
    gate.open()
    assert b"".join(chunk.data for chunk in following) == b"after\n"
    outcome(future)


@pytest.mark.parametrize("of", ["call", "program"])
def test_the_attempt_after_a_killed_agent_supersedes_what_that_had_written(
    new_executor: NewExecutor, tmp_path: Path, gate: Gate, of: str
) -> None:
    """The agent is killed while the task floods it: the file ends wherever that was."""
    arrivals = tmp_path / "arrivals"

    def flood(arrivals: str) -> None:
        announce(arrivals)
        if len(announced(arrivals)) > 1:
            print("the second attempt")
            return
        while True:
            print("the first attempt", flush=True)

    script = "echo $$ >> $0; [ $(wc -l < $0) -lt 2 ] || { echo the second attempt; exit; }; exec yes the first attempt"
    body = (flood, str(arrivals)) if of == "call" else (sh(script, str(arrivals)),)
    executor = new_executor(2)
    agent = agent_of(executor)
    future = executor.options(stream=tmp_path / "out", crash_limit=1).submit(*body)
    wait_until(lambda: any(path.stat().st_size > 100_000 for path in files_in(tmp_path / "out")))
    os.kill(agent, signal.SIGKILL)
    outcome(future)
    output = StreamDirectory(tmp_path / "out")
    number = future.task_id
    assert output.text(number) == "the second attempt\n"
    first, second = output.attempts(number)
    assert (first.end, first.ended, second.number) == ("", None, future.attempt)
    assert set(output.text(number, attempt=first.number).splitlines()[:500]) == {"the first attempt"}
    assert "".join(render(output)) == "the second attempt\n"
    assert len(files_in(tmp_path / "out")) == 2


def test_a_task_that_is_tried_again_shows_its_last_try(new_executor: NewExecutor, tmp_path: Path) -> None:
    view = new_executor(1).options(stream=tmp_path, retries=1)
    future = view.submit(sh("echo attempt $HPC_ATTEMPT; exit 3"))
    assert isinstance(error_of(future), ProgramFailed)
    output = StreamDirectory(tmp_path)
    assert output.text(1) == "attempt 2\n"
    assert output.text(1, attempt=1) == "attempt 1\n"
    assert [(each.end, each.returncode) for each in output.attempts(1)] == [("completed", 3)] * 2


def test_errors_quote_the_end_of_stderr_and_the_file_says_how_it_ended(
    new_executor: NewExecutor, tmp_path: Path
) -> None:
    view = new_executor(1).options(stream=tmp_path)
    error = error_of(view.options(time_limit=0.2).submit(sh("seq 100000 >&2; echo the last words >&2; exec sleep 600")))
    assert isinstance(error, TaskTimeout)
    assert "the last words" in str(error)
    output = StreamDirectory(tmp_path)
    assert (output.attempts(1)[0].end, output.attempts(1)[0].returncode) == ("time", -15)
    assert output.text(1, "stderr").count("\n") == 100_001


def test_only_what_has_no_place_of_its_own_goes_to_the_stream(new_executor: NewExecutor, tmp_path: Path) -> None:
    job = Job(stream="out/%{JOB_ID}", cwd=tmp_path)
    job.function(speak, args=[1], stdout=tmp_path / "file")
    job.function(speak, args=[2], stderr=CAPTURE)
    job.function(speak, args=[3], stdout=CAPTURE, stderr=CAPTURE)
    job.function(speak, args=[4], stream=None, stdout=DEVNULL, stderr=DEVNULL)
    job.function(speak, args=[5], stream=tmp_path / "own")
    executor = new_executor(1)
    submitted = executor.options(cwd=tmp_path).submit_job(job)
    assert submitted.wait(60)
    output = StreamDirectory(tmp_path / "out" / str(submitted.id))
    texts = [(each.number, output.text(each), output.text(each, "stderr")) for each in output.tasks]
    assert texts == [(0, "", "warning 1\n"), (1, "number 2\n", "")]
    assert (tmp_path / "file").read_text() == "number 1\n"
    assert (submitted.futures[1].stderr, submitted.futures[2].stdout) == ("warning 2\n", "number 3\n")
    assert StreamDirectory(tmp_path / "own").text(4) == "number 5\n"


def test_a_job_takes_the_stream_of_the_view_that_submits_it(new_executor: NewExecutor, tmp_path: Path) -> None:
    job = Job()
    job.function(speak, args=[1], name="one")
    job.function(speak, args=[2], stream=None, stdout=DEVNULL, stderr=DEVNULL)
    assert new_executor(1).options(stream=tmp_path).submit_job(job).wait(60)
    assert [(task.job, task.number, task.name) for task in StreamDirectory(tmp_path).tasks] == [(1, 0, "one")]


@pytest.mark.parametrize("kept", [1, None])
def test_a_task_whose_output_cannot_be_written_fails_and_its_neighbour_does_not(
    new_executor: NewExecutor, tmp_path: Path, gate: Gate, kept: int | None
) -> None:
    """It is ended at once: what it would still print is lost, and so would be the hours until its end."""
    executor = new_executor(3, max_tasks_per_child=kept)
    neighbour = executor.options(stream=tmp_path / "good").submit(pass_gate, *gate.paths)
    gate.wait_arrivals()
    (tmp_path / "file").write_text("")
    view = executor.options(stream=tmp_path / "file" / "out")
    for body in (speak, 5), (sh("echo x; exec sleep 600"),), (bytes, 1_000_000):
        error = error_of(view.submit(*body))
        assert isinstance(error, OSError)
        assert "Not a directory: the output of the task cannot be added to a stream file in the directory" in str(error)
        assert error.filename == str(tmp_path / "file" / "out")
    gate.open()
    outcome(neighbour)
    assert neighbour.attempt == 1
    assert outcome(executor.options(stream=tmp_path / "good").submit(speak, 5)) == 5


def test_a_task_is_ended_when_its_output_has_no_room_any_more(new_executor: NewExecutor, tmp_path: Path) -> None:
    """The limit of the agent's files is a disk that is full; another task finds room again."""
    executor = new_executor(2)
    agent = agent_of(executor)
    view = executor.options(stream=tmp_path)
    assert outcome(view.submit(speak, 1)) == 1
    limit_file_size(agent, 200_000)
    error = error_of(view.submit(Program(["yes"])))
    assert isinstance(error, OSError)
    assert "File too large: the output of the task" in str(error)
    limit_file_size(agent, resource.RLIM_INFINITY)
    last = view.submit(speak, 2)
    assert outcome(last) == 2
    output = StreamDirectory(tmp_path)
    assert output.text(last.task_id) == "number 2\n"
    assert len(files_in(tmp_path)) == 1
    assert agent_of(executor) == agent


def test_what_exit_functions_print_is_in_the_file(new_executor: NewExecutor, tmp_path: Path) -> None:
    """The outcome is with the hub when they do."""

    def late() -> None:
        import atexit

        atexit.register(print, "goodbye")
        print("hello")

    executor = new_executor(1)
    future = executor.options(stream=tmp_path).submit(late)
    outcome(future)
    executor.shutdown()
    assert StreamDirectory(tmp_path).text(1) == "hello\ngoodbye\n"
