"""A job in Redis: what holds after any history of workers, losses and older snapshots."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orcd.events import Started, Token
from orcd.store import schema
from orcd.store.claim import Claim
from orcd.store.job_store import JobStore
from tests.orcd.job_record import (
    REQUEST,
    J,
    Snapshot,
    cancel,
    let_lease_run_out,
    make_due_again,
    state,
    submit,
)
from tests.orcd.job_writer import Writer

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("claim", "tokens", "end", "renew", "release", "lose", "reap", "cancel", "republish", "submit"),
                *("snapshot", "roll back"),
            ]
        ),
        st.sampled_from([0, 1]),
    ),
    max_size=25,
)


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(ACTIONS)
def test_any_history_leaves_every_key_with_a_time_to_live_one_end_and_tokens_in_order(make_store, actions):
    """F07: also one in which Redis comes back from an older snapshot at any moment."""
    stores = [make_store("worker-0"), make_store("worker-1")]
    connection = stores[0].redis
    connection.flushall()
    writers: dict[int, Writer] = {}
    submit(stores[0], J, REQUEST)
    snapshot = Snapshot(connection)
    for action, worker in [("submit", 0), ("claim", 0), *actions]:
        match action:
            case "snapshot":
                snapshot = Snapshot(connection)
            case "roll back":
                snapshot.restore()
            case _:
                play(action, worker, stores[worker], writers)
        assert all(connection.ttl(key) > 0 for key in connection.scan_iter())
        check_job(stores[0])


def play(action: str, worker: int, store: JobStore, writers: dict[int, Writer]) -> None:
    """One step of a worker, whether it still owns the job or only believes so."""
    writer = writers.get(worker)
    match action:
        case "submit":
            submit(store, J, REQUEST)
        case "claim":
            claim = store.claim([J])[0]
            if isinstance(claim, Claim):
                writers[worker] = Writer(store, claim)
        case "tokens" if writer:
            writer.tokens(2)
        case "end" if writer:
            writer.end()
        case "renew" if writer:
            store.renew({J: writer.claim.lease})
        case "release" if writer:
            store.release({J: writer.claim.lease})
        case "lose" if store.redis.zscore(schema.RUNNING, J) is not None:
            let_lease_run_out(store)
        case "reap":
            store.reap()
        case "cancel":
            cancel(store)
        case "republish" if store.redis.zscore(schema.QUEUED, J) is not None:
            make_due_again(store)


def check_job(store: JobStore) -> None:
    events = store.events(J)
    ids = [token_id for event in events if isinstance(event, Token) for token_id in event.ids]
    assert ids == [101 + index for index in range(len(ids))]
    ends = [event for event in events if not isinstance(event, Token | Started)]
    ended = state(store) in schema.TERMINAL_STATES
    assert len(ends) == int(ended)
    assert not ended or events[-1] is ends[0]
    assert (store.redis.zscore(schema.RUNNING, J) is not None) == (state(store) == "running")
    assert (store.redis.zscore(schema.QUEUED, J) is not None) == (state(store) == "queued")
