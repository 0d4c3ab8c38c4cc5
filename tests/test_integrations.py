"""The executor where others expect one: asyncio, tqdm, Dask, SciPy, and scripts and notebooks without a main guard."""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import sys
import textwrap
from concurrent.futures import FIRST_COMPLETED, as_completed, wait
from functools import partial
from pathlib import Path

import cloudpickle
import pytest

import executor as product
from executor import HPCExecutor

# The tasks of this file travel by value: no interpreter has to import it, and pytest with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def square(number):
    return number * number


def distance(point):
    return sum((x - 1) ** 2 for x in point)


# ---- the standard library


def test_asyncio_runs_tasks_in_the_executor_and_gathers_them(executor):
    async def main():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, square, number) for number in range(10)))

    assert asyncio.run(main()) == [number**2 for number in range(10)]


def test_asyncio_gets_the_error_of_a_task(executor):
    async def main():
        await asyncio.get_running_loop().run_in_executor(executor, divmod, 1, 0)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())


def test_asyncio_limits_the_time_that_it_waits(executor, gate):
    def hold(path):
        with open(path, "rb", buffering=0) as tokens:
            tokens.read(1)
        return "held"

    async def main():
        future = executor.submit(hold, gate.paths[1])
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), 0.01)
        gate.open()
        return await asyncio.wrap_future(future)

    assert asyncio.run(main()) == "held"


def test_a_task_group_awaits_futures_of_the_executor(reused_executor):
    async def one(number):
        return await asyncio.wrap_future(reused_executor.submit(square, number))

    async def main():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number)) for number in range(20)]
        return [task.result() for task in tasks]

    assert asyncio.run(main()) == [number**2 for number in range(20)]


def test_wait_and_as_completed_mix_futures_of_several_executors(executor, reused_executor):
    futures = {pool.submit(square, number): number for number in range(10) for pool in (executor, reused_executor)}
    assert wait(futures, timeout=20, return_when=FIRST_COMPLETED).done
    assert {future.result() == futures[future] ** 2 for future in as_completed(futures, timeout=20)} == {True}


# ---- libraries


def test_tqdm_shows_the_progress_of_a_map(executor):
    tqdm = pytest.importorskip("tqdm")
    shown = io.StringIO()
    assert list(tqdm.tqdm(executor.map(square, range(10)), total=10, file=shown)) == [n**2 for n in range(10)]
    assert "10/10" in shown.getvalue()


def test_tqdm_shows_the_progress_of_as_completed(executor):
    tqdm = pytest.importorskip("tqdm")
    shown = io.StringIO()
    futures = [executor.submit(square, number) for number in range(10)]
    assert len(list(tqdm.tqdm(as_completed(futures), total=10, file=shown))) == 10
    assert "10/10" in shown.getvalue()


def test_the_map_of_tqdm_can_use_the_executor_in_place_of_a_process_pool():
    """Its lock is left out: it is inherited by forked workers only, and cannot be pickled."""
    concurrent = pytest.importorskip("tqdm.contrib.concurrent")
    if "_initializer" not in concurrent._executor_map.__code__.co_varnames:
        pytest.skip("this version of tqdm always sends its lock")
    shown = io.StringIO()
    results = concurrent._executor_map(
        HPCExecutor, square, range(10), max_workers=2, file=shown, _initializer=int, _initargs=()
    )
    assert results == [number**2 for number in range(10)]
    assert "10/10" in shown.getvalue()


@pytest.mark.filterwarnings("ignore")
def test_dask_computes_with_the_executor_as_its_scheduler(reused_executor):
    dask = pytest.importorskip("dask")
    parts = [dask.delayed(square)(number) for number in range(10)]
    total = dask.delayed(sum)(parts)
    assert total.compute(scheduler=reused_executor) == sum(number**2 for number in range(10))
    with pytest.raises(ZeroDivisionError):
        dask.delayed(divmod)(1, 0).compute(scheduler=reused_executor)


@pytest.mark.filterwarnings("ignore")
def test_dask_takes_the_executor_from_its_configuration(executor):
    dask = pytest.importorskip("dask")
    with dask.config.set(scheduler=executor):
        pid, other = dask.compute(dask.delayed(os.getpid)(), dask.delayed(os.getppid)())
    assert os.getpid() not in (pid, other)


@pytest.mark.filterwarnings("ignore")
def test_scipy_uses_map_for_its_workers(reused_executor):
    optimize = pytest.importorskip("scipy.optimize")
    options = {"maxiter": 5, "popsize": 5, "tol": 0, "rng": 1, "updating": "deferred", "polish": False}
    bounds = [(-2, 2)] * 2
    ours = optimize.differential_evolution(distance, bounds, workers=reused_executor.map, **options)
    alone = optimize.differential_evolution(distance, bounds, workers=1, **options)
    assert ours.x.tolist() == alone.x.tolist()


@pytest.mark.filterwarnings("ignore")
def test_scipy_integrates_with_map(reused_executor):
    integrate = pytest.importorskip("scipy.integrate")
    value, _ = integrate.quad_vec(square, 0, 3, workers=reused_executor.map)
    assert value == pytest.approx(9)


# ---- scripts without a main guard


SCRIPT = textwrap.dedent("""
    import sys
    from dataclasses import dataclass
    from enum import Enum
    from executor import HPCExecutor

    OFFSET = 10

    @dataclass
    class Point:
        x: int

        def moved(self):
            return Point(self.x + OFFSET)

    class Colour(Enum):
        RED = 1

    class Trouble(Exception):
        pass

    def work(point, colour):
        assert colour is Colour.RED
        return helper(point)

    def helper(point):
        return point.moved()

    def fail():
        raise Trouble("as told")

    for kept in (1, None):
        with HPCExecutor(2, max_tasks_per_child=kept) as executor:
            result = executor.submit(work, Point(1), Colour.RED).result()
            assert result == Point(11), result
            assert type(result) is Point
            assert executor.submit(lambda: Colour.RED).result() is Colour.RED
            assert list(executor.map(Point.moved, [Point(1), Point(2)])) == [Point(11), Point(12)]
            try:
                executor.submit(fail).result()
            except Trouble as error:
                assert error.args == ("as told",)
    print("over")
""")


@pytest.mark.parametrize("how", ["-c", "file", "stdin", "-i"])
def test_functions_and_classes_of_main_need_no_main_guard(tmp_path, how):
    """B9. Text given by ``-c``, by a file, by standard input, and to the interactive interpreter."""
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    words = {"-c": ["-c", SCRIPT], "file": [str(file)], "stdin": [], "-i": ["-i", "-q", "-c", SCRIPT]}[how]
    env = {**os.environ, "PYTHONPATH": str(Path(product.__file__).parents[1])}
    text = SCRIPT if how == "stdin" else ""
    ended = subprocess.run(
        [sys.executable, *words], input=text, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout == "over\n", ended.stderr
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr


def test_a_function_redefined_as_in_a_notebook_is_the_new_one(run_script):
    """B9. A cell is run again after it was edited, with the executor of an earlier cell."""
    ended = run_script("""
from executor import HPCExecutor
executor = HPCExecutor(1, max_tasks_per_child=None)
seen = []
for text in ("1", "2"):
    exec(f"def helper(): return {text}")
    exec("def work(): return helper()")
    seen.append(executor.submit(work).result())
helper = lambda: 3
seen.append(executor.submit(work).result())
print(seen)
executor.shutdown()
""")
    assert (ended.stdout, ended.stderr) == ("[1, 2, 3]\n", "")


def test_a_result_of_a_class_of_main_leaves_that_class_as_it_was(run_script):
    """B9. By itself, cloudpickle puts copies of its methods into it, which see copies of the script's variables."""
    ended = run_script("""
from executor import HPCExecutor
OFFSET = 10

class Point:
    def offset(self):
        return OFFSET

with HPCExecutor(1) as executor:
    result = executor.submit(lambda: Point()).result()
OFFSET = 20
print(type(result) is Point, result.offset(), Point().offset())
""")
    assert (ended.stdout, ended.stderr) == ("True 20 20\n", "")


def test_a_global_that_changes_between_two_tasks_is_seen_by_the_second(run_script):
    """B9. With a reused interpreter, and a function that calls another."""
    ended = run_script("""
from executor import HPCExecutor

def inner(): return OFFSET
def outer(): return inner()

with HPCExecutor(1, max_tasks_per_child=None) as executor:
    seen = []
    for OFFSET in range(3):
        seen.append(executor.submit(outer).result())
print(seen)
""")
    assert (ended.stdout, ended.stderr) == ("[0, 1, 2]\n", "")


def test_a_module_beside_the_script_is_found_by_its_tasks(run_script, tmp_path):
    """B9. ``sys.path`` begins with the script's folder, in tasks too, whatever their directory is."""
    (tmp_path / "beside.py").write_text("def f(): return __name__\n")
    (tmp_path / "elsewhere").mkdir()
    ended = run_script(
        """
import os, beside
from executor import HPCExecutor
os.chdir("elsewhere")
with HPCExecutor(1) as executor:
    print(executor.submit(beside.f).result(), executor.submit(os.getcwd).result())
""",
        cwd=tmp_path,
    )
    assert (ended.stdout, ended.stderr) == (f"beside {tmp_path}/elsewhere\n", "")


def test_a_partial_a_method_and_a_callable_object_are_functions_too(executor):
    class Adder:
        def __init__(self, number):
            self.number = number

        def __call__(self, other):
            return self.number + other

        def method(self, other):
            return self.number * other

    adder = Adder(5)
    tasks = [partial(pow, 2), adder, adder.method, (3).__add__]
    assert [executor.submit(task, 4).result() for task in tasks] == [16, 9, 20, 7]


# ---- executors in tasks


def test_an_executor_in_a_task_runs_functions_of_main(run_script):
    """E11. Two levels below a script that has no main guard."""
    ended = run_script("""
from executor import HPCExecutor

def leaf(number):
    return number + 1

def branch(number):
    with HPCExecutor(2) as nested:
        return sum(nested.map(leaf, range(number)))

with HPCExecutor(2) as executor:
    print(list(executor.map(branch, [2, 3])))
""")
    assert (ended.stdout, ended.stderr) == ("[3, 6]\n", "")


NOTEBOOK = """
from executor import HPCExecutor, track
ex = HPCExecutor(1)
#
limit = 3
def scaled(number):
    return limit * number
#
for future in track([ex.submit(scaled, n) for n in range(5)], "scaled"):
    pass
#
with ex.progress("all"):
    print("printed")
#
print(await ex.submit_async(scaled, 5))
#
report = ex.report()
ex.shutdown()
report
"""


@pytest.mark.filterwarnings("ignore")
def test_a_notebook_shows_bars_results_and_the_report(monkeypatch):
    """A bar was a widget: nothing without ipywidgets, and gone from a file that is opened later."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in NOTEBOOK.split("#\n")])
    asyncio.run(nbclient.NotebookClient(notebook, timeout=50, kernel_name="python3").async_execute())
    shown = [cell.outputs for cell in notebook.cells]
    [tracked], [bar, printed], [awaited], [page] = shown[2:]
    assert re.search(r"^scaled .* 5/5  in ", tracked.data["text/plain"])
    assert re.search(r"^all .* 5/5  in ", bar.data["text/plain"])
    assert (printed.text, awaited.text) == ("printed\n", "15\n")
    assert page.data["text/plain"].startswith("<Report 6 finished")
    assert page.data["text/html"].startswith("<iframe srcdoc=")
