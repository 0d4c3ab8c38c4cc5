import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker_agent.output import HeadTail, join_head_tail

busy_machine = settings(deadline=None)  # to be slow is no failure


def feed(keeper, chunks):
    return b"".join([keeper.add(chunk) for chunk in chunks])


@busy_machine
@given(st.integers(0, 40), st.lists(st.binary(max_size=30), max_size=20))
def test_every_chunking_keeps_both_ends_exactly(limit, chunks):
    stream = b"".join(chunks)
    keeper = HeadTail(limit)
    head = feed(keeper, chunks)
    tail = keeper.tail()
    assert len(head) + keeper.omitted + len(tail) == len(stream)
    assert head == stream[: limit // 2]
    assert tail == stream[len(stream) - len(tail) :]
    assert len(head) + len(tail) == min(limit, len(stream))


@busy_machine
@given(st.integers(1, 40), st.lists(st.binary(max_size=30), max_size=20))
def test_the_tail_is_right_after_each_chunk(limit, chunks):
    keeper = HeadTail(limit)
    stream = b""
    for chunk in chunks:
        keeper.add(chunk)
        stream += chunk
        assert stream[limit // 2 :].endswith(keeper.tail())
        assert len(keeper.tail()) == min(limit - limit // 2, max(0, len(stream) - limit // 2))


def test_a_stream_within_the_limit_is_whole():
    keeper = HeadTail(7)
    assert feed(keeper, [b"ab", b"cd", b"efg"]) == b"abc"
    assert (keeper.tail(), keeper.omitted) == (b"defg", 0)


def test_the_head_comes_back_at_once_and_never_again():
    keeper = HeadTail(8)
    assert [keeper.add(chunk) for chunk in (b"ab", b"cdef", b"gh")] == [b"ab", b"cd", b""]


def test_a_limit_of_zero_keeps_nothing():
    keeper = HeadTail(0)
    assert (keeper.add(b"abc"), keeper.tail(), keeper.omitted) == (b"", b"", 3)


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match="limit=-1"):
        HeadTail(-1)


@pytest.mark.parametrize("size", [1, 65536])
def test_memory_stays_flat_however_much_comes(size):
    limit = 16 * 1024
    chunk = bytes(size)
    keeper = HeadTail(limit)
    tracemalloc.start()
    try:
        for _ in range(40_000 if size == 1 else 500):
            keeper.add(chunk)
        assert tracemalloc.get_traced_memory()[1] < limit + size + 4096
    finally:
        tracemalloc.stop()


def test_the_ends_are_joined_by_a_line_that_counts_what_is_missing():
    assert join_head_tail(b"head", b"tail", 12345) == b"head\n[... 12345 bytes left out ...]\ntail"


def test_ends_that_meet_are_joined_without_a_trace():
    assert join_head_tail(b"he", b"ad", 0) == b"head"
