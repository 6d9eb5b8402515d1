"""The JSON schema of the bodies that an endpoint accepts, from the table of their fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from orcd.openai.body_fields import Combined, Ignored, Read, Treatment, Unsupported
from orcd.request import Request

_FLAG: dict[str, Any] = {"type": "boolean"}
_TEXT_OR_LIST: dict[str, Any] = {"type": ["string", "array"], "minItems": 1}
SCHEMA_PLACE = "#/components/schemas/{name}"
"""Where the OpenAPI document has the schemas that others name."""
_, COMPONENTS = msgspec.json.schema_components([Request], ref_template=SCHEMA_PLACE)
"""The schemas that those of fields name."""
_REQUEST: dict[str, dict[str, Any]] = {
    name: {key: value for key, value in schema.items() if key != "default"}
    for name, schema in COMPONENTS.pop("Request")["properties"].items()
}
"""The fields of requests, with their limits; their defaults are not always those of bodies."""

_BY_NAME: dict[str, dict[str, Any]] = {
    "messages": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["role"],
            "properties": {"role": {"type": "string"}, "content": {"type": ["string", "array", "null"]}},
        },
    },
    "prompt": {**_TEXT_OR_LIST, "minLength": 1},
    "input": _TEXT_OR_LIST,
    "instructions": {"type": "string"},
    "previous_response_id": {"type": "string"},
    "stream": _FLAG,
    "stream_options": {"type": "object", "properties": {"include_usage": {"type": ["boolean", "null"]}}},
    "background": _FLAG,
    "echo": _FLAG,
    "stop": {"anyOf": [_REQUEST["stop"], _REQUEST["stop"]["items"]]},
    "service_tier": {"enum": ["auto", "default", "fast", "flex", "priority", "scale"]},
    "top_logprobs": _REQUEST["logprobs"],
    "tools": {
        "type": "array",
        "items": {"type": "object", "required": ["type"], "properties": {"type": {"const": "function"}}},
    },
    "tool_choice": {"anyOf": [{"enum": ["auto", "none", "required"]}, {"type": "object", "required": ["type"]}]},
    "parallel_tool_calls": _FLAG,
    "include": {"type": "array"},
    "text": {"type": "object"},
    "reasoning": {"type": "object"},
    **{
        name: {"anyOf": [_REQUEST[to], {"const": -1, "description": "says nothing"}]}
        for name, to in {
            "max_tokens": "max_tokens",
            "n_predict": "max_tokens",
            "seed": "seed",
            "top_k": "top_k",
        }.items()
    },
}
"""Fields that a request does not have, or has in another form."""


def body_schema(table: Mapping[str, Treatment], required: Sequence[str]) -> dict[str, Any]:
    """The schema of an endpoint's bodies. Fields that it refuses whatever they hold are not in it."""
    found = {name: _schema(name, table[name]) for name in sorted(table)}
    properties = {
        name: schema if name in required or not schema else {"anyOf": [schema, {"type": "null"}]}
        for name, schema in found.items()
        if schema is not None
    }
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


def _schema(name: str, treatment: Treatment) -> dict[str, Any] | None:
    match treatment:
        case Unsupported(off=off):
            return {"enum": list(off)} if off else None
        case Combined() if name == "logprobs":
            return _FLAG
        case Read(to=to) if name not in _BY_NAME:
            return _REQUEST.get(to, {})
        case Read() | Combined() | Ignored():
            return _BY_NAME.get(name, {})
    raise AssertionError(treatment)
