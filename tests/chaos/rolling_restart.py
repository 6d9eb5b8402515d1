"""Two workers under load are replaced one after the other: what clients notice of it.

    python -m tests.chaos.rolling_restart [--restarts 10] [--streams 12] [--senders 3] [--seed 1]

The model is the one that ships. Each time a third worker is started, and once it is ready the oldest is told to leave
(SIGTERM). Prints the gaps between the tokens of the streams that ran meanwhile. Exit code 1 if a stream or a canvas was
not right, a worker did not exit with 0, or the gap's 99th percentile is above a second.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from orcd.client import Client
from tasks.local.redis_server import RedisServer
from tests.chaos.clients.cases import DEMO, Case, make_long_cases, with_answers
from tests.chaos.clients.client_pool import ClientPool
from tests.chaos.clients.client_process import ClientPlan
from tests.chaos.clients.seen import Seen
from tests.chaos.system.worker_fleet import WorkerFleet
from tests.chaos.table import table

LEASE_MS = 10_000
BEGIN_S = 5.0
BETWEEN_S = 2.0
MAX_WAIT_S = 150.0
ALLOWED_GAP_S = 1.0


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What is run; exits with 2 for wrong usage."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.rolling_restart", description=description)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--streams", type=int, default=12)
    parser.add_argument("--senders", type=int, default=3, help="of chains, groups, chords and other Celery messages")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(argv)


def gap_s(seen: Seen, start_s: float, end_s: float) -> float | None:
    """The longest time without a token that a stream had between two times; None if it did not run then."""
    times = [seen.submitted_s, *seen.arrivals]
    gaps = [end - begin for begin, end in pairwise(times) if begin <= end_s and end >= start_s]
    return max(gaps, default=None)


def restart(fleet: WorkerFleet) -> tuple[float, float]:
    """Replace the oldest worker; the times when it was told to leave, and when it was gone."""
    replacement = fleet.start(DEMO)
    replacement.wait_until_ready(1)
    start_s = time.monotonic()
    fleet.leave(fleet.workers[0])
    return start_s, time.monotonic()


def run(arguments: argparse.Namespace) -> tuple[list[Seen], list[tuple[float, float]], list[str]]:
    """What was seen, when workers left, and what was wrong with those."""
    with (
        tempfile.TemporaryDirectory(prefix="orcd-chaos-") as folder,
        RedisServer(appendonly=True) as server,
        WorkerFleet(server.url, Path(folder), LEASE_MS) as fleet,
    ):
        for _ in range(2):
            fleet.start(DEMO)
        for worker in fleet.workers:
            worker.wait_until_ready(1)
        with Client(server.url) as client:
            cases: list[Case] = with_answers(client, make_long_cases(arguments.seed))
        plan = ClientPlan(
            server.url,
            arguments.seed,
            cases,
            num_sync=0,
            num_celery=arguments.senders,
            num_batch=0,
            num_async=arguments.streams,
        )
        with ClientPool(plan) as clients:
            time.sleep(BEGIN_S)
            left = []
            for _ in range(arguments.restarts):
                left.append(restart(fleet))
                fleet.check()
                time.sleep(BETWEEN_S)
            seen = clients.stop(MAX_WAIT_S, lambda _: False)
        for worker in list(fleet.workers):
            fleet.leave(worker)
        return seen, left, fleet.check()


def problems_of(seen: Sequence[Seen]) -> list[str]:
    """A line for each stream or canvas that was not right."""
    return [
        f"{each.kind} {each.job_id}: {each.problem} {each.error} {each.detail}"
        for each in seen
        if each.problem or (each.error and each.error not in each.may_fail)
    ]


def main(argv: Sequence[str]) -> int:
    arguments = read_arguments(argv)
    seen, left, exits = run(arguments)
    gaps = [
        gap for start, end in left for each in seen if each.arrivals if (gap := gap_s(each, start, end)) is not None
    ]
    p50, p99, worst = np.percentile(gaps or [0.0], [50, 99, 100])
    problems = problems_of(seen)
    canvases = [each for each in seen if each.kind in ("Celery chain", "Celery group", "Celery chord")]
    others = ("streams", "chains, groups, chords")
    rows = []
    for name, part in zip(others, ([each for each in seen if each.arrivals], canvases), strict=True):
        rows.append([name, len(part), sum(each.num_jobs for each in part), len(problems_of(part))])
    print(f"python -m tests.chaos.rolling_restart {' '.join(argv)}\n")
    print(table(["", "runs", "jobs", "not right"], rows))
    print(
        f"\n{len(left)} restarts, {sum('exited' in each for each in exits)} exit codes other than 0; a worker left "
        f"within {max(end - start for start, end in left):.1f} s; longest gap of {len(gaps)} streams that ran "
        f"meanwhile: p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms, worst {1000 * worst:.0f} ms"
    )
    for problem in (*exits, *problems):
        print(problem)
    if not gaps:
        problems.append("no stream ran")
    return 1 if exits or problems or p99 > ALLOWED_GAP_S else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
