"""A storm of cancellations: how soon each slot is free, and whether all other texts are as if nothing had been.

    python -m tests.bench.cancel_storm [--model MODEL.gguf] [--device cpu] [--jobs 2000] [--cancels 1000] [--seed 1]

A real Redis and a worker. The requests run once undisturbed. Then ``--jobs`` are submitted, and ``--cancels`` of
them are cancelled at random moments: most within a few seconds after they were started, some while they wait. From the
client's call to the moment at which the engine has dropped the job's sequences, 99 of 100 may take 100 ms and the
longest step of that time. Exit code 1 if they take longer, a text is another one, or a job has not one terminal event.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any

import numpy as np
import redis

from orcd.client import Client
from orcd.events import Started, decode_event, state_after
from orcd.result import Result
from orcd.store import schema
from tasks.local.redis_server import RedisServer
from tests.bench.engine_trace import EngineTrace
from tests.conftest import DEMO_MODEL
from tests.tasks.worker_process import WorkerProcess

MARGIN_S = 0.1
"""A slot is free within this time and the longest step."""
MOST_CASES = 250
"""So many different requests there are at most: the others repeat them."""
WAITING_SHARE = 0.2
"""Part of the cancellations that come at any time; the others come when their job has begun."""
LINGER_S = 2.0
"""They come at most so long after that."""
END_TIMEOUT_S = 300.0
"""Without any job that ends."""


@dataclass(slots=True)
class Outcome:
    """What became of a storm; times in seconds, ``to_free_s`` from each request to the freed slot."""

    num_jobs: int
    num_cancels: int
    to_free_s: list[float] = field(default_factory=list)
    longest_step_s: float = 0.0
    num_waited: int = 0
    num_cancelled: int = 0
    num_kept: int = 0
    problems: list[str] = field(default_factory=list)

    def quantile_s(self, share: float) -> float:
        """Of the times to a freed slot."""
        return float(np.quantile(self.to_free_s, share)) if self.to_free_s else 0.0

    @property
    def bound_s(self) -> float:
        """What is promised."""
        return MARGIN_S + self.longest_step_s

    def lines(self) -> list[str]:
        """What a person reads."""
        others = self.num_cancels - self.num_waited - len(self.to_free_s)
        p50, p99, most = (1000 * self.quantile_s(share) for share in (0.5, 0.99, 1.0))
        return [
            f"{self.num_jobs} jobs, {self.num_cancels} cancellations: {len(self.to_free_s)} of jobs in the engine, "
            f"{self.num_waited} of jobs that waited in the queue, {others} of jobs that had ended or not begun",
            f"from the request to the freed slot: p50 {p50:.0f} ms, p99 {p99:.0f} ms, most {most:.0f} ms; the longest "
            f"step took {1000 * self.longest_step_s:.0f} ms, so that {1000 * self.bound_s:.0f} ms are allowed",
            f"{self.num_kept} jobs that were not cancelled have the texts of the undisturbed run, "
            f"{self.num_cancelled} cancelled ones begin like them",
            *self.problems,
        ]


class CancelStorm:
    """One storm on the workers of a Redis."""

    def __init__(self, redis_url: str, num_jobs: int, num_cancels: int, seed: int) -> None:
        self._redis_url = redis_url
        self._chance = random.Random(seed)
        self._cases = [self._case(number) for number in range(min(num_jobs, MOST_CASES))]
        self._job_ids = [f"storm-{number}" for number in range(num_jobs)]
        self._victims = set(self._chance.sample(self._job_ids, num_cancels))
        self._due: list[tuple[float, str]] = []  # a heap: when which job is to be cancelled
        self._changed = threading.Condition()
        self._open = set(self._job_ids)
        self._requested: dict[str, tuple[float, str]] = {}
        self.begin = 0.0

    def run(self) -> Outcome:
        """Without the times, which the engine's trace has."""
        with Client(self._redis_url) as client:
            start = time.monotonic()
            expected = [client.result(job_id) for job_id in client.submit_many(self._cases)]
            self._storm(client, (time.monotonic() - start) * len(self._job_ids) / len(self._cases))
            return self._outcome(client, expected)

    def add_times(self, outcome: Outcome, dropped: dict[str, float]) -> None:
        """From the engine's trace: when it had dropped which job."""
        for job_id, (requested_at, state) in self._requested.items():
            if state == "running" and dropped.get(job_id, 0.0) > requested_at:
                outcome.to_free_s.append(dropped[job_id] - requested_at)

    def _case(self, number: int) -> dict[str, Any]:
        chance = self._chance
        return {
            "prompt_token_ids": [chance.randrange(3, 250) for _ in range(chance.choice([6, 24, 120]))],
            "max_tokens": chance.randrange(20, 80),
            "temperature": chance.choice([0.0, 0.9]),
            "seed": number,
            "ignore_eos": True,
        }

    def _storm(self, client: Client, about_s: float) -> None:
        self.begin = time.monotonic()
        waiting = [job_id for job_id in sorted(self._victims) if self._chance.random() < WAITING_SHARE]
        self._due = [(self.begin + self._chance.uniform(0.0, about_s / 2), job_id) for job_id in waiting]
        heapify(self._due)
        self._begins = self._victims - set(waiting)
        connection: Any = redis.Redis.from_url(self._redis_url)
        with connection, connection.pubsub(ignore_subscribe_messages=True) as channel:
            channel.psubscribe(schema.events_channel("*").replace("{*}", "{storm-*}"))
            watcher = threading.Thread(target=self._watch, args=(channel,), daemon=True)
            watcher.start()
            requests = [self._cases[number % len(self._cases)] for number in range(len(self._job_ids))]
            client.submit_many(requests, self._job_ids)
            self._cancel_when_due(client)
            watcher.join()

    def _watch(self, channel: Any) -> None:
        """Note what begins and ends, until all has ended."""
        heard_at = time.monotonic()
        while self._open and time.monotonic() - heard_at < END_TIMEOUT_S:
            message = channel.get_message(timeout=1.0)
            if message is None:
                continue
            job_id = message["channel"].decode().partition("{")[2].partition("}")[0]
            event = decode_event(message["data"])
            with self._changed:
                if isinstance(event, Started) and job_id in self._begins:
                    self._begins.discard(job_id)
                    heappush(self._due, (time.monotonic() + self._chance.uniform(0.0, LINGER_S), job_id))
                elif state_after(event):
                    heard_at = time.monotonic()
                    self._open.discard(job_id)
                else:
                    continue
                self._changed.notify()
        with self._changed:
            self._open.clear()
            self._changed.notify()

    def _cancel_when_due(self, client: Client) -> None:
        while True:
            with self._changed:
                if not self._open:
                    return
                wait_s = self._due[0][0] - time.monotonic() if self._due else END_TIMEOUT_S
                if wait_s > 0:
                    self._changed.wait(wait_s)
                    continue
                _, job_id = heappop(self._due)
            requested_at = time.monotonic()
            self._requested[job_id] = requested_at, client.cancel(job_id)

    def _outcome(self, client: Client, expected: Sequence[Result]) -> Outcome:
        outcome = Outcome(len(self._job_ids), len(self._victims))
        outcome.num_waited = sum(state == "cancelled" for _, state in self._requested.values())
        for number, job_id in enumerate(self._job_ids):
            whole = expected[number % len(expected)].choices[0]
            events = list(client.events(job_id, timeout=1.0))
            result = client.result(job_id, timeout=1.0)
            found = result.choices[0] if result.choices else None
            if sum(bool(state_after(event)) for event in events) != 1:
                outcome.problems.append(f"{job_id} has not one terminal event")
            elif result.state == "succeeded" and found == whole:
                outcome.num_kept += job_id not in self._victims
            elif result.state == "cancelled" and job_id in self._victims:
                ids = found.token_ids if found else []
                outcome.num_cancelled += 1
                if ids != whole.token_ids[: len(ids)] or (found and not whole.text.startswith(found.text)):
                    outcome.problems.append(f"{job_id} was cancelled, and its text does not begin as it should")
            else:
                outcome.problems.append(f"{job_id} {result.state}: another text than undisturbed, or an error")
        return outcome


def measure(model: Path, device: str, num_jobs: int, num_cancels: int, seed: int) -> Outcome:
    """A storm on a worker of its own."""
    with tempfile.TemporaryDirectory() as name, RedisServer() as server:
        trace = EngineTrace(Path(name))
        # NumPy's threads spin: a step that needs both cores while clients use one takes seconds.
        variables = {"ORCD_DEVICE": device, "OPENBLAS_NUM_THREADS": "1"} | trace.variables
        with WorkerProcess(server.url, model, Path(name), **variables):
            storm = CancelStorm(server.url, num_jobs, num_cancels, seed)
            outcome = storm.run()
        seen = trace.read()
        storm.add_times(outcome, seen.dropped)
        outcome.longest_step_s = seen.longest_step_s(storm.begin)
        return outcome


def main(argv: Sequence[str]) -> int:
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cancel_storm", description=description)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--cancels", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(argv)
    outcome = measure(arguments.model, arguments.device, arguments.jobs, arguments.cancels, arguments.seed)
    print("\n".join(outcome.lines()))
    return 1 if outcome.problems or outcome.quantile_s(0.99) > outcome.bound_s else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
