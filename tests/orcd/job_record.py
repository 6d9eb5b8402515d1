"""What a test sees and does of a job in Redis, past the store."""

from __future__ import annotations

import redis

from orcd.events import Error, decode_event, encode_event
from orcd.request import Request
from orcd.store import schema
from orcd.store.job_store import JobStore

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


def cancel(store: JobStore, job_id: str = J) -> str:
    """Cancel it as a client does; returns the state after that."""
    keys = [schema.job_key(job_id), schema.log_key(job_id), schema.QUEUED]
    script = store.redis.register_script(schema.script("cancel"))
    return script(keys, [job_id, encode_event(Error("CANCELLED", "cancelled", False)), 600]).decode()


def let_lease_run_out(store: JobStore, job_id: str = J) -> None:
    store.redis.zadd(schema.RUNNING, {job_id: 1})


def let_patience_run_out(store: JobStore, job_id: str = J) -> None:
    store.redis.zadd(schema.QUEUED, {job_id: 1})


class Ears:
    """Hears what is published on a channel."""

    def __init__(self, connection: redis.Redis, channel: str) -> None:
        self._channel = connection.pubsub()
        self._channel.subscribe(channel)
        assert self._channel.get_message(timeout=5)["type"] == "subscribe"

    def heard(self) -> list[bytes]:
        messages = []
        while (message := self._channel.get_message(timeout=0.05)) is not None:
            messages.append(message["data"])
        return messages

    def close(self) -> None:
        self._channel.close()
