"""Streams of the client from a real Redis, while the test plays the worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import redis

from orcd.client import Client
from orcd.errors import InvalidRequest, Poisoned
from orcd.events import End, Event, Queued, Started, Token
from orcd.store import event_stream, schema
from orcd.store.job_store import JobStore
from tests.conftest import wait_until
from tests.orcd.job_writer import MakeStore, Writer, claimed, ended_job, indices, kinds

WAITING = "waiting for a free slot"

# -- events ----------------------------------------------------------------------------------------------------------


def test_an_ended_job_s_events_are_all_there(client: Client, make_store: MakeStore):
    events = list(client.events(ended_job(client, make_store())))
    assert kinds(events) == [Started, Token, End]
    assert indices(events) == [1, 2, 3, 4, 5]


def test_a_stream_follows_a_job_from_the_queue_to_its_end(client: Client, make_store: MakeStore, background):
    store = make_store()
    store.renew({})
    job_id = client.submit(prompt="x")

    def work() -> None:
        writer = claimed(store, job_id)
        writer.start()
        for num_tokens in (1, 3, 1, 2):
            time.sleep(0.01)
            writer.tokens(num_tokens)
        writer.end()

    events = client.events(job_id)
    assert next(events) == Queued(1, reason=WAITING)
    background(work)
    rest = list(events)
    assert kinds(rest) == [Started, Token, End]
    assert indices(rest) == [1, 2, 3, 4, 5, 6, 7]


def test_a_place_in_the_queue_is_counted_from_one(client: Client, make_store: MakeStore):
    make_store().renew({})
    job_ids = [client.submit(prompt="x") for _ in range(3)]
    connection_order = [client.status(job_id).position for job_id in job_ids]
    assert sorted(connection_order) == [1, 2, 3]
    assert next(client.events(job_ids[0])) == Queued(connection_order[0], reason=WAITING)


@pytest.mark.parametrize("from_token", [0, 1, 4, 5, 100])
def test_following_may_begin_behind_any_token(client: Client, make_store: MakeStore, from_token: int):
    events = list(client.events(ended_job(client, make_store()), from_token=from_token))
    assert indices(events) == list(range(from_token + 1, 6))
    assert isinstance(events[-1], End)


def test_a_log_of_many_pages_is_read_whole(client: Client, make_store: MakeStore):
    job_id = ended_job(client, make_store(), num_tokens=2 * event_stream.PAGE_ENTRIES + 5)
    assert indices(list(client.events(job_id))) == list(range(1, 2 * event_stream.PAGE_ENTRIES + 6))


def test_every_reader_of_a_job_sees_everything(client: Client, make_store: MakeStore, background):
    store = make_store()
    job_id = client.submit(prompt="x")
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
    store.renew({})
    job_id = client.submit(prompt="x")

    events: list[Event] = []

    def read() -> None:
        for event in client.events(job_id):
            events.append(event)  # noqa: PERF402 - the worker looks at them as they come

    def work() -> None:
        first = claimed(store, job_id)
        first.start()
        first.tokens(3)
        wait_until(lambda: indices(events) == [1, 2, 3])
        store.redis.zadd(schema.RUNNING, {job_id: 1})  # its lease runs out
        other.reap()
        assert not first.tokens(1)
        wait_until(lambda: isinstance(events[-1], Queued))
        second = claimed(other, job_id)
        second.start()
        second.tokens(2)
        second.end()

    reading = background(read)
    background(work).result()
    reading.result()
    assert indices(events) == [1, 2, 3, 4, 5]
    assert [event.attempt for event in events if isinstance(event, Started)] == [1, 2]
    assert (
        Queued(1, reason=WAITING) in events[events.index(next(event for event in events if isinstance(event, Token))) :]
    )


def test_waiting_ends_with_the_timeout(client: Client):
    job_id = client.submit(prompt="x")
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=f"job {job_id}: did not end within 0.2 s"):
        client.result(job_id, timeout=0.2)
    assert time.monotonic() - begun < 10


def test_a_job_that_has_ended_is_told_of_without_any_time_to_wait(client: Client):
    job_id = client.submit(prompt="x")
    with pytest.raises(TimeoutError, match=f"job {job_id}: did not end within 0 s"):
        client.result(job_id, timeout=0)
    client.cancel(job_id)
    for timeout in (0, -1, 1e-9):
        assert client.result(job_id, timeout=timeout).state == "cancelled"


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
    assert list(client.stream(prompt="x", seed=1)) == [" 1", " 3 4"]


def test_a_stream_raises_the_job_s_error(client: Client, make_store: MakeStore, background):
    def play(writer: Writer) -> None:
        writer.tokens(1)
        writer.fail("POISONED", "given up")

    background(work_on_next, make_store(), play)
    pieces = client.stream(prompt="x")
    assert next(pieces) == " 1"
    with pytest.raises(Poisoned, match="given up"):
        next(pieces)


def test_a_stream_is_submitted_at_once_and_refused_at_once(client: Client, connection: redis.Redis):
    with pytest.raises(InvalidRequest, match="n: a text stream has one choice"):
        client.stream(prompt="x", n=2)
    assert connection.keys() == []
    client.stream(prompt="x")
    assert connection.zcard(schema.QUEUED) == 1


@pytest.mark.parametrize(("on_disconnect", "cancelling"), [("cancel", True), ("continue", False)])
def test_leaving_a_stream_cancels_its_job_only_if_asked(
    client: Client, make_store: MakeStore, background, on_disconnect: str, cancelling: bool
):
    background(work_on_next, make_store(), lambda writer: writer.tokens(1))
    with closing(client.stream(prompt="x", on_disconnect=on_disconnect)) as pieces:
        next(pieces)
    (job_id,) = make_store().redis.zrange(schema.RUNNING, 0, 0)
    assert client.status(job_id.decode()).cancelling == cancelling


def test_a_stream_that_was_read_to_its_end_cancels_nothing(client: Client, make_store: MakeStore, background):
    background(work_on_next, make_store(), lambda writer: writer.tokens(1) and writer.end())
    assert list(client.stream(prompt="x", on_disconnect="cancel", job_id="mine")) == [" 1"]
    assert not client.status("mine").cancelling


def test_streams_give_their_connections_back(client: Client, make_store: MakeStore, connection: redis.Redis):
    store = make_store()
    client.result(ended_job(client, store))
    num_connections = len(connection.client_list())
    for _ in range(20):
        job_id = client.submit(prompt="x")
        with closing(client.events(job_id)) as events:
            next(events)
        client.result(ended_job(client, store))
    wait_until(lambda: len(connection.client_list()) <= num_connections)
