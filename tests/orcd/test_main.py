"""``python -m orcd``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def orcd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "orcd", *arguments], capture_output=True, text=True, timeout=60)


def test_the_module_is_the_command() -> None:
    done = orcd("--version")
    assert re.fullmatch(r"orcd, version \d+\.\d+\.\d+\n", done.stdout)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (("status",), 2, "INVALID_REQUEST"),
        (("status", "j", "--redis", "redis://127.0.0.1:1/0"), 1, "REDIS_UNAVAILABLE"),
    ],
    ids=["wrong usage", "no Redis"],
)
def test_a_process_that_fails_exits_with_the_code_and_prints_no_traceback(
    arguments: tuple[str, ...], exit_code: int, code: str
) -> None:
    done = orcd(*arguments)
    assert done.returncode == exit_code
    assert done.stdout == ""
    assert re.fullmatch(rf"orcd: {code}: .+\n", done.stderr)


def test_an_error_is_no_output_where_standard_error_is_closed() -> None:
    command = f"exec {sys.executable} -m orcd status 2>&-"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("module", ["orcd", "worker"])
def test_an_output_without_a_character_gets_a_question_mark(module: str, tmp_path: Path) -> None:
    """In a terminal of Latin-1 an answer with a snowman ended in a traceback."""
    (tmp_path / "template.jinja").write_text("<{{ messages[0].content }}>")
    (tmp_path / "messages.json").write_text('[{"role": "user", "content": "\\u2603"}]')
    done = subprocess.run(
        [sys.executable, "-m", module, "render", "template.jinja", "messages.json"],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "<?>", "")


def test_so_does_an_output_of_orcd_itself() -> None:
    program = "from orcd.cli.command_line import prepare_standard_streams as prepare; prepare(); print('\\u2603')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=60, check=True)
    assert done.stdout == b"?\n"
