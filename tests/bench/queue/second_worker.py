"""A worker that joins while another one works on a long queue: how much of what is left it runs.

    python -m tests.bench.queue.second_worker [--model MODEL.gguf] [--jobs 200] [--tokens 200] [--after 3]

A real Redis and two workers on the CPU device, each of which runs eight jobs at a time. The second one is started
``--after`` seconds after the first one has begun. Exit code 1 if it runs less than 40 % of what is left when it is
ready, or a job fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orcd.client import Client
from tasks.local.redis_server import RedisServer
from tests.conftest import DEMO_MODEL
from tests.tasks.worker_process import WorkerProcess, wait_until_running

LEAST_SHARE = 0.4
VARIABLES = {"ORCD_MAX_SEQUENCES": "8", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """``num_left`` jobs had not ended when the second worker was ready, which ran ``num_second`` of them."""

    num_jobs: int
    num_succeeded: int
    num_left: int
    num_second: int
    ready_s: float
    first_job_s: float

    @property
    def share(self) -> float:
        """What the second worker ran of what was left."""
        return self.num_second / max(1, self.num_left)

    @property
    def is_kept(self) -> bool:
        """Whether all is as promised."""
        return self.num_succeeded == self.num_jobs and self.share >= LEAST_SHARE

    def line(self) -> str:
        """What a person reads."""
        return (
            f"{self.num_succeeded} of {self.num_jobs} jobs succeeded. The second worker was ready {self.ready_s:.1f} s "
            f"after the first one had begun, when {self.num_left} were left; its first job began "
            f"{self.first_job_s:.2f} s later, and it ran {self.num_second} of them ({self.share:.0%})"
        )


def measure(model: Path, num_jobs: int, num_tokens: int, after_s: float) -> Outcome:
    """Both workers, until the queue is empty."""
    requests = [
        {"prompt_token_ids": [5 + number, 7], "max_tokens": num_tokens, "seed": number, "ignore_eos": True}
        for number in range(num_jobs)
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer() as server,
        WorkerProcess(server.url, model, Path(folder), **VARIABLES),
        Client(server.url) as client,
    ):
        job_ids = client.submit_many(requests)
        wait_until_running(client, job_ids[:1])
        begin = time.monotonic()
        time.sleep(after_s)
        with WorkerProcess(server.url, model, Path(folder), **VARIABLES) as second:
            ready_at = time.monotonic()
            left = [status.job_id for status in client.statuses(job_ids) if status.state in ("queued", "running")]
            second.wait_for("execute_start")
            first_job_s = time.monotonic() - ready_at
            results = [client.result(job_id, timeout=600) for job_id in job_ids]
            workers = [str(status.worker) for status in client.statuses(left)]
            return Outcome(
                num_jobs,
                num_succeeded=sum(result.state == "succeeded" for result in results),
                num_left=len(left),
                num_second=sum(f"-{second.process.pid}-" in worker for worker in workers),
                ready_s=ready_at - begin,
                first_job_s=first_job_s,
            )


def main(argv: Sequence[str]) -> int:
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.bench.queue.second_worker", description=description)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--after", type=float, default=3.0)
    arguments = parser.parse_args(argv)
    outcome = measure(arguments.model, arguments.jobs, arguments.tokens, arguments.after)
    print(outcome.line())
    return 0 if outcome.is_kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
