"""Messages of earlier versions come to the queues of today, and nobody else's are touched."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import redis

from orcd.cli import migration
from orcd.cli.migration import Migration, Moved, readdressed


def message(task: str = "tasks.generate", number: int = 0, args: Any = (), kwargs: Any = None, **more: Any) -> bytes:
    """As an earlier version sent it."""
    body = base64.b64encode(json.dumps([args, {"job_id": "a"} if kwargs is None else kwargs, {}]).encode()).decode()
    delivery_info = {"exchange": "", "routing_key": "celery"}
    return json.dumps(
        {"body": body, "headers": {"task": task, "id": f"job-{number}"},
         "properties": {"delivery_info": delivery_info, "priority": 5}} | more
    ).encode()  # fmt: skip


FOREIGN = [message("shop.pay", 1), b"no json", b"[1]", b'{"headers": null}', b"[" * 100_000, b"\xff"]


@pytest.fixture
def moved(connection: redis.Redis) -> Any:
    """Runs a migration and returns what it says it moved."""
    return lambda **options: list(Migration(connection).run(**options))


def ids(connection: redis.Redis, name: str) -> list[str]:
    """The jobs of a list, the next one first."""
    return [json.loads(text)["headers"]["id"] for text in reversed(connection.lrange(name, 0, -1))]


def test_jobs_come_to_our_queue_in_order_and_with_their_priority(connection: redis.Redis, moved: Any) -> None:
    for number in range(5):
        connection.lpush("celery:5", message(number=number))
    connection.lpush("celery", message("tasks.generate_chunk", 7))
    assert moved() == [Moved(1, "celery", "orcd"), Moved(5, "celery:5", "orcd:5")]
    assert ids(connection, "orcd:5") == [f"job-{number}" for number in range(5)]
    assert ids(connection, "orcd") == ["job-7"]
    assert not connection.exists("celery", "celery:5")


def test_a_moved_message_says_what_it_said_but_for_its_address(connection: redis.Redis, moved: Any) -> None:
    connection.lpush("celery:5", message())
    moved()
    (text,) = connection.lrange("orcd:5", 0, -1)
    expected = json.loads(message())
    expected["properties"]["delivery_info"]["routing_key"] = "orcd"
    assert json.loads(text) == expected


def test_messages_of_others_stay_as_and_where_they_are(
    connection: redis.Redis, moved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "PAGE", 2)
    for number, foreign in enumerate(FOREIGN):
        connection.lpush("celery", foreign, message(number=number))
    assert moved() == [Moved(len(FOREIGN), "celery", "orcd")]
    assert connection.lrange("celery", 0, -1) == FOREIGN[::-1]
    assert ids(connection, "orcd") == [f"job-{number}" for number in range(len(FOREIGN))]


@pytest.mark.parametrize("priority", ["", ":3"])
@pytest.mark.parametrize(
    ("name", "queue"),
    [
        ("qwen2.5:7b", "orcd.qwen2.5%3A7b"),
        ("org/model@1", "orcd.org%2Fmodel%401"),
        ("größe 1", "orcd.gr%C3%B6%C3%9Fe%201"),
        ("a\nb", "orcd.a%0Ab"),
    ],
)
def test_queues_of_models_get_the_names_of_today(
    connection: redis.Redis, moved: Any, name: str, queue: str, priority: str
) -> None:
    connection.lpush(f"orcd.{name}{priority}", message())
    assert moved() == [Moved(1, f"orcd.{name}{priority}", f"{queue}{priority}")]
    assert ids(connection, f"{queue}{priority}") == ["job-0"]


def test_queues_of_today_are_left_alone(connection: redis.Redis, moved: Any) -> None:
    connection.lpush("orcd:5", message())
    connection.lpush("orcd.haiku-q4_k_m:5", message())
    connection.lpush("orcd.gr%C3%B6%C3%9Fe", message())
    connection.lpush(b"orcd.\xff", message())
    connection.lpush("shop:5", message())
    assert moved() == []


def test_a_dry_run_says_the_same_and_moves_nothing(connection: redis.Redis, moved: Any) -> None:
    connection.lpush("celery:5", message(number=1), message(number=2), message("shop.pay"))
    before = connection.lrange("celery:5", 0, -1)
    assert moved(dry=True) == [Moved(2, "celery:5", "orcd:5")]
    assert connection.lrange("celery:5", 0, -1) == before
    assert moved() == [Moved(2, "celery:5", "orcd:5")]
    assert moved() == []


def test_a_message_that_somebody_took_meanwhile_is_not_doubled(connection: redis.Redis) -> None:
    script = connection.register_script(migration.schema.celery_script("move"))
    assert script(["celery", "orcd"], [message(), b"moved"]) == 0
    assert connection.keys() == []


def test_a_message_is_not_lost_when_its_target_cannot_be_written(connection: redis.Redis, moved: Any) -> None:
    connection.lpush("celery", message())
    connection.set("orcd", "no list")
    with pytest.raises(redis.ResponseError):
        moved()
    assert ids(connection, "celery") == ["job-0"]


def test_a_task_of_another_application_that_has_the_old_name_is_not_ours() -> None:
    for kwargs in ({"report": 7}, {"prompt": "a", "report": 7}, {}, [1], "text"):
        assert readdressed(message(kwargs=kwargs), "orcd") is None
    assert readdressed(message(args=[1]), "orcd") is None
    assert readdressed(message(body="%%%"), "orcd") is None
    assert readdressed(message(kwargs={"prompt": "a", "max_tokens": 3}), "orcd") is not None
    assert readdressed(message("tasks.generate_chunk", kwargs={"requests": []}), "orcd") is not None


def test_only_messages_of_our_tasks_are_ours() -> None:
    assert readdressed(message("orcd.generate"), "orcd") is not None
    assert [readdressed(text, "orcd") for text in FOREIGN] == [None] * len(FOREIGN)
