"""The import rules of the four packages, and how large their rooms may be."""

from __future__ import annotations

import ast
import contextlib
import graphlib
import io
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("orcd", "tasks", "worker", "kernels")
TASKS_MAY_TAKE = ("worker.contract", "worker.settings", "worker.log", "worker.text", "worker.model.gguf")
WORKER_MAY_TAKE = ("orcd.errors", "orcd.settings", "orcd.sampling", "orcd.structured_output", "orcd.jsonl")
MOST_LINES = 300
MOST_FILES = 12


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports(path: Path, *, for_types: bool = False) -> list[str]:
    """Every module that a file imports, wherever that stands; ``for_types``: and what only type checkers read."""
    found: list[str] = []
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) if not for_types:
                continue
            case ast.Import():
                found += (alias.name for alias in node.names)
            case ast.ImportFrom():
                assert node.level == 0, f"{path}: relative import"
                found += (node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names))
        pending += ast.iter_child_nodes(node)
    return found


def test_the_contracts_of_pyproject_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = pytest.importorskip("importlinter.cli", reason="import-linter is one of the linters, of the extra dev")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("logging.config.dictConfig", lambda _config: None)  # would silence the loggers of other tests
    report = io.StringIO()
    with contextlib.redirect_stdout(report):
        status = cli.lint_imports(no_cache=True)
    assert status == 0, report.getvalue()


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"), [("tasks", "worker", TASKS_MAY_TAKE), ("worker", "orcd", WORKER_MAY_TAKE)]
)
def test_a_package_takes_of_another_only_what_the_design_names(
    importer: str, imported: str, allowed: tuple[str, ...]
) -> None:
    parents = {parent for module in allowed for parent in (module.split(".")[0], module.rpartition(".")[0])}
    for path in sources(importer):
        for module in imports(path):
            if module.split(".")[0] == imported and module not in parents:
                assert module.startswith(allowed), f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize(
    ("names", "homes"),
    [
        ({"cupy", "cupy_backends", "cuda"}, ("kernels.runtime.cuda_runtime.", "kernels.runtime.driver.")),
        ({"celery", "kombu"}, ("tasks.", "orcd.store.broker.", "orcd.store.enqueue.")),
        ({"redis"}, ("tasks.", "orcd.")),
        ({"numpy"}, ("tasks.local.", "tasks.demo.training.", "worker.", "kernels.")),
    ],
)
def test_a_library_is_named_only_where_it_belongs(names: set[str], homes: tuple[str, ...]) -> None:
    for path in (path for package in PACKAGES for path in sources(package)):
        if names & {module.split(".")[0] for module in imports(path)}:
            assert (module_name(path) + ".").startswith(homes), f"{path.relative_to(ROOT)} imports one of {names}"


LEAVES = {f"orcd.{name}": {"msgspec", "orcd"} for name in ("errors", "settings", "sampling", "jsonl")}
ENGINE = ROOT / "worker" / "engine"
BOOKKEEPING = (
    *(ENGINE / f"{name}.py" for name in ("scheduler", "sequence", "cohort")),
    *sources("worker/engine/cache"),
)
PURE = {module_name(path): {"worker"} for path in BOOKKEEPING if path.name != "__init__.py"}


@pytest.mark.parametrize(("module", "allowed"), (LEAVES | PURE).items())
def test_what_must_stay_simple_needs_the_standard_library_and_little_else(module: str, allowed: set[str]) -> None:
    path = ROOT / (module.replace(".", "/") + ".py")
    taken = set(imports(path))
    roots = {name.split(".")[0] for name in taken}
    assert roots <= sys.stdlib_module_names | allowed
    siblings = ("worker.contract", "worker.engine.") if module in PURE else tuple(LEAVES)
    for name in taken:
        if name.split(".")[0] in PACKAGES and name not in ("orcd", "worker.engine"):
            assert name.startswith(siblings), f"{module} imports {name}"


def test_there_is_no_import_circle_not_even_of_types() -> None:
    modules = {module_name(path): path for package in PACKAGES for path in sources(package)}
    graph = {
        name: set(imports(path, for_types=path.name != "__init__.py")) & modules.keys() - {name}
        for name, path in modules.items()
    }  # what packages hand on lazily, they import for types
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_files_stay_small() -> None:
    for package in (*PACKAGES, "tests"):
        for path in sources(package):
            num_lines = len(path.read_text().splitlines())
            assert num_lines <= MOST_LINES, f"{path.relative_to(ROOT)} has {num_lines} lines"


def test_folders_stay_small() -> None:
    for package in PACKAGES:
        for path in sources(package):
            num_files = len([other for other in path.parent.glob("*.py") if other.name != "__init__.py"])
            assert num_files <= MOST_FILES, f"{path.parent.relative_to(ROOT)} has {num_files} files"
