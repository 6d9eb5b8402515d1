"""The client against a real Redis, while the test plays the worker."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import pytest
import redis

from tasks import reader, schema
from tasks.client import Client, RedisUnavailable
from tasks.job import JobStore
from tasks.redis_server import RedisServer
from tasks.status import WorkerStatus
from tasks.token_log import End, Error, Event, Queued, Started, Token
from tests.tasks.conftest import MakeStore, Writer, claimed
from worker.errors import Cancelled, InvalidRequest, OrcdError, Poisoned


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client


@pytest.fixture
def background() -> Iterator[Callable[..., Future]]:
    """Runs the worker's part on a thread of its own; its errors fail the test."""
    futures: list[Future] = []
    with ThreadPoolExecutor(4) as pool:

        def run(function: Callable[..., object], *arguments: object) -> Future:
            futures.append(pool.submit(function, *arguments))
            return futures[-1]

        yield run
    for future in futures:
        future.result()


@pytest.fixture
def short_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "POLL_S", 0.1)


def messages(connection: redis.Redis, queue: str = "celery", priority: int = 5) -> list[dict]:
    return [json.loads(text) for text in connection.lrange(f"{queue}:{priority}", 0, -1)]


def ended_job(client: Client, store: JobStore, num_tokens: int = 5) -> str:
    job_id = client.submit("x")
    writer = claimed(store, job_id)
    writer.start()
    for _ in range(num_tokens):
        writer.tokens(1)
    writer.end()
    return job_id


def indices(events: list[Event]) -> list[int]:
    return [event.i + k for event in events if isinstance(event, Token) for k in range(len(event.ids))]


def kinds(events: list[Event]) -> list[type]:
    """The events' types, a run of the same one counted once."""
    types = [type(event) for event in events]
    return [kind for before, kind in zip([None, *types], types, strict=False) if kind is not before]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


# -- submission ------------------------------------------------------------------------------------------------------


def test_a_submitted_job_has_a_record_and_a_message_without_its_prompt(client: Client, connection: redis.Redis):
    job_id = client.submit("CANARY", max_tokens=5)
    assert client.status(job_id).state == "queued"
    assert b"CANARY" in connection.hget(schema.job_key(job_id), "request")
    (message,) = messages(connection)
    assert message["headers"]["task"] == "tasks.generate"
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
    assert client.submit("first", job_id="line-1") == client.submit("second", job_id="line-1") == "line-1"
    assert len(messages(connection)) == 1
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
        client.submit("x", temprature=1)
    with pytest.raises(InvalidRequest, match="exactly one of"):
        client.submit()
    assert connection.keys() == []


def test_threads_may_share_a_client(client: Client, connection: redis.Redis):
    with ThreadPoolExecutor(8) as pool:
        job_ids = list(pool.map(lambda number: client.submit(f"prompt {number}"), range(64)))
    assert sorted(message["headers"]["id"] for message in messages(connection)) == sorted(job_ids)


def test_records_are_kept_as_long_as_asked(redis_url: str, connection: redis.Redis):
    with Client(redis_url, job_ttl_s=77) as client:
        assert 70 < connection.ttl(schema.job_key(client.submit("x"))) <= 77


# -- events ----------------------------------------------------------------------------------------------------------


def test_an_ended_job_s_events_are_all_there(client: Client, make_store: MakeStore):
    events = list(client.events(ended_job(client, make_store())))
    assert kinds(events) == [Started, Token, End]
    assert indices(events) == [1, 2, 3, 4, 5]


def test_a_stream_follows_a_job_from_the_queue_to_its_end(client: Client, make_store: MakeStore, background):
    store = make_store()
    job_id = client.submit("x")

    def work() -> None:
        writer = claimed(store, job_id)
        writer.start()
        for num_tokens in (1, 3, 1, 2):
            time.sleep(0.01)
            writer.tokens(num_tokens)
        writer.end()

    events = client.events(job_id)
    assert next(events) == Queued(1)
    background(work)
    rest = list(events)
    assert kinds(rest) == [Started, Token, End]
    assert indices(rest) == [1, 2, 3, 4, 5, 6, 7]


def test_a_place_in_the_queue_is_counted_from_one(client: Client):
    job_ids = [client.submit("x") for _ in range(3)]
    connection_order = [client.status(job_id).position for job_id in job_ids]
    assert sorted(connection_order) == [1, 2, 3]
    assert next(client.events(job_ids[0])) == Queued(connection_order[0])


@pytest.mark.parametrize("from_token", [0, 1, 4, 5, 100])
def test_following_may_begin_behind_any_token(client: Client, make_store: MakeStore, from_token: int):
    events = list(client.events(ended_job(client, make_store()), from_token=from_token))
    assert indices(events) == list(range(from_token + 1, 6))
    assert isinstance(events[-1], End)


def test_a_log_of_many_pages_is_read_whole(client: Client, make_store: MakeStore):
    job_id = ended_job(client, make_store(), num_tokens=2 * reader.PAGE_ENTRIES + 5)
    assert indices(list(client.events(job_id))) == list(range(1, 2 * reader.PAGE_ENTRIES + 6))


def test_every_reader_of_a_job_sees_everything(client: Client, make_store: MakeStore, background):
    store = make_store()
    job_id = client.submit("x")
    readings = [background(lambda: list(client.events(job_id))) for _ in range(3)]
    writer = claimed(store, job_id)
    writer.start()
    for _ in range(20):
        time.sleep(0.002)
        writer.tokens(1)
    writer.end()
    assert [indices(reading.result()) for reading in readings] == [list(range(1, 21))] * 3


@pytest.mark.parametrize("method", ["events", "result", "status", "cancel"])
def test_an_unknown_or_malformed_id_is_the_caller_s_mistake(client: Client, method: str):
    with pytest.raises(InvalidRequest, match="job nothing: unknown"):
        use(getattr(client, method)("nothing"))
    with pytest.raises(InvalidRequest, match="job_id: must be"):
        use(getattr(client, method)("no thing"))


def use(answer: object) -> None:
    if isinstance(answer, Iterator):
        list(answer)


def test_a_job_that_changes_hands_shows_each_token_once(client: Client, make_store: MakeStore, background):
    store, other = make_store(), make_store("worker-2")
    job_id = client.submit("x")

    def work() -> None:
        first = claimed(store, job_id)
        first.start()
        first.tokens(3)
        time.sleep(0.02)
        store.redis.zadd(schema.RUNNING, {job_id: 1})  # its lease runs out
        other.reap()
        assert not first.tokens(1)
        time.sleep(0.02)
        second = claimed(other, job_id)
        second.start()
        second.tokens(2)
        second.end()

    reading = background(lambda: list(client.events(job_id)))
    background(work).result()
    events = reading.result()
    assert indices(events) == [1, 2, 3, 4, 5]
    assert [event.attempt for event in events if isinstance(event, Started)] == [1, 2]
    assert Queued(1) in events[events.index(next(event for event in events if isinstance(event, Token))) :]


def test_waiting_ends_with_the_timeout(client: Client):
    job_id = client.submit("x")
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=f"job {job_id}: did not end within 0.2 s"):
        client.result(job_id, timeout=0.2)
    assert time.monotonic() - begun < 1


# -- trouble ---------------------------------------------------------------------------------------------------------


def test_a_cut_connection_loses_nothing(client: Client, make_store: MakeStore, background, connection: redis.Redis):
    job_id = client.submit("x")
    reading = background(lambda: list(client.events(job_id)))
    wait_until(lambda: connection.pubsub_numsub(schema.events_channel(job_id))[0][1] == 1)
    writer = claimed(make_store(), job_id)
    writer.start()
    for number in range(60):
        time.sleep(0.002)
        writer.tokens(1)
        if number % 10 == 5:
            for client_type in ("pubsub", "normal"):
                connection.execute_command("CLIENT", "KILL", "TYPE", client_type, "SKIPME", "yes")
    writer.end()
    assert indices(reading.result(timeout=20)) == list(range(1, 61))


def test_a_restart_of_redis_loses_nothing(redis_server: RedisServer):
    # The server is started again on the main thread, so the reader is the one that goes elsewhere.
    with Client(redis_server.url) as client, ThreadPoolExecutor(1) as pool:
        job_id = client.submit("x")
        reading = pool.submit(lambda: list(client.events(job_id)))
        with redis.Redis.from_url(redis_server.url) as connection:
            writer = claimed(JobStore(connection, owner="w", model="m", lease_ms=60_000, ttl_s=60), job_id)
            writer.start()
            writer.tokens(3)
            redis_server.kill()
            time.sleep(0.3)
            redis_server.start()
            writer.tokens(2)
            writer.end()
        assert indices(reading.result(timeout=20)) == [1, 2, 3, 4, 5]


def test_a_redis_that_stays_away_ends_the_stream_with_one_clear_error(redis_server: RedisServer):
    with Client(redis_server.url, reconnect_s=0.3) as client:
        events = client.events(client.submit("x"))
        next(events)
        redis_server.kill()
        with pytest.raises(RedisUnavailable, match=f"cannot reach Redis at {redis_server.url}; start it or set"):
            list(events)


def test_a_job_that_vanishes_ends_the_stream(client: Client, connection: redis.Redis, short_poll: None):
    events = client.events(client.submit("x"))
    next(events)
    connection.flushall()
    with pytest.raises(InvalidRequest, match="unknown; it was never submitted here or is no longer kept"):
        list(events)


def test_a_log_that_vanishes_ends_the_stream(client: Client, make_store: MakeStore, connection: redis.Redis):
    job_id = ended_job(client, make_store())
    connection.delete(schema.log_key(job_id))
    with pytest.raises(OrcdError, match="its token log is damaged or gone"):
        list(client.events(job_id))


def test_what_was_logged_but_never_heard_is_found(client: Client, make_store: MakeStore, short_poll: None):
    job_id = client.submit("x")
    events = client.events(job_id)
    next(events)
    store = make_store()
    claimed(store, job_id)
    store.redis.hset(schema.job_key(job_id), "state", "succeeded")
    store.redis.xadd(schema.log_key(job_id), {"e": b'{"type":"token","t":"a","i":1,"ids":[5]}'}, id="1-0")
    end = b'{"type":"error","code":"INTERNAL","message":"it broke","retriable":false}'
    store.redis.xadd(schema.log_key(job_id), {"e": end}, id="1-1")
    assert list(events) == [Token("a", 1, [5]), Error("INTERNAL", "it broke", False)]


def test_redis_not_there_is_one_line_without_the_password():
    with Client("redis://:secret@127.0.0.1:1/0") as client:
        for call in (
            lambda: client.submit("x"),
            lambda: client.cancel("a"),
            lambda: list(client.events("a")),
        ):
            with pytest.raises(RedisUnavailable) as caught:
                call()
            assert caught.value.message == (
                "cannot reach Redis at redis://:**@127.0.0.1:1/0; start it or set ORCD_REDIS_URL"
            )
            assert caught.value.retriable


def test_a_wrong_password_is_told_from_a_missing_server(redis_server: RedisServer):
    with redis.Redis.from_url(redis_server.url) as connection:
        connection.config_set("requirepass", "right")
    for url in (redis_server.url, redis_server.url.replace("//", "//:wrong@")):
        with Client(url) as client, pytest.raises(RedisUnavailable, match="refuses the password"):
            client.status("a")


def test_a_full_redis_is_an_error_that_quotes_no_prompt(redis_server: RedisServer):
    with Client(redis_server.url) as client, redis.Redis.from_url(redis_server.url) as connection:
        connection.config_set("maxmemory", 1)
        with pytest.raises(RedisUnavailable) as caught:
            client.submit("CANARY")
    assert caught.value.message == f"Redis at {redis_server.url} is full; raise its maxmemory"


def test_a_command_that_redis_refuses_is_an_error_that_quotes_no_prompt(redis_server: RedisServer):
    with redis.Redis.from_url(redis_server.url) as connection:
        connection.execute_command("ACL", "SETUSER", "default", "-evalsha")
    with Client(redis_server.url) as client, pytest.raises(RedisUnavailable) as caught:
        client.submit("CANARY")
    assert caught.value.message == f"Redis at {redis_server.url} refused a command: NoPermissionError"


def test_a_url_that_is_none_is_refused():
    with pytest.raises(InvalidRequest, match="redis_url: must look like redis://HOST:PORT/DB"):
        Client("localhost")


def test_the_url_comes_from_the_environment(redis_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ORCD_REDIS_URL", redis_url)
    with Client() as client:
        assert client.status(client.submit("x")).state == "queued"


# -- text ------------------------------------------------------------------------------------------------------------


def work_on_next(store: JobStore, play: Callable[[Writer], object]) -> None:
    wait_until(lambda: store.redis.zcard(schema.QUEUED))
    play(claimed(store, store.redis.zrange(schema.QUEUED, 0, 0)[0].decode()))


def test_a_stream_yields_the_answer_in_pieces(client: Client, make_store: MakeStore, background):
    def play(writer: Writer) -> None:
        writer.start()
        writer.tokens(1)
        writer.write(Token("", 2, [102], analysis="hidden"))
        writer.num_tokens = 2
        writer.tokens(2)
        writer.end()

    background(work_on_next, make_store(), play)
    assert list(client.stream("x", seed=1)) == [" 1", " 3 4"]


def test_a_stream_raises_the_job_s_error(client: Client, make_store: MakeStore, background):
    def play(writer: Writer) -> None:
        writer.tokens(1)
        writer.fail("POISONED", "given up")

    background(work_on_next, make_store(), play)
    pieces = client.stream("x")
    assert next(pieces) == " 1"
    with pytest.raises(Poisoned, match="given up"):
        next(pieces)


def test_a_stream_is_submitted_at_once_and_refused_at_once(client: Client, connection: redis.Redis):
    with pytest.raises(InvalidRequest, match="n: a text stream has one choice"):
        client.stream("x", n=2)
    assert connection.keys() == []
    client.stream("x")
    assert connection.zcard(schema.QUEUED) == 1


@pytest.mark.parametrize(("on_disconnect", "cancelling"), [("cancel", True), ("continue", False)])
def test_leaving_a_stream_cancels_its_job_only_if_asked(
    client: Client, make_store: MakeStore, background, on_disconnect: str, cancelling: bool
):
    background(work_on_next, make_store(), lambda writer: writer.tokens(1))
    with closing(client.stream("x", on_disconnect=on_disconnect)) as pieces:
        next(pieces)
    (job_id,) = make_store().redis.zrange(schema.RUNNING, 0, 0)
    assert client.status(job_id.decode()).cancelling == cancelling


def test_a_stream_that_was_read_to_its_end_cancels_nothing(client: Client, make_store: MakeStore, background):
    background(work_on_next, make_store(), lambda writer: writer.tokens(1) and writer.end())
    assert list(client.stream("x", on_disconnect="cancel", job_id="mine")) == [" 1"]
    assert not client.status("mine").cancelling


def test_streams_give_their_connections_back(client: Client, make_store: MakeStore, connection: redis.Redis):
    store = make_store()
    for _ in range(20):
        job_id = client.submit("x")
        with closing(client.events(job_id)) as events:
            next(events)
        client.result(ended_job(client, store))
    wait_until(lambda: len(connection.client_list()) < 8)


# -- results, status, cancellation -----------------------------------------------------------------------------------


def test_a_result_waits_for_the_job(client: Client, make_store: MakeStore, background):
    store = make_store()
    job_id = client.submit("x")
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
    job_id = client.submit("x")
    claimed(make_store(), job_id).fail("VRAM_OOM", "too long")
    result = client.result(job_id)
    assert (result.state, result.error) == ("failed", Error("VRAM_OOM", "too long", False))


def test_status_follows_the_job_through_its_life(client: Client, make_store: MakeStore):
    store = make_store()
    job_id = client.submit("x", priority=2)
    queued = client.status(job_id)
    assert (queued.state, queued.position, queued.attempt, queued.priority) == ("queued", 1, 0, 2)
    assert queued.worker is queued.model is queued.started_ms is queued.finished_ms is None

    writer = claimed(store, job_id)
    writer.start()
    writer.tokens(4)
    running = client.status(job_id)
    assert (running.state, running.position, running.attempt) == ("running", None, 1)
    assert (running.worker, running.model, running.tokens_out) == ("worker-1", "demo", 4)
    assert running.created_ms == queued.created_ms <= running.started_ms

    store.release({job_id: writer.claim.epoch})
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
    pieces = client.stream("x", job_id="mine")
    assert client.cancel("mine") == "cancelled"
    with pytest.raises(Cancelled):
        next(pieces)
    assert client.result("mine").state == "cancelled"
    assert client.cancel("mine") == "cancelled"
    assert make_store().claim("mine") == "finished"


def test_cancelling_a_running_job_tells_its_worker(client: Client, make_store: MakeStore):
    job_id = client.submit("x")
    writer = claimed(make_store(), job_id)
    assert client.cancel(job_id) == "running"
    assert client.status(job_id).cancelling
    writer.fail("CANCELLED", "cancelled")
    assert client.cancel(job_id) == "cancelled"


def test_workers_that_are_alive_are_listed(client: Client, connection: redis.Redis):
    assert client.workers() == []
    connection.zadd(schema.WORKERS, {"worker-1": 1_700_000_000_000, "dead": 1})
    connection.hset(schema.worker_key("worker-1"), mapping={"running": 3})
    assert client.workers() == [WorkerStatus("worker-1", 1_700_000_000_000, {"running": "3"})]
