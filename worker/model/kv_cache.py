"""The paged KV cache: one pool of blocks, the same block ids in every layer."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.batch import AnyArray, LayerCache
from kernels.devices.protocol import Device
from worker.model.config import ModelConfig


@dataclass(frozen=True, slots=True, eq=False)
class KVCache:
    """K and V of every layer, each of num_blocks x block_tokens tokens in the layout of the device's attention."""

    layers: tuple[LayerCache[AnyArray], ...]


def allocate_cache(config: ModelConfig, device: Device, num_blocks: int, block_tokens: int) -> KVCache:
    """A cache with arbitrary contents: what has not been written is never read."""
    keys, values = (
        tuple(
            device.cache_array(num_blocks, block_tokens, config.num_kv_heads, config.head_dim)
            for _ in range(config.num_layers)
        )
        for _ in ("keys", "values")
    )
    return KVCache(tuple(map(LayerCache, keys, values)))


def bytes_per_block(config: ModelConfig, device: Device, block_tokens: int) -> int:
    """Bytes of one block over all layers, K and V."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * device.cache_dtype.itemsize
    return per_token * block_tokens
