"""The form that an answer must have, and the two ways in which a request says it: OpenAI's and vLLM's."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from orcd.errors import InvalidRequest

MAX_BYTES = 64 * 1024
"""Of a schema or a list of choices as JSON, of a regular expression, of a grammar."""
MAX_CHOICES = 1000

_KINDS = ("json", "regex", "choice", "grammar", "json_object")

Kind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]
Text = Annotated[str, Meta(min_length=1)]


class StructuredOutput(msgspec.Struct, frozen=True):
    """The form that an answer must have.

    ``value`` is the schema of a ``json_schema``, the regular expression that the whole answer matches (``regex``), the
    texts of which it is one (``choice``), or a grammar in Lark's notation (``grammar``); None for any ``json_object``.
    ``whitespace_pattern`` is a regular expression for the whitespace between the parts of a JSON document; None leaves
    it to the worker.
    """

    kind: Kind
    value: dict[str, Any] | list[str] | str | None = None
    whitespace_pattern: str | None = None


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A schema as `ResponseFormat` has it; ``name``, ``description`` and ``strict`` have no effect on the answer.

    An answer always obeys its schema, also where ``strict`` is false.
    """

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """OpenAI's way: ``type`` is ``text`` (any answer), ``json_object`` or ``json_schema``."""

    type: str
    json_schema: JsonSchema | None = None

    def structured_output(self) -> StructuredOutput | None:
        """The form that it asks for, if any. Raises `InvalidRequest` naming the field."""
        if self.type not in ("text", "json_object", "json_schema"):
            raise InvalidRequest("response_format.type: must be text, json_object or json_schema")
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise InvalidRequest("response_format.json_schema: goes with the type json_schema, and only with that")
        if self.json_schema is not None:
            _check_json("response_format.json_schema.schema", self.json_schema.schema)
            return StructuredOutput("json_schema", self.json_schema.schema)
        return StructuredOutput("json_object") if self.type == "json_object" else None


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """vLLM's way: one of these fields, and with JSON ``whitespace_pattern``, see `StructuredOutput`.

    ``json`` is a schema, or its text.
    """

    json: dict[str, Any] | str | None = None
    regex: Text | None = None
    choice: Annotated[list[Text], Meta(min_length=1, max_length=MAX_CHOICES)] | None = None
    grammar: Text | None = None
    json_object: bool | None = None
    whitespace_pattern: Text | None = None

    def structured_output(self) -> StructuredOutput:
        """The form that it asks for. Raises `InvalidRequest` naming the field."""
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise InvalidRequest(f"structured_outputs: give exactly one of {', '.join(_KINDS)}")
        if self.whitespace_pattern is not None and given[0] not in ("json", "json_object"):
            raise InvalidRequest("structured_outputs.whitespace_pattern: goes with json or json_object only")
        for name in ("regex", "grammar", "whitespace_pattern"):
            _check_text(f"structured_outputs.{name}", getattr(self, name) or "")
        match given[0]:
            case "json":
                return StructuredOutput("json_schema", self._schema(), self.whitespace_pattern)
            case "json_object":
                if not self.json_object:
                    raise InvalidRequest("structured_outputs.json_object: must be true")
                return StructuredOutput("json_object", None, self.whitespace_pattern)
            case "choice":
                _check_json("structured_outputs.choice", self.choice)
                return StructuredOutput("choice", self.choice)
            case "regex":
                return StructuredOutput("regex", self.regex)
        return StructuredOutput("grammar", self.grammar)

    def _schema(self) -> dict[str, Any]:
        schema: Any = self.json
        if isinstance(schema, str):
            _check_text("structured_outputs.json", schema)
            try:
                schema = msgspec.json.decode(schema)
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                schema = None
        if not isinstance(schema, dict):
            raise InvalidRequest("structured_outputs.json: must be a JSON schema, as an object or as its text")
        _check_json("structured_outputs.json", schema)
        return schema


def _check_json(field: str, value: Any) -> None:
    """Raises `InvalidRequest` for a value that is too long as JSON, or has no form there."""
    try:
        encoded = msgspec.json.encode(value)
        if len(encoded) <= MAX_BYTES:
            json.dumps(value, allow_nan=False)  # msgspec turns bytes and NaN into something else
    except (TypeError, ValueError, RecursionError):
        raise InvalidRequest(f"{field}: must be plain JSON, less deeply nested") from None
    _check_length(field, len(encoded))


def _check_text(field: str, text: str) -> None:
    _check_length(field, len(text.encode("utf-8", "surrogatepass")))


def _check_length(field: str, num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise InvalidRequest(f"{field}: has {num_bytes} bytes; at most {MAX_BYTES} are allowed")
