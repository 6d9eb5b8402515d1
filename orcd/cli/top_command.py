"""The command ``top``: workers and queues on a live screen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext

import click

from orcd.cli import terminal
from orcd.cli.command_line import json_option, redis_option
from orcd.cli.queue_commands import QUEUE_HEAD, queue_cells
from orcd.cli.worker_commands import WORKER_HEAD, worker_cells
from orcd.client import Client
from orcd.errors import RedisUnavailable, printable
from orcd.status import QueueStatus, WorkerStatus

WIDE = 120
LEFT_OUT = {"DEVICE", "UPTIME", "SEEN", "VERSION", "QUEUE", "MESSAGES", "WAITING BY PRIORITY"}
"""Columns that a screen narrower than `WIDE` characters has no room for; `orcd workers` and `orcd queue` have them."""


@click.command()
@click.option(
    "--interval", "interval_s", type=click.FloatRange(min=0.2), default=2.0, show_default=True, metavar="S",
    help="Seconds between two looks.",
)  # fmt: skip
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Look so many times, and end.")
@redis_option
@json_option
def top(interval_s: float, count: int | None, redis_url: str | None, as_json: bool) -> None:
    """Show workers and queues on a live screen until Ctrl-C.

    What the columns mean is told by `orcd workers --help` and `orcd queue --help`. With --json each look is an object
    of workers and queues.
    """
    with Client(redis_url) as client:
        if as_json:
            for number in range(count or 10**9):
                if number:
                    time.sleep(interval_s)
                terminal.write_json({"workers": client.workers(), "queues": client.queues()})
            return
        _show(client, interval_s, count)


def _show(client: Client, interval_s: float, count: int | None) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    console = Console()

    def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
        shown = [index for index, name in enumerate(head) if console.width >= WIDE or name not in LEFT_OUT]
        made = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for index in shown:
            made.add_column(head[index], no_wrap=True)
        for row in rows:
            made.add_row(*(Text(printable(str(row[index])) or "-") for index in shown))
        return made

    def screen(workers: Sequence[WorkerStatus], queues: Sequence[QueueStatus], problem: str) -> Group:
        return Group(
            Text(_summary(workers, queues), style="bold"),
            Text(problem, style="red"),
            table("workers", WORKER_HEAD, [worker_cells(each) for each in workers]),
            Text(""),
            table("queues", QUEUE_HEAD, [queue_cells(each) for each in queues]),
        )

    workers, queues = client.workers(), client.queues()
    with Live(console=console, screen=True, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        for number in range(count or 10**9):
            problem = ""
            if number:
                time.sleep(interval_s)
                try:
                    workers, queues = client.workers(), client.queues()
                except RedisUnavailable as error:  # it may come back
                    problem = error.message
            if live is None:  # a file or a pipe, in which one look follows the other
                console.print(screen(workers, queues, problem))
            else:
                live.update(screen(workers, queues, problem), refresh=True)


def _summary(workers: Sequence[WorkerStatus], queues: Sequence[QueueStatus]) -> str:
    ready = sum(worker.state == "ready" for worker in workers)
    rate = sum(worker.tokens_per_s for worker in workers)
    waiting, running = sum(queue.waiting for queue in queues), sum(queue.running for queue in queues)
    return f"{ready} of {len(workers)} workers ready, {rate:.0f} tokens/s, {running} jobs run, {waiting} wait"


COMMANDS = (top,)
