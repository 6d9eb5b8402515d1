"""The whole system under load: a real Redis, a Celery worker, its engine on the device, streaming clients.

    python -m tests.bench.system MODEL.gguf [--device cuda:0[,cuda:1...]] [--streams 256] [--clients N] [--seconds 60]
        [--kill-after S] [--sampling "all of it"]

First `orcd bench engine` measures the engine alone with the same load (or ``--engine-rate`` says what it gave). Then
each stream submits a job, follows it to its end and submits the next, until the time is over; the jobs are those of the
engine's benchmark: random token ids, greedy, end tokens ignored. ``--sampling`` is one of `tests.bench.request_mixes`,
which then measures the engine. With several devices there is a worker for each on the same Redis, ``--streams`` are
those of each worker, and the engine alone counts as often as there are workers. A worker runs as many sequences at
once as it has streams; with ``--clients`` there are more of these, so that jobs wait in its queue. Every stream is
checked: each token index once and in order, all of them there, one terminal event. ``--kill-after`` ends the first
worker's engine process with SIGKILL that many seconds into the load, or once all streams run. The token logs of the
jobs that ran at that time, or when the time was over, are then checked too. Exit code 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import redis

from orcd.store import schema
from tasks.local.redis_server import RedisServer
from tests.bench.gpu import bench
from tests.bench.request_mixes import SAMPLINGS
from tests.bench.streams import Load, Seen, check_logs, client_processes, log_bytes, run_clients
from tests.tasks.worker_process import WorkerProcess
from worker.model.gguf import open_gguf

BEGIN_S = 0.5
"""Until the first job: so all client processes hear of it before."""
RAMP_SHARE = 0.2
"""Part of the time that is not measured: the jobs of all streams begin at once there."""


@dataclass(slots=True)
class Course:
    """What happened beside the streams: which jobs were ``running`` when an engine was killed or the time was over,
    ``looked_at_s`` seconds after the load began; how long the engine was ``away_s``, what the token logs took of Redis,
    and how many processor cores each kind of process kept busy in the time that counts (not the engine if one was
    killed).
    """

    looked_at_s: float
    running: Set[str] = frozenset()
    away_s: float = 0.0
    log_bytes_per_token: float = 0.0
    cores: dict[str, float] = field(default_factory=dict)


def num_clients(arguments: argparse.Namespace) -> int:
    """Streams for each worker."""
    return int(arguments.clients or arguments.streams)


def measure(arguments: argparse.Namespace) -> tuple[Seen, list[str], Course]:
    """Put the system under load: what the streams saw, what is wrong, and what happened beside."""
    devices = arguments.device.split(",")
    num_streams = num_clients(arguments) * len(devices)
    vocab_size = open_gguf(arguments.model).tensors["token_embd.weight"].shape[0]
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        server = running.enter_context(RedisServer())
        workers = [
            WorkerProcess(
                server.url, arguments.model, folder, ORCD_DEVICE=device, ORCD_MAX_SEQUENCES=str(arguments.streams)
            )
            for device in devices
        ]
        for worker in workers:
            running.enter_context(worker)
        pool = running.enter_context(client_processes(num_streams))
        load = Load(
            server.url,
            time.monotonic() + BEGIN_S,
            arguments.seconds,
            vocab_size,
            arguments.prompt_tokens,
            arguments.output_tokens,
            SAMPLINGS[arguments.sampling],
        )
        parts = run_clients(pool, load, num_streams)
        course = _watch(workers, server, load, arguments.streams * len(devices), arguments.kill_after)
        seen = Seen.of(part.result() for part in parts)
        log_problems = check_logs(server.url, seen.of_jobs(course.running), arguments.output_tokens)
        whole = [stream for stream in seen.streams if not stream.problem][-num_streams:]
        course.log_bytes_per_token = log_bytes(server.url, whole) / max(1, len(whole) * arguments.output_tokens)
        return seen, seen.problems + log_problems, course


def _watch(
    workers: Sequence[WorkerProcess], server: RedisServer, load: Load, num_sequences: int, kill_after: float | None
) -> Course:
    """Until the time is over; ends the first worker's engine ``kill_after`` seconds into it, once so many run."""

    def wait_until(seconds: float) -> None:
        time.sleep(max(0.0, load.begin + seconds - time.monotonic()))

    with redis.Redis.from_url(server.url) as connection:
        pids = {"Redis": [int(connection.info("server")["process_id"])]}
    pids["Celery"] = [worker.process.pid for worker in workers]
    if kill_after is None:
        pids["engine"] = [worker.engine_pid for worker in workers]
    course = Course(load.seconds)
    wait_until(min(RAMP_SHARE * load.seconds, load.seconds if kill_after is None else kill_after))
    start, before = time.monotonic(), {name: _cpu_s(each) for name, each in pids.items()}
    if kill_after is not None:
        wait_until(kill_after)
        while len(_running(server)) < num_sequences and time.monotonic() < load.begin + load.seconds:
            time.sleep(0.01)
        course.running = _running(server)
        workers[0].kill_engine()
        killed = time.monotonic()
        course.looked_at_s = killed - load.begin
        workers[0].wait_for("ready", 2)
        course.away_s = time.monotonic() - killed
    wait_until(load.seconds)
    if kill_after is None:
        course.running = _running(server)
    for name, each in pids.items():
        course.cores[name] = (_cpu_s(each) - before[name]) / (time.monotonic() - start)
    return course


def _running(server: RedisServer) -> set[str]:
    """Jobs with tokens in their logs, behind the event that they started."""
    with redis.Redis.from_url(server.url) as connection:
        running = [job_id.decode() for job_id in connection.zrange(schema.RUNNING, 0, -1)]
        return {job_id for job_id in running if connection.xlen(schema.log_key(job_id)) > 1}


def _cpu_s(pids: Sequence[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return float(sum(each.user + each.system for each in times))


def table(arguments: argparse.Namespace, alone: dict[str, float], seen: Seen) -> list[str]:
    """The engine alone and the whole system, a line each, under a heading."""
    start_s = RAMP_SHARE * arguments.seconds
    rate = seen.tokens_per_s(start_s, arguments.seconds)
    first_ms = [1000 * (stream.first_s - stream.submitted_s) for stream in seen.streams if stream.first_s]
    p50, p99 = np.percentile(first_ms or [0.0], [50, 99])
    head = (
        f"{arguments.model.name} on {arguments.device}: {arguments.streams} streams a device, "
        f"{f'jobs of {num_clients(arguments)} clients, ' if arguments.clients else ''}"
        f"{arguments.prompt_tokens} tokens in, {arguments.output_tokens} out, {arguments.sampling}; "
        f"the system from {start_s:.0f} s to {arguments.seconds:.0f} s"
    )
    num_workers = arguments.device.count(",") + 1
    alone = alone | {"rate": num_workers * alone["rate"]}
    engine = [f"{num_workers} x orcd bench engine", f"{alone['rate']:,.0f}", "1", "-", "-", "-"]
    if "ttft_p50_ms" in alone:
        engine[3:] = [str(arguments.streams), f"{alone['ttft_p50_ms']:.0f} / {alone['ttft_p99_ms']:.0f}", "0"]
    system = [
        "the whole system",
        f"{rate:,.0f}",
        f"{rate / alone['rate']:.3f}",
        f"{len(seen.streams):,}",
        f"{p50:.0f} / {p99:.0f}",
        str(len(seen.problems)),
    ]
    names = ["", "output tok/s", "ratio", "jobs", "first token p50 / p99, ms", "errors"]
    lines = [names, ["---"] * len(names), engine, system]
    return [head, "", *(f"| {' | '.join(line)} |" for line in lines)]


def measure_alone(arguments: argparse.Namespace) -> dict[str, float]:
    """The engine's ``rate`` in tokens per second with the same load; its times too, unless the rate was given."""
    if arguments.engine_rate is not None:
        return {"rate": arguments.engine_rate}
    if arguments.sampling != "greedy":
        return {"rate": _measure_sampling(arguments)}
    device = arguments.device.partition(",")[0]
    (row,) = bench(arguments.model, device, arguments.prompt_tokens, arguments.output_tokens, str(arguments.streams))
    return row | {"rate": row["output_tokens_per_s"]}


def _measure_sampling(arguments: argparse.Namespace) -> float:
    case = f"{arguments.streams} x {arguments.sampling}"
    device = arguments.device.partition(",")[0]
    options = ["--device", device, "--streams", str(arguments.streams), "--cases", case, "--json"]
    command = [sys.executable, "-m", "tests.bench.request_mixes", str(arguments.model), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["value"])


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What is measured; exits with 2 for wrong usage."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.bench.system", description=description)
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument(
        "--clients", type=int, metavar="N", help="streams for each worker, which runs --streams at once"
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=256)
    parser.add_argument("--sampling", choices=SAMPLINGS, default="greedy")
    parser.add_argument("--kill-after", type=float, metavar="S", help="kill the engine so long after the load began")
    parser.add_argument("--engine-rate", type=float, metavar="X", help="what `orcd bench engine` gave, in tokens/s")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    arguments = read_arguments(argv)
    alone = measure_alone(arguments)
    seen, problems, course = measure(arguments)
    print("\n".join(table(arguments, alone, seen)))
    cores = ", ".join(f"{name} {num_cores:.2f}" for name, num_cores in course.cores.items())
    print(f"\nprocessor cores kept busy: {cores}; a token took {course.log_bytes_per_token:.1f} bytes of Redis")
    if arguments.kill_after is not None:
        running = seen.of_jobs(course.running)
        num_whole = sum(not stream.problem for stream in running)
        print(
            f"\nkilled at {course.looked_at_s:.1f} s: {len(running)} streams were running, {num_whole} of them "
            f"completed with each token once; the engine was ready again after {course.away_s:.1f} s, and no stream "
            f"got a token for {seen.silence_s(course.looked_at_s):.1f} s"
        )
        if not running:
            problems.append("nothing was running when the engine was killed")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
