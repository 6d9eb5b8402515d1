"""Values that nobody writes, in keys of the right type: they concern one job, and it ends."""

from __future__ import annotations

import pytest
import redis

from orcd.errors import LogDamaged
from orcd.events import Error
from orcd.store import schema
from orcd.store.claim import Claim
from orcd.store.job_store import Arrival, JobStore
from tests.orcd.job_record import J, let_lease_run_out, make_due_again, recorded, state, submit
from tests.orcd.job_writer import MakeStore, claimed

MOST = 2**63 - 1
NESTED = (
    b'{"type":"started","job_id":"j","model":"m","started_at":1,"attempt":1,"x":' + b"[" * 9000 + b"]" * 9000 + b"}"
)
EXTREMES = [
    ("epoch", MOST),
    ("attempt", MOST),
    ("queue", b"\xff\xfe"),
    ("queue", schema.QUEUED),
    ("priority", "urgent"),
    ("ttl_s", "1e300"),
    ("ttl_s", "0.5"),
    ("queue_limit_s", "-1"),
    ("deadline_ms", "never"),
    ("created_ms", "never"),
]


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    """With a job to be damaged and one beside it."""
    store = make_store()
    for job_id in (J, "whole"):
        submit(store, job_id)
    return store


@pytest.mark.parametrize(("field", "value"), EXTREMES, ids=str)
def test_a_claim_takes_the_other_job_and_ends_one_that_it_cannot_read(store: JobStore, field: str, value: object):
    """F15: one field of one record stopped all jobs of every worker."""
    store.redis.hset(schema.job_key(J), field, value)  # type: ignore[arg-type]
    found, whole = store.claim([J, "whole"])
    assert isinstance(whole, Claim)
    assert isinstance(found, Claim) or (isinstance(found, LogDamaged) and state(store) == "failed")


@pytest.mark.parametrize(("field", "value"), [*EXTREMES, ("published", MOST)], ids=str)
@pytest.mark.parametrize("was_running", [False, True])
def test_a_reaper_publishes_the_other_job(store: JobStore, field: str, value: object, was_running: bool):
    """F15: the messages of all other jobs were lost with one that could not be read."""
    for job_id in (J, "whole"):
        if was_running:
            claimed(store, job_id)
            let_lease_run_out(store, job_id)
        else:
            make_due_again(store, job_id)
    store.redis.hset(schema.job_key(J), field, value)  # type: ignore[arg-type]
    assert "whole" in [message.job_id for message in store.reap()]
    assert state(store) in ("queued", "failed", "expired")


@pytest.mark.parametrize("list_", [schema.QUEUED, schema.RUNNING, schema.UNANSWERED])
def test_what_is_no_job_id_is_taken_off_the_lists(store: JobStore, list_: str):
    """F15."""
    store.reap()  # of which the first gives all leases that it finds some time
    store.redis.zadd(list_, {b"\xff\xfe": 1})
    make_due_again(store, "whole")
    assert [message.job_id for message in store.reap()] == ["whole"]
    assert store.redis.zscore(list_, b"\xff\xfe") is None


@pytest.mark.parametrize(
    "entry",
    [("0-1", NESTED), ("5-18446744073709551615", b"{}"), ("0-100000000000000", b"{}")],
    ids=["nested deeply", "the last id", "a long id"],
)
def test_a_log_with_an_extreme_entry_ends_its_job_with_an_error(
    store: JobStore, connection: redis.Redis, entry: tuple[str, bytes]
):
    """F05, F15: it ended the thread that claims, or was claimed again and again and never ended."""
    entry_id, event = entry
    connection.xadd(schema.log_key(J), {"e": event}, id=entry_id)
    found, whole = store.claim([J, "whole"])
    assert isinstance(found, LogDamaged)
    assert isinstance(whole, Claim)
    assert state(store) == "failed"
    (last,) = store.events(J)[-1:]
    assert isinstance(last, Error) and last.code == "LOG_DAMAGED"


def test_a_recorded_message_that_is_nested_deeply_is_left_out(store: JobStore, connection: redis.Redis):
    """F05."""
    store.arrive([Arrival(J, None, recorded("task", J))])
    connection.hset(schema.messages_key(J), "other", b'{"task_id":' + b"[" * 9000 + b"]" * 9000 + b"}")
    (found,) = store.claim([J])
    assert isinstance(found, Claim)
    assert found.recorded == {"task"}
