"""Kill everything, all the time: ``python -m tests.bench.soak --jobs 250 --seed 1``.

Two workers run jobs on the CPU device while, about twice a second, something is killed: an engine process (SIGKILL), a
Celery process (SIGKILL, or SIGTERM), or Redis (SIGKILL; its append-only file brings it back within a second). A fallen
worker is replaced. Every stream must end with the tokens and the text of an undisturbed run, each token index once.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import tasks.demo
from orcd.client import Client
from orcd.events import Event, Token
from orcd.result import Result, fold
from tasks.local.redis_server import RedisServer
from tests.tasks.worker_process import WorkerProcess

MODEL = Path(tasks.demo.__file__).parent / "haiku-q4_k_m.gguf"
NUM_WORKERS = 2
PAUSE_S = (0.2, 1.0)
DOWN_S = (0.0, 0.6)
STREAM_TIMEOUT_S = 600.0


class Soak:
    """One run. ``kills`` counts what was killed, ``failures`` says which streams were not what they should be."""

    def __init__(self, num_jobs: int, seed: int) -> None:
        self.kills: Counter[str] = Counter()
        self.failures: list[str] = []
        self._chance = random.Random(seed)
        self._requests = [self._request(number) for number in range(num_jobs)]
        self._workers: list[WorkerProcess] = []

    def run(self) -> float:
        """Run everything; returns how long the disturbed part took in seconds."""
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orcd-soak-")))
            self._redis = stack.enter_context(RedisServer(appendonly=True))
            stack.callback(self._stop_workers)
            client = stack.enter_context(Client(self._redis.url))
            self._replace_workers()
            self._workers[0].wait_for("ready")
            expected = self._results(client.submit_many(self._requests), disturb=False)
            start = time.monotonic()
            disturbed = self._results(client.submit_many(self._requests), disturb=True)
            for number, (one, other) in enumerate(zip(expected, disturbed, strict=True)):
                if one.state != "succeeded" or other.state != "succeeded" or one.choices != other.choices:
                    self.failures.append(f"job {number}: {one.state}, disturbed {other.state} {other.error or ''}")
            return time.monotonic() - start

    def _request(self, number: int) -> dict[str, Any]:
        chance = self._chance
        return {
            "prompt_token_ids": [5 + number % 200, 7, 11],
            "max_tokens": chance.randrange(100, 300),
            "temperature": chance.choice([0.0, 0.9]),
            "stop": chance.choice([[], ["the"], ["autumn evening"]]),
            "n": chance.choice([1, 1, 2]),
            "seed": number,
            "ignore_eos": True,
        }

    def _results(self, job_ids: list[str], *, disturb: bool) -> list[Result]:
        events: dict[str, list[Event]] = {job_id: [] for job_id in job_ids}
        threads = [threading.Thread(target=self._follow, args=item) for item in events.items()]
        for thread in threads:
            thread.start()
        while disturb and any(thread.is_alive() for thread in threads):
            time.sleep(self._chance.uniform(*PAUSE_S))
            self._kill_something()
            self._replace_workers()
        for thread in threads:
            thread.join()
        return [fold(job_id, events[job_id]) for job_id in job_ids]

    def _follow(self, job_id: str, into: list[Event]) -> None:
        with Client(self._redis.url) as client:
            into.extend(client.events(job_id, timeout=STREAM_TIMEOUT_S))
        seen: Counter[int] = Counter()
        for event in into:
            if isinstance(event, Token):
                if event.i != seen[event.choice] + 1:
                    self.failures.append(f"{job_id}: token {event.i} after {seen[event.choice]} tokens")
                seen[event.choice] += len(event.ids)

    def _kill_something(self) -> None:
        what = self._chance.choice(["engine", "engine", "worker", "worker in good order", "Redis"])
        worker = self._chance.choice(self._workers)
        with suppress(ProcessLookupError, IndexError):  # it is down already, or not up yet
            match what:
                case "engine":
                    os.kill(worker.engine_pid, signal.SIGKILL)
                case "worker":
                    worker.process.kill()
                    worker.process.wait()
                case "worker in good order":
                    worker.process.terminate()
                case "Redis":
                    self._redis.kill()
                    time.sleep(self._chance.uniform(*DOWN_S))
                    self._redis.start()
            self.kills[what] += 1

    def _replace_workers(self) -> None:
        self._workers = [worker for worker in self._workers if worker.process.poll() is None]
        while len(self._workers) < NUM_WORKERS:
            self._workers.append(WorkerProcess(self._redis.url, MODEL, self._folder, ORCD_MAX_ATTEMPTS="1000"))

    def _stop_workers(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=250)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    soak = Soak(arguments.jobs, arguments.seed)
    seconds = soak.run()
    for failure in soak.failures:
        print(failure)
    kills = ", ".join(f"{what} {count}" for what, count in sorted(soak.kills.items()))
    print(f"{arguments.jobs} jobs, {len(soak.failures)} wrong, in {seconds:.0f} s; killed: {kills}")
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
