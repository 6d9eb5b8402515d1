"""Results are stored as Celery stores them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult

from orcd.errors import InvalidRequest
from orcd.events import TokenLogprob
from orcd.result import Choice, Result
from tasks.app import create_app
from tasks.celery_ext.result_backend import ResultBackend
from worker.settings import Settings

RESULT = Result("a", "succeeded", [Choice("über", [7], "length", logprobs=[TokenLogprob(7, -0.5, {7: -0.5})])], 3, 1)


@pytest.fixture
def backend(redis_url: str) -> Iterator[Any]:
    with create_app(Settings(redis_url=redis_url, job_ttl_s=77)) as app:
        assert isinstance(app.backend, ResultBackend)
        yield app.backend


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own backend does
@pytest.mark.parametrize("result", [RESULT, [RESULT, RESULT]], ids=["one", "chunk"])
def test_what_is_stored_is_what_celery_would_store(
    backend: Any, redis_url: str, connection: redis.Redis, result: Any
) -> None:
    backend.store_result("a", result, "SUCCESS")
    with Celery(backend=redis_url, set_as_current=False) as foreign:
        mine = foreign.backend.get_task_meta("a")
        foreign.backend.store_result("b", result, "SUCCESS")
        theirs = backend.get_task_meta("b")
    assert mine["result"] == theirs["result"]
    assert mine.keys() == theirs.keys()
    assert 0 < connection.ttl("celery-task-meta-a") <= 77


def test_a_success_is_not_overwritten_and_a_failure_is(backend: Any) -> None:
    backend.store_result("a", InvalidRequest("no"), "FAILURE")
    assert isinstance(backend.get_result("a"), InvalidRequest)
    backend.store_result("a", RESULT, "SUCCESS")
    backend.store_result("a", InvalidRequest("no"), "FAILURE")
    meta = backend.get_task_meta("a", cache=False)
    assert (meta["status"], meta["result"]["tokens_out"]) == ("SUCCESS", 1)


def test_who_waits_hears_of_it(backend: Any) -> None:
    waiting = AsyncResult("a", app=backend.app)
    waiting.then(lambda result: heard.append(result.get()["job_id"]))
    heard: list[str] = []
    backend.store_result("a", RESULT, "SUCCESS")
    assert waiting.get(timeout=5)["job_id"] == "a"
    assert heard == ["a"]
