"""What ``import orcd`` gives an application, and what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import orcd

OF_A_WORKER = (
    "sorted(m for m in sys.modules if m.split('.')[0] in {'tasks', 'worker', 'kernels', 'numpy', 'cupy_backends'})"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as users of Celery have it, with modules named like ours that must never be imported."""
    (tmp_path / "tasks.py").write_text("raise AssertionError('imported tasks of the user')")
    (tmp_path / "kernels.py").write_text("raise AssertionError('imported kernels of the user')")
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "__init__.py").write_text("raise AssertionError('imported worker of the user')")
    return tmp_path


def python(folder: Path, code: str, **variables: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | variables,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_every_public_name_is_there() -> None:
    for name in orcd.__all__:
        assert getattr(orcd, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'orcd' has no attribute 'Rabbit'"):
        _ = orcd.Rabbit


def test_all_errors_with_a_code_are_public() -> None:
    errors = {error.__name__ for error in orcd.OrcdError.__subclasses__()}
    assert errors <= set(orcd.__all__)


def test_importing_loads_no_worker_not_even_with_all_names(folder: Path) -> None:
    assert python(folder, f"import orcd, sys; print({OF_A_WORKER})") == "[]\n"
    names = ", ".join(orcd.__all__)
    assert python(folder, f"import sys; from orcd import {names}; print({OF_A_WORKER})") == "[]\n"


def test_modules_of_the_user_s_are_not_taken_for_ours(folder: Path, demo_model: Path) -> None:
    for variables in ({}, {"PYTHONPATH": str(folder)}):
        assert python(folder, f"import orcd, sys; print({OF_A_WORKER})", **variables) == "[]\n"
        done = subprocess.run(
            [sys.executable, "-m", "orcd", "tokenize", str(demo_model), "rain"],
            cwd=folder,
            env=os.environ | variables,
            capture_output=True,
            text=True,
        )
        assert done.stdout.startswith('{"ids":['), done.stderr


def test_a_type_checker_sees_the_fields_of_a_request(folder: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is one of the linters, of the extra dev")
    file = folder / "application.py"
    file.write_text(
        "from orcd import Client\n"
        "client = Client()\n"
        "client.submit(prompt='x', max_tokens=5, messages=None)\n"
        "client.stream(messages=[{'role': 'user', 'content': 'x'}], temperature=0, stop='a')\n"
        "client.submit(prompt='x', max_tokens='5')\n"
        "client.chat('x', temprature=0)\n"
    )
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--ignore-missing-imports", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(orcd.__file__).parents[1])
    wrong = [line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line]
    assert wrong == ["5", "6"], done.stdout + done.stderr
