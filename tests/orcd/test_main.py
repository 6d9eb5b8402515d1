"""``python -m orcd``."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest


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
