"""The description of the API for programs (OpenAPI 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from orcd.gateway.endpoint import json_response
from orcd.openai.body_table import CHAT, COMPLETIONS, RESPONSES

_TEXT, _NUMBER, _INTEGER, _FLAG = ({"type": kind} for kind in ("string", "number", "integer", "boolean"))
_TYPES: dict[str, Any] = {
    "model": _TEXT,
    "messages": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["role"],
            "properties": {"role": _TEXT, "content": {"type": ["string", "array", "null"]}},
        },
    },
    "prompt": {"type": ["string", "array"]},
    "input": {"type": ["string", "array"]},
    "instructions": {"type": ["string", "null"]},
    "stream": {"type": ["boolean", "null"]},
    "background": {"type": ["boolean", "null"]},
    "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
    "top_p": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
    "n": {"type": ["integer", "null"], "minimum": 1},
    "seed": {"type": ["integer", "null"]},
    "stop": {"type": ["string", "array", "null"]},
    **{
        name: {"type": ["integer", "null"], "minimum": 1}
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")
    },
}
"""What the most used fields of bodies look like; the others may be anything that the error then names."""
_ID = {"name": "id", "in": "path", "required": True, "schema": _TEXT}


def _body(table: Mapping[str, Any], required: list[str]) -> dict[str, Any]:
    properties = {name: _TYPES.get(name, {}) for name in sorted(table)}
    return {"type": "object", "required": required, "properties": properties}


def _operation(summary: str, *, body: Any = None, form: Any = None, parameters: tuple[Any, ...] = ()) -> dict[str, Any]:
    content = {"application/json": {"schema": body}} if body else {"multipart/form-data": {"schema": form}}
    answers = {
        "200": {"description": "The answer, or a stream of server-sent events."},
        "default": {"description": "An error.", "content": {"application/json": {"schema": _ERROR}}},
    }
    asked = {"requestBody": {"required": True, "content": content}} if body or form else {}
    return {"summary": summary, "responses": answers, "parameters": list(parameters), **asked}


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "required": ["message", "type", "param", "code"]}},
}
_PAGE = (
    {"name": "after", "in": "query", "schema": _TEXT},
    {"name": "limit", "in": "query", "schema": {**_INTEGER, "minimum": 1, "maximum": 100}},
)
_FILE = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": _TEXT},
}
_BATCH = {
    "type": "object",
    "required": ["input_file_id", "endpoint", "completion_window"],
    "properties": {
        "input_file_id": _TEXT,
        "endpoint": _TEXT,
        "completion_window": {"const": "24h"},
        "metadata": {"type": ["object", "null"], "additionalProperties": _TEXT},
    },
}
_STREAM = (
    {"name": "stream", "in": "query", "schema": _FLAG},
    {"name": "starting_after", "in": "query", "schema": _INTEGER},
)

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "orcd gateway", "version": "1"},
    "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    "security": [{"key": []}, {}],
    "paths": {
        "/v1/models": {"get": _operation("List models.")},
        "/v1/models/{id}": {"get": _operation("Retrieve a model.", parameters=(_ID,))},
        "/v1/chat/completions": {"post": _operation("Answer a chat.", body=_body(CHAT, ["messages"]))},
        "/v1/completions": {"post": _operation("Complete a text.", body=_body(COMPLETIONS, ["prompt"]))},
        "/v1/embeddings": {"post": _operation("Not supported.")},
        "/v1/responses": {"post": _operation("Create a response.", body=_body(RESPONSES, ["input"]))},
        "/v1/responses/{id}": {
            "get": _operation("Retrieve a response, or its stream.", parameters=(_ID, *_STREAM)),
            "delete": _operation("Delete a response.", parameters=(_ID,)),
        },
        "/v1/responses/{id}/cancel": {"post": _operation("Cancel a response.", parameters=(_ID,))},
        "/v1/files": {
            "get": _operation("List files.", parameters=(*_PAGE, {"name": "purpose", "in": "query", "schema": _TEXT})),
            "post": _operation("Upload a file.", form=_FILE),
        },
        "/v1/files/{id}": {
            "get": _operation("Retrieve a file.", parameters=(_ID,)),
            "delete": _operation("Delete a file.", parameters=(_ID,)),
        },
        "/v1/files/{id}/content": {"get": _operation("Read a file.", parameters=(_ID,))},
        "/v1/batches": {
            "get": _operation("List batches.", parameters=_PAGE),
            "post": _operation("Begin a batch.", body=_BATCH),
        },
        "/v1/batches/{id}": {"get": _operation("Retrieve a batch.", parameters=(_ID,))},
        "/v1/batches/{id}/cancel": {"post": _operation("Cancel a batch.", parameters=(_ID,))},
    },
}
"""The paths, what they take, and that errors look alike everywhere."""


async def openapi(_request: Request) -> Response:
    """The description itself; it needs no key."""
    return json_response(DOCUMENT)
