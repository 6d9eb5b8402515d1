"""Clients in mid-stream when Redis comes back from an older snapshot: every stream is right, or an honest error."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from orcd.async_client import AsyncClient
from orcd.client import Client
from orcd.errors import InvalidRequest, LogDamaged
from orcd.events import End, Error, Event, Token
from orcd.store import schema
from orcd.store.job_store import JobStore
from tasks.local.redis_server import RedisServer
from tests.conftest import wait_until
from tests.orcd.job_record import J, Snapshot, let_lease_run_out
from tests.orcd.job_writer import MakeStore, Writer, claimed, indices


class Reader:
    """Reads a job's events on a thread of its own."""

    def __init__(self, read: Callable[[list[Event]], None]) -> None:
        self.seen: list[Event] = []
        self.error: Exception | None = None
        self._read = read
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def num_tokens(self) -> int:
        return len(indices(self.seen))

    @property
    def text(self) -> str:
        return "".join(event.t for event in self.seen if isinstance(event, Token))

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive(), self.seen

    def _run(self) -> None:
        try:
            self._read(self.seen)
        except Exception as error:
            self.error = error


def read_sync(url: str, seen: list[Event]) -> None:
    with Client(url) as client:
        seen.extend(client.events(J))  # one by one


def read_async(url: str, seen: list[Event]) -> None:
    async def main() -> None:
        async with AsyncClient(url) as client:
            async for event in client.events(J):
                seen.append(event)  # noqa: PERF401 - the test looks at them as they come

    asyncio.run(main())


@pytest.fixture(params=[read_sync, read_async], ids=["client", "async client"])
def reader(request: pytest.FixtureRequest, client: Client, redis_url: str, short_poll: None) -> Iterator[Reader]:
    """Reads the job `J`, which was just submitted."""
    client.submit(prompt="x", job_id=J)
    reader = Reader(lambda seen: request.param(redis_url, seen))
    yield reader
    reader.join()


def forget_three_tokens(store: JobStore, reader: Reader) -> Writer:
    """Their reader has seen 2 and 3 more tokens, and Redis has forgotten the 3; returns the owner."""
    wait_until(lambda: store.redis.pubsub_numsub(schema.events_channel(J))[0][1])
    writer = claimed(store, J)
    writer.start()
    writer.tokens(2)
    snapshot = Snapshot(store.redis)
    writer.tokens(3)
    wait_until(lambda: reader.num_tokens == 5)
    snapshot.restore()
    return writer


def check_whole(reader: Reader, num_tokens: int) -> None:
    reader.join()
    assert reader.error is None
    assert indices(reader.seen) == list(range(1, num_tokens + 1))
    assert reader.text == "".join(f" {number}" for number in range(1, num_tokens + 1))
    assert isinstance(reader.seen[-1], End)


def test_with_the_owner_alive_no_text_is_doubled_or_lost(reader: Reader, make_store: MakeStore):
    """F07: the owner notices, gives the job back, and generates again what the client has seen."""
    store = make_store()
    writer = forget_three_tokens(store, reader)
    assert not writer.tokens(1), "a conflict"
    store.release({J: writer.claim.lease})
    again = claimed(store, J)
    again.start()
    again.tokens(2)
    again.tokens(5)  # begins within what was seen
    again.end()
    check_whole(reader, 9)


def test_with_the_owner_dead_no_text_is_doubled_or_lost(reader: Reader, make_store: MakeStore):
    """F07: `succeeded` with another text, 12 times of 12."""
    store, other = make_store(), make_store("worker-2")
    forget_three_tokens(store, reader)
    let_lease_run_out(store)
    other.reap()
    heir = claimed(other, J)
    heir.tokens(6)
    heir.end()
    check_whole(reader, 8)


def test_a_client_that_heard_none_of_the_new_events_finds_them_in_the_log(reader: Reader, make_store: MakeStore):
    store = make_store()
    writer = forget_three_tokens(store, reader)
    store.release({J: writer.claim.lease})
    again = claimed(store, J)
    store.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    again.tokens(1)
    again.tokens(6)
    again.end()
    check_whole(reader, 9)


@pytest.mark.parametrize("num_tokens", [1, 3, 6])
def test_an_answer_that_goes_on_otherwise_is_an_error_and_never_joined(
    reader: Reader, make_store: MakeStore, num_tokens: int
):
    """F07: another model file took over what the client had not been told twice."""
    store = make_store()
    writer = forget_three_tokens(store, reader)
    store.release({J: writer.claim.lease})
    again = claimed(store, J)
    again.tokens(num_tokens, first_id=900)
    again.end()
    reader.join()
    assert isinstance(reader.error, LogDamaged)
    assert reader.text == " 1 2 3 4 5"


def test_an_answer_that_ends_before_what_was_seen_is_an_error(reader: Reader, make_store: MakeStore):
    store = make_store()
    writer = forget_three_tokens(store, reader)
    store.release({J: writer.claim.lease})
    again = claimed(store, J)
    again.tokens(1)
    again.end()
    reader.join()
    assert isinstance(reader.error, LogDamaged)


def test_a_job_that_fails_after_all_has_its_one_end(reader: Reader, client: Client, make_store: MakeStore):
    store = make_store()
    writer = forget_three_tokens(store, reader)
    store.release({J: writer.claim.lease})
    assert client.cancel(J) == "cancelled"
    reader.join()
    assert reader.error is None
    assert [event.code for event in reader.seen if isinstance(event, Error)] == ["CANCELLED"]
    assert client.result(J).state == "cancelled"


def test_a_job_that_redis_knows_nothing_of_any_more_is_unknown(
    reader: Reader, make_store: MakeStore, connection: redis.Redis
):
    wait_until(lambda: connection.pubsub_numsub(schema.events_channel(J))[0][1])
    claimed(make_store(), J).tokens(2)
    connection.flushall()
    reader.join()
    assert isinstance(reader.error, InvalidRequest)


def test_a_server_that_starts_from_an_older_file_loses_no_job_that_is_in_it(
    redis_server: RedisServer, short_poll: None
):
    """F07: with a real restart: its file is an older copy, as after a loss of power."""
    with redis.Redis.from_url(redis_server.url) as connection:
        store = JobStore(connection, owner="w", model="demo", lease_ms=60_000, ttl_s=60)
        with Client(redis_server.url) as client:
            client.submit(prompt="x", job_id=J)
            reader = Reader(lambda seen: read_sync(redis_server.url, seen))
            wait_until(lambda: connection.pubsub_numsub(schema.events_channel(J))[0][1])
            writer = claimed(store, J)
            writer.tokens(2)
            snapshot = Snapshot(connection)
            writer.tokens(3)
            wait_until(lambda: reader.num_tokens == 5)
            snapshot.restore()
            redis_server.kill()
            redis_server.start()
            assert not writer.tokens(1)
            store.release({J: writer.claim.lease})
            again = claimed(store, J)
            again.tokens(7)
            again.end()
            check_whole(reader, 9)
            assert client.result(J).text == " 1 2 3 4 5 6 7 8 9"
