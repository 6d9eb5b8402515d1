"""Celery messages: where they go and how they are sent."""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import msgspec
import pytest
import redis
from kombu.exceptions import OperationalError

from orcd.client import Client
from orcd.settings import ClientSettings
from orcd.store import schema
from orcd.store.broker import Connection, Transport, broker_configuration
from orcd.store.enqueue import Message, Publisher, RecordedMessage, queue_name
from orcd.store.submission import Lifetime, messages_left, prepare_many
from tasks.local.redis_server import RedisServer
from tests.conftest import wait_until
from tests.orcd.job_writer import MakeStore


def test_a_model_has_its_queue_and_every_model_the_default_one():
    """F19: the default queue is not the one of every Celery application."""
    assert queue_name("demo") == "orcd.demo"
    assert queue_name(None) == "orcd"


def test_a_model_s_name_may_hold_any_character():
    """F20: kombu takes a colon in a queue's name for the end of it."""
    assert queue_name("qwen2.5:7b") == "orcd.qwen2.5%3A7b"
    assert queue_name("a/b c~d%é") == "orcd.a%2Fb%20c%7Ed%25%C3%A9"


def test_a_message_to_a_model_with_a_colon_goes_to_its_queue(redis_url: str, connection: redis.Redis):
    """F20: it was undeliverable."""
    with Client(redis_url) as client:
        job_id = client.submit(prompt="x", model="qwen2.5:7b")
    (text,) = connection.lrange("orcd.qwen2.5%3A7b:5", 0, -1)
    assert json.loads(text)["headers"]["id"] == job_id


def recorded(task_id: str = "task-1", priority: int = 5) -> RecordedMessage:
    headers = {"id": "?", "task": "?", "root_id": "root", "group": "g", "timelimit": [30, 20], "traceparent": "00-1"}
    embed = {"callbacks": None, "errbacks": None, "chain": [{"task": "next"}], "chord": None}
    return RecordedMessage(task_id, "orcd.generate", "orcd.demo", priority, headers, [], {"job_id": "job-1"}, embed)


def test_recorded_messages_are_sent_as_they_were_in_place_of_a_plain_one(redis_url: str, connection: redis.Redis):
    """F08: a message that was published again had lost its canvas."""
    publisher = Publisher(ClientSettings(redis_url=redis_url))
    publisher.publish(Message("job-1", "orcd.demo", 3, recorded=(recorded("task-1"), recorded("task-2", 1))))
    urgent, later = (json.loads(connection.lindex(f"orcd.demo:{priority}", 0)) for priority in (1, 3))
    assert [message["headers"]["id"] for message in (urgent, later)] == ["task-2", "task-1"]
    assert later["headers"] | {"root_id": "root", "group": "g", "traceparent": "00-1"} == later["headers"]
    assert later["headers"]["task"] == "orcd.generate"
    assert later["properties"]["correlation_id"] == "task-1"
    assert json.loads(base64.b64decode(later["body"])) == [[], {"job_id": "job-1"}, recorded().embed]
    assert connection.llen("orcd.demo:5") == 0
    publisher.close()


def test_a_plain_one_goes_along_where_no_recorded_message_goes_to_the_jobs_queue(
    redis_url: str, connection: redis.Redis
):
    """A message about jobs of several models is in one queue only."""
    publisher = Publisher(ClientSettings(redis_url=redis_url))
    publisher.publish(Message("job-1", "orcd.other", 5, recorded=(recorded("chunk"),)))
    ids = [json.loads(connection.lindex(f"{queue}:5", 0))["headers"]["id"] for queue in ("orcd.demo", "orcd.other")]
    assert ids == ["chunk", "job-1"]
    publisher.close()


def test_recorded_messages_are_read_each_once_and_a_broken_one_stops_no_other():
    texts = [msgspec.json.encode(recorded("task-1")), b"no message", msgspec.json.encode(recorded("task-2"))]
    replies = [
        [b"a", b"orcd", b"5", 0, texts, b""],
        [b"b", b"orcd", b"5", 1, texts[:1], b""],
        [b"c", b"orcd", b"2", 0, [b"?"], b"0123456789abcdef"],
    ]
    assert Message.read_all(replies) == [
        Message("a", "orcd", 5, recorded=(recorded("task-1"), recorded("task-2"))),
        Message("c", "orcd", 2, tenant="0123456789abcdef"),
    ]
    assert recorded().time_limit_s == 20


@pytest.mark.parametrize("priority", range(10))
def test_a_message_holds_the_id_and_goes_where_it_should(redis_url: str, connection: redis.Redis, priority: int):
    publisher = Publisher(ClientSettings(redis_url=redis_url))
    publisher.publish(Message("job-1", "orcd.demo", priority))
    queue = f"orcd.demo:{priority}" if priority else "orcd.demo"
    (text,) = connection.lrange(queue, 0, -1)
    message = json.loads(text)
    assert message["headers"]["task"] == "orcd.generate"
    assert message["headers"]["id"] == message["properties"]["correlation_id"] == "job-1"
    assert message["headers"]["kwargsrepr"] == "{'job_id': 'job-1'}"
    publisher.close()


def test_publishing_without_redis_fails_in_good_time():
    publisher = Publisher(ClientSettings(redis_url="redis://127.0.0.1:1/0"))
    begun = time.monotonic()
    with pytest.raises(OperationalError):
        publisher.publish(Message("job-1", "orcd", 5))
    assert time.monotonic() - begun < 20
    publisher.close()


def test_a_channel_keeps_one_client_for_its_commands(redis_url: str):
    options = broker_configuration(ClientSettings(redis_url=redis_url))["broker_transport_options"]
    with Connection(transport_options=options) as connection:
        assert isinstance(connection.transport, Transport)
        channel = connection.default_channel
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
            assert first.ping()


def test_a_forked_process_publishes_on_connections_of_its_own(redis_url: str, connection: redis.Redis):
    publisher = Publisher(ClientSettings(redis_url=redis_url))
    publisher.publish(Message("parent-1", "orcd", 5))
    parents = publisher.open().producers
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            for number in range(20):
                publisher.publish(Message(f"child-{number}", "orcd", 5))
            os._exit(publisher.open().producers is parents)
        os._exit(2)
    for number in range(20):
        publisher.publish(Message(f"parent-{number}", "orcd", 5))
    assert os.waitpid(child, 0)[1] == 0
    sent = [json.loads(text)["headers"]["id"] for text in connection.lrange("orcd:5", 0, -1)]
    assert len(sent) == 41
    publisher.close()


def test_only_jobs_are_announced_that_are_new_and_that_the_script_has_not(redis_url: str, connection):
    publisher = Publisher(ClientSettings(redis_url=redis_url))
    (batch,) = prepare_many([{"prompt": "x"}] * 4, ["a", "b", "c", "d"], Lifetime(60, 3600))
    publisher.announce(messages_left(batch, [1, 0, 1, 2]))
    sent = [json.loads(text)["headers"]["id"] for text in connection.lrange("orcd:5", 0, -1)]
    assert sorted(sent) == ["a", "c"]
    publisher.close()


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of jobs whose messages a publisher has tried to send."""
    job_ids: list[str] = []
    publish = Publisher.publish

    def note_and_publish(publisher: Publisher, message: Message) -> None:
        job_ids.append(message.job_id)
        publish(publisher, message)

    monkeypatch.setattr(Publisher, "publish", note_and_publish)
    return job_ids


def test_a_job_that_cannot_be_announced_is_left_to_the_reaper(
    redis_url: str, make_store: MakeStore, caplog: pytest.LogCaptureFixture, tried: list[str]
):
    store = make_store()
    for priority in range(10):
        store.redis.set(f"orcd:{priority}" if priority else "orcd", "no list")
    with Client(redis_url) as client, caplog.at_level(logging.WARNING):
        job_ids = client.submit_many([{"prompt": "CANARY"}] * 3)
    assert tried == job_ids[:1]
    assert caplog.messages == ["3 jobs are stored but were not announced; a worker will find them in a while"]
    for job_id in job_ids:
        store.redis.zadd(schema.QUEUED, {job_id: 1})  # as if its time to be published again had come
    assert sorted(message.job_id for message in store.reap()) == sorted(job_ids)


def test_a_queue_that_takes_no_message_keeps_no_other_from_being_announced(
    redis_url: str, connection: redis.Redis, caplog: pytest.LogCaptureFixture, tried: list[str]
):
    for priority in range(10):
        connection.set(f"orcd.broken:{priority}" if priority else "orcd.broken", "no list")
    publisher = Publisher(ClientSettings(redis_url=redis_url))
    names = ["orcd.broken", "orcd.demo", "orcd.broken", "orcd", "orcd.broken"]
    with caplog.at_level(logging.WARNING):
        publisher.announce([Message(f"job-{number}", name, 5) for number, name in enumerate(names)])
    assert tried == ["job-0", "job-1", "job-3"], "the broken queue is tried for its first message only"
    assert caplog.messages == ["3 jobs are stored but were not announced; a worker will find them in a while"]
    ids = [json.loads(connection.lindex(f"{queue}:5", 0))["headers"]["id"] for queue in ("orcd.demo", "orcd")]
    assert ids == ["job-1", "job-3"]
    publisher.close()


def test_a_client_listens_to_no_celery_result(redis_server: RedisServer):
    with Client(redis_server.url) as client, redis.Redis.from_url(redis_server.url) as connection:
        before = connection.pubsub_channels()
        client.submit_many([{"prompt": "x"}] * 5)
        assert set(connection.pubsub_channels()) <= set(before)


def test_a_process_that_sends_nothing_imports_no_celery(redis_url: str):
    asks = (
        "import sys; from orcd import Client\n"
        f"with Client({redis_url!r}) as client: client.queues()\n"
        "print({name.partition('.')[0] for name in sys.modules} & {'celery', 'kombu', 'amqp'})"
    )
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


def test_clients_of_several_threads_may_be_the_first_to_import_celery(redis_url: str):
    """Another thread's import, in the middle of Celery's own, gets a module that has nothing in it."""
    code = """
import sys, threading, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name in ("celery.local", "kombu.exceptions"):
            time.sleep(0.2)  # the other thread comes meanwhile

sys.meta_path.insert(0, Slow())
from orcd.settings import ClientSettings
from orcd.store.enqueue import Publisher

def publish(publisher):
    try:
        publisher.open()
    except ImportError as error:
        print(error)

settings = ClientSettings(redis_url=sys.argv[1])
threads = [threading.Thread(target=publish, args=[Publisher(settings)]) for _ in range(4)]
for thread in threads:
    thread.start()
    time.sleep(0.02)
for thread in threads:
    thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code, redis_url], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_sending_app_keeps_no_results():
    publisher = Publisher(ClientSettings())
    assert publisher.open().app.backend.as_uri() == "disabled://"
    publisher.close()


def test_closing_gives_all_connections_back(redis_server: RedisServer):
    with redis.Redis.from_url(redis_server.url) as connection:
        before = len(connection.client_list())
        publisher = Publisher(ClientSettings(redis_url=redis_server.url))
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda number: publisher.publish(Message(f"j{number}", "orcd", 5)), range(40)))
        assert len(connection.client_list()) > before
        publisher.close()
        wait_until(lambda: len(connection.client_list()) == before)
