"""The Celery tasks. The pool runs their jobs first and then calls their bodies, with what became of the jobs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import Task
from celery.concurrency.base import apply_target
from celery.exceptions import Ignore

from orcd import request as requests
from orcd.errors import InvalidRequest, OrcdError
from orcd.events import Error
from orcd.result import Result, exception
from orcd.store.enqueue import GENERATE
from orcd.store.submission import check_job_id, read_fields
from tasks.celery_ext.result_backend import NotStored
from tasks.dispatch.delivery import Outcome, Repeated

Outcomes = dict[str, Outcome] | OrcdError
"""Job id -> outcome of the jobs of one message, or what is wrong with the message."""
OnFailure = Callable[[str, Exception], None]

GENERATE_CHUNK = "orcd.generate_chunk"


class JobTask(Task):  # type: ignore[misc]
    """A task about jobs. ``current_name`` is its name in messages that are sent again.

    Celery's ``time_limit`` and ``soft_time_limit`` are limits of each job, which ends as `InferenceTimeout` at the
    sooner of the two, counted from its first start.
    """

    abstract = True
    Request = "tasks.celery_ext.request:Request"
    typing = False
    throws = (OrcdError,)
    # Not left to an application's settings: Celery takes them over into the class for the first application only.
    acks_late = True
    acks_on_failure_or_timeout = True
    current_name: str

    def jobs(self, task_id: str, args: list[Any], kwargs: dict[str, Any]) -> dict[str, requests.Request | None]:
        """The jobs that a message is about, with the requests that came inside it. Raises `InvalidRequest`."""
        raise NotImplementedError

    def reference(self, job_ids: list[str]) -> dict[str, Any]:
        """The arguments of a message about jobs that have records."""
        raise NotImplementedError


class GenerateTask(JobTask):
    """``orcd.generate``: one job, by ``job_id`` or with a request's fields as keyword arguments.

    The job of an inline request has the id that its ``idempotency_key`` gives, without one the task's.
    """

    name = current_name = GENERATE

    def jobs(self, task_id: str, args: list[Any], kwargs: dict[str, Any]) -> dict[str, requests.Request | None]:
        """The job."""
        if args:
            raise InvalidRequest(f"{self.name} takes keyword arguments: job_id, or the fields of a request")
        fields = dict(kwargs)
        job_id, request = fields.pop("job_id", None), None
        if fields:
            request, job_id = read_fields(fields, job_id)
        return {check_job_id(task_id if job_id is None else job_id): request}

    def reference(self, job_ids: list[str]) -> dict[str, Any]:
        """The job's id."""
        (job_id,) = job_ids
        return {"job_id": job_id}

    def run(self, outcomes: Outcomes) -> Result:
        """The job's result. Raises its error, or Ignore when another worker has it or there is nothing left to do."""
        if isinstance(outcomes, OrcdError):
            raise outcomes
        (outcome,) = outcomes.values()
        if isinstance(outcome, Repeated):
            if not self._is_canvas() and self.AsyncResult(self.request.id).ready():
                raise Ignore
            outcome = outcome.result
        if outcome is None:
            raise Ignore
        if isinstance(outcome, OrcdError):
            raise outcome
        if outcome.error is not None:
            raise exception(outcome.error)
        return outcome

    def _is_canvas(self) -> bool:
        # Its result is stored before the last of what follows it is done: so it is no sign that nothing is left to do.
        request = self.request
        return any((request.callbacks, request.errbacks, request.chain, request.chord))


class GenerateChunkTask(JobTask):
    """``orcd.generate_chunk``: many jobs in one message, by ``job_ids`` or as ``requests`` (lists).

    Its result is the list of the jobs' results in order; a failed job's holds its error.
    """

    name = current_name = GENERATE_CHUNK

    def jobs(self, task_id: str, args: list[Any], kwargs: dict[str, Any]) -> dict[str, requests.Request | None]:
        """The jobs, in order."""
        if args or kwargs.keys() not in ({"job_ids"}, {"requests"}):
            raise InvalidRequest(f"{self.name} takes one keyword argument: job_ids or requests")
        ((name, items),) = kwargs.items()
        if not isinstance(items, list) or not items:
            raise InvalidRequest(f"{name}: must be a list of at least one")
        if name == "requests":
            return _inline_jobs(task_id, items)
        for job_id in items:
            check_job_id(job_id)
        return dict.fromkeys(items)

    def reference(self, job_ids: list[str]) -> dict[str, Any]:
        """The jobs' ids."""
        return {"job_ids": job_ids}

    def run(self, outcomes: Outcomes) -> list[Result]:
        """The jobs' results. Raises Ignore when another worker has any of them."""
        if isinstance(outcomes, OrcdError):
            raise outcomes
        results = []
        for job_id, outcome in outcomes.items():
            match outcome:
                case None:
                    raise Ignore
                case Repeated(result=result):
                    results.append(result)
                case OrcdError() as error:
                    results.append(Result(job_id, "failed", error=Error(error.code, error.message, error.retriable)))
                case Result() as result:
                    results.append(result)
        return results


def _inline_jobs(task_id: str, items: list[Any]) -> dict[str, requests.Request | None]:
    """The jobs of a chunk's requests. Raises `InvalidRequest`."""
    jobs: dict[str, requests.Request | None] = {}
    for index, fields in enumerate(items):
        request, job_id = read_fields(fields, None)
        if job_id in jobs:
            raise InvalidRequest("idempotency_key: two requests of the chunk have the same")
        jobs[job_id or check_job_id(f"{task_id}-{index}")] = request
    return jobs


class OldGenerateTask(GenerateTask):
    """What `GenerateTask` was called up to version 0.1."""

    name = "tasks.generate"


class OldGenerateChunkTask(GenerateChunkTask):
    """What `GenerateChunkTask` was called up to version 0.1."""

    name = "tasks.generate_chunk"


TASKS = (GenerateTask, GenerateChunkTask, OldGenerateTask, OldGenerateChunkTask)


def trace(target: Callable[..., Any], args: tuple[Any, ...], accepted_at: float, on_failure: OnFailure) -> Any:
    """What Celery's tracer answers: whether the task failed, its result, and the seconds since ``accepted_at``.

    Raises `NotStored`.
    """
    answers: list[Any] = []
    try:
        apply_target(target, args, {}, answers.append)
    except NotStored:
        raise
    except Exception as error:  # not of the task, but of what is done with its result: trying again would not mend it
        on_failure("finish", error)
        answers.append((1, ExceptionInfo(), 0.0))
    if not isinstance(answers[0], tuple):
        return answers[0]
    failed, value, _ = answers[0]  # the tracer timed only how long an outcome took to pick up
    return failed, value, time.monotonic() - accepted_at
