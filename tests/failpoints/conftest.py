"""Runs are processes of their own, several at a time, and each looks itself for what is left of it."""

import pytest


@pytest.fixture
def nothing_is_left() -> None:
    """In place of the look at processes after each test: other runs go on beside it."""
