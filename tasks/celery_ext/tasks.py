"""The Celery tasks. The pool runs their jobs first and then calls their bodies, with what became of the jobs."""

from __future__ import annotations

from typing import Any

from celery import Task
from celery.exceptions import Ignore

from orcd import request as requests
from orcd.errors import InvalidRequest, OrcdError
from orcd.events import Error
from orcd.result import Result, exception
from orcd.store.submission import check_job_id
from tasks.dispatch.delivery import Outcome, Repeated

Outcomes = dict[str, Outcome] | OrcdError
"""Job id -> outcome of the jobs of one message, or what is wrong with the message."""


class GenerateTask(Task):  # type: ignore[misc]
    """``tasks.generate``: one job, by ``job_id`` or with a request's fields as keyword arguments.

    An inline request's job has the task's id.
    """

    name = "tasks.generate"
    Request = "tasks.observe.flower:PrivateRequest"
    typing = False
    throws = (OrcdError,)

    def deliveries(self, task_id: str, args: list[Any], kwargs: dict[str, Any]) -> dict[str, requests.Request | None]:
        """The jobs that a message is about. Raises `InvalidRequest`."""
        if args:
            raise InvalidRequest("tasks.generate takes keyword arguments: job_id, or the fields of a request")
        fields = dict(kwargs)
        job_id = fields.pop("job_id", task_id)
        check_job_id(job_id)
        return {job_id: requests.parse(fields) if fields else None}

    def run(self, outcomes: Outcomes) -> Result:
        """The job's result. Raises its error, or Ignore when another worker has it."""
        if isinstance(outcomes, OrcdError):
            raise outcomes
        (outcome,) = outcomes.values()
        if isinstance(outcome, Repeated):
            if self.AsyncResult(self.request.id).ready():
                raise Ignore
            outcome = outcome.result
        if outcome is None:
            raise Ignore
        if isinstance(outcome, OrcdError):
            raise outcome
        if outcome.error is not None:
            raise exception(outcome.error)
        return outcome


class GenerateChunkTask(Task):  # type: ignore[misc]
    """``tasks.generate_chunk``: many jobs in one message, by ``job_ids`` or as ``requests`` (lists).

    Its result is the list of the jobs' results in order; a failed job's holds its error.
    """

    name = "tasks.generate_chunk"
    Request = "tasks.observe.flower:PrivateRequest"
    typing = False
    throws = (OrcdError,)

    def deliveries(self, task_id: str, args: list[Any], kwargs: dict[str, Any]) -> dict[str, requests.Request | None]:
        """The jobs that a message is about. Raises `InvalidRequest`."""
        if args or kwargs.keys() not in ({"job_ids"}, {"requests"}):
            raise InvalidRequest("tasks.generate_chunk takes one keyword argument: job_ids or requests")
        ((name, items),) = kwargs.items()
        if not isinstance(items, list) or not items:
            raise InvalidRequest(f"{name}: must be a list of at least one")
        if name == "requests":
            return {f"{task_id}-{index}": requests.parse(fields) for index, fields in enumerate(items)}
        for job_id in items:
            check_job_id(job_id)
        return dict.fromkeys(items)

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


TASKS = (GenerateTask, GenerateChunkTask)
