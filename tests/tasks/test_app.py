"""The Celery app of workers and of Flower."""

from __future__ import annotations

from tasks.app import create_app, create_worker_app
from worker.settings import Settings


def test_an_app_is_made_without_a_connection() -> None:
    app = create_app(Settings(redis_url="redis://127.0.0.1:1/0"))
    assert app.connection().as_uri() == app.backend.as_uri() == "redis://127.0.0.1:1/0"


def test_a_message_is_kept_until_its_job_is_done_and_no_prompt_is_stored_with_a_result() -> None:
    conf = create_app(Settings(job_ttl_s=77)).conf
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert conf.worker_disable_prefetch
    assert not conf.result_extended
    assert conf.result_expires == 77
    assert conf.accept_content == ["json"]


def test_the_settings_travel_with_the_app() -> None:
    settings = Settings(concurrency=7)
    assert create_app(settings).settings is settings
    assert create_app(settings).conf.worker_concurrency == 7


def test_a_worker_takes_nothing_from_the_queue_or_the_exchange_of_other_applications() -> None:
    queues = create_worker_app(Settings(name="qwen2.5:7b")).conf.task_queues
    names = ["orcd", "orcd.qwen2.5%3A7b"]
    assert [(queue.name, queue.exchange.name, queue.routing_key) for queue in queues] == [(n, n, n) for n in names]
