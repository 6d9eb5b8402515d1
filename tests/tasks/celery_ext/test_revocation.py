"""Which jobs a revocation ends, and what is noted for those that have no record yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import redis
from celery import Celery
from celery.worker import state
from celery.worker.control import Panel

from orcd.client import Client
from orcd.events import Error
from orcd.request import parse
from orcd.store.job_store import Arrival, JobStore
from tasks.app import create_app
from tasks.celery_ext import revocation
from tasks.celery_ext.revocation import end_job, revoke_tasks
from tests.orcd.job_record import let_lease_run_out
from tests.orcd.job_writer import MakeStore, claimed
from worker.settings import Settings


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    return make_store()


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    with create_app(Settings(redis_url=redis_url)) as app:
        yield app


def put_back(client: Client, store: JobStore) -> str:
    """A job that has begun and waits again."""
    job_id = client.submit(prompt="x")
    writer = claimed(store, job_id)
    writer.start()
    store.release({job_id: writer.claim.lease})
    return job_id


@pytest.mark.parametrize(
    ("reason", "final", "code"),
    [
        ("revoked", "cancelled", "CANCELLED"),
        ("expired", "expired", "EXPIRED"),
        ("terminated", "cancelled", "CANCELLED"),
    ],
)
def test_a_job_that_waits_is_ended_at_once(client: Client, store: JobStore, reason: str, final: str, code: str) -> None:
    """F10: Celery said that it was revoked, and its stream never ended."""
    job_id = client.submit(prompt="x")
    assert end_job(store, job_id, reason)
    assert client.status(job_id).state == final
    (end,) = client.events(job_id, timeout=60)
    assert isinstance(end, Error)
    assert end.code == code


def test_keys_may_have_a_prefix(connection: redis.Redis) -> None:
    store = JobStore(connection, owner="w", model="demo", lease_ms=60_000, ttl_s=60, key_prefix="mine:")
    store.arrive([Arrival("a", parse({"prompt": "x"}), None)])
    assert end_job(store, "a", "revoked")
    assert connection.hget("mine:orcd:{a}:job", "state") == b"cancelled"


def test_a_job_that_has_begun_and_waits_again_has_not_expired(client: Client, store: JobStore) -> None:
    job_id = put_back(client, store)
    assert not end_job(store, job_id, "expired")
    assert client.status(job_id).state == "queued"
    assert end_job(store, job_id, "revoked")
    assert client.status(job_id).state == "cancelled"


def test_a_job_that_runs_is_ended_only_when_it_is_terminated(client: Client, store: JobStore) -> None:
    job_id = client.submit(prompt="x")
    claimed(store, job_id)
    for reason in ("revoked", "expired", "terminated"):
        assert not end_job(store, job_id, reason)
        wanted = store.redis.hexists(f"orcd:{{{job_id}}}:job", "cancel")
        assert wanted == (reason == "terminated")


def test_what_waits_or_is_unknown_is_noted_as_revoked_and_what_runs_or_has_ended_is_not(
    app: Celery, client: Client, store: JobStore
) -> None:
    waits, runs, ended = (client.submit(prompt="x") for _ in range(3))
    claimed(store, runs)
    writer = claimed(store, ended)
    writer.start()
    writer.end()
    revoke_tasks(store, app.backend, [waits, runs, ended, "unknown"], "revoked")
    states = [app.AsyncResult(task_id).state for task_id in (waits, runs, ended, "unknown")]
    assert states == ["REVOKED", "PENDING", "PENDING", "REVOKED"]
    assert [client.status(job_id).state for job_id in (waits, runs, ended)] == ["cancelled", "running", "succeeded"]


def test_terminating_ends_a_job_that_runs_without_a_message_of_its_id(
    app: Celery, client: Client, store: JobStore
) -> None:
    """It may be one of a chunk, or its message is lost; it ran to its end."""
    waits, runs = client.submit(prompt="x"), client.submit(prompt="x")
    writer = claimed(store, runs)
    writer.tokens(2)
    revoke_tasks(store, app.backend, [waits, runs, "unknown"], "terminated")
    states = [app.AsyncResult(task_id).state for task_id in (waits, runs, "unknown")]
    assert states == ["REVOKED", "PENDING", "REVOKED"]
    assert store.renew({runs: writer.claim.lease}) == {runs: "cancelled"}


def test_terminating_ends_a_job_whose_worker_is_dead_with_the_text_so_far(
    app: Celery, client: Client, store: JobStore
) -> None:
    job_id = client.submit(prompt="x")
    claimed(store, job_id).tokens(2)
    let_lease_run_out(store, job_id)
    revoke_tasks(store, app.backend, [job_id], "terminated")
    result = client.result(job_id, timeout=60)
    assert (result.state, result.text) == ("cancelled", " 1 2")
    assert app.AsyncResult(job_id).state == "REVOKED"


def test_a_stored_result_is_left_alone(app: Celery, store: JobStore) -> None:
    app.backend.store_result("a", "x", "SUCCESS")
    revoke_tasks(store, app.backend, ["a"], "revoked")
    assert app.AsyncResult("a").state == "SUCCESS"


@pytest.mark.parametrize("terminate", [False, True])
def test_the_control_commands_are_ours_and_ask_redis_for_nothing(terminate: bool) -> None:
    assert Panel.data["revoke"] is revocation.revoke
    assert Panel.data["terminate"] is revocation.terminate
    worker, request = Mock(), Mock()
    state.requests["t"] = request
    try:
        command: Any = Panel.data["revoke"]
        assert "ok" in command(worker, ["t", "u"], terminate=terminate)
        assert "t" in state.revoked
    finally:
        state.reset_state()
        state.revoked.clear()
    assert request.terminate.called == terminate
    [work] = worker.consumer.pool.submit.call_args.args
    assert work.func is revoke_tasks
    assert work.keywords == {"task_ids": {"t", "u"}, "reason": "terminated" if terminate else "revoked"}


@pytest.mark.parametrize("command", ["pool_grow", "pool_shrink"])
def test_a_pool_of_one_engine_says_that_it_does_not_grow(command: str) -> None:
    answer = Panel.data[command](Mock(), n=1)
    assert answer["error"].startswith("a worker of orcd has one engine")
