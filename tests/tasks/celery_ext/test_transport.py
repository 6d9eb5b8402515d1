"""What the transport relies on in kombu, and what it changes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from kombu import Consumer, Queue
from kombu.asynchronous import Hub
from kombu.simple import SimpleQueue
from kombu.utils.compat import fileno

from orcd.client import Client
from orcd.settings import ClientSettings
from orcd.store import schema
from orcd.store.enqueue import Message, Publisher
from tasks.app import create_app
from tasks.celery_ext import transport
from tasks.celery_ext.transport import Transport
from tasks.local.redis_server import RedisServer
from tests.conftest import wait_until
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


def unacked(connection: redis.Redis) -> dict[bytes, bytes]:
    """What Redis would deliver again if its receiver died: tags and messages."""
    notes = [connection.hgetall(key) for key in connection.scan_iter(schema.UNACKED + "*")]
    return {tag: text for noted in notes for tag, text in noted.items()}


def test_acknowledgements_go_with_the_next_message_or_when_they_are_flushed(
    queue: Any, connection: redis.Redis
) -> None:
    queue.get(timeout=60).ack()
    assert len(unacked(connection)) == 1
    second = queue.get(timeout=60)
    assert list(unacked(connection)) == [second.delivery_tag.encode()]
    second.ack()
    queue.channel.qos.flush()
    assert unacked(connection) == {}
    assert queue.get(timeout=60).payload == 2


def test_what_waits_behind_a_message_is_taken_with_it_as_far_as_there_is_room(
    channel: Any, queue: Any, connection: redis.Redis
) -> None:
    channel.qos.num_free = lambda: 2
    assert queue.get(timeout=60).payload == 0
    assert (len(unacked(connection)), connection.llen("some")) == (2, 1)
    second = queue.get(timeout=60)
    assert second.payload == 1
    second.ack()
    channel.qos.flush()
    assert len(unacked(connection)) == 1


@pytest.mark.parametrize(("room", "asks_again"), [(3, True), (9, False)])
def test_more_is_asked_for_at_once_only_where_what_came_may_not_be_all(
    channel: Any, queue: Any, room: int, asks_again: bool
) -> None:
    channel.qos.num_free = lambda: room
    channel.qos.receiver.load_take()
    queue._consume()
    channel.connection.cycle._register_BRPOP(channel)
    assert channel._brpop_read()
    assert len(queue.buffer) == 3
    assert (channel._next_look == 0.0) is asks_again


def test_messages_that_were_taken_together_are_all_given_back(
    channel: Any, queue: Any, connection: redis.Redis
) -> None:
    channel.qos.num_free = lambda: 9
    assert queue.get(timeout=60).payload == 0
    assert (len(unacked(connection)), connection.llen("some")) == (3, 0)
    before = unacked(connection)
    channel.close()
    assert unacked(connection) == {}
    assert sorted(connection.lrange("some", 0, -1)) == sorted(before.values()), "byte for byte"


def test_of_what_is_taken_together_the_most_urgent_comes_first(channel: Any, queue: Any) -> None:
    queue.put("later", priority=9)
    queue.put("sooner", priority=3)
    channel.qos.num_free = lambda: 9
    assert [queue.get(timeout=60).payload for _ in range(5)] == [0, 1, 2, "sooner", "later"]


def test_a_channel_that_closes_gives_back_what_was_not_acknowledged_and_nothing_else(
    channel: Any, queue: Any, connection: redis.Redis
) -> None:
    queue.get(timeout=60).ack()
    assert queue.get(timeout=60).payload == 1
    channel.close()
    assert unacked(connection) == {}
    assert connection.llen("some") == 2


def test_a_message_that_is_rejected_goes_back_if_it_is_wanted(queue: Any, connection: redis.Redis) -> None:
    queue.get(timeout=60).reject()
    queue.get(timeout=60).requeue()
    queue.channel.qos.flush()
    assert unacked(connection) == {}
    assert connection.llen("some") == 2
    assert queue.get(timeout=60).payload == 1, "it is the first again"


def test_messages_with_one_delivery_tag_are_all_delivered_and_noted(
    channel: Any, queue: Any, connection: redis.Redis
) -> None:
    queue.clear()
    for number in range(3):
        message = {"body": str(number), "content-type": "application/json", "content-encoding": "utf-8", "headers": {}}
        connection.lpush("some", json.dumps(message | {"properties": {"delivery_tag": "1"}}))
    channel.qos.num_free = lambda: 9
    assert [queue.get(timeout=60).payload for _ in range(3)] == [0, 1, 2]
    assert len(unacked(connection)) == 3


def test_the_messages_of_a_sender_that_wakes_nobody_are_found_soon(
    channel: Any, queue: Any, connection: redis.Redis
) -> None:
    (text,) = connection.lrange("some", 0, 0)
    for _ in range(3):
        queue.get(timeout=60).ack()
    timer = threading.Timer(0.5, connection.lpush, ["some", text])
    timer.start()
    queue.get(timeout=60)


def test_a_sender_of_ours_wakes_who_waits(
    channel: Any, queue: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "POLL_S", 1000.0)
    for _ in range(3):
        queue.get(timeout=60).ack()
    publisher = Publisher(ClientSettings(redis_url=redis_url))
    timer = threading.Timer(0.5, publisher.publish, [Message("job-1", "some", 0)])
    timer.start()
    assert queue.get(timeout=60).headers["id"] == "job-1", "nobody would look before"
    timer.join()
    publisher.close()


def test_consuming_goes_on_after_redis_has_closed_a_connection_that_waited(
    channel: Any, queue: Any, connection: redis.Redis
) -> None:
    queue.get(timeout=60).ack()
    channel.qos.num_free = lambda: 0
    with pytest.raises(queue.Empty):
        queue.get(timeout=0.3)
    connection.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with pytest.raises(queue.Empty):
        queue.get(timeout=0.3)
    channel.qos.num_free = lambda: 1
    assert [queue.get(timeout=60).payload for _ in range(2)] == [1, 2]


def test_an_event_loop_is_told_once_of_each_connection(
    channel: Any, queue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    register, told = hub.poller.register, list[int]()
    monkeypatch.setattr(hub.poller, "register", lambda fd, events: told.append(fileno(fd)) or register(fd, events))
    received: list[Any] = []
    consumer = Consumer(channel, [Queue("some")], accept=["json"], callbacks=[lambda body, _: received.append(body)])

    def turn_until(number: int) -> None:
        while len(received) < number:
            hub.run_once()

    with consumer:
        channel.connection.client.register_with_event_loop(hub)
        channel.connection.cycle.on_poll_start()
        for fd in channel.connection.cycle._fd_to_chan:
            hub.add_reader(fd, bool)  # of an earlier transport, whose file descriptors were the same
        turn_until(3)
        told.clear()
        queue.put(3)
        turn_until(4)
        assert told == []
        channel.client.connection.disconnect()
        queue.put(4)
        turn_until(5)
        assert told != []
    hub.close()


def test_a_channel_that_has_lost_redis_can_be_closed_again_and_again(redis_server: RedisServer) -> None:
    with create_app(Settings(redis_url=redis_server.url)).connection_for_write() as lost:
        channel = lost.default_channel
        with SimpleQueue(channel, "some") as queue:
            queue.put("x")
            queue.get(timeout=60)
            redis_server.kill()
            channel.close()
            lost.collect()
            channel.close()
    redis_server.start()
    with redis.Redis.from_url(redis_server.url) as connection:
        assert len(unacked(connection)) == 1, "whoever looks later puts it back"


def test_an_answer_that_does_not_come_is_an_error(
    channel: Any, queue: Any, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "ANSWER_S", 60.0)
    queue.get(timeout=60)
    poller = channel.connection.cycle
    server = psutil.Process(connection.info("server")["process_id"])
    server.suspend()
    try:
        poller.on_poll_start()
        poller.maybe_check_brpop_health()
        monkeypatch.setattr(transport, "ANSWER_S", 0.0)
        with pytest.raises(redis.ConnectionError):
            poller.maybe_check_brpop_health()
    finally:
        server.resume()


def test_an_answer_to_a_remote_control_command_needs_no_acknowledgement(channel: Any, connection: redis.Redis) -> None:
    consumer = Consumer(channel, [Queue("some")], no_ack=True, accept=["json"])
    received: list[Any] = []
    consumer.register_callback(lambda body, _: received.append(body))
    with SimpleQueue(channel, "some") as sender, consumer:
        sender.put(7)
        while not received:
            channel.connection.client.drain_events(timeout=60)
        channel.qos.flush()
    assert received == [7]
    assert unacked(connection) == {}


def test_an_idle_worker_has_acknowledged_everything(
    redis_url: str, connection: redis.Redis, shallow_model: Path, tmp_path: Path
) -> None:
    with WorkerProcess(redis_url, shallow_model, tmp_path), Client(redis_url) as client:
        job_ids = client.submit_many([{"prompt_token_ids": [5], "max_tokens": 2}] * 5)
        for job_id in job_ids:
            client.result(job_id, timeout=60)
        wait_until(lambda: not unacked(connection))
