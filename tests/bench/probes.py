"""How long probes wait while a worker is busy: ``python -m tests.bench.probes [MODEL.gguf] [--requests 1000]``.

64 streams run on the CPU device, whose engine is kept to one core. Each path is asked one request after the other, each
over a connection of its own, as Prometheus and kubelets do. The clients of the streams are a process of their own.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import os
import tempfile
import threading
import time
from pathlib import Path

import psutil

from orcd.client import Client
from tasks.local.redis_server import RedisServer, free_port
from tests.conftest import DEMO_MODEL
from tests.tasks.worker_process import WorkerProcess

NUM_STREAMS = 64
PATHS = ("/health/live", "/health/ready", "/health/load", "/metrics")
PAUSE_S = 0.01


def keep_busy(url: str) -> None:
    """So many streams, one behind the other, without end."""
    with Client(url) as client:

        def follow() -> None:
            while True:
                for _ in client.stream(prompt="once upon a time", max_tokens=400, ignore_eos=True):
                    pass

        for _ in range(NUM_STREAMS - 1):
            threading.Thread(target=follow, daemon=True).start()
        follow()


def ask(port: int, path: str, num_requests: int) -> list[float]:
    """Milliseconds of each request."""
    times = []
    for _ in range(num_requests):
        start = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        connection.close()
        times.append(1000 * (time.perf_counter() - start))
        assert response.status == 200, (path, response.status)
        time.sleep(PAUSE_S)
    return sorted(times)


def main() -> None:
    """Print a line for each path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=DEMO_MODEL, metavar="MODEL.gguf")
    parser.add_argument("--requests", type=int, default=1000, metavar="N")
    given = parser.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, RedisServer() as server:
        variables = {"ORCD_METRICS_PORT": str(port), "ORCD_LEASE_MS": "10000"}
        with WorkerProcess(server.url, given.model, Path(folder), **variables) as worker:
            for thread in psutil.Process(worker.engine_pid).threads():
                os.sched_setaffinity(thread.id, {0})
            clients = multiprocessing.get_context("spawn").Process(target=keep_busy, args=(server.url,), daemon=True)
            clients.start()
            time.sleep(10)
            load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
            print(f"{given.model.name}, {NUM_STREAMS} streams, {given.requests} requests; load average {load}")
            for path in PATHS:
                times = ask(port, path, given.requests)
                p50, p99 = (times[int(share * (len(times) - 1))] for share in (0.5, 0.99))
                print(f"{path:<14} p50 {p50:6.2f}  p99 {p99:6.2f}  max {times[-1]:6.2f} ms", flush=True)
            with Client(server.url) as client:
                (busy,) = client.workers()
            load = f"load average {os.getloadavg()[0]:.1f}"
            print(f"{busy.running} running, {busy.tokens_per_s:.0f} tokens/s; {load}")
            clients.kill()


if __name__ == "__main__":
    main()
