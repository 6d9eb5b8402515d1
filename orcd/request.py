"""A generation request as applications write it, and the checks that make bad ones fail by name."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from orcd.errors import InvalidRequest
from orcd.sampling import SamplingFields, SamplingKeywords, TokenId, convert

MAX_REQUEST_BYTES = 16 * 1024 * 1024

Text = Annotated[str, Meta(max_length=4 * 1024 * 1024)]


class Request(SamplingFields, frozen=True, kw_only=True):
    """One generation job. Exactly one of ``prompt``, ``messages`` and ``prompt_token_ids`` is given.

    ``prompt`` is completed as it stands; ``messages`` go through the model's chat template; ``prompt_token_ids`` are
    used untouched. ``model`` None takes any worker. ``priority`` 0 is the most urgent of 0 to 9. ``deadline_s`` counts
    from submission. ``on_disconnect`` "cancel" ends a job that has had no listener for a while.

    `orcd.sampling.SamplingFields` has the sampling parameters and what they mean. ``max_tokens`` None means what the
    context leaves. ``seed`` None gets one on submission, so that whoever resumes the job draws the same tokens.
    """

    prompt: Text | None = None
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=10_000)] | None = None
    prompt_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=4 * 1024 * 1024)] | None = None
    model: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    priority: Annotated[int, Meta(ge=0, le=9)] = 5
    deadline_s: Annotated[float, Meta(gt=0, le=30 * 24 * 3600)] | None = None
    on_disconnect: Literal["continue", "cancel"] = "continue"

    def with_seed(self, job_id: str) -> Request:
        """The request with a seed, if it has none: one that the job's id gives, so that ids drawn at random differ.

        A job that Redis has forgotten and that comes again under its id so draws the tokens that its readers have seen.
        """
        if self.seed is not None:
            return self
        digest = hashlib.sha256(job_id.encode()).digest()
        return msgspec.structs.replace(self, seed=int.from_bytes(digest[:8], "little") >> 1)


class RequestFields(SamplingKeywords, total=False):
    """The fields of a `Request` as keyword arguments; what each one means and may be is said there."""

    prompt: str | None
    messages: Sequence[Mapping[str, Any]] | None
    prompt_token_ids: list[int] | tuple[int, ...] | None
    model: str | None
    priority: int
    deadline_s: float | None
    on_disconnect: Literal["continue", "cancel"]


def parse(fields: Any) -> Request:
    """Check the fields of a request (a mapping of plain values). Raises `InvalidRequest` naming the field.

    ``stop`` may also be one string.
    """
    if not isinstance(fields, dict):
        raise InvalidRequest("a request must be an object of named fields")
    if isinstance(fields.get("stop"), str):
        fields = {**fields, "stop": [fields["stop"]]}
    request = convert(fields, Request)
    _check(request)
    return request


def decode(text: bytes) -> Request:
    """`parse` for a request as JSON text; raises `InvalidRequest`."""
    if len(text) > MAX_REQUEST_BYTES:
        raise InvalidRequest(f"the request has {len(text)} bytes; at most {MAX_REQUEST_BYTES} are allowed")
    try:
        return parse(msgspec.json.decode(text))
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest("the request is not valid JSON in UTF-8") from None
    except RecursionError:
        raise InvalidRequest("the request is nested too deeply") from None


def encode(request: Request) -> bytes:
    """The request as JSON, defaults left out. Raises `InvalidRequest` on text that UTF-8 cannot express."""
    try:
        json.dumps(request.messages, allow_nan=False)  # msgspec would turn bytes and NaN into something else
        encoded = msgspec.json.encode(request)
    except UnicodeEncodeError:
        raise InvalidRequest("the request holds a lone surrogate, which is not valid Unicode text") from None
    except (TypeError, ValueError, RecursionError):
        raise InvalidRequest("messages: values must be plain JSON") from None
    if len(encoded) > MAX_REQUEST_BYTES:
        raise InvalidRequest(f"the request has {len(encoded)} bytes; at most {MAX_REQUEST_BYTES} are allowed")
    return encoded


def _check(request: Request) -> None:
    given = [name for name in ("prompt", "messages", "prompt_token_ids") if getattr(request, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise InvalidRequest(f"give exactly one of prompt, messages and prompt_token_ids; found {found}")
    if request.prompt == "":
        raise InvalidRequest("prompt: must not be empty")
    if request.deadline_s is not None and not math.isfinite(request.deadline_s):
        raise InvalidRequest("deadline_s: must be a finite number")
    if request.max_tokens is not None and request.min_tokens > request.max_tokens:
        raise InvalidRequest("min_tokens: must not exceed max_tokens")
    for index, message in enumerate(request.messages or ()):
        if not isinstance(message.get("role"), str):
            raise InvalidRequest(f"messages[{index}]: needs a role, such as user")
