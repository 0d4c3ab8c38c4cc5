"""What users do: submit, cancel, kill, and shut down in all ways; and that their process may end at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent import BAD_ENVIRONMENT
from judge import Future

from executor.core.dependents import AFTER_ANY, AFTER_NOT_OK, AFTER_OK, Condition
from executor.core.model import Task, Variants
from executor.core.reservations import PATIENCE
from executor.core.retries import Retries
from worker_agent import protocol

if TYPE_CHECKING:
    from world import World

#: Seconds that a process may take to leave, as in ``worker_agent.interpreters``.
EXIT_GRACE = 2.0
#: How the executor may end, if it does.
ENDINGS = ("close", "cancel futures", "terminate", "kill", "client dies", "cancel all")
_ENDS = (protocol.VALUE,) * 12 + (protocol.ERROR, protocol.ERROR, protocol.EXITED, protocol.LOST, protocol.TIMED_OUT)


class Users:
    """They draw what they do at the beginning, and act when its time comes."""

    def __init__(self, world: World) -> None:
        self.world = world
        #: the seconds that a task takes at most, and that its process takes to leave
        self.longest = world.pick((0.01, 0.1, 1.0, 10.0, 10.0, 60.0))
        self.longest_leave = world.pick((0.0, 0.0, 0.01, EXIT_GRACE))
        #: how many tasks wait for others
        self._dependence = world.pick((0.0, 0.0, 0.0, 0.2, 0.7))
        #: they cancel again as soon as a task waits again
        self._spiteful = world.chance(0.1)
        self._submitting = True

    @property
    def work_left(self) -> float:
        """Seconds that all open tasks take one by one, with their retries."""
        return (self.longest + self.longest_leave + PATIENCE) * self.world.judge.open * 5

    def plan(self) -> None:
        """Everything that they will do."""
        world, rng, end = self.world, self.world.rng, self.world.faults_end
        total = world.pick((1, 2, 3, 4, 6, 8, 12, 200 if world.chance(0.1) else 20))
        if total == 200:
            self.longest = min(self.longest, 1.0)  # or it would take hours
        self._plan_submits(total)
        for _ in range(total if self._spiteful else world.pick((0, 0, 1, 3, total))):
            time, task = end * world.random(), rng.randint(1, total)
            for _ in range(world.pick((1, 1, 2, 5))):  # some insist
                world.at(time, self.cancel, task)
                time += world.pick((0.002, 0.02, 1.0)) * world.random()
        for _ in range(world.pick((0, 0, 0, 1, total // 3))):
            world.at(end * world.random(), self.kill, rng.randint(1, total), world.pick((0.0, 2.0)))
        if world.chance(0.2):
            world.at(end * world.pick((1.0, world.random())), self.end, world.pick(ENDINGS))

    def _plan_submits(self, total: int) -> None:
        world = self.world
        environments = [1, 2, 3][: world.rng.randint(1, 3)]
        if world.fault("bad environment"):
            environments.append(BAD_ENVIRONMENT)
        variants = world.demands.draw_variants([node.pools for node in world.nodes])
        number = 0
        while number < total:
            count = min(world.pick((1, 3, 10, 200)), total - number)
            tasks = [
                self._make_task(number + each + 1, world.pick(environments), world.pick(variants))
                for each in range(count)
            ]
            number += count
            world.at(world.faults_end * world.random() * 0.8, self.submit, tasks)

    def _make_task(self, number: int, environment: int, variants: Variants) -> Task:
        world = self.world
        buffers = []
        if world.fault("large") and world.chance(0.3):
            buffers.append(protocol.Stored("", world.rng.randint(1, 5)))
        body = protocol.Call(0, b"x" * world.pick((0, 0, 100)), buffers=buffers)
        times, crash_limit = world.pick((0, 0, 2)), world.pick((0, 1, 5, 5))
        retries = Retries(times, world.pick((0, times)))
        priority = world.pick(world.demands.priorities)
        return Task(number, environment, body, retries, crash_limit, variants=variants, priority=priority)

    def draw_end(self) -> tuple[float, str]:
        """How long an attempt runs, and how it ends."""
        return self.world.random() ** 2 * self.longest, self.world.pick(_ENDS)

    def draw_leave(self) -> float:
        """How long a process takes to leave after its task has ended."""
        return self.world.random() * self.longest_leave if self.longest_leave and self.world.chance(0.5) else 0.0

    # --- what they do ---

    def submit(self, tasks: list[Task]) -> None:
        """Unless the executor has been shut down."""
        world = self.world
        if self._submitting:
            for task in tasks:
                after = self._draw_conditions(task) if self._dependence else ()
                world.judge.futures[task.id] = Future(task, after)
            world.judge.open += len(tasks)
            world.hub.do(world.hub.submit, tasks)

    def _draw_conditions(self, task: Task) -> tuple[Condition, ...]:
        """What it waits for: other tasks that were submitted, whether they have ended or not."""
        world = self.world
        earlier = [number for number in world.judge.futures if number < task.id]
        if not earlier or not world.chance(self._dependence):
            return ()
        wanted = {world.pick(earlier) for _ in range(world.pick((1, 1, 2, 5)))}
        kinds = (AFTER_OK, AFTER_OK, AFTER_ANY, AFTER_NOT_OK)
        return tuple(Condition(each, world.pick(kinds)) for each in sorted(wanted))

    def cancel(self, number: int) -> None:
        """As a future does: at once if it is not claimed, or else the hub is asked."""
        world, future = self.world, self.world.judge.futures.get(number)
        if future is None or future.end or world.hub.over:
            return
        world.tell("user", "cancels", number)
        if future.claimed:
            world.judge.ask(future)
        else:
            world.judge.finish(future, "cancelled")
        world.later(0.001, world.hub.do, world.hub.cancel, number, future.claimed)

    def kill(self, number: int, grace: float) -> None:
        """A single task."""
        if number in self.world.judge.futures:
            self.world.tell("user", "kills", number)
            self.world.hub.do(self.world.hub.kill, number, grace)

    def on_requeue(self, number: int) -> None:
        """A task waits again."""
        if self._spiteful:
            self.world.later(0.005 * self.world.random(), self.cancel, number)

    def end(self, how: str) -> None:
        """No more tasks are submitted."""
        world = self.world
        world.seen["ending: " + how] += 1
        world.tell("user", f"end: {how}")
        if how == "cancel all":
            for number in list(world.judge.futures):
                self.cancel(number)
            return
        self._submitting = False
        if how == "client dies":
            world.end_client()
            return
        if how == "cancel futures":
            self._cancel_pending()
        if how in ("terminate", "kill"):
            world.hub.do(world.hub.terminate, 2.0 * (how == "terminate"))
        else:
            world.hub.do(world.hub.close)

    def _cancel_pending(self) -> None:
        for number, future in self.world.judge.futures.items():
            if not future.claimed and not future.end:
                self.cancel(number)
