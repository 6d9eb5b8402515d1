"""Celery messages: where they go and how they are sent."""

from __future__ import annotations

import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import redis
from kombu.exceptions import OperationalError

from orcd.client import Client
from orcd.settings import ClientSettings
from orcd.store import schema
from orcd.store.enqueue import Connection, Message, Publisher, Transport, queue_name
from orcd.store.submission import created_messages, prepare_many
from tests.conftest import wait_until
from tests.orcd.job_writer import MakeStore


def test_a_model_has_its_queue_and_every_model_the_default_one():
    assert queue_name("demo") == "orcd.demo"
    assert queue_name(None) == "celery"


@pytest.mark.parametrize("priority", range(10))
def test_a_message_holds_the_id_and_goes_where_it_should(redis_url: str, connection: redis.Redis, priority: int):
    publisher = Publisher(ClientSettings(redis_url=redis_url))
    publisher.publish(Message("job-1", "orcd.demo", priority))
    queue = f"orcd.demo:{priority}" if priority else "orcd.demo"
    (text,) = connection.lrange(queue, 0, -1)
    message = json.loads(text)
    assert message["headers"]["task"] == "tasks.generate"
    assert message["headers"]["id"] == message["properties"]["correlation_id"] == "job-1"
    assert message["headers"]["kwargsrepr"] == "{'job_id': 'job-1'}"
    publisher.close()


def test_publishing_without_redis_fails_in_good_time():
    publisher = Publisher(ClientSettings(redis_url="redis://127.0.0.1:1/0"))
    begun = time.monotonic()
    with pytest.raises(OperationalError):
        publisher.publish(Message("job-1", "celery", 5))
    assert time.monotonic() - begun < 5
    publisher.close()


def test_a_channel_keeps_one_client_for_its_commands(redis_url: str):
    with Connection(redis_url) as connection:
        assert isinstance(connection.transport, Transport)
        channel = connection.default_channel
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
            assert first.ping()


def test_a_forked_process_publishes_on_connections_of_its_own(redis_url: str, connection: redis.Redis):
    publisher = Publisher(ClientSettings(redis_url=redis_url))
    publisher.publish(Message("parent-1", "celery", 5))
    parents = publisher._producers
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            for number in range(20):
                publisher.publish(Message(f"child-{number}", "celery", 5))
            os._exit(publisher._producers is parents)
        os._exit(2)
    for number in range(20):
        publisher.publish(Message(f"parent-{number}", "celery", 5))
    assert os.waitpid(child, 0)[1] == 0
    sent = [json.loads(text)["headers"]["id"] for text in connection.lrange("celery:5", 0, -1)]
    assert len(sent) == 41
    publisher.close()


def test_only_jobs_that_are_new_are_announced(redis_url: str, connection):
    publisher = Publisher(ClientSettings(redis_url=redis_url))
    (batch,) = prepare_many([{"prompt": "x"}] * 3, ["a", "b", "c"], 60)
    publisher.announce(created_messages(batch, [(1, 5), (0, 5), (1, 5)]))
    sent = [json.loads(text)["headers"]["id"] for text in connection.lrange("celery:5", 0, -1)]
    assert sorted(sent) == ["a", "c"]
    publisher.close()


def test_a_job_that_cannot_be_announced_is_left_to_the_reaper(
    redis_url: str, make_store: MakeStore, caplog: pytest.LogCaptureFixture
):
    class Unheard(Client):
        """Its messages go to a broker that is not there."""

        def __init__(self, redis_url: str) -> None:
            super().__init__(redis_url)
            self._publisher = Publisher(ClientSettings(redis_url="redis://127.0.0.1:1/0"))

    store = make_store()
    begun = time.monotonic()
    with Unheard(redis_url) as client, caplog.at_level(logging.WARNING):
        job_ids = client.submit_many([{"prompt": "CANARY"}] * 3)
    assert time.monotonic() - begun < 5, "only the first message may be tried"
    assert caplog.messages == ["3 jobs are stored but were not announced; a worker will find them in a while"]
    assert store.redis.llen("celery:5") == 0
    for job_id in job_ids:
        store.redis.zadd(schema.QUEUED, {job_id: 1})  # as if the reaper's patience were over
    assert sorted(message.job_id for message in store.reap()) == sorted(job_ids)


def test_a_client_listens_to_no_celery_result(redis_url: str, connection):
    with Client(redis_url) as client:
        client.submit_many([{"prompt": "x"}] * 5)
        assert connection.pubsub_channels() == []


def test_the_sending_app_keeps_no_results():
    publisher = Publisher(ClientSettings())
    assert publisher._app.backend.as_uri() == "disabled://"
    publisher.close()


def test_closing_gives_all_connections_back(redis_url: str, connection: redis.Redis):
    before = len(connection.client_list())
    publisher = Publisher(ClientSettings(redis_url=redis_url))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: publisher.publish(Message(f"j{number}", "celery", 5)), range(40)))
    assert len(connection.client_list()) > before
    publisher.close()
    wait_until(lambda: len(connection.client_list()) == before)
