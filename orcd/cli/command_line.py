"""How a command line of ours runs and fails: one line on standard error, ``orcd: CODE: what to do``, and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. The codes in the line are those of `orcd.errors`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from orcd.errors import Cancelled, InvalidRequest, OrcdError

INTERRUPTED = 130
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""click's context settings of every group."""


def report(code: str, message: str) -> None:
    """The one line that every error of the command line is."""
    print(f"orcd: {code}: {message}", file=sys.stderr)


def report_error(error: OrcdError) -> int:
    """Print that line; returns the exit code."""
    report(error.code, error.message)
    return 2 if isinstance(error, InvalidRequest) else 1


def run(command: click.Command, arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    A closed output ends it inside of click: quietly, with 1.
    """
    try:
        return command.main(list(arguments), prog_name="orcd", standalone_mode=False) or 0
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        report(InvalidRequest.code, error.format_message() + hint)
        return 2
    except OrcdError as error:
        return report_error(error)
    except OSError as error:  # a file or standard output that cannot be written
        report(InvalidRequest.code, f"{error.filename or 'output'}: {error.strerror}")
        return 1
    except (KeyboardInterrupt, click.Abort):
        report(Cancelled.code, "interrupted")
        return INTERRUPTED
