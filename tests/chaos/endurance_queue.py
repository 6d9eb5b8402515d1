"""A deep queue, many listeners, and then many jobs that are soon forgotten: what they cost in memory.

    python -m tests.chaos.endurance_queue [--queued 10000] [--clients 500] [--jobs 100000] [--minutes 30] [--ttl 60]

One worker on the CPU serves one of the small models of tests/models. First ``--queued`` jobs wait, ``--clients`` of
them with a listener, and are worked off. Then ``--jobs`` jobs come at an even rate over ``--minutes``, each kept for
``--ttl`` seconds after its end. Exit code 1 if a job was not right, memory of a process grew by 5 MB or more in the
last half, or Redis was not empty at the end but for what Celery keeps for ever.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

import redis

from orcd.async_client import AsyncClient
from orcd.client import Client
from orcd.errors import OrcdError
from orcd.events import Event
from orcd.store import schema
from tasks.local.redis_server import RedisServer
from tests.bench.streams import check_events
from tests.chaos.clients.cases import DEMO, OTHER
from tests.chaos.memory_watch import MemoryWatch
from tests.chaos.system.worker_fleet import WorkerFleet
from tests.chaos.table import table

NUM_TOKENS = 6
LONG_TOKENS = 900
AT_ONCE = 24
"""Listeners of the second part."""
TIMEOUT_S = 900.0
MOST_GROWTH_BYTES = 5e6
SAMPLE_S = 5.0
LEASE_MS = 10_000
KEPT_BY_CELERY = ("_kombu.", "unacked")
KEPT_FOR_AN_HOUR = (schema.CONTACT, schema.EMPTIED, schema.READY, schema.SERVED)
FORGET_MARGIN_S = 15.0
MEMORY_COLUMNS = ["process", "begin, MB", "half, MB", "end, MB", "most, MB", "growth in the last half, MB"]


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What is run; exits with 2 for wrong usage."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.endurance_queue", description=description)
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--ttl", type=int, default=60)
    return parser.parse_args(argv)


def fields_of(number: int) -> dict[str, Any]:
    """A short job."""
    prompt = [5 + number % 200, 7, 11]
    return {"prompt_token_ids": prompt, "max_tokens": NUM_TOKENS, "temperature": 0.0, "ignore_eos": True}


async def follow(client: AsyncClient, job_id: str) -> str:
    """What is wrong with a job; '' if nothing."""
    events: list[Event] = []
    try:
        async with aclosing(client.events(job_id, timeout=TIMEOUT_S)) as following:
            events += [event async for event in following]
    except (OrcdError, TimeoutError) as error:
        return f"{job_id}: {error}"
    problem = check_events(events, NUM_TOKENS)
    return f"{job_id}: {problem}" if problem else ""


def listen(redis_url: str, job_ids: list[str]) -> list[str]:
    """A process with a listener for each of some jobs; what was wrong."""

    async def run() -> list[str]:
        async with AsyncClient(redis_url) as client:
            return [problem for problem in await asyncio.gather(*(follow(client, each) for each in job_ids)) if problem]

    return asyncio.run(run())


def submit_evenly(redis_url: str, num_jobs: int, seconds: float, ttl_s: int) -> list[str]:
    """A process that submits and follows jobs at an even rate; what was wrong."""

    async def run_some(client: AsyncClient, first: int, begin: float, problems: list[str]) -> None:
        for number in range(first, num_jobs, AT_ONCE):
            await asyncio.sleep(max(0.0, begin + seconds * number / num_jobs - time.monotonic()))
            try:
                job_id = await client.submit(**fields_of(number))
            except OrcdError as error:
                problems.append(f"job {number}: {error}")
                continue
            if problem := await follow(client, job_id):
                problems.append(problem)

    async def run() -> list[str]:
        problems: list[str] = []
        async with AsyncClient(redis_url, job_ttl_s=ttl_s) as client:
            begin = time.monotonic()
            await asyncio.gather(*(run_some(client, first, begin, problems) for first in range(AT_ONCE)))
        return problems

    return asyncio.run(run())


class EnduranceQueue:
    """One Redis, one worker. ``problems`` has a line for everything that was not right."""

    def __init__(self, arguments: argparse.Namespace, stack: ExitStack) -> None:
        self.problems: list[str] = []
        self._arguments = arguments
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orcd-chaos-")))
        self._server = stack.enter_context(RedisServer())
        self._fleet = stack.enter_context(WorkerFleet(self._server.url, folder, LEASE_MS))
        self._connection: Any = stack.enter_context(redis.Redis.from_url(self._server.url))
        self._pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(1))

    def deep_queue(self) -> str:
        """Many jobs wait, some of them with a listener, and are worked off by a worker that comes then."""
        arguments = self._arguments
        before = self._used_bytes()
        with Client(self._server.url, job_ttl_s=arguments.ttl) as client:
            job_ids = client.submit_many([fields_of(number) for number in range(arguments.queued)])
            bytes_a_job = (self._used_bytes() - before) / len(job_ids)
            step = max(1, len(job_ids) // max(1, arguments.clients))
            listening = self._pool.apply_async(listen, (self._server.url, job_ids[::step][: arguments.clients]))
            start = time.monotonic()
            self._start_worker()
            with MemoryWatch(self._pids(), SAMPLE_S / 5) as watch:
                self._wait_until_ended(client, job_ids)
                self.problems += listening.get(TIMEOUT_S)
            took_s = time.monotonic() - start
            not_succeeded = [each.job_id for each in client.statuses(job_ids[-500:]) if each.state != "succeeded"]
        self.problems += [f"{job_id}: did not succeed" for job_id in not_succeeded]
        return (
            f"{len(job_ids):,} queued jobs, {bytes_a_job:,.0f} bytes of Redis a job; {arguments.clients} listeners; "
            f"worked off in {took_s:.0f} s\n\n{table(MEMORY_COLUMNS, watch.rows())}"
        )

    def short_lives(self) -> str:
        """Many jobs at an even rate, each soon forgotten."""
        arguments = self._arguments
        seconds = 60 * arguments.minutes
        submitting = self._pool.apply_async(submit_evenly, (self._server.url, arguments.jobs, seconds, arguments.ttl))
        with MemoryWatch(self._pids(), SAMPLE_S) as watch:
            start = time.monotonic()
            self.problems += submitting.get(seconds + TIMEOUT_S)
            took_s = time.monotonic() - start
        for name, growth in watch.growth_bytes().items():
            if growth >= MOST_GROWTH_BYTES:
                self.problems.append(f"{name}: memory grew by {growth / 1e6:.1f} MB in the last half")
        return (
            f"{arguments.jobs:,} jobs in {took_s / 60:.1f} min, each kept for {arguments.ttl} s\n\n"
            f"{table(MEMORY_COLUMNS, watch.rows())}"
        )

    def empty(self) -> str:
        """What is left once the worker has gone and the last job is forgotten."""
        for worker in list(self._fleet.workers):
            self._fleet.leave(worker)
        self.problems += self._fleet.check()
        end = time.monotonic() + self._arguments.ttl + FORGET_MARGIN_S
        while (left := self._keys()) and time.monotonic() < end:
            time.sleep(1.0)
        if left:
            self.problems.append(f"{len(left)} keys are left in Redis, for example {', '.join(left[:5])}")
        kept = sorted((key.decode(), self._connection.ttl(key)) for key in self._connection.keys("*"))
        shown = [key if ttl_s < 0 else f"{key} (for {ttl_s} s)" for key, ttl_s in kept]
        return f"left in Redis: {', '.join(shown) or 'nothing'}"

    def log_bytes(self) -> str:
        """What 1,000 tokens take in the log of a running job of the model that ships."""
        worker = self._fleet.start(DEMO, ORCD_JOB_TTL_S=str(self._arguments.ttl))
        worker.wait_until_ready(1)
        with Client(self._server.url, job_ttl_s=self._arguments.ttl) as client:
            parts = [
                f"a log takes {self._log_bytes(client, listens=listens)} {who}"
                for listens, who in ((False, "nobody listens"), (True, "somebody does"))
            ]
        self._fleet.leave(worker)
        return "\n".join(parts)

    def _log_bytes(self, client: Client, *, listens: bool) -> str:
        job_id = client.submit(
            model=DEMO.stem, prompt="old pond", max_tokens=LONG_TOKENS + 60, ignore_eos=True, seed=int(listens)
        )
        log = schema.log_key(job_id)
        with self._connection.pubsub() as channel:
            if listens:
                channel.subscribe(schema.events_channel(job_id))
            while (num_tokens := client.status(job_id).tokens_out) < LONG_TOKENS:
                time.sleep(0.02)
            size, num_events = self._connection.memory_usage(log, samples=0), self._connection.xlen(log)
            client.result(job_id)
        ended = self._connection.memory_usage(log, samples=0) or 0
        record = self._connection.memory_usage(schema.job_key(job_id), samples=0)
        return (
            f"{1000 * size / num_tokens:,.0f} bytes per 1,000 tokens while its job runs ({num_tokens / num_events:.1f} "
            f"tokens an event), {1000 * ended / (LONG_TOKENS + 60):,.0f} after its end, its record {record:,}, if"
        )

    def _start_worker(self) -> None:
        self._fleet.start(OTHER, ORCD_JOB_TTL_S=str(self._arguments.ttl)).wait_until_ready(1)

    def _wait_until_ended(self, client: Client, job_ids: Sequence[str]) -> None:
        end = time.monotonic() + TIMEOUT_S
        while self._connection.zcard(schema.QUEUED) + self._connection.zcard(schema.RUNNING):
            if time.monotonic() > end:
                self.problems.append("the queue was not worked off in time")
                return
            time.sleep(0.5)

    def _pids(self) -> dict[str, int]:
        (worker,) = self._fleet.workers
        engine = worker.engine()
        assert engine is not None, "it is ready"
        (client,) = multiprocessing.active_children()
        return {
            "Celery process": worker.process.pid,
            "engine process": engine.pid,
            "Redis": int(self._connection.info("server")["process_id"]),
            "clients": client.pid or 0,
        }

    def _used_bytes(self) -> int:
        return int(self._connection.info("memory")["used_memory"])

    def _keys(self) -> list[str]:
        """All but those that Celery keeps for ever, and what is known of the queues, which goes by itself."""
        keys = [key.decode() for key in self._connection.keys("*")]
        keys = [key for key in keys if not key.startswith(KEPT_BY_CELERY)]
        return [key for key in keys if key not in KEPT_FOR_AN_HOUR or self._connection.ttl(key) < 0]


def main(argv: Sequence[str]) -> int:
    arguments = read_arguments(argv)
    print(f"python -m tests.chaos.endurance_queue {' '.join(argv)}\n", flush=True)
    with ExitStack() as stack:
        endurance = EnduranceQueue(arguments, stack)
        for part in (endurance.deep_queue, endurance.short_lives, endurance.log_bytes, endurance.empty):
            print(part(), end="\n\n", flush=True)
        for problem in endurance.problems[:60]:
            print(problem)
        print(f"{len(endurance.problems)} problems")
        return 1 if endurance.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
