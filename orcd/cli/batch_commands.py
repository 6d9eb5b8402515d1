"""The command about prompt files: batch."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from orcd import request as requests
from orcd.batch.batch_file import BatchFile, BatchPaths
from orcd.batch.batch_options import BatchOptions
from orcd.batch.batch_run import BatchRun
from orcd.batch.cancellation import cancel_batch
from orcd.batch.formats.defaults import Defaults
from orcd.batch.journal import Journal
from orcd.batch.progress import Bar
from orcd.cli.command_line import fail_fast_option, given, input_options, redis_option
from orcd.client import Client
from orcd.errors import InvalidRequest, OrcdError


@click.command()
@click.argument("files", nargs=-1, metavar="INPUT... OUTPUT")
@redis_option
@click.option("--errors", metavar="FILE", help="Where failed lines go; default: OUTPUT.errors.jsonl.")
@click.option(
    "--output-format",
    type=click.Choice(["auto", "orcd", "openai"]),
    help="What OUTPUT will hold; default: auto, openai for INPUTs that are, else orcd.",
)
@click.option(
    "--order", type=click.Choice(["completion", "input"]), help="Order of OUTPUT; default: as jobs are completed."
)
@input_options
@fail_fast_option
@click.option("--retry", metavar="OUTPUT", help="Run again what has no result in OUTPUT; INPUT need not be named.")
@click.option("--cancel", metavar="OUTPUT", help="Cancel the jobs that a stopped run has left behind.")
def batch(files: Sequence[str], redis_url: str | None, fail_fast: bool, **options: Any) -> int:
    """Run prompt files; go on where an earlier run stopped.

    INPUT is a file, gzip or not, or - for standard input. Its lines are requests: JSON objects with the fields of a
    request and an optional id; the lines of OpenAI's Batch API; text, a message a line (.txt); or the rows of a table
    (.csv) with a column named prompt, or with --prompt. --model, --max-tokens and so on are for lines that do not say
    otherwise.

    OUTPUT gets one JSON object a line as jobs are completed, and can be read at any time; - is standard output. What is
    wrong with a broken line, or why its job failed, goes to the error file with the line's number and id; the other
    lines run.

    \b
      orcd batch requests.jsonl results.jsonl
      orcd batch questions.txt more.txt.gz results.jsonl --max-tokens 200 --system "Answer briefly."
      orcd batch articles.csv results.jsonl --prompt "Summarise: {text}" --response-format summary.json
      zcat requests.jsonl.gz | orcd batch - - > results.jsonl

    After an interruption, or to run failed lines again, run the same command again: lines that have a result are left
    alone, and jobs that go on are found. --retry OUTPUT does that without the command at hand.

    Exit code 1 if lines failed.
    """
    other = given({name: value for name, value in options.items() if name not in ("retry", "cancel")})
    if options["retry"] or options["cancel"]:
        if files or other or fail_fast or (options["retry"] and options["cancel"]):
            raise InvalidRequest("--retry and --cancel: give one of them with OUTPUT and nothing else but --redis")
        _check_output(options["retry"] or options["cancel"])
        return _retry(options["retry"], redis_url) if options["retry"] else _cancel(options["cancel"], redis_url)
    if len(files) < 2:
        raise InvalidRequest("give at least one INPUT, and OUTPUT (- is standard input and output)")
    _check_output(files[-1])
    paths = BatchPaths(files[:-1], files[-1], other.pop("errors", None))
    return _run(paths, batch_options(other, fail_fast=fail_fast), redis_url)


def _check_output(output: str) -> None:
    if not Path(output).name:  # other files' names are made of it
        raise InvalidRequest(f"OUTPUT: {shlex.quote(output)} is no name of a file")


def batch_options(options: dict[str, Any], *, fail_fast: bool = False) -> BatchOptions:
    """From the options of the command line that were given. Raises `InvalidRequest` for one that no line could have."""
    of_batch = {name: options.pop(name) for name in ("format", "output_format", "order", "prompt") if name in options}
    system = options.pop("system", None)
    if "response_format" in options:
        options["response_format"] = _response_format(options["response_format"])
    requests.parse({"prompt": "a", **options})  # wrong usage is reported once, and not for each line
    return BatchOptions(**of_batch, fail_fast=fail_fast, defaults=Defaults(options, system))


def _response_format(given: str) -> Any:
    """What an option says that is JSON, or the name of a file with it. Raises `InvalidRequest`."""
    try:
        return msgspec.json.decode(given if given.lstrip().startswith("{") else Path(given).read_bytes())
    except OSError as error:
        raise InvalidRequest(f"--response-format: {given}: cannot be read ({error.strerror})") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise InvalidRequest("--response-format: must be JSON in UTF-8, or a file that holds it") from None


def _retry(output: str, redis_url: str | None) -> int:
    command = Journal.command(Path(output))
    return _run(BatchPaths(command.inputs, output, command.errors), command.options, redis_url)


def _cancel(output: str, redis_url: str | None) -> int:
    with Client(redis_url) as client:
        num_cancelled = cancel_batch(client, Path(output))
    print(
        f"{num_cancelled} jobs cancelled; orcd batch --retry {shlex.quote(output)} runs what is left", file=sys.stderr
    )
    return 0


def _run(paths: BatchPaths, options: BatchOptions, redis_url: str | None) -> int:
    with Client(redis_url) as client, BatchFile(paths, options) as file:
        prints_results = not file.can_go_on and sys.stdout.isatty()
        bar = Bar(file.num_lines, file.num_done, is_drawn=not prints_results)
        run = BatchRun(client, file, bar, fail_fast=options.fail_fast)
        try:
            run.run()
        except (KeyboardInterrupt, OrcdError, OSError):
            if not file.can_go_on:
                run.cancel()  # first: the terminal that all else is told to may be gone
            bar.close()
            print(_stopped(file, run.num_in_flight, paths.output), file=sys.stderr)
            raise
        bar.close()
        print(_finished(file, paths), file=sys.stderr)
        return 1 if file.num_failed else 0


def _stopped(file: BatchFile, num_in_flight: int, output: str) -> str:
    left = f"stopped with {file.num_lines - file.num_done} of {file.num_lines} lines left"
    if not file.can_go_on:
        return f"{left}; {num_in_flight} jobs cancelled, for there is no file to go on with"
    if not num_in_flight:
        return f"{left}; run the same command again to go on"
    return (
        f"{left}; {num_in_flight} jobs go on in the background: run the same command again to go on, "
        f"or orcd batch --cancel {shlex.quote(output)} to cancel them"
    )


def _finished(file: BatchFile, paths: BatchPaths) -> str:
    num_results = file.num_resumed + file.num_succeeded
    found = f"{num_results} of {file.num_lines} lines have results in {paths.output}"
    if not file.num_failed:
        return found
    where = paths.errors_name or "standard error"
    again = f"; orcd batch --retry {shlex.quote(paths.output)} runs them again" if file.can_go_on else ""
    return f"{found}; {file.num_failed} failed, see {where}{again}"


COMMANDS = (batch,)
