"""Tasks of the tests of clusters, in a module of their own: each fresh interpreter imports it."""

from __future__ import annotations

import os
import socket
import time

import histories
from waiting import announce, pass_gate

#: More processes than a host has.
PER_HOST = 10**8


def where() -> str:
    """The host."""
    return socket.gethostname()


def say_where_and_wait(arrivals: str, opened: str) -> str:
    """Wait at a gate, then tell the host."""
    pass_gate(arrivals, opened)
    return where()


def note(path: str, number: int) -> tuple[int, str]:
    """Note that we have run; many of these make a load."""
    announce(path, number)
    time.sleep(0.05)
    return number, where()


def who() -> int:
    """This process, unlike all others on all hosts: each host counts its own."""
    return int(where().removeprefix("n")) * PER_HOST + os.getpid()


def stamp_until(history: str, opened: str) -> int:
    """As on one host."""
    return histories.stamp_until(history, opened, who)
