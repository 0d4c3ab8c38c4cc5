"""What tasks see of who submits them, while that changes."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from executor.options import TaskOptions
from executor.surroundings import Surroundings


def test_a_thread_may_change_variables_while_tasks_are_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each order has the variables of one moment."""
    for number in range(200):
        monkeypatch.setenv(f"STAYS_{number}", str(number))
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            for number in range(100):
                os.environ[f"COMES_{number}"] = str(number)
            for number in range(100):
                del os.environ[f"COMES_{number}"]

    surroundings = Surroundings(1, [], None)
    thread = threading.Thread(target=change)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(1000):
            order = surroundings.order(TaskOptions(), "fork")
            assert len([name for name in order.env if name.startswith("STAYS_")]) == 200
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)
