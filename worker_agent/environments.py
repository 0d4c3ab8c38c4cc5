"""Environments on their way from the hub to a lane: what the agent adds, and what interpreters are told of them."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from worker_agent import processes, protocol, runner


def complete(order: protocol.Prepare, launch: str) -> protocol.Prepare:
    """The environment with all its variables: those that are not UTF-8, and the mark of who has started the process."""
    raw = {os.fsdecode(name): os.fsdecode(text) for name, text in order.raw}
    env = {**raw, **order.env, processes.AGENT: launch}
    return msgspec.structs.replace(order, env=env, raw=[])


def make_setup(environment: protocol.Prepare, stores: list[str]) -> runner.Setup:
    """What its interpreters must know. ``stores`` are directories for payloads."""
    import cloudpickle

    initializer: Any = environment.initializer
    if isinstance(initializer, protocol.Stored):
        initializer = (initializer.path, initializer.size)
    folder = os.path.dirname(os.path.dirname(os.path.abspath(cloudpickle.__file__)))
    return runner.Setup(
        environment.cwd, environment.path, environment.preload, initializer, environment.max_tasks,
        stores, folder, environment.authkey, environment.argv,
        environment.version, {}, [],
    )  # fmt: skip
