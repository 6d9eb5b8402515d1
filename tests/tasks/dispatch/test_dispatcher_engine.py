"""What a stuck engine costs: no lease, nobody's turn, and in the end itself (F15, F17); real workers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from orcd.client import Client
from tests.tasks.slow_engine import held_engine, slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running

LONG: dict[str, Any] = {"prompt_token_ids": [9, 8, 7], "max_tokens": 50, "seed": 4, "ignore_eos": True}

HANG_AT_LOAD = """
import os, sys, time

if "--in-flight-fd" in sys.orig_argv:  # in the engine process
    try:
        os.unlink({trap!r})
    except FileNotFoundError:
        pass
    else:
        time.sleep(600)
"""


def test_a_stuck_engine_costs_no_lease_and_blocks_nobody(redis_url: str, shallow_model: Path, tmp_path: Path) -> None:
    """Jobs that come meanwhile are claimed, and cancellations are heard."""
    variables = slow_engine(tmp_path)
    with WorkerProcess(redis_url, shallow_model, tmp_path, **variables) as worker, Client(redis_url) as client:
        with held_engine(tmp_path):
            job_id = client.submit(**LONG)
            wait_until_running(client, [job_id], 5)
            os.kill(worker.engine_pid, signal.SIGSTOP)
        later = client.submit_many([LONG] * 8)
        big = client.submit(prompt_token_ids=[5] * 900, max_tokens=2)
        time.sleep(5)  # two leases and a half
        states = {client.status(each).state for each in (job_id, *later, big)}
        assert states == {"running"}
        assert client.status(job_id).attempt == 1
        client.cancel(later[0])
        assert client.result(later[0], timeout=60).state == "cancelled"
        os.kill(worker.engine_pid, signal.SIGCONT)
        assert {client.result(each, timeout=60).state for each in (job_id, *later[1:], big)} == {"succeeded"}


def test_an_engine_that_hangs_while_it_is_loaded_again_is_killed_and_its_jobs_go_on(
    redis_url: str, shallow_model: Path, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    variables = slow_engine(tmp_path, before=HANG_AT_LOAD.format(trap=str(trap))) | {
        "ORCD_ENGINE_START_TIMEOUT_S": "15"
    }
    with WorkerProcess(redis_url, shallow_model, tmp_path, **variables) as worker, Client(redis_url) as client:
        expected = client.result(client.submit(**LONG), timeout=60)
        with held_engine(tmp_path):
            job_id = client.submit(**LONG)
            wait_until_running(client, [job_id], 5)
            trap.touch()
            worker.kill_engine()
        result = client.result(job_id, timeout=60)
        assert (result.state, result.text) == ("succeeded", expected.text)
        assert not trap.exists(), "no engine hung"
        assert client.status(job_id).attempt == 1, "the worker kept the lease"
        assert [event["code"] for event in worker.events("error")] == ["ENGINE_LOST"] * 3  # dead, hung, dead again
