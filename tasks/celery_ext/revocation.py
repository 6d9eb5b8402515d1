"""Celery's revocations: what was revoked, or expired in the queue, is ended in its record, so that nobody runs it.

Celery remembers revocations in each worker's memory. Here any worker that hears of one ends the job at once, whoever
has its message. What nobody can run, as its message cannot be read, ends here, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from celery import states
from celery.utils.functional import maybe_list
from celery.worker import state as celery_state
from celery.worker.control import control_command, nok, ok
from redis import ResponseError

from orcd.errors import Cancelled, Expired, InvalidRequest, OrcdError
from orcd.store import schema
from orcd.store.job_store import Arrival, JobStore
from orcd.store.submission import is_well_formed
from orcd.store.token_log import usable
from tasks.celery_ext.in_flight_message import InFlightMessage
from tasks.celery_ext.result_backend import NotStored

ERRORS: dict[str, OrcdError] = {
    "revoked": Cancelled("revoked"),
    "terminated": Cancelled("revoked"),
    "expired": Expired("the message expired while the job was queued"),
}
"""Why a message must not run -> what its jobs end with."""


def end_job(store: JobStore, job_id: str, reason: str) -> bool:
    """End a job for a reason of `ERRORS`, and say whether it was: Celery's rules are for tasks that have not begun.

    One that runs is ended only if it is ``terminated``, one that has begun and waits again unless it ``expired``.
    Raises `redis.RedisError`.
    """
    if reason != "terminated":
        state, started = _record(store, job_id)
        if state != b"queued" or (reason == "expired" and started):
            return False
    return store.cancel(job_id, ERRORS[reason]) in ("cancelled", "expired")


def end_arrived(store: JobStore, arrivals: Sequence[Arrival], reason: str) -> None:
    """Write down what a message brought, and end its jobs for a reason of `ERRORS`.

    One that has expired does not end the job of another request that has its id. Raises `redis.RedisError`.
    """
    for arrival, refusal in zip(arrivals, store.arrive(arrivals), strict=True):
        if refusal is None or reason != "expired":
            end_job(store, arrival.job_id, reason)


def revoke_tasks(store: JobStore, backend: Any, task_ids: Iterable[str], reason: str) -> None:
    """End the jobs of these ids that wait, if ``terminated`` also those that run, and note that they are revoked.

    What runs ends through its owner, whoever has its message, and its task is then answered. A task without a job is
    noted too: the record of an inline request is not written before its message arrives, which then finds the note.
    Raises `redis.RedisError`.
    """
    for task_id in task_ids:
        state, _ = _record(store, task_id)
        is_revoked = end_job(store, task_id, reason) if state else True
        if is_revoked and _task_state(backend, task_id) in states.UNREADY_STATES:
            backend.mark_as_revoked(task_id, reason="revoked", store_result=True)


def end_revoked(store: JobStore, backend: Any, message: InFlightMessage) -> None:
    """End the jobs of a message that must not run, also where that is only noted in its result's key.

    Raises `redis.RedisError` and `NotStored`.
    """
    if not message.ending and _task_state(backend, message.task_id) == states.REVOKED:
        message.ending = "revoked"
    if message.ending:
        end_arrived(store, message.arrivals(), message.ending)


def refuse_task(store: JobStore, backend: Any, task_id: str, reason: str) -> None:
    """Store that a task has failed, since its message cannot be read or run: its sender may wait for it.

    Not where a job has its id: that has come with another message. Raises `redis.RedisError` and `NotStored`.
    """
    state, _ = _record(store, task_id)
    if state is None:
        with suppress(ResponseError):  # the key holds something else
            backend.store_result(task_id, InvalidRequest(reason), states.FAILURE)


def _task_state(backend: Any, task_id: str) -> str:
    try:
        return str(backend.get_state(task_id))
    except NotStored:
        raise
    except Exception:  # the key holds something else
        return ""


def _record(store: JobStore, job_id: str) -> tuple[bytes | None, bytes | None]:
    """The job's state, and when it began; None where it has none or its key holds something else."""
    pipeline: Any = store.redis.pipeline(transaction=False)
    pipeline.hmget(schema.job_key(job_id, store.key_prefix), "state", "started_ms")
    (record,) = pipeline.execute(raise_on_error=False)
    state, started = usable(record) or (None, None)
    return state, started


# In place of Celery's own, which ask Redis from the event loop, or a pool of processes to change. Their names and
# arguments are Celery's.


@control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")  # type: ignore[untyped-decorator]
def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **_: Any) -> Any:
    """Revoke tasks by id; with ``terminate`` also those that run."""
    task_ids = set(maybe_list(task_id) or [])
    # Everybody can list these. Of other ids only the note in the result's key is left, which the pool looks at.
    celery_state.revoked.update(filter(is_well_formed, task_ids))
    pool = state.consumer.pool
    if terminate:
        for request in [request for id_ in task_ids if (request := celery_state.requests.get(id_))]:
            request.terminate(pool, signal=signal)
    pool.submit(partial(revoke_tasks, task_ids=task_ids, reason="terminated" if terminate else "revoked"))
    return ok(f"tasks {', '.join(sorted(task_ids))} flagged as revoked")


@control_command(variadic="task_id", args=[("signal", str)], signature="<signal> [id1 [... [idN]]]")  # type: ignore[untyped-decorator]
def terminate(state: Any, signal: Any, task_id: Any, **_: Any) -> Any:
    """Revoke tasks by id, also those that run."""
    return revoke(state, task_id, terminate=True, signal=signal)


@control_command(args=[("n", int)], signature="[N=1]")  # type: ignore[untyped-decorator]
def pool_grow(_state: Any, **_: Any) -> Any:
    """Nothing: there is one engine, whose size is set when it starts."""
    return nok("a worker of orcd has one engine: start more workers, or this one with another ORCD_MAX_SEQUENCES")


@control_command(args=[("n", int)], signature="[N=1]")  # type: ignore[untyped-decorator]
def pool_shrink(state: Any, **_: Any) -> Any:
    """Nothing, as `pool_grow`."""
    return pool_grow(state)
