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
    generate = app.tasks["tasks.generate"]
    assert generate.deliveries("t", [], {"job_id": "a"}) == {"a": None}
    assert generate.deliveries("t", [], {"prompt": "x"}) == {"t": parse({"prompt": "x"})}
    with pytest.raises(InvalidRequest, match="keyword"):
        generate.deliveries("t", ["x"], {})
    with pytest.raises(InvalidRequest, match="job_id"):
        generate.deliveries("t", [], {"job_id": "a b"})


def test_a_chunk_is_about_many_jobs(app: Celery) -> None:
    chunk = app.tasks["tasks.generate_chunk"]
    assert chunk.deliveries("t", [], {"job_ids": ["a", "b"]}) == {"a": None, "b": None}
    request = parse({"prompt": "x"})
    assert chunk.deliveries("t", [], {"requests": [{"prompt": "x"}] * 2}) == {"t-0": request, "t-1": request}


def test_a_jobs_result_is_the_tasks_and_its_error_is_raised(app: Celery) -> None:
    assert run(app, "tasks.generate", {"a": RESULT}) is RESULT
    with pytest.raises(Cancelled):
        run(app, "tasks.generate", {"a": FAILED})
    with pytest.raises(InvalidRequest):
        run(app, "tasks.generate", {"a": InvalidRequest("unknown")})
    with pytest.raises(InvalidRequest):
        run(app, "tasks.generate", InvalidRequest("no such message"))


@pytest.mark.parametrize("name", ["tasks.generate", "tasks.generate_chunk"])
def test_a_job_that_another_worker_has_leaves_the_task_without_a_result(app: Celery, name: str) -> None:
    with pytest.raises(Ignore):
        run(app, name, {"a": None})


def test_a_chunks_result_keeps_each_jobs_error_apart(app: Celery) -> None:
    outcomes: Outcomes = {"a": RESULT, "b": Repeated(FAILED), "c": InvalidRequest("unknown")}
    refused = Result("c", "failed", error=Error("INVALID_REQUEST", "unknown", False))
    assert run(app, "tasks.generate_chunk", outcomes) == [RESULT, FAILED, refused]
