"""The commands about what lies in the queues: queue, jobs, dead, migrate."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import click
import msgspec

from orcd.cli import terminal
from orcd.cli.command_line import SETTINGS, SuggestingGroup, json_option, redis_option
from orcd.client import Client
from orcd.errors import InvalidRequest, printable
from orcd.settings import ClientSettings, read_environment
from orcd.status import JobSummary, QueueStatus
from orcd.store.dead_letters import DeadLetter, DeadLetters
from orcd.store.redis_connection import connect, redis_errors
from orcd.store.schema import STATES

letter_argument = click.argument("letter", metavar="ID", required=False)
all_option = click.option("--all", "is_all", is_flag=True, help="All of them.")


QUEUE_HEAD = (
    "QUEUE",
    "MODEL",
    "WORKERS",
    "RUNNING",
    "WAITING",
    "OLDEST",
    "DRAINS",
    "MESSAGES",
    "WAITING BY PRIORITY",
)


def queue_cells(queue: QueueStatus) -> Sequence[object]:
    """What stands below each title of `QUEUE_HEAD`."""
    drain = "unknown" if queue.workers else "never"
    return (
        queue.queue,
        "any" if queue.model is None else queue.model,
        queue.workers or "nobody",
        queue.running,
        queue.waiting,
        "" if queue.oldest_ms is None else terminal.duration(queue.oldest_ms),
        drain if queue.drain_ms is None else terminal.duration(queue.drain_ms),
        queue.messages,
        " ".join(f"{priority}:{number}" for priority, number in queue.priorities.items()),
    )


@click.command()
@redis_option
@json_option
def queue(redis_url: str | None, as_json: bool) -> None:
    """Print what waits and runs, and who serves it.

    A line for each queue: how many workers serve it, or nobody; how many jobs run and wait, the oldest how long, and in
    about what time none would wait if no more came, at the rate at which the workers have ended jobs of late. MESSAGES
    are those in Celery's lists; a request that comes inside of one counts as a job once a worker has taken it.
    """
    with Client(redis_url) as client:
        found = client.queues()
    if as_json:
        for each in found:
            terminal.write_json(each)
        return
    terminal.show_table(QUEUE_HEAD, map(queue_cells, found))


@click.command()
@click.option("--state", type=click.Choice(STATES), help="Only these; default: those that run, then those that wait.")
@click.option("--model", metavar="NAME", help="Only those that ask for this model, or run on it.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, metavar="N", help="At most N of each state."
)
@redis_option
@json_option
def jobs(state: str | None, model: str | None, limit: int, redis_url: str | None, as_json: bool) -> None:
    """Print jobs, a line each.

    Those that were submitted first come first, of ended ones those that ended last. AGE is the time since a job was
    submitted, RAN that from its first start to its end, or up to now. OUTCOME is an error's code or a finish reason.

    \b
      orcd jobs --state failed --limit 20
      orcd jobs --model qwen2.5-7b --json
    """
    with Client(redis_url) as client:
        found = client.jobs(state, model, limit)
    if as_json:
        for each in found:
            terminal.write_json(each)
        return
    terminal.show_table(JOB_HEAD, map(_job_cells, found))


JOB_HEAD = ("JOB", "STATE", "MODEL", "PRIORITY", "AGE", "RAN", "ATTEMPTS", "OUTCOME", "WORKER")


def _job_cells(job: JobSummary) -> Sequence[object]:
    ran_ms = None if job.started_ms is None else (job.finished_ms or job.as_of_ms) - job.started_ms
    return (
        job.job_id,
        job.state,
        job.model or "any",
        job.priority,
        terminal.duration(max(0, job.as_of_ms - job.created_ms)),
        "" if ran_ms is None else terminal.duration(max(0, ran_ms)),
        job.attempt,
        job.outcome,
        job.worker or "",
    )


@contextmanager
def _dead_letters(redis_url: str | None) -> Iterator[DeadLetters]:
    settings = read_environment(ClientSettings, redis_url=redis_url)
    with redis_errors(settings), connect(settings) as connection:
        yield DeadLetters(connection, settings.key_prefix)


@click.group(cls=SuggestingGroup, context_settings=SETTINGS, no_args_is_help=False)
def dead() -> None:
    """Look after the dead letters: messages that no worker could read, and those of other applications.

    They do no harm where they are: workers go on with the next message. Each is kept for a week, the last thousand of
    them, and of one that could not be read only the first 64 KiB.

    \b
      orcd dead list
      orcd dead show 1767225600000-0
      orcd dead retry 1767225600000-0 --queue celery
      orcd dead drop --all
    """


@dead.command("list")
@redis_option
@json_option
def list_(redis_url: str | None, as_json: bool) -> None:
    """Print the dead letters, the oldest first: id, time, list, bytes, the message's own id, what is wrong with it."""
    with _dead_letters(redis_url) as letters:
        for letter in letters:
            if as_json:
                terminal.write_json(letter)
            else:
                words = (
                    letter.id,
                    _time(letter),
                    letter.list_name,
                    letter.num_bytes,
                    letter.message_id or "-",
                    letter.reason,
                )
                print(*(printable(str(word)) for word in words), sep="  ")


@dead.command()
@click.argument("letter", metavar="ID")
@click.option("--raw", is_flag=True, help="Print the message's bytes, which may hold a prompt, and nothing else.")
@redis_option
@json_option
def show(letter: str, raw: bool, redis_url: str | None, as_json: bool) -> None:
    """Print what is known of a dead letter; with --raw the message itself, as much as was kept of it."""
    with _dead_letters(redis_url) as letters:
        found, text = letters.get(letter)
    if raw:
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
    elif as_json:
        terminal.write_json(found)
    else:
        for name, value in (msgspec.structs.asdict(found) | {"at_ms": _time(found)}).items():
            print(f"{name.removesuffix('_ms'):<16} {printable(str(value or '-'))}")


@dead.command()
@letter_argument
@all_option
@click.option("--queue", default="", metavar="NAME", help="Where to; default: where it came from.")
@redis_option
def retry(letter: str | None, is_all: bool, queue: str, redis_url: str | None) -> int:
    """Send a dead letter again, byte for byte, to the queue that it came from or to another one.

    A message of another application comes back here unless it is sent to a queue of its own.
    """

    def send(letters: DeadLetters, letter_id: str) -> str:
        return f"{letter_id} sent to {letters.retry(letter_id, queue)}"

    return _for_each(letter, is_all, redis_url, send)


@dead.command()
@letter_argument
@all_option
@redis_option
def drop(letter: str | None, is_all: bool, redis_url: str | None) -> int:
    """Delete a dead letter."""

    def delete(letters: DeadLetters, letter_id: str) -> str:
        letters.drop(letter_id)
        return f"{letter_id} dropped"

    return _for_each(letter, is_all, redis_url, delete)


def _for_each(letter: str | None, is_all: bool, redis_url: str | None, do: Callable[[DeadLetters, str], str]) -> int:
    """Do something to one dead letter or to all that there are, and print what was done. Returns the exit code."""
    if (letter is None) != is_all:
        raise InvalidRequest("give the ID of a dead letter, or --all")
    num_failed = 0
    with _dead_letters(redis_url) as letters:
        if letter is not None:
            print(do(letters, letter))
            return 0
        for letter_id in [found.id for found in letters]:
            try:
                print(do(letters, letter_id))
            except InvalidRequest as error:
                num_failed += 1
                print(printable(error.message), file=sys.stderr)
    return 1 if num_failed else 0


def _time(letter: DeadLetter) -> str:
    return datetime.fromtimestamp(letter.at_ms / 1000, UTC).isoformat(timespec="seconds")


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be moved.")
@redis_option
def migrate(dry_run: bool, redis_url: str | None) -> None:
    """Move the jobs that earlier versions of orcd left in queues which no worker reads any more.

    Those are the list celery, where orcd's jobs go to the queue orcd and all else stays as it is, and queues of models
    whose names have characters that are escaped now. It may run beside workers, and again.
    """
    settings = read_environment(ClientSettings, redis_url=redis_url)
    if settings.key_prefix:
        raise InvalidRequest("migrate: earlier versions had no key prefix; run it without ORCD_KEY_PREFIX")
    from orcd.cli.migration import Migration  # not at the top: the other commands have no use for Celery

    verb = "would be moved" if dry_run else "moved"
    num_messages = 0
    with redis_errors(settings), connect(settings) as connection:
        for moved in Migration(connection).run(dry=dry_run):
            num_messages += moved.num_messages
            print(f"{moved.num_messages} from {printable(moved.source)} to {printable(moved.target)}")
    print(f"{num_messages} messages {verb}")


COMMANDS = (queue, jobs, dead, migrate)
