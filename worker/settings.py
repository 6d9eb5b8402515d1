"""All settings, read once: the only place that looks at the environment.

A flag ``--some-name`` of the command line, the variable ``ORCD_SOME_NAME`` and the field `Settings.some_name` are the
same setting. The README lists them; `tests/worker/test_settings.py` keeps that list complete.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from worker.errors import InvalidRequest

PREFIX = "ORCD_"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a worker can be told. Sizes are in bytes, times in the unit that the name ends with."""

    model: str = ""
    """Path of the GGUF file (the first part of a split one), or hf:ORG/REPO/FILE.gguf[@REVISION][#sha256=DIGEST]."""
    tokenizer: str = ""
    """Path of a tokenizer.json; empty: the GGUF's own vocabulary."""
    device: str = "cuda:0"
    """``cuda:N`` or ``cpu``; the CPU is used only when it is asked for by name."""
    name: str = ""
    """Model name shown to clients; empty: the file's name without its extension."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    metrics_port: int = 0
    """Port for Prometheus metrics and health on 127.0.0.1; 0: none."""

    context_length: int = 0
    """Longest prompt + output in tokens; 0: what the model allows, bounded by the KV cache."""
    max_sequences: int = 64
    """Sequences that decode in one step."""
    step_tokens: int = 512
    """Token budget of one step: decode tokens plus prefill chunks."""
    kv_block_tokens: int = 16
    """Tokens per KV cache block."""
    kv_cache_bytes: int = 0
    """Size of the KV cache; 0: chosen from the device (CPU: ``max_sequences`` of 1024 tokens, at most 1 GiB)."""
    prefix_cache: bool = True
    """Reuse KV blocks of equal prompt prefixes."""
    dequant_cache_bytes: int = 512 * 1024 * 1024
    """CPU device: most memory for dequantised weight tiles."""

    concurrency: int = 256
    """Jobs that one worker holds at a time; beyond ``max_sequences`` they wait in the engine."""
    lease_ms: int = 10_000
    """How long a job belongs to a worker that has stopped renewing it."""
    max_attempts: int = 5
    """Claims after which a job that keeps losing its worker is failed as POISONED."""
    job_ttl_s: int = 24 * 3600
    """How long a finished job's record and token log are kept."""
    job_time_limit_s: int = 0
    """Running time after which a job fails with INFERENCE_TIMEOUT; 0: none."""
    engine_start_timeout_s: int = 600
    """Time the engine has from start to Ready."""
    engine_step_timeout_s: int = 120
    """Silence of a working engine after which it is taken for hung and restarted."""
    log_format: str = "auto"
    """``json``, ``text`` or ``auto``: text on a terminal, else one JSON object a line."""

    @property
    def model_name(self) -> str:
        """What clients call the model: ``name``, or the file's name without ending, part number and revision."""
        return self.name or re.sub(r"(-\d{5}-of-\d{5})?\.gguf([@#].*)?$", "", Path(self.model).name)


def _parse(name: str, kind: type, text: str) -> Any:
    try:
        if kind is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        raise InvalidRequest(f"{PREFIX}{name.upper()} must be a {kind.__name__}; set it to one or unset it") from None


_POSITIVE = {"max_sequences", "step_tokens", "kv_block_tokens", "concurrency", "lease_ms", "max_attempts", "job_ttl_s",
             "engine_start_timeout_s", "engine_step_timeout_s"}  # fmt: skip


def _check(settings: Settings) -> None:
    for field in fields(settings):
        value = getattr(settings, field.name)
        least = 1 if field.name in _POSITIVE else 0
        if isinstance(value, int) and value < least:
            raise InvalidRequest(f"{PREFIX}{field.name.upper()} must be at least {least}")
    device, _, index = settings.device.partition(":")
    if settings.device != "cpu" and not (device == "cuda" and index.isdecimal()):
        raise InvalidRequest(f"{PREFIX}DEVICE must be cpu or cuda:N")
    if settings.log_format not in ("auto", "json", "text"):
        raise InvalidRequest(f"{PREFIX}LOG_FORMAT must be auto, json or text")


def from_environment(environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read ``ORCD_*`` from ``environment`` (default: the process's own), then apply ``overrides`` that are not None.

    Raises `InvalidRequest` naming the variable. An unknown ``ORCD_`` variable is an error too: it is a misspelt one.
    """
    environment = os.environ if environment is None else environment
    kinds = get_type_hints(Settings)
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if variable.startswith(PREFIX) and text:
            name = variable.removeprefix(PREFIX).lower()
            if name not in kinds:
                raise InvalidRequest(f"unknown environment variable {variable}; see the README's list")
            values[name] = _parse(name, kinds[name], text)
    values.update({name: value for name, value in overrides.items() if value is not None})
    settings = Settings(**values)
    _check(settings)
    return settings


def to_environment(settings: Settings) -> dict[str, str]:
    """The inverse of `from_environment`, for a child process; defaults are left out."""
    return {
        PREFIX + field.name.upper(): str(value)
        for field in fields(settings)
        if (value := getattr(settings, field.name)) != field.default
    }
