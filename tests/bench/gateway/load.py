"""What the gateway costs beside the Python client, and how many streams it holds.

    python -m tests.bench.gateway.load [--requests 200] [--seconds 10] [--streams 1000]

Everything runs on this machine: Redis, a worker with the model that ships on the CPU device, one gateway, and the
callers in one process. First ``--requests`` streams one at a time, by the client and by the gateway in turn: how long
until the first token. Then as many requests of one token as 16 callers get answered in ``--seconds``, by each. Last,
``--streams`` streams at once, whose tokens are written by a worker that is played here, one a second for each: how long
from the log in Redis to the caller. The same of a tenth of them, alone, and beside callers who read nothing of 16 MB
each until the others have ended. Exit code 1 if a stream lost a token or its end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from orcd.async_client import AsyncClient
from orcd.events import Token
from tasks.local.redis_server import RedisServer
from tests.bench.gateway.http_connection import HttpConnection
from tests.bench.gateway.played_worker import PlayedWorker
from tests.conftest import DEMO_MODEL
from tests.orcd.gateway.gateway_process import GatewayProcess
from tests.tasks.worker_process import WorkerProcess

CALLERS = 16
REQUEST: dict[str, Any] = {"prompt": "Write a haiku about rain", "temperature": 0, "ignore_eos": True}
NUM_EVENTS = 10
CONNECT_AT_ONCE = 50
NUM_SLOW, SLOW_EVENTS, SLOW_BYTES = 5, 1000, 16_000
PATH = "/completions"


def percentiles(values: Sequence[float]) -> str:
    """The 50th and the 99th, of seconds as milliseconds."""
    p50, p99 = np.percentile(values, [50, 99]) * 1000
    return f"{p50:.1f} / {p99:.1f}"


async def first_tokens(redis_url: str, url: str, num_requests: int) -> list[str]:
    """Streams one at a time: a row each for the client and the gateway, and the difference of their medians."""
    by_client: list[float] = []
    by_gateway: list[float] = []
    connection = await HttpConnection.open(url)
    async with AsyncClient(redis_url) as client:
        for _ in range(num_requests):
            begin = time.perf_counter()
            job_id = await client.submit(**REQUEST, max_tokens=2)
            async with aclosing(client.events(job_id)) as events:
                async for event in events:
                    if isinstance(event, Token):
                        by_client.append(time.perf_counter() - begin)
                        break
            begin, first = time.perf_counter(), 0.0
            async for _data in connection.stream(PATH, {**REQUEST, "max_tokens": 2, "stream": True}):
                first = first or time.perf_counter()
            by_gateway.append(first - begin)
    await connection.close()
    added_ms = 1000 * (np.median(by_gateway) - np.median(by_client))
    return [
        f"| first token by the client, p50 / p99 ms | {percentiles(by_client)} |",
        f"| first token by the gateway, p50 / p99 ms | {percentiles(by_gateway)} |",
        f"| added by the gateway, ms | {added_ms:.1f} |",
    ]


async def rates(redis_url: str, url: str, gateway: psutil.Process, seconds: float) -> list[str]:
    """Requests of one token by so many callers at once: a row each for the client and the gateway."""
    request = {**REQUEST, "max_tokens": 1}
    async with AsyncClient(redis_url) as client:

        async def ask() -> None:
            await client.result(await client.submit(**request))

        by_client = await _answered([ask] * CALLERS, seconds) / seconds
    connections = [await HttpConnection.open(url) for _ in range(CALLERS)]
    before_s = _cpu_s(gateway)
    num = await _answered([lambda each=each: each.answer(PATH, request) for each in connections], seconds)
    cpu_ms = 1000 * (_cpu_s(gateway) - before_s) / num
    for connection in connections:
        await connection.close()
    return [
        f"| requests a second by the client, {CALLERS} callers | {by_client:.0f} |",
        f"| requests a second by the gateway, {CALLERS} callers | {num / seconds:.0f} |",
        f"| CPU time of the gateway a request, ms | {cpu_ms:.2f} |",
    ]


async def _answered(callers: Sequence[Callable[[], Awaitable[Any]]], seconds: float) -> int:
    """How many requests are answered in this time."""
    end = time.monotonic() + seconds
    num_answered = 0

    async def run(ask: Callable[[], Awaitable[Any]]) -> None:
        nonlocal num_answered
        while time.monotonic() < end:
            await ask()
            num_answered += 1

    await asyncio.gather(*map(run, callers))
    return num_answered


@dataclass
class Held:
    """Streams that were held: how long each token took, how much memory the gateway had, and what was wrong."""

    delays: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    num_open: int = 0
    mib: float = 0.0


async def hold(redis_url: str, url: str, gateway: psutil.Process, num_streams: int) -> Held:
    """Many streams at once."""
    held = Held()
    gate = asyncio.Semaphore(CONNECT_AT_ONCE)
    worker = PlayedWorker(redis_url, NUM_EVENTS)

    async def follow(number: int) -> None:
        async with gate:
            connection = await HttpConnection.open(url)
        numbers = []
        async for data in connection.stream(PATH, {**REQUEST, "model": worker.model, "stream": True}):
            for written_s, event_number in worker.read(data):
                held.delays.append(time.time() - written_s)
                numbers.append(event_number)
        if numbers != list(range(1, NUM_EVENTS + 1)):
            held.problems.append(f"stream {number}: events {numbers}")
        await connection.close()

    following = [asyncio.create_task(follow(number)) for number in range(num_streams)]
    await asyncio.to_thread(worker.claim, num_streams)
    held.num_open = sum(not task.done() for task in following)
    playing = asyncio.create_task(asyncio.to_thread(worker.play))
    await asyncio.sleep(NUM_EVENTS / 2)
    held.mib = _mib(gateway)
    await playing
    await asyncio.gather(*following)
    return held


async def many(redis_url: str, url: str, gateway: psutil.Process, num_streams: int) -> tuple[list[str], list[str]]:
    """Rows about streams that were held, and what was wrong."""
    before_mib, before_s = _mib(gateway), _cpu_s(gateway)
    held = await hold(redis_url, url, gateway, num_streams)
    cpu_ms = 1000 * (_cpu_s(gateway) - before_s) / (num_streams * NUM_EVENTS)
    rows = [
        f"| streams open at once | {held.num_open:,} |",
        f"| whole | {num_streams - len(held.problems):,} |",
        f"| from the log to the caller, p50 / p99 ms | {percentiles(held.delays)} |",
        f"| CPU time of the gateway a token, ms | {cpu_ms:.2f} |",
        f"| memory of the gateway, before and meanwhile, MiB | {before_mib:.0f}, {held.mib:.0f} |",
    ]
    return rows, held.problems


async def beside_slow(
    redis_url: str, url: str, gateway: psutil.Process, num_streams: int
) -> tuple[list[str], list[str]]:
    """Rows about streams beside callers who read nothing, and what was wrong."""
    alone = await hold(redis_url, url, gateway, num_streams)
    worker = PlayedWorker(redis_url, SLOW_EVENTS, 0.0, model="slow", num_spaces=SLOW_BYTES)
    connections = [await HttpConnection.open(url) for _ in range(NUM_SLOW)]
    body = {**REQUEST, "model": worker.model, "stream": True}
    begun = [asyncio.create_task(connection.post(PATH, body)) for connection in connections]
    await asyncio.to_thread(worker.claim, NUM_SLOW)
    await asyncio.to_thread(worker.play)
    await asyncio.gather(*begun)
    beside = await hold(redis_url, url, gateway, num_streams)
    problems = [*alone.problems, *beside.problems]
    for connection in connections:
        numbers = [number async for data in connection.events() for _, number in worker.read(data)]
        if numbers != list(range(1, SLOW_EVENTS + 1)):
            problems.append(f"a slow caller: {len(numbers)} events")
        await connection.close()
    unread = f"{NUM_SLOW} callers who read nothing of {SLOW_EVENTS * SLOW_BYTES / 1e6:.0f} MB each"
    return [
        f"| the same of {num_streams} streams, p50 / p99 ms | {percentiles(alone.delays)} |",
        f"| beside {unread}, p50 / p99 ms | {percentiles(beside.delays)} |",
        f"| memory of the gateway then, MiB | {beside.mib:.0f} |",
    ], problems


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _mib(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 2**20


def measure(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """All rows, and what was wrong."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a stream is two connections of the gateway
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(RedisServer())
        gateway = stack.enter_context(GatewayProcess(server.url))
        process = psutil.Process(gateway.process.pid)
        with WorkerProcess(server.url, DEMO_MODEL, folder):
            rows = asyncio.run(first_tokens(server.url, gateway.url, arguments.requests))
            rows += asyncio.run(rates(server.url, gateway.url, process, arguments.seconds))
        held = asyncio.run(many(server.url, gateway.url, process, arguments.streams))
        beside = asyncio.run(beside_slow(server.url, gateway.url, process, arguments.streams // 10))
    return rows + held[0] + beside[0], held[1] + beside[1]


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What is measured; exits with 2 for wrong usage."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gateway.load", description=description)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=1000)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    rows, problems = measure(read_arguments(argv))
    print("\n".join(["| | |", "|---|---|", *rows]))
    print(f"\nload average of the last minute: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for problem in problems:
        print(problem)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
