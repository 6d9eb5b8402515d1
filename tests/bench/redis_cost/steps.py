"""What each step of a job costs Redis: ``python -m tests.bench.redis_cost.steps [--jobs 64] [--rounds 12]``.

With ``--logprobs 5`` events and results have log probabilities, with ``--lists`` those of events are as for clients of
older versions.

A real Redis, and a client and a worker that are played in turn by one thread: all jobs are submitted, then followed,
taken, claimed ..., with one look at Redis's processor time before and behind each step. So the figures are the same
however busy the machine is, but for what other processes leave of its caches: the lower quartile of the rounds is
printed. A job has 128 tokens in and 256 out, in eight events, as a worker with 256 streams writes them; the worker's
calls are about 16 jobs at a time.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import redis

from orcd.client import Client
from orcd.events import End, PackedLogprobs, Position, Started, Token
from orcd.store.claim import Claim
from orcd.store.job_store import Append, JobStore
from orcd.store.token_log import LoggedEvent
from tasks.celery_ext.receiver import Receiver
from tasks.local.redis_server import RedisServer
from worker.engine.logits.logprob_records import logprob_records

MODEL = "played"
AT_ONCE = 16
NUM_EVENTS = 8
TOKENS_PER_EVENT = 32
NUM_TOKENS = NUM_EVENTS * TOKENS_PER_EVENT
TEXT = "word " * TOKENS_PER_EVENT
LEASE_MS = 600_000
TTL_S = 600
QUEUES = [name if priority == 0 else f"{name}:{priority}" for priority in range(10) for name in ("orcd.played", "orcd")]


class PlayedJobs:
    """Takes ``num_jobs`` jobs at a time through their life, a step after the other."""

    def __init__(self, connection: redis.Redis, client: Client, num_jobs: int, event: Token) -> None:
        """``event`` is what a job's events have of `TOKENS_PER_EVENT` tokens."""
        self._redis: Any = connection
        self._client = client
        self._num_jobs = num_jobs
        self._event = event
        logprobs = NUM_EVENTS * (event.unpacked().logprobs or [])
        self._result = {"text": NUM_EVENTS * event.t, "ids": NUM_EVENTS * event.ids, "logprobs": logprobs}
        self._store = JobStore(connection, owner=MODEL, model=MODEL, lease_ms=LEASE_MS, ttl_s=TTL_S)
        self._store.renew({})
        self._receiver = Receiver(MODEL, LEASE_MS, connection)
        self._receiver.load_take()
        self._ids: list[str] = []
        self._claims: list[Claim] = []
        self._following: list[Iterator[object]] = []

    def steps(self) -> dict[str, Callable[[], None]]:
        """What is done with all jobs, in order."""
        return {
            "submit, with its message": self._submit,
            "subscribe and read the log": self._follow,
            "take the messages": self._take,
            "claim": self._claim,
            "event started": self._start,
            f"{NUM_EVENTS - 1} events of tokens": self._write_tokens,
            "last tokens and end": self._end,
            "receive all, unsubscribe": self._receive,
            "store Celery's result": self._store_results,
        }

    def _submit(self) -> None:
        ids = list(range(1000, 1128))
        self._ids = [
            self._client.submit(prompt_token_ids=ids, max_tokens=NUM_TOKENS, model=MODEL) for _ in range(self._num_jobs)
        ]

    def _follow(self) -> None:
        self._following = [self._client.events(job_id) for job_id in self._ids]
        for events in self._following:
            next(events)

    def _take(self) -> None:
        for _ in range(0, self._num_jobs, AT_ONCE):
            answer = self._redis.execute_command(*self._receiver.take_command(QUEUES, AT_ONCE))
            for tag, _, _ in self._receiver.taken(answer):
                self._receiver.ack(tag)

    def _claim(self) -> None:
        found = [each for ids in _parts(self._ids) for each in self._store.claim(ids)]
        self._claims = [each for each in found if isinstance(each, Claim)]
        assert len(self._claims) == self._num_jobs

    def _start(self) -> None:
        self._append(Position(), [LoggedEvent(Position(0, 1), Started("", MODEL, 1, 1))])

    def _write_tokens(self) -> None:
        for number in range(NUM_EVENTS - 1):
            before = Position(number * TOKENS_PER_EVENT) if number else Position(0, 1)
            self._append(before, [self._tokens(number)])

    def _end(self) -> None:
        end = LoggedEvent(Position(NUM_TOKENS, 1), End("length", 128, NUM_TOKENS, 1, 1, 1, "0" * 64))
        before = Position((NUM_EVENTS - 1) * TOKENS_PER_EVENT)
        self._append(before, [self._tokens(NUM_EVENTS - 1), end], "succeeded")

    def _append(self, after: Position, events: list[LoggedEvent], final_state: str = "") -> None:
        for claims in _parts(self._claims):
            appends = [Append(claim.job_id, claim.lease, after, events, final_state) for claim in claims]
            assert all(answer.status == "appended" for answer in self._store.append(appends))

    def _receive(self) -> None:
        for events in self._following:
            assert isinstance([*events][-1], End)

    def _store_results(self) -> None:
        for job_id in self._ids:
            text = msgspec.json.encode({"status": "SUCCESS", "result": self._result, "task_id": job_id})
            self._redis.set(f"celery-task-meta-{job_id}", text, ex=TTL_S, nx=True)
            self._redis.publish(f"celery-task-meta-{job_id}", text)

    def _tokens(self, number: int) -> LoggedEvent:
        first = number * TOKENS_PER_EVENT
        event = msgspec.structs.replace(self._event, i=first + 1)
        return LoggedEvent(Position(first + TOKENS_PER_EVENT), event)


def _parts(all_of_them: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(all_of_them), AT_ONCE):
        yield all_of_them[start : start + AT_ONCE]


def make_event(num_top: int | None, *, in_lists: bool) -> Token:
    """An event of tokens, with log probabilities of ``num_top`` alternatives each unless that is None."""
    event = Token(TEXT, 1, list(range(5000, 5000 + TOKENS_PER_EVENT)))
    if num_top is None:
        return event
    generator = np.random.default_rng(1)
    top_ids = generator.integers(10_000, 150_000, (TOKENS_PER_EVENT, num_top), np.int32)
    numbers = -generator.exponential(3, (TOKENS_PER_EVENT, 1 + num_top)).astype(np.float32)
    records = b"".join(logprob_records(numbers[:, 0], top_ids, numbers[:, 1:]))
    packed = PackedLogprobs(num_top, records, TEXT.split() * (1 + num_top))
    event = msgspec.structs.replace(event, packed_logprobs=packed)
    return event.unpacked() if in_lists else event


def measure(num_jobs: int, num_rounds: int, event: Token) -> dict[str, list[float]]:
    """Microseconds of Redis's processor time for a job by step, for each round but a first one."""
    taken = defaultdict[str, list[float]](list)
    with RedisServer() as server, redis.Redis.from_url(server.url) as connection, Client(server.url) as client:
        jobs = PlayedJobs(connection, client, num_jobs, event)
        for number in range(num_rounds + 1):
            for name, step in jobs.steps().items():
                before = _cpu_s(connection)
                step()
                if number > 0:
                    taken[name].append(1e6 * (_cpu_s(connection) - before) / num_jobs)
    return taken


def _cpu_s(connection: Any) -> float:
    info = connection.info("cpu")
    return float(info["used_cpu_user_main_thread"] + info["used_cpu_sys_main_thread"])


def main(argv: Sequence[str]) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.redis_cost.steps")
    parser.add_argument("--jobs", type=int, default=64, help="at a time")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--logprobs", type=int, help="alternatives a token; default: no log probabilities")
    parser.add_argument("--lists", action="store_true", help="as for clients of older versions")
    arguments = parser.parse_args(argv)
    event = make_event(arguments.logprobs, in_lists=arguments.lists)
    measured = measure(arguments.jobs, arguments.rounds, event)
    taken = {name: float(np.quantile(us, 0.25)) for name, us in measured.items()}
    print("| step | us of Redis a job |\n|---|---|")
    for name, us in taken.items():
        print(f"| {name} | {us:.1f} |")
    whole = sum(taken.values())
    print(f"| all | {whole:.0f} |\n\none Redis is full at {1e6 / whole * NUM_TOKENS:,.0f} tokens/s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
