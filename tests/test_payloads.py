"""Arguments that were seen before are stored once."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from executor.payloads import Payloads
from worker_agent.protocol import Stored

A, B, C = b"a" * 1000, b"b" * 1000, b"c" * 1000


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path)


def files(directory: str) -> int:
    return len(os.listdir(directory))


def read(stored: Stored) -> bytes:
    data = Path(stored.path).read_bytes()
    assert len(data) == stored.size
    return data


def test_the_same_content_is_stored_once_whoever_has_it(directory: str) -> None:
    payloads = Payloads([directory])
    first = payloads.put(A)
    assert payloads.put(bytearray(A)) == payloads.put(memoryview(A)) == first
    assert files(directory) == 1
    assert read(first) == A


def test_other_content_is_stored_apart(directory: str) -> None:
    payloads = Payloads([directory])
    assert [read(payloads.put(each)) for each in (A, B, A + b"a", b"")] == [A, B, A + b"a", b""]
    assert files(directory) == 4


def test_any_buffer_is_stored_by_its_bytes(directory: str) -> None:
    numbers = memoryview(bytearray(8000)).cast("d", (10, 100))
    assert Payloads([directory]).put(numbers).size == 8000


def test_content_that_differs_where_no_sample_is_taken_is_stored_apart(directory: str) -> None:
    """The fingerprint looks at the beginning, the middle and the end; the comparison at everything."""
    payloads = Payloads([directory])
    size = 3 * 2**20 + 5
    stored = {}
    for place in (size // 4, size // 4 + 1, 2**20 + 3, size - 2000):
        content = bytearray(size)
        content[place] = 1
        stored[place] = payloads.put(content)
    assert len({each.path for each in stored.values()}) == 4
    assert all(read(each)[place] == 1 for place, each in stored.items())
    content = bytearray(size)
    content[size // 4 + 1] = 1
    assert payloads.put(content) == stored[size // 4 + 1]


def test_content_of_one_size_and_fingerprint_is_released_apart(directory: str) -> None:
    payloads = Payloads([directory], kept=0)
    first, second = bytearray(10_000), bytearray(10_000)
    second[3000] = 1
    one, other = payloads.put(first), payloads.put(second)
    payloads.release(one)
    assert (files(directory), read(other)) == (1, bytes(second))
    payloads.release(other)
    assert files(directory) == 0


def test_what_is_in_use_stays_until_its_last_user_has_gone(directory: str) -> None:
    payloads = Payloads([directory], kept=0)
    stored = payloads.put(A)
    payloads.put(A)
    payloads.release(stored)
    assert read(stored) == A
    payloads.release(stored)
    assert files(directory) == 0
    assert read(payloads.put(A)) == A


def test_what_nobody_uses_is_kept_in_case_that_it_comes_again(directory: str) -> None:
    payloads = Payloads([directory], kept=len(A))
    stored = payloads.put(A)
    payloads.release(stored)
    assert files(directory) == 1
    assert payloads.put(A) == stored


def test_the_oldest_that_nobody_uses_goes_first(directory: str) -> None:
    payloads = Payloads([directory], kept=2 * len(A))
    a, b, c = payloads.put(A), payloads.put(B), payloads.put(C)
    for stored in (b, a, c):
        payloads.release(stored)
    assert not os.path.exists(b.path)
    assert (read(a), read(c)) == (A, C)


def test_what_is_used_again_is_not_old(directory: str) -> None:
    payloads = Payloads([directory], kept=len(A))
    a = payloads.put(A)
    payloads.release(a)
    payloads.put(A)
    b = payloads.put(B)
    payloads.release(b)
    assert files(directory) == 2
    payloads.release(a)
    assert not os.path.exists(b.path)


def test_what_was_stored_by_others_is_removed_when_it_is_released(directory: str) -> None:
    """Arguments that are large themselves are written by the pickler and have one user."""
    path = Path(directory, "arguments")
    path.write_bytes(A)
    payloads = Payloads([directory])
    payloads.release(Stored(str(path), len(A)))
    payloads.release(Stored(str(path), len(A)))
    assert files(directory) == 0


def test_a_payload_that_cannot_be_stored_leaves_no_trace(directory: str) -> None:
    payloads = Payloads([os.path.join(directory, "missing")])
    with pytest.raises(FileNotFoundError):
        payloads.put(A)
    os.mkdir(os.path.join(directory, "missing"))
    assert read(payloads.put(A)) == A


def test_many_threads_store_the_same_once(directory: str) -> None:
    payloads = Payloads([directory])
    together = threading.Barrier(8)
    stored: list[Stored] = []

    def put() -> None:
        together.wait(timeout=30)
        stored.extend(payloads.put(each) for each in (A, B, A))

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each.path for each in stored}) == files(directory) == 2


class Users(RuleBasedStateMachine):
    """Whatever is put and released in any order: what is used can be read, and what is kept is bounded."""

    KEPT = 25

    def __init__(self) -> None:
        super().__init__()
        self.directory = str(BASE.mktemp("payloads"))
        self.payloads = Payloads([self.directory], kept=self.KEPT)
        self.used: list[tuple[bytes, Stored]] = []

    @rule(content=st.sampled_from([bytes([number]) * (5 + number % 3) for number in range(8)]))
    def put(self, content: bytes) -> None:
        stored = self.payloads.put(content)
        assert all(other == stored for same, other in self.used if same == content)
        self.used.append((content, stored))

    @precondition(lambda self: self.used)
    @rule(which=st.integers(0, 1000))
    def release(self, which: int) -> None:
        self.payloads.release(self.used.pop(which % len(self.used))[1])

    @invariant()
    def what_is_used_can_be_read(self) -> None:
        assert all(read(stored) == content for content, stored in self.used)

    @invariant()
    def no_more_is_kept_than_allowed(self) -> None:
        sizes = {entry.path: entry.stat().st_size for entry in os.scandir(self.directory)}
        idle = sizes.keys() - {stored.path for _, stored in self.used}
        assert sum(sizes[path] for path in idle) <= self.KEPT


def test_payloads_in_any_order(tmp_path_factory: pytest.TempPathFactory) -> None:
    global BASE
    BASE = tmp_path_factory
    run_state_machine_as_test(
        Users,
        settings=settings(
            max_examples=20, stateful_step_count=30, derandomize=True, database=None, deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
