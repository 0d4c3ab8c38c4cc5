"""CPython's own tests of ``concurrent.futures``, those of the running interpreter, applied to HPCExecutor.

The package ``test.test_concurrent_futures`` writes each test once, in a class without an executor, and mixes one in.
Here HPCExecutor is mixed in, in the variants below; the cases that cannot apply are in EXCEPTIONS, one by one.
Not taken: the tests of ThreadPoolExecutor's own threads, and FailingInitializerResourcesTest, which is about the
resource tracker of multiprocessing. An interpreter without that package skips all of this.
"""

from __future__ import annotations

import faulthandler
import fnmatch
import logging
import multiprocessing
import multiprocessing.util
import sys
import unittest
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import executor
from executor import HPCExecutor
from executor.future import TaskFuture

pytest.importorskip("test.test_concurrent_futures", reason="this interpreter comes without CPython's tests of it")

from test import support
from test.support import script_helper
from test.test_concurrent_futures import (
    test_as_completed,
    test_deadlock,
    test_future,
    test_init,
    test_process_pool,
    test_shutdown,
    test_wait,
    util,
)

# ---- what cannot apply


#: Name of a test (a pattern of "<variant><suite>Test.<test>") -> why it cannot apply, and what holds instead. The tests
#: named here in return are those of tests/conformance/test_adapted_from_cpython.py.
EXCEPTIONS: dict[str, str] = {
    # one bad task fails alone
    "*ExecutorTest.test_killed_child":
        "a killed child fails its own task here and does not break the executor: test_killed_child",
    "*DeadlockTest.test_error_at_task_unpickle":
        "the future raises that error itself: test_bad_argument_at_unpickle",
    "*DeadlockTest.test_exit_at_task_unpickle":
        "the future raises SystemExit itself: test_bad_argument_at_unpickle",
    "*DeadlockTest.test_exit_during_result_pickle_on_worker":
        "whatever pickling a result raises becomes a PicklingError that names the result: test_bad_result_at_pickle",
    "*DeadlockTest.test_error_during_result_unpickle_in_result_handler":
        "the future raises that error itself: test_bad_result_at_unpickle",
    "*DeadlockTest.test_exit_during_result_unpickle_in_result_handler":
        "the future raises SystemExit itself: test_bad_result_at_unpickle",
    # the inside of ProcessPoolExecutor
    "*ExecutorTest.test_saturation":
        "counts executor._processes; test_saturation counts running tasks",
    "*ExecutorTest.test_idle_process_reuse_one":
        "counts executor._processes; test_idle_process_reuse_one asks the tasks for their pids",
    "*ExecutorTest.test_idle_process_reuse_multiple":
        "counts executor._processes; test_idle_process_reuse_multiple asks the tasks for their pids",
    "*ExecutorTest.test_max_tasks_per_child":
        "counts executor._processes, and wants a number of tasks refused for fork: test_max_tasks_per_child",
    "*ExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context":
        "looks at executor._mp_context; any number of tasks goes with any start method: test_max_tasks_per_child",
    "*ExecutorTest.test_traceback":
        "wants the very class concurrent.futures.process._RemoteTraceback; test_traceback wants what it tells",
    "*FailingInitializerTest.test_initializer":
        "sends a queue in initargs, which can only be inherited, and polls executor._broken: test_failing_initializer",
    "*DeadlockTest.test_shutdown_deadlock_pickle":
        "joins executor._executor_manager_thread; test_shutdown_deadlock_pickle waits for the processes",
    "*DeadlockTest.test_gh105829_should_not_deadlock_if_wakeup_pipe_full":
        "replaces parts of ProcessPoolExecutor, and would be about nothing here",
    "*ShutdownTest.test_processes_terminate":
        "joins executor._processes; test_processes_terminate looks at the processes of the system",
    "*ShutdownTest.test_context_manager_shutdown":
        "makes a ProcessPoolExecutor, not ours: test_context_manager_shutdown",
    "*ShutdownTest.test_del_shutdown":
        "makes a ProcessPoolExecutor, not ours: test_del_shutdown",
    "*ShutdownTest.test_shutdown_no_wait":
        "makes a ProcessPoolExecutor, not ours: test_shutdown_no_wait",
    # what it need not be
    "*ShutdownTest.test_cancel_futures":
        "expects that a task has started when submit returns; test_cancel_futures waits until it has",
    "TaskFutureTest.test_cancel":
        "a cancelled TaskFuture is notified at once, so that no wait() misses it",
    "TaskFutureTest.test_multiple_set_result":
        "wants the repr of Future; a TaskFuture names its task",
    "TaskFutureTest.test_multiple_set_exception":
        "wants the repr of Future; a TaskFuture names its task",
}  # fmt: skip


# ---- the variants


@pytest.fixture(scope="module", autouse=True)
def helpers() -> Iterator[None]:
    """The processes that multiprocessing starts for the managers of some tests; not even a failed test leaves any."""
    resource_tracker.ensure_running()
    forkserver.ensure_running()
    yield
    for child in multiprocessing.active_children():
        child.terminate()
    multiprocessing.util._cleanup_tests()


class StrictTestCase(util.BaseTestCase):
    """Fails if a thread or a zombie is left, of which CPython's test case only warns."""

    def setUp(self) -> None:
        support.environment_altered = False
        patch = mock.patch.object(logging.root, "handlers", [])  # its tests look for log records on stderr
        patch.start()
        self.addCleanup(patch.stop)
        super().setUp()

    def tearDown(self) -> None:
        super().tearDown()
        self.assertFalse(support.environment_altered, "a thread or a child process was left behind")


class Ours(util.ExecutorMixin):
    """What the variants have in common. ``preamble`` makes our executor known to the scripts that the tests run."""

    preamble = "import multiprocessing; from executor import HPCExecutor"
    TIMEOUT = 30  # seconds, until the test itself says that it hangs

    def setUp(self) -> None:
        patch = mock.patch.object(test_shutdown, "assert_python_ok", self._run_script)
        patch.start()
        self.addCleanup(patch.stop)
        super().setUp()

    def _run_script(self, option: str, text: str) -> Any:
        text = text.replace("from concurrent.futures import HPCExecutor", self.preamble)
        return script_helper.assert_python_ok(option, text, PYTHONPATH=str(Path(executor.__file__).parents[1]))

    def _fail_on_deadlock(self, stuck: HPCExecutor) -> None:
        faulthandler.dump_traceback(sys.__stderr__)
        stuck.kill_workers()
        self.fail("deadlock")


def make_fresh(*args: Any, mp_context: Any = None, **options: Any) -> HPCExecutor:
    return HPCExecutor(*args, **options)


def make_reused(*args: Any, mp_context: Any = None, **options: Any) -> HPCExecutor:
    return HPCExecutor(*args, **{"max_tasks_per_child": None, **options})


make_fresh.__name__ = make_reused.__name__ = "HPCExecutor"  # so it is called in the scripts


class Fresh(Ours):
    """As those get it who only change the import: an interpreter for each task."""

    executor_type = staticmethod(make_fresh)

    def get_context(self) -> Any:
        """A context for the semaphores and managers of a test; the executor gets none."""
        return multiprocessing.get_context("forkserver")


class Reused(Fresh):
    """Interpreters that are kept, as in ProcessPoolExecutor."""

    preamble = (
        f"{Ours.preamble}; from functools import partial; HPCExecutor = partial(HPCExecutor, max_tasks_per_child=None)"
    )

    executor_type = staticmethod(make_reused)


class Spawn(Ours):
    """Interpreters that are executed and not forked."""

    executor_type = HPCExecutor
    ctx = "spawn"


class Forkserver(Ours):
    executor_type = HPCExecutor
    ctx = "forkserver"


class Fork(Ours):
    executor_type = HPCExecutor
    ctx = "fork"


# ---- the tests: all of them for fresh interpreters; what does not depend on the interpreter only there

SUITES: dict[str, type] = {
    "Executor": test_process_pool.ProcessPoolExecutorTest,
    "Initializer": test_init.InitializerMixin,
    "FailingInitializer": test_init.FailingInitializerMixin,
    "Deadlock": test_deadlock.ExecutorDeadlockTest,
    "Shutdown": test_shutdown.ProcessPoolShutdownTest,
    "AsCompleted": test_as_completed.AsCompletedTests,
    "Wait": test_wait.WaitTests,
}
VARIANTS: dict[type[Ours], list[str]] = {
    Fresh: list(SUITES),
    Reused: ["Executor", "Initializer", "FailingInitializer", "Deadlock", "Shutdown"],
    Spawn: ["Executor", "Initializer", "FailingInitializer", "Deadlock", "Shutdown"],
    Forkserver: ["Executor", "Initializer"],
    Fork: ["Executor", "Initializer"],
}
#: Those that wait for seconds, and in the code of the standard library; the first variant is enough for them.
ONCE = ["test_map_timeout"]
TESTS: list[str] = []


def skipped(name: str, reason: str) -> Callable[..., None]:
    @unittest.skip(reason)
    def test(self: unittest.TestCase) -> None:
        raise AssertionError("skipped")

    test.__name__ = name
    return test


def add_case(case: str, bases: tuple[type, ...]) -> None:
    """Make the test case ``case`` of ``bases``, without the tests that are listed in EXCEPTIONS."""
    replaced: dict[str, Any] = {"__module__": __name__, **({} if Fresh in bases else dict.fromkeys(ONCE))}
    for name in unittest.defaultTestLoader.getTestCaseNames(type(case, bases, replaced)):
        TESTS.append(f"{case}.{name}")
        reasons = [reason for pattern, reason in EXCEPTIONS.items() if fnmatch.fnmatchcase(TESTS[-1], pattern)]
        if reasons:
            replaced[name] = skipped(name, reasons[0])
    globals()[case] = type(case, bases, replaced)


for variant, suites in VARIANTS.items():
    for suite in suites:
        add_case(f"{variant.__name__}{suite}Test", (variant, SUITES[suite], StrictTestCase))


class OurFutures:
    """``Future()`` gives a TaskFuture in the tests of futures."""

    def setUp(self) -> None:
        for module in (test_future, util):
            patch = mock.patch.object(module, "Future", lambda: TaskFuture(1, "task", 0.0))
            patch.start()
            self.addCleanup(patch.stop)
        super().setUp()


add_case("TaskFutureTest", (OurFutures, test_future.FutureTests, StrictTestCase))


@pytest.mark.skipif(sys.version_info[:2] != (3, 13), reason="EXCEPTIONS was written for the tests of Python 3.13")
@pytest.mark.parametrize("pattern", EXCEPTIONS)
def test_each_exception_is_that_of_a_test(pattern: str) -> None:
    assert fnmatch.filter(TESTS, pattern), "nothing is called so: remove the line"
