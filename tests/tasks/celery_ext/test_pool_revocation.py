"""F10: what Celery revokes or lets expire ends as a job too; its time limits are kept. F09: jobs of other models."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError

from orcd.client import Client
from orcd.errors import InferenceTimeout
from orcd.events import Error
from tests.conftest import wait_until
from tests.tasks.slow_engine import held_engine, slow_engine
from tests.tasks.worker_process import WorkerProcess, wait_until_running

SHORT = {"prompt": "old pond", "max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
LONG = {"prompt": "old pond", "max_tokens": 450, "ignore_eos": True}


def check_ended(app: Celery, client: Client, job_id: str, code: str) -> None:
    """Celery says that the task was revoked; the stream has one terminal event."""
    with pytest.raises(TaskRevokedError):
        app.AsyncResult(job_id).get(timeout=60)
    end = list(client.events(job_id, timeout=60))[-1]
    assert isinstance(end, Error)
    assert end.code == code


def test_a_revoked_job_that_waits_ends_at_once_whoever_hears_of_it(
    app: Celery, client: Client, redis_url: str, shallow_model: Path, tmp_path: Path
) -> None:
    with WorkerProcess(redis_url, shallow_model, tmp_path) as worker:
        wait_until(lambda: app.control.ping(timeout=0.5))  # who is ready may not hear broadcasts yet
        submitted = client.submit(**SHORT, model="nobody")
        inline = app.send_task("orcd.generate", kwargs=SHORT | {"model": "nobody"}, queue="orcd.nobody").id
        app.control.revoke([submitted, inline])
        check_ended(app, client, submitted, "CANCELLED")
        wait_until(lambda: app.AsyncResult(inline).state == "REVOKED")
        assert worker.events("execute_start") == []
    with WorkerProcess(redis_url, shallow_model, tmp_path, ORCD_NAME="nobody") as worker:
        after = client.submit(**SHORT, model="nobody")
        assert client.result(after, timeout=60).state == "succeeded"
        check_ended(app, client, inline, "CANCELLED")
        assert [event["job_id"] for event in worker.events("execute_start")] == [after]


def test_a_message_that_expires_in_the_queue_ends_its_job(
    app: Celery, client: Client, redis_url: str, shallow_model: Path, tmp_path: Path
) -> None:
    submitted = client.submit(**SHORT)
    late = [
        app.send_task("orcd.generate", kwargs=SHORT, expires=0.5).id,
        app.send_task("orcd.generate", kwargs={"job_id": submitted}, task_id=submitted, expires=0.5).id,
    ]
    in_time = app.send_task("orcd.generate", kwargs=SHORT, expires=60)
    app.backend.client.ltrim("orcd:5", 0, -2)  # the client's own message
    time.sleep(0.6)
    with WorkerProcess(redis_url, shallow_model, tmp_path) as worker:
        for job_id in late:
            check_ended(app, client, job_id, "EXPIRED")
        assert in_time.get(timeout=60)["tokens_out"] == 8
        assert [event["job_id"] for event in worker.events("execute_start")] == [in_time.id]


def test_a_terminated_job_is_cancelled_and_stays_revoked(
    app: Celery, client: Client, redis_url: str, shallow_model: Path, tmp_path: Path
) -> None:
    with WorkerProcess(redis_url, shallow_model, tmp_path, **slow_engine(tmp_path)):
        job_id = app.send_task("orcd.generate", kwargs=LONG).id
        wait_until_running(client, [job_id], 3)
        app.control.terminate(job_id)
        check_ended(app, client, job_id, "CANCELLED")


LATE_STOP = """
import sys

if "--fd" not in sys.orig_argv:  # in the Celery process
    import time
    from celery.worker import state
    from celery.worker.worker import WorkController

    stop = WorkController.stop

    def stop_late(*args, **options):
        while state.should_terminate is None or state.should_terminate is False:
            time.sleep(0.01)
        stop(*args, **options)

    WorkController.stop = stop_late
"""
"""The first Ctrl-C is acted on when the second one is handled."""


@pytest.mark.parametrize(
    ("signals", "remapped", "before"),
    [
        ([signal.SIGQUIT], "", ""),
        ([signal.SIGINT] * 2, "", ""),
        ([signal.SIGINT] * 2, "", LATE_STOP),
        ([signal.SIGTERM], "SIGQUIT", ""),
    ],
    ids=["SIGQUIT", "Ctrl-C twice", "Ctrl-C twice at once", "REMAP_SIGTERM"],
)
def test_a_cold_shutdown_hands_jobs_over(
    app: Celery,
    client: Client,
    redis_url: str,
    shallow_model: Path,
    tmp_path: Path,
    signals: list[int],
    remapped: str,
    before: str,
) -> None:
    """F10: it cancelled them."""
    variables = slow_engine(tmp_path, before=before) | {"REMAP_SIGTERM": remapped}
    with held_engine(tmp_path), WorkerProcess(redis_url, shallow_model, tmp_path, **variables) as worker:
        job_id = app.send_task("orcd.generate", kwargs=LONG).id
        wait_until_running(client, [job_id])
        os.kill(worker.engine_pid, signal.SIGSTOP)  # nor does it answer
        for number in signals:
            worker.process.send_signal(number)
            worker.wait_for("draining")
        assert worker.process.wait(60) == 0
    assert client.status(job_id).state == "queued"
    assert app.AsyncResult(job_id).state == "PENDING"
    assert app.backend.client.llen("orcd:5") > 0


def test_a_time_limit_of_any_kind_ends_a_job_also_with_the_worker_that_takes_it_over(
    app: Celery, client: Client, redis_url: str, shallow_model: Path, tmp_path: Path
) -> None:
    kinds: list[dict[str, Any]] = [{"time_limit": 4}, {"soft_time_limit": 4}, {"time_limit": 60, "soft_time_limit": 4}]
    variables = slow_engine(tmp_path)
    with WorkerProcess(redis_url, shallow_model, tmp_path, **variables) as first:
        results = [app.send_task("orcd.generate", kwargs=LONG, **limits) for limits in kinds]
        wait_until_running(client, [result.id for result in results])
        os.kill(first.engine_pid, signal.SIGSTOP)
        first.kill()
        assert first.events("execute_end") == []
    with WorkerProcess(redis_url, shallow_model, tmp_path, **variables):
        for result in results:
            with pytest.raises(InferenceTimeout):
                result.get(timeout=60)
            assert client.result(result.id, timeout=60).state == "failed"


def test_a_request_in_the_wrong_queue_is_answered_by_the_model_that_it_names(
    app: Celery, client: Client, redis_url: str, shallow_model: Path, tmp_path: Path
) -> None:
    """F09: whatever model was there answered it."""
    with (
        WorkerProcess(redis_url, shallow_model, tmp_path) as here,
        WorkerProcess(redis_url, shallow_model, tmp_path, ORCD_NAME="other") as there,
    ):
        for name in ("orcd.generate", "tasks.generate"):
            assert (
                app.send_task(name, kwargs=SHORT | {"model": "other"}, queue="orcd").get(timeout=60)["model"] == "other"
            )
        requests = [SHORT, SHORT | {"model": "other"}]
        chunk = app.send_task("orcd.generate_chunk", kwargs={"requests": requests}, queue=f"orcd.{shallow_model.stem}")
        assert [value["model"] for value in chunk.get(timeout=60)] == [shallow_model.stem, "other"]
        assert len(here.events("execute_start")) == 1
        assert len(there.events("execute_start")) == 3
