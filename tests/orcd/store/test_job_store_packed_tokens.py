"""Records of version 4, whose logs have packed tokens, beside workers and readers of version 3."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orcd.client import Client
from orcd.errors import InvalidRequest
from orcd.events import Packing, Token
from orcd.request import Request
from orcd.store import schema
from orcd.store.job_store import Arrival, JobStore
from tests.orcd.job_record import J, let_lease_run_out
from tests.orcd.job_writer import MakeStore, Writer, as_of_version, claimed, store_of_version

TOKENS = [Token(" é\n", 1, [7, 800]), Token("", 3, [5], analysis="hm"), Token("b", 1, [6], choice=1)]
PACKED = ['[" é\\n",1,[7,800],0]', '{"type":"token","t":"","i":3,"ids":[5],"analysis":"hm"}', '["b",1,[6],1]']
UNPACKED = '{"type":"token","t":" é\\n","i":1,"ids":[7,800]}'


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    return make_store()


@pytest.fixture
def old_store(make_store: MakeStore) -> JobStore:
    return store_of_version(3, make_store)


def logged(store: JobStore) -> list[str]:
    """The entries of the log, as they stand there."""
    return [fields[b"e"].decode() for _, fields in store.redis.xrange(schema.log_key(J))]


def test_tokens_of_a_client_s_job_are_packed_and_read_as_they_were_written(store: JobStore, client: Client):
    client.submit(prompt="x", n=2, job_id=J)
    writer = claimed(store, J)
    assert writer.claim.packing is Packing.TOKENS
    assert store.redis.hget(schema.job_key(J), "schema") == b"4"
    listener = store.redis.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(schema.events_channel(J))
    listener.get_message(timeout=60)
    writer.write(*TOKENS)
    assert logged(store) == PACKED
    assert [listener.get_message(timeout=60)["data"].decode() for _ in TOKENS] == PACKED
    listener.close()
    writer.end()
    assert store.events(J)[:-1] == list(client.events(J))[:-1] == TOKENS
    assert [choice.text for choice in client.result(J).choices] == [" é\n", "b"]


def test_those_of_a_request_that_came_in_a_message_are_not_as_nobody_knows_who_reads_them(store: JobStore):
    store.arrive([Arrival(J, Request(prompt="x"), None)])
    claimed(store, J).write(TOKENS[0])
    assert logged(store) == [UNPACKED]
    assert store.redis.hget(schema.job_key(J), "schema") == b"2"


def test_an_older_worker_runs_a_new_client_s_job_until_a_newer_one_has_had_it(
    store: JobStore, old_store: JobStore, client: Client
):
    client.submit(prompt="x", job_id=J)
    old = claimed(old_store, J)
    assert store.redis.hget(schema.job_key(J), "schema") == b"3"
    Writer(old_store, replace(old.claim, packing=Packing.LOGPROBS)).write(TOKENS[0])
    let_lease_run_out(store)
    assert [message.job_id for message in old_store.reap()] == [J]
    new = claimed(store, J)
    new.write(Token("b", 3, [5]))
    assert logged(store) == [UNPACKED, '["b",3,[5],0]']
    let_lease_run_out(store)
    assert old_store.reap() == [] and old_store.claim([J]) == ["unreadable"]
    let_lease_run_out(store)  # the older one has put off the next look
    assert [message.job_id for message in store.reap()] == [J]
    assert [logged.event for logged in claimed(store, J).claim.log] == [TOKENS[0], Token("b", 3, [5])]


def test_an_older_reader_is_told_to_upgrade(store: JobStore, client: Client):
    client.submit(prompt="x", job_id=J)
    claimed(store, J).write(TOKENS[0])
    as_of_version(3, client._scripts)
    with pytest.raises(InvalidRequest, match="a newer version of orcd wrote it; upgrade this one"):
        list(client.events(J))
