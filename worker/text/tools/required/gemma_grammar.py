"""Arguments as Gemma 4 writes them, as a grammar: JSON with other quotes around texts, and none around keys."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from worker.text.tools.call_syntax import GEMMA_QUOTE
from worker.text.tools.required.tagged_grammar import literal, text_rules

_BARE_KEY = re.compile(r"[\w.-]+")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_UNSUPPORTED = frozenset(
    [
        *("pattern", "format", "allOf", "not", "if", "then", "else", "$dynamicRef", "unevaluatedProperties"),
        *("patternProperties", "propertyNames", "minProperties", "maxProperties", "dependentRequired"),
        *("dependentSchemas", "prefixItems", "uniqueItems", "contains", "minContains", "unevaluatedItems"),
    ]
)
_KINDS = ("string", "number", "boolean", "null", "array", "object")


class UnsupportedKeywordError(Exception):
    """A keyword of a schema that this grammar cannot keep to."""


class GemmaGrammar:
    """The rules of arguments that fit a schema, with names that begin with ``rule``; the first is `root`.

    Properties come in the order of their names, as in the model's chat template; others than the schema names do not
    come, unless it names none. Raises `UnsupportedKeywordError`, and `AttributeError` or `TypeError` for no schema.
    """

    def __init__(self, rule: str, schema: Mapping[str, Any], quote: str) -> None:
        """``quote`` is `GEMMA_QUOTE`, or the control token that is spelt so, in Lark's notation."""
        self._rule = rule
        self._schema = schema
        self._quote = quote
        self.rules: list[str] = []
        self._known: dict[str, str] = {}  # the rules of what is referred to
        self.root = self._object(schema)

    def _add(self, body: str) -> str:
        name = f"{self._rule}_{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return name

    def _value(self, schema: Any) -> str:
        """The name of a rule, or an expression in brackets."""
        if not isinstance(schema, Mapping):
            schema = {}
        for keyword in schema.keys() & _UNSUPPORTED:
            raise UnsupportedKeywordError(keyword)
        if "$ref" in schema:
            return self._referred(schema["$ref"])
        if "enum" in schema or "const" in schema:
            return f"({' | '.join(map(self._literal, schema.get('enum', [schema.get('const')])))})"
        alternatives = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
        if alternatives:
            return f"({' | '.join(map(self._value, alternatives))})"
        kinds = schema.get("type", _KINDS)
        return f"({' | '.join(self._of_kind(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds))})"

    def _of_kind(self, kind: str, schema: Mapping[str, Any]) -> str:
        match kind:
            case "object":
                return self._object(schema)
            case "array":
                return self._array(schema)
            case "string":
                return self._any_text(schema)
        limits = {keyword: schema[keyword] for keyword in _NUMBERS if keyword in schema}
        return self._add(f"%json {json.dumps({'type': kind, **limits})}")

    def _any_text(self, schema: Mapping[str, Any]) -> str:
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        name = self._add("")
        self.rules[-1] = f"{name}: {self._quote} {name}_text"
        self.rules += text_rules(f"{name}_text", f"{{{least},{most}}}" if least or most != "" else "*", self._quote)
        return name

    def _array(self, schema: Mapping[str, Any]) -> str:
        item = self._value(schema.get("items")) if "items" in schema else self._any()
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[]"'
        others = f'("," {item}){{{max(0, least - 1)},{"" if most is None else most - 1}}}'
        some = f"{item} {others}"
        return self._add(f'"[" {some if least else f"({some})?"} "]"')

    def _object(self, schema: Mapping[str, Any]) -> str:
        for keyword in schema.keys() & _UNSUPPORTED:
            raise UnsupportedKeywordError(keyword)
        properties, required = schema.get("properties") or {}, schema.get("required") or ()
        if not properties and not required and schema.get("additionalProperties", True) is not False:
            return self._any_object()
        missing = dict.fromkeys(required, schema.get("additionalProperties", {}))
        members = sorted({**missing, **properties}.items(), key=lambda member: member[0].lower())
        pairs = [self._add(f'{self._key(name)} ":" {self._value(value)}') for name, value in members]
        behind = [
            f'("," {pair}){"" if name in required else "?"}' for pair, (name, _) in zip(pairs, members, strict=True)
        ]
        choices = []  # by which is the first one
        for place, (name, _) in enumerate(members):
            choices.append(" ".join([pairs[place], *behind[place + 1 :]]))
            if name in required:
                break
        else:
            choices.append('""')
        return self._add(f'"{{" ({" | ".join(choices)}) "}}"')

    def _any(self) -> str:
        """The rule of any value."""
        if "" not in self._known:
            self._known[""] = name = self._add("")
            number = len(self.rules) - 1
            plain = " | ".join(self._of_kind(kind, {}) for kind in ("string", "number", "boolean", "null"))
            pairs = self._any_object()
            self.rules[number] = f'{name}: {plain} | "[" ({name} ("," {name})*)? "]" | {pairs}'
        return self._known[""]

    def _any_object(self) -> str:
        if "{" not in self._known:
            self._known["{"] = name = self._add("")
            number, pair = len(self.rules) - 1, f"{name}_pair"
            self.rules.append(f'{pair}: /[A-Za-z_][A-Za-z0-9_]{{0,30}}/ ":" {self._any()}')
            self.rules[number] = f'{name}: "{{" ({pair} ("," {pair})*)? "}}"'
        return self._known["{"]

    def _referred(self, reference: str) -> str:
        if reference not in self._known:
            self._known[reference] = name = self._add("")
            number = len(self.rules) - 1
            self.rules[number] = f"{name}: {self._value(self._resolved(reference))}"
        return self._known[reference]

    def _resolved(self, reference: str) -> Any:
        found: Any = self._schema
        if not reference.startswith("#"):
            raise UnsupportedKeywordError("$ref")
        for name in reference.removeprefix("#").split("/")[1:]:
            found = found.get(name.replace("~1", "/").replace("~0", "~"))
        return found

    def _key(self, name: str) -> str:
        return literal(name) if _BARE_KEY.fullmatch(name) else self._text(name)

    def _text(self, text: str) -> str:
        if GEMMA_QUOTE in text:
            raise UnsupportedKeywordError(f"the text {GEMMA_QUOTE}")
        return f"{self._quote} {literal(text)} {self._quote}"

    def _literal(self, value: Any) -> str:
        """The text of one value."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            pairs = (f'{self._key(name)} ":" {self._literal(each)}' for name, each in value.items())
            return f"""({" ".join(['"{"', ' "," '.join(pairs), '"}"'])})"""
        if isinstance(value, Sequence):
            return f"""({" ".join(['"["', ' "," '.join(map(self._literal, value)), '"]"'])})"""
        return literal(json.dumps(value))
