"""The health of a real worker, as probes see it from elsewhere, while Redis is away and while it is stopped."""

from __future__ import annotations

import os
import signal
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from orcd.client import Client
from tasks.local.redis_server import RedisServer, free_port
from tests.conftest import wait_until
from tests.tasks.worker_process import WorkerProcess

OTHER_ADDRESS = "127.0.0.2"
"""Of this machine's, one that a worker on 127.0.0.1 would not answer at."""


class Probe:
    def __init__(self, port: int) -> None:
        self._url = f"http://{OTHER_ADDRESS}:{port}"

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self._url + path, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def statuses(self) -> tuple[int, int]:
        return self.get("/health/live")[0], self.get("/health/ready")[0]


def test_a_worker_is_ready_only_while_it_would_run_a_job(
    redis_server: RedisServer, shallow_model: Path, tmp_path: Path
) -> None:
    port = free_port()
    variables = {"ORCD_METRICS_PORT": str(port), "ORCD_METRICS_HOST": "0.0.0.0"}  # noqa: S104
    probe = Probe(port)
    with WorkerProcess(redis_server.url, shallow_model, tmp_path, **variables) as worker:
        wait_until(lambda: probe.statuses() == (200, 200))
        with Client(redis_server.url) as client:
            client.result(client.submit(prompt="once", max_tokens=2), timeout=60)
        wait_until(lambda: 'vllm:request_success_total{engine="0",finished_reason="length"' in probe.get("/metrics")[1])
        redis_server.kill()
        wait_until(lambda: probe.statuses() == (200, 503))
        wait_until(lambda: "Redis is away" in probe.get("/health/ready")[1])
        redis_server.start()
        wait_until(lambda: probe.statuses() == (200, 200))
        os.kill(worker.process.pid, signal.SIGSTOP)
        wait_until(lambda: probe.statuses() == (200, 503))
        wait_until(lambda: "silent" in probe.get("/health/ready")[1])
        os.kill(worker.process.pid, signal.SIGCONT)
        wait_until(lambda: probe.statuses() == (200, 200))
        probes = [
            child for child in psutil.Process(worker.process.pid).children() if "health" in " ".join(child.cmdline())
        ]
        worker.kill()
        psutil.wait_procs(probes, timeout=60)
        assert [child for child in probes if child.is_running()] == []
