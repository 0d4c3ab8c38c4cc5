"""The one background thread: socket, clock, core. It performs what the core wants done and decides nothing.

    any thread --inbox--> Hub._step --> core.Scheduler --effects--> Hub._perform --frames--> agents
    agents    --frames--> Hub._step --> core.Scheduler --effects--> Hub._perform --news----> Delivery --> futures

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
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from executor import local
from executor.agents import STOP_PATIENCE, Agents, Gone, Invitation, Joined, Reported, Worker, WorkerInfo
from executor.calls import Request
from executor.core import effects
from executor.core.model import Task, WorkerId
from executor.core.scheduler import Scheduler
from executor.delivery import CANCELLED, Delivery, settle_at_once
from executor.errors import AgentFailed, ExecutorTerminated, InitializerFailed
from executor.functions import Function, Functions
from executor.outcome import discard
from executor.payloads import Payloads
from executor.transfers import Transfers, check_error, check_outcome
from worker_agent import bodies, protocol

log = logging.getLogger("executor")

#: Agents that may end before they have said hello, one after the other, until the executor gives up.
LAUNCHES_ALLOWED = 3
#: Seconds for which new tasks do not wake the hub after it took some that must wait in any case.
DOZE = 0.001
#: Functions that are kept although no task needs them.
FUNCTIONS_KEPT = 1000


class Hub:
    """Everything behind an executor. Public methods may be called from any thread."""

    def __init__(self, slots: Sequence[int], kill_grace: float, lease: float) -> None:
        """``slots``: for each agent to be started here, how many tasks it runs at a time."""
        self.session = secrets.token_hex(16)
        self.directories = local.SessionDirectories()
        self.payloads = Payloads(self.directories.stores)
        self.functions = Functions(self.payloads)
        self.environments: dict[int, protocol.Prepare] = {}
        self.delivery = Delivery("hpc-executor")
        #: why no more tasks are taken, if so
        self.broken: BaseException | None = None
        self._slots = slots
        self._kill_grace = kill_grace
        self._core = Scheduler()
        self._inbox: deque[Task | Callable[[], None]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wake_lock = threading.Lock()
        self._sleeping = False
        #: the last step had new tasks: more may follow
        self._took_tasks = False
        self._closing = False
        self._ended = threading.Event()
        self._gone = threading.Event()
        #: for the delivery threads, with the end of this step
        self._news: list[tuple[Request, Any]] = []
        #: tasks that were taken from the inbox and not yet given to the core
        self._batch: list[Task] = []
        #: all that were taken from the inbox and have no outcome yet: what the core says of one may get lost with us
        self._unsettled: dict[int, Task] = {}
        #: somebody presses Ctrl-C again: no patience with agents
        self._hurry = False
        #: what agents would say of tasks that they were never told of
        self._unsaid: list[tuple[WorkerId, protocol.Report]] = []
        #: tasks whose payloads are sent in pieces, and where to
        self._transfers: dict[int, Transfers] = {}
        self._failed_launches = 0
        self._answers: dict[int, list[queue.SimpleQueue[bool]]] = {}
        self._epoll = select.epoll()
        self._agents = Agents(self.session, self.directories, self._epoll, lease)
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

    def submit(self, task: Task) -> None:
        """A new task."""
        self._inbox.append(task)
        if self._sleeping:
            self._wake()

    def _post(self, action: Callable[[], None]) -> None:
        self._inbox.append(action)
        self._wake()

    def _wake(self) -> None:
        with self._wake_lock:  # once closed, its number may be that of anything
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def withdraw(self, task_id: int) -> None:
        """A task was cancelled before it was sent."""
        self._post(lambda: self._perform(self._core.cancel(task_id)))

    def recall(self, task_id: int) -> bool:
        """Fetch a task back that was sent; whether it will never run. Waits for the agent's answer."""
        answer: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._post(lambda: self._ask(task_id, answer))
        while not self._ended.is_set():
            try:
                return answer.get(timeout=1.0)
            except queue.Empty:
                continue  # the agent is slow, or this hub has ended without an answer
        return False

    def kill(self, task_id: int, number: int, grace: float | None) -> None:
        """End a task."""
        patience = self._kill_grace if grace is None else grace
        self._post(lambda: self._perform(self._core.kill(task_id, number, patience)))

    def close(self) -> None:
        """End when all tasks have ended."""
        self._closing = True
        self._wake()

    @property
    def closing(self) -> bool:
        """Whether it is to end."""
        return self._closing

    def cancel_pending(self) -> None:
        """Cancel every task that has not started."""
        self._post(self._cancel_pending)

    def terminate(self, number: int, grace: float) -> None:
        """End all tasks and the agents; SIGKILL without grace also if they are being ended already."""
        self._hurry = self._hurry or grace == 0.0
        self._post(lambda: self._terminate(number, grace))

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
        answer: queue.SimpleQueue[Invitation | Exception] = queue.SimpleQueue()

        def invite() -> None:
            try:
                answer.put(self._agents.invite(count, seconds, host, port, imports))
            except Exception as error:
                answer.put(error)

        self._post(invite)
        while not self._ended.is_set():
            try:
                given = answer.get(timeout=1.0)
            except queue.Empty:
                continue  # the hub is busy, or has ended without an answer
            if isinstance(given, Exception):
                raise given
            return given
        raise RuntimeError("the executor has ended")

    def revoke(self, launch: str) -> None:
        """Nobody joins by this invitation any more."""
        self._post(lambda: self._agents.revoke(launch))

    def workers(self) -> list[WorkerInfo]:
        """The agents that have joined."""
        return [
            WorkerInfo(worker.member.hello.host, worker.member.hello.pid, worker.slots, worker.launch is not None)
            for worker in self._agents
            if worker.member is not None
        ]

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
        self._agents.open(self._slots)
        self._epoll.register(self._wake_fd, select.EPOLLIN)

    def _finished(self) -> bool:
        return self._closing and not self._inbox and not self._core.tasks

    def _step(self) -> None:
        self._wait(self.delivery.look_after())
        self._take_inbox()
        self._receive()
        self._agents.flush(time.monotonic())
        self._hand_over_news()

    def _wait(self, patience: float | None) -> None:
        dozing = self._took_tasks and self._core.has_backlog
        self._took_tasks = False
        self._sleeping = not dozing
        if self._finished() or self._agents.has_mail() or (self._inbox and not dozing):
            patience = 0.0
        elif dozing:
            patience = min(patience or DOZE, DOZE)
        else:
            due = self._agents.due()
            if due is not None:
                patience = max(0.0, min(due - time.monotonic(), patience or due))
        ready = self._epoll.poll(patience)
        self._sleeping = False
        for fd, _ in ready:
            if fd == self._wake_fd:
                os.eventfd_read(fd)
            else:
                self._agents.on_ready(fd)

    def _take_inbox(self) -> None:
        tasks = self._batch
        for _ in range(len(self._inbox)):
            item = self._inbox.popleft()
            if isinstance(item, Task):
                self._unsettled[item.id] = item
                self._count_function(item, 1)
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
                self._settle(task, self.broken)
        else:
            self._perform(self._core.submit(tasks))
        tasks.clear()

    # --- the wire -----------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        for event in self._agents.receive(time.monotonic()):
            if isinstance(event, Reported):
                self._take_reports(event.worker, event.reports)
            elif isinstance(event, Joined):
                self._failed_launches = 0
                self._take_in(event.worker)
                self._perform(self._core.joined(event.worker.id, event.worker.slots))
            else:
                self._on_agent_end(event)

    def _take_in(self, worker: Worker) -> None:
        """An agent that does not see our files gets them in pieces."""
        if worker.member is None or worker.member.hello.shares:
            return

        def fail(finished: protocol.Finished) -> None:  # in the midst of sending: later
            self._inbox.append(lambda: self._perform(self._core.receive(worker.id, [finished])))

        worker.transfers = Transfers(worker.member.link, self.directories.stores, fail)

    def _take_reports(self, worker: Worker, reports: list[protocol.Report]) -> None:
        if worker.transfers is not None:
            reports = worker.transfers.take_reports(reports)
        reports = [report for report in reports if self._listens(worker, report)]
        self._perform(self._core.receive(worker.id, reports))

    def _listens(self, worker: Worker, report: protocol.Report) -> bool:
        """Whether the report is for the core; what is for the log, or for us, is seen to."""
        if isinstance(report, protocol.Finished):
            if report.body[:1] in bodies.WITH_FILES:
                check_outcome(report, self.directories.stores)
        elif isinstance(report, protocol.Unprepared):
            return self._counts(worker, report)
        elif isinstance(report, protocol.Warn):
            self._agents.warn(worker, report.text)
        elif isinstance(report, protocol.Leaving):
            self._agents.warn(worker, f"the agent is about to leave: {report.reason}")
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

    def _hand_over_news(self) -> None:
        if self._news:
            self.delivery.put(self._news)
            self._news = []

    # --- effects ------------------------------------------------------------------------------------------------------

    def _perform(self, wanted: list[effects.Effect]) -> None:
        while wanted:
            for effect in wanted:
                self._performers[type(effect)](self, effect)
            wanted = self._report_unsaid()

    def _report_unsaid(self) -> list[effects.Effect]:
        """Tasks that were cancelled before they were sent: they never reach the agent, so its answer is known."""
        unsaid, self._unsaid = self._unsaid, []
        return [effect for worker, report in unsaid for effect in self._core.receive(worker, [report])]

    def _on_start(self, effect: effects.Start) -> None:
        worker, task = self._agents[effect.worker], effect.task
        request: Request = task.body
        if not request.future.claim(task.attempt, worker.host):
            self._unsaid.append((effect.worker, protocol.Finished(task.id, task.attempt, protocol.KILLED)))
            return
        function = request.function
        if function is not None and function.id not in worker.functions:
            worker.functions.add(function.id)
            worker.send(protocol.Define(function.id, function.body))
        run = protocol.Run(effect.lane, task.id, task.attempt, request.order_body(), request.settings)
        if worker.transfers is not None and (payloads := request.payloads()):
            self._transfers[task.id] = worker.transfers
            worker.transfers.send(run, payloads)
        else:
            worker.send(run)

    def _on_open(self, effect: effects.OpenLane) -> None:
        worker = self._agents[effect.worker]
        if effect.environment not in worker.environments:
            worker.environments.add(effect.environment)
            worker.send(self.environments[effect.environment])
        worker.send(protocol.Open(effect.lane, effect.environment, effect.width))

    def _on_resize(self, effect: effects.ResizeLane) -> None:
        self._agents[effect.worker].send(protocol.Resize(effect.lane, effect.width))

    def _on_close(self, effect: effects.CloseLane) -> None:
        self._agents[effect.worker].send(protocol.Close(effect.lane))

    def _withdraw(self, worker: WorkerId, task: Task, report: protocol.Report) -> bool:
        """Whether the task's order waits for its payloads; it does no more, and ``report`` is the agent's answer."""
        transfers = self._transfers.get(task.id)
        if transfers is None or not transfers.withdraw(task.id):
            return False
        self._unsaid.append((worker, report))
        return True

    def _on_recall(self, effect: effects.RecallTask) -> None:
        task = effect.task
        if self._withdraw(effect.worker, task, protocol.Recalled(task.id, task.attempt, given_back=True)):
            return
        self._agents[effect.worker].send(protocol.Recall(effect.task.id, effect.task.attempt))

    def _on_kill(self, effect: effects.KillTask) -> None:
        task = effect.task
        if self._withdraw(effect.worker, task, protocol.Finished(task.id, task.attempt, protocol.KILLED)):
            return
        order = protocol.Kill(effect.task.id, effect.task.attempt, effect.signal, effect.grace)
        self._agents[effect.worker].send(order)

    def _on_tell(self, effect: effects.Tell) -> None:
        effect.task.body.told = True
        self._news.append((effect.task.body, effect.news))

    def _on_resolve(self, effect: effects.Resolve) -> None:
        self._settle(effect.task, effect.outcome)

    def _on_requeue(self, effect: effects.Requeue) -> None:
        self._end_transfer(effect.task)
        effect.task.body.future.unclaim()

    def _on_discard(self, effect: effects.Discard) -> None:
        discard(effect.report)

    def _on_answer(self, effect: effects.Answer) -> None:
        for answer in self._answers.pop(effect.task.id, []):
            answer.put(effect.cancelled)
        if effect.cancelled:
            self._release(effect.task)

    _performers: dict[type[Any], Callable[[Hub, Any], None]] = {
        effects.Start: _on_start,
        effects.OpenLane: _on_open,
        effects.ResizeLane: _on_resize,
        effects.CloseLane: _on_close,
        effects.RecallTask: _on_recall,
        effects.KillTask: _on_kill,
        effects.Tell: _on_tell,
        effects.Resolve: _on_resolve,
        effects.Answer: _on_answer,
        effects.Requeue: _on_requeue,
        effects.Discard: _on_discard,
    }

    def _settle(self, task: Task, outcome: object) -> None:
        if type(outcome) is not protocol.Finished or not settle_at_once(task.body, outcome):
            self._news.append((task.body, outcome))
        self._release(task)

    def _end_transfer(self, task: Task) -> None:
        if self._transfers and (transfers := self._transfers.pop(task.id, None)) is not None:
            transfers.done(task.id)

    def _release(self, task: Task) -> None:
        """The task needs its arguments and its function no longer."""
        self._end_transfer(task)
        self._unsettled.pop(task.id, None)
        self._count_function(task, -1)
        request: Request = task.body
        if request.buffers or type(request.args) is protocol.Stored:
            for stored in request.stored():
                self.payloads.release(stored)
        task.body = None

    def _count_function(self, task: Task, change: int) -> None:
        function: Function | None = task.body.function
        if function is not None:
            function.users += change
            if function.users == 0:
                self._forget_functions(self.functions.drop_idle(FUNCTIONS_KEPT))

    def _forget_functions(self, numbers: list[int]) -> None:
        for worker in self._agents:
            known = [number for number in numbers if number in worker.functions]
            if known:
                worker.functions.difference_update(known)
                worker.send(protocol.Forget(known))

    # --- wishes -------------------------------------------------------------------------------------------------------

    def _ask(self, task_id: int, answer: queue.SimpleQueue[bool]) -> None:
        if task_id not in self._core.tasks:
            answer.put(False)
            return
        self._answers.setdefault(task_id, []).append(answer)
        self._perform(self._core.cancel(task_id))

    def _cancel_pending(self) -> None:
        for task in list(self._core.tasks.values()):
            request: Request = task.body
            if request.future.mark_cancelled():
                self._news.append((request, CANCELLED))
                self._perform(self._core.cancel(task.id))

    def _terminate(self, number: int, grace: float) -> None:
        self.broken = self.broken or ExecutorTerminated("terminate_workers() or kill_workers() has ended the executor")
        for worker in self._agents:
            worker.send(protocol.Stop(number, grace))
        self._closing = True
        for task in list(self._core.tasks.values()):
            text = f"terminate_workers() or kill_workers() has ended {task.body.future!r}"
            self._settle(task, ExecutorTerminated(text))
        self._core = Scheduler()

    # --- agents -------------------------------------------------------------------------------------------------------

    def _on_agent_end(self, gone: Gone) -> None:
        if gone.worker.launch is None:
            log.log(logging.DEBUG if self._finished() else logging.WARNING, "%s", gone.reason)
            self._perform(self._core.lost(gone.worker.id, gone.reason))
            return
        if gone.worker.member is None:
            self._failed_launches += 1
        if self._failed_launches >= LAUNCHES_ALLOWED:
            self._fail(AgentFailed(f"no agent could be started: {gone.reason}. Its log:\n{gone.log}"), None)
            return
        if not self._closing or self._core.tasks:
            log.warning("%s; another one is started. Its log: %s", gone.reason, gone.log or "(empty)")
            self._agents.replace(gone.worker.slots)
        self._perform(self._core.lost(gone.worker.id, gone.reason))

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException, cause: BaseException | None) -> None:
        """The executor is broken: every future gets an exception of its own, and no more tasks are taken."""
        error.__cause__ = error.__cause__ or cause
        self.broken = error
        self._take_waiting_tasks()
        for task in list(self._unsettled.values()):
            own = type(error)(*error.args)
            own.__cause__ = error.__cause__
            self._settle(task, own)
        self._core = Scheduler()
        for answers in self._answers.values():
            for answer in answers:
                answer.put(False)
        self._answers.clear()

    def _take_waiting_tasks(self) -> None:
        for item in [*self._batch, *self._inbox]:
            if isinstance(item, Task):
                self._unsettled[item.id] = item
        self._batch.clear()
        self._inbox.clear()

    def _stop_agents(self) -> None:
        waited_for = [worker for worker in self._agents if worker.member is not None]
        for worker in waited_for:
            worker.send(protocol.Stop(signal.SIGTERM, self._kill_grace))
        deadline = time.monotonic() + self._kill_grace + STOP_PATIENCE
        while waited_for and not self._hurry and (left := deadline - time.monotonic()) > 0:
            self._agents.flush(time.monotonic())
            due = self._agents.due()
            patience = min(left, 3600.0) if due is None else min(left, max(0.0, due - time.monotonic()))
            if any(fd == self._wake_fd for fd, _ in self._epoll.poll(patience)):
                os.eventfd_read(self._wake_fd)
            self._receive()  # last words
            joined = set(self._agents)
            waited_for = [each for each in waited_for if each in joined and not (each.launch and each.launch.wait(0))]
        self._agents.kill()

    def _close(self) -> None:
        with contextlib.ExitStack() as steps:  # from the last to the first; each is taken whatever comes of the others
            steps.callback(self._give_back)
            steps.callback(self._agents.close)
            steps.callback(self.delivery.close)
            steps.callback(self._hand_over_news)
            steps.callback(self._ended.set)
            self._closing = True
            self.broken = self.broken or AgentFailed("the executor has ended")
            self._fail_leftovers()

    def _give_back(self) -> None:
        """What was made before the thread started."""
        self._epoll.close()
        with self._wake_lock:
            os.close(self._wake_fd)
            self._wake_fd = -1
        self.directories.remove()

    def _fail_leftovers(self) -> None:
        if self._unsettled or self._inbox:
            self._fail(AgentFailed("the executor has ended"), None)
