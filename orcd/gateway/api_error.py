"""What a call is refused with: OpenAI's error bodies, which its SDKs turn into exceptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orcd.errors import BY_CODE, OrcdError
from orcd.events import Error
from orcd.openai.error_body import error_body, status_code

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    501: "not_implemented_error",
}


class ApiError(Exception):
    """An error to answer with. ``param`` names the field; ``retriable`` says that the same call may succeed later."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        retriable: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}
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
            headers["retry-after"] = str(self._retry_after_s)
        return headers
