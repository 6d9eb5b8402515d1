"""By how much a token may lengthen the shortest closing of a document that fits a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

UNFINISHED = 14
"""Bytes that the rest of a literal, a number or an escape (two halves of a pair) may take."""
_NUMBER = 24
_UNBOUNDED = frozenset(
    [
        "allOf",
        "not",
        "if",
        "then",
        "else",
        "dependentRequired",
        "dependentSchemas",
        "minProperties",
        "contains",
        "pattern",
        "format",
        "multipleOf",
        "$dynamicRef",
        "unevaluatedProperties",
        "unevaluatedItems",
    ]
)
"""Keywords with which the shortest value is not told by the others."""


def growth(schema: Any) -> int | None:
    """The most bytes by which the shortest closing grows where a value, or a property, of the schema begins.

    A token that holds several beginnings may add several times as much. None if that cannot be told.
    """
    try:
        return UNFINISHED + max(_Bounds(schema).all_parts())
    except (_UntoldError, AttributeError, TypeError, ValueError, RecursionError):
        return None  # llguidance reads no definitions to which nothing refers: anything may be there


class _UntoldError(Exception):
    """The schema does not tell how short its values can be."""


class _Bounds:
    """Upper bounds of the shortest values of a schema's parts, in bytes."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._known: dict[int, int | None] = {}  # by the identity of the part; None while it is looked at

    def all_parts(self) -> Iterator[int]:
        """The bounds of all subschemas and properties."""
        left = [self._schema]
        while left:
            schema = left.pop()
            yield self._of(schema)
            if isinstance(schema, Mapping):
                for name, value in (schema.get("properties") or {}).items():
                    yield self._of_property(name, value)
                left += _parts(schema)

    def _of_property(self, name: str, schema: Any) -> int:
        return len(json.dumps(name, ensure_ascii=False).encode()) + 2 + self._of(schema)

    def _of(self, schema: Any) -> int:
        if not isinstance(schema, Mapping):
            return 2
        if id(schema) not in self._known:
            self._known[id(schema)] = None
            if schema.keys() & _UNBOUNDED:
                raise _UntoldError
            self._known[id(schema)] = self._of_mapping(schema)
        size = self._known[id(schema)]
        if size is None:  # it must hold itself
            raise _UntoldError
        return size

    def _of_mapping(self, schema: Mapping[str, Any]) -> int:
        if "$ref" in schema:
            return self._of(self._resolved(schema["$ref"]))
        if "const" in schema or "enum" in schema:
            values = schema.get("enum", [schema.get("const")])
            return max(len(json.dumps(value, ensure_ascii=False).encode()) for value in values)
        alternatives = [each for name in ("anyOf", "oneOf") for each in schema.get(name) or ()]
        sizes = [self._of(each) for each in alternatives]
        return (
            max(sizes, default=0) + _NUMBER + self._of_string(schema) + self._of_array(schema) + self._of_object(schema)
        )

    def _of_string(self, schema: Mapping[str, Any]) -> int:
        return 2 + int(schema.get("minLength") or 0)

    def _of_array(self, schema: Mapping[str, Any]) -> int:
        least = int(schema.get("minItems") or 0)
        first = list(schema.get("prefixItems") or ())[:least]
        size = sum(self._of(each) + 1 for each in first)
        if least > len(first):
            size += (least - len(first)) * (self._of(schema.get("items", {})) + 1)
        return 2 + size

    def _of_object(self, schema: Mapping[str, Any]) -> int:
        properties = schema.get("properties") or {}
        others = schema.get("additionalProperties", {})
        return 2 + sum(self._of_property(name, properties.get(name, others)) for name in schema.get("required") or ())

    def _resolved(self, reference: Any) -> Any:
        found = self._schema
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise _UntoldError
        for name in reference.removeprefix("#").split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or name not in found:
                raise _UntoldError
            found = found[name]
        return found


def _parts(schema: Mapping[str, Any]) -> Iterator[Any]:
    for name in ("properties", "patternProperties", "$defs", "definitions"):
        yield from (schema.get(name) or {}).values()
    for name in ("anyOf", "oneOf", "prefixItems"):
        yield from schema.get(name) or ()
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield schema[name]
