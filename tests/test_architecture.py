"""Who imports whom, and what no code here does. It reads the sources; nothing is imported or run."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.shared

ROOT = Path(__file__).parent.parent
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("executor", "worker_agent")
    for path in sorted((ROOT / package).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in SOURCES.items()}
STANDARD = sys.stdlib_module_names

#: All that the core may import besides itself and the messages: what computes and does nothing else.
PURE = {
    "__future__", "abc", "bisect", "collections", "dataclasses", "enum", "fractions", "functools", "heapq", "itertools",
    "math", "operator", "typing",
}  # fmt: skip
#: What would let the core do I/O or tell the time; all of it is missing in PURE.
IMPURE = {
    "asyncio", "concurrent", "io", "logging", "multiprocessing", "os", "pathlib", "pickle", "queue", "random",
    "secrets", "select", "selectors", "shutil", "signal", "socket", "subprocess", "tempfile", "threading", "time",
    "zmq",
}  # fmt: skip
#: Loaded by each fresh interpreter, where nothing of ours need be installed.
IN_INTERPRETERS = {
    "worker_agent", "worker_agent.bodies", "worker_agent.channel", "worker_agent.descriptors",
    "worker_agent.inputs", "worker_agent.interpreter", "worker_agent.launch", "worker_agent.launchers",
    "worker_agent.pinning", "worker_agent.processes", "worker_agent.rank", "worker_agent.runner", "worker_agent.store",
    "worker_agent.template",
}  # fmt: skip
PICKLERS = {"cloudpickle", "dill", "marshal", "pickle", "shelve"}


@cache
def imports(name: str) -> tuple[str, ...]:
    """The modules that a module imports, anywhere in it; of ``from a import b`` the submodule a.b if there is one."""
    return tuple(_imports(name))


def _imports(name: str) -> Iterator[str]:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            assert node.module is not None
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in SOURCES else node.module


def ours(name: str) -> set[str]:
    return {imported for imported in imports(name) if imported.partition(".")[0] in ("executor", "worker_agent")}


def foreign(name: str) -> set[str]:
    return {imported.partition(".")[0] for imported in imports(name)} - {"executor", "worker_agent"}


def modules(prefix: str) -> list[str]:
    found = [name for name in SOURCES if name == prefix or name.startswith(prefix + ".")]
    assert found, f"there is no {prefix}"
    return found


# ---- who imports whom


@pytest.mark.parametrize("name", modules("executor.core"))
def test_the_core_imports_nothing_that_can_do_io(name: str) -> None:
    assert not PURE & IMPURE
    assert foreign(name) <= PURE
    pure = {"worker_agent.codec", "worker_agent.link", "worker_agent.pools", "worker_agent.protocol"}
    assert all(each in pure or each.startswith("executor.core.") for each in ours(name))


@pytest.mark.parametrize("name", ["worker_agent.link", "worker_agent.session"])
def test_what_an_agent_decides_about_the_wire_is_as_pure(name: str) -> None:
    assert foreign(name) <= PURE
    assert ours(name) <= {"worker_agent", "worker_agent.codec", "worker_agent.link", "worker_agent.protocol"}


@pytest.mark.parametrize("name", modules("worker_agent"))
def test_the_agent_imports_nothing_of_the_executor(name: str) -> None:
    assert all(each in modules("worker_agent") for each in ours(name))


@pytest.mark.parametrize("name", sorted(IN_INTERPRETERS))
def test_what_a_fresh_interpreter_loads_needs_the_standard_library_and_cloudpickle_only(name: str) -> None:
    # the ranks of a call are where MPI is
    assert foreign(name) <= STANDARD | {"cloudpickle"} | ({"mpi4py"} if name == "worker_agent.rank" else set())
    beyond = ours(name) - IN_INTERPRETERS
    # the script that all start with becomes an agent too, which lives where the distribution is installed
    assert beyond <= ({"worker_agent.__main__"} if name == "worker_agent.interpreter" else set())


def test_imports_go_down_only() -> None:
    order = TopologicalSorter({name: ours(name) for name in SOURCES}).static_order()  # raises if there is a circle
    assert set(SOURCES) == set(order)


#: The part of the report that takes down what happens, for the hub's thread; the others make something of it.
TAKING_DOWN = [f"executor.report.{name}" for name in ("recorder", "tally", "series")]
MAKING = [name for name in modules("executor.report") if name not in TAKING_DOWN]

LAYERS = [
    ["executor.__main__", *modules("executor.cli")],
    ["executor"],
    ["executor.executor"],
    ["executor.progress", *MAKING],
    modules("executor.jobs"),
    ["executor.hub", "executor.inbox", "executor.orders", "executor.unsettled"],
    TAKING_DOWN,
    ["executor.asynchronous", "executor.calls"],
    ["executor.future"],
    ["executor.events", "executor.options"],
    ["executor.files"],
    modules("executor.core"),
    ["worker_agent.codec"],
    ["worker_agent.protocol"],
]


@pytest.mark.parametrize("level", range(1, len(LAYERS)))
def test_nothing_below_a_layer_imports_it(level: int) -> None:
    above = {name for layer in LAYERS[:level] for name in layer}
    for name in LAYERS[level]:
        assert not ours(name) & above, f"{name} imports upwards"


#: What jobs and the command line may import besides themselves.
ROOMS = {
    # what users have; of the core, the values that options mean
    "executor.jobs": {
        "executor.asynchronous", "executor.attempts", "executor.core.needs", "executor.core.retries",
        "executor.dependencies", "executor.errors", "executor.files", "executor.future", "executor.options",
        "executor.program", "executor.quantities", "executor.refusals", "executor.resources", "worker_agent.amounts",
        "worker_agent.pools", "worker_agent.protocol", "worker_agent.records",
    },
    # what users have, and what "doctor" looks at
    "executor.cli": {
        "executor", "executor.errors", "executor.future", "executor.invitations", "executor.options",
        *modules("executor.jobs"), *modules("executor.batch"), "worker_agent.amounts", "worker_agent.cgroups",
        "worker_agent.detection", "worker_agent.interpreter", "worker_agent.pools",
    },
}  # fmt: skip


@pytest.mark.parametrize("room", ROOMS)
def test_jobs_and_the_command_line_use_what_users_have(room: str) -> None:
    inside = set(modules(room))
    beyond = {name: ours(name) - inside - ROOMS[room] for name in inside}
    assert {name: names for name, names in beyond.items() if names} == {}


def test_nobody_imports_the_command_line() -> None:
    importers = {name for name in SOURCES if ours(name) & set(modules("executor.cli"))}
    assert importers - set(modules("executor.cli")) == {"executor.__main__"}


@pytest.mark.parametrize("name", modules("executor.report"))
def test_a_report_is_made_without_io(name: str) -> None:
    pure = {"array", "base64", "copy", "datetime", "hashlib", "html", "json", "re"}
    files = {"importlib"} if name == "executor.report.page" else set()  # its style and script lie beside it
    threads = {"threading"} if name == "executor.report.recorder" else set()  # two of them tell it
    assert foreign(name) <= PURE | pure | files | threads


@pytest.mark.parametrize(
    ("name", "importers"),
    [
        ("executor", {f"executor.cli.{name}" for name in ("__main__", "findings", "run", "running")}),
        ("executor.executor", {"executor"}),
        ("executor.hub", {"executor.executor"}),
        ("executor.inbox", {"executor.awaited", "executor.hub"}),
        ("executor.orders", {"executor.hub", "executor.unsettled"}),
        ("executor.unsettled", {"executor.hub"}),
        ("executor.core.scheduler", {"executor.core.explain", "executor.hub"}),
        ("executor.local", {"executor.hub", "executor.agents", "executor.invitations", "executor.worker"}),
        ("executor.agents", {"executor.hub", "executor.orders"}),
        ("executor.strangers", {"executor.agents"}),
        ("executor.network", {"executor.invitations"}),
        ("executor.delivery", {"executor.hub", "executor.unsettled"}),
        ("executor.progress", {"executor", "executor.executor"}),
        ("executor.report.page", {"executor.report.report", "executor.executor"}),
        (
            "worker_agent.records",
            {
                "executor.jobs.stream",
                "executor.jobs.stream_index",
                "worker_agent.recorder",
                "worker_agent.stream_files",
            },
        ),
        ("worker_agent.stream_files", {"worker_agent.agent", "worker_agent.recorder"}),
        ("worker_agent.scratch", {"worker_agent.agent", "worker_agent.lane", "worker_agent.programs"}),
    ],
)
def test_a_module_with_few_users_keeps_them_few(name: str, importers: set[str]) -> None:
    assert {each for each in SOURCES if name in ours(each)} == importers


def test_the_client_uses_of_the_agent_what_both_sides_share() -> None:
    names = (
        "amounts", "bodies", "cgroups", "codec", "connection", "declared", "detection", "dialing",
        "directories", "inputs", "launchers", "link", "output", "pieces", "pools", "processes", "protocol", "records",
        "runner", "store", "task_files", "trees",
    )  # fmt: skip
    shared = {f"worker_agent.{name}" for name in names}
    used = {each for name in modules("executor") for each in ours(name) if each.startswith("worker_agent")}
    assert used - {"worker_agent", "worker_agent.interpreter"} <= shared


def test_the_distributions_that_are_imported_are_those_that_are_declared() -> None:
    used = {each for name in SOURCES for each in foreign(name)} - STANDARD
    used -= {"mpi4py"}  # the ranks of a call have that of their users
    assert used <= {"cloudpickle", "msgspec", "psutil", "rich", "typer", "zmq"}


def test_only_the_command_line_needs_typer() -> None:
    assert {name for name in SOURCES if "typer" in foreign(name)} <= set(modules("executor.cli"))


# ---- who pickles


def names_used(name: str, module: str) -> set[str]:
    """What a module uses of an imported one, as ``function: attribute``; the function at the outermost."""
    used = set()
    for outer in TREES[name].body:
        where = getattr(outer, "name", "")
        for node in ast.walk(outer):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module:
                used.add(f"{where}: {node.attr}")
    return used


def test_on_the_side_of_the_user_few_modules_pickle() -> None:
    importers = {name for name in modules("executor") if foreign(name) & PICKLERS}
    assert importers == {"executor.calls", "executor.errors", "executor.functions", "executor.outcome"}
    assert names_used("executor.errors", "pickle") == {"SerializationError: PicklingError"}


def test_on_the_side_of_the_agent_only_what_runs_in_interpreters_pickles() -> None:
    importers = {name for name in modules("worker_agent") if "pickle" in foreign(name)}
    assert importers == {"worker_agent.bodies", "worker_agent.rank", "worker_agent.runner"}
    # to know where it lies, for interpreters that have none
    assert names_used("worker_agent.environments", "cloudpickle") == {"make_setup: __file__"}


def test_what_user_code_sends_is_never_unmarshalled_by_the_agent() -> None:
    importers = {name for name in modules("worker_agent") if "marshal" in foreign(name)}
    assert importers == {"worker_agent.channel", "worker_agent.rank", "worker_agent.runner"}
    used = names_used("worker_agent.rank", "marshal")
    assert {each for each in used if each.endswith("loads")} == {"_Reader: loads"}
    assert {each for each in names_used("worker_agent.channel", "marshal") if each.endswith("loads")} == {
        "unpack_lane: loads",
        "unpack_place: loads",
        "unpack_task: loads",
    }


# ---- what no code here does


@pytest.mark.parametrize("name", SOURCES)
def test_no_exception_is_caught_without_a_word_which(name: str) -> None:
    bare = [node.lineno for node in ast.walk(TREES[name]) if isinstance(node, ast.ExceptHandler) and node.type is None]
    assert bare == []


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_printed(name: str) -> None:
    calls = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert [call.lineno for call in calls if getattr(call.func, "id", "") in ("print", "breakpoint", "input")] == []


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(node: ast.Module | ast.ClassDef, path: str) -> Iterator[tuple[str, Documented]]:
    """A module or class and what is public in it; not what is in functions."""
    yield path, node
    for each in node.body:
        if isinstance(each, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not each.name.startswith("_"):
            if isinstance(each, ast.ClassDef):
                yield from public(each, f"{path}.{each.name}")
            else:
                yield f"{path}.{each.name}", each


CLASSES = {node.name: node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def inherited(node: ast.ClassDef) -> Iterator[str]:
    """The methods that a class has documented in those that it is made of, which need not say so again."""
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in CLASSES:
            of = CLASSES[base.id]
            yield from (each.name for each in of.body if isinstance(each, ast.FunctionDef) and ast.get_docstring(each))
            yield from inherited(of)


@pytest.mark.parametrize("name", SOURCES)
def test_all_that_is_public_says_what_it_is(name: str) -> None:
    told = {
        f"{name}.{node.name}.{method}"
        for node in TREES[name].body
        if isinstance(node, ast.ClassDef)
        for method in inherited(node)
    }
    silent = {path for path, node in public(TREES[name], name) if not ast.get_docstring(node)}
    assert silent - told == set()


@pytest.mark.parametrize("name", SOURCES)
def test_the_first_line_of_a_docstring_is_a_sentence(name: str) -> None:
    firsts = [(path, (ast.get_docstring(node) or ".").split("\n\n")[0]) for path, node in public(TREES[name], name)]
    assert [path for path, first in firsts if first.rstrip()[-1] not in ".:?)"] == []
