"""The paged KV cache, one pool of blocks with the same block ids in every layer, and the states of recurrent layers."""

from __future__ import annotations

import msgspec

from kernels.batch import AnyArray, LayerCache, LayerState
from kernels.cache_format import CacheFormat
from kernels.devices.protocol import Device
from orcd.errors import InsufficientVram
from worker.model.config import ModelConfig
from worker.settings import Settings

DEFAULT_TOKENS_PER_SEQUENCE = 1024
DEFAULT_CACHE_BYTES = 1 << 30
STATE_ITEM_BYTES = 4  # float32 on every device


class KVCache(msgspec.Struct, frozen=True, eq=False):
    """What is kept of sequences: keys and values of layers with attention, states of recurrent ones.

    Keys and values are of num_blocks x block_tokens tokens each, in the layout of the device's attention.
    """

    layers: tuple[LayerCache[AnyArray], ...]  # of those with attention, in their order
    states: tuple[LayerState[AnyArray], ...] = ()  # of the recurrent ones


def allocate_cache(
    config: ModelConfig, device: Device, num_blocks: int, block_tokens: int, num_states: int = 0
) -> KVCache:
    """A cache with arbitrary contents: what has not been written is never read."""
    own: dict[int, LayerCache[AnyArray]] = {}
    attending = [(index, layer) for index, layer in enumerate(config.layers) if not layer.recurrent]
    for index, layer in attending:
        if layer.cache_layer == index:
            shape = num_blocks, block_tokens, layer.num_kv_heads, layer.head_dim
            own[index] = device.layer_cache(*shape)
    kept = config.recurrence
    states = [
        LayerState(
            device.state_array(num_states, kept.num_taps - 1, kept.channels),
            device.state_array(num_states, kept.num_value_heads, kept.key_dim, kept.value_dim),
        )
        for layer in config.layers
        if kept and layer.recurrent
    ]
    return KVCache(tuple(own[layer.cache_layer] for _, layer in attending), tuple(states))


def bytes_per_block(config: ModelConfig, cache_format: CacheFormat, block_tokens: int) -> int:
    """Bytes of one block over all layers, K and V."""
    layers = config.cache_layers
    return block_tokens * sum(2 * layer.num_kv_heads * cache_format.head_bytes(layer.head_dim) for layer in layers)


def bytes_per_state(config: ModelConfig) -> int:
    """Bytes that the recurrent layers keep of one sequence; 0 without such layers."""
    kept = config.recurrence
    return kept.state_size * config.num_recurrent_layers * STATE_ITEM_BYTES if kept else 0


def num_cache_blocks(block_bytes: int, settings: Settings, context_length: int) -> int:
    """How many blocks; by default of `DEFAULT_TOKENS_PER_SEQUENCE` tokens for each sequence that may run.

    Raises `InsufficientVram` where there is no room for one.
    """
    blocks_per_sequence = -(-min(context_length, DEFAULT_TOKENS_PER_SEQUENCE) // settings.kv_block_tokens)
    default_bytes = min(settings.max_sequences * blocks_per_sequence * block_bytes, DEFAULT_CACHE_BYTES)
    num_blocks = (settings.kv_cache_bytes or default_bytes) // block_bytes
    if not num_blocks:
        raise InsufficientVram(
            f"one block of the KV cache takes {block_bytes} bytes; set kv_cache_bytes to at least that"
        )
    return num_blocks


def num_state_slots(state_bytes: int, settings: Settings, num_blocks: int) -> int:
    """How many states are kept: of each sequence that may run, and of known prefixes.

    A prefix ends with one of ``num_blocks`` blocks, so there are never more. 0 without recurrent layers, whose
    ``state_bytes`` are 0.
    """
    if not state_bytes:
        return 0
    num_snapshots = min(settings.state_cache_bytes // state_bytes, num_blocks)
    return min(settings.max_sequences, settings.step_tokens) + num_snapshots
