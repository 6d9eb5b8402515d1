"""The commands about workers: workers, drain, stop, doctor."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import chain

import click
import msgspec

from orcd.cli import terminal
from orcd.cli.command_line import json_option, redis_option
from orcd.cli.process_commands import WORKER_PACKAGES, environment
from orcd.client import Client
from orcd.errors import InvalidRequest, printable
from orcd.monitoring.check import Check
from orcd.monitoring.redis_checks import RedisChecks
from orcd.monitoring.worker_registry import Farewell, WorkerRegistry
from orcd.settings import ClientSettings, read_environment
from orcd.status import WorkerStatus
from orcd.store.redis_connection import connect, redis_errors

POLL_S = 0.2

worker_argument = click.argument("worker")
timeout_option = click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0), default=60.0, show_default=True, metavar="S",
    help="Seconds to wait until the worker has left; 0: tell it, and do not wait.",
)  # fmt: skip


WORKER_HEAD = ("WORKER", "STATE", "MODEL", "DEVICE", "JOBS", "RUNNING", "WAITING", "TOKENS/S", "KV", "UPTIME", "SEEN",
               "VERSION")  # fmt: skip

_check = msgspec.json.Decoder(Check)


def worker_cells(worker: WorkerStatus) -> Sequence[object]:
    """What stands below each title of `WORKER_HEAD`."""
    is_loading = worker.state == "loading"
    return (
        worker.name,
        f"loading {worker.load_percent}%" if is_loading else worker.state,
        worker.model,
        worker.device,
        worker.jobs,
        worker.running,
        worker.waiting,
        f"{worker.tokens_per_s:.0f}",
        f"{worker.kv_use:.0%}",
        terminal.duration(1000 * worker.uptime_s),
        terminal.duration(worker.silent_ms),
        worker.version,
    )


@click.command()
@redis_option
@json_option
def workers(redis_url: str | None, as_json: bool) -> None:
    """Print the workers that are alive.

    A worker is loading its model, ready, draining (it takes no more jobs and leaves) or unhealthy (it takes no more
    jobs). JOBS are those that it has claimed, RUNNING the answers that it generates at this moment, WAITING those that
    wait in its engine, and KV is how much of its KV cache is in use. SEEN is the time since its last heartbeat, which
    comes every two seconds; one that died is listed for a minute.
    """
    with Client(redis_url) as client:
        found = client.workers()
    if as_json:
        for worker in found:
            terminal.write_json(worker)
        return
    terminal.show_table(WORKER_HEAD, map(worker_cells, found))


@click.command()
@worker_argument
@timeout_option
@redis_option
def drain(worker: str, timeout_s: float, redis_url: str | None) -> int:
    """Have a worker finish its jobs and exit.

    It takes no more jobs, finishes those that it can in its time to drain, gives the others back, and exits with 0, as
    with SIGTERM. `orcd workers` lists the names.
    """
    return _send_away(worker, "drain", timeout_s, redis_url)


@click.command()
@worker_argument
@timeout_option
@redis_option
def stop(worker: str, timeout_s: float, redis_url: str | None) -> int:
    """Have a worker give all its jobs back at once and exit.

    Other workers go on with them at the next token. It exits with 0. `orcd workers` lists the names.
    """
    return _send_away(worker, "stop", timeout_s, redis_url)


def _send_away(worker: str, farewell: Farewell, timeout_s: float, redis_url: str | None) -> int:
    """Tell a worker to leave and wait until it has. Returns the exit code."""
    settings = read_environment(ClientSettings, redis_url=redis_url)
    with redis_errors(settings), connect(settings) as connection:
        registry = WorkerRegistry(connection, settings.key_prefix)
        if not registry.tell(worker, farewell):
            there_are = ", ".join(found.name for found in registry.workers()) or "none"
            raise InvalidRequest(f"worker {worker}: unknown; the workers that are alive: {there_are}")
        end = time.monotonic() + timeout_s
        while timeout_s and registry.tell(worker, farewell):
            if time.monotonic() > end:
                print(f"{worker} has not left after {timeout_s:g} s; run the command again to wait on", file=sys.stderr)
                return 1
            time.sleep(POLL_S)
    print(f"{worker} has left" if timeout_s else f"{worker} was told to {farewell}")
    return 0


@click.command()
@click.option("--model", metavar="M.gguf", help="Also check this model file; default: $ORCD_MODEL.")
@click.option("--device", metavar="DEVICE", help="cuda:0 (default), another GPU, or cpu.")
@redis_option
@json_option
def doctor(model: str | None, device: str | None, redis_url: str | None, as_json: bool) -> int:
    """Check what a worker needs, and say what to do about what is missing.

    The device with its driver and compiler, where compiled kernels are kept, the model file and its memory; Redis, its
    version, whether it evicts or forgets, and what its user may do; whether any worker is alive. Exit code 1 if there
    is a problem.
    """
    settings = read_environment(ClientSettings, redis_url=redis_url)
    num_problems = 0
    for check in chain(_machine_checks(model, device), RedisChecks(settings)):
        num_problems += check.outcome == "problem"
        if as_json:
            terminal.write_json(check)
            continue
        print(f"{check.outcome:<8} {check.name:<18} {printable(check.found)}")
        if check.outcome != "good":
            print(f"{'':<8} {'':<18} -> {printable(check.advice)}")
    return 1 if num_problems else 0


def _machine_checks(model: str | None, device: str | None) -> Iterator[Check]:
    """Those that need a worker's packages, made by a program of theirs."""
    missing = [package for package in WORKER_PACKAGES if find_spec(package) is None]
    if missing:
        found = f"a worker's packages are not installed ({', '.join(missing)})"
        yield Check("worker", "warning", found, "pip install 'orcd[worker]', if one shall run here")
        return
    given = {"--model": model, "--device": device}
    flags = [word for name, value in given.items() if value is not None for word in (name, value)]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "worker", "doctor", *flags],
        env=environment(os.environ), capture_output=True, text=True, check=False,
    )  # fmt: skip
    yield from (_check.decode(line) for line in done.stdout.splitlines())
    if done.returncode:
        [*_, last] = ["it said nothing", *done.stderr.splitlines()]
        yield Check(
            "worker", "problem", f"its checks ended with {done.returncode}: {last}", "see python -m worker doctor"
        )


COMMANDS = (workers, drain, stop, doctor)
