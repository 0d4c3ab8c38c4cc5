"""The scheduler's books: what must always be true of them, whatever has happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from executor.core.model import Lane, TaskState, Worker
from executor.core.scheduler import Scheduler
from worker_agent.pools import UNIT, Pool, Share


def parts(shares: Iterable[Share]) -> Iterator[tuple[tuple[str, str], int]]:
    """How many units of which part of which pool; a pool without indices is one part."""
    for share in shares:
        if not share.indices:
            yield (share.name, ""), share.amount
            continue
        whole, rest = divmod(share.amount, UNIT)
        assert len(share.indices) == whole + (rest > 0), f"{share} has {len(share.indices)} indices"
        for index in share.indices[:whole]:
            yield (share.name, index), UNIT
        if rest:
            yield (share.name, share.indices[whole]), rest


def sizes(pools: Iterable[Pool]) -> dict[tuple[str, str], int]:
    """So many units there are of each part."""
    whole = {}
    for pool in pools:
        whole.update({(pool.name, index): UNIT for group in pool.groups for index in group})
        if pool.size:
            whole[pool.name, ""] = pool.size
    return whole


def excess(shares: Iterable[Share], whole: dict[tuple[str, str], int]) -> str:
    """What is there more than once; "" if nothing is."""
    used: Counter[tuple[str, str]] = Counter()
    for part, amount in parts(shares):
        used[part] += amount
        if used[part] > whole.get(part, 0):
            return f"{used[part]} of {' '.join(part)}, of which there are {whole.get(part, 0)}"
    return ""


def check_places(worker: Worker) -> None:
    """The lanes of a worker have different parts of it, and what they do not have is free."""
    claimed: Counter[tuple[str, str]] = Counter()
    sums: Counter[str] = Counter()
    for lane in worker.lanes.values():
        for shares in lane.places.values():
            for part, amount in parts(shares):
                claimed[part] += amount
                sums[part[0]] += amount
    for (name, index), amount in claimed.items():
        assert not index or amount <= UNIT, f"worker {worker.id}: {amount} of {name} {index} are given"
    for name in worker.free.names:
        free, total = worker.free.amount(name), worker.free.total(name)
        assert free + sums[name] == total, f"worker {worker.id}: of {total} {name} {sums[name]} given, {free} free"


def check_books(core: Scheduler) -> None:
    """After each event."""
    for task in core.tasks.values():
        assert task.state is not TaskState.DONE, f"task {task.id} is done and still known"
        sent = task.lane is not None and task.lane.sent.get(task.id) is task
        assert sent == (task.state in (TaskState.SENT, TaskState.RUNNING)), f"task {task.id} {task.state}"
    for worker in core.workers.values():
        check_places(worker)
        for lane in worker.lanes.values():
            _check_lane(core, lane)
        _check_reservation(worker)
    for each in core._placement.news.classes.values():
        idle = any(len(lane.sent) < lane.width for lane in each.lanes.values())
        waits = any(task.state is TaskState.READY for queue in each.queues.values() for task in queue.ready)
        assert not (waits and idle), f"environment {each.environment}: tasks wait beside idle places"
    strange = [number for number in core._placement.lanes.moving if number not in core.tasks]
    assert not strange, f"tasks {strange} move, and have ended"


def _check_lane(core: Scheduler, lane: Lane) -> None:
    assert lane.of.lanes.get((lane.worker.id, lane.variant)) is lane
    assert 0 <= lane.width <= len(lane.places), f"lane {lane.id} is {lane.width} wide, with {len(lane.places)} places"
    assert all(core.tasks.get(task.id) is task for task in lane.sent.values())


def _check_reservation(worker: Worker) -> None:
    queue = worker.reserved
    if queue is not None:
        assert worker in queue.reserved, f"worker {worker.id} is kept for who does not know"
        assert queue.drop_ended(), f"worker {worker.id} is kept for nobody"
