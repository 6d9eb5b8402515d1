"""What becomes of a command line: its exit code, and one line on standard error if it fails."""

from __future__ import annotations

import errno
import signal
import sys
import time
from typing import Any

import click
import pytest

from orcd.cli.command_line import AGAIN_S, INTERRUPTED, SETTINGS, kept_interruptions, run
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
        (
            UnicodeEncodeError("utf-8", "a secret \udce9", 9, 10, "surrogates not allowed"),
            2,
            "orcd: INVALID_REQUEST: a text, name or path of the command or of the environment is not valid UTF-8\n",
        ),
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


class InterruptedAsItGoes:
    """Somebody presses Ctrl-C while it is finalised; as with the clients of Redis, nobody can tell when that is."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


class FailsAsItGoes:
    """Has a bug."""

    def __del__(self) -> None:
        raise ZeroDivisionError


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[type[BaseException]]:
    """What the interpreter reports because nobody can catch it."""
    types: list[type[BaseException]] = []

    def report(unraisable: Any) -> None:
        types.append(unraisable.exc_type)

    monkeypatch.setattr(sys, "unraisablehook", report)
    return types


def test_an_interruption_that_the_interpreter_drops_ends_a_wait_that_begins_later(
    reported: list[type[BaseException]],
) -> None:
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), kept_interruptions():
        InterruptedAsItGoes()
        time.sleep(60)
    assert time.monotonic() - begun < 30
    assert reported == []


def test_several_that_are_dropped_interrupt_once(reported: list[type[BaseException]]) -> None:
    with pytest.raises(KeyboardInterrupt), kept_interruptions():
        for _ in range(3):
            InterruptedAsItGoes()
            time.sleep(AGAIN_S / 10)
        time.sleep(60)
    time.sleep(2 * AGAIN_S)
    assert reported == []


def test_other_errors_of_finalisers_are_reported_as_ever(reported: list[type[BaseException]]) -> None:
    with kept_interruptions():
        FailsAsItGoes()
    FailsAsItGoes()
    assert reported == [ZeroDivisionError, ZeroDivisionError]


def test_after_the_command_the_interpreter_drops_interruptions_again(reported: list[type[BaseException]]) -> None:
    with kept_interruptions():
        pass
    InterruptedAsItGoes()
    assert reported == [KeyboardInterrupt]
