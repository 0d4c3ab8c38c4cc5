"""The face: ``HPCExecutor``, a ``concurrent.futures.Executor`` in place of ``ProcessPoolExecutor``."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from executor.asynchronous import wait_result
from executor.calls import Request, pack_arguments, pack_initializer
from executor.checks import (
    SHORTEST_LEASE,
    check_agents,
    check_context,
    check_duration,
    check_initializer,
    check_map,
    check_max_tasks,
    check_modules,
    check_program_call,
    check_resources,
    check_workers,
)
from executor.cluster_settings import resolve
from executor.clusters import BatchCluster
from executor.core.members import LEASE
from executor.core.model import ONE_CPU_EACH, Task, Variants
from executor.core.offers import Offer, find_impossible
from executor.counts import Counts
from executor.errors import UnsatisfiableRequest
from executor.explanation import Explanation
from executor.files import only_for_programs
from executor.functions import Function
from executor.future import TaskFuture
from executor.hub import Hub
from executor.invitations import Invitation
from executor.jobs.job import Job
from executor.jobs.submitted import SubmittedJob
from executor.launched import Local, Ssh
from executor.mapping import chain, results_of
from executor.options import TaskOptions, make_options
from executor.program import Program
from executor.progress import ProgressBar
from executor.python_env import SAME_PYTHON, PythonEnv
from executor.report.making import make_report
from executor.report.page import render_page
from executor.report.recorder import Recorder
from executor.report.report import Report
from executor.settings import make_settings
from executor.surroundings import Surroundings
from executor.worker import WorkerInfo
from worker_agent import detection, protocol
from worker_agent.pools import UNIT

if TYPE_CHECKING:
    from rich.console import Console

if sys.platform != "linux":
    raise ImportError("HPCExecutor runs on Linux only: it stands on pidfds, sub-reapers and SEQPACKET sockets")

log = logging.getLogger("executor")

#: Where agents come from; text is the name of a cluster in the settings, or "auto".
Cluster = BatchCluster | Local | Ssh | str

#: The interpreter ends: no more tasks.
_exiting = False
_hubs: weakref.WeakSet[Hub] = weakref.WeakSet()
_executors: weakref.WeakSet[HPCExecutor] = weakref.WeakSet()


def _end_all_hubs() -> None:
    """As the standard library's pools: the end of the interpreter waits for what was submitted.

    If Ctrl-C ended the program, tasks are ended instead: the terminal's signal does not reach them.
    """
    global _exiting
    _exiting = True
    for executor in list(_executors):
        executor._open = False
    hubs = list(_hubs)
    interrupted = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)
    for hub in hubs:
        if interrupted and hub.closing:
            hub.terminate(signal.SIGKILL, 0.0)  # Ctrl-C once more, while the tasks were being ended
        elif interrupted:
            hub.terminate(signal.SIGTERM, 1.0)
        hub.close()
    for hub in hubs:
        hub.join()


# The standard library's own pools hook in here: before the interpreter joins its threads, and new ones are refused.
threading._register_atexit(_end_all_hubs)  # type: ignore[attr-defined]


def _in_forked_child() -> None:
    """The threads behind our executors are not here; the parent goes on with them."""
    _hubs.clear()
    for executor in list(_executors):
        executor._forked, executor._open = True, False


os.register_at_fork(after_in_child=_in_forked_child)


def _close_unless_forked(pid: int, hub: Hub) -> None:
    if pid == os.getpid():
        hub.close()


class _Tasks(Executor):
    """``submit`` and ``map`` with one set of options, common to the executor and its views."""

    _options: TaskOptions
    _settings: protocol.Settings | None

    def _owner(self) -> HPCExecutor:
        raise NotImplementedError  # each of the two subclasses says

    def options(self, **options: Any) -> BoundExecutor:
        """A view whose tasks have these options, over the ones that there are: ``ex.options(cpus=4).submit(fn)``.

        All options are in docs/options.md and in ``help(executor.options.make_options)``.
        Raises OptionTypeError or OptionValueError (a TypeError, a ValueError) that name the option.
        """
        return self._bound(make_options(self._options, **options))

    def _bound(self, options: TaskOptions) -> BoundExecutor:
        return BoundExecutor(self._owner(), options)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Run ``fn(*args, **kwargs)``, or a :class:`Program`, as a task; all names are the function's own.

        Returns a :class:`TaskFuture` at once. A future among the arguments, also within them, is waited for, and the
        function gets its result. An argument that cannot be pickled is the returned future's exception.

        :raises RuntimeError: after ``shutdown``, or in a fork of the process that made the executor.
        :raises BrokenProcessPool: the executor is broken: ``InitializerFailed``, ``AgentFailed``.
        :raises UnsatisfiableRequest: the task needs more of a resource than any agent has, or can have.
        """
        return self._owner()._submit(self, fn, args, kwargs)

    async def submit_async(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Submit from asyncio and await the result: ``await ex.submit_async(fn, *args)``.

        Raises what the task raises, and what :meth:`submit` does.
        If the awaiting asyncio task is cancelled, so is this task, which is killed if it runs. Nothing blocks the loop;
        only the arguments are pickled there, as by :meth:`submit`.
        """
        return await wait_result(self.submit(fn, *args, **kwargs))

    def submit_job(self, job: Job, /) -> SubmittedJob:
        """Run the tasks of a job; their options are laid over those of this executor or view.

        Returns at once. The same job may be submitted again: then all of it runs anew.
        Raises JobError if its tasks cannot be run in any order, UnsatisfiableRequest if one needs what no agent has,
        TypeError for what is no Job; then nothing of it runs.
        """
        if not isinstance(job, Job):
            raise TypeError(f"job={job!r}: expected a Job; Job.from_file() makes one of a job file")
        return SubmittedJob(self, job, self._owner()._job_numbers)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """``map(fn, *iterables)`` by tasks; the results come in order.

        :param fn: a function; a :class:`Program` has no arguments, and so nothing to be mapped over.
        :param timeout: seconds from now until ``TimeoutError``; None: no limit.
        :param chunksize: how many calls make one task (and share one interpreter); default: 1.
        :param buffersize: at most so many results are pending, and the iterables are read lazily, as in Python 3.14;
            None: the iterables are read at once.
        :raises ValueError, TypeError: a chunksize or buffersize below 1, or a buffersize that is no int.
        """
        check_map(chunksize, buffersize)
        arguments = zip(*iterables, strict=False)
        if chunksize > 1:
            chunks: Iterator[Any] = iter(lambda: list(itertools.islice(arguments, chunksize)), [])
            submit = _submitter(weakref.ref(self), fn, chunk=True)
            return chain(results_of(submit, chunks, timeout, buffersize))
        return results_of(_submitter(weakref.ref(self), fn, chunk=False), arguments, timeout, buffersize)


class HPCExecutor(_Tasks):
    """Runs functions in interpreters of their own, and programs; a drop-in for ``ProcessPoolExecutor``.

    :param max_workers: how many tasks with one CPU run at a time; None: as many as this process may really use CPUs.
    :param mp_context: a multiprocessing context; "spawn" executes each interpreter, any other (and None) forks it
        from a template interpreter.
    :param initializer: called as ``initializer(*initargs)`` once in each interpreter. If it raises, the executor is
        broken: :class:`~executor.errors.InitializerFailed`.
    :param max_tasks_per_child: tasks that an interpreter runs; 1: a fresh one for each task; None: any number.
    :param preload: names of modules that the template imports, so that tasks find them there.
    :param require: names of modules that agents elsewhere have to have, or they are refused.
    :param kill_grace: a duration: seconds, or text such as "500ms", between a signal to a task (of a time limit, of
        ``kill()``) and SIGKILL.
    :param agents: how many agents are started on this machine; they share what it has evenly. 0: none, all
        are invited, or come from clusters. None: one without ``cluster``, else none.
    :param cluster: where other agents come from, see :mod:`executor.clusters`: one, or several in the order in which
        they are asked. A str is the name of one in the settings, or "auto": the nodes of the allocation that we are
        in, or else this machine. See docs/clusters.md.
    :param resources: what this machine has beyond what is found, or in its place: names and what there is, such as
        ``{"fpga": "[a, b]", "memory": "16GiB"}``; see docs/resources.md.
    :param python_env: the Python of tasks, and what a shell does before it starts.
    :param lease: a duration, at least 1 s: an agent elsewhere that is so long without contact ends its tasks; half
        as long after that they are given to others.
    :raises TypeError, ValueError: for arguments that make no sense.
    :raises BatchCommandFailed: "auto", and the allocation that we are in does not tell its nodes.

    Leaving the ``with`` block waits for all tasks; after Ctrl-C it ends them. After
    ``concurrent.futures.ProcessPoolExecutor``; docs/drop-in.md has what differs.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = 1,
        preload: Sequence[str] = (),
        kill_grace: float | str = 2.0,
        agents: int | None = None,
        cluster: Cluster | Sequence[Cluster] | None = None,
        python_env: PythonEnv = SAME_PYTHON,
        require: Sequence[str] = (),
        resources: Mapping[str, Any] | None = None,
        lease: float | str = LEASE,
    ) -> None:
        self._pools = check_resources(resources, check_workers(max_workers))
        self._max_workers = sum(pool.total // UNIT for pool in self._pools if pool.name == "cpus")
        self._start_method = check_context(mp_context)
        self._imports = [*check_modules("preload", preload), *check_modules("require", require)]
        check_initializer(initializer)
        packed = None if initializer is None else pack_initializer(initializer, initargs)
        max_tasks = check_max_tasks(max_tasks_per_child)
        self._surroundings = Surroundings(max_tasks or 0, list(preload), packed, python_env)
        self._kill_grace = check_duration("kill_grace", kill_grace)
        self._clusters, here = resolve(cluster)
        self._agents = check_agents(here if agents is None else agents, self._max_workers)
        self._lease = check_duration("lease", lease, SHORTEST_LEASE)
        self._options = TaskOptions()
        self._settings = make_settings(self._options, self._kill_grace)
        self._lock = threading.Lock()
        self._hub: Hub | None = None
        self._shut_down = False
        self._forked = False
        #: neither shut down nor in a fork of the process that made it
        self._open = True
        _executors.add(self)
        #: agents may come that nobody knows yet
        self._has_invited = False
        #: what tasks need that was looked at
        self._possible: set[Variants] = set()
        self._task_numbers = itertools.count(1)
        self._job_numbers = itertools.count(1)

    def _owner(self) -> HPCExecutor:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("an HPCExecutor cannot be pickled: it is bound to this process. Make another one in the task.")

    def __repr__(self) -> str:
        state = "shut down" if self._shut_down else "open"
        return f"<HPCExecutor max_workers={self._max_workers} {state}>"

    # --- agents -------------------------------------------------------------------------------------------------------

    def invite(
        self, n: int = 1, *, expires: float | str = "10m", host: str | None = None, port: int | None = None
    ) -> Invitation:
        """Let ``n`` more agents join, from this machine or another one: ``python -P -m worker_agent FILE``.

        From the first invitation on this executor listens, always with CurveZMQ and a key for each invitation. An agent
        with another Python or cloudpickle, or without a module of ``preload``, is refused.

        :param n: how many, 1 or more.
        :param expires: a duration (seconds, or text such as "10m") within which they must say hello.
        :param host: the address, name or interface to listen on; "*": all; None: the address of this machine on its
            way to others. It is that of the first invitation.
        :param port: a number; None: any that is free. Likewise.
        :return: the private file (an ``os.PathLike``) for ``python -P -m worker_agent``. Who has it may run code as
            you. It is removed when all have joined, when the time is over, or by :meth:`revoke`.
        :raises ListenError, NetworkUnsafe: the address or port cannot be had; strangers could get in.
        :raises TypeError, ValueError: another ``n`` or ``expires``.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n={n!r}: expected a number of agents, 1 or more")
        self._has_invited = True
        return self._open_hub().invite(n, check_duration("expires", expires), host, port, self._imports)

    def revoke(self, invitation: Invitation) -> None:
        """Nobody joins by this invitation any more, and its file goes; agents that have joined by it stay."""
        if self._hub is not None:
            self._hub.revoke(invitation.launch)

    def workers(self) -> list[WorkerInfo]:
        """The agents that have joined until now."""
        return self._hub.workers() if self._hub is not None else []

    def explain(self, future: TaskFuture) -> Explanation:
        """Why a task of this executor does not run: what each agent lacks, what it waits for, what runs before it.

        Print it. Raises TypeError for what is no future of a task, ValueError for that of another executor.
        """
        if not isinstance(future, TaskFuture):
            raise TypeError(f"future={future!r}: expected a TaskFuture, as submit() returns it")
        if future._control not in (None, self._hub):  # None: it has ended
            raise ValueError(f"future={future!r}: it is no task of this executor")
        if self._hub is None or future.done():
            return Explanation(future, f"it has ended ({future.state})", {})
        return self._hub.explain(future)

    # --- watching -----------------------------------------------------------------------------------------------------

    def counts(self) -> Counts:
        """How many tasks there have been, by state; what it takes does not grow with them."""
        return self._hub.counts() if self._hub is not None else Counts(running=0)

    def progress(self, description: str = "tasks", console: Console | None = None) -> ProgressBar:
        """A live bar of all tasks of this executor, by state, with their rate and the time that is left.

        ``with ex.progress():`` draws it until all tasks have ended, or at the end of the block if that is later;
        ``ex.progress().wait()`` does without a block. It is redrawn a few times a second, however many tasks there are.

        :param description: what stands before the bar.
        :param console: of ``rich``, where it is drawn; default: standard error. Where that is no terminal and no
            notebook, a line is written each minute and at the end.
        :raises ImportError: ``rich`` is missing.
        """
        return ProgressBar(self.counts, description, console, self._wait_idle)

    def _wait_idle(self) -> None:
        if self._hub is not None:
            self._hub.wait_idle()

    def report(self, path: str | os.PathLike[str] | None = None) -> Report:
        """What has run until now, in numbers: see :class:`~executor.report.values.Report`. Also after the shutdown.

        :param path: where to write one page for people, as HTML that needs no other file; None: nowhere.
        :raises TypeError: for what is no path.
        :raises OSError: if the page cannot be written.
        """
        if path is not None and not isinstance(path, str | os.PathLike):
            raise TypeError(f"path={path!r}: expected a file to write, such as 'run.html', or nothing")
        report = make_report(Recorder().snapshot() if self._hub is None else self._hub.record())
        if path is not None:
            Path(path).write_text(render_page(report), encoding="utf-8")
        return report

    # --- submitting ---------------------------------------------------------------------------------------------------

    def _submit(
        self, view: _Tasks, fn: Callable[..., Any], args: Any, kwargs: dict[str, Any],
        packed: Function | None = None, chunk: bool = False,
    ) -> TaskFuture:  # fmt: skip
        hub = self._hub
        if hub is None or not self._open or hub.broken is not None:
            hub = self._open_hub()
        program = fn if isinstance(fn, Program) else None
        options = view._options
        if options.variants is not ONE_CPU_EACH:
            self._check_possible(options.variants, options.name or _name(fn))
        future = TaskFuture(next(self._task_numbers), options.name or _name(fn), time.time())
        environment = self._surroundings.order(options, self._start_of(options, program))
        hub.environments[environment.environment] = environment
        request = Request(future, options, view._settings, environment, chunk=chunk)
        try:
            if program is not None:
                check_program_call(program, args, kwargs)
                request.program = program
                stdin = program.stdin_bytes()
                if stdin is not None and len(stdin) > protocol.INLINE_LIMIT:
                    request.args = hub.payloads.put(stdin)
            elif options.inputs or options.outputs:
                raise only_for_programs(future.name)
            else:
                request.function = packed or hub.functions.pack(fn)
                request.args, request.buffers, request.inputs = pack_arguments(args, kwargs, hub.payloads, chunk)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self._check_takes_tasks(hub)  # it may have ended meanwhile, and its directories with it
            hub.recorder.refused(future, error)
            future.set_exception(error)
            return future
        future._control = hub
        checked = program is None or program.check
        task = Task(
            future.task_id, environment.environment, request, options.retries, options.crash_limit, checked,
            options.variants, options.priority, options.memory_on_oom,
        )  # fmt: skip
        self._hand_over(hub, task)
        return future

    def _start_of(self, options: TaskOptions, program: Program | None) -> str:
        """How the process of such a task comes to be."""
        if program is not None:
            return "exec"
        return "ranks" if options.variants[0].ranks else self._start_method

    def _check_possible(self, variants: Variants, name: str) -> None:
        """Refuse what no agent can ever run; who has invited others is only warned. Looks at each once."""
        if variants in self._possible:
            return
        impossible = find_impossible(variants, self._offers())
        if impossible is not None:
            text = f"the task {name!r} needs {impossible}"
            if (self._agents or self._clusters) and not self._has_invited:
                raise UnsatisfiableRequest(text, task=name, **impossible.attributes())
            log.warning("%s: it waits for one that has", text)
        self._possible.add(variants)

    def _offers(self) -> list[Offer]:
        pools = detection.divided(self._pools, self._agents) if self._agents else []
        others = self._hub.offers() if self._has_invited and self._hub is not None else []
        return [*(Offer(each, len(pools)) for each in pools), *others, *(each.offer for each in self._clusters)]

    def _hand_over(self, hub: Hub, task: Task) -> None:
        with self._lock:
            self._check_takes_tasks(hub)
            hub.inbox.put(task)

    def _check_takes_tasks(self, hub: Hub) -> None:
        if not self._open or hub.broken is not None:
            self._check_open(hub)

    def _check_open(self, hub: Hub | None) -> None:
        if self._forked:
            raise RuntimeError("this HPCExecutor belongs to the process that made it, not to a fork: make one here")
        if self._shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if hub is not None and hub.broken is not None:
            raise type(hub.broken)(*hub.broken.args) from hub.broken

    def _open_hub(self) -> Hub:
        self._check_open(self._hub)  # before the lock: in a fork of the process nobody may ever release that
        with self._lock:
            self._check_open(self._hub)
            if self._hub is None:
                self._hub = self._start_hub()
            return self._hub

    def _start_hub(self) -> Hub:
        pools = detection.divided(self._pools, self._agents) if self._agents else []
        hub = Hub(pools, self._kill_grace, self._lease, self._clusters, self._imports)
        hub.start()
        _hubs.add(hub)
        weakref.finalize(self, _close_unless_forked, os.getpid(), hub).atexit = False
        return hub

    # --- ending -------------------------------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks. What was submitted still runs, except, with ``cancel_futures``, what has not started.

        With ``wait`` this returns when all has ended and no process or file is left; called from a callback it never
        waits. May be called again.
        """
        hub = self._close(cancel_futures)
        if hub is not None and wait:
            hub.join()

    def _close(self, cancel_futures: bool) -> Hub | None:
        if self._forked:
            return None
        with self._lock:
            self._shut_down, self._open = True, False
            hub = self._hub
        if hub is not None and cancel_futures:
            hub.cancel_pending()
        if hub is not None:
            hub.close()
        return hub

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: Any) -> None:
        """Wait for all tasks, as in the standard library; but after Ctrl-C end them, so that nobody waits for hours."""
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.terminate_workers()
        else:
            self.shutdown(wait=True)

    def terminate_workers(self) -> None:
        """End all tasks (SIGTERM, ``kill_grace`` seconds, SIGKILL) and shut down, as in Python 3.14."""
        self._end_tasks(signal.SIGTERM, self._kill_grace)

    def kill_workers(self) -> None:
        """End all tasks at once (SIGKILL) and shut down, as in Python 3.14."""
        self._end_tasks(signal.SIGKILL, 0.0)

    def _end_tasks(self, number: int, grace: float) -> None:
        if self._forked:
            return
        with self._lock:
            self._shut_down, self._open = True, False
            hub = self._hub
        if hub is not None:
            hub.terminate(number, grace)
            hub.join()


class BoundExecutor(_Tasks):
    """A view of an executor with options of its own; light, made for one ``submit`` if you like."""

    def __init__(self, executor: HPCExecutor, options: TaskOptions) -> None:
        self._executor = executor
        self._options = options
        self._settings = make_settings(options, executor._kill_grace)

    def _owner(self) -> HPCExecutor:
        return self._executor

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut the executor itself down."""
        self._executor.shutdown(wait, cancel_futures=cancel_futures)


# --- small things -----------------------------------------------------------------------------------------------------


def _name(fn: Any) -> str:
    if isinstance(fn, Program):
        return os.path.basename(fn.argv[0])
    return getattr(fn, "__qualname__", None) or type(fn).__qualname__


def _submitter(view: weakref.ref[_Tasks], fn: Callable[..., Any], *, chunk: bool) -> Callable[[Any], TaskFuture | None]:
    """Submits one call after the other; the function is pickled once. None if the executor is gone."""
    packed: list[Function] = []

    def submit(args: Any) -> TaskFuture | None:
        executor = view()
        if executor is None:
            return None
        if isinstance(fn, Program) or not chunk:
            return executor.submit(fn, *args)
        owner = executor._owner()
        if not packed:
            packed.append(owner._open_hub().functions.pack(fn))
        return owner._submit(executor, fn, args, {}, packed[0], chunk=True)

    return submit
