"""Any value in any field of a job's record: whatever is done then, only that job is concerned."""

from __future__ import annotations

from contextlib import suppress

import pytest

from orcd.client import Client
from orcd.errors import LogDamaged, OrcdError
from orcd.store import schema
from orcd.store.claim import Claim
from orcd.store.enqueue import Message
from orcd.store.job_store import JobStore
from tests.orcd.job_record import J, cancel, let_lease_run_out, make_due_again, state, submit
from tests.orcd.job_writer import MakeStore, Writer, claimed

FIELDS = (
    "schema", "request", "digest", "state", "queue", "priority", "created_ms", "queued_ms", "deadline_ms", "ttl_s",
    "queue_limit_s", "epoch", "token", "attempt", "losses", "lost_token", "owner", "model", "fingerprint",
    "started_ms", "first_token_ms", "finished_ms", "cancel", "published", "tenant", "trace", "end",
)  # fmt: skip
VALUES: tuple[bytes, ...] = (
    b"", b"x", b"-1", b"nan", b"inf", b"-inf", b"1e400", b"1.5", b"9" * 30, b"0x1p70", b"\xff\xfe", b"null", b"[]",
)  # fmt: skip


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    return make_store()


def _damaged_beside_whole(store: JobStore, field: str, value: bytes) -> tuple[Writer, Writer]:
    """Two jobs that run, of which the first one's record has that value."""
    store.redis.flushdb()
    for job_id in (J, "whole"):
        submit(store, job_id)
    writers = claimed(store, J), claimed(store, "whole")
    store.redis.hset(schema.job_key(J), field, value)
    return writers


@pytest.mark.parametrize("field", FIELDS)
def test_an_owner_goes_on_with_the_other_job(store: JobStore, field: str) -> None:
    """F15: with an empty `cancel` the answer could not be read, and the worker left."""
    for value in VALUES:
        damaged, whole = _damaged_beside_whole(store, field, value)
        damaged.start()
        assert whole.start(), value
        renewed = store.renew({J: damaged.claim.lease, "whole": whole.claim.lease})
        assert renewed["whole"] == "renewed", value
        damaged.tokens(2)
        assert whole.tokens(2), value
        released = store.release({J: damaged.claim.lease, "whole": whole.claim.lease})
        assert "whole" in _job_ids(released), value


@pytest.mark.parametrize("field", FIELDS)
def test_a_reaper_finds_the_other_job(store: JobStore, field: str) -> None:
    """F15."""
    for value in VALUES:
        for put_back in (let_lease_run_out, make_due_again):
            _damaged_beside_whole(store, field, value)
            store.reap()  # of which the first gives all leases that it finds some time
            for job_id in (J, "whole"):
                put_back(store, job_id)
            found = _job_ids(store.reap())
            assert "whole" in found or put_back is make_due_again, value


def _job_ids(messages: list[Message]) -> list[str]:
    assert all(0 <= message.priority <= 9 for message in messages)
    return [message.job_id for message in messages]


@pytest.mark.parametrize("field", FIELDS)
def test_a_claim_takes_the_other_job(store: JobStore, field: str) -> None:
    """F15, F05."""
    for value in VALUES:
        _, whole = _damaged_beside_whole(store, field, value)
        store.release({"whole": whole.claim.lease})
        let_lease_run_out(store, J)
        _, found = store.claim([J, "whole"])
        assert isinstance(found, Claim), value
        cancel(store)


def test_a_job_in_no_state_is_ended_by_whoever_comes_to_it_and_its_readers_are_told_at_once(
    store: JobStore, client: Client
) -> None:
    """F11: it was taken for finished, and its readers waited for ever."""
    for come in (lambda: store.claim([J]), store.reap):
        _damaged_beside_whole(store, "state", b"pending")
        with pytest.raises(LogDamaged):
            client.result(J, timeout=60)
        make_due_again(store, J)
        come()
        assert state(store) == "failed"


@pytest.mark.parametrize("field", FIELDS)
def test_a_client_gets_an_error_with_a_code_at_worst_and_lists_the_other_job(
    store: JobStore, client: Client, field: str
) -> None:
    for value in VALUES:
        damaged, _ = _damaged_beside_whole(store, field, value)
        damaged.tokens(1)
        for read in (client.status, client.wait_estimate, client.cancel):
            with suppress(OrcdError):
                read(J)
        assert "whole" in [job.job_id for job in client.jobs()], value
        assert client.queues()[0].running >= 1, value
