"""Which worker runs what, and when: real workers on one queue."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from orcd.client import Client
from tests.conftest import wait_until
from tests.tasks.slow_engine import held_engine, slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running


def requests(num_jobs: int, num_tokens: int, **fields: Any) -> list[dict[str, Any]]:
    """Jobs that run to their full length."""
    common = {"max_tokens": num_tokens, "ignore_eos": True, **fields}
    return [{"prompt_token_ids": [5 + number, 7], "seed": number, **common} for number in range(num_jobs)]


def test_a_second_worker_gets_its_share_of_what_waits(redis_url: str, shallow_model: Path, tmp_path: Path) -> None:
    """F18: the first worker kept all 200 jobs while a second idled for 48 s."""
    settings = {"ORCD_MAX_SEQUENCES": "4", **slow_engine(tmp_path)}
    with WorkerProcess(redis_url, shallow_model, tmp_path, **settings) as first, Client(redis_url) as client:

        def num_running(worker: WorkerProcess) -> int:
            running = [status for status in client.statuses(job_ids) if status.state == "running"]
            return sum(f"-{worker.process.pid}-" in str(status.worker) for status in running)

        with held_engine(tmp_path):  # all engines, so that both workers have what they take
            job_ids = client.submit_many(requests(48, 12))
            wait_until_running(client, job_ids[:1])
            assert num_running(first) <= 5
            with WorkerProcess(redis_url, shallow_model, tmp_path, **settings) as second:
                wait_until(lambda: num_running(second) >= 4)
                assert num_running(first) <= 5
        assert {client.result(job_id, timeout=60).state for job_id in job_ids} == {"succeeded"}


def test_the_least_urgent_job_is_served_in_time_while_the_most_urgent_ones_never_end(
    redis_url: str, shallow_model: Path, tmp_path: Path
) -> None:
    """F18: priority 9 under constant load of priority 0 waited for 2.1 hours."""
    settings = {"ORCD_MAX_SEQUENCES": "2", "ORCD_AGEING_S": "2", **slow_engine(tmp_path, 0.01)}
    urgent = requests(60, 30, priority=0)  # work for 9 s
    with WorkerProcess(redis_url, shallow_model, tmp_path, **settings), Client(redis_url) as client:
        waiting = client.submit_many(urgent)
        late = client.submit(prompt_token_ids=[5], max_tokens=1, priority=9)
        start = time.monotonic()
        while client.status(late).state != "succeeded":
            assert time.monotonic() < start + 60
            waiting = [status.job_id for status in client.statuses(waiting) if status.state in ("queued", "running")]
            waiting += client.submit_many(urgent[len(waiting) :])
            time.sleep(0.02)
        seconds = time.monotonic() - start
        num_queued = sum(status.state == "queued" for status in client.statuses(waiting))
        for job_id in waiting:
            client.cancel(job_id)
    print(f"priority 9 was served after {seconds:.1f} s, with {num_queued} jobs of priority 0 waiting")
    assert num_queued > 5


def test_a_tenant_with_few_jobs_does_not_wait_for_one_with_many(
    redis_url: str, shallow_model: Path, tmp_path: Path
) -> None:
    settings = {"ORCD_MAX_SEQUENCES": "2", **slow_engine(tmp_path)}
    with WorkerProcess(redis_url, shallow_model, tmp_path, **settings), Client(redis_url) as client:
        many = client.submit_many(requests(60, 20, tenant="many"))
        wait_until_running(client, many[:1])
        few = client.submit_many(requests(3, 20, tenant="few"))
        assert {client.result(job_id, timeout=60).state for job_id in few} == {"succeeded"}
        num_left = sum(status.state == "queued" for status in client.statuses(many))
        for job_id in many:
            client.cancel(job_id)
    print(f"3 jobs were done while {num_left} of the 60 that were sent before them waited")
    assert num_left > 30
