"""A worker that is told to leave in the middle of a job, with another one there: how long all that takes.

    python -m tests.bench.queue.shutdown [--model MODEL.gguf] [--drain-timeout 20]

A real Redis and two workers on the CPU device, whose engines take a tenth of a second for each token. One of them runs
a job that takes longer than ``--drain-timeout``, and gets SIGTERM, SIGQUIT, or Ctrl-C twice. Prints a row for each: the
time until its process is gone, its exit code, the longest time that the job's stream stood still, and whether its text
is that of an undisturbed run. Exit code 1 if it is not, an exit code is not 0, or leaving counted as a loss.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orcd.client import Client
from tasks.local.redis_server import RedisServer
from tests.bench.queue.slow_engine import slow_environment
from tests.bench.queue.token_times import TokenTimes
from tests.conftest import DEMO_MODEL
from tests.tasks.worker_process import WorkerProcess

WAYS = {"SIGTERM": [signal.SIGTERM], "SIGQUIT": [signal.SIGQUIT], "Ctrl-C twice": [signal.SIGINT] * 2}
PAUSE_S = 0.5
"""Between two signals."""
STEP_S = 0.1
MOST_S = 60.0
"""A worker that is not gone by then is killed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened after the first signal; times in seconds."""

    way: str
    gone_s: float
    exit_code: int
    longest_gap_s: float
    is_same: bool
    losses: int

    @property
    def is_kept(self) -> bool:
        """Whether all is as promised."""
        return self.is_same and self.exit_code == 0 and self.losses == 0

    def row(self) -> str:
        """A line of a table."""
        text = "the same" if self.is_same else "ANOTHER"
        cells = (self.way, f"{self.gone_s:.1f} s", self.exit_code, f"{self.longest_gap_s:.2f} s", text, self.losses)
        return f"| {' | '.join(map(str, cells))} |"


def measure(way: str, model: Path, drain_timeout_s: int) -> Outcome:
    """Have the worker that runs the job leave in that way."""
    request: dict[str, Any] = {
        "prompt_token_ids": [9, 8, 7],
        "max_tokens": round(drain_timeout_s / STEP_S) + 60,
        "seed": 4,
        "ignore_eos": True,
    }
    with tempfile.TemporaryDirectory() as name, RedisServer() as server, Client(server.url) as client:
        folder = Path(name)
        with WorkerProcess(server.url, model, folder):
            expected = client.result(client.submit(**request), timeout=MOST_S)
        variables = slow_environment(folder, STEP_S)
        variables |= {"ORCD_DRAIN_TIMEOUT_S": str(drain_timeout_s), "OPENBLAS_NUM_THREADS": "1"}
        job_id = "long"
        with (
            WorkerProcess(server.url, model, folder, **variables) as one,
            WorkerProcess(server.url, model, folder, **variables) as other,
            TokenTimes(server.url, [job_id]) as seen,
        ):
            client.submit_many([request], [job_id])
            seen.wait_for(10)
            owner = str(client.status(job_id).worker)
            leaver = one if f"-{one.process.pid}-" in owner else other
            start = time.monotonic()
            exit_code = _leave(leaver, WAYS[way])
            gone_s = time.monotonic() - start
            result = client.result(job_id, timeout=MOST_S)
            status = client.status(job_id)
            is_same = (result.state, result.choices) == (expected.state, expected.choices)
            gaps_s = seen.gaps_s(start, time.monotonic())
            return Outcome(way, gone_s, exit_code, max(gaps_s), is_same, status.losses)


def _leave(worker: WorkerProcess, signals: Sequence[int]) -> int:
    for number in signals[:-1]:
        worker.process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(PAUSE_S)
    worker.process.send_signal(signals[-1])
    return worker.process.wait(MOST_S)


def main(argv: Sequence[str]) -> int:
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.bench.queue.shutdown", description=description)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--drain-timeout", type=int, default=20, metavar="S")
    arguments = parser.parse_args(argv)
    print("| | gone after | exit code | longest gap | text | losses |\n|---|---|---|---|---|---|")
    outcomes = []
    for way in WAYS:
        outcomes.append(measure(way, arguments.model, arguments.drain_timeout))
        print(outcomes[-1].row(), flush=True)
    return 0 if all(outcome.is_kept for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
