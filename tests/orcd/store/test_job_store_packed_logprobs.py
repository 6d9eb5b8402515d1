"""Records of version 3, whose logs have packed log probabilities, beside readers and workers of version 2."""

from __future__ import annotations

from struct import pack

import msgspec
import pytest

from orcd.client import Client
from orcd.errors import LogDamaged
from orcd.events import PackedLogprobs, Packing, Token, TokenLogprob, decode_event
from orcd.request import Request
from orcd.store import schema
from orcd.store.job_store import Arrival, JobStore
from tests.orcd.job_record import J, let_lease_run_out
from tests.orcd.job_writer import MakeStore, claimed, store_of_version

ASKING = Request(prompt="x", seed=1, logprobs=1)
PACKED = Token(" the", 1, [7], packed_logprobs=PackedLogprobs(1, pack("<fif", -0.5, 3, -0.25), [" the", [0xC3]]))
UNPACKED = Token(" the", 1, [7], logprobs=[TokenLogprob(7, -0.5, {3: -0.25}, {7: b" the", 3: b"\xc3"})])


class VersionTwo(msgspec.Struct, tag_field="type", tag="token"):
    """A token as readers of version 2 know it."""

    t: str
    i: int
    ids: list[int]
    logprobs: list[TokenLogprob] | None = None


def submit_as_version_three(client: Client) -> None:
    """As a client that reads packed log probabilities, but no packed tokens."""
    client.submit(prompt="x", seed=1, logprobs=1, job_id=J)
    client._redis.hset(schema.job_key(J), "packed", 1)


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    return make_store()


@pytest.fixture
def old_store(make_store: MakeStore) -> JobStore:
    return store_of_version(2, make_store)


def test_a_record_is_of_version_3_once_its_log_may_have_packed_log_probabilities(store: JobStore, client: Client):
    submit_as_version_three(client)
    assert store.redis.hget(schema.job_key(J), "schema") == b"2"
    assert claimed(store, J).claim.packing is Packing.LOGPROBS
    assert store.redis.hget(schema.job_key(J), "schema") == b"3"


def test_a_request_that_came_in_a_message_or_of_an_older_client_is_answered_in_lists(store: JobStore):
    """Nobody knows which version reads the log. Clients of older versions write no field ``packed``."""
    store.arrive([Arrival(J, ASKING, None)])
    assert store.redis.hget(schema.job_key(J), "packed") is None
    assert claimed(store, J).claim.packing is Packing.NOTHING
    assert store.redis.hget(schema.job_key(J), "schema") == b"2"


def test_an_older_worker_runs_a_new_client_s_job_until_a_newer_one_has_had_it(
    store: JobStore, old_store: JobStore, client: Client
):
    submit_as_version_three(client)
    old = claimed(old_store, J)
    old.write(UNPACKED)
    [message] = old_store.release({J: old.claim.lease})
    assert message.job_id == J
    new = claimed(store, J)
    assert new.claim.packing is Packing.LOGPROBS
    assert [logged.event for logged in new.claim.log] == [UNPACKED]
    new.write(msgspec.structs.replace(PACKED, i=2))
    let_lease_run_out(store)
    assert old_store.reap() == [] and old_store.claim([J]) == ["unreadable"]
    let_lease_run_out(store)  # the older one has put off the next look
    assert [message.job_id for message in store.reap()] == [J]
    assert old_store.claim([J]) == ["unreadable"]
    heir = claimed(store, J)
    assert [logged.event for logged in heir.claim.log] == [UNPACKED, msgspec.structs.replace(UNPACKED, i=2)]


def test_readers_get_the_lists_and_one_of_version_2_the_text_if_it_listens_already(store: JobStore, client: Client):
    submit_as_version_three(client)
    writer = claimed(store, J)
    listener = store.redis.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(schema.events_channel(J))
    listener.get_message(timeout=60)
    writer.start()
    writer.write(PACKED)
    writer.end()
    published = [listener.get_message(timeout=60)["data"] for _ in range(2)][1]
    listener.close()
    assert decode_event(published) == UNPACKED
    assert msgspec.json.decode(published, type=VersionTwo) == VersionTwo(" the", 1, [7])
    assert UNPACKED in client.events(J)
    assert client.result(J).choices[0].logprobs == UNPACKED.logprobs


def test_packed_log_probabilities_of_other_tokens_are_a_damaged_log(store: JobStore, client: Client):
    submit_as_version_three(client)
    claimed(store, J).write(msgspec.structs.replace(PACKED, ids=[7, 8]))
    with pytest.raises(LogDamaged):
        list(client.events(J))
