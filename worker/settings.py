"""All settings, read once: the only place that looks at the environment.

A flag ``--some-name`` of the command line, the variable ``ORCD_SOME_NAME`` and the field `Settings.some_name` are the
same setting. The README lists them; `tests/worker/test_settings.py` keeps that list complete.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from worker.errors import InvalidRequest

PREFIX = "ORCD_"

_CPU_CHOICES = {"max_sequences": 64, "step_tokens": 512}
_CUDA_CHOICES = {"max_sequences": 256, "step_tokens": 8192}
_KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number"}


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
    max_sequences: int = 0
    """Sequences that decode in one step; 0: what suits the device (CPU: 64, CUDA: 256)."""
    step_tokens: int = 0
    """Token budget of one step: decode tokens plus prefill chunks; 0: what suits the device (CPU: 512, CUDA: 8192)."""
    kv_block_tokens: int = 16
    """Tokens per KV cache block."""
    kv_cache_bytes: int = 0
    """Size of the KV cache; 0: CPU: ``max_sequences`` of 1024 tokens, at most 1 GiB; CUDA: what the budget leaves."""
    vram_fraction: float = 0.9
    """CUDA device: the part of the memory that is free at the start that may be used."""
    vram_bytes: int = 0
    """CUDA device: most memory that may be used, whatever is free; 0: no such limit."""
    vram_check_s: int = 60
    """CUDA device: time between two checks that all of it is plain device memory; 0: checked at the start only."""
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

    def __post_init__(self) -> None:
        """What the device decides is decided here, so that nobody else has to know that 0 stands for it."""
        chosen = _CPU_CHOICES if self.device == "cpu" else _CUDA_CHOICES
        for name, value in chosen.items():
            object.__setattr__(self, name, getattr(self, name) or value)

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
        raise InvalidRequest(f"{PREFIX}{name.upper()} must be {_KINDS[kind]}; set it to that or unset it") from None


_POSITIVE = {"kv_block_tokens", "concurrency", "lease_ms", "max_attempts", "job_ttl_s",
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
    if not 0 < settings.vram_fraction <= 1:
        raise InvalidRequest(f"{PREFIX}VRAM_FRACTION must be above 0 and at most 1")
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
    defaults = asdict(Settings(device=settings.device)) | {"device": Settings().device}
    values = asdict(settings)
    return {PREFIX + name.upper(): str(value) for name, value in values.items() if value != defaults[name]}
