"""The simulator does no I/O, so nothing can be left behind: looking for it would take longer than the tests."""

import os

import pytest


@pytest.fixture
def nothing_is_left() -> None:
    """In place of the look at processes, threads and files after each test."""


if "SIMULATION_SEEDS" in os.environ:

    @pytest.fixture
    def bounded() -> None:
        """In place of the alarm: who asks for many seeds has the time."""
