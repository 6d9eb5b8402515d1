"""F16: messages of 100 MB cost a worker neither memory nor its connection."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import redis

from orcd.client import Client
from orcd.store.dead_letters import DEAD_LETTER_BYTES, DeadLetters
from tests.tasks.slow_engine import slow_engine
from tests.tasks.worker_process import WorkerProcess

MIB = 1024 * 1024
NUM_MESSAGES = 4


def _dead_list(redis_url: str) -> str:
    command = [sys.executable, "-m", "orcd", "dead", "list", "--redis", redis_url]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout


def test_a_worker_given_messages_of_100_mb_stays_as_large_as_it_was(
    redis_url: str, connection: redis.Redis, shallow_model: Path, tmp_path: Path
) -> None:
    with (
        WorkerProcess(redis_url, shallow_model, tmp_path, **slow_engine(tmp_path)) as worker,
        Client(redis_url) as client,
    ):
        client.result(client.submit(prompt="old pond", max_tokens=1), timeout=60)
        process = psutil.Process(worker.process.pid)
        before = peak = process.memory_info().rss
        job_id = client.submit(prompt="old pond", max_tokens=400, ignore_eos=True)
        with redis.Redis.from_url(redis_url, socket_timeout=60) as sender:
            for _ in range(NUM_MESSAGES):
                sender.lpush("orcd", b"x" * (100 * MIB))
        while connection.xlen("orcd:dead") < NUM_MESSAGES:
            peak = max(peak, process.memory_info().rss)
        assert client.result(job_id, timeout=60).state == "succeeded"
        assert client.status(job_id).attempt == 1
        assert client.result(client.submit(prompt="old pond", max_tokens=1), timeout=60).state == "succeeded"
        after = process.memory_info().rss
        assert max(peak, after) < before + 20 * MIB, [each // MIB for each in (before, peak, after)]
        print(f"RSS {before / MIB:.0f} MiB before, {peak / MIB:.0f} at most, {after / MIB:.0f} after")
        messages = [event["message"] for event in worker.events("celery")]
        assert (
            messages == ["A message that is too long was put with the dead letters: see orcd dead list"] * NUM_MESSAGES
        )
    assert {letter.num_kept_bytes for letter in DeadLetters(connection)} == {DEAD_LETTER_BYTES}
    assert _dead_list(redis_url).count(f"it has {100 * MIB} bytes; at most {32 * MIB} are read") == NUM_MESSAGES
