"""What Flower and Celery's own tools are shown of a message."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request

from orcd.store.submission import is_well_formed


class PrivateRequest(Request):  # type: ignore[misc]
    """A message of which nobody is shown more than its task, its well-formed ids, and what kind of error it ended with.

    An inline request has its prompt in its arguments, and the text of an error may name what the sender wrote.
    """

    @property
    def argsrepr(self) -> str:
        """Positional arguments, for events and logs."""
        return "()"

    @property
    def kwargsrepr(self) -> str:
        """Keyword arguments, for events and logs."""
        return repr(self._public())

    def info(self, safe: bool = False) -> dict[str, Any]:  # noqa: ARG002  (Celery's name)
        """What ``inspect active`` and its like answer."""
        shown = self.id if is_well_formed(self.id) else ""
        return {**super().info(safe=True), "id": shown, "args": [], "kwargs": self._public()}

    def send_event(self, type: str, **fields: Any) -> None:
        """Tell Flower what has happened. The text of an error stays with the result, which is its sender's."""
        if "exception" in fields:
            fields |= {"exception": fields["exception"].partition("(")[0], "traceback": None}
        super().send_event(type, **fields)

    def _public(self) -> dict[str, Any]:
        kwargs = self._kwargs if isinstance(self._kwargs, dict) else {}
        shown: dict[str, Any] = {}
        if is_well_formed(job_id := kwargs.get("job_id")):
            shown["job_id"] = job_id
        if isinstance(job_ids := kwargs.get("job_ids"), list):
            shown["job_ids"] = [job_id for job_id in job_ids if is_well_formed(job_id)]
        return shown
