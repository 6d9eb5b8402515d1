"""What every endpoint of ``/v1`` begins with: who calls, whether he may, and the body of his request."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import redis.asyncio
from starlette.requests import Request
from starlette.responses import Response

from orcd.async_client import AsyncClient
from orcd.errors import InvalidRequest
from orcd.gateway.api_error import ApiError
from orcd.gateway.api_keys import ApiKey, ApiKeys
from orcd.gateway.batches.batch_store import BatchStore
from orcd.gateway.batches.file_store import FileStore
from orcd.gateway.rate_limit import count_request
from orcd.gateway.settings import GatewaySettings

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""The escape of half of a surrogate pair."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """What the endpoints of one process share; ``scripts`` are those about jobs that only gateways run."""

    settings: GatewaySettings
    keys: ApiKeys
    client: AsyncClient
    redis: redis.asyncio.Redis
    scripts: Mapping[str, Any]
    batches: BatchStore
    files: FileStore | None


@dataclass(frozen=True, slots=True)
class Call:
    """One request of one caller."""

    gateway: Gateway
    key: ApiKey
    request: Request

    async def body(self) -> bytes:
        """The request's body. Raises `ApiError` 413 as soon as it is too long."""
        most = self.gateway.settings.max_body_bytes
        chunks: list[bytes] = []
        length = 0
        async for chunk in self.request.stream():
            length += len(chunk)
            if length > most:
                raise ApiError(413, f"the body is longer than {most} bytes", code="body_too_large")
            chunks.append(chunk)
        return b"".join(chunks)

    async def json(self) -> dict[str, Any]:
        """The body as a JSON object. Raises `ApiError` 400, 413 or 415."""
        if self.request.headers.get("content-encoding", "identity") != "identity":
            raise ApiError(415, "content-encoding: send the body as it is, not compressed", code="invalid_json")
        body = await self.body()
        try:
            fields = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            what = f"the body is not valid JSON in UTF-8: {_fault(body, error)}"
            raise ApiError(400, what, code="invalid_json") from None
        except RecursionError:
            raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
        if not isinstance(fields, dict):
            raise ApiError(400, "the body must be a JSON object", code="invalid_json")
        return fields

    def check_model(self, model: str | None) -> None:
        """Raises `ApiError` 403 if the caller's key does not allow this model."""
        if model is None and self.key.models is not None:
            raise ApiError(400, "model: is needed with this key", param="model")
        if model is not None and not self.key.may_use(model):
            raise ApiError(403, "model: this key may not use it", code="model_not_allowed", param="model")


def endpoint(handler: Callable[[Call], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint for callers with a key, as often as it allows."""

    async def answer(request: Request) -> Response:
        gateway: Gateway = request.app.state.gateway
        key = gateway.keys.find(request.headers.get("authorization"))
        if key is None:
            raise ApiError(401, "send a valid key as: Authorization: Bearer KEY", code="invalid_api_key")
        await count_request(gateway.redis, gateway.settings.key_prefix, key)
        return await handler(Call(gateway, key, request))

    return answer


def _fault(body: bytes, error: Exception) -> str:
    """What is wrong with a body, in words that hold nothing of it."""
    if not body:
        return "it is empty"
    if isinstance(error, UnicodeDecodeError) or "UTF-8" in str(error):
        return "a text is not UTF-8"
    if "truncated" in str(error) and _SURROGATE.search(body):  # as it is told of half of a pair
        return "a text may have been cut within a character (\\ud800 to \\udfff come in pairs)"
    return str(error).removeprefix("JSON is malformed: ")


def read_flag(body: Mapping[str, Any], name: str) -> bool:
    """A field that is true, or false as by default. Raises `InvalidRequest`."""
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise InvalidRequest(f"{name}: must be true or false")
    return bool(value)


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")
