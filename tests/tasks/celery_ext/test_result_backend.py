"""Results are stored as Celery stores them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from struct import pack
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
import redis
from celery import Celery
from celery.app.task import Context
from celery.result import AsyncResult

from orcd.errors import InvalidRequest
from orcd.events import TokenLogprob
from orcd.result import Choice, Result
from tasks.app import create_app
from tasks.celery_ext.result_backend import MAX_HELD_BYTES, NotStored, ResultBackend
from tasks.dispatch.engine.logprob_process import LogprobProcess, Reported
from tasks.dispatch.engine.reported_logprobs import ReportedLogprobs
from tasks.dispatch.engine.token_spellings import TokenSpellings
from tasks.local.redis_server import RedisServer
from tests.tasks.dispatch.small_tokenizer import PIECES, SPELLINGS
from worker.settings import Settings

RESULT = Result("a", "succeeded", [Choice("über", [7], "length", logprobs=[TokenLogprob(7, -0.5, {7: -0.5})])], 3, 1)

REPORTED = msgspec.structs.replace(
    RESULT,
    choices=[Choice("é", [7], "stop", logprobs=ReportedLogprobs([7], 1, pack("<fif", -0.5, 2, -0.25), SPELLINGS))],
)


@pytest.fixture
def backend(redis_url: str) -> Iterator[Any]:
    with create_app(Settings(redis_url=redis_url, job_ttl_s=77)) as app:
        assert isinstance(app.backend, ResultBackend)
        yield app.backend


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own backend does
@pytest.mark.parametrize("result", [RESULT, [RESULT, RESULT], REPORTED], ids=["one", "chunk", "reported"])
def test_what_is_stored_is_what_celery_would_store(
    backend: Any, redis_url: str, connection: redis.Redis, result: Any
) -> None:
    backend.store_result("a", result, "SUCCESS")
    with Celery(backend=redis_url, set_as_current=False) as foreign:
        mine = foreign.backend.get_task_meta("a")
        foreign.backend.store_result("b", result, "SUCCESS")
        theirs = backend.get_task_meta("b")
        foreign.backend.client.connection_pool.disconnect()  # Celery leaves it to the garbage collector
    assert mine["result"] == theirs["result"]
    if result is REPORTED:
        [told] = msgspec.convert(mine["result"], Result, str_keys=True).choices[0].logprobs or ()
        assert told == TokenLogprob(7, -0.5, {2: -0.25}, {7: PIECES[7], 2: PIECES[2]})
    assert mine.keys() == theirs.keys()
    assert 0 < connection.ttl("celery-task-meta-a") <= 77


def test_a_success_is_not_overwritten_and_a_failure_is(backend: Any) -> None:
    backend.store_result("a", InvalidRequest("no"), "FAILURE")
    assert isinstance(backend.get_result("a"), InvalidRequest)
    backend.store_result("a", RESULT, "SUCCESS")
    backend.store_result("a", InvalidRequest("no"), "FAILURE")
    meta = backend.get_task_meta("a", cache=False)
    assert (meta["status"], meta["result"]["tokens_out"]) == ("SUCCESS", 1)


def test_a_connection_that_redis_has_closed_costs_no_result_where_nobody_waits(
    backend: Any, connection: redis.Redis
) -> None:
    """Nothing is tried again then, so each connection is looked at before it is used."""
    backend.store_result("a", RESULT, "SUCCESS")
    connection.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert backend.get_task_meta("a", cache=False)["status"] == "SUCCESS"
    backend.is_waiting = lambda: False
    connection.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    backend.store_result("b", RESULT, "SUCCESS")


def test_what_was_revoked_stays_so_unless_it_succeeds(backend: Any) -> None:
    """F10: a revoked job's end must not turn it into a failure."""
    backend.mark_as_revoked("a", "revoked")
    backend.store_result("a", InvalidRequest("no"), "FAILURE")
    assert backend.get_task_meta("a", cache=False)["status"] == "REVOKED"
    backend.store_result("a", RESULT, "SUCCESS")
    assert backend.get_task_meta("a", cache=False)["status"] == "SUCCESS"


def test_a_result_is_stored_when_redis_is_back(redis_server: RedisServer) -> None:
    """F17: storing gave up, or made a failure of a task that had succeeded."""
    with create_app(Settings(redis_url=redis_server.url)) as app:
        redis_server.kill()

        def store() -> None:
            app.backend.is_waiting = lambda: True  # each thread has a backend of its own
            app.backend.store_result("a", RESULT, "SUCCESS")

        storing = threading.Thread(target=store)
        storing.start()
        storing.join(1)
        assert storing.is_alive()
        redis_server.start()
        storing.join(60)
        assert app.backend.get_task_meta("a", cache=False)["status"] == "SUCCESS"


def test_it_is_left_when_there_is_no_time_to_wait(redis_server: RedisServer) -> None:
    with create_app(Settings(redis_url=redis_server.url)) as app:
        app.backend.is_waiting = lambda: False
        redis_server.kill()
        with pytest.raises(NotStored):
            app.backend.store_result("a", RESULT, "SUCCESS")
        with pytest.raises(NotStored):
            app.backend.on_chord_part_return(Context(id="a", group="g", chord={"task": "x"}), "SUCCESS", RESULT)


def test_a_full_redis_is_waited_for_and_a_key_of_another_type_is_not(backend: Any, connection: redis.Redis) -> None:
    backend.is_waiting = lambda: True
    connection.config_set("maxmemory", "1")
    back = threading.Timer(0.5, lambda: connection.config_set("maxmemory", "0"))
    back.start()
    try:
        backend.store_result("a", RESULT, "SUCCESS")
    finally:
        back.join()
    assert backend.get_task_meta("a", cache=False)["status"] == "SUCCESS"
    connection.lpush("celery-task-meta-b", "x")
    with pytest.raises(redis.ResponseError):
        backend.store_result("b", RESULT, "SUCCESS")


def test_who_waits_hears_of_it_though_a_worker_has_died_right_after_it_was_stored(
    backend: Any, connection: redis.Redis
) -> None:
    backend.store_result("b", RESULT, "SUCCESS")
    waiting = AsyncResult("a", app=backend.app)
    heard: list[str] = []
    waiting.then(lambda result: heard.append(result.get()["job_id"]))
    connection.copy("celery-task-meta-b", "celery-task-meta-a")
    backend.store_result("a", msgspec.structs.replace(RESULT, tokens_out=5), "SUCCESS")
    assert waiting.get(timeout=60)["job_id"] == "a"
    assert heard == ["a"]
    assert backend.get_task_meta("a", cache=False)["result"]["tokens_out"] == 1, "what is stored stays"


def test_who_waits_hears_of_it(backend: Any) -> None:
    waiting = AsyncResult("a", app=backend.app)
    waiting.then(lambda result: heard.append(result.get()["job_id"]))
    heard: list[str] = []
    backend.store_result("a", RESULT, "SUCCESS")
    assert waiting.get(timeout=60)["job_id"] == "a"
    assert heard == ["a"]


def test_what_is_stored_together_is_stored_in_one_round_trip_and_who_waits_hears_of_it(
    backend: Any, connection: redis.Redis
) -> None:
    backend.is_waiting = lambda: True
    waiting = AsyncResult("a", app=backend.app)
    waiting.then(lambda result: heard.append(result.get()["job_id"]))
    heard: list[str] = []
    before = connection.info("commandstats")
    with backend.together() as failures:
        for task_id in ("a", "b", "c"):
            backend.store_result(task_id, RESULT, "SUCCESS")
        assert not connection.keys("celery-task-meta-*"), "not before the end"
    assert failures == []
    after = connection.info("commandstats")
    assert after["cmdstat_set"]["calls"] - before.get("cmdstat_set", {"calls": 0})["calls"] == 3
    assert [backend.get_task_meta(task_id)["status"] for task_id in ("a", "b", "c")] == ["SUCCESS"] * 3
    assert 0 < connection.ttl("celery-task-meta-c") <= 77
    assert waiting.get(timeout=60)["job_id"] == "a"
    assert heard == ["a"]


def test_log_probabilities_of_all_are_asked_for_at_once(backend: Any, connection: redis.Redis) -> None:
    asked: list[int] = []

    def made(results: Sequence[Reported]) -> list[bytes | None]:
        asked.append(len(results))
        return [b'["made"]', None]

    process = LogprobProcess(PIECES)
    spellings = TokenSpellings(PIECES, process)
    outcomes: list[Any] = []
    for _ in range(2):
        reported = ReportedLogprobs([7], 1, pack("<fif", -0.5, 2, -0.25), spellings)
        outcomes.append(msgspec.structs.replace(RESULT, choices=[Choice("é", [7], "stop", logprobs=reported)]))
    with patch.object(process, "json_of_all", made), backend.together([InvalidRequest("x"), None, *outcomes]):
        for task_id, outcome in zip("ab", outcomes, strict=True):
            backend.store_result(task_id, outcome, "SUCCESS")
    stored = [backend.get_task_meta(each, cache=False)["result"]["choices"][0]["logprobs"] for each in ("a", "b")]
    assert stored[0] == ["made"]
    assert stored[1][0]["top"] == {"2": -0.25}, "the one that the process has not made"
    assert asked == [2], "and not once more for that one alone"


def test_one_of_many_that_cannot_be_stored_keeps_no_other_from_it(backend: Any, connection: redis.Redis) -> None:
    backend.is_waiting = lambda: True
    connection.lpush("celery-task-meta-b", "x")
    backend.store_result("c", RESULT, "SUCCESS")
    backend.store_result("d", InvalidRequest("x"), "FAILURE")
    with backend.together() as failures:
        for task_id in ("a", "b", "c", "d", "e"):
            backend.store_result(task_id, msgspec.structs.replace(RESULT, tokens_out=5), "SUCCESS")
    assert [type(failure) for failure in failures] == [redis.ResponseError]
    stored = [backend.get_task_meta(task_id, cache=False)["result"]["tokens_out"] for task_id in ("a", "c", "d", "e")]
    assert stored == [5, 1, 5, 5], "a success stays, a failure does not"


def test_of_a_group_nothing_waits_for_others(backend: Any, connection: redis.Redis) -> None:
    with backend.together():
        backend.store_result("a", RESULT, "SUCCESS", request=Context(id="a", group="g"))
        assert connection.exists("celery-task-meta-a")


def test_no_large_results_are_held_for_others(backend: Any, connection: redis.Redis) -> None:
    """The Celery process took 1.5 GB for 32 of 14 MiB."""
    large = msgspec.structs.replace(RESULT, choices=[Choice("x" * MAX_HELD_BYTES, [7], "length")])
    with backend.together():
        backend.store_result("a", large, "SUCCESS")
        assert connection.exists("celery-task-meta-a")


def test_many_are_stored_when_redis_is_back(redis_server: RedisServer) -> None:
    with create_app(Settings(redis_url=redis_server.url)) as app:
        redis_server.kill()

        def store() -> None:
            app.backend.is_waiting = lambda: True
            with app.backend.together():
                for task_id in ("a", "b"):
                    app.backend.store_result(task_id, RESULT, "SUCCESS")

        storing = threading.Thread(target=store)
        storing.start()
        storing.join(0.5)
        assert storing.is_alive()
        redis_server.start()
        storing.join(60)
        assert [app.backend.get_task_meta(task_id)["status"] for task_id in ("a", "b")] == ["SUCCESS"] * 2


def test_many_are_left_when_there_is_no_time_to_wait_and_the_next_one_is_stored_by_itself(
    redis_server: RedisServer,
) -> None:
    with create_app(Settings(redis_url=redis_server.url)) as app:
        app.backend.is_waiting = lambda: False
        redis_server.kill()
        with pytest.raises(NotStored), app.backend.together():
            app.backend.store_result("a", RESULT, "SUCCESS")
        redis_server.start()
        app.backend.store_result("b", RESULT, "SUCCESS")
        assert [app.backend.get_task_meta(task_id)["status"] for task_id in ("a", "b")] == ["PENDING", "SUCCESS"]
