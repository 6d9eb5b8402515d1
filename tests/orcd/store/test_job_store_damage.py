"""Keys that cannot be used: of one job, which concerns no other, and of all, which blames none."""

from __future__ import annotations

import pytest
import redis

from orcd.errors import Cancelled, LogDamaged
from orcd.events import Error, Position, Token, decode_event
from orcd.store import schema
from orcd.store.claim import Claim
from orcd.store.job_store import Append, Arrival, JobStore
from orcd.store.token_log import LoggedEvent
from tasks.local.redis_server import RedisServer
from tests.orcd.job_record import (
    REQUEST,
    Ears,
    J,
    let_lease_run_out,
    make_due_again,
    recorded,
    state,
    submit,
)
from tests.orcd.job_writer import MakeStore, claimed

KEYS = {"record": schema.job_key, "log": schema.log_key, "messages": schema.messages_key}


def spoil(connection: redis.Redis, name: str, job_id: str = J) -> None:
    """Put a value of another type in place of a job's key."""
    connection.set(KEYS[name](job_id), "of another type")


TOKEN = LoggedEvent(Position(1, 0), Token("x", 1, [1]))


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    """With a job to be damaged and one beside it."""
    store = make_store()
    for job_id in (J, "whole"):
        submit(store, job_id)
    return store


@pytest.mark.parametrize("name", ["record", "log"])
def test_an_append_goes_on_with_the_other_jobs(store: JobStore, name: str):
    """F15: it failed as a whole and was repeated for ever."""
    leases = {job_id: claimed(store, job_id).claim.lease for job_id in (J, "whole")}
    spoil(store.redis, name)
    appends = [Append(job_id, lease, Position(), [TOKEN]) for job_id, lease in leases.items()]
    assert [answer.status for answer in store.append(appends)] == ["damaged", "appended"]
    assert [type(event) for event in store.events("whole")] == [Token]


def test_an_entry_that_redis_refuses_is_damage_of_its_job_only(store: JobStore):
    """F15: somebody has moved the log's last id on."""
    leases = {job_id: claimed(store, job_id).claim.lease for job_id in (J, "whole")}
    store.redis.xadd(schema.log_key(J), {"e": "x"}, id="9-0")
    store.redis.xdel(schema.log_key(J), "9-0")
    appends = [Append(job_id, lease, Position(), [TOKEN]) for job_id, lease in leases.items()]
    assert [answer.status for answer in store.append(appends)] == ["damaged", "appended"]


def test_renewals_and_releases_go_on_with_the_other_jobs(store: JobStore):
    """F15: the renewals waited behind the append, and then failed like it."""
    leases = {job_id: claimed(store, job_id).claim.lease for job_id in (J, "whole")}
    spoil(store.redis, "record")
    assert store.renew(leases) == {J: "lost", "whole": "renewed"}
    assert [message.job_id for message in store.release(leases)] == ["whole"]


@pytest.mark.parametrize("name", ["record", "log"])
def test_a_claim_goes_on_with_the_other_jobs_and_ends_the_damaged_one(store: JobStore, name: str):
    """F15, F05: one record ended the thread that claims."""
    ears = Ears(store.redis, schema.events_channel(J))
    spoil(store.redis, name)
    damaged, whole = store.claim([J, "whole"])
    assert isinstance(damaged, LogDamaged)
    assert isinstance(whole, Claim)
    assert store.redis.zscore(schema.QUEUED, J) is store.redis.zscore(schema.RUNNING, J) is None
    heard = [decode_event(event) for event in ears.heard()]
    ears.close()
    if name == "log":  # a record that is none holds no end, and nobody can say who follows
        assert [event.code for event in heard if isinstance(event, Error)] == ["LOG_DAMAGED"]
        assert state(store) == "failed"
        assert [event.code for event in store.events(J)] == ["LOG_DAMAGED"]


@pytest.mark.parametrize("field", ["epoch", "attempt", "created_ms", "deadline_ms", "request"])
def test_a_record_whose_fields_cannot_be_read_is_ended(store: JobStore, field: str):
    """F05: what a claim cannot read is one job's error."""
    if field == "request":
        store.redis.hdel(schema.job_key(J), field)
    else:
        store.redis.hset(schema.job_key(J), field, "?")
    damaged, whole = store.claim([J, "whole"])
    assert isinstance(damaged, LogDamaged)
    assert isinstance(whole, Claim)
    assert state(store) == "failed"


@pytest.mark.parametrize("name", ["record", "log", "messages"])
@pytest.mark.parametrize("was_running", [False, True])
def test_the_reaper_goes_on_with_the_other_jobs(store: JobStore, name: str, was_running: bool):
    """F15: what failed counted as done."""
    for job_id in (J, "whole"):
        if was_running:
            claimed(store, job_id)
            let_lease_run_out(store, job_id)
        else:
            make_due_again(store, job_id)
    spoil(store.redis, name)
    found = {message.job_id for message in store.reap()}
    assert found == ({"whole"} if name == "record" else {J, "whole"})
    assert store.redis.zcount(schema.QUEUED, "-inf", 1000) == 0
    assert store.redis.zcount(schema.RUNNING, "-inf", 1000) == 0


def test_the_reaper_ends_a_job_whose_fields_cannot_be_used(store: JobStore):
    store.redis.hset(schema.job_key(J), "created_ms", "?")
    store.redis.hset(schema.job_key(J), "queued_ms", "?")
    make_due_again(store)
    assert store.reap() == []
    assert [event.code for event in store.events(J)] == ["LOG_DAMAGED"]
    assert store.redis.zscore(schema.QUEUED, J) is None


def test_an_overdue_job_is_ended_though_its_log_cannot_be_used(store: JobStore, connection: redis.Redis):
    """F15: the record has the end, so that a reader still gets one."""
    connection.hset(schema.job_key(J), "deadline_ms", 1)
    spoil(connection, "log")
    make_due_again(store)
    assert store.reap() == []
    assert state(store) == "expired"
    assert [event.code for event in store.events(J)] == ["EXPIRED"]


@pytest.mark.parametrize("name", ["record", "messages"])
def test_an_arrival_goes_on_with_the_other_jobs(store: JobStore, name: str):
    spoil(store.redis, name)
    arrivals = [Arrival(J, REQUEST, recorded(J)), Arrival("whole", REQUEST, recorded("whole"))]
    damaged, whole = store.arrive([*arrivals])
    assert isinstance(damaged, LogDamaged)
    assert whole is None
    assert store.redis.hkeys(schema.messages_key("whole")) == [b"whole"]
    store.answered({"whole": recorded("whole")})
    assert not store.redis.exists(schema.messages_key("whole"))


def test_a_job_that_cannot_be_used_is_not_cancelled_and_says_so(store: JobStore):
    spoil(store.redis, "record")
    assert store.cancel(J, Cancelled("cancelled")) == "damaged"
    assert store.cancel("whole", Cancelled("cancelled")) == "cancelled"


def test_progress_is_told_past_a_record_that_is_none(store: JobStore):
    """F15: also where a worker reads many records."""
    ears = Ears(store.redis, schema.events_channel("whole"))
    spoil(store.redis, "record")
    store.announce_loading(50)
    assert len(ears.heard()) == 1
    ears.close()


def test_an_owner_ends_a_damaged_job_as_far_as_its_keys_allow(store: JobStore):
    lease = claimed(store, J).claim.lease
    spoil(store.redis, "log")
    assert store.end_damaged(J, lease, LogDamaged("its log is gone"))
    assert not store.end_damaged(J, lease, LogDamaged("its log is gone"))
    assert store.events(J) == [Error("LOG_DAMAGED", "its log is gone", False)]
    assert state(store) == "failed"


def test_without_an_end_in_the_record_a_log_that_cannot_be_used_is_an_error(store: JobStore):
    claimed(store, J)
    spoil(store.redis, "log")
    with pytest.raises(LogDamaged, match="job job-1: its token log is damaged or gone"):
        store.events(J)


def test_what_tells_who_serves_a_queue_is_made_anew_with_a_renewal(store: JobStore):
    """F15: everybody took all queues for served."""
    for key in (schema.SERVED, schema.READY):
        store.redis.set(key, "of another type")
    store.renew({})
    for key in (schema.SERVED, schema.READY):
        assert set(store.redis.zrange(key, 0, -1)) == {b"orcd", b"orcd.demo"}


@pytest.mark.parametrize("key", [schema.QUEUED, schema.RUNNING, schema.UNANSWERED])
def test_no_job_is_blamed_for_a_key_that_all_share_and_the_next_call_makes_it_anew(store: JobStore, key: str):
    """F15: no call about jobs was answered any more until somebody deleted it."""
    lease = claimed(store, J).claim.lease
    calls = {
        "renew": lambda: store.renew({J: lease}) == {J: "renewed"},
        "append": lambda: store.append([Append(J, lease, Position(), [TOKEN])])[0].status == "appended",
        "reap": lambda: store.reap() == [],
        "claim": lambda: isinstance(store.claim(["whole"])[0], Claim),
        "arrive": lambda: store.arrive([Arrival("new", REQUEST, None)]) == [None],
    }
    for name, call in calls.items():
        store.redis.delete(key)
        store.redis.set(key, "of another type")
        assert call(), name
    store.renew({J: lease})
    assert store.redis.zscore(schema.RUNNING, J)
    assert (state(store), state(store, "whole"), state(store, "new")) == ("running", "running", "queued")


def test_a_full_redis_fails_the_call_and_no_job(redis_server: RedisServer):
    """F02: a write that Redis refuses to everybody is tried again; it is nobody's damage, and nothing is half done."""
    with redis.Redis.from_url(redis_server.url) as connection:
        store = JobStore(connection, owner="w", model="demo", lease_ms=60_000, ttl_s=60)
        submit(store)
        submit(store, "whole")
        lease = claimed(store, J).claim.lease
        append = Append(J, lease, Position(), [TOKEN])
        before = connection.hgetall(schema.job_key(J))
        connection.config_set("maxmemory", 1)
        for call in (lambda: store.append([append]), lambda: store.claim(["whole"]), lambda: submit(store, "more")):
            with pytest.raises(redis.RedisError, match="OOM"):
                call()
        connection.config_set("maxmemory", 0)
        assert connection.hgetall(schema.job_key(J)) == before
        assert store.append([append])[0].status == "appended"
        assert isinstance(store.claim(["whole"])[0], Claim)
