"""The commands that talk to a queue: generate, batch, cancel, status, follow."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import msgspec

from orcd.batch.batch_file import BatchFile
from orcd.batch.batch_run import BatchRun
from orcd.batch.progress import Bar
from orcd.cli import terminal
from orcd.cli.command_line import report
from orcd.client import Client
from orcd.errors import InvalidRequest, OrcdError
from orcd.events import Event
from orcd.store.submission import read_fields

file = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
fail_fast_option = click.option(
    "--fail-fast", is_flag=True, help="Fail at once with MODEL_NOT_SERVED if no worker serves the model."
)
redis_option = click.option("--redis", "redis_url", metavar="URL", help="Redis to use; default: $ORCD_REDIS_URL.")


@click.command()
@click.argument("prompt")
@redis_option
@click.option("--model", metavar="NAME", help="Name of the model to ask; default: any.")
@click.option("--max-tokens", type=int, metavar="N", help="Longest answer; default: what the context leaves.")
@click.option("--temperature", type=float, metavar="T", help="How random the draw is; 0 takes the likeliest token.")
@click.option("--top-p", type=float, metavar="P", help="Draw from the likeliest tokens of this total probability.")
@click.option("--top-k", type=int, metavar="K", help="Draw from the K likeliest tokens.")
@click.option("--seed", type=int, metavar="S", help="The same seed gives the same answer.")
@click.option("--stop", multiple=True, metavar="S", help="End the answer before this text; may be given again.")
@click.option(
    "--idempotency-key", metavar="KEY", help="The same key again shows the same job instead of running it twice."
)
@click.option("--raw", is_flag=True, help="Continue PROMPT as it stands instead of sending it as a chat message.")
@fail_fast_option
@json_option
def generate(prompt: str, redis_url: str | None, raw: bool, fail_fast: bool, as_json: bool, **options: Any) -> int:
    """Ask a model and print the answer as it is generated. PROMPT - reads standard input. Ctrl-C cancels the job.

    \b
      orcd generate "Write a haiku about rain" --temperature 0
      orcd generate --raw "Once upon a time" --max-tokens 50 --stop "The end"
      orcd generate - --json < question.txt
    """
    if prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError:
            raise InvalidRequest("prompt: standard input is not valid UTF-8") from None
    if not prompt:
        raise InvalidRequest("prompt: must not be empty")
    fields = {name: value for name, value in options.items() if value not in (None, ())}
    fields |= {"prompt": prompt} if raw else {"messages": [{"role": "user", "content": prompt}]}
    read_fields(fields, None)  # wrong usage is reported as such, whether Redis is there or not
    with Client(redis_url) as client:
        job_id = client.submit(fail_fast=fail_fast, **fields)
        try:
            return _show(client.events(job_id), as_json)
        except KeyboardInterrupt:
            client.cancel(job_id)
            raise


def _show(events: Iterable[Event], as_json: bool) -> int:
    """Show a job's events and return the exit code that its end means."""
    error = terminal.show_events(events) if as_json else terminal.show_text(events)
    if error is None:
        return 0
    report(error.code, error.message)
    return 1


@click.command()
@click.argument("input", type=file)
@click.argument("output", type=file)
@redis_option
@click.option("--errors", type=file, metavar="FILE", help="Where failed lines go; default: OUTPUT.errors.jsonl.")
@fail_fast_option
def batch(input: Path, output: Path, redis_url: str | None, errors: Path | None, fail_fast: bool) -> int:
    """Run a prompt file; go on where an earlier run stopped.

    OUTPUT gets one JSON object a line as jobs finish. A line of INPUT is a JSON object with the fields of a request and
    an optional id; or, if INPUT's name ends in .txt, a chat message. What is wrong with a broken line, or why its job
    failed, goes to the error file under the line's number; the other lines run. After an interruption run the same
    command again.

    \b
      echo '{"id": "a", "messages": [{"role": "user", "content": "Write a haiku about rain"}]}' > in.jsonl
      orcd batch in.jsonl out.jsonl

    Exit code 1 if lines failed.
    """
    errors = errors or output.with_name(output.name + ".errors.jsonl")
    with Client(redis_url) as client, BatchFile(input, output, errors) as lines:
        bar = Bar(lines.num_lines, lines.num_done)
        try:
            BatchRun(client, lines, bar, fail_fast=fail_fast).run()
        except (KeyboardInterrupt, OrcdError):
            bar.close()
            num_left = lines.num_lines - lines.num_done
            print(f"stopped with {num_left} lines left; run the same command again to go on", file=sys.stderr)
            raise
        bar.close()
    num_results = lines.num_resumed + lines.num_succeeded
    failed = f"; {lines.num_failed} failed, see {errors}" if lines.num_failed else ""
    print(f"{num_results} of {lines.num_lines} lines have results in {output}{failed}", file=sys.stderr)
    return 1 if lines.num_failed else 0


@click.command()
@click.argument("job")
@redis_option
def cancel(job: str, redis_url: str | None) -> None:
    """Cancel a job.

    Prints its state: running means that its worker was told to stop.
    """
    with Client(redis_url) as client:
        print(client.cancel(job))


@click.command()
@click.argument("job")
@redis_option
@json_option
def status(job: str, redis_url: str | None, as_json: bool) -> None:
    """Print where a job stands.

    Its state, who runs it, how often that has failed, tokens so far, times, and the error that it ended with.
    """
    with Client(redis_url) as client:
        found = client.status(job)
    if as_json:
        terminal.write_json(found)
        return
    error = f"{found.error.code}: {found.error.message}" if found.error else None
    for name, value in (msgspec.structs.asdict(found) | {"error": error}).items():
        print(f"{name:<12} {'-' if value in (None, '') else value}")


@click.command()
@click.argument("job")
@click.option("--from", "from_token", type=int, default=0, metavar="N", help="Leave the first N tokens out.")
@redis_option
@json_option
def follow(job: str, from_token: int, redis_url: str | None, as_json: bool) -> int:
    """Print a job's answer until it ends.

    Starts at the beginning, or after N tokens. Ctrl-C leaves the job running.
    """
    with Client(redis_url) as client:
        events = client.events(job, from_token)
        client.status(job)  # says at once what events() would wait for: Redis is away
        return _show(events, as_json)


COMMANDS = (generate, batch, cancel, status, follow)
