"""Large payloads as files."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker_agent import store
from worker_agent.store import INLINE_LIMIT, Spill, keep_small_in_band, map_file

SETTINGS = settings(
    max_examples=30, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
ROOT = Path(__file__).parent.parent


@pytest.fixture
def directories(tmp_path: Path) -> list[str]:
    """Two private directories."""
    names = [tmp_path / "memory", tmp_path / "disk"]
    for name in names:
        name.mkdir()
    return [str(name) for name in names]


def content(directory: str) -> list[str]:
    return sorted(os.listdir(directory))


# ---- inline or stored


def test_what_is_small_stays_in_memory(directories: list[str]) -> None:
    spill = Spill(directories)
    spill.write(b"a" * (INLINE_LIMIT - 1))
    spill.write(b"b")
    assert (spill.path, spill.size) == (None, INLINE_LIMIT)
    assert spill.inline() == b"a" * (INLINE_LIMIT - 1) + b"b"
    spill.close()
    assert content(directories[0]) == []


def test_one_byte_more_than_the_limit_is_stored(directories: list[str]) -> None:
    spill = Spill(directories)
    spill.write(b"a" * INLINE_LIMIT)
    spill.write(b"b")
    spill.write(b"c")
    spill.close()
    assert spill.path is not None
    assert os.path.dirname(spill.path) == directories[0]
    assert spill.size == INLINE_LIMIT + 2
    assert Path(spill.path).read_bytes() == b"a" * INLINE_LIMIT + b"bc"


@SETTINGS
@given(st.lists(st.sampled_from([0, 1, 1000, INLINE_LIMIT - 1, INLINE_LIMIT, INLINE_LIMIT + 1, 100_000]), max_size=6))
def test_whatever_is_written_is_there_in_its_order(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    spill = Spill([str(tmp_path_factory.mktemp("store"))])
    parts = [bytes([number]) * size for number, size in enumerate(sizes)]
    for part in parts:
        spill.write(part)
    spill.close()
    whole = b"".join(parts)
    assert spill.size == len(whole)
    assert (spill.path is None) == (len(whole) <= INLINE_LIMIT)
    assert (spill.inline() if spill.path is None else Path(spill.path).read_bytes()) == whole


def test_any_buffer_is_written_by_its_bytes(directories: list[str]) -> None:
    numbers = memoryview(bytearray(range(200))).cast("I")
    spill = Spill(directories)
    spill.write(numbers)
    assert spill.size == 200
    for _ in range(200):
        spill.write(pickle.PickleBuffer(numbers))
    spill.close()
    assert spill.path is not None
    assert Path(spill.path).read_bytes() == bytes(range(200)) * 201


def test_a_buffer_that_changes_later_was_copied(directories: list[str]) -> None:
    buffer = bytearray(b"before")
    spill = Spill(directories)
    spill.write(buffer)
    buffer[:] = b"after!"
    assert spill.inline() == b"before"


def test_a_pickler_can_write_into_it(directories: list[str]) -> None:
    value = {"small": list(range(10)), "large": b"x" * 200_000}
    spill = Spill(directories)
    pickle.Pickler(spill, 5).dump(value)
    spill.close()
    assert spill.path is not None
    assert pickle.loads(Path(spill.path).read_bytes()) == value


def test_stored_files_are_private_and_their_names_are_their_own(directories: list[str]) -> None:
    paths = [store.store(b"same", directories)[0] for _ in range(3)]
    assert len(set(paths)) == 3
    assert all(stat.S_IMODE(os.stat(path).st_mode) == 0o600 for path in paths)


def test_a_file_that_is_there_already_is_not_written_over(
    directories: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are random as well; here chance is told to repeat itself."""
    monkeypatch.setattr(os, "urandom", bytes)
    monkeypatch.setattr(store, "_numbers", iter([1, 1]))
    store.store(b"", directories)
    with pytest.raises(FileExistsError):
        Spill(directories).write(b"x" * (INLINE_LIMIT + 1))


def test_to_discard_removes_the_file_and_may_be_repeated(directories: list[str]) -> None:
    spill = Spill(directories)
    spill.write(b"x" * (INLINE_LIMIT + 1))
    assert len(content(directories[0])) == 1
    spill.discard()
    spill.discard()
    assert content(directories[0]) == []
    Spill(directories).discard()


def test_to_remove_what_is_gone_is_no_error(directories: list[str]) -> None:
    path, _ = store.store(b"x", directories)
    store.remove(path)
    store.remove(path)
    assert content(directories[0]) == []


# ---- directories that are full


class Disk:
    """``os.write`` of a node whose directories have so much room."""

    def __init__(self, **room: int) -> None:
        self.room = room
        self._write = os.write

    def write(self, fd: int, data: Any) -> int:
        name = os.path.basename(os.path.dirname(os.readlink(f"/proc/self/fd/{fd}")))
        if name not in self.room:
            return self._write(fd, data)
        fits = min(self.room[name], memoryview(data).nbytes)
        if not fits:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room[name] -= fits
        return self._write(fd, memoryview(data)[:fits])


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(memory=50_000, disk=10**9)
    monkeypatch.setattr(os, "write", disk.write)
    return disk


def test_what_does_not_fit_into_one_directory_goes_into_the_next(directories: list[str], disk: Disk) -> None:
    spill = Spill(directories)
    parts = [b"a" * 40_000, b"b" * 40_000, b"c" * 40_000]
    for part in parts:
        spill.write(part)
    spill.close()
    assert spill.path is not None
    assert os.path.dirname(spill.path) == directories[1]
    assert Path(spill.path).read_bytes() == b"".join(parts)
    assert content(directories[0]) == []


def test_the_next_payload_tries_the_first_directory_again(directories: list[str], disk: Disk) -> None:
    store.store(b"a" * 60_000, directories)
    disk.room["memory"] = 10**9
    path, _ = store.store(b"b" * 60_000, directories)
    assert os.path.dirname(path) == directories[0]


def test_without_room_anywhere_nothing_is_left_and_the_error_says_so(directories: list[str], disk: Disk) -> None:
    disk.room["disk"] = 1000
    spill = Spill(directories)
    with pytest.raises(OSError, match="no room for a payload of more than .* bytes in .*disk: No space left") as caught:
        spill.write(b"x" * 60_000)
    assert caught.value.errno == errno.ENOSPC
    assert (content(directories[0]), content(directories[1])) == ([], [])


def test_another_error_is_raised_at_once(directories: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def write(fd: int, data: Any) -> int:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="broken disk") as caught:
        store.store(b"x", directories)
    assert caught.value.errno == errno.EIO
    assert (content(directories[0]), content(directories[1])) == ([], [])


def test_a_file_system_that_is_full_is_left_for_the_next(directories: list[str]) -> None:
    """With a real one, of 64 KiB, in a mount namespace of its own; only root may make that."""
    script = """
        import os, sys
        from worker_agent import store
        path, size = store.store(bytes(200_000), sys.argv[1:])
        print(os.path.dirname(path), size, os.path.getsize(path), os.listdir(sys.argv[1]))
    """
    mount = 'mount -t tmpfs -o size=64k none "$0" || exit 99; exec "$@"'
    python = [sys.executable, "-c", textwrap.dedent(script), *directories]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, directories[0], *python],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode and "worker_agent" not in done.stderr:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    assert done.stdout.split(maxsplit=3) == [directories[1], "200000", "200000", "[]\n"]


# ---- reading


def test_a_stored_payload_is_mapped_privately_and_can_be_written(directories: list[str]) -> None:
    path, size = store.store(b"abc" * 10_000, directories)
    mapped = map_file(path, size)
    mapped[:3] = b"xyz"
    assert bytes(mapped[:6]) == b"xyzabc"
    assert Path(path).read_bytes()[:6] == b"abcabc"
    assert bytes(map_file(path, size)[:3]) == b"abc"
    mapped.close()


def test_what_was_mapped_stays_when_the_file_is_removed(directories: list[str]) -> None:
    path, size = store.store(b"abc" * 10_000, directories)
    mapped = map_file(path, size)
    store.remove(path)
    assert bytes(mapped) == b"abc" * 10_000
    mapped.close()


def test_nothing_is_mapped_as_an_empty_buffer_that_can_be_written(directories: list[str]) -> None:
    path, size = store.store(b"", directories)
    assert size == 0
    assert bytes(map_file(path, size)) == b""
    assert not memoryview(map_file(path, size)).readonly


def test_a_mapping_keeps_no_descriptor(directories: list[str]) -> None:
    path, size = store.store(b"abc", directories)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        map_file(path + "-gone", 1)
    with pytest.raises(ValueError, match="mmap length"):
        map_file(path, 10**6)
    assert len(os.listdir("/proc/self/fd")) == len(before)


# ---- out of band


def test_small_buffers_stay_in_the_pickle_and_large_ones_are_collected() -> None:
    small, large = bytearray(INLINE_LIMIT - 1), bytearray(INLINE_LIMIT)
    buffers: list[Any] = []
    value = [pickle.PickleBuffer(small), pickle.PickleBuffer(large)]
    data = pickle.dumps(value, 5, buffer_callback=keep_small_in_band(buffers))
    assert [buffer.nbytes for buffer in buffers] == [INLINE_LIMIT]
    assert INLINE_LIMIT - 1 < len(data) < INLINE_LIMIT + 200
    assert pickle.loads(data, buffers=buffers) == [small, large]


def test_an_array_is_collected_as_the_bytes_of_its_memory() -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(10_000.0).reshape(100, 100)
    for each in (array, array.T):
        buffers: list[Any] = []
        data = pickle.dumps(each, 5, buffer_callback=keep_small_in_band(buffers))
        assert [buffer.nbytes for buffer in buffers] == [80_000]
        assert len(data) < 1000
        assert (pickle.loads(data, buffers=buffers) == each).all()
