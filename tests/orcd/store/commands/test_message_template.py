"""Messages that scripts send are those that Celery would send."""

from __future__ import annotations

import base64
import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis
from celery import Celery, signals
from celery._state import pop_current_task, push_current_task

from orcd.client import Client
from orcd.request import Request
from orcd.settings import ClientSettings
from orcd.store import schema
from orcd.store.enqueue import Message, Publisher, tenant_digest
from tests.orcd.job_record import Ears


def read(text: bytes) -> dict[str, Any]:
    """A message with its body; no two have the same delivery tag."""
    message: dict[str, Any] = json.loads(text)
    assert message["properties"].pop("delivery_tag")
    message["body"] = json.loads(base64.b64decode(message["body"]))
    return message


@pytest.mark.parametrize("priority", [0, 5, 9])
def test_the_message_of_a_submission_says_what_celery_s_own_says(
    redis_url: str, connection: redis.Redis, priority: int
) -> None:
    with Client(redis_url) as client:
        job_id = client.submit(prompt="x", model="demo", priority=priority)
        client._publisher.publish(Message(job_id, "orcd.demo", priority))
    by_celery, by_script = connection.lrange(f"orcd.demo:{priority}" if priority else "orcd.demo", 0, -1)
    assert read(by_script) == read(by_celery)
    assert by_script != by_celery, "each has a delivery tag of its own"


def test_every_message_has_a_delivery_tag_of_its_own(redis_url: str) -> None:
    publisher = Publisher(ClientSettings(redis_url=redis_url))
    assert publisher.text(Message("job-1", "orcd", 5)) != publisher.text(Message("job-1", "orcd", 5))
    publisher.close()


def test_a_job_and_its_message_are_there_at_once(
    redis_url: str, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No client dies between the two."""
    sent: list[Message] = []
    monkeypatch.setattr(Publisher, "publish", lambda _, message: sent.append(message))
    with Client(redis_url) as client:
        first = client.submit(prompt="x")
        client.submit(prompt="x", job_id=first)
        second = client.submit(prompt="y")
    assert [read(text)["headers"]["id"] for text in connection.lrange("orcd:5", 0, -1)] == [second, first]
    assert sent == [], "and once"


def test_workers_are_woken_for_a_job_in_an_empty_list(redis_url: str, connection: redis.Redis) -> None:
    ears = Ears(connection, schema.WAKE)
    with Client(redis_url) as client:
        client.submit_many([{"prompt": "x", "priority": 0}, {"prompt": "x", "priority": 0}, {"prompt": "x"}])
    assert ears.heard() == [b"orcd", b"orcd:5"]
    assert connection.hkeys(schema.EMPTIED) == [b"orcd", b"orcd:5"]
    assert 0 < connection.ttl(schema.EMPTIED) <= 3600
    ears.close()


def test_the_message_is_in_the_list_of_the_key_prefix(
    redis_url: str, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCD_KEY_PREFIX", "mine:")
    with Client(redis_url) as client:
        client.submit(prompt="x")
    assert connection.llen("mine:orcd:5") == 1
    assert connection.exists("mine:orcd:emptied")
    assert not list(connection.scan_iter("orcd*"))


def test_a_tenant_s_message_takes_its_turn(redis_url: str, connection: redis.Redis) -> None:
    with Client(redis_url) as client:
        client.submit(prompt="x", tenant="somebody")
    assert connection.lrange("orcd:5", 0, -1) == [b"tenant"]
    assert len(list(connection.scan_iter("orcd:5:tenant:*"))) == 1


def test_a_request_that_was_never_checked_is_in_a_list_that_workers_read(
    redis_url: str, connection: redis.Redis
) -> None:
    """They say what is wrong with it."""
    with Client(redis_url) as client:
        client.submit_many([Request(prompt="x", priority=12), Request(prompt="x", priority=-1)])
    assert (connection.llen("orcd:9"), connection.llen("orcd")) == (1, 1)


@pytest.mark.parametrize("key", ["orcd:5", schema.EMPTIED])
def test_where_the_script_cannot_send_celery_does(redis_url: str, connection: redis.Redis, key: str) -> None:
    """It may go to another list, and mends what all share."""
    connection.set(key, "of a wrong type")
    with Client(redis_url) as client:
        job_id = client.submit(prompt="x")
        assert client.status(job_id).state == "queued"
    (text,) = connection.lrange("orcd:4" if key == "orcd:5" else "orcd:5", 0, -1)
    assert read(text)["headers"]["id"] == job_id


@pytest.fixture
def task_of_an_application() -> Iterator[Any]:
    """A task that a worker of an application's own runs on this thread."""
    app = Celery("own", set_as_current=False)

    @app.task(name="own.task")  # type: ignore[untyped-decorator]
    def task() -> None:
        pass

    task.push_request(id="caller", root_id="root", called_directly=False, children=[])
    push_current_task(task)
    yield task
    pop_current_task()
    task.pop_request()
    app.close()


def test_what_an_application_has_celery_do_for_each_task_is_done_for_each_job(
    redis_url: str, connection: redis.Redis
) -> None:
    """OpenTelemetry's instrumentation of Celery adds the trace to each message, and begins a span."""
    told: list[str] = []

    def before(headers: dict[str, Any], **_: Any) -> None:
        headers["trace"] = f"trace of {headers['id']}"

    def after(headers: dict[str, Any], **_: Any) -> None:
        told.append(headers["id"])

    with Client(redis_url) as client:
        signals.before_task_publish.connect(before)
        signals.after_task_publish.connect(after)
        try:
            job_ids = client.submit_many([{"prompt": "x"}] * 2)
        finally:
            signals.before_task_publish.disconnect(before)
            signals.after_task_publish.disconnect(after)
        alone = client.submit(prompt="x")
    assert told == job_ids
    traces = [read(text)["headers"].get("trace") for text in connection.lrange("orcd:5", 0, -1)]
    assert traces == [None, *(f"trace of {job_id}" for job_id in reversed(job_ids))]
    assert alone


@pytest.mark.parametrize(("owner", "name"), [(Celery, "send_task"), (kombu.Producer, "publish")])
def test_who_wraps_the_methods_that_send_sees_the_message_of_each_job(
    redis_url: str, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch, owner: type[Any], name: str
) -> None:
    """Sentry and New Relic wrap methods, and add headers."""
    method = getattr(owner, name)
    calls = itertools.count(1)

    @functools.wraps(method)
    def wrapped(*args: Any, **options: Any) -> Any:
        options["headers"] = {**(options.get("headers") or {}), "call": next(calls)}
        return method(*args, **options)

    monkeypatch.setattr(owner, name, wrapped)
    with Client(redis_url) as client:
        job_ids = client.submit_many([{"prompt": "x"}] * 2)
    second, first = (read(text)["headers"] for text in connection.lrange("orcd:5", 0, -1))
    assert [first["id"], second["id"]] == job_ids
    assert first["call"] < second["call"]


def test_a_job_that_a_task_submits_names_that_as_its_parent(
    redis_url: str, connection: redis.Redis, task_of_an_application: Any
) -> None:
    with Client(redis_url) as client:
        child = client.submit(prompt="x")
        assert [result.id for result in task_of_an_application.request.children] == [child]
        pop_current_task()
        try:
            client.submit(prompt="x")
        finally:
            push_current_task(task_of_an_application)
    later, first = (read(text)["headers"] for text in connection.lrange("orcd:5", 0, -1))
    assert (first["root_id"], first["parent_id"]) == ("root", "caller")
    assert (later["root_id"], later["parent_id"]) == (later["id"], None)


@pytest.mark.parametrize("setting", ["task_protocol = 1", "task_compression = 'gzip'", "import nowhere_at_all"])
@pytest.mark.parametrize("tenant", [None, "somebody"])
def test_settings_of_an_application_s_celery_change_nothing(
    redis_url: str,
    connection: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    setting: str,
    tenant: str | None,
) -> None:
    """The module that this variable names is read by apps that are told no settings."""
    name = f"application_with_{setting.split()[0]}_{tenant}"
    (tmp_path / f"{name}.py").write_text(setting)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CELERY_CONFIG_MODULE", name)
    with Client(redis_url) as client:
        job_id = client.submit(prompt="x", tenant=tenant)
    key = f"orcd:5:tenant:{tenant_digest(tenant)}" if tenant else "orcd:5"
    (message,) = map(read, connection.lrange(key, 0, -1))
    assert (message["body"][1], message["headers"]["id"]) == ({"job_id": job_id}, job_id)
