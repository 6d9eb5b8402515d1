"""What a worker on the CPU device needs of a machine's memory, before anything of the model is loaded."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from worker.load import open_configured_device
from worker.model.config import ModelConfig
from worker.model.gguf import GGUFFile
from worker.model.kv_cache import num_cache_blocks, num_state_slots
from worker.model.registry import assemble_model, read_model_config
from worker.model.weights import Weights
from worker.settings import Settings

FLOAT_BYTES = 4
PROCESS_BYTES = 256 << 20
"""What Python and its libraries take in the worker's processes, with a vocabulary."""
WIDTHS = 4
"""Rows of a layer's widest array that a step holds at a time, and as many of its input's."""
STATE_COPIES = 3
"""Of the states of a step's sequences in one layer: as they were read, in the order of their lengths, what is added."""


class RamPlan(msgspec.Struct, frozen=True):
    """Bytes, and whether they fit; None where the system does not tell what is available.

    ``weights_bytes`` are those of the file, which is mapped: the system may drop and read them again, slowly.
    ``dequant_cache_bytes`` are weights that were expanded. ``activations_bytes`` is an estimate for the largest step.
    ``states_bytes`` are those of ``state_slots``: what recurrent layers keep of sequences and of known prefixes.
    """

    weights_bytes: int
    kv_cache_bytes: int
    kv_cache_tokens: int
    kv_cache_type: str
    states_bytes: int
    state_slots: int
    dequant_cache_bytes: int
    activations_bytes: int
    processes_bytes: int
    total_bytes: int
    available_bytes: int | None
    fits: bool | None


def plan_ram(gguf: GGUFFile, settings: Settings) -> RamPlan:
    """The plan of a worker with ``settings``. Raises `ModelLoadFailed` for a model that cannot run.

    Raises `InsufficientVram` if the settings leave no room for the KV cache.
    """
    device = open_configured_device(settings)
    config = read_model_config(gguf)
    model = assemble_model(config, Weights(gguf, device), device)
    context_length = min(settings.context_length or config.context_length, config.context_length)
    block_bytes = model.bytes_per_block(settings.kv_block_tokens)
    num_blocks = num_cache_blocks(block_bytes, settings, context_length)
    state_slots = num_state_slots(model.bytes_per_state, settings, num_blocks)
    tensors = gguf.tensors.values()
    num_weights = sum(math.prod(tensor.shape) for tensor in tensors)
    parts = {
        "weights_bytes": sum(tensor.num_bytes for tensor in tensors),
        "kv_cache_bytes": num_blocks * block_bytes,
        "states_bytes": state_slots * model.bytes_per_state,
        "dequant_cache_bytes": min(settings.dequant_cache_bytes, FLOAT_BYTES * num_weights),
        "activations_bytes": _activations_bytes(config, settings),
        "processes_bytes": PROCESS_BYTES,
    }
    total, available = sum(parts.values()), available_ram()
    return RamPlan(
        **parts,
        kv_cache_tokens=num_blocks * settings.kv_block_tokens,
        kv_cache_type=device.cache_format.name,
        state_slots=state_slots,
        total_bytes=total,
        available_bytes=available,
        fits=None if available is None else total <= available,
    )


def _activations_bytes(config: ModelConfig, settings: Settings) -> int:
    """About what the largest step holds: rows of its tokens, logits, and copies of one layer's states."""
    kept, num_sequences = config.recurrence, min(settings.max_sequences, settings.step_tokens)
    widths = [config.intermediate, *(layer.intermediate for layer in config.layers)]
    widths += [config.query_width + 2 * config.kv_width, config.num_layers * config.layer_embedding]
    widths += [kept.projected_width] if kept else []
    rows = settings.step_tokens * WIDTHS * (max(widths) + config.hidden)
    logits = 2 * num_sequences * config.vocab_size
    states = STATE_COPIES * num_sequences * kept.state_size if kept else 0
    return FLOAT_BYTES * (rows + logits + states)


def available_ram() -> int | None:
    """Bytes that a new process could have without others being driven out; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
