"""The asyncio client: the same surface as the sync one, and the same promises."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest
import redis

from orcd.async_client import AsyncClient
from orcd.client import Client
from orcd.errors import Cancelled, InvalidRequest, Poisoned, RedisUnavailable
from orcd.events import End, Error, Queued, Started, Token
from orcd.monitoring.worker_registry import WorkerRegistry
from orcd.store import event_stream, schema
from orcd.store.job_store import JobStore
from tasks.local.redis_server import RedisServer
from tests.orcd.job_writer import MakeStore, Writer, claimed, indices, kinds


def run(url: str, play: Callable[[AsyncClient], Awaitable[None]], reconnect_s: float = 60) -> None:
    """Run ``play`` with a client, on an event loop of its own."""

    async def main() -> None:
        async with AsyncClient(url, reconnect_s=reconnect_s) as client:
            await asyncio.wait_for(play(client), 120)

    asyncio.run(main())


async def listed(events) -> list:
    return [event async for event in events]


async def until_heard(connection: redis.Redis, job_id: str) -> None:
    """Wait for a subscriber."""
    while connection.pubsub_numsub(schema.events_channel(job_id))[0][1] == 0:
        await asyncio.sleep(0.005)


def test_both_clients_have_the_same_methods_and_arguments():
    def surface(kind: type) -> dict[str, list]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]
            for name, method in methods
            if name == "__init__" or not name.startswith("_")
        }

    assert surface(AsyncClient) == surface(Client)


def test_jobs_are_submitted_checked_and_counted(redis_url: str, connection: redis.Redis):
    async def play(client: AsyncClient) -> None:
        with pytest.raises(InvalidRequest, match="request 1: n: "):
            await client.submit_many([{"prompt": "x"}, {"prompt": "x", "n": 0}])
        assert connection.keys() == []
        job_ids = await client.submit_many([{"prompt": "x"}] * 300)
        assert await client.submit(prompt="x", job_id=job_ids[0]) == job_ids[0]
        assert [status.job_id for status in await client.statuses(job_ids[:2])] == job_ids[:2]
        assert connection.llen("orcd:5") == connection.zcard(schema.QUEUED) == 300
        assert sorted(job.job_id for job in await client.jobs("queued")) == sorted(job_ids)
        assert not (await client.wait_estimate(job_ids[0])).served

    run(redis_url, play)


def test_a_stream_follows_a_job_from_the_queue_to_its_end(redis_url: str, make_store: MakeStore):
    store = make_store()
    store.renew({})

    async def play(client: AsyncClient) -> None:
        job_id = await client.submit(prompt="x")
        events = client.events(job_id)
        assert await anext(events) == Queued(1, reason="waiting for a free slot")
        reading = asyncio.create_task(listed(events))
        await until_heard(store.redis, job_id)
        writer = claimed(store, job_id)
        writer.start()
        for num_tokens in (1, 3, 1):
            await asyncio.sleep(0.01)
            writer.tokens(num_tokens)
        writer.end()
        seen = await reading
        assert kinds(seen) == [Started, Token, End]
        assert indices(seen) == [1, 2, 3, 4, 5]
        assert (await client.result(job_id)).text == " 1 2 3 4 5"
        assert indices(await listed(client.events(job_id, from_token=3))) == [4, 5]

    run(redis_url, play)


def test_many_streams_run_side_by_side(redis_url: str, make_store: MakeStore):
    store = make_store()

    async def play(client: AsyncClient) -> None:
        job_ids = await client.submit_many([{"prompt": "x"}] * 40)
        readings = [asyncio.create_task(client.result(job_id)) for job_id in job_ids]
        writers = [claimed(store, job_id) for job_id in job_ids]
        for _ in range(5):
            for writer in writers:
                writer.tokens(1)
            await asyncio.sleep(0.005)
        for writer in writers:
            writer.end()
        results = await asyncio.gather(*readings)
        assert [result.job_id for result in results] == job_ids
        assert {result.text for result in results} == {" 1 2 3 4 5"}

    run(redis_url, play)


def test_a_cut_connection_loses_nothing(redis_url: str, make_store: MakeStore):
    store = make_store()

    async def play(client: AsyncClient) -> None:
        job_id = await client.submit(prompt="x")
        reading = asyncio.create_task(listed(client.events(job_id)))
        await until_heard(store.redis, job_id)
        writer = claimed(store, job_id)
        writer.start()
        for number in range(40):
            await asyncio.sleep(0.002)
            writer.tokens(1)
            if number % 10 == 5:
                for client_type in ("pubsub", "normal"):
                    store.redis.execute_command("CLIENT", "KILL", "TYPE", client_type, "SKIPME", "yes")
        writer.end()
        assert indices(await reading) == list(range(1, 41))

    run(redis_url, play)


def test_a_restart_of_redis_loses_nothing(redis_server: RedisServer):
    async def play(client: AsyncClient) -> None:
        job_id = await client.submit(prompt="x")
        reading = asyncio.create_task(listed(client.events(job_id)))
        with redis.Redis.from_url(redis_server.url) as connection:
            await until_heard(connection, job_id)
            store = JobStore(connection, owner="w", model="m", lease_ms=60_000, ttl_s=60)
            writer = claimed(store, job_id)
            writer.tokens(3)
            redis_server.kill()
            await asyncio.sleep(0.2)
            redis_server.start()
            writer.tokens(2)
            writer.end()
        assert indices(await reading) == [1, 2, 3, 4, 5]

    run(redis_server.url, play)


def test_a_stream_that_begins_while_redis_is_away_waits_for_it(redis_server: RedisServer):
    async def play(client: AsyncClient) -> None:
        job_id = await client.submit(prompt="x")
        await client.cancel(job_id)
        redis_server.kill()
        reading = asyncio.create_task(client.result(job_id))
        await asyncio.sleep(1.5)
        assert not reading.done()
        redis_server.start()
        assert (await reading).state == "cancelled"

    run(redis_server.url, play)


def test_redis_not_there_is_one_line_without_the_password():
    async def play(client: AsyncClient) -> None:
        for call in (client.submit(prompt="x"), client.cancel("a"), listed(client.events("a"))):
            with pytest.raises(RedisUnavailable, match=r"cannot reach Redis at redis://:\*\*@127.0.0.1:1/0; start it"):
                await call

    run("redis://:secret@127.0.0.1:1/0", play, reconnect_s=0.3)


def test_a_job_that_vanishes_ends_the_stream(redis_url: str, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(event_stream, "POLL_S", 0.1)

    async def play(client: AsyncClient) -> None:
        events = client.events(await client.submit(prompt="x"))
        await anext(events)
        connection.flushall()
        with pytest.raises(InvalidRequest, match="unknown"):
            await listed(events)

    run(redis_url, play)


def test_waiting_ends_with_the_timeout(redis_url: str):
    async def play(client: AsyncClient) -> None:
        job_id = await client.submit(prompt="x")
        with pytest.raises(TimeoutError, match=f"job {job_id}: did not end within 0.1 s"):
            await client.result(job_id, timeout=0.1)
        with pytest.raises(TimeoutError, match=f"job {job_id}: did not end within 0 s"):
            await client.result(job_id, timeout=0)
        await client.cancel(job_id)
        assert (await client.result(job_id, timeout=0)).state == "cancelled"

    run(redis_url, play)


def test_an_unknown_or_malformed_id_is_the_caller_s_mistake(redis_url: str):
    async def play(client: AsyncClient) -> None:
        for job_id, words in (("nothing", "job nothing: unknown"), ("no thing", "job_id: must be")):
            for method in (client.result, client.status, client.cancel):
                with pytest.raises(InvalidRequest, match=words):
                    await method(job_id)

    run(redis_url, play)


def test_a_text_stream_yields_the_answer_and_raises_the_job_s_error(redis_url: str, make_store: MakeStore):
    store = make_store()

    async def play(client: AsyncClient) -> None:
        with pytest.raises(InvalidRequest, match="n: a text stream has one choice"):
            await listed(client.stream(prompt="x", n=2))
        async with aclosing(client.stream(prompt="x", job_id="mine")) as pieces:
            first = asyncio.create_task(anext(pieces))
            writer = await running(store, "mine")
            writer.tokens(2)
            assert await first == " 1 2"
            writer.fail("POISONED", "given up")
            with pytest.raises(Poisoned, match="given up"):
                await anext(pieces)

    run(redis_url, play)


async def running(store: JobStore, job_id: str) -> Writer:
    """Claim the job as soon as it is there."""
    while store.redis.zscore(schema.QUEUED, job_id) is None:
        await asyncio.sleep(0.005)
    return claimed(store, job_id)


@pytest.mark.parametrize(("on_disconnect", "cancelling"), [("cancel", True), ("continue", False)])
def test_leaving_a_stream_cancels_its_job_only_if_asked(
    redis_url: str, make_store: MakeStore, on_disconnect: str, cancelling: bool
):
    store = make_store()

    async def play(client: AsyncClient) -> None:
        async with aclosing(client.stream(prompt="x", job_id="mine", on_disconnect=on_disconnect)) as pieces:
            first = asyncio.create_task(anext(pieces))
            (await running(store, "mine")).tokens(1)
            await first
        assert (await client.status("mine")).cancelling == cancelling

    run(redis_url, play)


def test_cancelling_ends_a_queued_job_at_once(redis_url: str):
    async def play(client: AsyncClient) -> None:
        job_id = await client.submit(prompt="x")
        assert await client.cancel(job_id) == "cancelled"
        result = await client.result(job_id)
        assert result.error == Error(Cancelled.code, "cancelled while it was queued", False)

    run(redis_url, play)


def test_workers_and_queues_are_listed(redis_url: str, connection: redis.Redis):
    WorkerRegistry(connection).beat("worker-1", {"model": "demo", "running": 3})

    async def play(client: AsyncClient) -> None:
        await client.submit_many([{"prompt": "x", "model": "other"}] * 300)
        assert [(worker.name, worker.running) for worker in await client.workers()] == [("worker-1", 3)]
        queues = [(queue.queue, queue.workers, queue.waiting) for queue in await client.queues()]
        assert queues == [("orcd", 1, 0), ("orcd.demo", 1, 0), ("orcd.other", 0, 300)]

    run(redis_url, play)


def test_a_reader_can_be_cancelled_at_any_moment_and_gives_its_connection_back(redis_url: str, connection: redis.Redis):
    async def play(client: AsyncClient) -> None:
        job_id = await client.submit(prompt="x")
        for num_turns in range(200):
            reading = asyncio.create_task(listed(client.events(job_id)))
            for _ in range(num_turns):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading], timeout=60)
            assert reading.cancelled()
        while connection.pubsub_numsub(schema.events_channel(job_id))[0][1]:
            await asyncio.sleep(0.005)

    run(redis_url, play)
