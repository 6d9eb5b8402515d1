"""Values that a JSON schema forbids, each just outside one of its bounds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jsonschema

_OF_EACH_TYPE = (None, False, True, 0, 0.5, "", "x", [], {})
"""Those that Python takes for false are among them: they must not pass for absent."""
_OUTSIDE: Mapping[str, Callable[[Any], Any]] = {
    "enum": lambda _known: "other",
    "const": lambda _known: "other",
    "minLength": lambda least: "x" * (least - 1),
    "maxLength": lambda most: "x" * (most + 1),
    "minimum": lambda least: least - 1 if isinstance(least, int) else math.nextafter(least, -math.inf),
    "maximum": lambda most: most + 1 if isinstance(most, int) else math.nextafter(most, math.inf),
    "exclusiveMinimum": lambda bound: bound,
    "exclusiveMaximum": lambda bound: bound,
}
"""By the keyword of a bound, the value next to it. Whether that is outside is for the schema to say."""


class SchemaBounds:
    """The schemas of a document; ``document`` has those that others name."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def forbidden(self, schema: Mapping[str, Any]) -> list[Any]:
        """Values outside one bound each, as deep in ``schema`` as that is; no value twice."""
        validator = jsonschema.Draft202012Validator({**self._document, **schema})
        found = {json.dumps(value): value for value in self._candidates(schema)}
        return [value for value in found.values() if not validator.is_valid(value)]

    def smallest(self, schema: Mapping[str, Any]) -> Any:
        """A value that ``schema`` allows, with no more in it than has to be."""
        schema = self._resolved(schema)
        kind = schema.get("type", "null")
        match kind if isinstance(kind, str) else kind[0]:
            case _ if "enum" in schema:
                return schema["enum"][0]
            case _ if "const" in schema:
                return schema["const"]
            case "string":
                return "x" * schema.get("minLength", 1)
            case "integer" | "number":
                return schema.get("minimum", 1)
            case "array":
                return [self.smallest(schema.get("items", {}))] * schema.get("minItems", 0)
            case "object":
                properties = schema.get("properties", {})
                return {name: self.smallest(properties.get(name, {})) for name in schema.get("required", ())}
            case _:
                return None

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """Behind the references, and of several alternatives the first."""
        while "$ref" in schema or "anyOf" in schema:
            schema = schema["anyOf"][0] if "anyOf" in schema else self._named(schema["$ref"])
        return schema

    def _named(self, reference: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._document
        for key in reference.removeprefix("#/").split("/"):
            found = found[key]
        return found

    def _candidates(self, schema: Mapping[str, Any]) -> Iterator[Any]:
        """Values about the bounds of ``schema``."""
        if "$ref" in schema:
            schema = self._named(schema["$ref"])
        if not schema:
            return
        yield from _OF_EACH_TYPE
        for alternative in schema.get("anyOf", ()):
            yield from self._candidates(alternative)
        for keyword, value_outside in _OUTSIDE.items():
            if keyword in schema:
                yield value_outside(schema[keyword])
        if "array" in schema.get("type", ()):
            yield from self._arrays(schema)
        if "object" in schema.get("type", ()):
            yield from self._objects(schema)

    def _arrays(self, schema: Mapping[str, Any]) -> Iterator[list[Any]]:
        item = schema.get("items", {})
        for length in (schema.get("minItems", 0) - 1, schema.get("maxItems", 0) + 1):
            yield [self.smallest(item)] * length
        for value in self._candidates(item):
            yield [value]

    def _objects(self, schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        smallest = self.smallest({**schema, "type": "object"})
        for name in smallest:
            yield {other: value for other, value in smallest.items() if other != name}
        for name, inner in schema.get("properties", {}).items():
            for value in self._candidates(inner):
                yield {**smallest, name: value}
        others = schema.get("additionalProperties", {})
        other = self.smallest(others) if others else 0
        yield {**smallest, **{str(number): other for number in range(schema.get("maxProperties", 0) + 1)}}
        for value in self._candidates(others or {}):
            yield {**smallest, "1": value}
        for name in self._candidates(schema.get("propertyNames", {})):
            if isinstance(name, str):
                yield {**smallest, name: other}
