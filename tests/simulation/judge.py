"""What must hold: S1 to S12 at every event, L1 to L4 when all is over. It knows more than any of those it judges.

==== ================================================================================================================
S1   A future ends once.
S2   What completes a future comes from its current attempt, on the agent that has it.
S3   Two attempts of a task do not run at a time, unless the earlier one's agent is stopped, or cannot end it.
S4   An attempt starts at most once; never after it was asked back or killed, never without its payload.
S5   No part of an agent is used by two tasks, nor given to two lanes, nor more of a sum than there is: neither there
     nor in the hub's books. A place is given back when nothing is there any more. A task has what it needs.
S6   No more bytes on the way than credit; what waits is bounded; frames do not make ever more frames.
     No task is sent to and fro.
S7   What is cancelled has no result.
S8   An agent runs nothing after its lease and the time that a kill takes, nor after the hub has told it so.
S9   A task with ``crash_limit=0`` starts once more only because it failed, and ``retries`` allow it.
S10  On a good network a cancel is answered at once, not when its task ends.
S11  A task starts only after all that it waits for have ended as they should, and is given up only if one has not.
S12  On a good network nobody is started, for long, in the room of one who is more important and waits.
L1   Each future has ended, each cancel is answered, no task is left.
L2   Each agent is registered again.
L3   Nothing runs; without a hub, no agent.
L4   The books are right, and places that were asked back have been given back.
==== ================================================================================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from books import check_books, excess, parts

from executor.core import effects, moments, reservations
from executor.core.dependents import AFTER_ANY, AFTER_OK, Condition
from executor.core.members import LEASE, PATIENCE_PER_LEASE
from executor.core.model import Lane as HubLane
from executor.core.model import Task, TaskState, WorkerId
from executor.core.needs import Needs
from worker_agent import link, protocol
from worker_agent.pools import Place, Share

if TYPE_CHECKING:
    from agent import Agent
    from attempt import Attempt, Lane
    from world import World

#: Seconds that a clock of 1 % error makes of a lease.
WORST_LEASE = LEASE * 1.011
PATIENCE = PATIENCE_PER_LEASE * LEASE
#: Seconds, on a good network, in which a question is answered: something that was lost is sent again after two.
ANSWER = 5.0
#: In a second a message may arrive so many times, and so many more in all: for wires that lose, double and reorder.
#: In all it is no measure: on a wire that reorders, what is on the way is sent again every two seconds.
HEARD_FACTOR, HEARD_MORE = 6, 50
#: A task is sent so often at most: it fails, agents are lost, and it is asked back for the sake of others.
MOST_ATTEMPTS = 30


class Violation(AssertionError):
    """A property does not hold. ``task`` is the one concerned, if it is about one."""

    def __init__(self, rule: str, text: str, task: int | None = None) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule, self.task = rule, task


class Future:
    """What a user has: one end, once. The hub claims it when the task is sent."""

    __slots__ = ("after", "asked_at", "attempt", "claimed", "end", "most_starts", "starts", "task", "worker")

    def __init__(self, task: Task, after: Sequence[Condition] = ()) -> None:
        self.task, self.after = task, after
        self.end = ""  # "done", "failed", "cancelled"
        self.claimed = False
        #: when the first of the cancels was asked for that wait for their answer
        self.asked_at: float | None = None
        self.attempt = 0
        self.worker: WorkerId | None = None
        self.starts = 0
        #: of a task that is to run at most once and again only after it failed
        self.most_starts = 1 + task.retries.exit + task.retries.timeout if task.crash_limit == 0 else 10**9


class Judge:
    """All futures and all that runs."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.futures: dict[int, Future] = {}
        #: futures that have not ended, and those whose cancel waits for an answer
        self.open = 0
        self.asked: set[int] = set()
        #: the attempts of each task that run
        self.running: dict[int, list[Attempt]] = {}
        self._started: set[tuple[int, int]] = set()
        self._heard: Counter[tuple[link.Link, int]] = Counter()
        #: of how many messages each side knows that they were sent to it
        self._known: Counter[link.Link] = Counter()
        #: the most important task that waits for room, and since when it is that
        self._first: Task | None = None
        self._first_since = 0.0

    # --- agents -------------------------------------------------------------------------------------------------------

    def started(self, attempt: Attempt) -> None:
        """S3, S4, S5, S9, S11."""
        task, agent = attempt.task, attempt.agent
        self.world.tell(agent.name, f"starts attempt {attempt.number}", task)
        if (task, attempt.number) in self._started:
            raise Violation("S4", f"attempt {attempt.number} starts twice", task)
        if attempt.missing:
            raise Violation("S4", f"attempt {attempt.number} starts without its payload", task)
        self._started.add((task, attempt.number))
        others = self.running.setdefault(task, [])
        for other in others:
            if other.agent.stopped or other.excused or other.agent.dazed or agent.dazed:
                self.world.seen["overlap with an agent that was stopped"] += 1
            else:
                text = f"attempt {attempt.number} starts while {other.number} runs on {other.agent.name}"
                raise Violation("S3", text, task)
        others.append(attempt)
        future = self.futures[task]
        future.starts += 1
        if future.starts > future.most_starts:
            raise Violation("S9", f"crash_limit=0, retries={future.task.retries}: starts once more", task)
        self._check_place(attempt, future.task)
        for condition in future.after:
            if not self._is_met(condition):
                raise Violation("S11", f"starts, and {condition.task} was to be {condition.kind}", task)

    def ended(self, attempt: Attempt) -> None:
        """It does not run any more, which may be known."""
        running = self.running[attempt.task]
        if attempt in running:
            running.remove(attempt)

    # --- places -------------------------------------------------------------------------------------------------------

    def _check_place(self, attempt: Attempt, task: Task) -> None:
        """S5: nobody else has it, and it is what the task needs."""
        agent, place = attempt.agent, attempt.place
        assert place is not None
        whole = agent.node.sizes
        for part, amount in parts(place.shares):
            agent.used[part] += amount
            if agent.used[part] > whole.get(part, 0):
                raise Violation("S5", f"{agent.name}: {agent.used[part]} of {' '.join(part)} are in use", task.id)
        if not any(covers(place.shares, needs) for needs in task.variants):
            raise Violation("S5", f"{agent.name} starts it with {place.shares}, and it needs {task.variants}", task.id)

    def left(self, attempt: Attempt) -> None:
        """Its process is not there any more."""
        assert attempt.place is not None
        for part, amount in parts(attempt.place.shares):
            attempt.agent.used[part] -= amount

    def check_given(self, agent: Agent, lane: Lane, places: Sequence[Place]) -> None:
        """S5: the hub gives an agent places that no other lane has which it has not closed."""
        had = [place for each in agent.lanes.values() if not each.closing for place in each.places._all.values()]
        if {place.number for place in places} & set(lane.places._all):
            raise Violation("S5", f"{agent.name} is given places of lane {lane.number} that it has")
        if trouble := excess([share for place in [*had, *places] for share in place.shares], agent.node.sizes):
            raise Violation("S5", f"{agent.name} is given {trouble}")

    def check_freed(self, agent: Agent, lane: Lane, numbers: Sequence[int]) -> None:
        """S5: an agent gives back what nothing runs at."""
        for number in numbers:
            if (there := lane.at.get(number)) is not None:
                raise Violation("S5", f"{agent.name} gives place {number} back, where something is", there.task)

    def check_ledger(self, agent: Agent) -> None:
        """S5: all lanes of an agent are closed."""
        if any(agent.ledger._used.values()):
            raise Violation("S5", f"{agent.name} has no lanes, and in its ledger {agent.ledger._used} are in use")

    def note_first(self) -> None:
        """Who is the first in the line."""
        if not (self.world.calm and len(self.world.demands.priorities) > 1):
            return
        ready = (task for task in self.world.hub.core.tasks.values() if task.state is TaskState.READY)
        first = min(ready, key=lambda task: (-task.priority, task.id), default=None)
        if first is not self._first:
            self._first, self._first_since = first, self.world.now

    def check_priority(self, lane: HubLane, task: Task) -> None:
        """S6, S12: a task is sent to a lane in whose places the first one would have room."""
        if task.attempt > MOST_ATTEMPTS:
            raise Violation("S6", f"is sent to and fro, for the {task.attempt}th time", task.id)
        first, users = self._first, self.world.users
        if first is None or first.state is not TaskState.READY or task.priority >= first.priority:
            return
        waited = self.world.now - self._first_since
        if waited < users.longest + users.longest_leave + reservations.PATIENCE + moments.LOOK_AGAIN + ANSWER:
            return
        if any(covers(shares, needs) for needs in first.variants for shares in lane.places.values()):
            text = f"waits for {waited:.3f} s, and {task.id} is sent, with priority {task.priority}"
            raise Violation("S12", text, first.id)

    # --- leases -------------------------------------------------------------------------------------------------------

    def check_lease(self, agent: Agent) -> None:
        """S8."""
        now = self.world.now
        if agent.warned is not None and now > agent.warned + 1.0:
            raise Violation("S8", f"{agent.name} goes on {now - agent.warned:.3f} s after the hub has ended its epoch")
        if not agent.running or agent.launch != "invited":
            return
        over = now - agent.contact - WORST_LEASE - agent.node.kill_time - 0.01
        for attempt in agent.running if over > 0 and not agent.dazed else ():
            if not attempt.excused:
                raise Violation("S8", f"{agent.name} runs a task {over:.3f} s after its lease", attempt.task)

    def expect_fence(self, agent: Agent) -> None:
        """The hub has heard it under an epoch that is over; on a good network it will know in a moment."""
        if self.world.calm and agent.warned is None and agent.alive and not agent.dying:
            agent.warned = self.world.now

    # --- conversations ------------------------------------------------------------------------------------------------

    def check_link(self, side: link.Link, whose: str) -> None:
        """S6: credit, and bounds of the queues."""
        unacked = side._unacked
        if len(unacked) > 1 and side._unacked_bytes - len(unacked[-1]) >= link.WINDOW:
            raise Violation("S6", f"{whose}: {side._unacked_bytes} bytes on the way, the window has {link.WINDOW}")
        if len(unacked) + len(side._waiting) > 50 + 10 * len(self.futures):
            raise Violation("S6", f"{whose}: {len(unacked) + len(side._waiting)} messages wait")

    def hear(self, side: link.Link, frame: protocol.Orders | protocol.Reports) -> None:
        """S6: a frame has arrived with messages, old and new."""
        if frame.messages:
            self._heard[side, int(self.world.now)] += len(frame.messages)
            self._known[side] = max(self._known[side], frame.first + len(frame.messages) - 1)

    def see_reports(self, reports: list[Any]) -> None:
        """Count what comes in which state of its task."""
        tasks = self.world.hub.core.tasks
        for report in reports:
            number = getattr(report, "task", None)
            if number is None:
                self.world.seen[type(report).__name__, "any"] += 1
            else:
                task = tasks.get(number)
                state = "gone" if task is None else task.state.value if task.attempt == report.attempt else "later"
                self.world.seen[type(report).__name__, state] += 1

    # --- futures ------------------------------------------------------------------------------------------------------

    def resolve(self, number: int, outcome: Any) -> None:
        """S1, S2, S7, S11."""
        future = self.futures[number]
        self.world.tell("hub", f"resolves: {outcome!r:.60}", number)
        finished = type(outcome) is protocol.Finished
        if finished and outcome.attempt != future.attempt:
            text = f"attempt {outcome.attempt} completes a future whose current one is {future.attempt}"
            raise Violation("S2", text, number)
        if future.end == "cancelled" and not (finished and outcome.body):
            return  # a task that was cancelled before it was sent, or whose kill made it up
        if future.end:
            raise Violation("S7" if future.end == "cancelled" else "S1", f"was {future.end}, and ends again", number)
        if finished and outcome.body:
            self._check_owner(future, outcome)
        if type(outcome) is effects.Unmet:
            self.world.seen["given up for another"] += 1
            if not any(self._is_missed(condition) for condition in future.after):
                raise Violation("S11", "is given up, though all that it waits for may still end as they should", number)
        good = finished and outcome.end in (protocol.VALUE, protocol.COMPLETED)
        self.finish(future, "done" if good else "failed")

    def _is_met(self, condition: Condition) -> bool:
        end = self.futures[condition.task].end
        return bool(end) and (condition.kind == AFTER_ANY or (end == "done") == (condition.kind == AFTER_OK))

    def _is_missed(self, condition: Condition) -> bool:
        return bool(self.futures[condition.task].end) and not self._is_met(condition)

    def _check_owner(self, future: Future, outcome: protocol.Finished) -> None:
        member = self.world.hub.workers.get(future.worker) if future.worker is not None else None
        if member is None or member.hello.name != outcome.body.decode().rstrip():
            raise Violation("S2", f"completed by {outcome.body!r}, which has no such attempt", future.task.id)

    def finish(self, future: Future, end: str) -> None:
        """It has ended."""
        future.end = end
        self.open -= 1

    def ask(self, future: Future) -> None:
        """A cancel waits for its answer."""
        self.asked.add(future.task.id)
        if future.asked_at is None:
            future.asked_at = self.world.now

    def answer(self, number: int, cancelled: bool) -> None:
        """To all that wait."""
        future = self.futures[number]
        self.world.tell("hub", f"answers a cancel: {cancelled}", number)
        self.answered(number)
        if cancelled and future.end != "cancelled":
            if future.end:
                raise Violation("S1", f"was {future.end}, and is cancelled", number)
            self.finish(future, "cancelled")

    def answered(self, number: int) -> None:
        """S10."""
        future = self.futures[number]
        since, future.asked_at = future.asked_at, None
        self.asked.discard(number)
        calm = self.world.calm and not self.world.fault("suspension")
        if calm and since is not None and self.world.now > since + ANSWER:
            raise Violation("S10", f"a cancel was answered after {self.world.now - since:.3f} s", number)

    def answer_all(self) -> None:
        """The hub has ended, and nobody waits any longer."""
        for number in self.asked:
            self.futures[number].asked_at = None
        self.asked.clear()

    # --- the end ------------------------------------------------------------------------------------------------------

    def quiet(self) -> bool:
        """Whether nothing will happen any more that is worth waiting for."""
        over = self.world.hub.over
        if not over and (self.open or self.asked or self.world.hub.closing):
            return False
        if any(self.running.values()):
            return False
        if not over and self._owed():
            return False
        if over:
            return not any(node.agent is not None and node.agent.alive for node in self.world.nodes)
        return not self._unregistered()

    def _unregistered(self) -> list[int]:
        """The nodes whose agents are not registered; a hub that is broken starts none."""
        members, missing = self.world.hub.members, []
        for node in self.world.nodes:
            agent = node.agent
            if agent is None or not agent.alive:
                if not (node.local and self.world.hub.broken):
                    missing.append(node.number)
            else:
                member = members.named(agent.name)
                if member is None or member.epoch != agent.session.epoch:
                    missing.append(node.number)
        return missing

    def _owed(self) -> int:
        """Places that were asked back and not given back, of all agents."""
        core = self.world.hub.core
        lanes = [lane for worker in core.workers.values() for lane in worker.lanes.values()]
        return sum(len(lane.places) - lane.width for lane in lanes)

    def check_end(self) -> None:
        """L1 to L4."""
        hub = self.world.hub
        for task, running in self.running.items():
            if running:
                raise Violation("L3", f"attempt {running[0].number} still runs on {running[0].agent.name}", task)
        if hub.over:
            for node in self.world.nodes:
                if node.agent is not None and node.agent.alive:
                    raise Violation("L3", f"{node.agent.name} is still there, without a hub")
        elif missing := self._unregistered():
            raise Violation("L2", f"no agent of node {missing[0]} is registered")
        if not self.world.client_has_died:
            self._check_futures()
        self._check_storms()
        self._check_books()

    def _check_futures(self) -> None:
        for future in self.futures.values():
            if not future.end or future.asked_at is not None:
                what = "its future is pending" if not future.end else "a cancel was never answered"
                raise Violation("L1", f"{what}; it is {future.task.state.value}", future.task.id)
        if self.world.hub.closing and not self.world.hub.over:
            raise Violation("L1", "the hub does not end")
        if self.world.hub.core.tasks:
            tasks = self.world.hub.core.tasks
            raise Violation("L1", f"{len(tasks)} tasks are left", next(iter(tasks)))
        ends = Counter(future.end for future in self.futures.values())
        if sum(ends.values()) != len(self.futures) or self.open:
            raise Violation("L1", f"{len(self.futures)} tasks, but {dict(ends)}")
        self.world.seen.update({"task " + end: number for end, number in ends.items()})

    def _check_books(self) -> None:
        if self.world.hub.over:
            return
        check_books(self.world.hub.core)
        if self._owed():
            raise Violation("L4", f"{self._owed()} places are asked back, and never given back")

    def _check_storms(self) -> None:
        for (side, second), heard in self._heard.items():
            if heard > HEARD_FACTOR * self._known[side] + HEARD_MORE:
                what = f"{heard} messages came in second {second}; in all {self._known[side]} different ones were sent"
                raise Violation("S6", what)


def covers(shares: Sequence[Share], needs: Needs) -> bool:
    """Whether who has these shares has what is needed, by one way to run a task."""
    left = list(shares)
    for need in needs.needs:
        enough = (each for each in left if each.name.startswith(need.name) and each.amount >= (need.amount or 1))
        found = next(enough, None)
        if found is None:
            return False
        left.remove(found)
    return True
