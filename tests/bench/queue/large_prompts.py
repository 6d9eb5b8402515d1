"""Prompts of 4 MB among running streams: whether those lose a lease, and how long they stand still.

    python -m tests.bench.queue.large_prompts [--model MODEL.gguf] [--streams 64] [--quiet-s 8]

A real Redis and a worker on the CPU device, whose engine has one core. After ``--quiet-s`` seconds of ``--streams``
streams alone, six requests of 4 MB each come at once: texts of one letter, of words, of spaces ..., one of them a chat
message. Prints the gaps between tokens before and meanwhile, and the longest time that the Celery process stood still.
Exit code 1 if a request does not end with CONTEXT_LENGTH_EXCEEDED, a lease is lost, or a stream has ended otherwise.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orcd.client import Client
from orcd.status import Status
from tasks.local.redis_server import RedisServer
from tests.bench.queue.stalls import Stall, StallTrace
from tests.bench.queue.token_times import TokenTimes
from tests.conftest import DEMO_MODEL
from tests.tasks.worker_process import WorkerProcess

NUM_CHARACTERS = 4 * 1024 * 1024
PARTS = ("a", "the old pond ", " ", " \n", "[<|im_")
"""What such a text repeats; spaces are never refused by their length alone."""
MOST_S = 300.0


@dataclass(frozen=True, slots=True)
class Times:
    """Of one span of time, in seconds: the gaps between tokens of a stream, and the Celery process's stalls.

    ``stall_s`` is the longest one, and ``busy_s`` the most that it computed in any of them.
    """

    gaps_s: list[float]
    stall_s: float
    busy_s: float

    @classmethod
    def between(cls, since: float, until: float, seen: TokenTimes, stalls: Sequence[Stall]) -> Times:
        """From one moment to another."""
        found = [stall for stall in stalls if stall.end > since and stall.begin < until]
        stall_s = max((stall.end - stall.begin for stall in found), default=0.0)
        return cls(seen.gaps_s(since, until), stall_s, max((stall.busy_s for stall in found), default=0.0))

    def line(self, name: str) -> str:
        """What a person reads."""
        p50, p99, most = (1000 * np.quantile(self.gaps_s or [0.0], share) for share in (0.5, 0.99, 1.0))
        stall, busy = 1000 * self.stall_s, 1000 * self.busy_s
        return (
            f"{name}: gaps between tokens p50 {p50:.0f} ms, p99 {p99:.0f} ms, most {most:.0f} ms; the Celery process "
            f"stood still for at most {stall:.0f} ms, and computed for at most {busy:.0f} ms then"
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen ``alone``, and ``meanwhile``: until the last of the prompts was refused, after ``refused_s``."""

    alone: Times
    meanwhile: Times
    refused_s: float
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What a person reads."""
        name = f"six prompts of 4 MB, the last one refused after {self.refused_s:.1f} s"
        return [self.alone.line("streams alone"), self.meanwhile.line(name), *self.problems]


def large_prompts() -> list[dict[str, Any]]:
    """Six requests of 4 MB each."""
    texts = [(part * NUM_CHARACTERS)[:NUM_CHARACTERS] for part in PARTS]
    return [*({"prompt": text} for text in texts), {"messages": [{"role": "user", "content": texts[2]}]}]


def measure(model: Path, num_streams: int, quiet_s: float) -> Outcome:
    """The streams, alone and with the prompts."""
    job_ids = [f"stream-{number}" for number in range(num_streams)]
    with tempfile.TemporaryDirectory() as name, RedisServer() as server, Client(server.url) as client:
        trace = StallTrace(Path(name))
        variables = {"ORCD_MAX_SEQUENCES": str(num_streams + 8), "OPENBLAS_NUM_THREADS": "1", **trace.variables}
        with (
            WorkerProcess(server.url, model, Path(name), **variables),
            TokenTimes(server.url, job_ids) as seen,
        ):
            client.submit_many(_streams(num_streams), job_ids)
            seen.wait_for(5, MOST_S)
            begin = time.monotonic()
            time.sleep(quiet_s)
            sent_at = time.monotonic()
            prompts = client.submit_many(large_prompts())
            results = [client.result(job_id, timeout=MOST_S) for job_id in prompts]
            refused_at = time.monotonic()
            codes = [result.error.code if result.error else result.state for result in results]
            problems = [f"a prompt ended {code}" for code in codes if code != "CONTEXT_LENGTH_EXCEEDED"]
            problems += _problems(client.statuses(job_ids))
            for job_id in job_ids:
                client.cancel(job_id)
            stalls = trace.read()
            alone = Times.between(begin, sent_at, seen, stalls)
            meanwhile = Times.between(sent_at, refused_at, seen, stalls)
            return Outcome(alone, meanwhile, refused_at - sent_at, problems)


def _streams(num_streams: int) -> list[dict[str, Any]]:
    chance = random.Random(1)
    return [
        {
            "prompt_token_ids": [chance.randrange(3, 250) for _ in range(16)],
            "max_tokens": 1000,
            "seed": number,
            "ignore_eos": True,
        }
        for number in range(num_streams)
    ]


def _problems(statuses: Sequence[Status]) -> list[str]:
    return [
        f"{status.job_id} {status.state}, attempt {status.attempt}, {status.losses} losses"
        for status in statuses
        if (status.attempt, status.losses) != (1, 0) or status.state not in ("running", "succeeded")
    ]


def main(argv: Sequence[str]) -> int:
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.bench.queue.large_prompts", description=description)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--quiet-s", type=float, default=8.0, metavar="S")
    arguments = parser.parse_args(argv)
    outcome = measure(arguments.model, arguments.streams, arguments.quiet_s)
    print("\n".join(outcome.lines()))
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
