"""A Redis that comes back from an older snapshot: owners notice, logs keep no hole, answers stay the same."""

from __future__ import annotations

import pytest
import redis

from orcd.errors import LogDamaged
from orcd.events import End, Position, Token, encode_event
from orcd.store import schema
from orcd.store.claim import Claim
from orcd.store.enqueue import Message
from orcd.store.job_store import Append
from orcd.store.token_log import LoggedEvent
from tests.orcd.job_record import REQUEST, J, Snapshot, let_lease_run_out, logged, state, submit
from tests.orcd.job_writer import MakeStore, Writer, claimed


def entry_ids(store) -> list[str]:
    return [entry for entry, _ in logged(store)]


def status_of(writer: Writer, *events) -> str:
    """What an append of the owner finds, written from where the owner believes the log ends."""
    append = Append(writer.claim.job_id, writer.claim.lease, writer.position)
    for event in events:
        position = (append.events[-1].position if append.events else append.after).after(len(event.ids))
        append.events.append(LoggedEvent(position, event))
    return writer.store.append([append])[0].status


def test_two_owners_of_one_epoch_are_told_apart_by_their_tokens(make_store: MakeStore, connection: redis.Redis):
    """F07: the older snapshot knows nothing of the first claim, so the second gets the same epoch."""
    store, other = make_store(), make_store("worker-2")
    submit(store)
    snapshot = Snapshot(connection)
    first = claimed(store, J)
    snapshot.restore()
    second = claimed(other, J)
    assert second.claim.lease.epoch == first.claim.lease.epoch
    second.tokens(2)
    assert status_of(first, Token("x", 1, [7])) == "fenced"
    assert store.renew({J: first.claim.lease}) == {J: "lost"}
    assert store.release({J: first.claim.lease}) == []
    assert not store.end_damaged(J, first.claim.lease, LogDamaged("x"))
    assert second.tokens(1)
    assert entry_ids(store) == ["2-0", "3-0"]


def test_an_owner_whose_tokens_were_forgotten_leaves_no_hole_behind(make_store: MakeStore, connection: redis.Redis):
    """F07: its next append used to go behind the hole, and the job ended `succeeded` with another text."""
    store = make_store()
    submit(store)
    writer = claimed(store, J)
    writer.start()
    writer.tokens(2)
    snapshot = Snapshot(connection)
    writer.tokens(3)
    snapshot.restore()
    assert not writer.tokens(1)
    assert status_of(writer, Token("x", 7, [107])) == "conflict"
    assert entry_ids(store) == ["0-1", "2-0"]
    assert store.release({J: writer.claim.lease}) == [Message(J, "orcd", 5)]
    again = claimed(store, J)
    assert [logged.position for logged in again.claim.log] == [Position(0, 1), Position(2, 0)]
    assert again.start()
    assert again.tokens(4)
    assert again.end()
    assert [event.ids for event in store.events(J) if isinstance(event, Token)] == [[101, 102], [103, 104, 105, 106]]


def test_after_the_owner_s_death_the_next_one_goes_on_from_the_log_as_it_is(
    make_store: MakeStore, connection: redis.Redis
):
    """F07: the claim reads what is there, whatever the dead owner had written."""
    store, other = make_store(), make_store("worker-2")
    submit(store)
    writer = claimed(store, J)
    writer.tokens(2)
    snapshot = Snapshot(connection)
    writer.tokens(3)
    snapshot.restore()
    let_lease_run_out(store)
    other.reap()
    heir = claimed(other, J)
    assert heir.num_tokens == 2
    heir.tokens(3)
    heir.end()
    assert entry_ids(store) == ["2-0", "5-0", "5-1"]
    assert state(store) == "succeeded"


def test_an_end_that_was_forgotten_is_written_again_by_its_owner_only_where_the_log_allows(
    make_store: MakeStore, connection: redis.Redis
):
    """F07: the last append's answer was lost, and then the append."""
    store = make_store()
    submit(store)
    writer = claimed(store, J)
    writer.tokens(2)
    end = Append(J, writer.claim.lease, writer.position, final_state="succeeded")
    end.events.append(LoggedEvent(Position(2, 1), End("length", 3, 2, 1, 2, 3, "0" * 64)))
    snapshot = Snapshot(connection)
    assert store.append([end])[0].status == "appended"
    snapshot.restore()
    assert store.append([end])[0].status == "appended"
    assert store.append([end])[0].status == "appended"
    assert entry_ids(store) == ["2-0", "2-1"]
    snapshot.restore()
    store.redis.xdel(schema.log_key(J), "2-0")
    assert store.append([end])[0].status == "conflict"
    assert state(store) == "running"


@pytest.mark.parametrize("num_written", [0, 1, 2, 3])
def test_an_append_whose_answer_was_lost_goes_on_where_the_log_ends(make_store: MakeStore, num_written: int):
    store = make_store()
    submit(store)
    lease = claimed(store, J).claim.lease
    events = [LoggedEvent(Position(n, 0), Token(f" {n}", n, [100 + n])) for n in (1, 2, 3)]
    store.append([Append(J, lease, Position(), events[:num_written])])
    assert store.append([Append(J, lease, Position(), events)])[0].status == "appended"
    assert entry_ids(store) == ["1-0", "2-0", "3-0"]


@pytest.mark.parametrize("tail", ["1-0", "1-1", "3-0", "0-1"])
def test_an_append_to_a_log_that_ends_elsewhere_writes_nothing(make_store: MakeStore, tail: str):
    store = make_store()
    submit(store)
    lease = claimed(store, J).claim.lease
    store.redis.xadd(schema.log_key(J), {"e": encode_event(Token("x", 1, [1]))}, id=tail)
    events = [
        LoggedEvent(Position(3, 1), Token("", 4, [], finish="stop")),
        LoggedEvent(Position(4, 0), Token("", 4, [4])),
    ]
    answer = store.append([Append(J, lease, Position(2, 0), events)])[0]
    assert (answer.status, answer.num_listeners) == ("conflict", 0)
    assert entry_ids(store) == [tail]


HOLES = {
    "the first": lambda log: log[1:],
    "one in between": lambda log: log[:2] + log[3:],
    "one at the same token": lambda log: [*log[:3], (log[3][0].replace(b"-0", b"-2"), *log[3][1:]), *log[4:]],
    "an entry that is no event": lambda log: [*log[:2], (log[2][0], b"e", b"no event"), *log[3:]],
    "an entry of another shape": lambda log: [*log[:2], (log[2][0], b"x", b""), *log[3:]],
}


@pytest.mark.parametrize("hole", HOLES)
def test_a_claim_refuses_a_log_with_a_hole_and_ends_the_job_honestly(
    make_store: MakeStore, connection: redis.Redis, hole: str
):
    """F07: the next owner used to feed it to the model as if it were whole."""
    store = make_store()
    submit(store)
    submit(store, "whole")
    writer = claimed(store, J)
    for _ in range(5):
        writer.tokens(2)
    log = [(entry, *next(iter(fields.items()))) for entry, fields in connection.xrange(schema.log_key(J))]
    connection.delete(schema.log_key(J))
    for entry, field, value in HOLES[hole](log):
        connection.xadd(schema.log_key(J), {field: value}, id=entry)
    let_lease_run_out(store)
    damaged, whole = store.claim([J, "whole"])
    assert isinstance(damaged, LogDamaged)
    assert isinstance(whole, Claim)
    assert state(store) == "failed"
    assert store.claim([J]) == ["finished"]
    (error,) = store.events(J)
    assert error.code == "LOG_DAMAGED"
    assert writer.claim.request == REQUEST
