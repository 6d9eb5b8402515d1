"""The commands about single jobs: generate, cancel, status, follow."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import click
import msgspec

from orcd.cli import terminal
from orcd.cli.command_line import fail_fast_option, given, json_option, redis_option, report, request_options
from orcd.cli.status_page import status_page
from orcd.client import Client
from orcd.errors import InvalidRequest, printable
from orcd.events import Event
from orcd.store.submission import read_fields


@click.command()
@click.argument("prompt")
@redis_option
@request_options
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
    fields = given(options)
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

    Its state, who runs it, how often that has failed, tokens so far, times, and the error that it ended with. Of a job
    that waits: why, how many are ahead of it, and about when it starts.
    """
    with Client(redis_url) as client:
        found = client.status(job)
        estimate = client.wait_estimate(job) if found.state == "queued" else None
    if as_json:
        terminal.write_json(msgspec.structs.asdict(found) | ({"wait": estimate} if estimate else {}))
        return
    for name, text in status_page(found, estimate):
        print(f"{name:<12} {printable(text)}")


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


COMMANDS = (generate, cancel, status, follow)
