"""The description of the API for programs (OpenAPI 3.1)."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from orcd.gateway.answers.responses import MOST_SEEN, NOTHING_SEEN
from orcd.gateway.batches import batches, files
from orcd.gateway.batches.batch_store import BatchObject
from orcd.gateway.batches.file_store import PURPOSES, FileObject
from orcd.gateway.batches.files import LONGEST_LIFE_S, SHORTEST_LIFE_S
from orcd.gateway.body_schema import COMPONENTS, SCHEMA_PLACE, body_schema
from orcd.gateway.endpoint import json_response
from orcd.openai.body_table import CHAT, COMPLETIONS, RESPONSES
from orcd.openai.endpoints import ENDPOINTS

_TEXT, _INTEGER, _FLAG, _OBJECT = ({"type": kind} for kind in ("string", "integer", "boolean", "object"))
_STREAMED: dict[str, Any] = {"text/event-stream": {}}


def _object(kind: str = "", /, **properties: Any) -> dict[str, Any]:
    """The schema of an object that always has these properties; ``kind`` is its property ``object``."""
    if kind:
        properties["object"] = {"const": kind}
    return {"type": "object", "required": list(properties), "properties": properties}


def _list_of(item: Any, **properties: Any) -> dict[str, Any]:
    return _object("list", data={"type": "array", "items": item}, **properties)


def _page_of(item: Any) -> dict[str, Any]:
    ends = {"type": ["string", "null"]}
    return _list_of(item, first_id=ends, last_id=ends, has_more=_FLAG)


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _operation(
    summary: str,
    answer: Any,
    *,
    body: Any = None,
    form: Any = None,
    parameters: tuple[Any, ...] = (),
    links: Any = None,
) -> dict[str, Any]:
    """One operation; ``answer`` are the contents of its answer by type, ``body`` and ``form`` what it is sent.

    ``links`` are operations for which the answer has what they need.
    """
    answers = {
        "200": {"description": "The answer.", "content": answer, **({"links": links} if links else {})},
        "default": {"description": "An error.", "content": _json(_ERROR)},
    }
    sent = _json(body) if body else {"multipart/form-data": {"schema": form}}
    asked = {"requestBody": {"required": True, "content": sent}} if body or form else {}
    return {"summary": summary, "responses": answers, "parameters": list(parameters), **asked}


def _generation(summary: str, table: Any, required: str, answer: Any) -> dict[str, Any]:
    return _operation(summary, _json(answer) | _STREAMED, body=body_schema(table, [required]))


_ERROR = _object(error=_object(message=_TEXT, type=_TEXT, param={}, code={}))
_ID = {"name": "id", "in": "path", "required": True, "schema": {**_TEXT, "minLength": 1}}


def _page(most: int) -> tuple[dict[str, Any], ...]:
    return (
        {"name": "after", "in": "query", "schema": _TEXT},
        {"name": "limit", "in": "query", "schema": {**_INTEGER, "minimum": 1, "maximum": most}},
    )


_PURPOSE = {"type": "string", "enum": list(PURPOSES)}
_REPLAY = (
    {"name": "stream", "in": "query", "schema": _FLAG},
    {"name": "starting_after", "in": "query", "schema": {**_INTEGER, "minimum": NOTHING_SEEN, "maximum": MOST_SEEN}},
)

_MODEL = _object("model", id=_TEXT, created=_INTEGER, owned_by=_TEXT)
_CHOICE: dict[str, Any] = {"index": _INTEGER, "finish_reason": _TEXT, "logprobs": {"type": ["object", "null"]}}
_MESSAGE = _object(role={"const": "assistant"}, content=_TEXT)
_ANSWER: dict[str, Any] = {"id": _TEXT, "created": _INTEGER, "model": _TEXT, "usage": _OBJECT}
_CHAT = _object("chat.completion", choices={"type": "array", "items": _object(**_CHOICE, message=_MESSAGE)}, **_ANSWER)
_COMPLETION = _object("text_completion", choices={"type": "array", "items": _object(**_CHOICE, text=_TEXT)}, **_ANSWER)
_STATUSES = ("queued", "in_progress", "completed", "incomplete", "cancelled", "failed")
_RESPONSE = _object(
    "response",
    id=_TEXT,
    created_at=_INTEGER,
    status={"enum": list(_STATUSES)},
    model={"type": ["string", "null"]},
    output={"type": "array", "items": _OBJECT},
    error={"type": ["object", "null"]},
    usage={"type": ["object", "null"]},
)
(_FILE, _BATCH), _OBJECTS = msgspec.json.schema_components([FileObject, BatchObject], ref_template=SCHEMA_PLACE)
_EXPIRES_AFTER = {
    "anchor": {"const": "created_at"},
    "seconds": {**_INTEGER, "minimum": SHORTEST_LIFE_S, "maximum": LONGEST_LIFE_S},
}
_NEW_FILE = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": _PURPOSE,
        **{f"expires_after[{name}]": schema for name, schema in _EXPIRES_AFTER.items()},
    },
    "dependentRequired": {
        "expires_after[anchor]": ["expires_after[seconds]"],
        "expires_after[seconds]": ["expires_after[anchor]"],
    },
    "additionalProperties": False,
}
_NEW_BATCH = {
    "type": "object",
    "required": ["input_file_id", "endpoint", "completion_window"],
    "properties": {
        "input_file_id": _TEXT,
        "endpoint": {"enum": list(ENDPOINTS)},
        "completion_window": {"const": "24h"},
        "output_expires_after": {
            "type": ["object", "null"],
            "required": ["anchor", "seconds"],
            "properties": _EXPIRES_AFTER,
            "additionalProperties": False,
        },
        "metadata": {
            "type": ["object", "null"],
            "maxProperties": 16,
            "propertyNames": {"maxLength": 64},
            "additionalProperties": {**_TEXT, "maxLength": 512},
        },
    },
    "additionalProperties": False,
}
_BATCH_OF_FILE = {
    "operationRef": "#/paths/~1v1~1batches/post",
    "requestBody": {
        "input_file_id": "$response.body#/id",
        "endpoint": next(iter(ENDPOINTS)),
        "completion_window": "24h",
    },
}


def _deleted(kind: str) -> dict[str, Any]:
    return _json(_object(kind, id=_TEXT, deleted={"const": True}))


DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "orcd gateway", "version": "1"},
    "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}, "schemas": COMPONENTS | _OBJECTS},
    "security": [{"key": []}, {}],
    "paths": {
        "/v1/models": {"get": _operation("List models.", _json(_list_of(_MODEL)))},
        "/v1/models/{id}": {"get": _operation("Retrieve a model.", _json(_MODEL), parameters=(_ID,))},
        "/v1/chat/completions": {"post": _generation("Answer a chat.", CHAT, "messages", _CHAT)},
        "/v1/completions": {"post": _generation("Complete a text.", COMPLETIONS, "prompt", _COMPLETION)},
        "/v1/embeddings": {
            "post": {
                "summary": "Not supported.",
                "responses": {"default": {"description": "An error.", "content": _json(_ERROR)}},
                "parameters": [],
            }
        },
        "/v1/responses": {"post": _generation("Create a response.", RESPONSES, "input", _RESPONSE)},
        "/v1/responses/{id}": {
            "get": _operation(
                "Retrieve a response, or its stream.", _json(_RESPONSE) | _STREAMED, parameters=(_ID, *_REPLAY)
            ),
            "delete": _operation("Delete a response.", _deleted("response"), parameters=(_ID,)),
        },
        "/v1/responses/{id}/cancel": {"post": _operation("Cancel a response.", _json(_RESPONSE), parameters=(_ID,))},
        "/v1/files": {
            "get": _operation(
                "List files.",
                _json(_page_of(_FILE)),
                parameters=(
                    *_page(files.MOST_LISTED),
                    {"name": "purpose", "in": "query", "schema": _PURPOSE},
                    {"name": "order", "in": "query", "schema": {"type": "string", "enum": list(files.ORDERS)}},
                ),
            ),
            "post": _operation("Upload a file.", _json(_FILE), form=_NEW_FILE, links={"batch": _BATCH_OF_FILE}),
        },
        "/v1/files/{id}": {
            "get": _operation("Retrieve a file.", _json(_FILE), parameters=(_ID,)),
            "delete": _operation("Delete a file.", _deleted("file"), parameters=(_ID,)),
        },
        "/v1/files/{id}/content": {
            "get": _operation("Read a file.", {"application/octet-stream": {}}, parameters=(_ID,))
        },
        "/v1/batches": {
            "get": _operation("List batches.", _json(_page_of(_BATCH)), parameters=_page(batches.MOST_LISTED)),
            "post": _operation("Begin a batch.", _json(_BATCH), body=_NEW_BATCH),
        },
        "/v1/batches/{id}": {"get": _operation("Retrieve a batch.", _json(_BATCH), parameters=(_ID,))},
        "/v1/batches/{id}/cancel": {"post": _operation("Cancel a batch.", _json(_BATCH), parameters=(_ID,))},
    },
}
"""The paths, what they take and answer, and that errors look alike everywhere."""


async def openapi(_request: Request) -> Response:
    """The description itself; it needs no key."""
    return json_response(DOCUMENT)
