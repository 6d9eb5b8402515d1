"""A real Celery worker with a real engine, as tests start and kill it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from orcd.client import Client
from orcd.errors import InvalidRequest
from tests.tasks.worker_fork_server import ForkedWorker, worker_fork_server

START_TIMEOUT_S = 60.0
ROOT = Path(__file__).parents[2]


class WorkerProcess:
    """``orcd worker`` on the CPU device; its log lines go to a file. Use it in a with block.

    It is a fork of a process that has imported what it runs (`tests.tasks.worker_fork_server`), unless it is to be
    started ``by_exec`` or has variables of others, which are read when modules are imported. ``by_celery`` starts
    ``celery -A tasks worker`` instead: a worker that asks others at its start and listens to them.
    """

    def __init__(
        self,
        redis_url: str,
        model: Path,
        folder: Path,
        *,
        by_celery: bool = False,
        by_exec: bool = False,
        **variables: str,
    ) -> None:
        self.redis_url = redis_url
        self.log_path = folder / f"worker-{time.monotonic_ns()}.log"
        inherited = {name: text for name, text in os.environ.items() if not name.startswith("ORCD_")}
        settings = {
            "ORCD_REDIS_URL": redis_url,
            "ORCD_MODEL": str(model),
            "ORCD_DEVICE": "cpu",
            "ORCD_LOG_FORMAT": "json",
            "ORCD_LEASE_MS": "2000",
        }
        environment = inherited | settings | variables
        options = ["-P", "-m", "tasks", "worker"]
        if by_celery:
            options = ["-m", "celery", "-A", "tasks", "worker", "--hostname", f"w{time.monotonic_ns()}@localhost"]
        self.process: ForkedWorker | subprocess.Popen[bytes]
        with self.log_path.open("w") as log:
            if not by_exec and all(name.startswith("ORCD_") or name == "PYTHONPATH" for name in variables):
                self.process = worker_fork_server().start(options, environment, str(ROOT), log)
            else:
                command = [sys.executable, *options]
                self.process = subprocess.Popen(
                    command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log
                )

    def __enter__(self) -> WorkerProcess:
        try:
            self.wait_for("ready")
        except BaseException:
            self.process.kill()  # the with block does not end it, and it would take the jobs of the tests that follow
            self.process.wait()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """The log events so far; a line that is no JSON object fails the test."""
        lines = self.log_path.read_text().splitlines(keepends=True)
        events = [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]
        return [event for event in events if name is None or event["event"] == name]

    def wait_for(self, name: str, count: int = 1) -> dict[str, Any]:
        """The ``count``-th event of that name, waited for."""
        end = time.monotonic() + START_TIMEOUT_S
        while len(found := self.events(name)) < count:
            assert self.process.poll() is None, f"the worker ended with {self.process.returncode}:\n{self.events()}"
            assert time.monotonic() < end, f"no {name} event:\n{self.events()}"
            time.sleep(0.02)
        return found[count - 1]

    @property
    def engine_pid(self) -> int:
        """The engine process's id, from the worker's last ``ready`` event."""
        return int(self.events("ready")[-1]["engine_pid"])

    def kill_engine(self) -> None:
        """SIGKILL for the engine."""
        os.kill(self.engine_pid, signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILL for the Celery process; waits until the engine has followed."""
        engine = psutil.Process(self.engine_pid)
        self.process.kill()
        self.process.wait()
        engine.wait(60)


def wait_until_running(client: Client, job_ids: list[str], num_tokens: int = 1) -> None:
    """Wait until each job has that many tokens in its log."""
    end = time.monotonic() + START_TIMEOUT_S
    for job_id in job_ids:
        while _num_tokens(client, job_id) < num_tokens:
            assert time.monotonic() < end, job_id
            time.sleep(0.01)


def _num_tokens(client: Client, job_id: str) -> int:
    try:
        return client.status(job_id).tokens_out
    except InvalidRequest:  # its request is in the message, and the worker has not written the record yet
        return 0
