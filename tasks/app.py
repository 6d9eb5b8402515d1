"""The worker's Celery app, configured from the settings. What it shares with clients is in `orcd.store.broker`."""

from __future__ import annotations

from functools import cache

from celery import Celery
from kombu import Exchange, Queue

from orcd.store.broker import broker_configuration
from orcd.store.enqueue import queue_name
from orcd.store.redis_address import RedisAddress
from tasks.dispatch.engine.engine_run import EngineRun
from tasks.observe.job_tracer import configured_tracer
from worker.settings import Settings, from_environment

LINK_RETRY_POLICY = {"max_retries": 600, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 1}
"""How often and after how many seconds a linked task is sent again while Redis is away: else its job would fail."""
BROKER_ANSWER_S = 5
"""How long the worker's event loop waits for Redis, which it does nothing else meanwhile."""
RECEIVER_MAINTENANCE_S = 0.5
"""Time between two looks at the receivers of messages: whether a lease must be renewed, and whether one has run out."""


def create_app(settings: Settings) -> Celery:
    """A Celery app on ``settings.redis_url``; creating it opens no connection.

    Raises `InvalidRequest` on a malformed URL.
    """
    app = Celery(
        "orcd",
        set_as_current=False,
        amqp="tasks.celery_ext.transport:Amqp",
        events="tasks.observe.flower:PrivateEvents",
    )
    app.conf.update(
        broker_configuration(settings),
        broker_transport_options={
            **broker_configuration(settings)["broker_transport_options"],
            "receiver_lease_ms": settings.lease_ms,
            "ageing_ms": settings.ageing_s * 1000,
            "socket_timeout": BROKER_ANSWER_S,
            "health_check_interval": BROKER_ANSWER_S,
            "unacked_restore_interval": RECEIVER_MAINTENANCE_S,
        },
        result_backend="tasks.celery_ext.result_backend:ResultBackend",
        result_backend_transport_options={"global_keyprefix": settings.key_prefix},
        result_expires=settings.job_ttl_s,
        result_extended=False,  # it would store arguments, which an inline request has its prompt in
        task_routes={"orcd.*": {"queue": queue_name(None)}},  # an application's own tasks go to Celery's own queue
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_acks_on_failure_or_timeout=True,
        task_track_started=False,
        worker_pool="tasks.celery_ext.pool:Pool",
        worker_consumer="tasks.celery_ext.consumer:Consumer",
        worker_concurrency=settings.concurrency,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # the pool adopts redelivered jobs instead
        worker_hijack_root_logger=False,
        worker_send_task_events=True,
    )
    app.settings = settings
    app.engine_run = None
    app.tracer = None
    return app


def create_worker_app(settings: Settings, engine_run: EngineRun | None = None) -> Celery:
    """The app of a worker: with its tasks, its queues and its logging, and an engine if one was started already."""
    from tasks.celery_ext import logging
    from tasks.celery_ext.tasks import TASKS

    queues = {queue_name(None), queue_name(settings.model_name)}
    address = str(RedisAddress.parse(settings.redis_url))
    logging.install(settings.log_format, {address, *queues, *(task.name for task in TASKS)})
    app = create_app(settings)
    app.engine_run = engine_run
    app.tracer = configured_tracer()
    app.conf.task_publish_retry_policy = LINK_RETRY_POLICY
    for task in TASKS:
        app.register_task(task())
    # Not of the exchange `celery`: what other applications send to that is theirs.
    app.conf.task_queues = [Queue(name, Exchange(name), routing_key=name) for name in sorted(queues)]
    return app


@cache
def default_app() -> Celery:
    """The worker's app that ``celery -A tasks`` uses, configured from ``ORCD_*`` variables."""
    return create_worker_app(from_environment())
