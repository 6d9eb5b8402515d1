"""JSON schemas of many kinds, drawn by a seed: for structured output they are what callers send."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

NAMES = ("id", "name", "tags", "größe", "価格", "is_ok", "a b", 'quo"te', "x-1", "items", "note", "n", "value", "child")
WORDS = ("red", "green", "très bleu", "日本", "a", "", 'with "quotes"', "tab\there", "🙂")
PATTERNS = ("^[a-z]{2,5}$", "^[A-Z][a-z]+$", "^\\d{3}-\\d{4}$", "^(yes|no|maybe)$", "^#[0-9a-f]{6}$")
FORMATS = ("date", "time", "uuid", "ipv4")
MAX_DEPTH = 3


def make_schemas(seed: int, number: int) -> list[dict[str, Any]]:
    """So many schemas; every one is of an object, as most APIs ask for, or now and then of something else."""
    chance = random.Random(seed)
    return [_Maker(chance).schema() for _ in range(number)]


class _Maker:
    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._defs: dict[str, Any] = {}

    def schema(self) -> dict[str, Any]:
        """One schema, with the definitions that it refers to."""
        if self._chance.random() < 0.3:
            self._defs["node"] = self._node()
        if self._chance.random() < 0.3:
            self._defs["point"] = self._object(MAX_DEPTH)
        found = self._object(0) if self._chance.random() < 0.85 else self._any(0)
        return {**found, "$defs": self._defs} if self._defs else found

    def _node(self) -> dict[str, Any]:
        """A tree: its children are like it."""
        child = {"$ref": "#/$defs/node"}
        children = self._chance.choice([{"type": "array", "items": child, "maxItems": 3}, child])
        return {
            "type": "object",
            "properties": {"child": children, "value": self._scalar()},
            "required": ["value"],
            "additionalProperties": False,
        }

    def _any(self, depth: int) -> dict[str, Any]:
        kinds: list[Callable[[], dict[str, Any]]] = [self._scalar, self._scalar]
        if depth < MAX_DEPTH:
            kinds += [lambda: self._object(depth), lambda: self._array(depth), lambda: self._union(depth)]
        if self._defs:
            kinds.append(lambda: {"$ref": f"#/$defs/{self._chance.choice(sorted(self._defs))}"})
        return self._chance.choice(kinds)()

    def _object(self, depth: int) -> dict[str, Any]:
        names = self._chance.sample(NAMES, self._chance.randrange(1, 5))
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: self._any(depth + 1) for name in names},
            "required": [name for name in names if self._chance.random() < 0.6],
        }
        if self._chance.random() < 0.7:
            schema["additionalProperties"] = False
        elif self._chance.random() < 0.5:
            schema["additionalProperties"] = self._scalar()
        return schema

    def _array(self, depth: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "array", "items": self._any(depth + 1)}
        least = self._chance.choice([0, 0, 1, 3])
        if least:
            schema["minItems"] = least
        if self._chance.random() < 0.6:
            schema["maxItems"] = least + self._chance.randrange(0, 4)
        if self._chance.random() < 0.2:
            schema["prefixItems"] = [self._scalar(), self._scalar()]
        return schema

    def _union(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self._any(depth + 1) for _ in range(self._chance.randrange(2, 4))]}

    def _scalar(self) -> dict[str, Any]:
        return self._chance.choice((self._string, self._number, self._enum, self._plain))()

    def _string(self) -> dict[str, Any]:
        kind = self._chance.random()
        if kind < 0.25:
            return {"type": "string", "pattern": self._chance.choice(PATTERNS)}
        if kind < 0.4:
            return {"type": "string", "format": self._chance.choice(FORMATS)}
        least = self._chance.choice([0, 0, 1, 12])
        return {"type": "string", "minLength": least, "maxLength": least + self._chance.randrange(1, 30)}

    def _number(self) -> dict[str, Any]:
        kind = self._chance.choice(["integer", "number"])
        least = self._chance.choice([-1000, -5, 0, 1, 99])
        schema: dict[str, Any] = {"type": kind, "minimum": least}
        if self._chance.random() < 0.7:
            schema["maximum"] = least + self._chance.choice([1, 10, 12345])
        if kind == "integer" and self._chance.random() < 0.15:
            schema["multipleOf"] = self._chance.choice([2, 5, 7])
        return schema

    def _enum(self) -> dict[str, Any]:
        if self._chance.random() < 0.3:
            return {"const": self._chance.choice([*WORDS, 1, None, True])}
        return {"enum": self._chance.sample([*WORDS, 1, -2.5, None, False], self._chance.randrange(1, 5))}

    def _plain(self) -> dict[str, Any]:
        return {"type": self._chance.choice(["string", "boolean", "null", "integer", "number", ["string", "null"]])}
