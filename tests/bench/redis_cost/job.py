"""What a job and a token cost Redis: ``python -m tests.bench.redis_cost.job [--streams 64] [--seconds 20]``.

A real Redis, a worker with the model that ships, and as many streaming clients as ``--streams``, each of which submits
its next job when one has ended. The engine draws no tokens: every ``--step-ms`` it hands out random ids. So no GPU is
needed, and what Redis does for a job is what it does for one of a large model. Redis's processor time is counted
between two looks; in the last quarter of the time it notes every call (SLOWLOG), which tells scripts apart. What Redis
does for a worker without jobs is measured before, and taken off.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis

from orcd.store import schema
from tasks.local.redis_server import RedisServer
from tests.bench.redis_cost.drawn_ids import drawn_ids
from tests.bench.streams import Load, Seen, client_processes, run_clients
from tests.conftest import DEMO_MODEL
from tests.tasks.worker_process import WorkerProcess

IDLE_S = 4.0
"""For so long Redis is looked at before there are jobs."""
BEGIN_S = 0.5
RAMP_SHARE = 0.25
MOST_NOTED = 1_000_000


@dataclass(frozen=True, slots=True)
class Look:
    """What Redis says of itself at one time: seconds of processor time, and calls and microseconds by command."""

    at: float
    cpu_s: float
    commands: dict[str, tuple[int, int]]

    @classmethod
    def at_redis(cls, connection: Any) -> Look:
        """Now."""
        info = connection.info("everything")
        commands = {
            name.removeprefix("cmdstat_"): (each["calls"], each["usec"])
            for name, each in info.items()
            if name.startswith("cmdstat_")
        }
        cpu_s = info["used_cpu_user_main_thread"] + info["used_cpu_sys_main_thread"]
        return cls(time.monotonic(), cpu_s, commands)

    def since(self, before: Look) -> dict[str, tuple[int, int]]:
        """Calls and microseconds of each command between two looks."""
        return {
            name: (calls - before.commands.get(name, (0, 0))[0], usec - before.commands.get(name, (0, 0))[1])
            for name, (calls, usec) in self.commands.items()
        }


@dataclass(frozen=True, slots=True)
class Cost:
    """``num_jobs`` jobs between two looks, ``idle_share`` of a core that Redis needs for a worker without jobs, and
    the noted calls of each script: how many and microseconds of all, for ``num_noted`` jobs."""

    before: Look
    after: Look
    num_jobs: float
    idle_share: float
    num_noted: float
    scripts: dict[str, tuple[int, int]]

    @property
    def us_per_job(self) -> float:
        """Microseconds of Redis's processor time for a job with all its tokens."""
        idle_s = self.idle_share * (self.after.at - self.before.at)
        return 1e6 * (self.after.cpu_s - self.before.cpu_s - idle_s) / self.num_jobs


def noted_scripts(connection: Any) -> dict[str, tuple[int, int]]:
    """How many calls of each script Redis has noted, and their microseconds."""
    names = {}
    for path in files("orcd.store").joinpath("lua").iterdir():
        name = path.name.removesuffix(".lua")
        for text in (schema.script(name), schema.celery_script(name)):
            names[hashlib.sha1(text.encode()).hexdigest()] = name  # noqa: S324 - Redis's name of a script
    noted = defaultdict[str, list[int]](list)
    for entry in connection.slowlog_get(MOST_NOTED):
        command, digest = [*entry["command"].split(b" ", 2), b""][:2]
        if command == b"EVALSHA":
            noted[names.get(digest.decode(), "of others")].append(entry["duration"])
    return {name: (len(each), sum(each)) for name, each in noted.items()}


def measure(arguments: argparse.Namespace) -> tuple[Cost, list[str]]:
    """The cost, and what was wrong with streams."""
    with tempfile.TemporaryDirectory() as folder, RedisServer() as server:
        variables = drawn_ids(Path(folder), arguments.step_ms / 1000)
        variables |= {"ORCD_MAX_SEQUENCES": str(arguments.streams), "ORCD_LEASE_MS": "10000"}
        with (
            WorkerProcess(server.url, DEMO_MODEL, Path(folder), **variables),
            redis.Redis.from_url(server.url) as connection,
            client_processes(arguments.streams) as pool,
        ):
            idle = Look.at_redis(connection)
            time.sleep(IDLE_S)
            begun = Look.at_redis(connection)
            idle_share = (begun.cpu_s - idle.cpu_s) / (begun.at - idle.at)
            load = Load(
                server.url,
                time.monotonic() + BEGIN_S,
                arguments.seconds,
                256,
                arguments.prompt_tokens,
                arguments.output_tokens,
                {},
            )
            clients = run_clients(pool, load, arguments.streams)
            looks = []
            for share in (RAMP_SHARE, 0.75, 1.0):
                time.sleep(max(0.0, load.begin + share * load.seconds - time.monotonic()))
                looks.append(Look.at_redis(connection))
                if share == 0.75:
                    connection.config_set("slowlog-max-len", MOST_NOTED)
                    connection.config_set("slowlog-log-slower-than", 0)
            scripts = noted_scripts(connection)
            connection.config_set("slowlog-log-slower-than", -1)
            seen = Seen.of(each.result() for each in clients)
    counted, noted = (
        num_jobs(seen, start.at - load.begin, end.at - load.begin, arguments.output_tokens)
        for start, end in pairwise(looks)
    )
    return Cost(looks[0], looks[1], counted, idle_share, noted, scripts), seen.problems


def num_jobs(seen: Seen, start_s: float, end_s: float, output_tokens: int) -> float:
    """As many jobs as the tokens are that came between two times."""
    return max(1.0, seen.tokens_per_s(start_s, end_s) * (end_s - start_s) / output_tokens)


def lines(cost: Cost, output_tokens: int) -> list[str]:
    """For people."""
    rate = cost.num_jobs / (cost.after.at - cost.before.at)
    us = cost.us_per_job
    text = [
        f"{cost.num_jobs:.0f} jobs of {output_tokens} tokens, {rate:.1f} a second; a worker without jobs: "
        f"{100 * cost.idle_share:.2f} % of a core",
        f"a job costs {us:.0f} us of Redis, so that one Redis is full at {1e6 / us * output_tokens:,.0f} tokens/s",
    ]
    for heading, counts, jobs in (
        ("script", cost.scripts, cost.num_noted),
        ("command", cost.after.since(cost.before), cost.num_jobs),
    ):
        text += ["", f"| {heading} | calls a job | us a job | us a call |", "|---|---|---|---|"]
        for name, (calls, usec) in sorted(counts.items(), key=lambda each: -each[1][1]):
            if calls:
                text.append(f"| {name} | {calls / jobs:.2f} | {usec / jobs:.1f} | {usec / calls:.1f} |")
    return text


def main(argv: Sequence[str]) -> int:
    """Print a table; 1 if a stream was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.redis_cost.job")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--step-ms", type=float, default=3.0)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=256)
    arguments = parser.parse_args(argv)
    cost, problems = measure(arguments)
    print("\n".join([*lines(cost, arguments.output_tokens), *problems]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
