"""The Celery app and all of its configuration.

Client, worker and Flower must agree on the broker options; that is why they all take them from here.
"""

from __future__ import annotations

import os
import secrets
import socket
from functools import cache

from celery import Celery
from kombu import Queue
from kombu.utils.url import maybe_sanitize_url

from tasks.job import Message
from tasks.schema import queue_name
from worker.settings import Settings, from_environment

PRIORITIES = list(range(10))


def create_app(settings: Settings) -> Celery:
    """A Celery app on ``settings.redis_url``; creating it opens no connection."""
    app = Celery("orcd", set_as_current=False, amqp="tasks.transport:Amqp")
    app.loader.override_backends = dict.fromkeys(("redis", "rediss"), "tasks.backend:Backend")
    app.conf.update(
        broker_url=settings.redis_url,
        result_backend=settings.redis_url,
        result_expires=settings.job_ttl_s,
        result_extended=False,  # it would store arguments, which an inline request has its prompt in
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_acks_on_failure_or_timeout=True,
        task_default_priority=5,
        task_track_started=False,
        task_create_missing_queues=True,
        worker_pool="tasks.pool:EnginePool",
        worker_consumer="tasks.consumer:Consumer",
        worker_concurrency=settings.concurrency,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # the pool adopts redelivered jobs instead
        worker_hijack_root_logger=False,
        worker_send_task_events=True,
        task_send_sent_event=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "priority_steps": PRIORITIES,
            "sep": ":",
            "queue_order_strategy": "priority",
            # A job's truth is its lease, so an early redelivery is a no-op; this only bounds how long a message of a
            # dead worker keeps its place in Celery's own bookkeeping.
            "visibility_timeout": 3600,
        },
    )
    app.settings = settings
    return app


@cache
def worker_id() -> str:
    """This process's name in leases, logs and heartbeats: unique also among processes with recycled ids."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


@cache
def default_app() -> Celery:
    """The app that ``celery -A tasks`` uses, configured from ``ORCD_*`` variables; a client needs no tasks in it."""
    from tasks import celery_log
    from tasks.generate import TASKS

    settings = from_environment()
    celery_log.install(settings.log_format)
    app = create_app(settings)
    for task in TASKS:
        app.register_task(task())
    queues = {queue_name(None), queue_name(settings.model_name)}
    app.conf.task_queues = [Queue(name) for name in sorted(queues)]
    return app


def publish(app: Celery, message: Message) -> None:
    """Send the message that makes a worker look at a job. Raises kombu's ``OperationalError``."""
    app.send_task(
        "tasks.generate",
        kwargs={"job_id": message.job_id},
        task_id=message.job_id,
        queue=message.queue,
        priority=message.priority,
        retry=True,
        retry_policy={"max_retries": 2, "interval_start": 0.1, "interval_step": 0.4},
    )


def safe_url(settings: Settings) -> str:
    """The Redis URL without its password, for messages and logs."""
    return str(maybe_sanitize_url(settings.redis_url))
