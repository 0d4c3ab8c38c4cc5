"""The agent's end of a pipe: whose bytes are they?"""

from __future__ import annotations

import os

import pytest

from worker_agent.loop import Loop
from worker_agent.pipes import Pipe


@pytest.fixture
def ends() -> tuple[int, int]:
    return os.pipe()


def test_what_is_written_while_it_is_learnt_whose_it_is_comes_with_the_next_reading(ends: tuple[int, int]) -> None:
    """It may be another task's by then."""
    loop, (read_end, write_end), seen, whose = Loop(), ends, [], ["first"]

    def learn() -> None:
        if len(whose) == 1:
            whose.append("second")
            os.write(write_end, b"of the second")

    pipe = Pipe(loop, read_end, lambda data: seen.append((whose[len(seen)], data)), learn)
    os.write(write_end, b"of the first, ")
    loop.run_once(wait=False)
    assert seen == [("first", b"of the first, ")]
    loop.run_once(wait=False)
    assert seen == [("first", b"of the first, "), ("second", b"of the second")]
    os.close(write_end)
    pipe.finish()
    loop.close()


def test_what_was_drained_while_it_was_learnt_whose_it_is_is_not_read_again(ends: tuple[int, int]) -> None:
    loop, (read_end, write_end), seen = Loop(), ends, []

    def learn() -> None:
        if not seen:
            pipe.drain()
            os.write(write_end, b"of the next")

    pipe = Pipe(loop, read_end, seen.append, learn)
    os.write(write_end, b"of this one")
    loop.run_once(wait=False)
    assert seen == [b"of this one"]
    loop.run_once(wait=False)
    assert seen == [b"of this one", b"of the next"]
    os.close(write_end)
    loop.run_once(wait=False)  # its end is found, and it closes
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(read_end)
    loop.close()
