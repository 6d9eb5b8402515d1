"""What the tasks make of a message before a job runs, and of a job's outcome after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore

from orcd.errors import Cancelled, InvalidRequest
from orcd.events import Error
from orcd.request import parse
from orcd.result import Result
from tasks.celery_ext.tasks import TASKS, Outcomes
from tasks.dispatch.delivery import Repeated

RESULT = Result("a", "succeeded")
FAILED = Result("a", "cancelled", error=Error("CANCELLED", "cancelled", False))


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery(set_as_current=False, backend="cache+memory://")
    for task in TASKS:
        app.register_task(task())
    yield app
    app.close()


def run(app: Celery, name: str, outcomes: Outcomes) -> Any:
    """Run a task's body on what became of its jobs."""
    return app.tasks[name].run(outcomes)


def test_a_message_is_about_a_job_by_its_id_or_brings_a_request_of_its_own_id(app: Celery) -> None:
    generate = app.tasks["orcd.generate"]
    assert generate.jobs("t", [], {"job_id": "a"}) == {"a": None}
    assert generate.jobs("t", [], {"prompt": "x"}) == {"t": parse({"prompt": "x"})}
    with pytest.raises(InvalidRequest, match="keyword"):
        generate.jobs("t", ["x"], {})
    with pytest.raises(InvalidRequest, match="job_id"):
        generate.jobs("t", [], {"job_id": "a b"})


def test_an_idempotency_key_names_the_job_of_a_request(app: Celery) -> None:
    generate, keyed = app.tasks["orcd.generate"], {"prompt": "x", "idempotency_key": "k"}
    (job_id,) = generate.jobs("t", [], keyed)
    assert job_id.startswith("key-")
    assert generate.jobs("u", [], keyed) == {job_id: parse({"prompt": "x"})}
    with pytest.raises(InvalidRequest, match="idempotency_key: it gives the job its id"):
        generate.jobs("t", [], keyed | {"job_id": "a"})
    with pytest.raises(InvalidRequest, match="give exactly one of prompt"):
        generate.jobs("t", [], {"idempotency_key": "k"})
    chunk = app.tasks["orcd.generate_chunk"]
    assert list(chunk.jobs("t", [], {"requests": [{"prompt": "x"}, keyed]})) == ["t-0", job_id]
    with pytest.raises(InvalidRequest, match="idempotency_key: two requests"):
        chunk.jobs("t", [], {"requests": [keyed, keyed]})


def test_a_chunk_is_about_many_jobs(app: Celery) -> None:
    chunk = app.tasks["orcd.generate_chunk"]
    assert chunk.jobs("t", [], {"job_ids": ["a", "b"]}) == {"a": None, "b": None}
    request = parse({"prompt": "x"})
    assert chunk.jobs("t", [], {"requests": [{"prompt": "x"}] * 2}) == {"t-0": request, "t-1": request}


def test_a_jobs_result_is_the_tasks_and_its_error_is_raised(app: Celery) -> None:
    assert run(app, "orcd.generate", {"a": RESULT}) is RESULT
    with pytest.raises(Cancelled):
        run(app, "orcd.generate", {"a": FAILED})
    with pytest.raises(InvalidRequest):
        run(app, "orcd.generate", {"a": InvalidRequest("unknown")})
    with pytest.raises(InvalidRequest):
        run(app, "orcd.generate", InvalidRequest("no such message"))


@pytest.mark.parametrize("name", ["orcd.generate", "orcd.generate_chunk"])
def test_a_job_that_another_worker_has_leaves_the_task_without_a_result(app: Celery, name: str) -> None:
    with pytest.raises(Ignore):
        run(app, name, {"a": None})


def test_a_chunks_result_keeps_each_jobs_error_apart(app: Celery) -> None:
    outcomes: Outcomes = {"a": RESULT, "b": Repeated(FAILED), "c": InvalidRequest("unknown")}
    refused = Result("c", "failed", error=Error("INVALID_REQUEST", "unknown", False))
    assert run(app, "orcd.generate_chunk", outcomes) == [RESULT, FAILED, refused]


@pytest.mark.parametrize("name", ["generate", "generate_chunk"])
def test_a_task_has_the_name_of_version_0_1_too_and_is_sent_again_under_the_new_one(app: Celery, name: str) -> None:
    old, new = app.tasks[f"tasks.{name}"], app.tasks[f"orcd.{name}"]
    assert type(old).run is type(new).run
    assert old.current_name == new.name == f"orcd.{name}"


def test_a_message_that_is_sent_again_names_jobs_and_holds_no_request(app: Celery) -> None:
    assert app.tasks["orcd.generate"].reference(["a"]) == {"job_id": "a"}
    assert app.tasks["orcd.generate_chunk"].reference(["a", "b"]) == {"job_ids": ["a", "b"]}


def test_a_repeated_message_with_links_is_answered_though_its_result_is_stored(app: Celery) -> None:
    """F08: its worker may have died between the two."""
    task = app.tasks["orcd.generate"]
    app.backend.store_result("t", "x", "SUCCESS")
    for canvas, is_ignored in (({}, True), ({"chain": [{}]}, False), ({"chord": {"task": "body"}}, False)):
        task.push_request(id="t", **canvas)
        try:
            if is_ignored:
                with pytest.raises(Ignore):
                    task.run({"a": Repeated(RESULT)})
            else:
                assert task.run({"a": Repeated(RESULT)}) is RESULT
        finally:
            task.pop_request()
