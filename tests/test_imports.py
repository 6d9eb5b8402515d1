"""The import rules of the three packages."""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TASKS_MAY_TAKE = (
    "worker.contract",
    "worker.settings",
    "worker.errors",
    "worker.log",
    "worker.text",
    "worker.model.gguf",
)


def test_the_contracts_of_pyproject_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = pytest.importorskip("importlinter.cli", reason="import-linter is one of the linters, of the extra dev")
    monkeypatch.chdir(ROOT)
    report = io.StringIO()
    with contextlib.redirect_stdout(report):
        status = cli.lint_imports(no_cache=True)
    assert status == 0, report.getvalue()


def imports(path: Path) -> Iterator[str]:
    """Every module named in an import statement of a file, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_tasks_takes_from_worker_only_what_the_design_names() -> None:
    parents = {parent for module in TASKS_MAY_TAKE for parent in (module.split(".")[0], module.rpartition(".")[0])}
    for path in (ROOT / "tasks").rglob("*.py"):
        for module in imports(path):
            if module.split(".")[0] == "worker" and module not in parents:
                assert module.startswith(TASKS_MAY_TAKE), f"{path.relative_to(ROOT)} imports {module}"


def test_cupy_is_named_in_kernels_only() -> None:
    for package in ("worker", "tasks"):
        for path in (ROOT / package).rglob("*.py"):
            assert not {"cupy", "cuda"} & {module.split(".")[0] for module in imports(path)}, path
