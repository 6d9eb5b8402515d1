"""How a command line of ours runs and fails: one line on standard error, ``orcd: CODE: what to do``, and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. The codes in the line are those of `orcd.errors`. And the
options that several commands have: here, because nothing else that takes long to import comes with them.
"""

from __future__ import annotations

import atexit
import difflib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from orcd.errors import NOT_UTF_8, Cancelled, InvalidRequest, OrcdError, printable

INTERRUPTED = 130
AGAIN_S = 0.05
"""How long after it was dropped an interruption comes again: what dropped it has then ended, mostly."""
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""click's context settings of every group."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
fail_fast_option = click.option(
    "--fail-fast", is_flag=True, help="Fail at once with MODEL_NOT_SERVED if no worker serves the model."
)
redis_option = click.option("--redis", "redis_url", metavar="URL", help="Redis to use; default: $ORCD_REDIS_URL.")

_REQUEST_OPTIONS = (
    click.option("--model", metavar="NAME", help="Name of the model to ask; default: any."),
    click.option("--max-tokens", type=int, metavar="N", help="Longest answer; default: what the context leaves."),
    click.option("--temperature", type=float, metavar="T", help="How random the draw is; 0 takes the likeliest token."),
    click.option("--top-p", type=float, metavar="P", help="Draw from the likeliest tokens of this total probability."),
    click.option("--top-k", type=int, metavar="K", help="Draw from the K likeliest tokens."),
    click.option("--seed", type=int, metavar="S", help="The same seed gives the same answer."),
    click.option("--stop", multiple=True, metavar="S", help="End the answer before this text; may be given again."),
)
_INPUT_OPTIONS = (
    click.option(
        "--format",
        type=click.Choice(["auto", "orcd", "openai", "text", "csv"]),
        help="What INPUT holds; default: auto, from its name and first lines.",
    ),
    click.option("--prompt", metavar="TEXT", help='Prompt for each row of a CSV file, as "Summarise: {column}".'),
    click.option("--system", metavar="TEXT", help="System message of conversations that have none."),
    click.option("--response-format", metavar="FILE|JSON", help="Form of the answers, as OpenAI's response_format."),
)
Function = TypeVar("Function", bound=Callable[..., Any])


class SuggestingGroup(click.Group):
    """A group of commands that names the one which may be meant by a misspelt name, as click does of options."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments begin with, and the other arguments."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            similar = difflib.get_close_matches(name, self.list_commands(ctx), 1)
            ctx.fail(f"No such command '{name}'." + (f" Did you mean '{similar[0]}'?" if similar else ""))
        return super().resolve_command(ctx, args)


def request_options(command: Function) -> Function:
    """The options that are fields of a request, for a command."""
    return reduce(lambda decorated, option: option(decorated), reversed(_REQUEST_OPTIONS), command)


def input_options(command: Function) -> Function:
    """The options that say how INPUT becomes requests, for a command."""
    return reduce(lambda decorated, option: option(decorated), reversed(_INPUT_OPTIONS), request_options(command))


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's options that were given."""
    return {name: value for name, value in options.items() if value not in (None, ())}


def report(code: str, message: str) -> None:
    """The one line that every error of the command line is."""
    print(f"orcd: {code}: {printable(message)}", file=sys.stderr)


def report_error(error: OrcdError) -> int:
    """Print that line; returns the exit code."""
    report(error.code, error.message)
    return 2 if isinstance(error, InvalidRequest) else 1


def run(command: click.Command, arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    A closed output ends it inside of click: quietly, with 1.
    """
    try:
        with kept_interruptions():
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
    except UnicodeEncodeError:
        report(InvalidRequest.code, NOT_UTF_8)
        return 2
    except (KeyboardInterrupt, click.Abort):
        report(Cancelled.code, "interrupted")
        return INTERRUPTED


@contextmanager
def kept_interruptions() -> Iterator[None]:
    """A block of the main thread in which no `KeyboardInterrupt` is lost.

    Python raises it between any two instructions. In a ``__del__``, or in another callback of the interpreter, nobody
    can catch it: it is reported and dropped, and the program would go on as if nobody had pressed a key. Here it is
    raised again, until it comes where it ends the block.
    """
    report = sys.unraisablehook
    coming: list[threading.Timer] = []

    def keep(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            report(unraisable)
            return
        coming.append(threading.Timer(AGAIN_S, _interrupt_main_thread))
        coming[-1].daemon = True
        coming[-1].start()

    sys.unraisablehook = keep
    try:
        yield
    finally:
        sys.unraisablehook = report
        for timer in coming:
            timer.cancel()


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """A block of the main thread that SIGTERM, and SIGHUP of a closed terminal, end as Ctrl-C does: in order.

    A signal that is ignored, as under ``nohup``, stays so, and one that somebody else has a handler for is left to it.
    """

    def interrupt(_signal_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def prepare_standard_streams() -> None:
    """Open those of standard input, output and error that are closed (``2>&-``), on nothing.

    Python would write errors to standard output then, and the next file or connection would have the number of one of
    them, to which programs that we start would write. A character that the output has not is a question mark.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # the lowest number that is free is given
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 - for as long as we run
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def ignore_signals_at_exit() -> None:
    """Have this process, which ends in order when it is told to, end so when it is told once more at its very end.

    Python puts back what signals do by default before it has ended, which is to end it with an exit code of theirs.
    """

    def ignore() -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)

    atexit.register(ignore)


def leave(*_: object) -> NoReturn:
    """End the process in order, for the signals that ask it to before it has anything to end."""
    raise SystemExit(os.EX_OK)


def _interrupt_main_thread() -> None:
    """As the terminal does: a signal also ends a call that waits, which `_thread.interrupt_main` would not."""
    identifier = threading.main_thread().ident
    assert identifier is not None, "the main thread runs"
    signal.pthread_kill(identifier, signal.SIGINT)
