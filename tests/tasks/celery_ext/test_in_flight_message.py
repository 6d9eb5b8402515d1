"""What is read in a message, what is kept of it, and what its jobs' ends are to others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from orcd.errors import Conflict, InvalidRequest
from orcd.events import Error
from orcd.result import Result
from tasks.celery_ext.in_flight_message import InFlightMessage
from tasks.celery_ext.tasks import TASKS
from tasks.dispatch.delivery import Repeated, Unknown

CANARY = "Kanarienvogel"
INLINE = {"prompt": CANARY}


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery(set_as_current=False)
    for task in TASKS:
        app.register_task(task())
    yield app
    app.close()


def message(
    app: Celery,
    kwargs: dict[str, Any],
    embed: dict[str, Any] | None = None,
    name: str = "orcd.generate",
    limits_s: tuple[float | None, ...] = (),
    **headers: Any,
) -> InFlightMessage:
    """A message as a worker has it: the headers are those that Celery writes, and ``headers``."""
    sent = app.amqp.as_task_v2("t", name, (), kwargs).headers
    request = sent | {"delivery_info": {"routing_key": "orcd", "priority": 4}, "hostname": "here"} | headers
    task = app.tasks[name]
    made = InFlightMessage("t", task, lambda *_: None, request, [], lambda _: None)
    made.read((json.dumps(([], kwargs, embed)), "application/json", "utf-8"), limits_s)
    return made


def test_nothing_is_kept_of_a_message_that_says_no_more_than_its_jobs_record(app: Celery) -> None:
    for kwargs in ({"job_id": "t"}, INLINE):
        assert message(app, kwargs, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}).records == {}


@pytest.mark.parametrize(
    ("embed", "headers"),
    [
        ({"chain": [{"task": "next"}]}, {}),
        ({"chord": {"task": "body"}}, {"group": "g", "group_index": 1}),
        ({"callbacks": [{"task": "x", "options": {"task_id": "x-1"}}]}, {}),
        ({}, {"root_id": "r", "parent_id": "p"}),
        ({}, {"timelimit": [30, None]}),
        ({}, {"expires": "2030-01-01T00:00:00+00:00"}),
        ({}, {"traceparent": "00-1-2-01"}),
        ({}, {"stamped_headers": ["run"], "stamps": {"run": 7}}),
        ({}, {"retries": 2}),
    ],
)
def test_what_a_plain_message_would_lose_is_kept_and_no_prompt(
    app: Celery, embed: dict[str, Any], headers: dict[str, Any]
) -> None:
    made = message(app, INLINE, embed, **headers)
    (record,) = made.records.values()
    assert (record.task_id, record.task, record.queue, record.priority) == ("t", "orcd.generate", "orcd", 4)
    assert (record.args, record.kwargs, record.embed) == ([], {"job_id": "t"}, embed)
    assert headers.items() <= record.headers.items()
    assert CANARY not in repr(record)
    assert [arrival.message for arrival in made.arrivals()] == [record]


def test_a_message_of_another_id_is_kept_beside_the_job(app: Celery) -> None:
    made = message(app, {"job_id": "a"})
    assert made.records["a"].kwargs == {"job_id": "a"}
    (delivery,) = made.deliveries(lambda *_: None)
    assert (delivery.job_id, delivery.waits, delivery.message) == ("a", True, made.records["a"])


def test_a_request_for_another_model_is_kept_for_the_queue_of_that_model(app: Celery) -> None:
    assert message(app, INLINE | {"model": "other"}, {"chain": [{}]}).records["t"].queue == "orcd.other"


def test_the_old_name_is_kept_as_the_new_one(app: Celery) -> None:
    assert message(app, {"job_id": "a"}, name="tasks.generate").records["a"].task == "orcd.generate"


def test_a_chunk_is_kept_with_its_last_job_and_its_limits_with_all(app: Celery) -> None:
    made = message(app, {"requests": [INLINE] * 3}, name="orcd.generate_chunk")
    assert list(made.jobs) == ["t-0", "t-1", "t-2"]
    assert {job_id: record.kwargs for job_id, record in made.records.items()} == {
        "t-2": {"job_ids": ["t-0", "t-1", "t-2"]}
    }
    limited = message(app, {"job_ids": ["a", "b"]}, name="orcd.generate_chunk", timelimit=[9, 5])
    assert limited.records["a"].task == "orcd.generate"
    assert limited.records["a"].time_limit_s == limited.records["b"].time_limit_s == 5


def test_the_sooner_limit_counts(app: Celery) -> None:
    assert message(app, INLINE, limits_s=(9, 5)).time_limit_s == 5
    assert message(app, INLINE, limits_s=(None, 5)).time_limit_s == 5
    assert message(app, INLINE, limits_s=(None, None)).time_limit_s is None


def test_linked_tasks_get_the_same_ids_at_every_delivery(app: Celery) -> None:
    def ids() -> list[str]:
        links = {
            "callbacks": [{"task": "a"}, {"task": "b", "options": {"task_id": "mine"}}],
            "errbacks": [{"task": "c"}],
        }
        embed = message(app, INLINE, links).embed
        return [link["options"]["task_id"] for kind in ("callbacks", "errbacks") for link in embed[kind]]

    assert ids() == ids()
    assert ids()[1] == "mine"
    assert len(set(ids())) == 3


@pytest.mark.parametrize(
    "body", [("[", "application/json", "utf-8"), (b"\xff", "application/json", "utf-8"), ("[]", "text/x", "utf-8")]
)
def test_a_body_that_cannot_be_read_is_this_messages_error(app: Celery, body: tuple[Any, ...]) -> None:
    made = InFlightMessage("t", app.tasks["orcd.generate"], lambda *_: None, {}, [], lambda _: None)
    made.read(body, ())
    assert isinstance(made.error, InvalidRequest)
    assert (made.jobs, made.embed, made.records) == ({}, {}, {})


def test_links_that_are_none_are_this_messages_error(app: Celery) -> None:
    made = message(app, INLINE, {"callbacks": ["x"]})
    assert isinstance(made.error, InvalidRequest)
    assert made.embed == {}


def test_a_request_that_is_refused_still_has_its_links(app: Celery) -> None:
    """Or a chord would wait for its part for ever."""
    made = message(app, {"temperature": 99}, {"chord": {"task": "body"}}, group="g")
    assert isinstance(made.error, InvalidRequest)
    assert made.embed == {"chord": {"task": "body"}}


def test_a_message_that_names_no_queue_of_ours_is_sent_again_to_that_of_any_model(app: Celery) -> None:
    for place in ({}, {"routing_key": None}, {"routing_key": "elsewhere"}):
        assert message(app, {"job_id": "a"}, delivery_info=place).records["a"].queue == "orcd"


def test_results_are_those_of_jobs_with_ids_of_their_own(app: Celery) -> None:
    made = message(app, {"job_ids": ["a", "b", "bad", "unknown", "t"]}, name="orcd.generate_chunk")
    results = {job_id: Result(job_id, "succeeded") for job_id in ("a", "b", "t")}
    outcomes = {"a": results["a"], "b": Repeated(results["b"]), "bad": InvalidRequest("too long"), "t": results["t"]}
    for job_id, outcome in (outcomes | {"unknown": Unknown()}).items():
        made.has_outcome(job_id, outcome)
    assert dict(made.results()) == {"a": results["a"], "b": results["b"], "bad": outcomes["bad"]}


def test_a_request_that_is_refused_for_anothers_id_says_nothing_of_that_job(app: Celery) -> None:
    made = message(app, INLINE | {"job_id": "a"})
    made.outcomes["a"] = Conflict("job a: the id belongs to another request")
    assert dict(made.results()) == {}


def test_a_message_that_must_not_run_is_answered_as_revoked_if_its_job_ended_for_that(app: Celery) -> None:
    made = message(app, INLINE, revoked="expired")
    made.outcomes["t"] = Repeated(Result("t", "expired", error=Error("EXPIRED", "too late", False)))
    failed, info, _ = made.trace(lambda *_: None)
    assert failed == 1
    assert str(getattr(info.exception, "exc", info.exception)) == "expired"
