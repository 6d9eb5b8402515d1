"""What the transport relies on in kombu, and what it changes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu.simple import SimpleQueue

from orcd.client import Client
from tasks.app import create_app
from tasks.celery_ext.transport import Transport
from tests.tasks.worker_process import WorkerProcess
from worker.settings import Settings


@pytest.fixture
def channel(redis_url: str) -> Iterator[Any]:
    with create_app(Settings(redis_url=redis_url)).connection_for_write() as connection:
        assert isinstance(connection.transport, Transport)
        yield connection.default_channel


def test_a_channel_keeps_one_client_for_its_commands(channel: Any) -> None:
    with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
        assert first is second
        assert first.ping()


def test_a_new_pool_of_connections_gets_a_new_client(channel: Any) -> None:
    with channel.conn_or_acquire() as first:
        channel._disconnect_pools()
    with channel.conn_or_acquire() as second:
        assert second is not first
        assert second.ping()


def test_the_client_that_blocks_for_messages_is_one_of_its_own(channel: Any) -> None:
    with channel.conn_or_acquire() as kept:
        assert channel.client is not kept
        assert channel.subclient is not channel.client


def test_the_connection_is_still_shown_as_redis() -> None:  # Flower goes by that
    with create_app(Settings(redis_url="redis://:secret@redis:6379/1")).connection_for_write() as connection:
        assert connection.as_uri() == "redis://:**@redis:6379/1"


@pytest.fixture
def queue(channel: Any) -> Iterator[Any]:
    """A queue on the channel that holds three messages."""
    with SimpleQueue(channel, "some") as queue:
        for number in range(3):
            queue.put(number)
        yield queue


def unacked(connection: redis.Redis) -> int:
    """Messages that Redis would deliver again; both of kombu's records say the same."""
    noted, indexed = connection.pipeline().hlen("unacked").zcard("unacked_index").execute()  # at one time
    assert noted == indexed
    return int(noted)


def test_acknowledgements_go_with_the_next_message_or_when_they_are_flushed(
    queue: Any, connection: redis.Redis
) -> None:
    queue.get(timeout=5).ack()
    assert unacked(connection) == 1
    second = queue.get(timeout=5)
    assert unacked(connection) == 1
    assert list(connection.hkeys("unacked")) == [second.delivery_tag.encode()]
    second.ack()
    queue.channel.qos.flush()
    assert unacked(connection) == 0
    assert queue.get(timeout=5).payload == 2


def test_what_waits_behind_a_message_is_taken_with_it_as_far_as_there_is_room(
    channel: Any, queue: Any, connection: redis.Redis
) -> None:
    channel.qos.num_free = lambda: 2
    assert queue.get(timeout=5).payload == 0
    assert (unacked(connection), connection.llen("some")) == (2, 1)
    second = queue.get(timeout=5)
    assert second.payload == 1
    second.ack()
    channel.qos.flush()
    assert unacked(connection) == 1


def test_messages_that_were_taken_together_are_all_given_back(
    channel: Any, queue: Any, connection: redis.Redis
) -> None:
    channel.qos.num_free = lambda: 9
    assert queue.get(timeout=5).payload == 0
    assert (unacked(connection), connection.llen("some")) == (3, 0)
    before = connection.hgetall("unacked")
    channel.do_restore = True
    channel.close()
    assert unacked(connection) == 0
    waiting = [json.loads(text) for text in connection.lrange("some", 0, -1)]
    assert sorted(message["properties"]["delivery_tag"].encode() for message in waiting) == sorted(before)


def test_of_what_is_taken_together_the_most_urgent_comes_first(channel: Any, queue: Any) -> None:
    queue.put("later", priority=9)
    queue.put("sooner", priority=3)
    channel.qos.num_free = lambda: 9
    assert [queue.get(timeout=5).payload for _ in range(5)] == [0, 1, 2, "sooner", "later"]


def test_a_channel_that_closes_gives_back_what_was_not_acknowledged_and_nothing_else(
    channel: Any, queue: Any, connection: redis.Redis
) -> None:
    queue.get(timeout=5).ack()
    assert queue.get(timeout=5).payload == 1
    channel.do_restore = True
    channel.close()
    assert unacked(connection) == 0
    assert connection.llen("some") == 2


def test_an_idle_worker_has_acknowledged_everything(
    redis_url: str, connection: redis.Redis, demo_model: Path, tmp_path: Path
) -> None:
    with WorkerProcess(redis_url, demo_model, tmp_path), Client(redis_url) as client:
        job_ids = client.submit_many([{"prompt_token_ids": [5], "max_tokens": 2}] * 5)
        for job_id in job_ids:
            client.result(job_id, timeout=60)
        end = time.monotonic() + 5
        while unacked(connection):
            assert time.monotonic() < end
            time.sleep(0.05)
