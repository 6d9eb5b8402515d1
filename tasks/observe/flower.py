"""What Flower and Celery's own tools are shown of a message."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request


class PrivateRequest(Request):  # type: ignore[misc]
    """A message whose arguments are shown to nobody but for job ids: an inline request has its prompt in them."""

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
        return {**super().info(safe=True), "args": [], "kwargs": self._public()}

    def _public(self) -> dict[str, Any]:
        kwargs = self._kwargs if isinstance(self._kwargs, dict) else {}
        return {name: kwargs[name] for name in ("job_id", "job_ids") if name in kwargs}
