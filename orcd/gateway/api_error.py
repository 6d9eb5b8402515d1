"""What a call is refused with: OpenAI's error bodies, which its SDKs turn into exceptions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from orcd.errors import BY_CODE, OrcdError
from orcd.events import Error
from orcd.openai.error_body import error_body, error_type, status_code


class ApiError(Exception):
    """An error to answer with. ``param`` names the field; ``retriable`` says that the same call may succeed later."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        retriable: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        error = {"message": message, "type": error_type(status), "param": param, "code": code}
        self.body: dict[str, Any] = {"error": error}
        self._retry_after_s = retry_after_s
        self._retriable = retriable or retry_after_s is not None

    @classmethod
    def of(cls, error: OrcdError) -> ApiError:
        """The answer that one of our errors means."""
        made = cls(status_code(error), "", retriable=error.retriable)
        made.body = error_body(error)
        made._retry_after_s = getattr(error, "retry_after_s", None)
        return made

    @classmethod
    def of_event(cls, event: Error) -> ApiError:
        """The answer that a job's terminal event means."""
        return cls.of(BY_CODE.get(event.code, OrcdError)(event.message))

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the answer. OpenAI's SDKs would send each 409, 429 and 5xx again by themselves."""
        headers = {"x-should-retry": "true" if self._retriable else "false"}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self._retry_after_s is not None:
            headers["retry-after"] = str(math.ceil(self._retry_after_s))
        return headers


def stopping() -> ApiError:
    """The error for an answer that was still on its way when the gateway had to stop."""
    return ApiError(503, "this gateway stops; send the call again", code="gateway_stops", retriable=True)


def model_not_served() -> ApiError:
    """The error for a model that no worker serves."""
    return ApiError(404, "model: no worker serves it", code="model_not_found", param="model")
