"""The worker's Celery app, configured from the settings. What it shares with clients is in `orcd.store.enqueue`."""

from __future__ import annotations

import os
import secrets
import socket
from functools import cache

from celery import Celery
from kombu import Queue

from orcd.store.enqueue import broker_configuration, queue_name
from worker.settings import Settings, from_environment


def create_app(settings: Settings) -> Celery:
    """A Celery app on ``settings.redis_url``; creating it opens no connection."""
    app = Celery("orcd", set_as_current=False, amqp="tasks.celery_ext.transport:Amqp")
    app.loader.override_backends = dict.fromkeys(("redis", "rediss"), "tasks.celery_ext.result_backend:ResultBackend")
    app.conf.update(
        broker_configuration(settings),
        result_backend=settings.redis_url,
        result_expires=settings.job_ttl_s,
        result_extended=False,  # it would store arguments, which an inline request has its prompt in
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
    return app


@cache
def worker_id() -> str:
    """What this process is called in leases, logs and heartbeats: unique also among processes with recycled ids."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


@cache
def default_app() -> Celery:
    """The app that ``celery -A tasks`` uses, configured from ``ORCD_*`` variables; a client needs no tasks in it."""
    from tasks.celery_ext import logging
    from tasks.celery_ext.tasks import TASKS

    settings = from_environment()
    logging.install(settings.log_format)
    app = create_app(settings)
    for task in TASKS:
        app.register_task(task())
    queues = {queue_name(None), queue_name(settings.model_name)}
    app.conf.task_queues = [Queue(name) for name in sorted(queues)]
    return app
