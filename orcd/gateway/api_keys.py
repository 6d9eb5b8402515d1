"""Who may call: bearer keys, of which only hashes are kept in memory."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orcd.errors import InvalidRequest
from orcd.gateway.settings import GatewaySettings

ID_DIGITS = 32
"""Hex digits of what callers made, behind the tag of their key."""
TENANT_IS_KEY = "tenant: the API key is the tenant; leave this field out"
"""What is said to callers who name another."""
_FIELDS = {"name": str, "key": str, "sha256": str, "models": list, "requests_per_minute": int}


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A caller: ``models`` None may use all, ``requests_per_minute`` 0 is no limit.

    ``tag`` marks what the caller made, so that no other can read it; it says nothing about the key.
    """

    name: str
    digest: bytes
    models: frozenset[str] | None = None
    requests_per_minute: int = 0

    @property
    def tag(self) -> str:
        """Eight hex digits that differ between keys; empty where no keys are asked for."""
        return hashlib.sha256(b"orcd key " + self.digest).hexdigest()[:8] if self.digest else ""

    def may_use(self, model: str) -> bool:
        """Whether the caller may ask this model."""
        return self.models is None or model in self.models


def new_id(kind: str, tag: str) -> str:
    """An id that nobody can guess for what a key with this tag makes; ``kind`` is what it begins with."""
    return f"{kind}{tag}{secrets.token_hex(ID_DIGITS // 2)}"


def is_made_by(key: ApiKey, made_id: str, kind: str) -> bool:
    """Whether an id is of this kind and of this key."""
    return re.fullmatch(f"{kind}{key.tag}[0-9a-f]{{{ID_DIGITS}}}", made_id) is not None


ANYBODY = ApiKey("anybody", b"")
"""Every caller of a gateway without keys."""


class ApiKeys:
    """The keys of a gateway."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = tuple(keys)

    @classmethod
    def load(cls, settings: GatewaySettings) -> ApiKeys:
        """From the key file and the environment. Raises `InvalidRequest` naming what is wrong."""
        listed = [key.strip() for key in settings.api_keys.split(",") if key.strip()]
        keys = [ApiKey(f"key {number}", _digest(key)) for number, key in enumerate(listed, 1)]
        if settings.api_key_file:
            keys += _read_file(Path(settings.api_key_file))
        if len({key.digest for key in keys}) != len(keys):
            raise InvalidRequest("api_key_file: a key is given twice")
        return cls(keys)

    @property
    def are_needed(self) -> bool:
        """Whether a caller needs a key at all."""
        return bool(self._keys)

    def find(self, authorization: str | None) -> ApiKey | None:
        """The caller with this Authorization header; None if it may not call."""
        if not self._keys:
            return ANYBODY
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest = _digest(token.strip())
        found = None
        for key in self._keys:  # all are compared, so that the time tells nothing
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _read_file(path: Path) -> list[ApiKey]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("keys")
    except OSError as error:
        raise InvalidRequest(f"api_key_file: {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise InvalidRequest(f"api_key_file: {path} is not valid TOML") from None
    if not isinstance(tables, list) or not tables:
        raise InvalidRequest(f"api_key_file: {path} has no [[keys]]")
    return [_read_key(f"api_key_file: {path}: keys[{index}]", table) for index, table in enumerate(tables)]


def _read_key(place: str, table: Any) -> ApiKey:
    if not isinstance(table, Mapping):
        raise InvalidRequest(f"{place}: must be a table")
    for name, value in table.items():
        kind = _FIELDS.get(name)
        if kind is None:
            raise InvalidRequest(f"{place}: unknown field; known are {', '.join(_FIELDS)}")
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InvalidRequest(f"{place}.{name}: must be a {kind.__name__}")
    if ("key" in table) == ("sha256" in table):
        raise InvalidRequest(f"{place}: give one of key and sha256")
    try:
        digest = _digest(table["key"]) if "key" in table else bytes.fromhex(table["sha256"])
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise InvalidRequest(f"{place}.sha256: must be 64 hex digits")
    if not table.get("name"):
        raise InvalidRequest(f"{place}.name: is needed; metrics and limits are kept under it")
    models = table.get("models")
    if models is not None and not all(isinstance(model, str) for model in models):
        raise InvalidRequest(f"{place}.models: must be a list of names")
    limit = table.get("requests_per_minute", 0)
    if limit < 0:
        raise InvalidRequest(f"{place}.requests_per_minute: must be at least 0")
    return ApiKey(table["name"], digest, None if models is None else frozenset(models), limit)
