"""``orcd`` as a whole: its page of help, and what is wrong usage of any command."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib import import_module

import pytest

from orcd.cli.main import MODULES
from tests.orcd.cli.command_line import one_error, run

COMMANDS = ("batch", "bench", "cancel", "demo", "drain", "flower", "follow", "generate", "inspect", "logits", "plan",
            "queue", "render", "status", "stop", "tokenize", "worker", "workers")  # fmt: skip


def test_help_names_every_command_in_full_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    page = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"^  {name} +[A-Z].*[^.]\.$", page, re.MULTILINE), name


def test_the_lines_that_show_usage_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    page = capsys.readouterr().out
    assert re.search(r"^    orcd demo {10,}see the whole system run on this machine$", page, re.MULTILINE)


@pytest.mark.parametrize("line", ["", "bench", "nonsense", "--nonsense", "bench nonsense"])
def test_wrong_usage_is_one_line_and_exit_code_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shlex.split(line)) == 2
    one_error(capsys, "INVALID_REQUEST")


@pytest.mark.parametrize(("line", "meant"), [("wrker", "worker"), ("quue --json", "queue"), ("bench quue", "queue")])
def test_a_command_that_is_misspelt_names_the_one_that_may_be_meant(
    line: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(shlex.split(line)) == 2
    assert f"Did you mean '{meant}'" in one_error(capsys, "INVALID_REQUEST")


@pytest.mark.parametrize("module", MODULES)
def test_the_commands_of_a_module_are_those_that_it_defines(module: str) -> None:
    assert MODULES[module] == tuple(command.name for command in import_module(f"orcd.cli.{module}").COMMANDS)


@pytest.mark.parametrize(
    "lines",
    [
        "import click; from orcd.cli.main import cli; cli.get_command(click.Context(cli), 'worker')",
        "import tasks.__main__",
    ],
    ids=["orcd worker", "tasks"],
)
def test_before_the_engine_is_started_nothing_is_imported_that_takes_long(lines: str) -> None:
    heavy = "sorted({'redis', 'celery', 'numpy', 'tqdm'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{lines}; import sys; print({heavy})"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


IMPORTED = """
import sys
from orcd.cli.main import main

try:
    main()
finally:
    print([name for name in ("redis", "opentelemetry.sdk.metrics.export") if name in sys.modules])
"""


def test_a_command_that_asks_redis_imports_no_metrics_of_opentelemetry() -> None:
    command = [sys.executable, "-P", "-c", IMPORTED, "status", "job", "--redis", "redis://127.0.0.1:1/0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "['redis']\n")
