"""The workers of a fault test: ``orcd worker`` processes, each the leader of a process group."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

ROOT = Path(__file__).parents[3]
READY_TIMEOUT_S = 60.0
LEAVE_TIMEOUT_S = 30.0
SETTINGS = {
    "ORCD_ENGINE_START_TIMEOUT_S": "10",
    "ORCD_ENGINE_STEP_TIMEOUT_S": "6",
    "ORCD_JOB_TTL_S": "900",
    "ORCD_LOG_FORMAT": "json",
    "ORCD_MAX_ATTEMPTS": "100000",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONFAULTHANDLER": "1",  # SIGABRT then writes down what each thread is doing
    "PYTHONPATH": str(ROOT),
}
_START = "import sys; from orcd.cli.main import main; main()"


class Worker:
    """One worker; ``variables`` are those of its environment that are its own.

    ``expected_exit`` is its exit code if the harness has ended it, or has told it to leave.
    """

    def __init__(self, model: Path, redis_url: str, log_path: Path, variables: dict[str, str]) -> None:
        self.model = model
        self.variables = variables
        self.expected_exit: int | None = None
        self.num_ready = 0
        self.log_path = log_path
        self._read = 0
        inherited = {name: text for name, text in os.environ.items() if not name.startswith("ORCD_")}
        flags = ["--model", str(model), "--device", "cpu", "--redis", redis_url]
        with log_path.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, "worker", *flags],
                env=inherited | SETTINGS | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def is_alive(self) -> bool:
        """Whether its Celery process runs."""
        return self.process.poll() is None

    def engine(self) -> psutil.Process | None:
        """Its engine process, also while that loads."""
        return self._child("--in-flight-fd")

    def text_process(self) -> psutil.Process | None:
        """One of the processes that render and tokenise for it."""
        return self._child("worker.text.process")

    def _child(self, argument: str) -> psutil.Process | None:
        try:
            children = psutil.Process(self.process.pid).children()
            return next((child for child in children if argument in child.cmdline()), None)
        except psutil.Error:
            return None

    def signal_group(self, number: int) -> None:
        """Send a signal to the whole process group."""
        os.killpg(self.process.pid, number)

    def signal(self, number: int) -> None:
        """Send a signal to the Celery process."""
        self.process.send_signal(number)

    def abort(self) -> None:
        """End it, with what each of its threads is doing in its log."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGABRT)
        self.process.wait()
        self.expected_exit = self.process.returncode
        with suppress(ProcessLookupError):
            self.signal_group(signal.SIGKILL)

    def count_ready(self) -> int:
        """How often its engine has become ready."""
        self.num_ready += sum(event.get("event") == "ready" for event in self._new_events())
        return self.num_ready

    def wait_until_ready(self, count: int) -> None:
        """Wait until its engine has become ready so often. Raises TimeoutError."""
        end = time.monotonic() + READY_TIMEOUT_S
        while self.count_ready() < count:
            if not self.is_alive or time.monotonic() > end:
                code = self.process.poll()
                why = "is not ready again in time" if code is None else f"exited with {code}"
                raise TimeoutError(f"worker {self.log_path.name} {why}:\n{self.last_lines()}")
            time.sleep(0.05)

    def wait_until_begun(self) -> None:
        """Wait until it has begun to log, or has ended."""
        end = time.monotonic() + READY_TIMEOUT_S
        while (
            self.is_alive and time.monotonic() < end and '"worker_id"' not in self.log_path.read_text(errors="replace")
        ):
            time.sleep(0.02)

    def name(self) -> str:
        """What it is called among workers, once it has begun to log."""
        return str(json.loads(next(line for line in self.log_path.open() if '"worker_id"' in line))["worker_id"])

    def last_lines(self) -> str:
        """The end of its log."""
        return "\n".join(f"    {line[:400]}" for line in self.log_path.read_text(errors="replace").splitlines()[-8:])

    def _new_events(self) -> Iterator[dict[str, Any]]:
        with self.log_path.open("rb") as log:
            log.seek(self._read)
            for line in log:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict):
                    yield event


class WorkerFleet:
    """All workers of a run. Use it in a with block, which ends what is still there."""

    def __init__(self, redis_url: str, folder: Path, lease_ms: int) -> None:
        self.workers: list[Worker] = []
        self._redis_url = redis_url
        self._folder = folder
        self._lease_ms = lease_ms
        self._problems: list[str] = []
        self._num_started = 0

    def start(self, model: Path, **variables: str) -> Worker:
        """Start one more; it is not ready yet."""
        self._num_started += 1
        log_path = self._folder / f"worker-{self._num_started}-{model.stem}.log"
        lease = {"ORCD_LEASE_MS": str(self._lease_ms)}
        worker = Worker(model, self._redis_url, log_path, lease | variables)
        self.workers.append(worker)
        return worker

    def replace_dead(self) -> list[Worker]:
        """Start anew what the harness has ended, as an orchestrator would; those that left unasked stay away."""
        dead = [worker for worker in self.workers if not worker.is_alive and worker.expected_exit is not None]
        self.check()
        return [self.start(worker.model, **worker.variables) for worker in dead]

    def check(self) -> list[str]:
        """A line for each worker that ended without, or otherwise than, being told to; all of them so far."""
        for worker in [worker for worker in self.workers if not worker.is_alive]:
            self.workers.remove(worker)
            if worker.process.returncode != worker.expected_exit:
                expected = "" if worker.expected_exit is None else f", not {worker.expected_exit}"
                self._problems.append(
                    f"worker {worker.log_path.name} exited with {worker.process.returncode}{expected}:\n"
                    + worker.last_lines()
                )
        return self._problems

    def leave(self, worker: Worker, number: int = signal.SIGTERM) -> None:
        """Tell a worker to leave and wait until it has; not leaving in time is a problem of its own.

        One that was started a moment ago is given the time to see signals: before, they end any program.
        """
        worker.wait_until_begun()
        worker.expected_exit = 0
        worker.signal(number)
        self._wait_until_gone(worker)

    def _wait_until_gone(self, worker: Worker) -> None:
        try:
            worker.process.wait(LEAVE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            worker.abort()
            self._problems.append(
                f"worker {worker.log_path.name} did not leave in {LEAVE_TIMEOUT_S:.0f} s; its log ends with what it did"
            )

    def send_away(self, worker: Worker, command: str) -> None:
        """`orcd drain` or `orcd stop` for a worker; raises AssertionError if the command says that it failed."""
        worker.expected_exit = 0
        arguments = [command, worker.name(), "--timeout", str(LEAVE_TIMEOUT_S), "--redis", self._redis_url]
        ran = subprocess.run([sys.executable, "-P", "-c", _START, *arguments], capture_output=True, text=True)
        self._wait_until_gone(worker)
        assert ran.returncode == 0, f"orcd {command}: {ran.stderr.strip()[-300:]}"

    def __enter__(self) -> WorkerFleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            if worker.is_alive:
                worker.signal_group(signal.SIGKILL)
                worker.process.wait()
