"""By how much tokens may lengthen the shortest closing of a document that fits a JSON schema."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

UNFINISHED = 14
"""Bytes that the rest of an escape (two halves of a pair) may take."""
BEGINNINGS = b'{[,:"'
_LITERAL = 5
_UNBOUNDED = frozenset(["allOf", "not", "if", "then", "else", "contains", "pattern", "minProperties", "$dynamicRef"])
_UNBOUNDED |= {"patternProperties", "dependentRequired", "dependentSchemas"}
_UNBOUNDED |= {"unevaluatedProperties", "unevaluatedItems"}
"""Keywords with which the shortest value is not told by the others."""
_FORMATTED = 48
"""What a text in the longest format, IPv6, has with its quotes, and more than what may be missing of one in any."""
_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_SAYING = frozenset(
    ["properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "minLength", *_LIMITS]
)
_BESIDE_REFERENCES = frozenset(
    ["$ref", "$defs", "definitions", "$schema", "$comment", "title", "description", "default", "examples", "deprecated"]
)
"""Keywords beside ``$ref`` that say nothing of the value."""
_ANY: Mapping[str, Any] = {}
_NO_KINDS: frozenset[str] = frozenset()
_TOLD = frozenset(["$ref", "const", "enum"])


@dataclass(frozen=True, slots=True)
class Growth:
    """Upper bounds in bytes, and so in tokens.

    After any tokens the shortest closing is longer than before by ``unfinished`` at most, and besides by ``per_token``
    for each token and ``per_byte[b]`` for each byte b of `BEGINNINGS` in them.

    ``tells_by_place``: what may follow depends on the structure and the names so far, not on what strings and numbers
    hold; and in each place there is one kind of string.
    """

    per_token: float
    per_byte: Mapping[int, float]
    unfinished: float = 0
    tells_by_place: bool = False

    def of(self, structure: bytes) -> float:
        """By what a token with these bytes counts; those that begin nothing add nothing."""
        return self.per_token + sum(self.per_byte.get(byte, 0) for byte in structure)


UNTOLD = Growth(math.inf, dict.fromkeys(BEGINNINGS, math.inf))


def growth(schema: Any) -> Growth:
    """What the schema tells; `UNTOLD` if that is too little.

    A token ends or decides what is open, and begins values. Which of several objects or arrays it is in may be decided
    anywhere inside of them: with such alternatives any token may bring the longest of all values.
    """
    try:
        bounds = _Bounds(schema)
        parts = list(bounds.parts())
        sizes = [bounds.largest(part) for part in parts]
        excess = bounds.excess(parts)
    except (_UntoldError, AttributeError, ArithmeticError, TypeError, ValueError, RecursionError):
        return UNTOLD  # llguidance reads no definitions to which nothing refers: anything may be there
    largest = {byte: max(size[byte] for size in sizes) for byte in sizes[0]}
    number = max(_LITERAL, largest.pop(_NUMBER), UNFINISHED)
    decided = largest.pop(_DECIDED)
    if bounds.is_ambiguous:
        most = float(UNFINISHED + max(number, decided, *largest.values()))
        return Growth(most, dict.fromkeys(BEGINNINGS, most), excess)
    return Growth(0, largest, number + decided + excess, not any(map(bounds.is_told_by_text, parts)))


def framed(growths: Iterable[Growth], frame_bytes: int) -> Growth:
    """Of documents with a text of so many bytes around them, in which any token may begin the next one."""
    most = max(each.per_token + each.unfinished + max(each.per_byte.values()) for each in growths) + frame_bytes
    return Growth(most, dict.fromkeys(BEGINNINGS, most))


class _UntoldError(Exception):
    """The schema does not tell how short its values can be."""


_CHOICES = ("anyOf", "oneOf")
_LEAVES = frozenset(["string", "number"])
_ALL_KINDS = _LEAVES | {"object", "array"}
"""Kinds of values; true, false and null count as numbers."""
_NUMBER, _DECIDED = 0, 1
"""Beside bytes of `BEGINNINGS`: the longest number, and what is chosen among texts that begin alike."""


class _Bounds:
    """Upper bounds of the shortest values of a schema's parts, in bytes."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._known: dict[int, int | None] = {}  # by the identity of the part; None while it is looked at
        self.is_ambiguous = False
        """Whether some alternatives are of one kind, and not told apart by how they begin."""

    def parts(self) -> Iterator[Mapping[str, Any]]:
        """All subschemas that say something, each once."""
        left, seen = [self._schema], set()
        while left:
            schema = left.pop()
            if not isinstance(schema, Mapping):
                schema = _ANY
            if id(schema) not in seen:
                seen.add(id(schema))
                yield schema
                left += _inner(schema)
                if "$ref" in schema:
                    left.append(self._resolved(schema["$ref"]))

    def largest(self, schema: Mapping[str, Any]) -> dict[int, int]:
        """What begins with each byte of `BEGINNINGS` in a value of the schema itself, and what is decided there."""
        found = {**dict.fromkeys(BEGINNINGS, 0), _NUMBER: 0, _DECIDED: 0}
        size = self._of(schema)
        if "const" in schema or "enum" in schema:
            is_text = self._kinds(schema) == {"string"}
            return {**found, **dict.fromkeys([ord('"'), _DECIDED] if is_text else found, size)}
        if "$ref" in schema:
            return found
        kinds = _own_kinds(schema)
        places = [kind for each in (kinds, *map(self._kinds, _alternatives(schema))) for kind in each - _LEAVES]
        self.is_ambiguous |= len(places) > len(set(places))
        if "object" in kinds:
            others = dict.fromkeys(["", *(schema.get("required") or ())], schema.get("additionalProperties", {}))
            properties = {**others, **(schema.get("properties") or {})}
            longest = max(self._of_property(name, value) for name, value in properties.items())
            whole = self._of_object(schema) + self._of_alternatives(schema)
            found |= {ord("{"): whole, ord('"'): longest, ord(","): 1 + longest, _DECIDED: longest}
        if "array" in kinds:
            items = max(map(self._of, (schema.get("items", {}), *(schema.get("prefixItems") or ()))))
            found |= {ord("["): self._of_array(schema), ord(","): max(found[ord(",")], 1 + items)}
        found[ord('"')] = max(found[ord('"')], self._of_string(schema))
        if "format" in schema:
            found[_DECIDED] = max(found[_DECIDED], self._of_string(schema))
        found[_NUMBER] = self._of_number(schema)
        return found

    def is_told_by_text(self, schema: Mapping[str, Any]) -> bool:
        """Whether the text of a value says what follows: of several kinds of strings, of what is written out."""
        own = _NO_KINDS if schema.keys() & _TOLD else _own_kinds(schema)
        kinds = [own, *map(self._kinds, _alternatives(schema))]
        values = schema.get("enum", [schema.get("const")])
        has_parts = any(isinstance(value, dict | list) for value in values)
        return has_parts or "format" in schema or sum("string" in each for each in kinds) > 1

    def excess(self, parts: Iterable[Mapping[str, Any]]) -> int:
        """By how much a closing that is found may be longer than the shortest one.

        A search prefers names that some object requires, also where this one need not have them.
        """
        required = {name for part in parts for name in part.get("required") or ()}
        optional = [
            self._of_property(name, part["properties"][name])
            for part in parts
            for name in required.difference(part.get("required") or ()) & (part.get("properties") or {}).keys()
        ]
        if optional and self._holds_itself(self._schema, set(), set()):
            raise _UntoldError
        return sum(optional)

    def _holds_itself(self, schema: Any, around: set[int], seen: set[int]) -> bool:
        """Whether a part may hold itself; ``around`` are those that hold this one."""
        if not isinstance(schema, Mapping) or schema is _ANY or id(schema) in seen:
            return id(schema) in around
        seen.add(id(schema))
        around.add(id(schema))
        inner = [*_inner(schema), *([self._resolved(schema["$ref"])] if "$ref" in schema else ())]
        found = any(self._holds_itself(each, around, seen) for each in inner)
        around.remove(id(schema))
        return found

    def _of_property(self, name: str, schema: Any) -> int:
        return len(json.dumps(name, ensure_ascii=False).encode()) + 2 + self._of(schema)

    def _of(self, schema: Any) -> int:
        if not isinstance(schema, Mapping):
            return _LITERAL
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
            if schema.keys() - _BESIDE_REFERENCES:
                raise _UntoldError
            return self._of(self._resolved(schema["$ref"]))
        if "const" in schema or "enum" in schema:
            values = schema.get("enum", [schema.get("const")])
            return max(len(json.dumps(value, ensure_ascii=False).encode()) for value in values)
        of_kind = {
            "object": self._of_object,
            "array": self._of_array,
            "string": self._of_string,
            "number": self._of_number,
        }
        size = max((of_kind[kind](schema) for kind in _own_kinds(schema)), default=0)
        return size + self._of_alternatives(schema)

    def _of_alternatives(self, schema: Mapping[str, Any]) -> int:
        return sum(max(map(self._of, schema[name])) for name in _CHOICES if schema.get(name))

    def _of_number(self, schema: Mapping[str, Any]) -> int:
        limits = [_num_digits(schema[name]) + 2 for name in _LIMITS if name in schema]
        return max([_LITERAL, *limits]) + (_num_digits(schema["multipleOf"]) if "multipleOf" in schema else 0)

    def _of_string(self, schema: Mapping[str, Any]) -> int:
        return 2 + int(schema.get("minLength") or 0) + _FORMATTED * ("format" in schema)

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

    def _kinds(self, schema: Any) -> frozenset[str]:
        """Which kinds of values may fit."""
        if not isinstance(schema, Mapping):
            return _ALL_KINDS
        if "$ref" in schema:
            return self._kinds(self._resolved(schema["$ref"]))
        if "const" in schema or "enum" in schema:
            return frozenset(map(_kind_of, schema.get("enum", [schema.get("const")])))
        return _own_kinds(schema).union(*map(self._kinds, _alternatives(schema)))

    def _resolved(self, reference: Any) -> Any:
        found = self._schema
        if not isinstance(reference, str) or not f"{reference}/".startswith("#/"):
            raise _UntoldError
        for name in reference.removeprefix("#").split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or name not in found:
                raise _UntoldError
            found = found[name]
        return found


def _inner(schema: Mapping[str, Any]) -> Iterator[Any]:
    """The subschemas of one, and `_ANY` where it says nothing of the values in its objects or arrays."""
    for name in ("properties", "$defs", "definitions"):
        yield from (schema.get(name) or {}).values()
    for name in (*_CHOICES, "prefixItems"):
        yield from schema.get(name) or ()
    kinds = _NO_KINDS if schema.keys() & _TOLD else _own_kinds(schema)
    for name, kind in (("items", "array"), ("additionalProperties", "object")):
        if name in schema or kind in kinds:
            yield schema.get(name, _ANY)


def _alternatives(schema: Mapping[str, Any]) -> Sequence[Any]:
    return [each for name in _CHOICES for each in schema.get(name) or ()]


def _own_kinds(schema: Mapping[str, Any]) -> frozenset[str]:
    """Which kinds of values fit what a schema says beside its alternatives; none where that is nothing."""
    types = schema.get("type", ())
    named = [types] if isinstance(types, str) else types
    if not named:
        return frozenset() if _alternatives(schema) and not schema.keys() & _SAYING else _ALL_KINDS
    return frozenset(each if each in _ALL_KINDS else "number" for each in named)


def _num_digits(number: Any) -> int:
    return len(format(Decimal(str(number)), "f"))


def _kind_of(value: Any) -> str:
    match value:
        case dict():
            return "object"
        case list():
            return "array"
        case str():
            return "string"
    return "number"
