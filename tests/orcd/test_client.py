"""The client against a real Redis: submission, results, status, cancellation."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import redis

from orcd.client import Client
from orcd.errors import Cancelled, Conflict, InvalidRequest
from orcd.events import Error
from orcd.monitoring.worker_registry import WorkerRegistry
from orcd.status import QueueStatus
from orcd.store import schema
from tests.orcd.job_writer import MakeStore, claimed, messages

# -- submission ------------------------------------------------------------------------------------------------------


def test_a_submitted_job_has_a_record_and_a_message_without_its_prompt(client: Client, connection: redis.Redis):
    job_id = client.submit(prompt="CANARY", max_tokens=5)
    assert client.status(job_id).state == "queued"
    assert b"CANARY" in connection.hget(schema.job_key(job_id), "request")
    (message,) = messages(connection)
    assert message["headers"]["task"] == "orcd.generate"
    assert message["headers"]["id"] == job_id
    for key in connection.scan_iter():
        if key != schema.job_key(job_id).encode():
            content = connection.dump(key)
            assert b"CANARY" not in content


def test_model_and_priority_choose_the_message_s_queue(client: Client, connection: redis.Redis):
    job_id = client.submit(messages=[{"role": "user", "content": "x"}], model="demo", priority=0)
    (message,) = [json.loads(text) for text in connection.lrange("orcd.demo", 0, -1)]
    assert message["headers"]["id"] == job_id


def test_submitting_the_same_id_again_is_harmless(client: Client, connection: redis.Redis):
    assert client.submit(prompt="first", job_id="line-1") == client.submit(prompt="first", job_id="line-1") == "line-1"
    assert len(messages(connection)) == 1


def test_the_id_of_another_request_is_refused_and_the_job_left_alone(client: Client, connection: redis.Redis):
    client.submit(prompt="first", job_id="line-1")
    with pytest.raises(Conflict, match="job line-1: the id belongs to another request; choose another id"):
        client.submit(prompt="second", job_id="line-1")
    with pytest.raises(Conflict, match="job line-1: "):
        client.submit_many([{"prompt": "other"}, {"prompt": "first", "seed": 3}], ["line-2", "line-1"])
    assert sorted(message["headers"]["id"] for message in messages(connection)) == ["line-1", "line-2"]
    assert b"first" in connection.hget(schema.job_key("line-1"), "request")


def test_many_jobs_keep_their_order_over_several_pipelines(client: Client, connection: redis.Redis):
    job_ids = client.submit_many([{"prompt": f"prompt {number}", "seed": number} for number in range(600)])
    assert len(set(job_ids)) == 600
    for number in (0, 255, 256, 599):
        request = json.loads(connection.hget(schema.job_key(job_ids[number]), "request"))
        assert request == {"prompt": f"prompt {number}", "seed": number}
    assert sorted(message["headers"]["id"] for message in messages(connection)) == sorted(job_ids)


def test_nothing_is_written_when_one_of_many_is_wrong(client: Client, connection: redis.Redis):
    with pytest.raises(InvalidRequest, match="request 2: temperature: expected"):
        client.submit_many([{"prompt": "x"}, {"prompt": "x"}, {"prompt": "x", "temperature": 9}])
    with pytest.raises(InvalidRequest, match="request 1: job_id: must be"):
        client.submit_many([{"prompt": "x"}] * 2, job_ids=["good", "not good"])
    with pytest.raises(InvalidRequest, match="request 0: a request must be an object"):
        client.submit_many(["x"])
    with pytest.raises(InvalidRequest, match="job_ids: 1 ids for 2 requests"):
        client.submit_many([{"prompt": "x"}] * 2, job_ids=["a"])
    with pytest.raises(InvalidRequest, match="job_ids: an id is given twice"):
        client.submit_many([{"prompt": "x"}] * 2, job_ids=["a", "a"])
    assert connection.keys() == []


def test_no_jobs_are_no_mistake(client: Client):
    assert client.submit_many([]) == []


def test_a_bad_field_is_named(client: Client, connection: redis.Redis):
    with pytest.raises(InvalidRequest, match="temprature: unknown field"):
        client.submit(prompt="x", temprature=1)
    with pytest.raises(InvalidRequest, match="exactly one of"):
        client.submit()
    assert connection.keys() == []


def test_chat_is_one_message_of_a_user_and_a_prompt_is_raw_text(client: Client, connection: redis.Redis):
    client.submit(prompt="raw", job_id="raw")
    client.chat("hello", max_tokens=3, model="demo").close()
    requests = [json.loads(connection.hget(key, "request")) for key in connection.keys("orcd:*:job")]
    for request in requests:
        del request["seed"]
    assert sorted(requests, key=len) == [
        {"prompt": "raw"},
        {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "model": "demo"},
    ]
    with pytest.raises(InvalidRequest, match=r"messages: chat\(\) makes them of its text"):
        client.chat("hello", messages=[{"role": "user", "content": "x"}])


def test_a_forked_process_may_go_on_using_its_parent_s_client(client: Client, make_store: MakeStore):
    job_ids = [client.submit(prompt="x") for _ in range(2)]
    client.statuses(job_ids)
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            for _ in range(50):
                job_id = client.submit(prompt="child")
                assert client.status(job_id).state == "queued"
            os._exit(0)
        os._exit(1)
    for _ in range(50):
        assert client.status(client.submit(prompt="parent")).state == "queued"
    assert os.waitpid(child, 0)[1] == 0
    assert len(messages(make_store().redis)) == 102


def test_threads_may_share_a_client(client: Client, connection: redis.Redis):
    with ThreadPoolExecutor(8) as pool:
        job_ids = list(pool.map(lambda number: client.submit(prompt=f"prompt {number}"), range(64)))
    assert sorted(message["headers"]["id"] for message in messages(connection)) == sorted(job_ids)


def test_records_are_kept_while_the_job_lives_and_then_as_long_as_asked(
    redis_url: str, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
):
    """F11: a job that waits longer than the time to live does not vanish."""
    monkeypatch.setenv("ORCD_QUEUE_LIMIT_S", "1000")
    store = make_store(ttl_s=5)
    with Client(redis_url, job_ttl_s=777) as client:
        job_id = client.submit(prompt="x")
        assert 1700 < store.redis.ttl(schema.job_key(job_id)) <= 1777
        writer = claimed(store, job_id)
        writer.tokens(1)
        for key in (schema.job_key(job_id), schema.log_key(job_id)):
            assert 1700 < store.redis.ttl(key) <= 1777
        writer.end()
        for key in (schema.job_key(job_id), schema.log_key(job_id)):
            assert 700 < store.redis.ttl(key) <= 777


# -- results, status, cancellation -----------------------------------------------------------------------------------


def test_a_result_waits_for_the_job(client: Client, make_store: MakeStore, background):
    store = make_store()
    job_id = client.submit(prompt="x")
    waiting = background(client.result, job_id)
    writer = claimed(store, job_id)
    writer.start()
    writer.tokens(3)
    assert not waiting.done()
    writer.end()
    result = waiting.result()
    assert (result.job_id, result.state, result.text, result.tokens_out) == (job_id, "succeeded", " 1 2 3", 3)
    assert client.result(job_id) == result


def test_a_failed_job_s_result_has_its_error(client: Client, make_store: MakeStore):
    job_id = client.submit(prompt="x")
    claimed(make_store(), job_id).fail("VRAM_OOM", "too long")
    result = client.result(job_id)
    assert (result.state, result.error) == ("failed", Error("VRAM_OOM", "too long", False))


def test_status_follows_the_job_through_its_life(client: Client, make_store: MakeStore):
    store = make_store()
    job_id = client.submit(prompt="x", priority=2)
    queued = client.status(job_id)
    assert (queued.state, queued.position, queued.attempt, queued.priority) == ("queued", 1, 0, 2)
    assert queued.reason == "no worker is running"
    assert queued.worker is queued.model is queued.started_ms is queued.finished_ms is None

    writer = claimed(store, job_id)
    writer.start()
    writer.tokens(4)
    running = client.status(job_id)
    assert (running.state, running.position, running.attempt, running.reason) == ("running", None, 1, "")
    assert (running.worker, running.model, running.tokens_out) == ("worker-1", "demo", 4)
    assert running.created_ms == queued.created_ms <= running.started_ms

    store.release({job_id: writer.claim.lease})
    waiting = client.status(job_id)
    assert (waiting.state, waiting.position, waiting.worker) == ("queued", 1, None)

    claimed(store, job_id).end()
    ended = client.status(job_id)
    assert (ended.state, ended.position, ended.tokens_out) == ("succeeded", None, 4)
    assert ended.started_ms <= ended.finished_ms


def test_many_statuses_come_in_the_order_asked_for(client: Client):
    job_ids = client.submit_many([{"prompt": "x"}] * 3)
    assert [status.job_id for status in client.statuses(job_ids[::-1])] == job_ids[::-1]
    assert client.statuses([]) == []


def test_cancelling_a_queued_job_ends_its_stream(client: Client, make_store: MakeStore):
    pieces = client.stream(prompt="x", job_id="mine")
    assert client.cancel("mine") == "cancelled"
    with pytest.raises(Cancelled):
        next(pieces)
    assert client.result("mine").state == "cancelled"
    assert client.cancel("mine") == "cancelled"
    assert make_store().claim(["mine"])[0] == "finished"


def test_cancelling_a_running_job_tells_its_worker(client: Client, make_store: MakeStore):
    job_id = client.submit(prompt="x")
    writer = claimed(make_store(), job_id)
    assert client.cancel(job_id) == "running"
    assert client.status(job_id).cancelling
    writer.fail("CANCELLED", "cancelled")
    assert client.cancel(job_id) == "cancelled"


def test_workers_that_are_alive_are_listed(client: Client, connection: redis.Redis):
    assert client.workers() == []
    WorkerRegistry(connection).beat("worker-1", {"state": "ready", "running": 3})
    (worker,) = client.workers()
    assert (worker.name, worker.state, worker.running) == ("worker-1", "ready", 3)


def test_queues_are_counted_with_who_serves_them(client: Client, connection: redis.Redis, make_store: MakeStore):
    assert client.queues() == []
    WorkerRegistry(connection).beat("worker-1", {"state": "ready", "model": "demo"})
    job_ids = client.submit_many([{"prompt": "x", "priority": 1}, {"prompt": "x", "priority": 9}, {"prompt": "x"}])
    claimed(make_store(), job_ids[0])
    client.submit(prompt="x", model="no:body")
    any_model, demo, nobody = client.queues()
    assert (any_model.queue, any_model.model, any_model.workers) == ("orcd", None, 1)
    assert (any_model.running, any_model.waiting, any_model.priorities) == (1, 2, {5: 1, 9: 1})
    assert any_model.messages == 3
    assert any_model.oldest_ms is not None
    assert 0 <= any_model.oldest_ms < 60_000
    assert demo == QueueStatus("orcd.demo", "demo", 1, 0, 0, None, {}, 0, 0)
    assert (nobody.queue, nobody.model, nobody.workers, nobody.waiting) == ("orcd.no%3Abody", "no:body", 0, 1)
