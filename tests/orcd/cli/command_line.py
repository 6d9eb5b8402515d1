"""The command line, run inside of a test."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import click
import pytest
import redis

import tasks.__main__
import worker.__main__
from orcd.cli import command_line
from orcd.cli.main import cli


def run(arguments: Sequence[str]) -> int:
    """Run one command line of ``orcd`` and return its exit code."""
    return command_line.run(cli, arguments)


def flags(name: str) -> set[str]:
    """All options of a command of ``orcd``."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return {option for parameter in command.params for option in parameter.opts}


def run_with_program(arguments: Sequence[str]) -> int:
    """The same; a command that becomes another program runs that program inside of the test too."""
    commands: list[list[str]] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "execve", lambda _path, command, _environment: commands.append(command))
        code = run(arguments)
    match commands:
        case [[_, "-P", "-m", "tasks", *rest]]:
            return command_line.run(tasks.__main__.cli, rest)
        case [[_, "-P", "-m", "worker", *rest]]:
            return worker.__main__.main(rest)
    return code


class Finished(NamedTuple):
    """What a command left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


def run_apart(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Finished:
    """`run_with_program` in a folder and with an environment of its own, as a process would have them."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with (
        patch.dict(os.environ, dict(environment), clear=True),
        chdir(folder),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        code = run_with_program(arguments)
    return Finished(code, *(each.buffer.getvalue().decode() for each in (out, err)))  # type: ignore[attr-defined]


def one_error(capsys: pytest.CaptureFixture[str], code: str) -> str:
    """The message of the one line on standard error (click ends an interrupted line with an empty one)."""
    [line] = capsys.readouterr().err.strip().splitlines()
    found = re.fullmatch(r"orcd: ([A-Z_]+): (.+)", line)
    assert found, line
    assert found[1] == code
    return found[2]


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON objects."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def requests_in(connection: redis.Redis) -> list[dict[str, Any]]:
    """The requests of all jobs that there are."""
    return [json.loads(connection.hget(key, "request") or b"") for key in connection.keys("orcd:*:job")]
