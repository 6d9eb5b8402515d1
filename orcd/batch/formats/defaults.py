"""What a command line says for all lines of a batch; a line's own fields win."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from orcd import request as requests
from orcd.errors import InvalidRequest


class Defaults(msgspec.Struct, frozen=True, omit_defaults=True):
    """``fields`` are those of a request; ``system`` is the system message of conversations that have none."""

    fields: dict[str, Any] = {}
    system: str | None = None

    def apply(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A request's fields with what they leave out. Raises `InvalidRequest` as `with_system` does."""
        given = {name: value for name, value in fields.items() if value is not None}
        return self.with_system(requests.with_defaults(given, self.fields))

    def with_system(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of a request, or the body of an OpenAI one, with the system message if it has none of its own.

        Raises `InvalidRequest` if there is a system message and no conversation that it could begin.
        """
        if self.system is None:
            return fields
        if "input" in fields:  # of OpenAI's responses
            return fields if fields.get("instructions") is not None else {**fields, "instructions": self.system}
        messages = fields.get("messages")
        if not isinstance(messages, list):
            raise InvalidRequest("system: the line has no messages that a system message (--system) could begin")
        roles = [message.get("role") for message in messages if isinstance(message, dict)]
        if "system" in roles or "developer" in roles:
            return fields
        return {**fields, "messages": [{"role": "system", "content": self.system}, *messages]}
