"""Receivers of messages, a pool, and the Celery app of somebody who sends them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import kombu.pools
import pytest
import redis
from celery import Celery

from tasks.app import create_app
from tasks.celery_ext.receiver import Receiver
from tests.tasks.celery_ext.pool_scene import Scene
from tests.tasks.celery_ext.taken_messages import MakeReceiver
from worker.settings import Settings


@pytest.fixture
def make_receiver(connection: redis.Redis) -> MakeReceiver:
    def make(name: str = "r1", lease_ms: int = 60_000, **options: Any) -> Receiver:
        receiver = Receiver(name, lease_ms, connection, **options)
        receiver.load_take()
        return receiver

    return make


@pytest.fixture
def receiver(make_receiver: MakeReceiver) -> Receiver:
    return make_receiver()


@pytest.fixture
def scene(redis_url: str) -> Iterator[Scene]:
    scene = Scene(redis_url)
    yield scene
    scene.close()


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    kombu.pools.reset()  # the apps of a process share connections; Redis may have closed those of tests long ago
    app = create_app(Settings(redis_url=redis_url))
    yield app
    gc.collect()  # an AsyncResult unsubscribes when it is collected, so it must go before its Redis does
    app.close()
