"""A job in Redis: what becomes of leases, and of the losses held against a job, when nobody could reach Redis."""

from __future__ import annotations

import time

import pytest
import redis

from orcd.store import schema
from orcd.store.claim import Claim
from orcd.store.job_store import JobStore
from tasks.local.redis_server import RedisServer
from tests.conftest import wait_until
from tests.orcd.job_record import REQUEST, J, Snapshot, field, let_lease_run_out, state, submit
from tests.orcd.job_writer import MakeStore, Writer, claimed

LEASE_MS = 800
LEASE_S = LEASE_MS / 1000
PAUSE_MS = 1000


@pytest.fixture
def owner(make_store: MakeStore) -> JobStore:
    store = make_store("worker-1", lease_ms=LEASE_MS)
    submit(store, J, REQUEST)
    return store


@pytest.fixture
def other(make_store: MakeStore) -> JobStore:
    return make_store("worker-2", lease_ms=LEASE_MS)


def losses(store: JobStore) -> int:
    """The losses held against the job, as its next owner would find them."""
    return int(store.redis.hget(schema.job_key(J), "losses") or 0)


def lose(store: JobStore) -> Writer:
    """Claim the job and die."""
    writer = claimed(store, J)
    let_lease_run_out(store)
    store.reap()
    return writer


def now_ms(store: JobStore) -> int:
    """The time by the clock of Redis."""
    seconds, microseconds = store.redis.time()
    return int(1000 * seconds + microseconds // 1000)


def reaped_ms(store: JobStore) -> int:
    """When a worker that looks all the time finds that the owner is dead."""
    wait_until(lambda: any(message.lease_lost for message in store.reap()))
    return now_ms(store)


# -- outages ---------------------------------------------------------------------------------------------------------


def test_twelve_pauses_longer_than_the_lease_cost_neither_the_lease_nor_an_attempt(owner: JobStore, other: JobStore):
    """F13: they POISONED 5 of 6 jobs: the other worker's reaper beat the owner's renewal."""
    writer = claimed(owner, J)
    lease = writer.claim.lease
    for _ in range(12):
        owner.redis.client_pause(PAUSE_MS)
        assert other.reap() == []  # comes first, when the pause is over
        assert other.claim([J]) == ["busy"]
        assert owner.renew({J: lease}) == {J: "renewed"}
    assert (field(owner, "epoch"), field(owner, "attempt"), losses(owner)) == (lease.epoch, 1, 0)
    assert writer.tokens(1)


@pytest.mark.parametrize("first", ["reap", "claim", "renew"])
def test_whoever_comes_first_after_a_pause_finds_the_leases_begun_anew(first: str, owner: JobStore, other: JobStore):
    """F13."""
    lease = claimed(owner, J).claim.lease
    owner.redis.client_pause(PAUSE_MS)
    {"reap": other.reap, "claim": lambda: other.claim([J]), "renew": lambda: other.renew({})}[first]()
    assert other.reap() == []
    assert other.claim([J]) == ["busy"]
    assert owner.renew({J: lease}) == {J: "renewed"}


def test_a_redis_that_was_killed_and_started_again_keeps_the_leases(redis_server: RedisServer):
    """F13."""
    with redis.Redis.from_url(redis_server.url, socket_timeout=60) as connection:
        owner, other = (
            JobStore(connection, owner=name, model="demo", lease_ms=LEASE_MS, ttl_s=600) for name in ("w-1", "w-2")
        )
        submit(owner, J, REQUEST)
        lease = claimed(owner, J).claim.lease
        redis_server.kill()
        time.sleep(PAUSE_MS / 1000)
        redis_server.start()
        assert other.reap() == []
        assert owner.renew({J: lease}) == {J: "renewed"}


def test_a_redis_that_comes_back_from_an_older_snapshot_keeps_the_leases(owner: JobStore, other: JobStore):
    """F13."""
    lease = claimed(owner, J).claim.lease
    snapshot = Snapshot(owner.redis)
    for _ in range(3):
        time.sleep(LEASE_S / 2)
        owner.renew({J: lease})
    snapshot.restore()
    assert other.reap() == []
    assert owner.renew({J: lease}) == {J: "renewed"}


def test_a_redis_that_has_forgotten_when_it_was_last_reached_keeps_the_leases(owner: JobStore, other: JobStore):
    lease = claimed(owner, J).claim.lease
    owner.redis.delete(schema.CONTACT)
    let_lease_run_out(owner)
    assert other.reap() == []
    assert owner.renew({J: lease}) == {J: "renewed"}


def test_what_is_noted_of_the_last_contact_may_be_of_any_type(owner: JobStore, other: JobStore):
    claimed(owner, J)
    owner.redis.delete(schema.CONTACT)
    owner.redis.rpush(schema.CONTACT, "no", "time")
    assert other.reap() == []
    assert 0 < owner.redis.ttl(schema.CONTACT) <= 3600
    assert owner.redis.type(schema.CONTACT) == b"string"


# -- clocks ----------------------------------------------------------------------------------------------------------


def test_after_a_clock_that_was_ahead_nothing_waits_for_the_time_it_had(owner: JobStore, other: JobStore):
    """The clock of Redis was two minutes ahead for a while: leases and looks were set by it, then it was put right."""
    ahead_ms = 120_000
    claimed(owner, J)
    submit(owner, "waiting", REQUEST)
    for key in (schema.RUNNING, schema.QUEUED):
        for job_id, score in owner.redis.zrange(key, 0, -1, withscores=True):
            owner.redis.zadd(key, {job_id: score + ahead_ms})
    owner.redis.incrby(schema.CONTACT, ahead_ms)
    before_ms = now_ms(owner)
    assert other.reap() == []
    after_ms = now_ms(owner)
    lease_end_ms = owner.redis.zscore(schema.RUNNING, J)
    assert before_ms <= lease_end_ms - LEASE_MS <= after_ms, "an owner that lives has a whole lease to be heard of"
    assert owner.redis.zscore(schema.QUEUED, "waiting") <= after_ms + 20_000
    assert reaped_ms(other) >= lease_end_ms


# -- deaths ----------------------------------------------------------------------------------------------------------


def test_a_job_whose_owner_died_is_found_soon_after_its_lease(owner: JobStore, other: JobStore):
    claimed(owner, J)
    lease_end_ms = owner.redis.zscore(schema.RUNNING, J)
    assert reaped_ms(other) >= lease_end_ms
    assert (state(other), losses(other)) == ("queued", 1)


def test_a_job_whose_owner_died_in_an_outage_is_found_one_lease_later(owner: JobStore, other: JobStore):
    claimed(owner, J)
    before_ms = now_ms(owner)
    owner.redis.client_pause(PAUSE_MS)
    assert other.reap() == []
    assert reaped_ms(other) >= before_ms + PAUSE_MS + LEASE_MS
    assert losses(other) == 1


def test_a_lease_that_had_run_out_before_the_outage_is_lost(owner: JobStore, other: JobStore):
    claimed(owner, J)
    let_lease_run_out(owner)
    owner.redis.client_pause(PAUSE_MS)
    assert [message.job_id for message in other.reap()] == [J]


def test_a_pause_shorter_than_half_a_lease_postpones_nothing(make_store: MakeStore):
    owner, other = make_store("worker-1"), make_store("worker-2")  # whose leases are long
    submit(owner, J, REQUEST)
    claimed(owner, J)
    before = owner.redis.zscore(schema.RUNNING, J)
    owner.redis.client_pause(100)
    assert other.reap() == []
    assert owner.redis.zscore(schema.RUNNING, J) == before


# -- losses ----------------------------------------------------------------------------------------------------------


def test_every_owner_that_died_counts_whether_its_job_was_reaped_or_taken_over(make_store: MakeStore, owner: JobStore):
    for expected in (0, 1, 2):
        writer = claimed(make_store(f"worker-{expected}"), J)
        assert writer.claim.losses == expected
        let_lease_run_out(owner)
        if expected == 1:
            owner.reap()
    owner.release({J: claimed(make_store(), J).claim.lease})
    assert claimed(make_store(), J).claim.losses == 3, "leaving in good order adds nothing"


def test_a_logged_token_forgives_all_earlier_losses(make_store: MakeStore, owner: JobStore):
    """F13: progress forgave nothing, so that a long job was POISONED by the deaths of a week."""
    for _ in range(3):
        lose(make_store())
    writer = claimed(owner, J)
    writer.start()
    assert losses(owner) == 3, "that it was started is no progress"
    writer.tokens(1)
    assert losses(owner) == 0
    writer.tokens(1)
    let_lease_run_out(owner)
    claim = claimed(make_store(), J).claim
    assert (claim.losses, claim.attempt) == (1, 5)


def test_tokens_and_a_start_in_one_append_forgive_too(make_store: MakeStore, owner: JobStore):
    lose(make_store())
    writer = claimed(owner, J)
    writer.tokens(2)
    assert losses(owner) == 0


@pytest.mark.parametrize("call", ["renew", "append", "release"])
def test_an_owner_that_is_heard_of_again_had_not_died(call: str, make_store: MakeStore, owner: JobStore):
    """F13, F16: a worker that stood still for longer than its lease was counted as dead."""
    writer = lose(owner)
    heir = claimed(make_store("worker-2"), J)
    assert heir.claim.losses == 1
    for _ in range(2):  # it is forgiven once
        match call:
            case "renew":
                assert owner.renew({J: writer.claim.lease}) == {J: "lost"}
            case "append":
                assert not writer.tokens(1)
            case "release":
                assert owner.release({J: writer.claim.lease}) == []
        assert losses(owner) == 0
    assert heir.tokens(1)


def test_an_owner_that_was_forgiven_by_a_token_is_not_forgiven_again(make_store: MakeStore, owner: JobStore):
    writer = lose(owner)
    claimed(make_store(), J).tokens(1)
    let_lease_run_out(owner)
    heir = claimed(make_store(), J)
    owner.renew({J: writer.claim.lease})
    assert (heir.claim.losses, losses(owner)) == (1, 1)


def test_a_process_that_claims_its_lost_job_again_had_not_died(make_store: MakeStore, owner: JobStore):
    """F13."""
    lose(owner)
    assert claimed(owner, J).claim.losses == 0
    let_lease_run_out(owner)
    assert claimed(owner, J).claim.losses == 0, "nor where it takes the job over from itself"
    let_lease_run_out(owner)
    lose(make_store("worker-1"))
    assert claimed(make_store("worker-1"), J).claim.losses == 2, "a worker started again under the same name had"


def test_a_claim_repeated_after_its_lease_has_run_out_costs_nothing(owner: JobStore):
    tokens = owner.new_tokens(1)
    owner.claim([J], "print", tokens)
    let_lease_run_out(owner)
    (again,) = owner.claim([J], "print", tokens)
    assert isinstance(again, Claim)
    assert again.losses == 0
