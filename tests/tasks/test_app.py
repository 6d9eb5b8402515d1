"""The Celery app: what client, worker and Flower agree on."""

from __future__ import annotations

import json
import time

import pytest
import redis
from kombu.exceptions import OperationalError

import tasks
from tasks.app import create_app, default_app, publish, safe_url, worker_id
from tasks.job import Message
from worker.settings import Settings


def test_an_app_is_made_without_a_connection():
    app = create_app(Settings(redis_url="redis://127.0.0.1:1/0"))
    assert app.conf.broker_url == app.conf.result_backend == "redis://127.0.0.1:1/0"


def test_a_message_is_kept_until_its_job_is_done_and_no_prompt_is_stored_with_a_result():
    conf = create_app(Settings(job_ttl_s=77)).conf
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert conf.worker_disable_prefetch
    assert not conf.result_extended
    assert conf.result_expires == 77
    assert conf.accept_content == ["json"]


def test_the_settings_travel_with_the_app():
    settings = Settings(concurrency=7)
    assert create_app(settings).settings is settings
    assert create_app(settings).conf.worker_concurrency == 7


@pytest.mark.parametrize("priority", range(10))
def test_a_message_holds_the_id_and_goes_where_it_should(redis_url: str, connection: redis.Redis, priority: int):
    app = create_app(Settings(redis_url=redis_url))
    publish(app, Message("job-1", "orcd.demo", priority))
    queue = f"orcd.demo:{priority}" if priority else "orcd.demo"
    (text,) = connection.lrange(queue, 0, -1)
    message = json.loads(text)
    assert message["headers"]["task"] == "tasks.generate"
    assert message["headers"]["id"] == message["properties"]["correlation_id"] == "job-1"
    assert message["headers"]["kwargsrepr"] == "{'job_id': 'job-1'}"
    app.close()


def test_publishing_without_redis_fails_in_good_time():
    app = create_app(Settings(redis_url="redis://127.0.0.1:1/0", concurrency=1))
    app.conf.result_backend = "disabled"
    begun = time.monotonic()
    with pytest.raises(OperationalError):
        publish(app, Message("job-1", "celery", 5))
    assert time.monotonic() - begun < 5
    app.close()


def test_a_url_is_shown_without_its_password():
    assert safe_url(Settings(redis_url="redis://:secret@redis:6379/1")) == "redis://:**@redis:6379/1"
    assert safe_url(Settings(redis_url="redis://user:secret@redis:6379/1")) == "redis://user:**@redis:6379/1"


def test_a_worker_keeps_its_name():
    assert worker_id() == worker_id()


def test_celery_finds_the_app_in_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ORCD_REDIS_URL", "redis://127.0.0.1:1/7")
    monkeypatch.setenv("ORCD_NAME", "demo")
    monkeypatch.setenv("ORCD_LOG_FORMAT", "json")
    default_app.cache_clear()
    try:
        app = tasks.celery
        assert app.conf.broker_url == "redis://127.0.0.1:1/7"
        assert {queue.name for queue in app.conf.task_queues} == {"celery", "orcd.demo"}
        assert "tasks.generate" in app.tasks
        with pytest.raises(AttributeError, match="no attribute 'rabbit'"):
            _ = tasks.rabbit
    finally:
        default_app.cache_clear()
