"""The paged KV cache: one pool of blocks, the same block ids in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernels.device import Device
from worker.model.config import ModelConfig


@dataclass(frozen=True, slots=True, eq=False)
class KVCache:
    """K and V of every layer, each [num_blocks, block_tokens, num_kv_heads, head_dim]."""

    keys: tuple[Any, ...]
    values: tuple[Any, ...]


def allocate_cache(config: ModelConfig, device: Device, num_blocks: int, block_tokens: int) -> KVCache:
    """A cache with arbitrary contents: what has not been written is never read."""
    shape = (num_blocks, block_tokens, config.num_kv_heads, config.head_dim)
    keys, values = (
        tuple(device.empty(shape, device.cache_dtype) for _ in range(config.num_layers)) for _ in ("keys", "values")
    )
    return KVCache(keys, values)


def bytes_per_block(config: ModelConfig, device: Device, block_tokens: int) -> int:
    """Bytes of one block over all layers, K and V."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * device.cache_dtype.itemsize
    return per_token * block_tokens
