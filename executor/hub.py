"""The one background thread: socket, clock, core. It performs what the core wants done and decides nothing.

    any thread --Inbox--> Hub._step --> core.Scheduler --effects--> Orders --frames--> agents
    agents    --frames--> Hub._step --> core.Scheduler --effects--> Unsettled --news--> Delivery --> futures

The user's code never runs here. If this thread fails, every future is told before it ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from executor import local
from executor.agents import STOP_PATIENCE, Agents
from executor.awaited import Awaited
from executor.calls import Request
from executor.clusters import BatchCluster
from executor.core import effects
from executor.core.explain import explain
from executor.core.model import Task, WorkerId
from executor.core.offers import Offer, find_impossible
from executor.core.scheduler import Scheduler
from executor.counts import Counts
from executor.delivery import CANCELLED, Delivery
from executor.errands import Errands
from executor.errors import AgentFailed, ExecutorTerminated, InitializerFailed
from executor.events import Event, Retried
from executor.explanation import Explanation, make_explanation
from executor.functions import Functions
from executor.future import TaskFuture
from executor.inbox import Inbox
from executor.invitations import Invitation
from executor.orders import Orders
from executor.outcome import refusal
from executor.payloads import Payloads
from executor.placing import Placing
from executor.report.recorder import Recorder, Snapshot
from executor.supply import Supply
from executor.transfers import Transfers, check_error, check_outcome
from executor.unsettled import Unsettled
from executor.worker import Gone, Joined, Reported, Worker, WorkerInfo
from worker_agent import bodies, protocol
from worker_agent.pools import UNIT, Pool

log = logging.getLogger("executor")

#: Agents that may end before they have said hello, one after the other, until the executor gives up.
LAUNCHES_ALLOWED = 3
#: Seconds for which new tasks do not wake the hub after it took some that must wait in any case.
DOZE = 0.001

_Answer = TypeVar("_Answer")


class Hub:
    """Everything behind an executor. Public methods may be called from any thread."""

    def __init__(
        self, pools: Sequence[list[Pool]], kill_grace: float, lease: float, clusters: Sequence[BatchCluster] = (),
        imports: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """``pools``: for each agent to be started here, what it has. ``imports``: what those of clusters need."""
        self.session = secrets.token_hex(16)
        self.directories = local.SessionDirectories()
        self.payloads = Payloads(self.directories.stores)
        self.functions = Functions(self.payloads)
        self.environments: dict[int, protocol.Prepare] = {}
        self.recorder = Recorder()
        self.delivery = Delivery("hpc-executor", self.recorder.settled)
        #: takes new tasks
        self.inbox = Inbox()
        #: why no more tasks are taken, if so
        self.broken: BaseException | None = None
        self._pools = pools
        self._clusters = clusters
        self._imports = list(imports)
        #: of agents by clusters, if there are any
        self._supply: Supply | None = None
        #: agents may join of which nobody knows anything
        self._has_invited = False
        self._kill_grace = kill_grace
        self._core = Scheduler()
        #: the last step had new tasks: more may follow
        self._took_tasks = False
        self._closing = False
        self._ended = threading.Event()
        self._gone = threading.Event()
        #: tasks that were taken from the inbox and not yet given to the core
        self._batch: list[Task] = []
        #: somebody presses Ctrl-C again: no patience with agents
        self._hurry = False
        self._failed_launches = 0
        #: who waits until no task is left
        self._idlers: list[queue.SimpleQueue[int]] = []
        self._epoll = select.epoll()
        self._agents = Agents(self.session, self.directories, self._epoll, lease)
        self._errands = Errands(self.inbox.post)
        self._placing = Placing(self._errands, self.directories.stores, self._hear)
        self._orders = Orders(self._agents, self.environments, self._placing)
        self._awaited = Awaited(self.payloads, self.inbox, self._on_awaited)
        self._unsettled = Unsettled(
            self._orders, self.functions, self.payloads, self.delivery, self._awaited, self.recorder
        )
        self._performers = self._orders.performers() | self._unsettled.performers()
        self._thread = threading.Thread(target=self._run, name="hpc-executor-hub", daemon=True)

    # --- any thread ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads, and with them an agent. Raises AgentFailed if there can be no threads any more."""
        try:
            self.delivery.start()
            self._thread.start()
        except RuntimeError as error:
            self.delivery.close()
            self._give_back()
            self.broken = AgentFailed(f"the executor's threads cannot be started: {error}")
            raise self.broken from error

    def withdraw(self, task_id: int) -> None:
        """A task was cancelled before it was sent."""
        self.inbox.post(lambda: self._perform(self._core.cancel(task_id, time.monotonic())))

    def recall(self, task_id: int) -> bool:
        """Fetch a task back that was sent; whether it will never run. Waits for the agent's answer."""
        answer: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.inbox.post(lambda: self._ask(task_id, answer))
        return self._wait_answer(answer) or False

    def kill(self, task_id: int, number: int, grace: float | None) -> None:
        """End a task."""
        patience = self._kill_grace if grace is None else grace
        self.inbox.post(lambda: self._perform(self._core.kill(task_id, number, patience, time.monotonic())))

    def tell(self, task_id: int, news: Event | Retried) -> None:
        """Have news delivered to a task's future. From the hub's thread only, where futures hear of their attempts."""
        self._unsettled.tell(task_id, news)

    def counts(self) -> Counts:
        """How many tasks there have been."""
        return self._call(self._count) or self._count()  # once it has ended, nothing changes any more

    def _count(self) -> Counts:
        counts = self.recorder.counts(self._core.running)
        return counts if self._supply is None else replace(counts, coming=self._supply.coming)

    def wait_idle(self) -> None:
        """Wait until no task is left, and each is counted."""
        answer: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.inbox.post(lambda: self._idlers.append(answer))
        self.recorder.wait_settled(self._wait_answer(answer) or 0)

    def close(self) -> None:
        """End when all tasks have ended."""
        self._closing = True
        self.inbox.wake()

    @property
    def closing(self) -> bool:
        """Whether it is to end."""
        return self._closing

    def cancel_pending(self) -> None:
        """Cancel every task that has not started."""
        self.inbox.post(self._cancel_pending)

    def terminate(self, number: int, grace: float) -> None:
        """End all tasks and the agents; SIGKILL without grace also if they are being ended already."""
        self._hurry = self._hurry or grace == 0.0
        self.inbox.post(lambda: self._terminate(number, grace))

    def join(self) -> None:
        """Wait until the hub and its deliveries have ended, unless called from one of their threads."""
        if threading.current_thread() is self._thread or self.delivery.is_own_thread():
            return
        if self._thread.ident is not None:
            self._gone.wait()  # a join that Ctrl-C has interrupted once may not wait when it is called again
            self._thread.join()
        self.delivery.join()

    def worker_pids(self) -> list[int]:
        """The processes of the agents' supervisors."""
        return [worker.launch.process.pid for worker in self._agents if worker.launch is not None]

    def invite(
        self, count: int, seconds: float, host: str | None, port: int | None, imports: list[str]
    ) -> Invitation:
        """Let agents join over the network. Waits for the hub; raises what it raises."""
        self._has_invited = True
        given = self._call(lambda: self._agents.invitations.invite(count, seconds, host, port, imports))
        if given is None:
            raise RuntimeError("the executor has ended")
        return given

    def _call(self, function: Callable[[], _Answer]) -> _Answer | None:
        """Have the hub's thread call a function; None if it has ended. Raises what the function raises."""
        answer: queue.SimpleQueue[tuple[_Answer | None, Exception | None]] = queue.SimpleQueue()

        def call() -> None:
            try:
                answer.put((function(), None))
            except Exception as error:
                answer.put((None, error))

        self.inbox.post(call)
        given, error = self._wait_answer(answer) or (None, None)
        if error is not None:
            raise error
        return given

    def _wait_answer(self, answer: queue.SimpleQueue[_Answer]) -> _Answer | None:
        """What is answered; None if this hub has ended without an answer."""
        while not self._ended.is_set():
            try:
                return answer.get(timeout=1.0)
            except queue.Empty:
                continue  # the hub is busy, or an agent is slow
        return None

    def revoke(self, launch: str) -> None:
        """Nobody joins by this invitation any more."""
        self.inbox.post(lambda: self._agents.invitations.revoke(launch))

    def workers(self) -> list[WorkerInfo]:
        """The agents that have joined."""
        return self._call(self._describe_all) or []

    def record(self) -> Snapshot:
        """What has run until now, all tasks that are seen to be done included."""
        return self._call(self.recorder.snapshot) or self.recorder.snapshot()

    def offers(self) -> list[Offer]:
        """What each of the agents has."""
        return self._call(lambda: self._offers(time.monotonic())) or []

    def _offers(self, now: float) -> list[Offer]:
        staying = [worker for worker in self._agents if worker.member is None or worker.id in self._core.workers]
        sizes = Counter(worker.group for worker in staying)
        return [Offer(worker.pools, sizes[worker.group], self._core.lifetime(worker.id, now)) for worker in staying]

    def explain(self, future: TaskFuture) -> Explanation:
        """Why a task does not run."""
        given = self._call(lambda: self._explain(future))
        return given or Explanation(future, "the executor has ended", {})

    def _explain(self, future: TaskFuture) -> Explanation:
        reasons = explain(self._core, future.task_id, time.monotonic())
        names = {worker.id: self._agents[worker.id].title for worker in self._agents if worker.member is not None}
        coming = {} if self._supply is None or reasons.state != "ready" else self._supply.describe(time.monotonic())
        return make_explanation(future, reasons, names, coming)

    def _describe_all(self) -> list[WorkerInfo]:
        return [self._describe(worker) for worker in self._agents if worker.member is not None]

    def _describe(self, worker: Worker) -> WorkerInfo:
        assert worker.member is not None
        hello = worker.member.hello
        known = self._core.workers.get(worker.id)
        ends = None if known is None or known.ends is None else time.time() + known.ends - time.monotonic()
        resources = {pool.name: pool.total / UNIT for pool in worker.pools}
        free = dict.fromkeys(resources, 0.0) if known is not None else {}
        if known is not None and known.lent is None:
            free = {name: known.free.amount(name) / UNIT for name in resources}
        return WorkerInfo(
            hello.host, hello.pid, worker.launch is not None, hello.python, hello.group, ends, resources, free,
            hello.sees_cwd,
        )

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._open()
            while not self._finished():
                self._step()
            self._stop_agents()
        except BaseException as error:
            log.critical("the hub failed", exc_info=True)
            self._fail(AgentFailed(f"the executor's hub failed: {type(error).__name__}: {error}"), error)
            self._agents.kill()
        finally:
            try:
                self._close()
            finally:
                self._gone.set()

    def _open(self) -> None:
        self._agents.open(self._pools)
        self._epoll.register(self.inbox.fd, select.EPOLLIN)
        if self._clusters:
            self._supply = Supply(
                self._clusters, self._agents.invitations, self._imports, self.inbox.post, self._drain,
                self.directories.stores,
            )  # fmt: skip

    def _finished(self) -> bool:
        return self._closing and not self.inbox.items and not self._core.tasks

    def _step(self) -> None:
        self._wait(self.delivery.look_after())
        self._take_inbox()
        self._receive()
        now = time.monotonic()
        if (due := self._core.due()) is not None and due <= now:
            self._perform(self._core.tick(now))
        if self._supply is not None and self._supply.due <= now:
            self._look_for_supply(self._supply, now)
        self._agents.flush(now)
        self._unsettled.hand_over_news()
        while self._idlers and not self._unsettled and not self.inbox.items:
            self._idlers.pop().put(self.recorder.to_settle)

    def _wait(self, patience: float | None) -> None:
        dozing = self._took_tasks and self._core.has_backlog
        self._took_tasks = False
        self.inbox.sleeping = not dozing
        if self._finished() or self._agents.has_mail() or (self.inbox.items and not dozing):
            patience = 0.0
        elif dozing:
            patience = min(patience or DOZE, DOZE)
        else:
            supply = None if self._supply is None else self._supply.due
            due = min(filter(None, (self._agents.due(), self._core.due(), supply)), default=None)
            if due is not None:
                patience = max(0.0, min(due - time.monotonic(), patience or due))
        ready = self._epoll.poll(patience)
        self.inbox.sleeping = False
        for fd, _ in ready:
            if fd == self.inbox.fd:
                os.eventfd_read(fd)
            else:
                self._agents.on_ready(fd)

    def _take_inbox(self) -> None:
        tasks, items = self._batch, self.inbox.items
        for _ in range(len(items)):
            item = items.popleft()
            if isinstance(item, Task):
                self._unsettled.add(item)
                tasks.append(item)
                self._took_tasks = True
            else:
                self._submit(tasks)
                item()
        self._submit(tasks)

    def _submit(self, tasks: list[Task]) -> None:
        if not tasks:
            return
        if self.broken is not None:
            for task in tasks:
                self._unsettled.settle(task, self.broken)
        else:
            free = [task for task in tasks if not task.body.waits]
            self._perform(self._core.submit(free, time.monotonic()))
            for task in tasks if len(free) < len(tasks) else ():
                self._submit_waiting(task)
        tasks.clear()

    def _submit_waiting(self, task: Task) -> None:
        if task.body is not None and task.body.waits:
            after = self._awaited.conditions(task.body, self._core.tasks)
            self._perform(self._core.submit_after(task, after, time.monotonic()))

    def _on_awaited(self, number: int, how: str, future: Any) -> None:
        """Something has ended that tasks wait for and that is no task of ours, or no more."""
        self._perform(self._core.settled(number, how, future, time.monotonic()))

    # --- the wire -----------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        for event in self._agents.receive(time.monotonic()):
            if isinstance(event, Reported):
                self._take_reports(event.worker, event.reports)
            elif isinstance(event, Joined):
                self._failed_launches = 0
                self._take_in(event.worker)
                self._on_joined(event.worker)
            else:
                self._on_agent_end(event)

    def _on_joined(self, worker: Worker) -> None:
        assert worker.member is not None
        now, hello = time.monotonic(), worker.member.hello
        ends = None if hello.remaining is None else now + hello.remaining
        self.recorder.joined(worker.id, worker.title, worker.pools, time.time())
        if not hello.sees_cwd:
            text = "the agent on %s (process %d) does not see the directory in which you are: functions start in it, "
            log.warning(text + "as do programs without inputs and outputs; give cwd=", hello.host, hello.pid)
        if self._supply is not None:
            self._supply.joined(hello.launch, worker.id, worker.pools, now)
        self._perform(self._core.joined(worker.id, worker.pools, now, ends, hello.group))

    def _take_in(self, worker: Worker) -> None:
        """An agent that does not see our files gets them in pieces."""
        if worker.member is None or worker.member.hello.shares:
            return

        def fail(finished: protocol.Finished) -> None:  # in the midst of sending: later
            self.inbox.items.append(lambda: self._perform(self._core.receive(worker.id, [finished], time.monotonic())))

        place = partial(self._placing.place, worker)
        worker.transfers = Transfers(worker.member.link, self.directories.stores, fail, self._errands, place)

    def _take_reports(self, worker: Worker, reports: list[protocol.Report]) -> None:
        if worker.transfers is not None:
            reports = worker.transfers.take_reports(reports)
        self._hear(worker, *reports)

    def _hear(self, worker: Worker, *reports: protocol.Report) -> None:
        self._perform(self._core.receive(worker.id, self._heard(worker, reports), time.monotonic()))

    def _heard(self, worker: Worker, reports: Sequence[protocol.Report]) -> list[protocol.Report]:
        """Those that are for the core."""
        return [report for report in reports if self._listens(worker, report)]

    def _listens(self, worker: Worker, report: protocol.Report) -> bool:
        """Whether the report is for the core; what is for the log, or for us, is seen to."""
        if isinstance(report, protocol.Finished):
            self.recorder.attempt(worker.id, self._core.tasks.get(report.task), report)
            if report.body[:1] in bodies.WITH_FILES:
                check_outcome(report, self.directories.stores)
        elif isinstance(report, protocol.Unprepared):
            return self._counts(worker, report)
        elif isinstance(report, protocol.Warn):
            self._agents.warn(worker, report.text)
        elif isinstance(report, protocol.Leaving):
            log.info("%s: the agent is about to leave: %s", worker.title, report.reason)
        return True

    def _counts(self, worker: Worker, report: protocol.Unprepared) -> bool:
        """Whether the worker was told of the environment that it says it cannot prepare."""
        if report.environment not in worker.environments or not check_error(report, self.directories.stores):
            return False
        if report.initializer and self._has_initializer(report.environment):
            self.broken = InitializerFailed(f"{report.text}; the executor takes no more tasks")
        return True

    def _has_initializer(self, environment: int) -> bool:
        prepared = self.environments.get(environment)
        return prepared is not None and prepared.initializer is not None

    # --- effects ------------------------------------------------------------------------------------------------------

    def _perform(self, wanted: list[effects.Effect]) -> None:
        while wanted:
            for effect in wanted:
                self._performers[type(effect)](effect)
            wanted = self._report_unsaid()

    def _report_unsaid(self) -> list[effects.Effect]:
        """Tasks that were cancelled before they were sent: they never reach the agent, so its answer is known."""
        unsaid, self._orders.unsaid = self._orders.unsaid, []
        withdrawn, self._orders.withdrawn = self._orders.withdrawn, []
        now = time.monotonic()
        wanted = [effect for worker, report in unsaid for effect in self._core.receive(worker, [report], now)]
        return wanted + [effect for task in withdrawn for effect in self._core.withdrawn(task, now)]

    # --- wishes -------------------------------------------------------------------------------------------------------

    def _ask(self, task_id: int, answer: queue.SimpleQueue[bool]) -> None:
        if task_id not in self._core.tasks:
            answer.put(False)
            return
        self._unsettled.add_answer(task_id, answer)
        self._perform(self._core.cancel(task_id, time.monotonic()))

    def _cancel_pending(self) -> None:
        for task in list(self._core.tasks.values()):
            request: Request | None = task.body
            if request is not None and request.future.mark_cancelled():  # else it has ended with what it waited for
                self._unsettled.news.append((request, CANCELLED))
                self._perform(self._core.cancel(task.id, time.monotonic()))

    def _terminate(self, number: int, grace: float) -> None:
        self.broken = self.broken or ExecutorTerminated("terminate_workers() or kill_workers() has ended the executor")
        for worker in self._agents:
            worker.send(protocol.Stop(number, grace))
        self._closing = True
        for task in list(self._core.tasks.values()):
            text = f"terminate_workers() or kill_workers() has ended {task.body.future!r}"
            self._unsettled.settle(task, ExecutorTerminated(text))
        self._core = Scheduler()
        self._placing.abandon_all()

    # --- agents -------------------------------------------------------------------------------------------------------

    def _on_agent_end(self, gone: Gone) -> None:
        last = self._heard(gone.worker, self._placing.abandon(gone.worker))
        self.recorder.left(gone.worker.id, time.time())
        if self._supply is not None:
            self._supply.left(gone.worker.id)
        if gone.worker.launch is None:
            planned = self._finished() or gone.worker.id in self._core.leaving
            log.log(logging.INFO if planned else logging.WARNING, "%s", gone.reason)
            self._perform(self._core.lost(gone.worker.id, gone.reason, time.monotonic(), last))
            return
        if gone.worker.member is None:
            self._failed_launches += 1
        if self._failed_launches >= LAUNCHES_ALLOWED:
            self._fail(AgentFailed(f"no agent could be started: {gone.reason}. Its log:\n{gone.log}"), None)
            return
        if not self._closing or self._core.tasks:
            log.warning("%s; another one is started. Its log: %s", gone.reason, gone.log or "(empty)")
            self._agents.replace(gone.worker.pools)
        self._perform(self._core.lost(gone.worker.id, gone.reason, time.monotonic(), last))

    # --- clusters -----------------------------------------------------------------------------------------------------

    def _look_for_supply(self, supply: Supply, now: float) -> None:
        """More agents where tasks wait, fewer where none do."""
        if not self._closing or self._core.tasks:
            supply.look(now, self._core.waiting, list(self._core.workers.values()))
        if all(supply.hopeless) and not self._core.workers and self._core.tasks:
            self._fail(AgentFailed(f"no agent will come: {'; '.join(supply.hopeless)}"), None)
        elif not self._has_invited:
            self._refuse_impossible(supply, now)

    def _refuse_impossible(self, supply: Supply, now: float) -> None:
        """Tasks do not wait for agents that never come."""
        offers = [*self._offers(now), *supply.offers]
        for of in self._core.waiting:
            lacking = find_impossible(of.variants, offers)
            if lacking is not None:
                explain = partial(refusal, lacking, supply.why_not(of.variants))
                self._perform(self._core.refuse(of, explain, now))

    def _drain(self, worker: WorkerId) -> None:
        """It gets nothing more: it is about to be told to leave."""
        self._perform(self._core.receive(worker, [protocol.Leaving("its allocation is given back")], time.monotonic()))

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException, cause: BaseException | None) -> None:
        """The executor is broken: every future gets an exception of its own, and no more tasks are taken."""
        error.__cause__ = error.__cause__ or cause
        self.broken = error
        for task in self.inbox.take_tasks():
            self._unsettled.add(task)
        self._batch.clear()
        self._unsettled.fail(error)
        self._core = Scheduler()

    def _stop_agents(self) -> None:
        waited_for = [worker for worker in self._agents if worker.member is not None]
        for worker in waited_for:
            worker.send(protocol.Stop(signal.SIGTERM, self._kill_grace))
        deadline = time.monotonic() + self._kill_grace + STOP_PATIENCE
        while waited_for and not self._hurry and (left := deadline - time.monotonic()) > 0:
            self._agents.flush(time.monotonic())
            due = self._agents.due()
            patience = min(left, 3600.0) if due is None else min(left, max(0.0, due - time.monotonic()))
            if any(fd == self.inbox.fd for fd, _ in self._epoll.poll(patience)):
                os.eventfd_read(self.inbox.fd)
            self._receive()  # last words
            joined = set(self._agents)
            waited_for = [each for each in waited_for if each in joined and not (each.launch and each.launch.wait(0))]
        self._agents.kill()

    def _close(self) -> None:
        with contextlib.ExitStack() as steps:  # from the last to the first; each is taken whatever comes of the others
            steps.callback(self._give_back)
            steps.callback(self._agents.close)
            if self._supply is not None:
                steps.callback(self._supply.close)
            steps.callback(self._errands.close)
            steps.callback(self.delivery.close)
            steps.callback(self._unsettled.hand_over_news)
            steps.callback(self._ended.set)
            steps.callback(self._placing.abandon_all)
            self._closing = True
            self.broken = self.broken or AgentFailed("the executor has ended")
            self._fail_leftovers()

    def _give_back(self) -> None:
        """What was made before the thread started."""
        self._epoll.close()
        self.inbox.close()
        self.directories.remove()

    def _fail_leftovers(self) -> None:
        if self._unsettled or self.inbox.items:
            self._fail(AgentFailed("the executor has ended"), None)
