"""The scheduler does no I/O, so nothing can be left behind: looking for it would take longer than the tests."""

import os

import pytest

from executor.core import model


@pytest.fixture
def nothing_is_left() -> None:
    """In place of the look at processes, threads and files after each test."""


@pytest.fixture(autouse=True)
def assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents hold one task in advance for each place from the start: most tests here are about what they hold."""
    monkeypatch.setattr(model, "ASSUMED", model.LONG / 2)


if "CORE_EXAMPLES" in os.environ:

    @pytest.fixture
    def bounded() -> None:
        """In place of the alarm: who asks for many examples has the time."""
