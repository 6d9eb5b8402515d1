"""How answers are delivered: whole or as streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orcd.errors import InvalidRequest
from orcd.gateway.endpoint import read_flag


@dataclass(frozen=True, slots=True)
class Delivery:
    """How the answer to a body is delivered."""

    streams: bool
    include_usage: bool

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Delivery:
        """From ``stream`` and ``stream_options``. Raises `InvalidRequest`."""
        streams, options = read_flag(body, "stream"), body.get("stream_options")
        if options is None:
            return cls(streams, False)
        if not streams:
            raise InvalidRequest("stream_options: needs stream true")
        if not isinstance(options, dict) or not isinstance(options.get("include_usage"), bool | None):
            raise InvalidRequest("stream_options: must be an object with include_usage true or false")
        return cls(streams, bool(options.get("include_usage")))
