"""What Flower hears of tasks comes in batches, and all of it comes."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import redis

from orcd.client import Client
from tests.tasks.worker_process import WorkerProcess

NUM_JOBS = 30


def test_events_of_many_tasks_come_together_and_none_is_missing(
    redis_url: str, connection: redis.Redis, demo_model: Path, tmp_path: Path
) -> None:
    listener: Any = connection.pubsub(ignore_subscribe_messages=True)
    with listener, WorkerProcess(redis_url, demo_model, tmp_path), Client(redis_url) as client:
        listener.psubscribe("*celeryev*")
        job_ids = client.submit_many([{"prompt_token_ids": [5], "max_tokens": 2}] * NUM_JOBS)
        batches: list[list[dict[str, Any]]] = []
        told: dict[str, list[str]] = {job_id: [] for job_id in job_ids}
        end = time.monotonic() + 60
        while not all("task-succeeded" in types for types in told.values()):
            assert time.monotonic() < end, told
            message = listener.get_message(timeout=1)
            events = json.loads(base64.b64decode(json.loads(message["data"])["body"])) if message else {}
            if isinstance(events, list):  # others are heartbeats
                batches.append(events)
                for event in events:
                    told[event["uuid"]].append(event["type"])
    assert all(types.count("task-received") == types.count("task-succeeded") == 1 for types in told.values())
    assert len(batches) < NUM_JOBS
