"""Settings: the table of all ``ORCD_`` variables, how they are read, and those that clients have.

A flag ``--some-name`` of the command line, the variable ``ORCD_SOME_NAME`` and the field ``some_name`` of the settings
are the same setting. docs/settings.md lists them; `worker.settings` extends `ClientSettings` by all that a worker has.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar, get_type_hints

from orcd.errors import InvalidRequest

PREFIX = "ORCD_"

NAMES = frozenset(
    {
        "ageing_s",
        "api_key_file",
        "api_keys",
        "chat_template",
        "concurrency",
        "context_length",
        "cors_origins",
        "dequant_cache_bytes",
        "device",
        "drain_timeout_s",
        "engine_start_timeout_s",
        "engine_step_timeout_s",
        "files_dir",
        "host",
        "job_time_limit_s",
        "job_ttl_s",
        "key_prefix",
        "kv_block_tokens",
        "kv_cache_bytes",
        "kv_cache_type",
        "lease_ms",
        "log_format",
        "max_attempts",
        "max_body_bytes",
        "max_file_bytes",
        "max_queued",
        "max_sequences",
        "metrics_compat",
        "metrics_host",
        "metrics_port",
        "model",
        "name",
        "port",
        "prefix_cache",
        "queue_limit_s",
        "redis_url",
        "spare_percent",
        "stall_limit_s",
        "state_cache_bytes",
        "step_tokens",
        "tokenizer",
        "vram_bytes",
        "vram_check_s",
        "vram_fraction",
    }
)
"""All settings: `ClientSettings` and `worker.settings.Settings`. A variable of another name is a misspelt one."""

_SERVICE_LINK = re.compile(
    r"_SERVICE_(HOST|PORT(_\w+)?)$"  # the host and the named ports of a service
    r"|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
"""Kubernetes and Docker links describe a service called ``orcd`` or ``orcd-...`` in variables of every container beside
it: ``ORCD_SERVICE_HOST=10.0.0.7``, ``ORCD_PORT=tcp://10.0.0.7:80``, ``ORCD_PORT_80_TCP_ADDR=10.0.0.7``."""

_KEY_PREFIX = re.compile(r"([A-Za-z0-9:_.-]{0,63}[:_.-])?")
"""The last character is one that Celery, too, takes for the end of a prefix."""

_MOST = {"port": 65_535, "bytes": 2**53}
_MOST_ELSE = 2**31 - 1
"""What whole numbers may be at most, by the last word of their names: what sockets, timers and Redis's scripts, whose
numbers are floating-point ones, can do with."""

_KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number"}


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What a client can be told. Times are in the unit that the name ends with."""

    redis_url: str = field(default="redis://127.0.0.1:6379/0", repr=False)
    """The Redis that clients and workers meet on: redis://[USER:PASSWORD@]HOST:PORT/DB, or others."""
    key_prefix: str = ""
    """What all keys and channels begin with, as ``staging:``: systems with other prefixes may share the database."""
    job_ttl_s: int = 24 * 3600
    """How long a finished job's record and token log are kept."""
    queue_limit_s: int = 24 * 3600
    """How long a job may wait in the queue, from its submission or from when it came back there."""

    def check(self) -> None:
        """Raises `InvalidRequest` naming the variable of a value that cannot be."""
        check_whole_numbers(self, {"job_ttl_s", "queue_limit_s"})
        if not _KEY_PREFIX.fullmatch(self.key_prefix):
            raise InvalidRequest(f"{PREFIX}KEY_PREFIX must be of A-Z a-z 0-9 : _ . - and end with one of the last four")

    def defaults(self) -> ClientSettings:
        """The settings that have these where nothing else is said."""
        return ClientSettings()


S = TypeVar("S", bound=ClientSettings)


def check_whole_numbers(settings: ClientSettings, positive: set[str]) -> None:
    """Raises `InvalidRequest` for a whole number that is too large, or below 1 (``positive`` fields), or below 0."""
    for each in fields(settings):
        value = getattr(settings, each.name)
        least = 1 if each.name in positive else 0
        most = _MOST.get(each.name.rpartition("_")[2], _MOST_ELSE)
        if isinstance(value, int) and not least <= value <= most:
            bound = f"least {least}" if value < least else f"most {most}"
            raise InvalidRequest(f"{PREFIX}{each.name.upper()} must be at {bound}")


def inherited_environment() -> dict[str, str]:
    """The environment of this process without ``ORCD_*``: for a child that is not to read the settings."""
    return {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}


def read_environment(kind: type[S], environment: Mapping[str, str] | None = None, **overrides: Any) -> S:
    """Settings of ``kind`` from ``ORCD_*`` in ``environment`` (default: the process's own) and ``overrides``.

    Overrides that are None count as not given. Raises `InvalidRequest` naming the variable. An unknown ``ORCD_``
    variable is an error too: it is a misspelt one. Those that describe a service called orcd are none of ours.
    """
    environment = os.environ if environment is None else environment
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if variable.startswith(PREFIX) and text and not _is_service_link(variable, text):
            name = variable.removeprefix(PREFIX).lower()
            if name not in NAMES:
                similar = difflib.get_close_matches(name, NAMES, 1)
                meant = f"did you mean {PREFIX}{similar[0].upper()}?" if similar else "docs/settings.md lists all"
                raise InvalidRequest(f"unknown environment variable {variable}; {meant}")
            if name in types:
                values[name] = _parse(name, types[name], text)
    values.update({name: value for name, value in overrides.items() if value is not None})
    settings = kind(**values)
    settings.check()
    return settings


def to_environment(settings: ClientSettings) -> dict[str, str]:
    """The inverse of `read_environment`, for a child process; defaults are left out."""
    defaults = asdict(settings.defaults())
    values = asdict(settings)
    return {PREFIX + name.upper(): str(value) for name, value in values.items() if value != defaults[name]}


def _is_service_link(variable: str, text: str) -> bool:
    """Whether a container platform, not a person, set the variable to say where a service is."""
    if _SERVICE_LINK.search(variable):
        return True
    return variable.endswith("_PORT") and _SERVICE_ADDRESS.match(text) is not None


def _parse(name: str, kind: type, text: str) -> Any:
    try:
        if kind is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        raise InvalidRequest(f"{PREFIX}{name.upper()} must be {_KINDS[kind]}; set it to that or unset it") from None
