"""F19: orcd beside a Celery application of somebody's own on the same Redis, with Celery's default settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from celery import Celery

from orcd.cli.migration import Migration, Moved
from orcd.client import Client
from orcd.store import schema
from tests.conftest import wait_until
from tests.tasks.celery_ext.unreadable import envelope
from tests.tasks.worker_process import WorkerProcess

FIELDS = {"prompt": "old pond", "max_tokens": 2, "temperature": 0.0}
NUM_MESSAGES = 20
SHOP = """
from celery import Celery
app = Celery("shop", broker={url!r}, backend={url!r})
app.conf.broker_connection_retry_on_startup = True

@app.task(name="shop.pay")
def pay(amount):
    return amount
"""


@pytest.fixture
def shop(redis_url: str) -> Iterator[Celery]:
    """What the other application's web server sends its tasks with."""
    with Celery("shop", broker=redis_url, backend=redis_url, set_as_current=False) as app:
        yield app


@contextmanager
def shop_worker(redis_url: str, folder: Path) -> Iterator[Path]:
    """The other application's worker; yields its log."""
    (folder / "shop.py").write_text(SHOP.format(url=redis_url))
    log = folder / "shop.log"
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "shop",
        "worker",
        "--hostname",
        "shop@test",
        "--pool",
        "solo",
        "--loglevel",
        "WARNING",
    ]
    environment = {name: text for name, text in os.environ.items() if not name.startswith("ORCD_")}
    with log.open("w") as output, subprocess.Popen(command, cwd=folder, env=environment, stderr=output) as process:
        yield log
        assert process.poll() is None, log.read_text()
        process.terminate()
        process.wait(60)


def test_neither_takes_the_messages_of_the_other(
    redis_url: str, connection: redis.Redis, client: Client, shallow_model: Path, tmp_path: Path, shop: Celery
) -> None:
    with (
        WorkerProcess(redis_url, shallow_model, tmp_path, by_celery=True, by_exec=True) as worker,
        shop_worker(redis_url, tmp_path) as log,
    ):
        payments, answers, job_ids = [], [], []
        for number in range(NUM_MESSAGES):
            payments.append(shop.send_task("shop.pay", args=[number]))
            answers.append(shop.send_task("orcd.generate", kwargs=FIELDS, queue="orcd"))
            job_ids.append(client.submit(**FIELDS))
        payments.append(shop.send_task("shop.pay", args=[NUM_MESSAGES], exchange="celery", routing_key="celery"))
        assert [payment.get(timeout=60) for payment in payments] == list(range(NUM_MESSAGES + 1))
        assert {client.result(job_id, timeout=60).state for job_id in job_ids} == {"succeeded"}
        assert len({answer.get(timeout=60)["choices"][0]["text"] for answer in answers}) == 1
        assert "unregistered" not in log.read_text()
        assert len(shop.control.inspect(timeout=20, limit=2).ping()) == 2, "both answer"
        assert worker.process.poll() is None
    assert connection.xlen(schema.DEAD) == 0
    assert not [key for key in connection.scan_iter() if connection.type(key) == b"list"], "nothing waits"


def test_jobs_that_an_earlier_version_left_in_celerys_own_queue_run_after_a_migration(
    redis_url: str, connection: redis.Redis, client: Client, shallow_model: Path, tmp_path: Path, shop: Celery
) -> None:
    payments = [shop.send_task("shop.pay", args=[number]) for number in range(3)]
    for number in range(3):
        connection.lpush("celery", json.dumps(envelope(f"old-{number}", "tasks.generate", FIELDS)))
    with WorkerProcess(redis_url, shallow_model, tmp_path) as worker:
        assert list(Migration(connection).run()) == [Moved(3, "celery", "orcd")]
        for number in range(3):
            wait_until(lambda job_id=f"old-{number}": connection.exists(schema.job_key(job_id)))  # type: ignore[misc]
            assert client.result(f"old-{number}", timeout=60).state == "succeeded"
        assert worker.process.poll() is None
    assert connection.llen("celery") == len(payments)
    with shop_worker(redis_url, tmp_path) as log:
        assert [payment.get(timeout=60) for payment in payments] == [0, 1, 2]
        assert "unregistered" not in log.read_text()
