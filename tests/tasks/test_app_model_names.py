"""F20: a model may have any name, with characters that kombu and Redis give a meaning, and its jobs find it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import redis
from celery import Celery

from orcd.client import Client
from orcd.store.enqueue import queue_name
from tests.tasks.worker_process import WorkerProcess

FIELDS = {"prompt": "old pond", "max_tokens": 2, "temperature": 0.0}
NAMES = ["qwen2.5:7b", "qwen2.5", "org/model@1", "größe {1} %41 *"]
QUEUES = ["orcd.qwen2.5%3A7b", "orcd.qwen2.5", "orcd.org%2Fmodel%401", "orcd.gr%C3%B6%C3%9Fe%20%7B1%7D%20%2541%20%2A"]


def test_jobs_come_to_the_worker_whose_model_they_name(
    redis_url: str, connection: redis.Redis, client: Client, shallow_model: Path, tmp_path: Path
) -> None:
    assert [queue_name(name) for name in NAMES] == QUEUES
    with ExitStack() as workers, Celery("other", broker=redis_url, backend=redis_url, set_as_current=False) as sender:
        for name in NAMES:
            workers.enter_context(WorkerProcess(redis_url, shallow_model, tmp_path, ORCD_NAME=name))
        job_ids = {(name, p): client.submit(**FIELDS, model=name, priority=p) for name in NAMES for p in (0, 5)}
        answers = {
            name: sender.send_task("orcd.generate", kwargs={**FIELDS, "model": name}, queue=queue)
            for name, queue in zip(NAMES, QUEUES, strict=True)
        }
        strays = {
            name: sender.send_task("orcd.generate", kwargs={**FIELDS, "model": name}, queue="orcd") for name in NAMES
        }
        for (name, _), job_id in job_ids.items():
            result = client.result(job_id, timeout=60)
            assert (result.state, result.model) == ("succeeded", name)
        for name in NAMES:
            assert answers[name].get(timeout=60)["model"] == name
            assert strays[name].get(timeout=60)["model"] == name
        assert {worker.model for worker in client.workers()} == set(NAMES)
        shown = sender.control.inspect(timeout=20, limit=len(NAMES)).stats()
        assert {stats["pool"]["model"] for stats in shown.values()} == set(NAMES), "what Flower asks for"
    assert not [key for key in connection.scan_iter() if connection.type(key) == b"list"], "nothing waits"
