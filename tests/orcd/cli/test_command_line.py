"""What becomes of a command line: its exit code, and one line on standard error if it fails."""

from __future__ import annotations

import errno
import sys

import click
import pytest

from orcd.cli.command_line import INTERRUPTED, SETTINGS, run
from orcd.errors import InvalidRequest, RedisUnavailable, VramOom


def command_that(raises: BaseException | None = None, returns: int | None = None) -> click.Command:
    """``orcd``, with the one command ``act``."""

    @click.group(context_settings=SETTINGS)
    def cli() -> None:
        """A group."""

    @cli.command()
    @click.option("--number", type=int)
    def act(number: int | None) -> int | None:
        """Act."""
        if raises is not None:
            raise raises
        return returns

    return cli


@pytest.mark.parametrize(("returns", "exit_code"), [(None, 0), (0, 0), (1, 1)])
def test_the_exit_code_is_what_the_command_returns(
    returns: int | None, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command_that(returns=returns), ["act"]) == exit_code
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (InvalidRequest("top_k: too large"), 2, "orcd: INVALID_REQUEST: top_k: too large\n"),
        (RedisUnavailable("cannot reach Redis"), 1, "orcd: REDIS_UNAVAILABLE: cannot reach Redis\n"),
        (VramOom("does not fit"), 1, "orcd: VRAM_OOM: does not fit\n"),
    ],
)
def test_an_error_is_one_line_with_its_code(
    error: Exception, exit_code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command_that(raises=error), ["act"]) == exit_code
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interruption_is_told_from_a_failure(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command_that(raises=error), ["act"]) == INTERRUPTED
    assert capsys.readouterr().err.strip() == "orcd: CANCELLED: interrupted"


def test_wrong_usage_names_the_help_of_the_command_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command_that(), ["act", "--number", "seven"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("orcd: INVALID_REQUEST: ")
    assert line.endswith("(see orcd act --help)\n")


def test_a_bug_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run(command_that(raises=ZeroDivisionError()), ["act"])


def test_a_reader_that_went_away_ends_the_command_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # click replaces both
    with pytest.raises(SystemExit) as left:
        run(command_that(raises=BrokenPipeError(errno.EPIPE, "Broken pipe")), ["act"])
    assert left.value.code == 1
    assert capsys.readouterr() == ("", "")
