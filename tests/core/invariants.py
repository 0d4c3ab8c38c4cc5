"""What must always hold of the scheduler, between any two of its methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from executor.core.lanes import goes_before
from executor.core.model import Lane, Queue, TaskClass, TaskState, Worker
from executor.core.needs import Needs
from executor.core.placement import Placement
from executor.core.scheduler import Scheduler
from worker_agent.pools import UNIT, Share


def check(scheduler: Scheduler, now: float) -> None:
    """Raise AssertionError if anything that must always hold does not."""
    placement = scheduler._placement
    _check_tasks(scheduler)
    for worker in [*scheduler.workers.values(), *scheduler.leaving.values()]:
        _check_given(worker)
        for lane in worker.lanes.values():
            _check_lane(scheduler, lane)
    for worker in scheduler.workers.values():
        _check_worker(placement, worker)
    for of in placement.news.classes.values():
        _check_class(placement, of)
    _check_nobody_waits_in_vain(placement, now)
    _check_dependents(scheduler)


def _check_tasks(scheduler: Scheduler) -> None:
    placement = scheduler._placement
    for number, task in scheduler.tasks.items():
        assert task.id == number
        assert task.state is not TaskState.DONE, f"task {task.id} is done and still known"
        sent = task.lane is not None and task.lane.sent.get(task.id) is task
        assert sent == (task.state in (TaskState.SENT, TaskState.RUNNING)), f"task {task.id} {task.state}"
        assert sent or task.lane is None, f"task {task.id} names a lane that does not have it"
        if task.state is TaskState.READY:
            of = placement.news.classes.get((task.environment, task.variants))
            queue = of.queues.get(task.priority) if of is not None else None
            assert queue is not None, f"task {task.id} waits in a queue that nobody knows"
            assert [each for each in queue.ready if each is task] == [task], f"task {task.id} waits nowhere, or twice"
            assert queue in placement._waiting, f"task {task.id} waits in a queue that is not served"
    for number in placement.lanes.moving:
        assert scheduler.tasks[number].state is TaskState.SENT, f"task {number} moves, and was not sent"
    for number in scheduler._recalled:
        assert scheduler.tasks[number].lane is not None, f"task {number} is asked for, and was not sent"
    assert all(scheduler.tasks[number].lane is not None for number in scheduler._broken), "it runs nowhere"
    assert not scheduler._ends
    assert not placement.lanes.left


def _check_given(worker: Worker) -> None:
    """What is free and what lanes have is all there is, and nothing is given twice."""
    given: Counter[str] = Counter()
    parts: Counter[tuple[str, str]] = Counter()
    for lane in worker.lanes.values():
        for share in (share for shares in lane.places.values() for share in shares):
            given[share.name] += share.amount
            parts.update(dict(_parts(share)))
    for stock in worker.free._stocks.values():
        assert stock.free + given[stock.name] == stock.total, f"{stock.name} of worker {worker.id}"
        assert stock.free >= 0
    assert set(given) <= set(worker.free.names)
    twice = [part for part, amount in parts.items() if amount > UNIT]
    assert not twice, f"worker {worker.id} gave {twice} twice"


def _parts(share: Share) -> Iterator[tuple[tuple[str, str], int]]:
    """How much of each index it has."""
    whole, part = divmod(share.amount, UNIT)
    for position, index in enumerate(share.indices):
        yield (share.name, index), UNIT if position < whole else part


def _check_lane(scheduler: Scheduler, lane: Lane) -> None:
    what = f"lane {lane.id} of worker {lane.worker.id}"
    assert len(lane.places) >= lane.width >= 0, f"{what} has {len(lane.places)} places and is {lane.width} wide"
    assert all(number < lane.following for number in lane.places)
    assert lane.worker.lanes.get(lane.id) is lane
    assert lane.places or lane.sent, f"{what} is empty and open"
    assert all(scheduler.tasks.get(task.id) is task and task.lane is lane for task in lane.sent.values()), what
    assert all((task.environment, task.variants) == (lane.of.environment, lane.of.variants) for task in
               lane.sent.values()), f"{what} has tasks of others"  # fmt: skip
    attached = lane.of.lanes.get((lane.worker.id, lane.variant)) is lane
    assert attached == (lane.worker.id in scheduler.workers), f"{what} and its class do not agree"
    if attached:
        known = scheduler._placement.news.classes.get((lane.of.environment, lane.of.variants))
        assert known is lane.of, f"{what} is of a class that was forgotten"
        assert len(lane.sent) >= lane.width or lane in lane.of.idle, f"{what} is idle and nobody knows"
        held = [task for task in list(lane.sent.values())[len(lane.places) :] if task.state is TaskState.SENT]
        moving = scheduler._placement.lanes.moving
        assert lane in lane.of.deep or all(task.id in moving for task in held) or lane.width == 0, f"{what} is deep"


def _check_worker(placement: Placement, worker: Worker) -> None:
    if worker.lent is not None:
        lane = worker.lent
        assert worker is lane.worker or worker in lane.others, f"worker {worker.id} is lent to who does not know"
        assert lane.worker.lanes.get(lane.id) is lane, f"worker {worker.id} is lent to a lane that is gone"
        assert worker is lane.worker or (worker.free.idle and not worker.lanes), f"worker {worker.id} is not its own"
        assert worker is not lane.worker or list(worker.lanes.values()) == [lane]
    for lane in worker.lanes.values():
        for other in lane.others:
            assert other.lent is lane, f"lane {lane.id} runs on worker {other.id}, which does not know"
    if worker.reserved is not None:
        assert worker in worker.reserved.reserved
        assert worker.reserved in placement._waiting, f"worker {worker.id} is kept for who does not wait"


def _check_class(placement: Placement, of: TaskClass) -> None:
    for (worker_id, variant), lane in of.lanes.items():
        assert lane.of is of
        assert (lane.worker.id, lane.variant) == (worker_id, variant)
        assert placement.news.workers.get(worker_id) is lane.worker, f"lane {lane.id} is on a worker that is gone"
        assert lane.worker.lanes.get(lane.id) is lane
    for lanes in (of.idle, of.shallow, of.deep):
        assert set(lanes) <= set(of.lanes.values())
    assert not of.deep or of in placement.lanes.deep
    assert of.lanes or of.waits, f"environment {of.environment} has nothing and is not forgotten"
    for priority, queue in of.queues.items():
        assert (queue.of, queue.priority) == (of, priority)
        assert not queue.ready or queue in placement._waiting
        assert all(placement.news.workers.get(worker.id) is worker for worker in queue.reserved)
        assert all(worker.reserved is queue for worker in queue.reserved)
        assert not queue.reserved or queue.drop_ended(), "room is kept for nobody"


def _check_nobody_waits_in_vain(placement: Placement, now: float) -> None:
    for of in placement.news.classes.values():
        for queue in of.queues.values():
            first = next((task for task in queue.ready if task.state is TaskState.READY), None)
            if first is None:
                continue
            for lane in of.lanes.values():
                idle = len(lane.sent) < lane.width and lane.worker.lives(lane.needs, now)
                assert not idle, f"task {first.id} waits beside an idle place of lane {lane.id}"
            for needs in of.variants:
                workers = placement.news.workers.values()
                allowed = [each for each in workers if placement.reservations.may_have(each, queue, needs, now)]
                if needs.nodes:
                    nodes = placement.nodes.find(queue, needs, now)
                    coming = any(map(_gives_back, nodes))
                    assert not nodes or coming, f"task {first.id} waits beside idle nodes"
                    continue
                for worker in allowed:
                    assert not worker.free.fits(needs), f"task {first.id} waits, and fits on worker {worker.id}"
                    assert not _could_have(worker, queue, needs), (
                        f"task {first.id} waits beside places of worker {worker.id} that nobody uses"
                    )
                    assert not _is_unused(worker) or not worker.free.possible(needs), (
                        f"task {first.id} waits, and nobody uses worker {worker.id}"
                    )


def _could_have(worker: Worker, queue: Queue, needs: Needs) -> bool:
    """Whether it would have room with the places that nobody uses, or not before it; looked at for CPUs alone."""
    if [need.name for need in needs.needs] != ["cpus"] or not needs.needs[0].amount or needs.needs[0].amount % UNIT:
        return False
    stock = worker.free._stocks.get("cpus")
    if stock is None or len(getattr(stock, "groups", ())) != 1:
        return False
    unused = [lane for lane in worker.lanes.values() if lane.unused and not goes_before(lane.of, queue)]
    whole = [lane.unused * lane.each_has("cpus") // UNIT for lane in unused if lane.each_has("cpus") % UNIT == 0]
    return stock._whole() + sum(whole) >= needs.needs[0].least // UNIT


def _gives_back(worker: Worker) -> bool:
    """Whether places there were asked back and are still to come."""
    return any(len(lane.places) > lane.width for lane in worker.runs)


def _is_unused(worker: Worker) -> bool:
    """Whether nothing runs there, and nobody has been asked to give back what is there."""
    return not _gives_back(worker) and not any(lane.sent for lane in worker.runs)


def _check_dependents(scheduler: Scheduler) -> None:
    missing = scheduler._dependents._missing
    waiting = {task.id for task in scheduler.tasks.values() if task.state is TaskState.WAITING}
    assert {task.id for task in missing} == waiting, "who waits for others and who is said to are not the same"
    for task, number in missing.items():
        known = sum(task in each for each in scheduler._dependents._waiting.values())
        assert number == known > 0, f"task {task.id} waits for {number} ends, of which {known} are known"
