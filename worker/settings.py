"""All that a worker can be told: the settings of clients and its own, read once at the start.

docs/settings.md lists them; `tests/test_docs.py` keeps that list complete.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orcd.errors import InvalidRequest, is_unicode
from orcd.settings import PREFIX, ClientSettings, check_whole_numbers, read_environment

_CPU_CHOICES = {"max_sequences": 64, "step_tokens": 512}
_CUDA_CHOICES = {"max_sequences": 256, "step_tokens": 8192}
_POSITIVE = {"job_ttl_s", "ageing_s", "queue_limit_s", "kv_block_tokens", "lease_ms", "max_attempts",
             "engine_start_timeout_s", "engine_step_timeout_s"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ClientSettings):
    """Everything a worker can be told. Sizes are in bytes, times in the unit that the name ends with."""

    model: str = ""
    """Path of the GGUF file (the first part of a split one), or hf:ORG/REPO/FILE.gguf[@REVISION][#sha256=DIGEST]."""
    tokenizer: str = ""
    """Path of a tokenizer.json; empty: the GGUF's own vocabulary."""
    chat_template: str = ""
    """Path of a Jinja chat template to use instead of the GGUF's own."""
    device: str = "cuda:0"
    """``cuda:N`` or ``cpu``; the CPU is used only when it is asked for by name."""
    name: str = ""
    """Model name shown to clients; empty: the file's name without its extension."""
    metrics_host: str = "127.0.0.1"
    """Address for Prometheus metrics and health; 0.0.0.0: all of this machine's."""
    metrics_port: int = 0
    """Port for Prometheus metrics and health; 0: none."""
    metrics_compat: str = "vllm"
    """``vllm``: metrics also under the names that vLLM gave them, where they mean the same; ``none``: without those."""

    context_length: int = 0
    """Longest prompt + output in tokens; 0: what the model allows, bounded by the KV cache."""
    max_sequences: int = 0
    """Sequences that decode in one step; 0: what suits the device (CPU: 64, CUDA: 256)."""
    step_tokens: int = 0
    """Token budget of one step: decode tokens plus prefill chunks; 0: what suits the device (CPU: 512, CUDA: 8192)."""
    kv_cache_type: str = "f16"
    """``f16``: keys and values are of the device's type (CUDA: float16, CPU: float32); ``q8``: of 8 bits."""
    kv_block_tokens: int = 16
    """Tokens per KV cache block."""
    kv_cache_bytes: int = 0
    """Size of the KV cache; 0: CPU: ``max_sequences`` of 1024 tokens, at most 1 GiB; CUDA: what the budget leaves."""
    state_cache_bytes: int = 1024 * 1024 * 1024
    """Models with recurrent layers: memory for states of known prefixes, beside those of running sequences."""
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

    spare_percent: int = 25
    """Sequences that a worker holds beyond those that its engine runs, in percent of these; others wait in Redis."""
    concurrency: int = 0
    """Messages that one worker holds at a time, also of jobs that just ended; 0: twice ``max_sequences``."""
    ageing_s: int = 300
    """Time in the queue after which messages get every second place, the oldest first, however urgent others are."""
    max_queued: int = 0
    """Jobs that may wait over all queues, else new ones are refused with QUEUE_FULL; 0: any number."""
    lease_ms: int = 10_000
    """How long a job belongs to a worker that has stopped renewing it."""
    max_attempts: int = 5
    """Deaths of whole workers, without a token in between, after which a job is failed as POISONED."""
    drain_timeout_s: int = 20
    """How long jobs in flight may go on when the worker is told to stop; then other workers get them."""
    job_time_limit_s: int = 0
    """Running time after which a job fails with INFERENCE_TIMEOUT; 0: none."""
    stall_limit_s: int = 0
    """Time in which a working engine gave a job no token, after which it fails with INFERENCE_TIMEOUT; 0: none."""
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
        object.__setattr__(self, "concurrency", self.concurrency or 2 * self.max_sequences)

    @property
    def model_name(self) -> str:
        """What clients call the model: ``name``, or the file's name without ending, part number and revision."""
        return self.name or re.sub(r"(-\d{5}-of-\d{5})?\.gguf([@#].*)?$", "", Path(self.model).name)

    def check(self) -> None:
        """Raises `InvalidRequest` naming the variable of a value that cannot be."""
        ClientSettings.check(self)
        check_whole_numbers(self, _POSITIVE)
        from kernels.devices.device_name import gpu_index  # not at the top: a page of help needs nothing of kernels

        if self.device != "cpu" and gpu_index(self.device) is None:
            raise InvalidRequest(f"{PREFIX}DEVICE must be cpu or cuda:N")
        if not 0 < self.vram_fraction <= 1:
            raise InvalidRequest(f"{PREFIX}VRAM_FRACTION must be above 0 and at most 1")
        if self.metrics_compat not in ("vllm", "none"):
            raise InvalidRequest(f"{PREFIX}METRICS_COMPAT must be vllm or none")
        if self.kv_cache_type not in ("f16", "q8"):
            raise InvalidRequest(f"{PREFIX}KV_CACHE_TYPE must be f16 or q8")
        if not is_unicode(self.model_name):
            which = "" if self.name else f", or, where it is not set, the name of {PREFIX}MODEL"
            raise InvalidRequest(f"{PREFIX}NAME must be valid UTF-8{which}")
        if self.log_format not in ("auto", "json", "text"):
            raise InvalidRequest(f"{PREFIX}LOG_FORMAT must be auto, json or text")

    def defaults(self) -> Settings:
        """The settings of the same device where nothing else is said, but for the device's name."""
        return replace(Settings(device=self.device), device=Settings().device)


def from_environment(environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """A worker's settings from ``ORCD_*`` and ``overrides``; see `orcd.settings.read_environment`."""
    return read_environment(Settings, environment, **overrides)
