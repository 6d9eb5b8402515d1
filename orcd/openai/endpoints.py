"""The endpoints whose bodies are read here: what OpenAI's API, its batch files and our gateway have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orcd.errors import InvalidRequest
from orcd.openai import chat, completions, responses
from orcd.request import Request
from orcd.result import Result


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How bodies of one endpoint become requests, and results its responses."""

    parse: Callable[[Any, Mapping[str, Any]], Request]
    response: Callable[[Mapping[str, Any], Result, int], dict[str, Any]]


ENDPOINTS = {
    "/v1/chat/completions": Endpoint(chat.parse, chat.response),
    "/v1/completions": Endpoint(completions.parse, completions.response),
    "/v1/responses": Endpoint(responses.parse, responses.response),
}
"""By the path of the endpoint's URL."""

DEFAULTS = {"special_tokens_in_content": "escape"}
"""Fields of a request for what no body says.

Text in these bodies comes from anybody, and at OpenAI no text becomes a control token."""


def parse_body(url: Any, body: Any, defaults: Mapping[str, Any] | None = None) -> Request:
    """The request that a body, as plain values, asks for.

    ``url`` is a path of `ENDPOINTS`; ``defaults`` are fields of a request for what the body does not say. Raises
    `InvalidRequest` naming the field as the body has it.
    """
    return _endpoint(url).parse(body, {**DEFAULTS, **(defaults or {})})


def response_body(url: str, body: Mapping[str, Any], result: Result, created_s: int) -> dict[str, Any]:
    """The response to a body that `parse_body` has read: what became of its job, which has succeeded.

    ``created_s`` is when it was submitted, in Unix seconds.
    """
    return _endpoint(url).response(body, result, created_s)


def _endpoint(url: Any) -> Endpoint:
    if not isinstance(url, str) or url not in ENDPOINTS:
        raise InvalidRequest(f"url: must be one of {', '.join(ENDPOINTS)}")
    return ENDPOINTS[url]
