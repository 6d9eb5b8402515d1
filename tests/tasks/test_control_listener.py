"""What clients publish to all workers is heard at once, and whatever else is on the channel does no harm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import SimpleQueue

import pytest
import redis

from orcd.client import Client
from orcd.monitoring.worker_registry import WorkerRegistry
from orcd.store import schema
from orcd.store.job_store import JobStore
from tasks.control_listener import ControlListener
from tasks.local.redis_server import RedisServer
from tests.conftest import wait_until
from tests.orcd.job_writer import claimed


class Scene:
    """A listener, with what it heard and which errors it met."""

    def __init__(self, redis_url: str, prefix: str = "") -> None:
        self.redis = redis.Redis.from_url(redis_url, socket_timeout=60)
        self.store = JobStore(self.redis, owner="w", model="demo", lease_ms=60_000, ttl_s=600, key_prefix=prefix)
        self.heard: SimpleQueue[str] = SimpleQueue()
        self.errors: list[redis.RedisError] = []
        self.deaths: list[str] = []
        self._channel = prefix + schema.CONTROL
        self.listener = ControlListener(
            self.store,
            "worker-1",
            self.heard.put,
            self.heard.put,
            self.errors.append,
            lambda name, _: self.deaths.append(name),
        )

    def wait_until_it_listens(self) -> None:
        def listens() -> bool:
            try:
                return bool(self.redis.pubsub_numsub(self._channel)[0][1])
            except redis.RedisError:
                return False

        wait_until(listens)

    def say(self, text: str) -> None:
        self.redis.publish(self._channel, text)


@pytest.fixture
def scene(redis_url: str) -> Iterator[Scene]:
    scene = Scene(redis_url)
    scene.listener.start()
    scene.wait_until_it_listens()
    yield scene
    scene.listener.stop(5)
    scene.redis.close()
    assert scene.deaths == []


def test_a_client_that_cancels_a_job_that_runs_is_heard_and_other_messages_do_no_harm(
    scene: Scene, client: Client
) -> None:
    job_id = client.submit(prompt="x")
    claimed(scene.store, job_id)
    for said in (
        "no JSON",
        "[]",
        '{"cancel": 7}',
        "\xff",
        "[" * 100_000,
        "{}",
        '{"drain": ""}',
        '{"stop": "worker-2"}',
    ):
        scene.say(said)
    assert client.cancel(job_id) == "running"
    assert scene.heard.get(timeout=60) == job_id
    assert scene.heard.empty()
    assert scene.errors == []


def test_a_worker_hears_that_it_is_to_leave_and_how(scene: Scene) -> None:
    registry = WorkerRegistry(scene.redis)
    for name in ("worker-1", "worker-2"):
        registry.beat(name, {"state": "ready"})
    assert registry.tell("worker-2", "stop")
    assert not registry.tell("worker-3", "stop")
    assert registry.tell("worker-1", "drain")
    assert registry.tell("worker-1", "stop")
    assert [scene.heard.get(timeout=60) for _ in range(2)] == ["drain", "stop"]
    assert scene.heard.empty()


def test_it_hears_at_once(scene: Scene) -> None:
    """It looked ten times a second, so that a slot was free 0.1 s later than it could have been."""
    took_s = []
    for number in range(20):
        start = time.monotonic()
        scene.say(f'{{"cancel": "{number}"}}')
        assert scene.heard.get(timeout=60) == str(number)
        took_s.append(time.monotonic() - start)
    assert min(took_s[1:]) < 0.05, "each looked for after the one before waited for the next look"


def test_the_channel_has_the_prefix_of_all_keys(redis_url: str) -> None:
    scene = Scene(redis_url, "staging:")
    scene.listener.start()
    scene.wait_until_it_listens()
    scene.redis.publish(schema.CONTROL, '{"cancel": "elsewhere"}')
    scene.say('{"cancel": "here"}')
    assert scene.heard.get(timeout=60) == "here"
    scene.listener.stop(5)
    scene.redis.close()


def test_one_that_began_without_redis_hears_once_it_is_back(redis_server: RedisServer) -> None:
    scene = Scene(redis_server.url)
    redis_server.kill()
    scene.listener.start()
    wait_until(lambda: scene.errors)
    redis_server.start()
    scene.wait_until_it_listens()
    scene.say('{"cancel": "a"}')
    assert scene.heard.get(timeout=60) == "a"
    redis_server.kill()
    scene.listener.stop(5)  # is no reason to fail
    assert scene.deaths == []
