"""An idempotency key: whoever submits the same request with it gets the same job."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier

import pytest
import redis

from orcd.async_client import AsyncClient
from orcd.client import Client
from orcd.errors import Conflict, InvalidRequest
from orcd.store import schema
from tests.orcd.answering_worker import AnsweringWorker
from tests.orcd.job_writer import MakeStore, claimed

KEY = "order 4711 of Kanarienvogel GmbH"


def test_the_same_key_and_request_are_the_same_job(client: Client, make_store: MakeStore):
    job_id = client.submit(prompt="x", idempotency_key=KEY)
    assert client.submit(prompt="x", idempotency_key=KEY) == job_id
    claimed(make_store(), job_id).end()
    assert client.submit(prompt="x", idempotency_key=KEY) == job_id
    assert client.status(job_id).state == "succeeded"
    assert client.submit(prompt="x", idempotency_key=KEY + ".") != job_id
    assert client.submit(prompt="x", idempotency_key=None) != job_id


def test_a_stream_with_a_key_shows_the_answer_of_the_job_that_there_is(client: Client, worker: AnsweringWorker):
    first = "".join(client.stream(prompt="x", idempotency_key=KEY))
    assert first == " 1 2 3"
    assert "".join(client.stream(prompt="x", idempotency_key=KEY)) == first
    assert "".join(client.chat("x", idempotency_key="other")) == first


def test_another_request_with_the_key_is_refused_and_the_job_is_as_before(client: Client):
    job_id = client.submit(prompt="x", idempotency_key=KEY)
    for other in ({"prompt": "y"}, {"prompt": "x", "seed": 1}):
        with pytest.raises(Conflict, match="choose another id or idempotency_key") as refusal:
            client.submit(**other, idempotency_key=KEY)
        assert KEY not in str(refusal.value)
    assert client.status(job_id).state == "queued"


def test_clients_that_submit_at_once_get_one_job(redis_url: str, connection: redis.Redis):
    barrier = Barrier(8)

    def submit(client: Client) -> str:
        barrier.wait()
        return client.submit(prompt="x", idempotency_key=KEY)

    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        clients = [stack.enter_context(Client(redis_url)) for _ in range(8)]
        job_ids = set(pool.map(submit, clients))
    assert len(job_ids) == 1
    assert len(connection.keys("orcd:*:job")) == 1
    assert connection.llen("orcd:5") == 1


def test_the_key_is_nowhere_in_redis(client: Client, connection: redis.Redis):
    client.submit(prompt="x", idempotency_key=KEY)
    words = [KEY.encode(), b"4711", b"Kanarienvogel"]
    for key in connection.scan_iter():
        content = key + (connection.dump(key) or b"")
        assert not any(word in content for word in words)
    (record_key,) = connection.keys("orcd:*:job")
    assert "idempotency_key" not in json.loads(connection.hget(record_key, "request"))


def test_many_requests_may_each_have_a_key(client: Client):
    requests = [{"prompt": "x", "idempotency_key": key} for key in ("a", "b", "a")] + [{"prompt": "x"}]
    job_ids = client.submit_many(requests)
    assert job_ids[0] == job_ids[2]
    assert len(set(job_ids)) == 3
    assert client.submit_many(requests)[:3] == job_ids[:3]
    with pytest.raises(Conflict):
        client.submit_many([{"prompt": "y", "idempotency_key": "a"}])


def test_a_job_has_one_name_only(client: Client, connection: redis.Redis):
    with pytest.raises(InvalidRequest, match=r"^idempotency_key: it gives the job its id; leave it or the job_id out"):
        client.submit(prompt="x", job_id="a", idempotency_key=KEY)
    with pytest.raises(InvalidRequest, match=r"^request 0: idempotency_key: "):
        client.submit_many([{"prompt": "x", "idempotency_key": KEY}], ["a"])
    assert connection.keys() == []


def test_both_clients_mean_the_same_job(client: Client, redis_url: str):
    async def play() -> list[str]:
        async with AsyncClient(redis_url) as other:
            with pytest.raises(Conflict):
                await other.submit(prompt="y", idempotency_key=KEY)
            many = await other.submit_many([{"prompt": "x", "idempotency_key": KEY}])
            return [await other.submit(prompt="x", idempotency_key=KEY), *many]

    job_id = client.submit(prompt="x", idempotency_key=KEY)
    assert asyncio.run(play()) == [job_id, job_id]


def test_a_job_that_is_no_longer_kept_runs_again_with_the_same_seed(client: Client, connection: redis.Redis):
    def seed() -> int:
        return int(json.loads(connection.hget(schema.job_key(job_id), "request"))["seed"])

    job_id = client.submit(prompt="x", idempotency_key=KEY)
    before = seed()
    connection.delete(schema.job_key(job_id))
    assert client.submit(prompt="x", idempotency_key=KEY) == job_id
    assert seed() == before
