"""A message as Celery's worker has it. What would make Celery drop or stop it is left to the pool.

Celery knows messages only: one that was revoked or has expired it answers and forgets. The job behind it has to be
ended first, or it would run when its record is next looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.exceptions import TaskRevokedError

from orcd.errors import Cancelled, Expired
from tasks.observe.flower import EXPIRED_EVENT, PROGRESS_EVENT, PrivateRequest, progress
from tasks.observe.observed_job import ObservedJob

REVOKED = "revoked"
"""What the request dictionary, which the pool gets, says of a message that must not run: ``revoked`` or ``expired``."""


class Request(PrivateRequest):
    """A message of which the jobs are ended first where Celery says that it must not run.

    Flower shows a cancelled job as REVOKED and an expired one as EXPIRED; Celery's result of both is their error.
    """

    _failure: Exception | None = None

    def __init__(self, message: Any, **kwargs: Any) -> None:
        if not kwargs.get("decoded"):  # it was when it was checked, and need not be once more for the pool
            kwargs |= {"body": message.payload, "decoded": True}
        super().__init__(message, **kwargs)

    def send_event(self, type: str, **fields: Any) -> None:
        """Tell Flower what happens to the task."""
        if type == "task-failed" and isinstance(self._failure, Cancelled | Expired):
            type = "task-revoked"
            fields = {"terminated": True, "signum": None, "expired": isinstance(self._failure, Expired)}
        super().send_event(EXPIRED_EVENT if fields.get("expired") else type, **fields)

    def tell_progress(self, running: Mapping[str, ObservedJob]) -> None:
        """Tell Flower how far the message's jobs are; ``running`` are those that run here."""
        message: Any = self._apply_result() if self._apply_result is not None else None
        jobs = [running[job_id] for job_id in message.jobs if job_id in running] if message is not None else []
        if jobs:
            self.send_event(PROGRESS_EVENT, result=progress(jobs, len(message.jobs)), sent=None)

    def revoked(self) -> bool:
        """False: also one that was revoked or has expired goes to the pool, which answers `on_failure` with it."""
        super().revoked()
        return False

    def _announce_revoked(self, reason: str, *_: Any) -> None:
        # Celery calls this when it has found the message to be revoked or expired; `on_failure` when it is answered.
        self.request_dict[REVOKED] = reason

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Store and announce what became of the message, and acknowledge it."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)  # billiard wraps it
        if isinstance(error, TaskRevokedError):
            (reason,) = error.args
            super()._announce_revoked(reason, reason == "terminated", None, reason == "expired")
        else:
            self._failure = error
            super().on_failure(exc_info, send_failed_event, return_ok)

    def terminate(self, pool: Any, signal: Any = None) -> None:  # noqa: ARG002  (Celery's names)
        """End the message's jobs, running or not; it is then answered as revoked."""
        message = self._apply_result() if self._apply_result is not None else None
        if message is not None:  # otherwise it has not come to the pool yet, and `revoked` will see it
            message.terminate()

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Nothing: Celery calls this at a cold shutdown, when the pool hands the jobs to other workers."""
