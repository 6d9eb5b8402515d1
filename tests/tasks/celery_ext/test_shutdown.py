"""How a worker leaves: by which signal, in what time, with which exit code, and with nothing lost; real workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from orcd.client import Client
from tasks.local.redis_server import free_port
from tests.conftest import wait_until
from tests.tasks.dispatch.test_dispatcher import Streams
from tests.tasks.slow_engine import hold, let_go, slow_engine
from tests.tasks.worker_process import ROOT, WorkerProcess, wait_until_running

LONG: dict[str, Any] = {"prompt_token_ids": [9, 8, 7], "max_tokens": 100, "seed": 4, "ignore_eos": True}
DRAIN_S, END_S = 2, 60
"""The time that jobs have in these tests, and what all else may take on a busy machine."""
LONG_DRAIN_S = 150
"""Where a worker is not to wait for its jobs."""


class SlowWorker(WorkerProcess):
    """A worker that has begun a job and does not end it."""

    def __init__(self, redis_url: str, model: Path, folder: Path, **variables: str) -> None:
        self.folder = folder
        slow = slow_engine(folder) | {"ORCD_DRAIN_TIMEOUT_S": str(DRAIN_S)}
        super().__init__(redis_url, model, folder, **slow | variables)

    def begin(self, client: Client) -> str:
        """Submit a job and wait until the engine is at it, which is held; returns its id."""
        hold(self.folder)
        job_id = client.submit(**LONG)
        wait_until_running(client, [job_id], 5)
        return job_id

    def begin_and_stop(self, client: Client) -> str:
        """The same with an engine that does nothing more."""
        job_id = self.begin(client)
        os.kill(self.engine_pid, signal.SIGSTOP)
        return job_id

    def leave(self, signals: Sequence[int]) -> float:
        """Send each when the one before was heard; returns how long it took until the worker had left with 0."""
        start = time.monotonic()
        for number in signals:
            self.process.send_signal(number)
            self.wait_for("draining")
        assert self.process.wait(LONG_DRAIN_S) == 0
        return time.monotonic() - start

    def complaints(self) -> list[dict[str, Any]]:
        return [event for event in self.events() if event["level"] != "info"]


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.parametrize(
    ("signals", "drain_s", "least_s"),
    [
        ([signal.SIGTERM], DRAIN_S, DRAIN_S),
        ([signal.SIGINT], DRAIN_S, DRAIN_S),
        ([signal.SIGQUIT], LONG_DRAIN_S, 0),
        ([signal.SIGINT] * 2, LONG_DRAIN_S, 0),
    ],
    ids=["SIGTERM", "Ctrl-C", "SIGQUIT", "Ctrl-C twice"],
)
def test_what_is_not_finished_in_time_goes_on_elsewhere(
    redis_url: str, shallow_chat_model: Path, tmp_path: Path, signals: Sequence[int], drain_s: int, least_s: float
) -> None:
    slow = SlowWorker(redis_url, shallow_chat_model, tmp_path, ORCD_DRAIN_TIMEOUT_S=str(drain_s))
    with Client(redis_url) as client, slow as worker:
        expected = client.result(client.submit(**LONG), timeout=60)
        streams = Streams(redis_url, [worker.begin_and_stop(client)])
        assert least_s <= worker.leave(signals) <= least_s + END_S
        assert worker.complaints() == []
        assert client.status(streams.job_ids[0]).state == "queued", "handed back"
        with WorkerProcess(redis_url, shallow_chat_model, tmp_path):
            (result,) = streams.results()
        assert (result.state, result.text) == ("succeeded", expected.text)
        assert client.status(streams.job_ids[0]).attempt == 1


def engines_of(worker: WorkerProcess) -> list[psutil.Process]:
    """The worker's engine process that was started by exec, as soon as there is one."""
    found = []
    for child in psutil.Process(worker.process.pid).children():
        with suppress(psutil.Error):  # one that has just ended
            if "--in-flight-fd" in child.cmdline():
                found.append(child)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_worker_that_loads_its_model_leaves_at_once(
    redis_url: str, shallow_chat_model: Path, tmp_path: Path, number: int
) -> None:
    worker = WorkerProcess(redis_url, shallow_chat_model, tmp_path, by_exec=True)
    wait_until(lambda: engines_of(worker))
    engines_of(worker)[0].suspend()  # it takes a while
    worker.wait_for("startup")
    worker.process.send_signal(number)
    assert worker.process.wait(60) == 0
    assert [event["event"] for event in worker.events()][-1] == "shutdown"


def test_a_worker_that_was_told_to_leave_is_not_ready_and_says_so(
    redis_url: str, shallow_chat_model: Path, tmp_path: Path
) -> None:
    port = free_port()
    variables = {"ORCD_METRICS_PORT": str(port), "ORCD_DRAIN_TIMEOUT_S": str(LONG_DRAIN_S)}
    with Client(redis_url) as client, SlowWorker(redis_url, shallow_chat_model, tmp_path, **variables) as worker:
        worker.begin(client)
        worker.process.terminate()
        worker.wait_for("draining")
        wait_until(lambda: _status(f"http://127.0.0.1:{port}/readyz") == 503)
        wait_until(lambda: [each.state for each in client.workers()] == ["draining"])
        later = client.submit(**LONG)
        let_go(tmp_path)
        assert worker.process.wait(END_S) == 0
        assert client.status(later).state == "queued"
        assert client.status(later).attempt == 0


def test_a_worker_that_is_told_again_and_again_exits_as_if_it_was_told_once(
    redis_url: str, shallow_model: Path, tmp_path: Path
) -> None:
    """Who told it while Python ended had it exit with 143."""
    with WorkerProcess(redis_url, shallow_model, tmp_path, by_exec=True) as worker:
        deadline = time.monotonic() + END_S
        while worker.process.poll() is None and time.monotonic() < deadline:
            worker.process.send_signal(signal.SIGTERM)
            time.sleep(0.001)
        assert worker.process.wait(END_S) == 0


@pytest.mark.parametrize("leave", ["threading.Event().wait", "lambda: 1 // 0"])
def test_a_process_exits_in_time_though_what_gives_its_jobs_up_never_ends_or_fails(leave: str) -> None:
    """It stayed for ever where Celery's event loop waited for something, too."""
    program = f"""
import threading
from tasks.celery_ext.shutdown import Shutdown
shutdown = Shutdown(0.1, lambda: None, {leave}, lambda *_: None)
shutdown.start()
shutdown.begin(exit_code=7)
threading.Event().wait()
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=END_S, cwd=ROOT, check=False).returncode == 7


def test_a_worker_that_restarts_does_not_say_with_which_password() -> None:
    program = """
import signal, sys
from tasks.celery_ext.shutdown import Shutdown
signal.signal(signal.SIGHUP, lambda *_: print(sys.argv))  # as Celery's
Shutdown(0.1, lambda: None, lambda: None, lambda *_: None).watch_signals()
signal.raise_signal(signal.SIGHUP)
print(sys.argv)
"""
    command = [sys.executable, "-c", program, "--redis", "redis://:secret@redis/0"]
    done = subprocess.run(command, timeout=END_S, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["['-c']", str(["-c", *command[3:]])]
