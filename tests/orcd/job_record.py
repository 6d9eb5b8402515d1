"""What a test sees and does of a job in Redis, past the store."""

from __future__ import annotations

import time

import redis

from orcd.errors import Cancelled
from orcd.events import decode_event
from orcd.request import Request
from orcd.store import schema
from orcd.store.enqueue import RecordedMessage
from orcd.store.job_store import Arrival, JobStore

J = "job-1"
REQUEST = Request(prompt="Say something.", seed=7)


def state(store: JobStore, job_id: str = J) -> str:
    """The job's state."""
    return store.redis.hget(schema.job_key(job_id), "state").decode()


def field(store: JobStore, name: str, job_id: str = J) -> int:
    """A number in its record."""
    return int(store.redis.hget(schema.job_key(job_id), name))


def logged(store: JobStore, job_id: str = J) -> list[tuple[str, object]]:
    """Its log: entry ids and events."""
    return [(id.decode(), decode_event(fields[b"e"])) for id, fields in store.redis.xrange(schema.log_key(job_id))]


def submit(store: JobStore, job_id: str = J, request: Request = REQUEST) -> None:
    """Write its record, as for a request that came inside a message."""
    (error,) = store.arrive([Arrival(job_id, request, None)])
    if error is not None:
        raise error


def recorded(task_id: str, *job_ids: str, **headers: object) -> RecordedMessage:
    """A message of that task about jobs (default: the one of its own id) that somebody must answer."""
    embed = {"callbacks": None, "errbacks": None, "chain": [{"task": "next"}], "chord": None}
    kwargs = {"job_ids": list(job_ids)} if len(job_ids) > 1 else {"job_id": job_ids[0] if job_ids else task_id}
    return RecordedMessage(task_id, "orcd.generate", "orcd", 5, {"root_id": "root", **headers}, [], kwargs, embed)


def cancel(store: JobStore, job_id: str = J) -> str:
    """Cancel it; returns the state after that."""
    return store.cancel(job_id, Cancelled("cancelled"))


def set_deadline(store: JobStore, after_s: float, job_id: str = J) -> None:
    """Let it end so many seconds from now; below zero it is over already."""
    store.redis.hset(schema.job_key(job_id), "deadline_ms", int(1000 * (time.time() + after_s)))


def is_due(at_ms: float, begun_ms: float, after_ms: float) -> bool:
    """Whether ``at_ms`` is so long after something that happened between ``begun_ms`` and now."""
    return begun_ms - 1 <= at_ms - after_ms <= 1000 * time.time()


def let_lease_run_out(store: JobStore, job_id: str = J) -> None:
    store.redis.zadd(schema.RUNNING, {job_id: 1})


def age(store: JobStore, seconds: int) -> None:
    """As if the job had come into the queue so many seconds sooner."""
    for name in ("created_ms", "queued_ms"):
        store.redis.hincrby(schema.job_key(J), name, -1000 * seconds)


def make_due_again(store: JobStore, job_id: str = J) -> None:
    store.redis.zadd(schema.QUEUED, {job_id: 1})


class Snapshot:
    """All that Redis holds now, so that it can come back to it as from an older snapshot of its own."""

    def __init__(self, connection: redis.Redis) -> None:
        self._redis = connection
        self._keys = {key: (connection.dump(key), max(0, connection.pttl(key))) for key in connection.scan_iter()}

    def restore(self) -> None:
        with self._redis.pipeline() as pipeline:
            pipeline.flushdb()
            for key, (value, ttl_ms) in self._keys.items():
                pipeline.restore(key, ttl_ms, value)
            pipeline.execute()


class Ears:
    """Hears what is published on a channel."""

    def __init__(self, connection: redis.Redis, channel: str) -> None:
        self._channel = connection.pubsub()
        self._channel.subscribe(channel)
        assert self._channel.get_message(timeout=60)["type"] == "subscribe"

    def heard(self) -> list[bytes]:
        """What was published since the last call: all that Redis sends before it answers."""
        self._channel.ping()
        messages = []
        while (message := self._channel.get_message(timeout=60))["type"] != "pong":
            messages.append(message["data"])
        return messages

    def close(self) -> None:
        """From then on Redis knows that nobody listens."""
        self._channel.unsubscribe()
        while (self._channel.get_message(timeout=60) or {"type": ""})["type"] != "unsubscribe":
            pass
        self._channel.close()
